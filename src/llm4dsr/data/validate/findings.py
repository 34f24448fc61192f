"""The findings of `validate`: codes with their texts, and the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import polars as pl

from llm4dsr import columns as c
from llm4dsr.errors import plain

Level = Literal["error", "warning"]

GIANT: Final = 5_000  # interactions of one user above which a bot is more likely than a person
LONG_TITLE: Final = 500  # characters
LONG_WINDOW: Final = 26  # items; more have no marker in a prompt with a readout per position
LEAK_SHARE: Final = 0.05  # of the windows of a split; fewer may be users who repeat themselves
FEW_WINDOWS: Final = 1_000  # in training
_COPY = "Write or copy the file again."

# code: (level, what was found, what to do). {n} is how many there are, {where} the file, {column} a column.
CODES: Final[dict[str, tuple[Level, str, str]]] = {
    # files
    "files": ("error", "{said}", "Rename the files as listed here."),
    "unreadable": ("error", "{where} cannot be read to the end: {said}", _COPY),
    "cut_short": ("error", "{where} was cut short: {said}", "Copy or download it again."),
    "not_parquet": ("error", "{where} is not Parquet, or damaged: {said}", "Correct its name, or write it again."),
    "misnamed": ("error", "{where} holds Parquet.", "Name it .parquet."),
    "not_utf8": ("error", "{where} is not in UTF-8: {said}", "Save it in UTF-8:  iconv -f latin1 -t utf-8 …"),
    "no_rows": ("error", "{where} has no rows.", "Give at least one."),
    "missing_column": ("error", "{where} has no column {column!r}; it has {there}.",
                       "Add or rename it. Logs with other names:  llm4dsr data prepare DIR --column OURS=YOURS"),
    "column_type": ("error", "{column!r} in {where} has the type {kind}.", "Expected {expected}."),
    "refused": ("error", "{said}", "Correct the data as described."),
    "memory": ("warning", "Reading takes about {needed} of memory; {available} are free.",
               "Use a larger machine or fewer interactions. A log can be prepared in parts by  llm4dsr data prepare."),
    # ids
    "id_type": ("error", "{column!r} in {where} has ids of type {kind}; the items have {expected}.",
                "Use one type everywhere: the number 1 is not the text '1'. {why}"),
    "missing_id": ("error", "{n:,} row(s) of {where} have no {column!r}.", "Fill or remove them."),
    "repeated_id": ("error", "{n:,} row(s) of {where} repeat a {column!r}.", "Keep one row per id."),
    "unknown_item": ("error", "{n:,} item id(s) of {column!r} in {where} are not among the items.",
                     "Add them to the items, or remove these interactions.{why}"),
    "unused_item": ("warning", "{n:,} item(s) occur in no interaction.", "They are described by their titles only."),
    # titles
    "no_title": ("error", "{n:,} item(s) have no title, or one that is empty after cleaning.",
                 "Give each item a title, or remove it together with its interactions."),
    "same_title": ("warning", "{n:,} items share their cleaned title with another item.",
                   "They count as one item in suggestions. Make the titles more specific if they differ."),
    "long_title": ("warning", f"{{n:,}} title(s) have more than {LONG_TITLE} characters.",
                   "Shorten them: long prompts are cut."),
    "control_characters": ("warning", "{n:,} title(s) contain control characters, line breaks or direction marks.",
                           "They are read as spaces."),
    # times
    "time_type": ("error", "{n:,} row(s) of {where} have a time that is text but not a date.",
                  "Give seconds since 1970, or dates such as 2024-05-31 13:45:00."),
    "negative_time": ("warning", "{n:,} row(s) of {where} have a time before 1970.", "Check that this is right."),
    "future_time": ("warning", "{n:,} row(s) of {where} have a time in the future.", "Check that this is right."),
    "milliseconds": ("warning", "{n:,} row(s) of {where} have times that look like milliseconds or finer.",
                     "Divide them by 1000: seconds are expected. The order stays right, reported times do not."),
    "no_order": ("warning", "{n:,} user(s) have the same time in all their interactions.",
                 "Their order is that of the file. Give finer times if there are any."),
    "time_order": ("warning", "{n:,} user(s) have training windows later than some of {where}.",
                   "Split by time; otherwise training leaks the future."),
    # interactions
    "missing_value": ("warning", "{n:,} row(s) of {where} lack a user, an item or a time.", "They are skipped."),
    "repeated_row": ("warning", "{n:,} row(s) of {where} are duplicates.", "They count once."),
    "one_interaction": ("warning", "{n:,} user(s) have a single interaction.", "They give no window."),
    "giant_history": ("warning", f"{{n:,}} user(s) have more than {GIANT:,} interactions.",
                      "Check that they are people: each weighs as much as many others."),
    # windows
    "empty_history": ("error", "{n:,} window(s) of {where} are empty.", "Remove them."),
    "one_item": ("error", "{n:,} window(s) of {where} have a single item.",
                 "Remove them: a window has a history and a target."),
    "missing_item": ("error", "{n:,} window(s) of {where} have gaps among their items.", "Remove the gaps."),
    "long_window": ("warning", f"{{n:,}} window(s) of {{where}} have more than {LONG_WINDOW} items.",
                    "They are trained on and scored in overlapping parts."),
    "few_windows": ("warning", "{n:,} window(s) to train on.", "10 are the minimum, some thousands are useful."),
    "target_in_history": ("warning", "{n:,} window(s) of {where} have their target in the history.",
                          "Remove it if only items that are new to a user count."),
    "repeated_window": ("warning", "{n:,} window(s) of {where} are repeated.", "Keep each once."),
    "leak": ("error", "{n:,} window(s) of {where} are also training windows.",
             "Remove them from one of the two: memorized windows cannot be evaluated."),
    "repeated_in_train": ("warning", "{n:,} window(s) of {where} are also training windows.",
                          "Check whether their users repeat themselves; otherwise the split leaks."),
    "target_in_train": ("warning", "{n:,} target(s) of {where} are also a target of the same user in training.",
                        "Check whether users repeat items; otherwise the split leaks."),
    # the truth and weights
    "list_length": ("error", "{n:,} window(s) of {where} have more or fewer entries in {column!r} than items.",
                    "Give one entry per item."),
    "value": ("error", "{n:,} entries of {column!r} in {where} are {other}.", "Give {expected}."),
    "unmarked_noise": ("error", "{n:,} interaction(s) in {where} differ from the true item but are not marked.",
                       f"Set {c.NOISE_MASK!r} to 1 there, or correct the true item: detection is measured with it."),
    "marked_clean": ("warning", "{n:,} interaction(s) in {where} are marked as noise but equal the true item.",
                     f"Set {c.NOISE_MASK!r} to 0 there, unless that is intended."),
    "noisy_target": ("warning", "{n:,} target(s) of {where} are marked as noise.",
                     "Ranking should be measured on clean targets."),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes
    ----------
    level : {"error", "warning"}
    code : str
        One of CODES.
    text : str
        What was found, as a sentence.
    count : int
        How often.
    examples : list of str
        Up to three, cut to 60 characters.
    advice : str
        What to do.
    """

    level: Level
    code: str
    text: str
    count: int
    examples: list[str]
    advice: str


@dataclass
class Report:
    """The findings of `validate`. All texts are printable: control characters of the data are escaped.

    Attributes
    ----------
    path : str
        The folder.
    strict : bool
        Warnings count as errors.
    rows : dict of str to int
        Rows of each readable file.
    needed, available : int
        Bytes of memory to read everything, and free ones; 0 if unknown.
    findings : list of Finding
    """

    path: str
    strict: bool = False
    rows: dict[str, int] = field(default_factory=dict)
    needed: int = 0
    available: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """The errors."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """The warnings."""
        return [finding for finding in self.findings if finding.level == "warning"]

    def ok(self, strict: bool | None = None) -> bool:
        """Return True without errors; if strict (default: `self.strict`), also without warnings."""
        return not (self.findings if (self.strict if strict is None else strict) else self.errors)

    def text(self) -> str:
        """Render the report as plain text."""
        rows = ", ".join(f"{name} {count:,}" for name, count in self.rows.items())
        lines = [f"{plain(self.path)}: {rows or 'nothing could be read'}"]
        if self.needed:
            lines.append(f"Reading it takes about {size(self.needed)} of memory; {size(self.available)} are free.")
        for title, found in (("Errors", self.errors), ("Warnings", self.warnings)):
            lines += ["", f"{title}: {len(found) or 'none'}"]
            for finding in found:
                shown = f" For example {', '.join(finding.examples)}." if finding.examples else ""
                lines += [f"  [{finding.code}] {finding.text}{shown}", f"    {finding.advice}"]
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, with `ok`, for JSON."""
        return {"ok": self.ok(), **asdict(self)}

    def add(self, code: str, count: int = 1, examples: Any = (), **facts: Any) -> None:
        """Add a finding. facts: values for the braces in the texts of the code."""
        level, text, advice = CODES[code]
        shown = [_shown(example) for example in list(examples)[:3]]
        words = [plain(words.format(n=count, **facts)).replace("\n", " ") for words in (text, advice)]
        self.findings.append(Finding(level, code, words[0], count, shown, words[1]))

    def check(self, code: str, frame: pl.LazyFrame, bad: pl.Expr, show: pl.Expr, **facts: Any) -> None:
        """Add a finding if `bad` is true of some rows. show: the example taken from a row."""
        found = frame.select(bad=bad, show=show).filter("bad")
        some = found.head(3).select("show").collect()["show"].to_list()
        if some:
            self.add(code, int(found.select(pl.len()).collect(engine="streaming").item()), some, **facts)


def size(count: int) -> str:
    """Return bytes as text, in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def _shown(value: Any) -> str:
    text = plain(repr(value)).replace("\n", " ")
    return text if len(text) <= 60 else text[:59] + "…"
