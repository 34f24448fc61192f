"""Find and repair the interactions in a user's history that do not belong there, with a language model.

The method is LLM4DSR (arXiv 2408.08208). Start with `Denoiser`, or with the command `llm4dsr demo`.
"""

__version__ = "0.1.0"

from llm4dsr.config import Config
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import LLM4DSRError

__all__ = ["Config", "Denoiser", "LLM4DSRError", "__version__"]
