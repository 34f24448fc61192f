"""Bytes that flip and files that are cut off, in every kind of file of a run: never a wrong number with exit code 0."""

import json
import random
import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from llm4dsr import Denoiser
from llm4dsr.core.cache import PartCache
from llm4dsr.errors import LLM4DSRError, ModelError, OutputError
from llm4dsr.pipeline import CARD, CONFIG, FOLDERS, STAGES, Run
from llm4dsr.pipeline.run_folder import FORMAT

from .harness import LONG, before, contents, demo, in_child

FLIPS, CUTS = 20, 5  # of each kind of file


def kinds(calm: Path) -> list[str]:
    """One file of each kind: tables, weights, cards and manifests of every stage."""
    files = [p.relative_to(calm) for p in sorted(calm.rglob("*")) if p.is_file() and p.stat().st_size]
    visible = [p for p in files if not any(part.startswith(".") for part in p.parts)]
    of_kind = {(p.parts[0], re.sub("valid|test", "train", p.name)): p for p in visible}
    return [str(p) for p in sorted(of_kind.values())]


def damaged(content: bytes, draw: random.Random, cut: bool) -> bytes:
    if cut:
        return content[: draw.randrange(len(content))]
    out = bytearray(content)
    out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def use(folder: Path) -> str:
    """Read all that a run holds, as its last stage and its reader do; what came out, or the error."""
    try:
        run = Run(folder)
        card = {k: v for k, v in run.card().items() if k != "command"}
        for stage in STAGES:
            run.verified(stage)
        Denoiser.from_pretrained(run.path("train"))
        tables = {**run.scores(), **run.decisions(), **run.tables().suggestions}
        return repr((card, run.config, {n: t.to_dict(as_series=False) for n, t in tables.items()}, run.maps()))
    except LLM4DSRError as error:
        return type(error).__name__


def test_every_kind_of_file_is_among_those_that_are_damaged(calm):
    names = {re.sub("valid|test", "train", Path(name).name) for name in kinds(calm)}
    weights = {"manifest.json", "denoiser.json", "model.safetensors", "tokenizer.json", "items.parquet"}
    tables = {"train.parquet", "train_edits.parquet", "results.parquet"}
    assert {CARD, CONFIG, "stage.json", "calibration.json", *weights, *tables} <= names


def test_damage_is_never_read_as_a_number(calm, tmp_path):
    """20 flipped bits and 5 cuts in each kind of file: the same numbers as before, or an error for people."""
    folder, draw = shutil.copytree(calm, tmp_path / "run"), random.Random(0)
    expected, noticed, tried = use(folder), 0, 0
    for name in kinds(folder):
        whole = (folder / name).read_bytes()
        for attempt in range(FLIPS + CUTS):
            (folder / name).write_bytes(damaged(whole, draw, cut=attempt >= FLIPS))
            found = use(folder)
            assert found in (expected, "OutputError", "ModelError", "ConfigError"), name
            noticed, tried = noticed + (found != expected), tried + 1
        (folder / name).write_bytes(whole)
    assert use(folder) == expected
    assert noticed > 0.98 * tried  # a changed space in a JSON file changes nothing


@pytest.mark.parametrize(
    ("name", "stage", "kind", "again"),
    [
        ("windows/train.parquet", "train", OutputError, "llm4dsr prepare"),
        ("model/fold_0/lm/model.safetensors", "score", ModelError, "llm4dsr train"),
        ("scores/test.parquet", "decide", OutputError, "llm4dsr score"),
        ("scores/calibration.json", "decide", OutputError, "llm4dsr score"),
        ("decisions/train.parquet", "suggest", OutputError, "llm4dsr decide"),
        ("suggestions/valid.parquet", "correct", OutputError, "llm4dsr suggest"),
        ("corrected/train.parquet", "evaluate", OutputError, "llm4dsr correct"),
    ],
)
def test_the_message_names_the_file_and_the_command_that_makes_it_again(calm, tmp_path, name, stage, kind, again):
    folder = before(stage, calm, tmp_path / "run")
    (folder / name).write_bytes(damaged((folder / name).read_bytes(), random.Random(1), cut=False))
    with pytest.raises(kind, match=rf"{name} is damaged.*{again} .*--overwrite"):
        getattr(Run(folder), stage)()
    assert not (folder / FOLDERS[stage]).exists()


def test_a_lost_file_is_named(calm, tmp_path):
    folder = before("evaluate", calm, tmp_path / "run")
    (folder / "scores" / "valid.parquet").unlink()
    with pytest.raises(OutputError, match=r"scores/valid.parquet is missing"):
        Run(folder).evaluate()


def test_a_stage_of_another_run_is_refused(calm, tmp_path):
    """Whole in itself, but not made from the stages that are here."""
    folder, other = before("suggest", calm, tmp_path / "run"), before("decide", calm, tmp_path / "other")
    scores = Run(other).scores()
    with Run(other).stage("score", overwrite=True) as (out, _):
        for name, table in scores.items():
            table.with_columns(log_odds=pl.col("log_odds") + 1).write_parquet(out / f"{name}.parquet")
        shutil.copy(calm / "scores" / "calibration.json", out)
    Run(other).decide()
    shutil.rmtree(folder / "decisions")
    shutil.copytree(other / "decisions", folder / "decisions")
    with pytest.raises(OutputError, match="decisions was made from another scores/"):
        Run(folder).suggest()


def test_a_changed_configuration_is_refused(calm, tmp_path):
    folder = before("score", calm, tmp_path / "run")
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("calibration_draws: 1", "calibration_draws: 2"))
    with pytest.raises(OutputError, match=r"config.yaml has changed since the run began"):
        Run(folder)


def test_a_damaged_run_can_be_made_again(calm, tmp_path):
    folder = shutil.copytree(calm, tmp_path / "run")
    (folder / CARD).write_text("{}")
    run = Run.begin(folder, Run(calm).config, demo(), overwrite=True)
    run.prepare(demo(), overwrite=True)
    assert contents(folder / FOLDERS["prepare"]) == contents(calm / FOLDERS["prepare"])
    assert list(Run(folder).card()["stages"]) == ["prepare"]


@pytest.mark.parametrize("stage", LONG)
def test_damaged_parts_are_made_again(stage, calm, tmp_path):
    """A run is killed, every finished part loses a bit, and the stage ends as if nothing had happened."""
    moments, draw = int((calm.parent / stage).read_text()), random.Random(2)
    for tenths in (9, 8, 7, 6, 5):  # the last moment at which the stage is not complete and has parts
        folder = before(stage, calm, tmp_path / f"run{tenths}")
        assert in_child(folder, stage, moment=moments * tenths // 10) < 0
        parts = [p for p in (folder / ".work").rglob("*") if p.suffix in (".part", ".safetensors")]
        if parts and not (folder / FOLDERS[stage]).exists():
            break
    assert parts
    for path in parts:
        path.write_bytes(damaged(path.read_bytes(), draw, cut=False))
    assert in_child(folder, stage) == 0
    assert contents(folder / FOLDERS[stage]) == contents(calm / FOLDERS[stage])


def test_a_part_with_any_bit_flipped_is_made_again(tmp_path):
    cache, draw = PartCache(tmp_path), random.Random(3)
    cache.table(("a",), lambda: pl.DataFrame({"x": [1.5, 2.5]}))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for _ in range(50):
        path.write_bytes(damaged(whole, draw, cut=False))
        assert cache.table(("a",), lambda: pl.DataFrame({"x": [1.5, 2.5]}))["x"].to_list() == [1.5, 2.5]
        assert path.read_bytes() == whole


def test_a_card_of_another_format_is_told_from_damage(calm, tmp_path):
    folder = before("decide", calm, tmp_path / "run")
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({k: v for k, v in card.items() if k != "sha256"} | {"format": 1}))
    with pytest.raises(OutputError, match=f"format 1; this version reads {FORMAT}"):
        Run(folder)
