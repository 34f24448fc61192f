"""The one prompt builder: tuning, scoring and suggesting all take their tokens from here.

A prompt is joined from pieces that are tokenized one by one (head, each title, quotes, separators), never from one long
string. So a title has the same tokens wherever it stands, the catalogue is tokenized once, and the prompt that is
scored is a token prefix of the text that was trained on, whatever the tokenizer merges.

Two options shape it (ModelConfig):

- items: "text" lists quoted titles (published); "vector" puts one soft token per item: its marker's embedding plus the
  projected title vector, as LLaRA (arXiv 2312.02445) does.
- answer: "title" names the noisy titles (published, arXiv 2408.08208 section 4); "position" repeats the list after
  `Noise Items:` and reads a yes/no verdict at each entry in one pass, so that probabilities are exact and never tie.
  Vector items that see each other in both directions (attention: full) need no second list: each is judged where it
  stands.

    <instruction>\\nItems: "t1", "t2"\\nNoise Items: "t2"\\nSuggested Replacements: "y"      text, title (published)
    <instruction>\\nItems: A "t1", B "t2"\\nNoise Items: A B\\nSuggested Replacements: B "y"  text, position
    <instruction>\\nItems: [A+v1] [B+v2]\\nNoise Items: [A+v1] [B+v2]                        vector, position, causal
    <instruction>\\nItems: [A+v1] [B+v2]                                                    vector, position, full
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from llm4dsr.catalogue import Windows
from llm4dsr.company import Company
from llm4dsr.config import ModelConfig
from llm4dsr.errors import ConfigError, ModelError

INSTRUCTION = (
    "Below are the items that a user has interacted with, oldest first. Find the items that do not fit the interests "
    "shown by the majority, and suggest replacements that do."
)
ITEMS = "\nItems:"
NOISE = "\nNoise Items:"
SUGGESTED = "\nSuggested Replacements:"
OPEN, CLOSE, SEPARATOR = ' "', '"', ","
YES, NO = " yes", " no"
NO_NOISE = "(no item)"  # the title that answers a window left whole
TITLE_SHARE = 4  # a title has at most this part of a prompt's tokens (a quarter); of a longer one the rest is not shown
MARKERS = tuple(f" {chr(ord('A') + i)}" for i in range(26))

PHRASES = (INSTRUCTION, ITEMS, NOISE, SUGGESTED, YES, NO, *MARKERS)  # one token each in the embedded tokenizer


@dataclass
class Tokens:
    """A prompt under construction. ids, slots: same length; slots holds a catalogue row where a title vector is added
    to the token's embedding, else -1. read: for each position of the window, the token at which its verdict (and in
    vector mode the vector of its replacement) is read. answer: where the answer starts, for the next-token loss.
    evidence: [slots >= 0, EVIDENCE] what is added to each soft token beside its title, or None."""

    ids: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    answer: int = 0
    evidence: npt.NDArray[np.float32] | None = None

    def add(self, ids: Sequence[int], slot: int = -1) -> None:
        self.ids.extend(ids)
        self.slots.extend([slot] * len(ids))

    def __len__(self) -> int:
        return len(self.ids)


class PromptBuilder:
    """Builds token sequences for windows of catalogue rows.

    titles: the cleaned titles of the catalogue, by row. tokenizer: any tokenizer of transformers. company: counts
    that soft tokens carry beside the title (items: vector), or None.
    Raises ModelError where the tokenizer cannot express the markers as single tokens.
    """

    def __init__(self, tokenizer: Any, titles: Sequence[str], config: ModelConfig, max_tokens: int = 512,
                 company: Company | None = None) -> None:  # fmt: skip
        self.config, self.max_tokens, self.company = config, max_tokens, company
        self._tokenizer = tokenizer
        bos = getattr(tokenizer, "bos_token_id", None)
        self.head = ([] if bos is None else [bos]) + self.encode(INSTRUCTION) + self.encode(ITEMS)
        self.noise, self.suggested = self.encode(NOISE), self.encode(SUGGESTED)
        self.open, self.close, self.separator = self.encode(OPEN), self.encode(CLOSE), self.encode(SEPARATOR)
        self.titles: list[list[int]] = []
        if config.items == "text" or config.answer == "title":
            self.titles = [ids + self.close for ids in self._title_tokens([*titles, NO_NOISE])]
        self.no_noise = len(titles)  # row of the pseudo-title in self.titles
        self.markers: list[list[int]] = [self.encode(m) for m in MARKERS]
        if config.answer == "position" or config.items == "vector":
            long = [m for m, ids in zip(MARKERS, self.markers, strict=True) if len(ids) != 1]
            if long:
                raise ModelError(
                    f"The tokenizer splits the position marker {long[0]!r} into several tokens; answer: position and "
                    "items: vector need one token each. Use items: text with answer: title, or another model."
                )
        self.yes, self.no = self.encode(YES)[0], self.encode(NO)[0]
        if self.yes == self.no and config.answer == "position":
            raise ModelError("The tokenizer has one token for 'yes' and 'no'; use answer: title with this model.")

    def encode(self, text: str) -> list[int]:
        """Tokens of one piece of a prompt."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _title_tokens(self, titles: Sequence[str]) -> list[list[int]]:
        """Tokens of each title, a quarter of max_tokens at most. The last is NO_NOISE, and no other has its tokens.

        A title is text like any other: "</s>" is not the end of it, nor does "Size: A" hold a marker.
        """

        def encode(texts: Sequence[str]) -> list[list[int]]:
            return [list(ids) for ids in self._tokenizer(list(texts), add_special_tokens=False,
                                                         split_special_tokens=True)["input_ids"]]  # fmt: skip

        out, added = encode(titles), self._tokenizer.get_added_vocab()  # text -> token, special or not
        tokens = set(added.values())
        whole = re.compile("|".join(f"(?={re.escape(text)})" for text in added if len(text) > 1) or "(?!)")
        for i, ids in enumerate(out):
            if not tokens.isdisjoint(ids):  # cut inside of it, so that it is not found
                cuts = [match.start() + 1 for match in whole.finditer(titles[i])]
                pieces = [titles[i][a:b] for a, b in pairwise([0, *cuts, len(titles[i])])]
                out[i] = [token for piece in encode(pieces) for token in piece]
        shortened = [ids[: self.max_tokens // TITLE_SHARE] for ids in out]
        same = [i for i, ids in enumerate(shortened[:-1]) if ids == shortened[-1]]
        for i, ids in zip(same, encode([f"{titles[i]}." for i in same]) if same else [], strict=True):
            shortened[i] = ids
        return shortened

    def _item(self, out: Tokens, position: int, row: int) -> None:
        if self.config.items == "vector":
            out.add(self.markers[position], slot=row)
            return
        if self.config.answer == "position":
            out.add(self.markers[position])
        out.add(self.open + self.titles[row])

    def evidence(self, windows: Windows) -> list[npt.NDArray[np.float32] | None]:
        """For each window its [items, EVIDENCE] for the soft tokens, or None where there are none."""
        if self.company is None or self.config.items != "vector":
            return [None] * len(windows)
        table = self.company.evidence(windows)
        return [table[i, :n] for i, n in enumerate(windows.lengths)]

    def prompts(self, windows: Windows) -> list[Tokens]:
        """`prompt` of each window."""
        return [self.prompt(windows.row(i), e) for i, e in enumerate(self.evidence(windows))]

    def prompt(self, window: Sequence[int], evidence: npt.NDArray[np.float32] | None = None) -> Tokens:
        """Everything before the answer of a window (catalogue rows, oldest first), as scored.

        answer: title ends just before the noisy title's first token; answer: position ends with the repeated list.
        evidence: [items, EVIDENCE], for vector items.
        """
        if len(window) > len(MARKERS) and (self.config.answer == "position" or self.config.items == "vector"):
            raise ConfigError(
                f"A window has {len(window)} items; answers by position and vector items go up to {len(MARKERS)}. "
                "Prepare shorter windows, or use items: text with answer: title."
            )
        out, full = Tokens(), judged_in_place(self.config)
        out.add(self.head)
        for position, row in enumerate(window):
            if position and self.config.items == "text":
                out.add(self.separator)
            self._item(out, position, row)
            if full:
                out.read.append(len(out) - 1)
        if self.config.answer == "title":
            out.add(self.noise + self.open)
        elif not full:
            out.add(self.noise)
        out.answer = len(out)
        if self.config.answer == "position" and not full:
            for position, row in enumerate(window):
                out.add(self.markers[position], slot=row if self.config.items == "vector" else -1)
                out.read.append(len(out) - 1)
        if evidence is not None:
            out.evidence = np.concatenate([evidence] * (sum(s >= 0 for s in out.slots) // max(1, len(window))))
        if len(out) > self.max_tokens:
            raise ConfigError(
                f"A prompt has {len(out)} tokens, more than train.max_tokens = {self.max_tokens}. Raise it, prepare "
                "shorter windows, or use items: vector."
            )
        return out

    def suggestion_prompt(self, window: Sequence[int], position: int,
                          evidence: npt.NDArray[np.float32] | None = None) -> Tokens:  # fmt: skip
        """The prompt that continues with the replacement's title (text items), or whose last token holds the vector
        of the replacement (vector items with answer: title)."""
        out = self.prompt(window, evidence)
        if self.config.answer == "title":
            out.add(self.titles[window[position]])
        out.add(self.suggested)
        if self.config.answer == "position":
            out.add(self.markers[position])
        if self.config.items == "text":
            out.add(self.open)
        return out

    def training(self, window: Sequence[int], noisy: Sequence[int], replacements: Sequence[int],
                 evidence: npt.NDArray[np.float32] | None = None) -> Tokens:  # fmt: skip
        """Prompt and answer of one training window.

        noisy: replaced positions, ascending (may be empty: the window was left whole). replacements: the rows that
        stood there. `answer` is the first token of the answer: its loss starts there.
        """
        out = self.prompt(window, evidence)
        if self.config.answer == "title":
            for i, position in enumerate(noisy):
                if i:
                    out.add(self.separator + self.open)
                out.add(self.titles[window[position]])
            if not noisy:
                out.add(self.titles[self.no_noise])
                return out
            out.add(self.suggested)
            if self.config.items == "text":
                for i, row in enumerate(replacements):
                    out.add((self.separator if i else []) + self.open + self.titles[row])
        elif self.config.items == "text":
            out.answer = len(out)  # the repeated list says nothing; its verdicts have a loss of their own
            if noisy:
                out.add(self.suggested + self.markers[noisy[0]] + self.open + self.titles[replacements[0]])
        return out

    @property
    def hash(self) -> str:
        """Short hash of the prompt's wording and options; saved with every result."""
        form = (self.config.items, self.config.answer, str(judged_in_place(self.config)))
        parts = "\x00".join((*PHRASES, OPEN, CLOSE, SEPARATOR, NO_NOISE, *form))
        return hashlib.sha256(parts.encode()).hexdigest()[:12]


def judged_in_place(config: ModelConfig) -> bool:
    """Whether items see each other in both directions. Anything that is decoded token by token cannot."""
    return config.attention == "full" and config.items == "vector" and config.answer == "position"
