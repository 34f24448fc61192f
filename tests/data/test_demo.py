"""The demo shop: deterministic, realistic enough to be hard, easy enough to be learned."""

from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import roc_auc_score

from llm4dsr import columns as c
from llm4dsr.data.catalogue import clean_title
from llm4dsr.data.dataset import make_windows
from llm4dsr.data.demo import make_demo, write_demo
from llm4dsr.data.read import read_data
from llm4dsr.errors import DataError


@pytest.fixture(scope="module")
def full():
    return make_demo(seed=0)


def test_sizes(full, tiny_demo):
    assert len(full.data.catalogue) == 720
    assert 5_000 <= len(full.data.splits[c.TRAIN]) <= 7_000
    assert len(tiny_demo.catalogue) == 60
    assert len(tiny_demo.splits[c.TRAIN]) > 150
    for split in full.data.splits.values():
        assert split.lengths.min() >= 6
        assert split.lengths.max() == 11


def test_titles_are_as_awkward_as_real_ones(full):
    titles = full.data.catalogue.titles
    assert full.items[c.TITLE].to_list() == [clean_title(t) for t in titles]
    assert 45 < np.mean([len(t) for t in titles]) < 70
    shared_by = Counter(t.split()[0] for t in titles)
    assert max(shared_by.values()) > 10  # so scoring the first word alone ties
    first_word = {}
    for title, interest in zip(titles, full.interests, strict=True):
        first_word.setdefault(title.split()[0], set()).add(interest)
    assert sum(len(interests) > 1 for interests in first_word.values()) >= 10  # and does not tell the interest
    assert 0 < len(titles) - len(set(titles)) < 20  # a few items share one title


def test_noise_is_planted_once_per_user_and_test_targets_are_clean(full):
    log, splits = full.interactions, full.data.splits
    assert log[c.NOISE_MASK].mean() == pytest.approx(0.1, abs=0.01)
    assert ((log[c.ITEM] != log["clean_item_id"]) == log[c.NOISE_MASK].cast(bool)).all()
    for windows in splits.values():
        assert ((windows.items != windows.clean_items) == windows.noise_mask).all()
    test, train = splits[c.TEST], splits[c.TRAIN]
    assert (test.targets() == test.clean_items[test.is_last]).all()
    assert (train.items != train.clean_items)[train.is_last].any()


def test_clean_histories_hold_one_to_three_interests_and_no_item_twice(full):
    row_of = {key: row for row, key in enumerate(full.items[c.ITEM].to_list())}
    for (ids,) in full.interactions.group_by(c.USER).agg("clean_item_id").select("clean_item_id").iter_rows():
        assert len(set(ids)) == len(ids)
        assert 6 <= len(ids) <= 14
        assert 1 <= len({full.interests[row_of[key]] for key in ids}) <= 3


def test_titles_find_the_noise_but_not_all_of_it(full):
    """Mean TF-IDF cosine with the rest of the window: a simple rule does well, so a model has something to learn."""
    vectors = TfidfVectorizer().fit_transform(full.data.catalogue.titles).toarray()
    cosine = vectors @ vectors.T
    test = full.data.splits[c.TEST].histories()
    similar = []
    for row in map(test.row, range(len(test))):
        window = cosine[np.ix_(row, row)]
        similar.extend((window.sum(1) - window.diagonal()) / (len(row) - 1))
    assert 0.8 < roc_auc_score(test.noise_mask, -np.array(similar)) < 0.95


def test_what_comes_next_can_be_learned(full):
    """Counting what followed an item in train beats the most popular items by far."""
    train, test = full.data.splits[c.TRAIN], full.data.splits[c.TEST]
    n = len(full.data.catalogue)
    follows, popular = np.zeros((n, n)), np.bincount(train.items, minlength=n)
    before = np.flatnonzero(~train.is_last)
    np.add.at(follows, (train.items[before], train.items[before + 1]), 1)
    last = test.histories().targets()
    best = np.argsort(-follows[last], axis=1)[:, :20]
    hit_next = (best == test.targets()[:, None]).any(1).mean()
    hit_popular = np.isin(test.targets(), np.argsort(-popular)[:20]).mean()
    assert hit_next > 2 * hit_popular


def test_same_seed_same_bytes(tmp_path):
    write_demo(tmp_path / "a", seed=3, size="tiny")
    write_demo(tmp_path / "b", seed=3, size="tiny")
    write_demo(tmp_path / "c", seed=4, size="tiny")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["items.parquet", "test.parquet", "train.parquet", "valid.parquet"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_written_demo_reads_back(tmp_path, tiny_demo):
    write_demo(tmp_path, seed=0, size="tiny")
    again = read_data(tmp_path)
    assert again.catalogue.titles == tiny_demo.catalogue.titles
    for name, windows in tiny_demo.splits.items():
        assert windows.to_frame(tiny_demo.catalogue).equals(again.splits[name].to_frame(again.catalogue))


def test_the_log_gives_the_same_windows(tiny_demo):
    demo = make_demo(seed=0, size="tiny")
    again = make_windows(demo.interactions, demo.items, k_core=0)
    assert (again.splits[c.TRAIN].items == tiny_demo.splits[c.TRAIN].items).all()


def test_without_noise():
    assert not make_demo(size="tiny", noise=0.0).data.splits[c.TRAIN].noise_mask.any()


def test_unknown_size():
    with pytest.raises(DataError, match=r"full, tiny; got 'huge'"):
        make_demo(size="huge")
