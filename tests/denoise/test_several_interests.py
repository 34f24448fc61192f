"""Several interests in one history are no noise: planted accounts of two people, and injected noise elsewhere."""

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config, Denoiser
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.demo import make_demo
from llm4dsr.metrics import auroc

INTERESTS, ITEMS, LENGTH = 10, 12, 10  # items of each interest, and of a history
SHARED, NOISE = 0.3, 0.1  # fraction of shared accounts; of items of other histories that are replaced uniformly
RNG = np.random.default_rng(0)
DEMO = make_demo(size="full", users=100)  # for its titles
KEPT = np.sort(np.concatenate([RNG.permutation(np.flatnonzero(DEMO.interests == k))[:ITEMS] for k in range(INTERESTS)]))
CATALOGUE = Catalogue.from_frame(DEMO.items[KEPT.tolist()])
INTEREST = DEMO.interests[KEPT]
PAIRS = RNG.permutation([(a, b) for a in range(INTERESTS) for b in range(a)])
USUAL, NEW = PAIRS[: len(PAIRS) // 2], PAIRS[len(PAIRS) // 2 :]  # a new pair of interests is in no history of training
CONFIG = {
    "model": {"hidden_size": 32, "layers": 1, "vector_size": 32},
    "train": {"epochs": 8, "folds": 2, "batch_windows": 32},
    "threads": 1,
}


def items_of(interest: int, count: int) -> np.ndarray:
    return RNG.choice(np.flatnonzero(interest == INTEREST), count, replace=False)


def shared(pairs: np.ndarray, is_alternating: bool) -> np.ndarray:
    """An account of two people: half of the items of one interest, half of another, in turn or one after the other."""
    halves = [items_of(interest, LENGTH // 2) for interest in RNG.permutation(pairs[RNG.integers(len(pairs))])]
    return np.stack(halves, axis=1).ravel() if is_alternating else np.concatenate(halves)


def single() -> tuple[np.ndarray, np.ndarray]:
    """A history of one interest with uniform noise, and where there is another interest now."""
    interest = RNG.integers(INTERESTS)
    items, replaced = items_of(interest, LENGTH), RNG.random(LENGTH) < NOISE
    items[replaced] = RNG.integers(len(KEPT), size=replaced.sum())
    return items, INTEREST[items] != interest


def table(rows: list[np.ndarray], who: str) -> pl.DataFrame:
    ids = [CATALOGUE.ids.gather(row).to_list() for row in rows]
    return pl.DataFrame(
        {"window_id": range(len(rows)), "user_id": [f"{who} {i}" for i in range(len(rows))], "item_ids": ids}
    )


def mixed(count: int, who: str) -> pl.DataFrame:
    return table(
        [shared(USUAL, RNG.random() < 0.5) if RNG.random() < SHARED else single()[0] for _ in range(count)], who
    )


@pytest.fixture(scope="module")
def scored() -> pl.DataFrame:
    """Scores of new users, each row with its kind and whether it is flagged at the rate of the noise."""
    denoiser = Denoiser(Config.from_dict(CONFIG)).fit(mixed(500, "training"), CATALOGUE, mixed(100, "validation"))
    rows, kinds = [], []
    for _ in range(280):
        items, is_noise = single()
        rows.append(items)
        kinds += np.where(is_noise, "noise", "clean").tolist()
    for name, pairs in (("usual", USUAL), ("new", NEW)):
        for order in ("alternating", "in turns"):
            rows += [shared(pairs, order == "alternating") for _ in range(30)]
            kinds += [f"{name}, {order}"] * (30 * LENGTH)
    scores = denoiser.score(table(rows, "new")).sort("window_id", "position").with_columns(kind=pl.Series(kinds))
    flagged = denoiser.decide(scores, "rate", kinds.count("noise") / len(kinds), cap=LENGTH)
    at = ["window_id", "position"]
    return scores.join(flagged.select(*at, flagged=True), on=at, how="left").with_columns(
        pl.col("flagged").fill_null(False)
    )


def of_kind(scored: pl.DataFrame, kind: str, column: str) -> np.ndarray:
    return scored.filter(pl.col("kind") == kind)[column].to_numpy()


def test_the_planted_noise_is_found(scored):
    """Or it would say nothing that shared accounts are not flagged."""
    assert of_kind(scored, "noise", "flagged").mean() > 0.7
    assert of_kind(scored, "clean", "flagged").mean() < 0.02


@pytest.mark.parametrize("pairs", ["usual", "new"])
@pytest.mark.parametrize("order", ["alternating", "in turns"])
def test_neither_interest_of_a_shared_account_is_taken_for_noise(scored, pairs, order):
    """Usual pairs of interests, and pairs that training has never seen together."""
    kind = f"{pairs}, {order}"
    noise, both = of_kind(scored, "noise", "log_odds"), of_kind(scored, kind, "log_odds")
    is_noise = np.arange(len(noise) + len(both)) < len(noise)
    assert auroc(np.concatenate([noise, both]), is_noise) > 0.95
    assert of_kind(scored, kind, "flagged").mean() < 0.05
    probability = of_kind(scored, kind, "noise_probability").mean()
    assert probability < of_kind(scored, "noise", "noise_probability").mean() / 5
