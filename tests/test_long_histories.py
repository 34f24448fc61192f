"""One long history among many short ones: memory is that of the interactions, not of histories times the longest."""

import tracemalloc

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config, Denoiser
from llm4dsr import columns as c
from llm4dsr.core.io import write_parquet
from llm4dsr.data.demo import make_demo
from llm4dsr.data.noise.folder import noise_folder
from llm4dsr.data.read import to_windows
from llm4dsr.data.windows import Windows
from llm4dsr.evaluate.detection import detection_metrics
from llm4dsr.evaluate.rows import oracle_split
from llm4dsr.recommenders.backbone import recent
from llm4dsr.recommenders.neighborhood import history_matrix, user_matrix

SHORT, LONG = 20_000, 5_000  # histories of five items, and items of the long one
DENSE = (SHORT + 1) * LONG  # entries of a padded matrix: 100 MB as bool, 800 MB as numbers
CATALOGUE = make_demo(size="tiny").data.catalogue


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    small = {"model": {"hidden_size": 16, "layers": 1, "vector_size": 16}, "train": {"epochs": 1, "folds": 1}}
    histories = [CATALOGUE.ids.gather(np.arange(i, i + 8)).to_list() for i in range(12)]
    return Denoiser(Config.from_dict(small)).fit(histories, CATALOGUE.to_frame())


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    rng, lengths = np.random.default_rng(0), [5] * (SHORT // 2) + [LONG] + [5] * (SHORT // 2)
    items = [CATALOGUE.ids.gather(rng.integers(0, len(CATALOGUE), n)) for n in lengths]
    number = np.arange(len(lengths))
    return pl.DataFrame({
        c.WINDOW: number, c.USER: number % 9_000, c.ITEMS: items, c.TIME: number,
        c.NOISE_MASK: [(rng.random(n) < 0.1).astype(np.int8) for n in lengths], c.CLEAN_ITEMS: items,
    })  # fmt: skip


def some_scores(model, builder, windows: Windows, *_) -> np.ndarray:
    """In place of a language model, whose memory is that of its batches."""
    return np.sin(windows.items * 7.0 + windows.positions)


def test_all_stages_need_the_memory_of_the_interactions(denoiser, frame, tmp_path, monkeypatch):
    monkeypatch.setattr("llm4dsr.denoise.ensemble.score_windows", some_scores)
    tracemalloc.start()
    try:
        windows = to_windows(frame, CATALOGUE, "the histories")
        scores = denoiser.score(windows, has_target=True)
        decisions = denoiser.decide(scores, "rate", 0.001)
        suggestions = denoiser.suggest(windows, decisions, has_target=True)
        for action in ("replace", "drop", "downweight"):
            corrected = denoiser.correct(windows, decisions, suggestions, action, has_target=True).windows
            write_parquet(corrected.to_frame(CATALOGUE), tmp_path / "corrected.parquet")
        to_windows(pl.read_parquet(tmp_path / "corrected.parquet"), CATALOGUE, "corrected")
        detection_metrics(scores, decisions, windows)
        oracle_split(windows, CATALOGUE, "replace", has_target=True)
        user_matrix(windows, len(CATALOGUE))
        history_matrix(windows.histories(), len(CATALOGUE), 0.9)
        recent(windows.items, windows.offsets[1:], windows.lengths, 50, -1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(scores) == 4 * SHORT + LONG - 1
    assert 0 < len(suggestions) == len(decisions)
    assert peak < DENSE / 2  # half of a single mask


def test_noise_is_injected_in_the_memory_of_the_interactions(frame, tmp_path):
    write_parquet(CATALOGUE.to_frame(), tmp_path / "in" / "items.parquet")
    plain = frame.drop(c.NOISE_MASK, c.CLEAN_ITEMS)
    for name, part in zip(c.SPLITS, (plain, plain[:50], plain[50:90]), strict=True):
        write_parquet(part, tmp_path / "in" / f"{name}.parquet")
    tracemalloc.start()
    try:
        noise_folder(tmp_path / "in", tmp_path / "out", "uniform", 0.1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < DENSE / 2
