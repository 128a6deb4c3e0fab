"""Exports read by the data sets of the trainers that they are named after.

    python benchmarks/load_exports.py --data DATA --pylate DIR --flagembedding DIR --tevatron DIR

Each DIR is an unpacked source tree or wheel of the package; only the module that reads training data is loaded from it, so that the
pins of these packages do not matter. Every item of every export is read, and its number of passages checked.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import hardneg

GROUP = 4  # a positive and three negatives


def by_path(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def pylate(source: Path, run: hardneg.Run, place: Path) -> int:
    from datasets import load_dataset

    run.export("pylate", place / "pylate")
    file = next(path for path in source.rglob("*.py") if "class KDProcessing" in path.read_text())
    read = {
        name: load_dataset(
            "json", data_files=str(place / "pylate" / f"{name}.jsonl"), split="train", cache_dir=str(place / "cache")
        )
        for name in ("train", "queries", "documents")
    }
    processing = by_path("pylate_processing", file).KDProcessing(queries=read["queries"], documents=read["documents"])
    read["train"].set_transform(processing.transform)
    rows = [read["train"][i] for i in range(len(read["train"]))]
    wanted = 1 + run.info["config"]["negatives"]
    assert all(len(row["documents"]) == wanted == len(row["scores"]) for row in rows)
    return len(rows)


def tevatron(source: Path, run: hardneg.Run, place: Path) -> int:
    run.export("tevatron", place / "tevatron.jsonl")
    run.export("tevatron-corpus", place / "tevatron")
    sys.path.insert(0, str(source))
    arguments = __import__("tevatron.retriever.arguments", fromlist=["DataArguments"]).DataArguments
    dataset = __import__("tevatron.retriever.dataset", fromlist=["TrainDataset"]).TrainDataset
    trainer = types.SimpleNamespace(state=types.SimpleNamespace(epoch=0), args=types.SimpleNamespace(seed=0))
    count = 0
    folder = place / "tevatron"
    with_corpus = {"corpus_name": "json", "corpus_path": str(folder / "corpus.jsonl")}
    for rows, given in ((place / "tevatron.jsonl", {}), (folder / "train.jsonl", with_corpus)):
        options = arguments(
            dataset_name="json", dataset_path=str(rows), train_group_size=GROUP, dataset_cache_dir=str(place / "cache"),
            num_proc=None, **given,
        )  # fmt: skip
        made = dataset(options, trainer=trainer)
        items = [made[i] for i in range(len(made))]
        assert all(len(passages) == GROUP for _, passages in items)
        count += len(items)
    return count


def flagembedding(source: Path, run: hardneg.Run, place: Path) -> int:
    run.export("flagembedding", place / "flag.jsonl", scores=True)
    name = "FlagEmbedding.abc.finetune.embedder"
    parts = name.split(".")
    for i in range(1, len(parts) + 1):  # packages without their own code, which imports all of the library
        package = types.ModuleType(".".join(parts[:i]))
        package.__path__ = [str(source.joinpath(*parts[:i]))]
        sys.modules[package.__name__] = package
    folder = source.joinpath(*parts)
    arguments = by_path(f"{name}.AbsArguments", folder / "AbsArguments.py")
    data = by_path(f"{name}.AbsDataset", folder / "AbsDataset.py")
    options = arguments.AbsEmbedderDataArguments(
        train_data=[str(place / "flag.jsonl")],
        train_group_size=GROUP,
        cache_path=str(place / "cache"),
        knowledge_distillation=True,
    )
    made = data.AbsEmbedderTrainDataset(options, tokenizer=None)
    items = [made[i] for i in range(len(made))]
    assert all(len(passages) == GROUP == len(scores) for _, passages, scores in items)
    return len(items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    readers = {"pylate": pylate, "flagembedding": flagembedding, "tevatron": tevatron}
    for name in readers:
        parser.add_argument(f"--{name}", type=Path)
    options = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as place:
        run = hardneg.mine(options["data"], Path(place) / "run", encoder="hashed", negatives=5)
        for name, read in readers.items():
            if options[name] is not None:
                print(f"{name}: {read(options[name], run, Path(place)):,} items read")


if __name__ == "__main__":
    main()
