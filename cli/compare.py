"""The command `hardneg compare`."""

from __future__ import annotations

import click

from .main import print_json
from .options import diagnosing
from .show import print_comparison, progress_bars


@click.command()
@click.argument("run_a")
@click.argument("run_b")
@diagnosing
def compare(
    run_a: str, run_b: str, temperature: float, thresholds: str | None, html: str | None, seed: int, as_json: bool
) -> None:
    """Show what changed from RUN_A to RUN_B, two runs over the same dataset.

    The command compares the numbers and findings of 'hardneg diagnose', and counts the candidates whose verdict
    changed.

    \b
    Examples:
      hardneg compare run run2
      hardneg compare run run2 --html changes.html
    """
    from hardneg.diagnostics.compare import compare as run_compare
    from hardneg.diagnostics.findings.thresholds import Thresholds
    from hardneg.diagnostics.report.page import write_comparison

    limits = None if thresholds is None else Thresholds.load(thresholds)
    with progress_bars() as progress:
        comparison = run_compare(run_a, run_b, temperature=temperature, thresholds=limits, seed=seed, progress=progress)
        value = comparison.to_json()
        if html is not None:
            write_comparison(comparison, html)
    (print_json if as_json else print_comparison)(value)
