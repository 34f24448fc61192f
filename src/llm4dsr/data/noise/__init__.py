"""Noise with known truth, to measure detection: in arrays (`kinds.py`) and in data folders (`folder.py`)."""

from llm4dsr.data.noise.folder import noise_folder
from llm4dsr.data.noise.kinds import KINDS, Noisy, add_noise, corrupt, same_category, similar_titles

__all__ = ["KINDS", "Noisy", "add_noise", "corrupt", "noise_folder", "same_category", "similar_titles"]
