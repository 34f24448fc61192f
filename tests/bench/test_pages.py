"""Pages that the benchmarks compute."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import costs  # noqa: E402
import ratios  # noqa: E402


def test_the_page_of_ratios_is_that_of_the_committed_results():
    assert (BENCHMARKS / "results/ratios/README.md").read_text(encoding="utf-8") == ratios.page()


def test_costs_of_a_size_have_times_memory_and_prices(tiny_demo, monkeypatch):
    monkeypatch.setattr(costs, "SIZES", [10_000])
    (found,) = costs.costs(tiny_demo, 2_000)
    assert found["core seconds"].keys() == set(costs.STAGES)
    assert 0 < found["with a GPU"] < sum(found["core seconds"].values())
    assert "| 10,000 | " in costs.page([found], "a laptop")
    assert costs.priced(7200, 4.0) == "2.0 h, $8.00"
