"""Lines of TREC runs, and of the rankings with three columns that Tevatron writes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hardneg.data.readers.rows import opened
from hardneg.data.texts import shown
from hardneg.errors import DataError

SHORT = 3  # fields of a line without rank and tag
FORMS = "lines of 'query-id Q0 document-id rank score tag' (TREC) or 'query-id document-id score' (Tevatron)"


class TrecLine(NamedTuple):
    """A line of a TREC run.

    Attributes:
        number: of the line in its file, from 1.
        query, document: their ids.
        rank: as it stands there; the number of the line, where a line has three fields.
        score: a finite number.
        short: whether the line has three fields.
    """

    number: int
    query: str
    document: str
    rank: float
    score: float
    short: bool


def trec_lines(path: Path) -> Iterator[TrecLine]:
    """The lines of a file that are not empty, with spaces or tabs between fields; maybe packed (.gz ...).

    Raises:
        DataError: a line has another number of fields, is not UTF-8, or its rank or score is no finite number.
    """
    width = 0
    with opened(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            query, document, rank, score, fields = _fields(line, path, number)
            if (fields == SHORT) != ((width or fields) == SHORT):
                raise DataError(f"{path}, line {number}: {fields} fields, but the lines before have {width}: {FORMS}")
            width = fields
            yield TrecLine(number, query, document, rank, score, fields == SHORT)


class OnlyRanks:
    """Whether the third column of a file with three counts from 1 for each query, in a file that has a second rank."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.counts, self.some = True, False

    def look(self, line: TrecLine) -> None:
        """Look at one more line of the file."""
        if self.counts:
            rank = self.last.get(line.query, 0) + 1
            self.counts = line.short and line.score == rank
            self.some = self.some or rank > 1
            self.last[line.query] = rank

    def __bool__(self) -> bool:
        return self.counts and self.some


def _fields(line: bytes, path: Path, number: int) -> tuple[str, str, float, float, int]:
    """(query id, document id, rank, score, number of fields) of a line. In a line of three, the rank is its number in the file."""
    try:
        fields = line.decode("utf-8-sig" if number == 1 else "utf-8").split()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 ({error})") from None
    count = len(fields)
    if count not in (SHORT, 5, 6):
        raise DataError(f"{path}, line {number}: {count} fields ({shown(' '.join(fields))}), expected: {FORMS}")
    if count == SHORT:
        fields = [fields[0], "Q0", fields[1], str(number), fields[2]]
    try:
        rank, score = float(fields[3]), float(fields[4])
    except ValueError:
        rank, score = math.nan, math.nan
    if not (math.isfinite(rank) and math.isfinite(score) and abs(score) < 3e38):
        raise DataError(
            f"{path}, line {number}: rank {shown(fields[3])} and score {shown(fields[4])} must be finite numbers"
        )
    return fields[0], fields[2], rank, score, count
