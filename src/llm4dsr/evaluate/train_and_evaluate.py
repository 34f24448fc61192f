"""Train a recommender on each row of a comparison, and rank the test targets.

Compared rows share the recommender, its loss, negatives, budget and seeds; only the data differ. Choices are made on
validation, whose targets are the same in every row. Test is read once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from llm4dsr import columns as c
from llm4dsr import metrics
from llm4dsr.config import EMBEDDED, EvaluateConfig, NeighborhoodConfig
from llm4dsr.core.cache import PartCache
from llm4dsr.core.device import max_workers, single_thread
from llm4dsr.core.hashing import digest, user_hashes, versions
from llm4dsr.core.progress import Progress
from llm4dsr.core.workers import in_parallel
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ModelError
from llm4dsr.evaluate.rows import LEARNED, Splits
from llm4dsr.recommenders import SEEDLESS, fit, seeds_of
from llm4dsr.recommenders.ease import workers_in_memory


def train_and_evaluate(
    compared: dict[str, Splits],
    catalogue: Catalogue,
    config: EvaluateConfig,
    seed: int,
    progress: Progress | None = None,
    work: Path | None = None,
) -> pl.DataFrame:
    """Train the recommender for each row and seed.

    A small recommender gains little from a second core. So each is trained on one thread, and as many in parallel as
    there are cores and GPU memory, for EASE main memory. The numbers do not depend on how many that are. A recommender
    without a seed is trained once.

    Parameters
    ----------
    compared : dict of str to dict of str to Windows
        Row name → splits. Rows with the same windows are trained once. If a row has a split LEARNED, validation chooses
        the epoch, then the recommender is trained anew on that split.
    catalogue : Catalogue
        The items that are ranked.
    config : EvaluateConfig
        The recommender, its options, seeds and k.
    seed : int
        The first seed.
    progress : Progress, optional
        Called with (epochs done, all epochs, names of the rows in training).
    work : Path, optional
        Folder of finished recommenders; the same call resumes from it.

    Returns
    -------
    DataFrame
        One line per row and seed: `row, seed`; `ndcg` and `hit_rate` at k on test and `valid_ndcg` (NDCG@20), higher is
        better; `coverage` and `gini` of the k items recommended for each test history, as in `metrics`; `epochs`;
        `seconds`; `ranks` of the test targets and `valid_ranks` of the validation targets at the best epoch, 1 = best;
        `users` and `valid_users`, codes of the users of these windows.

    Raises
    ------
    ModelError
        If memory is too small.
    """
    keys = {
        name: digest(
            versions(),
            config.backbone,
            *shared_options(config),
            catalogue.titles,
            *(part for split in (*c.SPLITS, LEARNED) if split in splits for part in content(splits[split])),
        )
        for name, splits in compared.items()
    }
    wanted = [(name, seed + s) for s in range(seeds_of(config)) for name in compared]
    first: dict[tuple[str, int], tuple[str, int]] = {}  # rows with the same windows are one recommender
    for name, s in wanted:
        first.setdefault((keys[name], s), (name, s))
    jobs = list(first.values())
    pre_trained = config.backbone == "llara" and config.llara.model.source != EMBEDDED
    workers = max_workers(len(jobs), large=pre_trained)
    if config.backbone == "ease":
        workers = workers_in_memory(workers, len(catalogue))
    with TemporaryDirectory() as folder, _followed(Path(folder), len(jobs) * _epochs(config), progress):
        try:
            arguments = (
                (name, s, compared[name], catalogue, config, Path(folder) / str(i), keys[name], work)
                for i, (name, s) in enumerate(jobs)
            )
            lines = list(in_parallel(workers, _train_and_test, arguments, "trained a recommender"))
        except torch.OutOfMemoryError:
            raise ModelError(
                "The GPU has too little memory for the recommenders. Repeat the command to resume; with threads: 1 it "
                "trains one at a time."
            ) from None
    done = {(keys[name], s): line for (name, s), line in zip(jobs, lines, strict=True)}
    of_users = {
        name: {"users": _listed(splits[c.TEST]), "valid_users": _listed(splits[c.VALID])}
        for name, splits in compared.items()
    }
    results: pl.DataFrame = pl.concat(
        done[keys[name], s].with_columns(row=pl.lit(name), **of_users[name]) for name, s in wanted
    )
    return results


def user_codes(windows: Windows) -> npt.NDArray[np.int32]:
    """Return [W] codes of the users of windows; each window without a user id has a code that no other has."""
    hashes = user_hashes(windows.user_ids)
    codes = np.unique(hashes, return_inverse=True)[1]
    unknown = windows.user_ids.is_null().to_numpy()
    codes[unknown] = len(codes) + np.arange(unknown.sum())
    return codes.astype(np.int32)


def _listed(windows: Windows) -> pl.Series:
    """User codes as one cell of a table."""
    return pl.Series([user_codes(windows)], dtype=pl.List(pl.Int32))


def shared_options(config: EvaluateConfig) -> list[object]:
    """Return the options that compared rows of one recommender must share."""
    if config.backbone in SEEDLESS:
        return [*neighborhood_options(config.backbone, config.neighborhood), config.k]
    if config.backbone == "llara":
        return [config.recommender, config.k, config.llara]
    return [config.recommender, config.k]


def neighborhood_options(backbone: str, of: NeighborhoodConfig) -> list[object]:
    """Return the options that item-kNN or EASE reads."""
    return [of.decay, of.ridge] if backbone == "ease" else [of.decay, of.neighbors, of.shrink]


def _epochs(config: EvaluateConfig) -> int:
    """Steps of one recommender, for the progress."""
    return 1 if config.backbone in SEEDLESS else config.recommender.epochs


def content(windows: Windows) -> list[object]:
    """Return all parts of windows that a recommender reads. Item-kNN and EASE join the windows of a user."""
    return [windows.items, windows.lengths, windows.weights, user_hashes(windows.user_ids)]


@single_thread()
def _train_and_test(
    name: str,
    seed: int,
    splits: Splits,
    catalogue: Catalogue,
    config: EvaluateConfig,
    epochs_done: Path,
    key: str,
    work: Path | None,
) -> pl.DataFrame:
    """One line of `train_and_evaluate`, in any process; its progress goes to the file `epochs_done`."""

    def report(epoch: int, epochs: int, doing: str) -> None:
        _report(epochs_done, f"{epoch * _epochs(config) // epochs} {name}")  # llara counts its own epochs

    def train() -> pl.DataFrame:
        trained = fit(
            config.backbone,
            splits[c.TRAIN],
            splits[c.VALID],
            catalogue,
            config.recommender,
            seed,
            report,
            config.llara,
            config.neighborhood,
            splits.get(LEARNED),
        )
        histories = splits[c.TEST].histories()
        ranks = trained.model.rank(histories, splits[c.TEST].targets())
        shown = trained.model.recommend(histories, min(config.k, len(catalogue)))
        line = {
            "row": name,
            "seed": seed,
            "ndcg": metrics.ndcg(ranks, config.k),
            "hit_rate": metrics.hit_rate(ranks, config.k),
            "coverage": metrics.coverage(shown, len(catalogue)),
            "gini": metrics.gini(shown, len(catalogue)),
            "valid_ndcg": max(trained.curve),
            "epochs": len(trained.curve),
            "seconds": trained.seconds,
            "ranks": [ranks.astype(np.int32)],
            "valid_ranks": [trained.valid_ranks.astype(np.int32)],
        }
        return pl.DataFrame(line, schema_overrides=dict.fromkeys(("ranks", "valid_ranks"), pl.List(pl.Int32)))

    line: pl.DataFrame = PartCache(work).table((key, seed), train)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the process is reused for the next recommender
    _report(epochs_done, f"{_epochs(config)} ")
    return line


@contextmanager
def _followed(folder: Path, total: int, progress: Progress | None) -> Iterator[None]:
    """Add up the epochs that the workers write into `folder`, once a second, and report them."""
    ended = threading.Event()

    def follow() -> None:
        while progress:
            last = ended.wait(1.0)
            reports = [
                (int(n), name) for n, name in (f.read_text().split(" ", 1) for f in folder.iterdir() if not f.suffix)
            ]
            names = sorted({name for _, name in reports if name})
            progress(total if last else sum(n for n, _ in reports), total, f"recommenders: {', '.join(names)}")
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _report(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)
