"""The command `hardneg score`."""

from __future__ import annotations

from typing import Any

import click

from .main import print_json
from .options import batch_size_option
from .plain import plain
from .show import progress_bars


@click.command()
@click.argument("run")
@click.option(
    "--scorer",
    required=True,
    metavar="SPEC",
    help="The teacher: cross-encoder:NAME_OR_PATH · encoder:SPEC (the cosine by another encoder, as in encoder:st:NAME). Both take "
    "batch=N.",
)
@click.option(
    "--only",
    default="all",
    show_default=True,
    metavar="WHICH",
    help="Candidates to score, besides all positives: all · kept (those that no filter rejects) · first:K (the first K).",
)
@click.option(
    "--name",
    default="teacher",
    show_default=True,
    metavar="NAME",
    help="Name of the teacher in RUN, for teacher:NAME in filters and exports.",
)
@click.option("--overwrite", is_flag=True, help="Replace the scores of this name.")
@batch_size_option("Pairs that the model reads at once.")
@click.option(
    "--device", metavar="NAME", help="Device of the model, such as cpu or cuda.  [default: a GPU if torch finds one]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def score(run: str, scorer: str, as_json: bool, **given: Any) -> None:
    """Score the positives and candidates of RUN with a teacher, and keep the scores in RUN.

    Scores are made once: the filters 'teacher:' and 'cross-encoder:', 'hardneg calibrate', 'hardneg judge' and 'hardneg export
    --scores teacher' read them. They are bound to the weights of the model and to the texts. After an interruption, the same command
    goes on where it stopped.

    \b
    Examples:
      hardneg score run --scorer cross-encoder:cross-encoder/ms-marco-MiniLM-L6-v2 --only first:50
      hardneg select run --add-filter teacher:margin=0.5 --out run2
      hardneg export run2 --format margin-mse --scores teacher --out triplets.parquet
    """
    from hardneg.mining.score import score as run_score

    with progress_bars() as progress:
        done = run_score(run, scorer, progress=progress, **given)
    click.echo(
        f"scored {done.new:,} pairs with {plain(done.scorer)}, {done.pairs - done.new:,} of {done.pairs:,} were scored before: "
        f"{plain(str(done.folder))}",
        err=True,
    )
    if as_json:
        print_json(done.to_json())
