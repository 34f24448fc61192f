"""The prefix tree over all titles of a catalogue, as arrays: small in memory, and read by a device in one step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm4dsr.core.arrays import IntArray, ranges
from llm4dsr.errors import DataError

Small = npt.NDArray[np.int32]


class CatalogueTree:
    """Prefix tree over all titles of a catalogue.

    Nodes are numbered level by level, and in order of their tokens. So the children of a node are neighbors, and the
    titles below a node are neighbors in `order`. Rows with the same tokens share a path, which ends at the first row.

    Parameters
    ----------
    titles : sequence of sequence of int
        Tokens of each title, by catalogue row.
    canonical : sequence of int, optional
        The first row with the same title, by catalogue row. Default: titles are the same if their tokens are.

    Attributes
    ----------
    tokens : array of int
        [M] the token that leads to each node; that of the root means nothing.
    children : array of int
        [M + 1] the children of node n are `children[n]` to `children[n + 1] - 1`.
    leaves : array of int
        [M] titles below each node.
    first : array of int
        [M] the first of them, as a place in `order`.
    order : array of int
        [T] the rows of different titles, in order of their tokens.

    Raises
    ------
    DataError
        If a title has no tokens.
    """

    def __init__(self, titles: Sequence[Sequence[int]], canonical: Sequence[int] | None = None) -> None:
        self.titles = [title if isinstance(title, list) else [int(t) for t in title] for title in titles]
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        self._canonical = np.arange(len(titles)) if canonical is None else np.asarray(canonical, dtype=np.int64)
        rows = sorted(np.unique(self._canonical).tolist(), key=self.titles.__getitem__)
        order, sizes = np.array(rows, dtype=np.int64), np.array([len(self.titles[row]) for row in rows], dtype=np.int64)
        if not sizes.all():
            raise DataError(f"Title {rows[int(sizes.argmin())]} has no tokens; expected at least one for each title.")
        flat = np.fromiter(chain.from_iterable(self.titles[row] for row in rows), np.int32, int(sizes.sum()))
        starts = np.cumsum(sizes) - sizes
        shared = _shared(flat, starts, sizes)
        differs = shared < sizes  # else it has the tokens of the title before it
        self._place = np.full(len(titles), -1)
        self._place[order] = np.cumsum(differs) - 1  # of each row's title in `order`
        self.order, starts, sizes, shared = order[differs], starts[differs], sizes[differs], shared[differs]
        self._sizes = np.append(sizes, -1)  # the last stands for no title

        place = np.repeat(np.arange(len(sizes)), sizes - shared)  # the first title of each node but the root
        depths = ranges(shared + 1, sizes - shared)
        by_level = np.argsort(depths.astype(np.uint16), kind="stable")  # radix sort
        tokens = flat[np.repeat(starts, sizes - shared) + depths - 1]
        self.tokens = np.append(np.int32(0), tokens[by_level])
        self.first = np.append(0, place[by_level]).astype(np.int32)
        self._levels = np.append(0, np.cumsum(np.bincount(depths, minlength=1)) + 1)  # where each level begins
        nodes = len(self.tokens)
        self.leaves = np.zeros(nodes, np.int32)
        for depth in range(1, self.depth + 1):
            self.leaves[self._above(np.flatnonzero(sizes == depth), depth)] += 1
        parents = [self._above(self.first[self._level(d)], d - 1) for d in range(1, self.depth + 1)]
        for level in range(self.depth, 0, -1):
            np.add.at(self.leaves, parents[level - 1], self.leaves[self._level(level)])
        counts = np.bincount(np.concatenate([np.empty(0, np.int64), *parents]), minlength=nodes)
        self.children = np.append(1, 1 + np.cumsum(counts)).astype(np.int32)

    @property
    def depth(self) -> int:
        """Tokens of the longest title."""
        return len(self._levels) - 2

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, children and leaves on a device, where they stay."""
        if device not in self._on:
            self._on[device] = tuple(  # type: ignore[assignment]
                torch.from_numpy(part).to(device) for part in (self.tokens, self.children, self.leaves)
            )
        return self._on[device]

    def _level(self, depth: int) -> slice:
        return slice(int(self._levels[depth]), int(self._levels[depth + 1]))

    def _above(self, places: npt.NDArray[np.integer], depth: int) -> IntArray:
        """The node of a depth above titles, by their place in `order`; they have as many tokens at least."""
        level = self._level(depth)
        return np.asarray(level.start + np.searchsorted(self.first[level], places, side="right") - 1)

    def places(self, rows: Sequence[int]) -> IntArray:
        """Return the different titles of rows, as places in `order`."""
        return np.unique(self._place[self._canonical[np.asarray(rows, dtype=np.int64)]])

    def above(self, places: IntArray, depth: int) -> IntArray:
        """Return the node of a depth above titles, by their place in `order` (any shape); -1 where they are shorter."""
        reach = self._sizes[places] >= depth  # a place of -1 is no title
        out = np.full(places.shape, -1)
        out[reach] = self._above(places[reach], depth)
        return out

    def row(self, tokens: Sequence[int]) -> int:
        """Return the canonical row whose title these tokens are, or -1."""
        node = 0
        for token in tokens:
            first, end = self.children[node], self.children[node + 1]
            node = int(first + np.searchsorted(self.tokens[first:end], token))
            if node == end or self.tokens[node] != token:
                return -1
        title = int(self.first[node])  # a title sorts before those that go on after it
        return int(self.order[title]) if len(tokens) == self._sizes[title] else -1

    def last(self, node: int, excluded: IntArray) -> int:
        """Return the row of a title below a node: the first that is not excluded, or -1.

        Parameters
        ----------
        node : int
            The root, or a node with titles that are not excluded.
        excluded : array of int
            Titles, as places in `order`.
        """
        below = np.arange(self.leaves[node]) + self.first[node]
        if len(below) > 1 or node == 0:
            below = np.setdiff1d(below, excluded)
        return int(self.order[below[0]]) if len(below) else -1


def _shared(flat: Small, starts: IntArray, sizes: IntArray) -> IntArray:
    """[T] how many leading tokens each title shares with the one before it."""
    out = np.zeros(len(sizes), np.int64)
    at, depth = np.arange(1, len(sizes)), 0
    while len(at):
        at = at[np.minimum(sizes[at], sizes[at - 1]) > depth]
        at = at[flat[starts[at] + depth] == flat[starts[at - 1] + depth]]
        depth += 1
        out[at] = depth
    return out
