"""Sketches hold finite numbers, in every number format that they are moved to."""

from __future__ import annotations

import pytest
import torch

from hardneg.errors import UsageError
from hardneg.false_negatives.sketch import Sketch


@pytest.mark.parametrize("wrong", [float("inf"), float("-inf"), float("nan")])
def test_a_sketch_without_finite_numbers_is_refused(wrong: float) -> None:
    good, bad = torch.ones(2, 3), torch.tensor([[1.0, wrong, 0.0]])
    with pytest.raises(UsageError, match="the sketch of the queries holds NaN or infinity as float32"):
        Sketch(bad, good, 0.0)
    with pytest.raises(UsageError, match="the sketch of the documents holds NaN or infinity"):
        Sketch(good, bad, 0.0)
    with pytest.raises(UsageError, match="the intercept of the sketch"):
        Sketch(good, good, wrong)


def test_what_float16_cannot_hold_is_refused_there() -> None:
    sketch = Sketch(torch.full((1, 2), 1e5), torch.ones(1, 2), -1.0)
    with pytest.raises(UsageError, match="as float16: make it anew, or keep it as float32"):
        sketch.to("cpu", torch.float16)
    assert sketch.to("cpu", torch.bfloat16).queries.dtype == torch.bfloat16
    assert float(Sketch.blank(1, 1).probability(torch.tensor([0]), torch.tensor([0]))) == 0.0
