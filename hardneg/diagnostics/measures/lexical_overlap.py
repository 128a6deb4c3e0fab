"""Whether BM25 finds the same negatives: are they hard, or merely lexical?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hardneg.diagnostics.estimates import Estimate, Measurements, row_means, sampled
from hardneg.diagnostics.measures.words import counted_words
from hardneg.diagnostics.subject import Subject

_QUERIES = 200  # the largest number of queries that are asked

_POOL = 2000  # the largest number of documents that are compared with them, beside their negatives and positives

_CHARACTERS = 1000  # characters at the start of a text whose words are counted

K1, B = 1.2, 0.75  # the usual parameters of BM25


def lexical_overlap(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure how many negatives BM25 would have found as well (Robertson and Zaragoza 2009, k1 = 1.2, b = 0.75).

    At most 200 queries are compared with 2,000 documents drawn at random. The BM25 rank of a document in the whole corpus is
    estimated as 1
    + (documents drawn that score higher) x (documents of the corpus) / (documents drawn); of a corpus of up to 2,000
    documents it is exact. Words are counted in the first 1,000 characters.

    The numbers are:

    - `bm25_also`: the share of a query's negatives whose BM25 rank is at most `bm25_depth`; mean over queries.
    - `bm25_positive`: the same share of the positives.
    - `bm25_above_positive`: the share of a query's negatives that BM25 scores above its (best) positive.
    - `bm25_depth`: the depth of the run's search, or for a large corpus the least rank that the documents drawn can tell (ten of
      them higher); `bm25_pool`: the number of documents drawn.
    """
    pairs, out = subject.pairs, Measurements()
    rows = np.flatnonzero((subject.counts > 0) & (pairs.positives.lengths > 0))
    total = len(pairs.document_ids)
    if len(rows) == 0 or total < 20 or pairs.documents.pictures or pairs.queries.pictures:
        return out  # the name of a picture says nothing of what is in it
    rows = rows[sampled(len(rows), _QUERIES, rng)]
    pool = sampled(total, _POOL, rng)
    positives = pairs.positives.take(rows).padded()
    negatives = subject.documents[rows]
    every = np.union1d(np.union1d(pool, negatives[negatives >= 0]), positives[positives >= 0])
    in_pool = np.isin(every, pool)
    scores = bm25(pairs.queries.take(rows), pairs.documents.take(every), in_pool)
    if scores is None:
        return out
    depth = max(int(subject.info["resolved"]["depth"]), -(-10 * total // len(pool)) if len(pool) < total else 1)
    rivals = scores.copy()
    for i in range(len(rows)):
        rivals[
            i, np.searchsorted(every, positives[i][positives[i] >= 0])
        ] = -np.inf  # a query's positives are no rivals
    ordered = np.sort(rivals[:, in_pool], axis=1)
    own = {}
    for label, documents in (("bm25_also", negatives), ("bm25_positive", positives)):
        place = np.searchsorted(every, np.maximum(documents, 0)).clip(max=len(every) - 1)
        own[label] = mine = np.where(documents >= 0, np.take_along_axis(scores, place, 1), np.nan)
        above = [len(line) - np.searchsorted(line, v, "right") for line, v in zip(ordered, mine, strict=True)]
        rank = 1 + np.stack(above) * total / len(pool)
        near = np.where(np.isfinite(mine), (rank <= depth) & (mine > 0), np.nan)
        out.numbers[label] = Estimate.share_of(row_means(near))
    best = np.nanmax(own["bm25_positive"], axis=1)
    mine = own["bm25_also"]
    higher = np.where(np.isfinite(mine), mine > best[:, None], np.nan)
    out.numbers |= {
        "bm25_above_positive": Estimate.share_of(row_means(higher)),
        "bm25_depth": depth,
        "bm25_pool": len(pool),
    }
    return out


def bm25(queries: list[str], documents: list[str], counted: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """BM25 scores.

    Args:
        queries: n texts.
        documents: m texts.
        counted: bool `[m]`, the documents whose words and lengths make the statistics.

    Returns:
        float64 `[n, m]`, the sum over the query's distinct words of idf x tf (k1 + 1) / (tf + k1 (1 - b + b length / mean
        length)), with idf = log(1 + (M - df + 0.5) / (df + 0.5)); None if no document has a word.

    >>> bm25(["red cat"], ["a red cat sat", "a red dog sat", "it rains"], np.ones(3, bool)).round(2).tolist()
    [[1.34, 0.43, 0.0]]
    """
    both, _ = counted_words([*documents, *queries], r"\w+", _CHARACTERS)
    counts, asked = both[: len(documents)], both[len(documents) :]
    asked.data[:] = 1
    lengths = np.asarray(counts.sum(1)).ravel()
    total, mean = int(counted.sum()), float(lengths[counted].mean()) if counted.any() else 0.0
    if mean == 0:
        return None
    frequency = np.bincount(counts[np.flatnonzero(counted)].indices, minlength=both.shape[1])
    idf = np.log1p((total - frequency + 0.5) / (frequency + 0.5))
    each = np.repeat(lengths, np.diff(counts.indptr))
    weights = idf[counts.indices] * counts.data * (K1 + 1) / (counts.data + K1 * (1 - B + B * each / mean))
    table = sparse.csr_matrix((weights, counts.indices, counts.indptr), counts.shape)
    scores: NDArray[np.float64] = np.asarray((asked @ table.T).todense(), np.float64)
    return scores
