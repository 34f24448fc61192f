"""Options of the recommenders and of their evaluation."""

import dataclasses
from dataclasses import field
from typing import Literal

from llm4dsr.config.denoiser import ModelConfig
from llm4dsr.config.fields import Count, Fraction, NonNegative, PositiveInt, UpTo1024, options


@options
class RecommenderConfig:
    """Options that all backbones share.

    The defaults are the published settings of SASRec, except for the loss: sampled softmax with shared negatives, which
    is faster.
    """

    hidden_size: PositiveInt = 64
    """Width of item vectors and layers."""
    blocks: UpTo1024 = 2
    """Layers."""
    heads: PositiveInt = 1
    """Attention heads."""
    dropout: Fraction = 0.5
    """Dropout."""
    history: PositiveInt = 10
    """Newest items of a history that are read."""
    learning_rate: NonNegative = 1e-3
    """Learning rate of Adam."""
    batch_size: PositiveInt = 256
    """Windows per step."""
    loss: Literal["sampled", "full", "bce"] = "sampled"
    """Sampled softmax, full softmax, or binary cross-entropy with one negative."""
    negatives: PositiveInt = 512
    """Negatives that a batch shares, for `loss: sampled`."""
    epochs: PositiveInt = 60
    """Most passes over the training windows."""
    patience: Count = 10
    """Epochs without a better validation NDCG@20 before training stops."""
    supervise: Literal["all", "last"] = "last"
    """Predict each next item of a window, or its target alone."""


def _small_title_model() -> ModelConfig:
    """Small, and without dropout, which costs a third of the time."""
    return ModelConfig(
        item_input="title", readout="title", hidden_size=64, layers=2, heads=4, dropout=0.0, pretrain_epochs=2
    )


@options
class LLaRAConfig:
    """Options of LLaRA; its SASRec takes those of every backbone.

    With the defaults, training on 4,000 Toys windows takes four minutes on one CPU core. A pre-trained model needs
    `tuning: lora`, more samples and more epochs.
    """

    model: ModelConfig = field(default_factory=_small_title_model)
    """The language model. Prompts hold titles and answer with one: item_input, readout, attention, cooccurrence,
    title_vectors and chat_template are ignored."""
    epochs: PositiveInt = 4
    """Passes over the windows. An embedded model spends the first `model.pretrain_epochs` on all titles of a window."""
    samples: Count = 4000
    """Windows drawn once for tuning. 0: all."""
    validation: Count = 1000
    """Validation windows drawn once, which choose the best epoch. 0: all."""
    batch_windows: PositiveInt = 32
    """Windows per optimizer step."""
    batch_tokens: PositiveInt = 2048
    """Tokens per forward pass."""
    learning_rate: NonNegative = 2e-3
    """Peak learning rate of AdamW."""
    candidates: Count = 100
    """SASRec's best items, which the language model ranks. 0: the whole catalogue."""

    @property
    def language_model(self) -> ModelConfig:
        """The model's options with the prompt form that LLaRA uses."""
        return dataclasses.replace(self.model, item_input="title", readout="title", chat_template=False)


@options
class NeighborhoodConfig:
    """Options of item-kNN and EASE, which read the whole history and have no seed."""

    decay: Fraction = 0.8
    """Weight of a history item, per step back from the newest."""
    neighbors: Count = 0
    """For `itemknn`: most similar items kept for each item. 0: all."""
    shrink: NonNegative = 0.0
    """For `itemknn`: added to the denominator of the cosine, so that pairs with few users count less."""
    ridge: NonNegative = 200.0
    """For `ease`: λ of the paper; higher = smaller weights."""


@options
class EvaluateConfig:
    """Which recommender is trained on each row, with which seeds, and how it is measured."""

    seeds: UpTo1024 = 1
    """Seeds of each recommender. `itemknn` and `ease` have none and are trained once."""
    k: PositiveInt = 20
    """Cutoff of NDCG@k and HR@k."""
    backbone: Literal["sasrec", "bert4rec", "gru4rec", "llara", "fmlprec", "cl4srec", "itemknn", "ease"] = "sasrec"
    """The recommender."""
    recommender: RecommenderConfig = field(default_factory=RecommenderConfig)
    """Its options."""
    llara: LLaRAConfig = field(default_factory=LLaRAConfig)
    """Further options of the backbone `llara`."""
    neighborhood: NeighborhoodConfig = field(default_factory=NeighborhoodConfig)
    """Options of the backbones `itemknn` and `ease`, which read no others."""
