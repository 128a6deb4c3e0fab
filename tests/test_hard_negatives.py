"""`HardNegatives` and its trainer: what may be a negative, prompts, evaluation on other pairs, and what is said."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from transformers import TrainerState

import hardneg
from hardneg import Pairs, UsageError
from hardneg.bank.filling import Filling
from hardneg.integrations.mine_hard_negatives import mine_hard_negatives
from hardneg.integrations.sentence_transformers import HardNegatives, InfoNCE
from hardneg.refresh.staleness import Schedule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
    pytest.mark.xdist_group("integrations"),
]


def loaded(folder: Path) -> SentenceTransformer:
    torch.manual_seed(0)
    return SentenceTransformer(str(folder), device="cpu")


def rows(count: int = 24, first: int = 0) -> list[dict[str, str]]:
    return [{"question": f"what is {i}", "answer": f"it is {i}"} for i in range(first, first + count)]


def trained(model: SentenceTransformer, negatives: HardNegatives, out: Path, loss: Any = None, **more: Any) -> Any:
    given = {name: more.pop(name) for name in ("eval_dataset",) if name in more}
    options: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 8, "save_strategy": "no", **more}
    arguments = SentenceTransformerTrainingArguments(str(out), report_to=[], disable_tqdm=True, use_cpu=True, **options)
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=negatives.dataset, loss=loss or InfoNCE(model, negatives), callbacks=[negatives],
        **given,
    )  # fmt: skip
    trainer.train()
    return trainer


# What may be a negative.


def grouped(loans: int) -> list[dict[str, str]]:
    """Pairs of two groups, of which one is small."""
    kinds = ["loan" if i < loans else "card" for i in range(60)]
    return [{"question": f"q {i} {kind}", "answer": f"text {i} {kind}", "label": kind} for i, kind in enumerate(kinds)]


@pytest.mark.parametrize("loans", [8, 3])
def test_no_negative_is_one_that_a_filter_rejects(loans: int, caplog: pytest.LogCaptureFixture) -> None:
    """With 3 documents of the other group, two of four negatives are repeated."""
    with HardNegatives(grouped(loans), hardneg.HashedEncoder(), num_negatives=4, depth=8, filters=["group"]) as made:
        with caplog.at_level(logging.WARNING, "hardneg"):
            found = list(made.dataset)
            made.begin_epoch(1)
        for row in found:
            negatives = [row[f"negative_{i}"] for i in range(1, 5)]
            assert all(text.split()[-1] != row["query"].split()[-1] for text in negatives)
            loan = row["query"].endswith("loan")
            assert len(set(negatives)) == (4 if loan else min(4, loans))
        assert len(made.index.generation.ids) == 60 if made.index else False
    said = [record.message for record in caplog.records if record.name == "hardneg"]
    assert len(said) == 1, "once for each mining"
    assert "of 240 negatives were drawn at random" in said[0]
    assert ("repeat another one of the query" in said[0]) == (loans == 3)


def test_rejected_candidates_do_not_come_back_as_random_documents() -> None:
    """Only the candidates beyond the rank that a filter asks for are drawn, also where random documents are."""
    with HardNegatives(rows(), hardneg.HashedEncoder(), num_negatives=4, depth=12, filters=["rank:min=12"]) as made:
        made.begin()
        rejected = made.index.prepared.mined if made.index else None
        assert rejected is not None
        drawn = made.examples.rows(range(24))
        for query, _, *negatives in drawn.tolist():
            assert not set(negatives) & set(rejected.documents[query][~rejected.kept[query]].tolist())


def test_one_query_that_can_have_no_negative_stops_nothing(caplog: Any) -> None:
    """Its label is that of every document; the others have documents of a label of their own left."""
    some = [{"question": f"q {i}", "answer": f"text {i}", "label": "card" if i else "loan"} for i in range(12)]
    with HardNegatives(some, hardneg.HashedEncoder(), num_negatives=2, depth=8, filters=["group"]) as made:
        made.begin()
        assert made.draws.filled.against == 0
        assert made.draws.filled.repeated == 11  # there is one loan alone, for the eleven cards
    filled = Filling(made.pairs, made.pairs.known_positives(), lambda queries, documents: documents < 0)
    places = np.full((2, 3), -1)
    found = filled(places, np.array([0, 1]), 0, lambda place: np.zeros(0, np.int64))
    assert (found.random, found.repeated, found.against) == (0, 6, 6)
    assert (places >= 0).all()
    assert not {(0, 0), (1, 1)} & {(i, j) for i, row in enumerate(places.tolist()) for j in row}


def test_a_set_that_can_have_no_negatives_is_refused() -> None:
    alone = [{**row, "label": "card"} for row in grouped(0)]
    with (
        HardNegatives(alone, hardneg.HashedEncoder(), num_negatives=2, depth=8, filters=["group"]) as made,
        pytest.raises(UsageError, match="the filters reject every document of the corpus for every query"),
    ):
        made.begin()


# Prompts.


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        (None, False),
        ("ask: ", False),
        ({"query": "ask: "}, False),
        ({"query": "ask: ", "positive": "doc: ", "negative_1": "doc: "}, True),
        ({"one": {"query": "ask: ", "positive": "doc: ", "negative_1": "doc: "}, "two": {}}, True),
    ],
)
def test_prompts_that_are_not_trained_with_are_named(tiny_model: Path, given: Any, fits: bool, caplog: Any) -> None:
    made = HardNegatives(
        rows(), loaded(tiny_model), num_negatives=1, depth=5, query_prompt="ask: ", document_prompt="doc: "
    )
    arguments = SentenceTransformerTrainingArguments("unused", report_to=[], use_cpu=True, prompts=given)
    with made, caplog.at_level(logging.WARNING, "hardneg"):
        made.on_train_begin(arguments, TrainerState(max_steps=2, num_train_epochs=1), None)
    said = [record.message for record in caplog.records if "prompts" in record.message]
    assert said == [] if fits else ("'ask: '" in said[0] and "'doc: '" in said[0] and f"prompts={given!r}" in said[0])


def test_prompts_of_the_model_are_those_of_mining(tiny_model: Path, tmp_path: Path, caplog: Any) -> None:
    model = loaded(tiny_model)
    made = HardNegatives(rows(), model, num_negatives=2, depth=5)
    trained(model, made, tmp_path)
    assert not caplog.records
    model.prompts = {"query": "ask: "}
    again = HardNegatives(rows(), model, num_negatives=2, depth=5)
    assert again.column_prompts == {"query": "ask: ", "positive": "", "negative_1": "", "negative_2": ""}
    trained(model, again, tmp_path, prompts=again.column_prompts)
    assert not caplog.records
    trained(model, HardNegatives(rows(), model, num_negatives=2, depth=5), tmp_path)
    assert "the prompts 'ask: ' (queries)" in caplog.records[0].message


# Evaluation on pairs of another `HardNegatives`.


def batch_loss(loss: InfoNCE, model: SentenceTransformer, items: list[dict[str, Any]]) -> float:
    """The loss of rows of a dataset, as the trainer's collator and loss compute it."""
    names = [name for name in items[0] if name != "label"]
    features = [model.preprocess([item[name] for item in items]) for name in names]
    with torch.no_grad():
        return float(loss(features, torch.tensor([item["label"] for item in items])))


def test_an_evaluation_is_masked_by_its_own_rows(tiny_model: Path, tmp_path: Path) -> None:
    model = loaded(tiny_model).eval()
    # In both, query 0 knows two documents, of which one is the positive of query 1; these are other rows in each.
    train = HardNegatives(
        Pairs.from_columns(["a", "b", "c"], [["x"], ["y"], ["x", "z"]]), model, num_negatives=1, depth=3
    )
    check = HardNegatives(
        Pairs.from_columns(["d", "e"], [["v", "w"], ["w"]], corpus=["u", "t"]), model, num_negatives=1, depth=3
    )
    loss = InfoNCE(model, train)
    items = [check.dataset[i] for i in (0, 2)]
    assert [item["query"] for item in items] == ["d", "e"]
    assert batch_loss(loss, model, items) == pytest.approx(batch_loss(InfoNCE(model, check), model, items))
    plain = [{name: value for name, value in item.items() if name != "label"} for item in items]
    features = [model.preprocess([item[name] for item in plain]) for name in plain[0]]
    assert batch_loss(loss, model, items) < float(loss(features).detach()), "the known positive is masked"
    with pytest.raises(UsageError, match="rows of several datasets"):
        batch_loss(loss, model, [items[0], train.dataset[0]])
    with pytest.raises(UsageError, match="of another HardNegatives"):
        train.masks(torch.tensor([item["label"] for item in items]))
    for each in (train, check):
        each.close()


@pytest.mark.slow
def test_a_trainer_evaluates_on_other_pairs(tiny_model: Path, tmp_path: Path) -> None:
    """Its batches of other pairs are its own, whatever their number; of rows of the training pairs, no text stands twice."""
    model = loaded(tiny_model)
    made = HardNegatives(rows(), model, num_negatives=2, depth=8)
    more: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "batch_sampler": made.batch_sampler}
    for other in (rows(10, 50), rows(24, 50)):
        check = HardNegatives(other, model, num_negatives=2, depth=8)
        done = trained(model, made, tmp_path, eval_dataset=check.dataset, **more)
        assert len([entry for entry in done.state.log_history if "eval_loss" in entry]) == 2
        assert type(done.get_eval_dataloader().batch_sampler) is not type(done.get_train_dataloader().batch_sampler)
        check.close()
    twice = HardNegatives([*rows(6), {"question": "what is 1", "answer": "one"}], model, num_negatives=1, depth=4)
    some = twice.dataset.select([2, 1, 0, 3])
    batches = [[some[i]["query"] for i in batch] for batch in twice.batch_sampler(some, 3, drop_last=False)]
    assert sorted(text for batch in batches for text in batch) == ["what is 0", "what is 1", "what is 1", "what is 2"]
    assert all(len(set(batch)) == len(batch) for batch in batches)


# Arguments.


def test_a_number_of_steps_is_a_schedule() -> None:
    made = HardNegatives(rows(), hardneg.HashedEncoder(), refresh=500, depth=8)
    assert (made.refresh, made.schedule.steps) == ("steps:500", 500)
    for wrong in (True, None, 2.5, "500"):
        with pytest.raises(UsageError, match=r"unknown schedule .* Forms: never, epoch, steps:500"):
            HardNegatives(rows(), hardneg.HashedEncoder(), refresh=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        HardNegatives(rows(), hardneg.HashedEncoder(), refresh=0)
    with pytest.raises(UsageError, match="schedule 500 is no text. Forms"):
        Schedule.parse(500)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"anchor_column_name": "answer"}, "positive_column_name"),
        ({"positive_column_name": "question"}, "anchor_column_name"),
        ({"positive_column_name": "question", "anchor_column_name": "question"}, "anchor_column_name"),
    ],
)
def test_a_column_is_not_on_both_sides(tiny_model: Path, given: dict[str, Any], missing: str) -> None:
    with pytest.raises(UsageError, match=f"would both be the column .*give {missing} as well; .*question, answer"):
        mine_hard_negatives(Dataset.from_list(rows()), loaded(tiny_model), **given)


def test_more_negatives_than_documents_are_refused_by_the_name_of_the_argument(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="num_negatives=30 is more than the 24 documents"):
        mine_hard_negatives(Dataset.from_list(rows()), loaded(tiny_model), num_negatives=30)


def test_what_a_dataset_leaves_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = hardneg.mine(grouped(2), tmp_path / "run", encoder="hashed", negatives=4, filters=["group"])
    short = sum(len(ids) < 4 for ids in run.negatives()["negative_ids"].to_pylist())
    assert short == 58
    made = run.to_dataset("n-tuple")
    assert len(made) == 2
    assert [record.message for record in caplog.records if record.name == "hardneg"] == [
        "to_dataset('n-tuple'): 58 queries were left out, with fewer negatives than asked (short='skip')"
    ]
    caplog.clear()
    for format in ("labeled-list", "labeled-pair", "triplet"):
        assert len(set(run.to_dataset(format)["query"])) == 60
    assert not [record for record in caplog.records if record.name == "hardneg"]


def test_a_change_that_has_no_effect_is_refused() -> None:
    with HardNegatives(rows(), hardneg.HashedEncoder(), num_negatives=1, depth=5) as made:
        assert len(made.dataset.filter(lambda row: row["query"].endswith("1"))) == 3
        assert made.dataset.select([4])[0]["query"] == "what is 4"
        mapped = made.dataset.map(lambda row: {"query": row["query"].upper()})
        for changed in (mapped, made.dataset.add_column("more", list(range(24)))):
            with pytest.raises(UsageError, match="were changed .*by map or add_column"):
                changed[0]


# Pictures.


def test_the_model_card_of_a_training_with_pictures(small_clip: Path, tmp_path: Path, caplog: Any, capfd: Any) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    shown = []
    for i in range(12):
        Image.new("RGB", (16, 16), (20 * i, 10, 10)).save(folder / f"{i}.png")
        shown.append({"image": str(folder / f"{i}.png"), "caption": f"a square, number {i}"})
    model = SentenceTransformer(str(small_clip), device="cpu")
    made = HardNegatives(shown, model, num_negatives=1, depth=4)
    transformers_logger = logging.getLogger("sentence_transformers")
    before, transformers_logger.propagate = transformers_logger.propagate, True
    options: dict[str, Any] = {
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    trained(model, made, tmp_path / "out", **options)
    transformers_logger.propagate = before
    assert "Traceback" not in caplog.text + capfd.readouterr().err
    card = (tmp_path / "out" / "checkpoint-1" / "README.md").read_text()
    # Before version 6 their card shows no examples of pictures, ours or not.
    assert "widget:" in card or (version("sentence-transformers") < "6" and "# SentenceTransformer" in card)


def test_empty_texts_are_told(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    data: list[dict[str, Any]] = [
        *rows(),
        {"question": None, "answer": "one more"},
        {"question": "one?", "answer": None},
    ]
    wanted = [
        "1 query has an empty text: its pairs are left out, and it gets no negatives",
        "1 positive is empty: its query is mined without it",
    ]
    HardNegatives(data, hardneg.HashedEncoder(), num_negatives=1, depth=5)
    assert [record.message for record in caplog.records if record.name == "hardneg"] == wanted
    caplog.clear()
    mine_hard_negatives(Dataset.from_list(data), loaded(tiny_model), num_negatives=1, verbose=False)
    assert [record.message for record in caplog.records if record.name == "hardneg"][:2] == wanted
