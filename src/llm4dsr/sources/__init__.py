"""Readers of what publishers and users have: each gives a `Source`, a catalogue and a log that streams."""

from llm4dsr.sources.read import read_source
from llm4dsr.sources.source import Source, from_frames

__all__ = ["Source", "from_frames", "read_source"]
