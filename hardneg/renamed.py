"""Names that version 0.2 changed. The old ones are still read, from files and from the command line, until version 0.3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")

FILTERS = {"crowd": "shared-neighbors"}
FEATURES = {
    "crowd_query": "shared_query",
    "crowd_positive": "shared_positive",
    "crowd_votes": "shared_votes",
    "reach_query": "local_score_query",
    "reach_positive": "local_score_positive",
}
TRAIN_OPTIONS = {
    "policy": "negative_sampling",
    "rate": "lr_scheduler",
    "clip": "max_grad_norm",
    "chunk": "mini_batch_size",
}


def with_new_names(value: Mapping[str, V], names: Mapping[str, str]) -> dict[str, V]:
    """`value` with its old keys under their new names; a new name that is there already wins."""
    out: dict[str, V] = {}
    for key, each in value.items():
        out.setdefault(names.get(key, key), each)
    return {**out, **{key: each for key, each in value.items() if key not in names}}


def filter_spec(spec: str) -> str:
    """A filter's spec with the filter's new name."""
    name, colon, rest = spec.strip().partition(":")
    return FILTERS[name] + colon + rest if name in FILTERS else spec
