"""hardneg compare"""

from __future__ import annotations

import click

from .main import print_json
from .show import comparison_rows, print_comparison, progress_bars


@click.command()
@click.argument("run_a")
@click.argument("run_b")
@click.option(
    "--temperature", type=click.FloatRange(0, min_open=True), default=0.05, show_default=True, help="Of the loss."
)
@click.option("--thresholds", metavar="F.json", help="From where on a number is a finding: a JSON object.")
@click.option("--html", metavar="F.html", help="Write a report to look at: one file, no network.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object on stdout.")
def compare(
    run_a: str, run_b: str, temperature: float, thresholds: str | None, html: str | None, seed: int, as_json: bool
) -> None:
    """What has changed from RUN_A to RUN_B, two runs over one dataset.

    \b
    Examples:
      hardneg compare run run2
      hardneg compare run run2 --html changes.html
    """
    from hardneg.diagnostics.compare import compare as run_compare
    from hardneg.diagnostics.findings import Thresholds
    from hardneg.diagnostics.report import write_comparison

    limits = None if thresholds is None else Thresholds.load(thresholds)
    with progress_bars() as progress:
        found = run_compare(run_a, run_b, temperature=temperature, thresholds=limits, seed=seed, progress=progress)
        if html is not None:
            write_comparison(found, html, comparison_rows(found.to_json()))
    if as_json:
        print_json(found.to_json())
    else:
        print_comparison(found.to_json())
