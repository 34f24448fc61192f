"""Planted noise: the mask tells exactly where it is, and from the truth everything can be put back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr.core.arrays import PAD
from llm4dsr.data.noise.kinds import KINDS, LONGEST_RUN, add_noise, corrupt, same_category, similar_titles
from llm4dsr.errors import DataError

PARITY = same_category([row % 2 for row in range(20)])  # even items are like even ones
HISTORIES = st.lists(st.lists(st.integers(0, 19), max_size=12).map(lambda x: np.array(x, dtype=np.int64)), max_size=8)


@given(HISTORIES, st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_noise_is_exactly_where_the_mask_says(histories, rate, seed):
    before = [h.copy() for h in histories]
    noisy, masks = add_noise(histories, 20, rate, seed)

    assert [len(h) for h in noisy] == [len(m) for m in masks] == [len(h) for h in histories]
    for old, unchanged, new, mask in zip(before, histories, noisy, masks, strict=True):
        assert (old == unchanged).all()  # the given histories are left as they are
        assert ((new != old) == mask).all()
        assert ((new >= 0) & (new < 20)).all()


def test_rate_0_changes_nothing_and_rate_1_everything():
    histories = [np.arange(10)]
    assert not add_noise(histories, 10, 0.0, seed=0)[1][0].any()
    assert add_noise(histories, 10, 1.0, seed=0)[1][0].all()


def test_uniform_over_the_other_items():
    (noisy,), (mask,) = add_noise([np.full(40_000, 2)], 5, 0.5, seed=1)
    assert mask.mean() == pytest.approx(0.5, abs=0.01)
    counts = np.bincount(noisy[mask], minlength=5) / mask.sum()
    assert counts == pytest.approx([0.25, 0.25, 0, 0.25, 0.25], abs=0.01)


def test_seed_decides():
    histories = [np.arange(50), np.arange(50)]
    first, again, other = (np.concatenate(add_noise(histories, 50, 0.3, seed)[0]) for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()
    assert (first[:50] != first[50:]).any()  # each user has noise of their own


@pytest.mark.parametrize(
    ("history", "n_items", "rate", "message"),
    [
        ([0, 1], 2, 1.5, "noise rate is 1.5; expected a probability"),
        ([0, 1], 2, float("nan"), "expected a probability"),
        ([0, 0], 1, 0.1, "needs at least two"),
        ([0, 5], 5, 0.1, "Items are rows 0 to 5; expected 0 to 4"),
        ([-1, 2], 5, 0.1, "Items are rows -1 to 2"),
    ],
)
def test_refuses(history, n_items, rate, message):
    with pytest.raises(DataError, match=message):
        add_noise([np.array(history)], n_items, rate, seed=0)


# --- all kinds -------------------------------------------------------------------------------------------------------

TWO_OR_MORE = st.lists(st.lists(st.integers(0, 19), min_size=2, max_size=12), min_size=2, max_size=8)
REPLACING = ("uniform", "popularity", "near-miss", "burst")


def flat(histories):
    """(items of all histories, lengths); two histories more, so that no kind lacks something to draw from."""
    all_of_them = [*histories, list(range(10)), list(range(10, 20))]
    return np.concatenate(all_of_them), np.array([len(h) for h in all_of_them])


@pytest.mark.parametrize("kind", KINDS)
@given(histories=TWO_OR_MORE, rate=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_the_truth_puts_everything_back(kind, histories, rate, seed):
    items, lengths = flat(histories)
    noisy = corrupt(items, lengths, 20, kind, rate, seed, PARITY)

    assert (noisy.restored(items[noisy.removed]) == items).all()
    assert (noisy.mask == (noisy.items != noisy.clean)).all()
    assert ((noisy.items >= 0) & (noisy.items < 20)).all()
    assert (np.diff(noisy.source) >= 0).all()
    plain = ~noisy.mask
    assert (noisy.items[plain] == items[noisy.source[plain]]).all()  # what is not flagged is untouched


@pytest.mark.parametrize("kind", [*REPLACING, "shuffle"])
@given(histories=TWO_OR_MORE, rate=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_most_kinds_keep_the_lengths(kind, histories, rate, seed):
    items, lengths = flat(histories)
    noisy = corrupt(items, lengths, 20, kind, rate, seed, PARITY)
    assert (noisy.source == np.arange(len(items))).all()
    assert (noisy.clean == items).all()
    assert not noisy.removed.any()


@given(histories=TWO_OR_MORE, rate=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_dropping_what_was_inserted_gives_the_history_back(histories, rate, seed):
    histories = [np.array(h) for h in histories]
    noisy, masks = add_noise(histories, 20, rate, seed, "insertion")
    for before, after, mask in zip(histories, noisy, masks, strict=True):
        assert after[~mask].tolist() == before.tolist()
        assert not mask[-1]  # it stands before an interaction, so a history never ends with it
        assert (after[:-1][mask[:-1]] != after[1:][mask[:-1]]).all()  # and is another item than that one


@given(histories=TWO_OR_MORE, rate=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_deleted_interactions_fit_where_they_were(histories, rate, seed):
    items, lengths = flat(histories)
    noisy = corrupt(items, lengths, 20, "deletion", rate, seed)
    back = noisy.items.tolist()
    for place in np.flatnonzero(noisy.removed):
        back.insert(place, items[place])
    assert back == items.tolist()
    assert not noisy.mask.any()  # nothing stands where something is missing


@given(histories=TWO_OR_MORE, seed=st.integers(0, 2**32 - 1))
def test_a_shuffled_run_has_the_same_items_in_other_places(histories, seed):
    lengths = np.array([len(h) for h in histories])
    places = np.arange(lengths.sum())  # each item once, so that every move is seen
    moved = corrupt(places, lengths, max(2, len(places)), "shuffle", 1.0, seed).items
    assert sorted(moved) == places.tolist()
    assert (np.abs(moved - places) < LONGEST_RUN).all()
    history = np.repeat(np.arange(len(lengths)), lengths)
    assert (history[moved] == history).all()
    begin_or_end = np.diff(history, prepend=-1, append=-1) != 0
    stays = moved == places  # only where a run of one is left over at the begin or end of a history
    assert (begin_or_end[:-1] | begin_or_end[1:])[stays].all()


@given(histories=TWO_OR_MORE, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_fixed_interaction_keeps_its_place(histories, seed, data):
    lengths = np.array([len(h) for h in histories])
    places = np.arange(lengths.sum())
    fixed = np.array(data.draw(st.lists(st.booleans(), min_size=len(places), max_size=len(places))))
    moved = corrupt(places, lengths, max(2, len(places)), "shuffle", 1.0, seed, fixed=fixed).items
    assert (moved == places)[fixed].all()


@given(histories=TWO_OR_MORE, seed=st.integers(0, 2**32 - 1), rate=st.floats(0, 1))
def test_bursts_are_runs_that_users_exchange(histories, seed, rate):
    lengths = np.array([len(h) for h in histories])
    places = np.arange(lengths.sum())
    users = np.repeat(np.arange(len(lengths)) // 2, lengths)  # two histories for each user
    if users.max() == 0:
        users = np.repeat(np.arange(len(lengths)), lengths)
    whose = users[np.cumsum(lengths) - 1]
    came = corrupt(places, lengths, len(places), "burst", rate, seed, users=whose).items
    assert sorted(came) == places.tolist()  # nothing is in two histories
    moved = came != places
    assert (users[came] != users)[moved].all()


def test_runs_of_a_burst_are_short_and_follow_each_other():
    """Each item stands where it is numbered, so a run counts upwards."""
    lengths = np.full(200, 50)
    places = np.arange(lengths.sum())
    came = corrupt(places, lengths, len(places), "burst", 0.2, 0).items
    moved = came != places
    assert 0.15 < moved.mean() < 0.25
    starts = np.flatnonzero(moved & (np.diff(came, prepend=-5) != 1))
    ends = np.flatnonzero(moved & (np.diff(came, append=-5) != 1))
    sizes = np.bincount(ends - starts + 1)
    assert len(sizes) - 1 <= 2 * LONGEST_RUN  # two may happen to be neighbors at both places
    assert sizes[2 : LONGEST_RUN + 1].sum() > 0.8 * sizes.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_as_the_rate_says(kind):
    """Within five standard deviations of a binomial; runs of up to five have up to five times the variance."""
    n, rate = 40_000, 0.2
    items, lengths = np.random.default_rng(0).integers(0, 5_000, n), np.full(n // 20, 20)
    category = same_category([row % 10 for row in range(5_000)])
    noisy = corrupt(items, lengths, 5_000, kind, rate, 1, category)
    affected = {"deletion": noisy.removed.sum(), "insertion": len(noisy.items) - n}.get(kind, noisy.mask.sum())
    spread = 5 * np.sqrt(n * rate * (1 - rate) * (LONGEST_RUN if kind in ("burst", "shuffle") else 1))
    lone_ends = 0.02 * n * rate if kind == "shuffle" else 0  # they cannot be moved
    assert n * rate - spread - lone_ends <= affected <= n * rate + spread
    assert kind != "insertion" or noisy.mask.sum() == affected


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_for_every_kind(kind):
    items, lengths = flat([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]] * 4)
    first, again, other = (corrupt(items, lengths, 20, kind, 0.5, seed, PARITY) for seed in (7, 7, 8))
    assert first.items.tolist() == again.items.tolist()
    assert first.items.tolist() != other.items.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_rate_0_leaves_all_as_it_is(kind):
    items, lengths = flat([[1, 2, 3]])
    noisy = corrupt(items, lengths, 20, kind, 0.0, 0, PARITY)
    assert noisy.items.tolist() == items.tolist()
    assert not noisy.mask.any()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_and_empty_histories(kind):
    assert add_noise([], 5, 0.5, 0, kind, PARITY) == ([], [])
    noisy, masks = add_noise([np.empty(0, dtype=np.int64)] * 2, 5, 0.5, 0, kind, PARITY)
    assert [len(h) for h in noisy] == [len(m) for m in masks] == [0, 0]


# --- what comes instead ----------------------------------------------------------------------------------------------


def test_popularity_draws_by_how_often_items_occur():
    """0 occurs 60 times, 1 occurs 30 times, 2 occurs 10 times, 3 never: in the place of a 0 come 1 and 2 as 3 to 1."""
    items = np.repeat([0, 1, 2], [60_000, 30_000, 10_000])
    noisy = corrupt(items, np.array([len(items)]), 4, "popularity", 1.0, 0)
    came = [np.bincount(noisy.items[items == item], minlength=4) / (items == item).sum() for item in range(3)]
    assert came[0] == pytest.approx([0, 3 / 4, 1 / 4, 0], abs=0.01)
    assert came[1] == pytest.approx([6 / 7, 0, 1 / 7, 0], abs=0.01)
    assert came[2] == pytest.approx([6 / 9, 3 / 9, 0, 0], abs=0.02)


TITLES = ["Red Train", "Blue Train", "Train Station", "Red Train", "Tea Pot", "Tea Cup", "?!", "Ukulele"]


def test_similar_titles_share_words_and_are_not_the_same():
    rows = np.repeat(np.arange(len(TITLES)), 50)
    drawn = similar_titles(TITLES)(rows, np.random.default_rng(0))
    found = {row: set(drawn[rows == row]) for row in range(len(TITLES))}
    assert found[0] == found[3] == {1, 2}  # not each other: they are one item to the model
    assert found[4] == {5}
    assert found[6] == found[7] == {PAD}  # no word in common with any other


def test_the_most_similar_ones_are_drawn_from():
    """ "A B" has ten companions with both words; those with one word less in common are not drawn."""
    titles = ["a b", *[f"a b {word}" for word in "cdefghijkl"], *[f"a {word}" for word in "mnopqrst"]]
    drawn = similar_titles(titles)(np.zeros(500, dtype=np.int64), np.random.default_rng(0))
    assert set(drawn) == set(range(1, 11))


def test_titles_without_letters_are_compared_by_their_characters():
    drawn = similar_titles(["!!", "!! ?", "++"])(np.array([0, 1, 2]), np.random.default_rng(0))
    assert drawn.tolist() == [1, 0, PAD]


def test_near_miss_without_anything_similar_is_any_other_item():
    noisy, masks = add_noise([np.full(200, 7)], len(TITLES), 1.0, 0, "near-miss", similar_titles(TITLES))
    assert masks[0].all()
    assert set(noisy[0]) == set(range(7))


def test_a_category_has_its_other_items():
    draw = same_category(["toy", "book", "toy", None, "toy", None, "map"])
    rows = np.repeat(np.arange(7), 60)
    drawn = draw(rows, np.random.default_rng(0))
    found = {row: set(drawn[rows == row]) for row in range(7)}
    assert (found[0], found[2], found[4]) == ({2, 4}, {0, 4}, {0, 2})
    assert found[1] == found[6] == {PAD}  # alone in their category
    assert found[3] == found[5] == {PAD}  # of no category


def test_a_run_stays_where_no_other_user_has_one_of_its_length():
    """All runs of the second user have two items at most; those of three or more have nothing to change places with."""
    lengths = np.array([30, 2])
    for seed in range(20):
        came = corrupt(np.arange(32), lengths, 32, "burst", 1.0, seed).items
        assert (came != np.arange(32)).sum() in (0, 2, 4)


@pytest.mark.parametrize(
    ("kind", "history", "message"),
    [
        ("pink", [0, 1], "kind of noise is 'pink'; expected one of uniform, popularity"),
        ("near-miss", [0, 1], "give similar_titles or same_category"),
        ("popularity", [1, 1, 1], "All interactions are with one item"),
        ("burst", [0, 1], "All interactions are of one user"),
    ],
)
def test_refuses_a_kind_that_has_nothing_to_draw_from(kind, history, message):
    with pytest.raises(DataError, match=message):
        add_noise([np.array(history)], 5, 0.5, 0, kind)
