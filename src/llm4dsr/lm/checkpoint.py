"""Checkpoints of tuning: the state between two steps in one safetensors file, so that tuning resumes exactly.

The file holds a checksum of its content. A damaged checkpoint is ignored, and tuning begins again.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llm4dsr.core.arrays import IntArray
from llm4dsr.core.hashing import digest
from llm4dsr.core.io import sync_file, sync_folder
from llm4dsr.errors import OutputError

_META, _SEAL = "state", "checksum"


@dataclass
class Position:
    """Where tuning stands.

    Attributes
    ----------
    epoch, step : int
        The step that comes next.
    order : array of int
        The windows of the epoch in their order; empty before it is drawn.
    losses : list of float
        Of the steps of this epoch so far.
    curve : list of float
        Mean loss of each finished epoch.
    budget : int
        Tokens per forward pass; 0 before the first step.
    loss_limit : float
        Loss above which the next step leaves unlabeled interactions out.
    """

    epoch: int = 0
    step: int = 0
    order: IntArray = field(default_factory=lambda: np.empty(0, np.int64))
    losses: list[float] = field(default_factory=list)
    curve: list[float] = field(default_factory=list)
    budget: int = 0
    loss_limit: float = math.inf


class Checkpoint:
    """The checkpoint file of one model.

    Parameters
    ----------
    path : Path or None
        The file. None: nothing is kept.
    key : str
        A hash of all that the tuning depends on. A checkpoint with another key is ignored.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key

    @property
    def exists(self) -> bool:
        """Whether there is a checkpoint with this key."""
        return self._read() is not None

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        rng: np.random.Generator,
        position: Position,
    ) -> None:
        """Write model, optimizer, scaler, random states and position.

        Raises
        ------
        OutputError
            If the disk is full or not writable. The previous checkpoint is then unchanged.
        """
        if self.path is None:
            return
        tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        tensors |= {"order": torch.from_numpy(position.order), "random.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        where = {k: v for k, v in asdict(position).items() if k != "order"}
        meta = {"key": self.key, "position": where, "numpy": rng.bit_generator.state, "scaler": scaler.state_dict()}
        tensors, text = {k: v.contiguous().cpu() for k, v in tensors.items()}, json.dumps(meta)
        part = self.path.with_suffix(".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, {_META: text, _SEAL: _seal(tensors, text)})
            sync_file(part)
            os.replace(part, self.path)
            sync_folder(self.path.parent)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"Cannot write {self.path}: {error}. Free some space, then run it again.") from None

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, rng: np.random.Generator
    ) -> Position:
        """Restore model, optimizer, scaler and random states.

        Returns
        -------
        Position
            Where tuning stood; the start if there is no checkpoint with this key.
        """
        found = self._read()
        if found is None:
            return Position()
        meta, tensors = found
        parameters = dict(model.named_parameters())
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for name, value in tensors.items():
                kind, _, rest = name.partition(".")
                if kind == "model":
                    parameters[rest].copy_(value)
                elif kind == "optimizer":
                    i, _, field_name = rest.partition(".")
                    state.setdefault(int(i), {})[field_name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        torch.set_rng_state(tensors["random.cpu"])
        if torch.cuda.is_available() and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"])
        rng.bit_generator.state = meta["numpy"]
        scaler.load_state_dict(meta["scaler"])
        return Position(order=tensors["order"].numpy(), **meta["position"])

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """(state, tensors); None if there is no checkpoint with this key, or a damaged one."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                about = file.metadata() or {}
                meta: dict[str, Any] = json.loads(about.get(_META, "{}"))
                if meta.get("key") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, AttributeError):
            return None
        return (meta, tensors) if about.get(_SEAL) == _seal(tensors, about[_META]) else None


def _seal(tensors: dict[str, Tensor], text: str) -> str:
    """A checksum of all that a checkpoint holds."""
    parts: list[Any] = [text]
    for name, tensor in sorted(tensors.items()):
        kept = tensor.contiguous()
        parts += [name, (kept.view(torch.int16) if kept.dtype == torch.bfloat16 else kept).numpy()]
    return digest(*parts)
