"""Encodes the texts of a dataset to vectors on disk, and reuses vectors that are there already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.data.texts import Texts
from hardneg.encoders.base import Encoder, Fittable, checked_vectors, dimension_of, prompt_of
from hardneg.encoders.batches import Arranging
from hardneg.encoders.device_pool import DevicePool
from hardneg.encoders.modalities import check_takes
from hardneg.errors import UsageError
from hardneg.progress import Advance, Progress
from hardneg.storage.files import fingerprint
from hardneg.storage.vectors import EmbeddingStore, Span

_SAMPLE = 8192  # number of texts to fit on, for encoders without the attribute `sample`

_CHUNK = 1024  # texts passed at once to an encoder that does not arrange them itself


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
    devices: tuple[str, ...] = (),
    notes: list[str] | None = None,
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
        devices: devices that encode at the same time, see `parse_devices`; none: the encoder's own.
        notes: what went wrong and was done again is added to this list, one sentence each.

    Returns:
        (query vectors `[n, d]`, document vectors `[N, d]`, both memory-mapped; the keys of the two).

    Raises:
        DataError: the encoder returned vectors that are of the wrong shape or not finite. UsageError: bad `dimension`,
            several devices for an encoder that cannot use them, or there are pictures and it takes texts alone. RunError: the
            disk is full, or a device failed.
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
    _arranging(encoder, devices)
    opened = []
    with DevicePool(encoder, devices) if devices else nullcontext() as pool:
        for side, (texts, total, prompt, key) in sides.items():
            store = EmbeddingStore(folder / f"{side}-{key[:16]}", key, total, dimension, precision)
            stage = f"encode {label}{side}"
            advance = progress(stage, total)
            store.fill_with(partial(encoded, encoder, texts, prompt, advance, pool=pool), advance)
            opened.append(store.open())
            if notes is not None:
                notes += [f"{stage}: {each}" for each in _said(encoder, pool)]
    return opened[0], opened[1], keys


def _arranging(encoder: Encoder, devices: tuple[str, ...]) -> Arranging | None:
    """The encoder, if it can be given the texts of a whole shard, as models of texts alone can.

    Raises:
        UsageError: it cannot, and several devices are to be used.
    """
    if isinstance(encoder, Arranging) and not getattr(encoder, "pictures", False):
        return encoder
    if devices:
        raise UsageError(
            f"only encoders st:MODEL of texts run on several devices, not this {type(encoder).__name__}: leave --devices out"
        )
    return None


def _said(encoder: Encoder, pool: DevicePool | None) -> list[str]:
    """What went wrong and was done again, or was lost."""
    lost = [] if pool is None else pool.said()
    return [*lost, *getattr(encoder, "said", list)()]


def encoded(
    encoder: Encoder, texts: Texts, prompt: str, advance: Advance, spans: list[Span], pool: DevicePool | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each of these shards and its vectors, float32 `[n, d]`, which depend on nothing outside of the shard."""
    arranging = _arranging(encoder, ())
    if arranging is None:
        return _in_chunks(encoder, texts, prompt, advance, spans)
    return _arranged(arranging, texts, prompt, advance, pool, spans)


def _in_chunks(
    encoder: Encoder, texts: Texts, prompt: str, advance: Advance, spans: list[Span]
) -> Iterator[tuple[int, np.ndarray]]:
    """The vectors of each shard, from an encoder that is given a thousand texts at a time."""
    dimension = dimension_of(encoder)
    for span in spans:
        out = np.empty((span.stop - span.start, dimension), np.float32)
        for at in range(span.start, span.stop, _CHUNK):
            end = min(at + _CHUNK, span.stop)
            returned = encoder.encode(texts.slice(at, end), prompt=prompt)
            out[at - span.start : end - span.start] = checked_vectors(returned, end - at, dimension, encoder)
            advance(end - at)
        yield span.number, out


def _arranged(
    encoder: Arranging, texts: Texts, prompt: str, advance: Advance, pool: DevicePool | None, spans: list[Span]
) -> Iterator[tuple[int, np.ndarray]]:
    """The vectors of each shard, its texts sorted by length and equal ones encoded once, here or on the devices of a pool."""
    shards = ((span.number, encoder.arrange(texts.slice(span.start, span.stop), prompt)) for span in spans)
    if pool is not None:
        yield from pool.encode(shards, prompt, advance)
        return
    for number, arranged in shards:
        found = encoder.encode_arranged(arranged.texts, prompt, arranged.tokens, advance)
        advance(len(arranged.places) - len(arranged.texts))
        yield number, found[arranged.places]


def vector_keys(
    encoder: Encoder, pairs: Pairs, query_prompt: str | None, document_prompt: str | None, precision: str,
    weights: str | None = None,
) -> tuple[str, str]:  # fmt: skip
    """The keys of the vectors of queries and documents, without encoding them; arguments as for `embed`.

    `weights` is the fingerprint of the encoder, where it is known: to hash a large model takes seconds.
    """
    weights = encoder.fingerprint() if weights is None else weights
    prompts = {"queries": prompt_of(encoder, "query", query_prompt)}
    prompts["documents"] = prompt_of(encoder, "document", document_prompt)
    keys = []
    for side, rows in (("queries", pairs.query_rows), ("documents", pairs.document_rows)):
        chosen = hashlib.sha256(np.ascontiguousarray(rows, np.int64).data).hexdigest()
        named = {"weights": weights, "prompt": prompts[side], "texts": pairs.digests[side], "rows": chosen}
        keys.append(fingerprint({**named, "dtype": precision}))
    return keys[0], keys[1]
