"""Kept states: suggesting after scoring needs no second pass of the model, and suggests the same."""

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config, Denoiser
from llm4dsr.core.cache import PartCache
from llm4dsr.data.demo import make_demo
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.states import keep_states, kept_states

DATA = make_demo(size="tiny").data
TRAIN, VALID, TEST = (DATA.splits[name] for name in ("train", "valid", "test"))


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    model = {"hidden_size": 16, "layers": 1, "heads": 2, "vector_size": 16}
    config = {
        "model": model,
        "train": {"epochs": 1, "folds": 2, "samples": 40},
        "score": {"calibration": "off"},
        "threads": 1,
    }
    return Denoiser(Config.from_dict(config)).fit(TRAIN, DATA.catalogue)


@pytest.fixture
def passes(denoiser):
    """A list that grows by one with each pass of a model."""
    made: list[int] = []
    hooks = [m.base.base_model.register_forward_hook(lambda *_: made.append(1)) for m in denoiser.ensemble.models]
    yield made
    for hook in hooks:
        hook.remove()


def most_suspicious(scores: pl.DataFrame, count: int = 2) -> pl.DataFrame:
    return scores.filter(pl.col("rank") <= count)


def assert_alike(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    numbers = ["distance", "suggestion_probability"]
    assert len(found)
    assert found.drop(numbers).equals(expected.drop(numbers))
    np.testing.assert_allclose(found[numbers].to_numpy(), expected[numbers].to_numpy(), atol=1e-6)


@pytest.mark.parametrize(("windows", "has_target", "earlier"), [(TRAIN, False, None), (TEST, True, VALID)])
def test_suggestions_are_the_same_without_another_pass(denoiser, passes, tmp_path, windows, has_target, earlier):
    """Training windows go by fold; test windows by what was counted before each."""
    scores, _ = denoiser.score_and_map(windows, has_target=has_target, earlier=earlier, keep=tmp_path)
    decisions = most_suspicious(scores)
    expected = denoiser.suggest(windows, decisions, has_target=has_target, earlier=earlier)
    passes.clear()
    found = denoiser.suggest(windows, decisions, has_target=has_target, earlier=earlier, work=tmp_path)
    assert not passes
    assert_alike(found, expected)


def test_a_flag_whose_state_was_not_kept_is_computed(denoiser, passes, tmp_path):
    """States of three positions are kept, as many as may be flagged; these flags are of all."""
    scores, _ = denoiser.score_and_map(VALID, has_target=True, keep=tmp_path)
    decisions = most_suspicious(scores, 4)
    expected = denoiser.suggest(VALID, decisions, has_target=True)
    passes.clear()
    assert_alike(denoiser.suggest(VALID, decisions, has_target=True, work=tmp_path), expected)
    assert passes


def test_no_digit_depends_on_what_was_kept(denoiser, tmp_path):
    """So a run has the same bytes on several machines, or with parts lost."""
    scores, _ = denoiser.score_and_map(TEST, has_target=True, keep=tmp_path / "kept")
    given = TEST, most_suspicious(scores)
    kept, lost = (denoiser.suggest(*given, has_target=True, work=tmp_path / name) for name in ("kept", "none"))
    assert kept.equals(lost)


def test_states_of_other_counts_are_not_used(denoiser, passes, tmp_path):
    """Test windows were scored without validation, and are suggested for with it."""
    scores, _ = denoiser.score_and_map(TEST, has_target=True, keep=tmp_path)
    decisions = most_suspicious(scores)
    expected = denoiser.suggest(TEST, decisions, has_target=True, earlier=VALID)
    passes.clear()
    assert_alike(denoiser.suggest(TEST, decisions, has_target=True, work=tmp_path, earlier=VALID), expected)
    assert passes


def test_damaged_states_are_computed_again(denoiser, tmp_path):
    scores, _ = denoiser.score_and_map(TRAIN, keep=tmp_path)
    expected = denoiser.suggest(TRAIN, most_suspicious(scores))
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert_alike(denoiser.suggest(TRAIN, most_suspicious(scores), work=tmp_path), expected)


def test_the_most_suspicious_positions_of_each_window_are_kept(tmp_path):
    """One of each window here; a window of one item has no score, and no state."""
    windows = Windows.from_lists([[5, 6, 7], [8], [9, 4]])
    states = np.arange(12, dtype=np.float32).reshape(6, 2)
    config, cache = Config.from_dict({"decide": {"cap": 1}}), PartCache(tmp_path)
    keep_states(cache, ("key",), config, windows, np.array([0.1, 0.9, 0.5, np.nan, -3.0, -2.0]), states)
    found = kept_states(cache, ("key",), np.array([1, 5, 3, 0]))
    assert found is not None
    np.testing.assert_array_equal(found, [[2, 3], [10, 11], [np.nan] * 2, [np.nan] * 2])
    assert kept_states(cache, ("another key",), np.array([1])) is None
