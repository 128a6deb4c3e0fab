"""Training by inner products: the loss, the miner, the bank, evaluations and what is saved, against naive ones."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hardneg
from hardneg.diagnostics.measures.batch import batch_hardness
from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder
from hardneg.errors import UsageError
from hardneg.losses.distillation import distillation_loss
from hardneg.training.options import TrainOptions
from hardneg.training.towers import Towers
from tests.naive_loop import train_naively
from tests.test_trainer import HERE, Rows, Supply, encoder, made_pairs, quiet

BUCKETS = 512


class Bag(nn.Module):
    """The sum of a vector for each word: what it returns has no fixed length."""

    dimension = 8

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(BUCKETS, 8, generator=torch.Generator().manual_seed(seed)) * 0.5)

    def vectors(self, items: Sequence[Any], *, prompt: str = "") -> Tensor:
        words = [[zlib.crc32(word.encode()) % BUCKETS for word in item.split()] for item in items]
        return torch.stack([self.table[rows].sum(0) for rows in words])

    def encode(self, items: Sequence[Any], *, prompt: str = "") -> np.ndarray:
        with torch.no_grad():
            made: np.ndarray = self.vectors(items).numpy()
        return made

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "table.npy", self.table.detach().numpy())
        (folder / "config.json").write_text("{}")


def table(folder: Path) -> np.ndarray:
    found: np.ndarray = np.load(folder / "table.npy")
    return found


def test_a_naive_loop_of_inner_products_gives_the_same_weights(tmp_path: Path) -> None:
    pairs = made_pairs()
    options = TrainOptions(
        steps=12, batch_size=16, negatives=0, learning_rate=0.01, warmup=0.0, lr_scheduler="constant", max_grad_norm=None,
        metric="ip", default_filters=False,
    )  # fmt: skip
    assert options.temperature == 1.0
    hardneg.train(pairs, Bag(), tmp_path / "out", options, device="cpu", warn=quiet)
    model = Bag()
    train_naively(pairs, model, 12)
    torch.testing.assert_close(
        torch.from_numpy(table(tmp_path / "out" / "last")), model.table.detach(), rtol=1e-4, atol=1e-5
    )


def test_the_miner_and_the_bank_take_vectors_as_they_are() -> None:
    pairs, towers = made_pairs(), Towers(Bag())
    options = TrainOptions(batch_size=16, negatives=3, depth=5, bank=64, bank_start=0, metric="ip", index="exact")
    supply = Supply(pairs, towers, options, HERE)
    assert supply.index is not None
    neighbors = supply.index.generation.neighbors
    assert neighbors is not None
    queries, documents = (
        towers.encode(texts.slice(0, count), side)
        for texts, count, side in (
            (pairs.queries, len(pairs), "query"),
            (pairs.documents, len(pairs.document_ids), "document"),
        )
    )
    scores = queries.astype(np.float16).astype(np.float32) @ documents.astype(np.float16).astype(np.float32).T
    wanted = np.sort(scores, axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(neighbors.scores, wanted, rtol=2e-3, atol=2e-3)
    by_cosine = scores / np.linalg.norm(documents, axis=1)
    assert (scores.argmax(1) != by_cosine.argmax(1)).any()  # the test could not fail otherwise
    batch = next(iter(supply.batches()))
    supply.used(batch, towers(batch.queries, "query"), towers(batch.documents, "document"))
    bank = supply.seen()
    assert bank is not None
    np.testing.assert_allclose(bank.vectors.numpy(), documents[bank.ids.numpy()], rtol=1e-5)
    supply.close()


EVERYTHING: dict[str, Any] = {
    "steps": 24, "batch_size": 16, "negatives": 3, "refresh": "steps:7", "lag": 4, "share": 0.5, "bank": 100,
    "bank_start": 2, "bank_fresh": 0.3, "learn_temperature": True, "save_every": 5, "log_every": 1, "evaluate_every": 6, "depth": 12,
    "filters": ("margin:absolute=0.1", "shared-neighbors:max=0.6"), "learning_rate": 0.01, "metric": "ip", "temperature": 2.0,
}  # fmt: skip


class _StopAt:
    def __init__(self, last: int) -> None:
        self.last = last

    def log(self, step: int, values: dict[str, float]) -> None:
        if step == self.last:
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


def test_with_everything_it_is_resumed_bit_for_bit_and_evaluated_by_inner_products(tmp_path: Path) -> None:
    pairs, options, told = made_pairs(), TrainOptions(**EVERYTHING), Rows()
    given: dict[str, Any] = {"evaluation": pairs, "device": "cpu", "warn": quiet}
    whole = hardneg.train(pairs, Bag(), tmp_path / "whole", options, callbacks=[told], **given)
    with pytest.raises(KeyboardInterrupt):
        hardneg.train(pairs, Bag(), tmp_path / "cut", options, callbacks=[_StopAt(13)], **given)
    with pytest.raises(hardneg.RunError, match="other metric, temperature"):
        hardneg.train(
            pairs,
            Bag(),
            tmp_path / "cut",
            TrainOptions(**{**EVERYTHING, "metric": "cosine", "temperature": 0.5}),
            resume=True,
            **given,
        )
    resumed = hardneg.train(pairs, Bag(), tmp_path / "cut", options, resume=True, **given)
    for name in ("best", "last"):
        np.testing.assert_array_equal(table(tmp_path / "cut" / name), table(tmp_path / "whole" / name))
    assert resumed["evaluations"] == whole["evaluations"]
    assert resumed["options"]["metric"] == "ip"
    model = Bag()
    model.table.data = torch.from_numpy(table(tmp_path / "whole" / "last"))
    queries = model.encode(pairs.queries.slice(0, len(pairs)))
    documents = model.encode(pairs.documents.slice(0, len(pairs.document_ids)))
    by_metric = {
        m: hardneg.evaluation.evaluate_vectors(pairs, queries, documents, ["ndcg@10"], m).means
        for m in ("ip", "cosine")
    }
    assert whole["evaluations"][-1]["ndcg@10"] == pytest.approx(by_metric["ip"]["ndcg@10"], abs=1e-9)
    assert by_metric["ip"] != by_metric["cosine"]
    assert max(abs(row["positive"]) for row in told.rows if "positive" in row) > 1  # no cosine


def test_metrics_and_temperatures_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no loss for squared distances"):
        TrainOptions(metric="l2")
    with pytest.raises(UsageError, match="metric='dot'"):
        TrainOptions(metric="dot")
    with pytest.raises(UsageError, match="temperature=5 must be 0.005 or more and at most 1"):
        TrainOptions(temperature=5)
    assert TrainOptions(temperature=5, metric="ip").loss_options["similarity"] == "dot"
    assert TrainOptions().temperature == 0.05
    old = json.loads(json.dumps(TrainOptions().to_json()))
    del old["metric"]
    assert TrainOptions().changed(old) == []  # a training of before can be resumed
    assert TrainOptions(metric="ip").changed(old) == ["metric", "temperature"]


def test_unit_vectors_and_a_run_of_another_metric_are_said(tmp_path: Path) -> None:
    pairs, said = made_pairs(), list[str]()
    options = TrainOptions(steps=1, batch_size=16, negatives=2, metric="ip")
    hardneg.train(pairs, encoder(), tmp_path / "a", options, device="cpu", warn=said.append)
    assert any("vectors of length 1" in each for each in said)
    said.clear()
    run = hardneg.mine(pairs, tmp_path / "run", depth=10, negatives=2)
    hardneg.train(pairs, Bag(), tmp_path / "b", options, run=run, device="cpu", warn=said.append)
    assert any("mined by cosine" in each and "--metric ip" in each for each in said)
    assert not any("vectors of length 1" in each for each in said)


def test_a_saved_model_says_its_metric(tmp_path: Path, tiny_model: Path) -> None:
    pairs = made_pairs(32)
    options = TrainOptions(steps=1, batch_size=8, negatives=0, metric="ip")
    model = SentenceTransformersEncoder(str(tiny_model), device="cpu")
    hardneg.train(pairs, model, tmp_path / "out", options, device="cpu", warn=quiet)
    saved = tmp_path / "out" / "last"
    assert json.loads((saved / "config_sentence_transformers.json").read_text())["similarity_fn_name"] == "dot"
    assert hardneg.evaluate(pairs, SentenceTransformersEncoder(str(saved), device="cpu"), metric="ip").notes == []
    notes = hardneg.evaluate(pairs, SentenceTransformersEncoder(str(saved), device="cpu")).notes
    assert any("for the metric ip" in note and "--metric ip" in note for note in notes)
    run = hardneg.mine(pairs, tmp_path / "run", encoder=f"st:{saved}", negatives=2)
    assert any("for the metric ip" in note for note in run.info["warnings"])
    assert run.info["resolved"]["encoder"]["metric"] == "ip"
    # One that is trained by cosine says so again; one that never said anything stays as it was.
    again = SentenceTransformersEncoder(str(saved), device="cpu")
    again.compare_by("cosine")
    assert again.metric == "cosine"
    silent = SentenceTransformersEncoder(str(tiny_model), device="cpu")
    before = silent.metric
    silent.compare_by("cosine")
    assert silent.metric == before


def test_distillation_and_hardness_of_inner_products_against_naive_ones() -> None:
    rng = torch.Generator().manual_seed(0)
    queries, documents = torch.randn(4, 6, generator=rng) * 3, torch.randn(4, 3, 6, generator=rng) * 3
    teacher = torch.randn(4, 3, generator=rng)
    scores = (queries[:, None] * documents).sum(-1) * 0.5
    target, own = torch.softmax(teacher, 1), torch.softmax(scores, 1)
    wanted = (target * (target / own).log()).sum(1).mean()
    found = distillation_loss(queries, documents, teacher, scale=0.5, similarity="dot")
    torch.testing.assert_close(found, wanted)
    with pytest.raises(UsageError, match="similarity"):
        distillation_loss(queries, documents, teacher, similarity="l2")
    flat, mined = documents.flatten(0, 1)[:6], torch.tensor([[4], [5], [4], [5]])
    negative = (queries * flat[mined[:, 0]]).sum(1)
    positive = (queries * flat[:4]).sum(1)
    measured = batch_hardness(queries, flat, mined, metric="ip")
    assert measured["negative"] == pytest.approx(float(negative.mean()), rel=1e-5)
    assert measured["margin"] == pytest.approx(float((positive - negative).mean()), rel=1e-5)
