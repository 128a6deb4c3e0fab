"""The kernel of the loss against torch in float64: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hardneg.errors import UsageError
from hardneg.losses import InfoNCE, PerRole, Tiles, Variants
from hardneg.losses.unit import unit
from tests.conftest import NO_TRITON

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
B, K, M, S, D = (300, 2, 50, 90, 96) if CUDA else (37, 2, 9, 20, 24)
FORMATS = [torch.float32, torch.bfloat16, torch.float16] if CUDA else [torch.float32]
SCALED = 1024.0
VECTORS = ("queries", "positives", "hard", "shared")
ERRORS = {torch.float32: 2e-5, torch.bfloat16: 6e-3, torch.float16: 4e-3}

pytestmark = pytest.mark.cuda

if importlib.util.find_spec("triton") is None:
    pytest.skip(NO_TRITON, allow_module_level=True)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a GPU, kernels run in the interpreter for the length of a test."""
    if CUDA:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        yield
        torch.set_float32_matmul_precision(precision)
        return
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    import triton.runtime.interpreter as interpreter

    patched = interpreter._patch_lang_tensor

    def with_scalars(tensor: Any, scope: Any) -> None:
        """Scalars are arrays with one element there, and numpy 2.4 makes no int of those."""
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", with_scalars)
    yield


def vectors(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)

    queries = some(B, D)
    return {
        "queries": queries,
        "positives": torch.nn.functional.normalize(queries + some(B, D), dim=-1)[:, None],
        "hard": some(B, K, D),
        "shared": some(M, D),
        "bank": some(S, D),
    }


def marks(seed: int, use: str) -> dict[str, Any]:
    """What masks need, by letter: i(ds), w(ide list of known ids), g(roups), s(ketches), k(new by a guide), r(eal)."""
    g = torch.Generator().manual_seed(seed)

    def ints(*shape: int) -> Tensor:
        return torch.randint(-1, 3 * B // 2, shape, generator=g)

    def some(width: int) -> PerRole:
        shapes = ((B,), (B, 1), (B, K), (M,), (S,))
        return PerRole(*(torch.randn(*shape, width, generator=g) / 2 for shape in shapes))

    made: dict[str, Any] = {}
    if "i" in use or "w" in use:
        made["ids"] = PerRole(None, ints(B, 1), ints(B, K), ints(M), ints(S))
    if "w" in use:
        made["known_ids"] = ints(B, 20)
    if "g" in use:
        made["groups"] = PerRole(ints(B, 2), ints(B, 1), ints(B, K), ints(M), ints(S))
    if "s" in use:
        sketches = some(20)
        made["sketches"] = PerRole(sketches.queries, sketches.positives, sketches.hard, None, sketches.bank)
    if "k" in use:
        guide = some(12)
        made["guide"] = PerRole(guide.queries, guide.queries[:, None] * 0.3, guide.hard, None, guide.bank)
    if "r" in use:
        made["hard_real"] = torch.rand(B, K, generator=g) > 0.3
    return made


def moved(value: Any, device: str, dtype: torch.dtype) -> Any:
    if isinstance(value, PerRole):
        return PerRole(*(moved(getattr(value, f), device, dtype) for f in PerRole.__dataclass_fields__))
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    return value


def run(
    variants: Variants, use: str, dtype: torch.dtype, device: str, backend: str, rounded: torch.dtype,
    temperature: float, similarity: str = "cosine", seed: int = 0,
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:  # fmt: skip
    """(loss, gradients, statistics); the vectors are first rounded to `rounded`.

    The loss is scaled as `torch.amp.GradScaler` does: without that, rounding gradients to float16 alone costs 6e-3 of them.
    """
    x = {k: v.to(rounded).to(device, dtype).requires_grad_() for k, v in vectors(seed).items()}
    given = {k: moved(v, device, torch.float64 if dtype == torch.float64 else torch.float32)
             for k, v in marks(seed + 1, use).items()}  # fmt: skip
    loss = InfoNCE(
        temperature, learn_temperature=True, variants=variants, tiles=Tiles(130 if CUDA else 21, 100, backend=backend),
        similarity=similarity,
    ).to(device)  # fmt: skip
    loss = loss.double() if dtype == torch.float64 else loss
    value = loss(**x, **given, intercept=-0.5)
    (value * SCALED).backward()
    gradients = [x[name].grad for name in VECTORS] + [loss.log_scale.grad]
    return value.detach(), [g.double().cpu() / SCALED for g in gradients], loss.statistics


def check(variants: Variants, use: str, dtype: torch.dtype, temperature: float = 0.05, similarity: str = "") -> None:
    # Unit vectors are rounded, which float64 does not do: narrow ones are compared as they are.
    similarity = similarity or ("cosine" if dtype == torch.float32 else "dot")
    truth = run(variants, use, torch.float64, "cpu", "torch", dtype, temperature, similarity)
    found = run(variants, use, dtype, DEVICE, "triton", dtype, temperature, similarity)
    wrong = []
    if float(found[0]) != pytest.approx(float(truth[0]), rel=1e-4):
        wrong.append(f"the value is {float(found[0])}, not {float(truth[0])}")
    for name, mine, expected in zip((*VECTORS, "log_scale"), found[1], truth[1], strict=True):
        # That of the temperature is a small difference of large sums.
        size = max(float(expected.norm()), 0.3 if expected.ndim == 0 else 1e-6)
        error = float((mine - expected).norm()) / size
        if not error <= ERRORS[dtype]:
            wrong.append(f"the error of the gradient of {name} is {error:.1e}")
    for name in ("masked", "alone"):
        if float(found[2][name]) != pytest.approx(float(truth[2][name]), abs=1e-6):
            wrong.append(f"{name} is {float(found[2][name])}, not {float(truth[2][name])}")
    assert not wrong


OPTIONS: list[dict[str, Any]] = [
    {}, {"symmetric": True}, {"query_query": True}, {"document_document": True}, {"decoupled": True}, {"tau_plus": 0.02},
    {"beta": 0.5, "hard_weight": 3.0}, {"label_smoothing": 0.1}, {"hard_weight": 3.0}, {"margin_absolute": 0.1},
    {"margin_relative": 0.2}, {"symmetric": True, "query_query": True, "document_document": True, "margin_absolute": 0.05},
]  # fmt: skip


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_option(options: dict[str, Any], dtype: torch.dtype) -> None:
    check(Variants(**options), "igr", dtype)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(
    "use", ["", "i", "r", "wgskr", *(pytest.param(each, marks=pytest.mark.slow) for each in ("w", "g", "s", "k"))]
)
def test_each_mask(use: str, dtype: torch.dtype) -> None:
    check(Variants(symmetric=use in ("s", "k")), use, dtype)
    if "s" in use:
        check(Variants(suspect_above=0.5), use, dtype)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_rows_far_from_their_reference_are_computed_again(similarity: str) -> None:
    """At this temperature a row's highest logit is up to 200 from where it was guessed to be."""
    for dtype in FORMATS if similarity == "dot" else FORMATS[:1]:
        check(Variants(), "i", dtype, temperature=0.005, similarity=similarity)


def test_half_precision() -> None:
    """The one narrow format that the interpreter knows."""
    check(Variants(), "i", torch.float16)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_unit_vectors_and_their_gradients(dtype: torch.dtype) -> None:
    """A vector of zeros has no direction: it stays as it is, and gets no gradient."""
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    x[3] = 0
    x[4] *= 1e-4
    x.requires_grad_()
    weights = torch.randn(50, D, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    (unit(x) * weights).sum().backward()
    y = x.detach().double().requires_grad_()
    (torch.nn.functional.normalize(y, dim=1) * weights.double()).sum().backward()
    rows = torch.arange(50, device=DEVICE) != 3
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(unit(x)[rows].double(), torch.nn.functional.normalize(y, dim=1)[rows], rtol=0, atol=eps)
    size = y.grad[rows].norm(dim=1, keepdim=True)
    assert ((x.grad.double() - y.grad)[rows] / size).abs().max() < 4 * eps
    assert (x.grad[3] == 0).all()
    assert (unit(x)[3] == 0).all()


def test_a_query_without_negatives() -> None:
    x = vectors(0)
    same = torch.zeros(B, 1, dtype=torch.int64, device=DEVICE)
    queries, positives = (x[name].float().to(DEVICE).requires_grad_() for name in ("queries", "positives"))
    loss = InfoNCE(0.01, learn_temperature=True, tiles=Tiles(130, 100, backend="triton")).to(DEVICE)
    value = loss(queries, positives, ids=PerRole(positives=same))
    value.backward()
    assert float(value.detach()) == 0
    assert float(loss.statistics["alone"]) == 1
    for each in (queries, positives, loss.log_scale):
        assert (each.grad == 0).all()


def test_what_the_kernel_cannot_combine_is_refused_by_name_or_left_to_torch() -> None:
    """Two positives for each query, whose queries are compared with one another: two sketches for each pair."""
    x = {k: v.float().to(DEVICE) for k, v in vectors(0).items()}
    x["positives"] = x["positives"].expand(B, 2, D)
    sketches = PerRole(*(torch.randn(*s, 8, device=DEVICE) for s in ((B,), (B, 2), (B, K), (M,), (S,))))
    variants = Variants(query_query=True)
    with pytest.raises(
        UsageError, match="cannot combine Own, Suspected, Suspected in torch.float32; leave the back end"
    ):
        InfoNCE(variants=variants, tiles=Tiles(130, 100, backend="triton")).to(DEVICE)(**x, sketches=sketches)
    values = [
        InfoNCE(variants=variants, tiles=Tiles(130, 100, backend=backend)).to(DEVICE)(**x, sketches=sketches)
        for backend in ("auto", "torch")
    ]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-5)


def test_masks_of_columns_from_two_devices_are_joined() -> None:
    """Which columns are there is known on the device, how much they weigh on the host."""
    from hardneg.losses.fused import _lowered
    from hardneg.losses.masks import Padding, Weighted

    device = torch.device("meta")
    masks = [Padding(torch.ones(8, dtype=torch.bool, device=device)), Weighted(1.0, 2, 5)]
    for order in (masks, masks[::-1]):
        found = _lowered(order, 8, device)
        assert found is not None
        assert found.tensors["biases"].device == device
    here = _lowered([Padding(torch.arange(8) != 7), Weighted(math.log(2), 2, 5)], 8, torch.device("cpu"))
    assert here is not None
    assert here.tensors["biases"].tolist() == pytest.approx([0, 0, 1, 1, 1, 0, 0, -math.inf])
