"""hardneg train"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .main import print_json
from .mine import FILTER_HELP, SAMPLER_HELP
from .options import Command, Renamed, filter_spec
from .show import LiveNumbers, print_training, progress_bars, warn

if TYPE_CHECKING:
    from hardneg.encoders.base import Encoder
    from hardneg.training.options import TrainOptions


def _number(name: str, low: float, text: str) -> Callable[[Command], Command]:
    """An option that takes a number of at least `low`: an integer if `low` is one, else any number."""
    return click.option(name, type=click.IntRange(low) if isinstance(low, int) else click.FloatRange(low), help=text)


@click.command(cls=Renamed)
@click.argument("source")
@click.option("--out", required=True, metavar="DIR", help="The folder to write.")
@click.option(
    "--encoder", default="hashed", show_default=True,
    help="The encoder to train: hashed · hashed:FOLDER · st:NAME_OR_PATH · glyphs · module:PKG.MOD:FACTORY",
)  # fmt: skip
@click.option("--split", default="train", show_default=True, help="Split of SOURCE to train on.")
@click.option("--eval-source", metavar="SOURCE", help="Dataset to evaluate on.  [default: SOURCE]")
@click.option("--eval-split", default="test", show_default=True, help="Split to evaluate on; none: no evaluation.")
@click.option(
    "--run",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Take all negatives from this run instead of mining while training.",
)
@click.option(
    "--self-supervised",
    is_flag=True,
    help="Train without labels, on two views of each document. Needs an encoder with dropout.",
)
@_number(
    "--dropout",
    0.0,
    "Share of features that the encoder 'hashed' drops while training.  [default: 0; with --self-supervised 0.3]",
)
@_number("--epochs", 0.0, "Passes over the pairs.  [default: 3]")
@_number("--steps", 1, "Number of weight updates, instead of --epochs.")
@_number("--batch-size", 1, "Pairs per batch.  [default: 64]")
@_number("--accumulate", 1, "Batches per weight update (gradient accumulation).  [default: 1]")
@_number("--mini-batch-size", 1, "Texts encoded at once, so that a batch may be larger than memory (gradient caching).")
@_number("--negatives", 0, "Mined negatives for each query; 0: in-batch negatives only.  [default: 4]")
@click.option("--negative-sampling", help=f"How mined negatives are drawn: {SAMPLER_HELP}  [default: uniform]")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    callback=filter_spec,
    metavar="SPEC",
    help=f"{FILTER_HELP} · posterior:learned",
)
@click.option("--no-default-filters", is_flag=True, help="Use only 'known' and the filters given with --filter.")
@click.option(
    "--refresh",
    metavar="WHEN",
    help="When to mine again: never · epoch · steps:N · staleness:drift=0.05,check=100  [default: epoch]",
)
@_number(
    "--share",
    0.0,
    "Share of the documents that a refresh encodes; the others' vectors are drift-compensated.  [default: 1]",
)
@_number("--depth", 1, "Candidates kept for each query.  [default: 50]")
@_number("--lag", 0, "Steps between starting a refresh and using it.  [default: half the steps between two refreshes]")
@click.option(
    "--no-wait", is_flag=True, help="Use a refresh as soon as it is ready: training never waits, but is not repeatable."
)
@_number("--bank", 0, "Rows of the memory bank; 0: no bank.  [default: 0]")
@_number("--bank-age", 1, "Batches after which a row of the bank is no longer used.  [default: no limit]")
@_number("--bank-start", 0, "Batches before the bank is used.  [default: one epoch]")
@_number(
    "--bank-fresh",
    0.0,
    "Share of the bank encoded again before each batch; the rest is drift-compensated.  [default: 0]",
)
@_number("--momentum", 0.0, "Momentum of a second encoder that fills the bank (MoCo).  [default: none]")
@_number("--temperature", 0.0, "Temperature of the loss.  [default: 0.05]")
@click.option("--learn-temperature", is_flag=True, help="Learn the temperature as well.")
@click.option("--symmetric", is_flag=True, help="Also rank the queries of each document, as CLIP does.")
@_number("--learning-rate", 0.0, "Peak learning rate.  [default: 0.001; for st: encoders 0.00002]")
@_number("--weight-decay", 0.0, "Weight decay of AdamW.  [default: 0]")
@_number("--warmup", 0.0, "Share of the steps in which the learning rate rises.  [default: 0.1]")
@click.option(
    "--lr-scheduler",
    type=click.Choice(["constant", "linear", "cosine"]),
    help="Learning rate after the warm-up.  [default: linear]",
)
@_number("--max-grad-norm", 0.0, "Norm to which gradients are clipped; 0: no clipping.  [default: 1]")
@click.option("--amp", type=click.Choice(["no", "bf16", "fp16"]), help="Mixed precision.  [default: no]")
@_number("--evaluate-every", 1, "Updates between evaluations.  [default: one epoch]")
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="NAME@K",
    help="What to evaluate; the first one decides which encoder is best.  [default: ndcg@10 mrr@10 recall@100]",
)
@click.option(
    "--zero-shot", is_flag=True, help="Also evaluate zero-shot classification: documents classified by the queries."
)
@_number("--save-every", 1, "Updates between checkpoints.  [default: one epoch]")
@_number("--log-every", 1, "Updates between two log entries.  [default: 10]")
@click.option("--query-prompt", help="Text that is put before each query.")
@click.option("--document-prompt", help="Text that is put before each document.")
@_number("--workers", 0, "Worker processes that prepare batches.  [default: 0]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", help="cpu · cuda.  [default: a GPU if there is one]")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all cores]")
@click.option("--tensorboard", is_flag=True, help="Also write for TensorBoard, in DIR/tensorboard.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue an interrupted training. The result is the same as without the interruption.",
)
@click.option("--overwrite", is_flag=True, help="Replace the training in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object on stdout.")
def train(source: str, out: str, as_json: bool, **given: Any) -> None:
    """Train an encoder on the pairs of SOURCE with mined negatives.

    The best encoder (by --measure on --eval-split) is saved in DIR/best, the last one in DIR/last. On several GPUs:
    torchrun --nproc-per-node 8 -m hardneg_cli train SOURCE --out DIR

    \b
    Examples:
      hardneg train builtin:pycode --out trained --refresh steps:100 --negative-sampling simans --filter posterior:learned
      hardneg train beir/scifact --out trained --encoder st:all-MiniLM-L6-v2 --batch-size 128 --mini-batch-size 32
      hardneg train pairs.jsonl --out trained --run run --eval-split none
      hardneg train builtin:glyphs --out trained --encoder glyphs --symmetric --zero-shot
    """
    if given["resume"] and given["overwrite"]:
        raise click.UsageError("--resume and --overwrite exclude each other")
    from hardneg.data.options import ReadOptions
    from hardneg.data.read import read_pairs
    from hardneg.mining.run import Run
    from hardneg.training.evaluation_set import EvaluationSet
    from hardneg.training.self_supervised import two_views
    from hardneg.training.train import train as run_train

    options = _options(given)
    if given["threads"] is not None:
        import torch

        torch.set_num_threads(given["threads"])
    model = _model(given)
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    with progress_bars(quiet=not leads) as progress:
        pairs = read_pairs(source, ReadOptions(split=given["split"]))
        if given["self_supervised"]:
            pairs = two_views(pairs)
        evaluation = None
        if given["eval_split"] != "none":
            where = given["eval_source"] or source
            evaluation = EvaluationSet(
                read_pairs(where, ReadOptions(split=given["eval_split"])), zero_shot=given["zero_shot"]
            )
        run = None if given["run"] is None else Run(given["run"])
        result = run_train(
            pairs, model, out, options, evaluation=evaluation, run=run, callbacks=[LiveNumbers()],
            warn=lambda message: warn([message] if leads else []), progress=progress,
            **{name: given[name] for name in ("device", "resume", "overwrite", "tensorboard")},
        )  # fmt: skip
    if not leads:
        return
    if as_json:
        print_json(result)
    else:
        kind = given["encoder"].partition(":")[0]
        print_training(result, out, source, kind if kind in ("hashed", "st", "glyphs") else None)


def _options(given: dict[str, Any]) -> TrainOptions:
    """The options of the training; those that were not given keep the defaults of `TrainOptions`."""
    from hardneg.losses.variants import Variants
    from hardneg.training.options import TrainOptions

    known = {field.name for field in fields(TrainOptions)}
    chosen = {n: v for n, v in given.items() if n in known and v is not None and v != ()}
    if given["encoder"].startswith("st:"):
        chosen.setdefault("learning_rate", 2e-5)
    if chosen.get("max_grad_norm") == 0:
        chosen["max_grad_norm"] = None
    return TrainOptions(
        **chosen,
        default_filters=not given["no_default_filters"],
        wait=not given["no_wait"],
        variants=Variants(symmetric=given["symmetric"]),
    )


def _model(given: dict[str, Any]) -> Encoder:
    """The encoder to train, with dropout where that is asked for."""
    from hardneg.encoders.factory import make_encoder
    from hardneg.errors import UsageError

    model = make_encoder(given["encoder"], seed=given["seed"], device=given["device"])
    dropout = given["dropout"] if given["dropout"] is not None else 0.3 if given["self_supervised"] else 0.0
    if dropout and hasattr(model, "dropout"):
        model.dropout = dropout
    elif given["dropout"] or (dropout and not given["encoder"].startswith("st:")):
        raise UsageError(f"--dropout is for the encoder 'hashed': {given['encoder']} has dropout of its own or none")
    return model
