"""Filters that reject a document for what it is: a known positive, empty, a copy, or of the query's group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import Filter
from hardneg.mining.spec_options import SpecOptions
from hardneg.storage.arrays import Mask, Ragged, members


@dataclass(frozen=True, kw_only=True)
class Known(Filter):
    """Rejects the known positives of the query, those of every query with the same text, and what was found relevant (`Relabels`)."""

    name = "known"
    guesses = False

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        keep: Mask = ~members(candidates.documents, context.known.rows(candidates.queries))
        if context.pairs.dropped is not None:
            keep &= ~members(candidates.documents, context.pairs.dropped.take(candidates.queries))
        return keep


@dataclass(frozen=True, kw_only=True)
class Empty(Filter):
    """Rejects documents without text, and every document for a query without text: nothing is asked there."""

    name = "empty"
    guesses = False

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        pairs = context.pairs
        asked = pairs.query_keys[candidates.queries] != 0
        kept: Mask = (pairs.document_keys != 0)[candidates.documents] & asked[:, None]
        return kept


@dataclass(frozen=True, kw_only=True)
class Duplicate(Filter):
    """Rejects copies of a positive, of what was found relevant (`Relabels`), or of the query itself.

    Attributes:
        near: None: reject equal texts, after folding unicode (NFKC), case and white space, with or without the title.
            A number: reject documents with at least this embedding score with a positive or the query.
    """

    name = "duplicate"
    guesses = False
    near: float | None = None

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        if self.near is not None:
            return self._keep_near(candidates, context, self.near)
        pairs = context.pairs
        known = context.known.rows(candidates.queries)
        query_texts = pairs.query_keys[candidates.queries]
        copies = np.zeros(candidates.documents.shape, bool)
        # Bodies are compared as well as whole documents: another title does not make another text.
        for keys in (pairs.document_keys, pairs.body_keys) if context.titled else (pairs.document_keys,):
            found, texts = keys[candidates.documents], keys[known.lists.values]
            copies |= (found == query_texts[:, None]) & (found != 0)
            copies |= members(found, known.mapped(np.where(texts != 0, texts, -1)))
            if pairs.dropped is not None:
                lost = pairs.dropped.take(candidates.queries)
                texts = keys[lost.values]
                copies |= members(found, Ragged(lost.offsets, np.where(texts != 0, texts, -1)))
        return ~copies

    def _keep_near(self, candidates: Candidates, context: Context, near: float) -> Mask:
        keep: Mask = candidates.scores < near
        known = context.known.rows(candidates.queries)
        for j in range(int(known.lengths.max(initial=0))):
            rows, positives = known.column(j)
            anchors = np.asarray(context.index.documents[positives], np.float32)
            keep[rows] &= context.index.pair_scores(anchors, candidates.documents[rows]) < near
        return keep


@dataclass(frozen=True, kw_only=True)
class Distinct(Filter):
    """Rejects a document if a nearer candidate has the same text (folded) under another id."""

    name = "distinct"
    guesses = False

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        keep = np.ones(alive.shape, bool)
        # As a rule, few documents have a copy, and few queries find two of a kind.
        copied = context.copied[candidates.documents] & alive
        rows = np.flatnonzero(copied.sum(1) > 1)
        if not len(rows):
            return keep
        keys = np.where(copied[rows], context.pairs.document_keys[candidates.documents[rows]], -1)
        order = np.argsort(keys, axis=1, kind="stable")
        ordered = np.take_along_axis(keys, order, axis=1)
        repeated = np.zeros(keys.shape, bool)
        repeated[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != -1)
        kept = np.ones(keys.shape, bool)
        np.put_along_axis(kept, order, ~repeated, axis=1)
        keep[rows] = kept
        return keep


@dataclass(frozen=True, kw_only=True)
class Group(Filter):
    """Rejects documents of the query's group, or of a group of its positives. Documents without a group stay."""

    name = "group"

    def lacks(self, pairs: Pairs) -> str | None:
        if pairs.document_groups is not None and pairs.query_groups is not None:
            return None
        return (
            "the filter 'group' needs groups: a column 'group' or 'label' (--group-column), or groups.tsv in a BEIR folder, or "
            "those that positives make (--group-positives)"
        )

    def keep(self, candidates: Candidates, context: Context, alive: Mask) -> Mask:
        pairs = context.pairs
        if pairs.document_groups is None or pairs.query_groups is None:
            raise UsageError(str(self.lacks(pairs)))
        known = context.known.rows(candidates.queries)
        found = pairs.document_groups[candidates.documents]
        own = (found == pairs.query_groups[candidates.queries][:, None]) & (found >= 0)
        keep: Mask = ~(own | members(found, known.mapped(pairs.document_groups[known.lists.values])))
        return keep


def known_from_spec(v: SpecOptions) -> Filter:
    return Known()


def empty_from_spec(v: SpecOptions) -> Filter:
    return Empty()


def duplicate_from_spec(v: SpecOptions) -> Filter:
    if v.words == ["text"]:  # `duplicate:text` is another way to write the default
        v.words.clear()
    near = v.number("near")
    return Duplicate(near=near)


def distinct_from_spec(v: SpecOptions) -> Filter:
    return Distinct()


def group_from_spec(v: SpecOptions) -> Filter:
    return Group()
