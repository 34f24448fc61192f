"""STEAM (Lin et al., WWW 2023, arXiv 2303.02297): a bidirectional corrector that keeps, deletes or inserts items.

"A Self-Correcting Sequential Recommender". It is trained on corrupted sequences: random items are inserted (label:
delete), and items are taken out (label of the next item: insert, with the missing items). A second, causal network
generates the items to insert in reverse order, the nearest first, until an end token. Items are known by their ids
only.

Departures from the paper:

- The paper trains corrector and recommender together on one encoder. Here the encoder also learns the recommender's
  task (masked items of the raw window), but the corrected windows are given to the recommenders of the benchmark, as
  for every other row.
- Random items may also follow the last item of a training window, at most one per gap, so that the corrector can flag
  the last item. The last item is never taken out, since predicting it is the recommender's task.
- Items are learned with a sampled softmax. Items of the window are never inserted.
- Training windows are corrected by the corrector that was trained on them.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.bench.baselines.baseline import Baseline
from llm4dsr.bench.baselines.steam_corruption import DELETE, INSERT, KEEP, MOST, corrupt_windows, repair
from llm4dsr.bench.baselines.window_similarity import in_parts
from llm4dsr.core.arrays import PAD, FloatArray, IntArray
from llm4dsr.core.device import seeded
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.recommenders.backbone import INITIAL, Block, Dropout, positions_back
from llm4dsr.recommenders.training import sampled_softmax

SIZE, HEADS, POSITIONS = 64, 2, 64  # width of the vectors, attention heads, positions that are distinguished
NEGATIVES, EPOCHS, PATIENCE = 512, 20, 3
BATCH = 512  # windows that are corrected at once
MASKED = 0.3  # fraction of the items that the recommender's task hides


class Corrector(nn.Module):
    """Both networks. The item table has three more rows: end of insertion, masked item, padding."""

    def __init__(self, n_items: int, dropout: float) -> None:
        super().__init__()
        self.n_items = n_items
        self.items = nn.Embedding(n_items + 3, SIZE, padding_idx=n_items + 2)
        self.positions, self.steps = nn.Embedding(POSITIONS, SIZE), nn.Embedding(MOST + 1, SIZE)
        for table in (self.items, self.positions, self.steps):
            nn.init.normal_(table.weight, std=INITIAL)
        with torch.no_grad():
            self.items.weight[n_items + 2] = 0
        self.blocks = nn.ModuleList(Block(SIZE, HEADS, dropout) for _ in range(2))
        self.generator = Block(SIZE, HEADS, dropout)
        self.norm, self.last_norm, self.dropout = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE), Dropout(dropout)
        self.operation = nn.Linear(SIZE, 3)

    def vectors(self, items: Tensor) -> Tensor:
        """Return item vectors.

        Parameters
        ----------
        items : Tensor
            Any shape.

        Returns
        -------
        Tensor
            [..., d]; zero for PAD.
        """
        out: Tensor = self.items(torch.where(items == PAD, self.n_items + 2, items))
        return out

    def forward(self, items: Tensor) -> Tensor:
        """Encode windows; each state has seen the whole row.

        Parameters
        ----------
        items : Tensor
            [B, L] right-padded.

        Returns
        -------
        Tensor
            [B, L, d].
        """
        seen = items != PAD
        seen[:, 0] = True  # a row without items must look somewhere
        x = self.dropout(self.vectors(items) + self.positions(positions_back(items).clamp(max=POSITIONS - 1)))
        for block in self.blocks:
            x = block(x, seen[:, None, None, :])
        out: Tensor = self.norm(x)
        return out

    def next_inserted(self, states: Tensor, inserted: Tensor) -> Tensor:
        """Return the states that predict the inserted items.

        Parameters
        ----------
        states : Tensor
            [P, d] of the items to insert before.
        inserted : Tensor
            [P, S] items inserted so far, the nearest first.

        Returns
        -------
        Tensor
            [P, S + 1, d]; state s predicts inserted item s, or the end.
        """
        x = torch.cat([states.unsqueeze(1), self.vectors(inserted)], 1) + self.steps.weight[: inserted.shape[1] + 1]
        out: Tensor = self.last_norm(self.generator(x))
        return out

    def operation_loss(self, states: Tensor, items: Tensor, operations: Tensor) -> Tensor:
        """Return the mean cross-entropy of the operations.

        Parameters
        ----------
        states : Tensor
            [B, L, d] of the items.
        items, operations : Tensor
            [B, L] of corrupted windows.

        Returns
        -------
        Tensor
            One number.
        """
        here = items != PAD
        return F.cross_entropy(self.operation(states[here]), operations[here])

    def insertion_loss(self, states: Tensor, items: Tensor, operations: Tensor, gaps: Tensor) -> Tensor:
        """Return the mean loss of the items to insert, and of the ends of the insertions.

        Parameters
        ----------
        states, items, operations
            As in `operation_loss`.
        gaps : Tensor
            [B, L, MOST] items to insert before each item.

        Returns
        -------
        Tensor
            One number; 0 if nothing is to be inserted.
        """
        at = (items != PAD) & (operations == INSERT)
        if not at.any():
            return states.new_zeros(())
        targets = F.pad(gaps[at], (0, 1), value=PAD)  # [P, MOST + 1]
        targets[torch.arange(len(targets)), (targets != PAD).sum(1)] = self.n_items  # the end
        asked = targets != PAD
        return self._item_loss(self.next_inserted(states[at], gaps[at])[asked], targets[asked])

    def masked_loss(self, items: Tensor, operations: Tensor) -> Tensor:
        """Return the mean loss of masked items, in windows without the items that the corruption inserted.

        Parameters
        ----------
        items, operations
            As in `operation_loss`.

        Returns
        -------
        Tensor
            One number.
        """
        raw = items.masked_fill(operations == DELETE, PAD)
        raw = raw.gather(1, torch.argsort((raw == PAD).to(torch.int8), dim=1, stable=True))
        hidden = (raw != PAD) & (torch.rand(raw.shape) < MASKED)
        return self._item_loss(self(raw.masked_fill(hidden, self.n_items + 1))[hidden], raw[hidden])

    def _item_loss(self, guesses: Tensor, targets: Tensor) -> Tensor:
        """Mean sampled softmax of guesses [Q, d] for targets [Q], which are items or the end."""
        others = torch.cat([torch.randint(self.n_items, (NEGATIVES,)), torch.tensor([self.n_items])])
        log_share = torch.full(others.shape, math.log(self.n_items / NEGATIVES))  # a draw stands for many items,
        log_share[-1] = 0.0  # the end for itself
        same = others == targets[:, None]
        losses = sampled_softmax(guesses, self.vectors(targets), self.vectors(others), same, log_share)
        return losses.sum() / max(1, len(targets))

    def insertions(self, states: Tensor, held: Tensor) -> Tensor:
        """Generate the most likely items to insert.

        Parameters
        ----------
        states : Tensor
            [P, d] of the items to insert before.
        held : Tensor
            [P, L] items of the windows, which are never inserted.

        Returns
        -------
        Tensor
            [P, MOST] the nearest first, then PAD.
        """
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


class STEAM(Baseline):
    """Score interactions by the log-odds of deletion, and correct histories with all operations.

    Parameters
    ----------
    deleted, inserted : float
        Probabilities of the corruption; see `corrupt_windows`.
    dropout : float
        In [0, 1).
    learning_rate : float
        Of Adam.
    batch_size : int
        Windows per step.
    """

    name: ClassVar[str] = "steam"
    source: ClassVar[str] = "Lin et al. (2023), WWW, arXiv 2303.02297"
    grid: ClassVar[tuple[dict[str, Any], ...]] = (
        {"inserted": 0.1},
        {"inserted": 0.3},
        {"inserted": 0.1, "dropout": 0.5},
        {"inserted": 0.3, "dropout": 0.5},
    )

    def __init__(
        self,
        catalogue: Catalogue,
        seed: int,
        deleted: float = 0.1,
        inserted: float = 0.1,
        dropout: float = 0.2,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
    ) -> None:
        super().__init__(catalogue, seed)
        self.deleted, self.inserted, self.dropout = deleted, inserted, dropout
        self.learning_rate, self.batch_size = learning_rate, batch_size

    def fit(self, train: Windows, valid: Windows) -> None:
        """Train on freshly corrupted windows in every epoch; keep the epoch with the least loss on corrupted validation
        windows.

        Parameters
        ----------
        train, valid : Windows
            Windows, target included.
        """
        rng = np.random.default_rng(self.seed)
        width = train.width
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
                    now = np.mean([float(model.operation_loss(model(x), x, targets)) for x, targets, _ in held_out])
                waited += 1
                if now < best:
                    best, waited = float(now), 0
                    state = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(state)

    def _batches(self, windows: Windows, width: int, rng: np.random.Generator) -> list[tuple[Tensor, ...]]:
        """Corrupted windows in a random order."""
        whole = corrupt_windows(windows, self.catalogue, self.deleted, self.inserted, width, rng)
        order = rng.permutation(len(windows))
        return list(zip(*(torch.split(torch.from_numpy(part[order]), self.batch_size) for part in whole), strict=True))

    def score(self, windows: Windows) -> FloatArray:
        def score_part(part: Windows) -> FloatArray:
            choices = self.model.operation(self.model(torch.from_numpy(part.item_matrix))).double()
            odds = choices[..., DELETE] - choices[..., [KEEP, INSERT]].logsumexp(-1)
            return np.asarray(odds.numpy())

        with torch.inference_mode():
            return in_parts(windows, score_part)

    def rewrite(self, windows: Windows, has_target: bool) -> Windows:
        """Apply the most likely operation to each item. At least two items of a window stay, the least suspicious ones.

        Parameters
        ----------
        windows : Windows
            The windows.
        has_target : bool
            Only the history is read and corrected, nothing is inserted before the target, and the target stays last.

        Returns
        -------
        Windows
            The newest items of longer results, up to the width of `windows`.
        """
        read = windows.histories() if has_target else windows
        least, scores, targets = 1 if has_target else 2, self.score(read), windows.targets()
        rows = list[list[int]]()
        for at, part in read.batches(BATCH * read.width):
            operations, gaps = self._operations(part.item_matrix)
            suspicion = np.split(scores[at], part.offsets[1:-1])
            for row, length in enumerate(part.lengths):
                here = operations[row, :length]
                surest = np.argsort(suspicion[row], kind="stable")[:least]
                here[surest[here[surest] == DELETE]] = KEEP
                done = repair(part.row(row), here.tolist(), gaps[row, :length].tolist())[-read.width :]
                rows.append([*done, int(targets[len(rows)])] if has_target else done)
        return Windows.from_lists(
            rows, window_ids=windows.window_ids, user_ids=windows.user_ids, timestamps=windows.timestamps
        )

    def _operations(self, items: IntArray) -> tuple[IntArray, IntArray]:
        """Items [B, L] -> (operations [B, L], gaps [B, L, MOST]); no item twice in the gaps of a window."""
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
