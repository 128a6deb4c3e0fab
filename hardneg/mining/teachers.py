"""The scores of teachers that a run keeps: of a cross-encoder, another encoder or a file, for its positives and candidates.

    teacher/NAME/teacher.json      the scorer, the hash of its weights or of the file's scores, and the hashes of the texts
    teacher/NAME/part-*.parquet    query_id, document_id, score: one row for each pair that was scored
    teacher/NAME/chunk-*.parquet   the same of some queries, while a part is unfinished

Scores belong to pairs, so they hold for every selection of the run. The files are untrusted when they are read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta
from numpy.typing import NDArray

from hardneg.data.id_rows import IdRows
from hardneg.data.pairs import Pairs
from hardneg.errors import RunError, UsageError, suggestion
from hardneg.storage.arrays import Float, Int, pair_keys
from hardneg.storage.arrow import check_regular, numbers, read_parquet, reading, values_of
from hardneg.storage.files import atomic_path
from hardneg.storage.json_files import read_json, write_json

TEACHER = "teacher"  # the name of a teacher, unless another one is given

FROM_FILE = "scores:"  # begins the scorer of scores that were read from a file

PART_QUERIES = 4096  # queries in each file, as in the parts of a run

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")

_META = b"hardneg"  # the entry of a Parquet file's metadata that holds a hash of its content

_SHORT = 16  # digits of the hash of a scorer in the name of a feature


class TeacherInfo(TypedDict):
    """The content of `teacher.json`."""

    schema_version: Annotated[int, Meta(ge=1, le=1)]
    scorer: str
    fingerprint: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    queries: str
    documents: str


def check_name(name: str) -> None:
    """UsageError if a teacher cannot have this name, which is that of a folder."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"the name {name!r} of a teacher must be lower-case letters, digits, '-' and '_', 32 at most, and begin with a letter"
        )


class TeacherScores:
    """The scores of one teacher, looked up by query and document.

    Args:
        folder: `teacher/NAME` in the run folder.
        pairs: the dataset of the run.

    Raises:
        RunError: the scores are of other texts, or `teacher.json` is damaged.
    """

    def __init__(self, folder: Path, pairs: Pairs) -> None:
        self.folder, self.pairs = folder, pairs
        self.info = read_json(folder / "teacher.json", TeacherInfo, checksum=True, remedy=_again(folder))
        for side in ("queries", "documents"):
            if self.info[side] != pairs.digests[side]:
                raise RunError(
                    f"{folder} holds scores of other {side} than those of the run: remove it, and score again"
                )
        self._parts: dict[int, tuple[Int, Float]] = {}
        self._query_rows = IdRows(pairs.query_ids)

    @property
    def fingerprint(self) -> str:
        return str(self.info["fingerprint"])

    @property
    def feature(self) -> str:
        """The name of the feature of a posterior that is this score: it names the scorer by its hash."""
        return f"teacher:{self.fingerprint[:_SHORT]}"

    def of(self, queries: NDArray[np.integer], documents: NDArray[np.integer]) -> Float:
        """float32 `[n, K]`: the scores of each query of `queries` `[n]` with its row of `documents` `[n, K]`.

        NaN where the pair has not been scored, -inf where `documents` is -1.
        """
        out = np.where(documents >= 0, np.float32(np.nan), np.float32(-np.inf)).astype(np.float32)
        for number in np.unique(queries // PART_QUERIES).tolist():
            rows = np.flatnonzero(queries // PART_QUERIES == number)
            keys, scores = self.part(number)
            if not len(keys):
                continue
            wanted = pair_keys(queries[rows, None], documents[rows], len(self.pairs.document_ids))
            place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
            hit = (keys[place] == wanted) & (documents[rows] >= 0)
            out[rows] = np.where(hit, scores[place], out[rows])
        return out

    def part(self, number: int) -> tuple[Int, Float]:
        """The scored pairs of one part: their keys (see `pair_keys`), ascending, and their scores."""
        if number not in self._parts:
            path = self.folder / f"part-{number:05d}.parquet"
            self._parts[number] = self.read(path) if path.exists() else (np.zeros(0, np.int64), np.zeros(0, np.float32))
        return self._parts[number]

    def forget(self) -> None:
        """Read the parts anew when they are next needed."""
        self._parts.clear()

    def add(self, number: int, keys: Int, scores: Float) -> None:
        """Add pairs to one part, `[m]` each, that it does not have yet, in any order; read anew when they are next needed."""
        known, values = self.part(number)
        every = np.concatenate([known, keys])
        order = np.argsort(every, kind="stable")
        self.write(self.folder / f"part-{number:05d}.parquet", every[order], np.concatenate([values, scores])[order])
        self.forget()

    def more(self, only: str = "all") -> str:
        """The command that scores those of these candidates that have no score yet, and what to do for it."""
        run, name = self.folder.parent.parent, "" if self.folder.name == TEACHER else f" --name {self.folder.name}"
        scorer = str(self.info["scorer"])
        if scorer.startswith(FROM_FILE):
            return (
                f"hardneg score {run} --scores FILE --overwrite{name}, where FILE has their scores too (their ids are in "
                f"{run}/candidates and {run}/negatives.parquet)"
            )
        return f"hardneg score {run} --scorer {scorer} --only {only}{name}"

    def read(self, path: Path) -> tuple[Int, Float]:
        """The scored pairs in a file; RunError if it is damaged, or holds unknown ids."""
        check_regular(path, RunError)
        with reading(path, "Parquet file", RunError), pq.ParquetFile(path) as file:
            meta = (file.schema_arrow.metadata or {}).get(_META, b"{}")
        table = read_parquet(path, ["query_id", "document_id", "score"])
        rows = []
        for name in ("query_id", "document_id"):
            kind = table[name].type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise RunError(f"{path}: the column {name!r} is {kind}, expected text{_end(self.folder)}")
        for name, ids in (("query_id", self._query_rows), ("document_id", self.pairs.document_rows_of)):
            found = ids.of(table[name])
            if unknown := int((found < 0).sum()):
                raise RunError(f"{path}: {unknown:,} values of {name} are not in the run's dataset{_end(self.folder)}")
            rows.append(found)
        column = table["score"]
        if column.type != pa.float32() or column.null_count or not np.isfinite(values_of(column)).all():
            raise RunError(f"{path}: a score is missing or no finite number{_end(self.folder)}")
        keys, scores = pair_keys(rows[0], rows[1], len(self.pairs.document_ids)), values_of(column).astype(np.float32)
        try:
            written = json.loads(meta).get("sha256")
        except (ValueError, AttributeError):
            written = None
        if written != _digest(self.fingerprint, keys, scores) or (len(keys) and (np.diff(keys) <= 0).any()):
            raise RunError(f"{path} does not fit its checksum{_end(self.folder)}")
        return keys, scores

    def write(self, path: Path, keys: Int, scores: Float) -> None:
        """Write scored pairs, `[m]` each, to a file; their keys must ascend."""
        queries, documents = np.divmod(keys, len(self.pairs.document_ids))
        columns = [
            ids.take(numbers(rows))
            for rows, ids in ((queries, self.pairs.query_ids), (documents, self.pairs.document_ids))
        ]
        table = pa.table([*columns, numbers(scores)], names=["query_id", "document_id", "score"])
        table = table.replace_schema_metadata(
            {_META: json.dumps({"sha256": _digest(self.fingerprint, keys, scores)}).encode()}
        )
        with (
            atomic_path(path) as temporary,
            pq.ParquetWriter(
                temporary, table.schema, compression="zstd", use_dictionary=["query_id", "document_id"],
                column_encoding={"score": "BYTE_STREAM_SPLIT"}, write_statistics=False,
            ) as writer,
        ):  # fmt: skip
            writer.write_table(table, row_group_size=1 << 20)


class Teachers:
    """The teachers of a run, by name.

    Args:
        folder: the folder `teacher` of the run.
        pairs: the dataset of the run.
    """

    def __init__(self, folder: Path, pairs: Pairs) -> None:
        self.folder, self.pairs = folder, pairs
        self._opened: dict[str, TeacherScores] = {}

    @property
    def names(self) -> list[str]:
        found = sorted(self.folder.glob("*/teacher.json"))
        return [path.parent.name for path in found if _NAME.fullmatch(path.parent.name)]

    def named(self, name: str) -> TeacherScores:
        """The scores of a teacher; UsageError if the run has none of this name."""
        check_name(name)
        names = self.names
        if name not in names:
            more = "" if name == TEACHER else f" --name {name}"
            known = f" The run has: {', '.join(names)}." if names else ""
            raise UsageError(
                f"{self.folder.parent} has no scores of a teacher {name!r}.{suggestion(name, names) if names else ''}{known} Make "
                f"them with: hardneg score {self.folder.parent} --scorer cross-encoder:NAME{more} (or --scores FILE)"
            )
        if name not in self._opened:
            self._opened[name] = TeacherScores(self.folder / name, self.pairs)
        return self._opened[name]

    def by_hash(self, fingerprint: str) -> TeacherScores | None:
        """The scores of the teacher whose hash begins like this; None if the run has none."""
        every = (self.named(name) for name in self.names)
        return next((each for each in every if each.fingerprint.startswith(fingerprint)), None)


def start(folder: Path, pairs: Pairs, scorer: str, fingerprint: str) -> TeacherScores:
    """Open the scores in `folder`, or begin new ones.

    Raises:
        UsageError: there are scores of another scorer. RunError: they are damaged.
    """
    path = folder / "teacher.json"
    if path.exists():
        opened = TeacherScores(folder, pairs)
        if opened.fingerprint != fingerprint:
            read = scorer.startswith(FROM_FILE) or str(opened.info["scorer"]).startswith(FROM_FILE)
            others = "which are not" if read else "whose weights or settings are others than"
            raise UsageError(
                f"{folder} holds scores of {opened.info['scorer']}, {others} those of {scorer}: give these another --name, or replace "
                f"them with --overwrite"
            )
        return opened
    digests: Mapping[str, Any] = {side: pairs.digests[side] for side in ("queries", "documents")}
    write_json(path, {"schema_version": 1, "scorer": scorer, "fingerprint": fingerprint, **digests}, checksum=True)
    return TeacherScores(folder, pairs)


def _digest(fingerprint: str, keys: Int, scores: Float) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    digest.update(np.ascontiguousarray(keys, np.int64).tobytes())
    digest.update(np.ascontiguousarray(scores, np.float32).tobytes())
    return digest.hexdigest()


def _again(folder: Path) -> str:
    return f"score again with --overwrite --name {folder.name}"


def _end(folder: Path) -> str:
    return f": the file is damaged: {_again(folder)}"
