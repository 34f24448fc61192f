"""Ways of asking a pre-trained language model for noise, compared at equal CPU time.

    python benchmarks/asking.py --data DATA/toys --minutes 10 --out benchmarks/results/asking

SmolLM2-135M is tuned with LoRA on windows with injected noise, from the same start, in each of five ways:

- markers: the titles, each with a marker; then the markers again, with a noise logit at each (`readout: per_position`).
- list twice: the titles twice, with a noise logit behind each title of the second list.
- both directions: the titles once. All tokens see each other, and the noise logit is behind each title.
- likelihood: the titles in random order, as plain text; `readout: likelihood` does so with quoted titles. Scores are
  -log P(title | titles before it) of the list in order and reversed, plus twice log P(title alone).
- contrast: the same scores. Lists with injected noise; the loss is that of telling it by
  log P(title alone, before tuning) - log P(title | titles before it), scaled, and LM_WEIGHT times that of the list.

CPU seconds of one thread are counted, so other work on the machine counts little. Each way tunes for as long as it is
given, and is measured before, at a third, at two thirds and at the end, on the same histories of validation (its
noise is known, and nothing is chosen by it). `--random` begins with random weights of the same shape instead.
A way that is in the results is not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm4dsr import columns as c
from llm4dsr.config import Config
from llm4dsr.core.arrays import BoolArray, FloatArray
from llm4dsr.core.device import fp32_weights
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise.noise_injection import Injectable, draw_noise
from llm4dsr.lm.collate import token_batches
from llm4dsr.lm.load import add_lora, load_lm
from llm4dsr.lm.lora import fused_lora
from llm4dsr.lm.prompt import INSTRUCTION, MARKERS
from llm4dsr.metrics import auroc, average_precision

HEAD = "Items that one person chose, oldest first:\n"
LONGEST = 24  # tokens of a title that are read
STEP = 8  # windows of a step
BLOCK = 256  # windows whose noise is drawn together
PASS_TOKENS = 1_024
LM_WEIGHT = 0.1  # of the loss of a title list beside that of telling noise (contrast)
LISTED = ("likelihood", "contrast")  # ways that read plain lists
CONFIG = Config.from_dict({
    "model": {"source": "smollm2", "item_input": "title", "tuning": "lora", "dtype": "bf16", "lora_rank": 16,
              "lora_alpha": 32},
    "train": {"learning_rate": 5e-4, "warmup_steps": 10},
})  # fmt: skip


@dataclass
class Row:
    """Tokens of a prompt, where noise logits are read, and the tokens of each title in order of its list."""

    ids: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    titles: list[tuple[int, int]] = field(default_factory=list)


class Asker:
    """A language model with an adapter, and one way of asking it."""

    def __init__(self, way: str, titles: list[str], is_random: bool) -> None:
        torch.manual_seed(0)
        lm, self.tokenizer = load_lm(CONFIG.model.source, CONFIG.model)
        if is_random:
            lm = type(lm)(lm.config).to(torch.bfloat16)
        self.lm, self.way = add_lora(lm, CONFIG.model), way
        bos = self.tokenizer.bos_token_id
        self.begin = [] if bos is None else [bos]
        self.titles = titles
        self.yes, self.no = self.tokens(" yes")[0], self.tokens(" no")[0]
        self.marks = [self.tokens(mark) for mark in MARKERS]
        self.alone = dict[int, float]()  # log P of titles alone, before tuning
        self.scale = torch.nn.Parameter(torch.tensor([0.1, -1.7]))  # of a ratio, and what is added to it

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def row(self, items: list[int]) -> Row:
        """The prompt for a list of items."""
        named = self.way == "markers"
        out = Row(self.begin + self.tokens(HEAD if self.way in LISTED else f"{INSTRUCTION}\n"))
        for copy in range(2 if self.way == "list twice" else 1):
            if copy:
                out.ids += self.tokens("\nDoes each one fit?\n")
            for i, item in enumerate(items):
                out.ids += (self.marks[i] if named else []) + self.tokens("-")
                title = self.tokens(f" {self.titles[item]}\n")[:LONGEST]
                out.titles.append((len(out.ids), len(out.ids) + len(title)))
                out.ids += title
                if copy or self.way == "both directions":
                    out.read.append(len(out.ids) - 1)
        if named:
            out.ids += self.tokens("\nNoise Items:")
            for i in range(len(items)):
                out.ids += self.marks[i]
                out.read.append(len(out.ids) - 1)
        return out

    def states(self, rows: list[Row]) -> tuple[Tensor, Tensor]:
        """Token ids [B, T], right-padded, and last hidden states [B, T, H]."""
        ids = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask = {}
        if self.way == "both directions":
            seen = torch.arange(ids.shape[1])[None] < torch.tensor([len(row.ids) for row in rows])[:, None]
            mask["attention_mask"] = seen[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
            mask["position_ids"] = torch.arange(ids.shape[1])[None]
        base = self.lm.get_base_model()
        return ids, base.model(input_ids=ids, use_cache=False, **mask).last_hidden_state

    def noise_logits(self, rows: list[Row]) -> Tensor:
        """[positions, 2] logits of "no" and "yes", row after row."""
        _, states = self.states(rows)
        at = [(i, t) for i, row in enumerate(rows) for t in row.read]
        weight = self.lm.get_base_model().lm_head.weight[[self.no, self.yes]]
        return F.linear(states[[i for i, _ in at], [t for _, t in at]], weight).float()

    def title_log_likelihoods(self, rows: list[Row]) -> list[Tensor]:
        """Of each token of each title, row after row."""
        ids, states = self.states(rows)
        out = []
        for i, row in enumerate(rows):
            at = [t for begin, end in row.titles for t in range(begin, end)]
            logits = self.lm.get_base_model().lm_head(states[i, [t - 1 for t in at]]).float()
            known = -F.cross_entropy(logits, ids[i, at], reduction="none")
            out += known.split([end - begin for begin, end in row.titles])
        return out

    def loss(
        self, windows: Windows, injected: Windows, chosen: BoolArray, rng: np.random.Generator
    ) -> Iterator[Tensor]:
        """The loss of a step, in passes."""
        if self.way == "likelihood":
            rows = [self.row(rng.permutation(windows.row(i)).tolist()) for i in range(len(windows))]
            total = sum(end - begin for row in rows for begin, end in row.titles)
            for group in self.passes(rows):
                yield -torch.cat(self.title_log_likelihoods([rows[i] for i in group])).sum() / total
            return
        truth = np.split(chosen.astype(np.int64), injected.offsets[1:-1])
        if self.way == "contrast":
            yield from self._contrast(injected, truth, rng)
            return
        rows = [self.row(injected.row(i)) for i in range(len(windows))]
        for group in self.passes(rows):
            label = torch.from_numpy(np.concatenate([truth[i] for i in group]))
            yield F.cross_entropy(self.noise_logits([rows[i] for i in group]), label, reduction="sum") / len(chosen)

    def _contrast(self, injected: Windows, truth: list[np.ndarray], rng: np.random.Generator) -> Iterator[Tensor]:
        lists = [injected.row(i) for i in range(len(injected))]
        self._know_alone({item for row in lists for item in row})
        orders = [rng.permutation(len(row)) for row in lists]
        lists = [[row[k] for k in order] for row, order in zip(lists, orders, strict=True)]
        rows, total = [self.row(items) for items in lists], sum(map(len, lists))
        tokens = sum(end - begin for row in rows for begin, end in row.titles)
        for group in self.passes(rows):
            known = self.title_log_likelihoods([rows[i] for i in group])
            alone = torch.tensor([self.alone[item] for i in group for item in lists[i]])
            label = torch.from_numpy(np.concatenate([truth[i][orders[i]] for i in group])).float()
            logits = self.scale[0] * (alone - torch.stack([part.sum() for part in known])) + self.scale[1]
            loss = F.binary_cross_entropy_with_logits(logits, label, reduction="sum") / total
            fitting = torch.cat([part for part, noisy in zip(known, label, strict=True) if not noisy])
            yield loss - LM_WEIGHT * fitting.sum() / tokens

    @torch.no_grad()
    def _know_alone(self, items: set[int]) -> None:
        new = sorted(items - self.alone.keys())
        with self.lm.disable_adapter():
            self.alone |= dict(
                zip(new, (float(found[0]) for found in self._likelihoods([[i] for i in new])), strict=True)
            )

    @torch.inference_mode()
    def scores(self, histories: Windows) -> FloatArray:
        """[n] higher = more likely noise."""
        self.lm.eval()
        lists = [histories.row(i) for i in range(len(histories))]
        if self.way not in LISTED:
            rows, out = [self.row(items) for items in lists], [np.empty(0)] * len(lists)
            for group in self.passes(rows):
                no, yes = self.noise_logits([rows[i] for i in group]).unbind(-1)
                for i, part in zip(group, (yes - no).split([len(rows[i].read) for i in group]), strict=True):
                    out[i] = part.numpy()
            return np.concatenate(out)
        items = sorted(set(histories.items.tolist()))
        alone = dict(zip(items, np.concatenate(self._likelihoods([[i] for i in items])), strict=True))
        ahead, behind = self._likelihoods(lists), self._likelihoods([row[::-1] for row in lists])
        both = [a + b[::-1] - 2 * np.array([alone[i] for i in row])
                for a, b, row in zip(ahead, behind, lists, strict=True)]  # fmt: skip
        return -np.concatenate(both)

    def _likelihoods(self, lists: list[list[int]]) -> list[FloatArray]:
        rows, out = [self.row(items) for items in lists], [np.empty(0)] * len(lists)
        for group in self.passes(rows):
            found = [float(part.sum()) for part in self.title_log_likelihoods([rows[i] for i in group])]
            ends = np.cumsum([len(lists[i]) for i in group])[:-1]
            for i, part in zip(group, np.split(np.array(found), ends), strict=True):
                out[i] = part
        return out

    def passes(self, rows: list[Row]) -> Iterator[list[int]]:
        """Rows that are read together."""
        return token_batches([len(row.ids) for row in rows], PASS_TOKENS)


def measure(data: Path, way: str, minutes: float, histories: int, is_random: bool) -> dict[str, Any]:
    """Tune in one way for so many CPU minutes; detection before, on the way and at the end."""
    torch.set_num_threads(1)
    dataset, rng = read_data(data), np.random.default_rng(0)
    train = dataset.splits[c.TRAIN]
    measured = limit_windows(dataset.splits[c.VALID], histories, 0).histories()
    asker, injectable = Asker(way, dataset.catalogue.titles, is_random), Injectable.of(dataset.catalogue, train)
    parameters = [p for p in asker.lm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": CONFIG.train.weight_decay},
            {"params": [asker.scale], "weight_decay": 0.0},
        ]
    )
    used, seen, curve, losses = 0.0, 0, list[dict[str, float]](), list[float]()

    def look() -> None:
        began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            scores = asker.scores(measured)
        curve.append({
            "CPU minutes": round(used / 60, 2), "windows": seen,
            "loss": round(float(np.mean(losses[-20:])), 4) if losses else float("nan"),
            "AUROC": round(auroc(scores, measured.truth()), 4),
            "AP": round(average_precision(scores, measured.truth()), 4),
            "scoring seconds a history": round((time.process_time() - began) / len(measured), 3),
        })  # fmt: skip
        print(way, curve[-1], flush=True)

    look()
    looks = [minutes / 3, 2 * minutes / 3, minutes]
    with fp32_weights(parameters), fused_lora(asker.lm):
        while looks:
            block = train.take(rng.choice(len(train), BLOCK, replace=len(train) < BLOCK))
            items, chosen = draw_noise(block, injectable, CONFIG.task, rng)
            injected = replace(block, items=items)
            for start in range(0, BLOCK, STEP):
                began, rows = time.process_time(), np.arange(start, start + STEP)
                left = max(0.02, 1 - used / (60 * minutes))
                rise = min(1.0, (len(losses) + 1) / CONFIG.train.warmup_steps)
                optimizer.param_groups[0]["lr"] = CONFIG.train.learning_rate * rise * left
                optimizer.param_groups[1]["lr"] = 20 * CONFIG.train.learning_rate * rise * left
                asker.lm.train()
                at = block.interactions(rows)
                total = 0.0
                with torch.autocast("cpu", torch.bfloat16):
                    for part in asker.loss(block.take(rows), injected.take(rows), chosen[at], rng):
                        part.backward()  # type: ignore[no-untyped-call]
                        total += float(part.detach())
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(total)
                seen, used = seen + STEP, used + time.process_time() - began
                if used >= 60 * looks[0]:
                    looks.pop(0)
                    look()
                    if not looks:
                        break
    return {"curve": curve, "histories": len(measured), "interactions": len(measured.items)}


def page(found: dict[str, Any]) -> str:
    """The table of all ways and datasets."""
    lines = ["| dataset | way | CPU minutes | windows | AUROC | AP | scoring, s a history |", "|---" * 7 + "|"]
    for dataset, ways in found.items():
        for way, told in ways.items():
            for at in told["curve"]:
                measured = f"{at['AUROC']:.3f} | {at['AP']:.3f} | {at['scoring seconds a history']:.2f}"
                lines.append(f"| {dataset} | {way} | {at['CPU minutes']:.0f} | {at['windows']:,} | {measured} |")
    table = "\n".join(lines)
    first = next(iter(next(iter(found.values())).values()))
    return f"""# Ways of asking a pre-trained language model

    python benchmarks/asking.py --data DATA/NAME --minutes MINUTES --out benchmarks/results/asking

SmolLM2-135M-Instruct, LoRA of rank 16 on all linear layers, learning rate 5e-4, bf16 on a CPU with AMX, one thread.
CPU minutes are those of tuning. Detection is on {first["histories"]} histories of validation with 10 % uniform noise
({first["interactions"]:,} interactions on the first dataset). What each way asks is in the benchmark's docstring.

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--histories", type=int, default=300)
    parser.add_argument("--ways", default="likelihood,contrast,both directions,list twice,markers")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    results = given.out / "results.json"
    for way in given.ways.split(","):
        known = json.loads(results.read_text())["datasets"] if results.exists() else {}
        name = way + (", random weights" if given.random else "")
        if name in known.setdefault(given.data.name, {}):
            continue
        known[given.data.name][name] = measure(given.data, way, given.minutes, given.histories, given.random)
        write_text(results, json.dumps({"datasets": known, "versions": versions()}, indent=1))
        write_text(given.out / "README.md", page(known))


if __name__ == "__main__":
    main()
