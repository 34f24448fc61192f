"""Benchmark: baselines, datasets, cells and tables, and studies of the method."""
