"""The command `hardneg verify`."""

from __future__ import annotations

from pathlib import Path

import click

from .main import print_json
from .plain import quoted
from .show import progress_bars


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def verify(run: Path, as_json: bool) -> None:
    """Check every file of RUN against its checksum.

    Other commands check what they read; texts and vectors of more than 64 MB are not read whole for that each time. This command
    reads all of them. Exit code 1: a file is missing or damaged; it is named.

    \b
    Example:
      hardneg verify run
    """
    from hardneg.mining.run import Run

    with progress_bars() as progress:
        advance = progress("verify", 1)
        found = Run(run, verify="all")
        advance(1)
    files = found.info["files"]
    size = sum((run / name).stat().st_size for name in files)
    if as_json:
        print_json({"files": len(files), "bytes": size})
    else:
        click.echo(f"{quoted(str(run))}: all {len(files):,} files are as they were written ({size / 1e9:,.2f} GB)")
