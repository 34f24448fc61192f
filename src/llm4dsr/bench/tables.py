"""RESULTS.md: what the finished cells say, with intervals and paired tests. Nothing in it is typed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.cells import DETECTION, RESULTS
from llm4dsr.bench.denoised import DROPPERS, MORE, NONE, ORACLES, OURS, REPLACED, SHARE
from llm4dsr.errors import OutputError
from llm4dsr.evaluate import Difference
from llm4dsr.metrics import mean_interval, ndcg_of_each
from llm4dsr.recommenders import ROBUST
from llm4dsr.recommenders.training import VALIDATION_K

CERTAIN = 0.05  # p below which a difference is called significant

_HEAD = """# Benchmark results

Made by `llm4dsr bench` from the finished cells; do not edit. NDCG@{k} and HR@{k} rank the whole catalogue on test,
whose targets are clean. ± is half of a 95 % Student interval over seeds. *p (seeds)* is a paired t test over seeds, *p
(windows)* one over test windows, with the mean of the seeds for each: the first asks whether another training run
would show the same, the second whether other histories would. A denoiser itself was run with one seed. In brackets is
what the recommenders were trained on: one CPU core each, or some side by side on a GPU.

Peers drop the {share:.0f} % of the interactions that they suspect most, those with (20 %) that share; STEAM rewrites
instead. A peer with (replace 20 %) is no peer but a control: its flags, and our suggestions for them.
llm4dsr (replace) and (drop) act on what is more likely noise than not; (replace 5 %) and the like on that share of all
interactions, of which a run by default takes the one that ranks validation best. Oracles know the noise.

Precision and recall are of the flags; STEAM does not go by its own. Minutes of a row with a share are those of the
whole run.
"""


def results_markdown(out: Path, k: int = 20) -> str:
    """Of all suites that have results under `out`. Raises OutputError where there are none."""
    folders = sorted(path.parent for path in out.glob(f"*/{RESULTS}"))
    if not folders:
        raise OutputError(f"{out} has no results yet. Run:  llm4dsr bench --suite demo --out {out}")
    parts = [_HEAD.format(k=k, share=100 * SHARE)]
    for folder in folders:
        results = pl.read_parquet(folder / RESULTS, glob=False)
        parts.append(f"## Suite {folder.name}\n")
        if (folder / DETECTION).is_file():
            parts.append(_detection(pl.read_parquet(folder / DETECTION, glob=False)))
        robust = results.filter(pl.col("backbone").is_in(ROBUST))
        for backbone in results["backbone"].unique(maintain_order=True).to_list():
            if backbone in ROBUST:
                continue
            rows = results.filter(pl.col("backbone") == backbone)
            same = pl.col("recipe").is_in(rows["recipe"].unique().implode())  # the same loss and budget, or no row
            beside = _as_denoisers(robust.filter(same)) if backbone == "sasrec" else robust.clear()
            parts.append(_ranking(backbone, pl.concat([rows, beside], how="diagonal_relaxed"), k))
    return "\n".join(parts)


def _as_denoisers(robust: pl.DataFrame) -> pl.DataFrame:
    """Recommenders that are robust by themselves, as rows beside the denoised ones."""
    return robust.with_columns(pl.format("({} itself)", "backbone").alias("denoiser"))


def _detection(lines: pl.DataFrame) -> str:
    if "auroc" not in lines.columns or lines["auroc"].is_nan().all():
        return _share_flagged(lines)
    text = ["### Noise found in test histories (and in training windows)\n",
            "| denoiser | test AUROC | test AP | precision | recall | train AUROC | train AP | minutes | GB |",
            "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    test = lines.filter(pl.col("split") == c.TEST).sort("average_precision", descending=True)
    for row in test.iter_rows(named=True):
        train = lines.filter((pl.col("split") == c.TRAIN) & (pl.col("denoiser") == row["denoiser"])).row(0, named=True)
        text.append(
            f"| {row['denoiser']} | {row['auroc']:.3f} | {row['average_precision']:.3f} | {_share(row['precision'])} | "
            f"{_share(row['recall'])} | {train['auroc']:.3f} | {train['average_precision']:.3f} | "
            f"{row['seconds'] / 60:.1f} | {row['memory_mb'] / 1000:.1f} |"
        )
    return "\n".join(text) + "\n"


def _share_flagged(lines: pl.DataFrame) -> str:
    text = ["### Share flagged (the truth is not known)\n", "| denoiser | train | test | minutes | GB |",
            "|---|---|---|---|---|"]  # fmt: skip
    for name in lines["denoiser"].unique(maintain_order=True).to_list():
        of = {r["split"]: r for r in lines.filter(pl.col("denoiser") == name).iter_rows(named=True)}
        text.append(f"| {name} | {of[c.TRAIN]['flagged']:.1%} | {of[c.TEST]['flagged']:.1%} | "
                    f"{of[c.TEST]['seconds'] / 60:.1f} | {of[c.TEST]['memory_mb'] / 1000:.1f} |")  # fmt: skip
    return "\n".join(text) + "\n"


def _ranking(backbone: str, rows: pl.DataFrame, k: int) -> str:
    names = rows["denoiser"].unique(maintain_order=True).to_list()
    means = {n: float(np.mean(_of(rows, n)["ndcg"].to_list())) for n in names}
    devices = ", ".join(sorted(set(rows["device"])))
    text = [f"### {backbone}, NDCG@{k} and HR@{k} on test ({devices})\n",
            f"| denoiser | seeds | NDCG@{k} | HR@{k} | NDCG gain | p (seeds) | p (windows) | HR gain | minutes each |",
            "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in sorted(names, key=lambda n: -means[n]):
        of, base = _of(rows, name), _of(rows, NONE)
        cells = [name, str(len(of)), _interval(of["ndcg"]), _interval(of["hit_rate"])]
        if name == NONE:
            cells += [""] * 4
        else:
            found = Difference.between(of, base, k)
            cells += [f"{found.gain_percent:+.1f} %", _p(found.p_seeds), _p(found.p_windows), _hit_gain(of, base)]
        text.append(f"| {' | '.join(cells)} | {np.mean(of['seconds'].to_list()) / 60:.1f} |")
    return "\n".join([*text, "", *_verdict(rows, means, k), *_listed(rows, means, k)]) + "\n"


def _verdict(rows: pl.DataFrame, means: dict[str, float], k: int) -> list[str]:
    """Is ours better than nothing, than the best peer, than the best one that acts alike; what is owed to finding?"""
    ours, kinds = [n for n in OURS if n in means], {*OURS, *ORACLES, *REPLACED, NONE}
    peer = max((n for n in means if n not in kinds), key=lambda n: means[n], default=None)
    pairs = {(own, NONE): "none" for own in ours}  # what ours is held against → what that is
    for own in ours:
        action, share = OURS[own]
        if peer:
            pairs[own, peer] = f"the best peer, {peer}"
        alike = [n for n in means if n in DROPPERS and DROPPERS[n][1] == (share or SHARE)]
        if action == "drop" and (same := max(alike, key=lambda n: means[n], default=None)):
            pairs.setdefault((own, same), f"the best peer that flags {100 * (share or SHARE):.0f} %, {same}")
        if action == "replace" and share == MORE:
            pairs |= {(own, n): f"our suggestions for the flags of {p}" for n, p in REPLACED.items() if n in means}
    lines = [_said(rows, *names, what, k) for names, what in pairs.items()]
    tried = [n for n in (NONE, *OURS) if n in means]
    if len(tried) > 1:
        valid = {n: float(np.mean(_of(rows, n)["valid_ndcg"].to_list())) for n in tried}
        best = max(valid, key=lambda n: valid[n])
        lines.append(f"- Without a look at test: of none and ours, {best} ranks validation best (NDCG@{VALIDATION_K} "
                     f"{valid[best]:.4f}, none {valid[NONE]:.4f}).")  # fmt: skip
    return lines


def _said(rows: pl.DataFrame, ours: str, other: str, what: str, k: int) -> str:
    found = Difference.between(_of(rows, ours), _of(rows, other), k)
    certain = [w for w, p in (("seeds", found.p_seeds), ("windows", found.p_windows)) if p < CERTAIN]
    said = f"significant over {' and over '.join(certain)}" if certain else "not significant"
    return (f"- {ours} against {what}: {found.gain_percent:+.1f} % NDCG@{k}, {said} "
            f"(p {_p(found.p_seeds)} over seeds, {_p(found.p_windows)} over windows).")  # fmt: skip


def _listed(rows: pl.DataFrame, means: dict[str, float], k: int) -> list[str]:
    """Of a recommender that puts a list in order: what the list owes to the order."""
    count: int = max(rows["listed"].drop_nulls().to_list(), default=0) if "listed" in rows.columns else 0
    if not count:
        return []
    at_random = ndcg_of_each(np.arange(1, count + 1), k).mean()
    lines = [
        f"- LLaRA puts the {count} best of its own SASRec in order; what is not among them keeps its rank. The mean "
        f"place of test targets that are ({(count + 1) / 2} by chance); NDCG@{k}, beside that of the same lists in "
        "random order:"
    ]
    for name, mean in means.items():
        ranks = np.stack(_of(rows, name)["ranks"].to_list())
        inside = ranks <= count
        lines.append(f"    - {name}: {ranks[inside].mean():.1f}, {mean:.4f} beside {inside.mean() * at_random:.4f}")
    return lines


def _of(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    return rows.filter(pl.col("denoiser") == name).sort("seed")


def _interval(values: pl.Series) -> str:
    mean, half = mean_interval(values.to_list())
    return f"{mean:.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")


def _hit_gain(of: pl.DataFrame, base: pl.DataFrame) -> str:
    """On the seeds that both have."""
    both = of.join(base, on="seed", suffix=" of base")
    one, other = (float(np.mean(both[column].to_list())) for column in ("hit_rate", "hit_rate of base"))
    return f"{100 * (one / max(other, 1e-12) - 1):+.1f} %"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< .001" if value < 0.001 else f"{value:.3f}"
