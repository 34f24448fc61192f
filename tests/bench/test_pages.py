"""Pages that the benchmarks compute."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def beside_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_the_page_of_ratios_is_that_of_the_committed_results():
    import ratios

    assert (BENCHMARKS / "results/ratios/README.md").read_text(encoding="utf-8") == ratios.page()


def test_costs_of_a_size_have_times_memory_and_prices(tiny_demo, monkeypatch):
    import costs

    monkeypatch.setattr(costs, "SIZES", [10_000])
    (found,) = costs.costs(tiny_demo, 2_000)
    assert found["core seconds"].keys() == set(costs.STAGES)
    assert 0 < found["with a GPU"] < sum(found["core seconds"].values())
    assert "| 10,000 | " in costs.page([found], "a laptop")
    assert costs.priced(7200, 4.0) == "2.0 h, $8.00"
