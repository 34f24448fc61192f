"""STEAM (Lin et al., "A Self-Correcting Sequential Recommender", WWW 2023, arXiv 2303.02297): a corrector that reads a
sequence both ways and names an operation for each item: keep it, delete it, or insert items before it.

It learns from sequences that are damaged on purpose: random items are put in (their label: delete) and items are taken
out (the label of what then follows: insert, with the items that are gone). A second, causal network names the items to
insert in reverse order, the one next to the item first, until it says that there are no more. Items are known by their
ids only.

Re-implemented from the paper; what differs:

- The paper trains corrector and recommender together, on one encoder, and recommends with it. Here the encoder learns
  the recommender's task too (masked items of the raw window), but what the corrector writes is given to the
  recommenders of the benchmark, which are then trained as for every other row.
- Random items may also follow the last item of a training window, one at most in each gap, so that the corrector can
  call the last item foreign. The last item is never taken out: to predict it is the recommender's work.
- Items are learnt with a sampled softmax, and none is inserted that the window already holds.
- Training windows are corrected by the corrector that was trained on them.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.batch import seeded
from llm4dsr.catalogue import PAD, Catalogue, FloatArray, IntArray, Windows
from llm4dsr.peers.damage import DELETE, INSERT, KEEP, MOST, damage, repaired
from llm4dsr.peers.peer import Peer
from llm4dsr.peers.similarity import in_parts
from llm4dsr.recommenders.backbone import INITIAL, Block, Dropout, positions_back
from llm4dsr.recommenders.training import sampled_softmax

SIZE, HEADS, PLACES = 64, 2, 64  # width of the vectors, attention heads, positions that are told apart
NEGATIVES, EPOCHS, PATIENCE = 512, 20, 3
BATCH = 512  # windows that are corrected at once
MASKED = 0.3  # share of the items that the recommender's task hides


class Corrector(nn.Module):
    """Both networks. The item table has three more rows: the end of an insertion, a masked item, and padding."""

    def __init__(self, n_items: int, dropout: float) -> None:
        super().__init__()
        self.n_items = n_items
        self.items = nn.Embedding(n_items + 3, SIZE, padding_idx=n_items + 2)
        self.places, self.steps = nn.Embedding(PLACES, SIZE), nn.Embedding(MOST + 1, SIZE)
        for table in (self.items, self.places, self.steps):
            nn.init.normal_(table.weight, std=INITIAL)
        with torch.no_grad():
            self.items.weight[n_items + 2] = 0
        self.blocks = nn.ModuleList(Block(SIZE, HEADS, dropout) for _ in range(2))
        self.generator = Block(SIZE, HEADS, dropout)
        self.norm, self.last_norm, self.dropout = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE), Dropout(dropout)
        self.operation = nn.Linear(SIZE, 3)

    def vectors(self, items: Tensor) -> Tensor:
        """items [...] -> [..., d]; zero for PAD."""
        out: Tensor = self.items(torch.where(items == PAD, self.n_items + 2, items))
        return out

    def forward(self, items: Tensor) -> Tensor:
        """items [B, L], right-padded -> states [B, L, d], each of which has seen the whole row."""
        seen = items != PAD
        seen[:, 0] = True  # a row without items must look somewhere
        x = self.dropout(self.vectors(items) + self.places(positions_back(items).clamp(max=PLACES - 1)))
        for block in self.blocks:
            x = block(x, seen[:, None, None, :])
        out: Tensor = self.norm(x)
        return out

    def next_inserted(self, states: Tensor, inserted: Tensor) -> Tensor:
        """states [P, d] of the items to insert before, inserted [P, S] so far, the nearest first -> [P, S + 1, d]
        states that predict the first inserted item, ..., and what comes after the last."""
        x = torch.cat([states.unsqueeze(1), self.vectors(inserted)], 1) + self.steps.weight[: inserted.shape[1] + 1]
        out: Tensor = self.last_norm(self.generator(x))
        return out

    def operation_loss(self, states: Tensor, items: Tensor, operations: Tensor) -> Tensor:
        """Mean over the items [B, L] of a damaged batch with their states [B, L, d]."""
        here = items != PAD
        return F.cross_entropy(self.operation(states[here]), operations[here])

    def insertion_loss(self, states: Tensor, items: Tensor, operations: Tensor, gaps: Tensor) -> Tensor:
        """Mean over the items to insert, and the ends of the insertions."""
        at = (items != PAD) & (operations == INSERT)
        if not at.any():
            return states.new_zeros(())
        wanted = F.pad(gaps[at], (0, 1), value=PAD)  # [P, MOST + 1]
        wanted[torch.arange(len(wanted)), (wanted != PAD).sum(1)] = self.n_items  # the end
        asked = wanted != PAD
        return self._item_loss(self.next_inserted(states[at], gaps[at])[asked], wanted[asked])

    def masked_loss(self, items: Tensor, operations: Tensor) -> Tensor:
        """Mean over masked items of what is left of a damaged batch without the items that were put in."""
        raw = items.masked_fill(operations == DELETE, PAD)
        raw = raw.gather(1, torch.argsort((raw == PAD).to(torch.int8), dim=1, stable=True))
        hidden = (raw != PAD) & (torch.rand(raw.shape) < MASKED)
        return self._item_loss(self(raw.masked_fill(hidden, self.n_items + 1))[hidden], raw[hidden])

    def _item_loss(self, guesses: Tensor, wanted: Tensor) -> Tensor:
        """guesses [Q, d], wanted [Q] items or the end. Sampled softmax."""
        others = torch.cat([torch.randint(self.n_items, (NEGATIVES,)), torch.tensor([self.n_items])])
        share = torch.full(others.shape, math.log(self.n_items / NEGATIVES))  # a draw stands for many items,
        share[-1] = 0.0  # the end for itself
        same = others == wanted[:, None]
        losses = sampled_softmax(guesses, self.vectors(wanted), self.vectors(others), same, share)
        return losses.sum() / max(1, len(wanted))

    def insertions(self, states: Tensor, held: Tensor) -> Tensor:
        """states [P, d], held [P, L] the windows' items -> [P, MOST] the likeliest items, nearest first, then PAD."""
        inserted = held.new_empty((len(states), 0))
        over = torch.zeros(len(states), dtype=torch.bool)
        for _ in range(MOST):
            scores = self.next_inserted(states, inserted)[:, -1] @ self.items.weight[: self.n_items + 1].T  # [P, N + 1]
            taken = torch.cat([held, inserted], 1)
            scores.scatter_(1, torch.where(taken == PAD, taken[:, :1], taken), -math.inf)
            best = scores.argmax(1)
            over |= best == self.n_items
            inserted = torch.cat([inserted, best.masked_fill(over, PAD).unsqueeze(1)], 1)
        return inserted


class STEAM(Peer):
    """Scores are log-odds of deletion, any real number. deleted, inserted: see `damage`."""

    name: ClassVar[str] = "steam"
    source: ClassVar[str] = "Lin et al. (2023), WWW, arXiv 2303.02297"
    grid: ClassVar[tuple[dict[str, Any], ...]] = (
        {"inserted": 0.1},
        {"inserted": 0.3},
        {"inserted": 0.1, "dropout": 0.5},
        {"inserted": 0.3, "dropout": 0.5},
    )

    def __init__(self, catalogue: Catalogue, seed: int, deleted: float = 0.1, inserted: float = 0.1,
                 dropout: float = 0.2, learning_rate: float = 1e-3, batch_size: int = 256) -> None:  # fmt: skip
        super().__init__(catalogue, seed)
        self.deleted, self.inserted, self.dropout = deleted, inserted, dropout
        self.learning_rate, self.batch_size = learning_rate, batch_size

    def fit(self, train: Windows, valid: Windows) -> None:
        """Fresh damage in every epoch; the epoch with the least loss on damaged validation windows is taken."""
        rng = np.random.default_rng(self.seed)
        width = train.items.shape[1]
        with seeded(self.seed):
            self.model = model = Corrector(len(self.catalogue), self.dropout)
            optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate, fused=True)
            held_out = self._batches(valid, width, rng)
            best, waited, self.epochs = math.inf, 0, 0
            state = {name: value.clone() for name, value in model.state_dict().items()}
            while self.epochs < EPOCHS and waited < PATIENCE:
                self.epochs += 1
                model.train()
                for items, operations, gaps in self._batches(train, width, rng):
                    states = model(items)
                    loss = model.operation_loss(states, items, operations) + model.masked_loss(items, operations)
                    loss = loss + model.insertion_loss(states, items, operations, gaps)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                model.eval()
                with torch.no_grad():
                    now = np.mean([float(model.operation_loss(model(x), x, wanted)) for x, wanted, _ in held_out])
                waited += 1
                if now < best:
                    best, waited = float(now), 0
                    state = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(state)

    def _batches(self, windows: Windows, width: int, rng: np.random.Generator) -> list[tuple[Tensor, ...]]:
        """Damaged windows in a random order."""
        whole = damage(windows, self.catalogue, self.deleted, self.inserted, width, rng)
        order = rng.permutation(len(windows))
        return list(zip(*(torch.split(torch.from_numpy(part[order]), self.batch_size) for part in whole), strict=True))

    def score(self, windows: Windows) -> FloatArray:
        def judge(part: Windows) -> FloatArray:
            choices = self.model.operation(self.model(torch.from_numpy(part.items))).double()
            odds = choices[..., DELETE] - choices[..., [KEEP, INSERT]].logsumexp(-1)
            return np.where(part.present, odds.numpy(), np.nan)

        with torch.inference_mode():
            return in_parts(windows, judge)

    def rewrite(self, windows: Windows, target_fixed: bool) -> Windows:
        """The likeliest operation of each item, done; at least two items of a window stay, the least suspicious.

        target_fixed: the history alone is read and corrected (nothing is learnt from the target, nor inserted before
        it), and the target put back behind it. Of longer results the newest items count, up to the width of `windows`.
        """
        read = windows.histories() if target_fixed else windows
        width, least = read.items.shape[1], 1 if target_fixed else 2
        scores, rows = self.score(read), np.full(windows.items.shape, PAD)
        lengths = np.zeros(len(windows), dtype=np.int64)
        for start in range(0, len(read), BATCH):
            part = slice(start, start + BATCH)
            operations, gaps = self._operations(read.items[part])
            for row, length in enumerate(read.lengths[part], start):
                here = operations[row - start, :length]
                surest = np.argsort(scores[row, :length], kind="stable")[:least]
                here[surest[here[surest] == DELETE]] = KEEP
                done = repaired(read.row(row), here.tolist(), gaps[row - start, :length].tolist())[-width:]
                if target_fixed:
                    done.append(int(windows.items[row, windows.lengths[row] - 1]))
                rows[row, : len(done)], lengths[row] = done, len(done)
        return dataclasses.replace(
            windows, items=rows, lengths=lengths, noise_mask=None, clean_items=None, weights=None
        )

    def _operations(self, items: IntArray) -> tuple[IntArray, IntArray]:
        """items [B, L] -> (operations [B, L], gaps [B, L, MOST]); no item twice in the gaps of a window."""
        given = torch.from_numpy(items)
        with torch.inference_mode():
            states = self.model(given)
            operations = self.model.operation(states).argmax(2)
            at = (operations == INSERT) & (given != PAD)
            gaps = torch.full((*given.shape, MOST), PAD)
            if at.any():
                gaps[at] = self.model.insertions(states[at], given[at.nonzero()[:, 0]])
        out = gaps.numpy()
        for row in np.flatnonzero(at.any(1).numpy()):
            flat = out[row].reshape(-1)  # a view
            first = np.zeros(flat.shape, dtype=bool)
            first[np.unique(flat, return_index=True)[1]] = True
            flat[~first] = PAD
        return operations.numpy(), out
