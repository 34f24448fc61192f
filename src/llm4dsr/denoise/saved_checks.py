"""Checks of a saved denoiser, which may come from elsewhere: its files are bounded, and its parts fit each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from llm4dsr.denoise.calibrate import Calibrator, NoiseKind
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.ranking import RankingWeights
from llm4dsr.denoise.stacking import HALVES, N_EVIDENCE, Stacker
from llm4dsr.errors import ModelError, first_line
from llm4dsr.features.collaborative import GROUPS
from llm4dsr.features.pair_counts import split_keys
from llm4dsr.features.title_vectors import MINILM_COLUMNS

ROWS_PER_BYTE = 64  # of a table of ids or counts, which hardly repeat
MOST_TIMES, ALWAYS = 200, 2**26  # a table may unpack to so many times its size, and to so many bytes in any case


@contextmanager
def as_damaged(folder: Path) -> Iterator[None]:
    """Raise what readers of files raise as a ModelError."""
    try:
        yield
    except (
        pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, SafetensorError, OSError, KeyError,
        TypeError, ValueError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise ModelError(
            f"{folder} is no whole denoiser: {type(error).__name__}: {first_line(error)}. Save it again."
        ) from None


LEARNED = {"histories", "interactions", "validation_histories"}  # numbers of what a denoiser learned from


def check_table(path: Path) -> None:
    """Raise ModelError if a Parquet file says that it unpacks to many times its size, as no table of ids does."""
    size, facts = path.stat().st_size, pq.read_metadata(path)
    unpacked = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
    if unpacked > max(ALWAYS, MOST_TIMES * size) or facts.num_rows > max(ALWAYS // 8, ROWS_PER_BYTE * size):
        raise ModelError(
            f"{path} has {size} bytes, but unpacks to {facts.num_rows} rows and {unpacked} bytes, which no table of a "
            "denoiser does. Do not trust this folder."
        )


def check_parts(folder: Path, ensemble: Ensemble, card: dict[str, Any]) -> None:
    """Raise ModelError if parts of a denoiser do not fit each other, or hold numbers that are not finite."""
    items = len(ensemble.catalogue)
    for model in ensemble.models:
        if model.vectors is not None and len(model.vectors) != items:
            _refuse(folder, f"{len(model.vectors)} title vectors for {items} items")
    encoder = ensemble.encoder
    if encoder is not None and encoder.terms and ensemble.models[0].vectors is not None:
        columns = sum(weights.shape[1] for weights in encoder.weights)
        found = ensemble.models[0].vectors.shape[1] - (MINILM_COLUMNS if "minilm" in encoder.kind else 0)
        if columns != found:
            _refuse(folder, f"an encoder of titles with {columns} columns for vectors with {found}")
    counts = ensemble.counts
    if counts is not None:
        if len(counts.popularity) != items:
            _refuse(folder, f"the counts of {len(counts.popularity)} items for {items} items")
        rows = np.stack(split_keys(counts.pairs))
        if not 0 <= rows.min(initial=0) <= rows.max(initial=0) < items:
            _refuse(folder, f"counts of pairs of other items than its {items}")
        if counts.vectors is not None and counts.vectors.vectors.shape[:2] != (GROUPS, items):
            _refuse(folder, f"collaborative vectors of shape {counts.vectors.vectors.shape} for {items} items")
        if counts.vectors is not None and not np.isfinite(counts.vectors.vectors).all():
            _refuse(folder, "collaborative vectors that are not finite")
    for stacker in (ensemble.stacker_newer, ensemble.stacker_training):
        if stacker is not None:
            _check_stacker(folder, stacker)
    calibrator, weights = card["calibrator"], card["ranking_weights"]
    for part, found in ((Calibrator, calibrator), (RankingWeights, weights)):
        if set(found) != {field.name for field in dataclasses.fields(part)}:
            _refuse(folder, f"a {part.__name__} with other entries: {', '.join(map(str, found))}")
    numbers = [*weights.values(), calibrator["ceiling"]]  # `injected` may be -inf
    for kind in calibrator["kinds"] if isinstance(calibrator["kinds"], list) else [None]:
        numbers += _curve(folder, kind)
    if not all(isinstance(n, int | float) and np.isfinite(n) for n in numbers):
        _refuse(folder, "a calibration or ranking weights that are not finite numbers")
    if not isinstance(card["curve"], list):
        _refuse(folder, f"the curve {card['curve']!r}")
    if not isinstance(card["width"], int) or card["width"] < 1:
        _refuse(folder, f"the width {card['width']!r}")
    learned = card["learned_from"]
    if (
        not isinstance(learned, dict)
        or set(learned) - {"labels"} != LEARNED
        or not all(isinstance(n, int) for n in learned.values())
    ):
        _refuse(folder, f"numbers of what was learned from that are none: {learned!r}")


def _curve(folder: Path, kind: Any) -> list[Any]:
    """All numbers of a noise kind, which still are to be checked."""
    if not isinstance(kind, dict) or set(kind) != {field.name for field in dataclasses.fields(NoiseKind)}:
        _refuse(folder, "a calibration with other entries")
    knots, ratios = kind["knots"], kind["ratios"]
    if not isinstance(knots, list) or not isinstance(ratios, list) or not len(knots) == len(ratios) > 0:
        _refuse(folder, "a calibration with another number of knots than of ratios")
    rates = [kind["rate_low"], kind["rate_bound"], kind["rate_high"]]
    is_excluded = all(isinstance(rate, float) and np.isnan(rate) for rate in rates)  # by labels
    return [*knots, *ratios, *([] if is_excluded else rates)]


def _check_stacker(folder: Path, stacker: Stacker) -> None:
    """Shapes and numbers of the networks."""
    expected = stacker.hidden_weight.shape
    if len(expected) != 4:
        _refuse(folder, f"a stacking network of shape {expected}")
    halves, networks, inputs, hidden = expected
    shapes = {
        "center": (halves, inputs), "scale": (halves, inputs), "hidden_bias": (halves, networks, 1, hidden),
        "out_weight": (halves, networks, hidden, 1), "out_bias": (halves, networks, 1, 1),
        "hidden_weight": (HALVES, networks, N_EVIDENCE, hidden),
    }  # fmt: skip
    for name, shape in shapes.items():
        found = getattr(stacker, name)
        if found.shape != shape:
            _refuse(folder, f"{name} of a stacking network in the shape {found.shape}, not {shape}")
        if not np.isfinite(found).all():
            _refuse(folder, f"numbers that are not finite in {name} of a stacking network")


def _refuse(folder: Path, what: str) -> NoReturn:
    raise ModelError(f"{folder} holds {what}. Its files do not belong together: tune the model again.")
