"""Load a language model: a hub checkpoint, a local folder, a GGUF file, or a LoRA adapter. Weights are verified."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llm4dsr.config import ALL_LINEAR, EMBEDDED, SMOLLM2, ModelConfig
from llm4dsr.core.device import pick_device
from llm4dsr.core.hashing import digest
from llm4dsr.core.manifest import file_hash
from llm4dsr.errors import ConfigError, ModelError, first_line, last_line
from llm4dsr.lm.gguf import gguf_path, load_gguf

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
MOST_LAYERS = 10_000
JSON_BYTES = 2**28  # of one file; the largest tokenizers have some 35 MB
BASE_HASH = "base.json"  # beside an adapter: tells its base from another model of the same shape
_EXPECTED = (
    "Give a hub name that can be reached, a local folder with config.json, *.safetensors and a tokenizer, "
    f"a .gguf file, {SMOLLM2!r} or {EMBEDDED!r}."
)


def load_lm(source: str, config: ModelConfig, device: str | None = None) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    Parameters
    ----------
    source : str
        `smollm2`, a hub name, a local checkpoint or GGUF file, or a local LoRA adapter, whose base is loaded first.
    config : ModelConfig
        Precision and quantization.
    device : str, optional
        Default: the GPU if there is one.

    Returns
    -------
    lm : PreTrainedModel or PeftModel
    tokenizer : PreTrainedTokenizerBase

    Raises
    ------
    ModelError
        If there is no such model, weights are missing, or the adapter belongs to another base.
    ConfigError
        If quantized weights are to be tuned in full.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or pick_device()
    source, base = resolve_base(source)
    adapter = source != base
    packed = gguf_path(base)
    _check_source(base if packed else source, packed, adapter)
    dtype, settings = DTYPES[config.dtype], _quantized(config, device, packed is not None)
    for folder in {source, base}:
        if os.path.isdir(folder):
            check_files(Path(folder))
    try:
        if packed:
            lm, report, tokenizer = load_gguf(packed, base, dtype, MOST_LAYERS)
        else:
            lm, report = AutoModelForCausalLM.from_pretrained(
                base, output_loading_info=True, dtype=dtype, use_safetensors=True, trust_remote_code=False, **settings
            )
        own = adapter and (Path(source) / "tokenizer_config.json").is_file()
        if own or not packed:
            tokenizer = AutoTokenizer.from_pretrained(source if own else base, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds; a person needs one line
        raise ModelError(
            f"No causal language model could be loaded from {base!r}: {first_line(error)} {_EXPECTED}"
        ) from None
    if report["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = sorted(report["missing_keys"])
        raise ModelError(f"{base} lacks {len(missing)} of the model's weights, for example {missing[0]}. {_EXPECTED}")
    bad = [name for name, p in lm.named_parameters() if p.is_floating_point() and not torch.isfinite(p).all()]
    if bad:
        raise ModelError(f"{base} holds values that are not finite, in {bad[0]}. Use another checkpoint.")
    if config.load_in == "full":
        lm = lm.to(device)
    return _with_adapter(lm, source, base) if adapter else lm, tokenizer


def _check_source(source: str, packed: Path | None, adapter: bool) -> None:
    """Raise ModelError for a local path that cannot be a model."""
    if packed:
        if not packed.is_file():
            raise ModelError(f"There is no model at {source}. {_EXPECTED}")
    elif adapter:
        return
    elif os.path.exists(source) and not (Path(source) / "config.json").is_file():
        raise ModelError(f"{source} exists but holds no config.json: not a transformers checkpoint or adapter.")
    elif not os.path.exists(source) and (Path(source).is_absolute() or source.startswith(".")):
        raise ModelError(f"There is no model at {source}. {_EXPECTED}")


def _quantized(config: ModelConfig, device: str, packed: bool) -> dict[str, Any]:
    """Arguments of from_pretrained that quantize the base; none for full precision."""
    if config.load_in == "full":
        return {}
    if packed:
        raise ConfigError(f"model.load_in: {config.load_in} cannot be used with a GGUF file. Use load_in: full.")
    if device == "cpu":
        raise ModelError(f"load_in: {config.load_in} needs CUDA, and none is here. Use load_in: full.")
    if config.tuning == "full":
        raise ConfigError(f"model.load_in: {config.load_in} cannot be tuned in full. Use tuning: lora.")
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(**{f"load_in_{config.load_in}": True}),
        "device_map": {"": 0},
    }


def resolve_base(source: str) -> tuple[str, str]:
    """Return a source as an absolute path or hub name, and the base that it is an adapter of; the source if it is none.

    Raises
    ------
    ModelError
        If an adapter does not tell its base, or the base is not there.
    """
    source = _absolute(source)
    is_adapter = os.path.isfile(os.path.join(source, ADAPTER_CONFIG))
    return source, _base_of(Path(source)) if is_adapter else source


def _absolute(source: str) -> str:
    """An absolute path for local sources, because an adapter records the path of its base; names as they are."""
    if source == SMOLLM2:
        return source
    path = os.path.expanduser(source)  # unlike those of pathlib, these raise for no name at all
    return str(Path(path).resolve()) if os.path.exists(path) else path


def _base_of(adapter: Path) -> str:
    """The base that a local adapter names."""
    try:
        base = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise ModelError(f"{adapter / ADAPTER_CONFIG} does not say of which base it is the adapter. Tune it again.")
    if (Path(base) / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"The base of the adapter at {adapter} is an adapter, too: {base}. Merge that one into its base."
        )
    if Path(base).is_absolute() and not Path(base).exists():
        raise ModelError(
            f"The adapter at {adapter} needs its base, and there is nothing at {base}. Put the base back there, or a "
            "link to it."
        )
    return base


def _with_adapter(lm: Any, source: str, base: str) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    verify_weights(Path(source))
    if not (Path(source) / ADAPTER_FILE).is_file():  # peft would take pickled weights then
        raise ModelError(f"{source} holds no {ADAPTER_FILE}. Only safetensors are read: save the adapter again.")
    named = {name for name, _ in lm.named_parameters()}
    stored = {k for path in Path(source).glob("*.safetensors") for k in load_file(path)}
    targets = {k.removeprefix("base_model.model.").split(".lora_")[0] + ".weight" for k in stored if ".lora_" in k}
    strangers = sorted(targets - named)
    try:
        if strangers:
            raise ValueError(f"it has weights for {strangers[0]}, which the base lacks.")
        out = PeftModel.from_pretrained(lm, source, is_trainable=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"The adapter at {source} does not belong to its base {base!r}: {last_line(error)} "
            "Use the base that it was tuned on."
        ) from None
    missing = sorted(set(get_peft_model_state_dict(out, save_embedding_layers=False)) - stored)
    if missing:  # peft only warns, and goes on with an adapter that does nothing there
        raise ModelError(f"The adapter at {source} lacks {len(missing)} weights, for example {missing[0]}. Tune again.")
    known = Path(source) / BASE_HASH
    if known.is_file():
        before, now = json.loads(known.read_text(encoding="utf-8")), describe_base(lm, base)
        if any(now[key] != before[key] for key in before.keys() & now.keys() if before[key] and now[key]):
            raise ModelError(
                f"The adapter at {source} was tuned on other weights than its base {base!r} has now. Use the base that "
                "it was tuned on, or tune again."
            )
    return out


def describe_base(lm: Any, source: str) -> dict[str, Any]:
    """Return what tells a base from others of the same shape: hashes of its embeddings and of its weight files."""
    return {
        "embeddings": digest(lm.get_input_embeddings().weight.detach().float().cpu().numpy()),
        "files": weight_files(source),
    }


def weight_files(source: str) -> dict[str, str]:
    """Return the SHA-256 of each weight file of a local model; nothing for a hub name, whose files do not change."""
    packed = gguf_path(source := _absolute(source))
    paths = sorted(Path(source).glob("*.safetensors")) if packed is None else [packed]
    return {path.name: file_hash(path) for path in paths}


def check_files(folder: Path) -> None:
    """Check files of a model before any library reads them: JSON of a bounded size, and shards inside the folder.

    Raises
    ------
    ModelError
        If a JSON file is larger than any tokenizer's, a list of shards names a file elsewhere, or the configuration
        has more layers than any model.
    """
    for path in folder.glob("*.json"):
        if path.stat().st_size > JSON_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size} bytes; expected at most {JSON_BYTES}. Do not trust it.")
    for name, value in _json_of(folder / "config.json").items():
        if "layer" in name and isinstance(value, int) and value > MOST_LAYERS:
            raise ModelError(f"{folder / 'config.json'} has {name} = {value}; expected at most {MOST_LAYERS}.")
    for path in folder.glob("*.index.json"):
        try:
            names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{path} is no list of shards: {first_line(error)}. {_EXPECTED}") from None
        outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        if outside:
            raise ModelError(f"{path} names the file {outside[0]!r}, which is not in its folder. Do not trust it.")


def _json_of(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none, which the library that reads it reports."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def verify_weights(folder: Path) -> None:
    """Raise ModelError if saved weights are missing, empty (a known fault of adapters) or not finite."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no *.safetensors weights.")
    for path in files:
        try:
            tensors = load_file(path)
        except Exception as error:
            raise ModelError(f"{path} is not a readable safetensors file: {error}") from None
        if not tensors or any(t.numel() == 0 for t in tensors.values()):
            raise ModelError(f"{path} is empty: the weights were not saved. Tune the model again.")
        bad = [k for k, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
        if bad:
            raise ModelError(f"{path} holds values that are not finite, in {bad[0]}. Lower train.learning_rate.")


def add_lora(lm: Any, config: ModelConfig) -> Any:
    """Add a new LoRA adapter to a model; all other weights are frozen.

    Raises
    ------
    ModelError
        If the model has no module of a name in `lora_targets`.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    names = {name.rsplit(".", 1)[-1] for name, _ in lm.named_modules()}
    targets = ALL_LINEAR if config.lora_targets == (ALL_LINEAR,) else list(config.lora_targets)
    missing = [t for t in config.lora_targets if t not in names] if targets != ALL_LINEAR else []
    if missing:
        raise ModelError(f"lora_targets: the model has no module named {missing[0]!r}; it has {sorted(names)[:12]}.")
    if config.load_in != "full":
        lm = prepare_model_for_kbit_training(lm)
    settings = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout,
                          target_modules=targets, task_type="CAUSAL_LM")  # fmt: skip
    try:
        return get_peft_model(lm, settings)
    except ValueError as error:  # a module of another kind than LoRA can adapt
        raise ModelError(f"lora_targets: {first_line(error)} Name linear layers, such as q_proj.") from None
