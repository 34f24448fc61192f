"""The language model that all stages use, around any causal LM of transformers.

With `item_input: soft_token`, it adds a projector from title vectors into the embedding space, and one back for the
title vector of a suggested replacement.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm4dsr.config import ModelConfig
from llm4dsr.core.hashing import digest
from llm4dsr.errors import ModelError, last_line
from llm4dsr.features.cooccurrence import N_FEATURES
from llm4dsr.lm.attention import layer_windows
from llm4dsr.lm.collate import Batch
from llm4dsr.lm.load import BASE_HASH, describe_base, load_lm, verify_weights
from llm4dsr.lm.lora import can_merge, merged
from llm4dsr.lm.prompt import PromptBuilder, is_bidirectional
from llm4dsr.lm.tokens import Tokens

PROJECTOR_FILE = "projector.safetensors"
# Tokens that a shared prefix saves in a batch, from which on a pass of its own pays: attention behind it needs a mask,
# and is slower.
MIN_SAVED = 256
MIN_PREFIX = 8  # tokens of a prefix that is worth keeping


@dataclass(frozen=True)
class Prefix:
    """Tokens that were read before: their last hidden states [1, T, H], and their keys and values."""

    states: Tensor
    cache: Any


class NoiseLM(nn.Module):
    """A causal LM with its tokenizer, and for soft tokens the projectors and title vectors.

    Parameters
    ----------
    lm : PreTrainedModel or PeftModel
        The language model.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    vectors : array of float, optional
        [N, V] title vectors, for soft tokens.
    features : bool, default False
        Soft tokens also carry co-occurrence features.
    bidirectional : bool, default False
        Items see each other in both directions.
    """

    def __init__(
        self,
        lm: Any,
        tokenizer: Any,
        vectors: npt.NDArray[np.float32] | None = None,
        features: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        base = lm.get_base_model() if hasattr(lm, "peft_config") else lm
        if bidirectional and layer_windows(base) is None:
            raise ModelError(
                f"{type(base).__name__} takes no attention mask from outside, so items cannot see what follows. Use "
                "model.attention: causal."
            )
        self.lm, self.tokenizer, self.bidirectional = lm, tokenizer, bidirectional
        self._turn = threading.RLock()
        self.parts = [] if vectors is None else ["into", "out"]
        self.register_buffer("vectors", None if vectors is None else torch.from_numpy(vectors), persistent=False)
        self.vectors: Tensor | None
        if vectors is not None:
            hidden, size = self.base.get_input_embeddings().embedding_dim, vectors.shape[1]
            self.into, self.out = nn.Linear(size, hidden), nn.Linear(hidden, size)
            # The first soft tokens should be about as long as the model's own embeddings.
            scale = float(self.base.get_input_embeddings().weight.detach().float().std())
            nn.init.normal_(self.into.weight, std=scale * (2 / size) ** 0.5)
            nn.init.zeros_(self.into.bias)
            if features:
                self.parts.append("cooccurrence")
                self.cooccurrence = nn.Linear(N_FEATURES, hidden)
                nn.init.normal_(self.cooccurrence.weight, std=scale)
                nn.init.zeros_(self.cooccurrence.bias)

    def with_vectors(self, vectors: Tensor | None) -> NoiseLM:
        """Return a model with other title vectors [N, V] that shares all weights; this one is unchanged."""
        out = copy.copy(self)
        out._turn = self._turn  # they share the adapter too
        out._buffers = {**self._buffers, "vectors": vectors}
        return out

    def copied(self, vectors: Tensor | None) -> NoiseLM:
        """Return a copy with other title vectors [N, V]; weights that are not tuned, and the tokenizer, are shared."""
        shared = [p for p in self.parameters() if not p.requires_grad] + [self.tokenizer, self.vectors]
        out = copy.deepcopy(self, {id(part): part for part in shared})
        return out.with_vectors(vectors)

    def merged(self) -> NoiseLM:
        """Return a model that scores alike, faster, with its adapter added to copies of the weights; this one as it is.

        Without an adapter, and on a GPU, this is the model itself.
        """
        if not can_merge(self.lm):
            return self
        out = copy.copy(self)
        out._modules = {**self._modules, "lm": merged(self.lm)}
        return out

    @property
    def base(self) -> Any:
        """The transformers model itself; LoRA layers, if any, are inside it."""
        return self.lm.get_base_model() if hasattr(self.lm, "peft_config") else self.lm

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return torch.device(self.base.get_input_embeddings().weight.device)

    def embed(self, ids: Tensor, slots: Tensor, features: Tensor | None = None) -> Tensor:
        """Embed tokens, with title vectors and co-occurrence features where they enter.

        Parameters
        ----------
        ids, slots : Tensor
            [B, T] as in `Batch`.
        features : Tensor, optional
            [soft tokens, N_FEATURES] in reading order.

        Returns
        -------
        Tensor
            [B, T, H] input embeddings.
        """
        embeds: Tensor = self.base.get_input_embeddings()(ids)
        if self.vectors is not None:
            filled = slots >= 0
            soft = self.into(self.vectors[slots[filled]])  # [filled, H]
            if features is not None:
                soft = soft + self.cooccurrence(features)
            embeds = embeds.index_put(torch.where(filled), soft.to(embeds.dtype), accumulate=True)
        return embeds

    def hidden(self, batch: Batch, prefix: Prefix | None = None, **kwargs: Any) -> Tensor:
        """Return the last hidden states [B, T, H]. Rows are right-padded, so causal attention needs no mask.

        Leading tokens that all rows share, such as the instruction, are computed once; not even that, if they begin
        with a `prefix` that was computed before. A mask and positions in `kwargs` are those of the tokens behind it.
        """
        embeds = self.embed(batch.ids, batch.slots, batch.features)
        if prefix or (batch.shared * (len(embeds) - 1) >= MIN_SAVED and not kwargs and self._takes_prefix):
            return self._behind(prefix or self._read(embeds[:1, : batch.shared]), embeds, **kwargs)
        kwargs.setdefault("use_cache", False)
        if self.bidirectional:
            size = batch.ids.shape[1]
            seen = torch.arange(size, device=self.device)[None, :] < batch.lengths[:, None]  # [B, T]
            blocked = torch.zeros(seen.shape, dtype=embeds.dtype, device=self.device)
            blocked = blocked.masked_fill(~seen, torch.finfo(embeds.dtype).min)
            kwargs["attention_mask"] = blocked[:, None, None, :].expand(-1, 1, size, -1)  # [B, 1, T, T]
            # Some models would count positions from a mask of another shape.
            kwargs["position_ids"] = torch.arange(size, device=self.device)[None]
        state: Tensor = self.states(embeds, **kwargs).last_hidden_state
        return state

    def read_prefix(self, ids: Sequence[int]) -> Prefix | None:
        """Compute the tokens that prompts begin with; None if there are few, or the model cannot go on from them."""
        if len(ids) < MIN_PREFIX or not self._takes_prefix:
            return None
        row = torch.tensor([list(ids)], device=self.device)
        return self._read(self.embed(row, torch.full_like(row, -1)))

    @property
    def _takes_prefix(self) -> bool:
        """Whether tokens can follow keys and values that were computed before, with the same states."""
        if self.bidirectional or (self.training and self._is_checkpointed):
            return False
        return layer_windows(self.base) is not None

    @property
    def _is_checkpointed(self) -> bool:
        """Whether layers compute their activations again for the gradient. transformers then gives them no cache."""
        return any(getattr(part, "gradient_checkpointing", False) for part in self.base.modules())

    def _read(self, embeds: Tensor) -> Prefix:
        from transformers import DynamicCache

        # Told no configuration, it keeps all tokens; masks limit what layers with a sliding window see.
        found = self.states(embeds, past_key_values=DynamicCache(), use_cache=True)
        return Prefix(found.last_hidden_state, found.past_key_values)

    def _behind(self, prefix: Prefix, embeds: Tensor, **kwargs: Any) -> Tensor:
        """Return the states of rows [B, T, H] that begin with a prefix; `kwargs` are for what follows it."""
        rows, size = len(embeds), prefix.states.shape[1]
        cache = copy.copy(prefix.cache)  # a model adds to it
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_repeat_interleave(rows)
        rest = self.states(embeds[:, size:], past_key_values=cache, use_cache=True, **kwargs).last_hidden_state
        return torch.cat([prefix.states.expand(rows, -1, -1), rest], dim=1)

    def states(self, embeds: Tensor, **kwargs: Any) -> Any:
        """Return what the transformer makes of input embeddings [B, T, H]."""
        with self._adapter_in_use():
            return self.base.base_model(inputs_embeds=embeds, **kwargs)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Turn the adapter off inside the block, if there is one. Other threads wait for their turn."""
        off = self.lm.disable_adapter() if hasattr(self.lm, "peft_config") else nullcontext()
        with self._adapter_in_use(), off:
            yield

    def _adapter_in_use(self) -> AbstractContextManager[Any]:
        """An adapter is on or off for all threads, so with one they take turns."""
        return self._turn if hasattr(self.lm, "peft_config") else nullcontext()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the lock out: a copy in another process has its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._turn = threading.RLock()

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., H] to next-token logits [..., vocabulary], in float32."""
        out: Tensor = self.base.get_output_embeddings()(hidden)
        return scaled_logits(self.base.config.get_text_config(), out.float())

    def fingerprint(self) -> str:
        """Return a hash of the weights; with an adapter, of the adapter and the base's input embeddings."""
        parts: list[Tensor] = [self.base.get_input_embeddings().weight]
        whole = not hasattr(self.lm, "peft_config")
        parts += [p for name, p in self.named_parameters() if whole or "lora" in name or not name.startswith("lm.")]
        parts += [] if self.vectors is None else [self.vectors]
        return digest(*(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for p in parts))

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that are tuned."""
        return [p for p in self.parameters() if p.requires_grad]

    def save(self, folder: Path) -> None:
        """Write the model or its adapter, the tokenizer and the projectors as safetensors, and verify them."""
        folder.mkdir(parents=True, exist_ok=True)
        adapter = hasattr(self.lm, "peft_config")
        # Embeddings are never tuned alone; to find that out, peft would ask the hub for the base.
        self.lm.save_pretrained(folder / "lm", **({"save_embedding_layers": False} if adapter else {}))
        self.tokenizer.save_pretrained(folder / "lm")
        if adapter:
            base = self.lm.peft_config["default"].base_model_name_or_path
            (folder / "lm" / BASE_HASH).write_text(json.dumps(describe_base(self.base, base)))
        if self.vectors is not None:
            own = {f"{name}.{k}": v.contiguous() for name in self.parts
                   for k, v in getattr(self, name).state_dict().items()}  # fmt: skip
            save_file({**own, "vectors": self.vectors.contiguous()}, folder / PROJECTOR_FILE)
            verify_weights(folder)
        verify_weights(folder / "lm")

    @classmethod
    def load(cls, folder: Path, config: ModelConfig, device: str | None = None) -> NoiseLM:
        """Load what `save` wrote.

        Raises
        ------
        ModelError
            If files are missing or do not fit the configuration.
        """
        lm, tokenizer = load_lm(str(folder / "lm"), config, device)
        path = folder / PROJECTOR_FILE
        if config.item_input != "soft_token":
            return cls(lm, tokenizer)
        if not path.is_file():
            raise ModelError(
                f"{folder} lacks {PROJECTOR_FILE}, which a model with item_input: soft_token needs. Tune it again."
            )
        verify_weights(folder)
        weights = load_file(path)
        try:
            vectors = weights.pop("vectors").numpy()
            model = cls(lm, tokenizer, vectors, config.cooccurrence, is_bidirectional(config))
            for name in model.parts:
                part = {k.removeprefix(name + "."): v for k, v in weights.items() if k.startswith(name + ".")}
                getattr(model, name).load_state_dict(part)
        except (KeyError, IndexError, RuntimeError) as error:
            raise ModelError(f"{path} does not fit the model: {last_line(error)}. Tune the model again.") from None
        return model.to(model.device)


def scaled_logits(config: Any, logits: Tensor) -> Tensor:
    """Scale and cap what an output layer returns, as the forward of the model's own class does after it."""
    scale = 1 / (getattr(config, "logits_scaling", None) or 1)
    for factor in ("logit_scale", "lm_head_multiplier"):
        scale *= getattr(config, factor, None) or 1
    if scale != 1:  # else a copy of all logits
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if not cap else cap * torch.tanh(logits / cap)


def read_states(hidden: Tensor, rows: Sequence[Tokens]) -> Tensor:
    """Return the hidden states [positions, H] at which noise logits are read, row after row."""
    at = [(i, t) for i, row in enumerate(rows) for t in row.read]
    return hidden[[i for i, _ in at], [t for _, t in at]]


def noise_logits(model: NoiseLM, builder: PromptBuilder, hidden: Tensor) -> Tensor:
    """Map hidden states [..., H] to logits [..., 2] of "no, it fits" and "yes, it is noise"."""
    head, words = model.base.get_output_embeddings(), [builder.no, builder.yes]
    bias = None if getattr(head, "bias", None) is None else head.bias[words].to(hidden.dtype)
    logits = F.linear(hidden, head.weight[words].to(hidden.dtype), bias).float()  # [..., 2]
    return scaled_logits(model.base.config.get_text_config(), logits)
