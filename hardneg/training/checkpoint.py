"""Checkpoints of a training.

Each checkpoint is a folder. It is written under a temporary name and then renamed, so it is either complete or absent.

step-00000500/state.json             plain values; a tensor is replaced by its name
step-00000500/state.safetensors      the tensors
step-00000500/rank-1.json            the state of the random generators of rank 1, and so on for the other ranks
step-00000500/rank-1.safetensors     their tensors
step-00000500/generations/           the generation in use, and the next one if it was being built
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hardneg.errors import RunError
from hardneg.storage.files import sha256_file, sync_folder
from hardneg.storage.json_files import read_json, write_json
from hardneg.training.distributed import World

SCHEMA = "hardneg-checkpoint-2"
_TENSOR, _MAP = "tensor:", "pairs:"


def pack(value: Any, tensors: dict[str, Tensor], place: str = "") -> Any:
    """Split nested dicts, lists and plain values into a part for JSON and tensors.

    Args:
        value: the nested values.
        tensors: receives the tensors by name.
        place: the path of `value`, used for names and messages.

    Returns:
        A copy for JSON, in which the name of a tensor replaces it.

    Raises:
        RunError: a value of another type.

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
    """Set the random generators to a state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    name, keys, place, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), place, has_gauss, gauss))  # noqa: NPY002
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
    """
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    if world.leads:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.wait()
    if not world.leads:
        _write_tensors(temporary / f"rank-{world.rank}", {"random": random_state(world.device)})
    else:
        before = latest(folder)
        if before is not None and (before / "generations").is_dir():
            _link(before / "generations", temporary / "generations")
        save_more(temporary / "generations")
        _write_tensors(temporary / "state", {**state, "random": random_state(world.device)})
    world.wait()
    if world.leads:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        sync_folder(folder)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    world.wait()


def latest(folder: Path) -> Path | None:
    """The folder of the last complete checkpoint; None: there is none."""
    found = [path for path in sorted(folder.glob("step-*")) if re.fullmatch(r"step-\d{8,}", path.name)]
    return found[-1] if found else None


def read(folder: Path, world: World) -> dict[str, Any]:
    """The state in a checkpoint, with the random generators of this rank; RunError if the checkpoint is damaged."""
    state = _read_tensors(folder / "state")
    if not world.leads:
        path = folder / f"rank-{world.rank}"
        state["random"] = _read_tensors(path)["random"]
    return state


def _write_tensors(path: Path, state: dict[str, Any]) -> None:
    """Write a state to two files, `path` with the suffixes .json and .safetensors."""
    tensors: dict[str, Tensor] = {}
    packed = pack(state, tensors)
    file = path.with_suffix(".safetensors")
    save_file(tensors, file)
    with open(file, "rb") as f:
        os.fsync(f.fileno())
    write_json(path.with_suffix(".json"), {"schema": SCHEMA, "sha256": sha256_file(file), "state": packed})


def _read_tensors(path: Path) -> dict[str, Any]:
    """Read a state that `_write_tensors` wrote; RunError if it is damaged."""
    head, file = read_json(path.with_suffix(".json")), path.with_suffix(".safetensors")
    if head.get("schema") != SCHEMA:
        raise RunError(
            f"{path}.json: schema {head.get('schema')!r}, expected {SCHEMA!r}: start a new training with --overwrite"
        )
    if not file.is_file() or sha256_file(file) != head.get("sha256"):
        raise RunError(f"{file} is missing or damaged: start a new training with --overwrite")
    try:
        state: dict[str, Any] = unpack(head["state"], load_file(file))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}.json does not describe a checkpoint ({error!r}): start a new training with --overwrite"
        ) from None
    return state


def _link(source: Path, target: Path) -> None:
    """Link the files of a folder into another one, or copy them where the file system has no links.

    Links are safe, because the files never change.
    """

    def link(one: str, other: str) -> str:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)
        return other

    shutil.copytree(source, target, copy_function=link)
