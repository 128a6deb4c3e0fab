"""The command `hardneg compare`."""

from __future__ import annotations

import click

from .main import print_json
from .options import diagnosing
from .show import progress_bars
from .show_diagnosis import print_comparison, print_ranking


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN_A RUN_B...")
@diagnosing
def compare(
    runs: tuple[str, ...], temperature: float, thresholds: str | None, html: str | None, seed: int, as_json: bool
) -> None:
    """Compare runs over the same dataset, before anyone trains on them.

    Of two runs, the command shows what changed from the first to the second: the numbers and findings of 'hardneg
    diagnose', and the candidates whose verdict changed. It ranks two or more by what their negatives promise to teach,
    with 95 % intervals of the differences, paired by query. Groups tell which negatives are false, or else the posterior
    of one calibrated run; runs of several encoders are scored by each of them.

    \b
    Examples:
      hardneg compare run run2
      hardneg compare run run2 --html changes.html
      hardneg compare run-a run-b run-c run-d
    """
    if len(runs) < 2:
        raise click.UsageError("give two or more runs to compare")
    if len(runs) == 2:
        _two(runs[0], runs[1], temperature, thresholds, html, seed, as_json)
        return
    from hardneg.diagnostics.ranking import rank
    from hardneg.diagnostics.report.plain_page import write_ranking

    if thresholds is not None:
        raise click.UsageError("--thresholds is for two runs: a ranking has no findings")
    with progress_bars() as progress:
        ranking = rank(runs, temperature=temperature, seed=seed, progress=progress)
    value = ranking.to_json()
    if html is not None:
        write_ranking(ranking, html)
    (print_json if as_json else print_ranking)(value)


def _two(
    run_a: str, run_b: str, temperature: float, thresholds: str | None, html: str | None, seed: int, as_json: bool
) -> None:
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
