"""Negatives that are copied from a positive: equal texts, near copies, overlapping chunks, translations."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from hardneg.data.texts import fold
from hardneg.diagnostics.estimates import LISTED, Estimate, Measurements, names_of, row_means, sampled, unit
from hardneg.diagnostics.measures.boilerplate import one_of_each
from hardneg.diagnostics.subject import Subject
from hardneg.storage.arrays import Ragged, members

_QUERIES = 200  # the largest number of queries whose texts are compared

_NEGATIVES = 10  # the first negatives of each query whose texts are compared

_CHARACTERS = 2000  # characters at the start of a text that are compared

_SHINGLE = 5  # words in a row that are compared at once

_NEAR = 0.8  # share of the shorter text's shingles that are also in the other: near copies

_SHARED = 12  # words at the end of one text and the beginning of another that make them overlapping chunks

_COUNTED = 1000  # documents whose shingles are counted

# Share of them, and number, from which a shingle is common: more documents have it than are copies of one another.
_COMMON, _FEWEST_COMMON = 0.05, 10

_SAME_MEANING = 0.9  # cosine from which two texts may mean the same

_FEW_WORDS = 0.1  # share of words in common below which they say it with other words


def copies(subject: Subject, rng: np.random.Generator, among: NDArray[np.int64] | None = None) -> Measurements:
    """Measure how many negatives repeat a positive of their query.

    The numbers are shares of a query's negatives; means over queries. The first is of all queries, the others of the first ten
    negatives of 200 queries and the first 2,000 characters of a text, folded and cut into words.

    - `copied_equal`: the text equals that of a positive or of the query (with or without the title).
    - `copied_near`: at least 0.8 of the 5-word shingles of the shorter text are also in the other (containment, Broder 1997), but the
      texts are not equal. Shingles that a twentieth of the documents have (counted in 1,000 of them) are left out, so that a footer
      that all share makes no copies.
    - `chunk_overlap`: the last 12 words or more of one text are the first of the other: chunks that were cut with an overlap. A
      beginning or an end that a twentieth of the documents have is left out.
    - `translations`: the cosine of negative and positive is above 0.9, but at most a tenth of their words are shared: a translation
      or a paraphrase without a word in common. Needs vectors, of an encoder that knows both languages.

    Of pictures, only the first is measured: their names say nothing of what is in them.

    The ids `copied_queries`, `chunk_queries` and `translation_queries` name queries with such negatives.

    Args:
        subject: the negatives.
        rng: draws the queries whose texts are compared.
        among: int64, the rows of the queries that they are drawn from, whether they have negatives or not, so that two selections are
            measured on the same queries; None: all with negatives.
    """
    out = Measurements()
    pairs = subject.pairs
    known = pairs.known_positives()
    equal = np.zeros(subject.documents.shape, bool)
    for keys in (pairs.document_keys, pairs.body_keys):
        texts = np.where(subject.real, keys[np.maximum(subject.documents, 0)], 0)
        equal |= (members(texts, known.mapped(keys[known.lists.values])) | (texts == pairs.query_keys[:, None])) & (
            texts != 0
        )
    per_query = row_means(np.where(subject.real, equal, np.nan))
    out.numbers["copied_equal"] = Estimate.share_of(per_query, int(np.isfinite(per_query).sum()))
    out.ids["copied_queries"] = _most(subject, np.arange(len(per_query)), per_query)
    rows = np.flatnonzero(subject.counts > 0) if among is None else np.sort(among)
    rows = rows[pairs.positives.lengths[rows] > 0]
    rows = rows[sampled(len(rows), _QUERIES, rng)]
    if len(rows) and not pairs.documents.pictures:
        _compared(subject, rows, equal[rows, :_NEGATIVES], _common(subject, rng), out)
    return out


def _common(subject: Subject, rng: np.random.Generator) -> set[str]:
    """The shingles that many documents have, whatever they are about."""
    pairs = subject.pairs
    rows, _ = one_of_each(pairs.document_keys, _COUNTED, rng)
    times = Counter(shingle for text in pairs.documents.take(rows) for shingle in shingles_of(words_of(text)))
    least = max(_FEWEST_COMMON, _COMMON * len(rows))
    return {shingle for shingle, count in times.items() if count >= least}


def _compared(
    subject: Subject, rows: NDArray[np.int64], equal: NDArray[np.bool_], common: set[str], out: Measurements
) -> None:
    """Compare the texts of the negatives of these queries with those of their positives, without the common shingles."""
    pairs = subject.pairs
    documents = subject.documents[rows, :_NEGATIVES]
    positives = pairs.positives.take(rows)
    wanted = np.union1d(documents[documents >= 0], positives.values)
    words = {
        int(row): text
        for row, text in zip(wanted, map(words_of, pairs.documents.take(wanted)), strict=True)
    }  # fmt: skip
    own = {row: trimmed(each, common) for row, each in words.items()}
    shingles = {row: shingles_of(each) - common for row, each in own.items()}
    cosines = _cosines(subject, documents, positives)
    kinds = {name: np.full(documents.shape, np.nan) for name in ("copied_near", "chunk_overlap", "translations")}
    for i in range(len(rows)):
        mine = positives.values[positives.offsets[i] : positives.offsets[i + 1]].tolist()
        for j in np.flatnonzero(documents[i] >= 0):
            other = int(documents[i, j])
            near = [containment(shingles[other], shingles[each]) >= _NEAR for each in mine]
            chunk = [overlapping(own[other], own[each]) for each in mine]
            foreign = [
                cosines is not None and cosines[i, j] > _SAME_MEANING and in_other_words(words[other], words[each])
                for each in mine
            ]
            kinds["copied_near"][i, j] = any(near) and not equal[i, j]
            kinds["chunk_overlap"][i, j] = any(chunk) and not any(near) and not equal[i, j]
            kinds["translations"][i, j] = any(foreign)
    if cosines is None:
        del kinds["translations"]
    for name, values in kinds.items():
        per_query = row_means(values)
        out.numbers[name] = Estimate.share_of(per_query)
        label = {"copied_near": "near_copied", "chunk_overlap": "chunk", "translations": "translation"}[name]
        out.ids[f"{label}_queries"] = _most(subject, rows, per_query)


def _cosines(subject: Subject, documents: NDArray[np.int32], positives: Ragged) -> NDArray[np.floating] | None:
    """float `[n, K]`: the cosine of each negative and the first positive of its query; None without vectors."""
    if subject.vectors is None:
        return None
    flat = unit(subject.vectors[1], np.maximum(documents, 0).ravel()).reshape(*documents.shape, -1)
    first = unit(subject.vectors[1], positives.values[positives.offsets[:-1]])
    cosines: NDArray[np.floating] = np.einsum("bd,bkd->bk", first, flat)
    return cosines


def _most(subject: Subject, rows: NDArray[np.int64], per_query: NDArray[np.float64]) -> list[str]:
    """Ids of the queries with the largest shares above 0."""
    shares = np.nan_to_num(per_query)
    order = np.argsort(-shares, kind="stable")[:LISTED]
    return names_of(subject.pairs.query_ids, rows[order[shares[order] > 0]])


def words_of(text: str, most: int | None = _CHARACTERS) -> list[str]:
    """The words in the first `most` characters of a text (None: in all), folded: runs of letters and digits.

    >>> words_of("Ein Wort, zwei  WORTE.")
    ['ein', 'wort', 'zwei', 'worte']
    """
    return re.findall(r"\w+", fold(text[:most]))


def shingles_of(words: list[str], length: int = _SHINGLE) -> set[str]:
    """All runs of so many words; of a shorter text, all of it; nothing of an empty one."""
    if not words:
        return set()
    return {" ".join(words[i : i + length]) for i in range(max(1, len(words) - length + 1))}


def trimmed(words: list[str], common: set[str]) -> list[str]:
    """The words without a beginning and an end that are made of common shingles.

    >>> trimmed("my card was lost all rights are reserved by us".split(), {"all rights are reserved by", "rights are reserved by us"})
    ['my', 'card', 'was', 'lost']
    """
    if not common:
        return words
    many = [" ".join(words[i : i + _SHINGLE]) in common for i in range(len(words) - _SHINGLE + 1)]
    first, last = 0, len(words)
    if many and many[0]:
        first = _SHINGLE - 1 + (many.index(False) if False in many else len(many))
    if many and many[-1]:
        last = len(many) - (many[::-1].index(False) if False in many else len(many))
    return words[first:last]


def containment(a: set[str], b: set[str]) -> float:
    """The share of the smaller set that is also in the other; 0 if it is empty.

    >>> containment({"x", "y"}, {"y", "z", "w"})
    0.5
    """
    least = min(len(a), len(b))
    return len(a & b) / least if least else 0.0


def overlapping(a: list[str], b: list[str]) -> bool:
    """Whether one text goes on where the other ends, with at least 12 words in both.

    >>> words = [str(i) for i in range(60)]
    >>> overlapping(words[:40], words[20:]), overlapping(words[:30], words[30:])
    (True, False)
    """
    return _goes_on(a, b) or _goes_on(b, a)


def _goes_on(a: list[str], b: list[str]) -> bool:
    """Whether the end of `a` is the beginning of `b`."""
    head = b[:_SHARED]
    if len(head) < _SHARED:
        return False
    for i in range(len(a) - _SHARED, 0, -1):
        if a[i] == head[0] and a[i : i + _SHARED] == head:
            return a[i:] == b[: len(a) - i]
    return False


def in_other_words(a: list[str], b: list[str]) -> bool:
    """Whether two texts of four or more different words each have at most a tenth of their words in common."""
    one, two = set(a), set(b)
    return min(len(one), len(two)) >= 4 and len(one & two) <= _FEW_WORDS * len(one | two)
