"""Ranking of suggestions: distinct within a window, evidence never counts against an item."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr import Config, Denoiser
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.noise_injection import inject
from llm4dsr.denoise.ranking import (
    RankingWeights,
    _fit,
    allowed_items,
    assign_distinct,
    fit_ranking_weights,
    ranking_features,
)
from llm4dsr.errors import ConfigError

CONFIG = Config.from_dict({"threads": 1, "model": {"hidden_size": 16, "layers": 1, "heads": 2, "vector_size": 16},
                           "train": {"epochs": 1, "folds": 1}, "score": {"calibration": "off"}})  # fmt: skip


def assigned(scores: np.ndarray, histories: list[int]) -> list[int]:
    """The item of each flag, by its log-probabilities [flags, items]."""
    items = np.argsort(-scores, axis=1, kind="stable")
    chosen = assign_distinct(np.take_along_axis(scores, items, axis=1), items, np.array(histories))
    return [-1 if which < 0 else int(items[flag, which]) for flag, which in enumerate(chosen)]


def test_the_surest_flag_chooses_first_and_the_other_takes_its_next():
    scores = np.log([[0.5, 0.4, 0.1], [0.9, 0.06, 0.04], [0.6, 0.3, 0.1]])
    assert assigned(scores, [0, 0, 0]) == [1, 0, 2]  # 0.9 is the surest, then 0.4 for item 1 comes before 0.3


def test_other_windows_do_not_compete():
    scores = np.log([[0.9, 0.1], [0.8, 0.2]])
    assert assigned(scores, [3, 4]) == [0, 0]


def test_nothing_is_left_for_a_third_flag():
    scores = np.array([[-1.0, -2.0], [-1.5, -2.5], [-1.2, -np.inf]])
    assert assigned(scores, [0, 0, 0]) == [0, 1, -1]


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 6))
def test_no_item_twice_in_a_window_and_none_that_is_not_allowed(seed, flags, n_items):
    rng = np.random.default_rng(seed)
    windows = np.sort(rng.integers(0, 4, flags))
    scores = np.where(rng.random((flags, n_items)) < 0.3, -np.inf, rng.normal(size=(flags, n_items)))
    items = np.array(assigned(scores, windows.tolist()))
    for window in np.unique(windows):
        chosen = items[(windows == window) & (items >= 0)]
        assert len(set(chosen.tolist())) == len(chosen)
    found = items >= 0
    assert np.isfinite(scores[found, items[found]]).all()
    for i in np.flatnonzero(~found):  # all that was allowed is taken by others of the window
        taken = items[(windows == windows[i]) & (items >= 0)]
        assert set(np.flatnonzero(np.isfinite(scores[i])).tolist()) <= set(taken.tolist())


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(4, 9))
def test_as_many_candidates_as_flags_are_enough(seed, flags, n_items):
    """The other flags of a history take one item each, at most."""
    scores = np.random.default_rng(seed).normal(size=(flags, n_items))
    order = np.argsort(-scores, axis=1)[:, :flags]
    few = assign_distinct(np.take_along_axis(scores, order, axis=1), order, np.zeros(flags, int))
    assert order[np.arange(flags), few].tolist() == assigned(scores, [0] * flags)


def test_suggestions_are_ordered_by_evidence_not_by_popularity():
    """Item 0 fits a little better, item 1 has e² times as many users: the likelier choice, but not the suggestion."""
    evidence = torch.tensor([[[0.30, 0.25]], [[0.0, 0.0]], [[0.0, 0.0]], [[1.0, 3.0]]])
    rank = RankingWeights(cosine=10.0, popularity=0.5)
    assert rank(evidence).argmax() == 1
    assert rank.by_evidence()(evidence).argmax() == 0
    against = RankingWeights(cosine=10.0, popularity=-0.5)  # a correction for co-occurrence stays
    assert against.by_evidence() == against
    assert rank.by_evidence(-2.0)(torch.tensor([[[0.30, 0.30]], [[0.0] * 2], [[0.0] * 2], [[3.0, 1.0]]])).argmax() == 1


def test_popular_items_are_suggested_less_often_if_their_users_count_against_them(tiny_demo):
    denoiser = Denoiser(CONFIG).fit(tiny_demo.splits["train"], tiny_demo.catalogue)
    windows = tiny_demo.splits["test"]
    flagged = denoiser.decide(denoiser.score(windows, has_target=True), "rate", 0.3)
    users = denoiser.ensemble.builder.cooccurrence.popularity

    def suggested(weight: float) -> np.ndarray:
        denoiser.config = replace(CONFIG, suggest=replace(CONFIG.suggest, popularity_weight=weight))
        found = denoiser.suggest(windows, flagged, has_target=True)["suggested_item_id"].drop_nulls()
        return tiny_demo.catalogue.index(found)

    usual, rare = suggested(0.0), suggested(-5.0)
    assert users[rare].mean() < users[usual].mean()
    with pytest.raises(ConfigError, match="at most 0"):
        Config.from_dict({"suggest": {"popularity_weight": 0.5}})


def test_titles_of_the_window_and_doubles_are_not_allowed():
    catalogue = Catalogue(pl.Series("item_id", range(5)), ["train", "doll", "train", "car", "kite"])
    allowed = allowed_items(Windows.from_lists([[2, 3], [4]]), catalogue)
    assert allowed.tolist() == [[False, True, False, False, True], [True, True, False, True, False]]


def test_planted_weights_are_found_and_evidence_against_the_truth_gets_none():
    """Choices drawn from a known model; the second column counts against what was chosen, which no evidence may."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(4, 3000, 20, generator=rng)
    planted = torch.tensor([2.0, -0.3, 0.5, -0.7])
    chosen = torch.multinomial(torch.tensordot(planted, features, dims=1).softmax(1), 1, generator=rng).squeeze(1)
    weights, _ = _fit(features, chosen, torch.zeros(3000, 20, dtype=torch.bool))
    assert weights[0] == pytest.approx(2.0, abs=0.25)
    assert weights[1] == pytest.approx(0.0, abs=0.02)
    assert weights[2] == pytest.approx(0.5, abs=0.15)
    assert weights[3] == pytest.approx(-0.7, abs=0.15)  # popularity alone may count either way


def test_without_co_occurrence_the_cosine_ranks():
    scores = RankingWeights()(torch.tensor([[[0.1, 0.9, 0.5]]]))
    assert scores.argsort(descending=True).tolist() == [[1, 2, 0]]


@pytest.fixture(scope="module")
def on_injected_noise(tiny_demo):
    """What `fit_ranking_weights` takes: a small model, and windows with an injected item each."""
    ensemble = Denoiser(CONFIG).fit(tiny_demo.splits["train"], tiny_demo.catalogue, tiny_demo.splits["valid"]).ensemble
    rng, valid = np.random.default_rng(0), tiny_demo.splits["valid"].histories()
    windows, chosen, _, originals = inject(valid, ensemble.injectable(valid), rng)
    return ensemble.models[0], ensemble.builder, windows, chosen, originals, tiny_demo.catalogue, CONFIG


@pytest.mark.parametrize("knows", [False, True])
def test_a_model_that_adds_nothing_to_co_occurrence_is_told(knows, on_injected_noise, monkeypatch, caplog):
    """Predicted vectors are at right angles to all titles, or point at what stood there."""

    def predicted(*given):
        for group, features in ranking_features(*given):
            features[0] = 0
            if knows:
                features[0, torch.arange(len(group)), torch.from_numpy(catalogue.canonical[originals[group]])] = 1
            yield group, features

    *_, originals, catalogue, _ = on_injected_noise
    monkeypatch.setattr("llm4dsr.denoise.ranking.ranking_features", predicted)
    weights = fit_ranking_weights(*on_injected_noise)
    assert ("add nothing to co-occurrence" in caplog.text) == (not knows)
    assert (weights.cosine > 2) == knows


def test_weights_do_not_depend_on_how_many_flags_are_held_at_once(on_injected_noise, monkeypatch):
    """Items of a dense log have thousands of neighbors: all of those of a window are in memory at once."""
    given, windows = on_injected_noise, on_injected_noise[2]
    groups = [len(group) for group, _ in ranking_features(*given[:4], CONFIG)]
    at_once = fit_ranking_weights(*given)
    monkeypatch.setattr("llm4dsr.denoise.ranking.NEIGHBORS", 2_000)
    smaller = [len(group) for group, _ in ranking_features(*given[:4], CONFIG)]
    assert groups == [len(windows)]
    assert sum(smaller) == len(windows) > max(smaller) > 0
    for name, weight in vars(fit_ranking_weights(*given)).items():
        assert weight == pytest.approx(getattr(at_once, name), rel=1e-2, abs=1e-3)
