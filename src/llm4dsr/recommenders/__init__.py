"""The recommenders that show what a corrected history is worth.

done = fit("sasrec", train, valid, catalogue, RecommenderConfig(), seed=0)
ranks = done.model.rank(test.histories(), test.targets())     # [W] 1 = best, among the whole catalogue
"""

from __future__ import annotations

from llm4dsr.catalogue import Catalogue, Windows
from llm4dsr.config import RecommenderConfig
from llm4dsr.recommenders.backbone import Backbone
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import Progress, Trained, train

BACKBONES: dict[str, type[Backbone]] = {"sasrec": SASRec}


def fit(backbone: str, windows: Windows, valid: Windows, catalogue: Catalogue, config: RecommenderConfig, seed: int,
        progress: Progress | None = None) -> Trained:  # fmt: skip
    """Trains a recommender by its name; see `training.train`."""
    return train(BACKBONES[backbone], windows, valid, len(catalogue), config, seed, progress)
