"""The negatives of a run as a `datasets.Dataset`, in memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hardneg.errors import MissingDependencyError, UsageError, suggestion
from hardneg.exports.export import EXPORT_FORMATS, tables_of
from hardneg.exports.layouts import LAYOUTS
from hardneg.exports.writers import Exported, plain_type

if TYPE_CHECKING:
    from hardneg.mining.run import Run

_logger = logging.getLogger("hardneg")

# Formats that are one table.
TABLES = tuple(name for name in LAYOUTS if name not in ("tevatron-corpus", "pylate", "msmarco"))


def to_dataset(
    run: Run,
    format: str = "triplet",
    *,
    ids: bool = False,
    scores: bool | str = False,
    false_probability: bool = False,
    short: str = "skip",
    max_positives: int | None = None,
) -> Any:
    """See `Run.to_dataset`."""
    if format in EXPORT_FORMATS and format not in TABLES:
        raise UsageError(f"the format {format!r} is no single table: hardneg.export(run, {format!r}, out) writes it")
    if format not in TABLES:
        raise UsageError(f"to_dataset has no format {format!r}.{suggestion(str(format), TABLES)}")
    try:
        from datasets import Dataset
    except ImportError:
        raise MissingDependencyError("datasets", "datasets", "to_dataset") from None
    report = Exported()
    tables = tables_of(
        run, format, report, ids=ids, scores=scores,
        false_probability=false_probability, short=short, max_positives=max_positives,
    )  # fmt: skip
    batches = list(tables)
    for reason, count in report.left_out.items():
        queries = "query was" if count == 1 else "queries were"
        _logger.warning(f"to_dataset({format!r}): {count:,} {queries} left out, {reason} (short={short!r})")
    schema = pa.schema([(field.name, plain_type(field.type)) for field in batches[0].schema])
    return Dataset(pa.concat_tables([table.cast(schema) for table in batches]))
