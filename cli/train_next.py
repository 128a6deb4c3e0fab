"""The command that `hardneg train` names at its end: mine with the encoder that it trained, what it was trained on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .plain import quoted
from .reading import typed_options
from .source_columns import Given

if TYPE_CHECKING:
    from .train_sources import Source

_LOADED = ("hashed", "st", "glyphs", "open_clip")  # kinds of encoders that a spec loads from a folder

# Options that are not of reading, and mean the same in `mine`.
_MORE = ("query_prompt", "document_prompt", "no_default_filters")


def mine_with_it(
    ctx: click.Context,
    sources: Sequence[Source],
    read_with: Sequence[Given],
    kind: str,
    out: str,
    result: dict[str, Any],
) -> list[str]:
    """The commands that mine each source with the encoder that was trained, and read it as the training did.

    Args:
        ctx: the training, as it was called.
        sources: its sources.
        read_with: the options that each was read with.
        kind: the kind of the encoder. For one that no spec loads, there is no command.
        out: the folder of the training.
        result: the content of train.json.
    """
    from hardneg.data.mixing import numbered, source_name

    if kind not in _LOADED:
        return []
    which = "best" if result["best"] is not None else "last"
    more = ["--metric", "ip"] if result["options"]["metric"] == "ip" else []
    out = out.rstrip("/")
    names = numbered([source_name(each.spec) for each in sources])
    found = []
    for name, source, given in zip(names, sources, read_with, strict=True):
        words = [*typed_options(ctx, given), *typed_options(ctx, given, _MORE), *more, *_filters(given["filters"])]
        run = f"{out}-run" if len(sources) == 1 else f"{out}-run-{name}"
        found.append(mine_command(source.spec, words, f"{kind}:{out}/{which}", run))
    return found


def mine_command(source: str, words: Sequence[str], encoder: str, run: str) -> str:
    """A command that mines a source with an encoder, into a folder of this name, or with a number behind it, that is free."""
    said = ["hardneg", "mine", source, *words, "--encoder", encoder, "--out", _free(run)]
    return ("cat FILE | " if source == "-" else "") + " ".join(map(quoted, said))


def _filters(specs: Sequence[str]) -> list[str]:
    """The filters of a training that hold for the trained encoder as well."""
    from hardneg.diagnostics.commands import of_one_encoder

    return [word for spec in specs if not of_one_encoder(spec) for word in ("--filter", spec)]


def _free(name: str) -> str:
    """The name, or with a number behind it, of a folder that is not there yet."""
    return next(each for i in itertools.count(1) if not os.path.exists(each := name if i == 1 else f"{name}{i}"))
