"""The real sets with their given MiniLM vectors, end to end, under the field's filters; sentence-transformers beside.

    python benchmarks/real_sets.py --data ../shared/data

Banking77 has one known positive a query and the truth in groups.tsv: a negative of the query's own intent is
false. hardneg runs as a command in a process of its own, so its seconds hold the start of Python; the peer's
begin when it is called. Counted are queries with a positive, the only ones that the peer knows.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import PeerModel, in_own_process, machine, median_and_spread, versions

DEPTH = 300
FILTERS: dict[str, list[str]] = {
    "none": [],
    "rank:min=51": ["rank:min=51"],
    "score:max=0.6": ["score:max=0.6"],
    "margin:relative=0.05": ["margin:relative=0.05"],
    "group": ["group"],
}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def groups_of(data: Path) -> dict[str, str]:
    if not (data / "groups.tsv").exists():
        return {}
    with open(data / "groups.tsv", encoding="utf-8") as f:
        return dict(line for line in csv.reader(f, delimiter="\t"))


def run_hardneg(data: Path, filters: list[str], out: Path) -> dict[str, object]:
    import pyarrow.parquet as pq

    command = ["hardneg", "mine", str(data), "--out", str(out), "--overwrite", "--json", "--depth", str(DEPTH)]
    command += ["--max-depth", str(DEPTH)]
    for side in ("query", "corpus"):
        name = "queries" if side == "query" else "corpus"
        command += [f"--{side}-embeddings", str(data / "minilm" / f"{name}.npy")]
    for spec in filters:
        command += ["--filter", spec]
    start = time.perf_counter()
    code = "import sys; from hardneg_cli.main import main; main(sys.argv[1:])"
    subprocess.run(
        [sys.executable, "-c", code, *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start
    # The peer knows no queries without a positive.
    negatives = [row for row in pq.read_table(out / "negatives.parquet").to_pylist() if row["positive_ids"]]
    pairs = [(row["query_id"], id) for row in negatives for id in row["negative_ids"]]
    scores = [score for row in negatives for score in row["negative_scores"]]
    return {
        "seconds": seconds,
        "queries": len(negatives),
        "short": sum(len(row["negative_ids"]) < 7 for row in negatives),
        **figures(data, pairs, scores),
    }


def figures(data: Path, pairs: list[tuple[str, str]], scores: list[float]) -> dict[str, object]:
    groups = groups_of(data)
    false = [groups[q] == groups[d] for q, d in pairs if q in groups and d in groups]
    return {
        "negatives": len(pairs),
        "score": float(np.mean(scores)) if scores else float("nan"),
        "false": float(np.mean(false)) if false else float("nan"),
    }


class GivenVectors(PeerModel):
    """What `mine_hard_negatives` asks of a model, answered from the given vectors by text."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors, self.dimension = vectors, len(next(iter(vectors.values())))

    def _encode(self, texts: list[str], **_: object) -> np.ndarray:
        return np.stack([self.vectors[text] for text in texts])

    encode_query = encode_document = _encode


def run_peer(data: Path, margin: float | None) -> dict[str, object]:
    import faiss  # noqa: F401
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    queries = {row["_id"]: row["text"] for row in rows(data / "queries.jsonl")}
    corpus = {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in rows(data / "corpus.jsonl")}
    vectors: dict[str, np.ndarray] = {}
    for name, texts in (("queries", queries), ("corpus", corpus)):
        array = np.load(data / "minilm" / f"{name}.npy").astype(np.float32)
        vectors |= dict(zip(texts.values(), array, strict=True))
    with open(data / "qrels" / "train.tsv", encoding="utf-8") as f:
        judged = [row for row in csv.DictReader(f, delimiter="\t") if float(row["score"]) > 0]
    dataset = Dataset.from_dict(
        {"query": [queries[r["query-id"]] for r in judged], "positive": [corpus[r["corpus-id"]] for r in judged]}
    )
    start = time.perf_counter()
    mined = mine_hard_negatives(
        dataset, GivenVectors(vectors), corpus=list(corpus.values()), range_max=DEPTH, num_negatives=7,
        relative_margin=margin, use_faiss=True, output_format="labeled-list", output_scores=True, verbose=False,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    query_of = {queries[r["query-id"]]: r["query-id"] for r in judged}
    document_of = {text: id for id, text in corpus.items()}
    positives = {(r["query-id"], r["corpus-id"]) for r in judged}
    pairs, scores, counts = [], [], dict.fromkeys((r["query-id"] for r in judged), 0)
    for row in mined.to_list():
        query = query_of[row["query"]]
        for text, score in zip(row["positive"], row["scores"], strict=True):
            if (query, document_of[text]) not in positives:
                pairs.append((query, document_of[text]))
                scores.append(score)
                counts[query] += 1
    short = sum(count < 7 for count in counts.values())
    return {"seconds": seconds, "queries": len(counts), "short": short, **figures(data, pairs, scores)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, _, kind = args.one.partition("|")
        print(json.dumps(run_peer(args.data / name, 0.05 if kind == "margin" else None)))
        return
    print(machine())
    print(versions("hardneg", "sentence-transformers", "faiss-cpu", "torch"))
    heads = f"{'negatives/query':>16} {'short':>6} {'mean score':>11} {'false':>7}"
    print(f"{'set':<10} {'system':<10} {'filter':<22} {'seconds: median (range)':<24} {'queries':>8} {heads}")
    for name in ("banking77", "cranfield"):
        data = args.data / name
        jobs = [("hardneg", label) for label in FILTERS if label != "group" or (data / "groups.tsv").exists()]
        jobs += [("st-faiss", "none"), ("st-faiss", "margin:relative=0.05")]
        for system, label in jobs:
            found = []
            for _ in range(args.repeat):
                if system == "hardneg":
                    with tempfile.TemporaryDirectory() as place:
                        found.append(run_hardneg(data, FILTERS[label], Path(place) / "run"))
                else:
                    kind = "margin" if label.startswith("margin") else "none"
                    found.append(in_own_process(__file__, "--data", str(args.data), "--one", f"{name}|{kind}"))
            last = found[-1]
            seconds = median_and_spread([float(r["seconds"]) for r in found])
            each = last["negatives"] / last["queries"]
            false = "-" if np.isnan(last["false"]) else f"{last['false']:.3f}"
            print(
                f"{name:<10} {system:<10} {label:<22} {seconds:<24} {last['queries']:>8,} "
                f"{each:>16.2f} {last['short']:>6,} {last['score']:>11.3f} {false:>7}",
                flush=True,
            )


if __name__ == "__main__":
    main()
