"""Encodes the texts of a dataset to vectors on disk, and reuses vectors that are there already."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.data.texts import Texts
from hardneg.encoders.base import Encoder, Fittable, checked_vectors, dimension_of, prompt_of
from hardneg.encoders.modalities import check_takes
from hardneg.progress import Progress
from hardneg.storage.files import fingerprint
from hardneg.storage.vectors import EmbeddingStore

_SAMPLE = 8192  # number of texts to fit on, for encoders without the attribute `sample`

_CHUNK = 1024  # texts passed to the encoder at once, from which it may form batches of similar length


def fit(encoder: Encoder, pairs: Pairs, progress: Progress) -> None:
    """Fit the encoder on evenly spaced queries and documents, if it is `Fittable` and not fitted yet."""
    if not isinstance(encoder, Fittable) or encoder.fitted:
        return
    check_takes(encoder, pairs.queries, "queries")
    check_takes(encoder, pairs.documents, "documents")
    advance = progress("fit encoder", 1)
    half = getattr(encoder, "sample", _SAMPLE) // 2
    queries = _evenly_spaced(pairs.queries, len(pairs), half)
    documents = _evenly_spaced(pairs.documents, len(pairs.document_ids), half)
    encoder.fit(queries + documents)
    advance(1)


def _evenly_spaced(texts: Texts, total: int, count: int) -> list[str]:
    """Up to `count` of the `total` texts, at evenly spaced rows."""
    return texts.take(np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64)))


def embed(
    encoder: Encoder,
    pairs: Pairs,
    folder: Path,
    *,
    query_prompt: str | None,
    document_prompt: str | None,
    precision: str,
    progress: Progress,
    label: str = "",
) -> tuple[Any, Any, tuple[str, str]]:
    """Encode queries and documents, or reuse vectors in `folder` that have the same key.

    The key is a hash of weights, prompt, texts and number format, so vectors of another checkpoint are never reused.

    Args:
        encoder: a fitted encoder.
        pairs: the dataset, with n queries and N documents.
        folder: where the vectors are stored.
        query_prompt, document_prompt: text put before each query and each document; None: the encoder's own.
        precision: number format on disk, `float16` or `float32`.
        progress: called for the queries and for the documents.
        label: put before `queries` and `documents` in the names of the stages.

    Returns:
        (query vectors `[n, d]`, document vectors `[N, d]`, both memory-mapped; the keys of the two).

    Raises:
        DataError: the encoder returned vectors that are of the wrong shape or not finite. UsageError: bad `dimension`, or there
            are pictures and it takes texts alone.
    """
    dimension = dimension_of(encoder)
    check_takes(encoder, pairs.queries, "queries")
    check_takes(encoder, pairs.documents, "documents")
    before, within = prompt_of(encoder, "query", query_prompt), prompt_of(encoder, "document", document_prompt)
    keys = vector_keys(encoder, pairs, before, within, precision)
    sides = {
        "queries": (pairs.queries, len(pairs), before, keys[0]),
        "documents": (pairs.documents, len(pairs.document_ids), within, keys[1]),
    }
    opened = []
    for side, (texts, total, prompt, key) in sides.items():
        store = EmbeddingStore(folder / f"{side}-{key[:16]}", key, total, dimension, precision)
        advance = progress(f"encode {label}{side}", total)

        def encode(
            start: int, stop: int, texts: Texts = texts, prompt: str = prompt, advance: Any = advance
        ) -> np.ndarray:
            out = np.empty((stop - start, dimension), np.float32)
            for at in range(start, stop, _CHUNK):
                end = min(at + _CHUNK, stop)
                returned = encoder.encode(texts.slice(at, end), prompt=prompt)
                out[at - start : end - start] = checked_vectors(returned, end - at, dimension, encoder)
                advance(end - at)
            return out

        store.fill(encode, advance)
        opened.append(store.open())
    return opened[0], opened[1], keys


def vector_keys(
    encoder: Encoder, pairs: Pairs, query_prompt: str | None, document_prompt: str | None, precision: str
) -> tuple[str, str]:
    """The keys of the vectors of queries and documents, without encoding them; arguments as for `embed`."""
    weights = encoder.fingerprint()
    prompts = {"queries": prompt_of(encoder, "query", query_prompt)}
    prompts["documents"] = prompt_of(encoder, "document", document_prompt)
    keys = []
    for side, rows in (("queries", pairs.query_rows), ("documents", pairs.document_rows)):
        chosen = hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest()
        named = {"weights": weights, "prompt": prompts[side], "texts": pairs.digests[side], "rows": chosen}
        keys.append(fingerprint({**named, "dtype": precision}))
    return keys[0], keys[1]
