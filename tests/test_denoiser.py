"""The public class: who scores whom, what it learns without labels, and that a saved one is the same."""

import copy
import dataclasses
import errno
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config, Denoiser
from llm4dsr.core.hashing import user_folds, user_hashes
from llm4dsr.core.manifest import write_manifest
from llm4dsr.data.demo import make_demo
from llm4dsr.data.windows import Windows, align, limit_windows
from llm4dsr.denoise.prequential import prequential
from llm4dsr.errors import ConfigError, DataError, ModelError, OutputError
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.metrics import auroc

SMALL = {
    "model": {"hidden_size": 32, "layers": 1, "vector_size": 32},
    "train": {"epochs": 8, "folds": 2, "batch_windows": 32},
    "threads": 1,
}
DEMO = make_demo(size="tiny", users=400)
TRAIN, VALID, TEST = (DEMO.data.splits[name] for name in ("train", "valid", "test"))


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(Config.from_dict(SMALL)).fit(TRAIN, DEMO.data.catalogue, VALID.histories())


@pytest.fixture(scope="module")
def scores(denoiser) -> pl.DataFrame:
    return denoiser.score(TEST.histories())


def test_planted_noise_scores_higher(scores):
    histories = TEST.histories()
    assert auroc(scores["log_odds"], histories.noise_mask) > 0.75


def test_scores_are_one_row_per_interaction(scores):
    histories = TEST.histories()
    assert len(scores) == histories.lengths.sum()
    assert scores["noise_probability"].is_between(0, 1).all()
    first = scores.filter(pl.col("window_id") == scores["window_id"][0])
    assert first["rank"].to_list() == first["log_odds"].rank("ordinal", descending=True).to_list()


def test_validation_is_not_counted(denoiser):
    """`fit` reads validation to stack and to calibrate. Test scores know nothing of it but what comes in time."""
    assert denoiser.ensemble.counts.popularity.tolist() == (
        CooccurrenceCounts.of(TRAIN, len(DEMO.data.catalogue)).popularity.tolist()
    )


def test_no_user_is_scored_by_a_model_that_saw_the_history(denoiser):
    seen = set(user_hashes(TRAIN.user_ids).tolist())
    for rows, members in denoiser.ensemble.assignments(TEST):
        users = TEST.take(rows).user_ids
        assert (set(user_hashes(users).tolist()) <= seen) == (len(members) == 1)
        if len(members) == 1:
            assert (user_folds(TEST.take(rows).user_ids, 2) == members[0]).all()


def test_unseen_users_are_scored_by_all_models(denoiser):
    histories = TEST.histories()
    stranger = histories.take(np.arange(5))
    stranger.user_ids = pl.Series("user_id", [f"new {i}" for i in range(5)])
    parts = [rows for rows, members in denoiser.ensemble.assignments(stranger) if len(members) == 2]
    assert len(parts) == 1
    assert parts[0].tolist() == [0, 1, 2, 3, 4]


def test_windows_are_scored_with_what_was_known_before_them(denoiser):
    """The first tenth of a split knows what the denoiser knows; the last one all the earlier windows too."""
    timed = TEST.take(np.arange(len(TEST)))
    timed.timestamps = np.arange(len(TEST))[::-1].copy()
    known, seen = denoiser.ensemble.counts, []
    for rows, by_then, _ in prequential(denoiser.ensemble, timed, True, None):
        seen.append((rows, by_then.counts))
    assert sorted(np.concatenate([rows for rows, _ in seen]).tolist()) == list(range(len(TEST)))
    assert seen[0][1] is known
    assert denoiser.ensemble.counts is known  # scoring leaves the denoiser as it was
    past = np.concatenate([rows for rows, _ in seen[:-1]])
    assert timed.timestamps[past].max() <= timed.timestamps[seen[-1][0]].min()
    assert (seen[-1][1].own == known.add(timed.take(past)).own).all()


def test_an_earlier_split_is_counted_only_up_to_the_time_of_each_part(denoiser):
    """Validation and test overlap in time: a part of test never knows a validation window that is newer than it."""
    before = denoiser.ensemble.counts
    valid = dataclasses.replace(VALID, timestamps=np.arange(len(VALID)) * 2)
    test = dataclasses.replace(TEST, timestamps=np.arange(len(TEST)) + len(VALID))
    so_far = 0
    for rows, by_then, _ in prequential(denoiser.ensemble, test, True, None, earlier=valid):
        older = valid.take(np.flatnonzero(valid.timestamps < test.timestamps[rows].min()))
        known = before.add(older).add(test.take(np.arange(so_far))) if so_far else before.add(older)
        assert by_then.counts.fingerprint == known.fingerprint
        so_far += len(rows)
    assert so_far == len(test)
    assert denoiser.ensemble.counts is before


def test_an_earlier_split_is_counted_alike_for_short_and_long_histories(denoiser):
    """Short test windows: a long one without a time, which is counted for nobody, changes nothing for the others."""
    valid = dataclasses.replace(VALID, timestamps=np.zeros(len(VALID), dtype=np.int64))
    rows = [TEST.row(i)[-4:] for i in range(40)]
    long = max((TEST.row(i) for i in range(len(TEST))), key=len)
    assert 4 < len(long) <= denoiser.width + 1
    short = Windows.from_lists(rows, timestamps=np.arange(1, 41))
    mixed = Windows.from_lists([*rows, long], timestamps=np.array([*range(1, 41), -1]))
    alone, beside = (denoiser.score_and_map(w, has_target=True, earlier=valid)[0] for w in (short, mixed))
    np.testing.assert_array_equal(beside["log_odds"].to_numpy()[: len(alone)], alone["log_odds"].to_numpy())


def test_without_times_a_split_is_not_replayed(denoiser):
    timeless = TEST.take(np.arange(len(TEST)))
    timeless.timestamps = np.full(len(TEST), -1)
    assert len(list(prequential(denoiser.ensemble, timeless, True, None))) == 1


def test_targets_are_not_scored_and_what_is_later_is_not_known(denoiser):
    whole = denoiser.score(TEST, has_target=True)
    assert whole.select("window_id", "position").equals(
        denoiser.score(TEST.histories()).select("window_id", "position")
    )
    order = np.argsort(TEST.timestamps, kind="stable")
    later = order[len(order) // 2 :]
    changed = TEST.take(np.arange(len(TEST)))
    is_later = np.isin(changed.owners, later)
    changed.items[is_later] = changed.items[changed.offsets[changed.owners[is_later]]]  # the first of each window
    other = denoiser.score(changed, has_target=True)
    early = pl.col("window_id").is_in(TEST.window_ids[order[: len(order) // 2]].tolist())
    np.testing.assert_allclose(whole.filter(early)["log_odds"], other.filter(early)["log_odds"], atol=1e-5)
    assert not np.allclose(whole.filter(~early)["log_odds"], other.filter(~early)["log_odds"], atol=1e-2)


def test_a_history_longer_than_a_prompt_is_judged_in_parts(denoiser):
    """30 to 60 items, where training windows had at most 11: a row for each, and suggestions at the right places."""
    rng = np.random.default_rng(0)
    long = Windows.from_lists(
        [rng.integers(0, len(DEMO.data.catalogue), n) for n in (30, 5, 60)], window_ids=np.array([7, 3, 5])
    )
    scores = denoiser.score(long)
    assert scores["window_id"].to_list() == [7] * 30 + [3] * 5 + [5] * 60
    assert scores["position"].to_list() == [*range(30), *range(5), *range(60)]
    assert scores["item_id"].equals(DEMO.data.catalogue.ids.gather(long.items))
    alone = denoiser.score(long.take(np.array([1])))  # one that fits is scored as if it stood alone
    np.testing.assert_allclose(scores.filter(pl.col("window_id") == 3)["log_odds"], alone["log_odds"], atol=1e-5)
    decisions = denoiser.decide(scores, "rate", 0.2, cap=20)
    suggested = denoiser.suggest(long, decisions)
    assert suggested.select("window_id", "position").equals(decisions.select("window_id", "position"))


def test_a_fit_that_fails_leaves_what_was_learned_before(denoiser, scores):
    """The histories are of one user and shorter than those of before: a fold has nothing to learn from."""
    again = denoiser.with_items(DEMO.data.catalogue)
    short = [TRAIN.row(i)[:4] for i in range(40)]
    with pytest.raises(DataError, match="has no user to learn from"):
        again.fit(Windows.from_lists(short, user_ids=pl.Series("user_id", ["one"] * 40)), DEMO.data.catalogue)
    assert (again.width, again.learned_from, again.curve) == (
        denoiser.width, denoiser.learned_from, denoiser.curve,
    )  # fmt: skip
    assert again.score(TEST.histories()).equals(scores)


def test_long_histories_are_counted_in_parts_as_they_are_scored(denoiser):
    """All 60 items again and again make 1,770 pairs; parts of 12 that overlap by half hold 510 of them."""
    history = Windows.from_lists([np.resize(np.arange(60), 198)])
    before = denoiser.ensemble.counts
    counts = denoiser.with_items(DEMO.data.catalogue).update_counts(history).ensemble.counts
    assert counts.counts.sum() - before.counts.sum() == 510
    assert before.add(history).counts.sum() - before.counts.sum() == 1770


def test_windows_longer_than_a_prompt_can_be_are_learned_from_in_parts():
    rng = np.random.default_rng(0)
    long = Windows.from_lists([rng.integers(0, len(DEMO.data.catalogue), 40) for _ in range(12)])
    small = {"model": SMALL["model"], "train": {"epochs": 1, "folds": 1, "batch_windows": 32}}
    again = Denoiser(Config.from_dict(small)).fit(long, DEMO.data.catalogue)
    assert again.width == 26
    assert len(again.score(long)) == 12 * 40


def test_recalibrating_moves_probabilities_but_no_order(denoiser, monkeypatch):
    monkeypatch.setattr("llm4dsr.denoise.score_in_time.MIN_TO_RECALIBRATE", 10)
    plain, anew = (denoiser.score(TEST, has_target=True, recalibrate=flag) for flag in (False, True))
    assert plain["log_odds"].equals(anew["log_odds"])
    assert not plain["noise_probability"].equals(anew["noise_probability"])
    ordered = anew.sort("log_odds")["noise_probability"].to_numpy()
    assert (np.diff(ordered) >= 0).all()


def test_the_noise_rate_is_near_the_planted_tenth(denoiser):
    """An upper bound, from a small sample: odd purchases look like noise as well."""
    assert 0.05 < denoiser.calibrator.noise_rate < 0.25


def test_the_original_is_ranked_far_better_than_by_chance(denoiser):
    """Suggestions for the known noise: the item that stood there is among the nearest much more often than 1 in 60."""
    histories = TEST.histories()
    at = np.flatnonzero(histories.noise_mask)
    rows, positions = histories.owners[at], histories.positions[at]
    decisions = pl.DataFrame({"window_id": histories.window_ids[rows], "position": positions})
    suggested = denoiser.suggest(histories, decisions)
    originals = DEMO.data.catalogue.ids.gather(histories.clean_items[at])
    assert (suggested["suggested_item_id"] == originals).mean() > 3 / 60


def test_a_suggestion_is_never_in_the_window(denoiser, scores):
    histories = TEST.histories()
    decisions = denoiser.decide(scores, "rate", 0.3, cap=3)
    suggested = denoiser.suggest(histories, decisions)
    assert suggested.select("window_id", "position").equals(decisions.select("window_id", "position"))
    canonical = DEMO.data.catalogue.canonical
    row = {w: i for i, w in enumerate(histories.window_ids.tolist())}
    for window, item in suggested.select("window_id", "suggested_item_id").iter_rows():
        inside = canonical[histories.row(row[window])]
        assert canonical[DEMO.data.catalogue.index([item])[0]] not in inside


def test_options_of_suggesting_may_be_set_on_a_fitted_denoiser(tiny_demo):
    titles = {"model": {"item_input": "title", "readout": "title", "hidden_size": 16, "pretrain_epochs": 0},
              "train": {"epochs": 1, "folds": 1, "batch_windows": 64}, "score": {"calibration": "off"}}  # fmt: skip
    config = Config.from_dict(titles, base=Config.from_dict(SMALL))
    writer = Denoiser(config).fit(tiny_demo.splits["train"].take(np.arange(64)), tiny_demo.catalogue)
    histories = tiny_demo.splits["test"].histories().take(np.arange(4))
    flagged = pl.DataFrame({"window_id": histories.window_ids, "position": 0})
    for mode, known in (("free", {"exact", "nearest_embedding"}), ("constrained", {"constrained"})):
        writer.set_params(suggest__mode=mode, suggest__max_new_tokens=4)
        assert set(writer.suggest(histories, flagged)["grounding"]) <= known


def test_the_noise_of_a_small_log_is_found(tiny_demo, monkeypatch):
    """150 training windows, 32 of validation: the networks of training windows score newer ones too."""
    config = Config.from_dict({"threads": 1, "model": {"hidden_size": 32, "layers": 1, "heads": 2, "vector_size": 32},
                               "train": {"epochs": 1, "folds": 2}})  # fmt: skip
    few, newer = limit_windows(tiny_demo.splits["train"], 150, 0), tiny_demo.splits["test"].histories()
    fitted = Denoiser(config).fit(few, tiny_demo.catalogue, tiny_demo.splits["valid"].histories())
    scores = fitted.score(newer)
    assert auroc(align(scores, newer, "log_odds"), newer.truth()) > 0.85
    assert scores["noise_probability"].max() > 0.5
    assert fitted.ensemble.stacker_newer is fitted.ensemble.stacker_training
    monkeypatch.setattr("llm4dsr.denoise.stacking.Stacker.helps", lambda *_: False)  # it is taken only if it helps
    assert Denoiser(config).fit(few, tiny_demo.catalogue).ensemble.stackers == (None, None)


def test_an_unknown_policy_is_refused(denoiser, scores):
    with pytest.raises(ConfigError, match="expected one of"):
        denoiser.decide(scores, "best")


def test_saved_and_loaded_it_scores_and_suggests_the_same(denoiser, scores, tmp_path):
    denoiser.save_pretrained(tmp_path / "denoiser")
    again = Denoiser.from_pretrained(tmp_path / "denoiser")
    histories = TEST.histories()
    np.testing.assert_allclose(scores["log_odds"], again.score(histories)["log_odds"], atol=1e-5)
    decisions = denoiser.decide(scores)
    assert again.suggest(histories, decisions)["suggested_item_id"].equals(
        denoiser.suggest(histories, decisions)["suggested_item_id"]
    )


def test_options_that_take_effect_at_once_are_saved(denoiser, scores, tmp_path):
    """Those of tuning stay the ones that the weights were made with."""
    other = denoiser.with_items(DEMO.data.catalogue)
    other.set_params(decide__eta=0.25, suggest__popularity_weight=-0.5, correct__action="drop", train__epochs=99)
    other.save_pretrained(tmp_path)
    again = Denoiser.from_pretrained(tmp_path)
    assert (again.config.decide, again.config.correct) == (other.config.decide, other.config.correct)
    assert again.config.suggest == other.config.suggest
    assert again.config.train == denoiser.config.train
    assert again.decide(scores).equals(denoiser.decide(scores, "probability", 0.25))


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def single() -> Denoiser:
    """A single model, without stacking."""
    config = Config.from_dict({"train": {"epochs": 1, "folds": 1}, "score": {"stacking": False}},
                              base=Config.from_dict(SMALL))  # fmt: skip
    return Denoiser(config).fit(TRAIN.take(np.arange(80)), DEMO.data.catalogue, VALID.histories())


def test_saved_into_a_used_folder_nothing_of_the_former_one_is_left(denoiser, single, tmp_path):
    """Nor is anything lost that is not of a denoiser."""
    assert denoiser.ensemble.stacker_newer is not None
    single.save_pretrained(tmp_path / "alone")
    own = {".git/HEAD", "LICENSE", "notes/fold_0.txt"}
    for name in own:
        (tmp_path / "used" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "used" / name).write_text("mine")
    denoiser.save_pretrained(tmp_path / "used")
    assert "fold_1/projector.safetensors" in files_of(tmp_path / "used")
    single.save_pretrained(tmp_path / "used")
    assert files_of(tmp_path / "used") == files_of(tmp_path / "alone") | own
    again = Denoiser.from_pretrained(tmp_path / "used")
    assert again.ensemble.stackers == (None, None)
    assert again.ensemble.fingerprint == single.ensemble.fingerprint


@pytest.mark.parametrize("place", [".saved", "denoiser.json", "lm", "manifest.json"])
def test_a_save_that_fails_leaves_the_former_denoiser(place, denoiser, single, tmp_path, monkeypatch):
    """Whether it fails before the new one is complete, or as the first, a later or the last file gets its place."""
    denoiser.save_pretrained(tmp_path)
    before, replace = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}, os.replace

    def refuse(source: Path, target: Path) -> None:
        if target == tmp_path / place and source.parent != tmp_path / ".former":
            raise OSError(errno.EIO, "The disk is broken")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="The disk is broken"):
        single.save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)} == before
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert len(Denoiser.from_pretrained(tmp_path).ensemble.models) == 2


def test_a_folder_that_no_denoiser_wrote_is_not_replaced(single, tmp_path):
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no saved denoiser, but has a folder 'lm'"):
        single.save_pretrained(tmp_path)
    assert files_of(tmp_path) == {"lm/mine.txt"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"format": 2}, "has format 2; this version reads 10"), ({"prompt_hash": "0"}, "tuned with another prompt")],
)
def test_a_denoiser_of_another_time_is_refused(denoiser, tmp_path, changed, said):
    denoiser.save_pretrained(tmp_path)
    card = json.loads((tmp_path / "denoiser.json").read_text())
    (tmp_path / "denoiser.json").write_text(json.dumps(card | changed))
    write_manifest(tmp_path)
    with pytest.raises(ModelError, match=said):
        Denoiser.from_pretrained(tmp_path)


def test_suggestions_of_other_ids_are_never_taken(denoiser, scores, tmp_path):
    """The same titles and windows under other ids: what was kept for the first is not the second's."""
    decisions = denoiser.decide(scores, "rate", 0.05)
    first = denoiser.suggest(TEST.histories(), decisions, work=tmp_path)
    denoiser.save_pretrained(tmp_path / "model")
    items = pl.read_parquet(tmp_path / "model" / "items.parquet")
    renamed = items.with_columns(
        pl.format("x{}", "item_id").alias("item_id"), pl.format("x{}", "canonical_id").alias("canonical_id")
    )
    renamed.write_parquet(tmp_path / "model" / "items.parquet")
    write_manifest(tmp_path / "model")
    second = Denoiser.from_pretrained(tmp_path / "model").suggest(TEST.histories(), decisions, work=tmp_path)
    assert second["suggested_item_id"].to_list() == [f"x{i}" for i in first["suggested_item_id"].to_list()]


def test_the_same_seed_gives_the_same_scores(scores):
    """Up to rounding, which depends on how many cores add up."""
    again = Denoiser(Config.from_dict(SMALL)).fit(TRAIN, DEMO.data.catalogue, VALID.histories())
    np.testing.assert_allclose(again.score(TEST.histories())["log_odds"], scores["log_odds"], atol=1e-3)


def test_histories_may_be_lists_or_pandas(denoiser):
    table = TEST.take(np.arange(3)).histories().to_frame(DEMO.data.catalogue)
    lists = denoiser.score(table["item_ids"].to_list())
    assert len(lists) == table["item_ids"].list.len().sum()
    pandas = pytest.importorskip("pandas", reason="pandas is not installed; Polars tables and lists are tested")
    frame = pandas.DataFrame({name: table[name].to_list() for name in ("window_id", "user_id", "item_ids")})
    assert denoiser.score(frame)["item_id"].equals(denoiser.score(table)["item_id"])


def test_a_list_is_scored_like_users_that_training_has_not_seen(denoiser):
    """Whatever the place in the list, which is also the id of a user in training."""
    table = TEST.histories().take(np.arange(40)).to_frame(DEMO.data.catalogue)
    strangers = table.with_columns(pl.format("never seen {}", "window_id").alias("user_id"))
    lists = table["item_ids"].to_list()
    alone = copy.copy(denoiser)  # without stacking, whose two halves are told apart by the id of a user
    alone._ensemble = dataclasses.replace(denoiser.ensemble, stacker_newer=None, stacker_training=None)
    listed = alone.score([*lists, *lists[::-1]]).partition_by("window_id")
    expected = alone.score(strangers).partition_by("window_id", maintain_order=True)
    for first, again, one in zip(listed[:40], listed[:39:-1], expected, strict=True):
        np.testing.assert_allclose(first["log_odds"], one["log_odds"], atol=1e-5)
        np.testing.assert_allclose(again["log_odds"], one["log_odds"], atol=1e-5)


def test_probability_and_position_tables_line_up(denoiser, scores):
    histories = TEST.histories()
    log_odds = align(scores, histories, "log_odds")
    assert np.isfinite(log_odds).all()
