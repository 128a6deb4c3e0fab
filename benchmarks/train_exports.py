"""Exports trained on for a few steps by the trainers that they are named after.

    HF_HUB_OFFLINE=1 python benchmarks/train_exports.py --data DATA --model MODEL --pylate PYTHON --flagembedding PYTHON \\
        --tevatron PYTHON --tevatron-source FOLDER --ms-swift PYTHON

`DATA` is a BEIR folder, `MODEL` the folder of a sentence-transformers model: the teacher, whose tokenizer a BERT of one layer
gets. Each PYTHON is the interpreter of an environment with that package; a trainer without one is left out.
sentence-transformers is that of this interpreter. The trainer, collator and loss are the package's own. What the collator made
is compared with the files of DATA and with the scores in the run, without the code that exports: each query with its own
positives and negatives, each score with its document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from exports_trainers import DONE, LENGTH, TRAINERS


def write_models(model: Path, place: Path) -> None:
    """A BERT and a ModernBERT (which ms-swift knows as an embedding model) of one layer and 16 dimensions, untrained.

    ms-swift reads the vector of the first token, which weights of the usual size leave the same for all texts.
    """
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel, ModernBertConfig, ModernBertModel

    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": LENGTH,
    }  # fmt: skip
    special = {
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id,
        "cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id,
    }  # fmt: skip
    for name, made in (
        ("bert", BertModel(BertConfig(**shape))),
        ("modern-bert", ModernBertModel(ModernBertConfig(**shape, **special, initializer_range=0.3))),
    ):
        made.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)


def write_exports(data: Path, model: Path, place: Path) -> None:
    import hardneg

    run = hardneg.mine(str(data), place / "run", encoder="hashed", negatives=5)
    hardneg.score(run, f"encoder:st:{model}", only="kept")
    for format in ("triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron", "ms-swift"):
        run.export(format, place / f"{format}.jsonl")
        if format != "ms-swift":
            run.export(format, place / f"{format}-scores.jsonl", scores="teacher")
    run.export("margin-mse", place / "margin-mse.jsonl", scores="teacher")
    run.export("tevatron-corpus", place / "tevatron-corpus")
    run.export("pylate", place / "pylate", scores="teacher")
    (place / "truth.json").write_text(json.dumps(truth_of(run, data)))


def truth_of(run: Any, data: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    texts = {}
    for name in ("corpus", "queries"):
        lines = map(json.loads, (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
        texts[name] = {row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in lines}
    taught = {
        (row["query_id"], row["document_id"]): row["score"]
        for file in sorted((run.folder / "teacher").rglob("part-*.parquet"))
        for row in pq.read_table(file).to_pylist()
    }
    return [
        {
            "query": texts["queries"][row["query_id"]],
            "documents": [
                {"text": texts["corpus"][id], "side": side, "score": taught[row["query_id"], id]}
                for side in ("positive", "negative")
                for id in row[f"{side}_ids"]
            ],
        }
        for row in run.negatives().to_pylist()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tevatron-source", type=Path, help="the folder that holds the package tevatron")
    for name in TRAINERS:
        parser.add_argument(f"--{name}", default=sys.executable if name == "sentence-transformers" else None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        write_models(options.model, place)
        write_exports(options.data, options.model, place)
        print(
            "| export | trainer, loss | version | steps | loss, first to last | documents checked |\n"
            + "| --- " * 6
            + "|"
        )
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(options.tevatron_source or "")}
        failed = False
        for name in TRAINERS:
            python = vars(options)[name.replace("-", "_")]
            if python is not None:
                failed |= child(name, python, place, options.steps, environment)
    sys.exit(failed)


def child(name: str, python: str, place: Path, steps: int, environment: dict[str, str]) -> bool:
    """Train in the environment of a package, and print the rows of its table. Returns: whether it failed."""
    command = [python, str(Path(__file__).with_name("exports_trainers.py")), name, str(place), str(steps)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=place
    )
    for line in done.stdout.splitlines():
        if line.startswith(DONE):
            row = json.loads(line.removeprefix(DONE))
            first, *_, last = row["losses"]
            cells = (
                f"`{row['export']}`",
                f"{name}: {row['loss']}",
                row["package"],
                len(row["losses"]),
                f"{first:.3f} to {last:.3f}",
            )
            print("|", *(f"{cell} |" for cell in cells), f"{row['documents']:,} |")
    if done.returncode:
        print(f"{name} failed:\n{done.stdout[-4000:]}", file=sys.stderr)
    return done.returncode != 0


if __name__ == "__main__":
    main()
