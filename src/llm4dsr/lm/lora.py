"""LoRA layers at a lower cost: one fused layer for tuning on a CPU, and none at all for scoring.

peft computes an adapter in steps, each with a copy of the activations: dropout, two products, a scaling and a sum. For
the backward pass it keeps the dropped input and a float mask. `fused_lora` does the same in fewer steps, and keeps the
input, which layers share, and a mask of bytes. `merged` adds the adapter to copies of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16  # a dropout rate is rounded to one of these


def draw_kept(shape: torch.Size, dropout: float) -> Tensor:
    """Draw which elements dropout keeps, as bool; several times as fast as `torch.bernoulli` on a CPU."""
    count = shape.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)  # four draws of 16 bits each
    return (bits.view(torch.int16)[:count] >= round(dropout * LEVELS) - LEVELS // 2).view(shape)


class _LoraLinear(torch.autograd.Function):
    """x Wᵀ + b + scale · dropout(x) Aᵀ Bᵀ, for a frozen W [out, in] and b."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, dropout: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # [tokens, in]
        out = F.linear(flat, weight, bias)
        kept = draw_kept(flat.shape, dropout) if dropout else None
        low = F.linear(_dropped(flat, kept), a.to(x.dtype)).to(out.dtype)  # [tokens, rank]; autocast may change types
        ctx.scale = scale / (1 - round(dropout * LEVELS) / LEVELS)
        out.addmm_(low, b.to(out.dtype).T, alpha=ctx.scale)
        ctx.save_for_backward(flat, kept, weight, a, b, low)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        flat, kept, weight, a, b, low = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # [tokens, out]
        of_low = (grad @ b.to(grad.dtype)).mul_(ctx.scale)  # [tokens, rank]
        of_b = (grad.T @ low).mul_(ctx.scale)
        of_a = of_low.T @ _dropped(flat, kept).to(of_low.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = grad @ weight.to(grad.dtype)
            of_x += _dropped(of_low @ a.to(grad.dtype), kept)
            of_x = of_x.view(*grads[0].shape[:-1], -1)
        return of_x, None, None, of_a.to(a.dtype), of_b.to(b.dtype), None, None


def _dropped(x: Tensor, kept: Tensor | None) -> Tensor:
    return x if kept is None else torch.where(kept, x, 0)


@contextmanager
def fused_lora(lm: Any) -> Iterator[None]:
    """Let the plain LoRA layers of a model on a CPU compute in fewer steps inside the block.

    The result is that of peft, apart from which elements dropout leaves out.
    """
    fused = [] if torch.device(lm.device).type != "cpu" else [m for m in lm.modules() if _is_plain(m)]
    for layer in fused:
        layer.forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in fused:
            del layer.forward


def _forward(layer: Any, x: Tensor) -> Tensor:
    (name,) = layer.active_adapters
    base, dropout = layer.base_layer, layer.lora_dropout[name]
    if layer.disable_adapters:
        return F.linear(x, base.weight, base.bias)
    rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    out: Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        x, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], rate
    )
    return out


def _is_plain(layer: Any) -> bool:
    """Whether a module is a linear layer with one adapter, as `add_lora` makes it."""
    from peft.tuners.lora import Linear

    if type(layer) is not Linear or type(layer.base_layer) is not nn.Linear or layer.lora_variant:
        return False
    own = [layer.base_layer.weight, layer.base_layer.bias, *(b.bias for b in layer.lora_B.values())]
    is_frozen = not any(p is not None and p.requires_grad for p in own)
    return is_frozen and own[-1] is None and len(layer.active_adapters) == 1 and not layer.merged


def can_merge(lm: Any) -> bool:
    """Return whether the adapter can be added to copies of the weights: it is plain, and on a CPU.

    On a GPU the copies of a large model may not fit, and time for the adapter is short.
    """
    layers = [m for m in lm.modules() if hasattr(m, "base_layer")]
    return bool(layers) and all(_is_plain(m) and m.base_layer.weight.device.type == "cpu" for m in layers)


@torch.no_grad()
def merged(lm: Any) -> Any:
    """Return the base of a model with the adapter added to its weights. It shares all weights that have no adapter.

    In half precision the sum is rounded, like the weights themselves.
    """
    parts: dict[int, Any] = {id(p): p for p in lm.parameters()}
    parts |= {id(m): _merged(m) for m in lm.modules() if hasattr(m, "base_layer")}
    out = copy.deepcopy(lm.get_base_model(), parts)
    vars(out).pop("peft_config", None)  # peft leaves it on the base as well
    return out


def _merged(layer: Any) -> nn.Linear:
    (name,) = layer.active_adapters
    weight = layer.base_layer.weight
    weight = nn.Parameter((weight + layer.get_delta_weight(name)).to(weight.dtype), requires_grad=False)
    out: nn.Linear = copy.copy(layer.base_layer)
    out._parameters = {**out._parameters, "weight": weight}
    return out
