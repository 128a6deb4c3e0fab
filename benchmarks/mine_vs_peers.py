"""Mine with given embeddings: hardneg against sentence-transformers' `mine_hard_negatives`.

    python benchmarks/mine_vs_peers.py --data ../shared/data --count 50000
    python benchmarks/mine_vs_peers.py --data ../shared/data --count 100000 --format triplet --negatives 5

Every system runs in a process of its own, from the same lists of texts and the same vectors in memory,
to negatives with scores. hardneg also writes its run folder (every candidate with its verdict) and the
export; sentence-transformers returns a dataset in memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import (
    PeerModel,
    in_own_process,
    jittered_vectors,
    machine,
    median_and_spread,
    now_mb,
    peak_mb,
    unit,
    versions,
)

RANGE = 100
MARGIN = 0.05


def make_vectors(data: Path, count: int, folder: Path) -> None:
    """Documents: real MiniLM vectors and jittered copies; query i: near document i, so that it is its positive."""
    folders = [path for name in ("banking77", "cranfield") if (path := data / name / "minilm").exists()]
    if not folders:
        sys.exit(f"{data}: no vectors found (expected banking77/minilm or cranfield/minilm)")
    documents = jittered_vectors([path.parent for path in folders], count, 0.5, seed=0)
    noise = np.random.default_rng(1).standard_normal(documents.shape, np.float32) * 0.6 / np.sqrt(documents.shape[1])
    np.save(folder / "documents.npy", documents)
    np.save(folder / "queries.npy", unit(documents + noise).astype(np.float32))


def inputs(folder: Path) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    queries, documents = np.load(folder / "queries.npy"), np.load(folder / "documents.npy")
    texts = [f"what does the document number {i} say" for i in range(len(queries))]
    return texts, [f"this is what document number {i} says" for i in range(len(documents))], queries, documents


def run_hardneg(folder: Path, args: argparse.Namespace) -> dict[str, object]:
    import hardneg

    queries, documents, query_vectors, document_vectors = inputs(folder)
    hardneg.ExactIndex(document_vectors[:64])  # torch and faiss loaded, as the peer has them before its clock starts
    before = now_mb()
    start = time.perf_counter()
    pairs = hardneg.Pairs.from_columns(queries, documents)
    # The peer looks at 100 candidates and as many more as a query has positives.
    options = hardneg.MineOptions(
        depth=RANGE + 1, max_depth=RANGE + 1, negatives=args.negatives, filters=(f"margin:relative={MARGIN}",)
    )
    run = hardneg.mine(pairs, folder / "run", options, vectors=(query_vectors, document_vectors), overwrite=True)
    mined = time.perf_counter() - start
    hardneg.export(run, args.format, folder / "export.parquet", scores=True, short="skip", overwrite=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mined": mined, "before": before, "peak": peak_mb(), "timings": run.info["timings"]}


class GivenVectors(PeerModel):
    """What `mine_hard_negatives` asks of a model, answered from the given vectors."""

    def __init__(self, query_vectors: np.ndarray, document_vectors: np.ndarray) -> None:
        self.query_vectors, self.document_vectors = query_vectors, document_vectors
        self.dimension = document_vectors.shape[1]

    def encode_query(self, texts: list[str], **_: object) -> np.ndarray:
        assert len(texts) == len(self.query_vectors)
        return self.query_vectors

    def encode_document(self, texts: list[str], **_: object) -> np.ndarray:
        assert len(texts) == len(self.document_vectors)
        return self.document_vectors


def run_peer(folder: Path, args: argparse.Namespace, use_faiss: bool) -> dict[str, object]:
    import faiss  # noqa: F401
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    queries, documents, query_vectors, document_vectors = inputs(folder)
    dataset = Dataset.from_dict({"query": queries, "positive": documents})
    before = now_mb()
    start = time.perf_counter()
    mined = mine_hard_negatives(
        dataset,
        GivenVectors(query_vectors, document_vectors),
        range_max=RANGE,
        num_negatives=args.negatives,
        relative_margin=MARGIN,
        use_faiss=use_faiss,
        output_format=args.format,
        output_scores=True,
        verbose=False,
    )
    seconds = time.perf_counter() - start
    peak = peak_mb()
    if args.format == "n-tuple":
        mined.to_parquet(str(folder / "peer.parquet"))
    return {"seconds": seconds, "before": before, "peak": peak}


def same_negatives(folder: Path, count: int) -> dict[str, int]:
    """Of the first `count` rows of both exports: rows in both, equal lists, lists equal but for ties."""
    import pyarrow.parquet as pq

    ours = {row["query"]: row for row in pq.read_table(folder / "export.parquet").to_pylist()}
    theirs = {row["query"]: row for row in pq.read_table(folder / "peer.parquet").slice(0, count).to_pylist()}
    result = {"compared": 0, "equal": 0, "equal_but_for_ties": 0, "different": 0, "only_theirs": 0}
    for query, row in theirs.items():
        if query not in ours:
            result["only_theirs"] += 1
            continue
        result["compared"] += 1
        names = [name for name in row if name.startswith("negative_")]
        a, b = [ours[query][n] for n in names], [row[n] for n in names]
        close = np.allclose(sorted(ours[query]["scores"]), sorted(row["scores"]), atol=2e-6)
        result["equal" if a == b else "equal_but_for_ties" if close else "different"] += 1
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with banking77/minilm and cranfield/minilm")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--format", default="n-tuple", choices=["n-tuple", "triplet"])
    parser.add_argument("--negatives", type=int, default=7)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=["hardneg", "st-faiss", "st-torch"])
    parser.add_argument("--system", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.system:
        run = run_hardneg if args.system == "hardneg" else lambda f, a: run_peer(f, a, args.system == "st-faiss")
        print(json.dumps(run(args.folder, args)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_vectors(args.data, args.count, folder)
        results: dict[str, list[dict[str, float]]] = {system: [] for system in args.systems}
        for _ in range(args.repeat):
            for system in args.systems:
                common = ["--format", args.format, "--negatives", str(args.negatives), "--folder", name]
                results[system].append(in_own_process(__file__, "--system", system, *common))
        print(machine())
        print(versions("hardneg", "sentence-transformers", "faiss-cpu", "torch"))
        print(
            f"{args.count:,} x {args.count:,} x 384, {args.negatives} negatives, relative margin {MARGIN}, {args.format}"
        )
        print(f"{'system':<10} {'seconds: median (range)':<26} {'peak MB':>9} {'MB above inputs':>16}")
        for system, runs in results.items():
            peaks = sorted(r["peak"] for r in runs)
            above = sorted(r["peak"] - r["before"] for r in runs)
            middle = len(runs) // 2
            times = median_and_spread([r["seconds"] for r in runs])
            print(f"{system:<10} {times:<26} {peaks[middle]:>9,.0f} {above[middle]:>16,.0f}")
        if "hardneg" in results:
            print("hardneg by stage:", results["hardneg"][-1]["timings"])
        if args.format == "n-tuple" and {"hardneg", "st-faiss"} <= set(results):
            print("negatives of 1,000 queries against the faiss path:", same_negatives(folder, 1000))


if __name__ == "__main__":
    main()
