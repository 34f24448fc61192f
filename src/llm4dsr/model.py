"""The language model: one class for a hub checkpoint, a local path, an adapter, and the embedded default.

`NoiseLM` wraps any causal LM of transformers. With items: vector it adds a projector from title vectors into the
embedding space (in through `inputs_embeds`) and one back, for the vector of a suggested replacement.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm4dsr.batch import Batch, pick_device, seeded
from llm4dsr.company import EVIDENCE
from llm4dsr.config import EMBEDDED, ModelConfig
from llm4dsr.errors import ConfigError, ModelError
from llm4dsr.prompt import PHRASES, judged_in_place
from llm4dsr.shards import digest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROJECTOR_FILE = "projector.safetensors"
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
BASE_HASH = "base.json"  # beside an adapter: tells its base from another model of the same shape
_EXPECTED = (
    "Give a hub name that can be reached, a local folder with config.json, *.safetensors and a tokenizer, "
    f"or {EMBEDDED!r}."
)


class NoiseLM(nn.Module):
    """A causal LM with its tokenizer, and with vector items the two projectors and the title vectors [N, V]."""

    def __init__(self, lm: Any, tokenizer: Any, vectors: npt.NDArray[np.float32] | None = None,
                 evidence: bool = False, full_attention: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.lm, self.tokenizer, self.full_attention = lm, tokenizer, full_attention
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
            if evidence:
                self.parts.append("company")
                self.company = nn.Linear(EVIDENCE, hidden)
                nn.init.normal_(self.company.weight, std=scale)
                nn.init.zeros_(self.company.bias)

    @property
    def base(self) -> Any:
        """The transformers model itself; LoRA layers, if any, are inside it."""
        return self.lm.get_base_model() if hasattr(self.lm, "peft_config") else self.lm

    @property
    def device(self) -> torch.device:
        return torch.device(self.base.get_input_embeddings().weight.device)

    def embed(self, ids: Tensor, slots: Tensor, evidence: Tensor | None = None) -> Tensor:
        """ids, slots [B, T] → input embeddings [B, T, H]; a title vector, and the evidence where there is some, is
        added where slots >= 0."""
        embeds: Tensor = self.base.get_input_embeddings()(ids)
        if self.vectors is not None:
            filled = slots >= 0
            soft = self.into(self.vectors[slots[filled]])  # [filled, H]
            if evidence is not None:
                soft = soft + self.company(evidence)
            embeds = embeds.index_put(torch.where(filled), soft.to(embeds.dtype), accumulate=True)
        return embeds

    def hidden(self, batch: Batch, **kwargs: Any) -> Tensor:
        """[B, T, H] last hidden states. Rows are right-padded: under causal attention no mask is needed."""
        kwargs.setdefault("use_cache", False)
        embeds = self.embed(batch.ids, batch.slots, batch.evidence)
        if self.full_attention:
            size = batch.ids.shape[1]
            seen = torch.arange(size, device=self.device)[None, :] < batch.lengths[:, None]  # [B, T]
            blocked = torch.zeros(seen.shape, dtype=embeds.dtype, device=self.device)
            blocked = blocked.masked_fill(~seen, torch.finfo(embeds.dtype).min)
            kwargs["attention_mask"] = blocked[:, None, None, :].expand(-1, 1, size, -1)  # [B, 1, T, T]
        state: Tensor = self.base.base_model(inputs_embeds=embeds, **kwargs).last_hidden_state
        return state

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] → [..., vocabulary], in float32."""
        out: Tensor = self.base.get_output_embeddings()(hidden)
        return out.float()

    def fingerprint(self) -> str:
        """A hash of the weights; of a model with an adapter, of the adapter's and of the base's input embeddings."""
        parts: list[Tensor] = [self.base.get_input_embeddings().weight]
        whole = not hasattr(self.lm, "peft_config")
        parts += [p for name, p in self.named_parameters() if whole or "lora" in name or not name.startswith("lm.")]
        parts += [] if self.vectors is None else [self.vectors]
        return digest(*(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for p in parts))

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def save(self, folder: Path) -> None:
        """The model or its adapter, the tokenizer and the projectors; safetensors only. Verified after writing."""
        folder.mkdir(parents=True, exist_ok=True)
        self.lm.save_pretrained(folder / "lm", safe_serialization=True)
        self.tokenizer.save_pretrained(folder / "lm")
        if hasattr(self.lm, "peft_config"):
            (folder / "lm" / BASE_HASH).write_text(json.dumps({"embeddings": _embeddings_hash(self.base)}))
        if self.vectors is not None:
            own = {f"{name}.{k}": v.contiguous() for name in self.parts
                   for k, v in getattr(self, name).state_dict().items()}  # fmt: skip
            save_file({**own, "vectors": self.vectors.contiguous()}, folder / PROJECTOR_FILE)
            verify_weights(folder)
        verify_weights(folder / "lm")

    @classmethod
    def load(cls, folder: Path, config: ModelConfig, device: str | None = None) -> NoiseLM:
        lm, tokenizer = load_lm(str(folder / "lm"), config, device)
        path = folder / PROJECTOR_FILE
        if config.items != "vector":
            return cls(lm, tokenizer)
        if not path.is_file():
            raise ModelError(f"{folder} lacks {PROJECTOR_FILE}, which a model with items: vector needs. Tune it again.")
        verify_weights(folder)
        weights = load_file(path)
        try:
            vectors = weights.pop("vectors").numpy()
            model = cls(lm, tokenizer, vectors, config.company, judged_in_place(config))
            for name in model.parts:
                part = {k.removeprefix(name + "."): v for k, v in weights.items() if k.startswith(name + ".")}
                getattr(model, name).load_state_dict(part)
        except (KeyError, RuntimeError) as error:
            raise ModelError(f"{path} does not fit the model: {_last_line(error)}. Tune the model again.") from None
        return model.to(model.device)


def load_lm(source: str, config: ModelConfig, device: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) from a hub name, a local checkpoint, or a local LoRA adapter (its base is loaded first).

    Raises ModelError where there is none, where weights are missing, or where the adapter is for another base.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or pick_device()
    source = _absolute(source)
    base, adapter = source, (Path(source) / ADAPTER_CONFIG).is_file()
    if adapter:
        base = _base_of(Path(source))
    elif Path(source).exists() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"{source} exists but holds no config.json: not a transformers checkpoint or adapter.")
    elif not Path(source).exists() and (Path(source).is_absolute() or source.startswith(".")):
        raise ModelError(f"There is no model at {source}. {_EXPECTED}")
    kwargs: dict[str, Any] = {"dtype": DTYPES[config.dtype], "use_safetensors": True, "trust_remote_code": False}
    if config.load_in != "full":
        if device == "cpu":
            raise ModelError(f"load_in: {config.load_in} needs CUDA, and none is here. Use load_in: full.")
        from transformers import BitsAndBytesConfig

        kwargs["quantization_config"] = BitsAndBytesConfig(**{f"load_in_{config.load_in}": True})
        kwargs["device_map"] = {"": 0}
    try:
        lm, report = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True, **kwargs)
        has_tokenizer = (Path(source) / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(
            source if adapter and has_tokenizer else base, trust_remote_code=False
        )
    except Exception as error:  # transformers raises many kinds; a person needs one line
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"No causal language model could be loaded from {base!r}: {first} {_EXPECTED}") from None
    if report["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = sorted(report["missing_keys"])
        raise ModelError(f"{base} lacks {len(missing)} of the model's weights, for example {missing[0]}. {_EXPECTED}")
    if config.load_in == "full":
        lm = lm.to(device)
    if adapter:
        lm = _with_adapter(lm, source, base)
    return lm, tokenizer


def _absolute(source: str) -> str:
    """A local path in full, because an adapter records the path of its base; a hub name as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else str(path) if source.startswith("~") else source


def _base_of(adapter: Path) -> str:
    """Where the base of a local adapter is, as the adapter says."""
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
            f"The adapter at {adapter} needs its base, and there is nothing at {base}. Put the base back there, or "
            f"write where it is now into base_model_name_or_path of {adapter / ADAPTER_CONFIG}."
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
            f"The adapter at {source} does not belong to its base {base!r}: {_last_line(error)} "
            "Use the base that it was tuned on."
        ) from None
    missing = sorted(set(get_peft_model_state_dict(out, save_embedding_layers=False)) - stored)
    if missing:  # peft only warns, and goes on with an adapter that does nothing there
        raise ModelError(f"The adapter at {source} lacks {len(missing)} weights, for example {missing[0]}. Tune again.")
    known = Path(source) / BASE_HASH
    if known.is_file() and json.loads(known.read_text(encoding="utf-8")).get("embeddings") != _embeddings_hash(lm):
        raise ModelError(
            f"The adapter at {source} was tuned on other weights than its base {base!r} has now. Use the base that it "
            "was tuned on, or tune again."
        )
    return out


def _embeddings_hash(lm: Any) -> str:
    return digest(lm.get_input_embeddings().weight.detach().float().cpu().numpy())


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


def verify_weights(folder: Path) -> None:
    """Raises ModelError where saved weights are missing, empty (a known trap with adapters) or not finite."""
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
    """The model with a fresh LoRA adapter; every other weight is frozen."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    names = {name.rsplit(".", 1)[-1] for name, _ in lm.named_modules()}
    missing = [t for t in config.lora_targets if t not in names]
    if missing:
        raise ModelError(f"lora_targets: the model has no module named {missing[0]!r}; it has {sorted(names)[:12]}.")
    if config.load_in != "full":
        lm = prepare_model_for_kbit_training(lm)
    settings = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout,
                          target_modules=list(config.lora_targets), task_type="CAUSAL_LM")  # fmt: skip
    return get_peft_model(lm, settings)


def embedded_lm(titles: list[str], config: ModelConfig, max_tokens: int, seed: int) -> tuple[Any, Any]:
    """The embedded default: a small untrained LlamaForCausalLM and a byte-level BPE tokenizer made from the titles.

    Each fixed phrase of the prompt is one token, so that a window costs little more than its items.
    """
    if config.tuning == "lora":  # its base is saved nowhere either
        raise ConfigError(
            f"model.tuning = 'lora' leaves the base as it is, but the base of {EMBEDDED!r} knows nothing yet. "
            "Use tuning: full, or another model.source."
        )
    if config.hidden_size % (2 * config.heads):  # rotary positions turn pairs of numbers
        raise ConfigError(
            f"model.hidden_size = {config.hidden_size} cannot be split evenly among model.heads = {config.heads}; "
            "expected a multiple of twice the heads."
        )
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary, special_tokens=["<s>", "<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    raw.train_from_iterator(titles if config.items == "text" or config.answer == "title" else [], trainer)
    # single_word: else " A" would be cut out of a title such as "Toy Airplane". Not special: decoding keeps them.
    raw.add_tokens([AddedToken(p, single_word=True, normalized=False) for p in PHRASES])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>", pad_token="<pad>")
    with seeded(seed):
        lm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=config.hidden_size, intermediate_size=4 * config.hidden_size,
                num_hidden_layers=config.layers, num_attention_heads=config.heads, attention_dropout=config.dropout,
                max_position_embeddings=max_tokens, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
                pad_token_id=1,
            )
        )  # fmt: skip
    return lm, tokenizer
