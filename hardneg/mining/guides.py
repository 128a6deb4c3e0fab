"""Vectors of guide models, made at their first use and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hardneg.data.pairs import Pairs
from hardneg.encoders.embed import embed, fit
from hardneg.index.vectors import VectorStore
from hardneg.mining.inputs import Resources


def guide_embedder(
    pairs: Pairs, folder: Path, resources: Resources, *, seed: int = 0, precision: str = "float16"
) -> Callable[[str], tuple[Any, VectorStore]]:
    """A function that gives (query vectors, document vectors) of the guide model that a spec names.

    Args:
        pairs: the dataset.
        folder: of the run, where the vectors are kept unless `resources` names a cache.
        resources: what encodes.
        seed: of models that have no saved weights.
        precision: number format of the vectors.
    """
    made: dict[str, tuple[Any, VectorStore]] = {}

    def vectors_of(spec: str) -> tuple[Any, VectorStore]:
        if spec not in made:
            guide = resources.encoder(spec, seed)
            fit(guide, pairs, resources.progress)
            queries, documents, _ = embed(
                guide, pairs, resources.embeddings(folder), query_prompt="", document_prompt="", precision=precision,
                progress=resources.progress, label="guide ",
            )  # fmt: skip
            made[spec] = queries, VectorStore(documents, "cosine")
        return made[spec]

    return vectors_of
