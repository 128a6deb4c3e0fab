"""Candidates by BM25, with the package bm25s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import MissingDependencyError, UsageError, suggestion
from hardneg.index.base import Neighbors
from hardneg.mining.environment import package_version
from hardneg.mining.sources.base import CandidateSource, OpenSource, SourceInputs
from hardneg.mining.spec_options import SpecOptions
from hardneg.progress import Progress
from hardneg.storage.files import fingerprint

_CHUNK = 4096  # texts that are split into words at once

NONE = "none"


@dataclass(frozen=True, kw_only=True)
class BM25(CandidateSource):
    """The documents with the highest BM25 scores (Robertson and Zaragoza 2009, in Lucene's variant), of title and text.

    Documents that share no word with the query are not listed.

    Attributes:
        k1: how much it counts that a document repeats a word.
        b: how much long documents are marked down, from 0 to 1.
        stemmer: language of the Snowball stemmer, or `none`.
        stopwords: language of the words that are left out, or `none`; empty: that of the stemmer, if bm25s has its words.
    """

    name: ClassVar[str] = "bm25"
    k1: float = 1.5
    b: float = 0.75
    stemmer: str = "english"
    stopwords: str = ""

    def lacks(self, pairs: Pairs) -> str | None:
        """Nothing; raises as `open` for an unknown language, before anything is encoded."""
        _Words(self)
        return None

    def open(self, inputs: SourceInputs) -> OpenSource:
        """Count the words of all documents.

        Raises:
            MissingDependencyError: the extra `bm25` is not installed. UsageError: a language is unknown.
        """
        return _Counted(self, inputs.pairs, inputs.resources.progress)


class _Words:
    """Splits texts into words as bm25s does, and numbers the words in the order in which they first appear.

    bm25s numbers stems by their place in a set, which differs from process to process, and with it the rounding of scores.
    """

    def __init__(self, options: BM25) -> None:
        try:
            import bm25s
            import Stemmer
        except ImportError as error:
            raise MissingDependencyError(f"{error.name}", "bm25", "--candidates bm25") from None
        self.split = bm25s.tokenize
        languages = Stemmer.algorithms()
        if options.stemmer not in (*languages, NONE):
            raise UsageError(
                f"candidates {options.spec!r}: there is no stemmer "
                f"{options.stemmer!r}.{suggestion(options.stemmer, (*languages, NONE))}"
            )
        self.stemmer = None if options.stemmer == NONE else Stemmer.Stemmer(options.stemmer)
        self.stopwords = self._stopwords(options)
        self.numbers: dict[str, int] = {}  # of a stem
        self.known: dict[str, int] = {}  # of a word: the number of its stem

    def _stopwords(self, options: BM25) -> str | None:
        wanted = options.stopwords or options.stemmer
        if wanted == NONE:
            return None
        try:
            self.split([""], stopwords=wanted, show_progress=False)
        except ValueError:
            if options.stopwords:
                raise UsageError(
                    f"candidates {options.spec!r}: bm25s has no stop words for {wanted!r}: give stopwords=none"
                ) from None
            return None
        return wanted

    def of(self, texts: Sequence[str], *, new: bool) -> list[list[int]]:
        """The numbers of the words of each text, in their order. `new`: whether to number words that were not seen before."""
        words: list[list[str]] = self.split(
            list(texts), stopwords=self.stopwords, stemmer=None, return_ids=False, show_progress=False
        )
        unseen = list(dict.fromkeys(word for each in words for word in each if word not in self.known))
        stems = unseen if self.stemmer is None else self.stemmer.stemWords(unseen)
        for word, stem in zip(unseen, stems, strict=True):
            if new:
                self.known[word] = self.numbers.setdefault(stem, len(self.numbers))
            elif stem in self.numbers:
                self.known[word] = self.numbers[stem]
        return [[self.known[word] for word in each if word in self.known] for each in words]


class _Counted:
    """The BM25 index of a corpus."""

    def __init__(self, options: BM25, pairs: Pairs, progress: Progress) -> None:
        self.words = _Words(options)
        import bm25s
        from bm25s.tokenization import Tokenized

        self.queries, self.reach = pairs.queries, len(pairs.document_ids)
        advance = progress("count words", self.reach)
        ids: list[list[int]] = []
        for start in range(0, self.reach, _CHUNK):
            stop = min(start + _CHUNK, self.reach)
            ids += self.words.of(pairs.documents.slice(start, stop), new=True)
            advance(stop - start)
        # One back end, whatever else is installed: the same sums in the same order.
        self.model: Any = bm25s.BM25(
            k1=options.k1, b=options.b, method="lucene", backend="numpy", csc_backend="numpy", auto_compile=False
        )
        self.empty = not self.words.numbers
        if not self.empty:
            self.model.index(Tokenized(ids, dict(self.words.numbers)), show_progress=False)
        versions = [package_version(name) for name in ("bm25s", "PyStemmer")]
        self.fingerprint: str | None = fingerprint(
            [options.k1, options.b, options.stemmer, self.words.stopwords, versions]
        )
        self.notes: list[str] = []
        if self.empty:
            self.notes.append("bm25: no document has a word that counts, so nothing was listed")

    def search(self, queries: NDArray[np.int64], k: int) -> Neighbors:
        scores = np.full((len(queries), k), -np.inf, np.float32)
        documents = np.full((len(queries), k), -1, np.int32)
        if self.empty:
            return Neighbors(scores, documents)
        for i, words in enumerate(self.words.of(self.queries.take(queries), new=False)):
            if not words:
                continue
            every = self.model.get_scores_from_ids(words)
            found = np.flatnonzero(every > 0)
            if len(found) > k:
                least = np.partition(every[found], len(found) - k)[len(found) - k]
                found = found[every[found] >= least]
            found = found[np.argsort(-every[found], kind="stable")[:k]]  # stable: equal ones in the order of their rows
            scores[i, : len(found)], documents[i, : len(found)] = every[found], found
        return Neighbors(scores, documents)


def bm25_from_spec(v: SpecOptions) -> CandidateSource:
    k1, b = v.number("k1", 1.5, 0), v.number("b", 0.75, 0, 1)
    assert k1 is not None
    assert b is not None
    stemmer, stopwords = v.text("stemmer", "english"), v.text("stopwords", "")
    return BM25(k1=k1, b=b, stemmer=stemmer or NONE, stopwords=stopwords or "", label=v.text("label", "") or "")
