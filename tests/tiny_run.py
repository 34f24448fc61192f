"""A run that takes seconds: a tiny model, flags at a fixed rate, item-kNN."""

from pathlib import Path

from llm4dsr.config import Config
from llm4dsr.data.dataset import Dataset
from llm4dsr.pipeline import STAGES, Run

CONFIG = Config.from_dict({
    "threads": 1,
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "vector_size": 16},
    "train": {"epochs": 1, "folds": 2},
    "decide": {"policy": "rate", "eta": 0.1},
    "evaluate": {"backbone": "itemknn"},
})  # fmt: skip


def make_run(folder: Path, data: Dataset, last: str = "evaluate", config: Config = CONFIG) -> Run:
    """Make all stages up to `last`."""
    run = Run.create(folder, config)
    for stage in STAGES[: STAGES.index(last) + 1]:
        run.make(stage, data)
    return run
