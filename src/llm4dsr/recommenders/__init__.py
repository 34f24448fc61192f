"""Recommenders that measure what a correction is worth: each is trained on original and on corrected histories.

`fit` trains any of them by name. The modules hold one model each.

trained = fit("sasrec", train, valid, catalogue, RecommenderConfig(), seed=0)
ranks = trained.model.rank(test.histories(), test.targets())  # [W] 1 = best, among the whole catalogue
"""

from __future__ import annotations

from llm4dsr.config import EvaluateConfig, LLaRAConfig, NeighborhoodConfig, RecommenderConfig
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ConfigError
from llm4dsr.recommenders.backbone import Backbone
from llm4dsr.recommenders.bert4rec import BERT4Rec
from llm4dsr.recommenders.cl4srec import CL4SRec
from llm4dsr.recommenders.ease import EASE
from llm4dsr.recommenders.fmlprec import FMLPRec
from llm4dsr.recommenders.gru4rec import GRU4Rec
from llm4dsr.recommenders.item_knn import ItemKNN
from llm4dsr.recommenders.llara_training import fit_llara
from llm4dsr.recommenders.neighborhood import Neighborhood, fit_neighborhood
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import Trained, train

BACKBONES: dict[str, type[Backbone]] = {
    "sasrec": SASRec,
    "bert4rec": BERT4Rec,
    "gru4rec": GRU4Rec,
    "fmlprec": FMLPRec,
    "cl4srec": CL4SRec,
}
"""Name in the configuration → class, of the recommenders with item vectors."""

NEIGHBORHOODS: dict[str, type[Neighborhood]] = {"itemknn": ItemKNN, "ease": EASE}
"""Name in the configuration → class, of the recommenders with item-item weights."""

NAMES: dict[str, str] = {
    **{name: kind.name for name, kind in BACKBONES.items()},
    "llara": "LLaRA",
    **{name: kind.name for name, kind in NEIGHBORHOODS.items()},
}
"""Name in the configuration → published name, of all recommenders."""

ROBUST: tuple[str, ...] = ("fmlprec", "cl4srec")
"""Recommenders that are designed to be robust to noise. They are compared with a denoiser, not combined with it."""

SEEDLESS: tuple[str, ...] = tuple(NEIGHBORHOODS)
"""Recommenders without a seed: the same windows give the same model. They are trained once, on the CPU."""


def fit(
    backbone: str,
    windows: Windows,
    valid: Windows,
    catalogue: Catalogue,
    config: RecommenderConfig,
    seed: int,
    progress: Progress | None = None,
    llara: LLaRAConfig | None = None,
    neighborhood: NeighborhoodConfig | None = None,
    refit: Windows | None = None,
) -> Trained:
    """Train a recommender, chosen by name.

    Parameters
    ----------
    backbone : str
        A key of NAMES.
    windows : Windows
        Training windows, targets included; see `training.train` for short windows and weights.
    valid : Windows
        Validation windows, targets included. They decide on early stopping and the best epoch.
    catalogue : Catalogue
        The items to rank.
    config : RecommenderConfig
        Options that all backbones share; "itemknn" and "ease" ignore them.
    seed : int
        Seed of initial weights, dropout, order of windows, and negatives; ignored by recommenders of SEEDLESS.
    progress : Progress, optional
        Called after each epoch with (epochs done, most epochs, message).
    llara : LLaRAConfig, optional
        Further options of the backbone "llara". Default: `LLaRAConfig()`.
    neighborhood : NeighborhoodConfig, optional
        Options of the backbones "itemknn" and "ease". Default: `NeighborhoodConfig()`.
    refit : Windows, optional
        What the recommender is trained on anew, for as many epochs as were best on validation; not "llara". Default: it
        is not.

    Returns
    -------
    Trained
        The model of the best epoch, or the one that was trained anew.

    Raises
    ------
    ConfigError
        If an option is out of range for the backbone, or "llara" is to be trained anew.
    DataError
        If no training or no validation window has two items.
    ModelError
        If the language model of "llara" cannot be loaded, or its loss is no longer finite; if the weights of "ease" do
        not fit into memory, or its ridge is too small.
    """
    if backbone in NEIGHBORHOODS:
        options = neighborhood or NeighborhoodConfig()
        return fit_neighborhood(NEIGHBORHOODS[backbone], windows, valid, len(catalogue), options, progress, refit)
    if backbone == "llara":
        if refit is not None:
            raise ConfigError("LLaRA is not trained anew on other windows. Choose another recommender for this row.")
        return fit_llara(windows, valid, catalogue, config, llara or LLaRAConfig(), seed, progress)
    return train(BACKBONES[backbone], windows, valid, len(catalogue), config, seed, progress, refit)


def seeds_of(config: EvaluateConfig) -> int:
    """Return how many seeds the recommender is trained with: `config.seeds`, or 1 if it has no seed."""
    return 1 if config.backbone in SEEDLESS else config.seeds
