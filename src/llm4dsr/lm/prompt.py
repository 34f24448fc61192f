"""The one prompt builder: tuning, scoring and suggesting all take their tokens from here.

A prompt is joined from pieces that are tokenized one by one (head, each title, quotes, separators), never from one long
string. So a title has the same tokens everywhere, the catalogue is tokenized once, and the scored prompt is a token
prefix of the training text for any tokenizer.

Three options shape it (ModelConfig):

- item_input: `title` lists quoted titles (published). `soft_token` puts one soft token per item: the embedding of its
  marker plus the projected title vector, as LLaRA (arXiv 2312.02445) does.
- readout: `title` names the noisy titles (published, arXiv 2408.08208, section 4). `per_position` repeats the list
  after `Noise Items:` and reads a noise logit at each entry in one pass, so probabilities are exact and never tie. Soft
  tokens that see each other in both directions (attention: bidirectional) need no second list: each is scored in place.
  `likelihood` asks nothing: it reads how likely each title of a plain list is (`title_lists.py`).
- chat_template: the instruction and the items are the user's turn, the rest is the assistant's.

    <instruction>\\nItems: "t1", "t2"\\nNoise Items: "t2"\\nSuggested Replacements: "y"      title, title (published)
    <instruction>\\nItems: A "t1", B "t2"\\nNoise Items: A B\\nSuggested Replacements: B "y"  title, per_position
    <instruction>\\nItems: [A+v1] [B+v2]\\nNoise Items: [A+v1] [B+v2]                        soft_token, per_position
    <instruction>\\nItems: [A+v1] [B+v2]                                                    … and bidirectional
    <list>\\nItems: "t1", "t2", "t3"                                                        title, likelihood
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from llm4dsr.config import ModelConfig
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ConfigError, ModelError
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.lm.pieces import Pieces, chat_turns
from llm4dsr.lm.tokens import Tokens

INSTRUCTION = (
    "Below are the items that a user has interacted with, oldest first. Find the items that do not fit the interests "
    "shown by the majority, and suggest replacements that do."
)
LIST = "Below are items that a user has interacted with."  # in place of the instruction, with readout: likelihood
ITEMS = "\nItems:"
NOISE = "\nNoise Items:"
SUGGESTED = "\nSuggested Replacements:"
OPEN, CLOSE, SEPARATOR = ' "', '"', ","
YES, NO = " yes", " no"
NO_NOISE = "(no item)"  # the title that answers a window left whole
TITLE_SHARE = 4  # a title has at most this part of a prompt's tokens (a quarter); of a longer one the rest is not shown
MARKERS = tuple(f" {chr(ord('A') + i)}" for i in range(26))
PHRASES = (INSTRUCTION, ITEMS, NOISE, SUGGESTED, YES, NO, *MARKERS)  # one token each in the embedded tokenizer


class PromptBuilder:
    """Builds token sequences for windows of catalogue rows.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Any tokenizer of transformers.
    titles : sequence of str
        Cleaned titles of the catalogue, by row.
    config : ModelConfig
        The form of the prompt.
    max_tokens : int, default 512
        Longest prompt.
    cooccurrence : CooccurrenceCounts, optional
        Counts behind the co-occurrence features of soft tokens.

    Raises
    ------
    ModelError
        If the tokenizer splits position markers into several tokens, or lacks the chat template that is asked for.
    """

    def __init__(
        self,
        tokenizer: Any,
        titles: Sequence[str],
        config: ModelConfig,
        max_tokens: int = 512,
        cooccurrence: CooccurrenceCounts | None = None,
    ) -> None:
        self.config, self.max_tokens, self.cooccurrence = config, max_tokens, cooccurrence
        self._tokenizer, self.encode = tokenizer, Pieces(tokenizer)
        bos = getattr(tokenizer, "bos_token_id", None)
        self._turns = chat_turns(tokenizer) if config.chat_template else None
        if self._turns is None:
            begin, noise = [] if bos is None else [bos], self.encode(NOISE)
        else:
            begin, noise = self.encode(self._turns[0]), self.encode(self._turns[1]) + self.encode(NOISE.lstrip())
        opening = LIST if config.readout == "likelihood" else INSTRUCTION
        self.head, self.noise = begin + self.encode(opening) + self.encode(ITEMS), noise
        self.suggested = self.encode(SUGGESTED)
        self.open, self.close, self.separator = self.encode(OPEN), self.encode(CLOSE), self.encode(SEPARATOR)
        self.titles: list[list[int]] = []
        if config.item_input == "title" or config.readout == "title":
            self.titles = [ids + self.close for ids in self._title_tokens([*titles, NO_NOISE])]
        self.no_noise = len(titles)  # row of the pseudo-title in self.titles
        self.markers = list(takewhile(lambda ids: len(ids) == 1, map(self.encode, MARKERS)))
        if self.marked and not self.markers:
            raise ModelError(
                f"The tokenizer splits the position marker {MARKERS[0]!r} into several tokens; readout: per_position "
                "and item_input: soft_token need one token each. Use item_input: title with readout: title, or "
                "another model."
            )
        self.yes, self.no = self.encode(YES)[0], self.encode(NO)[0]
        if self.yes == self.no and config.readout == "per_position":
            raise ModelError("The tokenizer has one token for 'yes' and 'no'; use readout: title with this model.")

    def with_counts(self, counts: CooccurrenceCounts | None) -> PromptBuilder:
        """Return a builder with other counts; tokens of titles are shared, and this builder is unchanged."""
        out = copy.copy(self)
        out.cooccurrence = counts
        return out

    def with_items(self, titles: Sequence[str], counts: CooccurrenceCounts | None) -> PromptBuilder:
        """Return a builder that also knows new titles, after the others, and other counts; this one is unchanged."""
        out = self.with_counts(counts)
        if self.titles:
            new = [ids + self.close for ids in self._title_tokens([*titles, NO_NOISE])]
            out.titles = [*self.titles[:-1], *new]
        out.no_noise = self.no_noise + len(titles)
        return out

    @property
    def marked(self) -> bool:
        """Whether each item has a position marker."""
        return self.config.readout == "per_position" or self.config.item_input == "soft_token"

    def _title_tokens(self, titles: Sequence[str]) -> list[list[int]]:
        """Tokens of each title, at most a quarter of max_tokens. The last is NO_NOISE, and no other title equals it."""
        out = self.encode.titles(titles)
        shortened = [ids[: self.max_tokens // TITLE_SHARE] for ids in out]
        same = [i for i, ids in enumerate(shortened[:-1]) if ids == shortened[-1]]
        for i, ids in zip(same, self.encode.titles([f"{titles[i]}." for i in same]) if same else [], strict=True):
            shortened[i] = ids
        return shortened

    def _item(self, out: Tokens, position: int, row: int) -> None:
        if self.config.item_input == "soft_token":
            out.add(self.markers[position], slot=row)
            return
        if self.config.readout == "per_position":
            out.add(self.markers[position])
        out.add(self.open + self.titles[row])

    def features(
        self, windows: Windows, unknown: npt.NDArray[np.bool_] | None = None
    ) -> list[npt.NDArray[np.float32] | None]:
        """Return the co-occurrence features [items, N_FEATURES] of each window, or None for each if there are none.

        Items that are `unknown` ([N], optional) are described without their collaborative vector.
        """
        if self.cooccurrence is None or self.config.item_input != "soft_token":
            return [None] * len(windows)
        return [*np.split(self.cooccurrence.features(windows, unknown), windows.offsets[1:-1])]

    def prompts(self, windows: Windows) -> list[Tokens]:
        """Build `prompt` for each window."""
        return [self.prompt(windows.row(i), e) for i, e in enumerate(self.features(windows))]

    def prompt(self, window: Sequence[int], features: npt.NDArray[np.float32] | None = None) -> Tokens:
        """Build everything before the answer, as it is scored.

        Parameters
        ----------
        window : sequence of int
            Catalogue rows, oldest first.
        features : array of float, optional
            [items, N_FEATURES] co-occurrence features, for soft tokens.

        Returns
        -------
        Tokens
            Ends just before the noisy title's first token (readout: title), or with the list of items. `read` has the
            last token of each title (likelihood).

        Raises
        ------
        ConfigError
            If the window has more items than markers, or the prompt more than max_tokens tokens.
        """
        if self.marked and len(window) > len(self.markers):
            raise ConfigError(
                f"A window has {len(window)} items; answers by position and vector items go up to {len(self.markers)} "
                "with this tokenizer. Prepare shorter windows, or use item_input: title with readout: title."
            )
        out, full = Tokens(), is_bidirectional(self.config)
        out.add(self.head)
        for position, row in enumerate(window):
            if position and self.config.item_input == "title":
                out.add(self.separator)
            self._item(out, position, row)
            if full or self.config.readout == "likelihood":
                out.read.append(len(out) - 1)
        if self.config.readout == "likelihood":
            out.answer = len(self.head)
            return self._checked(out)
        if self.config.readout == "title":
            out.add(self.noise + self.open)
        elif not full:
            out.add(self.noise)
        out.answer = len(out)
        if self.config.readout == "per_position" and not full:
            for position, row in enumerate(window):
                out.add(self.markers[position], slot=row if self.config.item_input == "soft_token" else -1)
                out.read.append(len(out) - 1)
        if features is not None:
            out.features = np.concatenate([features] * (sum(s >= 0 for s in out.slots) // max(1, len(window))))
        return self._checked(out)

    def _checked(self, out: Tokens) -> Tokens:
        if len(out) > self.max_tokens:
            raise ConfigError(
                f"A prompt has {len(out)} tokens, more than train.max_tokens = {self.max_tokens}. Raise it, prepare "
                "shorter windows, or use item_input: soft_token."
            )
        return out

    def fits(self, window: Sequence[int]) -> bool:
        """Return whether a window has a prompt: neither too many items nor too many tokens."""
        try:
            self.prompt(window)
        except ConfigError:
            return False
        return True

    def suggestion_prompt(
        self, window: Sequence[int], position: int, features: npt.NDArray[np.float32] | None = None
    ) -> Tokens:
        """Build the prompt whose continuation is the replacement of one item.

        Parameters
        ----------
        window : sequence of int
            Catalogue rows, oldest first.
        position : int
            The item to replace.
        features : array of float, optional
            [items, N_FEATURES], for soft tokens.

        Returns
        -------
        Tokens
            Continues with the title of the replacement, or ends with the token that holds its vector (soft tokens with
            readout: title).
        """
        if self.config.readout == "likelihood":  # the next title of the list of the others
            out = self.prompt([*window[:position], *window[position + 1 :]])
            out.add((self.separator if len(window) > 1 else []) + self.open)
            return out
        out = self.prompt(window, features)
        if self.config.readout == "title":
            out.add(self.titles[window[position]])
        out.add(self.suggested)
        if self.config.readout == "per_position":
            out.add(self.markers[position])
        if self.config.item_input == "title":
            out.add(self.open)
        return out

    def training(
        self,
        window: Sequence[int],
        noisy: Sequence[int],
        replacements: Sequence[int],
        features: npt.NDArray[np.float32] | None = None,
    ) -> Tokens:
        """Build the prompt and answer of one training window.

        Parameters
        ----------
        window : sequence of int
            Catalogue rows with injected items, oldest first; with readout: likelihood, as they are in any order.
        noisy : sequence of int
            Positions of injected items, ascending; may be empty. Ignored with readout: likelihood, like replacements.
        replacements : sequence of int
            The rows that stood there.
        features : array of float, optional
            [items, N_FEATURES], for soft tokens.

        Returns
        -------
        Tokens
            `answer` is the first token of the answer, where the loss starts.
        """
        out = self.prompt(window, features)
        if self.config.readout == "likelihood":
            return out
        if self.config.readout == "title":
            for i, position in enumerate(noisy):
                if i:
                    out.add(self.separator + self.open)
                out.add(self.titles[window[position]])
            if not noisy:
                out.add(self.titles[self.no_noise])
                return out
            out.add(self.suggested)
            if self.config.item_input == "title":
                for i, row in enumerate(replacements):
                    out.add((self.separator if i else []) + self.open + self.titles[row])
        elif self.config.item_input == "title":
            out.answer = len(out)  # the repeated list is no answer; noise logits have their own loss
            if noisy:
                out.add(self.suggested + self.markers[noisy[0]] + self.open + self.titles[replacements[0]])
        return out

    @property
    def hash(self) -> str:
        """A short hash of the prompt's wording and form, saved with every result."""
        form = (self.config.item_input, self.config.readout, str(is_bidirectional(self.config)), *(self._turns or ()))
        if self.config.readout == "likelihood":
            form = (*form, LIST)
        parts = "\x00".join((*PHRASES, OPEN, CLOSE, SEPARATOR, NO_NOISE, *form))
        return hashlib.sha256(parts.encode()).hexdigest()[:12]


def is_bidirectional(config: ModelConfig) -> bool:
    """Return whether items see each other in both directions. What is decoded token by token cannot."""
    return (
        config.attention == "bidirectional" and config.item_input == "soft_token" and config.readout == "per_position"
    )
