"""The base class of all filters, and chains of filters.

A filter says which candidates may be negatives, for a whole block of queries at once. It is written `name:option=value,...`
(see `parse_filter`) and combined with `&`. The first filter of a chain that rejects a candidate writes its verdict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.spec_options import written_spec
from hardneg.storage.arrays import Float, Mask, members

KEPT = "kept"
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
        words: fields that a spec writes without their names, as in `guide:st:NAME,margin=0.1`.
    """

    name = "filter"
    guesses = True
    only_in_training = ""
    words: ClassVar[tuple[str, ...]] = ()

    @property
    def spec(self) -> str:
        """The filter as text: its name, and the fields that differ from their defaults."""
        return written_spec(self, self.name, self.words)

    @property
    def guide_encoders(self) -> tuple[str, ...]:
        """The specs of the encoders that the filter needs besides the one that searched."""
        return ()

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

    def false_probability(self, candidates: Candidates, context: Context, columns: NDArray[np.integer]) -> Float | None:
        """float32 `[n, c]`: P(relevant) of the candidates in these columns, by the last filter that estimates it, or None."""
        for f in reversed(self.filters):
            probability = f.false_probability(candidates, context, columns)
            if probability is not None:
                return _checked(probability, f, "false_probability", "f", columns.shape)
        return None

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


def lowest_scores(scores: Float) -> Float:
    """float32 `[n]`: the lowest score of each row of `[n, p]`, ignoring -inf; NaN where nothing is left.

    >>> lowest_scores(np.array([[0.5, 0.25], [0.75, -np.inf], [-np.inf, -np.inf]], np.float32)).tolist()
    [0.25, 0.75, nan]
    """
    if scores.shape[1] == 0:
        return np.full(len(scores), np.nan, np.float32)
    lowest: Float = np.where(np.isneginf(scores), np.float32(np.inf), scores).min(1)
    return np.where(np.isposinf(lowest), np.float32(np.nan), lowest)
