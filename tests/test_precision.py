"""What precision the process has chosen for torch does not reach the search, and the search leaves it as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import hardneg.index.cuda as cuda
from hardneg.index.base import METRICS
from hardneg.index.cuda import DeviceIndex, device_product
from hardneg.index.exact import ExactIndex
from hardneg.index.ivf import IVFIndex
from hardneg.products import matrix_product

from .emulated_int8 import emulate_int8
from .test_approximate import clustered
from .test_exact_data import full_sort

MATMUL = torch.backends.cuda.matmul
FLOAT16 = ("allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation")


@pytest.fixture(autouse=True)
def _precision_of_the_process() -> Iterator[None]:
    before = [getattr(MATMUL, name) for name in FLOAT16]
    yield
    torch.set_float32_matmul_precision("highest")
    for name, value in zip(FLOAT16, before, strict=True):
        setattr(MATMUL, name, value)


def medium() -> None:
    torch.set_float32_matmul_precision("medium")


def high() -> None:
    torch.set_float32_matmul_precision("high")


def new_onednn() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def new_cuda() -> None:
    """After this, torch refuses to read `allow_tf32` and the float32 matmul precision."""
    MATMUL.fp32_precision = "tf32"


def state() -> dict[str, Any]:
    """All settings that a search could change; the error where torch refuses to read one."""
    found: dict[str, Any] = {}
    for name, read in {
        "precision": torch.get_float32_matmul_precision,
        "tf32": lambda: MATMUL.allow_tf32,
        "cuda": lambda: MATMUL.fp32_precision,
        "onednn": lambda: torch.backends.mkldnn.matmul.fp32_precision,
        **{each: lambda each=each: getattr(MATMUL, each) for each in FLOAT16},
    }.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "refused"
    return found


def emulate_low_precision(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let torch round float32 products as processors with bfloat16 instructions do, where the process allows it.

    Returns:
        A list to which the precision of each product is added.
    """
    used: list[str] = []

    def rounding(name: str) -> Callable[..., torch.Tensor]:
        original = getattr(torch, name)

        def product(*args: Any, **options: Any) -> torch.Tensor:
            precision = torch.backends.mkldnn.matmul.fp32_precision
            *bias, left, right = args
            if left.dtype == torch.float32:
                used.append(precision)
                if precision in ("bf16", "tf32"):
                    left, right = left.bfloat16().float(), right.bfloat16().float()
            return original(*bias, left, right, **options)

        return product

    for name in ("mm", "addmm"):
        monkeypatch.setattr(torch, name, rounding(name))
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda left, right: torch.mm(left, right))
    return used


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("choose", [medium, high, new_onednn])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kernel", ["float32", "bfloat16", "int8", "device", "ivf"])
def test_a_low_precision_of_the_process_does_not_reach_the_search(
    kernel: str, metric: str, choose: Callable[[], None], emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the emulation, this fails only on processors that have such instructions."""
    emulate_int8(monkeypatch)
    if emulated:
        emulate_low_precision(monkeypatch)
    rng = np.random.default_rng(0)
    # In about the same direction, so that the scores are close to each other compared with the rounding errors.
    documents = (10 + rng.standard_normal((2000, 32))).astype(np.float32)
    queries = (1 + 0.1 * rng.standard_normal((40, 32))).astype(np.float32)
    choose()
    before = state()
    if kernel == "device":
        index: Any = DeviceIndex(documents, metric, device="cpu")
    elif kernel == "ivf":
        index = IVFIndex(documents, metric, lists=5, probe_margin=np.inf, threads=1)
    else:
        index = ExactIndex(documents, metric, kernel, threads=1)
    found = index.search(queries, 100)
    scores, rows = full_sort(index, queries, 100)
    np.testing.assert_array_equal(found.documents, rows)
    assert found.scores.tobytes() == scores.tobytes()
    assert state() == before


def test_a_product_is_float32_whatever_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = torch.randn(40, 64), torch.randn(64, 30)
    bias, out = torch.randn(30), torch.empty(40, 30)
    exact = left.double() @ right.double()
    used = emulate_low_precision(monkeypatch)
    for choose in (lambda: None, medium, high, new_onednn):
        choose()
        for product in (matrix_product(left, right), matrix_product(left, right, out=out), device_product(left, right)):
            assert (product - exact).abs().max() < 1e-4
        assert (matrix_product(left, right, bias) - (exact + bias)).abs().max() < 1e-4
        assert matrix_product(left, right, out=out) is out
        assert matrix_product(left.bfloat16(), right.bfloat16()).dtype == torch.bfloat16
        assert set(used) <= {"none", "ieee"}


def test_products_of_halves_do_not_need_float32() -> None:
    """Even if every operand is rounded to TF32, with 11 significant bits, the split product is as good as promised."""

    def tf32(x: torch.Tensor) -> torch.Tensor:
        bits = x.view(torch.int32)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)

    left, right = (torch.nn.functional.normalize(torch.randn(200, 64), dim=1) for _ in range(2))
    exact, mm = left.double() @ right.double().t(), torch.mm
    products = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mm", lambda a, b: mm(tf32(a), tf32(b)))
        products.append((cuda._split_product(left, right.t()) - exact).abs().max())
        products.append((torch.mm(left, right.t()) - exact).abs().max())
    summation = 4 * (64 + 8) * 2.0**-24
    assert products[0] <= cuda._SPLIT_ERROR + summation
    assert products[1] > 10 * products[0]  # what TF32 alone would do


@pytest.mark.parametrize("choose", [lambda: None, medium, high, new_cuda])
@pytest.mark.parametrize("allowed", [(True, False), (False, False), (True, True), (False, True)])
def test_a_search_on_a_device_leaves_every_setting_as_it_was(
    choose: Callable[[], None], allowed: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose()
    for name, value in zip(FLOAT16, allowed, strict=True):
        setattr(MATMUL, name, value)
    before, during, mm = state(), [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **options: during.append(state()) or mm(*args, **options))
    documents = clustered(300)
    for metric in METRICS:
        DeviceIndex(documents, metric, device="cpu").search(documents[:5], 3)
        assert state() == before
    half = [each for each in during if each != before]
    assert during
    assert all(not each[name] for each in during[:2] for name in FLOAT16)  # the first two metrics use float16
    assert all({**each, **dict(zip(FLOAT16, allowed, strict=True))} == before for each in half)  # nothing else changed

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(torch, "mm", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        DeviceIndex(documents, device="cpu").search(documents[:5], 3)
    assert state() == before


def test_searches_at_once_leave_the_settings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each restored what it had found, which could be what another one had set."""
    documents, mm, seen = clustered(300), torch.mm, []

    def slow(*args: Any, **options: Any) -> torch.Tensor:
        time.sleep(0.002)  # so that the searches overlap
        seen.append([getattr(MATMUL, name) for name in FLOAT16])
        return mm(*args, **options)

    monkeypatch.setattr(torch, "mm", slow)
    for name in FLOAT16:
        setattr(MATMUL, name, True)
    start = threading.Barrier(8)

    def search(seed: int) -> None:
        start.wait()
        for _ in range(5):
            DeviceIndex(documents, device="cpu").search(documents[seed : seed + 1], 3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(search, range(8)))
    assert seen == [[False, False]] * 40
    assert [getattr(MATMUL, name) for name in FLOAT16] == [True, True]


def test_training_at_the_same_time_keeps_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search changes settings only while it starts a product, not until it is done."""
    monkeypatch.setattr(cuda, "_TILE_ROWS", 50)
    setattr(MATMUL, FLOAT16[0], True)
    during: list[bool] = []
    index = DeviceIndex(clustered(300), device="cpu")
    index.search(clustered(5), 3, lambda done: during.append(getattr(MATMUL, FLOAT16[0])))
    assert during == [True] * 6
