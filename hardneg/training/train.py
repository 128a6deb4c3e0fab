"""Train an encoder, and write it to a folder with everything that was measured.

DIR/train.json       the options, the data, the evaluations and the generations; `finished` is true at the end
DIR/best/            the encoder with the best evaluation
DIR/last/            the encoder after the last step
DIR/log.jsonl        the numbers of every few steps
DIR/tensorboard/     the same for TensorBoard, if asked for
DIR/wandb-run.json   the id of the run of Weights & Biases, if asked for
DIR/posterior.json   the posterior that `posterior:learned` learned, if it is used
DIR/checkpoints/     the last checkpoint (or more, see `keep`), from which an interrupted training continues
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hardneg.ambient import own_settings
from hardneg.data.options import ReadOptions
from hardneg.data.pairs import Pairs
from hardneg.data.read import as_pairs
from hardneg.encoders.embed import fit
from hardneg.encoders.kept_tokens import keeping_tokens
from hardneg.encoders.modalities import check_takes
from hardneg.encoders.saved import written
from hardneg.losses.arguments import whole
from hardneg.mining.guides import guide_embedder
from hardneg.mining.resources import Resources
from hardneg.mining.run import Run
from hardneg.progress import Progress, with_progress
from hardneg.refresh.encode import Items
from hardneg.storage.json_files import write_json
from hardneg.training import checkpoint
from hardneg.training.batches import TrainingBatches
from hardneg.training.callbacks import Callback, LogFile, TensorBoard, WandbLog, checked_reports
from hardneg.training.checks import check_fits, ungrouped
from hardneg.training.distributed import World, world
from hardneg.training.evaluation_set import EvaluationSet, EvaluationSets, evaluation_of
from hardneg.training.fine_tuning import prepare_model, thaw
from hardneg.training.folder import beside, prepare, resumed, training_folder
from hardneg.training.loop import Trainer
from hardneg.training.negatives import MinedNegatives
from hardneg.training.online_filters import learned_line
from hardneg.training.options import TrainOptions
from hardneg.training.saved import check_saved, save_encoder
from hardneg.training.share import Channel
from hardneg.training.teaching import Teaching
from hardneg.training.towers import SIDES, Towers

_OF_MINING = ("refresh", "share", "depth", "index", "lag", "wait")

_NO_PATIENCE = (
    "patience={} (--patience) counts evaluations, and nothing is evaluated: the training goes on to its last step, and has no best "
    "encoder. Give evaluation=... (--eval-source, --eval-split)"
)


@with_progress
@own_settings(gradients=True)
def train(
    pairs: Any,
    model: Any,
    out: str | Path,
    options: TrainOptions | None = None,
    *,
    evaluation: Pairs | EvaluationSet | Mapping[str, Pairs | EvaluationSet] | None = None,
    run: Run | None = None,
    read: ReadOptions | None = None, queries: Items | None = None, documents: Items | None = None, device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    report_to: Sequence[str] = (),
    warn: Callable[[str], None] = print,
    progress: Progress | bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train an encoder (or one for each side) with mined negatives, which are mined again as it learns.

    Args:
        pairs: the training data: `Pairs`, or what `read_pairs` takes.
        model: `Towers`, or one encoder for both sides (a `SentenceTransformer`, or see `Trainable`). It is trained in place.
        out: the folder to write.
        options: the options; None: the defaults.
        evaluation: the evaluation data; several by name: their mean counts; None: no evaluation, and the last encoder is the result.
        run: a mining run over `pairs`. Its candidates and relabelled pairs are used, and nothing is mined meanwhile.
        read: how `pairs` is read. queries, documents: items that replace its texts, such as images; see `Examples`.
        device: `cpu`, `cuda`, `cuda:1`; None: a GPU if there is one. Under torchrun each process has its own.
        resume: continue an interrupted training (on the CPU with the same result, if `options.wait`), or a finished one for longer.
        overwrite: replace the training in `out`, once the new one is finished.
        callbacks: called with the numbers of logged steps and of evaluations.
        report_to: where else the numbers go: `tensorboard`, `wandb`.
        warn, progress: called with each warning, and with the progress of each stage.

    Returns: the contents of `train.json`.

    Raises:
        RunError: `out` is not empty or cannot be written, or what is to be resumed differs or is damaged. UsageError: an option
            does not fit. DataError: the loss, a weight or a vector is not finite.
    """
    assert callable(progress)  # see `with_progress`
    pairs = as_pairs(pairs, read or ReadOptions())
    held_out, pairs = evaluation_of(evaluation), pairs if run is None else run.relabelled(pairs)
    start, options, out, named = time.perf_counter(), options or TrainOptions(), Path(out), checked_reports(report_to)
    with world(device) as here, _towers(model, pairs, options, here) as towers:
        options = options.fitting(towers.learning_rate, here.device)
        with training_folder(out, here, resume=resume, overwrite=overwrite) as folder:
            head = prepare(folder, out, pairs, options, here, resume, beside(run, held_out))
            inputs = _Inputs(pairs, queries, documents, run)
            batches, negatives, state = _parts(inputs, towers, folder, options, here, resume, progress)
            _say_before(inputs, towers, options, negatives, folder, here, warn)
            if here.leads and options.patience is not None and held_out is None:
                warn(_NO_PATIENCE.format(options.patience))
            trainer = Trainer(
                towers, batches, negatives, options, here, folder=folder / "checkpoints", warn=warn,
                teaching=_teaching(options, run, pairs, here, warn),
                callbacks=[*callbacks, *_logs(folder, here, state, options, named)] if here.leads else [],
                on_best=lambda: save_encoder(towers, folder / "best"), evaluate=_evaluation(held_out, options, here),
            )  # fmt: skip
            result = head | _trained(trainer, state, partial(resumed, folder, head, out, here=here), progress)
            return _finished(towers, folder, {**result, "seconds": round(time.perf_counter() - start, 2)}, here)


def _teaching(
    options: TrainOptions, run: Run | None, pairs: Pairs, here: World, warn: Callable[[str], None]
) -> Teaching | None:
    """The teacher that `distill` asks for, if it does. Warns of candidates that it has not scored."""
    if options.distill is None:
        return None
    teaching = Teaching(options.distill, run, pairs)
    if here.leads and (said := teaching.warning()) is not None:
        warn(said)
    return teaching


def _evaluation(
    held_out: EvaluationSet | EvaluationSets | None, options: TrainOptions, here: World
) -> Callable[[Towers], dict[str, float]] | None:
    """A function that measures an encoder on the evaluation data, or None without such data. Each rank encodes its share."""
    if held_out is None:
        return None
    if here.size == 1:
        return lambda towers: held_out.evaluate(towers, options.measures, metric=options.metric)
    channel = Channel(here)
    return lambda towers: held_out.evaluate(towers, options.measures, channel, options.metric)


@contextmanager
def _towers(model: Any, pairs: Pairs, options: TrainOptions, here: World) -> Iterator[Towers]:
    """The model, once the options are known to fit it; seeds whatever it draws from. Up to the end of the block it keeps tokens, and
    what `freeze` names is frozen."""
    prompts = {"query_prompt": options.query_prompt, "document_prompt": options.document_prompt}
    towers = model if isinstance(model, Towers) else Towers(model, **prompts)
    check_fits(options, pairs, towers.dimension, here)
    checkpoint.seed_generators(options.seed + here.rank)
    frozen = prepare_model(towers, options.lora, options.freeze, options.gradient_checkpointing, options.learning_rates)
    with ExitStack() as stack:
        stack.callback(thaw, frozen)
        for side in SIDES:
            if callable(compare_by := getattr(towers.tower(side), "compare_by", None)):
                compare_by(options.metric)
        stack.enter_context(keeping_tokens(*towers.children()))
        yield towers


def _warn_of_metric(inputs: _Inputs, towers: Towers, options: TrainOptions, warn: Callable[[str], None]) -> None:
    """Warn if inner products are asked for and do not differ from cosines, or a run was mined by another metric."""
    mined = "cosine" if inputs.run is None else inputs.run.info["config"]["metric"]
    if inputs.run is not None and mined != options.metric:
        warn(
            f"the run was mined by {mined}, and the training compares by {options.metric}: mine it with --metric {options.metric}"
        )
    if options.metric != "ip":
        return
    items, rows = inputs.documents or inputs.pairs.documents, np.arange(min(8, len(inputs.pairs.document_ids)))
    lengths = np.linalg.norm(towers.encode(items.take(rows), "document"), axis=1)
    if np.allclose(lengths[lengths > 0], 1, atol=0.01):
        warn(
            "metric='ip' (--metric ip): the encoder returns vectors of length 1, whose inner product is the cosine, so their lengths "
            f"teach nothing; the temperature is {options.temperature:g}, and 0.05 is usual for cosines"
        )


def _warn_of_unused(inputs: _Inputs, options: TrainOptions, warn: Callable[[str], None]) -> None:
    """Warn of options of mining that were changed, though the candidates are those of a run."""
    default = TrainOptions()
    changed = [name for name in _OF_MINING if getattr(options, name) != getattr(default, name)]
    if inputs.run is not None and changed and (changed, options.refresh) != (["refresh"], "never"):
        named = ", ".join(f"{name}={getattr(options, name)}" for name in changed)
        warn(
            f"{named}: without effect, as negatives are drawn from the candidates of the run {inputs.run.folder}, and nothing is "
            f"mined meanwhile. Leave run (--run) out to mine while training"
        )


def _finished(towers: Towers, out: Path, result: dict[str, Any], here: World) -> dict[str, Any]:
    """Write the last encoder and `train.json`, which holds `result`, and return it; rank 0 writes."""
    if here.leads:
        save_encoder(towers, out / "last")
        with written(out / "train.json", "the encoders are saved"):
            write_json(out / "train.json", result)
    return result


@dataclass(frozen=True)
class _Inputs:
    """The data of a training; see `train`."""

    pairs: Pairs
    queries: Items | None
    documents: Items | None
    run: Run | None


def _parts(
    inputs: _Inputs, towers: Towers, out: Path, options: TrainOptions, here: World, resume: bool, progress: Progress
) -> tuple[TrainingBatches, MinedNegatives, dict[str, Any] | None]:
    """The batches and negatives, and the state of the checkpoint to continue from, if there is one."""
    folder = checkpoint.latest(out / "checkpoints") if resume else None
    towers.to(here.device)
    check_takes(towers.tower("query"), inputs.queries or inputs.pairs.queries, "queries")
    check_takes(towers.tower("document"), inputs.documents or inputs.pairs.documents, "documents")
    if folder is None:
        for side in ("query", "document"):
            fit(towers.tower(side), inputs.pairs, progress)
    state, step, learned = None, 0, None
    if folder is not None:
        with checkpoint.fitting(folder):
            state = checkpoint.read(folder, here)
            step, learned = whole("step", state["progress"]["step"], 0), state["supply"]["filters"]
    texts = {"queries": inputs.queries, "documents": inputs.documents}
    batches = TrainingBatches(inputs.pairs, towers, options, here, **texts)
    advance = progress("first generation", 1)
    resources = Resources(device=str(here.device), progress=progress)
    negatives = MinedNegatives(
        inputs.pairs, towers, options, here, batches.sampler, run=inputs.run, **texts,
        embed=guide_embedder(inputs.pairs, out, resources, seed=options.seed),
        resume=None if folder is None else folder / "generations",
        step=step, learned=learned,
    )  # fmt: skip
    advance(1)
    return batches, negatives, state


def _say_before(
    inputs: _Inputs, towers: Towers, options: TrainOptions, negatives: MinedNegatives, out: Path, here: World,
    warn: Callable[[str], None],
) -> None:  # fmt: skip
    """Say what is to be known before the first step, such as what posterior was learned, and save that. Rank 0 does it."""
    if not here.leads:
        return
    _warn_of_metric(inputs, towers, options, warn)
    _warn_of_unused(inputs, options, warn)
    mixed = negatives.sampler.mixed
    for name in () if mixed is None else mixed.small:
        warn(
            f"the source {name!r} has fewer pairs in an epoch than a batch of {options.batch_size}: its batches are smaller"
        )
    filters = negatives.filters
    for name in ungrouped(inputs.pairs) if filters.grouped else ():
        warn(f"the filter 'group' keeps everything of the source {name!r}, which has no groups")
    for name in filters.mined_only:
        warn(f"the filter {name!r} works on mined candidates only, not on batch and bank")
    if filters.unlearned is not None:
        warn(f"posterior:learned rejects nothing: {filters.unlearned}")
    if filters.to_learn is not None and filters.posterior is not None:
        warn(learned_line(filters.posterior, filters.limit))
        with written(out / "posterior.json"):
            filters.posterior.save(out / "posterior.json")


def _logs(
    out: Path, here: World, state: dict[str, Any] | None, options: TrainOptions, report_to: Sequence[str]
) -> list[Callback]:
    """The logs of a training, which rank 0 writes."""
    step = 0 if state is None else int(state["progress"]["step"])
    logs: list[Callback] = [LogFile(out / "log.jsonl", step)]
    if "tensorboard" in report_to:
        logs.append(TensorBoard(out / "tensorboard", step))
    if "wandb" in report_to:
        logs.append(WandbLog(out, options.to_json()))
    return logs


def _check_best(trainer: Trainer, folder: Path) -> None:
    """Check the best encoder of a training that goes on. If its folder was removed, the best is looked for anew."""
    done = trainer.done
    if done.best is None:
        return
    if folder.exists():
        check_saved(folder)
        return
    done.best = None
    done.warnings.append(f"{folder} does not exist: the best encoder is looked for from step {done.step + 1:,} on")
    if trainer.world.leads:
        trainer.warn(done.warnings[-1])


def _trained(
    trainer: Trainer, state: dict[str, Any] | None, goes_on: Callable[[bool], None], progress: Progress
) -> dict[str, Any]:
    """Train to the end, from `state` if there is one. Returns the results for `train.json`.

    `goes_on(over)` is called when the state is loaded.
    """
    index, folder = trainer.negatives.index, trainer.folder
    with ExitStack() as stack:  # closes the others even if one fails
        stack.callback(trainer.negatives.close)
        stack.callback(trainer.batches.close)
        for callback in trainer.callbacks:
            stack.callback(callback.close)
        if state is not None and folder is not None:
            with checkpoint.fitting(checkpoint.latest(folder) or folder):
                trainer.load(state)
            _check_best(trainer, folder.parent / "best")
            goes_on(trainer.over)
        done = trainer.fit(progress)
    return {
        "finished": True,
        "steps": done.step,
        "stopped_early": trainer.stopped,
        "evaluations": done.evaluations,
        "best": done.best,
        "before": done.before,
        "warnings": done.warnings,
        "generations": [] if index is None else index.history,
        "temperature": trainer.criterion.temperature,
    }
