"""Titles alone: an item whose title differs from the other titles of its window is suspicious."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np

from llm4dsr.bench.baselines.baseline import Baseline
from llm4dsr.bench.baselines.window_similarity import in_parts, suspicion
from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.data.catalogue import WORD, Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.features.title_vectors import title_vectors


class TfidfOutlier(Baseline):
    """Score interactions by 1 - mean cosine of the TF-IDF vectors of titles.

    Synonyms are not matched: `locomotive` and `railway` have cosine 0. No training windows are needed.

    Parameters
    ----------
    over : {"words", "characters"}
        Words, or 3 to 5 characters.
    nearest : int
        Average over this many most similar items of the window; 0 = all.

    References
    ----------
    Salton and Buckley (1988).
    """

    name: ClassVar[str] = "tfidf"
    is_seeded: ClassVar[bool] = False
    source: ClassVar[str] = "Salton and Buckley (1988), Information Processing & Management 24(5); scikit-learn"
    grid: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"over": over, "nearest": nearest} for over in ("words", "characters") for nearest in (0, 3)
    )

    def __init__(
        self, catalogue: Catalogue, seed: int, over: Literal["words", "characters"] = "words", nearest: int = 0
    ) -> None:
        super().__init__(catalogue, seed)
        self.over, self.nearest = over, nearest

    def fit(self, train: Windows, valid: Windows) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        how: dict[str, Any] = {"token_pattern": WORD} if self.over == "words" else {}
        if self.over == "characters":
            how = {"analyzer": "char_wb", "ngram_range": (3, 5)}
        self.vectors = TfidfVectorizer(sublinear_tf=True, **how).fit_transform(self.catalogue.titles)  # [N, V] length 1

    def score(self, windows: Windows) -> FloatArray:
        def cosine(left: IntArray, right: IntArray) -> FloatArray:
            return np.asarray(self.vectors[left].multiply(self.vectors[right]).sum(axis=1), dtype=np.float64).ravel()

        return 1 + in_parts(
            windows, lambda part: suspicion(_similarities(part, cosine), part.present, self.nearest, 1.0)
        )


class SentenceOutlier(Baseline):
    """Score interactions by 1 - mean cosine of sentence embeddings of the titles (all-MiniLM-L6-v2).

    Needs the extra llm4dsr[minilm]; without it `fit` raises ModelError. The encoder was trained on web text: related
    things are similar even without a shared word, but so are unrelated things with similar wording.

    Parameters
    ----------
    nearest : int
        As in TfidfOutlier.

    References
    ----------
    Reimers and Gurevych (2019), arXiv 1908.10084.
    """

    name: ClassVar[str] = "sentence"
    is_seeded: ClassVar[bool] = False
    source: ClassVar[str] = "Reimers and Gurevych (2019), arXiv 1908.10084; all-MiniLM-L6-v2"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"nearest": 0}, {"nearest": 3})

    def __init__(self, catalogue: Catalogue, seed: int, nearest: int = 0) -> None:
        super().__init__(catalogue, seed)
        self.nearest = nearest

    def fit(self, train: Windows, valid: Windows) -> None:
        vectors = title_vectors(self.catalogue.titles, train, "minilm", 0, self.seed)
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # [N, 384]

    def score(self, windows: Windows) -> FloatArray:
        def cosine(left: IntArray, right: IntArray) -> FloatArray:
            return np.asarray((self.vectors[left] * self.vectors[right]).sum(axis=1), dtype=np.float64)

        return 1 + in_parts(
            windows, lambda part: suspicion(_similarities(part, cosine), part.present, self.nearest, 1.0)
        )


def _similarities(windows: Windows, cosine: Callable[[IntArray, IntArray], FloatArray]) -> FloatArray:
    """[W, L, L] the cosine of every two items of a window; 0 where either is missing. Each pair is compared once."""
    items, width = windows.item_matrix, windows.width
    left, right = np.triu_indices(width, 1)
    window, pair = np.nonzero(right[None, :] < windows.lengths[:, None])
    left, right = left[pair], right[pair]
    first, second = items[window, left], items[window, right]
    size = int(items.max(initial=0)) + 1
    keys, at = np.unique(np.minimum(first, second) * size + np.maximum(first, second), return_inverse=True)
    values = np.empty(len(keys))
    for some in np.array_split(np.arange(len(keys)), len(keys) // 50_000 + 1):
        values[some] = cosine(keys[some] // size, keys[some] % size)
    out = np.zeros((len(windows), width, width))
    out[window, left, right] = out[window, right, left] = values[at]
    return out
