"""Labels that training learns from: which interactions they are about, what they teach, and what is refused."""

import numpy as np
import polars as pl
import pytest

from llm4dsr.config import Config
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.stacking import N_EVIDENCE, Evidence, Stacker
from llm4dsr.denoise.training_labels import NO_LABELS, UNLABELED, TrainingLabels
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import ConfigError, DataError
from llm4dsr.metrics import auroc

CATALOGUE = Catalogue(pl.Series(["007", "7", "x"]), ["Bond", "Seven", "Exit"])


def labels(*rows: tuple[object, ...]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "is_noise"], orient="row", strict=False)


def windows_of(*histories: tuple[str, list[int]]) -> Windows:
    users, items = zip(*histories, strict=True)
    n = len(users)
    return Windows(
        np.concatenate(items), np.array([len(i) for i in items]), np.arange(n), pl.Series(users), -np.ones(n)
    )


def test_a_label_holds_in_all_windows_of_its_user_and_in_no_other():
    read = TrainingLabels.of(labels(("ann", "007", 1), ("ann", "x", 0)), CATALOGUE)
    found = read.find(windows_of(("ann", [0, 1]), ("bob", [0, 2]), ("ann", [2, 0])))
    assert found.tolist() == [1, UNLABELED, UNLABELED, UNLABELED, 0, 1]


def test_ids_are_compared_as_text():
    """Numbers in a table of labels name users whose ids are text, and the other way round."""
    read = TrainingLabels.of(labels((12, 7, 1)), CATALOGUE)
    assert read.find(windows_of(("12", [0, 1]))).tolist() == [UNLABELED, 1]


def test_contradictions_unknown_items_and_what_was_not_looked_at_teach_nothing(caplog):
    table = labels(("ann", "x", 1), ("ann", "x", 0), ("ann", "7", 1), ("ann", "007", 1), ("bob", "gone", 1))
    table = table.with_columns(answer=pl.Series(["noise", "fits", "accepted", "noise", "noise"]))
    read = TrainingLabels.of(table, CATALOGUE)
    assert read.find(windows_of(("ann", [0, 1, 2]))).tolist() == [1, UNLABELED, UNLABELED]
    assert "3 label(s) are left out: 1 about items that are not in the catalogue, 2 about items" in caplog.text


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (labels(("ann", "x", 1)).drop("user_id"), r"lack user_id; .* labels\.csv of the review page has them"),
        (labels(("ann", "x", 2)), "neither 0 nor 1"),
        (labels(("ann", "x", 1)).clear(), "no labels"),
        (labels(("ann", "0x", 1)), "No label is about an item of the catalogue"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(table, message):
    with pytest.raises(DataError, match=message):
        TrainingLabels.of(table, CATALOGUE)


def test_without_labels_nothing_is_labeled():
    assert set(NO_LABELS.find(windows_of(("ann", [0, 1])))) == {UNLABELED}


def test_stacking_learns_noise_of_a_kind_that_is_not_injected():
    """Injected noise stands out in two inputs. What stands out in the third is noise, too: labels alone tell."""
    rng = np.random.default_rng(0)
    n = 6_000
    normal, injected = rng.normal(size=(2, n, N_EVIDENCE)).astype(np.float32)
    injected[:, :2] += 2
    odd = np.arange(n) < 600  # among the unlabeled
    normal[odd, 2] += 3
    half = np.arange(n) % 2
    told = np.full(n, UNLABELED, np.int8)
    told[:100], told[600:700] = 1, 0
    evidence = Evidence(normal, half)
    without, learned = (
        Stacker.fit([(Evidence(injected, half), 1.0)], evidence, 0.1, 0, known) for known in (None, told)
    )
    unseen = told == UNLABELED
    before, after = (auroc(stacker(evidence)[unseen], odd[unseen]) for stacker in (without, learned))
    assert before < 0.6 < 0.7 < after


@pytest.fixture(scope="module")
def of_an_item(tiny_demo):
    """(histories, the most frequent item, labels that call it noise for every second user who has it)."""
    histories = tiny_demo.splits["train"]
    item = int(np.bincount(histories.items).argmax())
    users = histories.user_ids.gather(np.unique(histories.owners[histories.items == item])).unique(maintain_order=True)
    name = tiny_demo.catalogue.ids[item]
    return histories, item, labels(*[(user, name, 1) for user in users.to_list()[::2]])


def test_what_is_said_of_some_users_is_learned_for_others(tiny_demo, of_an_item):
    histories, item, table = of_an_item
    config = Config.from_dict({
        "threads": 1, "model": {"hidden_size": 32, "layers": 1, "heads": 2, "vector_size": 32},
        "train": {"epochs": 8, "folds": 2, "batch_windows": 16}, "score": {"stacking": False},
    })  # fmt: skip
    means = list[float]()
    for given in (None, table):
        fitted = Denoiser(config).fit(histories, tiny_demo.catalogue, labels=given)
        assert fitted.learned_from.get("labels") == (given if given is None else len(given))
        odds = fitted.score(histories)["log_odds"].to_numpy()
        read = TrainingLabels.of(table, tiny_demo.catalogue).find(histories)
        others = (histories.items == item) & (read == UNLABELED)
        means.append(odds[others].mean() - odds[histories.items != item].mean())
    assert means[1] > means[0] + 0.3


def test_labels_of_nobody_here_and_of_another_readout_are_refused(tiny_demo, of_an_item):
    histories, item, _ = of_an_item
    stranger = labels(("nobody", tiny_demo.catalogue.ids[item], 1))
    with pytest.raises(DataError, match="Do they name the same users"):
        Denoiser().fit(histories, tiny_demo.catalogue, labels=stranger)
    named = Denoiser(Config.from_dict({"model": {"item_input": "title", "readout": "title"}}))
    with pytest.raises(ConfigError, match="readout: per_position"):
        named.fit(histories, tiny_demo.catalogue, labels=stranger)


def test_windows_with_a_label_are_tuned_on_beside_those_that_are_drawn(tiny_demo):
    """A sample of one window: reviewers did not work in vain."""
    train, catalogue = tiny_demo.splits["train"], tiny_demo.catalogue
    user = train.user_ids[0]
    own = train.take(np.flatnonzero((train.user_ids == user).to_numpy()))
    item = int(np.bincount(own.items).argmax())
    with_item = sum(item in own.row(i) for i in range(len(own)))
    assert with_item > 1
    config = Config.from_dict({"model": {"hidden_size": 8, "layers": 1, "heads": 1},
                               "train": {"samples": 1, "batch_windows": 1, "epochs": 1, "folds": 1},
                               "score": {"stacking": False, "calibration": "off"}})  # fmt: skip
    steps = []
    for given in (None, labels((user, catalogue.ids[item], 1))):
        heard = []
        Denoiser(config).fit(train, catalogue, tiny_demo.splits["valid"].histories(), labels=given,
                             progress=lambda done, total, doing, to=heard: to.append((total, doing)))  # fmt: skip
        steps.append(next(total for total, doing in heard if doing.startswith("tune")))
    assert steps[0] == 1
    assert steps[1] in (with_item, with_item + 1)
