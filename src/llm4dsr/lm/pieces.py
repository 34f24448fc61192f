"""Pieces of a prompt as tokens: each has the same tokens wherever it stands, for any tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from llm4dsr.errors import ModelError, first_line

ANCHORS = ("\n", ":")  # text before a piece that no tokenizer joins with a word, a space or a quote
SPACES = ("▁", "Ġ")  # how tokenizers write a space
CONTENT = "CONTENT"
DAY = "26 Jul 2024"  # some templates show the date, and a prompt must not change overnight
SAME_DAY = "{%- macro strftime_now(form) -%}" + DAY + "{%- endmacro -%}"
OPEN_THOUGHT = re.compile(r"<think(?:ing)?>\s*$")


class Pieces:
    """Tokenizes text that continues other text.

    Many SentencePiece tokenizers put a space before what they are given, as if it began a text. It is left out.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Any tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        first = tokenizer.convert_ids_to_tokens(self._plain(["a"])[0][:1])
        self._prefixed = bool(first) and str(first[0]).startswith(SPACES)

    def __call__(self, text: str) -> list[int]:
        """Tokenize one piece; names of special tokens become these."""
        return self._continued([text])[0]

    def titles(self, titles: Sequence[str]) -> list[list[int]]:
        """Tokenize titles. A title is plain text: "</s>" in it does not end it, and "Size: A" holds no marker."""
        out, added = self._continued(titles, split_special_tokens=True), self.tokenizer.get_added_vocab()
        tokens = set(added.values())
        whole = re.compile("|".join(f"(?={re.escape(text)})" for text in added if len(text) > 1) or "(?!)")
        for i, ids in enumerate(out):
            if not tokens.isdisjoint(ids):  # cut inside of it, so that it is not found
                cuts = [match.start() + 1 for match in whole.finditer(titles[i])]
                pieces = [titles[i][a:b] for a, b in pairwise([0, *cuts, len(titles[i])])]
                out[i] = [token for piece in self._continued(pieces, split_special_tokens=True) for token in piece]
        return out

    def _continued(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        out = self._plain(texts, **options)
        if self._prefixed:
            for anchor in ANCHORS:
                (before,) = self._plain([anchor], **options)
                for i, ids in enumerate(self._plain([anchor + text for text in texts], **options)):
                    if before and ids[: len(before)] == before:
                        out[i] = ids[len(before) :]
        return out

    def _plain(self, texts: Sequence[str], **options: Any) -> list[list[int]]:
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"]]


def chat_turns(tokenizer: Any) -> tuple[str, str]:
    """Return what the chat template of a tokenizer puts before the user's text, and between it and the answer.

    Thinking is turned off. Some templates show that by an empty thinking block; a block that they leave open is cut.

    Raises
    ------
    ModelError
        If the tokenizer has no chat template, or one that fails.
    """
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": CONTENT}], chat_template=SAME_DAY + tokenizer.get_chat_template(),
            tokenize=False, add_generation_prompt=True, enable_thinking=False, date_string=DAY,
        )  # fmt: skip
        before, after = text.split(CONTENT)
    except Exception as error:  # templates are programs, so anything may be raised
        raise ModelError(
            f"The tokenizer has no chat template that can be used: {first_line(error)} Use model.chat_template: false."
        ) from None
    return before, OPEN_THOUGHT.sub("", after)
