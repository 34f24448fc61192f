"""Runs: the stages, each reading from and writing to a run folder, so that each can be run and inspected alone."""

from llm4dsr.pipeline.inputs import origin
from llm4dsr.pipeline.run_folder import CARD, CONFIG, FOLDERS, REPORT, STAGES, WORK
from llm4dsr.pipeline.stages import BY_TARGET, TRIED, Run

__all__ = ["BY_TARGET", "CARD", "CONFIG", "FOLDERS", "REPORT", "STAGES", "TRIED", "WORK", "Run", "origin"]
