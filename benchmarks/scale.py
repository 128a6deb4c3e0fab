"""What a pass takes as the corpus grows: seconds, memory and bytes a document, and how often the corpus is read.

Texts are generated: each document has some 40 words, drawn by Zipf's law from the words of its own topic and of all. Queries are
generated in the same way; each has the first document of its topic as its positive. Vectors are a mixture of Gaussians (`given`), or
those of the hashed encoder (`hashed`). Every size runs in a process of its own. Memory is what is no mapped file (anonymous): the
most of it at one time, sampled every 20 ms, less what was there before the dataset; the bytes of each further document are the slope
of its least-squares line. Passes are counted by the rows that the index reads.

    python benchmarks/scale.py --documents 100000 300000 1000000 --vectors given hashed
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import in_own_process, machine, peak_mb, status_mb, unit, versions

WORDS, TOPICS, DIMENSION = 200_000, 4000, 64


def write_texts(
    path: Path, ids: str, topics: np.ndarray, words: int, seed: int, positives: np.ndarray | None = None
) -> None:
    generator = np.random.default_rng(seed)
    vocabulary = np.array([f"w{i:x}" for i in range(WORDS)])
    with open(path, "w") as file:
        for start in range(0, len(topics), 10_000):
            here = topics[start : start + 10_000]
            common = np.minimum(generator.zipf(1.3, (len(here), words // 2)), WORDS) - 1
            own = (here[:, None] * 37 + np.minimum(generator.zipf(1.5, (len(here), words - words // 2)), 5000)) % WORDS
            for i, row in enumerate(vocabulary[np.concatenate([common, own], 1)]):
                number = start + i
                entry = {"_id": f"{ids}{number}", "text": " ".join(row)}
                if positives is not None:
                    entry = {
                        "query_id": f"{ids}{number}",
                        "query": entry["text"],
                        "document_id": f"d{positives[number]}",
                    }
                file.write(json.dumps(entry) + "\n")


def make(folder: Path, documents: int, queries: int, vectors: str) -> None:
    generator = np.random.default_rng(0)
    topics, asked = generator.integers(0, TOPICS, documents), generator.integers(0, TOPICS, queries)
    first = np.full(TOPICS, 0)
    first[topics[::-1]] = np.arange(documents)[::-1]
    corpus = folder / "beir"
    (corpus / "qrels").mkdir(parents=True)
    write_texts(corpus / "corpus.jsonl", "d", topics, 40, 1)
    write_texts(corpus / "queries.jsonl", "q", asked, 10, 2)
    lines = [f"q{i}\td{first[t]}\t1" for i, t in enumerate(asked)]
    (corpus / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    if vectors == "given":
        centers = generator.standard_normal((TOPICS, DIMENSION), np.float32)
        for name, of in (("documents", topics), ("queries", asked)):
            out = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, (len(of), DIMENSION))
            for start in range(0, len(of), 100_000):
                here = of[start : start + 100_000]
                out[start : start + len(here)] = unit(centers[here] + generator.standard_normal((len(here), DIMENSION)))
            out.flush()


class Watched(threading.Thread):
    """The most anonymous memory of this process."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.stopped = 0.0, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.02):
            self.peak = max(self.peak, status_mb("RssAnon"))


def count_rows(documents: int) -> list[int]:
    """Count the rows of the corpus that indexes read, from here on."""
    from hardneg.index.vectors import VectorStore

    read, init = [0], VectorStore.__init__

    class Counted:
        def __init__(self, array: Any) -> None:
            self.array, self.shape, self.dtype, self.ndim, self.size = array, array.shape, array.dtype, 2, array.size

        def __len__(self) -> int:
            return len(self.array)

        def __getitem__(self, rows: Any) -> Any:
            found = self.array[rows]
            read[0] += len(found)
            return found

    def watched(self: Any, given: Any, *more: Any, **named: Any) -> None:
        init(self, given if isinstance(given, Counted) else Counted(given), *more, **named)

    VectorStore.__init__ = watched  # type: ignore[method-assign]
    return read


def run(folder: Path, vectors: str, documents: int) -> dict[str, Any]:
    import hardneg
    from hardneg.data.read import read_pairs

    hardneg.mine(  # loads what a pass loads
        hardneg.Pairs.from_columns([f"question {i}" for i in range(50)], [f"answer {i}" for i in range(50)]),
        folder / "small", depth=5, negatives=1, encoder="hashed",
    )  # fmt: skip
    start, before = time.perf_counter(), status_mb("RssAnon")
    watch = Watched()
    watch.start()
    read_pairs(str(folder / "beir"), folder=folder / "read")
    reading, read_peak, watch.peak = time.perf_counter() - start, watch.peak, 0.0
    rows = count_rows(documents)
    start = time.perf_counter()
    given = {} if vectors == "hashed" else {
        "query_embeddings": str(folder / "queries.npy"), "corpus_embeddings": str(folder / "documents.npy"),
    }  # fmt: skip
    made = hardneg.mine(str(folder / "beir"), folder / "run", depth=50, negatives=7, recall=0.9, **given)
    mining, mine_peak, watch.peak = time.perf_counter() - start, watch.peak, 0.0
    start = time.perf_counter()
    made.select(folder / "selected", add_filters=("rank:min=3",))
    selecting, select_peak = time.perf_counter() - start, watch.peak
    watch.stopped.set()
    held = [peak - before for peak in (read_peak, mine_peak, select_peak)]
    return {
        "read": reading, "mine": mining, "select": selecting, "timings": made.info["timings"], "peak": peak_mb(),
        "held": held, "passes": rows[0] / documents,
        "index": made.info["resolved"]["index"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--vectors", nargs="+", choices=("given", "hashed"), default=["given", "hashed"])
    parser.add_argument("--place", type=Path, help="where the data is made; by default, a temporary folder")
    parser.add_argument("--one", choices=("given", "hashed"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.folder, args.one, args.documents[0])))
        return
    print(machine())
    print(versions("hardneg", "faiss-cpu", "torch", "numpy", "pyarrow"))
    for vectors in args.vectors:
        print(f"\n{vectors} vectors, {args.queries:,} queries, depth 50 (seconds; MB of anonymous memory)")
        names = ("read", "mine", "select", "peak MB", "MB read", "MB mine", "MB select", "passes")
        print(f"{'documents':>11}" + "".join(f"{name:>10}" for name in names) + "  index")
        found = []
        for documents in args.documents:
            with tempfile.TemporaryDirectory(dir=args.place) as place:
                make(Path(place), documents, args.queries, vectors)
                r = in_own_process(__file__, "--one", vectors, "--folder", place, "--documents", str(documents))
            found.append(r)
            cells = [r["read"], r["mine"], r["select"], r["peak"], *r["held"], r["passes"]]
            print(f"{documents:>11,}" + "".join(f"{cell:>10.1f}" for cell in cells) + f"  {r['index']}", flush=True)
            print(
                " " * 11 + json.dumps({name: round(seconds, 1) for name, seconds in r["timings"].items()}), flush=True
            )
        if len(found) > 1:
            size = np.log(args.documents)
            stages = ("read", "mine", "select")
            exponents = [np.polyfit(size, np.log([r[name] for r in found]), 1)[0] for name in stages]
            slopes = [np.polyfit(args.documents, [r["held"][i] * 2**20 for r in found], 1)[0] for i in range(3)]
            print(
                "exponents of the seconds: " + ", ".join(f"{n} {x:.2f}" for n, x in zip(stages, exponents, strict=True))
            )
            print(
                "bytes of each further document: "
                + ", ".join(f"{n} {x:.0f}" for n, x in zip(stages, slopes, strict=True))
            )


if __name__ == "__main__":
    main()
