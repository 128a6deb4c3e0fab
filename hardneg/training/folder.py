"""The folder of a training: how it is recognized, prepared and resumed, and how a new training takes its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from hardneg.data.mixed import Mixed
from hardneg.data.pairs import Pairs
from hardneg.errors import RunError
from hardneg.mining.run import Run
from hardneg.storage.files import fingerprint, remove_temporary_files
from hardneg.storage.folders import entries, marker, output_folder, recover, remove_folder, resolved, staging
from hardneg.storage.json_files import decode_json, read_json, write_json
from hardneg.storage.outputs import OWN_FILES
from hardneg.training import checkpoint
from hardneg.training.distributed import World
from hardneg.training.evaluation_set import EvaluationSet, EvaluationSets
from hardneg.training.options import TrainOptions

SCHEMA = "hardneg-train-1"

_BESIDE = ("run", "evaluation")

KNOWN = (*OWN_FILES["training"], "posterior.json")


class _Head(TypedDict):
    finished: bool
    options: dict[str, Any]
    data: dict[str, Any]
    ranks: int
    stopped_early: NotRequired[bool]


def is_training(folder: Path) -> bool:
    """Whether a folder holds a training. Our marker says so, or `train.json` where the folder is older than markers."""
    if marker(folder, "training").exists():
        return True
    try:
        return str(decode_json(folder / "train.json").get("schema", "")).startswith("hardneg-train")
    except RunError:
        return False


@contextmanager
def training_folder(out: Path, here: World, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Lock the folder of a training, and give the folder to write it to. Rank 0 locks it for all ranks.

    A training that replaces another one is written beside it, and takes its place at the end. If it is interrupted, the
    old training stays, and `resume` continues the new one.

    Raises:
        RunError: the folder holds something else, a training that must not be replaced, or none that can be resumed; or
            another process writes to it.
    """
    if here.leads:
        recover(out)
    pending = resume and _unfinished(staging(resolved(out)))
    replace = pending or (overwrite and bool(entries(out)))
    check_folder(out, resume=resume, overwrite=overwrite)
    folder = staging(resolved(out)) if replace else resolved(out)
    here.wait()  # all ranks have looked before rank 0 changes anything
    if not here.leads:
        here.wait()
        yield folder
        return
    with output_folder(out, "training", replace=replace, known=KNOWN, restart=not pending) as folder:
        if not replace:
            check_folder(out, resume=resume, overwrite=overwrite)  # again, now that nobody else can change it
        remove_temporary_files(folder)
        here.wait()
        try:
            yield folder
        except Exception:
            if replace and not pending and checkpoint.latest(folder / "checkpoints") is None:
                remove_folder(folder)  # nothing to resume: the old training is all there is
            raise


def _unfinished(folder: Path) -> bool:
    try:
        return decode_json(folder / "train.json").get("finished") is False
    except RunError:
        return False


def check_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    """RunError if the folder of a training may not be written to, or holds none that could be resumed."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file: give the name of a folder")
    if resume:
        _check_begun(out)
        return
    if not entries(out):
        return
    if not is_training(out):
        raise RunError(f"{out} holds files, but no training: choose another folder")
    if not overwrite:
        raise RunError(f"{out} already holds a training: --resume goes on with it, --overwrite replaces it")


def _check_begun(out: Path) -> None:
    """RunError if no training was begun in a folder, or beside it to replace the one in it."""
    place = resolved(out)  # of a replacement that was killed, the old training may still be beside it
    if is_training(staging(place, "old")) or _unfinished(staging(place)) or (out / "train.json").exists():
        return
    if not entries(out):
        raise RunError(f"there is no training in {out}: leave out --resume")
    if not is_training(out):
        raise RunError(
            f"there is no training in {out}, which holds other files: leave out --resume, and choose another folder"
        )
    raise RunError(
        f"{out}/train.json does not exist, so this training cannot go on: replace it with --overwrite, without --resume"
    )


# Digests of the run and of the evaluation data of a training; None: it has none, or none that can be told from others.
Beside = Mapping[str, str | None]


def beside(run: Run | None, evaluation: EvaluationSet | EvaluationSets | None) -> dict[str, str | None]:
    """What a training depends on beside its data: the candidates of its run, and what chooses its best encoder."""
    sets: dict[str, Any] = dict(evaluation.sets) if isinstance(evaluation, EvaluationSets) else {"": evaluation}
    measured: dict[str, Any] = {
        name: each.pairs.digests for name, each in sets.items() if isinstance(each, EvaluationSet)
    }
    files: dict[str, Any] = {} if run is None else run.info["files"]
    mined = {name: digest for name, digest in files.items() if name.startswith("candidates/")}
    return {name: fingerprint(each) if each else None for name, each in (("run", mined), ("evaluation", measured))}


def prepare(
    folder: Path, out: Path, pairs: Pairs, options: TrainOptions, here: World, resume: bool, more: Beside
) -> dict[str, Any]:
    """The head of `train.json`: checked, if the training is resumed, or written. Arguments and errors: see `check_head`."""
    if resume:
        return check_head(folder, out, pairs, options, here, more)
    return write_head(folder, pairs, options, here, more)


def write_head(folder: Path, pairs: Pairs, options: TrainOptions, here: World, more: Beside) -> dict[str, Any]:
    """Write the head of `train.json`, which says what is trained on what, and return it. Rank 0 writes."""
    head = _head(pairs, options, here, more)
    if here.leads:
        write_json(folder / "train.json", head)
    here.wait()
    return head


def check_head(
    folder: Path, out: Path, pairs: Pairs, options: TrainOptions, here: World, more: Beside | None = None
) -> dict[str, Any]:
    """The head of `train.json`, if the training in the folder can be continued with these options and data.

    Args:
        folder: the folder of the training.
        out: what messages call it.
        pairs, options, here: the data, the options and the ranks.
        more: what `beside` returned.

    Raises:
        RunError: the training is finished, of another version, or has other options, data, evaluation data, run or ranks.
    """
    head, path = _head(pairs, options, here, more or {}), folder / "train.json"
    before = decode_json(path)
    if before.get("schema") != SCHEMA:
        raise RunError(f"{path}: schema {before.get('schema')!r}, expected {SCHEMA!r}: replace it with --overwrite")
    before = read_json(path, _Head, remedy="replace it with --overwrite")
    try:
        changed = options.changed(before["options"])
        longer = options.lengthened(before["options"]) or options.patience != before["options"].get("patience")
    except RunError as error:
        raise RunError(f"{path}: {error}: replace it with --overwrite") from None
    if before["finished"]:
        _check_finished(out, before, options, changed, longer)
    changed += [name for name in ("ranks",) if before[name] != head[name]]
    sources = _other_sources(before["data"], head["data"])
    changed += sources or [
        f"data ({name})"
        for name in head["data"]
        if name not in ("name", *_BESIDE) and before["data"].get(name) != head["data"][name]
    ]
    changed += _other_beside(before["data"], head["data"])
    if changed:
        raise RunError(
            f"{out}: the interrupted training had other {', '.join(changed)}: use the same, or replace it with "
            f"--overwrite"
        )
    if checkpoint.latest(folder / "checkpoints") is None:
        if before["finished"]:
            raise RunError(f"{out}: this training is finished, and without its checkpoint nothing can go on with it")
        if here.leads:
            (folder / "log.jsonl").unlink(missing_ok=True)
    here.wait()
    return head


def _check_finished(
    out: Path, before: Mapping[str, Any], options: TrainOptions, changed: list[str], longer: bool
) -> None:
    """RunError if these options give a finished training nothing more to do: which ones, before anything is mined."""
    others = [name for name in changed if name not in ("steps", "epochs")]
    stopped = before.get("stopped_early") is True and options.patience == before["options"].get("patience")
    if stopped and options.patience is not None:
        raise RunError(
            f"{out}: this training stopped early, as its last {options.patience} evaluations were no better than the best one: more "
            f"steps alone change nothing. To go on, raise --patience or leave it out; or replace it with --overwrite"
        )
    if not longer and others:
        raise RunError(
            f"{out}: this training is finished, and had other {', '.join(others)}: to go on with it, use the same and raise --steps "
            f"or --epochs; or replace it with --overwrite, or choose another folder"
        )
    steps = before["options"].get("steps")
    if not longer and changed and steps is not None:
        raise RunError(
            f"{out}: this training is finished: it was asked for {steps:,} steps, which count in place of epochs. To go on with it, "
            f"give more --steps; or replace it with --overwrite, or choose another folder"
        )
    if not longer:
        raise finished(out)


def last_step(out: Path) -> int | None:
    """The step of the last checkpoint of a training, or of the one beside it that is to replace it; None: there is none."""
    begun = staging(resolved(out))
    found = checkpoint.latest((begun if _unfinished(begun) else out) / "checkpoints")
    return None if found is None else checkpoint.step_of(found)


def finished(out: Path) -> RunError:
    """The error for a training that is over."""
    return RunError(
        f"{out}: this training is finished. To go on with it, raise --steps, --epochs or --patience; or replace it with "
        f"--overwrite, or choose another folder"
    )


def resumed(folder: Path, head: dict[str, Any], out: Path, over: bool, here: World) -> None:
    """Write the head of a training that goes on, which may be longer than it was; RunError if there is nothing left to do.

    Args:
        folder: the folder of the training.
        head: the new head.
        out: what messages call the folder.
        over: whether the last step was reached already.
        here: the ranks.
    """
    was_finished = decode_json(folder / "train.json").get("finished") is True
    here.wait()  # all ranks have read it
    if over and was_finished:
        raise finished(out)
    if here.leads:
        write_json(folder / "train.json", head)


def _other_beside(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of what `beside` tells another of than then. Earlier versions did not write it down; an evaluation may begin."""
    names = [name for name in _BESIDE if name in before and name in now and before[name] != now[name]]
    said = {"run": "candidates (run, --run)", "evaluation": "evaluation data (--eval-source, --eval-split)"}
    return [said[name] for name in names if name == "run" or before[name] is not None]


def _head(pairs: Pairs, options: TrainOptions, here: World, more: Beside) -> dict[str, Any]:
    data = {"name": pairs.name, "queries": len(pairs), "documents": len(pairs.document_ids), **pairs.digests, **more}
    return {
        "schema": SCHEMA,
        "finished": False,
        "options": options.to_json(),
        "data": data if pairs.mixed is None else {**data, "sources": _sources(pairs, pairs.mixed)},
        "ranks": here.size,
    }


def _sources(pairs: Pairs, mixed: Mixed) -> dict[str, dict[str, Any]]:
    """What `train.json` says of each source of a mixture, by name."""
    trainable = pairs.positives.lengths > 0
    return {
        name: {
            "weight": weight,
            "queries": int((mixed.queries == i).sum()),
            "documents": int(mixed.starts[i + 1] - mixed.starts[i]),
            "pairs": int(trainable[mixed.queries == i].sum()),  # that an epoch goes through, once with the weight 1
        }
        for i, (name, weight) in enumerate(zip(mixed.names, mixed.weights, strict=True))
    }


def _other_sources(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the sources of two trainings, as words for a message; empty: nothing."""
    then, here = (each if isinstance(each := data.get("sources"), Mapping) else {} for data in (before, now))
    weights = [
        {name: each.get("weight") for name, each in of.items() if isinstance(each, Mapping)} for of in (then, here)
    ]
    said = [f"source {name!r} (it has none now)" for name in then if name not in here]
    said += [f"sources (without {name!r})" for name in here if name not in then]
    said += [
        f"weight of the source {name!r} ({weights[0].get(name)} then, {weights[1][name]} now)"
        for name in here
        if name in then and weights[0].get(name) != weights[1][name]
    ]
    return said or ([] if list(then) == list(here) else ["order of the sources"])
