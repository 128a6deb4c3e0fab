"""The command `hardneg export`."""

from __future__ import annotations

import click

from .main import print_json
from .plain import plain


@click.command()
@click.argument("run")
@click.option(
    "--format",
    "format_",
    required=True,
    metavar="NAME",
    help="Format to write: triplet · n-tuple · labeled-pair · labeled-list · margin-mse · flagembedding · tevatron · "
    "tevatron-corpus · pylate · ms-swift · msmarco · trec · qrels · beir.",
)
@click.option(
    "--out",
    required=True,
    metavar="F",
    help="A .jsonl, .parquet, .csv or .tsv file; '-' for JSON lines on stdout; any file for trec, qrels and msmarco; a folder for "
    "beir, tevatron-corpus and pylate.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@click.option(
    "--scores",
    is_flag=False,
    flag_value="encoder",
    default=None,
    metavar="WHICH",
    help="Also write scores: encoder (those from mining; what --scores alone means) · teacher or teacher:NAME (of 'hardneg score'). "
    "margin-mse and pylate always hold scores, and take them from there.",
)
@click.option("--ids", is_flag=True, help="Also write ids beside the texts.")
@click.option(
    "--false-probability", is_flag=True, help="Also write how likely each negative is relevant, if the run says so."
)
@click.option(
    "--short",
    default="skip",
    show_default=True,
    metavar="HOW",
    help="What to do with queries without negatives, or for n-tuple with fewer than asked: skip (leave them out, as most "
    "training libraries need) · null (write an empty list, or fill up with nulls).",
)
@click.option(
    "--max-positives",
    type=click.IntRange(1),
    metavar="N",
    help="Most positives to write for each query, those with the highest scores.  [default: all]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object on stdout.")
def export(
    run: str,
    format_: str,
    out: str,
    scores: str | None,
    ids: bool,
    false_probability: bool,
    short: str,
    max_positives: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the negatives of RUN in a format that training libraries read.

    Ids and texts are written exactly as they are, also to .csv and .tsv files, because these are for programs. Do not open
    such a file in a spreadsheet if you do not trust the dataset: cells that start with = + - @ are formulas there.

    A format may be unable to hold some queries, such as those without a positive. The command says how many it left
    out.

    \b
    Examples:
      hardneg export run --format triplet --out triplets.parquet
      hardneg export run --format n-tuple --out - --scores | head -1
      hardneg export run --format margin-mse --scores teacher --out triplets.parquet
    """
    if as_json and out == "-":
        raise click.UsageError("--json and --out - exclude each other: both print to stdout")
    from hardneg.exports.export import export as run_export
    from hardneg.mining.run import Run

    report = run_export(
        Run(run),
        format_,
        out,
        scores=scores or False,
        ids=ids,
        false_probability=false_probability,
        short=short,
        max_positives=max_positives,
        overwrite=overwrite,
    )
    click.echo(f"wrote {report.rows:,} rows for {report.queries:,} queries to {plain(out)}", err=True)
    for reason, count in report.left_out.items():
        click.echo(f"left out: {count:,} {'query' if count == 1 else 'queries'} {reason}", err=True)
    if as_json:
        print_json({"out": out, "rows": report.rows, "queries": report.queries, "left_out": dict(report.left_out)})
