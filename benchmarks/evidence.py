"""What would other evidence on an interaction add to what the default denoiser reads?

    python benchmarks/evidence.py --run RUN [RUN …] --out benchmarks/results/evidence

RUN is a finished default run on windows with known noise, such as `llm4dsr bench` leaves. Its models stay as they are.
The stacker is fitted again on noise injected into validation histories, as a run does it, with more inputs:

- `item2vec`: skip-gram vectors with negative sampling; cosines as those of the SVD vectors that are there already.
- `ease`: weights of EASE from and to the other items of the history.
- `sasrec`, `bert4rec`: out-of-fold likelihood, given the items before, and given all others.
- `prediction`: how near the item is to what the denoiser's own models would suggest there, less how near OTHERS random
  items are. It is read from the hidden states of scoring, so it needs no other model.

Each is cross-fitted: nothing is described by a model that knows its user. All test histories are scored with the counts
of training. Intervals of the gain in AP are from a bootstrap over users. Rows in OUT are not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg.lapack import spotrf, spotri
from torch.nn import functional as F

from llm4dsr import columns as c
from llm4dsr.bench.baselines.likelihood import fit_halves, log_rank, surprise
from llm4dsr.core.arrays import FloatArray
from llm4dsr.core.cache import PartCache
from llm4dsr.core.hashing import hash_folds, user_hashes
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.injected import ScoredPart, with_context
from llm4dsr.denoise.noise_injection import task_rate
from llm4dsr.denoise.score import score_windows
from llm4dsr.denoise.stacking import Evidence
from llm4dsr.denoise.states import states_to_fill
from llm4dsr.denoise.storage import load_denoiser
from llm4dsr.denoise.training_labels import NO_LABELS
from llm4dsr.evaluate.train_and_evaluate import user_codes
from llm4dsr.features.collaborative import GROUPS
from llm4dsr.metrics import auroc, average_precision
from llm4dsr.pipeline import Run
from on_runs import gain_interval, injected_sample, measure_runs

Floats = npt.NDArray[np.float32]
Describe = Callable[[Windows], Floats]  # [n, K] of n interactions
SIZE, EPOCHS, NEGATIVES, RATE = 64, 15, 5, 1e-2  # of item2vec
REGULARIZATION = 200.0  # of EASE
OTHERS, SHARPNESS = 512, 20.0  # random items, and how much the nearest of them count
LIMIT = 4_000  # validation histories


def cross_fitted(train: Windows, fit: Callable[[Windows], Describe]) -> Describe:
    """Describe each window by the model of its group, which was fitted on the users of the other groups."""
    seen = np.unique(user_hashes(train.user_ids))
    groups = hash_folds(user_hashes(train.user_ids), GROUPS)
    models = [fit(train.take(np.flatnonzero(groups != g))) for g in range(GROUPS)]

    def describe(windows: Windows) -> Floats:
        users = user_hashes(windows.user_ids)
        own = np.where(np.isin(users, seen), hash_folds(users, GROUPS), 0)
        parts = {g: np.flatnonzero(own == g) for g in range(GROUPS)}
        found = {g: models[g](windows.take(rows)) for g, rows in parts.items() if len(rows)}
        out = np.empty((len(windows.items), next(iter(found.values())).shape[1]), np.float32)
        for g, values in found.items():
            out[windows.interactions(parts[g])] = values
        return out

    return describe


def of_pairs(windows: Windows, pairs: npt.NDArray[Any]) -> Floats:
    """[n, 3] of [B, L, L] similarities: mean and largest with the others, and the window's mean of the first."""
    here = windows.present
    among = here[:, :, None] & here[:, None, :]
    among[:, range(windows.width), range(windows.width)] = False
    mean = (pairs * among).sum(axis=2) / np.maximum(among.sum(axis=2), 1)
    largest = np.where(among, pairs, 0.0).max(axis=2, initial=0.0)
    of_window = (mean * here).sum(axis=1) / np.maximum(here.sum(axis=1), 1)
    return np.stack([mean[here], largest[here], of_window[windows.owners]], axis=1).astype(np.float32)


def in_batches(windows: Windows, describe: Describe) -> Floats:
    return np.concatenate([describe(batch) for _, batch in windows.batches(50_000)])


def item2vec(n_items: int) -> Callable[[Windows], Describe]:
    def fit(train: Windows) -> Describe:
        torch.manual_seed(0)
        lengths = train.lengths
        left = np.repeat(np.arange(len(train.items)), lengths[train.owners])
        rank = np.arange(len(left)) - np.repeat(np.cumsum(lengths[train.owners]) - lengths[train.owners],
                                                lengths[train.owners])  # fmt: skip
        right = train.offsets[train.owners[left]] + rank
        pairs = torch.from_numpy(np.stack([train.items[left], train.items[right]])[:, left != right])
        often = np.bincount(train.items, minlength=n_items) ** 0.75
        chances = torch.from_numpy(often / often.sum())
        inner, outer = (torch.nn.Parameter(torch.randn(n_items, SIZE) * 0.1) for _ in range(2))
        optimizer = torch.optim.Adam([inner, outer], lr=RATE)
        for _ in range(EPOCHS):
            for rows in torch.split(torch.randperm(pairs.shape[1]), 16_384):
                center, near = pairs[0, rows], pairs[1, rows]
                far = torch.multinomial(chances, len(rows) * NEGATIVES, replacement=True).view(-1, NEGATIVES)
                x = inner[center]
                good, bad = (x * outer[near]).sum(1), (x[:, None] * outer[far]).sum(2)
                loss = F.softplus(-good).mean() + F.softplus(bad).sum(1).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        vectors = F.normalize(inner.detach(), dim=1).numpy()
        vectors[often == 0] = 0

        def of_batch(batch: Windows) -> Floats:
            x = vectors[batch.item_matrix] * batch.present[:, :, None]
            return of_pairs(batch, x @ x.transpose(0, 2, 1))

        return lambda windows: in_batches(windows, of_batch)

    return fit


def ease(n_items: int) -> Callable[[Windows], Describe]:
    def fit(train: Windows) -> Describe:
        import scipy.sparse as sp

        x = sp.csr_matrix((np.ones(len(train.items), np.float32), (train.owners, train.items)), (len(train), n_items))
        x.data[:] = 1
        gram = (x.T @ x).toarray(order="F")
        gram[np.diag_indices(n_items)] += REGULARIZATION
        factor, failed = spotrf(gram, lower=1, overwrite_a=1)
        inverse, failed_too = spotri(factor, lower=1, overwrite_c=1)
        assert failed == failed_too == 0
        precision = np.tril(inverse) + np.tril(inverse, -1).T
        diagonal = np.diag(precision).copy()
        known = sp.csr_matrix(np.where(np.abs(precision) > 1e-7, precision, 0))  # most weights are far smaller

        def of_batch(batch: Windows) -> Floats:
            items = batch.item_matrix
            shape = (*items.shape, items.shape[1])
            left, right = np.broadcast_to(items[:, :, None], shape), np.broadcast_to(items[:, None, :], shape)
            found = -np.asarray(known[left.ravel(), right.ravel()]).reshape(shape)
            return np.concatenate(
                [of_pairs(batch, found / diagonal[left]), of_pairs(batch, found / diagonal[right])], axis=1
            )

        return lambda windows: in_batches(windows, of_batch)

    return fit


def likelihood(backbone: str, train: Windows, valid: Windows, run: Run) -> Describe:
    halves = fit_halves(backbone, train, valid, run.data().catalogue, 0)

    def describe(windows: Windows) -> Floats:
        columns = [halves.measure(windows, measure) for measure in (surprise, log_rank)]
        means = [np.bincount(windows.owners, v) / np.bincount(windows.owners) for v in columns]
        return np.stack([*columns, *(m[windows.owners] for m in means)], axis=1).astype(np.float32)

    return describe


def prediction(ensemble: Ensemble, n_items: int) -> Describe:
    others = torch.randperm(n_items, generator=torch.Generator().manual_seed(0))[:OTHERS]

    def describe(windows: Windows) -> Floats:
        out, config = np.zeros((len(windows.items), 2)), ensemble.config
        for rows, members in ensemble.assignments(windows):
            part, at = windows.take(rows), windows.interactions(rows)
            for member in members:
                model, states = ensemble.models[member], states_to_fill(config, part)
                score_windows(model, ensemble.builder, part, ensemble.catalogue, config, states=states)
                assert model.vectors is not None
                with torch.inference_mode():
                    predicted = F.normalize(model.out(torch.from_numpy(states)), dim=-1)
                    titles = F.normalize(model.vectors, dim=-1)
                    own = (predicted * titles[torch.from_numpy(part.items)]).sum(dim=1)
                    near = torch.logsumexp(SHARPNESS * predicted @ titles[others].T, dim=1) / SHARPNESS
                out[at] += torch.stack([own, own - near], dim=1).numpy() / len(members)
        means = [np.bincount(windows.owners, v) / np.bincount(windows.owners) for v in out.T]
        return np.concatenate([out, *(m[windows.owners, None] for m in means)], axis=1).astype(np.float32)

    return describe


def measure(run: Run, limit: int, before: dict[str, Any]) -> dict[str, Any]:
    """AUROC and AP on test histories with the default evidence, with each kind more, and with the four of others.

    Kinds that are there `before` are kept.
    """
    data, (ensemble, _) = run.data(), load_denoiser(run.path("train"))
    train, valid = data.splits[c.TRAIN], data.splits[c.VALID]
    _, scored = injected_sample(ensemble, data, limit, np.random.default_rng(1))
    test = with_context(data.splits[c.TEST].histories())
    log_odds = ensemble.model_log_odds(test, None, "", PartCache(None))
    assert ensemble.counts is not None
    of_test = Evidence.of(test, log_odds, ensemble.counts, ensemble.titles)
    n_items, kinds, seconds = len(data.catalogue), dict[str, dict[int, Floats]](), dict[str, float]()
    makers: dict[str, Callable[[], Describe]] = {
        "item2vec": lambda: cross_fitted(train, item2vec(n_items)),
        "ease": lambda: cross_fitted(train, ease(n_items)),
        "sasrec": lambda: likelihood("sasrec", train, valid, run),
        "bert4rec": lambda: likelihood("bert4rec", train, valid, run),
        "prediction": lambda: prediction(ensemble, n_items),
    }
    known = before.get("found", {})
    makers = {name: make for name, make in makers.items() if name not in known}
    parts: list[ScoredPart] = [*scored.unlabeled, *scored.uniform, *scored.popular, *scored.runs]
    for name, make in makers.items():
        began = time.process_time()
        describe = make()
        kinds[name] = {id(p): describe(p.windows) for p in parts} | {0: describe(test)}
        seconds[name] = round(time.process_time() - began, 1)
        print(name, seconds[name], "s", flush=True)
    truth, users = test.truth(), user_codes(test)[test.owners]
    base, found, out = {id(p): p.evidence for p in parts}, dict[str, FloatArray](), dict[str, Any]()
    rate = task_rate(ensemble.config.task, train)
    tried: dict[str, list[str]] = {"default": [], **{kind: [kind] for kind in kinds}}
    if set(OTHER_MODELS) <= set(kinds):
        tried["all"] = list(OTHER_MODELS)
    for name, chosen in tried.items():
        for p in parts:
            p.evidence = with_more(base[id(p)], [kinds[kind][id(p)] for kind in chosen])
        stacker = scored.fit_stacker(ensemble.config.task, rate, 0, NO_LABELS)
        assert stacker is not None
        found[name] = stacker(with_more(of_test, [kinds[kind][0] for kind in chosen]))
        out[name] = {"AUROC": auroc(found[name], truth), "AP": average_precision(found[name], truth)}
        out[name]["gain in AP"] = gain_interval(average_precision, truth, users, found["default"], found[name])
        print(name, out[name], flush=True)
    seconds, out = before.get("CPU seconds", {}) | seconds, known | out
    return {"test histories": len(test), "noise": float(truth.mean()), "CPU seconds": seconds,
            "found": {name: out[name] for name in NAMES}}  # fmt: skip


def with_more(evidence: Evidence | None, more: list[Floats]) -> Evidence:
    assert evidence is not None
    return Evidence(np.concatenate([evidence.values, *more], axis=1), evidence.half)


OTHER_MODELS = ("item2vec", "ease", "sasrec", "bert4rec")
NAMES = {"default": "the default's", "item2vec": "+ item2vec", "ease": "+ EASE", "sasrec": "+ SASRec's likelihood",
         "bert4rec": "+ BERT4Rec's likelihood", "all": "+ these four",
         "prediction": "+ its models' own prediction"}  # fmt: skip


def page(found: dict[str, dict[str, Any]]) -> str:
    lines = []
    for dataset, of in found.items():
        for name, row in of["found"].items():
            low, high = row["gain in AP"]
            gain = "" if name == "default" else f"{low:+.3f} to {high:+.3f}"
            cost = f"{of['CPU seconds'][name]:,.0f}" if name in of["CPU seconds"] else ""
            lines.append(f"| {dataset} | {NAMES[name]} | {row['AUROC']:.3f} | {row['AP']:.3f} | {gain} | {cost} |")
    return f"""# Would other evidence find more noise?

    python benchmarks/evidence.py --run OUT/toys-15000/llm4dsr-0 OUT/movielens-small-15000/llm4dsr-0 \\
      --limit 3000 --out benchmarks/results/evidence

Test histories; the stacker is fitted again with more inputs, on injected noise alone, as a run does it. Counts are
those of training, so *the default's* row is a little below [RESULTS.md](../../RESULTS.md). The gain in AP is a 95 %
interval over users. CPU seconds are those of the new evidence, training included.

| dataset | evidence | AUROC | AP | gain in AP | CPU seconds |
|---|---|---|---|---|---|
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    measure_runs(__doc__, LIMIT, measure, page, NAMES)
