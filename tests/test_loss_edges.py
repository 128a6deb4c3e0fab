"""The loss at its edges: weights, zero vectors, what nobody knows, waits for the device, the momentum encoder's formats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hardneg.bank.momentum import MomentumEncoder
from hardneg.losses import InfoNCE, PerRole, Tiles, Variants
from hardneg.losses.masks import SameLabel
from hardneg.losses.tail import RowLosses
from hardneg.losses.tiles import Sums


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("hard_weight", [1.0, 5.0])
@pytest.mark.parametrize("sketched", [False, True])
def test_concentration_begins_where_the_plain_loss_is(hard_weight: float, sketched: bool) -> None:
    """A beta of almost 0 is almost no beta, whatever the entries weigh."""
    sketches = PerRole(some(6, 3), some(6, 3, seed=1), some(6, 2, 3, seed=2)) if sketched else None
    values = [
        InfoNCE(0.3, variants=Variants(beta=beta, hard_weight=hard_weight)).double()(
            some(6, 8), some(6, 8, seed=3), some(6, 2, 8, seed=4), sketches=sketches
        )
        for beta in (0, 1e-7)
    ]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_vectors_of_zeros(dtype: torch.dtype) -> None:
    queries, positives = some(5, 8, dtype=dtype), some(5, 8, seed=1, dtype=dtype)
    queries[2] = positives[3] = 0
    queries.requires_grad_()
    positives.requires_grad_()
    value = InfoNCE(0.05)(queries, positives)
    value.backward()
    assert torch.isfinite(value)
    for each in (queries, positives):
        assert torch.isfinite(each.grad).all()
    assert (queries.grad[2] == 0).all()
    assert (positives.grad[3] == 0).all()


@pytest.mark.parametrize("steps", range(-3, 4))
def test_debiasing_has_a_gradient_where_nothing_is_left(steps: int) -> None:
    """Where what is taken away is all of the sum, or one unit in the last place less or more."""
    logits = torch.tensor([[1.0]], requires_grad=True)
    count = torch.tensor([4.0])
    log_sum = torch.log(torch.tensor([0.1 * 4])) + 1.0
    for _ in range(abs(steps)):
        log_sum = torch.nextafter(log_sum, torch.tensor([torch.inf if steps > 0 else -torch.inf]))
    log_sum.requires_grad_()
    scale = torch.tensor(20.0, requires_grad=True)
    sums = {"documents": Sums(log_sum, torch.zeros(1), count, count)}
    value = RowLosses(Variants(tau_plus=0.1))(sums, logits, scale).sum()
    found = torch.autograd.grad(value, [logits, log_sum, scale])
    assert all(torch.isfinite(each).all() for each in found)


def test_a_guide_and_a_posterior_say_nothing_of_what_they_do_not_know() -> None:
    """The guide finds every positive unlike its query: a score of 0 for what it does not know would be above."""
    queries, positives, shared = some(6, 8), some(6, 8, seed=1), some(3, 8, seed=2)
    guide = PerRole(queries=some(6, 4), positives=-some(6, 4))
    loss = InfoNCE(0.3).double()
    loss(queries, positives, shared=shared, guide=guide)
    alone = InfoNCE(0.3).double()
    alone(queries, positives, guide=guide)
    hidden = float(alone.statistics["masked"]) * 30
    assert hidden > 0.5  # what the guide hides
    assert float(loss.statistics["masked"]) * 48 == pytest.approx(hidden)
    sketches = PerRole(queries=some(6, 4), positives=some(6, 4, seed=5))
    with_them = InfoNCE(0.3).double()(queries, positives, shared=shared, sketches=sketches, intercept=30.0)
    only = InfoNCE(0.3).double()(queries, positives[:, None], shared=shared, groups=PerRole(
        queries=torch.zeros(6, dtype=torch.int64), positives=torch.zeros(6, dtype=torch.int64)))  # fmt: skip
    torch.testing.assert_close(
        with_them, only, rtol=1e-6, atol=1e-6
    )  # the batch weighs nothing, the shared ones everything


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 30), theirs=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_labels_in_common(width: int, theirs: int, seed: int) -> None:
    """Few labels are compared one by one, more are looked up; below 0 means none."""
    g = torch.Generator().manual_seed(seed)
    mine = torch.randint(-3, 40, (9, width), generator=g)
    other = torch.randint(-3, 40, (12, theirs), generator=g)
    mask = SameLabel(mine, other)
    rows, columns = slice(2, 9), slice(1, 11)
    found = mask.tile(rows, columns, torch.zeros(7, 10))
    for i in range(7):
        for j in range(10):
            a, b = set(mine[2 + i].tolist()), set(other[1 + j].tolist())
            assert bool(found[i, j]) == any(label >= 0 for label in a & b)


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "local_scalar_dense" in str(function) or "nonzero" in str(function)
        return function(*args, **(kwargs or {}))


def test_the_host_never_waits_for_the_device() -> None:
    queries, positives, hard = some(20, 8), some(20, 8, seed=1), some(20, 2, 8, seed=2)
    for each in (queries, positives, hard):
        each.requires_grad_()
    ids = PerRole(positives=torch.arange(20), hard=torch.arange(40).view(20, 2))
    variants = Variants(symmetric=True, margin_absolute=0.1, beta=0.1, hard_weight=2)
    loss = InfoNCE(0.1, learn_temperature=True, variants=variants, tiles=Tiles(7, 9)).double()
    with Waits() as waits:
        loss(queries, positives, hard, ids=ids).backward()
    assert waits.count == 0
    with Waits() as waits:
        float(torch.ones(1).sum())
    assert waits.count == 1


def test_no_gradient_is_made_for_a_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products for the columns of a bank would be thrown away."""
    import hardneg.losses.matrices as matrices

    widths: list[int] = []
    plain = matrices.add_product
    monkeypatch.setattr(matrices, "add_product", lambda out, a, b: widths.append(len(out)) or plain(out, a, b))
    queries, positives = some(6, 8).requires_grad_(), some(6, 8, seed=1).requires_grad_()
    InfoNCE(0.1).double()(queries, positives, bank=some(50, 8, seed=2)).backward()
    assert widths == [6]


def test_a_momentum_encoder_encodes_without_dropout() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5))
    slow = MomentumEncoder(model)
    slow.train()
    x = some(5, 3, dtype=torch.float32)
    assert torch.equal(slow(x), slow(x))
    assert model.training


def pieces() -> Iterator[tuple[int, int]]:
    yield from ((1, 1), (3, 4), (100, 100))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_evaluation_without_gradients_is_the_same_loss(dtype: torch.dtype) -> None:
    queries, positives = some(9, 8, dtype=dtype), some(9, 8, seed=1, dtype=dtype)
    values = []
    for rows, columns in pieces():
        loss = InfoNCE(0.1, tiles=Tiles(rows, columns)).to(dtype)
        with torch.inference_mode():
            values.append(loss(queries, positives).clone())
        values.append(loss(queries.clone().requires_grad_(), positives).detach())
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])


def test_a_loss_scale_reaches_half_precision_in_time() -> None:
    """Slopes of 1 / B and less vanish in half precision, unless what a scaler multiplies them with comes first."""
    queries, positives = some(64, 16, dtype=torch.float32), some(64, 16, seed=1, dtype=torch.float32)
    found = []
    for dtype in (torch.float32, torch.float16):
        q, p = (x.to(torch.float16).to(dtype).requires_grad_() for x in (queries, positives))
        weights = torch.full((64, 1), 2.0**-14, dtype=dtype)
        (InfoNCE(1.0, similarity="dot")(q * weights, p * weights) * 2.0**16).backward()
        found.append(torch.cat([q.grad, p.grad]).float())
    assert float(found[0].abs().max()) > 0
    assert (found[0] - found[1]).norm() < 5e-3 * found[0].norm()
