"""A mixture: several datasets put together for one training, in which every query and document knows its source."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hardneg.data.mixed import MOST_WEIGHT, Mixed
from hardneg.data.options import ReadOptions
from hardneg.data.pairs import Pairs
from hardneg.data.picture import COLUMNS
from hardneg.data.read import as_pairs
from hardneg.data.texts import Texts, shown
from hardneg.errors import UsageError, suggestion
from hardneg.storage.arrays import Int, Ragged
from hardneg.storage.arrow import numbers, strings

_NAMED_GROUPS = 10_000  # of more groups the names are not kept, as in a dataset of one source


def mixture(
    sources: Mapping[str, Any] | Sequence[Any],
    weights: Mapping[str, float] | Sequence[float] | None = None,
) -> Pairs:
    """One dataset of several, to train on: each batch comes from one source, and so do the negatives of its queries.

    Ids become `SOURCE/ID`, texts stay as they are. A text that stands in two sources is a document in each; if it is relevant to a
    question that both ask, it is a negative of neither. All texts are in memory.

    Args:
        sources: datasets by name, or a list of them, which are then named after what they were read from: `Pairs`, or what
            `read_pairs` takes.
        weights: by name, or one for each in their order: how often an epoch goes through the pairs of a source. 2 repeats them, 0.1
            takes a tenth, another one in every epoch. 1 where none is given.

    Raises:
        UsageError: no sources, a name that cannot be in an id, a weight that is no number above 0 or of no source, one dataset twice,
            or pictures in some of the sources and texts in others.

    >>> both = mixture({"a": Pairs.from_columns(["q"], ["d"]), "b": Pairs.from_columns(["q"], ["e"])}, weights={"b": 2})
    >>> both.query_ids.to_pylist(), both.mixed.settings()
    (['a/q0', 'b/q0'], ['a:1', 'b:2'])
    """
    if isinstance(sources, str | bytes | os.PathLike | Pairs) or not isinstance(sources, Mapping | Iterable):
        raise UsageError("a mixture has several sources: give a dict of datasets by name, or a list of them")
    if isinstance(sources, Mapping):
        given = {name: as_pairs(each, ReadOptions()) for name, each in sources.items()}
    else:
        read = [as_pairs(each, ReadOptions()) for each in sources]
        given = dict(zip(numbered([source_name(each.name) for each in read]), read, strict=True))
    _check_sources(given)
    parts, names = list(given.values()), tuple(given)
    heavy = _weights(names, weights)
    of_queries = np.repeat(np.arange(len(parts)), [len(each) for each in parts])
    starts = np.cumsum([0, *(len(each.document_ids) for each in parts)])
    mixed = Mixed(names, heavy, of_queries, starts)
    return _joined(parts, mixed)


def source_name(spec: str) -> str:
    """A short name for a source: the last part of its path, without what tells the format.

    >>> [source_name(each) for each in ("beir/scifact/", "builtin:pycode", "s3://bucket/pairs.jsonl.gz", "a/*.parquet")]
    ['scifact', 'pycode', 'pairs', 'a']
    """
    parts = [each for each in re.split(r"[/\\:]", spec) if each not in ("", ".", "..")]
    while len(parts) > 1 and any(c in parts[-1] for c in "*?[{"):
        parts.pop()
    last = parts[-1] if parts else "source"
    stem = re.sub(r"(\.(jsonl?|csv|tsv|parquet|pq|txt|arrow|tar|gz|zst|bz2|xz))+$", "", last, flags=re.IGNORECASE)
    return "".join(c if c.isprintable() else "?" for c in stem or last)


def numbered(names: Sequence[str]) -> list[str]:
    """The names; those that are there already get a number.

    >>> numbered(["pairs", "dev", "pairs"])
    ['pairs', 'dev', 'pairs-2']
    """
    found: list[str] = []
    for name in names:
        number, own = 1, name
        while own in found:
            number += 1
            own = f"{name}-{number}"
        found.append(own)
    return found


def parts_of(pairs: Pairs) -> dict[str, Pairs]:
    """The sources of a mixture by name, each with its own documents; ids stay `SOURCE/ID`. A dataset of one source has no parts."""
    if pairs.mixed is None:
        return {}
    found = {}
    for i, name in enumerate(pairs.mixed.names):
        start, stop = pairs.mixed.span(i)
        own, rows = pairs.of_queries(pairs.mixed.rows(i)), np.arange(start, stop)
        shifted: dict[str, Any] = {
            each: None
            if getattr(own, each) is None
            else replace(getattr(own, each), values=getattr(own, each).values - start)
            for each in ("positives", "judged_negatives", "given", "ignored", "dropped")
        }
        found[name] = replace(
            own, **shifted, document_ids=own.document_ids.take(numbers(rows)), documents=own.documents.select(rows),
            document_keys=own.document_keys[rows], body_keys=own.body_keys[rows], document_rows=own.document_rows[rows],
            document_groups=None if own.document_groups is None else own.document_groups[rows],
            corpus_rows=None if own.corpus_rows is None else own.corpus_rows[rows],
            digests={side: _digest([f"{digest} of {i}"]) for side, digest in pairs.digests.items()}, name=name, mixed=None,
        )  # fmt: skip
    return found


def _check_sources(given: Mapping[str, Pairs]) -> None:
    """UsageError for names and datasets that cannot be mixed."""
    if not given:
        raise UsageError("a mixture needs a source: give a dict of datasets by name, or a list of them")
    seen: dict[tuple[str, ...], str] = {}
    for name, pairs in given.items():
        if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
            raise UsageError(
                f"{shown(name)} cannot be the name of a source: ids become NAME/ID, so give a short text without '/'"
            )
        if pairs.mixed is not None:
            raise UsageError(f"the source {name!r} is a mixture itself: mix its sources with the others in one call")
        digests = tuple(pairs.digests[each] for each in sorted(pairs.digests))
        if digests in seen:
            raise UsageError(
                f"the sources {seen[digests]!r} and {name!r} are the same dataset: give it once, with a larger weight"
            )
        seen[digests] = name
    for side in ("queries", "documents"):
        pictured = {name: getattr(pairs, side).pictures for name, pairs in given.items()}
        if len(set(pictured.values())) > 1:
            one = next(name for name, pictures in pictured.items() if pictures)
            raise UsageError(
                f"the {side} of {one!r} are pictures, and those of {next(n for n, p in pictured.items() if not p)!r} texts: a "
                f"mixture has one kind; train on them one after the other"
            )


def _weights(names: tuple[str, ...], given: Mapping[str, float] | Sequence[float] | None) -> tuple[float, ...]:
    """The weight of each source."""
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        if isinstance(given, str) or len(given) != len(names):
            raise UsageError(f"weights={given!r}: give one for each of the {len(names)} sources, or a dict by name")
        given = dict(zip(names, given, strict=True))
    for name, weight in given.items():
        if name not in names:
            raise UsageError(f"weights name {name!r}, which is no source.{suggestion(str(name), names)}")
        real = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
        if not real or not math.isfinite(weight) or not 0 < weight <= MOST_WEIGHT:
            raise UsageError(
                f"the weight of the source {name!r} is {shown(weight)}: it must be a number above 0, and at most a million (1: an "
                f"epoch goes through its pairs once); leave the source out to use none of it"
            )
    return tuple(float(given.get(name, 1.0)) for name in names)


def _joined(parts: list[Pairs], mixed: Mixed) -> Pairs:
    def every(name: str) -> list[Any]:
        return [getattr(each, name) for each in parts]

    def column(name: str) -> Any:
        return np.concatenate(every(name))

    asked_before = np.cumsum([0, *every("source_query_rows")])
    shown_before = np.cumsum([0, *every("source_document_rows")])
    groups = _groups(parts, mixed)
    grades = [each.positive_grades for each in parts]
    no_notes: dict[str, int] = {}
    reading = {"format": "mixture", "sources": dict(zip(mixed.names, every("reading"), strict=True))}
    return Pairs(
        query_ids=_ids(every("query_ids"), mixed.names),
        document_ids=_ids(every("document_ids"), mixed.names),
        queries=_texts(every("queries")),
        documents=_texts(every("documents")),
        positives=_lists(parts, mixed, lambda each: each.positives) or _nothing(mixed),
        judged_negatives=_lists(parts, mixed, lambda each: each.judged_negatives) or _nothing(mixed),
        query_keys=column("query_keys"),
        document_keys=column("document_keys"),
        body_keys=column("body_keys"),
        query_groups=groups[0],
        document_groups=groups[1],
        query_rows=np.concatenate([a + b for a, b in zip(every("query_rows"), asked_before, strict=False)]),
        document_rows=np.concatenate([a + b for a, b in zip(every("document_rows"), shown_before, strict=False)]),
        source_query_rows=int(asked_before[-1]),
        source_document_rows=int(shown_before[-1]),
        digests={
            side: _digest([f"{name} {each.digests.get(side)}" for name, each in zip(mixed.names, parts, strict=True)])
            for side in ("queries", "documents", "labels")
        },
        name=" + ".join(mixed.names),
        notes=reduce(_added, every("notes"), no_notes),
        reading=reading,
        positive_grades=None if all(each is None for each in grades) else np.concatenate(
            [np.ones(len(each.positives.values)) if own is None else own for each, own in zip(parts, grades, strict=True)]
        ),
        given=_lists(parts, mixed, lambda each: each.given),
        ignored=_lists(parts, mixed, lambda each: each.ignored),
        dropped=_lists(parts, mixed, lambda each: each.dropped),
        group_names=_group_names(parts, mixed),
        mixed=mixed,
    )  # fmt: skip


def _ids(columns: list[pa.Array], names: Sequence[str]) -> pa.Array:
    """Large strings: the ids of all sources, each with the name of its source in front."""
    named = [
        pc.binary_join_element_wise(pa.scalar(name, pa.large_string()), ids.cast(pa.large_string()), pa.scalar("/", pa.large_string()))
        for name, ids in zip(names, columns, strict=True)
    ]  # fmt: skip
    return pa.concat_arrays(named) if named else strings([])


def _texts(columns: Sequence[Texts]) -> Texts:
    tables = []
    for texts in columns:
        table = texts.columns(np.arange(len(texts))).replace_schema_metadata(None)
        if (
            texts.pictures and texts.folder is not None
        ):  # places of pictures are relative to the folder of their dataset
            files = [os.path.join(texts.folder, file) if file else "" for file in table[COLUMNS[0]].to_pylist()]
            table = table.set_column(table.schema.get_field_index(COLUMNS[0]), COLUMNS[0], strings(files))
        tables.append(table)
    return Texts(pa.concat_tables(tables))


def _nothing(mixed: Mixed) -> Ragged:
    return Ragged(np.zeros(len(mixed.queries) + 1, np.int64), np.empty(0, np.int64))


def _lists(parts: list[Pairs], mixed: Mixed, of: Callable[[Pairs], Ragged | None]) -> Ragged | None:
    """Lists of documents of all queries, as rows of the mixture; None if no source has any."""
    found = [of(each) for each in parts]
    if all(each is None for each in found):
        return None
    moved = [
        Ragged(np.zeros(len(pairs) + 1, np.int64), np.empty(0, np.int64)) if own is None
        else Ragged(own.offsets, own.values + start)
        for pairs, own, start in zip(parts, found, mixed.starts.tolist(), strict=False)
    ]  # fmt: skip
    return Ragged.joined(moved)


def _groups(parts: list[Pairs], mixed: Mixed) -> tuple[Int | None, Int | None]:
    """The groups of queries and documents. Those of two sources are never one group, whatever their names."""
    if all(each.query_groups is None for each in parts):
        return None, None
    sides: tuple[list[Int], list[Int]] = ([], [])
    before = 0
    for each in parts:
        own = each.query_groups, each.document_groups
        for side, groups, count in zip(sides, own, (len(each), len(each.document_ids)), strict=True):
            side.append(np.full(count, -1) if groups is None else np.where(groups >= 0, groups + before, -1))
        most = max(-1 if groups is None else int(groups.max(initial=-1)) for groups in own)
        before += max(1 + most, len(each.group_names))
    return np.concatenate(sides[0]), np.concatenate(sides[1])


def _group_names(parts: list[Pairs], mixed: Mixed) -> tuple[str, ...]:
    """The names of the groups, if all sources that have groups have them."""
    grouped = [(name, each) for name, each in zip(mixed.names, parts, strict=True) if each.query_groups is not None]
    named = [f"{name}/{group}" for name, each in grouped for group in each.group_names]
    return tuple(named) if all(each.group_names for _, each in grouped) and len(named) <= _NAMED_GROUPS else ()


def _added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
