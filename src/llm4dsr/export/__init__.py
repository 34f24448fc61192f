"""Corrected data for the next program: the log as it came, and the formats of RecBole, RecTools, RePlay and others."""

from llm4dsr.export.export import ExportOptions, corrected_windows, export_run
from llm4dsr.export.formats import to_datasets, to_recbole, to_recbole_splits, to_rectools, to_replay
from llm4dsr.export.torch_histories import TorchHistories, to_torch

__all__ = [
    "ExportOptions",
    "TorchHistories",
    "corrected_windows",
    "export_run",
    "to_datasets",
    "to_recbole",
    "to_recbole_splits",
    "to_rectools",
    "to_replay",
    "to_torch",
]
