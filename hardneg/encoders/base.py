"""What an encoder is, and how one is named on the command line."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hardneg.data.store import read_json
from hardneg.errors import UsageError, suggestion

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


KINDS = ("hashed", "st", "glyphs", "module")


def make_encoder(spec: str, *, seed: int = 0, device: str | None = None, batch_size: int = 32) -> Encoder:
    """The encoder that `spec` names.

    Args:
        spec: `hashed`, `hashed:FOLDER` (saved weights), `st:NAME_OR_PATH`, `glyphs`, `glyphs:FOLDER` or `module:PKG.MOD:FACTORY`.
        seed: of the initialisation of `hashed` and `glyphs`.
        device: for `st`; by default what torch finds.
        batch_size: texts a batch, for `st`.

    Raises:
        UsageError: the spec names nothing that can be loaded.
    """
    kind, _, rest = spec.partition(":")
    if kind == "hashed":
        from hardneg.encoders.hashed import HashedEncoder

        return HashedEncoder.load(rest) if rest else HashedEncoder(seed=seed)
    if kind == "st" and rest:
        from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder

        return SentenceTransformersEncoder(rest, device=device, batch_size=batch_size)
    if kind == "glyphs":
        from hardneg.encoders.glyphs import GlyphEncoder

        return GlyphEncoder.load(rest) if rest else GlyphEncoder(seed=seed)
    if kind == "module" and rest:
        encoder = call_factory(rest)
        if not isinstance(encoder, Encoder):
            missing = [name for name in ("dimension", "encode", "fingerprint") if not hasattr(encoder, name)]
            raise UsageError(
                f"{spec}: the factory returned a {type(encoder).__name__}, which is no encoder: it lacks {', '.join(missing)}"
            )
        return encoder
    if kind in KINDS:
        raise UsageError(f"the encoder {spec!r} is incomplete: write st:NAME_OR_PATH or module:PKG.MOD:FACTORY")
    raise UsageError(
        f"unknown encoder {spec!r}.{suggestion(kind, KINDS)} Forms: hashed, st:NAME_OR_PATH, glyphs, module:PKG.MOD:FACTORY"
    )


def saved_config(kind: str, folder: Path) -> dict[str, Any]:
    """`config.json` of an encoder of this kind that was saved; UsageError when there is none."""
    if not (folder / "config.json").exists():
        raise UsageError(f"{kind}:{folder}: there is no saved encoder (no config.json)")
    return read_json(folder / "config.json")


def call_factory(spec: str) -> object:
    """What the function named by `PKG.MOD:FACTORY` returns."""
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise UsageError(f"module:{spec} is incomplete: write module:PKG.MOD:FACTORY")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"module:{spec}: cannot import {module_name!r} ({error}); is its folder on PYTHONPATH?"
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        functions = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise UsageError(f"module:{spec}: {module_name!r} has no function {name!r}.{suggestion(name, functions)}")
    result: object = factory()
    return result
