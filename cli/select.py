"""hardneg select"""

from __future__ import annotations

import sys
from typing import Any

import click

from .mine import FILTER_HELP, SAMPLER_HELP, report
from .options import filter_spec
from .show import progress_bars


@click.command()
@click.argument("run")
@click.option(
    "--out", metavar="RUN2", help="Write a new run folder.  [default: replace RUN; run.json keeps the history]"
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    callback=filter_spec,
    metavar="SPEC",
    help=FILTER_HELP + "  [default: those of the run]",
)
@click.option(
    "--default-filters/--no-default-filters",
    default=None,
    help="Whether to use the filters 'empty' and 'duplicate:text'.",
)
@click.option("--sampler", help=SAMPLER_HELP + "  [default: that of the run]")
@click.option("--negatives", type=click.IntRange(1), help="Negatives for each query.  [default: as in the run]")
@click.option("--seed", type=click.IntRange(0), help="[default: that of the run]")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("--force", is_flag=True, help="Use a posterior even if it was learned with another encoder.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Texts per batch, for guide models."
)
@click.option("--device", help="Device of guide models.")
@click.option("--json", "as_json", is_flag=True, help="Print the closing table as one JSON object on stdout.")
def select(run: str, out: str | None, filters: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Filter and sample the candidates of RUN again, without a new search.

    \b
    Examples:
      hardneg select run --filter margin:relative=0.1 --out run2
      hardneg select run --sampler uniform --seed 1
    """
    from hardneg.mining.select import SelectOptions
    from hardneg.mining.select import select as run_select

    options = SelectOptions(
        filters=filters or None, **{name: given[name] for name in ("default_filters", "sampler", "negatives", "seed")}
    )
    with progress_bars() as progress:
        selected = run_select(
            run, options, out, progress=progress, command=sys.argv[1:],
            **{name: given[name] for name in ("overwrite", "force", "batch_size", "device")},
        )  # fmt: skip
    report(selected.info, out or run, as_json)
