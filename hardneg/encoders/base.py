"""Protocols of encoders: what an encoder must have, and what it may have; and a check of the vectors that it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import DataError, UsageError

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Encoder(Protocol):
    """An encoder: any object that turns texts into vectors and has these three members."""

    @property
    def dimension(self) -> int:
        """d, the number of components of each vector."""
        ...

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> NDArray[np.float32]:
        """The vectors of n texts, float32 `[n, d]`. `prompt` is put before each text, or handled by the model."""
        ...

    def fingerprint(self) -> str:
        """A hash of the weights and of all else that the vectors depend on. It changes whenever the vectors do."""
        ...


@runtime_checkable
class Fittable(Protocol):
    """An encoder that must be fitted to a sample of the dataset's texts before it can encode."""

    def fit(self, texts: Sequence[str]) -> None:
        """Fit the encoder to a sample of queries and documents."""
        ...

    @property
    def fitted(self) -> bool:
        """Whether the encoder can encode already."""
        ...


@runtime_checkable
class Trainable(Encoder, Protocol):
    """An encoder that can be trained. It must also be a `torch.nn.Module`.

    It may have a `learning_rate`, the highest one that suits it, which a training uses unless another one is given.
    """

    def vectors(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
        """The vectors of n texts, float `[n, d]`, with gradients, on the device of the weights."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the encoder to a folder, from which a spec such as `hashed:FOLDER` or `st:FOLDER` can load it."""
        ...


def prompt_of(encoder: Any, side: str, given: str | None) -> str:
    """The text that is put before each item of a side.

    Args:
        encoder: an encoder, which may have `prompts`, a mapping from sides to texts.
        side: `query` or `document`.
        given: a text that was asked for; None: the encoder's own for that side, if it has one.

    >>> prompt_of(object(), "query", None), prompt_of(object(), "query", "find: ")
    ('', 'find: ')
    """
    if given is not None:
        return given
    own = getattr(encoder, "prompts", None)
    return str(own.get(side) or "") if isinstance(own, Mapping) else ""


def dimension_of(encoder: Any) -> int:
    """d of an encoder; UsageError if its `dimension` is not a number of components."""
    dimension = encoder.dimension
    if isinstance(dimension, bool) or not isinstance(dimension, int | np.integer) or dimension < 1:
        raise UsageError(
            f"the encoder {type(encoder).__name__} has dimension={dimension!r}: it must be the number of components of "
            f"its vectors, 1 or more"
        )
    return int(dimension)


def checked_vectors(returned: Any, count: int, dimension: int, encoder: object) -> NDArray[Any]:
    """The vectors that an encoder returned, real numbers `[count, dimension]`.

    Without this check numpy would repeat a single vector for all texts, and drop the imaginary part of complex numbers.

    Args:
        returned: what `encode` returned: an array, or a tensor of torch, whose gradients are left out.
        count: number of texts.
        dimension: d.
        encoder: the encoder, named in the message.

    Raises:
        DataError: the shape is another one, or the values are not real numbers.

    >>> checked_vectors([[1, 2]], 1, 2, "an encoder").shape
    (1, 2)
    """
    name = type(encoder).__name__
    try:
        if hasattr(returned, "detach"):
            tensor = returned.detach().cpu()
            returned = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # numpy has no bfloat16
        array: NDArray[Any] = np.asarray(returned)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the encoder {name} returned a {type(returned).__name__} that is no array of numbers ({error}): it must "
            f"return float32 [n, d]"
        ) from None
    if array.dtype.kind not in "fiu":
        raise DataError(
            f"the encoder {name} returned values of type {array.dtype}, expected real numbers: it must return float32 [n, d]"
        )
    if array.shape != (count, dimension):
        raise DataError(
            f"the encoder {name} returned shape {list(array.shape)} for {count:,} texts, expected [{count}, {dimension}]"
        )
    return array
