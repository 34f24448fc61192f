"""The catalogue: titles as they were given in tables, cleaned ones in prompts and comparisons."""

import numpy as np
import polars as pl

from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import make_windows
from llm4dsr.data.prepare import PrepareOptions, prepare
from llm4dsr.data.sources import from_frames

LETTERS = list("abcdefgh")
GIVEN = ['Ball, 12"', "Ball, 12'", 'Tom &amp; "Jerry"', "Doll", " Kite ", "Car", "Bus", "Van"]
CLEAN = ["Ball, 12'", "Ball, 12'", "Tom & 'Jerry'", "Doll", "Kite", "Car", "Bus", "Van"]
ITEMS = pl.DataFrame({"item_id": LETTERS, "title": GIVEN})
LOG = pl.DataFrame(
    [(f"u{u}", LETTERS[(u + 3 * t) % 8], 100 * t + u) for u in range(12) for t in range(12)],
    schema=["user_id", "item_id", "timestamp"], orient="row",
)  # fmt: skip


def test_tables_keep_titles_as_given_and_prompts_get_clean_ones():
    catalogue = Catalogue.from_frame(ITEMS)
    assert catalogue.titles == CLEAN
    assert catalogue.to_frame()["title"].to_list() == GIVEN
    assert catalogue.titles_of(np.array([0, -1, 2])).to_list() == [GIVEN[0], None, GIVEN[2]]
    assert catalogue.canonical.tolist() == [0, 0, 2, 3, 4, 5, 6, 7]  # compared by the cleaned title


def test_a_saved_catalogue_reads_back_the_same():
    catalogue = Catalogue.from_frame(ITEMS)
    again = Catalogue.from_frame(catalogue.to_frame())
    assert (again.titles, again.original_titles) == (catalogue.titles, catalogue.original_titles)
    assert again.canonical.tolist() == catalogue.canonical.tolist()
    before = Catalogue.from_frame(ITEMS.with_columns(title=pl.Series(CLEAN)))  # saved by an earlier version
    assert before.titles == catalogue.titles


def test_items_without_interactions_leave_with_both_titles():
    data = make_windows(LOG.filter(pl.col("item_id") != "b"), ITEMS, k_core=2)
    assert data.catalogue.titles == [CLEAN[0], *CLEAN[2:]]
    assert data.catalogue.original_titles == [GIVEN[0], *GIVEN[2:]]


def test_prepared_titles_keep_their_quotes(tmp_path):
    """Entities and spaces of publishers are still cleaned; titles that differ in quotes alone are one suggestion."""
    prepare(from_frames(LOG, ITEMS), tmp_path / "out", PrepareOptions(k_core=2))
    written = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert written["title"].to_list()[:5] == ['Ball, 12"', "Ball, 12'", 'Tom & "Jerry"', "Doll", "Kite"]
    assert written["canonical_id"].to_list()[:3] == ["a", "a", "c"]
