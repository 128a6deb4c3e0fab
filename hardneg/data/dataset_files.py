"""The files of a dataset: texts, ids and labels in one folder. The labels are checked when it is opened.

Each run keeps a copy of its dataset in this form. Resuming and exporting therefore do not need the source, which may
have been a pipe.
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
from hardneg.storage.files import atomic_path, write_array
from hardneg.storage.json_files import read_json, write_json


@dataclass(frozen=True)
class DatasetContents:
    """The parts of a dataset, as its folder stores them. `Pairs.from_contents` makes a dataset of them.

    Attributes:
        head: name, digests, notes and counts (the file `dataset.json`).
        arrays: int64 labels, groups, keys and row numbers by name (the files `labels/*.npy`).
        ids: Arrow strings under `query` and `document`.
        texts: the texts of the queries and of the documents.
    """

    head: dict[str, Any]
    arrays: dict[str, np.ndarray]
    ids: dict[str, pa.Array]
    texts: tuple[Texts, Texts]


def labels_digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of the names and values of all arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].astype(np.int64).tobytes())
    return digest.hexdigest()


def write_dataset(folder: Path, head: dict[str, Any], arrays: dict[str, np.ndarray], ids: dict[str, pa.Array]) -> None:
    """Write everything but the texts. `dataset.json` is written last, so if it exists the dataset is complete."""
    for name, column in arrays.items():
        write_array(folder / "labels" / f"{name}.npy", column)
    for kind, column in ids.items():
        with atomic_path(folder / f"{kind}_ids.arrow") as temporary, pa.OSFile(str(temporary), "wb") as sink:
            table = pa.table({"id": column})
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
    write_json(folder / "dataset.json", head)


def read_dataset(folder: Path) -> DatasetContents:
    """The dataset that `write_dataset` wrote, and the texts beside it; RunError if it is missing or damaged."""
    head = read_json(folder / "dataset.json")
    try:
        arrays = {path.stem: np.load(path, allow_pickle=False) for path in sorted((folder / "labels").glob("*.npy"))}
        ids = {}
        for kind in ("query", "document"):
            with pa.OSFile(str(folder / f"{kind}_ids.arrow"), "rb") as f:
                ids[kind] = pa.ipc.open_file(f).read_all().column("id").combine_chunks()
        if labels_digest(arrays) != head["labels"]:
            raise RunError(f"{folder}/labels does not match {folder}/dataset.json: the run folder is damaged")
        texts = Texts(path=folder / "queries.arrow"), Texts(path=folder / "corpus.arrow")
        return DatasetContents(head, arrays, ids, texts)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{folder} is not readable ({error}): the run folder is damaged") from error
