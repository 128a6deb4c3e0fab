"""`--help` on one screen: the options that matter first. `--help-all` has all of them."""

from __future__ import annotations

import re
from typing import Any

import click

SCREEN = 40  # lines

# The options that matter first, by command and by the names of their parameters, in the order of the screen; a text in place of
# the one in WORDS where the command means something else by it.
COMMON: dict[str, dict[str, str]] = {
    "mine": dict.fromkeys((
        "out", "encoder", "split", "query_column", "positive_column", "corpus", "depth", "negatives", "filters", "sampler",
        "candidates", "index", "query_embeddings", "corpus_embeddings", "device", "resume", "overwrite",
    ), ""),
    "train": dict.fromkeys((
        "out", "more_sources", "encoder", "split", "epochs", "batch_size", "negatives", "filters", "refresh", "bank",
        "learning_rate", "lora", "run", "eval_split", "device", "resume", "overwrite",
    ), ""),
    "select": dict.fromkeys((
        "out", "add_filters", "filters", "negatives", "sampler", "relabel", "evidence", "seed", "overwrite",
    ), "") | {"filters": "Filters in place of those of the run", "evidence": "Judgements to relabel by; repeat for several files"},
    "evaluate": dict.fromkeys((
        "encoder", "split", "measures", "query_embeddings", "corpus_embeddings", "cache", "query_column", "positive_column",
        "corpus", "device", "as_json",
    ), "") | {"split": "Split to evaluate on, where there are several"},
    "inspect": dict.fromkeys((
        "split", "format_", "query_column", "positive_column", "group_column", "relevance_column", "corpus", "own_negatives",
        "images", "as_json",
    ), ""),
    "judge": dict.fromkeys((
        "out", "sample", "judge_spec", "judged", "posterior", "alpha", "of", "predictions", "judge_url", "price", "budget",
    ), "") | {"out": "CSV file to write", "posterior": "Posterior whose threshold you want to certify"},
    "calibrate": dict.fromkeys((
        "out", "learn", "alpha", "confidence", "posterior", "predictions", "trust_judge", "uncertified", "seed", "as_json",
    ), "") | {
        "out": "Posterior to write", "posterior": "Posterior to certify, in place of a new one",
        "predictions": "Judgements of a model for many pairs, corrected by those of a person",
        "seed": "Seed of the folds",
    },
    "score": dict.fromkeys((
        "cross_encoder", "scorer", "scores", "only", "name", "batch_size", "device", "overwrite",
    ), "") | {
        "scores": "File of scores made elsewhere, in place of a model", "overwrite": "Replace the scores of this name",
        "batch_size": "Pairs that the model reads at once",
    },
    "export": dict.fromkeys((
        "format_", "out", "scores", "ids", "false_probability", "short", "max_positives", "overwrite", "as_json",
    ), "") | {
        "out": "File or folder to write; - for JSON lines on stdout", "format_": "triplet, n-tuple, margin-mse, tevatron, beir ...",
        "scores": "Also write scores: encoder or teacher",
    },
    "diagnose": dict.fromkeys((
        "html", "judgements", "encoder", "second_encoder", "evaluation", "fail_on", "temperature", "as_json",
    ), "") | {"encoder": "Encoder of today, to measure how far it has moved since"},
}  # fmt: skip

WORDS = {
    "out": "Folder to write", "resume": "Go on with what was interrupted", "overwrite": "Replace what is there",
    "as_json": "Print one JSON object on stdout", "seed": "Seed of all random choices",
    "encoder": "hashed (built in), st:NAME_OR_FOLDER, open_clip:..., module:...",
    "device": "cpu, cuda, cuda:1", "split": "Split to read, where there are several",
    "format_": "Layout of SOURCE, where it cannot be told", "query_column": "Column of the queries, where its name is unusual",
    "positive_column": "Column of the relevant texts", "group_column": "Column of a label that relevant texts share",
    "relevance_column": "Column of judgements or grades", "corpus": "More documents; repeat for several files",
    "own_negatives": "What the negatives in SOURCE are", "images": "Which side pictures are on",
    "depth": "Candidates for each query", "negatives": "Negatives for each query",
    "filters": "Reject candidates: margin:relative=0.05, posterior:FILE ...; repeat",
    "add_filters": "Filter beside those of the run, such as posterior:FILE; repeat",
    "sampler": "How negatives are drawn: top, uniform, simans ...",
    "candidates": "dense, bm25, trec:FILE, another encoder; repeat", "index": "auto, exact, ivf, hnsw",
    "query_embeddings": "Vectors of the queries, in place of an encoder",
    "corpus_embeddings": "Vectors of the documents, likewise", "cache": "Folder of vectors that runs share",
    "epochs": "Passes over the pairs", "batch_size": "Pairs in a batch",
    "refresh": "When to mine anew: never, epoch, steps:N, staleness:...",
    "bank": "Rows of the memory bank", "learning_rate": "Highest learning rate",
    "lora": "Train small matrices beside the weights, such as r=16",
    "more_sources": "A further dataset, as SOURCE[:WEIGHT]; repeat",
    "run": "Draw from the candidates of this run, and mine none", "eval_split": "Split to evaluate on, or none",
    "relabel": "What to do with candidates that were found relevant", "measures": "ndcg@10, mrr@10, recall@100 ...; repeat",
    "sample": "Pairs to draw", "judge_spec": "person, openai:MODEL or cross-encoder:NAME",
    "judged": "File judged before, with a smaller sample", "alpha": "Share of false negatives to guarantee",
    "of": "What to judge", "predictions": "File of a model, of which a person checks a part",
    "judge_url": "Endpoint of openai:MODEL", "price": "Prices of a million tokens, for the estimate",
    "budget": "Where to stop: 2.50, 200000tokens, 500requests", "learn": "What to learn from",
    "confidence": "Confidence of the guarantee", "trust_judge": "Take the word of a model for the truth",
    "uncertified": "Write a posterior without a guarantee where there is none",
    "cross_encoder": "A cross-encoder by its name or folder", "scorer": "Another teacher, such as encoder:st:NAME",
    "only": "all, kept or first:K candidates",
    "name": "Name of the teacher in RUN", "ids": "Also write ids", "max_positives": "Most positives of a query",
    "false_probability": "Also write how likely each is relevant",
    "short": "skip or null: queries with too few negatives",
    "html": "Write the page to look at and to judge in", "judgements": "Judgements of pairs of this run",
    "second_encoder": "Another encoder, to compare what is hard", "evaluation": "Evaluation set, to find leaks",
    "fail_on": "Exit with 3 from this level of findings", "temperature": "Temperature of your loss",
}  # fmt: skip

_EXTRA = re.compile(r"(\[[^\[\]]{1,40}\])$")


def with_short_help(command: click.Command) -> click.Command:
    """The command, whose --help fits on a screen; the option --help-all shows everything."""
    whole = command.get_help

    def show(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            click.echo(whole(ctx), color=ctx.color)
            ctx.exit()

    def get_help(ctx: click.Context) -> str:
        complete = whole(ctx)
        names = COMMON.get(command.name or "")
        if not names or complete.count("\n") < SCREEN:
            return complete
        return _short(command, ctx, names)

    if not any(parameter.name == "help_all" for parameter in command.params):
        command.params.append(
            click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=show,
                help="Show every option, and exit.",
            )
        )  # fmt: skip
        command.get_help = get_help  # type: ignore[method-assign]
    return command


def _short(command: click.Command, ctx: click.Context, names: dict[str, str]) -> str:
    formatter = ctx.make_formatter()
    command.format_usage(ctx, formatter)
    paragraphs = [each.replace("\b\n", "").strip() for each in (command.help or "").split("\n\n")]
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text(" ".join(paragraphs[0].split()))
    for examples in paragraphs:
        if examples.startswith("Examples:"):
            lines = [line.strip() for line in examples.splitlines()]
            formatter.write("\n" + "\n    ".join([f"  {lines[0]}", *lines[1:]]) + "\n")
    options = {each.name: each for each in command.params if isinstance(each, click.Option)}
    with formatter.section("Common options"):
        formatter.write_dl([_one_line(options[name], words or WORDS[name], ctx) for name, words in names.items()])
    total = sum(not each.hidden for each in options.values())
    formatter.write(f"\n{ctx.command_path} --help-all shows all {total} options, and says more of each.\n")
    return formatter.getvalue().rstrip("\n")


def _one_line(option: click.Option, words: str, ctx: click.Context) -> tuple[str, str]:
    """The name of an option, and its words with what click adds, such as the default."""
    record: Any = option.get_help_record(ctx)
    extra = _EXTRA.search(record[1])
    name = record[0] if len(record[0]) <= 30 else record[0].split(" [")[0]
    return name.ljust(30), f"{words}  {extra.group(1)}" if extra else words
