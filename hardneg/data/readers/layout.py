"""What all layouts have in common: a reader of rows adds what each row holds to a builder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from hardneg.data.builder import Builder
from hardneg.data.options import ReadOptions
from hardneg.data.readers.rows import Block, Row


class Layout(ABC):
    """Reads rows of one layout.

    Attributes:
        name: the layout, as in `ReadOptions.format`.
        corpora: files of documents that belong to the source, besides those of the options.
    """

    name: ClassVar[str]

    def __init__(self, builder: Builder, options: ReadOptions) -> None:
        self.builder, self.options = builder, options
        self.corpora: list[Path] = []
        self._named: list[tuple[str, int, str, float]] = []

    @staticmethod
    def fits(row: Row) -> bool:
        """Whether this, the first row of a source, is of this layout. Some are told by other things: they fit no row."""
        return False

    @abstractmethod
    def __call__(self, where: str, row: Row) -> None:
        """Add what a row holds."""

    def take(self, block: Block, first: Row) -> bool:
        """Add what a block of rows holds, as whole columns. False, and nothing was added: its rows must be read one by one.

        Args:
            block: rows that follow those that were added before.
            first: the first row of the source.
        """
        return False

    def own_negative(self, query: int, document: int) -> None:
        """A negative that the source brings along: judged not relevant, or a candidate, only if the options say so."""
        if self.options.negatives == "judged":
            self.builder.relate(query, document, 0)
        elif self.options.negatives == "candidates":
            self.builder.give(query, document)

    def relate_by_id(self, where: str, query: int, document_id: str, grade: float) -> None:
        """Relate a query to a document of the corpus, which is read later. A grade of 0 is that of an own negative."""
        if grade or self.options.negatives != "corpus":
            self._named.append((where, query, document_id, grade))

    def finish(self) -> None:
        """Relate what was named by id, once the corpus has been read."""
        for where, query, id, grade in self._named:
            document = self.builder.document_of(id, where)
            if grade:
                self.builder.relate(query, document, grade)
            else:
                self.own_negative(query, document)
