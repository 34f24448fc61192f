"""Study 3: how a suggestion becomes an item, and how similar that item is to the one that belongs there."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.studies.detection import describe, known_noise
from llm4dsr.bench.studies.samples import sample
from llm4dsr.bench.studies.study import Context, Found
from llm4dsr.config import EMBEDDED, Config, ModelConfig, SuggestConfig, TaskConfig, TrainConfig
from llm4dsr.core.arrays import BoolArray, IntArray
from llm4dsr.data.catalogue import Catalogue, clean_title
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows
from llm4dsr.denoiser import Denoiser
from llm4dsr.features.title_vectors import title_vectors

CLUSTERS = 100  # by k-means; fewer in a small catalogue, of six items or more each on average
DRAWS = 20  # random items for each place

Vectors = npt.NDArray[np.float32]


def clusters(vectors: Vectors, seed: int) -> IntArray:
    """Return [N] the k-means cluster of each item."""
    from sklearn.cluster import KMeans

    count = max(1, min(CLUSTERS, len(vectors) // 6))
    found: IntArray = KMeans(count, n_init=3, random_state=seed).fit_predict(vectors).astype(np.int64)
    return found


def drawn(
    windows: Windows, rows: IntArray, catalogue: Catalogue, weights: npt.NDArray[np.float64], seed: int
) -> IntArray:
    """Draw [DRAWS · F] items for F positions by weights [N], none with a title of the window; -1 = none left."""
    rng, canonical = np.random.default_rng(seed), catalogue.canonical
    out = np.empty((DRAWS, len(rows)), dtype=np.int64)
    for i, row in enumerate(rows):
        left = np.where(np.isin(canonical, canonical[windows.row(row)]), 0.0, weights)
        out[:, i] = rng.choice(len(left), DRAWS, p=left / left.sum()) if left.any() else -1
    return out.ravel()


def nearness(
    name: str, suggested: IntArray, originals: IntArray, catalogue: Catalogue, vectors: Vectors, cluster: IntArray
) -> dict[str, Any]:
    """Measure how often suggestions are the original item (by title) or of its cluster, and their mean cosine.

    Parameters
    ----------
    name : str
        Of the row.
    suggested : array of int
        [r · F] catalogue rows; -1 = none, which counts as wrong and has no cosine.
    originals : array of int
        [F] what belongs there.
    catalogue, vectors, cluster
        The items, their title vectors and clusters.
    """
    truth = np.tile(originals, len(suggested) // max(1, len(originals)))
    there = suggested >= 0
    equal = there & (catalogue.canonical[suggested] == catalogue.canonical[truth])
    same = there & (cluster[suggested] == cluster[truth])
    cosine = (vectors[suggested] * vectors[truth]).sum(axis=1)[there]
    return {
        "suggested": name,
        "equal": float(equal.mean()),
        "equal ±": _half_width(equal, len(originals)),
        "same cluster": float(same.mean()),
        "same cluster ±": _half_width(same, len(originals)),
        "similarity": float(cosine.mean()) if there.any() else float("nan"),
    }


def _half_width(hits: BoolArray, places: int) -> float:
    """95 %, normal approximation, over positions; draws for one position count as one."""
    of_place = hits.reshape(-1, places).mean(axis=0)
    return float(1.96 * of_place.std() / np.sqrt(max(1, places)))


WINDOWS, QUICK = (2_500, 600, 800), (64, 20, 40)  # of train, valid and test


def text_sample(context: Context) -> Dataset:
    """Return the windows of the title model: a seeded sample of each split."""
    sizes = QUICK if context.quick else WINDOWS
    return sample(context.dataset.data, *sizes, context.config.seed)


def text_denoiser(context: Context) -> Denoiser:
    """Tune a model that names the noisy title, on `text_sample`; its weights are kept in `text_work`.

    A small embedded model, or context.config.model.source if that is another.
    """
    data = text_sample(context)
    return Denoiser(_config(context)).fit(
        data.splits[c.TRAIN], data.catalogue, data.splits[c.VALID].histories(), context.progress, text_work(context),
    )  # fmt: skip


def text_work(context: Context) -> Path | None:
    """Return where the weights and suggestions of the title model are kept."""
    return context.cache("text-title").folder


def _config(context: Context) -> Config:
    given = context.config
    model, train = given.model, dataclasses.replace(given.train, folds=1)
    if given.model.source == EMBEDDED:  # about four minutes on one core for the sample of Toys
        model = ModelConfig(hidden_size=128, layers=2)
        train = TrainConfig(epochs=3, folds=1, batch_windows=32, batch_tokens=8_192, max_tokens=1_024,
                            learning_rate=2e-3)  # fmt: skip
        if context.quick:
            model = dataclasses.replace(model, hidden_size=32, layers=1, heads=2)
            train = dataclasses.replace(train, epochs=1)
    return dataclasses.replace(
        given,
        model=dataclasses.replace(model, item_input="title", readout="title"),
        task=TaskConfig(replaced=1),  # published: one foreign item in each window
        train=train,
        score=dataclasses.replace(given.score, calibration="off"),  # it is asked for titles alone
    )


QUESTION = "Are suggestions real items, and similar to what belongs there?"
CONSTRAINED, FREE, NEAREST = "title, constrained", "title, free", "nearest vector"
VECTOR_SIZE = 128  # columns of each block of title vectors


def study(context: Context) -> Found:
    """Suggest for the known noise of test histories, at the same positions in every way."""
    run, data = context.run(), context.dataset.data
    sample = text_sample(context)
    given = sample.splits[c.TEST]
    judged = known_noise(given, data.catalogue, context.config.seed)
    inner = judged.histories()
    noisy: BoolArray = inner.truth() & (inner.true_items() >= 0)  # where one was inserted nothing belongs
    rows = inner.owners[noisy]
    flags = pl.DataFrame({c.WINDOW: inner.window_ids[rows], c.POSITION: inner.positions[noisy]})
    originals = inner.true_items()[noisy]

    found = {}
    tuned = Denoiser.from_pretrained(run.verified("train")).update_counts(data.splits[c.VALID])
    if tuned.config.model.item_input == "soft_token":
        work = context.cache("grounding").folder
        found[NEAREST] = tuned.suggest(judged, flags, context.progress, has_target=True, work=work)
    writer, work = text_denoiser(context), text_work(context)
    for name, mode in ((CONSTRAINED, SuggestConfig("constrained")), (FREE, SuggestConfig("free"))):
        writer.config = dataclasses.replace(writer.config, suggest=mode)
        found[name] = writer.suggest(judged, flags, context.progress, has_target=True, work=work)

    written = sorted({text for table in found.values() for text in table[c.GENERATED].drop_nulls()})
    vectors = title_vectors([*data.catalogue.titles, *written], data.splits[c.TRAIN], "catalogue", VECTOR_SIZE,
                            context.config.seed)  # fmt: skip
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    of_text = dict(zip(written, vectors[len(data.catalogue) :], strict=True))
    vectors = vectors[: len(data.catalogue)]
    cluster = clusters(vectors, context.config.seed)

    grounded = [_grounded(name, table, data.catalogue, of_text, vectors) for name, table in found.items()]
    items = {name: data.catalogue.index_or_pad(table[c.SUGGESTED], name) for name, table in found.items()}
    popularity = np.bincount(data.splits[c.TRAIN].items, minlength=len(vectors))
    for name, weights in (("random item", np.ones(len(vectors))), ("random by popularity", popularity.astype(float))):
        items[name] = drawn(inner, rows, data.catalogue, weights, context.config.seed)
    items["the noisy item itself"], items["the original itself"] = inner.items[noisy], originals
    near = pl.DataFrame([nearness(name, s, originals, data.catalogue, vectors, cluster) for name, s in items.items()])
    notes = [
        f"{len(flags):,} noisy positions in {len(judged):,} test windows. {describe(judged, given)}",
        f"No way suggests an item of the window; random items neither, drawn {DRAWS} times for each position. ± are "
        "95 % half widths.",
        f"Similarity is the cosine of title vectors (words, characters, co-occurring words). The {cluster.max() + 1} "
        "clusters are k-means of these vectors. The embedded model reads such vectors too, so clusters favor it; "
        "equality favors none.",
        "Nearest vector writes nothing: its similarity is that of the predicted vector and the item's. Its choice also "
        "weighs co-occurrence and popularity, so it need not be the most similar item. Its stated probability is to "
        "be compared with *equal*.",
        f"The two title ways are one model, tuned on {len(sample.splits[c.TRAIN]):,} windows "
        f"({writer.config.model.source}); nearest vector is the configuration itself, tuned on all.",
    ]
    tables = {"What was suggested and the item it became": pl.DataFrame(grounded), "Similarity to the original": near}
    return Found(tables, partial(_plot, near), notes)


def _grounded(
    name: str, table: pl.DataFrame, catalogue: Catalogue, of_text: dict[str, Vectors], vectors: Vectors
) -> dict[str, Any]:
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
        "positions": len(table),
        "with an item": float((items >= 0).mean()),
        "nothing written": nan if name == NEAREST else float(np.mean([t is None for t in texts])),
        "written titles that exist": exist,
        "similarity, mean": float(known.mean()) if len(known) else nan,
        "similarity, least tenth": float(np.quantile(known, 0.1)) if len(known) else nan,
        "different items": len(np.unique(items[items >= 0])),
        "stated probability, mean": float(np.mean(table[c.SUGGESTION_PROBABILITY].to_numpy())) if len(table) else nan,
    }


def _plot(near: pl.DataFrame, figure: Any) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    shown = near.filter(pl.col("suggested") != "the original itself").reverse()
    for ax, column, label in zip(
        axes, ("equal", "same cluster"), ("is the original", "is of its cluster"), strict=True
    ):
        ax.barh(shown["suggested"].to_list(), shown[column].to_list(), xerr=shown[f"{column} ±"].to_list())
        ax.set_xlabel(f"fraction of suggestions: {label}")
    axes[0].set_ylabel("suggested")
