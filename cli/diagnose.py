"""hardneg diagnose"""

from __future__ import annotations

import click

from .main import print_json
from .show import number_rows, print_diagnosis, progress_bars


@click.command()
@click.argument("run")
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=0.05,
    show_default=True,
    help="Of the loss that they are for.",
)
@click.option("--encoder", metavar="SPEC", help="The encoder as it is now: measures how stale the run is.")
@click.option("--thresholds", metavar="F.json", help="From where on a number is a finding: a JSON object.")
@click.option(
    "--fail-on",
    type=click.Choice(["info", "warning", "error"]),
    help="Exit with 3 if there is a finding of this severity or a higher one.",
)
@click.option(
    "--html", metavar="F.html", help="Write a report with charts and examples to look at: one file, no network."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object on stdout.")
def diagnose(
    run: str, temperature: float, encoder: str | None, thresholds: str | None, fail_on: str | None, html: str | None, seed: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Whether the negatives of a run are any good, and what to do about it.

    \b
    Examples:
      hardneg diagnose run --html report.html
      hardneg diagnose run --encoder hashed:trained/best
      hardneg diagnose run --fail-on error --json > diagnosis.json
    """
    from hardneg.diagnostics.diagnose import diagnose as run_diagnose
    from hardneg.diagnostics.findings import Thresholds
    from hardneg.diagnostics.report import write_report
    from hardneg.encoders.base import make_encoder
    from hardneg.mining.run import Run

    limits = None if thresholds is None else Thresholds.load(thresholds)
    with progress_bars() as progress:
        now = None if encoder is None else make_encoder(encoder)
        opened = Run(run)
        found = run_diagnose(
            opened, temperature=temperature, encoder=now, thresholds=limits, seed=seed, progress=progress
        )
        if html is not None:
            advance = progress("report", 1)
            write_report(found, opened, html, number_rows(found.to_json()["numbers"]))
            advance(1)
    if as_json:
        print_json(found.to_json())
    else:
        print_diagnosis(found.to_json())
    if fail_on is not None and found.fails(fail_on):
        raise click.exceptions.Exit(3)
