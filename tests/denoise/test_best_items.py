"""The best items are those of the dense scores: every item described, weighed, and a softmax over what is allowed."""

import numpy as np
import pytest
import torch

from llm4dsr import Config, Denoiser
from llm4dsr.data.demo import make_demo
from llm4dsr.denoise import best_items
from llm4dsr.denoise.best_items import BestItems, ItemRanker
from llm4dsr.denoise.predictions import predict
from llm4dsr.denoise.ranking import RankingWeights, allowed_items, ranking_features

DATA = make_demo(size="tiny").data
CATALOGUE = DATA.catalogue
HISTORIES = DATA.splits["train"].histories().take(np.arange(12))  # known users, of several groups
FLAGGED = HISTORIES.positions % 4 == 1  # several in a history
K = 3
WEIGHTS = {
    "all evidence": RankingWeights(8.0, 0.7, 2.0, 0.4),
    "against popular items": RankingWeights(8.0, 0.7, 2.0, -0.4),
    "cosine": RankingWeights(),
}


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    model = {"hidden_size": 16, "layers": 1, "heads": 2, "vector_size": 16}
    config = {"model": model, "train": {"epochs": 1, "folds": 1}, "score": {"calibration": "off"}, "threads": 1}
    return Denoiser(Config.from_dict(config)).fit(DATA.splits["train"], CATALOGUE)


def fast(denoiser: Denoiser, weights: RankingWeights) -> BestItems:
    ranker = ItemRanker(denoiser.model, denoiser.builder.cooccurrence, CATALOGUE, weights)
    of = HISTORIES.owners[FLAGGED]
    ((_, found),) = predict(
        denoiser.model, denoiser.builder, HISTORIES, FLAGGED, denoiser.config,
        lambda predictions: ranker.best(predictions, HISTORIES, of, K), 10_000,
    )  # fmt: skip
    return found


@pytest.mark.parametrize("kind", WEIGHTS)
def test_items_and_probabilities_are_those_of_the_dense_scores(denoiser, kind):
    weights = WEIGHTS[kind]
    ((_, features),) = ranking_features(denoiser.model, denoiser.builder, HISTORIES, FLAGGED, denoiser.config)
    barred = torch.from_numpy(~allowed_items(HISTORIES, CATALOGUE)[HISTORIES.owners[FLAGGED]])
    probability, ordering = (
        w(features).masked_fill(barred, -torch.inf).log_softmax(1) for w in (weights, weights.by_evidence())
    )
    found, expected = fast(denoiser, weights), ordering.topk(K)
    assert found.items.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(found.evidence, expected.values, atol=1e-5)
    np.testing.assert_allclose(found.probability, probability.gather(1, expected.indices).exp(), atol=1e-6)
    np.testing.assert_allclose(found.cosine, features[0].gather(1, expected.indices), atol=1e-6)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_blocks_of_items_change_nothing(denoiser, kind, monkeypatch):
    whole = fast(denoiser, WEIGHTS[kind])
    for size in (7, len(CATALOGUE) // 2, 2):  # the last holds fewer items than are asked for
        monkeypatch.setattr(best_items, "CPU_BLOCK", size)
        found = fast(denoiser, WEIGHTS[kind])
        assert (found.items == whole.items).all()
        np.testing.assert_allclose(found.evidence, whole.evidence, atol=1e-5)
        np.testing.assert_allclose(found.probability, whole.probability, atol=1e-6)


def test_where_all_items_are_barred_there_is_none(denoiser):
    """A history that holds every title."""
    everything = HISTORIES.take(np.arange(1))
    everything.items, everything.lengths = np.arange(len(CATALOGUE)), np.array([len(CATALOGUE)])
    ranker = ItemRanker(denoiser.model, denoiser.builder.cooccurrence, CATALOGUE, WEIGHTS["all evidence"])
    one = np.zeros(len(HISTORIES.items), dtype=bool)
    one[0] = True
    ((_, found),) = predict(
        denoiser.model, denoiser.builder, HISTORIES, one, denoiser.config,
        lambda predictions: ranker.best(predictions, everything, np.zeros(1, int), K), 10_000,
    )  # fmt: skip
    assert found.items.tolist() == [[-1] * K]
    assert np.isneginf(found.evidence).all()
