"""hardneg mine"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .main import print_json
from .options import encoding, filter_spec
from .show import print_summary, progress_bars, summary, warn

FILTER_HELP = (
    "A filter. Repeat the option for several; they apply in order, after 'known', 'empty' and 'duplicate:text'. "
    "duplicate:near=0.95 · distinct · group · rank:min=10,max=100 · score:min=0.2,max=0.8 · margin:absolute=0.05 · "
    "margin:relative=0.05 · shared-neighbors:max=0.25 · guide:st:NAME,margin=0 · cross-encoder:NAME,max=0.3 · "
    "posterior:FILE,threshold=0.1"
)
SAMPLER_HELP = "top · uniform · softmax:temperature=0.05 · simans:a=100,b=0"


@click.command()
@click.argument("source")
@click.option("--out", required=True, metavar="RUN", help="The run folder to write.")
@encoding
@click.option("--index", default="auto", show_default=True, help="auto (by the sizes) · exact · ivf · hnsw")
@click.option(
    "--recall",
    type=float,
    default=0.95,
    show_default=True,
    help="Share of the nearest documents that ivf and hnsw should find. What they really find is measured. 1 means exact.",
)
@click.option(
    "--index-device", default="cpu", show_default=True, help="Device on which an exact index searches: cpu · cuda"
)
@click.option(
    "--metric",
    default="cosine",
    show_default=True,
    help="cosine · ip (inner product) · l2 (minus the squared distance)",
)
@click.option(
    "--depth",
    type=click.IntRange(1),
    help="Candidates kept for each query.  [default: 100, or all documents if there are fewer]",
)
@click.option(
    "--max-depth",
    type=click.IntRange(1),
    help="How deep the search may go for a query that is left with too few candidates.  [default: 4 * depth]",
)
@click.option("--negatives", type=click.IntRange(1), default=7, show_default=True, help="Negatives for each query.")
@click.option("--filter", "filters", multiple=True, callback=filter_spec, metavar="SPEC", help=FILTER_HELP)
@click.option("--no-default-filters", is_flag=True, help="Use only 'known' and the filters given with --filter.")
@click.option("--sampler", default="top", show_default=True, help=SAMPLER_HELP)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--precision", default="float16", show_default=True, help="Number format of stored vectors: float16 · float32"
)
@click.option(
    "--split", default="train", show_default=True, help="Split of a BEIR folder, a saved dataset, or a built-in set."
)
@click.option(
    "--format", "format_", default="auto", show_default=True, help="auto · beir · pairs · flagembedding · tevatron"
)
@click.option(
    "--query-column",
    metavar="NAME",
    help="Column of the queries. Only columns with unusual names need this and the next five.",
)
@click.option("--positive-column", metavar="NAME")
@click.option("--id-column", metavar="NAME")
@click.option("--document-id-column", metavar="NAME")
@click.option("--group-column", metavar="NAME")
@click.option(
    "--relevance-column",
    metavar="NAME",
    help="Column of graded judgements: above 0 means relevant, 0 judged not relevant.",
)
@click.option("--corpus", metavar="F", type=click.Path(path_type=Path), help="A file of further documents.")
@click.option("--skip-unknown", is_flag=True, help="Skip judgements that name unknown ids, and say how many.")
@click.option(
    "--resume", is_flag=True, help="Continue an interrupted run. The result is the same as without the interruption."
)
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("--force", is_flag=True, help="Use a posterior even if it was learned with another encoder.")
@click.option(
    "--cache",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder for embeddings, so that several runs can share them.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print the closing table as one JSON object on stdout.")
def mine(source: str, out: str, as_json: bool, **given: Any) -> None:
    """Find hard negatives for every query of SOURCE: search, filter, sample.

    SOURCE is a BEIR folder; a .jsonl, .csv, .tsv or .parquet file of pairs ("-": JSON lines on stdin); a
    saved Hugging Face dataset; a FlagEmbedding or Tevatron file; or builtin:pycode.

    \b
    Examples:
      hardneg mine builtin:pycode --out run
      hardneg mine pairs.jsonl --out run --encoder st:all-MiniLM-L6-v2 --filter margin:relative=0.05
      hardneg mine beir/scifact --out run --split train --sampler simans --negatives 10
      cat pairs.jsonl | hardneg mine - --out run --json
    """
    if given["resume"] and given["overwrite"]:
        raise click.UsageError("--resume and --overwrite exclude each other")
    from hardneg.data.options import ReadOptions
    from hardneg.mining.mine import mine as run_mine
    from hardneg.mining.options import MineOptions

    read = ReadOptions(
        format=given["format_"],
        **{
            name: given[name]
            for name in (
                "split", "query_column", "positive_column", "id_column", "document_id_column", "group_column",
                "relevance_column", "corpus", "skip_unknown",
            )
        },
    )  # fmt: skip
    options = MineOptions(
        read=read,
        default_filters=not given["no_default_filters"],
        **{
            name: given[name]
            for name in (
                "encoder", "query_embeddings", "corpus_embeddings", "index", "recall", "index_device", "metric", "depth", "max_depth",
                "negatives",
                "filters", "sampler", "seed", "query_prompt", "document_prompt", "precision",
            )
        },
    )  # fmt: skip
    with progress_bars() as progress:
        run = run_mine(
            source,
            out,
            options,
            progress=progress,
            command=sys.argv[1:],
            **{
                name: given[name]
                for name in ("resume", "overwrite", "force", "threads", "batch_size", "device", "cache")
            },
        )
    report(run.info, out, as_json)


def report(info: dict[str, Any], out: str, as_json: bool) -> None:
    value = summary(info, out)
    warn(value["warnings"])
    if as_json:
        print_json(value)
    else:
        print_summary(value)
