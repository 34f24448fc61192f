"""Noise in folders of data: a log or ready windows in, the same form out, with the truth beside it."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD
from llm4dsr.data.noise.folder import noise_folder
from llm4dsr.data.noise.kinds import KINDS
from llm4dsr.data.read import read_data
from llm4dsr.errors import DataError, OutputError

LETTERS = [chr(ord("a") + i) for i in range(26)]
ITEMS = pl.DataFrame({
    "item_id": LETTERS, "title": [f"{'Red' if i % 2 else 'Blue'} Toy {letter}" for i, letter in enumerate(LETTERS)]
})  # fmt: skip
KEEPING = [kind for kind in KINDS if kind not in ("insertion", "deletion")]


def write_log(folder, histories, **columns):
    """Users with their histories, two rows at a time in turn, as logs come."""
    rows = [(user, item, time) for user, items in histories.items() for time, item in enumerate(items)]
    rows.sort(key=lambda row: (row[2] // 2, row[0]))
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").with_columns(**columns)
    folder.mkdir(parents=True, exist_ok=True)
    ITEMS.write_parquet(folder / "items.parquet")
    log.write_parquet(folder / "interactions.parquet")
    return log


def write_windows(folder, **splits):
    """write_windows(folder, train=[("ann", "abc"), …]): a window for each pair of user and items."""
    folder.mkdir(parents=True, exist_ok=True)
    ITEMS.write_parquet(folder / "items.parquet")
    for name, pairs in splits.items():
        frame = pl.DataFrame({
            "window_id": range(len(pairs)), "user_id": [u for u, _ in pairs],
            "item_ids": [list(items) for _, items in pairs], "note": [f"{u}:{items}" for u, items in pairs],
        })  # fmt: skip
        frame.write_parquet(folder / f"{name}.parquet")


def read(folder, name):
    return pl.read_parquet(folder / f"{name}.parquet")


def of_users(log, column="item_id"):
    """user -> what the column holds, in order of time."""
    by_time = log.sort("timestamp", maintain_order=True)
    return {user: part[column].to_list() for (user,), part in by_time.group_by("user_id", maintain_order=True)}


HISTORIES = {"ann": "abcdefghijklmno", "bob": "zyxwvutsrqponml", "eve": "acegikmoqsuwy"}
SLIDING = {
    "train": [*(("ann", "abcdefghijkl"[i : i + 5]) for i in range(7)), ("bob", "zyxwv"), ("bob", "yxwvu")],
    "valid": [("ann", "hijkl"), ("bob", "xwvut")],
    "test": [("ann", "ijklm"), ("ann", "jklmn"), ("eve", "opqrs")],
}


# --- logs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEEPING)
def test_a_log_keeps_all_rows_and_tells_which_are_noise(tmp_path, kind):
    log = write_log(tmp_path / "in", HISTORIES, rating=pl.int_range(pl.len()))
    facts = noise_folder(tmp_path / "in", tmp_path / "out", kind, 0.5, seed=1)
    noisy = read(tmp_path / "out", "interactions")
    assert noisy.columns == [*log.columns, "noise_mask", "clean_item_id"]
    assert noisy.select("user_id", "timestamp", "rating").equals(log.select("user_id", "timestamp", "rating"))
    assert noisy["clean_item_id"].to_list() == log["item_id"].to_list()
    assert (noisy["noise_mask"].cast(bool) == (noisy["item_id"] != noisy["clean_item_id"])).all()
    assert noisy["noise_mask"].sum() == facts["files"]["interactions"]["noise"] > 0
    assert read(tmp_path / "out", "items").equals(ITEMS)


def test_an_inserted_row_has_the_time_of_the_one_that_it_precedes(tmp_path):
    log = write_log(tmp_path / "in", HISTORIES)
    facts = noise_folder(tmp_path / "in", tmp_path / "out", "insertion", 1.0)
    noisy = read(tmp_path / "out", "interactions")
    assert facts["files"]["interactions"] == {
        "interactions": 2 * len(log), "noise": len(log), "inserted": len(log), "removed": 0
    }  # fmt: skip
    assert noisy["noise_mask"].to_list() == [1, 0] * len(log)
    assert noisy["clean_item_id"][::2].null_count() == len(log)
    assert noisy[::2].select("user_id", "timestamp").equals(noisy[1::2].select("user_id", "timestamp"))
    assert noisy.filter(noise_mask=0).select(log.columns).equals(log)


def test_what_was_deleted_from_a_log_can_be_put_back(tmp_path):
    log = write_log(tmp_path / "in", HISTORIES)
    facts = noise_folder(tmp_path / "in", tmp_path / "out", "deletion", 0.4, seed=2)
    left, deleted = read(tmp_path / "out", "interactions"), read(tmp_path / "out", "interactions_deleted")
    assert facts["files"]["interactions"]["removed"] == len(deleted) > 0
    assert left["noise_mask"].sum() == 0
    back = of_users(left)
    for user, position, item in deleted.select("user_id", "position", "item_id").iter_rows():
        back.setdefault(user, []).insert(position, item)
    assert back == of_users(log)


def test_rows_that_lack_a_value_stay_as_they_are(tmp_path):
    log = write_log(tmp_path / "in", HISTORIES)
    log = pl.concat([log[:3], log[3:6].with_columns(user_id=None), log[6:8].with_columns(item_id=None), log[8:]])
    log.write_parquet(tmp_path / "in" / "interactions.parquet")
    noise_folder(tmp_path / "in", tmp_path / "out", "uniform", 1.0)
    noisy = read(tmp_path / "out", "interactions")
    assert noisy["noise_mask"].to_list() == [1] * 3 + [0] * 5 + [1] * (len(log) - 8)
    assert noisy[3:8].select(log.columns).equals(log[3:8])


def test_a_log_goes_by_time_whatever_its_type(tmp_path):
    """Runs are in order of time, not of the file: the same noise whether times are numbers or text."""
    write_log(tmp_path / "numbers", HISTORIES)
    write_log(tmp_path / "text", HISTORIES, timestamp=pl.format("2024-05-{} 10:00:00", pl.col("timestamp") + 10))
    write_log(tmp_path / "text of numbers", HISTORIES, timestamp=pl.col("timestamp").cast(pl.String))
    for form in ("numbers", "text", "text of numbers"):
        noise_folder(tmp_path / form, tmp_path / f"noisy {form}", "burst", 0.5)
    forms = [read(tmp_path / f"noisy {form}", "interactions") for form in ("numbers", "text", "text of numbers")]
    assert all(form.drop("timestamp").equals(forms[0].drop("timestamp")) for form in forms)


def test_a_noisy_log_is_prepared_with_its_truth(tmp_path):
    write_log(tmp_path / "in", {f"u{i}": LETTERS[i : i + 14] for i in range(12)})
    noise_folder(tmp_path / "in", tmp_path / "out", "uniform", 0.3)
    data = read_data(tmp_path / "out", k_core=0)
    for windows in data.splits.values():
        assert ((windows.items != windows.clean_items) == windows.noise_mask).all()
    assert data.splits["train"].noise_mask.any()
    assert (data.splits["test"].targets() == data.splits["test"].clean_items[data.splits["test"].is_last]).all()


def test_inserted_items_are_noise_in_the_windows_and_never_a_test_target(tmp_path):
    write_log(tmp_path / "in", {f"u{i}": LETTERS[i : i + 14] for i in range(12)})
    noise_folder(tmp_path / "in", tmp_path / "out", "insertion", 0.4)
    data = read_data(tmp_path / "out", k_core=0)
    for windows in data.splits.values():
        assert ((windows.clean_items == PAD) == windows.noise_mask).all()
    train, test = data.splits["train"], data.splits["test"]
    assert train.noise_mask[train.is_last].any()
    assert not test.noise_mask[test.is_last].any()


# --- ready windows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["user", "window"])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_keep_their_rows_and_their_evaluation_targets(tmp_path, kind, per):
    write_windows(tmp_path / "in", **SLIDING)
    facts = noise_folder(tmp_path / "in", tmp_path / "out", kind, 0.6, seed=3, per=per)
    for name in c.SPLITS:
        before, after = read(tmp_path / "in", name), read(tmp_path / "out", name)
        assert after.drop("item_ids", "noise_mask", "clean_item_ids").equals(before.drop("item_ids"))
        if name != "train":
            assert after["item_ids"].list.last().to_list() == before["item_ids"].list.last().to_list()
            assert after["noise_mask"].list.last().sum() == 0
        counted = facts["files"][name]
        assert counted["noise"] == after["noise_mask"].explode().sum()
        assert counted["interactions"] == after["item_ids"].list.len().sum()
    read_data(tmp_path / "out")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(), kind=st.sampled_from(KINDS), per=st.sampled_from(["user", "window"]),
    rate=st.floats(0, 1), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_windows_can_be_put_back(tmp_path_factory, data, kind, per, rate, seed):
    folder = tmp_path_factory.mktemp("any")
    windows = st.lists(
        st.tuples(st.sampled_from(["ann", "bob"]), st.text("abc", min_size=2, max_size=6)), min_size=1, max_size=4
    )
    splits = {name: [(user, "mnop"), *data.draw(windows)] for user, name in zip("xyz", c.SPLITS, strict=True)}
    write_windows(folder / "in", **splits)
    noise_folder(folder / "in", folder / "out", kind, rate, seed, per)
    for name, pairs in splits.items():
        after = read(folder / "out", name)
        back = [[item for item in clean if item is not None] for clean in after["clean_item_ids"].to_list()]
        if kind == "deletion":
            for window, position, item in read(folder / "out", f"{name}_deleted").drop("user_id").iter_rows():
                back[window].insert(position, item)
        assert ["".join(items) for items in back] == [items for _, items in pairs]
        for items, mask, clean in after.select("item_ids", "noise_mask", "clean_item_ids").iter_rows():
            assert [int(item != belongs) for item, belongs in zip(items, clean, strict=True)] == mask
            assert len(items) >= 2


def test_once_per_user_an_interaction_is_noise_in_every_window_that_holds_it(tmp_path):
    write_windows(tmp_path / "in", **SLIDING)
    noise_folder(tmp_path / "in", tmp_path / "out", "uniform", 0.5, seed=4)
    seen = {}
    for name in c.SPLITS:
        for user, items, clean in read(tmp_path / "out", name).select("user_id", "item_ids", "clean_item_ids").rows():
            last = len(items) - (name != "train")  # a target that is evaluated is the true one here
            for item, belongs in list(zip(items, clean, strict=True))[:last]:
                assert seen.setdefault((user, belongs), item) == item
    assert sum(item != belongs for (_, belongs), item in seen.items()) > 5
    assert all((("ann", letter) in seen) for letter in "abcdefghijklm")


def test_per_window_each_window_has_noise_of_its_own(tmp_path):
    write_windows(tmp_path / "in", train=[("ann", "abcde")] * 50, valid=[("bob", "abcde")], test=[("eve", "abcde")])
    for per, different in (("user", 1), ("window", 30)):
        noise_folder(tmp_path / "in", tmp_path / per, "uniform", 0.5, per=per)
        assert len({tuple(items) for items in read(tmp_path / per, "train")["item_ids"].to_list()}) >= different
        assert (per == "user") == (read(tmp_path / per, "train")["item_ids"].n_unique() == 1)


def test_windows_that_do_not_overlap_share_nothing(tmp_path):
    """The same items again are other interactions, unless one window begins inside the one before it."""
    write_windows(
        tmp_path / "in", train=[("ann", "abcde"), ("ann", "pqrst"), ("ann", "abcde")], valid=[("bob", "xyz")],
        test=[("bob", "xyz")],
    )  # fmt: skip
    noise_folder(tmp_path / "in", tmp_path / "out", "uniform", 1.0)
    first, _, third = read(tmp_path / "out", "train")["item_ids"].to_list()
    assert first != third


def test_a_shuffled_target_that_is_evaluated_keeps_its_place_everywhere(tmp_path):
    """Else the history of a test window could hold its own target."""
    write_windows(tmp_path / "in", **SLIDING)
    for seed in range(5):
        noise_folder(tmp_path / "in", tmp_path / str(seed), "shuffle", 1.0, seed)
        for name in ("valid", "test"):
            for items in read(tmp_path / str(seed), name)["item_ids"].to_list():
                assert items[-1] not in items[:-1]


def test_deletion_leaves_a_history_and_a_target(tmp_path):
    write_windows(tmp_path / "in", **SLIDING)
    noise_folder(tmp_path / "in", tmp_path / "out", "deletion", 1.0)
    for name, pairs in SLIDING.items():
        assert read(tmp_path / "out", name)["item_ids"].to_list() == [list(items[-2:]) for _, items in pairs]


def test_near_miss_goes_by_the_category_where_there_is_one(tmp_path):
    write_windows(tmp_path / "in", **SLIDING)
    noise_folder(tmp_path / "in", tmp_path / "titles", "near-miss", 1.0)
    ITEMS.with_columns(category=pl.col("item_id").is_in(list("aeiou"))).write_parquet(tmp_path / "in" / "items.parquet")
    noise_folder(tmp_path / "in", tmp_path / "category", "near-miss", 1.0)

    def pairs(folder):
        train = read(tmp_path / folder, "train")
        return list(zip(train["item_ids"].explode(), train["clean_item_ids"].explode(), strict=True))

    assert all(LETTERS.index(item) % 2 == LETTERS.index(clean) % 2 for item, clean in pairs("titles"))  # colours
    assert all((item in "aeiou") == (clean in "aeiou") for item, clean in pairs("category"))


# --- the folder ------------------------------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    write_windows(tmp_path / "in", **SLIDING)
    for out in ("one", "two"):
        noise_folder(tmp_path / "in", tmp_path / out, "deletion", 0.5, seed=9)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names == sorted(
        [
            "items.parquet",
            "manifest.json",
            "noise.json",
            *(f"{n}{end}.parquet" for n in c.SPLITS for end in ("", "_deleted")),
        ]
    )
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)


def test_noise_json_says_what_was_done(tmp_path):
    write_log(tmp_path / "in", HISTORIES)
    facts = noise_folder(tmp_path / "in", tmp_path / "out", "uniform", 0.25, seed=5)
    assert json.loads((tmp_path / "out" / "noise.json").read_text()) == facts
    assert {k: v for k, v in facts.items() if k != "files"} == {
        "kind": "uniform", "rate": 0.25, "seed": 5, "per": "user", "form": "log"
    }  # fmt: skip


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    write_log(tmp_path / "in", HISTORIES)
    with pytest.raises(OutputError, match=r"in exists already"):
        noise_folder(tmp_path / "in", tmp_path / "in", "uniform", 0.1)
    (tmp_path / "empty").mkdir()
    noise_folder(tmp_path / "in", tmp_path / "empty", "uniform", 0.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "in"]


@pytest.mark.parametrize("out", [".", "../link"])
def test_the_current_folder_and_one_behind_a_link_are_filled(tmp_path, monkeypatch, out):
    write_log(tmp_path / "in", HISTORIES)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    noise_folder(tmp_path / "in", Path(out), "uniform", 0.1)
    assert "noise_mask" in pl.read_parquet(tmp_path / "empty" / "interactions.parquet").columns
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda d: d, {"per": "month"}, r"Noise is made per 'month'; expected 'user' or 'window'"),
        (lambda d: d, {"kind": "pink"}, r"kind of noise is 'pink'"),
        (lambda d: d, {"rate": -0.1}, r"rate is -0.1; expected a probability"),
        (lambda d: d.drop("item_ids"), {}, r"'item_ids' is missing"),
        (lambda d: d.with_columns(noise_mask=[[0] * 5]), {}, r"train has the column 'noise_mask': it is noisy"),
        (lambda d: d.with_columns(user_id=7), {}, r"'user_id' differs in type between the files"),
    ],
)
def test_refuses_windows_and_leaves_nothing(tmp_path, change, options, message):
    write_windows(tmp_path / "in", **SLIDING)
    change(read(tmp_path / "in", "train")[:1]).write_parquet(tmp_path / "in" / "train.parquet")
    with pytest.raises(DataError, match=message):
        noise_folder(tmp_path / "in", tmp_path / "out", **{"kind": "uniform", "rate": 0.5, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda d: d, {"per": "window"}, r"An interaction log has no windows yet"),
        (lambda d: d.drop("timestamp"), {}, r"'timestamp' is missing"),
        (lambda d: d.with_columns(item_id=pl.lit("?")), {}, r"not in the items table"),
        (lambda d: d.with_columns(timestamp=pl.lit("soon")), {}, r"'timestamp' of the interactions has 'soon'"),
        (lambda d: d.with_columns(clean_item_id="item_id"), {}, r"interactions has the column 'clean_item_id'"),
        (lambda d: d.filter(user_id="ann"), {"kind": "burst"}, r"All interactions are of one user"),
    ],
)
def test_refuses_a_log_and_leaves_nothing(tmp_path, change, options, message):
    change(write_log(tmp_path / "in", HISTORIES)).write_parquet(tmp_path / "in" / "interactions.parquet")
    with pytest.raises(DataError, match=message):
        noise_folder(tmp_path / "in", tmp_path / "out", **{"kind": "uniform", "rate": 0.5, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_place_that_cannot_be_written_to(tmp_path):
    write_log(tmp_path / "in", HISTORIES)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written"):
        noise_folder(tmp_path / "in", tmp_path / "file" / "out", "uniform", 0.1)


def test_toys_windows_share_their_interactions(tmp_path, toys_path):
    """A tenth of the real windows: each interaction of a user is noise everywhere or nowhere."""
    for name in ("items", *c.SPLITS):
        frame = pl.read_parquet(f"{toys_path}_{name}.parquet")
        if name != "items":
            frame = frame.filter(pl.col("user_id") % 10 == 0).select("window_id", "user_id", item_ids="clean_item_ids")
        frame.write_parquet(tmp_path / f"{name}.parquet")
    facts = noise_folder(tmp_path, tmp_path / "out", "uniform", 0.1)
    train = read(tmp_path / "out", "train").explode("item_ids", "noise_mask", "clean_item_ids")
    kinds = train.group_by("user_id", "clean_item_ids").agg(pl.col("item_ids").n_unique())
    assert (kinds["item_ids"] == 1).all()
    assert facts["files"]["train"]["noise"] / len(train) == pytest.approx(0.1, abs=0.01)
    assert np.isin(train["item_ids"], read(tmp_path, "items")["item_id"]).all()
