"""Makes encoders from specs, such as `hashed` or `st:NAME_OR_PATH`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from hardneg import registry
from hardneg.encoders.base import Encoder, dimension_of
from hardneg.errors import UsageError, suggestion

FORMS = (
    "hashed, st:NAME_OR_PATH[,backend=onnx|openvino], open_clip:MODEL,pretrained=TAG, glyphs, module:PKG.MOD:FACTORY"
)


@dataclass(frozen=True)
class EncoderOptions:
    """Options for making an encoder, in addition to its spec.

    Attributes:
        seed: seed of the initial weights, for encoders without saved weights.
        device: device of sentence-transformers models; None lets the model choose.
        batch_size: texts per batch at most, for sentence-transformers models; None: as many as is fast.
        precision: number format in which sentence-transformers models multiply: `auto`, `float32`, `bfloat16` or `float16`.
    """

    seed: int = 0
    device: str | None = None
    batch_size: int | None = None
    precision: str = "float32"


def make_encoder(
    spec: str, *, seed: int = 0, device: str | None = None, batch_size: int | None = None, precision: str = "float32"
) -> Encoder:
    """The encoder that `spec` names.

    Args:
        spec: `hashed`, `hashed:FOLDER` (saved weights), `st:NAME_OR_PATH`, `open_clip:MODEL,pretrained=TAG_OR_FILE`,
            `open_clip:FOLDER` (saved weights), `glyphs`, `glyphs:FOLDER`, `module:PKG.MOD:FACTORY`, or a name registered with
            `hardneg.registry.register`, with `:` and a value if it takes one.
        seed, device, batch_size, precision: see `EncoderOptions`.

    Raises:
        UsageError: the spec is unknown or incomplete, or the encoder cannot be loaded.

    >>> make_encoder("hashed", seed=1).dimension
    256
    """
    kind, _, rest = check_kind(spec).partition(":")
    encoder = registry.find("encoder", kind)(rest, EncoderOptions(seed, device, batch_size, precision))
    return checked_encoder(encoder, spec)


def check_kind(spec: str) -> str:
    """The spec itself; UsageError if no encoder has its name. Nothing is loaded."""
    kind, known = spec.partition(":")[0], registry.names("encoder")
    if kind not in known:
        raise UsageError(f"unknown encoder {spec!r}.{suggestion(kind, known)} Forms: {FORMS}")
    return spec


def is_sentence_transformer(given: object) -> bool:
    """Whether an object is a model of sentence-transformers, told without importing that package."""
    return any(
        each.__name__ == "SentenceTransformer" and each.__module__.startswith("sentence_transformers")
        for each in type(given).__mro__
    )


def checked_encoder(given: object, where: str, batch_size: int | None = None, precision: str = "float32") -> Encoder:
    """`given` itself, if it is an encoder; a `SentenceTransformer` as an encoder.

    Args:
        given: what may be an encoder.
        where: where it comes from, for the message: its spec, or the name of an argument.
        batch_size, precision: see `EncoderOptions`, for a `SentenceTransformer`.

    Raises:
        UsageError: it lacks a member that every encoder has, or it is the spec or the class of an encoder.
    """
    if isinstance(given, str):
        raise UsageError(f"{where}: {given!r} is a spec, not an encoder: hardneg.make_encoder({given!r}) makes one")
    if is_sentence_transformer(given):
        wrapped: Encoder = registry.find("encoder", "st")(
            given, EncoderOptions(batch_size=batch_size, precision=precision)
        )
        return wrapped
    if isinstance(given, type):
        raise UsageError(f"{where}: {given.__name__} is a class, not an encoder: give an object, {given.__name__}(...)")
    methods = ("encode", "fingerprint")
    missing = [name for name in ("dimension", *methods) if not hasattr(given, name)]
    missing += [name for name in methods if name not in missing and not callable(getattr(given, name))]
    if missing:
        raise UsageError(
            f"{where}: a {type(given).__name__} is not an encoder: it lacks {', '.join(missing)} (see hardneg.encoders.Encoder)"
        )
    dimension_of(given)
    encoder: Any = given
    made: Encoder = encoder
    return made


def object_spec(given: object) -> str:
    """What is recorded of an encoder that is an object in memory: that it is one, and of which class. Nothing makes it again.

    >>> object_spec(1)
    'object:builtins.int'
    """
    kind = given if isinstance(given, type) else type(given)
    return f"object:{kind.__module__}.{kind.__qualname__}"


def incomplete(spec: str) -> UsageError:
    """The error for a spec that lacks the name of the model or of the function."""
    return UsageError(f"the encoder {spec!r} is incomplete: write st:NAME_OR_PATH or module:PKG.MOD:FACTORY")


def from_module(rest: str, options: EncoderOptions) -> object:
    """Make the encoder of the spec `module:PKG.MOD:FACTORY`; `rest` is the part after `module:`."""
    if not rest:
        raise incomplete("module:")
    return call_factory(rest)


def call_factory(spec: str) -> object:
    """Import the module PKG.MOD, call its function FACTORY without arguments, and return the result.

    Raises:
        UsageError: `spec` is incomplete, the module cannot be imported, or it has no such function.
    """
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
