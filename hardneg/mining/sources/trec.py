"""Candidates of a TREC run: the rankings of any other system, in a file."""

from __future__ import annotations

import shlex
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.data.readers.rows import exists
from hardneg.data.readers.trec_lines import FORMS, OnlyRanks, trec_lines
from hardneg.data.texts import shown
from hardneg.errors import DataError, UsageError, first_few
from hardneg.index.base import Neighbors
from hardneg.mining.sources.base import CandidateSource, OpenSource, SourceInputs, shortened
from hardneg.mining.spec_options import SpecOptions
from hardneg.storage.arrays import Ragged, pair_keys
from hardneg.storage.files import sha256_file

_FEW = 3  # unknown ids that a note names


@dataclass(frozen=True, kw_only=True)
class TrecRun(CandidateSource):
    """The documents of a TREC run: lines of `query-id Q0 document-id rank score tag`, with spaces or tabs, maybe packed (.gz ...).

    Lines of `query-id document-id score`, as Tevatron writes its rankings, are read as well.
    As trec_eval does, documents are ordered by their scores, whatever their ranks say; equal scores are ordered by rank, then by
    row of the corpus.

    Attributes:
        file: the path of the file.
    """

    name: ClassVar[str] = "trec"
    words: ClassVar[tuple[str, ...]] = ("file",)
    file: str

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,)

    def lacks(self, pairs: Pairs) -> str | None:
        """Whether the file is there; it is read once, so that a bad line is found before anything is encoded. Raises as `open`."""
        if not exists(Path(self.file)):
            return f"candidates {self.spec!r}: {self.file} does not exist"
        _Lists(Path(self.file), self.spec, pairs)
        return None

    def open(self, inputs: SourceInputs) -> OpenSource:
        """Read the file.

        Raises:
            DataError: a line is malformed, a document is there twice for a query, or no id is one of the dataset.
        """
        return _Lists(Path(self.file), self.spec, inputs.pairs)


class _Lists:
    """The rankings of a TREC run, as rows of the dataset."""

    def __init__(self, path: Path, spec: str, pairs: Pairs) -> None:
        self.fingerprint: str | None = sha256_file(path)
        rows, documents, ranks, scores, self.notes = _read(path, spec, pairs)
        order = np.lexsort((documents, ranks, -scores, rows))
        rows, documents = rows[order], documents[order]
        key = np.sort(pair_keys(rows, documents, len(pairs.document_ids)))
        twice = key[1:][key[1:] == key[:-1]]
        if len(twice):
            query, document = (int(each) for each in divmod(twice[0], len(pairs.document_ids)))
            raise DataError(
                f"{path}: {len(twice):,} documents are there twice for one query, the first: query "
                f"{pairs.query_ids[query].as_py()!r}, document {pairs.document_ids[document].as_py()!r}. Leave one line each"
            )
        lengths = np.bincount(rows, minlength=len(pairs))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.lists = Ragged(offsets, documents)
        self.scores = scores[order].astype(np.float32)
        self.reach = int(lengths.max(initial=0))
        without = int((lengths == 0).sum())
        if without:
            self.notes.append(f"{spec} lists nothing for {without:,} of {len(pairs):,} queries")

    def search(self, queries: NDArray[np.int64], k: int) -> Neighbors:
        lists, places = self.lists.take(queries), self.lists.places(queries)
        documents = lists.padded()
        scores = np.full(documents.shape, -np.inf, np.float32)
        scores[documents >= 0] = self.scores[places]
        return shortened(scores, documents.astype(np.int32), k)


Columns = tuple[
    NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], list[str]
]  # query, document, rank, score, notes


def _read(path: Path, spec: str, pairs: Pairs) -> Columns:
    queries, documents = (
        {id: row for row, id in enumerate(ids.to_pylist())} for ids in (pairs.query_ids, pairs.document_ids)
    )
    rows, found, ranks, scores = array("q"), array("q"), array("d"), array("d")
    strange: tuple[dict[str, int], dict[str, int]] = ({}, {})
    total, only_ranks = 0, OnlyRanks()
    for line in trec_lines(path):
        total += 1
        only_ranks.look(line)
        row, place = queries.get(line.query), documents.get(line.document)
        if row is None or place is None:
            side, id = (0, line.query) if row is None else (1, line.document)
            strange[side][id] = strange[side].get(id, 0) + 1
            continue
        rows.append(row)
        found.append(place)
        ranks.append(line.rank)
        scores.append(line.score)
    if not total:
        raise DataError(f"{path} is empty: {FORMS}")
    if only_ranks:
        raise DataError(
            f"{path}: the third of its three columns counts 1, 2, 3, ... for each query: ranks, as in rankings of MS MARCO, and a "
            f'source needs scores. Make a TREC run of it: awk \'{{print $1, "Q0", $2, $3, -$3, "run"}}\' {shlex.quote(str(path))} > '
            f"run.trec"
        )
    if not rows:
        raise DataError(
            f"{path}: none of its {total:,} lines has a query and a document of this dataset (the first unknown ids: "
            f"{first_few(map(shown, [*strange[0], *strange[1]][:_FEW]))}): is it a run over another dataset or split?"
        )
    notes = [
        f"{spec}: {sum(ids.values()):,} of {total:,} lines were left out, because {len(ids):,} {what} ids are not in the dataset ("
        f"{first_few(map(shown, list(ids)[:_FEW]))})"
        for what, ids in zip(("query", "document"), strange, strict=True)
        if ids
    ]
    return (
        np.array(rows, np.int64), np.array(found, np.int64), np.array(ranks, np.float64), np.array(scores, np.float64), notes,
    )  # fmt: skip


def trec_from_spec(v: SpecOptions) -> CandidateSource:
    label = v.text("label", "") or ""
    file = v.word("the file, as in trec:FILE")
    if v.words or v.options:
        more = ",".join([*v.words, *(f"{key}={value}" for key, value in v.options.items())])
        raise UsageError(
            f"candidates {v.spec!r}: {more!r} is not understood. In a spec, the name of a file cannot hold a comma: rename the "
            f"file, or use TrecRun(file=...)"
        )
    return TrecRun(file=file, label=label)
