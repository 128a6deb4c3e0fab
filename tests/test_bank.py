"""The memory bank against a plain list of rows; ranks; the momentum encoder."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardneg.bank.memory_bank import MemoryBank
from hardneg.bank.momentum import MomentumEncoder
from hardneg.errors import DataError, UsageError
from hardneg.losses.batch import PerRole
from hardneg.losses.infonce import InfoNCE

from .processes import on_two_ranks

D = 4


def rows(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_bank_is_the_last_rows_that_were_pushed(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 9))
    max_age = data.draw(st.none() | st.integers(1, 4))
    bank = MemoryBank(size, D, max_age=max_age)
    kept: deque[tuple[int, int, int]] = deque(maxlen=size)  # (id, group, step)
    vectors = {}
    for step in range(data.draw(st.integers(0, 8))):
        n = data.draw(st.integers(0, 12))
        new = rows(n, step)
        ids, groups = torch.arange(n) + 100 * step, torch.arange(n) % 3
        bank.push(new, ids, groups)
        for i in range(n):
            kept.append((100 * step + i, i % 3, step))
            vectors[100 * step + i] = new[i]
        if data.draw(st.booleans()):  # saved and restored: nothing is different
            other = MemoryBank(data.draw(st.integers(1, 9)), D, max_age=max_age)
            other.load_state_dict(bank.state_dict())
            bank = other
        if data.draw(st.integers(0, 5)) == 0:
            size = data.draw(st.integers(1, 9))
            bank.resize(size)
            kept = deque(kept, maxlen=size)
        seen = bank.view()
        expected = sorted(row for row in kept if max_age is None or step + 1 - row[2] <= max_age)
        found = sorted(zip(seen.ids.tolist(), seen.groups.tolist(), (step + 1 - seen.ages).tolist(), strict=True))
        assert found == expected
        assert all(torch.equal(seen.vectors[i], vectors[int(id)]) for i, id in enumerate(seen.ids))
        assert len(bank) == len(kept)
        statistics = bank.statistics()
        assert statistics["rows"] == len(expected)
        assert statistics["too_old"] == len(kept) - len(expected)
        ages = [step + 1 - row[2] for row in expected]
        assert statistics["mean_age"] == pytest.approx(sum(ages) / len(ages) if ages else 0)
        assert statistics["max_age"] == max(ages, default=0)


def test_a_batch_never_meets_itself_and_its_copies_are_masked() -> None:
    """The loss of a batch with a bank that holds the same documents is that without them."""
    bank = MemoryBank(16, D)
    queries, positives = rows(5, 0), rows(5, 1)
    ids = torch.arange(5)
    assert len(bank.view()) == 0
    first = InfoNCE(0.1)(queries, positives, bank=bank.view().vectors)
    torch.testing.assert_close(first, InfoNCE(0.1)(queries, positives))
    bank.push(positives[:1], ids[:1])  # the first query's positive comes again
    seen = bank.view()
    known = PerRole(positives=ids[:, None], bank=seen.ids)
    masked = InfoNCE(0.1)(
        queries[:1], positives[:1], bank=seen.vectors, ids=PerRole(positives=ids[:1, None], bank=seen.ids)
    )
    assert float(masked) == 0
    assert float(InfoNCE(0.1)(queries, positives, bank=seen.vectors, ids=known)) > float(first)


def test_pushes_carry_no_graph() -> None:
    bank = MemoryBank(4, D, dtype=torch.float16)
    vectors = rows(3, 0).requires_grad_()
    bank.push(vectors * 2)
    assert not bank.view().vectors.requires_grad
    assert bank.view().vectors.dtype == torch.float16
    assert bank.view().ids.tolist() == [-1, -1, -1]


def test_bad_pushes_change_nothing() -> None:
    bank = MemoryBank(4, D)
    bank.push(rows(2, 0), torch.arange(2))
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    broken = rows(3, 1)
    broken[1, 2] = torch.nan
    with pytest.raises(DataError, match="step 1: vectors for the bank hold NaN"):
        bank.push(broken)
    with pytest.raises(UsageError, match="rows of 4 components"):
        bank.push(torch.zeros(2, 3))
    with pytest.raises(UsageError, match="2 vectors with"):
        bank.push(rows(2, 0), torch.arange(3))
    assert all(torch.equal(before[name], value) for name, value in bank.state_dict().items())
    for wrong in ({"size": 0}, {"dimension": 0}, {"max_age": 0}):
        with pytest.raises(UsageError):
            MemoryBank(**{"size": 4, "dimension": D, **wrong})
    with pytest.raises(UsageError, match="size=0"):
        bank.resize(0)


def test_a_bank_in_float16_refuses_what_is_infinite_there() -> None:
    """A number above 65504 is finite in the vectors, and infinite in the bank."""
    bank = MemoryBank(4, D, dtype=torch.float16)
    large = rows(3, 0)
    large[1, 2] = 70_000
    bank.push(large.clamp(max=65_000), torch.arange(3))
    before = bank.vectors.clone()
    with pytest.raises(
        DataError, match=r"vectors for the bank hold 70000, which is infinite as float16 \(id 7\).*float32"
    ):
        bank.push(large, torch.tensor([6, 7, 8]))
    with pytest.raises(DataError, match=r"infinite as float16 \(row 1\)"):
        bank.push(large)
    with pytest.raises(DataError, match=r"encoding rows of the bank gave 70000, which is infinite as float16 \(id 1\)"):
        bank.encode_again(lambda ids: large)
    assert torch.equal(bank.vectors, before)
    MemoryBank(4, D, dtype=torch.bfloat16).push(large)


def test_number_formats_that_a_bank_cannot_keep_are_refused() -> None:
    for dtype in (torch.int64, torch.complex64, torch.bool):
        with pytest.raises(UsageError, match="a bank keeps vectors of float32"):
            MemoryBank(4, D, dtype=dtype)
        with pytest.raises(UsageError, match="the bank keeps vectors of real numbers"):
            MemoryBank(4, D).push(torch.ones(2, D).to(dtype))
    with pytest.raises(UsageError, match=r"ids of torch\.float32: they must be integers"):
        MemoryBank(4, D).push(torch.ones(2, D), torch.ones(2))
    bank = MemoryBank(4, D)
    bank.push(rows(2, 0), torch.arange(2))
    with pytest.raises(DataError, match="expected real numbers"):
        bank.encode_again(lambda ids: rows(2, 0).to(torch.complex64))
    with pytest.raises(UsageError, match="does not fit into memory"):
        MemoryBank(10**14, 256)


@pytest.mark.parametrize("momentum", [float("nan"), 1, -0.1, None, "0.9"])
def test_a_momentum_is_a_share_below_one(momentum: object) -> None:
    with pytest.raises(UsageError, match="momentum="):
        MomentumEncoder(torch.nn.Linear(2, 2), momentum)  # type: ignore[arg-type]


def test_another_dimension_is_not_loaded() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        MemoryBank(4, D + 1).load_state_dict(MemoryBank(4, D).state_dict())


def test_encoding_again_moves_what_is_not_encoded() -> None:
    """The encoder has turned: a linear map brings the rest along."""
    generator = torch.Generator().manual_seed(0)
    documents = torch.randn(400, 16, generator=generator)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    asked: list[int] = []

    def encode(ids: torch.Tensor) -> torch.Tensor:
        asked.append(len(ids))
        return documents[ids] @ turn

    bank = MemoryBank(500, 16)
    bank.push(documents, torch.arange(400))
    bank.push(documents[:0])
    error = bank.encode_again(encode, share=0.25)
    assert asked == [100]
    seen = bank.view()
    cosine = torch.nn.functional.cosine_similarity(seen.vectors, documents[seen.ids] @ turn)
    assert cosine.min() > 0.98
    assert 0 <= error < 0.02
    assert sorted(set(seen.ages.tolist())) == [1, 2]
    assert bank.encode_again(encode) == 0
    torch.testing.assert_close(bank.view().vectors, documents[bank.view().ids] @ turn)
    assert set(bank.view().ages.tolist()) == {1}
    assert MemoryBank(4, 16).encode_again(encode) == 0
    bank.push(documents[:1])
    with pytest.raises(UsageError, match="rows without ids"):
        bank.encode_again(encode)
    with pytest.raises(UsageError, match="share=0"):
        bank.encode_again(encode, share=0)


def test_a_momentum_encoder_follows() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, D), torch.nn.BatchNorm1d(D))
    slow = MomentumEncoder(model, 0.9)
    start = [p.clone() for p in slow.model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    model(torch.randn(8, 3))
    for _ in range(3):
        slow.update(model)
    for mine, theirs, before in zip(slow.model.parameters(), model.parameters(), start, strict=True):
        torch.testing.assert_close(mine, theirs + 0.9**3 * (before - theirs))
        assert not mine.requires_grad
    assert torch.equal(slow.model[1].running_mean, model[1].running_mean)
    assert not slow(torch.randn(8, 3)).requires_grad
    assert set(slow.state_dict()) == {f"model.{name}" for name in model.state_dict()}
    with pytest.raises(UsageError, match="momentum=1"):
        MomentumEncoder(model, 1.0)


def push_three_times(rank: int, folder: Path) -> None:
    bank = MemoryBank(7, 2)
    for step in range(3):
        n = 2 + rank
        ids = torch.arange(n) + 100 * rank + 10 * step
        bank.push(torch.stack([ids, ids], 1).float(), ids)
    torch.save(bank.state_dict(), folder / f"{rank}.pt")


@pytest.mark.slow
def test_ranks_keep_equal_banks(tmp_path: Path) -> None:
    on_two_ranks(push_three_times, tmp_path)
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    # Five a step; the last seven: all of the last step, and two of the one before.
    assert sorted(a["ids"].tolist()) == [20, 21, 111, 112, 120, 121, 122]
