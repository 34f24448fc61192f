"""Tables that come back: from pandas or Arrow they mean the same, and what they cannot mean is refused."""

import numpy as np
import polars as pl
import pytest

from llm4dsr import Denoiser
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.tables import given_table
from llm4dsr.errors import DataError

from ..tiny_run import CONFIG


@pytest.fixture(scope="module")
def denoiser(tiny_demo) -> Denoiser:
    return Denoiser(CONFIG).fit(tiny_demo.splits["train"], tiny_demo.catalogue)


def same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Equal in columns, types and values, NaN included."""
    return one.schema == other.schema and one.equals(other, null_equal=True)


@pytest.mark.parametrize("library", ["pandas", "arrow", "polars"])
def test_tables_of_other_libraries_are_taken(library, denoiser, tiny_demo):
    """The last window has one item, whose log-odds are not known: pandas makes NaN of what Polars tells apart."""
    test = tiny_demo.splits["test"].histories()
    windows = Windows.from_lists([*(test.row(i) for i in range(len(test))), [3]])

    def moved(table: pl.DataFrame):
        return {"pandas": table.to_pandas, "arrow": table.to_arrow, "polars": table.lazy}[library]()

    scores = denoiser.score(windows)
    assert scores["log_odds"].is_nan().sum() == 1
    decisions = denoiser.decide(scores, "rate", 0.1)
    assert len(decisions) > 10
    assert same(denoiser.decide(moved(scores), "rate", 0.1), decisions)
    suggestions = denoiser.suggest(windows, decisions)
    assert same(denoiser.suggest(windows, moved(decisions)), suggestions)
    assert same(denoiser.explain(windows, moved(decisions)), denoiser.explain(windows, decisions))
    edits = denoiser.correct(windows, decisions, suggestions, "replace").edits
    assert same(denoiser.correct(windows, moved(decisions), moved(suggestions), "replace").edits, edits)
    assert denoiser.plot(moved(scores), windows).svg == denoiser.plot(scores, windows).svg


def test_keys_that_a_program_changed_are_read_exactly():
    """Floats, as of a pandas column with gaps, and text, as of a file without types."""
    kept = given_table(pl.DataFrame({"window_id": ["3", "12"], "position": [0.0, 2.0]}), "The flags")
    assert kept.rows() == [(3, 0), (12, 2)]
    assert kept.schema == {"window_id": pl.Int64, "position": pl.Int64}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"position": [0.5]}, "The flags have the position 0.5; expected whole numbers, those of the scores"),
        ({"position": [None]}, "The flags have the position None; expected whole"),
        ({"position": [np.nan]}, "The flags have the position nan; expected whole"),
        ({"window_id": ["w7"]}, "The flags have the window_id 'w7'; expected whole"),
        ({"window_id": [2.0**60]}, "The flags have the window_id 1.15.*; expected whole"),  # of several ids
        ({"window_id": [True]}, "The flags have the window_id True; expected whole"),
        ({"log_odds": ["high"]}, "The flags cannot be used: .* Give numbers"),
    ],
)
def test_what_is_no_key_or_no_number_is_refused(columns, said):
    table = pl.DataFrame({"window_id": [7], "position": [0], "log_odds": [1.0], **columns}, strict=False)
    with pytest.raises(DataError, match=said):
        given_table(table, "The flags")


def test_a_table_without_its_columns_is_refused(denoiser, tiny_demo):
    windows = tiny_demo.splits["test"].histories().take(np.arange(3))
    scores = denoiser.score(windows)
    with pytest.raises(DataError, match=r"The scores have the columns window_id.*, but 'log_odds' is missing"):
        denoiser.decide(scores.drop("log_odds"))
    with pytest.raises(DataError, match=r"The suggestions have the columns .*, but 'suggested_item_id' is missing"):
        denoiser.correct(windows, scores.head(1), scores.head(1), "replace")
    with pytest.raises(DataError, match="The decisions are of type list; expected a table"):
        denoiser.suggest(windows, [(0, 1)])
