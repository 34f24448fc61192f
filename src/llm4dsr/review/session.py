"""A review in progress: questions with their histories, answers, and what they tell so far. Knows no web."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Collection
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.manifest import file_hash
from llm4dsr.core.progress import Progress
from llm4dsr.data.windows import locate
from llm4dsr.denoise.labels import ACCEPTED
from llm4dsr.errors import ConfigError
from llm4dsr.pipeline import Run
from llm4dsr.pipeline.run_folder import MADE
from llm4dsr.report.examples import described
from llm4dsr.review.answers import ANSWERS, Answer, Answers
from llm4dsr.review.estimate import precision_of
from llm4dsr.review.questions import ORDERS, Order, ordered, sample, strata

FOUND = 20  # items that a search returns

Question = dict[str, Any]
Key = tuple[str, int, int]  # split, window_id, position


class Review:
    """Questions about a run, and their answers. Safe to use from several threads.

    Parameters
    ----------
    run : Run
        Decided, at least.
    count : int
        Most questions of each order.
    progress : Progress, optional
        Called with (windows done, all windows, what is being done), while questions get their reasons.

    Raises
    ------
    OutputError
        If a stage is missing or damaged, or there are answers about other windows.
    """

    def __init__(self, run: Run, count: int, progress: Progress | None = None) -> None:
        run.need("prepare", "train", "score", "decide")
        self.answers = Answers(run.folder, file_hash(run.verified("prepare") / MADE))
        self._lock, self._data = threading.Lock(), run.data()
        scores, decisions = run.scores(), run.decisions()
        self._flags, caps = strata(decisions), {name: run.cap(name) for name in scores}
        asked: dict[Order, pl.DataFrame] = {
            "sample": sample(decisions, count, run.config.seed),
            "worst": ordered(scores, "worst", caps),
            "informative": ordered(scores, "informative", caps),
        }
        self._whole = {order: table.select(c.SPLIT, c.WINDOW, c.POSITION).rows() for order, table in asked.items()}
        self._queues = {order: keys[:count] for order, keys in self._whole.items()}
        self._scored = {name: set(t.select(c.WINDOW, c.POSITION).rows()) for name, t in scores.items()}
        self._questions = self._described(run, scores, progress)
        titles = [title.lower() for title in self._data.catalogue.original_titles]
        ids = self._data.catalogue.ids.cast(pl.String).to_list()
        self._titles, self._items = list(zip(titles, ids, strict=True)), set(ids)

    def _described(self, run: Run, scores: dict[str, pl.DataFrame], progress: Progress | None) -> dict[Key, Question]:
        """The questions of all orders."""
        keys = {key for queue in self._queues.values() for key in queue}
        chosen = {}
        for name, table in scores.items():
            rows = sorted((window, position) for split, window, position in keys if split == name)
            asked = pl.DataFrame(rows, schema={n: table.schema[n] for n in (c.WINDOW, c.POSITION)}, orient="row")
            chosen[name] = table.join(asked, on=[c.WINDOW, c.POSITION], how="semi")
        return {
            (name, window, position): example | {"position": position}
            for name, found in described(run, scores, chosen, progress).items()
            for (window, position), example in zip(chosen[name].select(c.WINDOW, c.POSITION).rows(), found, strict=True)
        }

    def next(self, order: str) -> Question | None:
        """Return the next unanswered question of an order; None if there is none left.

        Raises
        ------
        ConfigError
            If the order is unknown.
        """
        if order not in ORDERS:
            raise ConfigError(f"The order is {order!r}; expected one of {', '.join(ORDERS)}.")
        with self._lock:
            left = self._left(order, self._queues)
        return self._questions[left[0]] if left else None

    def _left(self, order: str, of: dict[Order, list[Key]]) -> list[Key]:
        """Open questions. Those of the random sample are also asked where they were accepted without a look."""
        given = _looked_at(self.answers.current) if order == "sample" else self.answers.current
        return [key for key in of[order] if key not in given]  # type: ignore[index]

    def answer(
        self, split: str, window: int, position: int, answer: str, replacement: str | None, whole_window: bool
    ) -> None:
        """Save an answer.

        Parameters
        ----------
        split, window, position
            The interaction.
        answer : str
            One of ANSWERS.
        replacement : str or None
            Id of the item that belongs there, as text.
        whole_window : bool
            The answer holds for each scored interaction of the window.

        Raises
        ------
        ConfigError
            If the answer, the interaction or the item is unknown.
        """
        if answer not in ANSWERS:
            raise ConfigError(f"The answer is {answer!r}; expected one of {', '.join(ANSWERS)}.")
        if (window, position) not in self._scored.get(split, set()):
            raise ConfigError(f"Position {position} of window {window} in {split!r} was not scored.")
        if replacement is not None and replacement not in self._items:
            raise ConfigError(f"There is no item {replacement!r}.")
        positions = [position]
        if whole_window:
            rest = sorted(p for w, p in self._scored[split] if w == window and p != position)
            positions += rest  # the one that was asked comes first, for `undo`
        with self._lock:
            self.answers.add([
                Answer(split, window, p, answer, replacement if p == position else None) for p in positions
            ])  # fmt: skip

    def accept(self, order: str, count: int) -> int:
        """Accept the next interactions of an order as noise, without a look; one `undo` takes all of them back.

        They may be more than the questions that are asked. Such answers overrule the model (`decide --reviewed`), but
        say nothing of precision or of noise rates.

        Parameters
        ----------
        order : str
            One of ORDERS but the random sample, which measures precision.
        count : int
            How many, from 1 on.

        Returns
        -------
        int
            How many there were.

        Raises
        ------
        ConfigError
            If the order is unknown or the random sample, or the number is not above 0.
        """
        if order not in ORDERS or order == "sample":
            allowed = ", ".join(name for name in ORDERS if name != "sample")
            raise ConfigError(f"Questions of the order {order!r} are answered one by one; choose one of {allowed}.")
        if count < 1:
            raise ConfigError(f"{count} questions cannot be accepted; expected a whole number from 1 on.")
        with self._lock:
            accepted = [Answer(*key, ACCEPTED) for key in self._left(order, self._whole)[:count]]
            if accepted:
                self.answers.add(accepted)
        return len(accepted)

    def undo(self) -> Question | None:
        """Take back the last answer, and return its question; None if there is none."""
        with self._lock:
            taken = self.answers.undo()
        known = [self._questions[a.key] for a in taken if a.key in self._questions]
        return known[0] if known else None

    def state(self) -> dict[str, Any]:
        """Return how many answers there are, of which kind, and the precision that they tell."""
        with self._lock:
            given, labels = self.answers.current, self.answers.labels()
            open_questions = {order: self._left(order, self._queues) for order in self._queues}
        found = precision_of(self._flags, self._sampled(labels, _looked_at(given)))
        counts = {name: sum(a.answer == name for a in given.values()) for name in (*ANSWERS, ACCEPTED)}
        known = not math.isnan(found.precision)
        return {
            "answers": len(given), "counts": counts,
            "left": {order: len(left) for order, left in open_questions.items()},
            "flags": len(self._flags), "sampled": found.answers,
            "precision": [found.precision, found.low, found.high] if known else None,
        }  # fmt: skip

    def _sampled(self, labels: pl.DataFrame, given: Collection[Key]) -> pl.DataFrame:
        """Labels of the random sample: of as many of its first questions as are all answered.

        Whatever order the answers were given in, and whichever decisions they were about, these are a random sample of
        the flags of today.
        """
        first = list(itertools.takewhile(lambda key: key in given, self._queues["sample"]))
        schema = {name: labels.schema[name] for name in (c.SPLIT, c.WINDOW, c.POSITION)}
        return labels.join(pl.DataFrame(first, schema=schema, orient="row"), on=list(schema), how="semi")

    def labels(self) -> pl.DataFrame:
        """Return all labels: see `Answers.labels`, with `user_id` and `item_id`, as text."""
        with self._lock:
            labels = self.answers.labels()
        named = [labels.clear().with_columns(pl.lit(None, pl.String).alias(name) for name in (c.USER, c.ITEM))]
        for split, windows in self._data.splits.items():
            part = labels.filter(pl.col(c.SPLIT) == split)
            at = locate(part, windows)
            users, items = windows.user_ids.gather(windows.owners[at]), self._data.catalogue.ids_of(windows.items[at])
            named.append(part.with_columns(users.cast(pl.String).alias(c.USER), items.cast(pl.String).alias(c.ITEM)))
        return pl.concat(named)

    def search(self, text: str) -> list[dict[str, str]]:
        """Return items whose title has all words of the text."""
        words, out = text.lower().split(), []
        for row, (title, item) in enumerate(self._titles):
            if words and all(word in title for word in words):
                out.append({"id": item, "title": self._data.catalogue.original_titles[row]})
                if len(out) == FOUND:
                    break
        return out


def _looked_at(given: dict[Key, Answer]) -> dict[Key, Answer]:
    return {key: answer for key, answer in given.items() if answer.answer != ACCEPTED}
