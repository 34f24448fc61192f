"""The language model: prompts, tokens, batches, loading, scoring trees and checkpoints."""
