"""Before a run starts: tell what it will need, and refuse what cannot fit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llm4dsr import columns as c
from llm4dsr.config import Config
from llm4dsr.core.device import max_workers
from llm4dsr.core.memory import available_memory, resident_memory
from llm4dsr.core.progress import log
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import limit_windows
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import LLM4DSRError, ModelError, OutputError
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.shape import LMShape, lm_shape
from llm4dsr.pipeline.estimate import Need, needs, peak_disk
from llm4dsr.pipeline.probe import measure, seconds
from llm4dsr.pipeline.run_folder import WORK
from llm4dsr.pipeline.sizes import Sizes
from llm4dsr.recommenders import SEEDLESS
from llm4dsr.recommenders.ease import memory_needed, workers_in_memory

ANYWAY = "To start anyway, add --skip-estimate."
CERTAIN = 0.8  # of an estimate: more than this is needed for certain
KEPT = 150 * 2**20  # bytes that libraries and the heap of Python keep, once all stages have run
ALONE = {"itemknn": 1, "ease": 0, "evaluate": 1}  # processes where memory is scarce
JUDGED = 7  # corrections of training windows that validation tries, with none
SAMPLE = 256  # windows whose prompts are measured


@dataclass(frozen=True)
class Estimate:
    """What the stages of a run will need.

    Attributes
    ----------
    needs : dict of str to Need
        Memory and disk of each stage still to do.
    seconds : dict of str to float
        Time of each of them; empty if it was not measured.
    base : int
        Bytes that the process uses already.
    """

    needs: dict[str, Need]
    seconds: dict[str, float]
    base: int

    @property
    def memory(self) -> int:
        """Most bytes of main memory at a time."""
        return self.base + max(need.memory for need in self.needs.values())

    @property
    def gpu(self) -> int:
        """Most bytes of GPU memory at a time; 0 without a GPU."""
        return max(need.gpu for need in self.needs.values())

    @property
    def disk(self) -> int:
        """Most bytes in the run folder at a time, beyond those of complete stages."""
        return peak_disk(self.needs, list(self.needs))

    def line(self) -> str:
        """As in "Needs about 1.2 GiB of memory, 30 MiB of disk and 2 min (train 90 s, score 30 s)."."""
        parts = [f"{readable(self.memory)} of memory", f"{readable(self.disk)} of disk"]
        if self.gpu:
            parts.insert(1, f"{readable(self.gpu)} of GPU memory")
        of_each = {name: found for name, found in self.seconds.items() if found >= 1 and name in self.needs}
        if of_each:
            parts.append(duration(sum(self.seconds.values())))
        told = ", ".join(f"{name} {duration(found)}" for name, found in of_each.items())
        return f"Needs about {', '.join(parts[:-1])} and {parts[-1]}{f' ({told})' if told else ''}."


def preflight(data: Dataset, config: Config, todo: Sequence[str], folder: Path) -> Estimate | None:
    """Estimate what the stages still to do need, and refuse what cannot fit.

    Parameters
    ----------
    data : Dataset
        The windows, limited as configured.
    config : Config
        All options.
    todo : sequence of str
        Stages still to do, in order.
    folder : Path
        The run folder; it need not exist.

    Returns
    -------
    Estimate or None
        None where there is too little data, or a model without known sizes; the stage itself says so.

    Raises
    ------
    ModelError
        If the memory is too small.
    OutputError
        If the disk is too full.
    """
    splits = {name: windows.take(np.flatnonzero(windows.lengths > 0)) for name, windows in data.splits.items()}
    if not todo or len(data.catalogue) < 4 or any(len(w) < 10 for w in splits.values()):
        return None
    splits = {name: Denoiser(config)._short(windows)[0] for name, windows in splits.items()}
    data = Dataset(data.catalogue, splits)
    try:
        shape, tokenizer = lm_shape(config.model, data.catalogue.titles, config.train.max_tokens)
        tokens, title_tokens = _tokens(data, config, tokenizer)
    except (LLM4DSRError, OSError, ValueError):  # the stage that needs the model reports what is wrong with it
        log.info("No estimate: the size of this model is not known before it is loaded.")
        return None
    sizes = Sizes.of(data, config, tokens, title_tokens)
    estimate = refuse(sizes, shape, config, todo, folder)
    took = _seconds(data, config, sizes, todo)
    estimate = Estimate(estimate.needs, took, KEPT + resident_memory())
    log.info("%s", estimate.line())
    return estimate


def refuse(sizes: Sizes, shape: LMShape, config: Config, todo: Sequence[str], folder: Path) -> Estimate:
    """Return the memory and disk that stages need, if they fit. Raises ModelError or OutputError if they do not."""
    base, gpu = resident_memory(), torch.cuda.is_available()
    workers = _workers(sizes, config)
    found = needs(sizes, shape, config, workers, base, gpu)
    estimate = Estimate({name: found[name] for name in found if name in todo}, {}, base)
    free = available_memory()
    stage, need = max(estimate.needs.items(), key=lambda pair: pair[1].memory)
    if need.memory * CERTAIN > free > 0:
        raise ModelError(
            f"{stage} needs about {readable(need.memory)} more memory; {readable(free)} are free. "
            f"{_smaller(stage, sizes, shape, config, base, gpu, free)} {ANYWAY}"
        )
    if gpu:
        # Passes are halved on out-of-memory, so only what a pass of one window needs must fit.
        least = needs(sizes, shape, config, ALONE, base, gpu, batch_tokens=1)
        stage = max(estimate.needs, key=lambda name: least[name].gpu)
        free = torch.cuda.mem_get_info()[0]
        if least[stage].gpu * CERTAIN > free:
            raise ModelError(
                f"{stage} needs about {readable(least[stage].gpu)} of GPU memory, even for a single window; "
                f"{readable(free)} are free. Use a smaller model.source, model.tuning: lora, model.load_in: 8bit or "
                f"4bit, or a larger GPU. {ANYWAY}"
            )
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    begun = sum(path.stat().st_size for path in (folder / WORK).rglob("*") if path.is_file())  # of a stage to resume
    free = shutil.disk_usage(place).free + begun
    if estimate.disk * CERTAIN > free:
        raise OutputError(
            f"The run needs about {readable(estimate.disk)} of disk; {readable(free)} are free in {place}. "
            f"Choose --out on another disk, free some space, or use fewer windows (--limit) or train.folds. {ANYWAY}"
        )
    return estimate


def _smaller(stage: str, sizes: Sizes, shape: LMShape, config: Config, base: int, gpu: bool, free: int) -> str:
    """What makes a stage fit into main memory."""
    if stage == "evaluate" and config.evaluate.backbone == "ease" and memory_needed(sizes.items) > free:
        return "Use evaluate.backbone: itemknn, or windows with fewer items."
    smallest = needs(sizes, shape, config, ALONE, base, gpu, batch_tokens=1)[stage].memory
    if stage in ("train", "score") and smallest < free:
        return "Lower train.batch_tokens."
    if stage == "evaluate" and smallest < free:
        return "Train one recommender at a time, with threads: 1."
    return "Use fewer windows (--limit), fewer train.folds, a smaller model, or a larger machine."


def _workers(sizes: Sizes, config: Config) -> dict[str, int]:
    """Processes that fit each judge, and the recommenders of the evaluation."""
    free, needed = available_memory(), memory_needed(sizes.items)
    jobs = sizes.rows * (1 if config.evaluate.backbone in SEEDLESS else config.evaluate.seeds)
    evaluate, judges = max_workers(jobs), max_workers(JUDGED)
    if config.evaluate.backbone == "ease":
        evaluate = workers_in_memory(evaluate, sizes.items)
    ease = 0 if needed > free > 0 else workers_in_memory(judges, sizes.items)
    return {"itemknn": judges, "ease": ease, "evaluate": evaluate}


def _tokens(data: Dataset, config: Config, tokenizer: object) -> tuple[float, float]:
    """(mean tokens of a prompt, mean tokens of a title or 0), on a sample of training windows and their items."""
    windows = limit_windows(data.splits[c.TRAIN], SAMPLE, config.seed)
    items, at = np.unique(windows.items, return_inverse=True)
    rows = np.split(at, np.cumsum(windows.lengths)[:-1])
    titles = [data.catalogue.titles[i] for i in items]
    builder = PromptBuilder(tokenizer, titles, config.model, config.train.max_tokens)
    prompts = [len(builder.prompt(row.tolist())) for row in rows]
    title_tokens = [len(title) for title in builder.titles[:-1]]
    return float(np.mean(prompts)), float(np.mean(title_tokens)) if title_tokens else 0.0


def _seconds(data: Dataset, config: Config, sizes: Sizes, todo: Sequence[str]) -> dict[str, float]:
    speeds = measure(data, config, sizes, list(todo))
    found = seconds(speeds, sizes, config, _workers(sizes, config)["evaluate"])
    return {name: found[name] for name in todo if name in found}


def readable(size: float) -> str:
    """Return bytes in words.

    Examples
    --------
    >>> readable(2**30 * 1.25), readable(3_000_000)
    ('1.2 GiB', '3 MiB')
    """
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(1, round(size / 2**20))} MiB"


def duration(count: float) -> str:
    """Return seconds in words.

    Examples
    --------
    >>> duration(20), duration(200), duration(9000)
    ('20 s', '3 min', '2.5 h')
    """
    if count < 90:
        return f"{max(1, round(count))} s"
    return f"{round(count / 60)} min" if count < 5400 else f"{count / 3600:.1f} h"
