"""A file of histories is corrected in parts: the same result however many there are, whatever happens in between."""

import copy
import shutil
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from llm4dsr import Config, Denoiser
from llm4dsr.core.manifest import read_sealed, write_sealed
from llm4dsr.errors import ConfigError, DataError, OutputError
from llm4dsr.pipeline.histories_file import ApplyOptions, _files, _frames, _parts, apply_to_file
from llm4dsr.pipeline.served_model import open_model

from ..tiny_run import make_run

OPTIONS = ApplyOptions(eta=0.0, cap=2, action="replace", rows=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_demo):
    return make_run(tmp_path_factory.mktemp("applied") / "run", tiny_demo, "train")


@pytest.fixture(scope="module")
def denoiser(run):
    return open_model(run.path("train"))


@pytest.fixture(scope="module")
def histories(tiny_demo):
    test = tiny_demo.splits["test"].to_frame(tiny_demo.catalogue)
    train = tiny_demo.splits["train"].to_frame(tiny_demo.catalogue).head(80)
    return pl.concat([test, train], how="diagonal_relaxed").select("user_id", "item_ids", note=pl.col("window_id") * 2)


@pytest.fixture
def file(tmp_path, histories):
    histories.write_parquet(tmp_path / "histories.parquet", row_group_size=17)
    return tmp_path / "histories.parquet"


def tables(out, name):
    return pl.read_parquet(out / "part-*" / f"{name}.parquet")


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*.parquet")}


def test_parts_give_what_transform_gives_at_once(denoiser, file, histories, tmp_path):
    told = apply_to_file(denoiser, file, tmp_path / "out", OPTIONS)
    at_once = denoiser.transform(histories, policy="probability", eta=0.0, cap=2, action="replace")
    assert_frame_equal(tables(tmp_path / "out", "histories"), at_once)  # in order, with the column `note`
    assert told["histories"] == len(histories)
    assert told["interactions"] == told["scored"] == histories["item_ids"].list.len().sum()
    assert told["edits"] == {"replace": told["flagged"]}
    assert sorted(path.name for path in (tmp_path / "out").glob("part-*")) == [
        f"part-{i:05d}" for i in range(-(-len(histories) // 40))
    ]


def test_edits_and_scores_name_row_and_position_of_the_file(denoiser, file, histories, tmp_path):
    apply_to_file(denoiser, file, tmp_path / "out", OPTIONS)
    before, after = histories["item_ids"].to_list(), tables(tmp_path / "out", "histories")["item_ids"].to_list()
    edits, scores = (tables(tmp_path / "out", name) for name in ("edits", "scores"))
    assert len(edits) > 10
    for row, position, item, kept in edits.select("row", "position", "item_id", "kept_item_id").iter_rows():
        assert (before[row][position], after[row][position]) == (item, kept)
    assert scores["item_id"].to_list() == [item for history in before for item in history]
    assert edits["user_id"].to_list() == [histories["user_id"][row] for row in edits["row"]]


def test_progress_is_that_of_the_whole_file(denoiser, file, histories, tmp_path):
    seen = []
    apply_to_file(denoiser, file, tmp_path / "out", OPTIONS, lambda *report: seen.append(report))
    assert {(total, doing) for _, total, doing in seen} == {(len(histories), "apply")}
    done = [done for done, _, _ in seen]
    assert done == sorted(done)
    assert done[-1] == len(histories)


def test_one_part_or_many_give_the_same_scores(denoiser, file, tmp_path):
    for rows in (1_000, 7):
        apply_to_file(denoiser, file, tmp_path / str(rows), ApplyOptions(0.0, 2, "replace", rows))
    one, many = (tables(tmp_path / str(rows), "scores") for rows in (1_000, 7))
    np.testing.assert_allclose(one["log_odds"], many["log_odds"], atol=1e-4)
    assert_frame_equal(one.select("row", "position", "item_id"), many.select("row", "position", "item_id"))


@pytest.mark.parametrize("action", ["replace", "drop"])
def test_all_parts_have_one_type_of_ids(denoiser, histories, tmp_path, action):
    """Whether or not an item is suggested in a part that its narrow type does not hold."""
    kind = denoiser.catalogue.ids.dtype
    other = denoiser.with_items(pl.DataFrame({"item_id": pl.Series([100_000], dtype=kind), "title": ["A new toy"]}))
    narrow = histories.with_columns(pl.col("item_ids").cast(pl.List(pl.UInt16)))
    narrow.write_parquet(tmp_path / "narrow.parquet")
    apply_to_file(other, tmp_path / "narrow.parquet", tmp_path / "out", ApplyOptions(0.0, 2, action, 40))
    parts = sorted((tmp_path / "out").glob("part-*/histories.parquet"))
    wanted = pl.List(pl.Int64 if action == "replace" else pl.UInt16)
    assert [pl.read_parquet_schema(part)["item_ids"] for part in parts] == [wanted] * len(parts)


def test_an_interrupted_call_resumes_to_the_same_bytes(denoiser, file, tmp_path):
    apply_to_file(denoiser, file, tmp_path / "whole", OPTIONS)

    interrupted(denoiser, file, tmp_path / "out", after="part-00001")
    assert len(list((tmp_path / "out").glob("part-*"))) == 2
    kept = (tmp_path / "out" / "part-00000" / "scores.parquet").stat().st_mtime_ns
    apply_to_file(denoiser, file, tmp_path / "out", OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert (tmp_path / "out" / "part-00000" / "scores.parquet").stat().st_mtime_ns == kept  # not made again


def test_a_call_that_was_killed_before_its_first_part_is_resumed(denoiser, file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".apply.json.123.part").write_text("{")
    assert apply_to_file(denoiser, file, out, OPTIONS)["histories"] > 0


def test_a_process_that_is_killed_is_resumed(run, file, histories, tmp_path):
    """SIGKILL in the middle: what is whole stays, what is not is made again."""
    pl.concat([histories] * 30).write_parquet(file)
    command = ["apply", run.folder, "-d", file, "-o", tmp_path / "out", "--eta", 0.0, "--rows", 200]
    started = subprocess.Popen([sys.executable, "-m", "llm4dsr", *map(str, command)], stderr=subprocess.DEVNULL)
    while not (tmp_path / "out" / "part-00003").is_dir():
        assert started.poll() is None
        time.sleep(0.01)
    started.kill()
    started.wait()
    denoiser, options = open_model(run.folder), ApplyOptions(0.0, 3, "replace", 200)
    told = apply_to_file(denoiser, file, tmp_path / "out", options)
    apply_to_file(denoiser, file, tmp_path / "whole", options)
    assert told["histories"] == 30 * len(histories)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".part-*"))


def interrupted(denoiser, file, out, after="part-00000"):
    """Stop after a part."""

    def stop(done, total, doing):
        if (out / after).is_dir():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply_to_file(denoiser, file, out, OPTIONS, stop)


def test_a_part_that_another_process_finished_meanwhile_is_taken(denoiser, file, tmp_path):
    """A Ray worker that has outlived its call. It writes the same bytes; whoever is first has made the part."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    apply_to_file(denoiser, file, whole, OPTIONS)

    def finish(done, total, doing):
        if (out / "part-00000").is_dir() and not (out / "part-00001").is_dir():
            shutil.copytree(whole / "part-00001", out / "part-00001")

    assert apply_to_file(denoiser, file, out, OPTIONS, finish)["histories"] > 80
    assert contents(out) == contents(whole)


def test_a_damaged_part_is_noticed(denoiser, file, tmp_path):
    out = tmp_path / "out"
    interrupted(denoiser, file, out)
    path = out / "part-00000" / "edits.parquet"
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    with pytest.raises(OutputError, match=r"edits.parquet is damaged.*Remove"):
        apply_to_file(denoiser, file, out, OPTIONS)
    shutil.rmtree(out / "part-00000")
    apply_to_file(denoiser, file, out, OPTIONS)


def test_a_call_is_resumed_with_other_versions_and_says_so(denoiser, file, tmp_path, caplog):
    out = tmp_path / "out"
    interrupted(denoiser, file, out)
    card = read_sealed(out / "apply.json")
    write_sealed(out / "apply.json", card | {"versions": card["versions"] | {"numpy": "1.0"}})
    apply_to_file(denoiser, file, out, OPTIONS)
    assert "was made with other versions: numpy 1.0, now" in caplog.text
    assert read_sealed(out / "apply.json")["changed_versions"][0].startswith("numpy 1.0, now")


def test_a_folder_of_other_results_is_left_alone(denoiser, file, histories, tmp_path):
    out = tmp_path / "out"
    interrupted(denoiser, file, out)
    with pytest.raises(ConfigError, match="for a file, expected one of"):
        ApplyOptions(0.5, 2, "mixed", 40)
    with pytest.raises(ConfigError, match="of other options"):
        apply_to_file(denoiser, file, out, ApplyOptions(0.5, 2, "replace", 40))
    newer, freer = open_model_with_counts(denoiser, histories), copy.copy(denoiser)
    freer.config = Config.from_dict({"suggest": {"mode": "free"}}, base=denoiser.config)  # with the same weights
    for other in (newer, freer):
        with pytest.raises(ConfigError, match="of another model"):
            apply_to_file(other, file, out, OPTIONS)
    histories.head(50).write_parquet(file)
    with pytest.raises(ConfigError, match="of other histories"):
        apply_to_file(denoiser, file, out, OPTIONS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="exists already"):
        apply_to_file(denoiser, file, tmp_path / "mine", OPTIONS)
    apply_to_file(denoiser, file, tmp_path / "done", OPTIONS)
    with pytest.raises(OutputError, match="is complete already"):
        apply_to_file(denoiser, file, tmp_path / "done", OPTIONS)


def open_model_with_counts(denoiser, histories):
    newer = copy.copy(denoiser)
    new = histories.with_columns(user_id=pl.lit(99_999), window_id=pl.int_range(pl.len()))
    return newer.update_counts(new.select("window_id", "user_id", "item_ids"))


def test_histories_that_cannot_be_scored_stay_as_they_are(denoiser, tiny_demo, tmp_path, caplog):
    known = tiny_demo.catalogue.ids.to_list()
    odd = pl.DataFrame({"item_ids": [[known[0]], [], None, [known[1], -5, known[2]]]})
    odd.write_parquet(tmp_path / "odd.parquet")
    told = apply_to_file(denoiser, tmp_path / "odd.parquet", tmp_path / "out", ApplyOptions(1.0, 2, "drop", 3))
    assert_frame_equal(tables(tmp_path / "out", "histories"), odd)
    assert (told["scored"], told["unknown items"]) == (2, 1)
    assert "1 of 4 interactions are of items that the denoiser does not know" in caplog.text
    assert tables(tmp_path / "out", "scores")["position"].to_list() == [0, 2]  # in the list as it is in the file


def test_files_of_a_folder_follow_one_another(denoiser, histories, tmp_path):
    (tmp_path / "in").mkdir()
    for name, part in (("b", histories[50:]), ("a", histories[:50])):
        part.write_parquet(tmp_path / "in" / f"{name}.parquet")
    apply_to_file(denoiser, tmp_path / "in", tmp_path / "out", OPTIONS)
    assert tables(tmp_path / "out", "histories")["note"].to_list() == histories["note"].to_list()
    assert tables(tmp_path / "out", "scores")["row"].max() == len(histories) - 1


def test_users_that_pandas_made_floats_are_recognized(denoiser, histories, tmp_path):
    """A column with a gap: 5 became 5.0. Scored by the model that did not see the user, as before."""
    for name, users in (("whole", pl.col("user_id")), ("float", pl.col("user_id").cast(pl.Float64))):
        histories.with_columns(users).write_parquet(tmp_path / f"{name}.parquet")
        apply_to_file(denoiser, tmp_path / f"{name}.parquet", tmp_path / name, OPTIONS)
    whole, float_ = (tables(tmp_path / name, "scores").drop("user_id") for name in ("whole", "float"))
    assert_frame_equal(whole, float_)


def test_a_file_that_was_moved_or_touched_is_the_same(denoiser, file, tmp_path):
    interrupted(denoiser, file, tmp_path / "out")
    moved = file.rename(tmp_path / "moved.parquet")
    moved.touch()
    assert apply_to_file(denoiser, moved, tmp_path / "out", OPTIONS)["histories"] > 0


def test_weights_of_the_file_are_multiplied(denoiser, histories, tmp_path):
    some = histories.head(40)
    lengths = some["item_ids"].list.len().to_list()
    weights = [None if i == 0 else [0.5] * n for i, n in enumerate(lengths)]
    path = tmp_path / "weighted.parquet"
    some.with_columns(weights=pl.Series(weights)).write_parquet(path)
    apply_to_file(denoiser, path, tmp_path / "out", ApplyOptions(1.0, 2, "downweight", 40))
    found = tables(tmp_path / "out", "histories")["weights"].to_list()
    assert found[:2] == [[1.0] * lengths[0], [0.5] * lengths[1]]
    some.with_columns(weights=pl.Series([[0.5]] * len(some))).write_parquet(path)
    with pytest.raises(DataError, match="Row 0 of the histories has"):
        apply_to_file(denoiser, path, tmp_path / "other", ApplyOptions(1.0, 2, "downweight", 40))


def test_histories_whose_titles_do_not_fit_stay_as_they_are(tiny_demo, tmp_path, caplog):
    """One of them would stop a file of millions."""
    model = {"item_input": "title", "readout": "likelihood", "hidden_size": 16, "layers": 1, "heads": 2}
    config = {"threads": 1, "model": {**model, "pretrain_epochs": 0}, "score": {"calibration": "off"}}
    train = {"epochs": 0, "folds": 1, "max_tokens": 512}
    lists = tiny_demo.splits["train"].to_frame(tiny_demo.catalogue).head(60)
    few = lists.select("window_id", "user_id", pl.col("item_ids").list.head(2))
    denoiser = Denoiser(Config.from_dict(config | {"train": train})).fit(few, tiny_demo.catalogue, few)
    longest = sorted(tiny_demo.catalogue.titles, key=len)[-3:]
    ids = [tiny_demo.catalogue.ids[tiny_demo.catalogue.titles.index(title)] for title in longest]
    denoiser.ensemble.builder.max_tokens = len(denoiser.builder.prompt([0, 1])) + 3
    pl.DataFrame({"item_ids": [ids, few["item_ids"][0].to_list()[:1] * 2]}).write_parquet(tmp_path / "long.parquet")
    told = apply_to_file(denoiser, tmp_path / "long.parquet", tmp_path / "out", ApplyOptions(0.0, 1, "drop", 10))
    assert told["too long"] >= 1
    assert tables(tmp_path / "out", "histories")["item_ids"][0].to_list() == ids
    assert "more title tokens than train.max_tokens" in caplog.text


def test_memory_for_reading_does_not_grow_with_the_file(tmp_path):
    """pyarrow keeps all that it has read of a file, unless it is told not to."""
    rng = np.random.default_rng(0)
    ids = pl.Series("item_ids", rng.integers(0, 2**60, (200_000, 10)).tolist(), dtype=pl.List(pl.Int64))
    ids.to_frame().write_parquet(tmp_path / "large.parquet", compression="uncompressed")  # 16 MB
    before, most = pa.total_allocated_bytes(), 0
    for _ in _frames(list(_parts(*_files(tmp_path / "large.parquet"), 5_000))):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 6_000_000


def test_files_of_a_folder_must_be_alike(denoiser, histories, tmp_path):
    (tmp_path / "in").mkdir()
    histories.write_parquet(tmp_path / "in" / "a.parquet")
    histories.drop("note").write_parquet(tmp_path / "in" / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet has other columns or types than .*a.parquet"):
        apply_to_file(denoiser, tmp_path / "in", tmp_path / "out", OPTIONS)


def test_an_output_that_is_a_file_is_refused(denoiser, file, tmp_path):
    with pytest.raises(OutputError, match="is a file"):
        apply_to_file(denoiser, file, file, OPTIONS)


def test_one_part_at_a_time_is_read(tmp_path):
    """Row groups of 7 rows, parts of 10: no part waits for the whole file."""
    for name, begin in (("a", 0), ("b", 100)):
        table = pl.DataFrame({"item_ids": [[begin + i] for i in range(25)]})
        table.write_parquet(tmp_path / f"{name}.parquet", row_group_size=7)
    parts = list(_parts(*_files(tmp_path), 10))
    assert [(part.path.name, part.first, part.rows, part.before) for part in parts] == [
        ("a.parquet", 0, 10, 0), ("a.parquet", 10, 10, 10), ("a.parquet", 20, 5, 20),
        ("b.parquet", 0, 10, 25), ("b.parquet", 10, 10, 35), ("b.parquet", 20, 5, 45),
    ]  # fmt: skip
    some = [part for part in parts if part.name in ("part-00001", "part-00002", "part-00004")]
    found = [frame["item_ids"].explode().to_list() for _, frame in _frames(some)]
    assert found == [list(range(10, 20)), list(range(20, 25)), list(range(110, 120))]


def test_the_command(llm4dsr, run, file, tmp_path):
    code, printed = llm4dsr("apply", run.folder, "-d", file, "-o", tmp_path / "out", "--eta", 0.9, "-a", "downweight")
    assert code == 0, printed
    assert "histories" in printed
    assert set(tables(tmp_path / "out", "histories").columns) == {"user_id", "item_ids", "note", "weights"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "compares all histories"),  # the tiny run flags by rate
        (["--eta", 2], "from 0 to 1"),
        (["--eta", 0.5, "-a", "mixed"], "for a file, expected one of replace, drop, downweight"),
        (["--eta", 0.5, "--rows", 0], "rows"),
    ],
)
def test_wrong_options_are_refused(llm4dsr, run, file, tmp_path, options, expected):
    code, printed = llm4dsr("apply", run.folder, "-d", file, "-o", tmp_path / "out", *options)
    assert (code != 0, expected in " ".join(printed.split())) == (True, True), printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["absent", "text", "cut", "no lists", "interactions", "empty", "folder"])
def test_wrong_files_are_refused(denoiser, file, tmp_path, kind):
    path = tmp_path / "wrong.parquet"
    expected = "cannot be read as Parquet"
    if kind == "text":
        path.write_text("user_id,item_ids")
    elif kind == "cut":
        path.write_bytes(file.read_bytes()[:-40])
    elif kind == "no lists":
        pl.DataFrame({"item_ids": ["1 2 3"]}).write_parquet(path)
        expected = "expected a list of item ids"
    elif kind == "interactions":
        pl.DataFrame({"user_id": [1], "item_id": [1]}).write_parquet(path)
        expected = "Group interactions by user first"
    elif kind == "empty":
        pl.DataFrame({"item_ids": pl.Series([], dtype=pl.List(pl.Int64))}).write_parquet(path)
        expected = "has no histories"
    elif kind == "folder":
        path.mkdir()
        expected = "no folder that holds any"
    else:
        expected = "is no Parquet file"
    with pytest.raises(DataError, match=expected):
        apply_to_file(denoiser, path, tmp_path / "out", OPTIONS)


def test_a_file_that_changes_while_it_is_read_is_noticed(denoiser, file, histories, tmp_path):
    def change(done, total, doing):
        if doing == "apply" and done == total:
            histories.with_columns(note=pl.lit(1)).write_parquet(file)

    with pytest.raises(DataError, match="has changed while it was read"):
        apply_to_file(denoiser, file, tmp_path / "out", OPTIONS, change)
