"""Every option with its type, range and default. Recipes override defaults; the command line overrides recipes."""

from llm4dsr.config.config import Config
from llm4dsr.config.denoiser import (
    EMBEDDED,
    CorrectConfig,
    DecideConfig,
    ModelConfig,
    ScoreConfig,
    SuggestConfig,
    TaskConfig,
    TrainConfig,
)
from llm4dsr.config.recommenders import EvaluateConfig, LLaRAConfig, NeighborhoodConfig, RecommenderConfig

__all__ = [
    "EMBEDDED",
    "Config",
    "CorrectConfig",
    "DecideConfig",
    "EvaluateConfig",
    "LLaRAConfig",
    "ModelConfig",
    "NeighborhoodConfig",
    "RecommenderConfig",
    "ScoreConfig",
    "SuggestConfig",
    "TaskConfig",
    "TrainConfig",
]
