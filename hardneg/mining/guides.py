"""Embeddings of guide models, computed at first use and then reused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hardneg.data.pairs import Pairs
from hardneg.encoders.embed import embed, fit
from hardneg.index.vectors import VectorStore
from hardneg.mining.resources import Resources


def guide_embedder(
    pairs: Pairs, folder: Path, resources: Resources, *, seed: int = 0, precision: str = "float16"
) -> Callable[[str], tuple[Any, VectorStore]]:
    """Return a function that maps the spec of a guide model to its (query vectors, document vectors).

    Args:
        pairs: the dataset.
        folder: the run folder, where the vectors are stored unless `resources` names a cache.
        resources: batch size, device, cache and progress for encoding.
        seed: random seed for encoders without saved weights.
        precision: number format of the stored vectors.
    """
    by_spec: dict[str, tuple[Any, VectorStore]] = {}

    def vectors_of(spec: str) -> tuple[Any, VectorStore]:
        if spec not in by_spec:
            guide = resources.encoder(spec, seed)
            fit(guide, pairs, resources.progress)
            queries, documents, _ = embed(
                guide, pairs, resources.embeddings(folder), query_prompt=None, document_prompt=None, precision=precision,
                progress=resources.progress, label="guide ",
            )  # fmt: skip
            by_spec[spec] = queries, VectorStore(documents, "cosine")
        return by_spec[spec]

    return vectors_of
