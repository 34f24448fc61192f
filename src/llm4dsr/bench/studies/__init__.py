"""Studies that a user of the method should see before trusting it; `llm4dsr study NAME` runs one.

Each module has a QUESTION and a function `study`; study.py has what they share.
"""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = ("task", "uncertainty", "grounding", "threshold", "noise", "upper_bound", "transfer", "ablations", "cost")


def module(name: str) -> ModuleType:
    """Import the module of a study."""
    return importlib.import_module(f"llm4dsr.bench.studies.{name}")
