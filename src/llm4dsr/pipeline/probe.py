"""How fast this machine is: real steps of the actual model on actual windows, for a second or two.

Weights are untrained and vectors are random, which takes the same time. From the measured speeds and the number of
steps follows about how long a run takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from llm4dsr import columns as c
from llm4dsr.config import EMBEDDED, Config
from llm4dsr.core.device import seeded, single_thread
from llm4dsr.core.hashing import user_hashes
from llm4dsr.core.memory import return_memory
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise.build_model import build_model
from llm4dsr.denoise.calibrate import KINDS
from llm4dsr.denoise.decide import VALIDATION
from llm4dsr.denoise.injected import MAX_INJECTED
from llm4dsr.denoise.prequential import PARTS
from llm4dsr.denoise.score import score_windows
from llm4dsr.denoise.score_in_time import MIN_TO_RECALIBRATE
from llm4dsr.denoise.stacking import evidence
from llm4dsr.denoise.states import states_per_window
from llm4dsr.denoise.suggest import suggest
from llm4dsr.denoise.train import tune
from llm4dsr.evaluate.rate_selection import candidates
from llm4dsr.features.collaborative import GROUPS, SIZES, CollaborativeVectors
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.features.title_vectors import title_vectors
from llm4dsr.pipeline.estimate import columns_of
from llm4dsr.pipeline.sizes import Sizes, flags
from llm4dsr.recommenders import NEIGHBORHOODS, fit
from llm4dsr.recommenders.neighborhood import user_matrix

SECONDS = 0.2  # of each measurement
WINDOWS = 1024  # most windows that are read for it
COUNTED = 4096  # most windows that are counted for it: features take longer, the more pairs are known
ITEMS = 400  # most items of the catalogue that title vectors and item-item weights are tried with
EPOCHS = 0.6  # of the most epochs of a recommender, until it stops early


@dataclass(frozen=True)
class Speeds:
    """Measured seconds.

    Attributes
    ----------
    tuned : float
        For each window and epoch of tuning.
    scored : float
        For each window that one model scores.
    suggested : float
        For each flag.
    suggesting : float
        For each part of a split that suggestions are made for.
    features : float
        For title vectors and co-occurrence counts, once.
    recommender : float
        For training one recommender.
    judged : float
        For fitting both judges to one correction.
    """

    tuned: float
    scored: float
    suggested: float
    suggesting: float
    features: float
    recommender: float
    judged: float


def measure(data: Dataset, config: Config, sizes: Sizes, todo: list[str]) -> Speeds:
    """Measure what the stages still to do depend on; the rest is 0. The caller's random state is restored.

    Raises
    ------
    ModelError
        If the language model cannot be loaded.
    """
    catalogue, windows = data.catalogue, limit_windows(data.splits[c.TRAIN], WINDOWS, config.seed)
    tuned = scored = suggested = suggesting = features = recommender = judged = 0.0
    with seeded(config.seed):
        if {"train", "score", "decide", "suggest"} & set(todo):
            counted = limit_windows(data.splits[c.TRAIN], COUNTED, config.seed)
            tuned, scored, suggested, suggesting = _language_model(catalogue, windows, counted, config, todo)
        if "train" in todo:
            features = _features(catalogue, windows, config, sizes)
        if "decide" in todo and config.decide.policy == VALIDATION:
            judged = sum(neighborhood_seconds(kind, data, config, sizes) for kind in NEIGHBORHOODS)
        if "evaluate" in todo:
            recommender = _recommender(data, config, sizes)
    return_memory()  # else the estimate would count it as used
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Speeds(tuned, scored, suggested, suggesting, features, recommender, judged)


def seconds(speeds: Speeds, sizes: Sizes, config: Config, workers: int) -> dict[str, float]:
    """Return about how many seconds each stage takes.

    Parameters
    ----------
    speeds : Speeds
        As measured.
    sizes : Sizes
        Of the data.
    config : Config
        All options.
    workers : int
        Processes that train recommenders.
    """
    folds, train = config.train.folds, sizes.windows[c.TRAIN]
    fitted = train * (folds - 1) / folds if folds > 1 else train
    fitted = min(fitted, config.train.samples or fitted)
    pretrained = config.model.source == EMBEDDED and config.model.item_input == "title"
    epochs = config.train.epochs + (config.model.pretrain_epochs if pretrained else 0)
    calibrated = config.score.calibration != "off"
    draws = config.score.calibration_draws if calibrated else 0
    kinds = len(KINDS)
    calibration = sizes.windows[c.VALID] * sizes.models[c.VALID] * (1 + kinds * draws) if calibrated else 0
    calibration += (1 + kinds) * min(train, MAX_INJECTED) if calibrated and folds > 1 else 0
    scores = 0.0
    for name, count in sizes.windows.items():
        injected = kinds * min(draws * count, MAX_INJECTED) if count >= MIN_TO_RECALIBRATE else 0
        scores += (count + injected) * sizes.models[name]
    corrections = {(t.rate, t.action) for t in candidates(config.decide.goal, float("nan"))}
    each_rate = {rate for rate, _ in corrections}
    tried = config.decide.policy == VALIDATION
    all_flags = sum(flags(sizes, name, config.decide) for name in c.SPLITS)
    suggestions = sum(each_rate) * sizes.all_interactions if tried else all_flags
    calls = (folds + 2 * PARTS) * (len(each_rate) - 1 if tried else 1)
    suggesting = suggestions * speeds.suggested + calls * speeds.suggesting
    jobs = sizes.rows * (1 if config.evaluate.backbone in NEIGHBORHOODS else config.evaluate.seeds)
    return {
        "train": speeds.features + folds * epochs * fitted * speeds.tuned + calibration * speeds.scored,
        "score": scores * speeds.scored,
        "decide": suggesting + len(corrections) * speeds.judged if tried else 0.0,
        "suggest": 0.0 if tried else suggesting,  # those of the chosen rate are there already
        "evaluate": -(-jobs // workers) * speeds.recommender,
    }


def _each(run: Callable[[int], object], most: int) -> tuple[float, float]:
    """Seconds of `run` (for each window, for a call), from a call of few windows and one of many."""

    def timed(count: int) -> float:
        started = time.perf_counter()
        run(count)
        return time.perf_counter() - started

    few = count = min(2, most)
    timed(few)  # what is loaded or made once
    call = timed(few)
    while True:
        count = min(4 * count, most)
        more = timed(count) - call
        if more > SECONDS or count == most:
            return max(0.0, more) / max(1, count - few), call


def _language_model(
    catalogue: Catalogue, windows: Windows, counted: Windows, config: Config, todo: list[str]
) -> tuple[float, float, float, float]:
    """Seconds (of a window in tuning, of a scored window, of a flag, of a call for flags)."""
    rng, columns, counts = np.random.default_rng(config.seed), columns_of(config), None
    vectors = rng.standard_normal((len(catalogue), columns), dtype=np.float32) if columns else None
    if columns and config.model.cooccurrence:
        collaborative = rng.standard_normal((GROUPS, len(catalogue), max(SIZES)), dtype=np.float32)
        users = np.unique(user_hashes(counted.user_ids))
        counts = replace(
            CooccurrenceCounts.of(counted, len(catalogue)), vectors=CollaborativeVectors(collaborative, users)
        )
    model, builder = build_model(config, catalogue, windows, vectors, counts, config.seed, begun=True)
    kept = states_per_window(config) > 0  # so that suggesting needs no pass of the model
    one_epoch = replace(config, train=replace(config.train, epochs=1, samples=0))

    def score(count: int) -> None:
        some = windows.take(np.arange(count))
        found = score_windows(model, builder, some, catalogue, config)
        if counts is not None and vectors is not None and config.score.stacking:
            evidence(some, found, counts, vectors)

    def flag(count: int) -> None:
        some = windows.take(np.arange(count))
        flagged = some.positions == np.repeat(some.lengths // 2, some.lengths)
        states = rng.standard_normal((count, config.model.hidden_size), dtype=np.float32) if kept else None
        suggest(model, builder, some, flagged, catalogue, config, states=states)

    def once(count: int) -> None:
        tune(model, builder, windows.take(np.arange(count)), catalogue, one_epoch)

    tuned = _each(once, len(windows))[0] if "train" in todo else 0.0
    scored = _each(score, len(windows))[0]
    flagging = {"decide", "suggest"} & set(todo)
    return tuned, scored, *(_each(flag, min(len(windows), 256)) if flagging else (0.0, 0.0))


def _features(catalogue: Catalogue, windows: Windows, config: Config, sizes: Sizes) -> float:
    """Seconds of title vectors and co-occurrence counts, from a part of the catalogue that stands for all of it."""
    if not columns_of(config):
        return 0.0
    few = min(ITEMS, len(catalogue))
    folded = _folded(windows, few)
    model, started = config.model, time.perf_counter()
    title_vectors(catalogue.titles[:few], folded, "catalogue", model.vector_size, config.seed)
    titled = time.perf_counter()
    if not model.cooccurrence:
        return (titled - started) * sizes.items / few
    CooccurrenceCounts.of(folded, few)
    counted = time.perf_counter()
    CooccurrenceCounts.fit(folded, few, config.seed)
    counting, ended = counted - titled, time.perf_counter()
    learning = max(0.0, ended - counted - counting)
    return (titled - started + learning) * sizes.items / few + counting * sizes.windows[c.TRAIN] / len(windows)


def _folded(windows: Windows, items: int) -> Windows:
    """The windows with the items of a smaller catalogue."""
    return replace(windows, items=windows.items % items)


def neighborhood_seconds(kind: str, data: Dataset, config: Config, sizes: Sizes) -> float:
    """Measure the seconds of fitting item-kNN, which grow with the windows, or EASE, with the cube of users or items.

    Those of EASE are of the fewer of both, and at least its weights have to be filled in: interactions × items.
    """
    windows = limit_windows(data.splits[c.TRAIN], WINDOWS, config.seed)
    few = min(2 * ITEMS, sizes.items) if kind == "ease" else sizes.items
    folded = _folded(windows, few)
    users, some = user_matrix(folded, few), folded.histories()
    started = time.perf_counter()
    with single_thread():
        model = NEIGHBORHOODS[kind](users, config.evaluate.neighborhood)
        took = time.perf_counter() - started
        model.rank(some, np.zeros(len(some), np.int64))
    ranking = (time.perf_counter() - started - took) / len(windows) * sizes.windows[c.VALID] * sizes.items / few
    growth = sizes.windows[c.TRAIN] / len(windows)
    if kind == "ease":
        side, tried = (min(w.user_ids.n_unique(), n) for w, n in ((data.splits[c.TRAIN], sizes.items), (windows, few)))
        growth = max((side / tried) ** 3, growth * sizes.items / few)
    return took * growth + ranking


def _recommender(data: Dataset, config: Config, sizes: Sizes) -> float:
    """Seconds of training one recommender and ranking the test targets."""
    settings, kind = config.evaluate, config.evaluate.backbone
    if kind in NEIGHBORHOODS:
        return neighborhood_seconds(kind, data, config, sizes)
    windows = limit_windows(data.splits[c.TRAIN], WINDOWS, config.seed)
    count = max(2, len(windows) * sizes.windows[c.VALID] // sizes.windows[c.TRAIN])
    valid = limit_windows(data.splits[c.VALID], count, config.seed)
    once, llara = replace(settings.recommender, epochs=1), settings.llara
    if kind == "llara":
        few = replace(llara, epochs=1, samples=64, validation=16)
        with single_thread():
            took = fit(kind, windows, valid, data.catalogue, once, 0, llara=few).seconds
        samples = min(llara.samples or sizes.windows[c.TRAIN], sizes.windows[c.TRAIN])
        return took / 64 * (samples * llara.epochs + sizes.windows[c.TEST])
    with single_thread():
        took = fit(kind, windows, valid, data.catalogue, once, 0).seconds
    most, patience = settings.recommender.epochs, settings.recommender.patience
    return min(most, max(patience + 1, EPOCHS * most)) * took * sizes.windows[c.TRAIN] / len(windows)
