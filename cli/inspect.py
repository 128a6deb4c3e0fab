"""The command `hardneg inspect`."""

from __future__ import annotations

from typing import Any

import click

from .main import print_json
from .options import Sectioned
from .reading import read_options, reading
from .show import print_inspection, progress_bars

_SECTIONS = {"split": "Reading SOURCE", "as_json": "Output"}


@click.command(cls=Sectioned, sections=_SECTIONS)
@click.argument("source")
@reading()
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def inspect(source: str, as_json: bool, **given: Any) -> None:
    """Show what SOURCE is taken for, before anything is mined.

    Prints the format, the columns and what each was taken for, how many pairs, queries, documents, judged negatives and
    groups there are, three examples, and what is odd about the data.

    \b
    Examples:
      hardneg inspect pairs.jsonl
      hardneg inspect triples.tsv --own-negatives judged
      hardneg inspect beir/scifact --split test --json
    """
    from hardneg.data.inspect import inspect as run_inspect

    with progress_bars() as progress:
        found = run_inspect(source, read_options(given), progress=progress)
    if as_json:
        print_json(found)
    else:
        print_inspection(found)
