"""Tables of RESULTS.md, checked by hand: gains, tests over users and seeds, and what is compared with what."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4dsr.bench import tables
from llm4dsr.bench.cells import RESULTS, TARGETS, write_results
from llm4dsr.errors import ConfigError

LINE = {"backbone": "sasrec", "recipe": "one", "device": "CPU", "seconds": 60.0, "valid_ndcg": 0.5, "hit_rate": 1.0}


def rendered(folder: Path, lines: list[dict], k: int = 20) -> str:
    """The page of one dataset with these cells."""
    (folder / "toy").mkdir(exist_ok=True)
    write_results(pl.DataFrame(lines), folder / "toy" / RESULTS)
    return tables.results_markdown(folder, k)


def cells(ranks: dict[str, list[list[int]]]) -> list[dict]:
    """Cells of rows (name: ranks of two users for each seed), with their metrics."""
    out = []
    for name, of in ranks.items():
        for seed, r in enumerate(np.array(of)):
            ndcg, hits = np.where(r <= 20, 1 / np.log2(1 + r), 0).mean(), (r <= 20).mean()
            line = {"denoiser": name, "seed": seed, "hit_rate": float(hits), "ndcg": float(ndcg)}
            out.append(LINE | line | {"ranks": r.tolist(), "users": [0, 1]})
    return out


def test_controls_are_not_baselines_and_baselines_are_compared_at_the_same_rate(tmp_path):
    ndcg = {"none": 0.1, "llm4dsr": 0.45, "llm4dsr (replace 20 %)": 0.5, "llm4dsr (drop 5 %)": 0.2, "pmi": 0.3,
            "tfidf (20 %)": 0.15, "random (replace 20 %)": 0.4, "none (validation learned)": 0.6}  # fmt: skip
    lines = [LINE | {"denoiser": name, "seed": 0, "ndcg": value, "ranks": [2, 30]} for name, value in ndcg.items()]
    lines_of_ours = [line for line in rendered(tmp_path, lines).splitlines() if " against " in line]
    said = [line.split(":")[0] for line in lines_of_ours if line.startswith("- llm4dsr")]
    assert said == [
        "- llm4dsr against none",
        "- llm4dsr (drop 5 %) against none",
        "- llm4dsr (replace 20 %) against none",
        "- llm4dsr against the best baseline, pmi",
        "- llm4dsr (drop 5 %) against the best baseline that drops 5 %, pmi",
        "- llm4dsr (replace 20 %) against our suggestions for the flags of random",
    ]


def test_gains_and_tests_can_be_checked_by_hand(tmp_path):
    """Two windows, two seeds. none: rank 3 of each (NDCG 1/2); ours: one of the two at rank 1 (NDCG 3/4)."""
    ranks = {"none": [[3, 3], [3, 3]], "llm4dsr (drop 5 %)": [[1, 3], [1, 3]], "pmi": [[30, 3], [3, 30]]}
    valid = {"none": 0.4, "llm4dsr (drop 5 %)": 0.3, "pmi": 0.9}
    text = rendered(tmp_path, [line | {"valid_ndcg": valid[line["denoiser"]]} for line in cells(ranks)])
    means, gain = "0.7500 ± 0.0000 | 1.0000 ± 0.0000", "+50.0 ± 635.3 % | – | 0.500"  # t = 12.706, error ⅛
    assert f"| llm4dsr (drop 5 %) | 1 × 2 | {means} | {gain} | +0.0 % |  |  | 1.0 |" in text
    assert "| none | 1 × 2 | 0.5000 ± 0.0000 | 1.0000 ± 0.0000 |  |  |  |  |  |  | 1.0 |" in text
    assert "llm4dsr (drop 5 %) against none: +50.0 ± 635.3 % NDCG@20, not significant (p – over seeds, 0.500" in text
    assert "llm4dsr (drop 5 %) against the best baseline that drops 5 %, pmi: +200.0 ± " in text
    assert "Best on validation, of none and ours: none (NDCG@20 0.4000, none 0.4000)" in text
    assert text.index("llm4dsr (drop 5 %) |") < text.index("none |") < text.index("pmi |")  # best first


def test_gains_by_target_popularity_by_hand(tmp_path):
    """Four windows of four users; targets have 1, 1, 5 and 9 users. Ours puts one rare target first."""
    ranks = {"none": [3, 3, 3, 3], "llm4dsr": [1, 3, 3, 3], "pmi": [3, 3, 3, 3], "random (replace 10 %)": [3, 3, 3, 1]}
    lines = [
        LINE | {"denoiser": name, "seed": 0, "ndcg": 0.5, "ranks": r, "users": [0, 1, 2, 3]}
        for name, r in ranks.items()
    ]
    (tmp_path / "toy").mkdir()
    write_results(pl.DataFrame({"users": [1, 1, 5, 9]}), tmp_path / "toy" / TARGETS)
    text = rendered(tmp_path, lines)
    assert "| denoiser | 1 to 1 users (2) | 5 to 5 users (1) | 9 to 9 users (1) |" in text
    assert "| llm4dsr | 0.7500 (+50 ± 635 %) | 0.5000 (+0 %) | 0.5000 (+0 %) |" in text  # t = 12.706, error 1/4 of 1/2
    assert "| random (replace 10 %) | 0.5000 (+0 ± 0 %) | 0.5000 (+0 %) | 1.0000 (+100 %) |" in text
    assert "| none | 0.5000 | 0.5000 | 0.5000 |" in text
    assert text.count("| pmi |") == 1  # baselines are not shown there


def test_seeds_of_the_recommender_alone_are_no_test_of_ours(tmp_path):
    """Both seeds gain, so p over seeds is known for pmi, which has no seed of its own, but not for one denoiser."""
    ranks = {"none": [[3, 3], [3, 3]], "llm4dsr (drop 5 %)": [[1, 3], [1, 1]], "pmi": [[1, 3], [1, 1]]}
    text = rendered(tmp_path, cells(ranks))
    gain, p = "+75.0 ± 317.7 %", "0.205"  # t = 3: 1 - 2 / π · arctan 3
    assert f"| {gain} | {p} | " in next(line for line in text.splitlines() if line.startswith("| pmi |"))
    ours = next(line for line in text.splitlines() if line.startswith("| llm4dsr (drop 5 %) |"))
    assert f"| {gain} | – | " in ours
    assert f"llm4dsr (drop 5 %) against none: {gain} NDCG@20, not significant (p – over seeds" in text


def test_baselines_that_draw_need_seeds_of_their_own_too(tmp_path):
    """`random` and its comparisons have no p over seeds from one seed; PMI, which draws nothing, has."""
    ranks = {"none": [[3, 3], [3, 3]], "llm4dsr": [[1, 3], [1, 1]], "random": [[1, 3], [1, 1]], "pmi": [[1, 3], [1, 1]]}
    lines = cells({name: of for name, of in ranks.items() if name != "llm4dsr"})
    ours = [line | {"denoiser_seed": run} for line in cells({"llm4dsr": ranks["llm4dsr"]}) for run in (0, 1)]
    text = rendered(tmp_path, [line | {"denoiser_seed": None} for line in lines] + ours).splitlines()
    p = {name: next(line for line in text if line.startswith(f"| {name} |")).split(" | ")[5] for name in ranks}
    assert p == {"none": "", "llm4dsr": "0.205", "random": "–", "pmi": "0.205"}
    assert "(p – over seeds" in next(line for line in text if "the best baseline, random" in line)


def test_rows_are_compared_on_the_seeds_that_both_have(tmp_path):
    """Ours equals none where both were made; two more seeds of none are worse."""
    ranks = {"none": [[1, 3], [1, 3], [9, 9]], "llm4dsr": [[1, 3], [1, 3]], "pmi": [[1, 3], [1, 3]]}
    lines = [line | {"users": [0, 1], "valid_ndcg": line["ndcg"]} for line in cells(ranks)]
    (tmp_path / "toy").mkdir()
    write_results(pl.DataFrame({"users": [1, 9]}), tmp_path / "toy" / TARGETS)
    text = rendered(tmp_path, lines)
    assert "| llm4dsr | 1.0000 (+0 %) | 0.5000 (+0 %) |" in text
    assert "Best on validation, of none and ours: none (NDCG@20 0.7500, none 0.7500)" in text


def test_a_robust_recommender_alone_has_a_table_and_is_no_baseline(tmp_path):
    lines = cells({"none": [[3, 3]]})
    robust = [line | {"backbone": "fmlprec", "ndcg": 0.9} for line in lines]
    assert "### fmlprec, NDCG@20" in rendered(tmp_path, robust)
    text = rendered(tmp_path, [*lines, *cells({"llm4dsr": [[1, 3]]}), *robust])
    assert "(fmlprec itself) |" in text
    assert "### fmlprec" not in text
    assert "best baseline" not in text


def test_a_baseline_that_rewrites_histories_drops_nothing(tmp_path):
    text = rendered(tmp_path, cells({"none": [[3, 3]], "llm4dsr (drop 5 %)": [[1, 3]], "steam": [[1, 1]]}))
    assert "against none" in text
    assert "the best baseline that drops" not in text


def test_seeds_that_only_some_runs_have_are_not_compared(tmp_path):
    """Cells may have been made with three seeds of the recommender for one denoiser, and with one for another."""
    made = [("none", None, 0), ("none", None, 1), ("llm4dsr", 0, 0), ("llm4dsr", 0, 1), ("llm4dsr", 1, 0)]
    ranks = {"none": [[3, 3]], "llm4dsr": [[1, 3]]}
    lines = [cells({name: ranks[name]})[0] | {"denoiser_seed": run, "seed": seed} for name, run, seed in made]
    assert "llm4dsr against none: +50.0 ± " in rendered(tmp_path, lines)


def test_results_are_shown_at_the_k_that_they_were_computed_at(tmp_path):
    line = LINE | {"denoiser": "none", "seed": 0, "ndcg": 0.5, "k": 20, "ranks": [3]}
    assert "NDCG@20" in rendered(tmp_path, [line])
    with pytest.raises(ConfigError, match="results at k = 20, not 10"):
        rendered(tmp_path, [line], 10)
