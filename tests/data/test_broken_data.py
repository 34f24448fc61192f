"""Hundreds of ways to break a data folder: a report with errors each time, never a traceback, nothing left behind.

A seeded mutator breaks one file of a small valid folder, in each form and file format. Whatever comes out is either
still readable, or refused: `validate` says that there is an error, and `read_data` raises a DataError.
"""

import gzip
import json
import shutil

import numpy as np
import polars as pl
import pytest

from llm4dsr.data.read import read_data
from llm4dsr.data.validate.checks import validate
from llm4dsr.errors import DataError

EACH = 42  # mutants of each form and format
KINDS = [("log", "parquet"), ("log", "csv"), ("log", "jsonl"), ("windows", "parquet"), ("windows", "jsonl")]


# --- a small valid folder --------------------------------------------------------------------------------------------


def tables(form: str) -> dict[str, pl.DataFrame]:
    items = pl.DataFrame({"item_id": list("abcdefgh"), "title": [f"Toy {letter}" for letter in "ABCDEFGH"]})
    if form == "log":
        turns = [
            (f"u{u}", "abcdefgh"[(u + 3 * t) % 8], 1_700_000_000 + 100 * t + u) for u in range(12) for t in range(12)
        ]
        return {"items": items, "interactions": pl.DataFrame(turns, ["user_id", "item_id", "timestamp"], orient="row")}
    windows = {"items": items}
    for i, name in enumerate(("train", "valid", "test")):  # clean items differ from the items here and there
        lists = [["abcdefgh"[(i + 5 * w + 3 * t) % 8] for t in range(6)] for w in range(8)]
        clean = [[item if (w + t) % 4 or t == 5 else "a" for t, item in enumerate(row)] for w, row in enumerate(lists)]
        windows[name] = pl.DataFrame({
            "window_id": range(8), "user_id": [f"{name}{w}" for w in range(8)], "item_ids": lists,
            "timestamp": [1_700_000_000 + 1000 * i + w for w in range(8)], "clean_item_ids": clean,
            "noise_mask": [[int(a != b) for a, b in zip(x, y, strict=True)] for x, y in zip(lists, clean, strict=True)],
        })  # fmt: skip
    return windows


def save(frame: pl.DataFrame, path) -> None:
    write = {".parquet": frame.write_parquet, ".csv": frame.write_csv, ".jsonl": frame.write_ndjson}
    write[path.suffix](path)


@pytest.mark.parametrize(("form", "end"), KINDS)
def test_the_folder_that_is_going_to_be_broken_is_valid(tmp_path, form, end):
    for name, frame in tables(form).items():
        save(frame, tmp_path / f"{name}.{end}")
    report = validate(tmp_path)
    assert report.ok(), report.text()
    assert {finding.code for finding in report.warnings} <= {"few_windows", "marked_clean", "noisy_target"}
    read_data(tmp_path)


# --- ways to break a table -------------------------------------------------------------------------------------------


def drop_column(frame, column, rng):
    return frame.drop(column)


def rename_column(frame, column, rng):
    return frame.rename({column: rng.choice([column.upper(), f" {column}", "", "x" * 300, f"{column}\x00", "\x1b[2J"])})


def other_type(frame, column, rng):
    n = len(frame)
    values = [
        pl.Series([f"text {i}" for i in range(n)]), pl.Series(range(n)), pl.Series([0.5] * n), pl.Series([True] * n),
        pl.Series([b"\xff\x00"] * n), pl.Series([None] * n), pl.Series([{"a": 1}] * n), pl.Series([[[1], [2]]] * n),
        pl.Series([["a", "b"]] * n), pl.Series([[1.5, None]] * n), pl.Series(["x"] * n, dtype=pl.Categorical),
        pl.Series([0] * n).cast(pl.Date), pl.Series([0] * n).cast(pl.Time), pl.Series([0] * n).cast(pl.Duration("us")),
        pl.Series([0] * n).cast(pl.Datetime("ns")), pl.Series([1] * n).cast(pl.Decimal(10, 2)),
        pl.Series([[1, 2]] * n, dtype=pl.Array(pl.Int64, 2)), pl.Series([2**64 - 1] * n, dtype=pl.UInt64),
        pl.Series([[]] * n, dtype=pl.List(pl.Null)), pl.Series([["a"], []] * n)[:n],
        pl.Series([[{"a": "b"}]] * n), pl.Series([[True, False]] * n), pl.Series([[b"a", b"b"]] * n),
    ]  # fmt: skip
    return frame.with_columns(values[rng.integers(len(values))].alias(column))


def some_null(frame, column, rng):
    return frame.with_columns(pl.when(pl.Series(rng.random(len(frame)) < 0.5)).then(pl.col(column)).alias(column))


def odd_values(frame, column, rng):
    """Values of the same type that make no sense."""
    kind, at = frame.schema[column], pl.int_range(pl.len()) % 3 == 0
    if kind == pl.String:
        odd = pl.lit(
            rng.choice(["", "?", "\x1b[31m", "NaN", "null", "ｆｕｌｌ", "🚂", "\u202e", "x" * 20_000, "a\nb", '"'])
        )
    elif kind.is_integer():
        odd = pl.lit(int(rng.choice([-1, -(2**63), 2**63 - 1, 0, 1_700_000_000_000])), dtype=pl.Int64)
    elif kind.inner.is_integer():
        odd = pl.lit(pl.Series([[[2] * 6, [-1] * 6, [0], [None] * 6, []][rng.integers(5)]], dtype=pl.List(pl.Int64)))
    else:
        odd = pl.lit(
            pl.Series([[["?"] * 6, ["a"], [], [None] * 6, ["a"] * 50][rng.integers(5)]], dtype=pl.List(pl.String))
        )
    return frame.with_columns(pl.when(at).then(odd).otherwise(pl.col(column)).alias(column))


def decimals(frame, column, rng):
    values = [[np.nan], [np.inf], [-np.inf], [1e300], [0.5]][rng.integers(5)]
    return frame.with_columns(pl.Series(column, values * len(frame)))


def rows_twice(frame, column, rng):
    return pl.concat([frame, frame[: rng.integers(1, len(frame))]])


def no_rows(frame, column, rng):
    return frame.clear()


def few_rows(frame, column, rng):
    return frame[: rng.integers(1, 4)]


def nested(frame, column, rng):
    return frame.with_columns(pl.concat_list(pl.col(column)).alias(column))


def cut_lists(frame, column, rng):
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List)]
    column = rng.choice(lists) if lists else column
    return frame.with_columns(pl.col(column).list.head(rng.integers(4)) if lists else pl.col(column).first())


TABLE = [drop_column, rename_column, other_type, other_type, other_type, some_null, odd_values, odd_values, decimals,
         rows_twice, no_rows, few_rows, nested, cut_lists]  # fmt: skip


# --- ways to break a file --------------------------------------------------------------------------------------------


def cut_short(path, data, rng):
    path.write_bytes(data[: rng.integers(len(data))])


def flipped(path, data, rng):
    broken = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 30)):
        broken[place] = rng.integers(256)
    path.write_bytes(broken)


def noise(path, data, rng):
    path.write_bytes(rng.bytes(rng.integers(1, 2_000)))


def begins_right(path, data, rng):
    path.write_bytes(data[:4] + rng.bytes(rng.integers(1, 500)) + data[-8:])


def garbage_behind(path, data, rng):
    path.write_bytes(data + rng.bytes(50))


def empty(path, data, rng):
    path.write_bytes(b"")


def zipped_and_cut(path, data, rng):
    whole = gzip.compress(data)
    path.write_bytes(whole[: rng.integers(12, len(whole))])


def encoded(path, data, rng):
    text = data.decode("utf-8", "ignore").replace("Toy", "Jouet à l'été").replace("u1", "ü1")
    path.write_bytes(text.encode(rng.choice(["latin-1", "utf-16", "utf-32", "utf-8-sig"]), "replace"))


def other_format(path, data, rng):
    ends = [end for end in (".parquet", ".csv", ".jsonl") if end != path.suffix]
    path.rename(path.with_suffix(rng.choice(ends)))


def both_formats(path, data, rng):
    path.with_suffix(rng.choice([end for end in (".parquet", ".csv", ".jsonl") if end != path.suffix])).write_bytes(
        data
    )


def gone(path, data, rng):
    path.unlink()


def a_folder(path, data, rng):
    path.unlink()
    path.mkdir()


def dangling(path, data, rng):
    path.unlink()
    path.symlink_to("nowhere")


def lines(path, data, rng):
    """Text with odd lines in the middle; of Parquet, text in its place."""
    odd = [
        b"", b"{", b"[1, 2]", b'"text"', b"null", b"1,2,3,4,5,6,7,8,9", b'"', b"\x00\x00", b"\xff\xfe", b"a;b;c",
        json.dumps({"item_id": {"a": [1]}, "user_id": [1], "item_ids": "abc", "title": 5}).encode(),
        b'{"item_id": 1e999, "title": NaN}', b'{"item_id": "a", "item_id": "b", "title": "twice", "title": "thrice"}',
        b'{"item_ids": [["a"], [["b"]]], "window_id": "x"}', b"[" * 3_000, b'{"a":' * 200 + b"1" + b"}" * 200,
        b'{"window_id": 99999999999999999999999, "title": "\\ud800"}',
    ]  # fmt: skip
    given = data.split(b"\n")
    given.insert(rng.integers(1, len(given)), odd[rng.integers(len(odd))])
    path.write_bytes(b"\n".join(given))


FILE = [cut_short, cut_short, flipped, flipped, noise, begins_right, garbage_behind, empty, zipped_and_cut, encoded,
        other_format, both_formats, gone, a_folder, dangling, lines, lines, lines]  # fmt: skip


def broken(folder, form: str, end: str, seed: int) -> str:
    """Makes a folder with one thing broken, and says what."""
    rng, made = np.random.default_rng(seed), tables(form)
    target = str(rng.choice(list(made)))
    said = target
    if rng.random() < 0.55:
        how, column = TABLE[rng.integers(len(TABLE))], str(rng.choice(made[target].columns))
        made[target] = how(made[target], column, rng)
        said = f"{how.__name__} of {target}.{column}"
        if end != "parquet":  # text has no bytes and no durations, and csv no lists
            odd = [name for name, kind in made[target].schema.items() if kind in (pl.Binary, pl.Duration, pl.Time)
                   or (kind.is_nested() and (end == "csv" or "Binary" in str(kind)))]  # fmt: skip
            made[target] = made[target].with_columns([pl.Series(n, [str(v) for v in made[target][n]]) for n in odd])
    for name, frame in made.items():
        save(frame, folder / f"{name}.{end}")
    if said == target:  # nothing yet
        path, how = folder / f"{target}.{end}", FILE[rng.integers(len(FILE))]
        how(path, path.read_bytes(), rng)
        said = f"{how.__name__} of the file {target}"
    return said


@pytest.mark.parametrize(("form", "end"), KINDS)
def test_broken_data_is_reported_and_refused(tmp_path, form, end, capfd):
    wrong, refused = [], 0
    for seed in range(EACH):
        folder = tmp_path / str(seed)
        folder.mkdir()
        said = broken(folder, form, end, seed)
        before = {path.name: path.is_dir() or path.is_symlink() or path.read_bytes() for path in folder.iterdir()}
        try:
            report = validate(folder)
            readable = True
            try:
                read_data(folder)
            except DataError as error:
                readable, refused = False, refused + 1
                if not str(error).endswith((".", "?")) or not str(error).isprintable():
                    wrong.append(f"{seed} {said}: {error}")
            if not report.errors and not readable:
                wrong.append(f"{seed} {said}: no error in the report, but it cannot be read")
            if "unreadable" in [finding.code for finding in report.errors] and (
                readable or (end == "parquet" and "the file" not in said)
            ):
                wrong.append(f"{seed} {said}: a check of what can be read has failed: {report.text()}")
            if not report.text().replace("\n", "").isprintable():
                wrong.append(f"{seed} {said}: the report has control characters")
            json.dumps(report.to_dict())
        except BaseException as error:
            wrong.append(f"{seed} {said}: {type(error).__name__} {str(error)[:200]}")
        after = {path.name: path.is_dir() or path.is_symlink() or path.read_bytes() for path in folder.iterdir()}
        if before != after:
            wrong.append(f"{seed} {said}: files were left behind or changed")
        shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)
    assert refused > EACH // 3  # the mutator does break things
    assert "Traceback" not in capfd.readouterr().err
