"""Lexical similarity: words in common, which a dense encoder may overlook."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer

from hardneg.data.pairs import Pairs
from hardneg.data.picture import Picture
from hardneg.data.texts import Texts
from hardneg.storage.arrays import Float

_BUCKETS = 1 << 20  # hash buckets for words; each is one component of a TF-IDF vector

_TEXTS_AT_ONCE = 8192  # texts that are hashed in one call

_PAIRS_AT_ONCE = 1 << 18  # (text, document) pairs that are compared at once


class Lexical:
    """The TF-IDF vectors of all queries and documents of a dataset.

    Term frequencies are sublinear (1 + log), the idf is smoothed, and every vector has unit length.
    """

    def __init__(self, pairs: Pairs) -> None:
        hasher = HashingVectorizer(n_features=_BUCKETS, alternate_sign=False, norm=None, dtype=np.float32)
        documents = _hashed(hasher, pairs.documents, len(pairs.document_ids))
        frequencies = np.bincount(documents.indices, minlength=_BUCKETS)
        idf = (np.log((1 + documents.shape[0]) / (1 + frequencies)) + 1).astype(np.float32)
        self._documents = _weighted(documents, idf)
        self._queries = _weighted(_hashed(hasher, pairs.queries, len(pairs)), idf)

    def with_queries(self, queries: NDArray[np.integer], documents: NDArray[np.integer]) -> Float:
        """TF-IDF cosines of queries and documents.

        Args:
            queries: int `[n]`, rows of the dataset's queries.
            documents: int `[n, K]`, the documents to compare each query with; -1 for none.

        Returns:
            float32 `[n, K]`, 0 where there is no document.
        """
        return _cosines(self._queries[queries], self._documents, documents)

    def with_documents(self, rows: NDArray[np.integer], documents: NDArray[np.integer]) -> Float:
        """TF-IDF cosines of documents and documents.

        Args:
            rows: int `[n]`, rows of the corpus.
            documents: int `[n, K]`, the documents to compare each of `rows` with; -1 for none.

        Returns:
            float32 `[n, K]`, 0 where there is no document.
        """
        return _cosines(self._documents[rows], self._documents, documents)


def _words(texts: list[str]) -> list[str]:
    """The texts; nothing in place of a picture, whose name says nothing of what is in it, or all of it."""
    return ["" if isinstance(text, Picture) else text for text in texts]


def _hashed(hasher: HashingVectorizer, texts: Texts, total: int) -> sparse.csr_matrix:
    """Word counts of the first `total` texts, as a sparse matrix `[total, _BUCKETS]`."""
    parts = [
        hasher.transform(_words(texts.slice(start, min(start + _TEXTS_AT_ONCE, total))))
        for start in range(0, max(total, 1), _TEXTS_AT_ONCE)
    ]
    return sparse.vstack(parts, format="csr")


def _weighted(counts: sparse.csr_matrix, idf: Float) -> sparse.csr_matrix:
    """TF-IDF vectors of unit length. `counts` is changed in place."""
    counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(1), np.float64)).ravel()
    counts.data /= np.repeat(np.maximum(lengths, 1e-12), np.diff(counts.indptr)).astype(np.float32)
    return counts


def _cosines(anchors: sparse.csr_matrix, texts: sparse.csr_matrix, documents: NDArray[np.integer]) -> Float:
    """float32 `[n, K]`: inner products of the vectors `anchors` `[n]` with those of the documents `[n, K]`."""
    out = np.zeros(documents.shape, np.float32)
    rows, columns = np.nonzero(documents >= 0)
    for start in range(0, len(rows), _PAIRS_AT_ONCE):
        r, c = rows[start : start + _PAIRS_AT_ONCE], columns[start : start + _PAIRS_AT_ONCE]
        out[r, c] = np.asarray(anchors[r].multiply(texts[documents[r, c]]).sum(1)).ravel()
    return out
