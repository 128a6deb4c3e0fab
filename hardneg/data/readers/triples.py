"""Reads TSV files without a header, as MS MARCO has them: triples of texts, and triples of ids beside a collection.

triples.tsv           query, positive and negative, as texts
qidpidtriples.tsv     ids of a query, its positive and a negative; queries*.tsv and collection.tsv, which hold the ids and the
                      texts, stand in the same folder, or the documents are given with --corpus
"""

from __future__ import annotations

from pathlib import Path

from hardneg.data.builder import Builder
from hardneg.data.options import ReadOptions
from hardneg.data.readers.corpus import TEXT_COLUMNS
from hardneg.data.readers.files import suffix_of
from hardneg.data.readers.layout import Layout
from hardneg.data.readers.pair_rows import (
    DOCUMENT_ID_COLUMNS,
    GRADE_COLUMNS,
    GROUP_COLUMNS,
    POSITIVE_COLUMNS,
    QUERY_COLUMNS,
    QUERY_ID_COLUMNS,
    RELEVANCE_COLUMNS,
)
from hardneg.data.readers.rows import Row, exists
from hardneg.data.readers.separated import check_separator, separated, separated_fields
from hardneg.errors import DataError

_KNOWN = {
    name.lower()
    for names in (
        TEXT_COLUMNS, QUERY_COLUMNS, POSITIVE_COLUMNS, QUERY_ID_COLUMNS, DOCUMENT_ID_COLUMNS, GROUP_COLUMNS,
        RELEVANCE_COLUMNS, GRADE_COLUMNS, ("negative", "neg", "title"),
    )
    for name in names
}  # fmt: skip

ID_COLUMNS = ("query id", "positive id", "negative id")


def header_of(path: Path, options: ReadOptions) -> tuple[str, ...] | None:
    """The names of the columns of a TSV file without a header; None if the file has one, or is no TSV file.

    Raises:
        DataError: the file has no header, and what its columns are cannot be told.
    """
    named = (options.query_column, options.positive_column, options.relevance_column, options.group_column)
    if suffix_of(path) != ".tsv" or not path.is_file() or any(named):
        return None
    first = next(separated_fields(path, "\t", options.quoting), None)
    if first is None or any(field.strip().lower() in _KNOWN for field in first[1]):
        return None
    where, fields = first
    if len(fields) == 3 and all(field.isdecimal() for field in fields):
        return ID_COLUMNS
    if len(fields) >= 3 and not any(field.isdecimal() for field in fields):
        return ("query", "positive", *(f"negative_{i}" for i in range(1, len(fields) - 1)))
    check_separator(fields, where, "\t")
    what = "ids and texts, which are no pairs" if len(fields) == 2 and fields[0].isdecimal() else "unknown columns"
    raise DataError(
        f"{where}: this file has no header, and {len(fields)} columns of {what}: write the names of the columns into its "
        f"first line, such as query and positive"
    )


class TripleIds(Layout):
    """Reads rows of ids: of a query, of its positive, and of a negative."""

    name = "triples"

    def __init__(self, builder: Builder, options: ReadOptions, path: Path) -> None:
        super().__init__(builder, options)
        self.corpora = [] if options.corpora else [path.parent / "collection.tsv"]
        files = sorted(path.parent.glob("queries*.tsv"))
        missing = [str(path.parent / "queries.tsv")] * (not files) + [str(p) for p in self.corpora if not exists(p)]
        if missing:
            raise DataError(
                f"{path}: holds ids only; their texts are looked for in {' and '.join(missing)}, which does not exist. Put "
                f"the files there (the documents may also be given with --corpus)"
            )
        self.queries: dict[str, str] = {}
        for file in files:
            for _, row in separated(file, "\t", ("id", "text"), options.quoting):
                self.queries.setdefault(row["id"], row["text"])

    def __call__(self, where: str, row: Row) -> None:
        query, positive, negative = (row[name] for name in ID_COLUMNS)
        if query not in self.queries:
            raise DataError(f"{where}: the query id {query!r} is unknown: it is in no queries*.tsv beside this file")
        number = self.builder.add_query(query, self.queries[query], where=where)
        self.relate_by_id(where, number, positive, 1.0)
        self.relate_by_id(where, number, negative, 0.0)
