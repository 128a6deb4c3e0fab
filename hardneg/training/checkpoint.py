"""Checkpoints of a training.

Each checkpoint is a folder. It is written under a temporary name and then renamed, so it is either complete or absent. It
holds finite numbers only, and a checksum of every file.

step-00000500/state.json             plain values; a tensor is replaced by its name
step-00000500/state.safetensors      the tensors
step-00000500/rank-1.json            the state of the random generators of rank 1, and so on for the other ranks
step-00000500/rank-1.safetensors     their tensors
step-00000500/generations/           the generation in use, and the next one if it was being built
"""

from __future__ import annotations

import math
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hardneg.encoders.saved import written
from hardneg.errors import HardnegError, RunError
from hardneg.storage.files import sha256_file, sync_folder
from hardneg.storage.folders import link_tree
from hardneg.storage.json_files import read_json, write_json
from hardneg.training.distributed import World

SCHEMA = "hardneg-checkpoint-3"
OLDER = "hardneg-checkpoint-2"  # without checksums of the JSON files, and without the numbers since the last log entry
_TENSOR, _MAP = "tensor:", "pairs:"
_REMEDY = "start a new training with --overwrite"


def pack(value: Any, tensors: dict[str, Tensor], place: str = "") -> Any:
    """Split nested dicts, lists and plain values into a part for JSON and tensors.

    Args:
        value: the nested values.
        tensors: receives the tensors by name.
        place: the path of `value`, used for names and messages.

    Returns:
        A copy for JSON, in which the name of a tensor replaces it.

    Raises:
        RunError: a value of another type, NaN or infinity.

    >>> tensors = {}
    >>> packed = pack({"step": 3, "weights": torch.ones(2)}, tensors)
    >>> list(tensors), unpack(packed, tensors)
    (['0.weights'], {'step': 3, 'weights': tensor([1., 1.])})
    """
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{place}"
        tensors[name] = value.detach().cpu().contiguous().clone()  # safetensors refuses tensors that share memory
        return {_TENSOR: name}
    if isinstance(value, dict):
        # Dicts become lists of pairs, because JSON would turn an optimizer's integer keys into strings.
        return {_MAP: [[key, pack(each, tensors, f"{place}.{key}")] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [pack(each, tensors, place) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise RunError(f"a checkpoint holds finite numbers only, not {value} (at {place or 'the top level'})")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise RunError(f"a checkpoint cannot hold a {type(value).__name__} (at {place or 'the top level'})")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `pack`, except that tuples become lists."""
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: unpack(each, tensors) for key, each in value[_MAP]}
    if isinstance(value, list):
        return [unpack(each, tensors) for each in value]
    return value


def seed_generators(seed: int) -> None:
    """Seed every random generator that a model may draw from: torch's, numpy's global one, and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every random generator that a model may draw from: torch's, numpy's global one, and Python's."""
    name, keys, place, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, words, following = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(place),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(words), following],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random(state: dict[str, Any], device: torch.device) -> None:
    """Set the random generators to a state that `random_state` returned. Those that it does not hold stay as they are."""
    torch.set_rng_state(state["torch"])
    if "numpy" in state:
        name, keys, place, has_gauss, gauss = state["numpy"]
        if keys.dtype != torch.int64 or not ((keys >= 0) & (keys < 2**32)).all():
            raise ValueError("its state of numpy's generator holds other than whole numbers of 32 bits")
        np.random.set_state((name, keys.numpy().astype(np.uint32), place, has_gauss, gauss))  # noqa: NPY002
    if "python" in state:
        version, words, following = state["python"]
        random.setstate((version, tuple(words), following))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def write(
    folder: Path, step: int, state: dict[str, Any], world: World, save_more: Callable[[Path], None], keep: int = 1
) -> None:
    """Write the checkpoint of a step. All ranks must call this.

    Args:
        folder: the folder of all checkpoints.
        step: the training step.
        state: what to save, in a form that `pack` accepts. Only that of rank 0 is written.
        world: the ranks.
        save_more: writes the generations to a folder, which already holds those of the previous checkpoint.
        keep: number of checkpoints to keep; older ones are deleted.

    Raises:
        RunError: the checkpoint cannot be written, for example because the disk is full; then also on all other ranks.
            Earlier checkpoints stay.
    """
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.new"
    before = latest(folder)
    instead = "there is no checkpoint yet" if before is None else f"the checkpoint of step {step_of(before)} is intact"
    try:
        with _together(world, final, instead):
            if world.leads:
                for path in (*folder.glob(".step-*.new"), *folder.glob(".step-*.tmp")):  # of a killed process
                    shutil.rmtree(path)
                temporary.mkdir(parents=True)
        with _together(world, final, instead):
            if not world.leads:
                _write_tensors(temporary / f"rank-{world.rank}", step, {"random": random_state(world.device)}, {})
            else:
                if before is not None:
                    link_tree(before / "generations", temporary / "generations")
                save_more(temporary / "generations")
                files = {
                    path.relative_to(temporary).as_posix(): sha256_file(path)
                    for path in sorted((temporary / "generations").rglob("*.json"))
                }
                _write_tensors(temporary / "state", step, {**state, "random": random_state(world.device)}, files)
        with _together(world, final, instead):
            if world.leads:
                sync_folder(temporary)
                if final.exists():
                    shutil.rmtree(final)
                os.replace(temporary, final)
                sync_folder(folder)
    finally:
        if world.leads:
            shutil.rmtree(temporary, ignore_errors=True)
    if world.leads:
        for old in _complete(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    world.wait()


@contextmanager
def _together(world: World, path: Path, instead: str) -> Iterator[None]:
    """A part of the work after which all ranks wait for each other; an error of one rank stops all of them."""
    error: Exception | None = None
    try:
        with written(path, instead):
            yield
    except Exception as caught:
        error = caught
    if world.any(error is not None):
        raise error or RunError(f"{path} cannot be written on another rank: {instead}")


def latest(folder: Path) -> Path | None:
    """The folder of the last complete checkpoint; None: there is none."""
    found = _complete(folder)
    return found[-1] if found else None


def _complete(folder: Path) -> list[Path]:
    """The folders of all complete checkpoints, in the order of their steps."""
    return sorted(
        (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,18}", path.name) and path.is_dir()),
        key=step_of,
    )


def step_of(folder: Path) -> int:
    """The step that the name of a checkpoint says."""
    return int(folder.name.removeprefix("step-"))


def read(folder: Path, world: World) -> dict[str, Any]:
    """The state in a checkpoint, with the random generators of this rank.

    Raises:
        RunError: the checkpoint is damaged, or of a version that cannot be read. The message names the file.
    """
    state = _read_tensors(folder / "state")
    if not world.leads:
        path = folder / f"rank-{world.rank}"
        state["random"] = _read_tensors(path).get("random")
    return state


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Turn all errors of a state that does not fit the training into a RunError that names the checkpoint."""
    try:
        yield
    except HardnegError as error:
        if isinstance(error, RunError) and str(folder) in str(error):
            raise
        raise RunError(f"{folder / 'state.json'}: {error}: {_REMEDY}") from None
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        reason = " ".join(line.strip() for line in lines[:2])  # torch names what does not fit in the second
        if isinstance(error, KeyError):
            reason = f"{reason} is missing"
        raise RunError(
            f"{folder / 'state.json'}: the checkpoint does not fit this training or this version ({reason}): {_REMEDY}"
        ) from error


class _Head(TypedDict):
    schema: str
    sha256: str
    state: dict[str, Any]


class _Files(TypedDict):
    step: int
    files: dict[str, str]


def _write_tensors(path: Path, step: int, state: dict[str, Any], files: dict[str, str]) -> None:
    """Write a state to two files, `path` with the suffixes .json and .safetensors.

    Args:
        path: the path without a suffix.
        step: the training step.
        state: the state.
        files: checksums of further files, by their paths in the checkpoint.
    """
    tensors: dict[str, Tensor] = {}
    packed = pack(state, tensors)
    file = path.with_suffix(".safetensors")
    save_file(tensors, file)
    with open(file, "rb") as f:
        os.fsync(f.fileno())
    head = {"schema": SCHEMA, "step": step, "sha256": sha256_file(file), "files": files, "state": packed}
    write_json(path.with_suffix(".json"), head, checksum=True)


def _read_tensors(path: Path) -> dict[str, Any]:
    """Read a state that `_write_tensors` wrote; RunError if it is damaged, or of another step than its folder says."""
    file, name = path.with_suffix(".safetensors"), path.with_suffix(".json")
    head = read_json(name, remedy=_REMEDY)
    if head.get("schema") not in (SCHEMA, OLDER):
        raise RunError(f"{name}: schema {head.get('schema')!r}, expected {SCHEMA!r}: {_REMEDY}")
    read_json(name, _Head, checksum=head["schema"] == SCHEMA, remedy=_REMEDY)
    if head["schema"] == SCHEMA:
        read_json(name, _Files, remedy=_REMEDY)
        if head["step"] != step_of(path.parent):
            raise RunError(f"{name} is of step {head['step']}, unlike its folder: {_REMEDY}")
    for each, checksum in {file.name: head["sha256"], **head.get("files", {})}.items():
        if not (path.parent / each).is_file() or sha256_file(path.parent / each) != checksum:
            raise RunError(f"{path.parent / each} is missing or damaged: {_REMEDY}")
    try:
        state = unpack(head["state"], load_file(file))
        if not isinstance(state, dict):
            raise TypeError("it holds no entries")
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RunError(f"{name} does not describe a checkpoint ({error!r}): {_REMEDY}") from None
    return state
