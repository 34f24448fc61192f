"""Does it help to inject more kinds of noise than the default does?

    python benchmarks/injected_kinds.py --run RUN [RUN …] --out benchmarks/results/injected-kinds

RUN is a finished default run on windows with known noise, such as `llm4dsr bench` leaves. Its models stay as they are.
The stacker, which a run fits on uniform items (90 %) and runs of another user (10 %), is fitted again with other kinds
in the place of some uniform items: popular items, near-misses (items with similar titles), and hard items. Those are
the least suspicious to the models of HARD uniform draws at the same position.

Found is measured on the run's own test histories, and on those before their noise, with each other kind in 10 % of the
interactions. Counts are those of training. Intervals of the gain in AUROC are from a bootstrap over users.
Datasets in OUT are not measured again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from llm4dsr import columns as c
from llm4dsr.bench.studies.noise import with_noise, without_noise
from llm4dsr.core.cache import PartCache
from llm4dsr.data.noise.kinds import similar_titles
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.injected import with_context
from llm4dsr.denoise.noise_injection import inject, replace, task_rate
from llm4dsr.denoise.stacking import Evidence, Stacker
from llm4dsr.denoise.storage import load_denoiser
from llm4dsr.evaluate.train_and_evaluate import user_codes
from llm4dsr.metrics import auroc, average_precision
from llm4dsr.pipeline import Run
from on_runs import DRAWS, gain_interval, injected_sample, measure_runs

LIMIT, HARD, SAMPLES = 2_500, 5, 500
OTHER_KINDS = ("popularity", "near-miss", "burst")
SHARES = {  # of what the stacker learns from; the rest is uniform
    "default": {"runs": 0.1},
    "popular": {"runs": 0.1, "popular": 0.3},
    "near-misses": {"runs": 0.1, "near": 0.3},
    "hard items": {"runs": 0.1, "hard": 0.3},
    "more runs": {"runs": 0.4},
    "all": {"runs": 0.2, "popular": 0.15, "near": 0.15, "hard": 0.15},
}


def evidence_of(ensemble: Ensemble, windows: Windows) -> Evidence:
    log_odds = ensemble.model_log_odds(windows, None, "", PartCache(None))
    assert ensemble.counts is not None
    return Evidence.of(windows, log_odds, ensemble.counts, ensemble.titles)


def near_misses(ensemble: Ensemble, windows: Windows, rng: np.random.Generator) -> Evidence:
    """Of one item in each window that became another with a similar title."""
    draw, injectable = similar_titles(ensemble.catalogue.titles), ensemble.injectable(windows)
    parts = []
    for _ in range(DRAWS):
        some, chosen, _, originals = inject(windows, injectable, rng)
        first = some.items.copy()
        first[chosen] = draw(originals, rng)
        items = replace(some, chosen, injectable, rng, first)
        parts.append(evidence_of(ensemble, dataclasses.replace(some, items=items)).take(chosen))
    return Evidence.join(parts)


def hard_items(ensemble: Ensemble, windows: Windows, rng: np.random.Generator) -> Evidence:
    """Of one item in each window: the least suspicious of HARD uniform draws at its position."""
    injectable, parts = ensemble.injectable(windows), []
    some, chosen, _, _ = inject(windows, injectable, rng)
    for _ in range(HARD):
        items = replace(some, chosen, injectable, rng)
        parts.append(evidence_of(ensemble, dataclasses.replace(some, items=items)).take(chosen))
    best = np.argmin([p.values[:, 0] for p in parts], axis=0)  # the models' log-odds come first
    return Evidence(np.stack([p.values for p in parts])[best, np.arange(len(best))], parts[0].half)


def measure(run: Run, limit: int, _: dict[str, Any]) -> dict[str, Any]:
    """AUROC and AP for each kind of noise on test, of a stacker for each of SHARES."""
    data, (ensemble, _) = run.data(), load_denoiser(run.path("train"))
    rng = np.random.default_rng(1)
    histories, scored = injected_sample(ensemble, data, limit, rng)
    parts = {"uniform": scored.uniform, "popular": scored.popular, "runs": scored.runs}
    noise = {name: Evidence.join([p.evidence.take(p.chosen) for p in of if p.evidence]) for name, of in parts.items()}
    noise |= {"near": near_misses(ensemble, histories, rng), "hard": hard_items(ensemble, histories, rng)}
    unlabeled = Evidence.join([p.evidence for p in scored.unlabeled if p.evidence])
    rate = task_rate(ensemble.config.task, data.splits[c.TRAIN])
    stackers = {}
    for name, shares in SHARES.items():
        kinds = [(noise["uniform"], 1 - sum(shares.values())), *((noise[kind], s) for kind, s in shares.items())]
        stackers[name] = Stacker.fit(kinds, unlabeled, rate, 0)
    clean, tests = without_noise(data)[0], {"as it is": data.splits[c.TEST]}
    for kind in OTHER_KINDS:
        noisy = with_noise(clean, kind, 0.1, 0)
        assert noisy.catalogue.titles == ensemble.catalogue.titles  # so the same rows
        tests[kind] = noisy.splits[c.TEST]
    out: dict[str, Any] = {}
    for kind, windows in tests.items():
        test = with_context(windows.histories())
        found, truth, users = evidence_of(ensemble, test), test.truth(), user_codes(test)[test.owners]
        scores = {name: stacker(found) for name, stacker in stackers.items() if stacker is not None}
        out[kind] = {name: {"AUROC": auroc(s, truth), "AP": average_precision(s, truth),
                            "gain": gain_interval(auroc, truth, users, scores["default"], s, SAMPLES)}
                     for name, s in scores.items()}  # fmt: skip
        print(kind, {name: round(of["AUROC"], 3) for name, of in out[kind].items()}, flush=True)
    return out


def page(found: dict[str, dict[str, Any]]) -> str:
    parts = []
    for dataset, tests in found.items():
        rows = [f"| injected beside uniform | {' | '.join(tests)} |", "|---" * (1 + len(tests)) + "|"]
        for name, shares in SHARES.items():
            cells = []
            for of in tests.values():
                low, high = of[name]["gain"]
                gain = "" if name == "default" else f" ({low:+.3f} to {high:+.3f})"
                cells.append(f"{of[name]['AUROC']:.3f}{gain}")
            told = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
            rows.append(f"| {name}: {told} | {' | '.join(cells)} |")
        parts.append(f"## {dataset}\n\n" + "\n".join(rows))
    return f"""# Would other injected noise find more?

    python benchmarks/injected_kinds.py --run OUT/toys-15000/llm4dsr-0 OUT/movielens-small-15000/llm4dsr-0 \\
      --out benchmarks/results/injected-kinds

AUROC on test histories: as they are (uniform noise), and with each other kind in 10 % of the interactions. The stacker
is fitted again on each mixture; the models stay. In brackets is the gain over the default, a 95 % interval over users.
What the kinds are is in the benchmark's docstring.

{(2 * chr(10)).join(parts)}
"""


if __name__ == "__main__":
    measure_runs(__doc__, LIMIT, measure, page)
