"""Evaluation: is the noise found, and does a recommender rank better on the corrected histories?

Rows that are compared share the recommender, its loss, negatives, budget and seeds; only the data differ. Choices are
made on validation, whose targets are the same in every row; test is read once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import BrokenProcessPool

from llm4dsr import columns as c
from llm4dsr import metrics
from llm4dsr.batch import Progress, side_by_side
from llm4dsr.catalogue import PAD, BoolArray, Catalogue, FloatArray, Windows
from llm4dsr.config import EMBEDDED, EvaluateConfig
from llm4dsr.correct import Corrected, apply, correct
from llm4dsr.errors import ModelError
from llm4dsr.recommenders import fit
from llm4dsr.shards import Shards, digest, versions
from llm4dsr.suggest import Suggestions
from llm4dsr.tables import matrix

ORIGINAL = "original"
ORACLE_DROP, ORACLE_RESTORE = "oracle (drop)", "oracle (restore)"
Splits = dict[str, Windows]


@dataclass
class Tables:
    """Decisions and suggestions of each split, as their stages wrote them."""

    decisions: dict[str, pl.DataFrame]
    suggestions: dict[str, pl.DataFrame]


def detection(scores: pl.DataFrame, decisions: pl.DataFrame, windows: Windows) -> dict[str, float]:
    """How well the known noise of `windows` was found; needs their noise mask. Ranges as in metrics.py."""
    assert windows.noise_mask is not None
    log_odds, probability = matrix(scores, windows, c.LOG_ODDS), matrix(scores, windows, c.NOISE_PROBABILITY)
    flagged, scored = matrix(decisions, windows, None), np.isfinite(log_odds)
    truth = windows.noise_mask[scored]
    stated = float(probability[flagged].mean()) if flagged.any() else float("nan")
    return {
        **found_noise(log_odds[scored], flagged[scored], truth),
        "stated_precision": stated,
        "flagged": float(flagged[scored].mean()),
        "noise": float(truth.mean()),
        "ece": metrics.expected_calibration_error(probability[scored], truth),
        "ties": metrics.tie_rate(log_odds, scored),
    }


def found_noise(suspicion: FloatArray, flagged: BoolArray | None, truth: BoolArray) -> dict[str, float]:
    """auroc, average_precision, precision, recall of the same interactions; NaN where it takes noise, clean ones or
    flags (None: nothing was decided) that are not there."""
    nothing = (float("nan"), float("nan"))
    precision, recall = nothing if flagged is None else metrics.precision_recall(flagged, truth)
    both = bool(truth.any() and not truth.all())
    return {
        "auroc": metrics.auroc(suspicion, truth) if both else float("nan"),
        "average_precision": metrics.average_precision(suspicion, truth) if both else float("nan"),
        "precision": precision,
        "recall": recall,
    }


def rows(
    splits: Splits, tables: Tables, catalogue: Catalogue, actions: tuple[str, ...], train_targets: bool
) -> dict[str, Splits]:
    """Name → the splits that this row trains, chooses and tests on."""
    out = {ORIGINAL: splits}
    for action in actions:
        out[f"corrected ({action})"] = corrected_splits(splits, tables, catalogue, action, train_targets)
    if all(w.noise_mask is not None for w in splits.values()):
        out[ORACLE_DROP] = oracle_splits(splits, catalogue, "drop")
        if all(w.clean_items is not None for w in splits.values()):
            out[ORACLE_RESTORE] = oracle_splits(splits, catalogue, "replace")
    return out


def corrected_splits(splits: Splits, tables: Tables, catalogue: Catalogue, action: str, train_targets: bool) -> Splits:
    """The windows of `corrected`, for all splits."""
    return {n: corrected(n, w, tables, catalogue, action, train_targets).windows for n, w in splits.items()}


def oracle_splits(splits: Splits, catalogue: Catalogue, action: str) -> Splits:
    """`oracle` for all splits, with the targets of training windows put right, too."""
    return {n: oracle(w, catalogue, action, n != c.TRAIN) for n, w in splits.items()}


def corrected(name: str, windows: Windows, tables: Tables, catalogue: Catalogue, action: str,
              train_targets: bool) -> Corrected:  # fmt: skip
    """A split corrected by its tables; train_targets: whether the targets of training windows may be edited."""
    decisions = tables.decisions[name]
    if name == c.TRAIN and not train_targets:
        last = pl.DataFrame({c.WINDOW: windows.window_ids, c.POSITION: windows.lengths - 1})
        decisions = decisions.join(last, on=[c.WINDOW, c.POSITION], how="anti", maintain_order="left")
    return apply(windows, decisions, tables.suggestions.get(name), catalogue, action, target_fixed=name != c.TRAIN)


def oracle(windows: Windows, catalogue: Catalogue, action: str, target_fixed: bool) -> Windows:
    """Known noise dropped, or restored (dropped where it was inserted: nothing belongs there); targets of evaluation
    windows stay as in every other row."""
    assert windows.noise_mask is not None
    flagged: BoolArray = windows.noise_mask.copy()
    if target_fixed:
        flagged[np.arange(len(windows)), windows.lengths - 1] = False
    certain = np.ones(flagged.shape)
    if action == "replace":
        assert windows.clean_items is not None
        inserted = flagged & (windows.clean_items == PAD)
        at = np.nonzero(flagged & ~inserted)
        size = len(at[0])
        truth = Suggestions(at[0], at[1], windows.clean_items[at], [None] * size, ["none"] * size, np.zeros(size))
        windows = correct(windows, flagged & ~inserted, certain, truth, catalogue, "replace", target_fixed).windows
        if not inserted.any():
            return windows
        flagged = inserted
    if target_fixed:  # a history must not vanish, or the rows would be tested on different windows
        lost = flagged.sum(axis=1) >= windows.lengths - 1
        flagged[lost, 0] = False
    return correct(windows, flagged, certain, None, catalogue, "drop", target_fixed).windows


def compare(compared: dict[str, Splits], catalogue: Catalogue, config: EvaluateConfig, seed: int,
            progress: Progress | None = None, work: Path | None = None) -> pl.DataFrame:  # fmt: skip
    """Trains the recommender for each row and seed; one tidy table: row, seed, ndcg, hit_rate, valid_ndcg, epochs,
    seconds, ranks (of every test target, 1 = best), valid_ranks (of the validation targets at the best epoch).
    work: a folder for the recommenders that are done; the same call goes on from it.

    A recommender this small gains little from a second core, so each is trained on one, and as many at a time as torch
    may use cores and a GPU has room for. The numbers do not depend on how many that are. Raises ModelError where memory
    is short.
    """
    keys = {
        name: digest(versions(), config.backbone, *options(config), catalogue.titles, *_content(splits))
        for name, splits in compared.items()
    }
    wanted = [(name, seed + s) for s in range(config.seeds) for name in compared]
    # Rows with the same windows (nothing was flagged) are one recommender
    first: dict[tuple[str, int], tuple[str, int]] = {}
    for name, s in wanted:
        first.setdefault((keys[name], s), (name, s))
    jobs = list(first.values())
    pre_trained = config.backbone == "llara" and config.llara.model.source != EMBEDDED
    workers = side_by_side(len(jobs), large=pre_trained)
    with TemporaryDirectory() as folder, _following(Path(folder), len(jobs) * config.recommender.epochs, progress):
        try:
            lines = Parallel(workers, max_nbytes=None)(
                delayed(_train_and_test)(name, s, compared[name], catalogue, config, Path(folder) / str(i), keys[name],
                                         work)
                for i, (name, s) in enumerate(jobs)
            )  # fmt: skip
        except BrokenProcessPool:
            raise ModelError(
                "A process that trained a recommender was ended from outside, most likely because memory was short. "
                "The same command goes on; with threads: 1 it trains one at a time."
            ) from None
        except torch.OutOfMemoryError:
            raise ModelError(
                "The GPU has too little memory for the recommenders. The same command goes on; with threads: 1 it "
                "trains one at a time."
            ) from None
    done = {(keys[name], s): line for (name, s), line in zip(jobs, lines, strict=True)}
    results: pl.DataFrame = pl.concat(done[keys[name], s].with_columns(row=pl.lit(name)) for name, s in wanted)
    return results


def options(config: EvaluateConfig) -> list[object]:
    """What compared rows of one recommender must share: loss, negatives, budget and all its other options, and k."""
    return [config.recommender, config.k, *([config.llara] if config.backbone == "llara" else [])]


def _content(splits: Splits) -> list[object]:
    """All of the windows that a recommender reads."""
    return [part for name in c.SPLITS for part in (splits[name].items, splits[name].lengths, splits[name].weights)]


def _train_and_test(name: str, seed: int, splits: Splits, catalogue: Catalogue, config: EvaluateConfig,
                    epochs_done: Path, key: str, work: Path | None) -> pl.DataFrame:  # fmt: skip
    """One line of `compare`, in a process of its own; the file `epochs_done` says how far it is."""
    torch.set_num_threads(1)

    def report(epoch: int, epochs: int, doing: str) -> None:
        _say(epochs_done, f"{epoch * config.recommender.epochs // epochs} {name}")  # llara has epochs of its own, too

    def train() -> pl.DataFrame:
        trained = fit(config.backbone, splits[c.TRAIN], splits[c.VALID], catalogue, config.recommender, seed, report,
                      config.llara)  # fmt: skip
        ranks = trained.model.rank(splits[c.TEST].histories(), splits[c.TEST].targets())
        line = {"row": name, "seed": seed, "ndcg": metrics.ndcg(ranks, config.k),
                "hit_rate": metrics.hit_rate(ranks, config.k), "valid_ndcg": max(trained.curve),
                "epochs": len(trained.curve), "seconds": trained.seconds,
                "ranks": [ranks.astype(np.int32)],
                "valid_ranks": [trained.valid_ranks.astype(np.int32)]}  # fmt: skip
        return pl.DataFrame(line, schema_overrides=dict.fromkeys(("ranks", "valid_ranks"), pl.List(pl.Int32)))

    line: pl.DataFrame = Shards(work).table((key, seed), train)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the process stays, for the next recommender
    _say(epochs_done, f"{config.recommender.epochs} ")
    return line


@contextmanager
def _following(folder: Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Adds up the epochs that the workers write into `folder`, once a second."""
    ended = threading.Event()

    def follow() -> None:
        while progress:
            last = ended.wait(1.0)
            reports = [
                (int(n), name) for n, name in (f.read_text().split(" ", 1) for f in folder.iterdir() if not f.suffix)
            ]
            names = sorted({name for _, name in reports if name})
            progress(total if last else sum(n for n, _ in reports), total, f"recommenders: {', '.join(names)}")
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _say(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


@dataclass(frozen=True)
class Difference:
    """Of two rows of `compare` in NDCG@k, on the seeds that both have. gain: mean of the first less the second;
    gain_percent: in percent of the second; half_width: of the gain's 95 % Student interval over seeds. p_seeds,
    p_windows: of paired t tests over seeds, and over test windows with the mean of the seeds for each: would another
    training run show the same, would other histories?"""

    gain: float
    gain_percent: float
    half_width: float
    p_seeds: float
    p_windows: float

    @classmethod
    def between(cls, a: pl.DataFrame, b: pl.DataFrame, k: int) -> Difference:
        seeds = sorted(set(a["seed"].to_list()) & set(b["seed"].to_list()))
        if not seeds:
            return cls(*[float("nan")] * 5)
        a, b = (rows.filter(pl.col("seed").is_in(seeds)).sort("seed") for rows in (a, b))
        gain, half, over_seeds = metrics.paired_difference(a["ndcg"].to_list(), b["ndcg"].to_list())
        of_windows = (metrics.ndcg_of_each(np.stack(rows["ranks"].to_list()), k).mean(axis=0) for rows in (a, b))
        percent = 100 * gain / max(float(np.mean(b["ndcg"].to_list())), 1e-12)
        return cls(gain, percent, half, over_seeds, metrics.paired_difference(*of_windows)[2])


def summary(results: pl.DataFrame) -> pl.DataFrame:
    """One line per row: mean and 95 % half-width over seeds, relative gain over the original in percent, its p value
    (paired t-test over seeds), and the share of the best oracle's gain that was reached."""
    base = results.filter(pl.col("row") == ORIGINAL)
    names = results["row"].unique(maintain_order=True).to_list()
    means = {n: float(results.filter(pl.col("row") == n)["ndcg"].mean()) for n in names}  # type: ignore[arg-type]
    ceiling = (
        max((means[n] for n in (ORACLE_DROP, ORACLE_RESTORE) if n in means), default=float("nan")) - means[ORIGINAL]
    )
    lines = []
    for name in names:
        row = results.filter(pl.col("row") == name)
        line: dict[str, object] = {"row": name}
        for metric in ("ndcg", "hit_rate"):
            mean, half = metrics.mean_interval(row[metric].to_list())
            several = len(row) > 1 and name != ORIGINAL
            line |= {
                metric: mean,
                f"{metric}_half_width": half,
                f"{metric}_gain_percent": 100 * (mean / max(float(base[metric].mean()), 1e-12) - 1),  # type: ignore[arg-type]
                f"{metric}_p": metrics.paired_difference(row[metric].to_list(), base[metric].to_list())[2]
                if several
                else float("nan"),
            }
        line["share_of_oracle_gain"] = (means[name] - means[ORIGINAL]) / ceiling if ceiling > 0 else float("nan")
        lines.append(line)
    return pl.DataFrame(lines)
