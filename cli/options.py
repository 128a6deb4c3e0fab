"""Options that several commands share, and the old names of options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import click

from hardneg import renamed

Command = Callable[..., Any]


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


_ENCODING = (
    click.option(
        "--encoder",
        default="hashed",
        show_default=True,
        help="hashed · hashed:FOLDER · st:NAME_OR_PATH · module:PKG.MOD:FACTORY",
    ),
    click.option(
        "--query-embeddings", metavar="F.npy", help="Vectors of the queries, in the order of the file. Skips encoding."
    ),
    click.option(
        "--corpus-embeddings",
        metavar="F.npy",
        help="Vectors of the documents, in the order of the file. Skips encoding.",
    ),
    click.option("--query-prompt", default="", help="Text that is put before each query."),
    click.option("--document-prompt", default="", help="Text that is put before each document."),
    click.option(
        "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Texts per batch, for st: encoders."
    ),
    click.option("--device", help="Device of st: encoders.  [default: a GPU if torch finds one]"),
)
_DIAGNOSING = (
    click.option(
        "--temperature", type=click.FloatRange(0, min_open=True), default=0.05, show_default=True,
        help="Temperature of the loss that will train on the negatives.",
    ),
    click.option("--thresholds", metavar="F.json", help="A JSON object with limits above or below which a number becomes a finding."),
    click.option("--html", metavar="F.html", help="Also write a report as one self-contained HTML file."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the samples that are measured."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout."),
)  # fmt: skip


class Renamed(click.Command):
    """A command that still takes the options and filters of version 0.1 under their old names, with a note on stderr."""

    OLD: ClassVar[dict[str, str]] = {"--views": "--self-supervised"}
    OLD.update({_dashed(old): _dashed(new) for old, new in renamed.TRAIN_OPTIONS.items()})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts}
        return super().parse_args(ctx, [self._new(argument, known) for argument in args])

    def _new(self, argument: str, known: set[str]) -> str:
        name, equals, value = argument.partition("=")
        new = self.OLD.get(name)
        if new is not None and name not in known and new in known:
            click.echo(f"note: {name} is called {new} now; the old name goes with version 0.3", err=True)
            return new + equals + value
        return argument


def filter_spec(ctx: click.Context, parameter: click.Parameter, specs: tuple[str, ...]) -> tuple[str, ...]:
    """Filters by their new names; a note on stderr where an old one was typed."""
    for spec in specs:
        new = renamed.filter_spec(spec)
        if new != spec:
            click.echo(
                f"note: the filter {spec!r} is written {new!r} now; the old name goes with version 0.3", err=True
            )
    return tuple(map(renamed.filter_spec, specs))


def encoding(command: Command) -> Command:
    """Options that say how texts become vectors, or which files hold the vectors."""
    return _with(_ENCODING, command)


def diagnosing(command: Command) -> Command:
    """Options of the commands that diagnose runs."""
    return _with(_DIAGNOSING, command)


def _with(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
