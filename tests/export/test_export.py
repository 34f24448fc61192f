"""A corrected run in the format of the next program."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4dsr.data.read import read_data
from llm4dsr.data.sources import read_source
from llm4dsr.errors import ConfigError, DataError, OutputError
from llm4dsr.export import ExportOptions, corrected_windows, export_run
from llm4dsr.export.log_rows import find_rows, log_origin

from ..tiny_run import make_run

LLM4DSR = Path(sys.executable).with_name("llm4dsr")


def records(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)[1:]


def changed_rows(scored, flagged) -> set[int]:
    return {row for row, count in flagged.items() if 2 * count >= scored[row]}


# --- the log ----------------------------------------------------------------------------------------------------------


def test_dropped_records_are_missing_and_all_others_keep_their_bytes(shop, votes, tmp_path):
    """By hand: a record goes if at least half of the windows that scored it flag it; so does one written twice."""
    path, run = shop
    told = export_run(run, "log", tmp_path / "out")
    scored, flagged = votes(run)
    assert sum(0 < flagged[row] < scored[row] for row in scored) > 0  # windows do not always agree
    gone = changed_rows(scored, flagged)
    before = records(path)
    texts = {before[row] for row in gone}
    assert records(tmp_path / "out" / "interactions.csv") == [line for line in before if line not in texts]
    assert told["dropped"] == sum(line in texts for line in before)
    assert told["judged"] == sum(before.count(before[row]) for row in {before[row]: row for row in scored}.values())
    changes = pl.read_csv(tmp_path / "out" / "changes.csv")
    assert set(changes["action"]) == {"drop"}
    lines = [before[row - 1].decode() for row in changes["record"]]
    assert [next(csv.reader([line]))[1] for line in lines] == changes["user_id"].to_list()
    assert (changes["flagged"] * 2 >= changes["windows"]).all()


def test_replaced_records_change_item_and_title_alone(shop, run, votes, tmp_path):
    run.correct("replace", overwrite=True)
    told = export_run(run, "log", tmp_path / "out")
    before, after = (pl.read_csv(p) for p in (shop[0], tmp_path / "out" / "interactions.csv"))
    others = ["note", "visitor", "when", "price"]
    assert after.select(others).equals(before.select(others))
    rows = np.flatnonzero((before["sku"] != after["sku"]).to_numpy()).tolist()
    assert len(rows) == told["replaced"] > 50
    scored, flagged = votes(run)
    assert changed_rows(scored, flagged) <= set(rows)
    titles = dict(before.select("sku", "name").iter_rows())
    assert [titles[sku] for sku in after["sku"]] == after["name"].to_list()
    changes = pl.read_csv(tmp_path / "out" / "changes.csv")
    assert after["sku"].gather(changes["record"] - 1).to_list() == changes["kept_item_id"].to_list()


def test_a_weight_is_the_last_column(shop, run, tmp_path):
    run.correct("downweight", overwrite=True)
    export_run(run, "log", tmp_path / "out")
    before, after = records(shop[0]), records(tmp_path / "out" / "interactions.csv")
    assert [line.rsplit(b",", 1)[0] for line in after] == [line.rstrip(b"\r\n") for line in before]
    weights = pl.read_csv(tmp_path / "out" / "interactions.csv")["weight"]
    changes = pl.read_csv(tmp_path / "out" / "changes.csv")
    assert (weights < 1).sum() == len(changes)
    expected = 1 - changes["noise_probability"]
    assert weights.gather(changes["record"] - 1).to_list() == pytest.approx(expected.to_list(), abs=1e-5)


def test_soft_weights_are_of_all_interactions(shop, tmp_path):
    """1 - the mean noise probability over windows; targets of validation and test were never scored."""
    _, run = shop
    export_run(run, "log", tmp_path / "out", ExportOptions(soft=True))
    weights = pl.read_csv(tmp_path / "out" / "interactions.csv")["weight"].to_numpy()
    data = run.data()
    rows = find_rows(log_origin(run), data.splits, data.catalogue)
    given = {}
    for name, windows in data.splits.items():
        keys = zip(windows.window_ids[windows.owners].tolist(), windows.positions.tolist(), strict=True)
        at = dict(zip(keys, rows.of_windows[name].tolist(), strict=True))
        for window, position, p in run.scores()[name].select("window_id", "position", "noise_probability").iter_rows():
            given.setdefault(at[window, position], []).append(p)
    expected = np.ones(len(weights))
    for row, of_windows in given.items():
        expected[row] = 1 - np.mean(of_windows)
    twin = rows.twins
    assert weights.tolist() == pytest.approx(expected[twin].tolist(), abs=1e-5)
    assert len(pl.read_csv(tmp_path / "out" / "changes.csv")) == 0


def test_training_windows_alone_decide_where_histories_stay(run, votes, tmp_path):
    run.correct("drop", overwrite=True, histories=False)
    export_run(run, "log", tmp_path / "out")
    changes = pl.read_csv(tmp_path / "out" / "changes.csv")
    scored, flagged = votes(run)
    assert changed_rows(scored, flagged) <= set((changes["record"] - 1).to_list())


# --- answers of a review ----------------------------------------------------------------------------------------------


def reviewed(run, rows, answer: str, is_noise: int):
    """Decide by answers about (split, window, position), and correct again."""
    table = pl.DataFrame(rows, schema=["split", "window_id", "position"], orient="row").with_columns(
        is_noise=pl.lit(is_noise), answer=pl.lit(answer), replacement_item_id=pl.lit(None, pl.String)
    )
    run.decide(overwrite=True, reviewed=table)
    run.correct("drop")


def row_of(run, split: str, window: int, position: int) -> int:
    data = run.data()
    rows, windows = find_rows(log_origin(run), data.splits, data.catalogue), data.splits[split]
    at = windows.offsets[np.flatnonzero(windows.window_ids == window)[0]] + position
    return int(rows.of_windows[split][at])


def test_an_answer_in_one_window_decides_for_all(shop, run, votes, tmp_path):
    """Flagged in all windows that have it, and said to belong there in one: it stays."""
    scored, flagged = votes(run)
    sure = {row for row, count in flagged.items() if count == scored[row] > 2}
    found = run.decisions()["train"].select("window_id", "position").rows()
    key = next(key for key in found if row_of(run, "train", *key) in sure)
    row = row_of(run, "train", *key)
    reviewed(run, [("train", *key)], "fits", 0)
    export_run(run, "log", tmp_path / "out")
    assert records(shop[0])[row] in records(tmp_path / "out" / "interactions.csv")


def test_what_is_not_their_taste_is_no_noise_but_can_be_left_out(shop, run, tmp_path):
    """One item of a window: the label is 0, it is not flagged, and it is gone only on demand."""
    key = run.decisions()["train"].select("window_id", "position").row(0)
    reviewed(run, [("train", *key)], "atypical", 0)
    assert key not in run.decisions()["train"].select("window_id", "position").rows()
    line = records(shop[0])[row_of(run, "train", *key)]
    export_run(run, "log", tmp_path / "kept")
    assert line in records(tmp_path / "kept" / "interactions.csv")
    export_run(run, "log", tmp_path / "left", ExportOptions(leave_out_atypical=True))
    assert line not in records(tmp_path / "left" / "interactions.csv")
    changes = pl.read_csv(tmp_path / "left" / "changes.csv")
    assert changes.filter(pl.col("action") == "leave out")["record"].to_list() == [row_of(run, "train", *key) + 1]


def test_a_whole_session_is_left_out_of_training(run, tmp_path):
    window = int(run.scores()["train"]["window_id"][40])
    positions = run.scores()["train"].filter(pl.col("window_id") == window)["position"].sort().to_list()
    reviewed(run, [("train", window, p) for p in positions[:-1]], "atypical", 0)
    before, after = corrected_windows(run), corrected_windows(run, ExportOptions(leave_out_atypical=True))
    assert window in before["train"].window_ids
    assert window not in after["train"].window_ids  # one item alone is no window
    assert len(after["train"]) == len(before["train"]) - 1
    soft = corrected_windows(run, ExportOptions(soft=True, leave_out_atypical=True))["train"]
    at = soft.interactions(np.flatnonzero(soft.window_ids == window))
    assert soft.weights[at[:-1]].tolist() == [0] * (len(positions) - 1)
    assert soft.weights[at[-1]] > 0


def test_positions_of_left_out_items_are_those_before_dropping(run):
    """Position 0 is dropped as noise and position 2 left out: what stood at 1, 3, 4 and 5 stays."""
    windows = run.data().splits["train"]
    window = int(windows.window_ids[np.flatnonzero(windows.lengths == 6)[0]])
    table = pl.DataFrame({
        "split": ["train"] * 6, "window_id": [window] * 6, "position": range(6), "is_noise": [1, 0, 0, 0, 0, 0],
        "answer": ["noise", "fits", "atypical", "fits", "fits", "fits"],
    })  # fmt: skip
    run.decide(overwrite=True, reviewed=table)
    run.correct("drop")
    after = corrected_windows(run, ExportOptions(leave_out_atypical=True))["train"]
    row = windows.row(int(np.flatnonzero(windows.window_ids == window)[0]))
    assert after.row(int(np.flatnonzero(after.window_ids == window)[0])) == [row[1], *row[3:]]


def test_without_such_answers_nothing_can_be_left_out(shop, tmp_path):
    with pytest.raises(OutputError, match=r"decide --run .* --reviewed"):
        export_run(shop[1], "datasets", tmp_path / "out", ExportOptions(leave_out_atypical=True))
    assert not (tmp_path / "out").exists()


# --- other libraries --------------------------------------------------------------------------------------------------


def test_interactions_for_recbole_are_read_again(shop, tmp_path):
    _, run = shop
    told = export_run(run, "recbole", tmp_path / "out")
    source = read_source(tmp_path / "out" / "corrected")
    log = pl.concat(source.batches())
    assert len(log) == told["interactions"]
    data = run.data()
    assert set(source.items["title"]) == set(data.catalogue.original_titles)
    text = (tmp_path / "out" / "corrected" / "corrected.inter").read_text().splitlines()
    assert text[0] == "user_id:token\titem_id:token\ttimestamp:float\tweight:float"


@pytest.mark.parametrize("soft", [False, True])
def test_splits_for_recbole_are_read_again(shop, tmp_path, soft):
    _, run = shop
    options = ExportOptions(soft=soft)
    export_run(run, "recbole-splits", tmp_path / "out", options)
    again, data = read_data(tmp_path / "out" / "corrected"), run.data()
    for name, windows in corrected_windows(run, options).items():
        ids = data.catalogue.ids.gather(windows.items)
        assert again.catalogue.ids.gather(again.splits[name].items).equals(ids)
        assert again.splits[name].user_ids.equals(windows.user_ids)
    table = pl.read_csv(tmp_path / "out" / "corrected" / "corrected.train.inter", separator="\t", quote_char=None)
    lists = table["item_id_list:token_seq"].str.split(" ").list.len()
    assert lists.to_list() == table["item_length:float"].to_list()
    if soft:
        assert table["weight_list:float_seq"].str.split(" ").list.len().equals(lists)
        assert table["weight:float"].is_between(0, 1).all()


def test_tables_for_rectools_and_replay_are_those_of_the_log(shop, tmp_path):
    path, run = shop
    export_run(run, "rectools", tmp_path / "rectools", ExportOptions(soft=True))
    export_run(run, "replay", tmp_path / "replay", ExportOptions(soft=True))
    rectools, replay = (pl.read_parquet(tmp_path / n / "interactions.parquet") for n in ("rectools", "replay"))
    assert rectools.columns == ["user_id", "item_id", "weight", "datetime", "split"]
    assert replay.columns == ["query_id", "item_id", "timestamp", "rating", "split"]
    log = pl.read_csv(path).unique(["visitor", "sku", "when"], keep="first", maintain_order=True)
    assert rectools["user_id"].to_list() == log["visitor"].to_list() == replay["query_id"].to_list()
    assert (
        rectools["datetime"].dt.epoch("s").to_list()
        == log["when"].to_list()
        == replay["timestamp"].dt.epoch("s").to_list()
    )
    assert rectools["weight"].to_list() == replay["rating"].to_list()
    assert rectools["weight"].is_between(0, 1).all()
    assert set(rectools["split"]) == {"train", "valid", "test"}


def test_datasets_of_hugging_face_load_the_folder(shop, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    _, run = shop
    export_run(run, "datasets", tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    splits, ids = corrected_windows(run), run.data().catalogue.ids
    assert {name: len(part) for name, part in loaded.items()} == {
        "train": len(splits["train"]), "validation": len(splits["valid"]), "test": len(splits["test"])
    }  # fmt: skip
    assert loaded["train"][0]["item_ids"] == ids.gather(splits["train"].row(0)).to_list()


# --- errors, and the command line -------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_said_and_leaves_nothing(shop, run, tiny_demo, tmp_path):
    with pytest.raises(ConfigError, match="no format 'csv'; expected one of log, recbole"):
        export_run(run, "csv", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(OutputError, match="exists already"):
        export_run(run, "log", tmp_path / "full")
    run.decide(overwrite=True)
    with pytest.raises(OutputError, match="llm4dsr correct"):
        export_run(run, "log", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"full", "run"}


@pytest.mark.parametrize("out", [".", "../link"])
def test_the_current_folder_and_one_behind_a_link_are_filled(shop, tmp_path, monkeypatch, out):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    export_run(shop[1], "log", out)
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"interactions.csv", "changes.csv"}
    assert (tmp_path / "link").is_symlink()


def test_a_run_of_windows_has_no_log(tmp_path, tiny_demo):
    run = make_run(tmp_path / "run", tiny_demo, "correct")
    for form in ("log", "recbole", "rectools", "replay"):
        with pytest.raises(DataError, match="datasets or recbole-splits"):
            export_run(run, form, tmp_path / "out")
    export_run(run, "recbole-splits", tmp_path / "out")


def test_the_command(shop, tmp_path):
    command = [LLM4DSR, "export", "-r", shop[1].folder, "--format", "log", "-o", tmp_path / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "dropped" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"interactions.csv", "changes.csv"}
    report = json.loads((shop[0].parent.parent / "windows" / "report.json").read_text())
    assert report["log"]["columns"]["item_id"] == "sku"
