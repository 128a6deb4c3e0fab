"""The files of a dataset: texts, ids and labels in one folder, checked when they are opened again.

A run keeps its dataset this way, so that resuming and exporting need neither the source nor, for a pipe, a second
reading of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hardneg.data.texts import Texts
from hardneg.errors import RunError
from hardneg.storage.files import atomic_path, read_json, write_array, write_json


@dataclass(frozen=True)
class DatasetContents:
    """Everything that a dataset consists of, as it stands on disk; `Pairs` is made from it.

    Attributes:
        head: name, digests, notes and counts (`dataset.json`).
        arrays: int64 labels, groups, keys and row numbers by name (`labels/*.npy`).
        ids: Arrow strings of `query` and `document`.
        texts: of the queries and of the documents.
    """

    head: dict[str, Any]
    arrays: dict[str, np.ndarray]
    ids: dict[str, pa.Array]
    texts: tuple[Texts, Texts]


def labels_digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of all arrays and their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].astype(np.int64).tobytes())
    return digest.hexdigest()


def write_dataset(folder: Path, head: dict[str, Any], arrays: dict[str, np.ndarray], ids: dict[str, pa.Array]) -> None:
    """Write everything but the texts; `dataset.json` comes last, so its presence means that all of it is there."""
    for name, column in arrays.items():
        write_array(folder / "labels" / f"{name}.npy", column)
    for kind, column in ids.items():
        with atomic_path(folder / f"{kind}_ids.arrow") as temporary, pa.OSFile(str(temporary), "wb") as sink:
            table = pa.table({"id": column})
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
    write_json(folder / "dataset.json", head)


def read_dataset(folder: Path) -> DatasetContents:
    """What `write_dataset` wrote, and the texts beside it; RunError when it is missing or damaged."""
    head = read_json(folder / "dataset.json")
    try:
        arrays = {path.stem: np.load(path, allow_pickle=False) for path in sorted((folder / "labels").glob("*.npy"))}
        ids = {}
        for kind in ("query", "document"):
            with pa.OSFile(str(folder / f"{kind}_ids.arrow"), "rb") as f:
                ids[kind] = pa.ipc.open_file(f).read_all().column("id").combine_chunks()
        if labels_digest(arrays) != head["labels"]:
            raise RunError(f"{folder}/labels does not fit {folder}/dataset.json: the run folder is damaged")
        texts = Texts(path=folder / "queries.arrow"), Texts(path=folder / "corpus.arrow")
        return DatasetContents(head, arrays, ids, texts)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{folder} is not readable ({error}): the run folder is damaged") from error
