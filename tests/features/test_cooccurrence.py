"""What other users have together, with the user's own history left out. Small shops that can be counted by eye."""

import logging

import numpy as np
import polars as pl
import pytest

from llm4dsr.core.hashing import user_hashes
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.demo import make_demo
from llm4dsr.data.read import as_windows
from llm4dsr.data.windows import Windows
from llm4dsr.features import cooccurrence as cooccurrence_module
from llm4dsr.features import pair_counts
from llm4dsr.features.cooccurrence import N_FEATURES, CooccurrenceCounts
from llm4dsr.features.pair_counts import split_keys

TRAIN, TRACK, PAINT, BRUSH, DOLL = range(5)
HISTORIES = [[TRAIN, TRACK], [TRAIN, TRACK, PAINT], [PAINT, BRUSH], [PAINT, BRUSH, TRAIN]]
USERS = ["ann", "ben", "cid", "dot"]


def windows(histories, users) -> Windows:
    return Windows.from_lists(histories, user_ids=pl.Series("user_id", users))


@pytest.fixture
def cooccurrence() -> CooccurrenceCounts:
    return CooccurrenceCounts.fit(windows(HISTORIES, USERS), n_items=5, seed=0)


def test_a_stranger_sees_all_users(cooccurrence):
    pair_counts, item_counts = cooccurrence.leave_one_out_counts(windows([[TRAIN, TRACK, BRUSH]], ["eve"]))
    assert pair_counts[0].tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]
    assert item_counts[0].tolist() == [3, 2, 2]


def test_a_users_own_history_is_left_out(cooccurrence):
    pair_counts, item_counts = cooccurrence.leave_one_out_counts(windows([[TRAIN, TRACK, PAINT]], ["ben"]))
    assert pair_counts[0].tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]  # ann has the first pair, dot train and paint
    assert item_counts[0].tolist() == [2, 1, 2]


def test_an_injected_item_is_not_the_users_own(cooccurrence):
    """Injected noise: ben never had the brush, so nothing is subtracted for it."""
    pair_counts, item_counts = cooccurrence.leave_one_out_counts(windows([[TRAIN, BRUSH]], ["ben"]))
    assert pair_counts[0].tolist() == [[0, 1], [1, 0]]
    assert item_counts[0].tolist() == [2, 2]


def test_overlapping_windows_of_a_user_count_once():
    cooccurrence = CooccurrenceCounts.of(
        windows([[TRAIN, TRACK, PAINT], [TRACK, PAINT, BRUSH]], ["ann", "ann"]), n_items=5
    )
    assert cooccurrence.popularity.tolist() == [1, 1, 1, 1, 0]
    pair_counts, item_counts = cooccurrence.leave_one_out_counts(windows([[TRACK, PAINT]], ["eve"]))
    assert (pair_counts[0, 0, 1], item_counts[0].tolist()) == (1, [1, 1])
    pair_counts, item_counts = cooccurrence.leave_one_out_counts(windows([[TRACK, PAINT]], ["ann"]))
    assert (pair_counts.sum(), item_counts.sum()) == (0, 0)


def test_what_was_counted_is_not_counted_again(cooccurrence):
    """Ann comes back: her old pair stays one, the new ones are added, and all of hers are left out for her."""
    more = cooccurrence.add(windows([[TRAIN, TRACK, DOLL]], ["ann"]))
    whole = CooccurrenceCounts.of(windows([*HISTORIES, [TRAIN, TRACK, DOLL]], [*USERS, "ann"]), n_items=5)
    for name in ("pairs", "counts", "popularity", "own"):
        assert (getattr(more, name) == getattr(whole, name)).all()
    pair_counts, item_counts = more.leave_one_out_counts(windows([[TRAIN, TRACK, DOLL]], ["eve"]))
    assert pair_counts[0].tolist() == [[0, 2, 1], [2, 0, 1], [1, 1, 0]]
    assert item_counts[0].tolist() == [3, 2, 1]


def test_windows_counted_in_two_halves_are_those_counted_at_once(tiny_demo):
    """Users of the first half come again in the second: their pairs count once."""
    train, size = tiny_demo.splits["train"], len(tiny_demo.catalogue)
    halves = train.take(np.arange(0, len(train), 2)), train.take(np.arange(1, len(train), 2))
    assert set(halves[0].user_ids) & set(halves[1].user_ids)
    first = CooccurrenceCounts.of(halves[0], size)
    before = first.fingerprint, first.popularity.copy()
    assert first.add(halves[1]).fingerprint == CooccurrenceCounts.of(train, size).fingerprint
    assert CooccurrenceCounts(first.pairs, first.counts, before[1], first.own).fingerprint == before[0]  # unchanged


def test_a_repeated_item_does_not_co_occur_with_itself(cooccurrence):
    pair_counts, _ = cooccurrence.leave_one_out_counts(windows([[TRAIN, TRAIN, TRACK]], ["eve"]))
    assert pair_counts[0].tolist() == [[0, 0, 2], [0, 0, 2], [2, 2, 0]]


def test_features_by_hand(cooccurrence):
    features = cooccurrence.features(windows([[TRAIN, TRACK, DOLL], [PAINT]], ["eve", "fay"]))
    assert features.shape == (4, N_FEATURES)
    share = features[:3, 2]  # of the two other items, with how many was it seen?
    assert share.tolist() == [0.5, 0.5, 0]
    assert features[:3, 1].tolist() == [0, 0, 1]  # nobody has the doll
    assert np.isfinite(features).all()


def test_neighbor_scores_by_hand(cooccurrence):
    some = windows([[TRAIN, TRACK, DOLL], [PAINT, BRUSH]], ["eve", "cid"])
    context = np.array([True, True, False, True, False])
    neighbor_scores = cooccurrence.neighbor_scores(some, context)
    by_hand = [2 / np.sqrt(4 * 3), 2 / np.sqrt(4 * 3), 2 / np.sqrt(4 * 4) + 1 / np.sqrt(3 * 4), 1 / np.sqrt(4 * 3), 0]
    np.testing.assert_allclose(neighbor_scores[0], by_hand)  # by the train and the track
    # By the paint, for cid: dot alone has it with the brush, since cid's own pair is left out.
    np.testing.assert_allclose(neighbor_scores[1], [2 / np.sqrt(4 * 4), 1 / np.sqrt(4 * 3), 0, 1 / np.sqrt(4 * 3), 0])


def test_saved_and_loaded_it_counts_the_same(cooccurrence, tmp_path):
    cooccurrence.save(tmp_path)
    again, some = CooccurrenceCounts.load(tmp_path), windows(HISTORIES, USERS)
    assert (again.features(some) == cooccurrence.features(some)).all()


def test_no_user_id_is_stored(cooccurrence, tmp_path):
    cooccurrence.save(tmp_path)
    columns = [name for path in sorted(tmp_path.glob("*.parquet")) for name in pl.read_parquet(path).columns]
    assert columns == ["users", "hash", "pair", "users"]


def test_users_are_known_by_their_id_as_text():
    assert (user_hashes(pl.Series([7, 8])) == user_hashes(pl.Series(["7", "8"]))).all()
    assert user_hashes(pl.Series([None, "7"], dtype=pl.String))[0] == 0


def test_many_ids_are_hashed_a_part_at_a_time(monkeypatch):
    ids = pl.Series(["7", "8", "7", None, "9"])
    at_once = user_hashes(ids).tolist()
    monkeypatch.setattr("llm4dsr.core.hashing.AT_ONCE", 2)
    assert user_hashes(ids).tolist() == at_once == [at_once[0], at_once[1], at_once[0], 0, at_once[4]]


def test_nothing_is_subtracted_from_a_list_after_counting_integer_users():
    """Both users 0 and 1 have a and b. The list's first two histories are neither of them."""
    catalogue = Catalogue(pl.Series("item_id", ["a", "b", "c"]), ["A", "B", "C"])
    counted = Windows.from_lists([[0, 1], [0, 1, 2]], user_ids=pl.Series("user_id", [0, 1]))
    cooccurrence = CooccurrenceCounts.of(counted, 3)
    pair_counts, item_counts = cooccurrence.leave_one_out_counts(as_windows([["a", "b"], ["b", "a", "c"]], catalogue))
    assert item_counts.tolist() == [[2, 2, 0], [2, 2, 1]]
    assert pair_counts[0, 0, 1] == 2
    assert pair_counts[1].tolist() == [[0, 2, 1], [2, 0, 1], [1, 1, 0]]


def test_a_counted_list_is_left_out_of_its_own_counts():
    catalogue = Catalogue(pl.Series("item_id", ["a", "b", "c"]), ["A", "B", "C"])
    histories = [["a", "b"], ["a", "b", "c"]]
    cooccurrence = CooccurrenceCounts.of(as_windows(histories, catalogue), 3)
    pair_counts, item_counts = cooccurrence.leave_one_out_counts(as_windows(histories[::-1], catalogue))
    assert item_counts.tolist() == [[1, 1, 0], [1, 1, 0]]
    assert pair_counts[1, 0, 1] == 1


def test_counts_of_groups_add_up_to_those_of_all():
    data = make_demo(size="tiny").data
    some, size = data.splits["train"], len(data.catalogue)
    fitted, whole = CooccurrenceCounts.fit(some, size, seed=0), CooccurrenceCounts.of(some, size)
    for name in ("pairs", "counts", "popularity", "own"):
        np.testing.assert_array_equal(getattr(fitted, name), getattr(whole, name))
        assert getattr(fitted, name).dtype == getattr(whole, name).dtype


@pytest.mark.parametrize("cells", [500, 4_000_000])
def test_it_is_the_same_in_small_parts(monkeypatch, cells):
    """A big log is counted a part at a time; the parts must not show."""
    monkeypatch.setattr("llm4dsr.features.cooccurrence.CELLS", cells)
    monkeypatch.setattr("llm4dsr.features.pair_counts.AT_ONCE", cells)
    monkeypatch.setattr("llm4dsr.features.ppmi.AT_ONCE", cells)
    data = make_demo(size="tiny").data
    some = data.splits["train"]
    cooccurrence = CooccurrenceCounts.fit(some, len(data.catalogue), seed=0)
    counts = np.zeros((len(data.catalogue),) * 2, dtype=int)
    pairs = {(u, *sorted((a, b))) for w, u in enumerate(some.user_ids)
             for a in some.row(w) for b in some.row(w) if a != b}  # fmt: skip
    for _, a, b in pairs:
        counts[a, b] += 1
    left, right = split_keys(cooccurrence.pairs)
    assert (counts[left, right] == cooccurrence.counts).all()
    assert counts.sum() == cooccurrence.counts.sum()
    assert cooccurrence.features(some).shape == (len(some.items), N_FEATURES)


def test_windows_that_do_not_fit_are_counted_and_described_in_smaller_parts(monkeypatch, caplog, tiny_demo):
    train = tiny_demo.splits["train"].take(np.arange(60))
    plenty = CooccurrenceCounts.fit(train, len(tiny_demo.catalogue), 0)
    described = plenty.features(train)

    def limited(windows, part):
        if part.stop - part.start > 30:
            raise MemoryError
        return pairs_of(windows, part)

    pairs_of = pair_counts.window_pairs
    for module in (pair_counts, cooccurrence_module):
        monkeypatch.setattr(module, "window_pairs", limited)
    with caplog.at_level(logging.WARNING, "llm4dsr"):
        little = CooccurrenceCounts.fit(train, len(tiny_demo.catalogue), 0)
        np.testing.assert_array_equal(little.features(train), described)
    assert little.fingerprint == plenty.fingerprint
    assert "interactions to count at a time from now on" in caplog.text
    assert "windows to describe at a time from now on" in caplog.text
