"""The command `hardneg select`."""

from __future__ import annotations

import sys
from typing import Any

import click

from .mine import report
from .options import FILTER_HELP, FILTERS_AND_SAMPLERS, FORCE_HELP, SEED, batch_size_option, filter_spec
from .show import progress_bars


@click.command(epilog=FILTERS_AND_SAMPLERS)
@click.argument("run")
@click.option(
    "--out",
    metavar="RUN2",
    help="Folder to write a new run to.  [default: replace the negatives of RUN; run.json keeps the history]",
)
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    callback=filter_spec,
    metavar="SPEC",
    help=FILTER_HELP + "  [default: the filters of the run]",
)
@click.option(
    "--add-filter",
    "add_filters",
    multiple=True,
    callback=filter_spec,
    metavar="SPEC",
    help="Also reject candidates with this filter, after all others. It keeps the filters of the run.",
)
@click.option(
    "--default-filters/--no-default-filters",
    default=None,
    help="Switch the filters 'empty', 'duplicate:text' and 'distinct' on or off.  [default: as in the run]",
)
@click.option("--force", is_flag=True, help=FORCE_HELP)
@click.option(
    "--sampler",
    metavar="SPEC",
    help="How negatives are drawn among the candidates that pass the filters; all samplers are listed below.  "
    "[default: the sampler of the run]",
)
@click.option(
    "--negatives", type=click.IntRange(1), metavar="N", help="Negatives for each query.  [default: as in the run]"
)
@click.option("--seed", type=SEED, metavar="N", help="Seed of all random choices.  [default: the seed of the run]")
@click.option(
    "--relabel",
    type=click.Choice(["drop", "ignore", "promote", "none"]),
    help="What to do with candidates that --evidence found relevant: drop them as negatives · ignore them, also where they "
    "occur in training by chance · promote them to positives. none undoes it.  [default: as in the run]",
)
@click.option(
    "--evidence", multiple=True, metavar="F.csv", help="Judgements for --relabel; repeat the option for several files."
)
@click.option(
    "--promote-from",
    type=float,
    metavar="GRADE",
    help="Lowest grade or score that --relabel promote makes a positive; what is relevant, but below, is ignored.",
)
@click.option(
    "--leave-out",
    type=click.File("r", encoding="utf-8"),
    metavar="F.txt",
    help="Ids of queries, one a line, whose known positives are left out ('hardneg check-pairs').",
)
@batch_size_option("Texts that the model of the filter 'guide' encodes at once.")
@click.option("--device", metavar="NAME", help="Device of the model of the filter 'guide', such as cpu or cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on stdout.")
def select(run: str, out: str | None, filters: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Filter and sample the candidates of RUN again, without a new search.

    Options that are not given keep their value from the run. The candidates stay the same: no query is searched deeper.

    \b
    Examples:
      hardneg select run --filter margin:relative=0.1 --out run2
      hardneg select run --add-filter posterior:run/posterior.json --out run3
      hardneg select run --sampler uniform --seed 1
      hardneg select run --relabel promote --evidence judged.csv --out run4
    """
    from hardneg.mining.select import SelectOptions
    from hardneg.mining.select import select as run_select

    options = SelectOptions(
        filters=filters or None,
        **{
            name: given[name]
            for name in ("add_filters", "default_filters", "sampler", "negatives", "seed", "relabel", "promote_from")
        },
        evidence=given["evidence"] or None,
        leave_out=() if given["leave_out"] is None else tuple(given["leave_out"].read().splitlines()),
    )
    with progress_bars() as progress:
        selected = run_select(
            run, options, out, progress=progress, command=sys.argv[1:],
            **{name: given[name] for name in ("overwrite", "force", "batch_size", "device")},
        )  # fmt: skip
    if not as_json and "relabelled" in selected.info:
        counts = ", ".join(f"{name} {n:,}" for name, n in selected.info["relabelled"].items())
        click.echo(f"relabelled: {counts}", err=True)
    report(selected.info, out or run, as_json, selected=True)
