"""Find and repair the interactions in a user's history that do not belong there, with a language model.

The method is LLM4DSR (arXiv 2408.08208). Start with `Denoiser`, or with the command `llm4dsr demo`.
"""

from typing import TYPE_CHECKING, Any

from llm4dsr.config import Config
from llm4dsr.errors import LLM4DSRError

if TYPE_CHECKING:
    from llm4dsr.denoiser import Denoiser

__version__ = "0.1.0"

__all__ = ["Config", "Denoiser", "LLM4DSRError", "__version__"]


def __getattr__(name: str) -> Any:
    """The denoiser brings torch and transformers along: seconds, which reading and preparing data need not wait for."""
    if name != "Denoiser":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llm4dsr.denoiser import Denoiser

    return Denoiser
