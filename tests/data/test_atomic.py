"""Atomic files of RecBole, through the two ways that data are read: `read_source` and `read_data`."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from llm4dsr.data.describe import describe
from llm4dsr.data.noise.folder import noise_folder
from llm4dsr.data.read import read_data
from llm4dsr.data.sources import read_source
from llm4dsr.data.validate.checks import validate
from llm4dsr.errors import DataError

N = 8
ITEMS = "item_id:token\tmovie_title:token_seq\tclass:token_seq\n" + "".join(
    f'{i}\tFilm {i}, 12" (19{i:02})\tDrama War\n' for i in range(N)
)
LOG = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
    f"u{u}\t{(u + 3 * t) % N}\t{t % 5}.5\t{1_600_000_000 + 100 * t + u}.0\n" for u in range(12) for t in range(12)
)


def sequences(*histories: str) -> str:
    """sequences("1 2>3"): the history 1, 2 with the target 3."""
    rows = (history.split(">") for history in histories)
    return "user_id:token\titem_id_list:token_seq\titem_id:token\n" + "".join(
        f"u{u}\t{before}\t{target}\n" for u, (before, target) in enumerate(rows)
    )


def folder(path: Path, **files: str) -> Path:
    """Files of the dataset ml: inter="…" is ml.inter, train_inter="…" is ml.train.inter."""
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        (path / f"ml.{name.replace('_', '.')}").write_text(text, encoding="utf-8")
    return path


def test_a_log_is_a_source(tmp_path):
    path = folder(tmp_path, inter=LOG, item=ITEMS)
    for given in (path, path / "ml.inter"):
        found = read_source(given)
        assert found.items[0].row(0) == (0, 'Film 0, 12" (1900)')
        (batch,) = found.batches()
        assert batch[1].row(0) == ("u0", 3, datetime(2020, 9, 13, 12, 28, 20), 1.5)


def test_a_log_is_read_like_any_other(tmp_path):
    path = folder(tmp_path / "ml", inter=LOG, item=ITEMS)
    data = read_data(path)
    assert data.catalogue.original_titles[0] == 'Film 0, 12" (1900)'
    assert {name: len(windows) for name, windows in data.splits.items()} == {"train": 19, "valid": 2, "test": 3}
    for given in (path / "ml", path / "ml.inter"):  # by its name, as RecBole does, or by its file
        assert read_data(given).catalogue.titles == data.catalogue.titles
    assert validate(path, strict=True).errors == []
    assert describe(path)["interactions"] == 144
    noise_folder(path, tmp_path / "noisy", "uniform", 0.2)
    assert validate(tmp_path / "noisy").errors == []


def test_split_sequences_are_windows(tmp_path):
    parts = {"train_inter": sequences("1 2>3", "4>5"), "valid_inter": sequences("1 2 3>4"),
             "test_inter": sequences("1 2 3 4>5")}  # fmt: skip
    data = read_data(folder(tmp_path, item=ITEMS, **parts))
    train = data.splits["train"].to_frame(data.catalogue)
    assert train["item_ids"].to_list() == [[1, 2, 3], [4, 5]]
    assert train["window_id"].to_list() == [0, 1]
    with pytest.raises(DataError, match=r"item_id_list.*windows already.*llm4dsr run --data"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("header", "title"),
    [("item_id:token\tname:token_seq", "name"), ("item_id:token\tbook_title:token_seq\tauthor:token", "book_title"),
     ("item_id:token\ttitle:token_seq\tmovie_title:token_seq", "title")],
)  # fmt: skip
def test_titles_have_many_names(tmp_path, header, title):
    names = [name.split(":")[0] for name in header.split("\t")]
    row = "\t".join("5" if name == "item_id" else f"the {name}" for name in names)
    path = folder(tmp_path, inter="user_id:token\titem_id:token\nu\t5\n", item=f"{header}\n{row}\n")
    assert dict(read_source(path).items.rows()) == {5: f"the {title}"}


def test_titles_that_a_csv_writer_has_quoted(tmp_path):
    """Pandas quotes a title with quotes and doubles them; RecBole writes it as it is. Both are read."""
    item = 'item_id:token\ttitle:token_seq\n1\t"Ball, 12"""\n2\t"Weird" Al\n3\t5" tape\n'
    path = folder(tmp_path, inter="user_id:token\titem_id:token\nu\t1\n", item=item)
    assert read_source(path).items["title"].to_list() == ['Ball, 12"', '"Weird" Al', '5" tape']


def test_titles_may_stand_in_the_log(tmp_path):
    path = folder(tmp_path, inter="user_id:token\titem_id:token\ttitle:token_seq\nu\t1\tOne\nu\t2\tTwo\n")
    assert read_source(path).items["title"].to_list() == ["One", "Two"]
    with pytest.raises(DataError, match=r"lacks ml.item; it holds ml.inter.*llm4dsr data prepare"):
        read_data(path)


def test_other_names_are_given_by_the_option(tmp_path):
    path = folder(tmp_path, inter=LOG.replace("item_id:", "artist_id:"), item=ITEMS.replace("item_id:", "artist_id:"))
    assert len(read_source(path, columns={"item_id": "artist_id"}).items) == N
    for read in (read_source, read_data):
        with pytest.raises(DataError, match=r"artist_id.*--column item_id=NAME"):
            read(path)


def test_what_is_missing_is_named(tmp_path):
    alone = folder(tmp_path / "alone", inter=LOG)
    with pytest.raises(DataError, match=r"ml.inter has no titles, and there is no ml.item beside it"):
        read_source(alone)
    path = folder(tmp_path / "parts", item=ITEMS, train_inter=LOG, valid_inter=LOG)
    with pytest.raises(DataError, match=r"lacks ml.test.inter"):
        read_data(path)
    folder(path, test_inter=LOG)
    with pytest.raises(DataError, match=r"ml.train.inter has single interactions; a split needs sequences"):
        read_data(path)
    whole = folder(tmp_path / "whole", item=ITEMS, inter=sequences("1 2>3"))
    with pytest.raises(DataError, match=r"ml.inter has sequences \(item_id_list\) that are not split"):
        read_data(whole)


def test_one_of_several_datasets_is_named(tmp_path):
    for name in ("ml", "toys"):
        (tmp_path / f"{name}.inter").write_text(LOG)
        (tmp_path / f"{name}.item").write_text(ITEMS)
    assert len(read_data(tmp_path / "toys").catalogue) == N
    with pytest.raises(DataError, match=r"several datasets: ml, toys. Name one, for example .*ml"):
        read_data(tmp_path)


def test_our_own_tables_come_first(tmp_path):
    folder(tmp_path, inter=LOG, item=ITEMS)
    pl.DataFrame({"item_id": ["a"], "title": ["A"]}).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"lacks train, valid, test"):
        read_data(tmp_path)
    (tmp_path / "items.parquet").rename(tmp_path / "ml_items.parquet")
    with pytest.raises(DataError, match=r"lacks ml_train, ml_valid, ml_test"):
        read_data(tmp_path / "ml")
