"""Checkpoints: each is a folder that is written under another name and then renamed, so it is complete or absent.

step-00000500/state.json             plain values, with the names of tensors in their places
step-00000500/state.safetensors      the tensors
step-00000500/rank-1.safetensors     random numbers of the other ranks
step-00000500/generations/           the index in use, and the one being built
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
from hardneg.storage.files import read_json, sha256_file, sync_folder, write_json
from hardneg.training.distributed import World

SCHEMA = "hardneg-checkpoint-2"
_TENSOR, _MAP = "tensor:", "pairs:"


def pack(value: Any, tensors: dict[str, Tensor], place: str = "") -> Any:
    """A JSON-able copy of nested dicts, lists and numbers; tensors go to `tensors`, under names that stand in their places."""
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{place}"
        tensors[name] = value.detach().cpu().contiguous().clone()  # safetensors takes no tensor that shares memory
        return {_TENSOR: name}
    if isinstance(value, dict):
        # As pairs: JSON would turn keys that are numbers (an optimizer's) into texts.
        return {_MAP: [[key, pack(each, tensors, f"{place}.{key}")] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [pack(each, tensors, place) for each in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise RunError(f"a {type(value).__name__} at {place or 'the top'} cannot be kept in a checkpoint")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` took apart; tuples have become lists."""
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: unpack(each, tensors) for key, each in value[_MAP]}
    if isinstance(value, list):
        return [unpack(each, tensors) for each in value]
    return value


def random_state(device: torch.device) -> dict[str, Any]:
    """Of every generator that a model may draw from, numpy's old one among them."""
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
    """Write the checkpoint of a step, of which `keep` stay; called by all ranks.

    Args:
        folder: of all checkpoints.
        state: see `pack`; of the first rank.
        save_more: writes the generations into a folder that it is given; those that the last checkpoint has are there.
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
    """The folder of the last complete checkpoint."""
    found = [path for path in sorted(folder.glob("step-*")) if re.fullmatch(r"step-\d{8,}", path.name)]
    return found[-1] if found else None


def read(folder: Path, world: World) -> dict[str, Any]:
    """What was written of this checkpoint; RunError when it is damaged or foreign."""
    state = _read_tensors(folder / "state")
    if not world.leads:
        path = folder / f"rank-{world.rank}"
        state["random"] = _read_tensors(path)["random"]
    return state


def _write_tensors(path: Path, state: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    packed = pack(state, tensors)
    file = path.with_suffix(".safetensors")
    save_file(tensors, file)
    with open(file, "rb") as f:
        os.fsync(f.fileno())
    write_json(path.with_suffix(".json"), {"schema": SCHEMA, "sha256": sha256_file(file), "state": packed})


def _read_tensors(path: Path) -> dict[str, Any]:
    head, file = read_json(path.with_suffix(".json")), path.with_suffix(".safetensors")
    if head.get("schema") != SCHEMA:
        raise RunError(f"{path}.json: schema {head.get('schema')!r}, expected {SCHEMA!r}: train anew with --overwrite")
    if not file.is_file() or sha256_file(file) != head.get("sha256"):
        raise RunError(f"{file} is missing or damaged: train anew with --overwrite")
    try:
        state: dict[str, Any] = unpack(head["state"], load_file(file))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}.json does not describe a checkpoint ({error!r}): train anew with --overwrite") from None
    return state


def _link(source: Path, target: Path) -> None:
    """The files of a folder under another name without a copy, where the file system can: they are never changed."""

    def link(one: str, other: str) -> str:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)
        return other

    shutil.copytree(source, target, copy_function=link)
