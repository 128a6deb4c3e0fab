"""Surface bias: whether negatives can be told from positives without the query.

If they can, a model may learn the difference in form or words instead of relevance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import Measurements, sampled
from hardneg.diagnostics.measures.words import counted_words, cross_validated_auc, fit_logistic
from hardneg.diagnostics.subject import Subject

_ENDS = 0.75  # share of last words that stand within other texts, from which texts are taken to end with a word

_SAMPLE = 3000  # the largest number of negatives, and of positives: an AUC is then known to 0.015

_CHARACTERS = 2000  # characters at the start of a text whose words are counted

_VOCABULARY = 20_000  # the largest number of different words

_TELLING = 5  # half the largest number of telling words to list

_AT_ONCE = 1 << 20  # characters that are looked at together

_KINDS = np.zeros(129, np.uint8)  # of each ASCII character, and of all others together
_KINDS[[code for code in range(33, 127) if not chr(code).isalnum()]] = 3
_KINDS[48:58] = 1
_KINDS[65:91] = 2
_KINDS[127], _KINDS[128] = 3, 4


def looks(texts: list[str]) -> NDArray[np.float64]:
    """Describe the form of each text by seven numbers.

    Returns:
        float64 `[n, 7]`. The columns are log(1 + characters), log(1 + words), characters per word, and the shares of
        digits, ASCII capitals, ASCII punctuation and non-ASCII characters.

    >>> looks(["Ab1,"]).round(2).tolist()
    [[1.61, 0.69, 4.0, 0.25, 0.25, 0.25, 0.0]]
    """
    out = np.zeros((len(texts), 7))
    sizes = np.array([len(text) for text in texts])
    words = np.array([len(text.split()) for text in texts])
    out[:, 0], out[:, 1], out[:, 2] = np.log1p(sizes), np.log1p(words), sizes / np.maximum(1, words)
    blocks = np.cumsum(sizes) // _AT_ONCE
    for block in np.unique(blocks):
        rows = np.flatnonzero(blocks == block)
        codes = np.frombuffer("".join(texts[i] for i in rows).encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _KINDS[np.minimum(codes, 128)]
        ends = np.cumsum(sizes[rows])
        for kind in (1, 2, 3, 4):
            found = np.concatenate([[0], np.cumsum(kinds == kind)])
            out[rows, 2 + kind] = (found[ends] - found[ends - sizes[rows]]) / np.maximum(1, sizes[rows])
    return out


def surface_bias(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure how well negatives can be told from positives without the query.

    Both AUCs are those of a logistic regression, cross-validated by document. An AUC of 0.5 means that negatives and
    positives look alike; 1 means that they can always be told apart without reading the query. Such a classifier is
    known as a hypothesis-only baseline (Gururangan et al. 2018, arXiv 1803.02324). With fewer than 20 negatives or 20
    positives, nothing is measured.

    The numbers are:

    - `surface_auc`: the AUC by the form of the texts (see `looks`).
    - `lexical_auc`: the AUC by the words that occur. The ids `telling_words` list the most informative words, as
      `-word` for negatives and `+word` for positives.
    - `length_ratio`: the median length of negatives divided by that of positives.
    - `at_longest`: the share of documents that are exactly as long as the longest one, in characters, words or bytes,
      whichever share is largest, if these end within words: they were truncated. `of_one_size`: the same, if they end with
      words, as passages of 100 words do, or texts that were cut between words.
    """
    out = Measurements()
    negatives = subject.documents[subject.real]
    positives = subject.pairs.positives.values
    if len(negatives) < 20 or len(positives) < 20 or subject.pairs.documents.pictures:
        return out  # the name of a picture says nothing of what is in it
    sides = [values[sampled(len(values), _SAMPLE, rng)].astype(np.int64) for values in (negatives, positives)]
    documents, kinds = np.concatenate(sides), np.repeat([0, 1], [len(part) for part in sides])
    texts = subject.pairs.documents.take(documents)
    features = looks(texts)
    spread = features.std(0)
    scaled = (features - features.mean(0)) / np.where(spread > 1e-9, spread, 1.0)
    out.numbers["surface_auc"] = cross_validated_auc(scaled, kinds, documents)
    words, names = _words(texts)
    if len(names):
        out.numbers["lexical_auc"] = cross_validated_auc(words, kinds, documents)
        out.ids["telling_words"] = _telling_words(words, kinds, names)
    lengths = [np.expm1(features[kinds == kind, 0]) for kind in (0, 1)]
    out.numbers["length_ratio"] = float(np.median(lengths[0]) / max(1.0, float(np.median(lengths[1]))))
    rows = sampled(len(subject.pairs.document_ids), _SAMPLE, rng)
    texts = subject.pairs.documents.take(rows)
    share, cut = _at_longest(texts)
    out.numbers["at_longest"] = share if cut else 0.0
    out.numbers["of_one_size"] = 0.0 if cut else share
    return out


def _at_longest(texts: list[str]) -> tuple[float, bool]:
    """The share of texts that are as long as the longest, in the unit where it is largest, and whether they end within a word.

    A text that was cut off by characters or bytes mostly ends in a piece of a word, which stands nowhere else within a text.
    """
    share, longest = 0.0, np.zeros(len(texts), bool)
    for size in (len, lambda t: len(t.split()), lambda t: len(t.encode("utf-8", "replace"))):
        sizes = np.array([size(t) for t in texts])
        at = sizes == sizes.max(initial=0)
        if sizes.max(initial=0) > 20 and at.mean() > share:
            share, longest = float(at.mean()), at
    words = [t.split() for t in texts]
    within = {word for each in words for word in each[:-1]}
    last = [each[-1] in within for each, at in zip(words, longest, strict=True) if at and each]
    return share, bool(last) and float(np.mean(last)) < _ENDS


def _words(texts: list[str]) -> tuple[Any, list[str]]:
    """Find which words of two letters or more occur in which text.

    Returns:
        (scipy CSR matrix float64 with a row for each text and a column for each word, 1 where the word occurs; the words).
        Words that occur in fewer than three texts are left out, and so are all but the 20,000 most frequent.
    """
    table, words = counted_words(texts, r"\b\w\w+\b", _CHARACTERS)
    table.data[:] = 1
    times = np.bincount(table.indices, minlength=len(words))
    chosen = np.sort(np.argsort(-times, kind="stable")[:_VOCABULARY])
    chosen = chosen[times[chosen] >= 3]
    return table[:, chosen], [words[i] for i in chosen]


def _telling_words(words: Any, kinds: NDArray[np.integer], names: list[str]) -> list[str]:
    """List the words that contribute most to the difference between negatives (kind 0) and positives (kind 1).

    The contribution of a word is its weight in the model times the difference of its frequencies.
    """
    weights, _ = fit_logistic(words, kinds)
    shares = [np.asarray(words[np.flatnonzero(kinds == kind)].mean(0)).ravel() for kind in (0, 1)]
    contributions = weights * (shares[1] - shares[0])
    chosen = np.argsort(-contributions, kind="stable")[: 2 * _TELLING]
    return [f"{'+' if weights[i] > 0 else '-'}{names[i]}" for i in chosen if contributions[i] > 0]
