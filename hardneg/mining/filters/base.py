"""The base class of all filters, and chains of filters.

A filter says which candidates may be negatives, for a whole block of queries at once. It is written `name:option=value,...`
(see `parse_filter`) and combined with `&`. The first filter of a chain that rejects a candidate writes its verdict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.index.base import ScoredVectors
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.spec_options import written_spec
from hardneg.storage.arrays import Float, Int, Mask, Ragged, members

KEPT = "kept"
_MOST_SCORED = 1 << 20  # pairs in a table of scores, unless one query alone has more
MOST_FILTERS = 100  # in a chain: verdicts are stored as int8


def with_found(config: Mapping[str, Any], depth: int, fingerprints: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, with what its candidates were found in (see `Filter.notes`)."""
    return {**config, "found_depth": depth, "found_in": fingerprints}


@dataclass(frozen=True, kw_only=True)
class Filter(ABC):
    """Base class of all filters. A subclass has a name and says which candidates may stay.

    Attributes:
        name: the verdict of the candidates that the filter rejects.
        guesses: whether the filter guesses at relevance. A chain never rejects a document by a guess if it was judged not
            relevant to the query.
        only_in_training: for a filter that works only while training, the message that refuses it elsewhere.
        slow: whether it takes so long that what it judged should be written soon: then few queries are judged before they are written.
        words: fields that a spec writes without their names, as in `guide:st:NAME,margin=0.1`.
    """

    name = "filter"
    guesses = True
    only_in_training = ""
    slow: ClassVar[bool] = False
    words: ClassVar[tuple[str, ...]] = ()

    @property
    def spec(self) -> str:
        """The filter as text: its name, and the fields that differ from their defaults."""
        return written_spec(self, self.name, self.words)

    @property
    def guide_encoders(self) -> tuple[str, ...]:
        """The specs of the encoders that the filter needs besides the one that searched."""
        return ()

    @property
    def needs(self) -> frozenset[str]:
        """What it compares across the whole dataset: `neighbors` (of every document), `nearest` (of every query).

        A pass over many machines computes these before it filters. Where there is one machine, they are computed when they are used.
        """
        return frozenset()

    @abstractmethod
    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        """bool `[n, K]`, True where the candidate may stay. The answer is ignored where `alive` is False."""

    def more_may_pass(self, candidates: Candidates) -> NDArray[np.bool_]:
        """bool `[n]`: whether a document further down the ranking could pass."""
        return np.ones(len(candidates.queries), bool)

    def check(self, fingerprints: Mapping[str, Any], force: bool = False) -> dict[str, str]:
        """Fingerprints of the files that the filter depends on, by name.

        Args:
            fingerprints: fingerprints of the encoder and the vectors that the candidates were scored with.
            force: accept a file that was made with another encoder.

        Raises:
            RunError: such a file was made with another encoder.
        """
        return {}

    def lacks(self, pairs: Pairs) -> str | None:
        """What the dataset lacks for this filter, as a sentence; None if nothing. Asked before anything is encoded."""
        return None

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """What users should know about this filter in a selection with this configuration.

        Args:
            config: the options. Where candidates were found already, also `found_depth`, their number for each query, and
                `found_in`, the fingerprints of what they were found in.
        """
        return []

    def of_chosen(self, probability: float, config: Mapping[str, Any]) -> list[str] | None:
        """What users should know about the negatives that were chosen; None if the filter estimates no probability.

        Args:
            probability: the mean P(relevant) of the negatives, by this filter.
            config: the options of the selection.
        """
        return None

    def false_probability(
        self, candidates: Candidates, context: Context, columns: NDArray[np.integer] | None = None
    ) -> Float | None:
        """P(relevant) of the candidates, float32 `[n, K]`, or `[n, c]` for the given columns only.

        None if the filter estimates no probability.
        """
        return None

    def __and__(self, other: Filter | Chain) -> Chain:
        return Chain([self]) & other


@dataclass(frozen=True)
class Chain:
    """Filters that are applied in order.

    Raises:
        UsageError: there are more than 100 filters.

    >>> from hardneg.mining.filters import Margin, Rank
    >>> (Margin(relative=0.05) & Rank(max=50)).names
    ['kept', 'margin', 'rank']
    """

    filters: Sequence[Filter]

    def __post_init__(self) -> None:
        if len(self.filters) > MOST_FILTERS:
            raise UsageError(
                f"{len(self.filters)} filters are too many: use at most {MOST_FILTERS}, with the default ones"
            )

    def __and__(self, other: Filter | Chain) -> Chain:
        return Chain([*self.filters, *(other.filters if isinstance(other, Chain) else [other])])

    @property
    def names(self) -> list[str]:
        """The verdicts by code: `kept`, then the name of each filter. A second `margin` is called `margin#2`."""
        names = [KEPT]
        for f in self.filters:
            count = sum(name.partition("#")[0] == f.name for name in names)
            names.append(f.name if count == 0 else f"{f.name}#{count + 1}")
        return names

    def verdicts(self, candidates: Candidates, context: Context) -> NDArray[np.uint8]:
        """uint8 `[n, K]`: 0 = kept, i = rejected by filter number i. Undefined where there is no document."""
        verdicts = np.zeros(candidates.documents.shape, np.uint8)
        alive = candidates.real.copy()
        if not len(verdicts):
            return verdicts  # filters, also those of users, are asked about one query at least
        judged: Mask | None = None
        for code, f in enumerate(self.filters, 1):
            rejected = alive & ~_checked(f.keep(candidates, context, alive), f, "keep", "b", verdicts.shape)
            if f.guesses and rejected.any():
                if judged is None:
                    judged = members(candidates.documents, context.pairs.judged_negatives.take(candidates.queries))
                rejected &= ~judged
            verdicts[rejected] = code
            alive &= ~rejected
        return verdicts

    def check(self, fingerprints: Mapping[str, Any], force: bool = False) -> dict[str, str]:
        """The fingerprints of all filters together."""
        return {name: sha256 for f in self.filters for name, sha256 in f.check(fingerprints, force).items()}

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """What users should know about the filters in a selection with this configuration."""
        return [note for f in self.filters for note in f.notes(config)]

    def of_chosen(self, probability: float | None, config: Mapping[str, Any]) -> list[str]:
        """What users should know about the negatives that were chosen, by the last filter that estimates their probability.

        Args:
            probability: the mean P(relevant) of the negatives by that filter; None: none estimates it.
            config: the options of the selection.
        """
        if probability is None:
            return []
        said = (f.of_chosen(probability, config) for f in reversed(self.filters))
        return next((each for each in said if each is not None), [])

    def false_probability(self, candidates: Candidates, context: Context, columns: NDArray[np.integer]) -> Float | None:
        """float32 `[n, c]`: P(relevant) of the candidates in these columns, by the last filter that estimates it, or None."""
        for f in reversed(self.filters):
            probability = f.false_probability(candidates, context, columns)
            if probability is not None:
                return _checked(probability, f, "false_probability", "f", columns.shape)
        return None

    @property
    def slow(self) -> bool:
        """Whether one of the filters is."""
        return any(f.slow for f in self.filters)

    def more_may_pass(self, candidates: Candidates) -> NDArray[np.bool_]:
        """bool `[n]`: whether searching deeper could find documents that pass every filter."""
        more = np.ones(len(candidates.queries), bool)
        for f in self.filters:
            more &= _checked(f.more_may_pass(candidates), f, "more_may_pass", "b", more.shape)
        return more


def _checked(result: Any, part: Filter, method: str, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """What a method of a filter returned, if it is an array of this kind of numbers and of this shape.

    Raises:
        UsageError: it is something else. Subclasses may be of users, and a wrong shape could pass as broadcasting.
    """
    if isinstance(result, np.ndarray) and result.dtype.kind == kind and result.shape == shape:
        return result
    wanted = f"a numpy array of {'bool' if kind == 'b' else 'floats'} of shape {shape}"
    raise UsageError(
        f"the filter {part.name!r}: its {method} must return {wanted}, but it returned {described(result)}"
    )


def described(result: Any) -> str:
    """What a method returned instead of the array that was expected, in a few words for a message.

    >>> described(None), described([1]), described(np.zeros(3))
    ('None', 'a list', 'an array of float64 of shape (3,)')
    """
    if isinstance(result, np.ndarray):
        return f"an array of {result.dtype} of shape {result.shape}"
    return "None" if result is None else f"a {type(result).__name__}"


def list_scores(lists: Ragged, score: Callable[[Int, Int], Float]) -> Ragged:
    """The score of every query with each document of its list.

    Args:
        lists: rows of documents for n queries.
        score: given the queries, int64 `[m]` from 0 to n - 1, and a table of documents, int64 `[m, p]` with -1 where there is none,
            it returns their scores, float32 `[m, p]`.

    Returns:
        The lists with the scores (float32) as values. Lists of like length are scored together, so that one that is very long
        does not make a table of its width for all.
    """
    values = np.empty(len(lists.values), np.float32)
    order = np.argsort(lists.lengths, kind="stable")
    lengths = lists.lengths[order]
    start = int(np.searchsorted(lengths, 0, "right"))
    while start < len(order):
        sizes = np.arange(1, len(order) - start + 1) * lengths[start:]
        stop = start + max(1, int(np.searchsorted(sizes, _MOST_SCORED, "right")))
        rows = np.sort(order[start:stop])
        documents = lists.take(rows).padded()
        values[lists.places(rows)] = score(rows, documents)[documents >= 0]
        start = stop
    return Ragged(lists.offsets, values)


def index_scores(index: ScoredVectors, queries: NDArray[np.floating], lists: Ragged) -> Ragged:
    """The scores by an index of n queries `[n, d]` with the documents of their lists; see `list_scores`."""
    return list_scores(lists, lambda rows, documents: index.pair_scores(queries[rows], documents))


def lowest_scores(scores: Ragged) -> Float:
    """float32 `[n]`: the lowest score of each list, NaN of one that is empty.

    >>> lowest_scores(Ragged(np.array([0, 2, 3, 3]), np.array([0.5, 0.25, 0.75], np.float32))).tolist()
    [0.25, 0.75, nan]
    """
    lowest = np.full(len(scores), np.nan, np.float32)
    full = scores.lengths > 0
    if full.any():
        lowest[full] = np.minimum.reduceat(scores.values, scores.offsets[:-1][full])
    return lowest
