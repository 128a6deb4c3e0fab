"""Options for reading a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FORMATS = ("auto", "beir", "pairs", "flagembedding", "tevatron")


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source. A column that is None is guessed from the usual names; "" means that there is none.

    Attributes:
        format: one of `FORMATS`; `auto` tells the format from the source.
        split: split to read of a BEIR folder, a saved dataset with several splits, or a built-in dataset.
        query_column, positive_column: columns of the query's text and of its relevant text, or list of texts.
        id_column, document_id_column: columns of the ids of the query and of the positives.
        group_column: column of a label. The filter `group` keeps documents in the query's group from being its
            negatives.
        relevance_column: column of a judgement: relevant if above 0, otherwise judged not relevant.
        corpus: a file or BEIR folder with additional documents.
        skip_unknown: count judgements with unknown ids in BEIR folders, instead of raising an error.
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
