"""The command `hardneg diagnose`."""

from __future__ import annotations

from typing import Any

import click

from hardneg.errors import UsageError

from .main import print_json
from .options import diagnosing
from .show import progress_bars
from .show_diagnosis import print_diagnosis, print_training_diagnosis


@click.command()
@click.argument("run")
@click.option(
    "--encoder", metavar="SPEC", help="The encoder as it is now, to measure how far it has moved since RUN was mined."
)
@click.option(
    "--second-encoder",
    metavar="SPEC",
    help="Another encoder, which scores a sample of the negatives: are they hard for it as well?",
)
@click.option(
    "--evaluation",
    metavar="SOURCE",
    help="Evaluation data, to look for its queries and positives in the data that RUN was mined from.",
)
@click.option(
    "--evaluation-split", metavar="NAME", default="test", show_default=True, help="Split of --evaluation to read."
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
    run: str, temperature: float, encoder: str | None, second_encoder: str | None, evaluation: str | None, evaluation_split: str,
    thresholds: str | None, fail_on: str | None, judgements: str | None, html: str | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Check whether the negatives of RUN are any good, and say what would help. RUN may be the folder of a training, too.

    The command measures, for example, how hard the negatives are, how many of them are false negatives, and how
    diverse they are. It prints the numbers and its findings, the most severe first, each with a suggestion.

    In the report of --html you can search, sort and open the queries, judge pairs with the keys 1 and 0, and save what
    you judged for 'hardneg calibrate'.

    \b
    Examples:
      hardneg diagnose run --html report.html
      hardneg judge run --out f.csv && hardneg diagnose run --html report.html --judgements f.csv
      hardneg diagnose run --encoder hashed:trained/best
      hardneg diagnose run --second-encoder st:all-MiniLM-L6-v2 --evaluation beir/scifact
      hardneg diagnose trained --html training.html
      hardneg diagnose run --fail-on error --json > diagnosis.json
    """
    from hardneg.data.options import ReadOptions
    from hardneg.data.read import read_pairs
    from hardneg.diagnostics.diagnose import diagnose as run_diagnose
    from hardneg.diagnostics.findings.thresholds import Thresholds
    from hardneg.diagnostics.report.page import check_report, write_report
    from hardneg.diagnostics.training_run import is_training_log
    from hardneg.encoders.factory import make_encoder
    from hardneg.mining.run import Run

    if judgements is not None and html is None:
        raise UsageError("--judgements are judged in the report: name its file with --html")
    limits = None if thresholds is None else Thresholds.load(thresholds)
    if is_training_log(run):
        if any(each is not None for each in (encoder, second_encoder, evaluation, judgements)):
            raise click.UsageError(
                f"{run} is a training: --encoder, --second-encoder, --evaluation and --judgements are for runs"
            )
        _training(run, limits, html, as_json, fail_on)
        return
    with progress_bars() as progress:
        present = None if encoder is None else make_encoder(encoder)
        opened = Run(run)
        if html is not None:
            check_report(html, opened, judgements)  # before the work
        diagnosis = run_diagnose(
            opened, temperature=temperature, encoder=present, thresholds=limits, seed=seed, progress=progress,
            second_encoder=None if second_encoder is None else make_encoder(second_encoder),
            evaluation=None if evaluation is None else read_pairs(evaluation, ReadOptions(split=evaluation_split)),
        )  # fmt: skip
        value = diagnosis.to_json()
        if html is not None:
            advance = progress("report", 1)
            write_report(diagnosis, opened, html, judgements=judgements)
            advance(1)
    (print_json if as_json else print_diagnosis)(value)
    if fail_on is not None and diagnosis.fails(fail_on):
        raise click.exceptions.Exit(3)


def _training(run: str, limits: Any, html: str | None, as_json: bool, fail_on: str | None) -> None:
    """Diagnose a training by its log."""
    from hardneg.diagnostics.training_run import diagnose_training

    trained = diagnose_training(run, thresholds=limits)
    if html is not None:
        trained.to_html(html)
    (print_json if as_json else print_training_diagnosis)(trained.to_json())
    if fail_on is not None and trained.fails(fail_on):
        raise click.exceptions.Exit(3)
