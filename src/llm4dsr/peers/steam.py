"""STEAM (Lin et al., "A Self-Correcting Sequential Recommender", WWW 2023, arXiv 2303.02297): a corrector that reads a
sequence both ways and names an operation for each item: keep it, delete it, or insert items before it.

It learns from sequences that are damaged on purpose: random items are put in (their label: delete) and items are taken
out (the label of what then follows: insert, with the items that are gone). A second, causal network names the items to
insert in reverse order, the one next to the item first, until it says that there are no more. Items are known by their
ids only.

Re-implemented from the paper; what differs:

- The paper trains corrector and recommender together, on one encoder. Here the corrector is trained alone: what it
  writes is given to the recommenders of the benchmark, which are then trained as for every other row.
- Random items may also follow the last item of a training window, one at most in each gap, so that the corrector can
  call the last item foreign. The last item is never taken out: to predict it is the recommender's work.
- Inserted items are learnt with a sampled softmax, and no item is inserted that the window already holds.
- Training windows are corrected by the corrector that was trained on them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.catalogue import PAD, Catalogue, FloatArray, IntArray, Windows
from llm4dsr.peers.peer import Peer
from llm4dsr.recommenders.backbone import INITIAL, Block, Dropout, positions_back

KEEP, DELETE, INSERT = 0, 1, 2
MOST = 3  # items inserted before one item, at most
SIZE, HEADS, PLACES = 64, 2, 64  # width of the vectors, attention heads, positions that are told apart
NEGATIVES, BATCH, RATE, EPOCHS, PATIENCE = 512, 256, 1e-3, 20, 3

Damaged = tuple[IntArray, IntArray, IntArray]


def damage(windows: Windows, catalogue: Catalogue, deleted: float, inserted: float, width: int,
           rng: np.random.Generator) -> Damaged:  # fmt: skip
    """(items [W, width], operations [W, width], gaps [W, width, MOST]): the windows damaged, the newest `width` items
    of each, and what puts them right. Padding of items and gaps is PAD.

    deleted, inserted: probability that an item is taken out, and that a random item stands in a gap between items.
    gaps: the items that stood before an item, the nearest first. `repaired` gives back the window, or the end of it
    where the damaged one was longer than `width`.
    """
    items, (rows, length) = windows.items, windows.items.shape
    at = np.arange(length + 1)
    gone = (rng.random(items.shape) < deleted) & (at[:-1] < windows.lengths[:, None] - 1)
    run = np.zeros(rows, dtype=np.int64)
    for place in range(length):  # no more in a row than one insertion can give back
        gone[:, place] &= run < MOST
        run = np.where(gone[:, place], run + 1, 0)
    foreign = rng.integers(len(catalogue), size=(rows, length + 1))
    titles = np.append(catalogue.canonical, PAD)  # row PAD = -1 stays PAD
    own = (titles[foreign][:, :, None] == titles[items][:, None, :]).any(axis=2)
    put = (rng.random(foreign.shape) < inserted) & (at <= windows.lengths[:, None]) & ~own

    all_items = np.full((rows, 2 * length + 1), PAD)  # a gap, the first item, a gap, the second item, ..., a gap
    all_items[:, 0::2], all_items[:, 1::2] = np.where(put, foreign, PAD), np.where(gone, PAD, items)
    all_gaps = np.full((*all_items.shape, MOST), PAD)
    missing = np.ones(items.shape, dtype=bool)
    for back in range(1, min(MOST, length - 1) + 1):
        missing[:, :back] = False
        missing[:, back:] &= gone[:, :-back]
        all_gaps[:, 1 + 2 * back :: 2, back - 1] = np.where(missing[:, back:], items[:, :-back], PAD)
    operations = np.full(all_items.shape, DELETE)
    operations[:, 1::2] = np.where(all_gaps[:, 1::2, 0] == PAD, KEEP, INSERT)

    present = all_items != PAD
    count = present.sum(axis=1, keepdims=True)
    order = np.argsort(~present, axis=1, kind="stable")
    newest = np.maximum(count - width, 0) + np.arange(width)
    order = np.take_along_axis(order, np.minimum(newest, 2 * length), axis=1)
    some = newest < count
    row = np.arange(rows)[:, None]
    return (np.where(some, all_items[row, order], PAD), operations[row, order],
            np.where(some[:, :, None], all_gaps[row, order], PAD))  # fmt: skip


def repaired(items: Sequence[int], operations: Sequence[int], gaps: Sequence[Sequence[int]]) -> list[int]:
    """One sequence after its operations. gaps are read where the operation is INSERT; PAD in them is nothing."""
    out: list[int] = []
    for item, operation, gap in zip(items, operations, gaps, strict=True):
        if operation == INSERT:
            out += [other for other in reversed(gap) if other != PAD]
        if operation != DELETE:
            out.append(item)
    return out


class Corrector(nn.Module):
    """Both networks. The item table has two more rows: the end of an insertion, and padding."""

    def __init__(self, n_items: int, dropout: float) -> None:
        super().__init__()
        self.n_items = n_items
        self.items = nn.Embedding(n_items + 2, SIZE, padding_idx=n_items + 1)
        self.places, self.steps = nn.Embedding(PLACES, SIZE), nn.Embedding(MOST + 1, SIZE)
        for table in (self.items, self.places, self.steps):
            nn.init.normal_(table.weight, std=INITIAL)
        with torch.no_grad():
            self.items.weight[n_items + 1] = 0
        self.blocks = nn.ModuleList(Block(SIZE, HEADS, dropout) for _ in range(2))
        self.generator = Block(SIZE, HEADS, dropout)
        self.norm, self.last_norm, self.dropout = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE), Dropout(dropout)
        self.operation = nn.Linear(SIZE, 3)

    def vectors(self, items: Tensor) -> Tensor:
        """items [...] -> [..., d]; zero for PAD."""
        out: Tensor = self.items(torch.where(items == PAD, self.n_items + 1, items))
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

    def losses(self, items: Tensor, operations: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """(mean loss of the operations, mean loss of the inserted items) of a damaged batch, see `damage`."""
        states, here = self(items), items != PAD
        wrong = F.cross_entropy(self.operation(states[here]), operations[here])
        at = here & (operations == INSERT)
        if not at.any():
            return wrong, wrong.new_zeros(())
        inserted = gaps[at]  # [P, MOST]
        count = (inserted != PAD).sum(1)
        end = torch.full_like(inserted[:, :1], PAD)
        wanted = torch.cat([inserted, end], 1)
        wanted[torch.arange(len(wanted)), count] = self.n_items  # the end
        asked = wanted != PAD
        guesses, wanted = self.next_inserted(states[at], inserted)[asked], wanted[asked]  # [Q, d], [Q]
        others = torch.cat([torch.randint(self.n_items, (NEGATIVES,)), torch.tensor([self.n_items])])
        share = torch.full(others.shape, math.log(self.n_items / NEGATIVES))  # a draw stands for many items
        share[-1] = 0.0
        scores = (guesses @ self.vectors(others).T + share).masked_fill(others == wanted[:, None], -math.inf)
        right = (guesses * self.vectors(wanted)).sum(1)
        return wrong, (torch.cat([right.unsqueeze(1), scores], 1).logsumexp(1) - right).mean()

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

    name: ClassVar[str] = "STEAM"
    source: ClassVar[str] = "Lin et al., WWW 2023, arXiv 2303.02297"
    grid: ClassVar[tuple[dict[str, Any], ...]] = (
        {"inserted": 0.1},
        {"inserted": 0.3},
        {"inserted": 0.1, "dropout": 0.5},
        {"inserted": 0.3, "dropout": 0.5},
    )

    def __init__(self, catalogue: Catalogue, seed: int, deleted: float = 0.1, inserted: float = 0.1,
                 dropout: float = 0.2) -> None:  # fmt: skip
        super().__init__(catalogue, seed)
        self.deleted, self.inserted, self.dropout = deleted, inserted, dropout

    def fit(self, train: Windows, valid: Windows) -> None:
        """Fresh damage in every epoch; the epoch with the least loss on damaged validation windows is taken."""
        rng = np.random.default_rng(self.seed)
        width = train.items.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            self.model = model = Corrector(len(self.catalogue), self.dropout)
            optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
            held_out = self._batches(valid, width, rng)
            best, waited, self.epochs = math.inf, 0, 0
            state = {name: value.clone() for name, value in model.state_dict().items()}
            while self.epochs < EPOCHS and waited < PATIENCE:
                self.epochs += 1
                model.train()
                for batch in self._batches(train, width, rng):
                    optimizer.zero_grad()
                    torch.add(*model.losses(*batch)).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                model.eval()
                with torch.no_grad():
                    loss = float(np.mean([float(model.losses(*batch)[0]) for batch in held_out]))
                waited += 1
                if loss < best:
                    best, waited = loss, 0
                    state = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(state)

    def _batches(self, windows: Windows, width: int, rng: np.random.Generator) -> list[tuple[Tensor, ...]]:
        """Damaged windows in a random order."""
        whole = damage(windows, self.catalogue, self.deleted, self.inserted, width, rng)
        order = rng.permutation(len(windows))
        return list(zip(*(torch.split(torch.from_numpy(part[order]), BATCH) for part in whole), strict=True))

    def score(self, windows: Windows) -> FloatArray:
        out = np.full(windows.items.shape, np.nan)
        with torch.inference_mode():
            for start in range(0, len(windows), BATCH):
                part = slice(start, start + BATCH)
                choices = self.model.operation(self.model(torch.from_numpy(windows.items[part]))).double()
                out[part] = (choices[..., DELETE] - choices[..., [KEEP, INSERT]].logsumexp(-1)).numpy()
        out[~windows.present] = np.nan
        return out

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
            gaps[at] = self.model.insertions(states[at], given[at.nonzero()[:, 0]])
        out = gaps.numpy()
        for row in out[at.any(1).numpy()]:
            flat = row.reshape(-1)
            first = np.zeros(flat.shape, dtype=bool)
            first[np.unique(flat, return_index=True)[1]] = True
            flat[~first] = PAD
        return operations.numpy(), out
