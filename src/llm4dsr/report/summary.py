"""The first screen of the report: what was found, changed and gained, what it cost, and how sure that is."""

from __future__ import annotations

import math
from shlex import quote
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.evaluate.rows import ORIGINAL
from llm4dsr.pipeline import Run
from llm4dsr.pipeline.preflight import duration
from llm4dsr.recommenders import NAMES, SEEDLESS

FEW = 100  # flags below which percentages are rough
CERTAIN = 0.05  # p below which a difference over seeds is called one
DONE = {
    "drop": "were dropped", "replace": "were replaced by a suggestion", "downweight": "got a lower weight",
    "keep": "were kept",
}  # fmt: skip


def summary(run: Run, facts: dict[str, pl.DataFrame]) -> list[tuple[str, str, list[str]]]:
    """Return (question, short answer, sentences) for each part of the first screen.

    Parameters
    ----------
    run : Run
        A run with decisions.
    facts : dict of str to DataFrame
        As `contents.with_facts` returns them, by split.
    """
    return [
        ("Found", *_found(pl.concat(list(facts.values()), how="diagonal_relaxed"))),
        ("Changed", *_changed(run)),
        ("Gained", *_gained(run)),
        ("Cost", *_cost(run)),
        ("How sure?", *_sure(run, facts)),
    ]


def _found(facts: pl.DataFrame) -> tuple[str, list[str]]:
    flagged = facts.filter("flagged")
    rate = len(flagged) / max(1, len(facts))
    lines = [f"{len(flagged):,} of {len(facts):,} interactions are flagged as noise."]
    if "noise" in facts.columns and facts["noise"].null_count() == 0:
        right, noise = int(flagged["noise"].sum()), int(facts["noise"].sum())
        known = f"The noise of this dataset is known: {right / max(1, len(flagged)):.0%} of the flags are right, and "
        lines.append(f"{known}{right / max(1, noise):.0%} of the noise is flagged.")
    return f"{rate:.1%}", lines


def _changed(run: Run) -> tuple[str, list[str]]:
    tried = run.facts("decide").get("tried", [])
    none_helps = bool(tried) and tried[0]["chosen"]
    lines = []
    if none_helps:
        lines.append("No correction ranked validation better than none by more than chance.")
    if not run.done("correct"):
        return "not yet", [*lines, f"To correct:  llm4dsr correct --run {quote(run.folder.name)}"]
    counts: dict[str, int] = {}
    for edits in run.edits().values():
        for action, count in edits[c.ACTION].value_counts().iter_rows():
            counts[action] = counts.get(action, 0) + count
    changed = sum(n for action, n in counts.items() if action != c.KEEP)
    lines += [f"{n:,} {DONE[action]}." for action, n in sorted(counts.items(), key=lambda x: -x[1])]
    if changed and not run.correction.histories:
        lines.append("Training windows alone are corrected. Histories of validation and test stay as they are.")
    if changed and tried:
        lines.append("Action and rate were chosen on validation, with item-kNN and EASE.")
    return f"{changed:,}", lines or ["Nothing was flagged."]


def _gained(run: Run) -> tuple[str, list[str]]:
    facts, k = run.facts("evaluate"), run.config.evaluate.k
    lines = {line["row"]: line for line in facts.get("summary", [])}
    name = NAMES[run.config.evaluate.backbone]
    ours = next((row for row in lines if row.startswith("corrected")), None)
    if ours is None:
        return "not measured", [
            "No recommender was trained.",
            f"To measure:  llm4dsr evaluate --run {quote(run.folder.name)}",
        ]
    line, base = lines[ours], lines[ORIGINAL]
    gain, half = line["ndcg_gain_percent"], line["ndcg_gain_half_width"]
    if math.isnan(gain):
        return "not measurable", [f"NDCG@{k} of {name} on original windows is 0, so no gain can be told in percent."]
    certainty = "more than chance over test users" if abs(gain) > half else "this may be chance"
    out = [
        f"NDCG@{k} of {name}: {base['ndcg']:.4f} on original windows, {line['ndcg']:.4f} on corrected ones "
        f"({ours.removeprefix('corrected (').removesuffix(')')}).",
        f"95 % interval over test users: {gain - half:+.1f} % to {gain + half:+.1f} %; {certainty}.",
    ]
    if not math.isnan(line["oracle_gain_fraction"]):
        out.append(f"That is {line['oracle_gain_fraction']:.0%} of what knowing the noise would gain.")
    return f"{gain:+.1f} %", out


def _cost(run: Run) -> tuple[str, list[str]]:
    stages: dict[str, Any] = run.card().get("stages", {})
    seconds = {name: float(facts.get("seconds", 0)) for name, facts in stages.items()}
    longest = max(seconds, key=lambda name: seconds[name])
    memory = max(int(facts.get("peak_memory_mb", 0)) for facts in stages.values())
    lines = [f"Most of it went into {longest} ({duration(seconds[longest])}).", f"Peak memory: {memory / 1000:.1f} GB."]
    device = run.card().get("versions", {}).get("gpu")
    return duration(sum(seconds.values())), [*lines, f"Computed on {device or 'the CPU'}."]


def _sure(run: Run, facts: dict[str, pl.DataFrame]) -> tuple[str, list[str]]:
    flagged = pl.concat([table.filter("flagged") for table in facts.values()], how="diagonal_relaxed")
    answer, lines = _precision(run, flagged)
    if 0 < len(flagged) < FEW:
        lines.append(f"There are only {len(flagged)} flags: every percentage of them is rough.")
    if run.facts("score").get("train_scores") == "in sample":
        lines.append("Training windows were scored by a model that was tuned on them, so their noise is missed.")
    ours = next((x for x in run.facts("evaluate").get("summary", []) if x["row"].startswith("corrected")), None)
    if ours is not None and run.config.evaluate.backbone not in SEEDLESS:
        p = ours["ndcg_p"]
        doubt = "." if p < CERTAIN else ": other seeds may not show the gain."
        several = f"Over seeds of the recommender, p = {p:.3f}{doubt}"
        lines.append("One seed of the recommender was trained." if math.isnan(p) else several)
    changed = {name for stage in run.card().get("stages", {}).values() for name in stage.get("changed_versions", {})}
    if changed:
        lines.append(f"Stages were made with different versions of {', '.join(sorted(changed))}.")
    return answer, lines


def _precision(run: Run, flagged: pl.DataFrame) -> tuple[str, list[str]]:
    """How many of the flags are noise, by the estimate."""
    train, score = run.facts("train"), run.facts("score")
    rate_low, rate_high = score.get("noise_rate_interval") or train.get("noise_rate_interval") or (math.nan, math.nan)
    if math.isnan(rate_low):
        return "unknown", [f"Probabilities are not calibrated: {train.get('calibration', 'the reason is unknown')}."]
    if rate_high == 0:
        return "unknown", [
            "The model does not distinguish injected noise from the rest: its probabilities say nothing."
        ]
    if not len(flagged):
        return "–", [f"By the estimate, {rate_low:.1%} to {rate_high:.1%} of the interactions are noise."]
    stated, low, high = (float(flagged[name].mean()) for name in c.PROBABILITIES)  # type: ignore[arg-type]
    if "labels" in score:
        return f"{stated:.0%}", [f"of the flags are noise, by {score['labels']:,} reviewed interactions."]
    return f"{low:.0%} to {high:.0%}", [
        "of the flags are noise, estimated without labels: a user's own odd choices look alike.",
        "A hundred reviewed interactions narrow it:  llm4dsr calibrate --labels",
    ]
