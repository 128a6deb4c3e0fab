"""Names that changed in version 0.2. Files and the command line may use the old names until version 0.3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

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
    """A copy of `value` with old keys replaced by new ones. If both the old and the new key exist, the new one wins.

    >>> with_new_names({"rate": "cosine", "seed": 1}, TRAIN_OPTIONS)
    {'lr_scheduler': 'cosine', 'seed': 1}
    """
    renamed: dict[str, V] = {}
    for key, each in value.items():
        renamed.setdefault(names.get(key, key), each)
    return {**renamed, **{key: each for key, each in value.items() if key not in names}}


def filter_spec(spec: str) -> str:
    """The spec of a filter, with the new name of the filter.

    >>> filter_spec("crowd:max=0.9")
    'shared-neighbors:max=0.9'
    """
    name, colon, rest = spec.strip().partition(":")
    return FILTERS[name] + colon + rest if name in FILTERS else spec


def verdict(name: str) -> str:
    """The name of a verdict in a run, with the new name of its filter.

    >>> verdict("crowd#2"), verdict("kept")
    ('shared-neighbors#2', 'kept')
    """
    name, mark, number = name.partition("#")
    return FILTERS.get(name, name) + mark + number


def with_new_filters(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the options in a file, in which the specs of filters have their new names. Other values stay as they are.

    >>> with_new_filters({"filters": ["crowd:max=0.9"], "seed": 0})
    {'filters': ['shared-neighbors:max=0.9'], 'seed': 0}
    """
    specs = config.get("filters")
    if not isinstance(specs, list | tuple):
        return dict(config)
    return {**config, "filters": [filter_spec(spec) if isinstance(spec, str) else spec for spec in specs]}
