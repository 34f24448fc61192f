"""The baselines of the benchmark, each re-implemented from its paper. `baseline.py` holds their contract."""

from __future__ import annotations

from llm4dsr.bench.baselines.baseline import Baseline
from llm4dsr.bench.baselines.confident_learning import ConfidentLearning
from llm4dsr.bench.baselines.hsd import HSD
from llm4dsr.bench.baselines.iadsr import IADSR
from llm4dsr.bench.baselines.likelihood import BERT4RecLikelihood, SASRecLikelihood
from llm4dsr.bench.baselines.pmi import PMI
from llm4dsr.bench.baselines.simple import Popularity, RandomFlags
from llm4dsr.bench.baselines.steam import STEAM
from llm4dsr.bench.baselines.text import SentenceOutlier, TfidfOutlier

_ALL: tuple[type[Baseline], ...] = (
    RandomFlags,
    Popularity,
    PMI,
    TfidfOutlier,
    SentenceOutlier,
    SASRecLikelihood,
    BERT4RecLikelihood,
    ConfidentLearning,
    IADSR,
    HSD,
    STEAM,
)
BASELINES: dict[str, type[Baseline]] = {baseline.name: baseline for baseline in _ALL}
