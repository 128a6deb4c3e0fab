"""InfoNCE against the whole matrix in float64, written out entry by entry; memory, formats, ranks."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hardneg.errors import UsageError
from hardneg.losses.batch import PerRole
from hardneg.losses.caching import cached_backward
from hardneg.losses.infonce import InfoNCE
from hardneg.losses.tiles import Tiles
from hardneg.losses.variants import Variants
from tests.conftest import NO_PROC

from .processes import on_two_ranks

B, P, K, M, S, D = 7, 2, 3, 5, 6, 8
SMALL = Tiles(3, 4)


def batch(seed: int = 0, dtype: torch.dtype = torch.float64, several: bool = True) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    positives = some(B, P, D) if several else some(B, D)
    return {
        "queries": some(B, D),
        "positives": positives,
        "hard": some(B, K, D),
        "shared": some(M, D),
        "bank": some(S, D),
    }


def marks(seed: int = 1) -> dict[str, Any]:
    """Ids that collide, groups, a guide, sketches."""
    g = torch.Generator().manual_seed(seed)

    def ints(low: int, *shape: int) -> Tensor:
        return torch.randint(low, 12, shape, generator=g)

    def vectors(*shape: int) -> Tensor:
        return torch.randn(*shape, 4, generator=g, dtype=torch.float64)

    return {
        "ids": PerRole(None, ints(0, B, P), ints(-1, B, K), ints(-1, M), ints(-1, S)),
        "groups": PerRole(ints(-1, B), ints(-1, B, P), ints(-1, B, K), ints(-1, M), ints(-1, S)),
        "guide": PerRole(vectors(B), vectors(B, P), vectors(B, K), vectors(M), vectors(S)),
        "sketches": PerRole(vectors(B), vectors(B, P), vectors(B, K), vectors(M), vectors(S)),
    }


def flat(sides: PerRole) -> Tensor:
    """What is known of the columns, one after the other: positives, hard, shared, bank."""
    tail = () if sides.queries is None or sides.queries.ndim == 1 else sides.queries.shape[-1:]
    return torch.cat([x.reshape(-1, *tail) for x in (sides.positives, sides.hard, sides.shared, sides.bank)])


def naive(
    x: dict[str, Tensor], v: Variants, t: Tensor, similarity: str, ids: PerRole | None, known: Tensor | None,
    groups: PerRole | None, guide: PerRole | None, sketches: PerRole | None, intercept: float, real: Tensor | None,
) -> Tensor:  # fmt: skip
    """The loss, entry by entry."""
    unit = {k: torch.nn.functional.normalize(y, dim=-1) if similarity == "cosine" else y for k, y in x.items()}
    q, p = unit["queries"], unit["positives"]
    columns = torch.cat([p.flatten(0, 1), unit["hard"].flatten(0, 1), unit["shared"], unit["bank"].detach()])
    kinds = ["p"] * (B * P) + ["h"] * (B * K) + ["s"] * M + ["b"] * S
    known = known if known is not None else None if ids is None else ids.positives
    losses = []

    def of_guide(x: Tensor, y: Tensor) -> float:
        return float(x @ y)

    def probability(i: int, sketch: Tensor) -> float:
        return 1 / (1 + math.exp(-(float(sketches.queries[i] @ sketch) + intercept)))

    def above(score: Tensor, positive: float) -> bool:
        """Whether a score is within the margin of a positive's."""
        s = float(score.detach())
        return (v.margin_absolute is not None and s > positive - v.margin_absolute) or (
            v.margin_relative is not None and s > positive - abs(positive) * v.margin_relative
        )

    def weight_of(suspicions: list[float]) -> float:
        """0: hidden."""
        if v.suspect_above is not None:
            return 0.0 if any(p > v.suspect_above for p in suspicions) else 1.0
        return math.prod(1 - p for p in suspicions)

    for i in range(B):
        own = [q[i] @ p[i, a] for a in range(P)]
        lowest = min(float(s.detach()) for s in own)
        guided = (
            [of_guide(guide.queries[i], guide.positives[i, a]) - v.guide_margin for a in range(P)] if guide else [0.0]
        )
        entries: list[tuple[Tensor, float]] = []  # (score, weight) of each negative
        for j, kind in enumerate(kinds):
            score = q[i] @ columns[j]
            if kind == "p" and j // P == i:
                continue
            if kind == "h" and real is not None and not real.flatten()[j - B * P]:
                continue
            if (
                ids is not None
                and known is not None
                and int(flat(ids)[j]) >= 0
                and int(flat(ids)[j]) in known[i].tolist()
            ):
                continue
            if groups is not None and int(groups.queries[i]) >= 0 and int(groups.queries[i]) == int(flat(groups)[j]):
                continue
            if above(score, lowest) or (guide is not None and of_guide(guide.queries[i], flat(guide)[j]) > min(guided)):
                continue
            weight = v.hard_weight if kind == "h" else 1.0
            if sketches is not None:
                weight *= weight_of([probability(i, flat(sketches)[j])])
            if weight > 0:
                entries.append((score, weight))
        n = len(entries)
        mass = sum(w for _, w in entries)
        if n == 0:
            total = None
        elif v.beta:
            raised = [
                (w * torch.exp(s / t), w * torch.exp(v.beta * s / t), w * torch.exp((1 + v.beta) * s / t))
                for s, w in entries
            ]
            total = mass * sum(r[2] for r in raised) / sum(r[1] for r in raised)
        else:
            total = sum(w * torch.exp(s / t) for s, w in entries)
        each = []
        for a in range(P):
            extra: list[tuple[Tensor, float]] = []
            if v.query_query:
                for k in range(B):
                    shares = ids is not None and known is not None and any(
                        int(d) >= 0 and int(d) in known[i].tolist() for d in ids.positives[k]
                    )  # fmt: skip
                    grouped = (
                        groups is not None and int(groups.queries[i]) >= 0 and groups.queries[i] == groups.queries[k]
                    )
                    score = q[i] @ q[k]
                    close = guide is not None and of_guide(guide.queries[i], guide.queries[k]) > min(guided)
                    weight = weight_of([probability(i, s) for s in sketches.positives[k]]) if sketches else 1.0
                    if k != i and not shares and not grouped and not above(score, lowest) and not close and weight:
                        extra.append((score, weight))
            if v.document_document:
                for k, b in itertools.product(range(B), range(P)):
                    shares = ids is not None and known is not None and int(ids.positives[k, b]) in known[i].tolist()
                    grouped = (
                        groups is not None and int(groups.positives[i, a]) >= 0
                        and groups.positives[i, a] == groups.positives[k, b]
                    )  # fmt: skip
                    score, limit = p[i, a] @ p[k, b], float(own[a].detach())
                    close = guide is not None and of_guide(guide.positives[i, a], guide.positives[k, b]) > guided[a]
                    weight = weight_of([probability(i, sketches.positives[k, b])]) if sketches else 1.0
                    if k != i and not shares and not grouped and not above(score, limit) and not close and weight:
                        extra.append((score, weight))
            many = n + len(extra)
            if many == 0:
                each.append(own[a] * 0)
                continue
            below = sum(w * torch.exp(s / t) for s, w in extra) + (0 if total is None else total)
            e = torch.exp(own[a] / t)
            if v.tau_plus:
                weights = mass + sum(w for _, w in extra)
                below = torch.clamp(
                    (below - weights * v.tau_plus * e) / (1 - v.tau_plus),
                    min=weights * math.exp(-1 / float(t.detach())),
                )
                if float(below.detach()) == weights * math.exp(-1 / float(t.detach())):
                    below = weights * torch.exp(-1 / t)
            loss = -torch.log(e / below) if v.decoupled else -torch.log(e / (e + below))
            if v.label_smoothing:
                logits = [s / t + math.log(w) for s, w in [*entries, *extra]] + [own[a] / t]
                spread = torch.log(e + below) - sum(logits) / len(logits)
                loss = (1 - v.label_smoothing) * loss + v.label_smoothing * spread
            each.append(loss)
        if v.symmetric:
            for a in range(P):
                others = []
                for k in range(B):
                    mine = int(ids.positives[i, a]) if ids is not None else -1
                    shares = ids is not None and known is not None and mine in known[k].tolist() and mine >= 0
                    grouped = (
                        groups is not None and int(groups.positives[i, a]) >= 0
                        and groups.positives[i, a] == groups.queries[k]
                    )  # fmt: skip
                    score, limit = q[k] @ p[i, a], float(own[a].detach())
                    close = guide is not None and of_guide(guide.positives[i, a], guide.queries[k]) > guided[a]
                    weight = weight_of([probability(k, sketches.positives[i, a])]) if sketches else 1.0
                    if k != i and not shares and not grouped and not above(score, limit) and not close and weight:
                        others.append(score / t + math.log(weight))
                if not others:
                    each[a] = each[a] / 2
                    continue
                e, below = torch.exp(own[a] / t), sum(torch.exp(s) for s in others)
                back = -torch.log(e / below) if v.decoupled else -torch.log(e / (e + below))
                if v.label_smoothing:
                    mean = (sum(others) + own[a] / t) / (len(others) + 1)
                    back = (1 - v.label_smoothing) * back + v.label_smoothing * (torch.log(e + below) - mean)
                each[a] = (each[a] + back) / 2
        losses.append(torch.stack(each).mean())
    return torch.stack(losses).mean()


def compare(v: Variants, use: set[str], similarity: str = "cosine", seed: int = 0, temperature: float = 0.3) -> None:
    x = {k: y.requires_grad_() for k, y in batch(seed).items()}
    given = {k: y for k, y in marks(seed + 1).items() if k in use}
    real = torch.rand(B, K, generator=torch.Generator().manual_seed(seed)) > 0.3 if "real" in use else None
    known = torch.randint(-1, 12, (B, 4), generator=torch.Generator().manual_seed(5)) if "known" in use else None
    loss = InfoNCE(temperature, learn_temperature=True, similarity=similarity, variants=v, tiles=SMALL).double()
    value = loss(**x, **given, known_ids=known, hard_real=real, intercept=-0.5)
    value.backward()
    mine = {k: y.grad for k, y in x.items()} | {"scale": loss.log_scale.grad}
    y = {k: z.detach().clone().requires_grad_() for k, z in x.items()}
    log_scale = loss.log_scale.detach().clone().requires_grad_()
    truth = naive(
        y, v, 1 / log_scale.exp(), similarity, given.get("ids"), known, given.get("groups"), given.get("guide"),
        given.get("sketches"), -0.5, real,
    )  # fmt: skip
    truth.backward()
    torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-10)
    assert mine["bank"] is None
    for name, gradient in mine.items():
        if name != "bank":
            other = log_scale.grad if name == "scale" else y[name].grad
            expected = torch.zeros_like(gradient) if other is None else other
            torch.testing.assert_close(
                gradient, expected, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}"
            )


OPTIONS: list[dict[str, Any]] = [
    {},
    {"symmetric": True},
    {"query_query": True},
    {"document_document": True},
    {"decoupled": True},
    {"tau_plus": 0.02},
    {"tau_plus": 0.4},
    {"beta": 0.5},
    {"label_smoothing": 0.1},
    {"hard_weight": 3.0},
    {"margin_absolute": 0.1},
    {"margin_relative": 0.2},
    {"guide_margin": 0.1},
    {"suspect_above": 0.6},
]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_option_equals_the_whole_matrix(options: dict[str, Any], similarity: str) -> None:
    use = {"guide"} if "guide_margin" in options else {"sketches"} if "suspect_above" in options else set()
    compare(Variants(**options), use, similarity, temperature=0.3 if similarity == "cosine" else 0.9)


@pytest.mark.parametrize("use", ["ids", "ids+known", "groups", "sketches", "guide", "real"])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_mask_equals_the_whole_matrix(use: str, seed: int) -> None:
    compare(Variants(symmetric=True, query_query=True, document_document=True), set(use.split("+")), seed=seed)


@pytest.mark.parametrize("first", range(1, len(OPTIONS)))
def test_pairs_of_options_equal_the_whole_matrix(first: int) -> None:
    """Every two options together, with ids, groups and missing hard negatives."""
    for second in range(first + 1, len(OPTIONS)):
        options = {**OPTIONS[first], **OPTIONS[second]}
        if options.get("label_smoothing") and {"decoupled", "tau_plus", "beta"} & set(options):
            with pytest.raises(UsageError, match="no cross-entropies"):
                Variants(**options)
            continue
        use = {"ids", "groups", "real"} | ({"guide"} if "guide_margin" in options else set())
        use |= {"sketches"} if "suspect_above" in options else set()
        compare(Variants(**options), use)


def test_plain_infonce_is_cross_entropy_on_the_full_logits() -> None:
    x = batch(several=False)
    loss = InfoNCE(0.1, similarity="dot", tiles=SMALL).double()
    logits = torch.cat([x["queries"] @ x["positives"].T, x["queries"] @ x["shared"].T], 1) / 0.1
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(B))
    torch.testing.assert_close(loss(x["queries"], x["positives"], shared=x["shared"]), expected)
    clip = InfoNCE(0.1, variants=Variants(symmetric=True), tiles=SMALL).double()
    q, p = (torch.nn.functional.normalize(x[k], dim=1) for k in ("queries", "positives"))
    both = [torch.nn.functional.cross_entropy(m / 0.1, torch.arange(B)) for m in (q @ p.T, p @ q.T)]
    torch.testing.assert_close(clip(x["queries"], x["positives"]), sum(both) / 2)


@pytest.mark.parametrize("options", OPTIONS[:9], ids=str)
def test_a_query_without_negatives_has_no_loss_and_no_gradient(options: dict[str, Any]) -> None:
    x = {k: y.float().requires_grad_() for k, y in batch(several=False).items() if k in ("queries", "positives")}
    ids = PerRole(positives=torch.zeros(B, 1, dtype=torch.int64))  # all the same document
    groups = PerRole(torch.zeros(B, dtype=torch.int64), torch.zeros(B, 1, dtype=torch.int64))
    loss = InfoNCE(0.01, learn_temperature=True, variants=Variants(**options), tiles=SMALL)
    value = loss(**x, ids=ids, groups=groups)
    assert float(value.detach()) == 0
    value.backward()
    for y in [*x.values(), loss.log_scale]:
        assert y.grad is None or (y.grad == 0).all()


@pytest.mark.parametrize("temperature", [0.005, 1.0])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    x = {k: y.float().requires_grad_() for k, y in batch().items()}
    for options in OPTIONS[:9]:
        loss = InfoNCE(temperature, learn_temperature=True, variants=Variants(**options), tiles=SMALL)
        value = loss(**x)
        value.backward()
        assert torch.isfinite(value)
        assert all(torch.isfinite(y.grad).all() for k, y in x.items() if k != "bank")


def test_matryoshka_adds_up_what_cut_vectors_lose() -> None:
    x = batch()
    whole = InfoNCE(0.2, dimensions=(2, 8), tiles=SMALL).double()(**x)
    parts = [InfoNCE(0.2, tiles=SMALL).double()(**{k: y[..., :n] for k, y in x.items()}) for n in (2, 8)]
    torch.testing.assert_close(whole, sum(parts))


@pytest.mark.parametrize("tiles", [Tiles(1, 1), Tiles(2, 5), Tiles(100, 100)])
def test_the_tiles_do_not_matter(tiles: Tiles) -> None:
    x = batch()
    values = [InfoNCE(0.1, variants=Variants(symmetric=True), tiles=t).double()(**x) for t in (SMALL, tiles)]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_summed_wide(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    q = torch.nn.functional.normalize(torch.randn(300, 32, generator=g), dim=1)
    p = torch.nn.functional.normalize(q + torch.randn(300, 32, generator=g), dim=1)
    gradients = []
    for kind in (torch.float32, dtype):
        a, b = (x.detach().clone().to(kind).requires_grad_() for x in (q, p))
        value = InfoNCE(0.05)(a, b)
        assert value.dtype == torch.float32
        value.backward()
        assert a.grad.dtype == kind
        gradients.append(torch.cat([a.grad, b.grad]).float())
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[0].norm()


@pytest.mark.slow
def test_autocast_and_compile() -> None:
    x = {k: y.float() for k, y in batch().items()}
    plain = InfoNCE(0.1)(**x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = InfoNCE(0.1)(**x)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=0.02, atol=0.02)
    weights = torch.nn.Linear(D, D)
    step = torch.compile(lambda q, p: InfoNCE(0.1)(weights(q), weights(p)), backend="eager")
    queries, positives = x["queries"], x["positives"][:, 0]
    torch.testing.assert_close(step(queries, positives), InfoNCE(0.1)(weights(queries), weights(positives)))


def test_the_temperature_stays_in_its_range() -> None:
    loss = InfoNCE(0.05, learn_temperature=True, temperature_range=(0.02, 0.1))
    assert loss.temperature == pytest.approx(0.05)
    with torch.no_grad():
        loss.log_scale.fill_(9.0)
    x = batch(dtype=torch.float32)
    loss(**x).backward()
    assert loss.temperature == pytest.approx(0.02)
    assert loss.log_scale.grad != 0
    assert set(loss.statistics) == {"positive", "masked", "alone", "loss", "temperature"}
    assert float(loss.statistics["temperature"]) == pytest.approx(0.02)
    assert float(loss.statistics["masked"]) == 0  # a query's own positives are none of its negatives
    assert not list(InfoNCE(0.05).parameters())


@pytest.mark.slow
def test_memory_grows_with_the_batch_not_with_its_square(tmp_path: Path) -> None:
    """The peak above the inputs, in a process of its own: the logits alone would be 268 MB, and as much again each time."""
    code = (
        "import torch; from hardneg.losses.infonce import InfoNCE\n"
        "def mb(name): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(name)) / 1024\n"
        "def run(n):\n"
        "    q, p = (torch.randn(n, 64, requires_grad=True) for _ in range(2))\n"
        "    InfoNCE(0.05, learn_temperature=True)(q, p).backward()\n"
        "run(1024)\n"
        "open('/proc/self/clear_refs', 'w').write('5'); before = mb('VmRSS'); run(8192); print(mb('VmHWM') - before)\n"
    )
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip(NO_PROC)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert float(done.stdout) < 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.zeros(0, D)}, "queries must be"),
        ({"queries": torch.zeros(B - 1, D)}, "queries must be"),
        ({"positives": torch.zeros(B, P, D - 1)}, "positives 7"),
        ({"hard": torch.zeros(B, D)}, "hard must be"),
        ({"hard": torch.zeros(B - 1, K, D)}, "6 rows of hard negatives for 7 queries"),
        ({"shared": torch.zeros(M, D + 1)}, "shared must be"),
        ({"bank": torch.zeros(M)}, "bank must be"),
    ],
)
def test_shapes_that_do_not_fit(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InfoNCE()(**{**batch(dtype=torch.float32), **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature=0 must be above 0"),
        ({"temperature": 2.0}, "within"),
        ({"similarity": "l2"}, "similarity must be"),
        ({"dimensions": []}, "dimensions must be"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InfoNCE(**options)
    for wrong in ({"tau_plus": 1.0}, {"beta": -1}, {"hard_weight": 0}, {"label_smoothing": -0.1}):
        with pytest.raises(UsageError):
            Variants(**wrong)
    with pytest.raises(UsageError, match="dimensions asks for 9"):
        InfoNCE(dimensions=(9,))(**batch(dtype=torch.float32))


CUT = 3  # queries of the first rank; the second has the other four, and two shared negatives instead of three
ON_RANKS = Variants(symmetric=True, query_query=True, document_document=True, tau_plus=0.02, hard_weight=2.0)


def part_of(x: dict[str, Any], rank: int) -> dict[str, Any]:
    rows = slice(0, CUT) if rank == 0 else slice(CUT, B)
    cut = {k: v[rows] for k, v in x.items() if k in ("queries", "positives", "hard")}
    return {**cut, "shared": x["shared"][:3] if rank == 0 else x["shared"][3:], "bank": x["bank"]}


def sides_of(s: PerRole, rank: int) -> PerRole:
    rows = slice(0, CUT) if rank == 0 else slice(CUT, B)
    own = [None if v is None else v[rows] for v in (s.queries, s.positives, s.hard)]
    return PerRole(*own, s.shared[:3] if rank == 0 else s.shared[3:], s.bank)


def gradients_on(rank: int, folder: Path) -> None:
    x = {k: v.requires_grad_() for k, v in part_of(batch(), rank).items()}
    given = {k: sides_of(v, rank) for k, v in marks().items() if k in ("ids", "groups", "sketches")}
    loss = InfoNCE(0.3, learn_temperature=True, variants=ON_RANKS).double()
    value = loss(**x, **given)
    value.backward()
    # As DistributedDataParallel does: gradients of shared parameters are averaged.
    mine = {k: v.grad / 2 for k, v in x.items() if k != "bank"}
    torch.save({**mine, "scale": loss.log_scale.grad / 2, "loss": value.detach() / 2}, folder / f"{rank}.pt")


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Different numbers of queries and of negatives on each; every gradient as on the whole batch."""
    on_two_ranks(gradients_on, tmp_path)
    x = {k: v.requires_grad_() for k, v in batch().items()}
    loss = InfoNCE(0.3, learn_temperature=True, variants=ON_RANKS).double()
    whole = loss(**x, **{k: v for k, v in marks().items() if k in ("ids", "groups", "sketches")})
    whole.backward()
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(parts[0]["loss"] + parts[1]["loss"], whole.detach())
    torch.testing.assert_close(parts[0]["scale"] + parts[1]["scale"], loss.log_scale.grad)
    for name in ("queries", "positives", "hard", "shared"):
        torch.testing.assert_close(torch.cat([parts[0][name], parts[1][name]]), x[name].grad)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_gradient_caching_equals_one_backward_pass(chunk: int) -> None:
    """Dropout draws the same numbers again; the random state afterwards is that of the first pass."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, D)).double()
    loss = InfoNCE(0.2, learn_temperature=True).double()
    inputs = [torch.randn(B, 5, dtype=torch.float64) for _ in range(2)]
    sides = [list(each.split(chunk)) for each in inputs]
    torch.manual_seed(7)
    whole = loss(*(torch.cat([model(part) for part in side]) for side in sides))
    whole.backward()
    state = torch.get_rng_state()
    expected = [p.grad.clone() for p in [*model.parameters(), *loss.parameters()]]
    model.zero_grad()
    loss.zero_grad()
    torch.manual_seed(7)
    value = cached_backward(model, sides, loss)
    torch.testing.assert_close(value, whole.detach())
    for parameter, gradient in zip([*model.parameters(), *loss.parameters()], expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_caching_synchronises_once_and_skips_unused_sides() -> None:
    import contextlib

    entered: list[int] = []

    @contextlib.contextmanager
    def no_sync() -> Any:
        entered.append(1)
        yield

    model = torch.nn.Linear(5, D)
    queries, positives, unused = ([torch.randn(2, 5) for _ in range(3)] for _ in range(3))
    value = cached_backward(model, [queries, positives, unused], lambda q, p, u: InfoNCE(0.2)(q, p), no_sync=no_sync)
    assert torch.isfinite(value)
    assert model.weight.grad.abs().sum() > 0
    assert len(entered) == 1 + 5  # the loss, and all chunks of the two sides but the last
    with pytest.raises(UsageError, match="one chunk or more"):
        cached_backward(model, [queries, []], InfoNCE())


def test_dropout_of_numpy_and_python_is_repeated_by_gradient_caching() -> None:
    """Each chunk is encoded twice; both times the same components must be dropped, whatever draws them."""

    def encode(rows: torch.Tensor) -> torch.Tensor:
        kept = torch.from_numpy(np.random.random(rows.shape) < 0.5)  # noqa: NPY002
        return rows * weight * kept * random.choice((1.0, 2.0))

    inputs = [torch.randn(6, 4), torch.randn(6, 4)]
    found = []
    for cached in (False, True):
        weight = torch.ones(4, requires_grad=True)
        np.random.seed(3)  # noqa: NPY002
        random.seed(3)
        sides = [list(rows.split(2)) for rows in inputs]
        loss = InfoNCE(0.5)
        if cached:
            cached_backward(encode, sides, loss)
        else:
            loss(*(torch.cat([encode(chunk) for chunk in side]) for side in sides)).backward()
        found.append(weight.grad)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("symmetric", [False, True])
def test_queries_of_several_groups(symmetric: bool) -> None:
    """Against one mask for each pair: a document of any group of the query is no negative, in both directions."""
    queries, positives = torch.randn(4, 8), torch.randn(4, 8)
    groups = torch.tensor([[0, 1], [1, -1], [2, 3], [-1, -1]])
    of_positives = torch.tensor([1, 1, 3, 0])
    loss = InfoNCE(0.5, variants=Variants(symmetric=symmetric))
    found = loss(queries, positives, groups=PerRole(queries=groups, positives=of_positives))
    same = (groups[:, None, :] == of_positives[None, :, None]).any(2) & (of_positives >= 0)
    same[torch.arange(4), torch.arange(4)] = False
    q, p = nn.functional.normalize(queries, dim=1), nn.functional.normalize(positives, dim=1)
    logits = (q @ p.T / 0.5).masked_fill(same, -torch.inf)
    expected = nn.functional.cross_entropy(logits, torch.arange(4))
    if symmetric:
        expected = (expected + nn.functional.cross_entropy(logits.T, torch.arange(4))) / 2
    torch.testing.assert_close(found, expected)
    assert bool(same.any())


def test_queries_without_negatives_are_counted() -> None:
    ids = PerRole(positives=torch.tensor([[0], [0], [1]]))
    loss = InfoNCE(0.5)
    loss(torch.randn(3, 4), torch.randn(3, 4), ids=ids)
    assert float(loss.statistics["alone"]) == 0
    loss(torch.randn(2, 4), torch.randn(2, 4), ids=PerRole(positives=torch.tensor([[0], [0]])))
    assert float(loss.statistics["alone"]) == 1
    loss = InfoNCE(0.5, variants=Variants(symmetric=True))
    loss(torch.randn(1, 4), torch.randn(1, 4))
    assert float(loss.statistics["alone"]) == 1
