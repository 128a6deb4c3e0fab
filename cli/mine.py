"""The command `hardneg mine`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from .main import print_json
from .options import (
    CANDIDATES_HELP,
    FILTER_HELP,
    FILTERS_AND_SAMPLERS,
    FORCE_HELP,
    NO_DEFAULT_FILTERS_HELP,
    SEED,
    THREADS,
    Finite,
    Sectioned,
    encoding,
    filter_spec,
)
from .reading import read_options, reading
from .show import print_summary, progress_bars, say, summary, warn

_SECTIONS = {
    "out": "Output",
    "split": "Reading SOURCE",
    "encoder": "Vectors",
    "index": "Search",
    "filters": "Filters and negatives",
    "threads": "Other options",
    "engine": "Several workers",
}


@click.command(cls=Sectioned, sections=_SECTIONS, epilog=FILTERS_AND_SAMPLERS)
@click.argument("source")
@click.option("--out", required=True, metavar="RUN", help="Folder to write the run to.")
@click.option(
    "--resume", is_flag=True, help="Continue an interrupted run. The result is the same as without the interruption."
)
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on stdout.")
@reading()
@encoding
@click.option(
    "--precision",
    default="float16",
    show_default=True,
    metavar="NAME",
    help="Number format of the stored vectors: float16 · float32.",
)
@click.option(
    "--cache",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder that keeps the vectors, so that several runs can share them.  [default: inside the run]",
)
@click.option(
    "--index",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Search index: exact · ivf and hnsw (approximate) · auto (exact or ivf, by the size of the data).",
)
@click.option(
    "--recall",
    type=Finite(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    metavar="SHARE",
    help="Share of the nearest documents that ivf and hnsw should find. They are tuned to it, and the share that they "
    "do find is measured. With 1, the search is exact.",
)
@click.option(
    "--index-device",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Device on which an exact index searches: cpu · cuda.",
)
@click.option(
    "--metric",
    default="cosine",
    show_default=True,
    metavar="NAME",
    help="Score of a query and a document: cosine · ip (inner product) · l2 (minus the squared distance).",
)
@click.option("--candidates", multiple=True, metavar="SPEC", help=CANDIDATES_HELP)
@click.option(
    "--fusion",
    default="rrf",
    show_default=True,
    metavar="SPEC",
    help="How the lists of several --candidates become one: rrf:k=60 (reciprocal ranks) · scores (each scaled to 0 to 1) · "
    "interleave (in turn). rrf and scores take weights, as in rrf:weights=2/1.",
)
@click.option(
    "--depth",
    type=click.IntRange(1),
    metavar="N",
    help="Candidates for each query: the documents nearest to it, or the first ones of each of several --candidates, and of "
    "their fused list.  [default: 100, or all documents if there are fewer]",
)
@click.option(
    "--max-depth",
    type=click.IntRange(1),
    metavar="N",
    help="How deep to search for a query that the filters leave with too few negatives.  [default: 4 * depth]",
)
@click.option("--filter", "filters", multiple=True, callback=filter_spec, metavar="SPEC", help=FILTER_HELP)
@click.option("--no-default-filters", is_flag=True, help=NO_DEFAULT_FILTERS_HELP)
@click.option("--force", is_flag=True, help=FORCE_HELP)
@click.option(
    "--sampler",
    default="top",
    show_default=True,
    metavar="SPEC",
    help="How negatives are drawn among the candidates that pass the filters; all samplers are listed below.",
)
@click.option(
    "--negatives", type=click.IntRange(1), default=7, show_default=True, metavar="N", help="Negatives for each query."
)
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="N", help="Seed of all random choices.")
@click.option("--threads", type=THREADS, metavar="N", help="Number of CPU threads.  [default: all cores]")
@click.option(
    "--engine",
    metavar="NAME",
    help="Cut the pass into tasks, and have them done by local (this process, one after the other) · processes:N · ray:N (the "
    "workers of a cluster; needs hardneg[ray]). The run is the same, byte for byte.",
)
@click.option(
    "--shards",
    type=click.IntRange(1),
    metavar="N",
    help="Shards of the corpus with --engine.  [default: one for each worker]",
)
@click.option(
    "--plan",
    type=click.IntRange(1),
    metavar="SHARDS",
    help="Only read SOURCE and write the plan of the tasks, for workers on any machines: hardneg work RUN.",
)
def mine(source: str, out: str, as_json: bool, **given: Any) -> None:
    """Find hard negatives for every query of SOURCE.

    For each query, the command searches the nearest documents (the candidates), rejects candidates with filters, and
    draws the negatives among the others. The run folder records every candidate and which filter rejected it.

    SOURCE is a BEIR folder; a .jsonl, .csv, .tsv or .parquet file of pairs ("-": JSON lines on stdin); a saved Hugging
    Face dataset; a FlagEmbedding or Tevatron file; or a built-in dataset, builtin:pycode or builtin:glyphs.

    \b
    Examples:
      hardneg mine builtin:pycode --out run
      hardneg mine pairs.jsonl --out run --encoder st:all-MiniLM-L6-v2 --filter margin:relative=0.05
      hardneg mine beir/scifact --out run --split train --sampler simans --negatives 10
      hardneg mine pairs.jsonl --out run --candidates dense --candidates bm25
      cat pairs.jsonl | hardneg mine - --out run --json
      hardneg mine pairs.jsonl --out run --plan 64
    """
    if given["resume"] and given["overwrite"]:
        raise click.UsageError("--resume and --overwrite exclude each other")
    _check_engine(given)
    from hardneg.mining.mine import mine as run_mine
    from hardneg.mining.options import MineOptions

    options = MineOptions(
        read=read_options(given),
        default_filters=not given["no_default_filters"],
        candidates=given["candidates"] or ("dense",),
        **{
            name: given[name]
            for name in (
                "encoder", "query_embeddings", "corpus_embeddings", "index", "recall", "index_device", "metric", "depth", "max_depth",
                "negatives",
                "filters", "sampler", "fusion", "seed", "query_prompt", "document_prompt", "precision", "encoder_precision",
            )
        },
    )  # fmt: skip
    if given["plan"] is not None:
        _plan(source, out, options, as_json, given)
        return
    before = Path(out) / "run.json"
    finished = given["resume"] and before.is_file()
    common = {
        name: given[name] for name in ("resume", "overwrite", "force", "threads", "batch_size", "device", "cache")
    }
    with progress_bars() as progress:
        if given["engine"] is not None:
            from hardneg.tasks.mine import mine_with

            more = {"shards": given["shards"], "progress": progress, "command": sys.argv[1:]}
            run, losses = mine_with(given["engine"], source, out, options, **common, **more)
            for line in losses.said():
                say(line)
        else:
            run = run_mine(
                source, out, options, progress=progress, command=sys.argv[1:], devices=given["devices"], **common
            )
    if finished:
        say(f"{out} was finished before: nothing was mined, and the inputs are those of then.")
    report(run.info, out, as_json)


def _check_engine(given: dict[str, Any]) -> None:
    """UsageError for options of several workers that exclude each other."""
    if given["plan"] is not None and (given["engine"] is not None or given["shards"] is not None):
        raise click.UsageError("--plan SHARDS writes a plan and does nothing else: leave --engine and --shards out")
    if given["plan"] is not None and (given["resume"] or given["overwrite"]):
        raise click.UsageError("--plan needs a folder of its own: leave --resume and --overwrite out")
    if given["shards"] is not None and given["engine"] is None:
        raise click.UsageError("--shards needs --engine, such as --engine processes")
    if given["devices"] is not None and (given["plan"] is not None or given["engine"] is not None):
        raise click.UsageError(
            "--devices is for one process: each worker of --engine has a device of its own (--device)"
        )


def _plan(source: str, out: str, options: Any, as_json: bool, given: dict[str, Any]) -> None:
    """Write the plan of a pass, and say how it is worked on."""
    from hardneg.tasks.graph import Schedule
    from hardneg.tasks.mine import plan_run

    with progress_bars() as progress:
        plan = plan_run(
            source, out, options, shards=given["plan"], progress=progress, command=sys.argv[1:],
            **{name: given[name] for name in ("force", "batch_size", "device", "cache")},
        )  # fmt: skip
    tasks = len(Schedule(plan).tasks)
    if as_json:
        print_json({"plan": out, "tasks": tasks, "shards": plan.shard_count, "blocks": plan.block_count})
        return
    say(
        f"{out} holds a plan of {tasks:,} tasks: {plan.documents:,} documents in {plan.shard_count:,} shards, "
        f"{plan.queries:,} queries in {plan.block_count:,} blocks. Start any number of workers: hardneg work {shlex.quote(out)}"
    )


def report(info: dict[str, Any], out: str, as_json: bool, selected: bool = False) -> None:
    """Print the summary of a run with the content `info` of its run.json, and its warnings on stderr; see `summary`."""
    value = summary(info, out, selected)
    warn(value["warnings"])
    if as_json:
        print_json(value)
    else:
        print_summary(value)
