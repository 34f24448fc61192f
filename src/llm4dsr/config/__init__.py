"""Every option with its type, range and default. Recipes override defaults; the command line overrides recipes."""

from llm4dsr.config.config import Config
from llm4dsr.config.denoiser import (
    ALL_LINEAR,
    EMBEDDED,
    SMOLLM2,
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
    "ALL_LINEAR",
    "EMBEDDED",
    "SMOLLM2",
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
