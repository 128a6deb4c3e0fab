"""The command `hardneg doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from .main import print_json
from .show_machine import print_examination


@click.command()
@click.option(
    "--encoder",
    metavar="SPEC",
    help="Also load this encoder, and say what is picked for it. Takes the forms of 'hardneg mine --encoder'.",
)
@click.option(
    "--dimension", type=click.IntRange(1), metavar="N",
    help="Components of the vectors for which the search is measured.  [default: those of --encoder, or 384]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def doctor(encoder: str | None, dimension: int | None, as_json: bool) -> None:
    """Show what this machine has, how fast it multiplies, and what will be picked on it, and why.

    Nothing is read or written. It takes a few seconds.

    \b
    Examples:
      hardneg doctor
      hardneg doctor --encoder st:all-MiniLM-L6-v2 --json
    """
    from hardneg.encoders.factory import make_encoder
    from hardneg.encoders.report import encoding_of
    from hardneg.mining.doctor import examine

    used = None
    if encoder is not None:
        made = make_encoder(encoder, precision="auto")
        used = {"spec": encoder, "dimension": made.dimension, **encoding_of(made, None, None)}
    found = examine(Path("."), dimension or (384 if used is None else used["dimension"]))
    if used is not None:
        found["encoder"] = used
    if as_json:
        print_json(found)
    else:
        print_examination(found)
