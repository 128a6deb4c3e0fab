"""A filter that knows the answers of queries: a document that holds an answer's words is no negative."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.data.readers.files import located_rows
from hardneg.data.readers.rows import names
from hardneg.errors import DataError, UsageError
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import Filter
from hardneg.mining.spec_options import SpecOptions
from hardneg.storage.arrays import Mask
from hardneg.storage.files import sha256_file

_WORDS = re.compile(r"\w+")

_QUERY_COLUMNS = ("query_id", "_id", "id", "qid", "query", "question", "anchor")

_MOST_CHARACTERS = 1000  # of an answer: longer ones are passages, which no other document repeats


@dataclass(frozen=True, kw_only=True)
class Answer(Filter):
    """Rejects documents that hold an answer of the query, word for word, after folding case and accents.

    That is how DPR (arXiv 2004.04906) tells positive passages. An answer such as "yes" or "2" is found in many documents that do not
    answer: `least` is the fewest characters of an answer that counts.

    Attributes:
        column: the column with the answer, or a list of answers.
        file: the file with that column; "": the source that was mined, if it is a file.
        query: the column with the query's id or text; "": a usual name.
        least: fewest characters of an answer.
    """

    name = "answer"
    words = ("file",)
    column: str
    file: str = ""
    query: str = ""
    least: int = 3

    def lacks(self, pairs: Pairs) -> str | None:
        if self._path(pairs).is_file():
            return None
        return (
            f"the filter 'answer' reads the column {self.column!r} of a file, and {str(self._path(pairs))!r} is none: name it, as "
            f"in answer:FILE,column={self.column}"
        )

    def _path(self, pairs: Pairs) -> Path:
        return Path(self.file or pairs.name)

    def check(self, fingerprints: Mapping[str, Any], force: bool = False) -> dict[str, str]:
        return {f"answers:{self.file}": sha256_file(Path(self.file))} if self.file and Path(self.file).is_file() else {}

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        key = self.spec
        if key not in context.cache:
            if lack := self.lacks(context.pairs):
                raise UsageError(lack)
            context.cache[key] = answers_of(
                self._path(context.pairs), self.column, self.query, self.least, context.pairs
            )
        answers: list[tuple[str, ...]] = context.cache[key]
        keep = np.ones(alive.shape, bool)
        asked = np.array([bool(answers[q]) for q in candidates.queries])
        rows, columns = np.nonzero(alive & asked[:, None])
        used, place = np.unique(candidates.documents[rows, columns], return_inverse=True)
        texts = [f" {folded(text)} " for text in context.pairs.documents.take(used)]
        for row, column, text in zip(rows.tolist(), columns.tolist(), place.ravel().tolist(), strict=True):
            keep[row, column] = not any(answer in texts[text] for answer in answers[candidates.queries[row]])
        return keep


def folded(text: str) -> str:
    """The words of a text, without case and accents, joined by blanks.

    >>> folded("The Éiffel-Tower, 1889.")
    'the eiffel tower 1889'
    """
    plain = unicodedata.normalize("NFKD", text.casefold())
    return " ".join(_WORDS.findall("".join(c for c in plain if not unicodedata.combining(c))))


def answers_of(path: Path, column: str, query: str, least: int, pairs: Pairs) -> list[tuple[str, ...]]:
    """The folded answers of each query, with blanks around them.

    Raises:
        DataError: the file has no such column, or a row's query is not in the dataset.
    """
    ids = {id: row for row, id in enumerate(pairs.query_ids.to_pylist())}
    texts: dict[str, list[int]] = {}
    for row, text in enumerate(pairs.queries.take(np.arange(len(pairs)))):
        texts.setdefault(folded(text), []).append(row)
    found: list[dict[str, None]] = [{} for _ in range(len(pairs))]
    matched = rows = 0
    for where, entry in located_rows(path):
        rows += 1
        if column not in entry:
            raise DataError(f"{where} has no column {column!r}: it has {names(entry)}")
        name = query or next((each for each in _QUERY_COLUMNS if each in entry), "")
        if name not in entry:
            raise DataError(f"{where} has no column of the query's id or text: name it, as in answer:...,query=COLUMN")
        asked = str(entry[name])
        places = [ids[asked]] if asked in ids else texts.get(folded(asked), [])
        matched += bool(places)
        given = entry[column]
        for answer in given if isinstance(given, list | tuple | np.ndarray) else [given]:
            words = folded(str(answer)) if answer is not None else ""
            if least <= len(words) <= _MOST_CHARACTERS:
                for place in places:
                    found[place][f" {words} "] = None
    if not matched:
        raise DataError(f"{path}: none of {rows:,} rows names a query of the dataset, by id or by text")
    if not any(found):
        raise DataError(f"{path}: the column {column!r} holds no answer of {least} to {_MOST_CHARACTERS} characters")
    return [tuple(each) for each in found]


def answer_from_spec(v: SpecOptions) -> Filter:
    column, query = v.options.pop("column", ""), v.options.pop("query", "")
    least = v.integer("least", 3, 1)
    v.no_other_options()
    if not column:
        raise UsageError(f"filter {v.spec!r}: give the column of the answers, as in answer:column=answers")
    assert least is not None
    return Answer(column=column, query=query, least=least, file=v.words.pop(0) if v.words else "")
