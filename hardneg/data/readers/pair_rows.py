"""Reads rows that hold a query and its positives, from any container: JSON lines, CSV, TSV, Parquet, saved datasets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from hardneg.data.builder import Builder
from hardneg.data.columns import as_id, as_number, find_column, id_of, need_pair
from hardneg.data.labels import Grades, as_judgement, is_blank, meaning_of
from hardneg.data.options import ReadOptions
from hardneg.data.readers.joined_columns import JoinedColumns
from hardneg.data.readers.layout import Layout
from hardneg.data.readers.pair_columns import PairColumns, add_pairs
from hardneg.data.readers.rows import Block, Row, names
from hardneg.errors import DataError

QUERY_COLUMNS = (
    "query", "anchor", "question", "sentence1", "sentence_A", "premise", "question1", "prompt", "query_text", "claim",
)  # fmt: skip

POSITIVE_COLUMNS = (
    "positive", "positives", "answer", "answers", "document", "text", "passage", "context", "code",
    "sentence2", "sentence_B", "hypothesis", "question2", "pos",
)  # fmt: skip

QUERY_ID_COLUMNS = ("query_id", "query-id", "qid", "_id", "id")

DOCUMENT_ID_COLUMNS = ("document_id", "doc_id", "docid", "positive_id", "corpus_id", "corpus-id", "pid")

GROUP_COLUMNS = ("group", "label", "class")

RELEVANCE_COLUMNS = ("relevant", "relevance", "is_relevant", "is_duplicate", "is_positive", "is_match")

# The columns besides the texts, by what they are to a row.
_ROLES = {
    "id": QUERY_ID_COLUMNS, "document_id": DOCUMENT_ID_COLUMNS, "relevance": RELEVANCE_COLUMNS, "group": GROUP_COLUMNS,
}  # fmt: skip

# Columns that grade a pair: what counts as a positive is not told by their names.
GRADE_COLUMNS = (
    "score", "similarity", "sim", "rating", "stars", "grade", "judgement", "judgment", "relevancy", "esci_label",
)  # fmt: skip

# Such as `teacher_score`.
_GRADE_COLUMN = re.compile(r".+[_ -](score|similarity|sim|rating|stars|grade|relevance|judge?ment)", re.IGNORECASE)

# Columns of two texts that play equal parts, so that one is not a positive of the other by its name alone.
_SENTENCES = ("sentence1", "sentence_a", "premise", "question1")

# Rows and columns that are looked at for classes, and characters of a class.
_LOOKED_AT, _COLUMNS, _CLASS_NAME = 1000, 8, 60

_NEGATIVE_COLUMN = re.compile(r"(hard[_ -]?)?neg(atives?)?[_ -]?\d*", re.IGNORECASE)


class PairRows(Layout):
    """Reads rows with a query and one or more positives.

    A row may also have ids, a group, a relevance judgement, and negatives. Texts in negative columns become documents
    of the corpus, and are judged negatives of the query if `options.negatives` says so.

    Args:
        builder: receives the queries, documents and judgements.
        options: names of the columns. Those that are None are guessed from the usual names.
        first: place and content of the first row. The columns found in it are read from all rows.
        column: gives all values of a column: what a label means is told by all of them.
        name: name of the source.

    Raises:
        DataError: the first row has no column of queries or of positives, or a label may mean several things.
    """

    name = "pairs"

    def __init__(
        self,
        builder: Builder,
        options: ReadOptions,
        first: tuple[str, Row],
        column: Callable[[str], Iterable[Any]],
        name: str,
    ) -> None:
        super().__init__(builder, options)
        where, row = first
        self.joined = JoinedColumns((options.query_column, options.positive_column), row)
        row = self.joined.row(where, row)
        usual = (options.query_column, QUERY_COLUMNS), (options.positive_column, POSITIVE_COLUMNS)
        self.query, self.positive = need_pair(row, *usual, where)
        self.id, self.document_id, self.relevance, self.group = (
            find_column(row, getattr(options, f"{role}_column"), usual, where) for role, usual in _ROLES.items()
        )
        self.negatives = [name for name in row if _NEGATIVE_COLUMN.fullmatch(name)]
        self._read_label(row, where, column, name)
        self.source, self.grades = name, Grades()
        self.seen = set(row)
        roles = ("query", "positive", *_ROLES)
        builder.columns |= {role: found for role in roles if (found := getattr(self, role)) is not None}
        if self.negatives:
            builder.columns["negatives"] = ", ".join(self.negatives)
        self._say_what_is_not_read(row, column)

    def _say_what_is_not_read(self, row: Row, column: Callable[[str], Iterable[Any]]) -> None:
        """Name the columns that are nothing to a pair, and one of few values, which could be groups."""
        read = {self.query, self.positive, *(getattr(self, role) for role in _ROLES), *self.negatives}
        read |= {part for name in (self.query, self.positive) for part in self.joined.parts.get(name, ())}
        rest = [name for name in row if name not in read]
        if rest:
            self.builder.columns["not read"] = ", ".join(rest)
        if self.group is None and self.options.group_column is None and not self.options.group_positives:
            looked_at = [name for name in rest if isinstance(row[name], str)][:_COLUMNS]
            group = next((name for name in looked_at if _are_classes(column(name))), None)
            if group is not None:
                self.builder.columns["perhaps groups"] = group

    def _read_label(self, row: Row, where: str, column: Callable[[str], Iterable[Any]], name: str) -> None:
        """Find out what a label or a grade means that the user has not spoken of."""
        sentences = self.query.lower() in _SENTENCES
        if self.relevance is None and self.group is not None and self.options.group_column is None:
            meaning = meaning_of(column(self.group), self.group, name, sentences)
            if meaning == "judgement" and self.group.lower() != "group":
                self.group, self.relevance = None, self.group
            elif meaning == "nothing":
                self.group = None
        if self.relevance is None and self.options.relevance_column is None:
            self._ask_about_grades(row, where, column, name)

    def _ask_about_grades(self, row: Row, where: str, column: Callable[[str], Iterable[Any]], name: str) -> None:
        """Refuse a column of grades that nobody has spoken of: a low grade in it is no positive."""
        grade = self._grades_in(row, where)
        if grade is None or not _varies(column(grade)):
            return
        if self.negatives:  # the positive of a row is told from its negatives, and the score is that of a teacher
            self.builder.count("grades_not_read")
            return
        raise DataError(
            f"{name}: the column {grade!r} grades the pairs, so not all of them are positives: give --relevance-column "
            f"{grade} --relevant-from X (pairs from X on are positives), or --relevance-column '' (all are)"
        )

    def _grades_in(self, row: Row, where: str) -> str | None:
        """The column of a row that grades its pair, of those that are nothing else."""
        taken = {self.query, self.positive, self.id, self.document_id, self.group, *self.negatives}
        free = {name: value for name, value in row.items() if name not in taken and not isinstance(value, list | dict)}
        return find_column(free, None, GRADE_COLUMNS, where) or next(filter(_GRADE_COLUMN.fullmatch, free), None)

    def _late(self, where: str, row: Row) -> None:
        """Columns that earlier rows lack. What would have been read had it been there from the start is not passed over."""
        new = {name: row[name] for name in row if name not in self.seen}
        self.seen |= new.keys()
        rest = [name for name in new if not _NEGATIVE_COLUMN.fullmatch(name)]
        if rest:
            self.builder.columns["not read"] = ", ".join([*filter(None, [self.builder.columns.get("not read")]), *rest])
        late = [name for name in new if _NEGATIVE_COLUMN.fullmatch(name)]
        if late:
            self.negatives += late
            self.builder.columns["negatives"] = ", ".join(self.negatives)
        grade = None if self.relevance or self.options.relevance_column is not None else self._grades_in(new, where)
        for role, usual in _ROLES.items():
            given = getattr(self.options, f"{role}_column")
            found = find_column(new, None, usual, where) if given is None else given if given in new else None
            if role == "relevance" and not self.negatives:
                found = found or grade
            if found and getattr(self, role) is None:
                raise DataError(
                    f"{where}: the column {found!r} is not in the first row, so what it means was not looked at: give it in every row "
                    f"(null where it says nothing), or say that it is not to be read (--{role.replace('_', '-')}-column '')"
                )

    def take(self, block: Block, first: Row) -> bool:
        table = block.table(first)
        table = None if table is None else self.joined.table(table)
        if table is None:
            return False
        columns = PairColumns(
            self.query, self.positive, self.id, self.document_id, self.relevance or None, self.group or None,
            tuple(self.negatives), frozenset(self.seen),
        )  # fmt: skip
        return add_pairs(self.builder, self.options, columns, table, self.grades)

    def finish(self) -> None:
        super().finish()
        if self.relevance and self.options.relevant_from is None:
            self.grades.check(
                self.source, self.relevance, " (pairs from X on are positives), or --relevance-column '' (all are)"
            )
            if self.grades.below_the_highest:
                self.builder.count("graded_positives", self.grades.below_the_highest)

    def __call__(self, where: str, row: Row) -> None:
        row = self.joined.row(where, row)
        if not row.keys() <= self.seen:
            self._late(where, row)
        try:
            text, positives = row[self.query], row[self.positive]
        except KeyError as error:
            raise DataError(f"{where}: there is no column {error.args[0]!r}; it has: {names(row)}") from None
        id = id_of(row, self.id, where)
        asked = text if isinstance(text, list) else [text]  # several ways to ask, as in MTEB's reranking tasks
        if len(asked) != 1 and id is not None:
            raise DataError(f"{where}: {len(asked)} queries with one id: give each a row of its own")
        for each in asked:
            self._add(id, each, positives, row, where)

    def _add(self, id: str | None, text: Any, positives: Any, row: Row, where: str) -> None:
        """Add a query with the positives and negatives of its row."""
        group = row.get(self.group) if self.group else None
        query = self.builder.add_query(id, text, group=group, where=where)
        texts = positives if isinstance(positives, list) else [positives]
        ids = row.get(self.document_id) if self.document_id else None
        ids = ids if isinstance(ids, list) else [ids]
        if self.document_id and len(ids) != len(texts):
            raise DataError(f"{where}: {len(texts)} positives, but {len(ids)} ids in {self.document_id!r}")
        score = self._score(row, where)
        for i, positive in enumerate(texts):
            if is_blank(positive):
                self.builder.count("blank_positives")
                continue  # the query is kept, without a positive
            document_id = as_id(ids[i], where) if self.document_id else None
            document = self.builder.add_document(document_id, positive, group=group, where=where)
            if score is not None:
                self.builder.relate(query, document, score)
        for name in self.negatives:
            self._add_negatives(query, row.get(name), where)

    def _score(self, row: Row, where: str) -> float | None:
        """The judgement of a row; None if it says nothing."""
        if not self.relevance:
            return 1.0
        value = row.get(self.relevance)
        grade = as_judgement(value)
        if grade is None:
            grade = as_number(value, self.relevance, where)
        judged = self.builder.judged(as_number(grade, self.relevance, where), self.options.relevant_from)
        self.grades.add(judged)
        return judged

    def _add_negatives(self, query: int, negatives: Any, where: str) -> None:
        for negative in negatives if isinstance(negatives, list) else [negatives]:
            if not is_blank(negative):
                document = self.builder.add_document(None, negative, where=where)
                self.own_negative(query, document)


def _are_classes(values: Iterable[Any]) -> bool:
    """Whether few different short texts repeat, among the first values."""
    first = [value for value in islice(values, _LOOKED_AT) if not is_blank(value)]
    texts = {value for value in first if isinstance(value, str) and len(value) <= _CLASS_NAME}
    return 1 < len(texts) <= len(first) // 4 and all(value in texts for value in first)


def _varies(values: Iterable[Any]) -> bool:
    """Whether there are two different values; what comes after these is not read."""
    texts = map(str, values)
    first = next(texts, None)
    return any(text != first for text in texts)
