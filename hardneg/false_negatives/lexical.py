"""Lexical similarity: words in common, which a dense encoder may overlook."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer

from hardneg.data.pairs import Pairs
from hardneg.data.texts import Texts
from hardneg.storage.arrays import Float

_WORDS = 1 << 20  # number of hash buckets for words

_TEXTS = 8192  # texts hashed at once

_PAIRS = 1 << 18  # pairs compared at once


class Lexical:
    """TF-IDF vectors of all texts of a dataset (sublinear term frequencies, smoothed idf, unit length)."""

    def __init__(self, pairs: Pairs) -> None:
        hasher = HashingVectorizer(n_features=_WORDS, alternate_sign=False, norm=None, dtype=np.float32)
        documents = _hashed(hasher, pairs.documents, len(pairs.document_ids))
        frequencies = np.bincount(documents.indices, minlength=_WORDS)
        idf = (np.log((1 + documents.shape[0]) / (1 + frequencies)) + 1).astype(np.float32)
        self._documents = _weighted(documents, idf)
        self._queries = _weighted(_hashed(hasher, pairs.queries, len(pairs)), idf)

    def with_queries(self, queries: NDArray[np.integer], documents: NDArray[np.integer]) -> Float:
        """float32 `[n, K]`: cosines of these queries with these documents; 0 where the document is -1."""
        return _cosines(self._queries[queries], self._documents, documents)

    def with_documents(self, rows: NDArray[np.integer], documents: NDArray[np.integer]) -> Float:
        """float32 `[n, K]`: cosines of these documents `[n]` with those `[n, K]`; 0 where the document is -1."""
        return _cosines(self._documents[rows], self._documents, documents)


def _hashed(hasher: HashingVectorizer, texts: Texts, total: int) -> sparse.csr_matrix:
    parts = [
        hasher.transform(texts.slice(start, min(start + _TEXTS, total))) for start in range(0, max(total, 1), _TEXTS)
    ]
    return sparse.vstack(parts, format="csr")


def _weighted(counts: sparse.csr_matrix, idf: Float) -> sparse.csr_matrix:
    counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(1), np.float64)).ravel()
    counts.data /= np.repeat(np.maximum(lengths, 1e-12), np.diff(counts.indptr)).astype(np.float32)
    return counts


def _cosines(anchors: sparse.csr_matrix, texts: sparse.csr_matrix, documents: NDArray[np.integer]) -> Float:
    out = np.zeros(documents.shape, np.float32)
    rows, columns = np.nonzero(documents >= 0)
    for start in range(0, len(rows), _PAIRS):
        r, c = rows[start : start + _PAIRS], columns[start : start + _PAIRS]
        out[r, c] = np.asarray(anchors[r].multiply(texts[documents[r, c]]).sum(1)).ravel()
    return out
