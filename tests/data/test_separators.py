"""Delimited text as spreadsheets write it: other separators, byte-order marks, line ends and UTF-16."""

from datetime import datetime

import polars as pl
import pytest

from llm4dsr.core.text import sniff_separator
from llm4dsr.data.describe import describe
from llm4dsr.data.read import read_data
from llm4dsr.data.sources import read_source
from llm4dsr.data.validate.checks import validate
from llm4dsr.errors import DataError

LETTERS = list("abcdefgh")
ITEMS = [("item_id", "title"), *((letter, f'"Toy, {letter}; 5"" | é"') for letter in LETTERS)]
LOG = [("user_id", "item_id", "timestamp"), *((f"u{u}", LETTERS[(u + 3 * t) % 8], 1_600_000_000 + 100 * t + u)
                                              for u in range(12) for t in range(12))]  # fmt: skip


def write(folder, end, separator, encoding="utf-8", eol="\n", **tables):
    for name, rows in {"items": ITEMS, "interactions": LOG, **tables}.items():
        text = "".join(separator.join(map(str, row)) + eol for row in rows)
        (folder / f"{name}.{end}").write_bytes(text.encode(encoding))
    return folder


@pytest.mark.parametrize(
    ("end", "separator", "encoding", "eol"),
    [
        ("csv", ";", "utf-8", "\n"),
        ("csv", "|", "utf-8", "\n"),
        ("csv", "\t", "utf-8", "\n"),
        ("csv", ";", "utf-8-sig", "\r\n"),  # "CSV UTF-8" of Excel in much of Europe
        ("csv", ",", "utf-8-sig", "\r\n"),
        ("txt", "\t", "utf-16", "\r\n"),  # "Unicode text" of Excel
        ("csv", ";", "utf-16", "\n"),
        ("tsv", "\t", "utf-8", "\n"),
    ],
)
def test_tables_of_spreadsheets(tmp_path, end, separator, encoding, eol):
    path = write(tmp_path, end, separator, encoding, eol)
    data = read_data(path)
    assert data.catalogue.ids.to_list() == LETTERS
    assert data.catalogue.original_titles[0] == 'Toy, a; 5" | é'
    assert validate(path, strict=True).errors == []
    assert describe(path)["items"] == 8
    found = read_source(path)
    assert found.items.row(0) == ("a", 'Toy, a; 5" | é')
    (batch,) = found.batches()
    assert batch.row(1) == ("u0", "d", datetime(2020, 9, 13, 12, 28, 20))
    assert found.dropped == found.dropped_items == {}


@pytest.mark.parametrize(
    ("sample", "separator"),
    [
        ("item_id;title\n1;Ball, red, large\n2;Doll, blue\n", ";"),
        ('item_id,title\n1,"a;b;c"\n2,"d\ne;f"\n', ","),
        ("a,b;c,d\n1;2,3;4\n", ","),
        ("item_id title\n1 Ball\n", None),
        ("user::item::time\n1::2::3\n", None),
        ("\n\nitem_id|title\n1|Ba", "|"),
        ("", None),
    ],
)
def test_the_separator_is_that_which_splits_all_lines_alike(sample, separator):
    assert sniff_separator(sample) == separator


def test_a_table_that_no_separator_splits_is_refused(tmp_path):
    path = write(tmp_path, "csv", "^")
    message = r"items.csv has a single column 'item_id\^title': none of comma, semicolon, tab and \| separates"
    for read in (read_data, read_source):
        with pytest.raises(DataError, match=message):
            read(path)
    assert {finding.code for finding in validate(path).errors} == {"refused"}


def test_ratings_with_a_decimal_comma(tmp_path):
    log = [("user_id", "item_id", "rating"), ("u", "a", "4,5"), ("u", "b", "3")]
    (batch,) = read_source(write(tmp_path, "csv", ";", interactions=log)).batches()
    assert batch["rating"].to_list() == [4.5, 3.0]


def test_ids_keep_leading_zeros(tmp_path):
    items = [("item_id", "title"), *((f"0{i}", f"Toy {i}") for i in range(8))]
    log = [LOG[0], *((user, f"0{LETTERS.index(item)}", time) for user, item, time in LOG[1:])]
    path = write(tmp_path, "csv", ",", items=items, interactions=log)
    assert read_data(path).catalogue.ids.to_list() == [f"0{i}" for i in range(8)]


def test_utf16_that_is_cut_short(tmp_path):
    path = write(tmp_path, "txt", "\t", "utf-16")
    (path / "items.txt").write_bytes((path / "items.txt").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"items.txt is damaged UTF-16 text: .*save it in UTF-8"):
        read_source(path)
    with pytest.raises(DataError, match=r"items.txt cannot be read as txt"):
        read_data(path)


def test_notes_beside_part_files_are_no_part(tmp_path):
    (tmp_path / "interactions").mkdir()
    write(tmp_path, "csv", ",")
    (tmp_path / "interactions.csv").rename(tmp_path / "interactions" / "part-0.csv")
    (tmp_path / "interactions" / "README.txt").write_text("Notes")
    assert pl.concat(read_source(tmp_path).batches()).height == 144
