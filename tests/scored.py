"""Tables of scores, made by hand."""

import polars as pl


def scores(p: list[float], window: list[int] | None = None) -> pl.DataFrame:
    """Scored interactions, most suspicious first in each window."""
    window = window or list(range(len(p)))
    table = pl.DataFrame({"window_id": window, "noise_probability": p, "log_odds": p})
    rank = pl.col("log_odds").rank("ordinal", descending=True).over("window_id").cast(pl.Int64)
    low, high = pl.col("noise_probability") * 0.5, (pl.col("noise_probability") * 1.5).clip(0, 1)
    return table.with_columns(rank=rank, noise_probability_low=low, noise_probability_high=high)
