"""Options of the denoiser, in the order of its stages: model, task, train, score, decide, suggest, correct.

The defaults are those of the embedded model, which needs no download and no GPU. The recipe `paper` holds the published
settings (arXiv 2408.08208, section 5.1, and its released code).
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from llm4dsr.config.fields import (
    Count,
    Fraction,
    Name,
    NonNegative,
    Penalty,
    PositiveInt,
    UpTo1024,
    VocabularySize,
    options,
)

EMBEDDED, SMOLLM2 = "embedded", "smollm2"
ALL_LINEAR = "all-linear"


def _off(value: Any) -> Any:
    """YAML reads the bare word off as false."""
    return "off" if value is False else value


def _as_list(value: Any) -> Any:
    """Let `all-linear` stand without brackets."""
    return [value] if value == ALL_LINEAR else value


@options
class ModelConfig:
    """Which language model answers, and how an item enters its prompt."""

    source: Name = EMBEDDED
    """`embedded`, `smollm2`, a hub name, or a local path (a checkpoint, a GGUF file or a LoRA adapter)."""
    item_input: Literal["title", "soft_token"] = "soft_token"
    """How an item enters the prompt: its quoted title (published), or one soft token."""
    readout: Literal["title", "per_position", "likelihood"] = "per_position"
    """How noise is read: the noisy title as the answer (published); a noise logit at each position; or how much more
    likely a title is among the others than alone. `likelihood` needs titles, and is tuned on lists in random order. Its
    scores are log-odds only after calibration."""
    attention: Literal["causal", "bidirectional"] = "bidirectional"
    """`bidirectional`: soft tokens that are read per position also see what follows. All else is causal anyway."""
    cooccurrence: bool = True
    """Soft tokens also carry leave-one-out co-occurrence features. Soft tokens only."""
    title_vectors: Literal["catalogue", "minilm", "catalogue+minilm"] = "catalogue"
    """What title vectors are made from. `minilm` needs the extra llm4dsr[minilm]."""
    vector_size: PositiveInt = 256
    """Columns kept of each block of title vectors."""
    chat_template: bool = False
    """Put the prompt into the chat template of the tokenizer, for instruct models: the items as the user's turn, the
    answer as the assistant's. Thinking is off."""
    tuning: Literal["lora", "full"] = "full"
    """Which weights are tuned: a LoRA adapter, or all."""
    lora_rank: PositiveInt = 8
    """Rank of the LoRA matrices."""
    lora_alpha: Count = 16
    """Scale of the LoRA update."""
    lora_dropout: Fraction = 0.05
    """Dropout before the LoRA matrices."""
    lora_targets: Annotated[tuple[Name, ...], Field(min_length=1), BeforeValidator(_as_list)] = (ALL_LINEAR,)
    """Modules that get a LoRA adapter, by the last part of their name (published: q_proj, v_proj). `all-linear`: all
    linear layers but the output."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the weights. They are tuned in fp32 and rounded afterwards. With bf16, matrices are multiplied in
    bf16 on a GPU, and on a CPU that has AMX; other CPUs take longer with it."""
    load_in: Literal["full", "8bit", "4bit"] = "full"
    """Quantization of the base weights. `8bit` and `4bit` need CUDA and the extra llm4dsr[quantized]."""
    hidden_size: PositiveInt = 192
    """Width of the embedded model; ignored for any other source, like the options below."""
    layers: UpTo1024 = 3
    """Layers of the embedded model."""
    heads: PositiveInt = 4
    """Attention heads of the embedded model."""
    dropout: Fraction = 0.1
    """Attention dropout of the embedded model."""
    vocabulary: VocabularySize = 4000
    """Size of the embedded tokenizer."""
    pretrain_epochs: Count = 1
    """Language-model passes over the training histories before the task. `item_input: title` only."""

    @model_validator(mode="after")
    def _likelihood_of_titles(self) -> Self:
        if self.readout == "likelihood" and self.item_input != "title":
            raise PydanticCustomError(
                "unfitting", "readout: likelihood reads titles. Add item_input: title, or choose another readout."
            )
        return self


@options
class TaskConfig:
    """The self-supervised task: inject noise into windows, ask which items are noise and what belongs there."""

    replaced: Count = 0
    """Positions replaced in each window (published: 1). 0: each position with probability `rate`."""
    rate: Fraction = 0.15
    """Probability that a position is replaced, where `replaced` is 0."""
    none: Fraction = 0.0
    """Fraction of windows without injected noise."""
    bursts: Fraction = 0.1
    """Fraction of windows that get a run of another user's items instead of single items; `replaced: 0` only. Also the
    share of runs in the noise that `score.stacking` learns to find. More finds more runs and fewer single items."""
    popular: Fraction = 0.2
    """Fraction of the single items that are drawn in proportion to their interactions, not uniformly."""
    whole_prompt_loss: bool = False
    """Train on the prompt tokens too (published), not on the answer alone."""


@options
class TrainConfig:
    """Tuning of the language model."""

    epochs: Count = 5
    """Passes over the windows; fresh noise is injected in each."""
    samples: Count = 12_000
    """Windows drawn once to tune each model (published: 5,000), and all with a label. 0: all. Counts, calibration and
    stacking read the others too. More did not find more noise on Toys and MovieLens."""
    batch_windows: PositiveInt = 256
    """Windows per optimizer step."""
    batch_tokens: PositiveInt = 16_384
    """Most tokens per forward pass. A step is split into as many passes as needed. On a CPU, a pass of the embedded
    model has at most 4,096; of another model, at most those whose activations in tuning fit into 1.5 GiB."""
    max_tokens: PositiveInt = 512
    """Longest prompt. Longer ones are refused with a message."""
    learning_rate: NonNegative = 1e-3
    """Peak learning rate of AdamW, with linear decay."""
    weight_decay: NonNegative = 0.01
    """Weight decay of AdamW."""
    warmup_steps: Count = 100
    """Steps over which the learning rate rises; at most a tenth of all steps."""
    suggestion_weight: NonNegative = 0.2
    """Weight of the suggestion loss, for soft tokens."""
    folds: UpTo1024 = 3
    """Models, each tuned without the users of one fold and scoring them out of fold. 1: a single model (published)."""
    small_loss_drop_rate: Fraction = 0.05
    """Fraction of unlabeled interactions with the largest loss that is left out, from the second epoch on. The limit is
    that of the step before."""


@options
class ScoreConfig:
    """Scoring and calibration."""

    mode: Literal["whole-title", "first-token"] = "whole-title"
    """Tokens of a title that are scored, for `readout: title`. `first-token` is published, and ties."""
    stacking: bool = True
    """Combine the model's log-odds with co-occurrence features by a network fitted on noise injected into validation
    windows. Needs `model.cooccurrence` and calibration."""
    calibration: Annotated[Literal["isotonic", "platt", "off"], BeforeValidator(_off)] = "isotonic"
    """Map from log-odds to probabilities."""
    calibration_draws: UpTo1024 = 3
    """Draws of injected noise per validation window."""
    atypical_share: Fraction = 0.5
    """Largest share of what looks like noise that may be the user's own atypical choices. No label-free estimate can
    tell the two apart, so probabilities have an interval: from this share to none. `llm4dsr calibrate --labels`
    narrows it."""


@options
class DecideConfig:
    """Which interactions count as noise, and how many are corrected.

    A run tries correction rates and actions on validation by default. A `Denoiser` has no recommender to ask: there
    `validation` means `probability`, which flags what is more likely noise than not.
    """

    goal: Literal["denoise", "impute"] = "denoise"
    """What `validation` tries: corrections of at most the estimated noise rate, or replacing up to half of all
    interactions by likelier ones, which is no cleaning."""
    policy: Literal["percentile", "probability", "precision", "rate", "validation"] = "validation"
    """How η is read."""
    eta: Fraction = 0.5
    """The threshold η; its meaning depends on the policy."""
    eta_test: Fraction | None = None
    """Another η for validation and test histories (published: 0.6 for training, 0.9 for test)."""
    cap: Count = 3
    """Most flagged interactions in a window."""
    cap_test: Count | None = None
    """Another cap for validation and test histories."""


@options
class SuggestConfig:
    """How replacements are suggested: as titles that are written, or, for soft tokens, as the item that ranks best."""

    mode: Literal["constrained", "free"] = "constrained"
    """`constrained` writes only titles that exist; `free` writes first and grounds the text afterwards (published)."""
    max_new_tokens: PositiveInt = 64
    """Longest free text."""
    popularity_weight: Penalty = 0.0
    """Soft tokens: most that log(1 + users) of an item may weigh in the order of suggestions. With -0.5 they are spread
    over more of the catalogue (docs/concepts/where-the-gain-comes-from.md)."""


@options
class CorrectConfig:
    """What is done with flagged interactions."""

    action: Literal["replace", "drop", "mixed", "downweight"] = "replace"
    """Replace by the suggestion; drop; replace the half with the most probable suggestions and drop the rest; or keep
    with the weight 1 - noise probability."""
    train_targets: bool = True
    """Targets of training windows may be corrected too (published)."""
    histories: bool = True
    """Histories of validation and test are corrected too (published), not training windows alone. The policy
    `validation` chooses this as well, unless it is false."""
