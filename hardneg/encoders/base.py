"""What an encoder is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns texts into vectors."""

    @property
    def dimension(self) -> int:
        """Components d of each vector."""
        ...

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> NDArray[np.float32]:
        """float32 `[len(texts), d]`; `prompt` stands before each text, or is handled as the model wants it."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever the vectors would: a hash of the weights and of what else decides them."""
        ...


@runtime_checkable
class Fittable(Protocol):
    """An encoder that looks at the dataset before it can encode."""

    def fit(self, texts: Sequence[str]) -> None: ...

    @property
    def fitted(self) -> bool: ...


@runtime_checkable
class Trainable(Encoder, Protocol):
    """An encoder that can be trained: a `torch.nn.Module`, too."""

    def vectors(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
        """float `[n, d]`, with gradients, on the device of the weights."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write it to where a spec (`hashed:FOLDER`, `st:FOLDER`) can load it from."""
        ...
