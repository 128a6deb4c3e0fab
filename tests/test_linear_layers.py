"""Linear layers by numpy's library: the same numbers, only where nobody needs more than them, and only inside the block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from hardneg import products
from hardneg.encoders import linear_layers
from hardneg.encoders.linear_layers import QuickLinear, quick_linear

CPU = torch.device("cpu")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the products that were made by the detour."""
    found: list[tuple[int, ...]] = []

    def product(left: torch.Tensor, *rest: Any) -> torch.Tensor:
        found.append(tuple(left.shape))
        return products.matrix_product(left, *rest)

    monkeypatch.setattr(linear_layers, "matrix_product", product)
    monkeypatch.setattr(products, "numpy_is_faster", lambda: True)
    return found


@pytest.mark.parametrize("shape", [(2100, 64), (3, 700, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_gives_the_same_numbers(shape: tuple[int, ...], bias: bool, asked: list[tuple[int, ...]]) -> None:
    layer, inputs = torch.nn.Linear(64, 32, bias=bias), torch.randn(shape)
    with torch.inference_mode(), QuickLinear():
        found = layer(inputs)
    assert asked == [(1024, 64), (1024, 64), (52, 64)]
    assert found.shape == (*shape[:-1], 32)
    assert (found - layer(inputs)).abs().max() < 1e-5
    asked.clear()
    layer(inputs)
    assert not asked


def test_what_is_no_plain_product_is_left_to_torch(asked: list[tuple[int, ...]]) -> None:
    weight, inputs = torch.randn(64, 64), torch.randn(2048, 64)

    class Own(torch.Tensor):
        pass

    with QuickLinear():
        assert linear(inputs, weight.clone().requires_grad_()).requires_grad
    with torch.no_grad(), QuickLinear():
        for each in (inputs.double(), inputs.bfloat16()):
            assert linear(each, weight.to(each.dtype)).dtype == each.dtype
        assert type(linear(inputs.as_subclass(Own), weight)) is Own
        assert linear(inputs[:, :32], weight[:, :32].contiguous()).shape == (2048, 64)  # rows that are apart
        assert linear(inputs[0], weight).shape == (64,)
        assert linear(inputs[:4], weight).shape == (4, 64)  # too small to be worth it
        assert linear(inputs.to("meta"), weight.to("meta")).device.type == "meta"
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(inputs, weight).dtype == torch.bfloat16
        with pytest.raises(RuntimeError):
            linear(inputs, weight[:, :32].contiguous())
    assert not asked


def test_only_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_layers, "numpy_multiplies", lambda: True)
    assert isinstance(quick_linear(CPU, "float32"), QuickLinear)
    assert not isinstance(quick_linear(CPU, "bfloat16"), QuickLinear)
    assert not isinstance(quick_linear(torch.device("cuda"), "float32"), QuickLinear)
    monkeypatch.setattr(linear_layers, "numpy_multiplies", lambda: False)
    assert not isinstance(quick_linear(CPU, "float32"), QuickLinear)


@pytest.mark.parametrize("chosen", ["float64", "bfloat16", "meta"])
def test_what_tensors_are_by_default_does_not_matter(chosen: str, asked: list[tuple[int, ...]]) -> None:
    layer, inputs = torch.nn.Linear(64, 32), torch.randn(2000, 64)
    before = torch.get_default_dtype()
    try:
        if chosen != "meta":
            torch.set_default_dtype(getattr(torch, chosen))
        with torch.device("meta" if chosen == "meta" else "cpu"), torch.inference_mode(), QuickLinear():
            found = layer(inputs)
    finally:
        torch.set_default_dtype(before)
    assert asked
    assert (found.dtype, found.device) == (torch.float32, CPU)
    assert (found - layer(inputs)).abs().max() < 1e-5


def test_a_bias_for_each_row_is_left_to_torch(asked: list[tuple[int, ...]]) -> None:
    inputs, weight, bias = torch.randn(2048, 64), torch.randn(32, 64), torch.randn(2048, 32)
    with torch.inference_mode(), QuickLinear():
        assert (linear(inputs, weight, bias) - (inputs @ weight.t() + bias)).abs().max() < 1e-4
    assert not asked
