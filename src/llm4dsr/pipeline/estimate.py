"""What a run will need: memory and disk of each stage, computed from sizes. Nothing is measured here.

Each formula follows the largest arrays of a stage. Times are measured in `probe.py`; what is done with an estimate is
in `preflight.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm4dsr import columns as c
from llm4dsr.config import EMBEDDED, SMOLLM2, Config
from llm4dsr.denoise.best_items import BLOCK, CPU_BLOCK
from llm4dsr.denoise.calibrate import KINDS
from llm4dsr.denoise.decide import VALIDATION
from llm4dsr.denoise.ensemble import CHUNK
from llm4dsr.denoise.noise_injection import USUAL_NOISE_RATE
from llm4dsr.denoise.ranking import NEIGHBORS, SCORES
from llm4dsr.denoise.states import states_per_window
from llm4dsr.denoise.suggest import FLAGS
from llm4dsr.features.collaborative import GROUPS, SIZES
from llm4dsr.features.pair_counts import AT_ONCE
from llm4dsr.lm.passes import (
    decoding_bytes,
    decoding_tokens,
    keeps_memory,
    pass_tokens,
    scored_at_once,
    scoring_tokens,
    token_bytes,
    tokens_at_once,
)
from llm4dsr.lm.shape import LMShape
from llm4dsr.pipeline.sizes import Sizes, flags
from llm4dsr.recommenders import SEEDLESS
from llm4dsr.recommenders.backbone import GPU_FACTOR, MAX_SCORES
from llm4dsr.recommenders.ease import memory_needed
from llm4dsr.recommenders.neighborhood import MAX_ENTRIES

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
QUANTIZED = {"full": 1.0, "8bit": 0.5, "4bit": 0.25}  # times half precision
NGRAMS = 34  # character n-grams of N titles: about 34 · N^0.75
CUDA_CONTEXT = 2**29  # bytes that CUDA takes on the GPU before any array
GAPS = 0.5  # memory between activations of passes of a language model on a CPU, measured with SmolLM2
OVERSAMPLED = 10  # columns that a truncated SVD has in memory beyond those wanted


def columns_of(config: Config) -> int:
    """Return the columns of title vectors; 0 if items enter as titles."""
    if config.model.item_input != "soft_token":
        return 0
    blocks = 2.5 if "catalogue" in config.model.title_vectors else 0
    return round(blocks * config.model.vector_size) + (384 if "minilm" in config.model.title_vectors else 0)


# -- the language model ------------------------------------------------------------------------------------------------


def model_bytes(lm: LMShape, config: Config) -> int:
    """Return the bytes of the weights of one model."""
    size = BYTES[config.model.dtype] if config.model.load_in == "full" else 2 * QUANTIZED[config.model.load_in]
    return int(size * lm.parameters + 8 * columns_of(config) * lm.hidden)


def optimizer_bytes(lm: LMShape, config: Config) -> int:
    """Return the bytes of tuning beyond the weights: gradients and two moments of AdamW, all in fp32.

    Half-precision weights that are tuned are held in fp32 as well.
    """
    trainable = lm.trainable + 2 * columns_of(config) * lm.hidden
    return trainable * (12 + 4 - BYTES[config.model.dtype])


def logit_bytes(lm: LMShape, config: Config, sizes: Sizes, tokens: float) -> int:
    """Return the bytes of next-token logits in a tuning pass of so many tokens; 0 if only noise logits are read."""
    if config.model.item_input == "soft_token" and config.model.readout == "per_position":
        return 0
    pretrained = config.model.source == EMBEDDED and config.model.item_input == "title" and config.model.pretrain_epochs
    whole = config.task.whole_prompt_loss or pretrained or config.model.readout == "likelihood"
    share = 1.0 if whole else min(1.0, 2 * sizes.title_tokens / sizes.tokens)
    at_once = min(share * tokens, tokens_at_once(lm.vocabulary))
    return int(at_once * lm.vocabulary * 4 * 3)  # logits, their log-softmax, and its gradient


def tuning_bytes(lm: LMShape, config: Config, sizes: Sizes, batch_tokens: int | None = None, gpu: bool = False) -> int:
    """Return the bytes of tuning all folds: tuned models, one in tuning, and the largest pass."""
    step = sizes.tokens * min(config.train.batch_windows, sizes.windows[c.TRAIN])
    most = max(pass_tokens(lm, config, gpu) if batch_tokens is None else batch_tokens, sizes.tokens)
    tokens = min(step, most)
    of_pass = tokens * token_bytes(lm, config, sizes.tokens, tuned=True, gpu=gpu)
    of_pass += logit_bytes(lm, config, sizes, tokens)
    if keeps_memory(config, gpu):
        of_pass *= 1 + GAPS
    return int(config.train.folds * model_bytes(lm, config) + optimizer_bytes(lm, config) + of_pass)


def scoring_bytes(lm: LMShape, config: Config, sizes: Sizes, batch_tokens: int | None = None, gpu: bool = False) -> int:
    """Return the bytes of the largest scoring pass, with the weights that an adapter is added to."""
    most = scoring_tokens(lm, config, gpu) if batch_tokens is None else batch_tokens
    tokens = min(max(most, sizes.tokens), sizes.tokens * min(CHUNK, max(sizes.windows.values())))
    each, logits = token_bytes(lm, config, sizes.tokens, tuned=False), 0.0
    if config.model.readout != "per_position":  # logits in fp32, and as the model gives them
        logits = 8 * lm.vocabulary * min(tokens, scored_at_once(lm.vocabulary, gpu))
    if config.model.readout == "title":
        each += int(16 * sizes.tokens)  # masks: 8 bytes for each token that one sees, with a tree as long as the prompt
    is_merged = config.model.load_in == "full" and not gpu
    return int(tokens * each + logits + BYTES[config.model.dtype] * lm.adapted * is_merged)


def loading_bytes(lm: LMShape, config: Config) -> int:
    """Return the bytes of reading a model: weights of a GGUF file are moved from one model to another."""
    is_packed = config.model.source == SMOLLM2 or config.model.source.endswith(".gguf")
    return (1 + is_packed) * model_bytes(lm, config)


# -- features ----------------------------------------------------------------------------------------------------------


def title_terms(sizes: Sizes) -> float:
    """Return about how many character n-grams the titles have."""
    return float(NGRAMS * sizes.items**0.75)


def title_vector_bytes(sizes: Sizes, config: Config) -> int:
    """Return the bytes of making title vectors: the truncated SVD of character n-grams."""
    if not columns_of(config):
        return 0
    factors = 3 * 8 * (sizes.items + title_terms(sizes)) * (min(config.model.vector_size, sizes.items) + OVERSAMPLED)
    return int(factors + 60 * 3 * sizes.characters)


def counting_bytes(sizes: Sizes, config: Config) -> int:
    """Return the bytes of counting training windows and learning collaborative vectors."""
    if not (columns_of(config) and config.model.cooccurrence):
        return 0
    own, runs = 8 * sizes.owned, 12 * sizes.pairs
    part = 60 * min(AT_ONCE, 5 * sizes.interactions[c.TRAIN]) + 60 * sizes.windows[c.TRAIN]
    svd = 6 * 8 * sizes.items * (max(SIZES) + OVERSAMPLED) + 4 * GROUPS * sizes.items * max(SIZES)
    # Beside what is owned: two runs and their sum; or the pairs, in order of both items, and their matrix.
    return int(own + part + max(2 * runs, runs + (4 + 2 * 12) * sizes.pairs + svd))


def counts_bytes(sizes: Sizes, config: Config) -> int:
    """Return the bytes of co-occurrence counts, with collaborative vectors and their unit vectors."""
    if not (columns_of(config) and config.model.cooccurrence):
        return 0
    return 16 * sizes.pairs + 8 * sizes.owned + 4 * GROUPS * sizes.items * (max(SIZES) + sum(SIZES))


def ranking_fit_bytes(sizes: Sizes, config: Config) -> int:
    """Return the bytes of fitting the ranking weights on injected noise."""
    if not counts_bytes(sizes, config) or config.score.calibration == "off":
        return 0
    scores = min(sizes.windows[c.VALID] * sizes.items, max(50 * sizes.items, SCORES))
    per_window = sizes.all_interactions / max(1, sizes.all_windows)
    entries = min(NEIGHBORS, sizes.windows[c.VALID] * per_window * 2 * sizes.pairs / sizes.items)
    # Four features of each item and flag, those of a part again; the mask, twice; the loss and its gradient.
    return int(46 * scores + 140 * entries)


def suggesting_bytes(lm: LMShape, config: Config, sizes: Sizes, gpu: bool = False) -> int:
    """Return the bytes of one group of suggestions."""
    if not columns_of(config):
        written = decoding_tokens(config) * decoding_bytes(lm, config, sizes.tokens)
        return max(scoring_bytes(lm, config, sizes), written)
    per_window = sizes.all_interactions / max(1, sizes.all_windows)
    flagged = {name: flags(sizes, name, config.decide) for name in c.SPLITS}
    group = min(FLAGS, CHUNK * max(1, USUAL_NOISE_RATE * per_window))
    group = min(group, max(flagged[c.TRAIN] / config.train.folds, flagged[c.VALID], flagged[c.TEST]))
    neighbors = 2 * sizes.pairs / sizes.items if counts_bytes(sizes, config) else 0
    ranked = 12 * min(BLOCK if gpu else CPU_BLOCK, sizes.items) + 96 * per_window * neighbors
    return int(group * max(ranked, sizes.tokens * token_bytes(lm, config, sizes.tokens, tuned=False)))


# -- recommenders ------------------------------------------------------------------------------------------------------


def recommender_bytes(sizes: Sizes, config: Config, gpu: bool = False) -> int:
    """Return the bytes of training one recommender, without its process."""
    kind, options, items = config.evaluate.backbone, config.evaluate.recommender, sizes.items
    if kind == "ease":
        return memory_needed(items)
    if kind == "itemknn":
        return neighbor_bytes(sizes)
    scores = MAX_SCORES * (GPU_FACTOR if gpu else 1)
    width = {"full": items, "sampled": options.negatives, "bce": 1}[options.loss]
    step = min(scores, options.batch_size * options.history * width)
    ranked = min(scores, sizes.windows[c.VALID] * items)
    # Weights, gradient, two moments, the best epoch, and one of them on its way.
    return 6 * 4 * items * options.hidden_size + 4 * max(4 * step, 3 * ranked)


def neighbor_bytes(sizes: Sizes) -> int:
    """Return the bytes of the weights of item-kNN, and of the block of them that is computed at a time."""
    entries = 2 * sizes.pairs + sizes.items
    return int(2 * 8 * entries + 80 * min(entries, 2 * MAX_ENTRIES))


def tables_bytes(sizes: Sizes) -> int:
    """Return the bytes of windows, scores and other tables with a row for each interaction."""
    return 40 * sizes.all_windows * sizes.width + 250 * sizes.all_interactions


@dataclass(frozen=True)
class Need:
    """What a stage needs.

    Attributes
    ----------
    memory : int
        Bytes of main memory, over what the process uses already.
    gpu : int
        Bytes of GPU memory; 0 without a GPU.
    disk : int
        Bytes in the run folder that the stage leaves.
    passing : int
        Bytes in the run folder that are removed when the stage is complete.
    """

    memory: int
    gpu: int
    disk: int
    passing: int


def needs(
    sizes: Sizes,
    lm: LMShape,
    config: Config,
    workers: dict[str, int],
    base: int,
    gpu: bool,
    batch_tokens: int | None = None,
) -> dict[str, Need]:
    """Return what each stage needs.

    Parameters
    ----------
    sizes : Sizes
        Of the data.
    lm : LMShape
        Of the language model.
    config : Config
        All options.
    workers : dict of str to int
        Processes that fit "itemknn" and "ease" as judges, and "evaluate": 1 = this process, 0 = it is not fitted.
    base : int
        Bytes of a process that has imported everything.
    gpu : bool
        Models are on a GPU.
    batch_tokens : int, optional
        Tokens per pass. Default: `pass_tokens`.
    """
    vectors, tables = 4 * sizes.items * columns_of(config), tables_bytes(sizes)
    held = vectors + counts_bytes(sizes, config) + tables
    tuned = tuning_bytes(lm, config, sizes, batch_tokens, gpu)
    scored = scoring_bytes(lm, config, sizes, batch_tokens, gpu)
    weights = config.train.folds * model_bytes(lm, config)
    models = weights + config.train.folds * vectors
    on_gpu = CUDA_CONTEXT + config.train.folds * vectors
    in_memory = loading_bytes(lm, config)  # of a model on a GPU, while it is loaded
    suggested = held + suggesting_bytes(lm, config, sizes, gpu) + (in_memory if gpu else models)
    processes = {name: count * base if count > 1 else 0 for name, count in workers.items()}
    judged = max(
        processes["itemknn"] + workers["itemknn"] * neighbor_bytes(sizes),
        processes["ease"] + workers["ease"] * memory_needed(sizes.items),
    )
    trained = workers["evaluate"] * recommender_bytes(sizes, config, gpu)
    on_device = gpu and config.evaluate.backbone not in SEEDLESS
    train = max(
        tables + vectors + max(title_vector_bytes(sizes, config), counting_bytes(sizes, config)),
        held + (in_memory if gpu else max(in_memory, tuned)),
        held + (in_memory if gpu else models) + ranking_fit_bytes(sizes, config),
    )
    evaluate = held + sizes.rows * tables // 4 + processes["evaluate"] + (0 if on_device else trained)
    scoring = (on_gpu + weights + scored) * gpu
    is_tried = config.decide.policy == VALIDATION
    scores, edits = 80 * sizes.all_interactions, 10 * sizes.all_interactions
    kept = states_bytes(sizes, config)
    results = 2**16 + 8 * sizes.rows * config.evaluate.seeds * sizes.windows[c.TEST]
    parts = {name: parts_bytes(sizes, config, name) for name in c.SPLITS}
    checkpoints = config.train.folds * checkpoint_bytes(lm, config)
    return {
        "prepare": Need(tables, 0, disk_of_windows(sizes), 0),
        "train": Need(train, (on_gpu + tuned) * gpu, disk_of_model(sizes, lm, config), checkpoints + parts[c.VALID]),
        "score": Need(held + (in_memory if gpu else models + scored), scoring, scores + kept, sum(parts.values())),
        "decide": Need(max(suggested, held + judged) if is_tried else tables, scoring * is_tried, edits, 0),
        "suggest": Need(suggested, scoring, edits, edits),
        "correct": Need(tables, 0, disk_of_windows(sizes) + edits, 0),
        "evaluate": Need(evaluate, (CUDA_CONTEXT + trained) * on_device, results, 0),
    }


# -- disk --------------------------------------------------------------------------------------------------------------


def disk_of_windows(sizes: Sizes) -> int:
    """Return the bytes of windows/: ids and times of windows, and items of interactions, compressed."""
    return 24 * sizes.all_windows + 8 * sizes.all_interactions + sizes.characters


def disk_of_model(sizes: Sizes, lm: LMShape, config: Config) -> int:
    """Return the bytes of model/: weights of all folds, title vectors and what makes them, counts."""
    stored = lm.trainable if lm.trainable < lm.parameters else lm.parameters
    weights = BYTES[config.model.dtype] * stored + 8 * columns_of(config) * lm.hidden
    vectors = 4 * sizes.items * columns_of(config)
    counts = 0
    if counts_bytes(sizes, config):
        counts = 8 * sizes.pairs + 8 * sizes.owned + 4 * GROUPS * sizes.items * max(SIZES)
    encoder = title_terms(sizes) * (2 * config.model.vector_size + 16) if columns_of(config) else 0
    return int(config.train.folds * (weights + vectors + 2**18) + counts + encoder + sizes.characters)


def checkpoint_bytes(lm: LMShape, config: Config) -> int:
    """Return the bytes of the checkpoint of one fold: tuned weights and two moments, in fp32."""
    return 12 * (lm.trainable + 2 * columns_of(config) * lm.hidden)


def parts_bytes(sizes: Sizes, config: Config, split: str) -> int:
    """Return the bytes of the log-odds that are kept until their stage is complete, with those of injected noise."""
    draws = 1 + (len(KINDS) * config.score.calibration_draws if config.score.calibration != "off" else 0)
    return int(8 * sizes.interactions[split] * draws * sizes.models[split])


def states_bytes(sizes: Sizes, config: Config) -> int:
    """Return the bytes of the states that scoring keeps until suggesting is complete."""
    kept = min(sizes.all_interactions, states_per_window(config) * sizes.all_windows)
    return 4 * config.model.hidden_size * kept


def peak_disk(found: dict[str, Need], todo: Sequence[str]) -> int:
    """Return the most bytes that the stages still to do take in the run folder at a time.

    Examples
    --------
    >>> peak_disk({"train": Need(0, 0, 10, 30), "score": Need(0, 0, 5, 1)}, ["train", "score"])
    40
    """
    left, most = 0, 0
    for name in todo:
        left += found[name].disk
        most = max(most, left + found[name].passing)
    return most
