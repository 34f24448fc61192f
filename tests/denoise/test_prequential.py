"""Scoring in order of time, and histories that used to turn it off: without a time, too long, or of one item."""

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config, Denoiser
from llm4dsr.data.demo import make_demo
from llm4dsr.data.read import as_windows
from llm4dsr.denoise.prequential import prequential
from llm4dsr.denoise.tables import flagged_rows

SMALL = {
    "model": {"hidden_size": 32, "layers": 1, "vector_size": 32},
    "train": {"epochs": 8, "folds": 2, "batch_windows": 32},
    "threads": 1,
}
DEMO = make_demo(size="tiny", users=400).data
TRAIN, VALID = DEMO.splits["train"], DEMO.splits["valid"]
TEST = (
    DEMO.splits["test"].to_frame(DEMO.catalogue).select("window_id", "user_id", "item_ids", "timestamp")
).with_columns(pl.col("user_id").cast(pl.String))
WIDTH = int(TRAIN.lengths.max())
NEWEST = TEST["timestamp"].max() + 1
ALONE = -1  # id of the added window


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(Config.from_dict(SMALL)).fit(TRAIN, DEMO.catalogue, VALID.histories())


@pytest.fixture(scope="module")
def usual(denoiser) -> pl.DataFrame:
    return denoiser.score(TEST, has_target=True)


def added(timestamp: int, items: int) -> pl.DataFrame:
    """The test windows and one more, somewhere in the middle of the table."""
    ids = np.random.default_rng(0).choice(DEMO.catalogue.ids.to_numpy(), items).tolist()
    row = pl.DataFrame({"window_id": [ALONE], "user_id": ["new"], "item_ids": [ids], "timestamp": [timestamp]})
    half = len(TEST) // 2
    return pl.concat([TEST[:half], row.cast(TEST.schema), TEST[half:]])


def test_time_matters_here(denoiser, usual):
    """Or the tests below would pass without any scoring in order of time."""
    timeless = denoiser.score(TEST.with_columns(pl.lit(-1).alias("timestamp")), has_target=True)
    assert not np.allclose(usual["log_odds"], timeless["log_odds"], atol=1e-2)


@pytest.mark.parametrize(("timestamp", "items"), [(-1, 6), (-1, WIDTH + 20), (NEWEST, WIDTH + 20)])
def test_no_other_window_is_scored_differently_for_one_without_time_or_too_long(denoiser, usual, timestamp, items):
    scores = denoiser.score(added(timestamp, items), has_target=True)
    others = scores.filter(pl.col("window_id") != ALONE)
    assert others.select("window_id", "position", "item_id", "log_odds").equals(
        usual.select("window_id", "position", "item_id", "log_odds")
    )
    assert scores.filter(pl.col("window_id") == ALONE)["position"].to_list() == list(range(items - 1))  # no target


def test_a_window_without_time_is_scored_with_what_was_known_before_the_split(denoiser, caplog):
    table = added(-1, 6)
    scores = denoiser.score(table, has_target=True).filter(pl.col("window_id") == ALONE)
    static = denoiser.score(table.filter(pl.col("window_id") == ALONE), has_target=True)
    np.testing.assert_allclose(scores["log_odds"], static["log_odds"], atol=1e-5)
    assert caplog.text.count(f"1 of {len(table)} windows have no timestamp") == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_no_part_knows_its_future(denoiser, share):
    """With long histories at any time: what is known before a part is exactly what the parts before it hold."""
    rng = np.random.default_rng(1)
    is_long = rng.random(len(TEST)) < share
    lists = [ids * 10 if long else ids for ids, long in zip(TEST["item_ids"].to_list(), is_long, strict=True)]
    windows = as_windows(TEST.with_columns(pl.Series("item_ids", lists)), DEMO.catalogue)
    known, seen, past = denoiser.ensemble.counts, [], np.empty(0, dtype=np.int64)
    for rows, by_then, _ in prequential(denoiser.ensemble, windows, True, None, WIDTH):
        counts = by_then.counts
        if seen and counts is not seen[-1][1]:
            past = np.concatenate([rows for rows, _ in seen])
            assert (counts.popularity == known.add(windows.take(past)).popularity).all()
        seen.append((rows, counts))
        assert windows.timestamps[past].max(initial=0) <= windows.timestamps[rows].min()
    assert sorted(np.concatenate([rows for rows, _ in seen]).tolist()) == list(range(len(TEST)))
    assert len(past) > len(TEST) / 2
    assert denoiser.ensemble.counts is known


def test_suggestions_follow_the_parts_of_long_histories(denoiser):
    table = added(NEWEST, WIDTH + 20)
    flags = pl.DataFrame({"window_id": [ALONE, ALONE, TEST["window_id"][0]], "position": [WIDTH + 15, 2, 0]})
    found = denoiser.suggest(table, flags, has_target=True)
    assert found.select("window_id", "position").rows() == [(TEST["window_id"][0], 0), (ALONE, 2), (ALONE, WIDTH + 15)]


def test_nothing_is_known_about_a_history_of_one_item(denoiser, usual):
    scores = denoiser.score(added(NEWEST, 2), has_target=True)
    alone = scores.filter(pl.col("window_id") == ALONE)
    assert np.isnan(alone["log_odds"].to_numpy()).tolist() == [True]
    assert alone["noise_probability"].to_list() == [denoiser.calibrator.noise_rate]
    assert denoiser.calibrator.noise_rate > 0
    for policy, eta in (("percentile", 0.9), ("rate", 0.05), ("precision", 0.3), ("probability", 0.0)):
        flagged = flagged_rows(scores, policy, eta, 3).select("window_id", "position")
        assert flagged.equals(flagged_rows(usual, policy, eta, 3).select("window_id", "position"))
        assert len(flagged) > 0


# --- calibration without enough to calibrate on ----------------------------------------------------------------------


def fitted(folds: int) -> Denoiser:
    config = Config.from_dict({**SMALL, "train": {**SMALL["train"], "epochs": 4, "folds": folds}})
    return Denoiser(config).fit(TRAIN, DEMO.catalogue, VALID.histories().take(np.arange(19)))


def test_too_few_validation_windows_are_reported_and_kept(caplog, tmp_path):
    few = fitted(folds=2)
    assert "Noise probabilities are uncalibrated: 19 validation histories" in caplog.text
    few.save_pretrained(tmp_path)
    loaded = Denoiser.from_pretrained(tmp_path)
    assert loaded.calibrator.uncalibrated == "19 validation histories of at least two items; 20 are needed"
    scores = loaded.score(TEST, has_target=True)
    log_odds = scores["log_odds"].to_numpy()
    np.testing.assert_allclose(scores["noise_probability"], 1 / (1 + np.exp(-log_odds)))


@pytest.mark.parametrize("folds", [1, 2])
def test_recalibrating_without_a_noise_rate_never_gives_nan(folds, caplog, monkeypatch):
    """With folds the rate is estimated from the split; a single model that saw the users keeps what it has."""
    monkeypatch.setattr("llm4dsr.denoise.score_in_time.MIN_TO_RECALIBRATE", 10)
    few = fitted(folds)
    plain, anew = (few.score(TRAIN, recalibrate=flag)["noise_probability"].to_numpy() for flag in (False, True))
    assert np.isfinite(anew).all()
    assert (anew == plain).all() == (folds == 1)
    assert ("Noise probabilities stay uncalibrated" in caplog.text) == (folds == 1)
