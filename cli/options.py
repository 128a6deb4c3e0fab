"""Options that several commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Command = Callable[..., Any]

_ENCODING = (
    click.option(
        "--encoder",
        default="hashed",
        show_default=True,
        help="hashed · hashed:FOLDER · st:NAME_OR_PATH · module:PKG.MOD:FACTORY",
    ),
    click.option("--query-embeddings", metavar="F.npy", help="Vectors of the queries, in file order: skip encoding."),
    click.option(
        "--corpus-embeddings", metavar="F.npy", help="Vectors of the documents, in file order: skip encoding."
    ),
    click.option("--query-prompt", default="", help="Text put before each query."),
    click.option("--document-prompt", default="", help="Text put before each document."),
    click.option(
        "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Texts a batch, for st encoders."
    ),
    click.option("--device", help="Device of st encoders.  [default: what torch finds]"),
)


def encoding(command: Command) -> Command:
    """What says how texts become vectors, or where the vectors are."""
    for option in reversed(_ENCODING):
        command = option(command)
    return command
