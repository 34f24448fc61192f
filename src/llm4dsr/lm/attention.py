"""Attention masks of prefix trees, for each kind of layer of a model."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llm4dsr.core.progress import log

FULL, SLIDING = "full_attention", "sliding_attention"  # as transformers names them
Masks = Tensor | dict[str, Tensor]


def layer_windows(base: Any) -> dict[str, int | None] | None:
    """Return how far the layers of a model see back.

    Parameters
    ----------
    base : PreTrainedModel
        A causal language model.

    Returns
    -------
    dict of str to (int or None), or None
        For each kind of layer, its sliding window in tokens; None where it sees all tokens. None instead of a
        dictionary if the model takes no mask or no positions from outside: linear attention, state spaces, ALiBi.
    """
    config, backbone = base.config.get_text_config(), base.base_model
    taken = inspect.signature(backbone.forward).parameters
    kinds, window = getattr(config, "layer_types", None), _declared(config, "sliding_window")
    if not {"attention_mask", "position_ids", "past_key_values"} <= taken.keys() or getattr(config, "alibi", False):
        return None
    if getattr(base, "_is_stateful", False) or getattr(config, "model_type", "") in INDEX_MASKS:
        return None
    if not kinds:
        return {SLIDING: window} if window else {FULL: None}
    if not set(kinds) <= {FULL, SLIDING} or (SLIDING in kinds and not window):
        return None
    return {kind: window if kind == SLIDING else None for kind in set(kinds)}


INDEX_MASKS = {"gpt_neo"}  # local attention by index, in a mask of their own


def _declared(config: Any, name: str) -> Any:
    """An option that the kind of model has; a config.json may also hold options of other models, which do nothing."""
    kind = type(config)
    known = hasattr(kind, name) or name in inspect.signature(kind).parameters
    return getattr(config, name, None) if known else None


def tree_masks(windows: dict[str, int | None], seen: Tensor, positions: Tensor, dtype: torch.dtype) -> Masks:
    """Make the additive attention masks of prompts with a tree behind each.

    Parameters
    ----------
    windows : dict
        As `layer_windows` returns it.
    seen : Tensor of bool
        [B, Q, T] True where one of the last Q tokens (row) sees another (column): the prompt before it and its
        ancestors.
    positions : Tensor of int
        [B, T] position of each token in its own text. Sliding windows count these, not places in the tree.
    dtype : torch.dtype
        Of the mask.

    Returns
    -------
    Tensor or dict of str to Tensor
        [B, 1, Q, T], 0 or the lowest number; one for each kind of layer if there are several.
    """

    def mask(window: int | None) -> Tensor:
        asking = positions[:, -seen.shape[1] :, None]
        near = seen if window is None else seen & (asking - positions[:, None, :] < window)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~near, torch.finfo(dtype).min)[
            :, None
        ]

    masks = {kind: mask(window) for kind, window in windows.items()}
    return masks if len(masks) > 1 else masks.popitem()[1]


@cache
def warn_of_slow_scoring(kind: str) -> None:
    """Log once that a kind of model is asked for each title in a pass of its own."""
    log.warning("%s takes no attention mask from outside: each title is scored in its own pass, which is slower.", kind)
