"""Options for reading a dataset."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from hardneg import registry
from hardneg.errors import UsageError, no_giants, suggestion
from hardneg.storage.json_files import is_number

FORMATS = (
    "auto",
    "beir",
    "pairs",
    "flagembedding",
    "tevatron",
    "dpr",
    "squad",
    "msmarco",
    "chat",
    "labeled-list",
    "llama-index",
    "triples",
    "images",
)
Quoting = Literal["auto", "quotes", "none"]
NEGATIVES = ("corpus", "judged", "candidates")
_TEXTS = ("format", "split", "negatives", "quoting", "images", "caption_template")
_MAYBE_TEXTS = (
    "query_column", "positive_column", "id_column", "document_id_column", "group_column", "relevance_column", "text_column",
    "image_column", "caption_column",
)  # fmt: skip
_FLAGS = ("skip_unknown", "outside_images", "skip_broken", "group_positives")
IMAGES = ("documents", "queries")


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source. A column that is None is guessed from the usual names; "" means that there is none.

    Attributes:
        format: one of `FORMATS`, or a registered layout; `auto` tells the format from the source.
        split: split to read of a BEIR folder, a saved dataset with several splits, or a built-in dataset.
        query_column, positive_column: columns of the query's text and of its relevant text, or list of texts. Several columns
            of texts, as `title,description`, are joined by spaces.
        id_column, document_id_column: columns of the ids of the query and of the positives.
        group_column: column of a label. The filter `group` keeps documents in the query's group from being its
            negatives.
        group_positives: make groups of what positives connect, in any number of steps: if a is a positive of b, and b of c,
            all three are a group, as duplicate questions are. Equal texts count as one, whichever side they stand on.
        relevance_column: column of a judgement, a grade.
        relevant_from: the lowest grade of a positive; None: every grade above 0. Grades from there down to 0, without
            0, say nothing. Grades of 0 and below are judged not relevant.
        corpus: files or BEIR folders with additional documents.
        text_column: column of the texts in `corpus`, or several, as above.
        negatives: what negatives that the source brings along are: documents of the `corpus`, or `judged` not relevant
            to the query of their row, or its `candidates`, which are remembered (`Pairs.given`) but judged by nobody.
        quoting: how a TSV file is written: `quotes`, `none`, or `auto`, which lets the whole file tell.
        skip_unknown: count judgements with unknown ids in BEIR folders, instead of raising an error.
        images: what the pictures of a source are: the `documents`, which captions are the queries of, or the `queries`.
        image_column, caption_column: columns of the pictures (a path, bytes, or both as Hugging Face stores them) and of their
            captions (a text or a list of texts); in WebDataset shards, the extension of the pictures and the field of the JSON.
        caption_template: the caption of a picture that has a class and no caption; `{}` stands for the name of the class.
        image_root: the folder that paths of pictures are relative to, and may not leave; None: that of the
            file. A table in memory has none: its absolute paths are read as they are.
        outside_images: let the paths of pictures lead out of that folder.
        skip_broken: decode every picture as it is read, and count those that cannot be, instead of raising an error.

    Raises:
        UsageError: the format, the quoting, the kind of negatives or of pictures is unknown, the template has no `{}`, or groups
            are asked for in two ways.
    """

    format: str = "auto"
    split: str = "train"
    query_column: str | None = None
    positive_column: str | None = None
    id_column: str | None = None
    document_id_column: str | None = None
    group_column: str | None = None
    relevance_column: str | None = None
    relevant_from: float | None = None
    corpus: str | os.PathLike[str] | tuple[str | os.PathLike[str], ...] | None = None
    text_column: str | None = None
    negatives: str = "corpus"
    quoting: Quoting = "auto"
    skip_unknown: bool = False
    images: str = "documents"
    image_column: str | None = None
    caption_column: str | None = None
    caption_template: str = "{}"
    image_root: str | os.PathLike[str] | None = None
    outside_images: bool = False
    skip_broken: bool = False
    group_positives: bool = False

    def __post_init__(self) -> None:
        no_giants(self)
        self._check_types()
        formats = (*FORMATS, *registry.names("layout"))
        choices = (("format", formats), ("quoting", get_args(Quoting)), ("negatives", NEGATIVES), ("images", IMAGES))
        for name, known in choices:
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}.{suggestion(str(value), known)}")
        if "{}" not in self.caption_template:
            raise UsageError(
                f"caption_template={self.caption_template!r} must hold {{}}, where the name of the class goes"
            )

        if self.group_positives and self.group_column:
            raise UsageError(
                f"a document has one group: it cannot be both that of the column {self.group_column!r} (group_column, --group-column) "
                f"and that of its positives (group_positives, --group-positives). Leave one of them out"
            )

    def _check_types(self) -> None:
        """UsageError for a value of another type than its option has."""
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"the option {name} must be text, not {getattr(self, name)!r}")
        for name in _MAYBE_TEXTS:
            if not isinstance(getattr(self, name), str | None):
                raise UsageError(f"the option {name} must be text or None, not {getattr(self, name)!r}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise UsageError(f"the option {name} must be True or False, not {getattr(self, name)!r}")
        least = self.relevant_from.item() if isinstance(self.relevant_from, np.generic) else self.relevant_from
        if least is not None and not is_number(least):
            raise UsageError(f"the option relevant_from must be a finite number or None, not {least!r}")
        several = (
            self.corpus if isinstance(self.corpus, tuple | list) else () if self.corpus is None else (self.corpus,)
        )
        for name, paths in (("corpus", several), ("image_root", () if self.image_root is None else (self.image_root,))):
            if not all(isinstance(each, str | os.PathLike) for each in paths):
                raise UsageError(f"the option {name} must be a path or None, not {getattr(self, name)!r}")

    @property
    def corpora(self) -> list[Path]:
        """The files and folders of `corpus`."""
        given = self.corpus
        if given is None:
            return []
        return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(each) for each in given]
