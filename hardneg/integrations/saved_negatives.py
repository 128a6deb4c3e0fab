"""What `HardNegatives` writes into a checkpoint, and how it is read back: as untrusted files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardneg.errors import RunError
from hardneg.storage.files import read_array
from hardneg.storage.json_files import read_json

SCHEMA = "hardneg-negatives-1"

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]

_FILE = re.compile(r"([\w-][\w.-]{0,99}/){0,3}[\w-][\w.-]{0,99}")  # a name in `state_dict`


class _SavedTable(msgspec.Struct):
    """A table of negatives in `negatives.json`."""

    start: _Count
    file: Annotated[str, msgspec.Meta(pattern=r"^negatives-[01]\.npy$")]
    sha256: str


class Saved(msgspec.Struct):
    """What `negatives.json` holds."""

    schema: str
    identity: dict[str, Any]
    trained: _Count
    step: _Count
    epoch: _Count
    drawn: _Count
    began: _Count
    ended: bool
    tables: Annotated[list[_SavedTable], msgspec.Meta(min_length=1, max_length=2)]
    filters: dict[str, Any]


def read_saved(
    folder: Path, identity: Mapping[str, Any], shape: tuple[int, int], documents: int
) -> tuple[Saved, list[tuple[int, NDArray[Any]]]]:
    """What `HardNegatives.save` wrote, checked.

    Args:
        folder: the folder.
        identity: what the data and the options must be.
        shape: (n, k) of the negatives.
        documents: number of documents.

    Returns:
        The state, and (first batch, int32 `[n, k]`) of each table of negatives.

    Raises:
        RunError: it is damaged, or of other data or options.
    """
    state = msgspec.convert(read_json(folder / "negatives.json", Saved, checksum=True), Saved)
    if state.schema != SCHEMA or state.identity != identity:
        raise RunError(
            f"{folder} holds the negatives of another dataset, or with other options: resume with the same ones"
        )
    tables = []
    for each in state.tables:
        rows = read_array(folder / each.file, each.sha256)
        fits = rows.dtype == np.int32 and rows.shape == shape
        if not fits or rows.min(initial=0) < 0 or rows.max(initial=0) >= documents:
            raise RunError(f"{folder / each.file} holds no negatives of this dataset: it is damaged")
        tables.append((each.start, rows))
    return state, tables


def packed(save: Callable[[str], None]) -> dict[str, Tensor]:
    """The files that `save(folder)` writes, as tensors of bytes by their names."""
    with tempfile.TemporaryDirectory() as place:
        save(place)
        files = [path for path in sorted(Path(place).rglob("*")) if path.is_file()]
        return {path.relative_to(place).as_posix(): torch.from_numpy(np.fromfile(path, np.uint8)) for path in files}


def unpacked(state: Mapping[Any, Any]) -> tempfile.TemporaryDirectory[str]:
    """A folder with the files of `packed`; RunError if an entry is none."""
    for name, content in state.items():
        named = isinstance(name, str) and _FILE.fullmatch(name) is not None
        bytes_ = isinstance(content, Tensor) and content.dtype == torch.uint8 and content.ndim == 1
        if not named or not bytes_ or content.device.type == "meta":
            raise RunError(f"the state has an entry {name!r:.80} that is no file of negatives: it is damaged")
    place = tempfile.TemporaryDirectory()
    try:
        for name, content in state.items():
            path = Path(place.name) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            content.detach().cpu().numpy().tofile(path)
    except OSError as error:
        place.cleanup()
        raise RunError(f"the state of negatives cannot be unpacked ({error.strerror}): it is damaged") from None
    return place
