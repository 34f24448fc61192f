"""Readers of published data sets and of users' own tables. Each returns a `Source`: a catalogue and a streamed log."""

from llm4dsr.data.sources.read import read_source
from llm4dsr.data.sources.source import Source, from_frames

__all__ = ["Source", "from_frames", "read_source"]
