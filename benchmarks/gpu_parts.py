"""The parts of gpu.py: each yields a row for each of its measurements."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm4dsr.config import Config, ModelConfig, TrainConfig
from llm4dsr.core.device import pick_device, precision
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise.score import score_windows
from llm4dsr.denoise.train import tune
from llm4dsr.lm import CatalogueTree
from llm4dsr.lm.collate import collate, token_batches
from llm4dsr.lm.embedded import embedded_lm
from llm4dsr.lm.load import add_lora, load_lm
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.shape import LMShape
from llm4dsr.lm.tokens import Tokens
from llm4dsr.pipeline.estimate import CUDA_CONTEXT, model_bytes, scoring_bytes, tuning_bytes
from llm4dsr.pipeline.sizes import Sizes
from llm4dsr.recommenders import fit
from lm_limit import READOUTS, needed, packed
from suggest import MILLION, Counted, ranked, steps, tokenized, untuned

HERE = Path(__file__).parent
GIB = 2**30
MAX_TOKENS = 1024
PASSES = (16_384, 65_536)  # tokens of a scoring pass: the default, and more
TEXT = ModelConfig(item_input="title", readout="title", hidden_size=64, layers=1)  # of the tokenizer
RECIPES = {"sasrec": "bench.yaml", "bert4rec": "bench-bert4rec.yaml", "gru4rec": "bench-gru4rec.yaml"}
Rows = Iterator[dict[str, Any]]
SHAPES: dict[str, dict[str, Any]] = {  # of Llama 3, and SmolLM2
    "8b": dict(vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
               num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False),
    "1b": dict(vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
               num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True),
    "135m": dict(vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                 num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True),
}  # fmt: skip
TINY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=True)  # fmt: skip


@dataclass
class Bench:
    """Where and on what the parts measure, and what later parts need of earlier ones."""

    data: Dataset
    given: argparse.Namespace
    device: str = field(default_factory=pick_device)
    peak: float | None = None  # FLOP per second of a matrix product

    @property
    def tiny(self) -> bool:
        """Whether figures mean nothing."""
        return bool(self.given.tiny)

    @property
    def dtype(self) -> str:
        """Precision of large models."""
        return "bf16" if self.device == "cuda" else "fp32"

    def few(self, split: str, count: int) -> Windows:
        """Some windows; without their targets if they are to be scored."""
        some = limit_windows(self.data.splits[split], 3 if self.tiny else count, 0)
        return some if split == "train" else some.histories()

    def seconds(self, run: Callable[[], Any], repeats: int = 1) -> float:
        """The least wall time of several calls."""
        found = []
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            run()
            self.wait()
            found.append(time.perf_counter() - started)
        return min(found)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Free what is no longer used; the peak of memory begins again."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def used(self) -> float | None:
        """Peak memory in GiB."""
        return torch.cuda.max_memory_allocated() / GIB if self.device == "cuda" else None

    def llama(self, name: str) -> tuple[Any, Any]:
        """A model of random weights in a shape, and its tokenizer."""
        tokenizer = embedded_lm(self.data.catalogue.titles, TEXT, MAX_TOKENS, 0)[1]
        shape = TINY | {"vocab_size": len(tokenizer)} if self.tiny else SHAPES[name]
        config = LlamaConfig(max_position_embeddings=2048, **shape)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if self.dtype == "bf16" else torch.float32)
        try:
            with torch.device(self.device):
                return LlamaForCausalLM(config).eval(), tokenizer
        finally:
            torch.set_default_dtype(before)

    def config(self, readout: str, batch_tokens: int, **model: Any) -> Config:
        """Titles as input; no such source is ever loaded."""
        settings = ModelConfig(source="random", item_input="title", readout=readout, dtype=self.dtype, **model)  # type: ignore[arg-type]
        train = TrainConfig(batch_tokens=batch_tokens, max_tokens=MAX_TOKENS, epochs=1, folds=1, samples=0)
        return Config(model=settings, train=train)

    def sizes(self, config: Config, builder: PromptBuilder, windows: Windows) -> Sizes:
        """Sizes that the estimate is made from."""
        tokens = float(np.mean([len(p) for p in builder.prompts(windows)]))
        titles = float(np.mean([len(builder.titles[i]) for i in np.unique(windows.items)]))
        return Sizes.of(self.data, config, tokens, titles)


def matmul(bench: Bench) -> Rows:
    """Matrix products: a large square one, and the feed-forward layer of the 8 B shape in a default pass."""
    kind = torch.bfloat16 if bench.device == "cuda" else torch.float32
    for m, k, n in [(8192,) * 3, (PASSES[0], 4096, 14_336), (PASSES[0], 4096, 4096)]:
        m, k, n = (64, 64, 64) if bench.tiny else (m, k, n)
        a, b = (torch.randn(shape, device=bench.device, dtype=kind) for shape in ((m, k), (k, n)))
        bench.seconds(lambda a=a, b=b: [a @ b for _ in range(5)])
        speed = 2 * m * k * n * 10 / bench.seconds(lambda a=a, b=b: [a @ b for _ in range(10)], 3)
        bench.peak = max(bench.peak or 0, speed)
        yield {"m": m, "k": k, "n": n, "TFLOP/s": speed / 1e12}


def scoring(bench: Bench, name: str) -> Rows:
    """Three ways of asking beside the packed pass, then titles one by one."""
    lm, tokenizer = bench.llama(name)
    model = NoiseLM(lm, tokenizer).eval()
    shape = LMShape.of(lm, bench.config("title", 1).model)
    of_layers = sum(p.numel() for key, p in lm.named_parameters() if ".layers." in key)
    head = 2 * shape.hidden * shape.vocabulary
    for budget in PASSES[: 1 if bench.tiny else 2]:
        for readout in READOUTS:
            config = bench.config(readout, budget)
            builder = PromptBuilder(tokenizer, bench.data.catalogue.titles, config.model, MAX_TOKENS)
            windows = bench.few("test", 1024 if readout == "per_position" else 512)
            ask = partial(score_windows, model, builder, catalogue=bench.data.catalogue, config=config)
            ask(windows.take(np.arange(len(windows) // 4 + 1)))
            bench.forget()
            took, used = bench.seconds(partial(ask, windows)), bench.used()
            work = needed(builder, windows, readout)
            with precision(bench.dtype, model.device):
                least = bench.seconds(partial(packed, model, work, budget), 2)
            flop = 2 * of_layers * work.tokens + head * work.logits
            sizes = bench.sizes(config, builder, windows)
            told = CUDA_CONTEXT + model_bytes(shape, config) + scoring_bytes(shape, config, sizes, gpu=True)
            yield {
                "model": name, "readout": readout, "tokens of a pass": budget, "windows": len(windows),
                "windows/s": len(windows) / took, "needed tokens/s": work.tokens / took,
                "packed tokens/s": work.tokens / least, "of the packed pass": least / took,
                "of the peak": flop / took / bench.peak if bench.peak else None,
                "GiB told": told / GIB, "GiB used": used,
            }  # fmt: skip
    some = bench.few("test", 64)  # the builder and the budget are those of titles, the last readout
    one_by_one(model, builder, some.take(np.arange(1)), budget)
    bench.forget()
    took = bench.seconds(partial(one_by_one, model, builder, some, budget))
    yield {"model": name, "readout": "title, a pass over each", "tokens of a pass": budget, "windows": len(some),
           "windows/s": len(some) / took, "GiB used": bench.used()}  # fmt: skip


@torch.inference_mode()
def one_by_one(model: NoiseLM, builder: PromptBuilder, windows: Windows, budget: int) -> None:
    """The obvious way to log P of whole titles: the prompt is read again for each title of the window."""
    rows: list[tuple[Tokens, int]] = []
    for w, prompt in enumerate(builder.prompts(windows)):
        for item in windows.row(w):
            row = Tokens(list(prompt.ids), list(prompt.slots))
            row.add(builder.titles[item])
            rows.append((row, len(prompt)))
    for group in token_batches([len(row) for row, _ in rows], budget):
        batch = collate([rows[i][0] for i in group], model.device)
        hidden = model.hidden(batch)
        at = [(g, t) for g, i in enumerate(group) for t in range(rows[i][1], len(rows[i][0]))]
        row, column = torch.tensor(at, device=model.device).T
        logits = model.logits(hidden[row, column - 1])
        (logits.gather(1, batch.ids[row, column][:, None])[:, 0] - logits.logsumexp(-1)).cpu()


def tuning(bench: Bench, name: str) -> Rows:
    """Tuning with LoRA, in passes that fit by the estimate; with gradient checkpointing in passes of the default."""
    for readout in ("per_position", "likelihood"):
        for checkpointing in (False, True):
            lm, tokenizer = bench.llama(name)
            config = bench.config(readout, PASSES[0], tuning="lora")
            builder = PromptBuilder(tokenizer, bench.data.catalogue.titles, config.model, MAX_TOKENS)
            windows, shape = bench.few("train", 512), LMShape.of(lm, config.model)
            sizes, budget = bench.sizes(config, builder, windows), PASSES[0]
            limit = torch.cuda.mem_get_info()[1] if bench.device == "cuda" else 2**62
            while not checkpointing and tuning_bytes(shape, config, sizes, budget, gpu=True) > 0.9 * limit:
                budget //= 2
            config = replace(config, train=replace(config.train, batch_tokens=budget))
            told = CUDA_CONTEXT + tuning_bytes(shape, config, sizes, gpu=True)
            model = NoiseLM(add_lora(lm, config.model), tokenizer)
            if checkpointing:
                lm.gradient_checkpointing_enable()
            run = partial(tune, model, builder, catalogue=bench.data.catalogue, config=config)
            run(windows.take(np.arange(len(windows) // 8 + 1)))
            bench.forget()
            took = bench.seconds(partial(run, windows))
            yield {"model": name, "readout": readout, "gradient checkpointing": checkpointing,
                   "tokens of a pass": budget, "windows": len(windows), "windows/s": len(windows) / took,
                   "GiB told": None if checkpointing else told / GIB, "GiB used": bench.used()}  # fmt: skip
            del lm, model, run
            bench.forget()


def suggesting(bench: Bench) -> Rows:
    """Titles decoded in the tree of a catalogue beside free decoding, and items ranked by vectors."""
    many = 200 if bench.tiny else MILLION
    for n_items in (min(many, 12_000), many):
        found = ranked(n_items, 640, bench.device, bench.seconds)
        yield {"what": "ranked by vectors", "items": n_items, "ms of a flag": found["ms"]}
    *titles, _ = tokenized(bench.data, many)
    trees = {f"{len(some):,}": CatalogueTree(some) for some in titles}
    for name in ("8b", "1b", "135m"):
        lm, tokenizer = bench.llama(name)
        for size, found in steps(
            Counted(lm, tokenizer).eval(), trees, 2, bench.seconds, 4 if bench.tiny else 64
        ).items():
            yield {"what": "titles decoded", "model": name, "items": size, "ms of a token of the batch": found["ms"],
                   "ms free": found["ms free"], "times free": found["times free"]}  # fmt: skip
        del lm
        bench.forget()


def small(bench: Bench) -> dict[str, float]:
    """Seconds of the embedded model and of the recommenders, less what a first call sets up."""
    torch.set_num_threads(1)
    data, config, windows = bench.data, Config(), bench.few("train", 5_000)
    model, builder = untuned(data, windows, config)
    once, histories = replace(config, train=replace(config.train, epochs=1)), bench.few("test", 2_000)

    def timed(run: Callable[[Windows], Any], some: Windows) -> float:
        run(some.take(np.arange(min(256, len(some)))))
        return bench.seconds(lambda: run(some))

    out = {
        "tune the denoiser once": timed(lambda some: tune(model, builder, some, data.catalogue, once), windows),
        "score": timed(lambda some: score_windows(model, builder, some, data.catalogue, config), histories),
    }
    for name, recipe in RECIPES.items():
        settings = replace(Config.from_yaml(HERE / recipe).evaluate.recommender, epochs=1)
        train = data.splits["train"] if not bench.tiny else windows
        out[f"{name}, one epoch and validation"] = timed(
            lambda some, name=name, settings=settings: fit(
                name, some, data.splits["valid"], data.catalogue, settings, 0
            ),
            train,
        )
    return out


def embedded(bench: Bench) -> Rows:
    """`small` on the GPU, and beside it on one core, in a process that sees no GPU."""
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "gpu.py"), "--core", *(["--tiny"] if bench.tiny else []),
               *(["--data", bench.given.data] if bench.given.data else [])]  # fmt: skip
    with subprocess.Popen(command, env=hidden, stdout=subprocess.PIPE) as other:
        try:
            here = small(bench)
            yield from ({"part": part, "GPU s": s} for part, s in here.items())
            core = json.loads(other.communicate()[0])
        finally:
            other.kill()
    yield from (
        {"part": part, "GPU s": s, "one core s": core[part], "ratio": core[part] / s} for part, s in here.items()
    )


def quantized(bench: Bench) -> Rows:
    """The 1 B shape loaded in 8 and 4 bits: scoring, and memory."""
    if importlib.util.find_spec("bitsandbytes") is None or bench.device != "cuda":
        yield {"skipped": "needs CUDA and bitsandbytes"}
        return
    with tempfile.TemporaryDirectory() as folder:
        lm, tokenizer = bench.llama("1b")
        lm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del lm
        for kind in ("full", "8bit", "4bit"):
            bench.forget()
            config = bench.config("per_position", PASSES[0], load_in=kind, tuning="lora")
            model = NoiseLM(*load_lm(folder, config.model)).eval()
            builder = PromptBuilder(model.tokenizer, bench.data.catalogue.titles, config.model, MAX_TOKENS)
            windows = bench.few("test", 512)
            ask = partial(score_windows, model, builder, catalogue=bench.data.catalogue, config=config)
            ask(windows.take(np.arange(32)))
            took, shape = bench.seconds(partial(ask, windows)), LMShape.of(model.base, config.model)
            yield {"loaded in": kind, "windows/s": len(windows) / took, "GiB used": bench.used(),
                   "GiB of weights told": model_bytes(shape, config) / GIB}  # fmt: skip
            del model, ask
