"""Records that are not changed keep their bytes, whatever the file looks like."""

import codecs
import gzip
import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm4dsr.errors import DataError
from llm4dsr.export.log_files import LogEdits, LogFile

COLUMNS = {"user_id": "visitor", "item_id": "sku", "title": "name"}
TEXT = (
    b'visitor,note,sku,name\r\n'
    b'v1,"two\r\nlines, with ""quotes""",s1,Red ball\r\n'
    b'v1,5" tape,s2,"Ball, blue"\r\n'
    b'\r\n'
    b'too,few\r\n'
    b'v2,,s3,A train'
)  # fmt: skip
# Records 0 to 4: two of v1, an empty line, a bad line, one of v2


def edits(dropped=(), replaced=None, weights=None, size=5) -> LogEdits:
    gone = np.zeros(size, dtype=bool)
    gone[list(dropped)] = True
    return LogEdits(gone, replaced or {}, None if weights is None else np.array(weights))


def written(tmp_path, name: str, content: bytes, change: LogEdits, columns=COLUMNS) -> bytes:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    file = LogFile(tmp_path / "in" / name, columns)
    assert file.write(tmp_path / name, change, 0) == len(change.dropped)
    return (tmp_path / name).read_bytes()


def test_keys_have_a_row_for_each_record(tmp_path):
    (tmp_path / "log.csv").write_bytes(TEXT)
    (keys,) = LogFile(tmp_path / "log.csv", COLUMNS).read_keys()
    assert keys.rows() == [("v1", "s1"), ("v1", "s2"), (None, None), (None, None), ("v2", "s3")]


@pytest.mark.parametrize(("separator", "rating"), [(";", "3.5"), ("\t", "3.5"), (",", None)])
def test_ratings_may_have_a_decimal_comma_where_no_comma_separates(tmp_path, separator, rating):
    rows = [["visitor", "sku", "rating"], ["v1", "s1", '"3,5"'], ["v1", "s2", "4"]]
    (tmp_path / "log.csv").write_text("\n".join(separator.join(row) for row in rows))
    (keys,) = LogFile(tmp_path / "log.csv", COLUMNS).read_keys()
    assert keys["rating"].to_list() == [rating or "3,5", "4"]


def test_nothing_changed_is_the_same_file(tmp_path):
    assert written(tmp_path, "log.csv", TEXT, edits()) == TEXT


def test_a_dropped_record_takes_its_line_breaks_along(tmp_path):
    got = written(tmp_path, "log.csv", TEXT, edits(dropped=[0]))
    assert got == TEXT.replace(b'v1,"two\r\nlines, with ""quotes""",s1,Red ball\r\n', b"")


def test_another_item_changes_its_record_alone(tmp_path):
    got = written(tmp_path, "log.csv", TEXT, edits(replaced={1: ("s9", 'A "new", one')}))
    assert got == TEXT.replace(b'5" tape,s2,"Ball, blue"', b'"5"" tape",s9,"A ""new"", one"')


def test_weights_are_a_last_column(tmp_path):
    got = written(tmp_path, "log.csv", TEXT, edits(weights=[1, 0.25, 1, 1, 0.123456789]))
    expected = TEXT.replace(b"sku,name", b"sku,name,weight").replace(b"Red ball", b"Red ball,1")
    expected = expected.replace(b'"Ball, blue"', b'"Ball, blue",0.25').replace(b"A train", b"A train,0.123457")
    assert got == expected


def test_a_column_of_that_name_is_kept(tmp_path):
    text = b"visitor\tsku\tweight\nv1\ts1\t3\n"
    got = written(tmp_path, "log.tsv", text, edits(weights=[0.5], size=1), {"user_id": "visitor", "item_id": "sku"})
    assert got == b"visitor\tsku\tweight\tweight_llm4dsr\nv1\ts1\t3\t0.5\n"


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, b""])
def test_byte_order_marks_and_gzip(tmp_path, mark):
    packed = written(tmp_path, "log.csv.gz", gzip.compress(mark + TEXT), edits(dropped=[1]))
    assert gzip.decompress(packed) == mark + TEXT.replace(b'v1,5" tape,s2,"Ball, blue"\r\n', b"")


def test_utf16_stays_utf16(tmp_path):
    text = "visitor\tsku\r\nv1\tsé\r\nv2\ts2\r\n"
    got = written(tmp_path, "log.txt", text.encode("utf-16"), edits(dropped=[1], size=2))
    assert got.decode("utf-16") == "visitor\tsku\r\nv1\tsé\r\n"


def test_json_lines(tmp_path):
    lines = [{"visitor": 1, "sku": 5, "name": "é", "more": {"a": [1]}}, {"sku": 6, "visitor": 1, "name": "x"}]
    content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode() + b"\n\nno json\n"
    got = written(tmp_path, "log.jsonl", content, edits(replaced={1: (7, "y")}, weights=[0.5, 1, 1, 1], size=4))
    assert got.splitlines()[2:] == [b"", b"no json"]
    assert got.splitlines()[0] == content.splitlines()[0][:-1] + b', "weight": 0.5}'
    assert [json.loads(line) for line in got.splitlines()[:2]] == [
        lines[0] | {"weight": 0.5}, {"sku": 7, "visitor": 1, "name": "y", "weight": 1},
    ]  # fmt: skip


def test_json_records_need_not_be_alike(tmp_path):
    """A record without title, ids that are numbers and text, and a record without keys."""
    content = b'{"visitor":1,"sku":5}\n{"visitor":1,"sku":6,"name":"B"}\n{"visitor":1,"sku":7,"name":1984}\n{}\n'
    new = {0: ("s9", "Nine"), 1: ("5", "Five"), 2: ("007", "James")}
    got = written(tmp_path, "log.jsonl", content, edits(replaced=new, weights=[1, 1, 1, 0.5], size=4))
    assert [json.loads(line) for line in got.splitlines()] == [
        {"visitor": 1, "sku": "s9", "name": "Nine", "weight": 1}, {"visitor": 1, "sku": 5, "name": "Five", "weight": 1},
        {"visitor": 1, "sku": "007", "name": "James", "weight": 1}, {"weight": 0.5},
    ]  # fmt: skip


def test_characters_that_json_escapes_stay_escaped(tmp_path):
    content = b'{"visitor": 1, "sku": 5, "note": "half a pair: \\ud83d"}\n'
    got = written(tmp_path, "log.jsonl", content, edits(replaced={0: (7, "")}, size=1))
    assert got == content.replace(b"5", b"7")


def test_parquet_keeps_its_schema_and_row_groups(tmp_path):
    table = pa.table({
        "visitor": pa.array([1, 1, 2, 2], pa.int32()), "sku": pa.array(["a", "b", "a", "c"]).dictionary_encode(),
        "name": ["A", "B", "A", "C"], "price": pa.array([1.5, None, 2, 3], pa.float32()),
    }).replace_schema_metadata({"made": "by hand"})  # fmt: skip
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=3, compression="gzip")
    file = LogFile(tmp_path / "log.parquet", COLUMNS)
    assert file.write(tmp_path / "out.parquet", edits([0], {3: ("b", "B")}, size=4), 0) == 4
    got = pq.read_table(tmp_path / "out.parquet")
    assert got.schema.equals(table.schema, check_metadata=True)
    assert got.drop_columns(["sku", "name"]).equals(table.drop_columns(["sku", "name"]).slice(1))
    assert (got["sku"].to_pylist(), got["name"].to_pylist()) == (["b", "a", "b"], ["B", "A", "B"])
    meta = pq.read_metadata(tmp_path / "out.parquet")
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [2, 1]
    assert meta.row_group(0).column(0).compression == "GZIP"
    file.write(tmp_path / "weights.parquet", edits(weights=[1, 0.5, 1, 1], size=4), 0)
    assert pl.read_parquet(tmp_path / "weights.parquet")["weight"].to_list() == [1, 0.5, 1, 1]


@pytest.mark.parametrize("item", ["s9", "007", 2**40])
def test_an_id_that_a_column_of_parquet_cannot_hold_is_named(tmp_path, item):
    pl.DataFrame({"visitor": [1], "sku": pl.Series([5], dtype=pl.Int32)}).write_parquet(tmp_path / "log.parquet")
    file = LogFile(tmp_path / "log.parquet", COLUMNS)
    with pytest.raises(DataError, match=rf"'sku' of .*log.parquet has the type int32, .* new value {item!r}"):
        file.write(tmp_path / "out.parquet", edits(replaced={0: (item, "")}, size=1), 0)


def test_files_of_recbole_have_no_quotes(tmp_path):
    text = b'user_id:token\titem_id:token\trating:float\nu1\t"5\t3\nu2\tb\t4\n'
    got = written(tmp_path, "log.inter", text, edits(dropped=[1], weights=[0.5, 1], size=2), {})
    assert got == b'user_id:token\titem_id:token\trating:float\tweight:float\nu1\t"5\t3\t0.5\n'
