"""An index that is rebuilt beside a training loop: what is read, when it changes, and what happens when things fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hardneg.encoders.hashed import HashedEncoder
from hardneg.errors import DataError, RunError, UsageError
from hardneg.index.exact import ExactIndex
from hardneg.refresh.drift import compensate, rows_to_encode
from hardneg.refresh.generation import Generation, Recipe, load_generation
from hardneg.refresh.refreshed_index import RefreshedIndex, RefreshError, RefreshWarning
from hardneg.refresh.snapshot import ModuleSnapshots, ProcessSnapshots
from hardneg.refresh.staleness import Schedule, staleness_between

from .conftest import unit
from .test_approximate import clustered

EXACT = Recipe(depth=5, precision="float32")


class Rows:
    """Items that are rows of an array; counts which ones were asked for."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.taken = values, []

    def take(self, rows: np.ndarray) -> np.ndarray:
        self.taken.append(np.array(rows))
        return self.values[rows]


class Linear(nn.Module):
    """A model whose weights decide everything: x W, unit length."""

    def __init__(self, dimension: int = 24, out: int = 24) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dimension, out))

    def forward(self, items: np.ndarray) -> torch.Tensor:
        return nn.functional.normalize(torch.from_numpy(items) @ self.weight, dim=1)


def turn(model: Linear, seed: int, size: float = 0.3) -> None:
    """What a training step does to the weights."""
    noise = torch.randn(model.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.weight += size * noise / model.weight.shape[0] ** 0.5


def encode(model: Linear, items: np.ndarray, side: str) -> torch.Tensor:
    return model(items)


def vectors(model: Linear, items: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(items).numpy()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Gate:
    """An encode function that waits to be let through, after the first generation."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()

    def __call__(self, model: Linear, items: np.ndarray, side: str) -> torch.Tensor:
        self.entered.set()
        assert self.open.wait(20)
        return model(items)


@pytest.fixture
def documents() -> np.ndarray:
    return clustered(400)


def test_a_generation_is_what_a_search_with_that_encoder_gives(documents: np.ndarray) -> None:
    model, queries = Linear(), clustered(60, seed=1)
    with RefreshedIndex(
        Rows(documents),
        ModuleSnapshots(model, encode),
        ids=400,
        queries=(Rows(queries), 60),
        schedule="never",
        recipe=EXACT,
    ) as index:
        for step in range(3):
            turn(model, step)
            index.step()
            made = index.refresh()
            truth = ExactIndex(vectors(model, documents)).search(vectors(model, queries), 5)
            assert made is index.generation
            assert (made.number, made.step, index.age) == (step + 1, step + 1, 0)
            assert made.neighbors is not None
            assert made.neighbors.documents.tobytes() == truth.documents.tobytes()
            assert index.search(vectors(model, queries), 5).documents.tobytes() == truth.documents.tobytes()
            assert set(made.seconds) == {"encode", "build", "search"}
        assert [entry["generation"] for entry in index.history] == [1, 2, 3]


def test_training_never_waits_and_the_swap_is_whole(documents: np.ndarray) -> None:
    model, gate = Linear(), Gate()
    with RefreshedIndex(
        Rows(documents), ModuleSnapshots(model, gate), ids=400, schedule="steps:2", recipe=EXACT
    ) as index:
        first = index.generation
        gate.open.clear()
        gate.entered.clear()
        assert not index.step()
        turn(model, 0)
        at_start = vectors(model, documents)
        assert not index.step()
        assert gate.entered.wait(20)
        assert index.refreshing
        turn(model, 1)  # the copy does not see it
        for _ in range(20):
            assert not index.step()
            assert index.generation is first
        assert index.age == 22
        gate.open.set()
        wait_for(index.step)
        second = index.generation
        np.testing.assert_array_equal(second.vectors, at_start)
        assert (second.number, second.step) == (1, 2)
        assert first.vectors is not second.vectors  # who holds the old one goes on reading it
        np.testing.assert_allclose(first.vectors, unit(documents), atol=1e-6)
        assert index.history[0]["drift"] == pytest.approx(1 - (first.vectors * at_start).sum(1).mean(), abs=1e-6)


@pytest.mark.faults
def test_readers_in_other_threads_see_one_generation_or_the_other(documents: np.ndarray) -> None:
    model, queries = Linear(), clustered(30, seed=1)
    snapshots = ModuleSnapshots(model, encode)
    with RefreshedIndex(
        Rows(documents), snapshots, ids=400, queries=(Rows(queries), 30), schedule="never", recipe=EXACT
    ) as index:
        stop, broken = threading.Event(), []

        def read() -> None:
            while not stop.is_set():
                held = index.generation
                near = held.neighbors
                assert near is not None
                scores = held.index.pair_scores(held.vectors[near.documents[:, 0]], near.documents[:, :1])
                if not np.allclose(scores, 1, atol=1e-5) or held.rows_of(np.array([7]))[0] != 7:
                    broken.append(held.number)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for step in range(10):
            turn(model, step)
            index.step()
            index.refresh()
        stop.set()
        for reader in readers:
            reader.join()
        assert not broken


def test_failures_leave_the_last_good_generation_and_are_told(documents: np.ndarray) -> None:
    model = Linear()
    with RefreshedIndex(
        Rows(documents),
        ModuleSnapshots(model, encode),
        ids=np.arange(400) + 1000,
        schedule="steps:1",
        recipe=EXACT,
        lag=0,
    ) as index:
        first = index.generation
        with torch.no_grad():
            model.weight[0] = np.nan
        message = (
            r"refresh started at step 1 failed: .*NaN.*400 of 400 items, document ids 1000, 1001.*Generation 0 stays"
        )
        with pytest.warns(RefreshWarning, match=message):
            assert not index.step()
        assert index.generation is first
        with pytest.warns(RefreshWarning):
            index.step()
        with pytest.raises(RefreshError, match="3 failures in a row"):
            index.step()
        assert [failure.step for failure in index.failures] == [1, 2, 3]
        with torch.no_grad():
            model.weight[0] = 1
        assert index.step()  # and it goes on when the encoder is well again
        assert index.generation.number == 1
        with torch.no_grad():
            model.weight[0] = np.inf
        with pytest.warns(RefreshWarning), pytest.raises(RefreshError, match="could not be refreshed at step 4"):
            index.refresh()
        with torch.no_grad():
            model.weight[0] = 1
        assert index.refresh().number == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda v: v[:, :5], "now gives vectors of 5 dimensions, generation 0 has 24.*index of its own"),
        (lambda v: v[:3], r"returned shape \[3, 24\] for 400 items, expected \[400, d\]"),
        (lambda v: v[:, 0], r"returned shape \[400\] for 400 items"),
        (lambda v: v * 1e30, "NaN or infinite values .as float16. for 400 of 400"),
        (lambda v: v * 0, "400 of 400 corpus vectors are all zero"),
        (lambda v: 1 / 0, "division by zero"),
    ],
)
def test_what_an_encoder_may_not_return(documents: np.ndarray, wrong: Callable[..., object], message: str) -> None:
    state = {"wrong": False}

    def snapshot() -> Callable[..., object]:
        return lambda items, side: wrong(items) if state["wrong"] else items

    with RefreshedIndex(Rows(documents), snapshot, ids=400, schedule="never", recipe=Recipe(depth=5)) as index:
        state["wrong"] = True
        with pytest.warns(RefreshWarning, match=message), pytest.raises(RefreshError):
            index.refresh()
        assert index.generation.number == 0
    if "now gives" not in message:  # a first generation may have any dimension, and has nothing to fall back on
        with pytest.raises((DataError, ZeroDivisionError)):
            RefreshedIndex(Rows(documents), snapshot, ids=400)


def test_documents_come_and_go(documents: np.ndarray) -> None:
    model = Linear()
    with RefreshedIndex(
        Rows(documents[:300]), ModuleSnapshots(model, encode), ids=np.arange(300), schedule="never", recipe=EXACT
    ) as index:
        kept = np.concatenate([np.arange(50, 300), np.arange(300, 400)])[::-1]
        index.set_documents(Rows(documents[kept]), kept)
        assert len(index.generation.ids) == 300  # from the next generation on
        made = index.refresh()
        assert made.ids.tolist() == kept.tolist()
        assert made.rows_of(np.array([399, 49, 50, 7])).tolist() == [0, -1, 349, -1]
        found = index.search(vectors(model, documents[[310]]), 1)
        assert made.ids[found.documents[0, 0]] == 310
        assert index.measure_staleness().sample == 350
        index.set_documents(Rows(documents[:3]), np.array([901, 902, 903]))
        assert index.measure_staleness().overlap == 0  # nothing in common
        assert index.refresh().vectors.shape == (3, 24)
    with pytest.raises(UsageError, match="ids repeat"):
        index.set_documents(Rows(documents), np.zeros(400))
    with pytest.raises(UsageError, match="at least one document"):
        index.set_documents(Rows(documents), 0)


def test_staleness_decides(documents: np.ndarray) -> None:
    model = Linear()
    schedule = "staleness:drift=0.02,check=3"
    with RefreshedIndex(
        Rows(documents), ModuleSnapshots(model, encode), ids=400, schedule=schedule, recipe=EXACT, lag=0
    ) as index:
        assert index.staleness.drift == 0
        for _ in range(9):
            assert not index.step()
        assert index.staleness == staleness_between(index.generation.vectors, index.generation.vectors, 9)
        turn(model, 0, 0.1)
        for _ in range(3):
            assert not index.step()
        assert 0 < index.staleness.drift <= 0.02
        assert index.staleness.step == 12
        turn(model, 1, 0.5)
        assert [index.step() for _ in range(3)] == [False, False, True]
        assert index.history[-1]["drift"] > 0.02
        assert index.staleness.drift == 0  # of the new one
        turn(model, 2, 0.5)
        assert index.measure_staleness().drift > 0.02


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 60), copies=st.booleans())
def test_staleness_equals_a_naive_count(seed: int, size: int, copies: bool) -> None:
    rng = np.random.default_rng(seed)
    before = unit(rng.standard_normal((size, 8)))
    after = unit(before + 0.5 * rng.standard_normal((size, 8)))
    if copies:
        before[1:3] = before[0]
    found = staleness_between(before, after, 3)
    assert found.drift == pytest.approx(
        1 - np.mean([float(a @ b) for a, b in zip(before, after, strict=True)]), abs=1e-5
    )
    assert staleness_between(before, before, 0).overlap == 1
    if not copies and size > 1:
        k = min(10, size - 1)
        near = [
            [set(np.argsort(-np.where(np.arange(size) == i, -9, row))[:k]) for i, row in enumerate(v @ v.T)]
            for v in (before.astype(np.float64), after.astype(np.float64))
        ]
        assert found.overlap == pytest.approx(np.mean([len(a & b) / k for a, b in zip(*near, strict=True)]))


def test_a_lag_makes_training_repeatable(documents: np.ndarray) -> None:
    """However slow the background is, a generation is used at the same step."""
    for delay in (0, 0.05):
        model = Linear()

        def slow(model: Linear, items: np.ndarray, side: str, delay: float = delay) -> torch.Tensor:
            time.sleep(delay)
            return model(items)

        with RefreshedIndex(
            Rows(documents), ModuleSnapshots(model, slow), ids=400, schedule="steps:5", recipe=EXACT, lag=3
        ) as index:
            swaps = []
            for step in range(1, 25):
                turn(model, step)
                if index.step():
                    swaps.append((step, index.generation.step))
        assert swaps == [(8, 5), (13, 10), (18, 15), (23, 20)]


def test_with_a_lag_nothing_depends_on_the_speed(documents: np.ndarray, tmp_path: Path) -> None:
    """Measurements that find nothing stale, steps that are due meanwhile, checkpoints in between: the same steps."""
    runs = []
    for delay, cut in ((0.0, 0), (0.02, 0), (0.0, 9), (0.02, 10)):
        model, swaps = Linear(), []

        def slow(model: Linear, items: np.ndarray, side: str, delay: float = delay) -> torch.Tensor:
            time.sleep(delay)
            return model(items)

        def make(model: Linear = model, slow: Callable[..., object] = slow, **more: object) -> RefreshedIndex:
            schedule = Schedule(steps=10, drift=0.9, check=4)
            return RefreshedIndex(
                Rows(documents), ModuleSnapshots(model, slow), ids=400, schedule=schedule, recipe=EXACT, lag=3, **more
            )

        index = make()
        for step in range(1, 50):
            turn(model, step, 0.05)
            if index.step():
                swaps.append((step, index.generation.step, index.generation.checksum))
            if step == cut:
                index.save(tmp_path / f"{delay}")
                index.close()
                index = make(resume=tmp_path / f"{delay}")
        index.close()
        runs.append(swaps)
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert len(runs[0]) == 4


def test_a_snapshot_that_fails_is_a_failed_refresh(documents: np.ndarray) -> None:
    model = Linear()
    with RefreshedIndex(
        Rows(documents), ModuleSnapshots(model, encode), ids=400, schedule="steps:1", recipe=EXACT, lag=0
    ) as index:
        model.extra = nn.Parameter(torch.zeros(1))
        with pytest.warns(RefreshWarning, match=r"changed its make-up.*Generation 0 stays"):
            assert not index.step()
        del model.extra
        assert index.step()


def test_epochs(documents: np.ndarray) -> None:
    gate = Gate()
    with RefreshedIndex(
        Rows(documents), ModuleSnapshots(Linear(), gate), ids=400, schedule="epoch", recipe=EXACT
    ) as index:
        for _ in range(5):
            assert not index.step()
        assert not index.refreshing
        gate.open.clear()
        index.end_epoch()
        assert index.refreshing
        index.step()
        index.end_epoch()  # while the last one is under way: it is owed
        gate.open.set()
        wait_for(lambda: index.step() and index.generation.number == 2)
        assert index.history[0]["step"] == 5
        assert index.history[1]["step"] >= 6


def test_closing_stops_at_once(documents: np.ndarray) -> None:
    many = np.tile(documents, (50, 1))
    calls = []

    def slow(model: Linear, items: np.ndarray, side: str) -> torch.Tensor:
        calls.append(len(items))
        time.sleep(0.05 if len(calls) > 20 else 0)
        return model(items)

    index = RefreshedIndex(Rows(many), ModuleSnapshots(Linear(), slow), ids=len(many), schedule="steps:1", recipe=EXACT)
    built = len(calls)
    index.step()
    wait_for(lambda: len(calls) > built)
    index.close()
    assert len(calls) < built + 10
    assert not [t for t in threading.enumerate() if t.name.startswith("hardneg-generation")]
    assert index.search(many[:2], 1).scores.shape == (2, 1)
    for act in (index.step, index.end_epoch, index.refresh, index.measure_staleness):
        with pytest.raises(UsageError, match="closed"):
            act()
    index.close()


@pytest.mark.slow
def test_an_interpreter_that_ends_does_not_wait(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import time, numpy as np\n"
        "from hardneg.refresh.refreshed_index import RefreshedIndex\n"
        "from hardneg.refresh.generation import Recipe\n"
        "class Rows:\n"
        "    def take(self, rows): return rows\n"
        "slow = [0]\n"
        "def encode(items, side):\n"
        "    time.sleep(slow[0])\n"
        "    return np.random.default_rng(0).standard_normal((len(items), 8))\n"
        "index = RefreshedIndex(Rows(), lambda: encode, ids=100_000, schedule='steps:1', recipe=Recipe(depth=5))\n"
        "slow[0] = 0.2\n"
        "index.step()\n"
        "time.sleep(0.1)\n"
        "print('end', index.refreshing)\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end True\n", "")
    assert time.monotonic() - start < 15  # the whole build would take 20 s


def test_what_training_needs_besides_is_made_in_the_background(documents: np.ndarray, tmp_path: Path) -> None:
    """Of the first generation, or of one that a checkpoint held, when it is asked for; of others by the thread that builds them."""
    made: list[tuple[int, str]] = []

    def prepare(generation: Generation) -> str:
        made.append((generation.number, threading.current_thread().name))
        return f"of {generation.number}"

    def make(model: Linear, **more: object) -> RefreshedIndex:
        return RefreshedIndex(
            Rows(documents), ModuleSnapshots(model, encode), ids=400, schedule="steps:5", recipe=EXACT, lag=3, prepare=prepare,
            **more,
        )  # fmt: skip

    model = Linear()
    with make(model) as index:
        assert index.prepared == "of 0"
        for step in range(1, 7):
            turn(model, step)
            assert not index.step()
            assert index.prepared == "of 0"
        index.save(tmp_path / "saved")  # the next one is built, and waits for its step
        assert made == [(0, "MainThread"), (1, "hardneg-generation-1")]
        while not index.step():
            assert index.prepared == "of 0"
        assert (index.generation.number, index.prepared) == (1, "of 1")
        assert len(made) == 2
    with make(model, resume=tmp_path / "saved") as again:
        assert again.prepared == "of 0"
        while not again.step():
            pass
        assert again.prepared == "of 1"


def test_a_preparation_that_fails_is_a_refresh_that_failed(documents: np.ndarray) -> None:
    def prepare(generation: Generation) -> int:
        if generation.number:
            raise DataError("a filter found nothing")
        return 0

    model = Linear()
    with RefreshedIndex(
        Rows(documents),
        ModuleSnapshots(model, encode),
        ids=400,
        schedule="steps:2",
        recipe=EXACT,
        lag=1,
        prepare=prepare,
    ) as index:
        assert index.prepared == 0
        index.step()
        index.step()
        with pytest.warns(RefreshWarning, match="a filter found nothing"):
            index.step()
        assert (index.generation.number, index.prepared) == (0, 0)


def test_checkpoints_hold_the_generation_and_the_next(documents: np.ndarray, tmp_path: Path) -> None:
    queries = clustered(20, seed=1)

    def make(model: Linear, **more: object) -> RefreshedIndex:
        return RefreshedIndex(
            Rows(documents), ModuleSnapshots(model, encode), ids=400, queries=(Rows(queries), 20), schedule="steps:5",
            recipe=Recipe(depth=5, index="ivf", recall=0.9), lag=3, **more,
        )  # fmt: skip

    def run(index: RefreshedIndex, model: Linear, steps: range) -> list[tuple[int, str, bytes]]:
        seen = []
        for step in steps:
            turn(model, step)
            index.step()
            near = index.generation.neighbors
            assert near is not None
            seen.append((index.generation.number, index.generation.checksum, near.documents.tobytes()))
        return seen

    model = Linear()
    with make(model) as index:
        whole = run(index, model, range(1, 20))
    for cut in (4, 6, 9):  # before the first, while one waits for its step, between
        model = Linear()
        with make(model) as index:
            before = run(index, model, range(1, cut + 1))
            index.save(tmp_path / str(cut))
        with make(model, resume=tmp_path / str(cut)) as index:
            assert index.age == cut - index.generation.step
            after = run(index, model, range(cut + 1, 20))
        assert before + after == whole


def test_damaged_and_foreign_checkpoints(documents: np.ndarray, tmp_path: Path) -> None:
    def make(recipe: Recipe = EXACT, **more: object) -> RefreshedIndex:
        return RefreshedIndex(Rows(documents), ModuleSnapshots(Linear(), encode), ids=400, recipe=recipe, **more)

    with make() as index:
        index.save(tmp_path)
    with pytest.raises(RunError, match="another recipe .depth: 5 then, 6 now"):
        make(Recipe(depth=6, precision="float32"), resume=tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        make(resume=tmp_path / "nowhere")
    make(
        Recipe(depth=5, precision="float32", threads=2), resume=tmp_path
    ).close()  # not a matter of what, only of how fast
    place = next(tmp_path.glob("generation-0-*"))
    path = place / "vectors.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(RunError, match=r"vectors\.npy is missing or damaged"):
        make(resume=tmp_path)
    path.write_bytes(good)
    head = place / "generation.json"
    value = json.loads(head.read_text())
    for change in ({"schema": "x"}, {"recall": {}}, {"number": "many"}, {"files": {}}):
        head.write_text(json.dumps({**value, **change}))
        with pytest.raises(RunError, match="does not describe a generation"):
            load_generation(place)
    head.write_text(json.dumps({**value, "checksum": "0"}))
    with pytest.raises(RunError, match="do not belong together"):
        load_generation(place)
    head.write_text(json.dumps(value))
    state = json.loads((tmp_path / "refreshed.json").read_text())
    for change, message in (
        ({"schema": "0"}, "schema '0'"),
        ({"generation": "../elsewhere"}, "no name of a generation"),
        ({"generation": "generation-1-000000000000"}, "does not exist"),
        ({"step": "many"}, "does not describe a refreshed index"),
        ({"staleness": {"drift": 1}}, "does not describe a refreshed index"),
    ):
        (tmp_path / "refreshed.json").write_text(json.dumps({**state, **change}))
        with pytest.raises(RunError, match=message):
            make(resume=tmp_path)
    (tmp_path / "refreshed.json").write_text(json.dumps({**state, "generation": "generation-7-000000000000"}))
    place.rename(tmp_path / "generation-7-000000000000")
    with pytest.raises(RunError, match="another generation than its name says"):
        make(resume=tmp_path)


def test_a_checkpoint_is_whole_or_the_one_before(
    documents: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any of its writes, a checkpoint folder still holds what it held; what is superseded is removed."""
    model = Linear()
    with RefreshedIndex(
        Rows(documents), ModuleSnapshots(model, encode), ids=400, schedule="never", recipe=EXACT
    ) as index:
        index.save(tmp_path)
        for kill_at in range(1, 7):
            turn(model, kill_at)
            index.step()
            index.refresh()
            before = json.loads((tmp_path / "refreshed.json").read_text())["generation"]
            left = [kill_at]
            replace = os.replace

            def dying(*paths: Path, left: list[int] = left, replace: Callable[..., None] = replace) -> None:
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
                replace(*paths)

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", dying)
                try:
                    index.save(tmp_path)
                except KeyboardInterrupt:
                    again = RefreshedIndex(
                        Rows(documents), ModuleSnapshots(model, encode), ids=400, recipe=EXACT, resume=tmp_path
                    )
                    assert json.loads((tmp_path / "refreshed.json").read_text())["generation"] == before
                    assert again.generation.number == int(before.split("-")[1])
            index.save(tmp_path)
            assert len(list(tmp_path.glob("generation-*"))) == 1


def test_a_share_is_encoded_and_the_rest_moved() -> None:
    """The encoder turns the whole space: a linear map carries the rest along."""
    documents, model = clustered(4000), Linear()
    items = Rows(documents)
    queries = clustered(300, seed=1)
    recipe = Recipe(depth=20, precision="float32", share=0.2)
    with RefreshedIndex(
        items, ModuleSnapshots(model, encode), ids=4000, queries=(Rows(queries), 300), schedule="never", recipe=recipe
    ) as index:
        first = index.generation
        for seed in range(3):
            turn(model, seed, 0.5)
        index.step()
        items.taken.clear()
        made = index.refresh()
        encoded = np.sort(np.concatenate(items.taken))
        assert len(encoded) == len(set(encoded)) == 800
        np.testing.assert_array_equal(np.flatnonzero(made.encoded_at == 1), encoded)
        fresh = vectors(model, documents)
        np.testing.assert_allclose(made.vectors[encoded], fresh[encoded], atol=1e-6)
        cosines = (made.vectors * fresh).sum(1)
        rest = np.setdiff1d(np.arange(4000), encoded)
        assert 1 - cosines[rest].mean() == pytest.approx(made.compensation_error, rel=0.5)
        assert 1 - cosines[rest].mean() < 0.5 * (1 - (first.vectors * fresh).sum(1)[rest].mean())
        np.testing.assert_allclose(np.linalg.norm(made.vectors, axis=1), 1, atol=1e-3)
        # The most retrieved come first, of those that were not drawn for the map.
        assert first.neighbors is not None
        counts = np.bincount(first.neighbors.documents.ravel(), minlength=4000)
        assert counts[rest].max() <= np.sort(counts)[-289]
        # New documents are always encoded.
        more = clustered(1000, seed=5)
        items = Rows(np.concatenate([documents, more]))
        index.set_documents(items, 5000)
        index.refresh()
        assert set(range(4000, 5000)) <= set(np.concatenate(items.taken).tolist())


def test_everything_is_encoded_in_the_end() -> None:
    documents = clustered(3000)
    with RefreshedIndex(
        Rows(documents),
        ModuleSnapshots(Linear(), encode),
        ids=3000,
        schedule="never",
        recipe=Recipe(depth=5, share=0.4),
    ) as index:
        for _ in range(4):
            index.step()
            index.refresh()
        assert (index.generation.encoded_at > 0).all()


def test_a_linear_map_is_found() -> None:
    rng = np.random.default_rng(0)
    before = unit(rng.standard_normal((2000, 16)))
    after = before @ np.linalg.qr(rng.standard_normal((16, 16)))[0].astype(np.float32) * 3
    encoded, rest = np.arange(600), np.arange(600, 2000)
    moved, error = compensate(before, encoded, after[:600], np.arange(0, 600, 5), rest)
    np.testing.assert_allclose(moved, after[600:], atol=0.05)
    assert 0 <= error < 1e-4


def test_small_corpora_are_encoded_whole() -> None:
    documents, model = clustered(300), Linear()
    items = Rows(documents)
    recipe = Recipe(depth=5, share=0.1, precision="float32")
    with RefreshedIndex(items, ModuleSnapshots(model, encode), ids=300, schedule="never", recipe=recipe) as index:
        turn(model, 0)
        made = index.refresh()
        np.testing.assert_allclose(made.vectors, vectors(model, documents), atol=1e-6)
        rows, sampled = rows_to_encode(0.1, np.arange(300), made.encoded_at, made.times_retrieved(), 0)
        assert len(rows) == len(sampled) == 300


def test_shadow_follows_the_model() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    snapshots = ModuleSnapshots(model, lambda module, items, side: module(torch.from_numpy(items)), device="cpu")
    items = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    for _ in range(2):
        model.train()
        model(torch.from_numpy(items)).sum().backward()
        run = snapshots()
        expected = model.eval()(torch.from_numpy(items)).detach().numpy()
        with torch.no_grad():
            model[0].weight += 1
        np.testing.assert_allclose(run(items, "document"), expected, atol=1e-6)
    model.append(nn.Linear(8, 4))
    with pytest.raises(UsageError, match=r"changed its make-up.*3\.bias"):
        snapshots()


def encode_or_die(model: Linear, items: np.ndarray, side: str) -> torch.Tensor:
    if bool((model.weight > 100).any()):
        os.kill(os.getpid(), signal.SIGKILL)
    return model(items)


@pytest.mark.slow
def test_a_process_encodes_and_may_die(documents: np.ndarray) -> None:
    model = Linear()
    snapshots = ProcessSnapshots(model, encode_or_die)
    with RefreshedIndex(Rows(documents), snapshots, ids=400, schedule="never", recipe=EXACT) as index:
        for seed in range(2):
            turn(model, seed)
            made = index.refresh()
            np.testing.assert_allclose(made.vectors, vectors(model, documents), atol=1e-6)
        with torch.no_grad():
            model.weight += 1000
        with pytest.warns(RefreshWarning, match="process that encodes has died"), pytest.raises(RefreshError):
            index.refresh()
        assert index.generation is made
        with torch.no_grad():
            model.weight -= 1000
        again = index.refresh()
        np.testing.assert_allclose(again.vectors, vectors(model, documents), atol=1e-6)
    snapshots.close()
    run = snapshots()
    snapshots.close()
    with pytest.raises(UsageError, match="closed"):
        run(documents[:1], "query")


def test_wrapped_models_are_unwrapped() -> None:
    model = Linear()
    compiled = torch.compile(model, backend="eager")
    run = ModuleSnapshots(compiled, encode)()
    turn(model, 0)
    items = clustered(5)
    np.testing.assert_allclose(run(items, "query"), items / np.linalg.norm(items, axis=1, keepdims=True), atol=1e-6)


def test_a_real_encoder_while_it_is_trained() -> None:
    """Hashed words, texts, gradients: the background encodes with a copy while the optimizer writes the weights."""
    texts = [f"text {i} about {['cats', 'dogs', 'birds', 'fish'][i % 4]} number {i * 7 % 50}" for i in range(600)]

    class Texts:
        def take(self, rows: np.ndarray) -> list[str]:
            return [texts[i] for i in rows]

    model = HashedEncoder(dimension=16, buckets=512)
    snapshots = ModuleSnapshots(model, lambda module, items, side: module.encode(items))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    recipe = Recipe(depth=10, precision="float32")
    with RefreshedIndex(
        Texts(), snapshots, ids=600, queries=(Texts(), 600), schedule="steps:10", recipe=recipe, lag=5
    ) as index:
        copies = {}
        for step in range(1, 41):
            loss = nn.functional.embedding_bag(torch.arange(50).view(5, 10), model.table.weight).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            copies[step] = model.encode(texts)
            if index.step():
                np.testing.assert_array_equal(index.generation.vectors, copies[index.generation.step])
        assert index.generation.number == 3


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("never", Schedule()),
        ("epoch", Schedule(epoch=True)),
        ("steps:500", Schedule(steps=500)),
        ("staleness", Schedule(drift=0.05)),
        ("staleness:drift=0.1,overlap=0.7,check=20", Schedule(drift=0.1, overlap=0.7, check=20)),
    ],
)
def test_schedules_are_read(spec: str, expected: Schedule) -> None:
    assert Schedule.parse(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("step:5", "Did you mean 'steps'"),
        ("steps", "Forms: never, epoch"),
        ("steps:many", "no number"),
        ("steps:0", "1 or more"),
        ("staleness:drfit=1", "'drfit' is unknown"),
        ("staleness:drift", "without '='"),
        ("staleness:drift=2", "between 0 and 1"),
    ],
)
def test_schedules_that_cannot_be(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Schedule.parse(spec)


def test_bad_arguments(documents: np.ndarray) -> None:
    with pytest.raises(UsageError, match="lag=-1"):
        RefreshedIndex(Rows(documents), lambda: encode, ids=400, lag=-1)
    with pytest.raises(UsageError, match="niceness=20"):
        RefreshedIndex(Rows(documents), lambda: encode, ids=400, niceness=20)
    for bad, message in (({"precision": "int3"}, "float16"), ({"share": 0}, "above 0"), ({"depth": 0}, "1 or more")):
        with pytest.raises(UsageError, match=message):
            Recipe(**bad)
