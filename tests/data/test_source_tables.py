"""Tables of your own: types of ids and times, part files, tables in memory."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr.data import times as reading
from llm4dsr.data.prepare import PrepareOptions, prepare
from llm4dsr.data.sources import Source, from_frames, read_source
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


# --- tables of one's own ---------------------------------------------------------------------------------------------


def test_csv_with_a_mapping_and_part_files(tmp_path):
    write(
        tmp_path / "interactions" / "part-0.csv.gz",
        "when,visitor,sku,stars\n2024-05-31,7,a,4\n2024-06-01 10:00:00,8,b,\n",
    )
    write(tmp_path / "interactions" / "part-1.csv", 'sku,visitor,when\n"a",9,1717200000000\nb,9,soon\nb\n')
    write(tmp_path / "interactions" / "_SUCCESS", "")
    write(tmp_path / "items.tsv", 'sku\tname\na\tBall, 12"\nb\t\n')
    found = read_source(tmp_path, columns={"user_id": "visitor", "item_id": "sku", "timestamp": "when", "title": "name",
                                           "rating": "stars"})  # fmt: skip
    assert titles(found) == {"a": 'Ball, 12"'}
    assert rows(found) == [(7, "a", 1717113600, 4.0), (8, "b", 1717236000, None), (9, "a", 1717200000, None)]
    assert found.dropped == {"bad_line": 2}
    assert found.examples["bad_line"] == ["part-1.csv, line 4", "part-1.csv, timestamp 'soon'"]


SHOP = {
    "interactions.csv": "user_id,item_id,timestamp,purchased_at\nu,1,100,200\n",
    "items.csv": "sku,item_id,title,name\n1,9,Toy,Ball\n",
}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [({}, ({9: "Toy"}, 100)), ({"timestamp": "purchased_at", "title": "name", "item_id": "sku"}, ({1: "Ball"}, 200))],
)
def test_a_named_column_comes_before_one_with_our_name(tmp_path, columns, expected):
    """`item_id=sku` holds for the items alone: the log has no `sku`, and our name for it."""
    for name, text in SHOP.items():
        write(tmp_path / name, text)
    in_memory = from_frames(*(pl.read_csv(tmp_path / name) for name in SHOP), columns=columns)
    for found in (read_source(tmp_path, columns=columns), in_memory):
        assert (titles(found), rows(found)[0][2]) == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "looked_in"),
    [
        ("timestamp", "purchase_at", "the columns are user_id, item_id, timestamp, purchased_at, but 'purchase_at'"),
        ("user_id", "title", "the columns are user_id, item_id, timestamp, purchased_at, but 'title'"),
        ("title", "nme", "user_id, item_id, timestamp, purchased_at, sku, title, name, but 'nme'"),
        ("item_id", "skuu", "user_id, item_id, timestamp, purchased_at, sku, title, name, but 'skuu'"),
    ],
)
def test_a_mistyped_column_is_refused_though_there_is_one_with_our_name(tmp_path, ours, theirs, looked_in):
    for name, text in SHOP.items():
        write(tmp_path / name, text)
    message = rf"{looked_in} \(for {ours}\) is missing.*--column {ours}=NAME"
    with pytest.raises(DataError, match=message):
        read_source(tmp_path, columns={ours: theirs})
    with pytest.raises(DataError, match=message):
        from_frames(*(pl.read_csv(tmp_path / name) for name in SHOP), columns={ours: theirs})


@pytest.mark.parametrize(
    ("users", "expected"), [("1,20", [1, 20]), ("01,20", ["01", "20"]), ("1,x", ["1", "x"]), ("1,", [1])]
)
def test_ids_of_csv_are_numbers_only_where_nothing_gets_lost(tmp_path, users, expected):
    one, two = users.split(",")
    write(tmp_path / "items.csv", "item_id,title\n5,Five\n6,Six\n")
    write(tmp_path / "interactions.csv", f"user_id,item_id,timestamp\n{one},5,1\n{two},6,2\n")
    found = read_source(tmp_path)
    assert [user for user, *_ in rows(found)] == expected
    assert titles(found) == {5: "Five", 6: "Six"}


def test_numbers_and_text_for_the_same_ids_become_text(tmp_path):
    write(tmp_path / "items.jsonl", as_lines({"item_id": "5", "title": "Five"}, {"item_id": "x", "title": "Ex"}))
    pl.DataFrame({"user_id": [1, 2], "item_id": [5, 6], "timestamp": [1, 2]}).write_parquet(
        tmp_path / "interactions.parquet"
    )
    found = read_source(tmp_path)
    assert titles(found) == {"5": "Five", "x": "Ex"}
    assert rows(found) == [(1, "5", 1), (2, "6", 2)]


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ([5, 7], [5, 7]),
        ([5, 7.0, None], [5, 7]),
        (["5", "7"], ["5", "7"]),
        ([5, "x"], ["5", "x"]),
        ([*range(10_001), "x"], [*map(str, range(10_001)), "x"]),
        ([2**64 - 1, 5], ["18446744073709551615", "5"]),
    ],
    ids=["numbers", "numbers with a gap", "text", "both", "text after 10,001 numbers", "unsigned hashes"],
)
def test_ids_of_json_are_numbers_only_where_all_are(tmp_path, users, expected):
    """The whole log decides, as for CSV; ids that are written as text stay text."""
    write(tmp_path / "items.jsonl", as_lines({"item_id": 1, "title": "One"}))
    write(tmp_path / "interactions.jsonl", as_lines(*({"user_id": user, "item_id": 1} for user in users)))
    found = read_source(tmp_path)
    assert [user for user, *_ in rows(found)] == expected
    assert found.dropped == ({"missing_value": 1} if None in users else {})


def test_json_may_change_how_it_writes_times_and_ratings(tmp_path):
    write(tmp_path / "items.jsonl", as_lines({"item_id": 1, "title": "One"}))
    write(tmp_path / "interactions.jsonl", as_lines(
        *({"user_id": i, "item_id": 1, "timestamp": 1717149600.5, "rating": 4} for i in range(10_000)),
        {"user_id": 10_000, "item_id": 1, "timestamp": "2024-05-31T10:00:00Z", "rating": "4.5"}))  # fmt: skip
    found = read_source(tmp_path)
    assert rows(found)[-2:] == [(9_999, 1, 1717149600.5, 4.0), (10_000, 1, 1717149600, 4.5)]
    assert found.dropped == {}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_whole_numbers_above_those_with_a_sign_are_text(tmp_path, kind, monkeypatch):
    """Also where such an id comes late in a file: the first rows alone would be numbers."""
    monkeypatch.setattr("llm4dsr.data.sources.tables.BATCH_ROWS", 2)
    hashes = pl.Series([5, 6, 2**63 - 1, 2**63], dtype=pl.UInt64)
    items = pl.DataFrame({"item_id": hashes, "title": ["A", "B", "C", "D"]})
    log = pl.DataFrame({"user_id": hashes, "item_id": hashes})
    write_as = {"parquet": "write_parquet", "jsonl": "write_ndjson", "csv": "write_csv"}[kind]
    getattr(log, write_as)(tmp_path / f"interactions.{kind}")
    items.write_parquet(tmp_path / "items.parquet")
    text = ["5", "6", "9223372036854775807", "9223372036854775808"]
    for found in (read_source(tmp_path), from_frames(log, items)):
        assert rows(found) == [(id, id, None) for id in text]
        assert titles(found) == dict(zip(text, "ABCD", strict=True))


def test_a_single_table_with_a_title_in_each_row(tmp_path):
    path = write(tmp_path / "plays.jsonl", as_lines(
        {"user_id": "u", "item_id": 1, "title": "One", "timestamp": 10.5},
        {"user_id": "u", "item_id": 2, "timestamp": 11},
        "{broken", {"user_id": "v", "item_id": 1, "title": "Uno", "timestamp": 12}))  # fmt: skip
    found = read_source(path)
    assert titles(found) == {1: "One"}
    assert rows(found) == [("u", 1, 10.5), ("u", 2, 11), ("v", 1, 12)]
    assert found.dropped == {"bad_line": 1}


def test_parquet_keeps_what_is_known_of_noise(tmp_path):
    pl.DataFrame({
        "user_id": ["u", "u"], "item_id": [1, 2], "timestamp": [dt.datetime(2024, 1, 1), None], "noise_mask": [0, 1],
        "clean_item_id": [1, 1],
    }).write_parquet(tmp_path / "interactions.parquet")  # fmt: skip
    pl.DataFrame({"item_id": [1, 2], "title": ["One", "Two"]}).write_parquet(tmp_path / "items.parquet")
    (batch,) = read_source(tmp_path).batches()
    assert batch.rows() == [("u", 1, dt.datetime(2024, 1, 1), 0, 1), ("u", 2, None, 1, 1)]
    assert batch.columns == ["user_id", "item_id", "timestamp", "noise_mask", "clean_item_id"]


def test_a_quoted_field_may_hold_line_breaks_and_separators(tmp_path):
    write(tmp_path / "items.csv", 'item_id,title\na,"Two\nlines, and ""quotes"""\nb,5" tape\n')
    write(tmp_path / "interactions.csv", "user_id,item_id\nu,a\n")
    found = read_source(tmp_path)
    assert titles(found) == {"a": 'Two\nlines, and "quotes"', "b": '5" tape'}
    assert rows(found) == [("u", "a", None)]


def frames() -> tuple[pl.DataFrame, pl.DataFrame]:
    log = pl.DataFrame({"user_id": ["u", None, "v"], "item_id": [1, 1, 2], "timestamp": ["2024-01-01", "", "noon"]})
    return log, pl.DataFrame({"item_id": [1, 2, 2], "title": ["One", "Two", "Zwei"]})


@pytest.mark.parametrize("convert", [lambda f: f, pl.DataFrame.lazy, pl.DataFrame.to_pandas, pl.DataFrame.to_arrow])
def test_tables_in_memory(convert):
    log, items = frames()
    found = from_frames(convert(log), convert(items))
    assert titles(found) == {1: "One", 2: "Two"}
    assert found.dropped_items == {"repeated_item": 1}
    assert rows(found) == [("u", 1, 1704067200)]
    assert found.dropped == {"bad_line": 1, "missing_value": 1}


def test_pandas_numbers_with_gaps_are_still_numbers():
    log = pd.DataFrame(
        {"user_id": [3.0, None], "item_id": pd.Categorical(["a", "b"]), "timestamp": pd.to_datetime(["2024", "2025"])}
    )
    found = from_frames(log, pd.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"]}))
    assert rows(found) == [(3, "a", 1704067200)]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ([1, 2], "of type list; expected a table of Polars, pandas or Arrow"),
        (pl.DataFrame({"user_id": [1]}), "'item_id' is missing"),
        (pl.DataFrame({"user_id": [1.5], "item_id": [1]}), "type Float64; expected ids that are whole numbers or text"),
        (pl.DataFrame({"user_id": [[1]], "item_id": [1]}), "'user_id' of the interactions has the type List"),
        (pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [dt.time(1)]}), "expected a number, a date"),
        (pa.table({"user_id": [1], "item_id": [1], "rating": [[1]]}), "'rating' of the interactions has the type List"),
    ],
)  # fmt: skip
def test_tables_in_memory_that_cannot_be_used(log, message):
    with pytest.raises(DataError, match=message):
        from_frames(log, pl.DataFrame({"item_id": [1], "title": ["One"]}))


@given(st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)).map(lambda t: t.replace(microsecond=0)))
def test_a_time_is_the_same_however_it_is_written(time):
    seconds = int((time - dt.datetime(1970, 1, 1)).total_seconds())
    texts = [time.isoformat(), time.isoformat(" "), f"{time.isoformat()}Z", f"{time.isoformat()}+00:00", str(seconds),
             time.strftime("%a %b %d %H:%M:%S +0000 %Y") if time.year >= 1000 else str(seconds)]  # fmt: skip
    assert reading.to_seconds(pl.Series("timestamp", texts), "x").to_list() == [seconds] * len(texts)
    assert reading.to_seconds(pl.Series("timestamp", [time]), "x").to_list() == [seconds]


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2024-05-31T10:00", 10),
        ("2024-05-31 10:00", 10),
        ("2024-05-31T10:00Z", 10),
        ("2024-05-31T10:00+02:00", 8),
        ("2024-05-31 10:00+02", 8),
        ("2024-05-31 10:00:00+00", 10),
        ("2024-05-31 10:00:00.000+02", 8),
        ("2024-05-31T10:00:00-0330", 13.5),
    ],
)
def test_iso_text_without_seconds_and_with_short_zones(text, hour):
    """PostgreSQL leaves out the minutes of a zone."""
    assert reading.to_seconds(pl.Series("timestamp", [text]), "x").to_list() == [1717113600 + hour * 3600]


@pytest.mark.parametrize("text", ["10/11/2024", "10/24/2024", "24.10.2024 00:09", "11-10-2024", "soon"])
def test_what_may_be_another_day_is_no_time(text):
    times = pl.Series("timestamp", ["2024-10-11 00:00:00", text, None, ""])
    assert reading.to_seconds(times, "x").to_list()[1:] == [None, None, None]
    with pytest.raises(DataError, match=rf"'timestamp' of the log has '{text}', and 0 other value"):
        reading.readable_microseconds(times, "the log")


def test_rows_with_unreadable_times_are_told(tmp_path, caplog):
    """With examples, whether some of them are or all."""
    log = pl.DataFrame({"user_id": [u for u in range(40) for _ in range(6)],
                        "item_id": [i % 30 for i in range(240)], "title": [f"Toy {i % 30}" for i in range(240)],
                        "timestamp": [f"2024-05-31 10:{i % 60:02}:00" for i in range(240)]})  # fmt: skip
    odd = log.with_columns(timestamp=pl.when(pl.col("user_id") < 5).then(pl.lit("10/24/2024")).otherwise("timestamp"))
    odd.write_csv(tmp_path / "log.csv")
    report = prepare(read_source(tmp_path / "log.csv"), tmp_path / "windows", PrepareOptions(k_core=0))
    assert report["unreadable"]["interactions"] == {"bad_line": 30}
    assert "30 of bad_line (log.csv, timestamp '10/24/2024')" in caplog.text
    log.with_columns(timestamp=pl.lit("10/24/2024")).write_csv(tmp_path / "log.csv")
    with pytest.raises(
        DataError, match=r"no interactions that can be read: 240 of bad_line \(log.csv, timestamp '10/24"
    ):
        prepare(read_source(tmp_path / "log.csv"), tmp_path / "more", PrepareOptions(k_core=0))


def test_large_numbers_are_milliseconds_and_smaller_units():
    given = pl.Series(
        "timestamp", [1_700_000_000, 1_700_000_000_999, 1_700_000_000_999_999, 1_700_000_000_999_999_999, -5]
    )
    assert reading.to_seconds(given, "x").to_list() == [1_700_000_000] * 4 + [-5]
    thousandths = [0, 999_000, 999_999, 999_999]
    exact = [1_700_000_000_000_000 + more for more in thousandths] + [-5_000_000]
    assert reading.to_microseconds(given, "x").to_list() == exact
    # A float holds 15 digits, and text of a number is read as one.
    assert reading.to_microseconds(pl.Series("timestamp", [1_700_000_000.25, None]), "x").to_list() == [
        1_700_000_000_250_000, None
    ]  # fmt: skip
    assert reading.to_microseconds(pl.Series("timestamp", ["1700000000999", "2023-11-14T22:13:20.999Z"]), "x").to_list(
    ) == [1_700_000_000_999_000] * 2  # fmt: skip
