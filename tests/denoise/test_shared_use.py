"""One denoiser, used by several threads and processes at once: every caller gets the tables of a single one."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from joblib import Parallel, delayed

from llm4dsr import Config, Denoiser
from llm4dsr.data.demo import make_demo
from llm4dsr.denoise.tables import flagged_rows

from ..lm.test_model_sources import make_checkpoint

DEMO = make_demo(size="tiny", users=400).data
TRAIN, VALID, TEST = (DEMO.splits[name] for name in ("train", "valid", "test"))
THREADS = 8
TITLES = {"item_input": "title", "readout": "title", "cooccurrence": False, "pretrain_epochs": 0}
ADAPTER = TITLES | {"tuning": "lora"}  # free text is grounded with the adapter turned off, for all threads


@pytest.fixture(scope="module", params=[{}, TITLES, ADAPTER], ids=["soft tokens", "titles", "adapter"])
def denoiser(request, tmp_path_factory) -> Denoiser:
    model = {"hidden_size": 32, "layers": 1, "vector_size": 32, **request.param}
    if request.param is ADAPTER:
        model["source"] = str(make_checkpoint(tmp_path_factory.mktemp("hub") / "base", DEMO.catalogue.titles))
    config = Config.from_dict({
        "model": model,
        "train": {"epochs": 1, "folds": 2, "samples": 200, "learning_rate": 0.05},
        "suggest": {"mode": "free" if request.param is ADAPTER else "constrained", "max_new_tokens": 8},
        "threads": 1,
    })  # fmt: skip
    return Denoiser(config).fit(TRAIN, DEMO.catalogue, VALID.histories())


def tables(denoiser: Denoiser, has_target: bool) -> list[pl.DataFrame]:
    """Scores, suggestions and edits. With targets, the counts move on with time."""
    some = TEST.take(np.arange(0, len(TEST), 2)) if has_target else TRAIN.take(np.arange(60))
    scores = denoiser.score(some, has_target=has_target)
    flagged = flagged_rows(scores, "rate", 0.1, 3)
    suggestions = denoiser.suggest(some, flagged, has_target=has_target)
    result = denoiser.correct(some, flagged, suggestions, has_target=has_target)
    return [scores, suggestions, result.edits, result.windows.to_frame(DEMO.catalogue)]


def test_threads_get_the_tables_of_a_single_caller(denoiser):
    alone = {kind: tables(denoiser, kind) for kind in (True, False)}
    kinds = [call % 2 == 0 for call in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        for kind, found in zip(kinds, pool.map(lambda kind: tables(denoiser, kind), kinds), strict=True):
            assert all(a.equals(b, null_equal=True) for a, b in zip(found, alone[kind], strict=True))


def test_processes_get_the_tables_of_a_single_caller(denoiser):
    alone = tables(denoiser, True)
    for found in Parallel(2)(delayed(tables)(denoiser, True) for _ in range(2)):
        for a, b in zip(found, alone, strict=True):
            numbers = [name for name, kind in a.schema.items() if kind.is_float()]
            assert a.drop(numbers).equals(b.drop(numbers))
            np.testing.assert_allclose(a.select(numbers).to_numpy(), b.select(numbers).to_numpy(), atol=1e-6)


def test_counting_more_does_not_reach_a_call_that_is_under_way(denoiser):
    """Counts are added at each report of progress; the scores are those of before."""
    some, before = TRAIN.take(np.arange(120)), denoiser.ensemble
    expected = denoiser.score(some)
    try:
        assert denoiser.score(some, progress=lambda *_: denoiser.update_counts(VALID)).equals(expected)
        if before.counts is None:  # titles are scored without counts
            assert denoiser.ensemble is before
        else:
            assert denoiser.ensemble.counts.popularity.sum() > before.counts.popularity.sum()
            assert not denoiser.score(some).equals(expected)
    finally:
        denoiser._ensemble = before
