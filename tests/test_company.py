"""What other users have together, with the user's own history left out. Small shops that can be counted by eye."""

import numpy as np
import polars as pl
import pytest

from llm4dsr.catalogue import PAD, Windows
from llm4dsr.company import EVIDENCE, Company, user_hashes
from llm4dsr.demo import make_demo

TRAIN, TRACK, PAINT, BRUSH, DOLL = range(5)
HISTORIES = [[TRAIN, TRACK], [TRAIN, TRACK, PAINT], [PAINT, BRUSH], [PAINT, BRUSH, TRAIN]]
USERS = ["ann", "ben", "cid", "dot"]


def windows(histories, users) -> Windows:
    return Windows.from_lists(histories, user_ids=pl.Series("user_id", users))


@pytest.fixture
def company() -> Company:
    return Company.of(windows(HISTORIES, USERS), n_items=5)


def test_a_stranger_sees_all_users(company):
    together, alone = company.others(windows([[TRAIN, TRACK, BRUSH]], ["eve"]))
    assert together[0].tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]
    assert alone[0].tolist() == [3, 2, 2]


def test_a_users_own_history_is_left_out(company):
    together, alone = company.others(windows([[TRAIN, TRACK, PAINT]], ["ben"]))
    assert together[0].tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]  # ann has the first pair, dot train and paint
    assert alone[0].tolist() == [2, 1, 2]


def test_an_item_put_into_a_history_is_nobodys_own(company):
    """Self-made noise: ben never had the brush, so nothing is subtracted for it."""
    together, alone = company.others(windows([[TRAIN, BRUSH]], ["ben"]))
    assert together[0].tolist() == [[0, 1], [1, 0]]
    assert alone[0].tolist() == [2, 2]


def test_overlapping_windows_of_a_user_count_once():
    company = Company.of(windows([[TRAIN, TRACK, PAINT], [TRACK, PAINT, BRUSH]], ["ann", "ann"]), n_items=5)
    assert company.popularity.tolist() == [1, 1, 1, 1, 0]
    together, alone = company.others(windows([[TRACK, PAINT]], ["eve"]))
    assert (together[0, 0, 1], alone[0].tolist()) == (1, [1, 1])
    together, alone = company.others(windows([[TRACK, PAINT]], ["ann"]))
    assert (together.sum(), alone.sum()) == (0, 0)


def test_what_was_counted_is_not_counted_again(company):
    """Ann comes back: her old pair stays one, the new ones are added, and all of hers are left out for her."""
    more = company.add(windows([[TRAIN, TRACK, DOLL]], ["ann"]))
    whole = Company.of(windows([*HISTORIES, [TRAIN, TRACK, DOLL]], [*USERS, "ann"]), n_items=5)
    for name in ("pairs", "counts", "popularity", "own"):
        assert (getattr(more, name) == getattr(whole, name)).all()
    together, alone = more.others(windows([[TRAIN, TRACK, DOLL]], ["eve"]))
    assert together[0].tolist() == [[0, 2, 1], [2, 0, 1], [1, 1, 0]]
    assert alone[0].tolist() == [3, 2, 1]


def test_an_item_that_stands_twice_is_no_company_for_itself(company):
    together, _ = company.others(windows([[TRAIN, TRAIN, TRACK]], ["eve"]))
    assert together[0].tolist() == [[0, 0, 2], [0, 0, 2], [2, 2, 0]]


def test_evidence_tells_who_belongs(company):
    evidence = company.evidence(windows([[TRAIN, TRACK, DOLL], [PAINT]], ["eve", "fay"]))
    assert evidence.shape == (2, 3, EVIDENCE)
    share = evidence[0, :, 2]  # of the two other items, with how many was it seen?
    assert share.tolist() == [0.5, 0.5, 0]
    assert evidence[0, :, 1].tolist() == [0, 0, 1]  # nobody has the doll
    assert not evidence[1, 1:].any()  # padding
    assert np.isfinite(evidence).all()


def test_support_speaks_for_what_others_bought_with_the_rest(company):
    some = windows([[TRAIN, TRACK, DOLL], [PAINT, BRUSH]], ["eve", "cid"])
    mates = some.present.copy()
    mates[0, 2] = mates[1, 1] = False
    support = company.support(some, mates)
    by_hand = [2 / np.sqrt(4 * 3), 2 / np.sqrt(4 * 3), 2 / np.sqrt(4 * 4) + 1 / np.sqrt(3 * 4), 1 / np.sqrt(4 * 3), 0]
    np.testing.assert_allclose(support[0], by_hand)  # by the train and the track
    # By the paint, for cid: dot alone has it with the brush, since cid's own pair is left out.
    np.testing.assert_allclose(support[1], [2 / np.sqrt(4 * 4), 1 / np.sqrt(4 * 3), 0, 1 / np.sqrt(4 * 3), 0])


def test_saved_and_loaded_it_counts_the_same(company, tmp_path):
    company.save(tmp_path)
    again, some = Company.load(tmp_path), windows(HISTORIES, USERS)
    assert (again.evidence(some) == company.evidence(some)).all()


def test_no_user_id_is_stored(company, tmp_path):
    company.save(tmp_path)
    columns = [name for path in sorted(tmp_path.glob("*.parquet")) for name in pl.read_parquet(path).columns]
    assert columns == ["users", "hash", "pair", "users"]


def test_users_are_known_by_their_id_as_text():
    assert (user_hashes(pl.Series([7, 8])) == user_hashes(pl.Series(["7", "8"]))).all()
    assert user_hashes(pl.Series([None, "7"], dtype=pl.String))[0] == 0


@pytest.mark.parametrize("cells", [50, 4_000_000])
def test_it_is_the_same_in_small_parts(monkeypatch, cells):
    """A big log is counted a part at a time; the parts must not show."""
    monkeypatch.setattr("llm4dsr.company.CELLS", cells)
    data = make_demo(size="tiny").data
    some = data.splits["train"]
    company = Company.of(some, len(data.catalogue))
    counts = np.zeros((len(data.catalogue),) * 2, dtype=int)
    pairs = {(u, *sorted((a, b))) for u, row in zip(some.user_ids, some.items, strict=True)
             for a in row for b in row if a != b and PAD not in (a, b)}  # fmt: skip
    for _, a, b in pairs:
        counts[a, b] += 1
    left, right = company.pairs // len(data.catalogue), company.pairs % len(data.catalogue)
    assert (counts[left, right] == company.counts).all()
    assert counts.sum() == company.counts.sum()
    assert company.evidence(some).shape == (*some.items.shape, EVIDENCE)
