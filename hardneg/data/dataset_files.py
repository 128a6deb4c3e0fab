"""The files of a dataset: texts, ids and labels in one folder. The labels are checked when it is opened.

Each run keeps a copy of its dataset in this form. Resuming and exporting therefore do not need the source, which may
have been a pipe.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
from msgspec import Meta

from hardneg.data.mixed import fault_of
from hardneg.data.texts import Texts
from hardneg.errors import RunError
from hardneg.storage.arrow import ArrowFile, open_npy
from hardneg.storage.files import atomic_path, write_array
from hardneg.storage.json_files import read_json, write_json

Count = Annotated[int, Meta(ge=0)]


class MixtureInfo(TypedDict):
    """The sources of a mixture in `dataset.json`: their names and weights."""

    names: list[str]
    weights: list[float]


class DatasetInfo(TypedDict):
    """The content of `dataset.json`."""

    name: str
    source_query_rows: Count
    source_document_rows: Count
    source_corpus_rows: NotRequired[Count]
    digests: dict[str, str]
    labels: str
    notes: dict[str, Count]
    reading: NotRequired[dict[str, Any]]
    group_names: NotRequired[list[str]]
    mixture: NotRequired[MixtureInfo]


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
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name], np.int64).data)
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
    remedy = "the run folder is damaged"
    head = read_json(folder / "dataset.json", DatasetInfo, remedy=remedy)
    if not {"queries", "documents"} <= set(head["digests"]):
        raise RunError(f"{folder}/dataset.json lacks a digest: {remedy}")
    arrays = {path.stem: _labels(path) for path in sorted((folder / "labels").glob("*.npy"))}
    if labels_digest(arrays) != head["labels"]:
        raise RunError(f"{folder}/labels does not match {folder}/dataset.json: {remedy}")
    ids = {kind: _ids(folder / f"{kind}_ids.arrow") for kind in ("query", "document")}
    texts = Texts(path=folder / "queries.arrow"), Texts(path=folder / "corpus.arrow")
    counts = {kind: len(column) for kind, column in ids.items()}
    sizes = {"query": texts[0].rows, "document": texts[1].rows}
    if counts != sizes:
        raise RunError(f"{folder} holds {sizes} texts, but {counts} ids: {remedy}")
    wrong = _wrong_label(head, arrays, counts["query"], counts["document"])
    if wrong is not None:
        raise RunError(f"{folder}/labels/{wrong}.npy does not fit the rest of the dataset: {remedy}")
    return DatasetContents(head, arrays, ids, texts)


def _labels(path: Path) -> np.ndarray:
    """One array of labels, int64 `[n]`, mapped from its file."""
    array = open_npy(path, RunError)
    if array.ndim != 1 or array.dtype != np.int64:
        raise RunError(
            f"{path}: expected int64 of shape [n], got {array.dtype} of shape {array.shape}: the run folder is damaged"
        )
    return np.asarray(array)


def _ids(path: Path) -> pa.Array:
    """One column of ids, as Arrow large strings `[n]`."""
    file = ArrowFile(path, RunError)
    if file.schema.names != ["id"] or not (
        pa.types.is_string(file.schema.types[0]) or pa.types.is_large_string(file.schema.types[0])
    ):
        raise RunError(f"{path}: expected a column of ids, got {file.schema.names}: the run folder is damaged")
    column = file.table().column("id")
    if column.null_count:
        raise RunError(f"{path}: {column.null_count} ids are missing: the run folder is damaged")
    return column.cast(pa.large_string()).combine_chunks()


def _wrong_label(head: dict[str, Any], arrays: dict[str, np.ndarray], queries: int, documents: int) -> str | None:
    """The name of the first array that is missing, or whose length or values do not fit the dataset; None if all fit.

    What uses the labels takes them as positions, without a check of its own.
    """
    grouped = len(arrays.get("document_groups", ())) > 0
    lengths = {
        "query_keys": queries, "document_keys": documents, "body_keys": documents,
        "query_rows": queries, "document_rows": documents,
        "query_groups": queries * grouped, "document_groups": documents * grouped,
        "positive_offsets": queries + 1, "negative_offsets": queries + 1,
    }  # fmt: skip
    limits = {
        "kept": queries, "positive_values": documents, "negative_values": documents,
        "query_rows": head["source_query_rows"], "document_rows": head["source_document_rows"],
    }  # fmt: skip
    if "positive_grades" in arrays:
        grades = arrays["positive_grades"].view(np.float64)
        if len(grades) != len(arrays.get("positive_values", ())) or not (np.isfinite(grades) & (grades > 0)).all():
            return "positive_grades"
    if "corpus_rows" in arrays:
        lengths["corpus_rows"] = documents
        if arrays["corpus_rows"].min(initial=0) < -1 or arrays["corpus_rows"].max(initial=-1) >= head.get(
            "source_corpus_rows", 0
        ):
            return "corpus_rows"
    if {"given_offsets", "given_values"} & set(arrays):
        lengths["given_offsets"], limits["given_values"] = queries + 1, documents
    for name in (*lengths, *limits):
        if name not in arrays or len(arrays[name]) != lengths.get(name, len(arrays[name])):
            return name
    for name, limit in limits.items():
        if arrays[name].min(initial=0) < 0 or arrays[name].max(initial=-1) >= limit:
            return name
    for side in ("positive", "negative", *(["given"] if {"given_offsets", "given_values"} & set(arrays) else [])):
        offsets = arrays[f"{side}_offsets"]
        if offsets[0] != 0 or offsets[-1] != len(arrays[f"{side}_values"]) or (np.diff(offsets) < 0).any():
            return f"{side}_offsets"
    if "mixture" in head:
        return fault_of(head["mixture"], arrays, queries, documents)
    return next((name for name in ("query_sources", "source_starts") if name in arrays), None)
