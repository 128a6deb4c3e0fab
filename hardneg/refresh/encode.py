"""Encodes items in chunks, and checks the vectors: for generations, for measurements, for evaluations."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import DataError, first_few
from hardneg.storage.arrays import Int

CHUNK = 1024  # items encoded at once; a build can be stopped after each chunk

# encode(items, side) returns float [n, d]; side is "document" or "query".
Encode = Callable[[Sequence[Any], str], NDArray[np.floating]]


class Items(Protocol):
    """Whatever the encoder takes: texts, images, or anything else that can be taken by row."""

    def take(self, rows: Int) -> Sequence[Any]:
        """The items in these rows."""
        ...


@runtime_checkable
class EncodesChunks(Protocol):
    """An `Encode` that can encode the chunks of many items at once, on several ranks for example."""

    def chunks(self, items: Items, rows: Int, side: str, size: int) -> Iterator[NDArray[np.floating]]:
        """The vectors of the items in these rows, `size` of them at a time, in their order."""
        ...


class Stopped(Exception):
    """Raised inside a build that was asked to stop."""


def encode_rows(
    encode: Encode, items: Items, rows: Int, names: Int, side: str, precision: str, stop: Callable[[], bool]
) -> NDArray[Any]:
    """Encode the items in these rows and check the vectors, `[n, d]`; raises Stopped as soon as `stop()` is true.

    Raises:
        DataError: the encoder returned another shape, or NaN or infinite values; the message gives the `names`.
    """
    spans = [slice(start, min(start + CHUNK, len(rows))) for start in range(0, len(rows), CHUNK)]
    with closing(_chunks(encode, items, rows, side, spans)) as chunks:
        return _checked_chunks(chunks, spans, rows, names, side, precision, stop)


def _chunks(
    encode: Encode, items: Items, rows: Int, side: str, spans: list[slice]
) -> Generator[NDArray[Any], None, None]:
    """The vectors of each chunk."""
    if isinstance(encode, EncodesChunks):
        yield from encode.chunks(items, rows, side, CHUNK)
        return
    for here in spans:
        yield np.asarray(encode(items.take(rows[here]), side))


def _checked_chunks(
    chunks: Iterator[NDArray[Any]], spans: list[slice], rows: Int, names: Int, side: str, precision: str,
    stop: Callable[[], bool],
) -> NDArray[Any]:  # fmt: skip
    """The vectors of all chunks, once each is known to be what it should be; see `encode_rows`."""
    out: NDArray[Any] | None = None
    for here in spans:
        if stop():
            raise Stopped
        count = here.stop - here.start
        vectors = np.asarray(next(chunks))
        if vectors.ndim != 2 or len(vectors) != count or (out is not None and vectors.shape[1] != out.shape[1]):
            expected = f"[{count}, {'d' if out is None else out.shape[1]}]"
            raise DataError(
                f"the encoder returned shape {list(vectors.shape)} for {count:,} items, expected {expected}"
            )
        if out is None:
            out = np.empty((len(rows), vectors.shape[1]), precision)
        with np.errstate(over="ignore"):
            out[here] = vectors
        bad = ~np.isfinite(out[here]).all(1)
        if bad.any():
            raise DataError(
                f"the encoder returned NaN or infinite values (as {precision}) for {int(bad.sum()):,} of {count:,} items, "
                f"{side} ids {first_few(names[rows[here]][bad])}: has training diverged?"
            )
    if out is None:
        raise DataError(f"there are no items to encode as {side}")
    return out
