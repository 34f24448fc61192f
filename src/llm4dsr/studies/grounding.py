"""Study 3: how what the model suggests becomes an item, and how near that item is to the one that belongs there."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.catalogue import BoolArray, Catalogue, clean_title
from llm4dsr.config import SuggestConfig
from llm4dsr.denoiser import Denoiser
from llm4dsr.studies.nearness import DRAWS, Vectors, clusters, drawn, nearness
from llm4dsr.studies.study import Context, Found
from llm4dsr.studies.text import text_denoiser, text_sample, text_work
from llm4dsr.studies.truth import describe, known_noise
from llm4dsr.vectors import title_vectors

QUESTION = "Are suggestions real items, and near to what belongs there?"
CONSTRAINED, FREE, NEAREST = "text, constrained", "text, free", "nearest vector"
VECTOR_SIZE = 128  # columns of each block of title vectors


def study(context: Context) -> Found:
    """Suggestions for the known noise of test histories, the same places for every way to suggest."""
    run, data = context.run(), context.suite.data
    sample = text_sample(context)
    given = sample.splits[c.TEST]
    judged = known_noise(given, data.catalogue, context.config.seed)
    inner = judged.histories()
    assert inner.noise_mask is not None
    assert inner.clean_items is not None
    noisy: BoolArray = inner.noise_mask & (inner.clean_items >= 0)  # where one was inserted nothing belongs
    rows, positions = np.nonzero(noisy)
    flags = pl.DataFrame({c.WINDOW: inner.window_ids[rows], c.POSITION: positions})
    originals = inner.clean_items[noisy]

    found = {}
    tuned = Denoiser.from_pretrained(run.path("train")).observe(data.splits[c.VALID])
    if tuned.config.model.items == "vector":
        work = context.shards("grounding").folder
        found[NEAREST] = tuned.suggest(judged, flags, context.progress, target_fixed=True, work=work)
    writer, work = text_denoiser(context), text_work(context)
    for name, mode in ((CONSTRAINED, SuggestConfig("constrained")), (FREE, SuggestConfig("free"))):
        writer.config = dataclasses.replace(writer.config, suggest=mode)
        found[name] = writer.suggest(judged, flags, context.progress, target_fixed=True, work=work)

    written = sorted({text for table in found.values() for text in table[c.GENERATED].drop_nulls()})
    vectors = title_vectors([*data.catalogue.titles, *written], data.splits[c.TRAIN], "catalogue", VECTOR_SIZE,
                            context.config.seed)  # fmt: skip
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    of_text = dict(zip(written, vectors[len(data.catalogue) :], strict=True))
    vectors = vectors[: len(data.catalogue)]
    cluster = clusters(vectors, context.config.seed)

    grounded = [_grounded(name, table, data.catalogue, of_text, vectors) for name, table in found.items()]
    items = {name: data.catalogue.index_or_pad(table[c.SUGGESTED], name) for name, table in found.items()}
    popularity = np.bincount(data.splits[c.TRAIN].items[data.splits[c.TRAIN].present], minlength=len(vectors))
    for name, weights in (("random item", np.ones(len(vectors))), ("random by popularity", popularity.astype(float))):
        items[name] = drawn(inner, rows, data.catalogue, weights, context.config.seed)
    items["the noisy item itself"], items["the original itself"] = inner.items[noisy], originals
    near = pl.DataFrame([nearness(name, s, originals, data.catalogue, vectors, cluster) for name, s in items.items()])
    notes = [
        f"{len(flags):,} places of noise in {len(judged):,} test windows. {describe(judged, given)}",
        "No way suggests an item that the window holds already; random items keep to that, too, and are drawn "
        f"{DRAWS} times for each place. After ± are 95 % half widths.",
        f"Similarity is the cosine of title vectors (words, characters and companions of the titles and of what was "
        f"written). The {cluster.max() + 1} clusters are k-means of these vectors. The embedded model reads vectors of "
        "the same making, so clusters are its own notion of nearness; equality is nobody's.",
        "Nearest vector writes nothing: its similarity is that of the vector it predicts and the vector of the item. "
        "Its choice also weighs company and popularity, so that it need not be the most similar item.",
        f"The two text ways are one model, tuned on {len(sample.splits[c.TRAIN]):,} windows "
        f"({writer.config.model.source}); nearest vector is the configuration itself, tuned on all.",
    ]
    tables = {"What was suggested and the item it became": pl.DataFrame(grounded), "Nearness to the original": near}
    return Found(tables, partial(_plot, near), notes)


def _grounded(name: str, table: pl.DataFrame, catalogue: Catalogue, of_text: dict[str, Vectors],
              vectors: Vectors) -> dict[str, Any]:  # fmt: skip
    texts, items = table[c.GENERATED].to_list(), catalogue.index_or_pad(table[c.SUGGESTED], name)
    titles, nan = set(catalogue.titles), float("nan")
    if name == NEAREST:
        exist, similar = nan, 1 - table[c.DISTANCE].to_numpy()
    else:
        exact = table[c.GROUNDING].is_in(["constrained", "exact"]).to_list()  # a cut title is that of its item
        exist = float(
            np.mean([e or (t is not None and clean_title(t) in titles) for e, t in zip(exact, texts, strict=True)])
        )
        similar = np.array([of_text[t] @ vectors[i] if t is not None and i >= 0 else nan
                            for t, i in zip(texts, items, strict=True)])  # fmt: skip
    known = similar[np.isfinite(similar)]
    return {
        "suggested by": name,
        "places": len(table),
        "with an item": float((items >= 0).mean()),
        "nothing written": nan if name == NEAREST else float(np.mean([t is None for t in texts])),
        "written titles that exist": exist,
        "similarity, mean": float(known.mean()) if len(known) else nan,
        "similarity, least tenth": float(np.quantile(known, 0.1)) if len(known) else nan,
        "different items": len(np.unique(items[items >= 0])),
    }


def _plot(near: pl.DataFrame, figure: Any) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    shown = near.filter(pl.col("suggested") != "the original itself").reverse()
    for ax, column, label in zip(
        axes, ("equal", "same cluster"), ("is the original", "is of its cluster"), strict=True
    ):
        ax.barh(shown["suggested"].to_list(), shown[column].to_list(), xerr=shown[f"{column} ±"].to_list())
        ax.set_xlabel(f"share of suggestions: {label}")
    axes[0].set_ylabel("suggested")
