"""Leaks between the training data and an evaluation set: queries and positives that are in both, or nearly so."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.data.texts import Texts
from hardneg.diagnostics.estimates import LISTED, Estimate, Measurements, names_of, sampled
from hardneg.diagnostics.measures.copies import shingles_of, words_of
from hardneg.diagnostics.subject import Subject
from hardneg.storage.arrays import Int

_EVALUATED = 5_000  # the largest number of evaluation queries, and of their positives, that are looked up

_TRAINED = (
    200_000  # the largest number of training queries, and of positives, that they are looked up in for near copies
)

_SHINGLE = 3  # words in a row that are hashed at once

_HASHES = 12  # the smallest hashes of a text's shingles, by which it is looked up

_HOLDERS = 40  # texts with the same hash that are compared; a shingle of more says nothing

_COMPARED = 50  # texts that share enough hashes with another, and are compared with it

_NEAR = 0.7  # Jaccard similarity of the shingles from which a text is a near copy


def leaks(subject: Subject, evaluation: Pairs, rng: np.random.Generator) -> Measurements:
    """Look for the queries and positives of an evaluation set in the training data.

    Equal texts (folded: Unicode form, case, white space) are found among all. Near copies are texts of which the sets of 3-word
    shingles have a Jaccard similarity of 0.7 or more (Broder 1997); they are looked up by their 12 smallest hashes, and each found
    pair is compared exactly. At most 5,000 evaluation queries and positives, drawn at random, are looked up among at most
    200,000 training texts of each kind.

    The numbers are shares of the evaluation set:

    - `leaked_queries`: queries that are, or nearly are, a training query. `leaked_queries_equal`: with an equal text.
    - `leaked_positives`: positives that are, or nearly are, a positive of training. Where both sets share a corpus, a document may
      be a positive in both without a leak; `leaked_positives_equal`: with an equal text.
    - `leaked_pairs`: queries that leak together with one of their positives: their answer was trained on.
    - `evaluation_queries`: the number of queries with positives in the evaluation set; `leak_sample`: how many were looked up.

    The ids `leaked_training_ids` and `leaked_training_pair_ids` are those of training queries, one for each leaking query that
    was looked up; the others are of the evaluation set, the first ones.
    """
    pairs = subject.pairs
    with_positives = np.flatnonzero(evaluation.positives.lengths > 0)
    rows = with_positives[sampled(len(with_positives), _EVALUATED, rng)]
    if len(rows) == 0:
        return Measurements({"evaluation_queries": 0, "leak_sample": 0})
    asked = Lookup(pairs.queries, np.arange(len(pairs)), pairs.query_keys, rng)
    trained = np.unique(pairs.positives.values)
    given = Lookup(pairs.documents, trained, pairs.document_keys[trained], rng)
    equal_q, near_q, same = asked.find(evaluation.queries, rows, evaluation.query_keys[rows])
    positives = evaluation.positives.take(rows)
    documents = np.unique(positives.values)
    documents = documents[sampled(len(documents), _EVALUATED, rng)]
    equal_d, near_d, _ = given.find(evaluation.documents, documents, evaluation.document_keys[documents])
    leaking = documents[equal_d | near_d]
    answers = np.zeros(len(rows), bool)
    answers[positives.row_numbers()[np.isin(positives.values, leaking)]] = True
    queries, whole = equal_q | near_q, len(with_positives)
    numbers = {
        "leaked_queries": Estimate.share_of(queries, whole),
        "leaked_queries_equal": Estimate.share_of(equal_q, whole),
        "leaked_positives": Estimate.share_of(equal_d | near_d, len(np.unique(evaluation.positives.values))),
        "leaked_positives_equal": Estimate.share_of(equal_d, len(np.unique(evaluation.positives.values))),
        "leaked_pairs": Estimate.share_of(queries & answers, whole),
        "evaluation_queries": whole,
        "leak_sample": len(rows),
    }
    return Measurements(
        numbers,
        {
            "leaked_query_ids": names_of(evaluation.query_ids, rows[queries][:LISTED]),
            "leaked_document_ids": names_of(evaluation.document_ids, leaking[:LISTED]),
            "leaked_pair_ids": names_of(evaluation.query_ids, rows[queries & answers][:LISTED]),
            "leaked_training_ids": names_of(pairs.query_ids, same[queries]),
            "leaked_training_pair_ids": names_of(pairs.query_ids, same[queries & answers]),
        },
    )


Found = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]


class Lookup:
    """Texts that can be looked up by equal and by nearly equal text.

    Args:
        texts: the texts.
        rows: int64 `[n]`, those to look up in.
        keys: int64 `[n]`, their keys (see `text_key`).
        rng: draws `_TRAINED` of them, if there are more, for near copies.
    """

    def __init__(self, texts: Texts, rows: NDArray[np.integer], keys: Int, rng: np.random.Generator) -> None:
        self.keys, first = np.unique(keys[keys != 0], return_index=True)
        self.rows_of_keys = np.asarray(rows)[keys != 0][first]
        rows = rows[sampled(len(rows), _TRAINED, rng)]
        self.texts, self.rows = texts, rows
        hashes, owners = [], []
        for start in range(0, len(rows), 4096):
            block = rows[start : start + 4096]
            for row, text in zip(block, texts.take(block), strict=True):
                least = smallest_hashes(text)
                hashes.append(least)
                owners.append(np.full(len(least), row, np.int64))
        found = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        order = np.argsort(found, kind="stable")
        self.hashes = found[order]
        self.owners = (np.concatenate(owners) if owners else np.empty(0, np.int64))[order]

    def find(self, texts: Texts, rows: NDArray[np.integer], keys: Int) -> Found:
        """Look texts up.

        Args:
            texts: the texts; rows: int64 `[m]`, those to find; keys: int64 `[m]`, their keys.

        Returns:
            (bool `[m]`, there is an equal text; bool `[m]`, there is a near copy, but no equal text; int64 `[m]`, the row of one such
            text, -1 where there is none).
        """
        equal = np.isin(keys, self.keys) & (keys != 0)
        match = np.full(len(rows), -1)
        if len(self.keys):
            match[equal] = self.rows_of_keys[np.searchsorted(self.keys, keys[equal])]
        for start in range(0, len(rows), 4096):
            block = np.arange(start, min(start + 4096, len(rows)))
            for i, text in zip(block, texts.take(np.asarray(rows)[block]), strict=True):
                if not equal[i]:
                    match[i] = self._near(text)
        return equal, (match >= 0) & ~equal, match

    def _near(self, text: str) -> int:
        """The row of a near copy; -1 if there is none."""
        least = smallest_hashes(text)
        first, last = np.searchsorted(self.hashes, least, "left"), np.searchsorted(self.hashes, least, "right")
        few = last - first <= _HOLDERS
        owners = [self.owners[a:b] for a, b in zip(first[few], last[few], strict=True)]
        candidates, shared = np.unique(np.concatenate(owners) if owners else np.empty(0, np.int64), return_counts=True)
        # Near copies share 0.7 of their smallest hashes, give or take: those that share a third are compared.
        candidates = candidates[shared >= max(1, -(-len(owners) // 3))][:_COMPARED]
        if len(candidates) == 0:
            return -1
        mine, others = _shingles(text), self.texts.take(candidates)
        near = (row for row, other in zip(candidates, others, strict=True) if _jaccard(mine, _shingles(other)) >= _NEAR)
        return int(next(near, -1))


def smallest_hashes(text: str) -> NDArray[np.uint64]:
    """uint64: the 12 smallest hashes of the shingles of a text (bottom-k sketch, Broder 1997); fewer for a short text.

    >>> a, b = smallest_hashes("How do I bake bread at home?"), smallest_hashes("how do i bake bread at home")
    >>> len(a), bool((a == b).all())
    (5, True)
    """
    codes = [
        int.from_bytes(blake2b(each.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        for each in _shingles(text)
    ]
    return np.array(sorted(codes)[:_HASHES], np.uint64)


def _shingles(text: str) -> set[str]:
    return shingles_of(words_of(text), _SHINGLE)


def _jaccard(a: set[str], b: set[str]) -> float:
    union = len(a | b)
    return len(a & b) / union if union else 0.0
