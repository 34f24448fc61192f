"""Policies with a guarantee, from the command line to the run card, on the tiny demo, whose noise is known."""

import json
import shutil
import sys

import numpy as np
import polars as pl
import pytest

from llm4dsr.cli.main import main
from llm4dsr.config import Config
from llm4dsr.errors import ConfigError, DataError
from llm4dsr.pipeline import Run

TINY = {"model": {"hidden_size": 32, "layers": 1, "vector_size": 32}, "train": {"epochs": 2}, "threads": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_demo):
    run = Run.create(tmp_path_factory.mktemp("scored") / "run", Config.from_dict(TINY))
    for stage in ("prepare", "train", "score"):
        run.make(stage, tiny_demo)
    return run.folder


@pytest.fixture
def scored(made, tmp_path):
    return Run(shutil.copytree(made, tmp_path / "run"))


def truth(run: Run, split: str) -> pl.DataFrame:
    """The scores of a split, with the known noise as a label."""
    scores, windows = run.scores()[split], run.data().splits[split]
    begin = dict(zip(windows.window_ids.tolist(), windows.offsets[:-1].tolist(), strict=True))
    mask = [bool(windows.noise_mask[begin[w] + p]) for w, p in scores.select("window_id", "position").iter_rows()]
    return scores.with_columns(split=pl.lit(split), is_noise=pl.Series(mask).cast(pl.Int8))


def test_the_most_suspicious_of_the_whole_run_are_flagged(scored, monkeypatch):
    """By hand: the highest log-odds of all splits together, at most two of a window."""
    options = ["--run", str(scored.folder), "--top", "40", "--cap", "2"]
    monkeypatch.setattr(sys, "argv", ["llm4dsr", "decide", *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    flagged = pl.concat(scored.decisions().values())
    everything = pl.concat(scored.scores().values())
    assert len(flagged) == 40
    allowed = everything.filter(pl.col("rank") <= 2)
    assert flagged["log_odds"].sort().to_list() == allowed["log_odds"].top_k(40).sort().to_list()
    card = scored.facts("decide")
    assert {(card[n]["policy"], card[n]["eta"], card[n]["cap"]) for n in ("train", "valid", "test")} == {("top", 40, 2)}
    assert sum(card[n]["flagged"] for n in ("train", "valid", "test")) == 40


@pytest.mark.parametrize("more", [["--policy", "rate"], ["--eta", "0.1"], ["--goal", "impute"]])
def test_a_number_of_flags_needs_no_threshold(scored, monkeypatch, more, capsys):
    monkeypatch.setattr(sys, "argv", ["llm4dsr", "decide", "--run", str(scored.folder), "--top", "40", *more])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == ConfigError.exit_code
    assert "Leave --policy, --eta and --goal out" in capsys.readouterr().err


def test_false_flags_are_controlled_from_the_command_line(scored, tmp_path, monkeypatch):
    """By hand from the table: the threshold is the k-th smallest score of the clean labels."""
    known = truth(scored, "train").sample(150, seed=1)
    known.select("split", "window_id", "position", "is_noise").write_csv(tmp_path / "labels.csv")
    options = ["--policy", "false-flag-rate", "--eta", "0.1", "--labels", str(tmp_path / "labels.csv")]
    monkeypatch.setattr(sys, "argv", ["llm4dsr", "decide", "--run", str(scored.folder), *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    clean = known.filter(pl.col("is_noise") == 0)["log_odds"].sort()
    threshold = clean[int(np.ceil((len(clean) + 1) * 0.9)) - 1]
    card = json.loads((scored.folder / "run_card.json").read_text())["stages"]["decide"]
    told = {k: card["train"][k] for k in ("policy", "eta", "cap", "threshold", "clean_labels")}
    assert told == {"policy": "false-flag-rate", "eta": 0.1, "cap": None, "threshold": threshold,
                    "clean_labels": len(clean)}  # fmt: skip
    flagged = scored.decisions()["train"]
    everything = truth(scored, "train")
    lowest = pl.col("rank") == pl.len().over("window_id")
    assert flagged.equals(everything.filter((pl.col("log_odds") > threshold) & ~lowest).select(flagged.columns))
    clean_rows = everything.filter(pl.col("is_noise") == 0)
    wrong = clean_rows.join(flagged, on=["window_id", "position"], how="semi")
    assert 0.02 < len(wrong) / len(clean_rows) < 0.2
    assert scored.decisions()["test"].is_empty()  # no labels, so no flags
    assert card["test"]["clean_labels"] == 0


def test_missed_noise_is_controlled_without_labels(scored):
    scored.decide(policy="missed-noise-rate", eta=0.2)
    valid = scored.data().splits["valid"]
    for name, calibrator in scored.maps().items():
        card = scored.card()["stages"]["decide"][name]
        kept = calibrator.injected
        assert kept == sorted(kept)
        assert len(kept) == card["injected_noise"] == 3 * len(valid)  # three draws, kept from `fit`: few histories
        assert card["threshold"] == kept[int((len(kept) + 1) * 0.2) - 1]
        flagged = scored.decisions()[name]
        assert flagged["log_odds"].min() >= card["threshold"]
        assert 0 < len(flagged) < len(scored.scores()[name])
    assert max(scored.decisions()["train"].group_by("window_id").len()["len"]) > scored.config.decide.cap


def test_labels_leave_the_scores_of_injected_noise_as_they_are(scored):
    before = {name: calibrator.injected for name, calibrator in scored.maps().items()}
    scored.calibrate(truth(scored, "train").sample(100, seed=2))
    assert {name: calibrator.injected for name, calibrator in scored.maps().items()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "missed-noise-rate"}, "needs a rate. Give --eta"),
        ({"policy": "missed-noise-rate", "eta": 0.1, "cap": 3}, "Leave --cap out"),
        ({"policy": "missed-noise-rate", "eta": 1.0}, "above 0 and below 1"),
        ({"policy": "missed-noise-rate", "eta": 0.0001}, "too low for train"),
        ({"policy": "top", "eta": 0.5}, "expected a whole number"),
        ({"policy": "false-flag-rate", "eta": 0.1}, "Give --labels"),
        ({"policy": "probability", "eta": 0.5, "labels": pl.DataFrame()}, "reads no labels. Leave --labels out"),
    ],
)
def test_options_that_do_not_fit_are_refused(made, options, message):
    run = Run(made)
    with pytest.raises(ConfigError, match=message):
        run.decide(**options)
    assert not run.done("decide")


def test_too_few_labels_are_refused(made):
    few = truth(Run(made), "train").sample(10, seed=3)
    with pytest.raises(DataError, match="needs 99 clean labels in a split"):
        Run(made).decide(policy="false-flag-rate", eta=0.01, labels=few)
    assert not Run(made).done("decide")
