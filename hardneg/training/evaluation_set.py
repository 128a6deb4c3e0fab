"""The dataset that a training is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.mixing import parts_of
from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.evaluation.retrieval import evaluate_vectors
from hardneg.evaluation.zero_shot import zero_shot
from hardneg.refresh.encode import CHUNK, Items, encode_rows
from hardneg.training.share import Channel, Together
from hardneg.training.towers import Towers


@dataclass(frozen=True)
class EvaluationSet:
    """A dataset to evaluate on.

    Attributes:
        pairs: the dataset, which should not be part of the training data.
        queries, documents: items that replace its texts; see `Examples`.
        zero_shot: also measure zero-shot classification, where the queries are the names of classes. `zero-shot@1` is
            the share of documents that are relevant to their nearest query. `zero-shot-group@1`, for datasets with
            groups, also counts documents whose nearest query is of their group.
    """

    pairs: Pairs
    queries: Items | None = None
    documents: Items | None = None
    zero_shot: bool = False

    def evaluate(
        self, towers: Towers, names: Sequence[str], channel: Channel | None = None, metric: str = "cosine"
    ) -> dict[str, float]:
        """Encode the whole dataset, and return its measures by name.

        Args:
            towers: the model.
            names: retrieval measures, such as `ndcg@10`.
            channel: between the ranks of a training, each of which calls this and encodes its share; rank 0 measures, and the
                others return nothing. None: this process encodes all.
            metric: what vectors are compared by, `cosine` or `ip`.
        """
        queries = _encoded(towers, self.queries or self.pairs.queries, len(self.pairs), "query", channel)
        count = len(self.pairs.document_ids)
        documents = _encoded(towers, self.documents or self.pairs.documents, count, "document", channel)
        if queries is None or documents is None:
            return {}
        means = evaluate_vectors(self.pairs, queries, documents, names, metric).means
        return means | zero_shot(self.pairs, queries, documents, metric) if self.zero_shot else means


def _encoded(
    towers: Towers, items: Items, count: int, side: str, channel: Channel | None
) -> NDArray[np.float32] | None:
    """float32 `[count, d]`: the vectors of all items of one side, `query` or `document`; None on other ranks than 0."""
    rows = np.arange(count)
    encode: Any = towers.encode if channel is None else Together(towers.encode, channel)
    if channel is not None and channel.rank:
        channel.follow(towers.encode, items, rows, side, CHUNK)
        return None
    vectors: NDArray[np.float32] = encode_rows(encode, items, rows, rows, side, "float32", lambda: False)
    return vectors


@dataclass(frozen=True)
class EvaluationSets:
    """Several datasets to evaluate on, such as one for each source of a mixture.

    Attributes:
        sets: by name.
    """

    sets: Mapping[str, EvaluationSet]

    def evaluate(
        self, towers: Towers, names: Sequence[str], channel: Channel | None = None, metric: str = "cosine"
    ) -> dict[str, float]:
        """The mean of each measure over the datasets, by its name, and that of each dataset as `NAME/MEASURE`.

        The arguments are those of `EvaluationSet.evaluate`.
        """
        found = {name: each.evaluate(towers, names, channel, metric) for name, each in self.sets.items()}
        if not all(found.values()):  # another rank than 0
            return {}
        first, *others = found.values()
        measures = [measure for measure in first if all(measure in each for each in others)]
        means = {measure: sum(each[measure] for each in found.values()) / len(found) for measure in measures}
        return means | {f"{name}/{measure}": each[measure] for name, each in found.items() for measure in each}


def evaluation_of(given: Any) -> EvaluationSet | EvaluationSets | None:
    """What a training is evaluated on, from what `train` takes; a mixture is evaluated source by source.

    Raises:
        UsageError: no datasets, or something else than datasets.
    """
    if given is None or callable(getattr(given, "evaluate", None)):
        known: EvaluationSet | EvaluationSets | None = given
        if isinstance(given, EvaluationSet):
            _check_positives(given.pairs)
        return known
    if isinstance(given, Pairs):
        _check_positives(given)
        parts = parts_of(given)
        return EvaluationSet(given) if not parts else evaluation_of(
            {name: part for name, part in parts.items() if len(part.positives.values)}
        )  # fmt: skip
    if not isinstance(given, Mapping):
        raise UsageError(
            f"evaluation is a {type(given).__name__}: give Pairs, an EvaluationSet, or a dict of them by name"
        )
    if not given:
        raise UsageError("evaluation names no dataset with a positive: give one, or None")
    sets = {str(name): EvaluationSet(each) if isinstance(each, Pairs) else each for name, each in given.items()}
    for name, each in sets.items():
        if not isinstance(each, EvaluationSet):
            raise UsageError(f"the evaluation {name!r} is a {type(each).__name__}: give Pairs or an EvaluationSet")
        _check_positives(each.pairs, f" {name!r}")
    return EvaluationSets(sets)


def _check_positives(pairs: Pairs, name: str = "") -> None:
    """UsageError, before any training, if nothing could be measured on a dataset."""
    if not len(pairs.positives.values):
        raise UsageError(
            f"no query of the evaluation{name} ({pairs.name}) has a positive: nothing can be measured on it"
        )
