"""Checks of a data folder before any work. Errors stop a run; warnings do not."""

from llm4dsr.data.validate.checks import validate
from llm4dsr.data.validate.findings import Finding, Report

__all__ = ["Finding", "Report", "validate"]
