"""The public class: fit, score, decide, suggest, explain, correct."""

from llm4dsr.denoiser.denoiser import Denoiser

__all__ = ["Denoiser"]
