"""The judges of corrections: item-kNN and EASE, fitted to corrected training windows, compared on validation.

They take seconds, have no seed, and rank better than small neural recommenders on sparse data. A judge learns from
training windows alone, so one fit serves all candidates that differ in their validation histories only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from llm4dsr import columns as c
from llm4dsr.config import NeighborhoodConfig
from llm4dsr.core.cache import PartCache
from llm4dsr.core.device import max_workers, single_thread
from llm4dsr.core.hashing import digest, versions
from llm4dsr.core.memory import available_memory
from llm4dsr.core.progress import Progress, log
from llm4dsr.core.workers import in_parallel
from llm4dsr.data.windows import Windows
from llm4dsr.evaluate.rows import Splits
from llm4dsr.evaluate.train_and_evaluate import content, neighborhood_options, user_codes
from llm4dsr.recommenders import NAMES, NEIGHBORHOODS
from llm4dsr.recommenders.ease import memory_needed, workers_in_memory
from llm4dsr.recommenders.neighborhood import user_matrix
from llm4dsr.recommenders.training import usable

EASE, ITEM_KNN = "ease", "itemknn"


def judge(
    compared: dict[str, Splits],
    n_items: int,
    config: NeighborhoodConfig,
    progress: Progress | None = None,
    work: Path | None = None,
) -> list[pl.DataFrame]:
    """Rank the validation targets of each row with each judge. Test windows are not read.

    Parameters
    ----------
    compared : dict of str to dict of str to Windows
        Row name → splits.
    n_items : int
        Number of items in the catalogue.
    config : NeighborhoodConfig
        Options of the judges.
    progress : Progress, optional
        Called with (judges fitted, all judges, which).
    work : Path, optional
        Folder of finished parts; the same call resumes from it.

    Returns
    -------
    list of DataFrame
        For each judge one line per row: `row`; `seed`, always 0; `valid_ranks`, 1 = best; `valid_users`, codes of the
        users of these windows.
    """
    judges = [ITEM_KNN, EASE]
    if memory_needed(n_items) > available_memory() > 0:
        log.warning("EASE does not fit into memory, so item-kNN alone chooses rate and action.")
        judges.remove(EASE)
    alike: dict[str, list[str]] = {}  # rows with the same training windows, by their hash
    for name, splits in compared.items():
        alike.setdefault(digest(*content(splits[c.TRAIN])), []).append(name)
    valid = {name: digest(*content(splits[c.VALID])) for name, splits in compared.items()}
    out, done = [], 0
    for kind in judges:
        workers = max_workers(len(alike))
        if kind == EASE:
            workers = workers_in_memory(workers, n_items)
        arguments = (
            (
                kind,
                compared[names[0]][c.TRAIN],
                [compared[n][c.VALID] for n in names],
                n_items,
                config,
                work,
                (train, *(valid[n] for n in names)),
            )
            for train, names in alike.items()
        )
        ranks: dict[str, list[int]] = {}
        made = in_parallel(workers, _rank, arguments, "tried a correction")
        for names, found in zip(alike.values(), made, strict=True):
            ranks |= dict(zip(names, found, strict=True))
            done += 1
            if progress:
                progress(done, len(judges) * len(alike), f"corrections tried with {NAMES[kind]}")
        out.append(pl.DataFrame({
            "row": list(compared),
            "seed": 0,
            "valid_ranks": [ranks[name] for name in compared],
            "valid_users": [user_codes(splits[c.VALID]).tolist() for splits in compared.values()],
        }))  # fmt: skip
    return out


@single_thread()
def _rank(
    kind: str,
    train: Windows,
    valid: Sequence[Windows],
    n_items: int,
    config: NeighborhoodConfig,
    work: Path | None,
    contents: tuple[str, ...],
) -> list[list[int]]:
    """Fit a judge and rank the targets of each validation split, in any process."""

    def fit_and_rank() -> pl.DataFrame:
        recommender = NEIGHBORHOODS[kind]
        windows, _ = usable(train, valid[0], recommender.name)
        model = recommender(user_matrix(windows, n_items), config)
        return pl.DataFrame({"ranks": [model.rank(v.histories(), v.targets()).tolist() for v in valid]})

    key = (versions(), kind, n_items, neighborhood_options(kind, config), contents)
    table = PartCache(work).table(key, fit_and_rank)
    return table["ranks"].to_list()
