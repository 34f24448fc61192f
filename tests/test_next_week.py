"""New histories: `partial_fit` goes on with them alone, `fit(start=…)` begins from the former weights."""

import dataclasses
import re

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config, Denoiser
from llm4dsr.core.cache import PartCache
from llm4dsr.core.hashing import user_folds, user_hashes
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise.calibrate import NoiseKind
from llm4dsr.errors import ConfigError, DataError, ModelError

from .lm.test_model_sources import make_checkpoint

SMALL = {
    "threads": 1,
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "vector_size": 16, "vocabulary": 400},
    "train": {"epochs": 1, "folds": 2, "batch_windows": 32, "learning_rate": 0.01},
    "score": {"calibration_draws": 1},
}


def configured(train: dict | None = None, **model: object) -> Config:
    return Config.from_dict(SMALL | {"train": SMALL["train"] | (train or {}), "model": SMALL["model"] | model})


def halves(data) -> tuple[Windows, Windows]:
    """Training windows of two weeks; some users are in both."""
    train = data.splits["train"]
    return train.take(np.arange(0, len(train) // 2)), train.take(np.arange(len(train) // 2, len(train)))


def fitted(data, config: Config, valid: int = 40) -> Denoiser:
    valid = limit_windows(data.splits["valid"].histories(), valid, 0)
    return Denoiser(config).fit(halves(data)[0], data.catalogue, valid)


def copied(denoiser: Denoiser) -> Denoiser:
    """Another denoiser with the same parts, which `partial_fit` may change."""
    return denoiser.with_items(denoiser.catalogue)


def log_odds(denoiser: Denoiser, windows: Windows) -> np.ndarray:
    """Of the models, before stacking."""
    return denoiser.ensemble.model_log_odds(windows, None, "score", PartCache())


def fingerprints(denoiser: Denoiser) -> list[str]:
    return [model.fingerprint() for model in denoiser.ensemble.models]


@pytest.fixture(scope="module")
def former(tiny_demo) -> Denoiser:
    return fitted(tiny_demo, configured())


# --- partial_fit -----------------------------------------------------------------------------------------------------


def test_counts_hold_the_new_histories_and_weights_have_moved(former, tiny_demo):
    first, second = halves(tiny_demo)
    before = fingerprints(former)
    denoiser = copied(former)
    assert denoiser.partial_fit(second) is denoiser
    assert denoiser.ensemble.counts.fingerprint == former.ensemble.counts.add(second).fingerprint
    assert all(new != old for new, old in zip(fingerprints(denoiser), before, strict=True))
    assert fingerprints(former) == before  # which has shared its weights
    assert len(denoiser.curve) == len(former.curve) + 2
    users = np.union1d(user_hashes(first.user_ids), user_hashes(second.user_ids))
    assert denoiser.ensemble.seen.tolist() == users.tolist()
    assert denoiser.config == former.config


def test_a_model_never_learns_from_users_that_it_scores(tiny_demo):
    """Other histories of the users of fold 0 change model 1 alone, which scores other users."""
    denoiser = fitted(tiny_demo, configured(cooccurrence=False))
    second = halves(tiny_demo)[1]
    of_fold = user_folds(second.user_ids, 2)
    other = dataclasses.replace(second, items=second.items.copy())
    changed = (of_fold == 0)[second.owners]
    other.items[changed] = (other.items[changed] + 7) % len(tiny_demo.catalogue)
    ones, others = (fingerprints(copied(denoiser).partial_fit(week)) for week in (second, other))
    assert ones[0] == others[0]
    assert ones[1] != others[1]


def test_known_users_are_scored_out_of_fold_afterwards(former, tiny_demo):
    denoiser = copied(former).partial_fit(halves(tiny_demo)[1])
    train = tiny_demo.splits["train"]
    for rows, members in denoiser.ensemble.assignments(train):
        assert len(members) == 1
        assert (user_folds(train.take(rows).user_ids, 2) == members[0]).all()


def test_new_items_and_users_are_learned_with_them(former, tiny_demo):
    items = pl.DataFrame({"item_id": [9001], "title": ["Wooden Robot"]})
    ids = tiny_demo.catalogue.ids
    week = pl.DataFrame({
        "window_id": range(20), "user_id": [f"new {i}" for i in range(20)],
        "item_ids": [[9001, *ids[i : i + 5].to_list()] for i in range(20)],
    })  # fmt: skip
    with pytest.raises(DataError, match="9001"):
        copied(former).partial_fit(week)
    denoiser = copied(former).partial_fit(week, items)
    assert denoiser.ensemble.counts.popularity[-1] == 20
    assert denoiser.score(week)["log_odds"].is_finite().all()


def test_what_a_copy_learns_is_not_told_of_the_former(former, tiny_demo):
    before = dict(former.learned_from)
    denoiser, week = copied(former), limit_windows(halves(tiny_demo)[1], 50, 0)
    denoiser.partial_fit(week, epochs=0)
    assert denoiser.learned_from["histories"] == before["histories"] + 50
    assert former.learned_from == before


def test_without_epochs_weights_stay(former, tiny_demo):
    denoiser = copied(former).partial_fit(halves(tiny_demo)[1], epochs=0)
    assert fingerprints(denoiser) == fingerprints(former)
    assert denoiser.ensemble.counts.fingerprint != former.ensemble.counts.fingerprint


def test_few_histories_leave_the_calibration_as_it_is(former, tiny_demo, caplog):
    denoiser = copied(former).partial_fit(limit_windows(halves(tiny_demo)[1], 50, 0))
    assert denoiser.calibrator == former.calibrator
    assert denoiser.ensemble.stacker_newer is former.ensemble.stacker_newer
    assert "The calibration stays as it is: 50 validation histories; 200 are needed" in caplog.text


def test_validation_of_one_user_is_enough(tiny_demo):
    """All its histories are scored by one of two models, which is not the first one."""
    train = tiny_demo.splits["train"]
    user = train.user_ids.gather(np.flatnonzero(user_folds(train.user_ids, 2) == 1))[0]
    own = np.flatnonzero((train.user_ids == user).to_numpy())
    valid = dataclasses.replace(train.take(np.resize(own, 25)).histories(), window_ids=np.arange(25))
    denoiser = Denoiser(configured()).fit(train, tiny_demo.catalogue, valid)
    assert denoiser.calibrator.kinds


def test_a_single_model_warns_if_it_is_calibrated_on_what_it_knows(tiny_demo, caplog):
    train = tiny_demo.splits["train"]
    Denoiser(configured({"folds": 1})).fit(train, tiny_demo.catalogue, limit_windows(train, 30, 0).histories())
    assert "calibrated on users that the single model was tuned on" in caplog.text
    assert re.search(r"0 of \d+ validation histories are of other users; 200 are needed", caplog.text)
    caplog.clear()
    fitted(tiny_demo, configured({"folds": 1}))  # all are of other users
    assert "tuned on" not in caplog.text


@pytest.mark.parametrize("folds", [1, 2])
def test_enough_histories_calibrate_again(folds, tiny_demo, monkeypatch):
    """A single fold is calibrated on users that were held out; several folds score each user out of fold."""
    monkeypatch.setattr("llm4dsr.denoiser.fitting.MIN_TO_CALIBRATE", 5)
    monkeypatch.setattr("llm4dsr.denoise.fit_calibration.MIN_WINDOWS", 5)
    first = fitted(tiny_demo, configured({"folds": folds}))
    second = halves(tiny_demo)[1]
    denoiser = copied(first).partial_fit(second)
    assert denoiser.calibrator != first.calibrator
    assert denoiser.calibrator.uncalibrated == ""
    assert denoiser.calibrator.rates == first.calibrator.rates
    assert denoiser.ensemble.counts.fingerprint == first.ensemble.counts.add(second).fingerprint
    held_out = ~np.isin(user_hashes(second.user_ids), denoiser.ensemble.seen)
    assert held_out.any() == (folds == 1)


def test_after_a_week_that_it_cannot_judge_nothing_is_noise(former, tiny_demo, monkeypatch, caplog):
    """The rates of `fit` are not put on a map that distinguishes nothing."""
    monkeypatch.setattr("llm4dsr.denoiser.fitting.MIN_TO_CALIBRATE", 5)
    monkeypatch.setattr("llm4dsr.denoise.calibrate.MIN_AUROC", 1.1)
    denoiser, rates = copied(former), [(0.05, 0.1, 0.12)] * 2
    denoiser.calibrator = dataclasses.replace(former.calibrator, kinds=[
        NoiseKind([0.0, 1.0], [0.5, 2.0], *of_kind) for of_kind in rates])  # fmt: skip
    week = halves(tiny_demo)[1]
    denoiser.partial_fit(week)
    assert "does not distinguish injected noise" in caplog.text
    assert denoiser.score(week)["noise_probability"].max() == 0


def test_a_fold_without_new_users_keeps_its_weights(former, tiny_demo):
    week = halves(tiny_demo)[1]
    week = week.take(np.flatnonzero(user_folds(week.user_ids, 2) == 0))  # scored by model 0, learned from by model 1
    after, before = fingerprints(copied(former).partial_fit(week)), fingerprints(former)
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_validation_that_is_given_is_not_counted(former, tiny_demo, monkeypatch):
    monkeypatch.setattr("llm4dsr.denoiser.fitting.MIN_TO_CALIBRATE", 5)
    week, valid = halves(tiny_demo)[1], tiny_demo.splits["valid"].histories()
    denoiser = copied(former).partial_fit(week, valid=valid)
    assert denoiser.ensemble.counts.fingerprint == former.ensemble.counts.add(week).fingerprint
    assert denoiser.calibrator != former.calibrator


def test_saved_and_loaded_it_goes_on_the_same(former, tiny_demo, tmp_path):
    week = halves(tiny_demo)[1]
    denoiser = copied(former).partial_fit(week)
    former.save_pretrained(tmp_path / "before")
    again = Denoiser.from_pretrained(tmp_path / "before").partial_fit(week)
    np.testing.assert_allclose(again.score(week)["log_odds"], denoiser.score(week)["log_odds"], atol=1e-4)
    denoiser.save_pretrained(tmp_path / "after")
    loaded = Denoiser.from_pretrained(tmp_path / "after")
    np.testing.assert_allclose(loaded.score(week)["log_odds"], denoiser.score(week)["log_odds"], atol=1e-5)


@pytest.mark.parametrize("way", ["partial", "start"])
def test_interrupted_it_resumes_to_the_same_weights(way, former, tiny_demo, tmp_path, monkeypatch):
    monkeypatch.setattr("llm4dsr.denoise.train.CHECKPOINT_SECONDS", 0.0)
    week, valid = halves(tiny_demo)[1], limit_windows(tiny_demo.splits["valid"].histories(), 20, 0)

    def learn(work, progress=None) -> Denoiser:
        if way == "partial":
            return copied(former).partial_fit(week, epochs=2, progress=progress, work=work)
        config = configured({"epochs": 2})
        return Denoiser(config).fit(week, tiny_demo.catalogue, valid, progress, work, start=former)

    steps = []

    def interrupt(done: int, total: int, doing: str) -> None:
        steps.append(doing)
        if doing.startswith("tune 2 of 2") and done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "work", interrupt)
    first = len([s for s in steps if s.startswith("tune")])
    steps.clear()
    resumed = learn(tmp_path / "work", lambda done, total, doing: steps.append(doing))
    assert 0 < len([s for s in steps if s.startswith("tune")]) < first
    assert fingerprints(resumed) == fingerprints(learn(None))


def test_what_cannot_be_learned_from_is_refused(former, tiny_demo):
    with pytest.raises(DataError, match=r"3 window\(s\) to learn from; at least 10"):
        copied(former).partial_fit(tiny_demo.splits["train"].take(np.arange(3)))
    with pytest.raises(ConfigError, match="partial_fit: train: epochs = -1"):
        copied(former).partial_fit(tiny_demo.splits["train"], epochs=-1)
    with pytest.raises(ModelError, match="has not been fitted"):
        Denoiser(configured()).partial_fit(tiny_demo.splits["train"])


# --- fit(start=…) ----------------------------------------------------------------------------------------------------


def rearranged(data) -> tuple[Catalogue, np.ndarray]:
    """The catalogue in another order, with a new item in front, and the new row of each old one."""
    n, order = len(data.catalogue), np.random.default_rng(0).permutation(len(data.catalogue))
    ids = pl.concat([pl.Series("item_id", [9001]), data.catalogue.ids.gather(order)])
    catalogue = Catalogue(ids, ["Quite New", *(data.catalogue.titles[row] for row in order)])
    rows = np.empty(n, dtype=np.int64)
    rows[order] = np.arange(1, n + 1)
    return catalogue, rows


FORMS = {
    "embedded": {},
    "embedded, no counts": {"cooccurrence": False},
    "titles": {"source": "checkpoint", "item_input": "title", "readout": "title"},
    "soft tokens by LoRA": {"source": "checkpoint", "tuning": "lora", "cooccurrence": False},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_before_tuning_it_scores_as_the_former(form, tiny_demo, tmp_path):
    """However the catalogue is ordered; counts are made anew of the same windows."""
    if form.get("source"):
        form = form | {"source": str(make_checkpoint(tmp_path / "base", tiny_demo.catalogue.titles))}
    former = fitted(tiny_demo, configured({"samples": 60}, **form), valid=10)
    catalogue, rows = rearranged(tiny_demo)

    def moved(windows: Windows) -> Windows:
        return dataclasses.replace(windows, items=rows[windows.items], clean_items=None)

    train, valid = halves(tiny_demo)[0], limit_windows(tiny_demo.splits["valid"].histories(), 10, 0)
    start = Denoiser(configured({"epochs": 0}, **form)).fit(moved(train), catalogue, moved(valid), start=former)
    test = limit_windows(tiny_demo.splits["test"].histories(), 30, 0)
    # Collaborative vectors are a randomized decomposition, which depends a little on the order of items.
    tolerance = 1e-5 if former.ensemble.counts is None else 0.05
    np.testing.assert_allclose(log_odds(start, moved(test)), log_odds(former, test), atol=tolerance)
    ids = catalogue.ids[:6].to_list()  # the new one first
    assert start.score([ids])["log_odds"].is_finite().all()


def test_in_the_same_order_it_scores_exactly_as_the_former(former, tiny_demo):
    train, valid = halves(tiny_demo)[0], limit_windows(tiny_demo.splits["valid"].histories(), 40, 0)
    start = Denoiser(configured({"epochs": 0})).fit(train, tiny_demo.catalogue, valid, start=former)
    test = tiny_demo.splits["test"].histories()
    assert np.array_equal(log_odds(start, test), log_odds(former, test))
    assert fingerprints(start) == fingerprints(former)


def test_items_that_are_gone_and_changed_titles_are_taken(former, tiny_demo):
    """Known titles keep their vectors; a changed one is encoded."""
    kept = np.ones(len(tiny_demo.catalogue), dtype=bool)
    kept[:10] = False
    catalogue = tiny_demo.catalogue.filter(kept)
    catalogue = Catalogue(catalogue.ids, ["Changed Title", *catalogue.titles[1:]])
    first = halves(tiny_demo)[0].take(np.arange(60))
    windows = dataclasses.replace(first, items=(first.items - 10).clip(0), clean_items=None)
    start = Denoiser(configured()).fit(windows, catalogue, windows.take(np.arange(30)), start=former)
    vectors = start.model.vectors
    assert (vectors[1:] == former.model.vectors[11:]).all()
    np.testing.assert_allclose(vectors[0], former.ensemble.encoder(["Changed Title"])[0])
    assert start.score(windows)["log_odds"].is_nan().sum() == 0


def test_tuning_goes_on_and_leaves_the_former_as_it_was(former, tiny_demo):
    before, week = fingerprints(former), halves(tiny_demo)[1]
    valid = limit_windows(tiny_demo.splits["valid"].histories(), 40, 0)
    start = Denoiser(configured()).fit(week, tiny_demo.catalogue, valid, start=former)
    assert fingerprints(former) == before
    assert not set(fingerprints(start)) & set(before)
    counted = user_hashes(week.user_ids)
    assert set(former.ensemble.seen.tolist()) | set(counted.tolist()) == set(start.ensemble.seen.tolist())
    assert start.ensemble.counts.popularity.sum() < former.ensemble.counts.add(week).popularity.sum()  # made anew


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (configured(hidden_size=32), "model.hidden_size is 16 there and 32 here"),
        (configured(cooccurrence=False), "model.cooccurrence is True there and False here"),
        (configured({"folds": 3}), "train.folds is 2 there and 3 here"),
    ],
)
def test_options_that_do_not_fit_are_refused(config, said, former, tiny_demo):
    with pytest.raises(ConfigError, match=said):
        Denoiser(config).fit(halves(tiny_demo)[1], tiny_demo.catalogue, start=former)
