"""Options that several commands have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
_DIAGNOSING = (
    click.option(
        "--temperature", type=click.FloatRange(0, min_open=True), default=0.05, show_default=True,
        help="Of the loss that the negatives are for.",
    ),
    click.option("--thresholds", metavar="F.json", help="From where on a number is a finding: a JSON object."),
    click.option("--html", metavar="F.html", help="Write a report to look at: one file, no network."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the samples."),
    click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object on stdout."),
)  # fmt: skip


def encoding(command: Command) -> Command:
    """What says how texts become vectors, or where the vectors are."""
    return _with(_ENCODING, command)


def diagnosing(command: Command) -> Command:
    """How negatives are judged, and where that is said."""
    return _with(_DIAGNOSING, command)


def _with(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
