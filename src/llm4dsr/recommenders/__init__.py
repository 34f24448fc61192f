"""The recommenders that show what a corrected history is worth.

done = fit("sasrec", train, valid, catalogue, RecommenderConfig(), seed=0)
ranks = done.model.rank(test.histories(), test.targets())     # [W] 1 = best, among the whole catalogue
"""

from __future__ import annotations

from llm4dsr.catalogue import Catalogue, Windows
from llm4dsr.config import LLaRAConfig, RecommenderConfig
from llm4dsr.recommenders.backbone import Backbone
from llm4dsr.recommenders.bert4rec import BERT4Rec
from llm4dsr.recommenders.cl4srec import CL4SRec
from llm4dsr.recommenders.fmlprec import FMLPRec
from llm4dsr.recommenders.gru4rec import GRU4Rec
from llm4dsr.recommenders.llara_training import fit_llara
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import Progress, Trained, train

BACKBONES: dict[str, type[Backbone]] = {
    "sasrec": SASRec, "bert4rec": BERT4Rec, "gru4rec": GRU4Rec, "fmlprec": FMLPRec, "cl4srec": CL4SRec,
}  # fmt: skip

NAMES = {name: kind.name for name, kind in BACKBONES.items()} | {"llara": "LLaRA"}  # name → as it is written
ROBUST = ("fmlprec", "cl4srec")  # made to bear noise by themselves: peers of a denoiser, not its users


def fit(backbone: str, windows: Windows, valid: Windows, catalogue: Catalogue, config: RecommenderConfig, seed: int,
        progress: Progress | None = None, llara: LLaRAConfig | None = None) -> Trained:  # fmt: skip
    """Trains a recommender by its name (one of NAMES); see `training.train`, and `fit_llara` for the one that reads
    titles, whose further options are `llara`."""
    if backbone == "llara":
        return fit_llara(windows, valid, catalogue, config, llara or LLaRAConfig(), seed, progress)
    return train(BACKBONES[backbone], windows, valid, len(catalogue), config, seed, progress)
