"""Correcting goes by position: what else carries the same item stays, and a test target is never touched."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr import columns as c
from llm4dsr.config import Config, CorrectConfig
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.correct import Corrected, apply, correct
from llm4dsr.denoise.suggest import Suggestions
from llm4dsr.errors import ConfigError, DataError
from llm4dsr.evaluate.rows import DecisionTables, correct_split
from llm4dsr.pipeline import Run

LETTERS = "abcdefgh"
CATALOGUE = Catalogue(pl.Series("item_id", list(LETTERS)), [f"Toy {x}" for x in LETTERS])


def windows(*words: str) -> Windows:
    """windows("abc", …): one window each, oldest first; the last letter is the target."""
    rows = [[LETTERS.index(x) for x in word] for word in words]
    return Windows.from_lists(rows, user_ids=pl.Series(c.USER, [f"user{i}" for i in range(len(words))]))


def at(shape: Windows, *flags: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(len(shape.items), dtype=bool)
    for row, position in flags:
        mask[shape.offsets[row] + position] = True
    return mask


def suggested(before: Windows, mask: np.ndarray, letters: str) -> Suggestions:
    """One letter for each flag, in order; "-" = nothing was left to suggest."""
    found = Suggestions.none(before.owners[mask], before.positions[mask])
    found.items = np.array([LETTERS.find(x) for x in letters], dtype=np.int64)
    found.grounding = ["none" if x == "-" else "constrained" for x in letters]
    found.distance[:], found.probability[:] = 0.0, 0.5
    return found


def spelled(result: Corrected) -> list[str]:
    return ["".join(CATALOGUE.ids[i] for i in result.windows.row(w)) for w in range(len(result.windows))]


def run(before: Windows, mask: np.ndarray, action: str, letters: str | None = None, has_target: bool = False):
    probability = np.full(before.items.shape, 0.75)
    suggestions = None if letters is None else suggested(before, mask, letters)
    return correct(before, mask, probability, suggestions, CATALOGUE, action, has_target)


# --- by position -----------------------------------------------------------------------------------------------------


def test_only_the_flagged_position_of_a_repeated_item_is_replaced():
    before = windows("abab", "aaa")
    result = run(before, at(before, (0, 2), (1, 0)), "replace", "cd")
    assert spelled(result) == ["abcb", "daa"]
    assert before.items.tolist() == windows("abab", "aaa").items.tolist()  # what was given stays as it was


def test_only_the_flagged_position_of_a_repeated_item_is_dropped():
    before = windows("abab", "aaab")
    assert spelled(run(before, at(before, (0, 0), (1, 1)), "drop")) == ["bab", "aab"]


def test_only_the_flagged_position_of_a_repeated_item_is_downweighted():
    before = windows("abab", "aba")
    result = run(before, at(before, (0, 2)), "downweight")
    assert spelled(result) == ["abab", "aba"]
    assert result.windows.weights.tolist() == [1, 1, 0.25, 1, 1, 1, 1]  # 1 - probability


@pytest.mark.parametrize(("action", "letters", "expected"), [("replace", "c", "cba"), ("drop", None, "ba")])
def test_a_test_target_with_the_id_of_a_flagged_item_is_not_changed(action, letters, expected):
    before = windows("aba")
    assert spelled(run(before, at(before, (0, 0)), action, letters, has_target=True)) == [expected]


@pytest.mark.parametrize(("action", "letters"), [("replace", "c"), ("drop", None), ("downweight", None)])
def test_a_flag_on_a_fixed_target_is_refused(action, letters):
    before = windows("abcd", "ab")
    with pytest.raises(DataError, match="Position 1 of window_id 1 is flagged, but it is the target"):
        run(before, at(before, (1, 1)), action, letters, has_target=True)


@given(
    words=st.lists(st.text(LETTERS, min_size=2, max_size=7), min_size=1, max_size=6),
    action=st.sampled_from(["replace", "drop", "downweight"]),
    seed=st.integers(0, 1000),
)
def test_targets_of_evaluation_windows_stay_whatever_is_flagged(words, action, seed):
    before = windows(*words)
    mask = (np.random.default_rng(seed).random(len(before.items)) < 0.4) & ~before.is_last
    full = np.bincount(before.owners[mask], minlength=len(words)) >= before.lengths - 1
    mask &= ~(full[before.owners] & (before.positions == 0))  # as when deciding: one interaction of a history stays
    result = run(before, mask, action, "h" * int(mask.sum()), has_target=True)
    assert [word[-1] for word in spelled(result)] == [word[-1] for word in words]
    assert result.windows.window_ids.tolist() == list(range(len(words)))


# --- actions ---------------------------------------------------------------------------------------------------------


def test_where_nothing_was_left_to_suggest_the_item_is_kept():
    before = windows("abc")
    result = run(before, at(before, (0, 0), (0, 1)), "replace", "-h")
    assert spelled(result) == ["ahc"]
    assert result.edits[c.ACTION].to_list() == ["keep", "replace"]
    assert result.edits[c.KEPT].to_list() == ["a", "h"]
    assert result.edits[c.SUGGESTED].to_list() == [None, "h"]


def test_the_target_of_a_training_window_may_be_replaced():
    before = windows("abc")
    assert spelled(run(before, at(before, (0, 2)), "replace", "d")) == ["abd"]


def test_dropping_leaves_out_training_windows_of_one_item():
    """abcd loses its target, so that c is the target now; ef keeps only its target, and there is nothing to learn."""
    before = windows("abcd", "bcd", "ef", "abgh")
    result = run(before, at(before, (0, 3), (1, 1), (2, 0), (3, 0), (3, 1)), "drop")
    assert spelled(result) == ["abc", "bd", "gh"]
    assert result.windows.window_ids.tolist() == [0, 1, 3]
    assert result.windows.user_ids.to_list() == ["user0", "user1", "user3"]
    assert len(result.edits) == 5  # what was flagged in the windows that are left out is listed too


def test_a_split_that_is_left_out_altogether_is_an_empty_table_of_the_same_columns():
    before = windows("ab")
    result = run(before, at(before, (0, 0)), "drop").windows.to_frame(CATALOGUE)
    assert result.is_empty()
    assert result.schema == before.to_frame(CATALOGUE).schema


def test_weights_are_multiplied_and_follow_their_items_when_dropped():
    before = windows("abcd", "efg")
    once = run(before, at(before, (0, 1)), "downweight").windows
    twice = run(once, at(once, (0, 1), (1, 0)), "downweight").windows
    assert twice.weights.tolist() == [1, 0.0625, 1, 1, 0.25, 1, 1]
    dropped = run(twice, at(twice, (0, 0)), "drop")
    assert spelled(dropped) == ["bcd", "efg"]
    assert dropped.windows.weights.tolist() == [0.0625, 1, 1, 0.25, 1, 1]


def test_the_known_truth_stays_where_its_positions_do():
    before = windows("abc", "def")
    before = dataclasses.replace(before, noise_mask=at(before, (0, 1)), clean_items=windows("agc", "def").items)
    assert run(before, at(before, (0, 0)), "replace", "h").windows.noise_mask.tolist() == before.noise_mask.tolist()
    kept = run(before, at(before, (0, 0)), "downweight").windows
    assert kept.clean_items.tolist() == before.clean_items.tolist()
    dropped = run(before, at(before, (0, 0)), "drop").windows
    assert dropped.noise_mask is None
    assert dropped.clean_items is None


@pytest.mark.parametrize("action", ["replace", "drop", "downweight"])
def test_without_flags_nothing_changes(action):
    before = windows("abc", "de")
    result = run(before, at(before), action, "")
    assert spelled(result) == ["abc", "de"]
    assert result.edits.is_empty()
    assert result.edits.schema == run(before, at(before, (0, 0)), action, "h").edits.schema


def test_unknown_actions_and_missing_suggestions_are_refused():
    before = windows("abc")
    with pytest.raises(ConfigError, match="'remove'; expected one of replace, drop, mixed, downweight"):
        run(before, at(before, (0, 0)), "remove")
    with pytest.raises(ConfigError, match="needs suggestions: run the suggest stage"):
        run(before, at(before, (0, 0)), "replace")


def test_mixed_replaces_the_surer_half_and_drops_the_rest():
    before = windows("abcd", "efg")
    mask = at(before, (0, 0), (0, 2), (1, 1), (1, 2))
    found = suggested(before, mask, "hhh-")
    found.probability[:] = [0.9, 0.1, 0.5, np.nan]
    result = correct(before, mask, np.full(mask.shape, 0.75), found, CATALOGUE, "mixed", has_target=False)
    assert spelled(result) == ["hbd", "eh"]
    assert result.edits[c.ACTION].to_list() == ["replace", "drop", "replace", "drop"]
    assert result.edits[c.KEPT].to_list() == ["h", None, "h", None]


# --- edits and tables ------------------------------------------------------------------------------------------------


def test_the_list_of_edits():
    before = windows("abab", "cd")
    mask = at(before, (0, 2), (1, 0))
    (one, two) = run(before, mask, "replace", "hg").edits.to_dicts()
    assert one == {
        "window_id": 0, "user_id": "user0", "position": 2, "item_id": "a", "title": "Toy a", "noise_probability": 0.75,
        "suggested_item_id": "h", "suggested_title": "Toy h", "generated_text": None, "grounding": "constrained",
        "distance": 0.0, "suggestion_probability": 0.5, "action": "replace", "kept_item_id": "h",
    }  # fmt: skip
    assert (two["user_id"], two["item_id"], two["kept_item_id"]) == ("user1", "c", "g")

    one = run(before, mask, "drop").edits.row(0, named=True)
    assert (one["action"], one["kept_item_id"], one["suggested_item_id"], one["grounding"]) == (
        "drop", None, None, "none",
    )  # fmt: skip
    one = run(before, mask, "downweight").edits.row(0, named=True)
    assert (one["action"], one["kept_item_id"]) == ("downweight", "a")


def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Window 7 "abc", positions 2 and 0, in another order in each table."""
    decisions = pl.DataFrame({c.WINDOW: [7, 7], c.POSITION: [2, 0], c.NOISE_PROBABILITY: [0.6, 0.9]})
    suggestions = pl.DataFrame(
        {c.WINDOW: [7, 7], c.POSITION: [0, 2], c.SUGGESTED: ["h", "g"], c.SUGGESTED_TITLE: ["Toy h", "Toy g"],
         c.GENERATED: ["Toy h", "Toy g"], c.GROUNDING: ["exact", "exact"], c.DISTANCE: [0.0, 0.0],
         c.SUGGESTION_PROBABILITY: [0.5, 0.5]}
    )  # fmt: skip
    return decisions, suggestions


def test_tables_are_matched_by_window_and_position():
    before = dataclasses.replace(windows("abc"), window_ids=np.array([7]))
    result = apply(before, *tables(), CATALOGUE, "replace", has_target=False)
    assert spelled(result) == ["hbg"]
    assert result.edits.select(c.POSITION, c.NOISE_PROBABILITY, c.KEPT).rows() == [(0, 0.9, "h"), (2, 0.6, "g")]


def test_two_suggestions_for_one_interaction_are_refused():
    before = dataclasses.replace(windows("abc"), window_ids=np.array([7]))
    decisions, suggestions = tables()
    with pytest.raises(DataError, match="several rows for position 0 of window_id 7; expected one"):
        apply(before, decisions, pl.concat([suggestions, suggestions.head(1)]), CATALOGUE, "replace", has_target=False)


def test_training_targets_can_be_spared():
    before = dataclasses.replace(windows("abc"), window_ids=np.array([7]))
    decisions, suggestions = tables()
    both = DecisionTables({c.TRAIN: decisions}, {c.TRAIN: suggestions})
    assert spelled(correct_split(c.TRAIN, before, both, CATALOGUE, CorrectConfig())) == ["hbg"]
    assert spelled(correct_split(c.TRAIN, before, both, CATALOGUE, CorrectConfig(train_targets=False))) == ["hbc"]


def test_corrected_windows_can_be_read_again(tmp_path):
    before = windows("abab", "cdef", "ghab")
    weighted = run(before, at(before, (0, 2)), "downweight").windows
    of_others = {name: pl.Series(c.USER, [f"{name} {i}" for i in range(3)]) for name in c.SPLITS}
    splits = {name: dataclasses.replace(weighted, user_ids=users) for name, users in of_others.items()}
    Dataset(CATALOGUE, splits).write(tmp_path)
    new = Run(tmp_path / "run", Config.from_dict({"threads": 1}))
    new.prepare(tmp_path)
    again = new.data().splits[c.TRAIN]
    assert again.items.tolist() == weighted.items.tolist()
    assert again.weights.tolist() == weighted.weights.tolist()
