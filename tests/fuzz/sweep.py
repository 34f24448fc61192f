"""By hand: every option's extreme values from prepare to evaluate on the tiny demo, each in a process of its own.

    python -m tests.fuzz.sweep [PART OF AN OPTION'S NAME]

A case may succeed, or end with an error for people. It fails if another error escapes, or a folder is half written.
It is stopped after half a minute: a huge size may take any time, but not any memory.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import os
import pkgutil
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

import llm4dsr
from llm4dsr.cli import terminal
from llm4dsr.cli.main import main
from llm4dsr.config.config import _merge
from llm4dsr.data.demo import make_demo

from ..cli.tokenizer import wild_tokenizer
from .options import every_option

SECONDS, MEMORY = 30, 4 * 2**30
SMALL = {
    "threads": 1,
    "limit": 60,
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "vector_size": 16, "vocabulary": 400},
    "train": {"epochs": 2, "samples": 30, "batch_windows": 15, "folds": 1},
    "score": {"calibration_draws": 1},
    "decide": {"policy": "probability", "eta": 0.4},
    "evaluate": {
        "recommender": {"epochs": 1, "hidden_size": 8, "negatives": 16},
        "llara": {"epochs": 1, "samples": 16, "validation": 8, "candidates": 5, "batch_windows": 8,
                  "model": {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 400, "pretrain_epochs": 1}},
    },
}  # fmt: skip
TITLES = {"model": {"item_input": "title", "readout": "title", "attention": "causal"}}
BACKBONES = ("sasrec", "bert4rec", "gru4rec", "fmlprec", "cl4srec")
STARTS: dict[str, list[dict[str, Any]]] = {  # recipes in which the options with this beginning are read
    "evaluate.llara": [{"evaluate": {"backbone": "llara"}}],
    "evaluate.neighborhood": [{"evaluate": {"backbone": "ease"}}, {"evaluate": {"backbone": "itemknn"}}],
    "evaluate.recommender.history": [{"evaluate": {"backbone": name}} for name in BACKBONES],
    "evaluate.recommender.dropout": [{"evaluate": {"backbone": name}} for name in BACKBONES],
    "evaluate.recommender.blocks": [{"evaluate": {"backbone": name}} for name in BACKBONES],
    "evaluate.recommender.hidden_size": [{"evaluate": {"backbone": name}} for name in BACKBONES],
    "model.lora": [{"model": {"source": "BASE", "tuning": "lora"}}],
    "model.dtype": [{}, {"model": {"source": "BASE"}}, {"model": {"source": "BASE", "tuning": "lora"}}],
    "model.load_in": [{"model": {"source": "BASE"}}],
    "model.tuning": [{}, {"model": {"source": "BASE"}}],
    "decide": [{}, {"decide": {"policy": "percentile"}},
               {"decide": {"policy": "validation", "goal": "impute"}}],
    "suggest": [TITLES],
    "train.max_tokens": [{}, TITLES],
    "task": [{}, TITLES],
    "model.vocabulary": [TITLES],
    "model.pretrain": [TITLES],
    "score.mode": [TITLES],
}  # fmt: skip


def run(recipe: dict[str, Any], data: Path, out: Path) -> None:
    """Run all stages by the command line; the exit code is the process's. A traceback is on standard output."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress of libraries
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out.mkdir(parents=True)
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = io.StringIO()
    sys.argv = ["llm4dsr", "run", "--data", str(data), "--out", str(out / "run"), "--config", str(out / "recipe.yaml")]
    terminal.messages.file = terminal.console.file = said
    code = 0
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        (out / "said").write_text(traceback.format_exc())
        raise SystemExit(99) from None
    (out / "said").write_text(said.getvalue())
    raise SystemExit(code)


def make_inputs(folder: Path) -> None:
    """Write the demo data, and a checkpoint as from the hub."""
    make_demo(size="tiny").data.write(folder / "data")
    tokenizer = wild_tokenizer()
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


def main_(part: str) -> None:
    """Run the cases of all options whose name contains `part`."""
    for module in pkgutil.walk_packages(llm4dsr.__path__, "llm4dsr."):  # once, and not in each process
        importlib.import_module(module.name)
    processes, failed = multiprocessing.get_context("fork"), 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # In a process of its own: the thread pool of Polars does not survive a fork.
        maker = processes.Process(target=make_inputs, args=(folder,))
        maker.start()
        maker.join()
        count = 0
        for option in every_option():
            name = ".".join(option.path)
            if part not in name:
                continue
            starts = next((s for begin, s in STARTS.items() if name.startswith(begin)), [{}])
            for start in starts:
                for value in option.extremes():
                    count += 1
                    recipe = _merge(_merge(SMALL, start), option.recipe(value))
                    if recipe["model"].get("source") == "BASE":
                        recipe["model"]["source"] = str(folder / "base")
                    out, begun = folder / str(count), time.monotonic()
                    process = processes.Process(target=run, args=(recipe, folder / "data", out))
                    process.start()
                    process.join(SECONDS)
                    if process.exitcode is None:
                        process.kill()
                        process.join()
                        verdict = "slow"
                    else:
                        verdict = {0: "ok", 3: "refused", 4: "refused", 5: "refused", 6: "refused"}.get(
                            process.exitcode, "FAILED"
                        )
                    said = (out / "said").read_text() if (out / "said").is_file() else ""
                    left = [p.name for p in (out / "run").glob(".*") if p.name not in (".lock", ".work")]
                    if verdict != "slow" and left:
                        verdict = "FAILED"
                    failed += verdict == "FAILED"
                    last = (said.strip().splitlines() or [""])[-1][:200] if verdict != "ok" else ""
                    print(f"{verdict:8}{time.monotonic() - begun:5.1f} s  {name} = {str(value)[:40]!r}"
                          f" {start or ''} {process.exitcode} {left or ''} {last}", flush=True)  # fmt: skip
                    if verdict == "FAILED":
                        print(said[-3000:], flush=True)
    print(f"{count} cases, {failed} failed")


if __name__ == "__main__":
    main_(sys.argv[1] if len(sys.argv) > 1 else "")
