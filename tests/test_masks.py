"""Masks tile by tile against one entry after the other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardneg.losses.masks import Own, Weighted


def tile(mask: Own | Weighted, rows: slice, columns: slice) -> torch.Tensor:
    """What is added to the logits of a tile; zeros where the mask says nothing."""
    scores = torch.zeros(rows.stop - rows.start, columns.stop - columns.start)
    found = mask.tile(rows, columns, scores)
    if found is None:
        return scores
    return scores.masked_fill(found, -math.inf) if found.dtype == torch.bool else found.expand_as(scores)


spans = st.tuples(st.integers(0, 12), st.integers(1, 6)).map(lambda pair: slice(pair[0], pair[0] + pair[1]))


@settings(max_examples=300, deadline=None)
@given(each=st.integers(1, 4), columns_each=st.integers(1, 4), first=st.integers(0, 6), rows=spans, columns=spans)
def test_own_columns(each: int, columns_each: int, first: int, rows: slice, columns: slice) -> None:
    found = tile(Own(rows=each, columns=columns_each, first=first), rows, columns)
    for i, row in enumerate(range(rows.start, rows.stop)):
        for j, column in enumerate(range(columns.start, columns.stop)):
            own = row // each + first == column // columns_each
            assert found[i, j] == (-math.inf if own else 0)


@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, 10), size=st.integers(1, 6), rows=spans, columns=spans)
def test_weighted_columns(start: int, size: int, rows: slice, columns: slice) -> None:
    found = tile(Weighted(0.5, start, start + size), rows, columns)
    for j, column in enumerate(range(columns.start, columns.stop)):
        assert (found[:, j] == (0.5 if start <= column < start + size else 0)).all()


@pytest.mark.parametrize("mask", [Own(), Weighted(0.5, 0, 1)])
def test_masks_are_values(mask: Own | Weighted) -> None:
    with pytest.raises(AttributeError):
        mask.first = 3  # type: ignore[misc, union-attr]
