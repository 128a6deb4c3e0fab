"""The trainer: against a naive loop, killed and resumed, on two ranks, with every part that it can be given."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hardneg
from hardneg.data.pairs import Pairs
from hardneg.diagnostics.measures.batch import Collapse, batch_hardness, effective_rank
from hardneg.errors import DataError, RunError, UsageError
from hardneg.false_negatives.model import LogisticModel
from hardneg.losses.variants import Variants
from hardneg.mining.specs import parse_filters
from hardneg.refresh.context import context_of
from hardneg.training import checkpoint
from hardneg.training.batches import TrainingBatches
from hardneg.training.distributed import World
from hardneg.training.held_out import hold_out
from hardneg.training.negatives import MinedNegatives
from hardneg.training.online_filters import learned_line
from hardneg.training.optim import rate_at
from hardneg.training.options import TrainOptions
from hardneg.training.self_supervised import two_views
from hardneg.training.towers import Towers
from tests.conftest import WORDS, run_here, write_jsonl
from tests.naive_loop import train_naively
from tests.processes import Started, on_two_ranks
from tests.test_encoders import minilm

HERE = World(0, 1, torch.device("cpu"))


class Supply:
    """Batches and their negatives, put together as `hardneg.train` does."""

    def __init__(self, pairs: Pairs, towers: Towers, options: TrainOptions, world: World) -> None:
        self.training = TrainingBatches(pairs, towers, options, world)
        self.negatives = MinedNegatives(pairs, towers, options, world, self.training.sampler)
        self.sampler, self.filters, self.index = self.training.sampler, self.negatives.filters, self.negatives.index
        self.batches, self.seen, self.used = self.training.batches, self.training.bank_view, self.training.used
        self.masks, self.close = self.negatives.masks, self.negatives.close


def made_pairs(count: int = 96, seed: int = 0, groups: bool = False) -> hardneg.Pairs:
    rng = np.random.default_rng(seed)
    texts = [f"{' '.join(rng.choice(WORDS, 5))} number{i}" for i in range(count)]
    asked = [f"{' '.join(text.split()[:3])} number{i}" for i, text in enumerate(texts)]
    labels = [i % 7 for i in range(count)] if groups else None
    return hardneg.Pairs.from_columns(
        asked, texts, corpus=[f"{' '.join(rng.choice(WORDS, 4))}" for _ in range(20)], groups=labels
    )


def encoder(seed: int = 0, dropout: float = 0.0) -> hardneg.HashedEncoder:
    return hardneg.HashedEncoder(dimension=16, buckets=512, seed=seed, dropout=dropout)


def quiet(message: str) -> None:
    pass


class Rows:
    """Numbers that a training tells, without those that depend on the clock."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.rows.append({"step": step, **{n: v for n, v in values.items() if "seconds" not in n}})

    def close(self) -> None:
        pass


def weights(folder: Path) -> np.ndarray:
    return hardneg.HashedEncoder.load(folder).table.weight.detach().numpy()


def test_a_naive_loop_gives_the_same_weights(tmp_path: Path) -> None:
    """In-batch negatives, warm-up, clipping: against plain torch with the whole matrix."""
    pairs = made_pairs()
    options = TrainOptions(steps=12, batch_size=16, negatives=0, learning_rate=0.01, max_grad_norm=0.5, temperature=0.1)
    hardneg.train(pairs, encoder(), tmp_path / "out", options, device="cpu")
    model = encoder()
    model.fit(pairs.queries.slice(0, len(pairs)) + pairs.documents.slice(0, len(pairs.document_ids)))

    def set_rate(optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.01 * ((step + 1) / 1 if step < 1 else (12 - step) / 11)

    train_naively(pairs, model, 12, 0.1, set_rate, clip=0.5)
    # Adam divides by the size of the gradient: where that is nearly zero, its rounding shows, in thousandths of a step.
    torch.testing.assert_close(
        torch.from_numpy(weights(tmp_path / "out" / "last")), model.table.weight.detach(), rtol=1e-4, atol=5e-5
    )


@pytest.mark.parametrize(
    "more",
    [
        {"mini_batch_size": 5},
        {"mini_batch_size": 5, "bank": 64, "bank_start": 2, "bank_fresh": 0.3, "learn_temperature": True},
    ],
)
def test_chunks_change_nothing(tmp_path: Path, more: dict[str, Any]) -> None:
    shared = {
        "steps": 8,
        "batch_size": 16,
        "negatives": 3,
        "learning_rate": 0.01,
        **{n: v for n, v in more.items() if n != "mini_batch_size"},
    }
    for name, extra in (("whole", {}), ("chunks", {"mini_batch_size": more["mini_batch_size"]})):
        hardneg.train(made_pairs(), encoder(), tmp_path / name, TrainOptions(**shared, **extra), device="cpu")
    torch.testing.assert_close(
        *(torch.from_numpy(weights(tmp_path / name / "last")) for name in ("whole", "chunks")), rtol=1e-4, atol=1e-5
    )


def test_accumulated_batches_are_one_update(tmp_path: Path) -> None:
    """Two batches an update: the mean of their losses."""
    told = Rows()
    options = TrainOptions(
        steps=3,
        batch_size=16,
        accumulate=2,
        negatives=0,
        lr_scheduler="constant",
        warmup=0,
        max_grad_norm=None,
        log_every=1,
    )
    hardneg.train(made_pairs(), encoder(), tmp_path / "out", options, device="cpu", callbacks=[told])
    assert [row["step"] for row in told.rows] == [1, 2, 3]
    pairs, model = made_pairs(), encoder()
    model.fit(pairs.queries.slice(0, len(pairs)) + pairs.documents.slice(0, len(pairs.document_ids)))
    batches = list(hardneg.MemoryBankSampler(pairs, batch_size=16, negatives=0, drop_last=True))[:2]
    losses = []
    for batch in batches:
        queries = model.vectors(pairs.queries.take(np.array([e.query for e in batch])))
        documents = model.vectors(pairs.documents.take(np.array([e.positive for e in batch])))
        losses.append(nn.functional.cross_entropy(queries @ documents.T / 0.05, torch.arange(16)))
    assert told.rows[0]["loss"] == pytest.approx(float(sum(loss.detach() for loss in losses)) / 2, rel=1e-4)


@pytest.mark.parametrize(("accumulate", "epochs", "updates"), [(4, 3, 5), (8, 4, 3), (2, 1, 3), (1, 2, 12)])
def test_epochs_are_counted_in_batches(tmp_path: Path, accumulate: int, epochs: int, updates: int) -> None:
    """6 batches an epoch: what an epoch leaves of an update is neither lost nor rounded up to a whole one."""
    options = TrainOptions(epochs=epochs, batch_size=16, accumulate=accumulate, negatives=0)
    found = hardneg.train(made_pairs(), encoder(), tmp_path / "out", options, device="cpu", warn=quiet)
    assert found["steps"] == updates


EVERYTHING = {
    "steps": 30, "batch_size": 16, "negatives": 3, "refresh": "steps:7", "lag": 4, "share": 0.5, "bank": 100, "bank_age": 6,
    "bank_start": 2,
    "momentum": 0.9, "learn_temperature": True, "save_every": 5, "log_every": 1, "evaluate_every": 6, "depth": 12,
    "filters": ("group", "margin:relative=0.01", "shared-neighbors:max=0.6"), "learning_rate": 0.01,
    "negative_sampling": "softmax", "seed": 3, "batches": "hard:group=4",
}  # fmt: skip

SCRIPT = """
import sys, time, hardneg
from tests.test_trainer import EVERYTHING, encoder, made_pairs
class Slow:
    def log(self, step, values):
        print(step, flush=True)
        time.sleep(float(sys.argv[3]))
    def close(self): pass
pairs = made_pairs(groups=True)
options = hardneg.TrainOptions(**EVERYTHING, workers=int(sys.argv[4]))
hardneg.train(pairs, encoder(dropout=0.2), sys.argv[1], options, evaluation=pairs, device="cpu", callbacks=[Slow()],
              resume=sys.argv[2] == "resume", warn=lambda message: None)
"""


def _run(out: Path, how: str, pause: float = 0.0, workers: int = 0) -> subprocess.Popen[str]:
    args = [sys.executable, "-c", SCRIPT, str(out), how, str(pause), str(workers)]
    return subprocess.Popen(
        args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )


def _log(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{n: v for n, v in row.items() if "seconds" not in n} for row in rows]


@pytest.mark.faults  # tests/test_checkpoints.py kills between files, in the suite
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_it_is_the_same_bit_for_bit(tmp_path: Path, workers: int) -> None:
    """Killed with everything switched on: dropout, momentum and a partial refresh, among others."""
    whole = _run(tmp_path / "whole", "new", workers=workers)
    _, error = whole.communicate(timeout=120)
    assert whole.returncode == 0, error[-3000:]
    how = "new"
    for last in (4, 13, 22) if workers else (13,):  # before the first checkpoint, then in between
        process = _run(tmp_path / "killed", how, 0.02, workers)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= last:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        how = "resume"
    done = _run(tmp_path / "killed", "resume", workers=workers)
    _, error = done.communicate(timeout=120)
    assert done.returncode == 0, error[-3000:]
    assert _log(tmp_path / "killed") == _log(tmp_path / "whole")
    for name in ("best", "last"):
        assert (weights(tmp_path / "killed" / name) == weights(tmp_path / "whole" / name)).all()
    results = [json.loads((tmp_path / name / "train.json").read_text()) for name in ("whole", "killed")]
    for result in results:
        result.pop("seconds")
        for entry in result["generations"]:
            entry.pop("seconds")
    assert results[0] == results[1]
    assert len(results[0]["generations"]) >= 3


def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    pairs, out = made_pairs(), tmp_path / "out"
    options = TrainOptions(steps=4, batch_size=16, negatives=0)
    with pytest.raises(RunError, match=r"there is no training in .*out: leave out resume=True \(--resume\)"):
        hardneg.train(pairs, encoder(), out, options, resume=True, device="cpu")
    hardneg.train(pairs, encoder(), out, options, device="cpu")
    with pytest.raises(RunError, match="is finished"):
        hardneg.train(pairs, encoder(), out, options, resume=True, device="cpu")
    with pytest.raises(RunError, match="--resume. goes on with it"):
        hardneg.train(pairs, encoder(), out, options, device="cpu")
    head = json.loads((out / "train.json").read_text())
    (out / "train.json").write_text(json.dumps({**head, "finished": False}))
    with pytest.raises(RunError, match="other batch_size"):
        hardneg.train(
            pairs, encoder(), out, TrainOptions(steps=4, batch_size=8, negatives=0), resume=True, device="cpu"
        )
    with pytest.raises(RunError, match=r"other data \(queries\)"):
        hardneg.train(made_pairs(seed=1), encoder(), out, options, resume=True, device="cpu")
    tensors = next((out / "checkpoints").glob("*/state.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-4])
    with pytest.raises(RunError, match=r"state\.safetensors is missing or damaged"):
        hardneg.train(pairs, encoder(), out, options, resume=True, device="cpu")
    (out / "train.json").unlink()
    with pytest.raises(RunError, match=r"train\.json does not exist.*replace it with overwrite=True"):
        hardneg.train(pairs, encoder(), out, options, resume=True, device="cpu")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="which holds other files"):
        hardneg.train(pairs, encoder(), other, options, resume=True, device="cpu")
    with pytest.raises(RunError, match="no training"):
        hardneg.train(pairs, encoder(), other, options, overwrite=True, device="cpu")
    assert (other / "thesis.tex").exists()


TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
    | st.integers(0, 4).map(lambda n: torch.arange(n, dtype=torch.float64)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


@given(TREES)
@settings(max_examples=60, deadline=None)
def test_pack_and_unpack(tree: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(checkpoint.pack(tree, tensors)))
    assert _same(tree, checkpoint.unpack(packed, tensors))


def test_random_numbers_go_on() -> None:
    import random

    state = checkpoint.random_state(torch.device("cpu"))
    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(checkpoint.pack(state, tensors)))
    expected = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    checkpoint.restore_random(checkpoint.unpack(packed, tensors), torch.device("cpu"))
    again = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    assert torch.equal(expected[0], again[0])
    assert (expected[1] == again[1]).all()
    assert expected[2] == again[2]


@pytest.mark.parametrize("keys", [torch.full((624,), torch.nan), torch.full((624,), -1), torch.full((624,), 2**32)])
def test_numbers_that_are_no_state_of_a_generator_are_refused(keys: torch.Tensor) -> None:
    state = checkpoint.random_state(torch.device("cpu"))
    state["numpy"][1] = keys
    with pytest.raises(ValueError, match="whole numbers of 32 bits"):
        checkpoint.restore_random(state, torch.device("cpu"))


def test_a_document_is_encoded_once_a_batch() -> None:
    pairs = made_pairs()
    supply = Supply(pairs, Towers(encoder()), TrainOptions(batch_size=16, negatives=6, depth=10), HERE)
    try:
        batch = next(iter(supply.batches()))
    finally:
        supply.close()
    rows = batch.document_rows.tolist()
    assert len(set(rows)) == len(rows) == len(batch.documents)
    assert len(rows) < 16 * 7  # some are negatives of several
    assert batch.documents == pairs.documents.take(np.array(rows))
    assert batch.queries == pairs.queries.take(batch.query_rows.numpy())
    known = pairs.known_positives()
    for i, query in enumerate(batch.query_rows.tolist()):
        mine = set(known.take(np.array([query])).values.tolist())
        assert rows[i] in mine
        assert not mine & {rows[j] for j in batch.mined[i].tolist()}


def labelled_pairs(count: int = 60) -> hardneg.Pairs:
    """Queries whose positives are labels, of which one is in nine of ten pairs: it stands in batches several times."""
    labels = ["most of all" if i % 10 else f"label {i % 3}" for i in range(count)]
    return hardneg.Pairs.from_columns(
        [f"query {i} about {WORDS[i % 7]}" for i in range(count)], labels, corpus=[f"other {i}" for i in range(20)]
    )


def test_a_positive_that_stands_in_a_batch_several_times_keeps_its_places() -> None:
    pairs = labelled_pairs()
    supply = Supply(pairs, Towers(encoder()), TrainOptions(batch_size=8, negatives=3, depth=10), HERE)
    repeated = 0
    try:
        for batch in supply.batches():
            rows = batch.document_rows.tolist()
            repeated += len(rows) - len(set(rows))
            assert batch.documents == pairs.documents.take(np.array(rows))
            known = pairs.known_positives()
            for i, query in enumerate(batch.query_rows.tolist()):
                mine = known.take(np.array([query])).values.tolist()
                assert rows[i] in mine
                assert not set(mine) & {rows[j] for j in batch.mined[i].tolist()}
            assert len(set(rows[8:])) == len(rows[8:])
    finally:
        supply.close()
    assert repeated > 0


@pytest.mark.parametrize("more", [{"bank": 64, "bank_start": 0}, {"negatives": 0}, {"batches": "hard:group=4"}])
def test_few_positives_for_many_queries_are_trained_on(tmp_path: Path, more: dict[str, Any]) -> None:
    given_: dict[str, Any] = {"steps": 6, "batch_size": 8, "negatives": 2, **more}
    options = TrainOptions(**given_)
    found = hardneg.train(labelled_pairs(), encoder(), tmp_path / "out", options, device="cpu", warn=quiet)
    assert found["steps"] == 6


@pytest.mark.parametrize(
    ("specs", "off"),
    [
        (("group",), 0.0),
        (("margin:relative=0.3",), 0.0),
        (("margin:absolute=0.2", "group"), 0.0),
        (("shared-neighbors:max=0.8",), 0.05),
    ],
)
def test_filters_in_the_loss_are_those_of_the_candidates(specs: tuple[str, ...], off: float) -> None:
    """The share that is masked in a batch, against the offline verdicts on the same pairs; `off`: noise of a sketch."""
    from hardneg.losses.infonce import InfoNCE
    from hardneg.mining.candidates import Candidates

    pairs = made_pairs(groups=True)
    options = TrainOptions(batch_size=12, negatives=4, depth=20, filters=specs)
    towers = Towers(encoder())
    supply = Supply(pairs, towers, options, HERE)
    batch = next(iter(supply.batches()))
    assert supply.index is not None
    context = context_of(supply.index.generation, pairs, pairs.known_positives())
    q = torch.from_numpy(towers.encode(batch.queries, "query"))
    d = torch.from_numpy(towers.encode(batch.documents, "document"))
    scores = (q @ d.T).numpy()
    rows = batch.document_rows.numpy().astype(np.int32)
    candidates = Candidates(
        batch.query_rows.numpy(), np.tile(rows, (12, 1)), scores, np.diag(scores), np.empty((12, 0), np.float32)
    )
    bounds = []
    for limit in (0.9, 0.8, 0.7):
        chain = parse_filters([spec.replace("max=0.8", f"max={limit}") for spec in specs])
        kept = chain.verdicts(candidates, context) == 0
        kept[np.arange(12), np.arange(12)] = True
        bounds.append((~kept).sum() / (kept.size - 12))
    loss = InfoNCE(0.1, variants=supply.filters.variants(Variants()))
    loss(q, d[:12], shared=d[12:], **supply.masks(batch, None))
    masked = float(loss.statistics["masked"])
    supply.close()
    assert 0.05 < bounds[1] < 0.95  # they do reject, and not all
    assert bounds[0] - 1e-6 <= masked <= bounds[2] + 1e-6


def test_guide_and_posterior_work_in_the_loss(tmp_path: Path) -> None:
    pairs = made_pairs()
    guide = encoder(5)
    guide.fit(pairs.documents.slice(0, 50))
    guide.save(tmp_path / "model")
    run = hardneg.mine(pairs, tmp_path / "run", hardneg.MineOptions(depth=40))
    shared = LogisticModel(("shared_query", "shared_positive"), (4.0, 4.0), -3.0)
    # Without what the report expects, nothing holds it back.
    replace(hardneg.calibrate(run), in_loss=shared, report={}).save(tmp_path / "posterior.json")
    specs = (f"guide:hashed:{tmp_path / 'model'},margin=0.05", f"posterior:{tmp_path / 'posterior.json'},threshold=0.5")
    told: dict[str, list[float]] = {}
    for name, filters in (("none", ()), ("guide", specs[:1]), ("posterior", specs[1:])):
        rows = Rows()
        options = TrainOptions(steps=4, batch_size=16, negatives=2, filters=filters, bank=64, bank_start=1, log_every=1)
        hardneg.train(pairs, encoder(), tmp_path / name, options, device="cpu", callbacks=[rows], warn=quiet)
        told[name] = [row["masked"] for row in rows.rows]
    assert np.mean(told["guide"]) > np.mean(told["none"])
    assert np.mean(told["posterior"]) > 1.5 * np.mean(told["none"])


def test_a_fresh_bank_is_what_the_encoder_gives_now() -> None:
    pairs, towers = made_pairs(), Towers(encoder())
    options = TrainOptions(batch_size=16, negatives=0, bank=64, bank_start=1, bank_fresh=1.0)
    supply = Supply(pairs, towers, options, HERE)
    batches = iter(supply.batches())
    assert supply.seen() is None
    supply.used(next(batches), torch.randn(16, 16), torch.randn(16, 16))  # vectors of another encoder
    seen = supply.seen()
    assert seen is not None
    expected = towers.encode(pairs.documents.take(seen.ids.numpy()), "document")
    torch.testing.assert_close(seen.vectors, torch.from_numpy(expected))
    supply.close()


def test_filters_that_see_candidates_only_are_named(tmp_path: Path) -> None:
    said: list[str] = []
    options = TrainOptions(steps=2, batch_size=16, filters=("rank:min=2", "margin:absolute=0.1"))
    hardneg.train(made_pairs(), encoder(), tmp_path / "out", options, device="cpu", warn=said.append)
    assert said == ["the filter 'rank' works on mined candidates only, not on batch and bank"]


def test_options_of_mining_have_no_effect_with_a_run_and_that_is_said(tmp_path: Path) -> None:
    pairs = made_pairs()
    run = hardneg.mine(pairs, tmp_path / "run", encoder=encoder(), depth=12, negatives=2)
    cases: tuple[tuple[dict[str, Any], str | None], ...] = (
        ({}, None),
        ({"refresh": "never"}, None),
        ({"refresh": "steps:2", "depth": 5}, "refresh=steps:2, depth=5: without effect"),
    )
    for more, expected in cases:
        said: list[str] = []
        options = TrainOptions(steps=1, batch_size=16, negatives=2, **more)
        hardneg.train(
            pairs, encoder(), tmp_path / "out", options, run=run, overwrite=True, device="cpu", warn=said.append
        )
        found = [each for each in said if "without effect" in each]
        assert [each.startswith(str(expected)) for each in found] == ([True] if expected else [])


def test_negatives_of_a_run(tmp_path: Path) -> None:
    pairs = made_pairs()
    run = hardneg.mine(pairs, tmp_path / "run", hardneg.MineOptions(depth=20))
    result = hardneg.train(
        pairs, encoder(), tmp_path / "out", TrainOptions(steps=5, batch_size=16), run=run, device="cpu"
    )
    assert result["generations"] == []
    with pytest.raises(UsageError, match="another dataset"):
        hardneg.train(
            made_pairs(seed=1), encoder(), tmp_path / "b", TrainOptions(steps=5, batch_size=16), run=run, device="cpu"
        )


class Pictures(nn.Module):
    """An encoder of rows of numbers: another modality than texts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(8, 16)
        self.dimension = 16

    def vectors(self, items: list[np.ndarray], *, prompt: str = "") -> torch.Tensor:
        return self.layer(torch.from_numpy(np.stack(items)))

    @torch.no_grad()
    def encode(self, items: list[np.ndarray], *, prompt: str = "") -> np.ndarray:
        return self.vectors(items).numpy()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "layer.npy", self.layer.weight.detach().numpy(), allow_pickle=False)


def test_two_towers_of_two_modalities(tmp_path: Path) -> None:
    """Queries are texts, documents rows of numbers that depend on them: the towers learn to meet."""
    pairs = made_pairs(64)
    words = {word: i for i, word in enumerate(sorted({w for t in pairs.documents.slice(0, 84) for w in t.split()}))}
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((len(words), 8)).astype(np.float32)

    class Items:
        def take(self, rows: np.ndarray) -> list[np.ndarray]:
            return [sum(directions[words[w]] for w in text.split()) for text in pairs.documents.take(rows)]  # type: ignore[misc]

    towers = Towers(encoder(), Pictures())
    assert not towers.shared
    held = hardneg.EvaluationSet(pairs, documents=Items())
    before = held.evaluate(towers, ["mrr@10"])
    options = TrainOptions(
        epochs=12, batch_size=16, negatives=2, learning_rate=0.05, measures=("mrr@10",), evaluate_every=48
    )
    result = hardneg.train(pairs, towers, tmp_path / "out", options, evaluation=held, documents=Items(), device="cpu")
    assert result["best"]["mrr@10"] > before["mrr@10"] + 0.3
    assert (tmp_path / "out" / "best" / "document" / "layer.npy").exists()
    hardneg.HashedEncoder.load(tmp_path / "out" / "best" / "query")


def static_model(texts: list[str]) -> Any:
    """A SentenceTransformer that looks words up in a table."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["[UNK]", *sorted({word for text in texts for word in text.split()})])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=12)], device="cpu")


def test_a_loaded_sentence_transformer_is_trained(tmp_path: Path) -> None:
    pairs = made_pairs()
    model = static_model(pairs.documents.slice(0, len(pairs.document_ids)))
    before = model[0].embedding.weight.detach().clone()
    options = TrainOptions(steps=3, batch_size=16, negatives=2, bank=32, bank_start=0, momentum=0.9)
    hardneg.train(pairs, model, tmp_path / "out", options, device="cpu", warn=quiet)
    after = model[0].embedding.weight.detach()
    assert not torch.equal(before, after)
    saved: Any = hardneg.make_encoder(f"st:{tmp_path / 'out' / 'last'}")
    assert torch.equal(saved.model[0].embedding.weight.detach(), after)
    two = Towers(model, model)
    assert two.shared
    with pytest.raises(UsageError, match="'hashed' is a spec, not an encoder"):
        Towers("hashed")


def test_towers_refuse_what_cannot_be_trained() -> None:
    with pytest.raises(UsageError, match="lacks dimension, vectors, encode, save"):
        Towers(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="16 and 8 components"):
        Towers(encoder(), hardneg.HashedEncoder(dimension=8, buckets=64))


DISTRIBUTED = {
    "steps": 20, "negatives": 3, "refresh": "steps:7", "lag": 3, "bank": 4000, "bank_age": 4, "bank_start": 1,
    "learn_temperature": True, "depth": 12, "learning_rate": 0.01, "save_every": 5, "evaluate_every": 10,
    "batches": "hard:group=4",
}  # fmt: skip


def train_on(rank: int, folder: Path, chunk: int | None, filters: tuple[str, ...]) -> None:
    options = TrainOptions(**{**DISTRIBUTED, "batch_size": 8, "mini_batch_size": chunk, "filters": filters})  # type: ignore[arg-type]
    pairs = made_pairs(groups=True)
    hardneg.train(pairs, encoder(), folder / "two", options, evaluation=pairs, device="cpu", warn=quiet)


@pytest.mark.parametrize(
    ("chunk", "sketched"),
    [
        pytest.param(None, "shared-neighbors:max=0.6", marks=pytest.mark.slow),
        (5, "posterior:learned,threshold=0.4"),
    ],
)
def test_two_ranks_train_as_one(tmp_path: Path, chunk: int | None, sketched: str) -> None:
    """Batches of 8 on two ranks are batches of 16 on one: negatives, bank and masks are those of both."""
    filters = ("group", sketched)
    on_two_ranks(partial(train_on, chunk=chunk, filters=filters), tmp_path)
    pairs = made_pairs(groups=True)
    options = TrainOptions(**{**DISTRIBUTED, "batch_size": 16, "filters": filters})  # type: ignore[arg-type]
    result = hardneg.train(pairs, encoder(), tmp_path / "one", options, evaluation=pairs, device="cpu", warn=quiet)
    two = json.loads((tmp_path / "two" / "train.json").read_text())
    assert two["ranks"] == 2
    assert two["temperature"] == pytest.approx(result["temperature"], rel=1e-3)
    assert two["best"]["ndcg@10"] == pytest.approx(result["best"]["ndcg@10"], abs=0.02)
    # A candidate whose score is a tie may be drawn on one side only, so a few rows differ a little.
    difference = np.abs(weights(tmp_path / "two" / "last") - weights(tmp_path / "one" / "last"))
    assert np.median(difference) < 1e-3
    found = checkpoint.latest(tmp_path / "two" / "checkpoints")
    assert found is not None
    assert (found / "rank-1.safetensors").exists()


def test_bfloat16_and_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pairs = made_pairs()
    options = TrainOptions(steps=6, batch_size=16, amp="bf16", log_every=2)
    hardneg.train(
        pairs, encoder(), tmp_path / "out", options, evaluation=pairs, device="cpu", report_to=["tensorboard"]
    )
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {
        "train/loss",
        "train/temperature",
        "train/masked",
        "train/negative",
        "evaluation/ndcg@10",
    } <= set(scalars)
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]


def test_a_loss_that_is_no_number_stops(tmp_path: Path) -> None:
    class Broken(hardneg.HashedEncoder):
        def vectors(self, texts: Any, *, prompt: str = "") -> torch.Tensor:
            return super().vectors(texts, prompt=prompt) * (float("nan") if self.training else 1.0)

    with pytest.raises(DataError, match=r"step 1: the loss is NaN or infinite\. Lower the learning rate"):
        hardneg.train(
            made_pairs(), Broken(dimension=16, buckets=512), tmp_path / "out",
            TrainOptions(steps=3, batch_size=16, negatives=0, log_every=1), device="cpu",
        )  # fmt: skip


def test_a_batch_that_cannot_be_filled_is_said(tmp_path: Path) -> None:
    pairs = hardneg.Pairs.from_columns([f"question {i}" for i in range(20)], [f"answer {i % 3}" for i in range(20)])
    with pytest.raises(UsageError, match="take a smaller batch_size"):
        hardneg.train(
            pairs, encoder(), tmp_path / "out", TrainOptions(steps=3, batch_size=16, negatives=0), device="cpu"
        )


@given(st.integers(2, 30), st.integers(2, 12), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_effective_rank_and_hardness(n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, d))
    values = np.linalg.svd(vectors, compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(np.maximum(shares, 1e-300))).sum())
    assert effective_rank(torch.from_numpy(vectors)) == pytest.approx(expected, rel=1e-3)
    assert effective_rank(torch.ones(n, d)) == pytest.approx(1, abs=1e-2)
    queries, mined = rng.standard_normal((n, d)), rng.integers(0, n, (n, 3))
    found = batch_hardness(torch.from_numpy(queries), torch.from_numpy(vectors), torch.from_numpy(mined))
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ).T
    near = np.take_along_axis(cosine, mined, 1)
    assert found["negative"] == pytest.approx(near.mean(), abs=1e-5)
    assert found["margin"] == pytest.approx((np.diag(cosine) - near.max(1)).mean(), abs=1e-5)


def test_collapse_is_said_once() -> None:
    look = Collapse()
    assert look.look(100.0) is None
    assert look.look(30.0) is None
    said = look.look(20.0)
    assert said is not None
    assert "from 100.0 to 20.0" in said
    assert look.look(10.0) is None


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_learning_rates(kind: str) -> None:
    rates = [rate_at(step, 100, 0.1, kind) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx({"constant": 1, "linear": 0.5, "cosine": 0.5}[kind])
    assert rates[99] <= (1 if kind == "constant" else 0.02)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"epochs": 0.0}, "epochs=0.0 must be above 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0"),
        ({"warmup": 2.0}, "warmup=2.0 must be 0 or more and at most 1"),
        ({"momentum": 0.9}, "momentum is of the bank"),
        ({"bank": 9, "momentum": 0.9, "bank_fresh": 0.1}, "bank_fresh=0.1 must be"),
        ({"amp": "fp8"}, "amp='fp8'"),
        ({"lr_scheduler": "cosin"}, "Did you mean 'cosine'"),
        ({"refresh": "hourly"}, "unknown schedule"),
        ({"filters": ("margni",)}, "Did you mean 'margin'"),
        ({"measures": ("err@10",)}, "unknown measure"),
        ({"variants": Variants(hard_weight=2.0)}, "hard_weight has no meaning"),
    ],
)
def test_options_are_checked(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainOptions(**given_)


def test_options_survive_json() -> None:
    options = TrainOptions(filters=("group",), variants=Variants(symmetric=True), dimensions=(8, 16))
    assert TrainOptions.from_json(json.loads(json.dumps(options.to_json()))) == options
    assert options.changed(TrainOptions(log_every=3)) == ["filters", "variants", "dimensions"]


def test_two_views_learn_without_labels(tmp_path: Path) -> None:
    """Every document its own query: views of one come nearer to each other than to others."""
    pairs = two_views(made_pairs())
    assert len(pairs) == len(pairs.document_ids)
    assert pairs.queries.slice(0, 5) == pairs.documents.slice(0, 5)
    model = encoder(dropout=0.7)
    model.fitted = True  # it starts at random
    told = Rows()
    options = TrainOptions(steps=60, batch_size=16, negatives=2, learning_rate=0.05, log_every=1)
    hardneg.train(pairs, model, tmp_path / "out", options, device="cpu", callbacks=[told])
    losses = [row["loss"] for row in told.rows]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert hardneg.HashedEncoder.load(tmp_path / "out" / "last").dropout == 0.7


def test_dropout_leaves_out_features_and_never_all() -> None:
    model = encoder(dropout=0.5)
    texts = ["red green blue cat dog", "x", ""]
    assert (model.encode(texts) == model.encode(texts)).all()
    assert model.training
    torch.manual_seed(0)
    views = [model.vectors(texts).detach() for _ in range(3)]
    assert not torch.equal(views[0][0], views[1][0])
    for view in views:
        torch.testing.assert_close(view.norm(dim=1), torch.ones(3))
    model.eval()
    assert torch.equal(model.vectors(texts), model.vectors(texts))


@pytest.mark.slow
def test_sentence_transformers_are_trained(tmp_path: Path) -> None:
    """A real MiniLM, fine-tuned for a few steps: the loss falls, and sentence-transformers loads what was saved."""
    pairs = made_pairs(48)
    model = hardneg.make_encoder(f"st:{minilm()}", device="cpu")
    told = Rows()
    options = TrainOptions(
        steps=12, batch_size=8, negatives=1, learning_rate=1e-4, lr_scheduler="constant", log_every=1,
        mini_batch_size=8, depth=5, max_grad_norm=1.0,
        query_prompt="find: ",
    )  # fmt: skip
    hardneg.train(pairs, model, tmp_path / "out", options, device="cpu", callbacks=[told], evaluation=pairs)
    losses = [row["loss"] for row in told.rows if "loss" in row]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    loaded = hardneg.make_encoder(f"st:{tmp_path / 'out' / 'last'}", device="cpu")
    texts = ["red cat", "blue dog"]
    np.testing.assert_allclose(loaded.encode(texts), model.encode(texts), atol=1e-5)


def test_command_line(tmp_path: Path, beir: Path) -> None:
    out = tmp_path / "out"
    args = [
        "train",
        beir,
        "--out",
        out,
        "--steps",
        "6",
        "--batch-size",
        "4",
        "--depth",
        "8",
        "--negatives",
        "2",
        "--device",
        "cpu",
        "--eval-split",
        "test",
    ]
    done = run_here(*args, "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["steps"] == 6
    assert value["finished"]
    assert value["best"]["ndcg@10"] > 0
    assert "next: hardneg mine" not in done.stdout
    again = run_here(*args)
    assert again.returncode == 1
    assert "--resume goes on with it" in again.stderr
    table = run_here(*args, "--overwrite")
    assert table.returncode == 0, table.stderr
    assert f"--encoder hashed:{out}/best" in table.stdout.replace("\n", "")
    mined = run_here("mine", beir, "--out", tmp_path / "run", "--encoder", f"hashed:{out}/best")
    assert mined.returncode == 0, mined.stderr
    views = run_here(
        "train", beir, "--out", tmp_path / "views", "--views", "--steps", "3", "--batch-size", "4", "--device", "cpu"
    )
    assert views.returncode == 0, views.stderr
    wrong = run_here("train", beir, "--out", tmp_path / "w", "--device", "cuda:0")
    if not torch.cuda.is_available():
        assert wrong.returncode == 2
        assert "Use --device cpu" in wrong.stderr
    assert run_here("train", beir, "--out", out, "--resume", "--overwrite").returncode == 2


def test_whether_the_folder_will_do_is_said_before_anything_is_read(tmp_path: Path) -> None:
    """The source does not even exist."""
    nothing, other = tmp_path / "none", tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    for out, more, message in (
        (nothing, ["--resume"], f"there is no training in {nothing}: leave out --resume"),
        (other, ["--resume"], "leave out --resume, and choose another folder"),
        (other, [], "holds files, but no training: choose another folder"),
    ):
        done = run_here("train", tmp_path / "nowhere.jsonl", "--out", out, *more)
        assert (done.returncode, message in done.stderr) == (1, True), done.stderr
    assert not nothing.exists()


def test_interrupted_from_the_command_line(tmp_path: Path, beir: Path) -> None:
    code = "from hardneg_cli.main import main; main()"
    args = [
        "train",
        str(beir),
        "--out",
        str(tmp_path / "out"),
        "--steps",
        "100000",
        "--batch-size",
        "4",
        "--save-every",
        "5",
    ]
    with Started(code, *args, "--device", "cpu") as process:
        until = time.monotonic() + 60
        while checkpoint.latest(tmp_path / "out" / "checkpoints") is None and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 130
        assert "--resume" in process.said("err")


@pytest.mark.slow
def test_torchrun(tmp_path: Path, beir: Path) -> None:
    """Two processes, as people start them."""
    args = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hardneg_cli", "train",
        str(beir), "--out", str(tmp_path / "out"), "--steps", "4", "--batch-size", "2", "--depth", "8", "--device", "cpu", "--json",
    ]  # fmt: skip
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "train.json").read_text())["ranks"] == 2
    assert done.stdout.count('"finished": true') == 1


def by_topic(topics: int = 25, each: int = 16) -> hardneg.Pairs:
    """All documents of a query's topic are relevant, one of them is known."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(topics), each)
    words = [[f"topic{t}word{i}" for i in range(8)] for t in range(topics)]
    asked, texts = ([" ".join(rng.choice(words[t], count, replace=False)) for t in rows] for count in (3, 5))
    return hardneg.Pairs.from_columns(asked, texts, groups=rows.tolist())


def topical(pairs: hardneg.Pairs) -> Towers:
    """An encoder that finds documents of a query's topic."""
    model = hardneg.HashedEncoder(dimension=48, buckets=2048)
    model.fit(pairs.queries.slice(0, len(pairs)) + pairs.documents.slice(0, len(pairs.document_ids)))
    return Towers(model)


def test_a_posterior_learned_at_the_start_is_that_of_calibrate(tmp_path: Path) -> None:
    """Against `hardneg.calibrate` on a run with the same vectors; and what it rejects, against its file as a filter."""
    pairs = by_topic()
    towers = topical(pairs)
    texts = pairs.queries.slice(0, len(pairs)), pairs.documents.slice(0, len(pairs.document_ids))
    for name, items, side in zip(("q", "d"), texts, ("query", "document"), strict=True):
        vectors = towers.encode(items, side)
        np.save(tmp_path / f"{name}.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    given = {"query_embeddings": str(tmp_path / "q.npy"), "corpus_embeddings": str(tmp_path / "d.npy")}
    mine = hardneg.MineOptions(depth=20, max_depth=20, precision="float32", **given)
    expected = hardneg.calibrate(hardneg.mine(pairs, tmp_path / "run", mine))
    options = TrainOptions(batch_size=16, depth=20, filters=("posterior:learned,threshold=0.2",))
    supply = Supply(pairs, towers, options, HERE)
    found = supply.filters.posterior
    assert found is not None
    assert (found.needed, found.source, found.threshold) == (expected.needed, expected.source, 0.2)
    assert found.in_loss is not None
    assert expected.in_loss is not None
    assert found.in_loss.weights == pytest.approx(expected.in_loss.weights, rel=0.1)
    assert found.report["known_positives"] == pytest.approx(expected.report["known_positives"], rel=0.02)
    expected.save(tmp_path / "posterior.json")
    spec = f"posterior:{tmp_path / 'posterior.json'},threshold=0.2"
    other = Supply(pairs, towers, TrainOptions(batch_size=16, depth=20, filters=(spec,)), HERE)
    mined, wanted = supply.sampler._mined[-1][1], other.sampler._mined[-1][1]
    assert mined is not None
    assert wanted is not None
    assert (mined.documents == wanted.documents).mean() > 0.99
    assert (mined.kept == wanted.kept).mean() > 0.98
    plain = Supply(pairs, towers, TrainOptions(batch_size=16, depth=20), HERE)
    everything = plain.sampler._mined[-1][1]
    assert everything is not None
    assert 0 < mined.kept.sum() < everything.kept.sum()
    groups = pairs.document_groups
    assert groups is not None
    false = groups[mined.documents] == np.asarray(pairs.query_groups)[:, None]
    assert false[mined.kept].mean() < 0.5 * false[everything.kept].mean()
    for each in (supply, other, plain):
        each.close()
    line = learned_line(found, 0.2)
    assert line.startswith("posterior:learned, threshold 0.2: ")
    assert (
        f"from {found.report['known_positives']:,} known positives among {found.report['candidates']:,} candidates"
        in line
    )
    assert f"{found.report['relevant_share']:.1%} more are relevant" in line
    largest = sorted(zip(found.features, found.weights, strict=True), key=lambda term: -abs(term[1]))
    assert line.endswith(
        "".join(f" {weight:+.2f} {name}" for name, weight in largest[:3])
        + f", and {len(largest) - 3} more terms (posterior.json)"
    )


def test_a_training_says_what_posterior_it_learned(tmp_path: Path) -> None:
    said: list[str] = []
    options = TrainOptions(steps=1, batch_size=16, filters=("posterior:learned,threshold=0.3",), depth=20)
    hardneg.train(made_pairs(400), encoder(), tmp_path / "out", options, device="cpu", warn=said.append)
    assert len([each for each in said if each.startswith("posterior:learned, threshold 0.3: ")]) == 1


def test_a_posterior_is_learned_once_and_survives_an_interruption(tmp_path: Path) -> None:
    pairs = made_pairs(400)
    options = TrainOptions(
        steps=24, batch_size=16, filters=("posterior:learned",), refresh="steps:5", lag=2, depth=20, save_every=6
    )

    class Stop(Rows):
        def log(self, step: int, values: dict[str, float]) -> None:
            super().log(step, values)
            if step >= 15 and "evaluation/seconds" not in values:
                raise KeyboardInterrupt

    hardneg.train(pairs, encoder(), tmp_path / "whole", options, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        hardneg.train(pairs, encoder(), tmp_path / "cut", options, device="cpu", callbacks=[Stop()])
    first = (tmp_path / "cut" / "posterior.json").read_bytes()
    hardneg.train(pairs, encoder(), tmp_path / "cut", options, device="cpu", resume=True)
    assert (
        first
        == (tmp_path / "cut" / "posterior.json").read_bytes()
        == (tmp_path / "whole" / "posterior.json").read_bytes()
    )
    assert (weights(tmp_path / "cut" / "last") == weights(tmp_path / "whole" / "last")).all()
    # Another training can go on with it.
    again = TrainOptions(steps=2, batch_size=16, filters=(f"posterior:{tmp_path / 'cut' / 'posterior.json'}",))
    hardneg.train(pairs, encoder(), tmp_path / "again", again, device="cpu")


def test_a_posterior_that_cannot_be_learned_rejects_nothing(tmp_path: Path) -> None:
    """Six pairs are too few to learn from: that is said, and the training is one without the filter."""
    pairs, said = made_pairs(12), []
    for name, filters in (("with", ("posterior:learned",)), ("without", ())):
        options = TrainOptions(steps=6, batch_size=4, bank=16, bank_start=1, filters=filters, depth=8)
        hardneg.train(pairs, encoder(), tmp_path / name, options, device="cpu", warn=said.append)
    assert len(said) == 1
    assert "posterior:learned rejects nothing: only" in said[0]
    assert not (tmp_path / "with" / "posterior.json").exists()
    torch.testing.assert_close(*(torch.from_numpy(weights(tmp_path / n / "last")) for n in ("with", "without")))


def test_what_stands_in_no_crowd_of_the_query_is_never_suspected() -> None:
    """Whatever was learned of near candidates."""
    pairs = by_topic()
    options = TrainOptions(batch_size=16, depth=20, filters=("posterior:learned",))
    supply = Supply(pairs, topical(pairs), options, HERE)
    filters = supply.filters
    assert filters.posterior is not None
    assert filters.sketch is not None
    in_loss = filters.posterior.in_loss
    assert in_loss is not None
    nothing = {name: np.zeros(1, np.float32) for name in in_loss.features}
    # Where the limit decides: log odds of one less than its own.
    assert in_loss.probability(nothing)[0] <= 1 / (1 + np.exp(1) * 4) * (1 + 1e-4)
    queries, documents = torch.arange(len(pairs)), torch.arange(len(pairs.document_ids))
    suspected = filters.sketch.probability(queries, documents).numpy() > filters.limit
    same = np.asarray(pairs.query_groups)[:, None] == np.asarray(pairs.document_groups)
    assert suspected[~same].mean() < 0.25
    assert suspected[same].mean() >= suspected[~same].mean()
    supply.close()


def test_where_nothing_is_learned_nobody_is_suspected() -> None:
    """Texts that have nothing to do with each other: nothing tells known positives from other candidates, and it is said."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 60, 12)) for _ in range(800)]
    pairs = hardneg.Pairs.from_columns([f"{text} asked" for text in texts[:400]], texts[400:])
    options = TrainOptions(batch_size=16, depth=40, filters=("posterior:learned",))
    supply = Supply(pairs, Towers(encoder()), options, HERE)
    filters = supply.filters
    assert filters.posterior is None
    assert filters.unlearned is not None
    assert filters.sketch is not None
    assert not filters.sketch.probability(torch.arange(9), torch.arange(30)).any()
    supply.close()


@pytest.mark.slow
def test_an_evaluation_on_the_training_pairs_is_said(tmp_path: Path) -> None:
    rows = [{"query": f"what is {i}", "positive": f"this is {i}"} for i in range(40)]
    one, other = write_jsonl(tmp_path / "p.jsonl", rows), write_jsonl(tmp_path / "o.jsonl", rows[:20])
    common = ("--steps", "2", "--batch-size", "8", "--negatives", "1", "--depth", "10", "--device", "cpu")
    said = run_here("train", one, "--out", tmp_path / "a", *common, "--eval-split", "test")
    assert said.returncode == 0, said.stderr
    assert "evaluated on the pairs that it is trained on" in said.stderr
    for more in (("--eval-source", other), ("--eval-split", "none"), ()):
        quiet_one = run_here("train", one, "--out", tmp_path / "b", "--overwrite", *common, *more)
        assert quiet_one.returncode == 0, quiet_one.stderr
        assert "evaluated on the pairs" not in quiet_one.stderr


def test_without_a_word_evaluation_is_on_held_out_queries_or_a_validation_split(tmp_path: Path, beir: Path) -> None:
    """Never on the test split, and never on pairs that are trained on."""
    rows = [{"query": f"what is {i}", "positive": f"this is {i}"} for i in range(60)]
    file = write_jsonl(tmp_path / "p.jsonl", rows)
    common = ("--steps", "2", "--batch-size", "4", "--negatives", "1", "--depth", "6", "--device", "cpu")
    held = run_here("train", file, "--out", tmp_path / "a", *common)
    assert held.returncode == 0, held.stderr
    assert "evaluated on: 3 queries, which are not trained on" in held.stderr
    assert (tmp_path / "a" / "best").is_dir()
    run = hardneg.mine(str(file), tmp_path / "run", hardneg.MineOptions(negatives=1, depth=6))
    mined = run_here("train", file, "--out", tmp_path / "b", *common, "--run", run.folder)
    assert mined.returncode == 0, mined.stderr
    few = run_here("train", beir, "--out", tmp_path / "c", *common)
    assert few.returncode == 0, few.stderr
    assert "too few queries to hold some out: nothing is evaluated" in few.stderr
    (beir / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n11\td11\t1\n", "utf-8")
    dev = run_here("train", beir, "--out", tmp_path / "d", *common)
    assert dev.returncode == 0, dev.stderr
    assert "evaluated on the split 'dev'" in dev.stderr


def test_held_out_queries_are_not_trained_on() -> None:
    """Copies of a question stay on one side; documents and everything else are as they were."""
    questions = [f"question {i // 2}" for i in range(200)]
    pairs = hardneg.Pairs.from_columns(
        questions, [f"answer {i}" for i in range(200)], query_ids=[str(i) for i in range(200)]
    )
    parts = hold_out(pairs, share=0.1)
    assert parts is not None
    train, held = parts
    trained = set(np.flatnonzero(train.positives.lengths > 0).tolist())
    names = {int(each) for each in held.query_ids.to_pylist()}
    assert len(names) == 20
    assert trained | names == set(range(200))
    assert not trained & names
    assert {questions[i] for i in trained}.isdisjoint({questions[i] for i in names})
    for i, row in enumerate(sorted(names)):
        assert held.queries.take(np.array([i])) == [questions[row]]
        assert (
            held.positives.take(np.array([i])).values.tolist() == pairs.positives.take(np.array([row])).values.tolist()
        )
    assert len({train.digests["labels"], held.digests["labels"], pairs.digests["labels"]}) == 3
    assert hold_out(pairs, share=0.1)[1].digests == held.digests  # type: ignore[index]
    assert hold_out(hardneg.Pairs.from_columns(["a"] * 9, ["b"] * 9)) is None


def test_queries_of_a_split_that_are_held_out_keep_their_texts(beir: Path) -> None:
    """The queries of a split are a part of the file's already: a part of this part has to be the right one."""
    head = "query-id\tcorpus-id\tscore\n"
    for split, rows in (("test", (0, 1, 2)), ("train", range(4, 10))):
        (beir / "qrels" / f"{split}.tsv").write_text(head + "".join(f"{i}\td{i}\t1\n" for i in rows), "utf-8")
    pairs = hardneg.read_pairs(str(beir), hardneg.ReadOptions(split="train"))
    names = pairs.query_ids.to_pylist()
    assert not {"0", "1", "2"} & set(names)
    part = pairs.of_queries(np.array([1, 3]))
    assert part.query_ids.to_pylist() == [names[1], names[3]]
    wanted = pairs.queries.slice(0, len(pairs))
    assert part.queries.slice(0, 2) == [wanted[1], wanted[3]]
    assert part.queries.take(np.array([1])) == [wanted[3]]


def test_two_towers_are_saved_again_whenever_they_are_better(tmp_path: Path) -> None:
    """What is replaced is in two folders, one for each side."""
    pairs = made_pairs(48)
    towers = Towers(encoder(0), encoder(1))
    options = TrainOptions(steps=12, batch_size=8, negatives=1, depth=8, evaluate_every=1, learning_rate=0.05)
    told = Rows()
    hardneg.train(
        pairs, towers, tmp_path / "out", options, device="cpu", evaluation=pairs, warn=quiet, callbacks=[told]
    )
    scores = [row["evaluation/ndcg@10"] for row in told.rows if "evaluation/ndcg@10" in row]
    assert any(later > max(scores[:i]) for i, later in enumerate(scores) if i)  # so the best was replaced
    for side in ("query", "document"):
        assert hardneg.HashedEncoder.load(tmp_path / "out" / "best" / side).dimension == 16
