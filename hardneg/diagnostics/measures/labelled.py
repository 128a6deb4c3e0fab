"""The labelled pairs themselves: positives without text, one text for many queries, queries that hold their answer or stand in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardneg.data.texts import fold
from hardneg.diagnostics.estimates import LISTED, Estimate, Measurements, names_of, sampled
from hardneg.diagnostics.measures.copies import words_of
from hardneg.diagnostics.subject import Subject

_READ = 5_000  # the largest number of pairs whose texts are read

_WORDS = 4  # of a positive, so that a query that holds them all in a row was not written without it

# Words, or characters, of a query from which it stands in a text by design: names and terms occur in texts that are about them.
_ASKED_WORDS, _ASKED_CHARACTERS = 5, 25

_CHARACTERS = 20_000  # at the start of a text in which its query is looked for

_OTHERS = 10  # the first negatives of a query, of which none may hold it

_FEWEST = 20  # queries: of a few short texts, two have the same vector easily

_ONE = 0.9999  # cosine from which two vectors are one


def labelled(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure what is wrong with pairs whatever their negatives are.

    The numbers are:

    - `empty_positives`: the share of pairs whose positive has no text. Exact, as the next three.
    - `common_positive`: the share of queries that have the most frequent positive, by its text; `common_positive_times`: how many
      times that is as many as the median positive has. Names of classes are frequent, too, but all of them are.
    - `equal_positives`: the share of pairs whose query and positive are the same text (folded: Unicode form, case, white space).
    - `answered_queries`: the share of pairs whose query holds the whole text of its positive, of at least four words, or is equal
      to it: its answer was put into it. On at most 5,000 pairs.
    - `repeated_queries`: the share of pairs whose positive holds the whole query word for word, and more (in its first 20,000
      characters). Queries of fewer than five words and 25 characters do not count, nor do those that one of their first ten negatives
      holds as well. On the same pairs.
    - `one_vector`: the share of queries whose vector is that of their positive (cosine above 0.9999) though their texts differ.
      Of runs of at least 20 queries that compare by cosine.

    The ids `empty_positive_queries`, `common_positives` (documents), `answered_query_ids`, `repeated_query_ids` and
    `one_vector_queries` name them.
    """
    pairs, out = subject.pairs, Measurements()
    queries, documents = pairs.positives.row_numbers(), pairs.positives.values
    if len(documents) == 0:
        return out
    asked, given = pairs.query_keys[queries], pairs.document_keys[documents]
    empty = given == 0
    equal = (asked == given) & ~empty
    out.numbers["empty_positives"] = float(empty.mean())
    out.numbers["equal_positives"] = float(equal.mean())
    out.ids["empty_positive_queries"] = _named(subject, queries[empty])
    _common(subject, queries, documents, out)
    if not pairs.documents.pictures and not pairs.queries.pictures:
        _answered(subject, queries, documents, equal, rng, out)
    if len(pairs) >= _FEWEST and subject.metric == "cosine":
        same = np.zeros(len(pairs), bool)
        same[queries[equal]] = True
        one = (subject.positive > _ONE) & ~same
        out.numbers["one_vector"] = float(one[pairs.positives.lengths > 0].mean())
        out.ids["one_vector_queries"] = _named(subject, np.flatnonzero(one))
    return out


def _named(subject: Subject, rows: NDArray[np.integer]) -> list[str]:
    return names_of(subject.pairs.query_ids, np.unique(rows)[:LISTED])


def _common(subject: Subject, queries: NDArray[np.int64], documents: NDArray[np.int64], out: Measurements) -> None:
    """The text that most queries have as a positive."""
    keys = subject.pairs.document_keys[documents]
    real = np.flatnonzero(keys != 0)
    if len(real) == 0:
        return
    distinct, first, places = np.unique(keys[real], return_index=True, return_inverse=True)
    # A query with several such positives counts once.
    held = np.unique(queries[real] * np.int64(len(distinct)) + places) % len(distinct)
    times = np.bincount(held, minlength=len(distinct))
    most = int(times.argmax())
    out.numbers["common_positive"] = float(times[most] / len(np.unique(queries)))
    out.numbers["common_positive_times"] = float(times[most] / np.median(times))
    out.ids["common_positives"] = names_of(subject.pairs.document_ids, documents[real[first[most]]][None])


def _answered(
    subject: Subject, queries: NDArray[np.int64], documents: NDArray[np.int64], equal: NDArray[np.bool_],
    rng: np.random.Generator, out: Measurements,
) -> None:  # fmt: skip
    """Pairs whose query holds its positive, and those whose positive holds its query."""
    pairs = subject.pairs
    chosen = sampled(len(documents), _READ, rng)
    asked, given = pairs.queries.take(queries[chosen]), pairs.documents.take(documents[chosen])
    holds = np.array([_holds(q, d) for q, d in zip(asked, given, strict=True)], bool) | equal[chosen]
    out.numbers["answered_queries"] = Estimate.share_of(holds.astype(np.float64), len(documents))
    out.ids["answered_query_ids"] = _named(subject, queries[chosen[holds]])
    repeats = np.array([repeats_query(q, d) for q, d in zip(asked, given, strict=True)], bool) & ~holds
    for i in np.flatnonzero(repeats):
        row = int(queries[chosen[i]])
        others = subject.documents[row, :_OTHERS]
        repeats[i] = not any(repeats_query(asked[i], text) for text in pairs.documents.take(others[others >= 0]))
    out.numbers["repeated_queries"] = Estimate.share_of(repeats.astype(np.float64), len(documents))
    out.ids["repeated_query_ids"] = _named(subject, queries[chosen[repeats]])


def _holds(query: str, document: str) -> bool:
    if len(document) > len(query) + 8:  # folding shortens it by little
        return False
    words = fold(document).split()
    return len(words) >= _WORDS and f" {' '.join(words)} " in f" {' '.join(fold(query).split())} "


def repeats_query(query: str, document: str) -> bool:
    """Whether a text holds a query word for word, and the query is too long for that to be chance.

    >>> doc = 'def mean(x): \"\"\"Return the mean of all numbers.\"\"\"'
    >>> repeats_query("Return the mean of all numbers", doc), repeats_query("the mean", doc)
    (True, False)
    """
    words = words_of(query, None)
    whole = " ".join(words)
    if len(words) < _ASKED_WORDS and len(whole) < _ASKED_CHARACTERS:
        return False
    return f" {whole} " in f" {' '.join(words_of(document, _CHARACTERS))} "
