"""How a source is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FORMATS = ("auto", "beir", "pairs", "flagembedding", "tevatron")


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source; None means: guess by the usual names.

    Attributes:
        format: one of `FORMATS`.
        split: of a BEIR folder, a saved dataset with several splits, or a built-in set.
        query_column, positive_column, id_column, document_id_column, group_column: names of columns.
        relevance_column: a graded judgement a row: above 0 relevant, else judged not relevant.
        corpus: a file or BEIR folder with more documents.
        skip_unknown: judgements that name unknown ids are counted instead of being an error.
    """

    format: str = "auto"
    split: str = "train"
    query_column: str | None = None
    positive_column: str | None = None
    id_column: str | None = None
    document_id_column: str | None = None
    group_column: str | None = None
    relevance_column: str | None = None
    corpus: Path | None = None
    skip_unknown: bool = False
