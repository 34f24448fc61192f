"""Log-probabilities of given tokens, from the states before them. Logits of a few states are in memory at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.passes import scored_at_once


@torch.inference_mode()
def token_log_probs(model: NoiseLM, hidden: Tensor, places: IntArray, tokens: IntArray) -> FloatArray:
    """Compute the log-probabilities of tokens.

    Parameters
    ----------
    model : NoiseLM
        The model.
    hidden : Tensor
        [B, T, H] last hidden states.
    places : array of int
        [S] where the token before each stands, as row · T + column.
    tokens : array of int
        [S] the tokens.

    Returns
    -------
    array of float
        [S] log P(token | all up to its place), at most 0.
    """
    read, which = np.unique(places, return_inverse=True)  # several tokens may follow one place
    order = np.argsort(which, kind="stable")
    size = scored_at_once(model.base.get_output_embeddings().weight.shape[0], hidden.device.type != "cpu")
    at, of, wanted = (torch.from_numpy(part).to(hidden.device) for part in (read, which[order], tokens[order]))
    states, found = hidden.flatten(0, 1)[at], list[Tensor]()
    for start in range(0, len(read), size):
        begin, end = np.searchsorted(which[order], [start, start + size])
        logits = model.logits(states[start : start + size])  # [states, vocabulary]
        mine = of[begin:end] - start
        most = logits.amax(-1, keepdim=True)
        chosen = logits[mine, wanted[begin:end]] - most[mine, 0]
        found.append(chosen - logits.sub_(most).exp_().sum(-1).log()[mine])  # log-sum-exp without a copy of all logits
    out = np.empty(len(tokens))
    if found:
        out[order] = torch.cat(found).double().cpu().numpy()
    return out
