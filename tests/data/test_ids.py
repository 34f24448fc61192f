"""Ids: whole numbers that became floats, and messages about ids that do not match."""

import polars as pl
import pytest

from llm4dsr import columns as c
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.describe import describe
from llm4dsr.data.ids import explain_mismatch, text_ids, whole_numbers
from llm4dsr.data.prepare import PrepareOptions, prepare
from llm4dsr.data.read import as_windows, read_data
from llm4dsr.data.sources import read_source
from llm4dsr.data.validate.checks import validate
from llm4dsr.errors import DataError

NUMBERS = list(range(61, 69))
ITEMS = pl.DataFrame({"item_id": NUMBERS, "title": [f"Toy {i}" for i in NUMBERS]})
LOG = pl.DataFrame(
    [(u, NUMBERS[(u + 3 * t) % 8], 1_600_000_000 + 100 * t + u) for u in range(12) for t in range(12)],
    schema=["user_id", "item_id", "timestamp"], orient="row",
)  # fmt: skip
AS_FLOAT = pl.col("item_id").cast(pl.Float64)


def write(folder, end="parquet", **frames):
    folder.mkdir(exist_ok=True)
    for name, frame in frames.items():
        getattr(frame, {"parquet": "write_parquet", "csv": "write_csv", "jsonl": "write_ndjson"}[end])(
            folder / f"{name}.{end}"
        )
    return folder


@pytest.mark.parametrize("end", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("floats", ["interactions", "items"])
def test_floats_that_are_whole_match_integers(tmp_path, end, floats):
    frames = {"interactions": LOG, "items": ITEMS}
    path = write(tmp_path, end, **{**frames, floats: frames[floats].with_columns(AS_FLOAT)})
    assert read_data(path).catalogue.ids.to_list() == NUMBERS
    assert validate(path, strict=True).errors == []
    assert describe(path)["unknown"] == 0
    found = read_source(path)
    assert found.items["item_id"].to_list() == NUMBERS
    (batch,) = found.batches()
    assert batch["item_id"].to_list() == LOG["item_id"].to_list()


def test_lists_and_tables_in_memory_match_too(tmp_path):
    catalogue = Catalogue.from_frame(ITEMS.with_columns(AS_FLOAT))
    assert catalogue.ids.to_list() == NUMBERS
    assert as_windows([[61.0, 62.0], [63, 64]], catalogue).items.tolist() == [0, 1, 2, 3]
    frame = pl.DataFrame({"window_id": [0], "user_id": [7], "item_ids": [[61.0, 68.0]]})
    write(tmp_path, items=ITEMS, train=frame, valid=frame, test=frame)
    assert read_data(tmp_path).splits[c.TRAIN].items.tolist() == [0, 7]


def test_nothing_is_guessed_beyond_that():
    assert whole_numbers(pl.Series([1.5, 2.0])).to_list() == [1.5, 2.0]
    assert whole_numbers(pl.Series([1.0, float("nan"), None])).to_list() == [1, None, None]
    assert whole_numbers(pl.Series([2.0**60])).dtype == pl.Float64  # other numbers round to the same float
    for ids in (["061", "62"], ["61.5", "62"], ["61.00", "62"], [" 61", "62"], ["x", "61.0"]):
        assert text_ids(pl.Series(ids)).to_list() == ids
    assert text_ids(pl.Series(["61.0", "62", ""])).to_list() == [61, 62, None]


def test_numbers_of_a_file_without_types_are_text_where_the_other_has_text(tmp_path):
    more = pl.concat([ITEMS.with_columns(pl.col("item_id").cast(pl.String)), pl.DataFrame([("x7", "Seven")],
                     schema=["item_id", "title"], orient="row")])  # fmt: skip
    path = write(tmp_path, "csv", interactions=LOG, items=more)
    assert read_data(path).catalogue.ids.to_list() == [str(i) for i in NUMBERS]
    assert validate(path).errors == []


REASONS = [
    (["061", "062"], [61, 62], "without leading zeros"),
    (["61.0", "62.0"], [61, 62], "without the decimals"),
    ([61, 62], ["61", "62"], "match as text"),
    (["a ", "b"], ["a", " b"], "without the spaces"),
    (["a1", "b1"], ["A1", "B1"], "in lower case"),
    ([" A61 ", "B62"], ["a61", "b62 "], "without spaces, case, decimals and leading zeros"),
    (["a", "b"], ["x", "y"], "No spelling of the ids makes them match"),
]


@pytest.mark.parametrize(("given", "known", "reason"), REASONS)
def test_the_likely_reason_is_told(given, known, reason):
    said = explain_mismatch(pl.Series(given), pl.Series(known), "the log")
    assert reason in said
    assert f"Ids of the log: {given[0]!r}, {given[1]!r}" in said
    assert f"Ids of the items: {known[0]!r}, {known[1]!r}" in said


def test_another_column_of_the_items_is_found(tmp_path):
    items = ITEMS.with_columns(asin=pl.col("item_id"), item_id=pl.col("item_id") + 1000)
    path = write(tmp_path, "csv", interactions=LOG, items=items)
    message = r"The column 'asin' of the items matches them.*--column item_id=asin"
    with pytest.raises(DataError, match=message):
        read_data(path)
    with pytest.raises(DataError, match=r"unknown_item 144. Ids of the log: .*" + message):
        prepare(read_source(path), tmp_path / "out")
    found = read_source(path, columns={"item_id": "asin"})
    assert prepare(found, tmp_path / "out")["interactions"]["out"] == 144


def test_a_log_that_hardly_matches_is_a_warning(tmp_path, caplog):
    half = LOG.with_columns(item_id=pl.when(pl.col("item_id") > 64).then(pl.col("item_id") + 1000).otherwise("item_id"))
    most = pl.concat([half, half.filter(pl.col("item_id") > 1000).with_columns(pl.col("timestamp") + 9)])
    path = write(tmp_path, interactions=most, items=ITEMS)
    with caplog.at_level("WARNING", logger="llm4dsr"):
        prepare(read_source(path), tmp_path / "out", PrepareOptions(k_core=0))
    assert "140 of 214 interactions are of unknown items. Ids of the log: 1067, 1065, 1068 (numbers)" in caplog.text


def test_validate_tells_the_reason(tmp_path):
    zeros = ITEMS.with_columns(pl.col("item_id").cast(pl.String).str.zfill(5))
    (finding,) = validate(write(tmp_path, "csv", interactions=LOG, items=zeros)).errors
    assert finding.code == "unknown_item"
    assert "They match without leading zeros" in finding.advice
    (finding,) = validate(write(tmp_path / "typed", interactions=LOG, items=zeros)).errors
    assert finding.code == "id_type"
    assert "They match without leading zeros" in finding.advice
