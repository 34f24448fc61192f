"""What `validate` can find, in words, and the report of what it found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import polars as pl

from llm4dsr import columns as c
from llm4dsr.errors import plain

Level = Literal["error", "warning"]

GIANT: Final = 5_000  # interactions of one user from which a robot is likelier than a person
LONG_TITLE: Final = 500  # characters
LONG_WINDOW: Final = 26  # items; more have no marker in a prompt that is answered by position
LEAK_SHARE: Final = 0.05  # of the windows of a split; fewer can be users who repeat themselves
FEW_WINDOWS: Final = 1_000  # in training
_ANEW = "Write or copy the file anew."

# code: (level, what was found, what to do). {n} is how many there are, {where} the file, {column} a column.
CODES: Final[dict[str, tuple[Level, str, str]]] = {
    # files
    "files": ("error", "{said}", "Name the files as said here."),
    "unreadable": ("error", "{where} cannot be read to the end: {said}", _ANEW),
    "cut_short": ("error", "{where} was cut short: {said}", "Copy or download it again: its end is missing."),
    "not_parquet": ("error", "{where} is not Parquet, or damaged: {said}", "Name it by what it is, or write it anew."),
    "not_utf8": ("error", "{where} is not in UTF-8: {said}", "Save it in UTF-8:  iconv -f latin1 -t utf-8 …"),
    "no_rows": ("error", "{where} has no rows.", "Give at least one."),
    "missing_column": ("error", "{where} has no column {column!r}; it has {there}.", "Add or rename the column."),
    "column_type": ("error", "{column!r} in {where} has the type {kind}.", "Expected {expected}."),
    "refused": ("error", "{said}", "Nothing can be made of the data as it is."),
    "memory": ("warning", "Reading takes about {needed} of memory, and {available} are free.",
               "Use a larger machine or fewer interactions; a log is prepared part by part by  llm4dsr data prepare."),
    # ids
    "id_type": ("error", "{column!r} in {where} has ids of the type {kind}, the items have {expected}.",
                "Write ids in one way everywhere: the number 1 is not the text '1'."),
    "missing_id": ("error", "{n:,} row(s) of {where} have no {column!r}.", "Fill or remove them."),
    "repeated_id": ("error", "{n:,} row(s) of {where} repeat a {column!r}.", "Keep one row for each."),
    "unknown_item": ("error", "{n:,} item id(s) of {column!r} in {where} are not among the items.",
                     "Add them to the items, or remove these interactions."),
    "unused_item": ("warning", "{n:,} item(s) occur in no interaction.", "Nothing is known of them but their titles."),
    # titles
    "no_title": ("error", "{n:,} item(s) have no title, or one of which cleaning leaves nothing.",
                 "Give each item a title, or remove it together with its interactions."),
    "same_title": ("warning", "{n:,} items share their title with another one, once titles are cleaned.",
                   "They are one item where a replacement is suggested; say more in the titles if they differ."),
    "long_title": ("warning", f"{{n:,}} title(s) have more than {LONG_TITLE} characters.",
                   "Shorten them: prompts hold only so much text."),
    "control_characters": ("warning", "{n:,} title(s) hold control characters, line ends or direction marks.",
                           "They are read as blanks."),
    # times
    "time_type": ("error", "{n:,} row(s) of {where} have a text as time that is no date.",
                  "Give seconds since 1970, or dates such as 2024-05-31 13:45:00."),
    "negative_time": ("warning", "{n:,} row(s) of {where} have a time before 1970.", "See whether that is right."),
    "future_time": ("warning", "{n:,} row(s) of {where} have a time in the future.", "See whether that is right."),
    "milliseconds": ("warning", "{n:,} row(s) of {where} have times that must be milliseconds, or finer.",
                     "Divide them by 1000: seconds are expected. The order stays, but not what is said of times."),
    "no_order": ("warning", "{n:,} user(s) have one and the same time in all their interactions.",
                 "The order of the file is taken for them; give finer times if there are any."),
    "time_order": ("warning", "{n:,} user(s) have training windows that are later than some of {where}.",
                   "Split by time, or training knows what comes later."),
    # interactions
    "missing_value": ("warning", "{n:,} row(s) of {where} lack a user, an item or a time.", "They are left out."),
    "repeated_row": ("warning", "{n:,} row(s) of {where} stand there twice.", "They count once."),
    "one_interaction": ("warning", "{n:,} user(s) have a single interaction.", "They give no window."),
    "giant_history": ("warning", f"{{n:,}} user(s) have more than {GIANT:,} interactions.",
                      "See whether they are people: they weigh as much as many others."),
    # windows
    "empty_history": ("error", "{n:,} window(s) of {where} are empty.", "Remove them."),
    "one_item": ("error", "{n:,} window(s) of {where} have a single item.",
                 "Remove them: a window has a history and a target."),
    "missing_item": ("error", "{n:,} window(s) of {where} have gaps among their items.", "Remove the gaps."),
    "long_window": ("warning", f"{{n:,}} window(s) of {{where}} have more than {LONG_WINDOW} items.",
                    "They are learnt from and judged in parts that overlap."),
    "few_windows": ("warning", "{n:,} window(s) to learn from.", "Some thousands are useful, and 10 the least."),
    "target_in_history": ("warning", "{n:,} window(s) of {where} have their target in the history, too.",
                          "Take it out if the question is what is new to a user."),
    "repeated_window": ("warning", "{n:,} window(s) of {where} stand there twice or more.", "Keep each once."),
    "leak": ("error", "{n:,} window(s) of {where} are training windows, too.",
             "Remove them from one of the two: what is learnt by heart cannot be measured."),
    "repeated_in_train": ("warning", "{n:,} window(s) of {where} are training windows, too.",
                          "See whether their users repeat themselves; else the split leaks."),
    "target_in_train": ("warning", "{n:,} target(s) of {where} are a target of the same user in training, too.",
                        "See whether users take an item again; else the split leaks."),
    # the truth and weights
    "list_length": ("error", "{n:,} window(s) of {where} have more or fewer entries in {column!r} than items.",
                    "Give an entry for each item."),
    "value": ("error", "{n:,} entries of {column!r} in {where} are {other}.", "Give {expected}."),
    "unmarked_noise": ("error", "{n:,} interaction(s) in {where} differ from the true item, unmarked.",
                       f"Set {c.NOISE_MASK!r} to 1 there, or the true item right: detection is measured by them."),
    "marked_clean": ("warning", "{n:,} interaction(s) in {where} are marked as noise and have the true item.",
                     f"Set {c.NOISE_MASK!r} to 0 there, unless that is meant."),
    "noisy_target": ("warning", "{n:,} target(s) of {where} are marked as noise.",
                     "Ranking should be measured on what is none."),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """level: error or warning. code: out of CODES. text: what was found, as a sentence. count: how often. examples: up
    to three, as Python writes them, cut to 60 characters. advice: what to do."""

    level: Level
    code: str
    text: str
    count: int
    examples: list[str]
    advice: str


@dataclass
class Report:
    """What `validate` found. strict: whether warnings count as errors. rows: of each file that could be read. needed,
    available: bytes of memory to read it all, 0 where not known.

    All texts are printable: no control characters come through, whatever stands in the data."""

    path: str
    strict: bool = False
    rows: dict[str, int] = field(default_factory=dict)
    needed: int = 0
    available: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "warning"]

    def ok(self, strict: bool | None = None) -> bool:
        """True without errors; strict (`self.strict` where None): without warnings, too."""
        return not (self.findings if (self.strict if strict is None else strict) else self.errors)

    def text(self) -> str:
        """The report for a person: plain text, to be printed without markup."""
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
        """For JSON: the fields, with the findings as dictionaries, and `ok`."""
        return {"ok": self.ok(), **asdict(self)}

    def add(self, code: str, count: int = 1, examples: Any = (), **facts: Any) -> None:
        """A finding. facts: what the words of the code have between braces."""
        level, text, advice = CODES[code]
        shown = [_shown(example) for example in list(examples)[:3]]
        words = [plain(words.format(n=count, **facts)).replace("\n", " ") for words in (text, advice)]
        self.findings.append(Finding(level, code, words[0], count, shown, words[1]))

    def check(self, code: str, frame: pl.LazyFrame, bad: pl.Expr, show: pl.Expr, **facts: Any) -> None:
        """A finding where `bad` is true of some rows. show: what of a row is an example."""
        found = frame.select(bad=bad, show=show).filter("bad")
        some = found.head(3).select("show").collect()["show"].to_list()
        if some:
            self.add(code, int(found.select(pl.len()).collect(engine="streaming").item()), some, **facts)


def size(count: int) -> str:
    """Bytes, for a person."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def _shown(value: Any) -> str:
    text = plain(repr(value)).replace("\n", " ")
    return text if len(text) <= 60 else text[:59] + "…"
