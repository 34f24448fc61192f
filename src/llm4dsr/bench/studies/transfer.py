"""Study 7: a denoiser tuned in one domain, used in another: as it is, after a short adaptation, and against its own.

What transfers are the weights: the language model, and the projectors from title vectors into it and back. A title
vector means the same in both domains only if both have the same columns, so the vectors are fitted on the titles of
both catalogues before any tuning. Co-occurrence counts are of items, and are counted again. A model that reads titles
brings its tokenizer along.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from dataclasses import dataclass
from shlex import quote
from typing import Any

import numpy as np
import polars as pl
import torch

from llm4dsr import columns as c
from llm4dsr.bench.studies.detection import detection
from llm4dsr.bench.studies.samples import BATCH
from llm4dsr.bench.studies.study import Context, Found
from llm4dsr.config import Config
from llm4dsr.core.hashing import versions
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.demo import make_demo
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise.build_model import build_model
from llm4dsr.denoise.score import score_windows
from llm4dsr.denoise.train import tune
from llm4dsr.errors import DataError
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.features.title_vectors import title_vectors
from llm4dsr.intervals import mean_interval
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.pipeline import origin

QUESTION = "Does a denoiser that was tuned in one domain work in another?"
HOME, AS_IS, ADAPTED = "source, at home", "as it is", "short adaptation"
FEW_SCRATCH, ALL_SCRATCH = "from scratch, few windows", "from scratch, all windows"
TUNED, TESTED, REPEATS = 5_000, 2_000, 3  # windows of each domain, test windows, seeds
ADAPT_RATE = 0.3  # of the learning rate, in the short adaptation: what was learned should not be forgotten
FEW, FEW_QUICK, SCRATCH_EPOCHS = 1_000, 64, 10  # windows to adapt with, once; from scratch they are seen ten times


@dataclass
class Domain:
    """One domain.

    Attributes
    ----------
    train : Windows
        Windows to tune on.
    test : Windows
        Whole windows of other users.
    cooccurrence : CooccurrenceCounts or None
        Counts of everything before test.
    """

    catalogue: Catalogue
    train: Windows
    test: Windows
    cooccurrence: CooccurrenceCounts | None


def study(context: Context) -> Found:
    """The dataset is the source. Raises DataError if a target does not know its noise."""
    demo = f"demo of seed {context.config.seed + 1}"
    targets = {path.name: read_data(path) for path in context.targets} or {
        demo: make_demo(context.config.seed + 1, "tiny" if context.quick else "full").data
    }
    repeats, lines = 1 if context.quick else REPEATS, []
    few = FEW_QUICK if context.quick else FEW
    for name, data in targets.items():
        if data.splits[c.TEST].noise_mask is None:
            raise DataError(
                f"The target {name} does not tell which interactions are noise, so nothing can be measured there. Make "
                f"some:  llm4dsr noise --data {quote(name)} --out {quote(f'{name}-noisy')}"
            )
        for seed in range(context.config.seed, context.config.seed + repeats):
            config = dataclasses.replace(context.config, seed=seed)
            key = (
                versions(),
                config,
                origin(context.dataset.data),
                origin(data),
                few,
                TUNED,
                TESTED,
                SCRATCH_EPOCHS,
                ADAPT_RATE,
                BATCH,
            )

            def make(data: Dataset = data, config: Config = config) -> pl.DataFrame:
                source, target = domain(context.dataset.data, config), domain(data, config)
                return measure(source, target, config, few, context.progress)

            found = context.cache("transfer").table(key, make)
            lines.append(found.with_columns(pl.lit(name).alias("target"), pl.lit(seed).alias("seed")))
    each = pl.concat(lines)
    table = _summary(each)
    notes = [
        f"Source {context.dataset.name}. Each domain: up to {TUNED:,} training windows, of users who have none in its "
        f"test; up to {TESTED:,} test histories; {repeats} seed(s); one model each, not calibrated.",
        "Title vectors are of both catalogues and all training windows; from scratch, of the target alone. "
        "Co-occurrence is counted in all training and validation windows of the target, in every row.",
        f"{ADAPTED}: {few:,} target windows, once, at {ADAPT_RATE} of the learning rate. {FEW_SCRATCH}: the same "
        f"windows, {SCRATCH_EPOCHS} times. Every row is tuned in steps of at most {BATCH} windows. seconds: "
        "tuning in the target.",
        "No row reads a noise mask before measuring.",
    ]
    if not context.targets:
        notes.append(f"No --target was given, so the target is the {demo}. Two demos share the words of their titles, "
                     "which makes it easy.")  # fmt: skip
    return Found({"Detection on test": table}, lambda figure: _draw(figure, table), notes)


def domain(data: Dataset, config: Config) -> Domain:
    """Split a dataset; users in test are left out of training, so that no noise is memorized."""
    train, valid, test = (data.splits[name] for name in c.SPLITS)
    test = limit_windows(test, TESTED, config.seed)
    tested = test.user_ids.unique()
    others = train.take(np.flatnonzero(~train.user_ids.is_in(tested.implode()).to_numpy()))
    if not len(others):
        raise DataError("Every user with training windows is in test, too. Transfer needs users of training alone.")
    cooccurrence = None
    if config.model.item_input == "soft_token" and config.model.cooccurrence:
        cooccurrence = CooccurrenceCounts.fit(others, len(data.catalogue), config.seed).add(valid)
    return Domain(data.catalogue, limit_windows(others, TUNED, config.seed), test, cooccurrence)


def measure(source: Domain, target: Domain, config: Config, few: int, progress: Progress | None) -> pl.DataFrame:
    """One line per way: how, windows of the target that were tuned on, seconds, noise, auroc, average_precision."""
    train = dataclasses.replace(config.train, batch_windows=min(BATCH, config.train.batch_windows), samples=0)
    config = dataclasses.replace(config, train=train)  # rows differ in what they saw, not in how large its steps were
    size, vectors, own = len(source.catalogue), None, None
    if config.model.item_input == "soft_token":
        titles = [*source.catalogue.titles, *target.catalogue.titles]
        settings = (config.model.title_vectors, config.model.vector_size, config.seed)
        vectors = title_vectors(titles, _together(source.train, target.train, size), *settings)
        own = title_vectors(target.catalogue.titles, target.train, *settings)
    some = limit_windows(target.train, few, config.seed)
    careful = dataclasses.replace(train, epochs=1, learning_rate=ADAPT_RATE * train.learning_rate)
    once = dataclasses.replace(config, train=careful)
    often = dataclasses.replace(config, train=dataclasses.replace(train, epochs=SCRATCH_EPOCHS))

    model, builder = _start(source, None if vectors is None else vectors[:size], source.train, config)
    tune(model, builder, source.train, source.catalogue, config, progress, HOME)
    lines = [_line(HOME, 0, 0.0, model, builder, source, config)]
    builder = PromptBuilder(model.tokenizer, target.catalogue.titles, config.model, config.train.max_tokens,
                            target.cooccurrence)  # fmt: skip
    if vectors is not None:
        model.vectors = torch.from_numpy(vectors[size:]).to(model.device)
    lines.append(_line(AS_IS, 0, 0.0, model, builder, target, config))
    for how, windows, settings_of in (
        (ADAPTED, some, once),
        (FEW_SCRATCH, some, often),
        (ALL_SCRATCH, target.train, config),
    ):
        started = time.perf_counter()
        if how == ADAPTED:
            tuned, prompts = copy.deepcopy(model), builder
        else:
            tuned, prompts = _start(target, own, windows, config)
        tune(tuned, prompts, windows, target.catalogue, settings_of, progress, how)
        lines.append(_line(how, len(windows), time.perf_counter() - started, tuned, prompts, target, config))
    return pl.DataFrame(lines)


def _start(at: Domain, vectors: Any, windows: Windows, config: Config) -> tuple[NoiseLM, PromptBuilder]:
    return build_model(config, at.catalogue, windows, vectors, at.cooccurrence, config.seed)


def _line(
    how: str, windows: int, seconds: float, model: NoiseLM, builder: PromptBuilder, at: Domain, config: Config
) -> dict[str, Any]:
    judged = at.test.histories()
    found = detection(score_windows(model, builder, judged, at.catalogue, config), None, judged)
    shown = {key: found[key] for key in ("noise", "auroc", "average_precision")}
    return {"how": how, "windows": windows, "seconds": seconds, **shown}


def _together(a: Windows, b: Windows, shift: int) -> Windows:
    """The windows of two domains, the items of the second moved by `shift`; no user is in both."""
    users = [np.unique(w.user_ids.to_numpy(), return_inverse=True)[1] for w in (a, b)]
    rows = [np.array(w.row(i)) + by for w, by in ((a, 0), (b, shift)) for i in range(len(w))]
    return Windows.from_lists(rows, user_ids=pl.Series(np.concatenate([users[0], users[1] + len(a)])))


def _summary(each: pl.DataFrame) -> pl.DataFrame:
    """Means over seeds, with the half width of their 95 % interval."""
    lines = []
    for (target, how), rows in each.group_by("target", "how", maintain_order=True):
        line = {"target": target, "how": how, "windows": rows["windows"][0], "seconds": rows["seconds"].mean()}
        for name in ("noise", "auroc", "average_precision"):
            line[name], half = mean_interval(rows[name].to_list())
            if name != "noise":
                line[f"{name}_half_width"] = half
        lines.append(line)
    return pl.DataFrame(lines)


def _draw(figure: Any, table: pl.DataFrame) -> None:
    axes = figure.subplots()
    ways, targets = table["how"].unique(maintain_order=True).to_list(), table["target"].unique(maintain_order=True)
    width = 0.8 / len(ways)
    for i, way in enumerate(ways):
        rows = table.filter(pl.col("how") == way)
        half = np.nan_to_num(rows["auroc_half_width"].to_numpy())
        axes.bar(np.arange(len(rows)) + (i - (len(ways) - 1) / 2) * width, rows["auroc"].to_list(), width, yerr=half,
                 label=way)  # fmt: skip
    axes.axhline(0.5, color="grey", linestyle=":")
    axes.set_xticks(range(len(targets)), [f"to {target}" for target in targets])
    axes.set_ylabel("AUROC on test histories (chance: 0.5)")
    axes.set_ylim(0, 1)
    axes.legend(fontsize="small")
