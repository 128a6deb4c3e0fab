"""The command `hardneg score`."""

from __future__ import annotations

import sys
from typing import Any

import click

from hardneg.errors import UsageError

from .main import print_json
from .options import batch_size_option
from .plain import plain
from .show import progress_bars, warn


@click.command()
@click.argument("run")
@click.option(
    "--scorer",
    metavar="SPEC",
    help="The teacher: cross-encoder:NAME_OR_PATH · encoder:SPEC (the cosine by another encoder, as in encoder:st:NAME). Both take "
    "batch=N.",
)
@click.option(
    "--cross-encoder",
    metavar="NAME",
    help="A cross-encoder by its name or folder: short for --scorer cross-encoder:NAME.",
)
@click.option(
    "--scores",
    metavar="FILE",
    help="Instead of a model: scores that were made elsewhere. JSON lines, CSV, TSV or Parquet with query_id, document_id and score, "
    "a TREC run, or rows with pos_scores and neg_scores beside the ids.",
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
def score(run: str, scorer: str | None, cross_encoder: str | None, as_json: bool, **given: Any) -> None:
    """Score the positives and candidates of RUN with a teacher, or by a file of scores, and keep them in RUN.

    Scores are made once: the filters 'teacher:' and 'cross-encoder:', 'hardneg calibrate', 'hardneg judge' and 'hardneg export
    --scores teacher' read them. They are bound to the weights of the model, or to the content of the file, and to the texts. After
    an interruption, the same command goes on where it stopped.

    \b
    Examples:
      hardneg score run --cross-encoder cross-encoder/ms-marco-MiniLM-L6-v2 --only first:50
      hardneg score run --scores reranked.jsonl --name api
      hardneg select run --add-filter teacher:margin=0.5 --out run2
      hardneg export run2 --format margin-mse --scores teacher --out triplets.parquet
    """
    from hardneg.mining.score import score as run_score

    if cross_encoder is not None:
        if scorer is not None:
            raise UsageError("--cross-encoder and --scorer both name a teacher: give one")
        scorer = f"cross-encoder:{cross_encoder}"
    with progress_bars() as progress:
        done = run_score(run, scorer, progress=progress, command=sys.argv, **given)
    before, folder = f"{done.pairs - done.new:,} of {done.pairs:,} were scored before", plain(str(done.folder))
    if done.file is None:
        click.echo(f"scored {done.new:,} pairs with {plain(done.scorer)}, {before}: {folder}", err=True)
    else:
        warn(done.file.notes)
        click.echo(
            f"took the scores of {done.file.candidates:,} of {done.file.of_candidates:,} candidates and {done.file.positives:,} of "
            f"{done.file.of_positives:,} positives from {plain(done.file.file)}, {before}: {folder}",
            err=True,
        )
    if as_json:
        print_json(done.to_json())
