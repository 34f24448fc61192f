"""The language model: prompts, tokens, batches, loading, scoring trees and checkpoints.

`score_continuations` and `decode_in_catalogue` also take a causal LM of transformers and token ids.
"""

from llm4dsr.lm.catalogue_tree import CatalogueTree
from llm4dsr.lm.continuations import score_continuations
from llm4dsr.lm.decode import decode_in_catalogue

__all__ = ["CatalogueTree", "decode_in_catalogue", "score_continuations"]
