"""Suggestions for histories that are longer than a window: their parts share what is barred and what is taken."""

import logging

import numpy as np
import polars as pl
import pytest
import torch

from llm4dsr import Config, Denoiser
from llm4dsr.data.demo import make_demo
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ModelError
from llm4dsr.lm.collate import collate

DEMO = make_demo(size="tiny").data
CATALOGUE = DEMO.catalogue
TITLES = np.unique(CATALOGUE.canonical)  # one item of each title
LENGTH = 40  # items of a long history, several times those of a training window
LONG, SHORT, LONG_TOO = 7, 3, 5  # window ids
UNUSED = len(TITLES) - LENGTH  # titles that no position of a long history holds


@pytest.fixture(
    scope="module",
    params=[("soft_token", "constrained"), ("title", "constrained"), ("title", "free")],
    ids=["soft tokens", "constrained", "free"],
)
def denoiser(request) -> Denoiser:
    item_input, mode = request.param
    readout = "title" if item_input == "title" else "per_position"
    config = {
        "model": {"hidden_size": 16, "layers": 1, "vector_size": 16, "item_input": item_input, "readout": readout},
        "train": {"epochs": 1, "folds": 2, "samples": 40},
        "suggest": {"mode": mode, "max_new_tokens": 3},
        "threads": 1,
    }
    few = DEMO.splits["valid"].histories().take(np.arange(5))
    return Denoiser(Config.from_dict(config)).fit(DEMO.splits["train"], CATALOGUE, few)


@pytest.fixture(scope="module")
def histories() -> Windows:
    """Two long histories of different titles, and one that fits a window between them."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(TITLES)[:n] for n in (LENGTH, 5, LENGTH)]
    return Windows.from_lists(rows, window_ids=np.array([LONG, SHORT, LONG_TOO]))


def flags(count: int) -> pl.DataFrame:
    """As many positions of each long history, all over it, and two of the short one."""
    at = np.linspace(0, LENGTH - 1, count).round().astype(int)
    ids = [LONG] * count + [SHORT] * 2 + [LONG_TOO] * count
    return pl.DataFrame({"window_id": ids, "position": [*at, 0, 4, *at]})


def suggested_titles(found: pl.DataFrame, window: int) -> list[int]:
    ids = found.filter(pl.col("window_id") == window)["suggested_item_id"].drop_nulls()
    return CATALOGUE.canonical[CATALOGUE.index(ids)].tolist()


def test_the_parts_of_a_history_share_the_titles_that_it_does_not_hold(denoiser, histories):
    """With a flag for each title that is left, each of these titles is suggested once."""
    assert denoiser.width * 3 < LENGTH
    found = denoiser.suggest(histories, flags(UNUSED))
    assert found.select("window_id", "position").equals(flags(UNUSED))
    for row, window in ((0, LONG), (2, LONG_TOO)):
        assert sorted(suggested_titles(found, window)) == sorted(set(TITLES) - set(histories.row(row)))
    short = suggested_titles(found, SHORT)
    assert len(set(short)) == 2
    assert not set(short) & set(histories.row(1))


def test_flags_beyond_the_titles_that_are_left_get_none(denoiser, histories):
    found = denoiser.suggest(histories, flags(UNUSED + 3))
    assert found.filter(pl.col("suggested_item_id").is_null())["window_id"].sort().to_list() == [5, 5, 5, 7, 7, 7]


def test_a_target_is_not_barred(denoiser, histories):
    """It is not known: barring it would tell the recommender that it comes next."""
    targets = [np.setdiff1d(TITLES, histories.row(row))[0] for row in range(3)]
    rows = [[*histories.row(row), target] for row, target in enumerate(targets)]
    with_targets = Windows.from_lists(rows, window_ids=histories.window_ids)
    found = denoiser.suggest(with_targets, flags(UNUSED), has_target=True)
    assert targets[0] in suggested_titles(found, LONG)
    assert targets[2] in suggested_titles(found, LONG_TOO)


def test_a_short_history_is_suggested_the_same_alone(denoiser, histories):
    decisions = flags(UNUSED).filter(pl.col("window_id") == SHORT)
    alone = denoiser.suggest(histories.take(np.array([1])), decisions)
    beside = denoiser.suggest(histories, flags(UNUSED)).filter(pl.col("window_id") == SHORT)
    assert alone["suggested_item_id"].equals(beside["suggested_item_id"])


def test_kept_suggestions_are_those_of_the_same_whole_history(denoiser, histories, tmp_path):
    """The flagged part is equal in both; what comes after it is not."""
    decisions = pl.DataFrame({"window_id": [LONG], "position": [0]})
    usual = denoiser.suggest(histories, decisions, work=tmp_path)
    item = CATALOGUE.canonical[CATALOGUE.index(usual["suggested_item_id"])][0]
    changed = histories.take(np.arange(3))
    changed.items[LENGTH - 1] = item
    assert denoiser.suggest(histories, decisions, work=tmp_path).equals(usual)
    assert item not in suggested_titles(denoiser.suggest(changed, decisions, work=tmp_path), LONG)


def test_suggestions_in_little_memory_are_the_same(denoiser, histories, monkeypatch, caplog):
    """Flags of a history stay together; with soft tokens, at most five flags fit, and a history has four."""
    if denoiser.config.model.item_input == "title":
        pytest.skip("passes of titles are halved as those of scoring are")
    plenty = denoiser.suggest(histories, flags(4))

    def limited(rows, device):
        if len(rows) > 5:
            raise torch.OutOfMemoryError
        return collate(rows, device)

    monkeypatch.setattr("llm4dsr.denoise.predictions.collate", limited)
    with caplog.at_level(logging.WARNING, "llm4dsr"):
        little = denoiser.suggest(histories, flags(4))
    assert "flags at a time from now on" in caplog.text
    assert little.drop("distance", "suggestion_probability").equals(plenty.drop("distance", "suggestion_probability"))
    np.testing.assert_allclose(little["distance"], plenty["distance"], atol=1e-5)
    with pytest.raises(ModelError, match="single one of the flags"):
        denoiser.suggest(histories, flags(6))
