"""Folders of saved encoders: written beside their place and put there when finished, and checked when they are read.

`config.json` describes the encoder and holds the SHA-256 of the file of its weights. Folders of earlier versions without it
can still be read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from hardneg.errors import RunError, UsageError
from hardneg.storage.files import check_name, sha256_file, sync_folder
from hardneg.storage.folders import is_encoder, recover, staging, swap
from hardneg.storage.json_files import read_json, write_json

_REMEDY = "save the encoder again"


def add_weights(digest: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Add all weights of a model to a hash (of `hashlib`): their names, types, shapes and bytes."""
    for name, tensor in sorted(weights.items()):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().tobytes())


def saved_config(kind: str, folder: Path, schema: Any = None, weights: str | None = None) -> dict[str, Any]:
    """The checked `config.json` of an encoder saved in `folder`.

    Args:
        kind: `hashed` or `glyphs`.
        folder: the folder.
        schema: a `TypedDict` of its entries; see `read_json`.
        weights: the name of the file of weights, whose checksum is verified if `config.json` holds one.

    Raises:
        UsageError: the folder holds no saved encoder. RunError: the encoder is of another kind, or damaged.
    """
    path = folder / "config.json"
    try:
        check_name(folder)
        recover(folder)
        there = path.exists()
    except OSError as error:  # such as a name that is too long
        raise UsageError(f"{kind}:{str(folder)[:200]}: there is no saved encoder ({error.strerror or error})") from None
    if not there:
        raise UsageError(f"{kind}:{folder}: there is no saved encoder (no config.json)")
    config = read_json(path, schema, remedy=_REMEDY)
    if config.get("kind") != kind:
        raise RunError(f"{path}: it describes an encoder of kind {config.get('kind')!r}, not {kind!r}: {_REMEDY}")
    recorded = config.get("sha256")
    if recorded is None:
        return config
    read_json(path, checksum=True, remedy=_REMEDY)  # whoever writes the one writes the other
    if weights is not None and (not (folder / weights).is_file() or sha256_file(folder / weights) != recorded):
        raise RunError(
            f"{folder / weights} is missing, damaged or of another encoder (its checksum is not that in config.json): "
            f"{_REMEDY}"
        )
    return config


def write_config(kind: str, folder: Path, values: Mapping[str, Any], weights: str) -> None:
    """Write `config.json`, with the checksum of the file `weights` in the same folder."""
    config = {"kind": kind, **values, "sha256": sha256_file(folder / weights)}
    write_json(folder / "config.json", config, checksum=True)


@contextmanager
def replaced_folder(folder: str | Path, keep_others: bool = True) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place when the block ends without an error.

    Otherwise the new folder is removed, and `folder` stays as it was.

    Args:
        folder: the folder.
        keep_others: whether files that only the old folder has go into the new one.

    Raises:
        RunError: the folder cannot be written, for example because the disk is full.
    """
    folder = Path(os.path.realpath(folder))
    recover(folder)
    # A mount point cannot be renamed, and beside some folders nothing may be written: then files are replaced one by one.
    inside = folder.exists() and (os.path.ismount(folder) or not os.access(folder.parent, os.W_OK))
    new = folder / ".hardneg-new" if inside else staging(folder)
    with written(folder):
        try:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            yield new
            _sync(new)
            if inside:
                _move_files(new, folder)
            else:
                _put_in_place(new, folder, keep_others)
        except BaseException:
            recover(folder)
            raise
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _put_in_place(new: Path, folder: Path, keep_others: bool) -> None:
    """Exchange a finished folder with the one at `folder`, if there is one, or rename it to `folder`."""
    old = staging(folder, "old")
    if old.exists() and not is_encoder(old):
        raise RunError(f"{old} is no saved encoder, and stands where one is kept: move it to another place")
    shutil.rmtree(old, ignore_errors=True)
    if not folder.exists():
        os.rename(new, folder)
        sync_folder(folder.parent)
        return
    for other in set(os.listdir(folder)) - set(os.listdir(new)) if keep_others else ():
        _copy(folder / other, new / other)
    swap(new, folder)


def _move_files(new: Path, folder: Path) -> None:
    """Move the content of a finished folder into `folder`; `config.json`, which holds the checksum, comes last."""
    for name in sorted(os.listdir(new), key=lambda name: (name == "config.json", name)):
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
        os.replace(new / name, folder / name)
    sync_folder(folder)


@contextmanager
def written(path: Path, instead: str = "what was there before is unchanged") -> Iterator[None]:
    """Turn what operating system and safetensors raise while `path` is written into a RunError.

    Args:
        path: the file or folder, named in the message.
        instead: what is there now.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__
        raise RunError(
            f"{path} cannot be written ({reason}): {instead}. Free space on the disk, or check the permissions of the folder"
        ) from error


def _copy(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _sync(folder: Path) -> None:
    """Sync every file and folder below `folder`, so that the rename never shows a file without its content."""
    for place, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(place, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))
