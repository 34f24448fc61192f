"""Every option and its default, in one place. A recipe (YAML) overrides the defaults; the CLI overrides the recipe.

The defaults are those of the embedded model, which needs no download and no GPU. `recipes/paper.yaml` holds the
published settings (arXiv 2408.08208, section 5.1, and its released code).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from llm4dsr.errors import ConfigError

EMBEDDED = "embedded"
RECIPES = Path(__file__).parent / "recipes"
# Numbers that cannot be 0, and those that are shares, wherever they occur
AT_LEAST_1 = {
    "vector_size", "lora_rank", "hidden_size", "layers", "heads", "vocabulary", "batch_windows", "batch_tokens",
    "max_tokens", "folds", "calibration_draws", "max_new_tokens", "blocks", "history", "batch_size", "negatives",
    "seeds", "k",
}  # fmt: skip
SHARES = {"dropout", "lora_dropout", "rate", "none", "trim", "odd_share", "eta", "eta_test"}


@dataclass(frozen=True)
class ModelConfig:
    """Which language model answers, and how an item stands in its prompt."""

    source: str = EMBEDDED  # "embedded", a hub name, or a local path
    items: Literal["text", "vector"] = "vector"  # quoted title, or one soft token per item
    answer: Literal["title", "position"] = "position"  # name the noisy title (published), or judge each position
    # "full": vector items judged by position see what follows them too; all else is read causally whatever stands here
    attention: Literal["causal", "full"] = "full"
    company: bool = True  # soft tokens also carry which items other users have together; vector items only
    title_vectors: Literal["catalogue", "minilm", "catalogue+minilm"] = "catalogue"  # minilm: extra llm4dsr[minilm]
    vector_size: int = 256  # columns kept of each block of title vectors
    tuning: Literal["lora", "full"] = "full"
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    load_in: Literal["full", "8bit", "4bit"] = "full"  # 8bit and 4bit need CUDA and the extra llm4dsr[quantized]
    # Size of the embedded model (ignored for any other source)
    hidden_size: int = 192
    layers: int = 3
    heads: int = 4
    dropout: float = 0.1
    vocabulary: int = 4000
    warmup_epochs: int = 1  # language-model passes over the user's own histories before the task; text items only


@dataclass(frozen=True)
class TaskConfig:
    """The self-supervised task: put foreign items into windows, ask which ones they are and what belongs there."""

    replaced: int = 0  # how many positions are replaced in a window (published: 1); 0 = each with probability `rate`
    rate: float = 0.15  # used where replaced = 0
    none: float = 0.0  # share of windows left whole
    whole_prompt_loss: bool = False  # published: loss on the prompt too


@dataclass(frozen=True)
class TrainConfig:
    epochs: int = 5
    samples: int = 0  # windows drawn once for tuning; 0 = all (published: 5,000)
    batch_windows: int = 256  # windows per optimizer step
    batch_tokens: int = 16_384  # tokens per forward pass; a step is split into as many passes as needed
    max_tokens: int = 512  # longer prompts are refused with a message
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    suggestion_weight: float = 0.2  # weight of the suggestion's loss in vector mode
    # Models that are each tuned without a part of the users and score that part: nobody's history is learnt by heart.
    folds: int = 3  # 1 = a single model (published); K of them cost K - 1 times as much
    # Share of untouched interactions, the most suspicious of a step, that teach nothing, from the second epoch on
    trim: float = 0.05


@dataclass(frozen=True)
class ScoreConfig:
    mode: Literal["whole-title", "first-token"] = "whole-title"  # only for answer: title
    calibration: Literal["isotonic", "platt", "off"] = "isotonic"
    calibration_draws: int = 3  # self-made noise draws per validation window
    # Share of interactions that look like noise but are the user's own: no estimate without labels can tell them apart.
    # About 0.02 on Toys by the masks of training and validation; elsewhere an assumption. The demo has none.
    odd_share: float = 0.02


@dataclass(frozen=True)
class DecideConfig:
    """How η is read (decide.py). By default a run takes the share whose correction lets a recommender rank validation
    best (choose.py). Where no recommender is asked, as by a `Denoiser` alone, "validation" means "probability": what is
    more likely noise than not is flagged. Probabilities come from self-made noise in validation, so η = 0.5 is the
    choice with the most right flags less wrong ones."""

    policy: Literal["percentile", "probability", "precision", "rate", "validation"] = "validation"
    eta: float = 0.5  # in [0, 1], whatever the policy
    eta_test: float | None = None  # another η for validation and test histories (published: 0.6 train, 0.9 test)
    cap: int = 3  # at most so many flagged interactions in a window
    cap_test: int | None = None


@dataclass(frozen=True)
class SuggestConfig:
    mode: Literal["constrained", "free"] = "constrained"
    max_new_tokens: int = 64


@dataclass(frozen=True)
class CorrectConfig:
    action: Literal["replace", "drop", "downweight"] = "replace"
    train_targets: bool = True  # published: the target of a training window may be corrected too


@dataclass(frozen=True)
class RecommenderConfig:
    """Of every backbone. Defaults are the published settings of SASRec but for the loss (sampled softmax with shared
    negatives: quick)."""

    hidden_size: int = 64
    blocks: int = 2
    heads: int = 1
    dropout: float = 0.5
    history: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 256
    loss: Literal["sampled", "full", "bce"] = "sampled"  # sampled softmax, full softmax, or BCE with 1 negative
    negatives: int = 512  # shared by a batch, for loss: sampled
    epochs: int = 60
    patience: int = 10
    supervise: Literal["all", "last"] = "last"  # predict each next item of a window, or its target alone


@dataclass(frozen=True)
class LLaRAConfig:
    """Of the recommender llara; its SASRec takes the options of every backbone. The defaults make one on 4,000 windows
    of Toys a matter of four minutes on one CPU core. A pre-trained model wants tuning: lora, and more of everything."""

    # Small, and without dropout, which costs a third of the time. Prompts are text with a title as the answer: items,
    # answer, attention, company and title vectors have no say here.
    model: ModelConfig = field(default_factory=lambda: ModelConfig(
        items="text", answer="title", hidden_size=64, layers=2, heads=4, dropout=0.0, warmup_epochs=2))  # fmt: skip
    epochs: int = 4  # of which an embedded model spends the first model.warmup_epochs on all titles of a window
    samples: int = 4000  # windows drawn once for tuning the language model; 0 = all
    validation: int = 1000  # validation windows drawn once, by which the best epoch is chosen; 0 = all
    batch_windows: int = 32  # windows per optimizer step
    batch_tokens: int = 2048  # tokens per forward pass
    learning_rate: float = 2e-3
    candidates: int = 100  # SASRec's best, which the model puts in order; 0 = the whole catalogue

    @property
    def language_model(self) -> ModelConfig:
        return dataclasses.replace(self.model, items="text", answer="title")


@dataclass(frozen=True)
class EvaluateConfig:
    seeds: int = 1
    k: int = 20
    backbone: Literal["sasrec", "bert4rec", "gru4rec", "llara", "fmlprec", "cl4srec"] = "sasrec"
    recommender: RecommenderConfig = field(default_factory=RecommenderConfig)
    llara: LLaRAConfig = field(default_factory=LLaRAConfig)


@dataclass(frozen=True)
class Config:
    seed: int = 0
    threads: int = 0  # CPU threads; 0 = as many as the machine has
    limit: int = 0  # use only so many windows of each split, for a quick look; 0 = all
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    decide: DecideConfig = field(default_factory=DecideConfig)
    suggest: SuggestConfig = field(default_factory=SuggestConfig)
    correct: CorrectConfig = field(default_factory=CorrectConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any] | None, where: str = "the configuration") -> Config:
        """Raises ConfigError that names the wrong key or value and what is allowed."""
        return typing.cast(Config, _build(cls(), data or {}, where))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """From a YAML file, or by the name of a recipe that comes with the package (demo, laptop, paper)."""
        path, given = RECIPES / f"{path}.yaml", Path(path)
        if given.is_file() or not path.is_file():
            path = given
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
            raise ConfigError(f"No recipe at {path}. Give the path of a YAML file, or one of the names {names}.")
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:  # a date that is none is a ValueError
            raise ConfigError(f"{path} is not readable YAML: {error}") from None
        return cls.from_dict(data, str(path))


def _build(default: Any, data: Any, where: str) -> Any:
    """`default` with what `data` says in its place."""
    kind = type(default)
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected a mapping of options, got {data!r}.")
    hints = typing.get_type_hints(kind)
    unknown = [key for key in data if key not in hints]
    if unknown:
        raise ConfigError(f"{where}: unknown option {unknown[0]!r}. Known here: {', '.join(hints)}.")
    values = {key: _value(hints[key], value, getattr(default, key), f"{where}: {key}") for key, value in data.items()}
    for key, value in values.items():
        if key in AT_LEAST_1 and value < 1:
            raise ConfigError(f"{where}: {key} = {value!r}; expected at least 1.")
        if key in SHARES and value is not None and value > 1:
            raise ConfigError(f"{where}: {key} = {value!r}; expected a share, from 0 to 1.")
    return dataclasses.replace(default, **values)


def _value(hint: Any, value: Any, default: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(default, value if value is not None else {}, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value is False and "off" in args:  # YAML reads the bare word off as false
            value = "off"
        if value not in args:
            raise ConfigError(f"{where} = {value!r}; expected one of {', '.join(map(str, args))}.")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"{where} = {value!r}; expected a list of names.")
        return tuple(value)
    if origin is types.UnionType:
        if value is None:
            return None
        hint = next(a for a in args if a is not type(None))
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 as text
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{where} = {value!r}; expected a number.") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} = {value!r}; expected {hint.__name__}.")
    if hint in (int, float) and value < 0:
        raise ConfigError(f"{where} = {value!r}; expected a number that is not negative.")
    return value
