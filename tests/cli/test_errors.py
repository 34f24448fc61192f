"""Mistakes, as a user meets them at the command line: one message, the documented exit code, nothing half-written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml

from llm4dsr import errors
from llm4dsr.config import Config
from llm4dsr.pipeline import Run

torch.set_num_threads(1)
DATA, MODEL, OUTPUT, CONFIG, USAGE = 3, 4, 5, 6, 2
RECIPE = """
threads: 1
model: {hidden_size: 16, layers: 1, heads: 2, vector_size: 16}
train: {epochs: 1, samples: 30}
decide: {policy: probability}
evaluate: {recommender: {epochs: 1}}
"""


@pytest.fixture
def data(tmp_path, tiny_demo) -> Path:
    tiny_demo.write(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


@pytest.fixture(scope="module")
def scored(tmp_path_factory, tiny_demo) -> Path:
    """A run up to its scores. Shared: what is called on it must fail and so leave it as it is."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "recipe.yaml").write_text(RECIPE)
    run = Run.create(folder / "run", Config.from_yaml(folder / "recipe.yaml"))
    run.prepare(tiny_demo)
    run.train()
    run.score()
    return run.folder


def content(folder: Path) -> dict[str, bytes]:
    """All files below, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def change(folder: Path, name: str, **columns: pl.Expr | pl.Series) -> None:
    path = folder / f"{name}.parquet"
    pl.read_parquet(path).with_columns(**columns).write_parquet(path)


def in_first_row(column: str, value: pl.Expr) -> pl.Expr:
    return pl.when(pl.int_range(pl.len()) == 0).then(value).otherwise(pl.col(column))


# --- data ------------------------------------------------------------------------------------------------------------


def without_a_column(folder: Path) -> None:
    path = folder / "train.parquet"
    pl.read_parquet(path).drop("item_ids").write_parquet(path)


def without_a_title(folder: Path) -> None:
    change(folder, "items", title=in_first_row("title", pl.lit("  ")))


def with_an_unknown_item(folder: Path) -> None:
    first = pl.concat_list(pl.lit(987_654), pl.col("item_ids").list.slice(1))
    change(folder, "test", item_ids=in_first_row("item_ids", first))


def with_an_empty_history(folder: Path) -> None:
    change(folder, "valid", item_ids=in_first_row("item_ids", pl.col("item_ids").list.head(0)))


def with_a_history_of_one(folder: Path) -> None:
    change(folder, "valid", item_ids=in_first_row("item_ids", pl.col("item_ids").list.head(1)))


def cut_off(folder: Path) -> None:
    path = folder / "train.parquet"
    path.write_bytes(path.read_bytes()[:100])


def with_training_windows_in_test(folder: Path) -> None:
    pl.read_parquet(folder / "train.parquet").head(3).write_parquet(folder / "test.parquet")


BROKEN = [
    (with_training_windows_in_test, ["3 window(s) of test are also training windows", "llm4dsr data validate"]),
    (without_a_column, ["train.parquet", "'item_ids' is missing"]),
    (without_a_title, ["1 item(s) have no title", "give each item one"]),
    (with_an_unknown_item, ["test.parquet", "not in the items table", "987654", "Add them to the items table"]),
    (with_an_empty_history, ["valid.parquet", "1 window(s)", "an empty history", "Remove these windows"]),
    (with_a_history_of_one, ["valid.parquet", "1 window(s)", "a history of one item", "Remove these windows"]),
    (cut_off, ["train.parquet cannot be read as parquet"]),
    (lambda folder: (folder / "items.parquet").unlink(), ["lacks items", "Expected either ready windows"]),
]


@pytest.mark.parametrize(("broken", "said"), BROKEN)
@pytest.mark.parametrize("command", ["prepare", "run"])
def test_unusable_data(llm4dsr, data, tmp_path, command, broken, said):
    broken(data)
    code, printed = llm4dsr(command, "--data", data, "--out", tmp_path / "out")
    assert code == DATA
    for part in said:
        assert part in printed
    assert not (tmp_path / "out").exists()


def test_columns_with_other_names_are_told_by_the_option(llm4dsr, tmp_path):
    """Not by the argument of Python, which the command line does not have."""
    (tmp_path / "items.csv").write_text("sku;title\n1;One\n")
    (tmp_path / "interactions.csv").write_text("visitor;sku;when\nu;1;5\n")
    for arguments in (["data", "prepare", tmp_path], ["prepare", "--data", tmp_path], ["run", "--data", tmp_path]):
        code, printed = llm4dsr(*arguments, "--out", tmp_path / "out")
        assert code == DATA
        assert "sku, title" in printed
        assert "--column item_id=NAME" in printed
        assert not any(sign in printed for sign in ("columns=", "{", "['"))
    code, printed = llm4dsr("data", "prepare", tmp_path, "--column", "item=sku", "--out", tmp_path / "out")
    assert code == DATA
    assert "There is no column 'item' to name; expected our name out of user_id, item_id" in printed


@pytest.fixture
def shop(tmp_path):
    """A log with the shop's own columns, in a folder whose name has a space."""
    rows = [
        (user, f"sku{(user + i) % 12}", 60 * i, i % 6, f"Toy {(user + i) % 12}") for user in range(30) for i in range(8)
    ]
    log = pl.DataFrame(rows, schema=["visitor", "item_id", "timestamp", "stars", "title"], orient="row")
    (tmp_path / "my shop").mkdir()
    log.write_csv(tmp_path / "my shop" / "log.csv")
    return tmp_path / "my shop" / "log.csv"


def test_a_rating_that_is_missing_is_told_with_the_columns_of_the_file(llm4dsr, shop, tmp_path):
    arguments = ("data", "prepare", shop, "--out", tmp_path / "out", "--column", "user_id=visitor", "--min-rating", 1)
    code, printed = llm4dsr(*arguments)
    assert code == DATA
    assert "the columns are visitor, item_id, timestamp, stars, title, but 'rating' is missing" in printed
    assert "--column rating=NAME" in printed
    assert llm4dsr(*arguments, "--column", "rating=stars", "--k-core", 0)[0] == 0


def test_the_next_command_can_be_pasted(llm4dsr, shop):
    out = shop.parent / "windows"
    code, printed = llm4dsr("data", "prepare", shop, "--out", out, "--column", "user_id=visitor")
    assert (code, f"llm4dsr run --data '{out}' --out" in printed) == (0, True)


def test_no_data(llm4dsr, tmp_path):
    code, printed = llm4dsr("prepare", "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert (code, f"There is no folder {tmp_path / 'nowhere'}" in printed) == (DATA, True)
    assert not (tmp_path / "out").exists()


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epoch: 3}", "train: unknown option 'epoch'. Known here: epochs,"),
        ("trane: {}", "unknown option 'trane'"),
        ("model: {item_input: image}", "model: item_input = 'image'; expected one of title, soft_token"),
        ("train: {epochs: many}", "train: epochs = 'many'; expected a whole number"),
        ("seed: -1", "seed = -1; expected a number of at least 0"),
        ("train: {batch_windows: 0}", "train: batch_windows = 0; expected a number of at least 1"),
        ("model: {dropout: 1.5}", "model: dropout = 1.5; expected a fraction, from 0 to 1"),
        ("- a list", "expected a mapping of options"),
        ("model: {items: [", "recipe.yaml is not readable YAML"),
    ],
)
def test_an_unusable_recipe(llm4dsr, data, recipe, tmp_path, text, said):
    recipe.write_text(text)
    code, printed = llm4dsr("run", "--data", data, "--out", tmp_path / "out", "--config", recipe)
    assert (code, said in printed) == (CONFIG, True), printed
    assert "recipe.yaml" in printed
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_not_there(llm4dsr, data, tmp_path):
    code, printed = llm4dsr("run", "--data", data, "--out", tmp_path / "out", "--config", tmp_path / "no.yaml")
    assert (code, "No recipe at" in printed) == (CONFIG, True)
    assert not (tmp_path / "out").exists()


def test_off_needs_no_quotes_in_a_recipe():
    """YAML reads it as false."""
    assert Config.from_dict(yaml.safe_load("score: {calibration: off}")).score.calibration == "off"


# --- model -----------------------------------------------------------------------------------------------------------


def test_a_wrong_model_path_leaves_the_windows_only(llm4dsr, data, recipe, tmp_path):
    wrong, out = tmp_path / "nowhere", tmp_path / "out"
    code, printed = llm4dsr("run", "--data", data, "--out", out, "--config", recipe, "--model", wrong)
    assert (code, f"There is no model at {wrong}. Give a hub name" in printed) == (MODEL, True), printed
    left = sorted(p.name for p in out.iterdir() if not p.name.startswith("."))
    assert left == ["config.yaml", "run_card.json", "windows"]


def test_heads_that_do_not_divide_the_size(llm4dsr, data, recipe, tmp_path):
    recipe.write_text("model: {hidden_size: 16, heads: 3}")
    code, printed = llm4dsr("run", "--data", data, "--out", tmp_path / "out", "--config", recipe)
    assert (code, "expected a multiple of twice the heads" in printed) == (CONFIG, True), printed


# --- output and stages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["prepare", "run"])
def test_an_output_folder_that_is_in_use(llm4dsr, data, tmp_path, command):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep this")
    code, printed = llm4dsr(command, "--data", data, "--out", out)
    assert (code, f"{out} exists already" in printed) == (OUTPUT, True)
    assert content(out) == {"mine.txt": b"keep this"}


def test_an_output_folder_is_looked_at_before_the_log(llm4dsr, tmp_path):
    (tmp_path / "full" / "folder").mkdir(parents=True)
    code, printed = llm4dsr("data", "prepare", tmp_path / "no-such-log", "--out", tmp_path / "full")
    assert (code, "exists already and is not an empty folder" in printed) == (OUTPUT, True), printed


@pytest.mark.parametrize("stage", ["train", "score", "decide", "suggest", "correct", "evaluate"])
def test_a_stage_without_a_run(llm4dsr, tmp_path, stage):
    code, printed = llm4dsr(stage, "--run", tmp_path / "nowhere")
    assert (code, "is not a run folder" in printed, "llm4dsr prepare" in printed) == (OUTPUT, True, True)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("stage", "before"),
    [("score", "train"), ("decide", "train"), ("suggest", "train"), ("correct", "train"), ("evaluate", "train")],
)
def test_a_stage_before_the_one_it_needs(llm4dsr, data, recipe, tmp_path, stage, before):
    out = tmp_path / "out"
    assert llm4dsr("prepare", "--data", data, "--out", out, "--config", recipe)[0] == 0
    whole = content(out)
    code, printed = llm4dsr(stage, "--run", out)
    assert (code, f"Run:  llm4dsr {before} --run {out}" in printed) == (OUTPUT, True), printed
    assert content(out) == whole


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train"], OUTPUT, "Add --overwrite to make it again"),
        (["correct"], OUTPUT, "has no decisions/ yet, which correct needs"),
        (["decide", "--policy", "best"], CONFIG, "'best'; expected one of percentile, probability, precision, rate"),
        (["decide", "--policy", "rate", "--eta", "3"], CONFIG, "eta = 3.0; expected a fraction, from 0 to 1"),
        (["decide", "--policy", "validation", "--eta", "0.3"], CONFIG, "chooses η by itself. Leave --eta out"),
        (["decide", "--policy", "best", "--overwrite"], CONFIG, "rate, validation, false-flag-rate, missed-noise-rate"),
        (["decide", "--goal", "impute", "--eta", "0.3"], CONFIG, "but the policy is 'probability'. Leave --goal out"),
        (["decide", "--goal", "impute", "--policy", "rate"], CONFIG, "but the policy is 'rate'. Leave --goal out"),
        (["decide", "--cap", "-1"], USAGE, "--cap"),
        (["decide", "--polcy", "rate"], USAGE, "No such option"),
        (["evaluate", "--seeds", "0"], USAGE, "--seeds"),
    ],
)
def test_a_mistake_leaves_a_run_as_it_was(llm4dsr, scored, arguments, code, said):
    whole = content(scored)
    got, printed = llm4dsr(*arguments, "--run", scored)
    assert (got, said in printed) == (code, True), printed
    assert content(scored) == whole


@pytest.mark.parametrize(
    ("policy", "eta", "said"),
    [
        ("best", "0.1", "policy = 'best'; expected one of"),
        ("rate", "20", "eta = 20.0; expected a fraction"),
        ("validation", "0.2", "Leave --eta out"),
    ],
)
def test_a_run_is_not_begun_with_a_decision_that_cannot_be_made(llm4dsr, tmp_path, policy, eta, said):
    code, printed = llm4dsr("run", "--data", "x", "--out", tmp_path / "run", "--policy", policy, "--eta", eta)
    assert (code, said in printed) == (CONFIG, True), printed
    assert not any(tmp_path.iterdir())


def test_a_goal_is_not_ignored(llm4dsr, tmp_path):
    arguments = ("run", "--data", "x", "--out", tmp_path / "run", "--goal", "impute", "--policy", "rate")
    code, printed = llm4dsr(*arguments, "--eta", "0.1")
    assert (code, "Leave --goal out" in printed) == (CONFIG, True), printed


def test_a_name_between_colons_is_no_picture(llm4dsr, tmp_path):
    """Rich would print :fire: as an emoji, and the path would be none."""
    code, printed = llm4dsr("data", "describe", tmp_path / "a:fire:b")
    assert code == DATA
    assert "a:fire:b" in printed


def test_replacing_without_suggestions(llm4dsr, scored, tmp_path):
    """Also with --overwrite a stage that fails leaves the old one in its place."""
    run = tmp_path / "run"
    shutil.copytree(scored, run)
    assert llm4dsr("decide", "--run", run)[0] == 0
    whole = content(run)
    code, printed = llm4dsr("correct", "--run", run)
    assert (code, "Run:  llm4dsr suggest" in printed) == (OUTPUT, True)
    assert llm4dsr("decide", "--run", run, "--overwrite", "--policy", "best")[0] == CONFIG
    assert content(run) == whole
    assert llm4dsr("correct", "--run", run, "--action", "drop")[0] == 0


def test_an_interrupted_stage_leaves_nothing(scored, tmp_path):
    def stop(done: int, total: int, doing: str) -> None:
        raise KeyboardInterrupt

    shutil.copytree(scored, tmp_path / "run")
    whole = content(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "run").train(stop, overwrite=True)
    assert content(tmp_path / "run") == whole


# --- codes -----------------------------------------------------------------------------------------------------------


def test_the_documented_exit_codes():
    kinds = (errors.DataError, errors.ModelError, errors.OutputError, errors.ConfigError)
    assert [kind.exit_code for kind in kinds] == [DATA, MODEL, OUTPUT, CONFIG]
    for kind in kinds:
        assert f"\n| {kind.exit_code}    |" in str(errors.__doc__)


def test_the_installed_command_prints_to_stderr_and_exits(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "from llm4dsr.cli.main import main; main()", "train", "-r", str(tmp_path / "nowhere")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == OUTPUT
    assert done.stdout.strip() == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1  # one line, so that paths and commands in it can be copied
