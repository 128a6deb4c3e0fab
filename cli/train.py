"""The command `hardneg train`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .main import print_json
from .options import (
    ENCODER_HELP,
    FILTER_HELP,
    FILTERS_AND_SAMPLERS,
    NO_DEFAULT_FILTERS_HELP,
    SEED_OF_MODELS,
    THREADS,
    Command,
    Finite,
    Renamed,
    filter_spec,
)
from .reading import reading
from .show import LiveNumbers, print_training, progress_bars, say, warn
from .train_inputs import model_of
from .train_next import mine_with_it
from .train_sources import read_sources, sources_of

if TYPE_CHECKING:
    from hardneg.training.options import TrainOptions


_SECTIONS = {
    "out": "Output",
    "more_sources": "Reading SOURCE",
    "encoder": "Encoder",
    "epochs": "Duration and batches",
    "negatives": "Mined negatives",
    "refresh": "Mining again while training (refresh)",
    "bank": "Memory bank",
    "metric": "Loss",
    "lora": "What is trained, and how",
    "eval_source": "Evaluation",
    "seed": "Other options",
}


def _number(
    name: str, low: float, text: str, high: float | None = None, *, above: bool = False, below: bool = False
) -> Callable[[Command], Command]:
    """An option for a number of at least `low`: an integer if `low` is one, otherwise any finite number.

    Args:
        name: the name of the option.
        low: the lowest value.
        text: the help text.
        high: the highest value; None: none.
        above, below: whether a number that is no integer must differ from `low`, and from `high`.
    """
    if isinstance(low, int):
        return click.option(name, type=click.IntRange(low, None if high is None else int(high)), metavar="N", help=text)
    return click.option(name, type=Finite(low, high, min_open=above, max_open=below), metavar="X", help=text)


@click.command(cls=Renamed, sections=_SECTIONS, epilog=FILTERS_AND_SAMPLERS)
@click.argument("source", required=False)
@click.option("--out", required=True, metavar="DIR", help="Folder to write to.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue an interrupted training. On the CPU, the result is the same as without the interruption, unless "
    "--no-wait is given. With more --steps, --epochs or --patience: go on with a finished one.",
)
@click.option("--overwrite", is_flag=True, help="Replace the training in --out.")
@_number("--save-every", 1, "Steps between two checkpoints.  [default: one epoch]")
@_number("--keep", 1, "Number of checkpoints to keep, the last ones.  [default: 1]")
@_number(
    "--log-every",
    1,
    "Steps between two entries of log.jsonl; the terminal shows some of them, one in a few seconds.  [default: 10]",
)
@click.option(
    "--report-to",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb"]),
    help="Where else the numbers of the log go: TensorBoard (to DIR/tensorboard), or Weights & Biases (the project that the "
    "environment variable WANDB_PROJECT names, or hardneg). May be repeated.",
)
@click.option("--tensorboard", is_flag=True, help="The same as --report-to tensorboard.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object on stdout.")
@click.option(
    "--source",
    "more_sources",
    multiple=True,
    metavar="SOURCE[:WEIGHT]",
    help="A further dataset to train on; repeat the option for several. Each batch, its negatives included, is of one source. "
    "scifact:2.0: an epoch goes through its pairs twice; 0.1: through a tenth of them, others each time. SOURCE takes a weight as "
    "well. Options that name columns hold for the sources that have these, all others for all.",
)
@reading("train", "Split of SOURCE to train on.")
@click.option(
    "--encoder",
    default="hashed",
    show_default=True,
    metavar="SPEC",
    help=f"Encoder to train: {ENCODER_HELP}.",
)
@click.option(
    "--query-prompt",
    metavar="TEXT",
    help="Text that is put before each query.  [default: what the model has itself for queries]",
)
@click.option("--document-prompt", metavar="TEXT", help="Text that is put before each document.  [default: likewise]")
@click.option(
    "--self-supervised",
    is_flag=True,
    help="Train without labels, on two views of each document: its vectors with different dropout. Needs an encoder "
    "with dropout.",
)
@_number(
    "--dropout",
    0.0,
    "Share of features that the encoder 'hashed' drops while training.  [default: 0; with --self-supervised 0.3]",
    1.0,
    below=True,
)
@_number("--epochs", 0.0, "Number of passes over the pairs.  [default: 3]", 1e9, above=True)
@_number("--steps", 1, "Number of steps (weight updates), instead of --epochs.")
@_number("--batch-size", 1, "Pairs per batch.  [default: 64]")
@click.option(
    "--batches",
    metavar="SPEC",
    help="Which pairs stand in a batch together: random · hard:group=32 (pairs that are hard for one another by the mined "
    "candidates, in groups of 32) · hard:graph=training (by the vectors of the last epoch: nothing is mined or encoded for it).  "
    "[default: random]",
)
@_number("--accumulate", 1, "Batches per step (gradient accumulation).  [default: 1]")
@_number("--mini-batch-size", 1, "Texts encoded at once, so that a batch can be larger than memory (gradient caching).")
@_number("--workers", 0, "Processes that prepare batches; 0: the training process itself.  [default: 0]", 1024)
@_number("--negatives", 0, "Mined negatives for each query; 0: in-batch negatives only.  [default: 4]")
@click.option(
    "--negative-sampling",
    metavar="SPEC",
    help="How negatives are drawn among the candidates that pass the filters; all samplers are listed below.  "
    "[default: uniform]",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    callback=filter_spec,
    metavar="SPEC",
    help=f"{FILTER_HELP} Filters that judge a pair by itself also work on in-batch negatives and the bank.",
)
@click.option("--no-default-filters", is_flag=True, help=NO_DEFAULT_FILTERS_HELP)
@click.option(
    "--run",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Draw negatives from the candidates of this run all the time, instead of mining while training.",
)
@click.option(
    "--refresh",
    metavar="WHEN",
    help="When to mine again: never · epoch · steps:N · staleness:drift=0.05,check=100 (when the vectors have moved by "
    "0.05, measured every 100 steps).  [default: epoch]",
)
@_number(
    "--share",
    0.0,
    "Share of the documents that a refresh encodes; the vectors of the others are drift-compensated.  [default: 1]",
    1.0,
    above=True,
)
@_number("--depth", 1, "Candidates for each query.  [default: 50]")
@_number(
    "--lag", 0, "Steps between the start of a refresh and its use.  [default: half the steps between two refreshes]"
)
@click.option(
    "--no-wait",
    is_flag=True,
    help="Use each refresh as soon as it is ready. Training never waits, but it cannot be repeated exactly.",
)
@_number(
    "--bank", 0, "Rows of the memory bank, which keeps vectors of past batches as negatives; 0: no bank.  [default: 0]"
)
@_number("--bank-age", 1, "Batches after which a row is no longer used.  [default: no limit]")
@_number("--bank-start", 0, "Batches before the bank is used.  [default: one epoch]")
@_number(
    "--bank-fresh",
    0.0,
    "Share of the rows that is encoded again before each batch; the others are drift-compensated.  [default: 0]",
    1.0,
)
@_number(
    "--momentum",
    0.0,
    "Fill the bank from a second encoder that keeps this share of its weights at each step, such as 0.99 (MoCo).",
    1.0,
    below=True,
)
@click.option(
    "--metric",
    metavar="NAME",
    help="What vectors are compared by, in the loss, by the miner and in evaluations: cosine · ip (inner product, which learns their "
    "lengths as well).  [default: cosine]",
)
@_number(
    "--temperature",
    0.005,
    "Temperature of the loss; without --metric ip at most 1.  [default: 0.05; with --metric ip 1]",
    1000.0,
)
@click.option("--learn-temperature", is_flag=True, help="Learn the temperature, starting from --temperature.")
@click.option(
    "--distill",
    metavar="SPEC",
    help="Also learn the scores of the teacher of --run (see hardneg score): kl (over the negatives of each query and its "
    "positive) or margin-mse, as in margin-mse:weight=0.1 or kl:alone,temperature=2,teacher=NAME. alone: without InfoNCE.",
)
@click.option("--symmetric", is_flag=True, help="Also rank the queries for each document, as CLIP does.")
@click.option(
    "--lora",
    metavar="SPEC",
    help="Train small matrices beside the weights of an st: model: a rank, such as 8, or r=16,alpha=32,dropout=0.1. The "
    "saved encoder is a plain model, with the matrices alone in its folder 'adapter'.",
)
@click.option(
    "--freeze",
    multiple=True,
    metavar="PATTERN",
    help="Parameters that are not trained, by a pattern of their names, such as '*.embeddings.*'.",
)
@click.option(
    "--learning-rate-of",
    "learning_rates",
    multiple=True,
    metavar="PATTERN=RATE",
    help="A learning rate of their own for the parameters that fit a pattern.",
)
@click.option(
    "--gradient-checkpointing",
    is_flag=True,
    help="Compute activations of an st: model again in place of keeping them: less memory, a third more time.",
)
@_number("--learning-rate", 0.0, "Highest learning rate.  [default: 0.001; for transformers 0.00002]", above=True)
@_number("--weight-decay", 0.0, "Weight decay of AdamW.  [default: 0]")
@_number("--warmup", 0.0, "Share of the steps in which the learning rate rises.  [default: 0.1]", 1.0)
@click.option(
    "--lr-scheduler",
    type=click.Choice(["constant", "linear", "cosine"]),
    help="Learning rate after the warm-up: constant, or falling to 0.  [default: linear]",
)
@_number("--max-grad-norm", 0.0, "Norm to which gradients are clipped; 0: no clipping.  [default: 1]")
@click.option(
    "--amp",
    type=click.Choice(["no", "bf16", "fp16"]),
    help="Mixed precision.  [default: bf16 on a GPU that has it, else no]",
)
@click.option("--eval-source", metavar="SOURCE", help="Dataset to evaluate on.  [default: SOURCE]")
@click.option(
    "--eval-split",
    metavar="NAME",
    help="Split to evaluate on; none: no evaluation.  [default: test of --eval-source; else dev or validation of SOURCE; "
    "else 5 % of the queries, which are not trained on]",
)
@_number("--evaluate-every", 1, "Steps between two evaluations.  [default: one epoch]")
@_number(
    "--patience",
    1,
    "Stop after so many evaluations in a row that were no better than the best one.  [default: train to the end]",
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="NAME@K",
    help="Measure to evaluate: ndcg@K · mrr@K · recall@K. Repeat the option for several; the first one decides which "
    "encoder is the best.  [default: ndcg@10 mrr@10 recall@100]",
)
@click.option(
    "--zero-shot",
    is_flag=True,
    help="Also evaluate zero-shot classification: how many documents have a right query as the nearest.",
)
@click.option(
    "--seed",
    type=SEED_OF_MODELS,
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of all random choices.",
)
@click.option(
    "--device", metavar="NAME", help="Device to train on, such as cpu or cuda.  [default: a GPU if there is one]"
)
@click.option("--threads", type=THREADS, metavar="N", help="Number of CPU threads.  [default: all cores]")
@click.pass_context
def train(
    ctx: click.Context, /, source: str | None, more_sources: tuple[str, ...], out: str, as_json: bool, **given: Any
) -> None:
    """Train an encoder on the pairs of SOURCE with mined negatives.

    SOURCE is a dataset, as for 'hardneg mine'. Negatives are mined with the encoder at the start, and again as it
    learns. The best encoder, by the first --measure on --eval-split, is saved in DIR/best, and that of the last step in
    DIR/last.

    To train on several GPUs: torchrun --nproc-per-node 8 -m hardneg_cli train SOURCE --out DIR

    \b
    Examples:
      hardneg train builtin:pycode --out trained --refresh steps:100 --filter posterior:learned
      hardneg train beir/scifact --out trained --encoder st:all-MiniLM-L6-v2 --mini-batch-size 32
      hardneg train pairs.jsonl --out trained --run run --eval-split none
      hardneg train beir/scifact --source beir/nfcorpus:0.5 --source qa.jsonl:2 --out trained
      hardneg train photos/ --out trained --encoder open_clip:ViT-B-32,pretrained=openai --symmetric --filter group
    """
    if given["resume"] and given["overwrite"]:
        raise click.UsageError("--resume and --overwrite exclude each other")
    from hardneg.mining.run import Run
    from hardneg.training.evaluation_set import EvaluationSet
    from hardneg.training.folder import check_folder
    from hardneg.training.self_supervised import two_views
    from hardneg.training.train import train as run_train

    sources, options = sources_of(ctx, source, more_sources), _options(given)
    check_folder(Path(out), resume=given["resume"], overwrite=given["overwrite"])  # before all is read for nothing
    if given["threads"] is not None:
        _use_threads(given["threads"])
    model = model_of(given)
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, only the first one prints
    with progress_bars(quiet=not leads) as progress:
        pairs, measured, read_with = read_sources(sources, given, leads, progress)
        evaluation: Any = None
        if isinstance(measured, dict):
            evaluation = {name: EvaluationSet(each, zero_shot=given["zero_shot"]) for name, each in measured.items()}
        elif measured is not None:
            evaluation = EvaluationSet(measured, zero_shot=given["zero_shot"])
        if given["self_supervised"]:
            pairs = two_views(pairs)
        run = None if given["run"] is None else Run(given["run"])
        if leads and given["resume"]:
            say(_from_where(Path(out)))
        result = run_train(
            pairs, model, out, options, evaluation=evaluation, run=run, callbacks=[LiveNumbers()],
            warn=lambda message: warn([message] if leads else []), progress=progress,
            report_to=[*given["report_to"], *(["tensorboard"] if given["tensorboard"] else [])],
            **{name: given[name] for name in ("device", "resume", "overwrite")},
        )  # fmt: skip
    if not leads:
        return
    if as_json:
        print_json(result)
    else:
        further = mine_with_it(ctx, sources, read_with, given["encoder"].partition(":")[0], out, result)
        print_training(result, out, further)


def _use_threads(threads: int) -> None:
    import torch

    from hardneg.index.vectors import checked_threads

    torch.set_num_threads(checked_threads(threads))


def _from_where(out: Path) -> str:
    """From where a training that is resumed goes on."""
    from hardneg.training.folder import last_step

    step = last_step(out)
    return (
        "there is no checkpoint yet: begun again" if step is None else f"goes on from the checkpoint of step {step:,}"
    )


def _options(given: dict[str, Any]) -> TrainOptions:
    """The options of the training. Options that were not given keep the defaults of `TrainOptions`."""
    from hardneg.losses.variants import Variants
    from hardneg.training.options import TrainOptions

    known = {field.name for field in fields(TrainOptions)}
    chosen = {n: v for n, v in given.items() if n in known and v is not None and v != ()}
    if chosen.get("max_grad_norm") == 0:
        chosen["max_grad_norm"] = None
    return TrainOptions(
        **chosen,
        default_filters=not given["no_default_filters"],
        wait=not given["no_wait"],
        variants=Variants(symmetric=given["symmetric"]),
    )
