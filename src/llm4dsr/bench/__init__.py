"""The benchmark: every way to denoise × every recommender × seeds, on one suite; finished cells are kept.

suite.py ─▶ denoised.py: scores, decisions, corrected windows ─▶ recommenders ─▶ results.parquet ─▶ tables.py
"""

from llm4dsr.bench.cells import bench
from llm4dsr.bench.suite import Suite, load

__all__ = ["Suite", "bench", "load"]
