"""Labels of some interactions tell the noise rate; wrong ones are refused with what to do."""

import numpy as np
import polars as pl
import pytest

from llm4dsr.denoise.calibrate import Calibrator, NoiseKind
from llm4dsr.denoise.labels import rates_by_labels
from llm4dsr.errors import DataError

# At log-odds of 1, injected noise is five times as frequent as unlabeled interactions
MAP = Calibrator([NoiseKind([0.0, 1.0], [0.0, 5.0], rate_low=0.05, rate_bound=0.1, rate_high=0.1)])
SCORES = {
    name: pl.DataFrame({"window_id": range(100), "position": 0, "log_odds": 1.0}) for name in ("train", "valid", "test")
}
MAPS = dict.fromkeys(SCORES, MAP)


def labels(*rows: tuple[object, ...]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["split", "window_id", "position", "is_noise"], orient="row", strict=False)


def test_half_of_what_is_five_times_as_frequent_is_noise_at_a_rate_of_a_tenth():
    (found,) = rates_by_labels(labels(*[("test", i, 0, i % 2) for i in range(100)]), SCORES, MAPS)
    assert found[0] < 0.1 < found[1]
    assert found[1] - found[0] < 0.05
    (fewer,) = rates_by_labels(labels(*[("test", i, 0, i % 2) for i in range(10)]), SCORES, MAPS)
    assert fewer[0] < found[0] < found[1] < fewer[1]


def test_labels_of_several_splits_are_pooled():
    one = rates_by_labels(labels(*[("test", i, 0, i % 2) for i in range(40)]), SCORES, MAPS)
    halves = [("train", i, 0, i % 2) for i in range(20)] + [("valid", i, 0, i % 2) for i in range(20)]
    assert rates_by_labels(labels(*halves), SCORES, MAPS) == one


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (labels(("test", 0, 0, 2)), "neither 0 nor 1"),
        (labels(("test", 0, 0, None)), "neither 0 nor 1"),
        (labels(("test", 0, 3, 1)), "Position 3 of window_id 0 in test is labeled, but has no score"),
        (labels(("dev", 0, 0, 1)), r"split\(s\) \['dev'\]; expected train, valid, test"),
        (labels(("test", 0, 0, 1), ("test", 0, 0, 0)), "labeled more than once"),
        (labels(("test", 0, 0, 1), ("test", 0, 0.0, 0)), "labeled more than once"),
        (labels(("test", 0, 0.5, 1)), "The labels have the position 0.5; expected whole numbers"),
        (labels(("test", "first", 0, 1)), "The labels have the window_id 'first'; expected whole numbers"),
        (labels(("test", 0, 0, 1)).drop("is_noise"), "lack is_noise"),
        (labels(("test", 0, 0, 1)).clear(), "no labels"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(table, message):
    with pytest.raises(DataError, match=message):
        rates_by_labels(table, SCORES, MAPS)


def test_window_ids_in_text_and_positions_in_floats_are_read_exactly():
    """As of a table that another program wrote; one of pandas is taken too."""
    plain = labels(*[("test", i, 0, i % 2) for i in range(40)])
    odd = plain.with_columns(pl.col("window_id").cast(pl.String), pl.col("position").cast(pl.Float64))
    found = rates_by_labels(plain, SCORES, MAPS)
    assert rates_by_labels(odd, SCORES, MAPS) == found
    assert rates_by_labels(odd.to_pandas(), SCORES, MAPS) == found


def test_uncalibrated_scores_are_refused():
    with pytest.raises(DataError, match=r"uncalibrated: too few\. Labels cannot help"):
        rates_by_labels(labels(("test", 0, 0, 1)), SCORES, {"test": Calibrator(uncalibrated="too few")})


def test_histories_of_one_item_say_nothing():
    scores = {"test": pl.DataFrame({"window_id": [0, 1], "position": 0, "log_odds": [1.0, np.nan]})}
    both = rates_by_labels(labels(("test", 0, 0, 1), ("test", 1, 0, 0)), scores, {"test": MAP})
    assert both == rates_by_labels(labels(("test", 0, 0, 1)), scores, {"test": MAP})
