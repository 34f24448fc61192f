"""Where the memory is too small for a pass, the pass is halved, the work goes on, and it is said."""

import logging
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from llm4dsr import Config, Denoiser
from llm4dsr.errors import ModelError
from llm4dsr.lm.collate import run_batches

from .harness import PROCESSES, demo


def needs_more_than_there_is() -> torch.Tensor:
    return torch.empty(2**60, dtype=torch.uint8)


def test_a_group_that_does_not_fit_is_halved(caplog):
    """Rows of 1 to 8 tokens, in passes of 16: the allocator refuses whatever is above 6."""

    def run(group: list[int]) -> list[int]:
        if sum(sizes[i] for i in group) > 6 and len(group) > 1:
            needs_more_than_there_is()
        return [sizes[i] for i in group]

    sizes = [3, 1, 8, 2, 5, 4, 4, 1]
    with caplog.at_level(logging.WARNING, "llm4dsr"):
        found = dict(pair for group, values in run_batches(sizes, 16, run) for pair in zip(group, values, strict=True))
    assert found == dict(enumerate(sizes))  # each once, none lost
    assert "tokens per pass from now on" in caplog.text


def test_a_single_row_that_does_not_fit_is_an_error_for_people():
    with pytest.raises(ModelError, match="Out of memory with a single window"):
        list(run_batches([5, 5], 10, lambda group: needs_more_than_there_is()))


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="size of tensor"):
        list(run_batches([1], 1, lambda group: torch.ones(2) + torch.ones(3)))


def fit_and_score(out: Path, room: int) -> None:
    """Tunes and scores with `room` bytes of address space more than the process has."""
    torch.set_num_threads(1)
    settings = {"model": {"hidden_size": 192, "layers": 2, "vector_size": 16, "dropout": 0.0, "cooccurrence": False},
                "train": {"epochs": 1, "folds": 1, "small_loss_drop_rate": 0.0, "batch_tokens": 1_000_000},
                "score": {"calibration": "off"}}  # fmt: skip
    data = demo()
    denoiser = Denoiser(Config.from_dict({**settings, "train": {**settings["train"], "batch_windows": 8}}))
    denoiser.fit(data.splits["train"].take(np.arange(16)), data.catalogue)  # what is loaded once is loaded
    denoiser = Denoiser(Config.from_dict({**settings, "train": {**settings["train"], "batch_windows": 400}}))
    if room:
        logging.getLogger("llm4dsr").addHandler(logging.FileHandler(out.with_suffix(".log")))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    denoiser.fit(data.splits["train"], data.catalogue)
    scores = denoiser.score(data.splits["test"].histories())
    np.save(out, scores["log_odds"].to_numpy())


def test_tuning_and_scoring_in_little_memory_come_to_the_same(tmp_path):
    for name, room in (("plenty", 0), ("little", 90_000_000)):
        process = PROCESSES.Process(target=fit_and_score, args=(tmp_path / f"{name}.npy", room))
        process.start()
        process.join(120)
        assert process.exitcode == 0
    assert "tokens per pass from now on" in (tmp_path / "little.log").read_text()
    plenty, little = np.load(tmp_path / "plenty.npy"), np.load(tmp_path / "little.npy")
    np.testing.assert_allclose(plenty, little, atol=1e-3)  # sums in another order
