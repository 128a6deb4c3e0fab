"""The command `hardneg diagnose`."""

from __future__ import annotations

import click

from hardneg.errors import UsageError

from .main import print_json
from .options import diagnosing
from .show import print_diagnosis, progress_bars


@click.command()
@click.argument("run")
@click.option(
    "--encoder", metavar="SPEC", help="The encoder as it is now, to measure how far it has moved since RUN was mined."
)
@click.option(
    "--fail-on",
    type=click.Choice(["info", "warning", "error"]),
    help="Exit with code 3 if there is a finding of this severity or a higher one.",
)
@click.option(
    "--judgements",
    metavar="F.csv",
    help="Pairs that 'hardneg judge' drew, to judge in the report of --html.",
)
@diagnosing
def diagnose(
    run: str, temperature: float, encoder: str | None, thresholds: str | None, fail_on: str | None, judgements: str | None,
    html: str | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Check whether the negatives of RUN are any good, and say what would help.

    The command measures, for example, how hard the negatives are, how many of them are false negatives, and how
    diverse they are. It prints the numbers and its findings, the most severe first, each with a suggestion.

    In the report of --html you can search, sort and open the queries, judge pairs with the keys 1 and 0, and save what
    you judged for 'hardneg calibrate'.

    \b
    Examples:
      hardneg diagnose run --html report.html
      hardneg judge run --out f.csv && hardneg diagnose run --html report.html --judgements f.csv
      hardneg diagnose run --encoder hashed:trained/best
      hardneg diagnose run --fail-on error --json > diagnosis.json
    """
    from hardneg.diagnostics.diagnose import diagnose as run_diagnose
    from hardneg.diagnostics.findings.thresholds import Thresholds
    from hardneg.diagnostics.report.page import write_report
    from hardneg.encoders.factory import make_encoder
    from hardneg.mining.run import Run

    if judgements is not None and html is None:
        raise UsageError("--judgements are judged in the report: name its file with --html")
    limits = None if thresholds is None else Thresholds.load(thresholds)
    with progress_bars() as progress:
        present = None if encoder is None else make_encoder(encoder)
        opened = Run(run)
        diagnosis = run_diagnose(
            opened, temperature=temperature, encoder=present, thresholds=limits, seed=seed, progress=progress
        )
        value = diagnosis.to_json()
        if html is not None:
            advance = progress("report", 1)
            write_report(diagnosis, opened, html, judgements=judgements)
            advance(1)
    (print_json if as_json else print_diagnosis)(value)
    if fail_on is not None and diagnosis.fails(fail_on):
        raise click.exceptions.Exit(3)
