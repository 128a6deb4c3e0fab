"""The trainers of others, with the real packages: a refresh within a training, and the same weights after a resume."""

from __future__ import annotations

import hashlib
import inspect
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    util,
)
from torch.utils.data import DataLoader

import hardneg
from hardneg import InfoNCE, Pairs, RunError, UsageError
from hardneg.integrations import HardNegatives, collate
from hardneg.integrations.lightning import RefreshNegatives
from hardneg.integrations.mine_hard_negatives import FORMATS, mine_hard_negatives
from hardneg.integrations.sentence_transformers import HardNegatives as ForTrainer
from hardneg.integrations.sentence_transformers import InfoNCE as TrainerLoss
from hardneg.integrations.transformers import HardNegatives as ForTransformers
from hardneg.losses.caching import cached_gradients
from hardneg.storage.files import write_array
from hardneg.storage.json_files import read_json, write_json

from .conftest import WORDS
from .test_trainer import static_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.xdist_group("integrations"),
]

STEPS = 12  # 3 epochs of 4


def rows(count: int = 32, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {"question": f"{' '.join(rng.sample(WORDS, 3))} {i}", "answer": f"{' '.join(rng.sample(WORDS, 5))} {i}"}
        for i in range(count)
    ]


def loaded(folder: Path) -> SentenceTransformer:
    torch.manual_seed(0)
    return SentenceTransformer(str(folder), device="cpu")


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


# Objects that are at hand.


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> hardneg.Run:
    out = tmp_path_factory.mktemp("live") / "run"
    return hardneg.mine(
        Dataset.from_list(rows()), out, encoder=loaded(tiny_model), negatives=3, corpus=["one more", "and another"]
    )


def test_a_dataset_and_a_model_are_mined_and_given_back(run: hardneg.Run, tiny_model: Path) -> None:
    assert run.info["config"]["negatives"] == 3
    made = run.to_dataset("n-tuple", ids=True)
    assert made.column_names[:4] == ["query_id", "query", "positive_id", "positive"]
    assert len(made) == 32
    texts = {row["question"]: row["answer"] for row in rows()}
    assert all(texts[row["query"]] == row["positive"] for row in made)
    assert made[0]["negative_1"] != made[0]["positive"]
    assert len(run.to_dataset("triplet", scores=True)[0]["scores"]) == 2
    assert hardneg.evaluate(run.pairs(), loaded(tiny_model)).queries == 32
    assert run.diagnose().measured.numbers["queries"] == 32
    assert "3 a query" in repr(run)
    assert "<table>" in run._repr_html_()
    with pytest.raises(UsageError, match="no format 'triplets'. Did you mean 'triplet'"):
        run.to_dataset("triplets")


def test_a_run_is_selected_from_and_exported_by_its_methods(run: hardneg.Run, tmp_path: Path) -> None:
    chosen = run.select(tmp_path / "two", negatives=2, sampler="uniform")
    assert chosen.info["config"]["sampler"] == "uniform"
    assert chosen.export("triplet", tmp_path / "t.jsonl").rows == 64
    with pytest.raises(UsageError, match="select has no option 'negativs'. Did you mean 'negatives'"):
        run.select(negativs=2)


def test_options_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mine has no option 'negativess'. Did you mean 'negatives'"):
        hardneg.mine(rows(), tmp_path / "run", negativess=3)  # type: ignore[call-arg]
    made = hardneg.mine(rows(), tmp_path / "run", encoder="hashed", negatives=2, sampler="uniform", seed=3)
    assert {name: made.info["config"][name] for name in ("negatives", "sampler", "seed", "encoder")} == {
        "negatives": 2, "sampler": "uniform", "seed": 3, "encoder": "hashed",
    }  # fmt: skip
    with pytest.raises(UsageError, match="corpus has no effect on Pairs"):
        hardneg.mine(made.pairs(), tmp_path / "other", corpus=["x"])


# The miner.


def test_the_signature_is_theirs() -> None:
    ours, theirs = (
        list(inspect.signature(each).parameters.values()) for each in (mine_hard_negatives, util.mine_hard_negatives)
    )
    assert [(each.name, each.default) for each in theirs] == [(each.name, each.default) for each in ours[: len(theirs)]]
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in ours[len(theirs) :])


CHOICES: list[dict[str, Any]] = [
    {},
    {"output_scores": True},
    {"range_min": 2, "range_max": 9, "num_negatives": 2},
    {"relative_margin": 0.02},
    {"absolute_margin": 0.001, "num_negatives": 2},
    {"max_score": 0.98, "min_score": 0.2},
]


def _marked(rare: bool, *values: Any, id: str | None = None) -> Any:
    """A case that stays in `make test`, or one whose parts are all in others that do."""
    return pytest.param(*values, id=id, marks=[pytest.mark.slow] if rare else [])


@pytest.mark.parametrize(
    ("choice", "format"),
    [
        _marked(bool(i) and i % 4 != k, choice, format, id=f"{','.join(choice) or 'defaults'}-{format}")
        for i, choice in enumerate(CHOICES)
        for k, format in enumerate(FORMATS)
    ],
)
def test_the_negatives_are_theirs(tiny_model: Path, format: str, choice: dict[str, Any]) -> None:
    """The same rows as sentence-transformers makes, where its function finds any; one query has two positives."""
    model = loaded(tiny_model)
    data = Dataset.from_list([*rows(), {"question": rows()[0]["question"], "answer": "another answer"}])
    corpus = [row["answer"] for row in rows(20, seed=1)]
    arguments = {"corpus": corpus, "verbose": False, "output_format": format, **choice}
    theirs = util.mine_hard_negatives(data, model, **arguments)
    ours = mine_hard_negatives(data, model, **arguments)
    if len(theirs):
        assert ours.column_names == theirs.column_names
    assert sorted(map(_written, ours)) == sorted(map(_written, theirs))


def _written(row: dict[str, Any]) -> str:
    def rounded(value: Any) -> Any:
        return (
            [rounded(each) for each in value]
            if isinstance(value, list)
            else round(value, 3)
            if isinstance(value, float)
            else value
        )

    return str({name: rounded(value) for name, value in row.items() if "score" not in name})


class Scorer:
    """A cross-encoder that has an opinion of its own on every pair."""

    def predict(self, pairs: list[tuple[str, str]], *, convert_to_tensor: bool = False, **_: Any) -> Any:
        scores = [int(hashlib.sha256(" ".join(pair).encode()).hexdigest()[:6], 16) / 16**6 for pair in pairs]
        return torch.tensor(scores) if convert_to_tensor else np.array(scores)


LIMITS: list[dict[str, Any]] = [{"absolute_margin": 0.1}, {"max_score": 0.7, "min_score": 0.1, "range_min": 1}]


@pytest.mark.parametrize(
    ("limit", "scores", "format"),
    [
        _marked((i + scores + k) % 2 == 1, limit, scores, format, id=f"{','.join(limit)}-{scores}-{format}")
        for i, limit in enumerate(LIMITS)
        for scores in (False, True)
        for k, format in enumerate(FORMATS)
    ],
)
def test_a_cross_encoder_ranks_as_theirs_does(
    tiny_model: Path, format: str, scores: bool, limit: dict[str, Any]
) -> None:
    model, data = (
        loaded(tiny_model),
        Dataset.from_list([*rows(), {"question": rows()[0]["question"], "answer": "another answer"}]),
    )
    arguments = {
        "cross_encoder": Scorer(),
        "verbose": False,
        "output_format": format,
        "output_scores": scores,
        "num_negatives": 2,
        **limit,
    }
    theirs, ours = util.mine_hard_negatives(data, model, **arguments), mine_hard_negatives(data, model, **arguments)
    assert len(theirs)
    assert ours.column_names == theirs.column_names
    assert sorted(map(_written, ours)) == sorted(map(_written, theirs))
    if scores:
        name = "score" if format == "labeled-pair" else "scores"
        found, wanted = (np.sort(np.concatenate([np.ravel(row[name]) for row in each])) for each in (ours, theirs))
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_kept_run_can_be_selected_from(tiny_model: Path, tmp_path: Path) -> None:
    data = Dataset.from_list(rows())
    mine_hard_negatives(
        data, loaded(tiny_model), range_min=2, sampling_strategy="random", verbose=False, run=tmp_path / "run"
    )
    chosen = hardneg.Run(tmp_path / "run")
    assert chosen.info["config"]["filters"] == ["window:first=2,last=6"]
    chosen.select(negatives=2)
    chosen.select(negatives=1)
    assert "negatives: 1 a query" in repr(chosen)
    assert len(chosen.to_dataset()) == 32


def test_other_tables_and_corpora_are_taken_too(tiny_model: Path) -> None:
    model, frame = loaded(tiny_model), pd.DataFrame(rows())
    corpus = ["one more text", "and another one"]
    wanted = [dict(row) for row in mine_hard_negatives(Dataset.from_list(rows()), model, corpus=corpus, verbose=False)]
    for data, more in ((frame, corpus), (rows(), Dataset.from_dict({"text": corpus}))):
        assert [dict(row) for row in mine_hard_negatives(data, model, corpus=more, verbose=False)] == wanted
    with pytest.raises(UsageError, match="filters is a list of filters, not one filter"):
        mine_hard_negatives(frame, model, filters="rank:min=2", verbose=False)


def test_arguments_that_cannot_be_honored_are_refused(tiny_model: Path) -> None:
    data, model = Dataset.from_list(rows()), loaded(tiny_model)
    for arguments, message in (
        ({"include_positives": True}, "include_positives=True is not supported"),
        ({"use_multi_process": ["cpu"]}, "use_multi_process"),
        ({"output_format": "pairs"}, "output_format='pairs' must be one of"),
        ({"anchor_column_name": "query"}, "no column 'query'; it has: question, answer"),
        ({"query_prompt_name": "find"}, "no prompt 'find'"),
        ({"range_min": 5, "range_max": 6}, "leave 1 candidates, and num_negatives=3"),
    ):
        with pytest.raises(UsageError, match=message):
            mine_hard_negatives(data, model, verbose=False, **arguments)


# The trainer of sentence-transformers.


def trained(
    folder: Path, out: Path, *, refresh: str = "steps:3", resume: str | None = None, own_batches: bool = True,
    save: bool = True,
) -> tuple[torch.Tensor, ForTrainer]:  # fmt: skip
    model = loaded(folder)
    negatives = ForTrainer(Dataset.from_list(rows()), model, num_negatives=2, refresh=refresh, depth=10)
    sampler: Any = negatives.batch_sampler if own_batches else "batch_sampler"
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out), num_train_epochs=3, per_device_train_batch_size=8, save_strategy="steps" if save else "no", save_steps=1,
        learning_rate=1e-3, report_to=[], disable_tqdm=True, seed=1, batch_sampler=sampler, use_cpu=True,
    )  # fmt: skip
    loss = TrainerLoss(model, negatives)
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=negatives.dataset, loss=loss, callbacks=[negatives]
    )
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == STEPS
    return weights(model), negatives


@pytest.mark.slow
@pytest.mark.parametrize("refresh", ["steps:3", "epoch"])
def test_weights_are_equal_after_a_resume(tiny_model: Path, tmp_path: Path, refresh: str) -> None:
    """At a step before a refresh is used, after it, and at the end of an epoch."""
    whole, _ = trained(tiny_model, tmp_path / "out", refresh=refresh)
    for step in (3, 5, 8):
        again, _ = trained(
            tiny_model, tmp_path / "out", refresh=refresh, resume=str(tmp_path / "out" / f"checkpoint-{step}")
        )
        assert torch.equal(whole, again), step


@pytest.mark.slow
def test_a_refresh_changes_what_is_learned(tiny_model: Path, tmp_path: Path) -> None:
    never, _ = trained(tiny_model, tmp_path / "a", refresh="never", own_batches=False, save=False)
    often, _ = trained(tiny_model, tmp_path / "b", refresh="steps:3", own_batches=False, save=False)
    assert not torch.equal(never, often)


@pytest.mark.slow
def test_a_checkpoint_without_negatives_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    trained(tiny_model, tmp_path / "out")
    for folder in (tmp_path / "out").glob("checkpoint-*/hardneg"):
        folder.rename(folder.with_name("moved"))
    with pytest.raises(RunError, match="was saved without this callback"):
        trained(tiny_model, tmp_path / "out", resume=str(tmp_path / "out" / "checkpoint-4"))


def test_negatives_of_other_data_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = loaded(tiny_model)
    with HardNegatives(rows(), model, num_negatives=1, depth=5) as negatives:
        negatives.begin()
        negatives.save(tmp_path / "saved")
    for other in (
        HardNegatives(rows(seed=1), model, num_negatives=1, depth=5),
        HardNegatives(rows(), model, num_negatives=2, depth=5),
    ):
        with pytest.raises(RunError, match="holds the negatives of another dataset, or with other options"):
            other.begin(tmp_path / "saved")


def test_the_loss_masks_what_is_known(tiny_model: Path) -> None:
    """A document that is a positive of a query, too, is no negative of it: as if it were not in the batch."""
    model = loaded(tiny_model).eval()
    pairs = Pairs.from_columns(["a", "b"], [["x", "y"], ["y"]], corpus=["z", "w"])
    negatives = ForTrainer(pairs, model, num_negatives=1, depth=3, default_filters=False)
    loss, plain = TrainerLoss(model, negatives), InfoNCE()
    texts = [["a", "b"], ["x", "y"], ["z", "w"]]
    features = [model.preprocess(each) for each in texts]
    ids = {text: i for i, text in enumerate(pairs.documents.slice(0, 4))}
    labels = torch.tensor([[0, ids["x"], ids["z"]], [1, ids["y"], ids["w"]]])
    q, p, n = (torch.from_numpy(model.encode(each)) for each in texts)
    # Query a knows y; query b does not know x.
    a = plain(q[:1], p[:1], shared=n)
    b = plain(q[1:], p[1:], shared=torch.cat([p[:1], n]))
    assert float(loss(features, labels).detach()) == pytest.approx(float(a + b) / 2, abs=1e-5)
    with pytest.raises(UsageError, match="train on the dataset of HardNegatives"):
        loss(features, torch.zeros(2))


def test_gradients_of_small_pieces_are_those_of_the_whole(tiny_model: Path) -> None:
    model = loaded(tiny_model).eval()
    texts = [
        [row["question"] for row in rows(7)],
        [row["answer"] for row in rows(7)],
        [row["answer"] for row in rows(7, seed=1)],
    ]
    found = []
    for size in (None, 3):
        loss = TrainerLoss(model, mini_batch_size=size, learn_temperature=True)
        model.zero_grad()
        value = loss([model.preprocess(each) for each in texts])
        (value * 2).backward()
        found.append((value.detach(), weights_gradient(model), loss.loss.log_scale.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_small_pieces_of_a_static_model_and_of_what_has_no_rows() -> None:
    """StaticEmbedding takes all tokens in one row: cut like rows, they were other texts."""
    texts = [["one two three", "two", "three four", "one"], ["a b", "c", "a b c d", "e"], ["f", "g f", "h", "a h g"]]
    model = static_model([text for each in texts for text in each])
    found = []
    for size in (None, 1, 3):
        loss = TrainerLoss(model, mini_batch_size=size)
        model.zero_grad()
        loss([model.preprocess(each) for each in texts]).backward()
        found.append(weights_gradient(model).clone())
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-6)
    loss = TrainerLoss(model, mini_batch_size=2)
    patches = {"input_ids": torch.ones(4, 3, dtype=torch.int64), "pixel_values": torch.ones(9, 5)}
    with pytest.raises(UsageError, match=r"no row for each text \(input_ids: 4, pixel_values: 9\)"):
        loss([patches, patches])


def weights_gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


def test_a_deferred_backward_pass_counts_once() -> None:
    weight = torch.tensor([2.0], requires_grad=True)
    value = cached_gradients(lambda x: x * weight, [[torch.ones(2, 1), torch.ones(1, 1)]], lambda v: (v**2).sum())
    assert float(value.detach()) == 12
    value.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert float(weight.grad) == 12


def test_batches_hold_nothing_twice(tiny_model: Path) -> None:
    repeated = [*rows(20), *({"question": rows()[0]["question"], "answer": f"answer {i}"} for i in range(4))]
    negatives = ForTrainer(repeated, loaded(tiny_model), num_negatives=1, depth=5)
    sampler = negatives.batch_sampler(negatives.dataset, 6, drop_last=False, seed=0)
    queries, documents = negatives.examples.queries, negatives.examples.positives
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert all(len(set(queries[batch])) == len(batch) == len(set(documents[batch])) for batch in batches)
        orders.append([place for batch in batches for place in batch])
    assert orders[0] != orders[1]
    assert len(list(negatives.batch_sampler(range(3), 2, drop_last=False))) == 2


# Loops of one's own, Lightning, accelerate, transformers.


def steps(model: SentenceTransformer, negatives: HardNegatives, epochs: int, start: int = 0) -> Iterator[int]:
    """A bare loop; yields after each step."""
    loss = negatives.loss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for epoch in range(start, epochs):
        negatives.begin_epoch(epoch)
        for batch in negatives.loader(8):
            q, p, n = (
                model(model.preprocess(batch[name]))["sentence_embedding"]
                for name in ("query", "positive", "negatives")
            )
            optimizer.zero_grad()
            loss(q, p, shared=n, **negatives.masks(batch["rows"])).backward()
            optimizer.step()
            negatives.step()
            yield negatives.trained
        negatives.end_epoch()


def test_a_bare_loop_and_its_checkpoint(tiny_model: Path) -> None:
    """The state as one dict of tensors, as `torch.save` and `accelerate` write it."""
    found = []
    for cut in (None, 8):  # after the second epoch
        model = loaded(tiny_model).eval()
        with HardNegatives(rows(), model, num_negatives=2, depth=10, refresh="steps:3") as negatives:
            negatives.begin()
            for step in steps(model, negatives, 3):
                if step == cut:
                    negatives.end_epoch()
                    kept = negatives.state_dict(), {k: v.clone() for k, v in model.state_dict().items()}
                    break
        if cut is not None:
            model = loaded(tiny_model).eval()
            model.load_state_dict(kept[1])
            with HardNegatives(rows(), model, num_negatives=2, depth=10, refresh="steps:3") as negatives:
                negatives.load_state_dict(kept[0])
                list(steps(model, negatives, 3, start=2))
        found.append(weights(model))
    assert torch.equal(*found)


def test_workers_read_the_same_negatives(tiny_model: Path) -> None:
    with HardNegatives(rows(), loaded(tiny_model), num_negatives=2, depth=10) as negatives:
        negatives.begin()
        alone = [batch["rows"] for batch in negatives.loader(8)]
        together = [batch["rows"] for batch in negatives.loader(8, num_workers=2)]
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
        item = negatives.examples[3]
        assert list(item) == ["query", "positive", "negatives", "rows"]
        assert collate([item, item])["rows"].shape == (2, 4)
        assert len(negatives.examples) == 32
        with pytest.raises(UsageError, match="remove_unused_columns=False"):
            collate([{"query": "q"}])
        with pytest.raises(UsageError, match="32 pairs do not fill a batch of 64"):
            negatives.loader(64)


def test_workers_see_a_refresh(tiny_model: Path) -> None:
    """Also those that live on, and were started before it."""
    with HardNegatives(rows(160), loaded(tiny_model), num_negatives=2, depth=40, refresh="steps:9", lag=0) as negatives:
        negatives.begin()
        loader = DataLoader(
            negatives.examples, batch_size=8, collate_fn=collate, num_workers=2, persistent_workers=True
        )
        for epoch in range(2):
            negatives.begin_epoch(epoch)
            new = []
            for batch in loader:
                found = batch["rows"].numpy()
                new.append(bool((negatives.drawn.newest(found[:, 0]) == found[:, 2:]).all()))
                negatives.step()
            negatives.end_epoch()
            assert any(new[10:])


def test_a_loop_of_ones_own_is_the_same_after_a_resume_at_any_step(tiny_model: Path, tmp_path: Path) -> None:
    def made() -> HardNegatives:
        return HardNegatives(rows(80), loaded(tiny_model), num_negatives=2, depth=20, refresh="steps:4")

    def batches(negatives: HardNegatives) -> Iterator[torch.Tensor]:
        for batch in negatives.loader(8):
            yield batch["rows"]
            negatives.step()
            if not (tmp_path / str(negatives.trained)).exists():
                negatives.save(tmp_path / str(negatives.trained))

    with made() as negatives:
        negatives.begin()
        whole = list(batches(negatives))
    for step in range(3, 9):
        with made() as negatives:
            negatives.begin(tmp_path / str(step))
            negatives.skip_trained()
            rest = list(batches(negatives))
        assert all(torch.equal(a, b) for a, b in zip(whole[step:], rest, strict=True)), step


def test_damaged_and_hostile_checkpoints_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Nothing changes in the object that refuses them."""
    model = loaded(tiny_model)
    with HardNegatives(rows(), model, num_negatives=2, depth=10) as negatives:
        negatives.begin()
        negatives.step()
        negatives.save(tmp_path / "good")
        state = negatives.state_dict()
        right = negatives.drawn.tables()[0][1]
        for i, table in enumerate(
            [
                right.astype(np.float32),
                right[:3],
                right[:, :1],
                right + 10**6,
                -right - 1,
                right.ravel(),
                right.astype(np.int64),
            ]
        ):
            bad = shutil.copytree(tmp_path / "good", tmp_path / f"bad{i}")
            sha = write_array(bad / "negatives-0.npy", table)
            found = read_json(bad / "negatives.json", checksum=True)
            found["tables"][0]["sha256"] = sha
            write_json(bad / "negatives.json", found, checksum=True)
            with pytest.raises(RunError, match="holds no negatives of this dataset"):
                negatives.begin(bad)
        for i, change in enumerate(
            [
                {"tables": []},
                {"tables": None},
                {"trained": -1},
                {"epoch": "x"},
                {"filters": "x"},
                {"began": 2**70},
                {"ended": 1},
            ]
        ):
            bad = shutil.copytree(tmp_path / "good", tmp_path / f"odd{i}")
            found = read_json(bad / "negatives.json", checksum=True)
            write_json(bad / "negatives.json", {**found, **change}, checksum=True)
            with pytest.raises(RunError):
                negatives.begin(bad)
        for name, content in (
            ("../x", state["negatives.json"]),
            ("", state["negatives.json"]),
            ("a", b"x"),
            (5, torch.zeros(2)),
        ):
            with pytest.raises(RunError, match="that is no file of negatives"):
                negatives.load_state_dict({**state, name: content})  # type: ignore[dict-item]
        assert negatives.trained == 1
        assert not negatives.step()
        negatives.load_state_dict(state)
        assert negatives.trained == 1
    for other in ({"sampler": "top"}, {"query_prompt": "query: "}, {"depth": 9}, {"seed": 1}):
        options: dict[str, Any] = {"num_negatives": 2, "depth": 10, **other}
        with pytest.raises(RunError, match="or with other options"):
            HardNegatives(rows(), model, **options).begin(tmp_path / "good")


def test_lightning(tiny_model: Path, tmp_path: Path) -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(pl.LightningModule):
        def __init__(self, model: SentenceTransformer, negatives: HardNegatives) -> None:
            super().__init__()
            self.model, self.negatives, self.loss = model.eval(), negatives, negatives.loss()

        def training_step(self, batch: dict[str, Any], number: int) -> torch.Tensor:
            q, p, n = (
                self.model(self.model.preprocess(batch[name]))["sentence_embedding"]
                for name in ("query", "positive", "negatives")
            )
            value: torch.Tensor = self.loss(q, p, shared=n, **self.negatives.masks(batch["rows"]))
            return value

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.model.parameters(), 0.1)

    def fitted(epochs: int, resume: Path | None = None) -> tuple[torch.Tensor, HardNegatives]:
        model = loaded(tiny_model)
        negatives = HardNegatives(rows(), model, num_negatives=2, depth=10, refresh="steps:3")
        saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, enable_version_counter=False)
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[RefreshNegatives(negatives), saving], default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(Module(model, negatives), negatives.loader(8), ckpt_path=resume)
        return weights(model), negatives

    whole, negatives = fitted(3)
    assert negatives.trained == STEPS
    fitted(2)
    again, negatives = fitted(3, tmp_path / "epoch=1.ckpt")
    assert negatives.trained == STEPS
    assert torch.equal(whole, again)


def test_the_trainer_of_transformers(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    class Contrastive(torch.nn.Module):
        def __init__(self, model: SentenceTransformer, negatives: HardNegatives) -> None:
            super().__init__()
            self.model, self.negatives, self.loss = model.eval(), negatives, negatives.loss()

        def forward(self, query: Any, positive: Any, negatives: Any, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            q, p, n = (
                self.model(self.model.preprocess(each))["sentence_embedding"] for each in (query, positive, negatives)
            )
            return {"loss": self.loss(q, p, shared=n, **self.negatives.masks(rows))}

    def fitted(resume: str | None = None) -> torch.Tensor:
        model = loaded(tiny_model)
        negatives = ForTransformers(rows(), model, num_negatives=2, depth=10, refresh="steps:3")
        arguments = TrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=8, save_strategy="steps", save_steps=5,
            report_to=[], disable_tqdm=True, remove_unused_columns=False, use_cpu=True, learning_rate=1e-3, seed=1,
        )  # fmt: skip
        trainer = Trainer(
            Contrastive(model, negatives),
            arguments,
            train_dataset=negatives.examples,
            data_collator=collate,
            callbacks=[negatives],
        )
        trainer.train(resume_from_checkpoint=resume)
        return weights(model)

    assert torch.equal(fitted(), fitted(str(tmp_path / "checkpoint-5")))


def test_accelerate(tiny_model: Path, tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = loaded(tiny_model).eval()
    negatives = HardNegatives(rows(), model, num_negatives=2, depth=10, refresh="steps:3")
    accelerator.register_for_checkpointing(negatives)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, negatives.loader(8))
    loss = negatives.loss()
    negatives.begin()
    for batch in loader:
        q, p, n = (
            prepared(model.preprocess(batch[name]))["sentence_embedding"] for name in ("query", "positive", "negatives")
        )
        optimizer.zero_grad()
        accelerator.backward(loss(q, p, shared=n, **negatives.masks(batch["rows"])))
        optimizer.step()
        negatives.step()
    assert negatives.trained == 4
    accelerator.save_state(str(tmp_path / "state"))
    before = negatives.examples.rows(np.arange(8))
    accelerator.load_state(str(tmp_path / "state"))
    assert negatives.trained == 4
    np.testing.assert_array_equal(negatives.examples.rows(np.arange(8)), before)
    negatives.close()


def test_pytorch_metric_learning(tiny_model: Path) -> None:
    """Its losses take our bank as reference embeddings."""
    from pytorch_metric_learning.losses import NTXentLoss

    bank = hardneg.MemoryBank(16, 4)
    vectors = torch.nn.functional.normalize(torch.randn(6, 4), dim=1).requires_grad_()
    bank.push(torch.nn.functional.normalize(torch.randn(6, 4), dim=1), torch.arange(6))
    view = bank.view()
    value = NTXentLoss()(vectors, torch.arange(6), ref_emb=view.vectors, ref_labels=view.ids)
    value.backward()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()
