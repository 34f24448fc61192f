"""Files that are damaged or of another format, and reading in chunks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4dsr.data.sources import Source, from_frames, lines, read_source, source
from llm4dsr.data.sources.lines import literal
from llm4dsr.errors import DataError


def write(path: Path, text: str | bytes) -> Path:
    """As text, or gzipped where the name says so."""
    data = text.encode() if isinstance(text, str) else text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_lines(*records: object) -> str:
    return "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)


def rows(found: Source) -> list[tuple]:
    """All rows of a log, with times in seconds."""
    seconds = pl.col("timestamp").dt.epoch("us") / 10**6
    return [row for batch in found.batches() for row in batch.with_columns(seconds).rows()]


def titles(found: Source) -> dict:
    return dict(found.items.rows())


def review(user: str, item: str, stars: float, seconds: int) -> dict:
    return {
        "reviewerID": user, "asin": item, "reviewerName": "J. \"Mac\" McDonald", "helpful": [2, 3],
        "reviewText": "Très bien,\nreally {good}", "overall": stars, "summary": "Heavenly",
        "unixReviewTime": seconds, "reviewTime": "09 13, 2009",
    }  # fmt: skip


META_2014 = r"""
{'asin': '0000031852', 'categories': [['Toys & Games', 'Dress Up']], 'title': "Girls' Ballet Tutu, 12&quot;", 'price': 3.17}
{'asin': '0000031853', 'related': {'also_bought': ['0000031852', '0000031854']}, 'title': 'It\'s a \\ puzzle', 'salesRank': {'Toys & Games': 211836}}
{'asin': '0000031854', 'imUrl': 'http://ecx.images-amazon.com/images/I/51fAmVkTbyL.jpg', 'description': "no title: 'title': 'x'"}
{'asin': '0000031852', 'title': 'The same item again'}
{'asin': '0000031855', 'title': 'Cut off
""".lstrip()  # noqa: E501


# --- what goes wrong -------------------------------------------------------------------------------------------------


def csv_pair(folder: Path, log: str | bytes) -> Path:
    write(folder / "movies.csv", "movieId,title,genres\n1,One (1999),Drama\n")
    return write(folder / "ratings.csv", log)


def beauty(folder: Path, log: str | bytes) -> Path:
    write(folder / "meta_X.json.gz", as_lines({"asin": "B1", "title": "One"}))
    return write(folder / "X.json.gz", log)


def test_the_error_for_an_unknown_folder_says_what_was_found_and_what_is_known(tmp_path):
    write(tmp_path / "mystery.bin", b"\1\2")
    with pytest.raises(
        DataError, match=r"(?s)holds mystery.bin. Expected.*amazon-2014: reviews_X.json.gz.*table: inter"
    ):
        read_source(tmp_path)
    with pytest.raises(DataError, match="There is no file or folder"):
        read_source(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"There is no form 'netflix'. Known: amazon-2014, .*, table"):
        read_source(tmp_path, form="netflix")


def test_gzip_cut_short(tmp_path):
    path = beauty(tmp_path, as_lines(*(review(f"A{i}", "B1", 5.0, i) for i in range(2000))))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"X.json.gz is cut short: its gzip stream ends in line \d+, byte \d+"):
        rows(read_source(tmp_path))


def test_gzip_with_a_flipped_bit(tmp_path):
    path = beauty(tmp_path, as_lines(*(review(f"A{i}", "B1", 5.0, i) for i in range(2000))))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"X.json.gz (is damaged after|: line|is cut short)"):
        rows(read_source(tmp_path))


def test_bytes_that_are_not_utf_8(tmp_path):
    csv_pair(tmp_path, "userId,movieId,rating,timestamp\n1,1,4.0,9\n1,é,4.0,9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"ratings.csv: line 3, byte 3 of it, is not UTF-8 \(0xe9\)"):
        rows(read_source(tmp_path))


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (b"<!DOCTYPE html><p>404</p>", "a web page instead of data"),
        (b"PK\x03\x04" + b"\0" * 30, "a zip archive: unpack it first"),
        ("userId,movieId\n1,1\n".encode("utf-16-le"), "UTF-16 without a byte-order mark"),
        (b"\1\0\2\0", "zero bytes"),
        (b'{"reviewerID": "A1"}', "has the columns"),
        (b"userId,movieId,rating,timestamp\n1;1;4.0;9\n", "no line of its first 1 has 4 columns"),
        (b'userId,movieId,rating,timestamp\n1,1,4.0,9\n1,1,"4.0,9\n' + b"1,1,4.0,9\n" * 9, "line 3 .* never closed"),
        (b"\nuserId,movieId,rating,timestamp\n1,1,4.0,9\n", "line 1 is empty; expected the names of the columns"),
    ],
)
def test_a_file_of_another_format(tmp_path, log, message):
    csv_pair(tmp_path, log)
    with pytest.raises(DataError, match=message):
        rows(read_source(tmp_path))


def test_json_of_another_publisher(tmp_path):
    beauty(tmp_path, as_lines({"user": 1, "item": 2}))
    with pytest.raises(DataError, match=r"none of its first 1 line\(s\) is a record with reviewerID, asin"):
        rows(read_source(tmp_path))
    beauty(tmp_path, META_2014)
    with pytest.raises(DataError, match="of another format"):
        rows(read_source(tmp_path))
    write(tmp_path / "X.json.gz", b"").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"is named \.gz but is no gzip file"):
        rows(read_source(tmp_path))


def test_parquet_cut_short(tmp_path):
    write(tmp_path / "items.csv", "item_id,title\n5,Five\n")
    path = tmp_path / "interactions.parquet"
    pl.DataFrame({"user_id": range(1000), "item_id": range(1000)}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_source(tmp_path)


def test_arrow_text_that_is_not_utf_8(tmp_path):
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xe9"], pa.binary()).buffers())
    log = pa.table({"user_id": [1], "item_id": text})
    with pytest.raises(DataError, match=r"the interactions cannot be read: .*UTF8"):
        from_frames(log, pl.DataFrame({"item_id": ["a"], "title": ["A"]}))
    pq.write_table(log, tmp_path / "interactions.parquet")
    write(tmp_path / "items.csv", "item_id,title\na,A\n")
    with pytest.raises(DataError, match=r"cannot be read as Parquet: .*UTF8"):
        read_source(tmp_path)


def test_items_without_any_title(tmp_path):
    write(tmp_path / "items.csv", "item_id,title\n5,\n")
    write(tmp_path / "interactions.csv", "user_id,item_id\n1,5\n")
    with pytest.raises(DataError, match="None of the 1 row"):
        read_source(tmp_path)
    write(tmp_path / "items.csv", "")
    with pytest.raises(DataError, match="empty"):
        read_source(tmp_path)


WHOLE = {
    "amazon": {"X.json.gz": as_lines(*(review(f"A{i}", "B1", 5.0, i) for i in range(5))),
               "meta_X.json.gz": as_lines({"asin": "B1", "title": "One"})},
    "steam": {"steam_reviews.json.gz": "{u'username': u'a', u'product_id': u'72', u'date': u'2017-12-17'}\n" * 3,
              "steam_games.json.gz": "{u'app_name': u'G', u'id': u'72', u'tags': [u'Indie']}\n"},
    "movielens": {"ratings.dat": "1::1193::5::978300760\n" * 3, "movies.dat": "1193::One: Two (1999)::Drama\n"},
    "tables": {"interactions.csv": 'user_id,item_id,timestamp\n1,"a b",2024-05-31\n',
               "items.csv": "item_id,title\na b,A\n"},
}  # fmt: skip
DAMAGE = st.sampled_from(
    [b'"', b"\r", b"\n", b"\0", b"\xff", b"'", b"{", b"[" * 300, b"9" * 5000, b"-", b"1e400", b",", b"::"]
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, data):
    """Anything cut out of a file and put into it, before or after packing: no other error than a DataError."""
    folder = tmp_path_factory.mktemp("damaged")
    files = WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))]
    victim = data.draw(st.sampled_from(sorted(files)))
    packed = data.draw(st.booleans())

    def damaged(body: bytes) -> bytes:
        begin, length = data.draw(st.integers(0, len(body))), data.draw(st.integers(0, 30))
        return body[:begin] + data.draw(DAMAGE | st.binary(max_size=5)) + body[begin + length :]

    for name, text in files.items():
        path = write(folder / name, damaged(text.encode()) if name == victim and not packed else text)
        if name == victim and packed:
            path.write_bytes(damaged(path.read_bytes()))
    try:
        found = read_source(folder)
        batches = list(found.batches())
    except DataError:
        return
    for batch in batches:
        assert batch.schema["item_id"] == found.items.schema["item_id"]
        assert not batch["user_id"].null_count()


# --- streaming -------------------------------------------------------------------------------------------------------


def test_batches_are_bounded_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "BATCH_ROWS", 7)
    monkeypatch.setattr(lines, "CHUNK", 300)
    wanted = [(f"A{i}", "B1", i, 5.0) for i in range(50)]
    beauty(tmp_path, as_lines(*(review(user, item, stars, time) for user, item, time, stars in wanted)))
    batches = list(read_source(tmp_path).batches())
    assert [len(batch) for batch in batches] == [7] * 7 + [1]
    assert rows(read_source(tmp_path)) == wanted
    assert pl.concat(batches)["user_id"].to_list() == [user for user, *_ in wanted]


NO_ZERO = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(NO_ZERO, max_size=8), min_size=1, max_size=12), st.integers(1, 60))
def test_chunks_never_cut_a_quoted_field(tmp_path_factory, texts, size):
    """However small the chunks are, the table is the one that was written."""
    folder = tmp_path_factory.mktemp("csv")
    log = pl.DataFrame({"user_id": texts, "item_id": ["a"] * len(texts)})
    log.write_csv(folder / "interactions.csv", quote_style="always")
    write(folder / "items.csv", "item_id,title\na,A\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK", size)
        patch.setattr(lines, "PIECE", size)
        assert [str(user) for user, *_ in rows(read_source(folder))] == [text for text in texts if text]


@settings(max_examples=150, deadline=None)
@given(st.text('""\n\r\ta', max_size=60), st.integers(1, 20))
def test_chunks_end_where_records_end(tmp_path_factory, text, size):
    """Also with quotes that open no field, as in 12" vinyl: the same rows and bad lines as in a single chunk."""
    folder = tmp_path_factory.mktemp("tsv")
    write(folder / "items.tsv", "item_id\ttitle\na\tA\n")
    write(folder / "interactions.tsv", "user_id\titem_id\nfirst\ta\n" + text + "\nlast\ta\n")

    def read() -> object:
        try:
            found = read_source(folder)
            return rows(found), found.dropped, found.examples
        except DataError as error:
            return str(error)

    whole = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK", size)
        patch.setattr(lines, "PIECE", size)
        assert read() == whole


def test_a_quote_in_a_field_opens_none_in_a_large_file(tmp_path, monkeypatch):
    """Nothing after it is taken for its continuation: not the 64 MiB that a field may have."""
    monkeypatch.setattr(lines, "CHUNK", 300)
    monkeypatch.setattr(lines, "PIECE", 300)
    monkeypatch.setattr(lines, "LONGEST", 1000)
    write(tmp_path / "items.tsv", "item_id\ttitle\n1\tA\n")
    write(tmp_path / "interactions.tsv", 'user_id\titem_id\ttitle\n5\t1\t12" vinyl record\n' + "6\t1\tTape\n" * 1000)
    found = read_source(tmp_path)
    assert [user for user, *_ in rows(found)] == [5, *[6] * 1000]
    assert found.dropped == {}


@pytest.mark.parametrize("size", [1, 2**20])
def test_lines_are_counted_as_an_editor_does(tmp_path, monkeypatch, size):
    """Blank lines and line breaks in quotes count too."""
    monkeypatch.setattr(lines, "CHUNK", size)
    monkeypatch.setattr(lines, "PIECE", size)
    write(tmp_path / "items.csv", "item_id,title\n1,A\n")
    write(tmp_path / "interactions.csv", 'user_id,item_id,note\n1,1,"a\nb\nc"\n1,2\n\r\n\n2,1,x\n2,"1\n"\n3\n')
    found = read_source(tmp_path)
    assert [user for user, *_ in rows(found)] == [1, 2]
    assert found.examples["bad_line"] == [f"interactions.csv, line {line}" for line in (5, 9, 11)]


def test_the_line_of_text_where_a_number_belongs(tmp_path):
    csv_pair(tmp_path, "userId,movieId,rating,timestamp\n1,1,4.0,100\n\n\nx,2,3.0,5\n1,1,3.0,7\n")
    found = read_source(tmp_path)
    assert len(rows(found)) == 2
    assert found.examples["bad_line"] == ["ratings.csv, line 5"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["asin", "title", "price", "related"]), VALUES))
def test_literals_are_read_as_python_reads_them(record):
    expected = {name: None if record.get(name) is None else str(record[name]) for name in ("asin", "title")}
    found = literal(repr(record), ("asin", "title"))
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    "line",
    [
        "{'asin': 1", "{'asin'}", "['asin']", "x {'asin': 1}", "{'asin': 1} x", "{'asin': __import__('os')}",
        "(" * 5000, "{'asin': " + "-" * 100_000 + "1}",
    ],
)  # fmt: skip
def test_what_is_no_literal_is_refused_and_not_run(line):
    with pytest.raises((ValueError, SyntaxError, MemoryError, RecursionError)):
        literal(line, ("asin",))
