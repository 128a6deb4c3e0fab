"""From texts to vectors on disk, each computed once for what it is made of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.data.texts import Texts
from hardneg.encoders.base import Encoder, Fittable
from hardneg.progress import Progress
from hardneg.storage.files import fingerprint
from hardneg.storage.vectors import EmbeddingStore

_SAMPLE = 8192  # texts that an encoder looks at which does not say how many it wants

_CHUNK = 1024  # texts handed to the encoder at once: its own batches are cut from these, sorted by length


def fit(encoder: Encoder, pairs: Pairs, progress: Progress) -> None:
    """Let an encoder that has to (see `Fittable`) look at an even sample of queries and documents."""
    if not isinstance(encoder, Fittable) or encoder.fitted:
        return
    advance = progress("fit encoder", 1)
    half = getattr(encoder, "sample", _SAMPLE) // 2
    texts = _even(pairs.queries, len(pairs), half) + _even(pairs.documents, len(pairs.document_ids), half)
    encoder.fit(texts)
    advance(1)


def _even(texts: Texts, total: int, count: int) -> list[str]:
    return texts.take(np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64)))


def embed(
    encoder: Encoder,
    pairs: Pairs,
    folder: Path,
    *,
    query_prompt: str,
    document_prompt: str,
    precision: str,
    progress: Progress,
    label: str = "",
) -> tuple[Any, Any, tuple[str, str]]:
    """(query vectors, document vectors, their keys), memory-mapped from `folder`, encoded where they are missing.

    The key of each set is a hash of the encoder's weights, the prompt, the texts and the number format:
    vectors of another checkpoint are never taken for these.
    """
    weights = encoder.fingerprint()
    sides = {
        "queries": (pairs.queries, len(pairs), query_prompt, pairs.query_rows),
        "documents": (pairs.documents, len(pairs.document_ids), document_prompt, pairs.document_rows),
    }
    opened = []
    keys = []
    for side, (texts, total, prompt, rows) in sides.items():
        chosen = hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest()
        key = fingerprint(
            {"weights": weights, "prompt": prompt, "texts": pairs.digests[side], "rows": chosen, "dtype": precision}
        )
        store = EmbeddingStore(folder / f"{side}-{key[:16]}", key, total, encoder.dimension, precision)
        advance = progress(f"encode {label}{side}", total)

        def encode(
            start: int, stop: int, texts: Texts = texts, prompt: str = prompt, advance: Any = advance
        ) -> np.ndarray:
            out = np.empty((stop - start, encoder.dimension), np.float32)
            for at in range(start, stop, _CHUNK):
                end = min(at + _CHUNK, stop)
                out[at - start : end - start] = encoder.encode(texts.slice(at, end), prompt=prompt)
                advance(end - at)
            return out

        store.fill(encode, advance)
        opened.append(store.open())
        keys.append(key)
    return opened[0], opened[1], (keys[0], keys[1])
