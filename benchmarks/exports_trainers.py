"""What `train_exports.py` runs in the environment of each package: its trainer, collator and loss on the exports.

    PYTHON benchmarks/exports_trainers.py NAME PLACE STEPS

`PLACE` is the folder that `train_exports.py` made. Nothing of hardneg is imported.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

BATCH = 8
GROUP = 4  # a positive and three negatives
LENGTH = 64  # tokens that the models read
COMPARED = 56  # of which so many are compared: each package adds special tokens of its own
RATE = 1e-3
TOLERANCE = 1e-4  # of scores
DONE = "DONE"  # starts the lines that `train_exports.py` reads

Row = tuple[Any, list[Any], list[str], list[float] | None]  # tokens of a query, of documents; their sides; their scores


class Truth:
    """What may stand in a batch: by query, its documents with their side and score.

    Args:
        place: the folder of the exports.
    """

    def __init__(self, place: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(place / "bert")
        self.special = set(self.tokenizer.all_special_ids)
        self.documents = 0
        rows = json.loads((place / "truth.json").read_text())
        self.rows: dict[tuple[int, ...], dict[tuple[int, ...], list[tuple[str, float]]]] = {}
        for row in rows:
            known = self.rows.setdefault(self.of_text(row["query"]), {})
            for document in row["documents"]:
                known.setdefault(self.of_text(document["text"]), []).append((document["side"], document["score"]))

    def of_text(self, text: str) -> tuple[int, ...]:
        return self.key(self.tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"])

    def key(self, tokens: Any) -> tuple[int, ...]:
        return tuple(token for token in map(int, tokens) if token not in self.special)[:COMPARED]

    def check(self, row: Row) -> None:
        query, documents, sides, scores = row
        known = self.rows.get(self.key(query))
        assert known is not None, f"no query: {self.tokenizer.decode(query)}"
        for i, (document, side) in enumerate(zip(documents, sides, strict=True)):
            found = [score for wanted, score in known.get(self.key(document), []) if wanted == side]
            assert found, f"no {side} of {self.tokenizer.decode(query)}: {i}, {self.tokenizer.decode(document)}"
            if scores is not None:
                assert any(abs(scores[i] - score) <= TOLERANCE for score in found), (scores[i], found)
            self.documents += 1


class Recorder:
    """A collator that keeps the batches that it made."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.batches: list[Any] = []

    def __call__(self, features: Any, **given: Any) -> Any:
        batch = self.collator(features, **given)
        self.batches.append(dict(batch) if isinstance(batch, dict) else batch)
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.collator, name)


def watch(trainer: Any) -> tuple[Recorder, list[float], Any]:
    """Let a trainer of transformers record its batches and losses.

    Returns:
        (recorder, losses, the weights before the training).
    """
    from transformers import TrainerCallback

    losses: list[float] = []

    class Losses(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in (logs or {}):
                losses.append(float(logs["loss"]))

    trainer.add_callback(Losses())
    trainer.data_collator = Recorder(trainer.data_collator)
    return trainer.data_collator, losses, weights(trainer.model)


def weights(model: Any) -> list[Any]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def report(
    case: str, loss: str, trainer: Any, watched: Any, truth: Truth, rows: Callable[[Any], Iterator[Row]]
) -> dict[str, Any]:
    recorder, losses, before = watched
    for batch in recorder.batches:
        for row in rows(batch):
            truth.check(row)
    assert truth.documents > 0
    moved = sum(not a.equal(b) for a, b in zip(before, weights(trainer.model), strict=True))
    assert moved > 0, "no weight changed"
    assert len(losses) == trainer.state.global_step
    assert all(map(math.isfinite, losses)), losses
    return {"export": case, "loss": loss, "losses": losses, "documents": truth.documents}


def settings(place: Path, steps: int, name: str) -> dict[str, Any]:
    """What the arguments of all trainers of transformers share."""
    return {
        "output_dir": str(place / "out" / name), "max_steps": steps, "per_device_train_batch_size": BATCH, "learning_rate": RATE,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip


def read(file: Path) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(file), split="train", cache_dir=str(file.parent / "cache"))


def side_of(label: float) -> str:
    return "positive" if label else "negative"


def text_columns(truth: Truth, scores: str | None) -> Callable[[Any], Iterator[Row]]:
    """Rows of a batch with a query, a positive and negatives as columns; `scores`: None, `each` or `margin`."""

    def rows(batch: Any) -> Iterator[Row]:
        names = [name.removesuffix("_input_ids") for name in batch if name.endswith("_input_ids")]
        assert names[:2] == ["query", "positive"], names
        assert all(name.startswith("negative") for name in names[2:]), names
        for i in range(len(batch["query_input_ids"])):
            query, *documents = (batch[f"{name}_input_ids"][i] for name in names)
            sides = ["positive", *["negative"] * (len(documents) - 1)]
            values = batch["label"][i].tolist() if scores else None
            if scores == "margin":
                known = truth.rows[truth.key(query)]
                pairs = [
                    dict(known[truth.key(document)])[side] for document, side in zip(documents, sides, strict=True)
                ]
                assert abs(pairs[0] - pairs[1] - values) <= TOLERANCE, (pairs, values)
                values = None
            yield query, documents, sides, values

    return rows


def labeled_pairs(batch: Any) -> Iterator[Row]:
    for query, document, label in zip(
        batch["query_input_ids"], batch["document_input_ids"], batch["label"], strict=True
    ):
        yield query, [document], [side_of(label)], None


def sentence_transformers(place: Path, steps: int) -> Iterator[dict[str, Any]]:
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses, modules

    cases = (
        ("triplet", losses.MultipleNegativesRankingLoss, None),
        ("triplet", losses.TripletLoss, None),
        ("triplet-scores", losses.MarginMSELoss, "each"),
        ("n-tuple", losses.CachedMultipleNegativesRankingLoss, None),
        ("n-tuple-scores", losses.DistillKLDivLoss, "each"),
        ("margin-mse", losses.MarginMSELoss, "margin"),
        ("labeled-pair", losses.ContrastiveLoss, None),
        ("labeled-pair-scores", losses.CoSENTLoss, None),
    )
    for case, loss, scores in cases:
        parts = [modules.Transformer(str(place / "bert"), max_seq_length=LENGTH), modules.Pooling(16)]
        model = SentenceTransformer(modules=parts, device="cpu")
        arguments = SentenceTransformerTrainingArguments(**settings(place, steps, case))
        trainer = SentenceTransformerTrainer(
            model, arguments, train_dataset=read(place / f"{case}.jsonl"), loss=loss(model)
        )
        watched, truth = watch(trainer), Truth(place)
        trainer.train()
        rows = text_columns(truth, scores)
        if case == "labeled-pair":
            rows = labeled_pairs
        elif case == "labeled-pair-scores":
            rows = scored_pairs(truth)
        yield report(case, loss.__name__, trainer, watched, truth, rows)
    yield from cross_encoders(place, steps)


def scored_pairs(truth: Truth) -> Callable[[Any], Iterator[Row]]:
    """Rows of pairs with a score: the side is not in the batch, so it is the one that is known."""

    def rows(batch: Any) -> Iterator[Row]:
        for query, document, score in zip(
            batch["query_input_ids"], batch["document_input_ids"], batch["label"], strict=True
        ):
            ((side, _), *_) = truth.rows[truth.key(query)][truth.key(document)]
            yield query, [document], [side], [float(score)]

    return rows


def cross_encoders(place: Path, steps: int) -> Iterator[dict[str, Any]]:
    from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder import losses

    for case, loss in (
        ("labeled-list", losses.LambdaLoss),
        ("labeled-list", losses.ListNetLoss),
        ("labeled-list-scores", losses.RankNetLoss),
        ("labeled-pair", losses.BinaryCrossEntropyLoss),
    ):
        model = CrossEncoder(str(place / "bert"), num_labels=1, device="cpu", max_length=LENGTH)
        arguments = CrossEncoderTrainingArguments(**settings(place, steps, f"cross-{case}"))
        trainer = CrossEncoderTrainer(model, arguments, train_dataset=read(place / f"{case}.jsonl"), loss=loss(model))
        watched, truth = watch(trainer), Truth(place)
        trainer.train()
        yield report(case, f"CrossEncoder, {loss.__name__}", trainer, watched, truth, texts_of(truth, "scores" in case))


def texts_of(truth: Truth, scored: bool) -> Callable[[Any], Iterator[Row]]:
    """Rows of a batch that holds texts, as a cross-encoder takes them."""

    def rows(batch: Any) -> Iterator[Row]:
        single = "document" in batch
        columns = batch["query"], batch["document" if single else "documents"], batch["label"]
        for query, documents, labels in zip(*columns, strict=True):
            documents = [documents] if single else documents
            labels = labels.reshape(-1).tolist()
            keys = [truth.of_text(document) for document in documents]
            query_key = truth.of_text(query)
            if scored:
                yield query_key, keys, [truth.rows[query_key][key][0][0] for key in keys], labels
            else:
                yield query_key, keys, [side_of(label) for label in labels], None

    return rows


def pylate(place: Path, steps: int) -> Iterator[dict[str, Any]]:
    from pylate import losses, models, utils
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    model = models.ColBERT(
        str(place / "bert"), device="cpu", embedding_size=16, query_length=LENGTH, document_length=LENGTH
    )
    train, queries, documents = (read(place / "pylate" / f"{name}.jsonl") for name in ("train", "queries", "documents"))
    train.set_transform(utils.KDProcessing(queries=queries, documents=documents).transform)
    arguments = SentenceTransformerTrainingArguments(**settings(place, steps, "pylate"))
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=train, loss=losses.Distillation(model), data_collator=utils.ColBERTCollator(model.tokenize)
    )  # fmt: skip
    watched, truth = watch(trainer), Truth(place)
    truth.special |= {model.query_prefix_id, model.document_prefix_id}
    trainer.train()

    def rows(batch: Any) -> Iterator[Row]:
        count = batch["label"].shape[1]
        texts = batch["documents_input_ids"].split(count)
        for query, group, scores in zip(batch["query_input_ids"], texts, batch["label"], strict=True):
            yield query, list(group), ["positive", *["negative"] * (count - 1)], scores.tolist()

    yield report("pylate", "Distillation", trainer, watched, truth, rows)


def grouped(queries: Any, passages: Any, scores: Any) -> Iterator[Row]:
    """Rows of groups of a positive and its negatives, one group after the other."""
    groups = passages.split(len(passages) // len(queries))
    for i, (query, group) in enumerate(zip(queries, groups, strict=True)):
        values = None if scores is None else [float(score) for score in scores[i * GROUP : (i + 1) * GROUP]]
        assert len(group) == GROUP
        yield query, list(group), ["positive", *["negative"] * (GROUP - 1)], values


def flagembedding(place: Path, steps: int) -> Iterator[dict[str, Any]]:
    from FlagEmbedding.finetune.embedder.encoder_only import base

    for case, loss in (
        ("flagembedding", None),
        ("flagembedding-scores", "kl_div"),
        ("flagembedding-scores", "m3_kd_loss"),
    ):
        taught = {} if loss is None else {"kd_loss_type": loss}
        runner = base.EncoderOnlyEmbedderRunner(
            base.EncoderOnlyEmbedderModelArguments(model_name_or_path=str(place / "bert")),
            base.EncoderOnlyEmbedderDataArguments(
                train_data=[str(place / f"{case}.jsonl")], cache_path=str(place / "cache"), train_group_size=GROUP,
                query_max_len=LENGTH, passage_max_len=LENGTH, knowledge_distillation=loss is not None,
            ),
            base.EncoderOnlyEmbedderTrainingArguments(**settings(place, steps, f"{case}-{loss}"), **taught),
        )  # fmt: skip
        watched, truth = watch(runner.trainer), Truth(place)
        runner.run()

        def rows(batch: Any) -> Iterator[Row]:
            scores = batch["teacher_scores"]
            yield from grouped(batch["queries"]["input_ids"], batch["passages"]["input_ids"], scores)

        yield report(case, loss or "contrastive", runner.trainer, watched, truth, rows)


def tevatron(place: Path, steps: int) -> Iterator[dict[str, Any]]:
    corpus = {"corpus_name": "json", "corpus_path": str(place / "tevatron-corpus" / "corpus.jsonl")}
    for case, driver, file, given in (
        ("tevatron", "train", "tevatron.jsonl", {}),
        ("tevatron-corpus", "train", "tevatron-corpus/train.jsonl", corpus),
        ("tevatron-scores", "train_distil", "tevatron-scores.jsonl", {}),
    ):
        module = __import__(f"tevatron.retriever.driver.{driver}", fromlist=["main"])
        name = "Trainer" if driver == "train" else "DistilTrainer"
        theirs, made = getattr(module, name), []

        class Watched(theirs):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, kept: list[Any] = made, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                kept.append((self, watch(self)))

        options = {
            **settings(place, steps, case), "model_name_or_path": str(place / "bert"), "dataset_name": "json",
            "dataset_path": str(place / file), "dataset_cache_dir": str(place / "cache"), "train_group_size": GROUP,
            "query_max_len": LENGTH, "passage_max_len": LENGTH, "attn_implementation": "eager", **given,
        }  # fmt: skip
        setattr(module, name, Watched)
        sys.argv = [driver, *(part for key, value in options.items() for part in (f"--{key}", str(value)))]
        module.main()
        setattr(module, name, theirs)
        ((trainer, watched),) = made

        def rows(batch: Any) -> Iterator[Row]:
            scores = batch[2].reshape(-1) if len(batch) > 2 else None
            yield from grouped(batch[0]["input_ids"], batch[1]["input_ids"], scores)

        yield report(case, theirs.__name__, trainer, watched, Truth(place), rows)


def ms_swift(place: Path, steps: int) -> Iterator[dict[str, Any]]:
    from swift.arguments import SftArguments
    from swift.pipelines.train.sft import SwiftSft
    from swift.trainers import EmbeddingTrainer

    made: list[Any] = []
    theirs = EmbeddingTrainer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        theirs(self, *args, **kwargs)
        made.append((self, watch(self)))

    EmbeddingTrainer.__init__ = init
    options = settings(place, steps, "ms-swift")
    del options["disable_tqdm"]
    arguments = SftArguments(
        model=str(place / "modern-bert"), model_type="modern_bert_gte", task_type="embedding", loss_type="infonce", tuner_type="full",
        dataset=[str(place / "ms-swift.jsonl")], split_dataset_ratio=0, max_length=LENGTH, truncation_strategy="right",
        torch_dtype="float32", dataloader_num_workers=0, **options,
    )  # fmt: skip
    SwiftSft(arguments).main()
    ((trainer, watched),) = made

    def rows(batch: Any) -> Iterator[Row]:
        starts = [i for i, label in enumerate(batch["labels"].tolist()) if label == 1]
        # A label for each positive and negative; a query stands before its positive and has none.
        counts = [b - a for a, b in zip(starts, [*starts[1:], len(batch["labels"])], strict=True)]
        for group in batch["input_ids"].split([count + 1 for count in counts]):
            query, *documents = group
            yield query, documents, ["positive", *["negative"] * (len(documents) - 1)], None

    yield report("ms-swift", "EmbeddingTrainer, infonce", trainer, watched, Truth(place), rows)


# By name: the function, and the package whose version is reported.
TRAINERS: dict[str, tuple[Callable[[Path, int], Iterator[dict[str, Any]]], str]] = {
    "sentence-transformers": (sentence_transformers, "sentence-transformers"),
    "pylate": (pylate, "pylate"),
    "flagembedding": (flagembedding, "FlagEmbedding"),
    "tevatron": (tevatron, "transformers"),
    "ms-swift": (ms_swift, "ms-swift"),
}


def main() -> None:
    name, place, steps = sys.argv[1:]
    train, package = TRAINERS[name]
    for line in train(Path(place), int(steps)):
        print(DONE, json.dumps({**line, "package": f"{package} {version(package)}"}), flush=True)


if __name__ == "__main__":
    main()
