"""The search that is made for GPUs, on the processor everywhere and on CUDA where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hardneg.index.cuda as device_module
from hardneg.errors import UsageError
from hardneg.index.base import METRICS, Index
from hardneg.index.cuda import DeviceIndex
from hardneg.index.exact import ExactIndex
from hardneg.index.factory import make_index
from tests.conftest import NO_CUDA

from .test_approximate import clustered
from .test_exact import KINDS, awkward, check_answer

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)]),
]


def check(index: DeviceIndex, queries: np.ndarray, k: int) -> None:
    found = index.search(queries, k)
    check_answer(found, queries, np.asarray(index.documents), k, index.metric)
    assert index.pair_scores(queries, found.documents).tobytes() == found.scores.tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_equals_naive(device: str, metric: str, data: st.DataObject) -> None:
    n, size, d = (data.draw(st.integers(1, high)) for high in (20, 700, 50))
    seed = data.draw(st.integers(0, 2**31))
    queries, documents = awkward(data.draw(st.sampled_from(KINDS)), n, size, d, seed)
    check(DeviceIndex(documents, metric, device=device), queries, data.draw(st.integers(1, size)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", METRICS)
def test_many_tiles_and_blocks(device: str, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, queries = clustered(2000).astype(np.float16), clustered(90, seed=1)
    whole = DeviceIndex(documents, metric, device=device).search(queries, 40)
    for rows, block, pairs in ((300, 32, 1 << 21), (64, 90, 100)):
        monkeypatch.setattr(device_module, "_TILE_ROWS", rows)
        monkeypatch.setattr(device_module, "_QUERIES", block)
        monkeypatch.setattr(device_module, "_PAIRS", pairs)
        for budget in (0, 1 << 30):
            seen: list[int] = []
            index = DeviceIndex(documents, metric, device=device, resident_bytes=budget)
            for _ in range(2):
                found = index.search(queries, 40, seen.append)
                assert found.documents.tobytes() == whole.documents.tobytes()
                assert found.scores.tobytes() == whole.scores.tobytes()
            assert sum(seen) == 2 * 90 * 2000
            assert bool(index._kept) == (budget > 0)


def test_agrees_with_the_search_of_the_processor() -> None:
    documents, queries = clustered(3000), clustered(100, seed=1)
    ours, theirs = DeviceIndex(documents, device="cpu").search(queries, 30), ExactIndex(documents).search(queries, 30)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-6)  # cosines, so of the size of 1
    assert (ours.documents == theirs.documents).mean() > 0.999


def test_few_pairs_are_scored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The point of it all: of 60,000 documents a query hardly more than k are looked at in float32."""
    documents, queries = clustered(60_000, 64), clustered(64, 64, seed=1)
    index = DeviceIndex(documents, device="cpu")
    counted = []
    scores = index._scores
    monkeypatch.setattr(index, "_scores", lambda *args: counted.append(len(args[1])) or scores(*args))
    index.search(queries, 50)
    assert sum(counted) < 64 * 50 * 3


def test_is_an_index_and_says_what_is_missing() -> None:
    documents = clustered(50)
    assert isinstance(DeviceIndex(documents, device="cpu"), Index)
    assert DeviceIndex(documents, device="cpu").search(documents[:0], 3).scores.shape == (0, 3)
    for device in ("cuda:77", "warp"):
        with pytest.raises(UsageError, match=f"'{device}' cannot be used: "):
            DeviceIndex(documents, device=device)


def test_make_index_takes_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = clustered(200)
    assert isinstance(make_index("auto", documents, device="cpu")[0], ExactIndex)
    made, recall = make_index("auto", documents, device="meta", recall=0.9)
    assert isinstance(made, DeviceIndex)
    assert recall.measured == 1
    with pytest.raises(UsageError, match="index 'ivf' runs on the processor"):
        make_index("ivf", documents, device="meta")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="'cuda' cannot be used"):
            make_index("exact", documents, device="cuda")
