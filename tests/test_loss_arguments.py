"""What the loss refuses, by the name of argument and role; on ranks, all learn of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hardneg.errors import UsageError
from hardneg.losses import InfoNCE, PerRole, Tiles, Variants, cached_backward

from .processes import on_two_ranks

B, P, K, M, S, D = 4, 2, 3, 5, 6, 8
I = torch.arange  # noqa: E741


def vectors(**changes: Any) -> dict[str, Any]:
    shapes = {"queries": (B, D), "positives": (B, P, D), "hard": (B, K, D), "shared": (M, D), "bank": (S, D)}
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bank": torch.ones(S, D, dtype=torch.int8)}, r"bank of torch.int8: they must be real numbers"),
        ({"queries": torch.ones(B, D, dtype=torch.complex64)}, "queries of torch.complex64"),
        ({"queries": [[1.0]]}, "queries must be a torch.Tensor, not list"),
        ({"positives": torch.ones(B, 0, D)}, "with 1 or more of each"),
        ({"hard": torch.ones(B, K, D, device="meta")}, "hard is on meta, queries are on cpu"),
        ({"ids": {"positives": I(B)}}, "ids must be a PerRole"),
        (
            {"ids": PerRole(positives=I(1))},
            r"ids.positives must have the shape \[4, 2\], one for each of its vectors, not \[1\]",
        ),
        (
            {"ids": PerRole(positives=I(B * P).view(B, P), hard=I(B * K).view(K, B))},
            r"ids.hard must have the shape \[4, 3\]",
        ),
        ({"ids": PerRole(bank=I(S + 1))}, r"ids.bank must have the shape \[6\]"),
        ({"ids": PerRole(shared=torch.ones(M))}, "ids.shared of torch.float32: they must be integers"),
        ({"bank": None, "ids": PerRole(bank=I(S))}, "ids.bank is given, but bank is not"),
        ({"known_ids": I(B)[:, None]}, r"known_ids are compared with ids: give ids=PerRole"),
        ({"ids": PerRole(shared=I(M)), "known_ids": I(8)[:, None]}, r"known_ids must be \[B, Q\] with B = 4"),
        ({"groups": PerRole(queries=I(B + 1))}, r"groups.queries must have the shape \[4\]"),
        ({"guide": PerRole(queries=torch.ones(B, 5))}, "guide lacks guide.positives"),
        ({"guide": PerRole(positives=torch.ones(B, P, 5))}, "guide lacks guide.queries"),
        (
            {"guide": PerRole(queries=torch.ones(1, 5), positives=torch.ones(B, P, 5))},
            r"guide.queries must have the shape \[4\]",
        ),
        (
            {"guide": PerRole(queries=torch.ones(B, 5), positives=torch.ones(B, P, 6))},
            "the vectors of guide differ in width",
        ),
        ({"sketches": PerRole(bank=torch.ones(S, 5))}, "sketches lacks sketches.queries"),
        (
            {"sketches": PerRole(torch.full((B, 5), torch.inf), torch.ones(B, P, 5))},
            r"sketches\.queries holds NaN or infinity",
        ),
        (
            {"sketches": PerRole(torch.ones(B, 5), torch.full((B, P, 5), torch.nan))},
            r"sketches\.positives holds NaN or infinity",
        ),
        ({"hard_real": torch.ones(B, K - 1, dtype=torch.bool)}, r"hard_real must be bool \[4, 3\]"),
        ({"hard_real": torch.ones(B, K)}, "hard_real must be bool"),
        ({"hard": None, "hard_real": torch.ones(B, K, dtype=torch.bool)}, "hard_real needs hard negatives"),
        ({"intercept": None}, "intercept=None must be a number"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InfoNCE()(**vectors(**changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "0.1"}, "must be a number"),
        ({"temperature_range": (0.1, float("inf"))}, "and finite"),
        ({"temperature_range": (1, 2, 3)}, "must be"),
        ({"dimensions": 8}, r"such as \(64, 128\)"),
        ({"dimensions": [8.5]}, "must be an integer"),
        ({"dimensions": [True]}, "must be an integer"),
        ({"variants": {}}, r"variants must be Variants\(...\)"),
        ({"tiles": 3}, r"tiles must be Tiles\(...\)"),
        ({"learn_temperature": "no"}, "must be True or False"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InfoNCE(**options)
    with pytest.raises(UsageError, match="must be an integer"):
        Tiles(2.5, 5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="real numbers"):
        Tiles(2, 5, torch.int32)


def test_attributes_of_no_document_hide_nothing() -> None:
    plain = InfoNCE()(**vectors())
    torch.testing.assert_close(InfoNCE()(**vectors(groups=PerRole(queries=I(B)))), plain)
    torch.testing.assert_close(InfoNCE()(**vectors(ids=PerRole(), known_ids=I(B)[:, None])), plain)
    empty = vectors(bank=None, ids=PerRole(bank=I(0)))  # as without a bank
    torch.testing.assert_close(InfoNCE()(**empty), InfoNCE()(**vectors(bank=None)))


def test_gradcheck_with_its_defaults() -> None:
    queries, positives = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(InfoNCE(0.5).double(), (queries, positives))


def test_very_long_vectors_keep_their_direction() -> None:
    x = vectors()
    plain = InfoNCE()(x["queries"], x["positives"])
    torch.testing.assert_close(InfoNCE()(x["queries"] * 1e25, x["positives"] * 1e25), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_temperature_of_a_narrow_model_is_as_it_was(dtype: torch.dtype) -> None:
    model = nn.ModuleDict({"loss": InfoNCE(0.01, learn_temperature=True), "layer": nn.Linear(2, 2)}).to(dtype)
    assert model["layer"].weight.dtype == dtype
    assert model["loss"].temperature == pytest.approx(0.01, rel=1e-6)
    assert InfoNCE(0.01).double().log_scale.dtype == torch.float64


def test_the_temperature_that_is_told_is_the_one_that_is_used() -> None:
    loss = InfoNCE(0.05, learn_temperature=True, temperature_range=(0.01, 0.1))
    with torch.no_grad():
        loss.log_scale.fill_(99.0)
    assert loss.temperature == pytest.approx(0.01)


def test_gradient_caching_with_a_frozen_side() -> None:
    encoder = nn.Linear(5, D)
    queries, documents = torch.randn(6, 5), torch.randn(6, D)

    def encode(chunk: Tensor) -> Tensor:
        return encoder(chunk) if chunk.shape[1] == 5 else chunk

    value = cached_backward(encode, [queries.split(2), documents.split(2)], InfoNCE(0.1))
    found = encoder.weight.grad.clone()
    encoder.weight.grad = None
    whole = InfoNCE(0.1)(encoder(queries), documents)
    whole.backward()
    torch.testing.assert_close(value, whole.detach())
    torch.testing.assert_close(found, encoder.weight.grad)


q, p, h = torch.randn(4, 8), torch.randn(4, 8), torch.randn(4, 2, 8)
Call = Callable[[], Any]
CASES: list[
    tuple[Call, Call, str, str]
] = [  # (what rank 0 gives, what rank 1 gives, what rank 0 is told, what rank 1 is told)
    (lambda: InfoNCE()(q, p), lambda: InfoNCE()(q, p[:-1]), "rank 1 was given what it cannot use", "queries must be"),
    (lambda: InfoNCE()(q, p), lambda: InfoNCE()(q[:0], p[:0]), "rank 1 was given", "1 or more"),
    (lambda: InfoNCE()(q, p), lambda: InfoNCE()(q.half(), p), "same vectors", "same vectors"),
    (lambda: InfoNCE()(q, p), lambda: InfoNCE()(q[:, :4], p[:, :4]), "same vectors", "same vectors"),
    (lambda: InfoNCE()(q, p, h), lambda: InfoNCE()(q, p), "same vectors", "same vectors"),
    (lambda: InfoNCE()(q, p), lambda: InfoNCE()(q, p.clone().requires_grad_()), "same vectors", "same vectors"),
    (lambda: InfoNCE()(q, p, ids=PerRole(positives=I(4))), lambda: InfoNCE()(q, p), "same ids", "same ids"),
    (
        lambda: InfoNCE()(q, p, ids=PerRole(positives=I(4))),
        lambda: InfoNCE()(q, p, ids=PerRole(positives=I(4).int())),
        "same ids",
        "which has positives torch.int32",
    ),
    (lambda: InfoNCE(0.1)(q, p), lambda: InfoNCE(0.2)(q, p), "same options of the loss", "temperature 0.2"),
    (lambda: InfoNCE(variants=Variants(symmetric=True))(q, p), lambda: InfoNCE()(q, p), "same options", "same options"),
    (
        lambda: InfoNCE()(q, p, sketches=PerRole(q, p), intercept=1.0),
        lambda: InfoNCE()(q, p, sketches=PerRole(q, p)),
        "same options",
        "intercept 0",
    ),
]


def differ_on(rank: int, folder: Path) -> None:
    for case in CASES:
        with pytest.raises(UsageError) as refused:
            case[0 if rank == 0 else 1]()
        said = case[2 if rank == 0 else 3]
        assert said in str(refused.value), (said, str(refused.value))
    assert torch.isfinite(InfoNCE()(q, p))  # and still in step


def test_ranks_that_differ_are_told_on_all_ranks(tmp_path: Path) -> None:
    on_two_ranks(differ_on, tmp_path)
    assert Variants() == Variants()
