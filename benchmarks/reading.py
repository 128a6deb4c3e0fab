"""Reading a dataset: 1M pairs in JSON lines, CSV and Parquet, against `datasets` and polars; megabytes a second, peak memory.

    python benchmarks/reading.py
    python benchmarks/reading.py --count 100000 --only jsonl

hardneg makes a dataset of the file: texts are checked, folded and hashed, equal ones become one, ids are made. The peers load rows
as they are (`datasets` writes them to its cache, polars holds them in memory), so what they do is a part of it. `datasets` gets
a new cache each time. Texts are made of words with the frequencies of natural language, 60 and 400 characters long in the mean;
a tenth of the documents are the positive of two queries. Every system in a process of its own, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import in_own_process, machine, median_and_spread, now_mb, peak_mb, versions

KINDS = ("jsonl", "csv", "parquet")
SYSTEMS = ("hardneg", "datasets", "polars")


def texts(count: int, words: int, seed: int) -> list[str]:
    """`count` texts of about so many words, drawn with Zipf's frequencies."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = ["".join(rng.choice(letters, rng.integers(2, 11))) for _ in range(30_000)]
    lengths = rng.poisson(words, count) + 1
    drawn = np.minimum(rng.zipf(1.3, int(lengths.sum())) - 1, len(vocabulary) - 1)
    ends = np.cumsum(lengths)
    return [
        " ".join(vocabulary[w] for w in drawn[end - length : end]) + f" {i}"
        for i, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True))
    ]


def write(folder: Path, count: int) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    queries, positives = texts(count, 9, 0), texts(count, 60, 1)
    for i in range(0, count - 1, 10):
        positives[i + 1] = positives[i]
    with open(folder / "pairs.jsonl", "w") as file:
        for query, positive in zip(queries, positives, strict=True):
            file.write(json.dumps({"query": query, "positive": positive}) + "\n")
    table = pa.table({"query": queries, "positive": positives})
    pyarrow.csv.write_csv(table, folder / "pairs.csv")
    pq.write_table(table, folder / "pairs.parquet")


def measure(system: str, path: Path) -> dict[str, float]:
    kind = path.suffix[1:]
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        if system == "hardneg":
            import hardneg

            def read() -> int:
                return len(hardneg.read_pairs(str(path), folder=Path(scratch) / "dataset"))
        elif system == "datasets":
            import datasets

            datasets.disable_progress_bars()

            def read() -> int:
                name = "json" if kind == "jsonl" else kind
                return len(datasets.load_dataset(name, data_files=str(path), split="train", cache_dir=scratch))
        else:
            import polars

            def read() -> int:
                open_ = {"jsonl": polars.read_ndjson, "csv": polars.read_csv, "parquet": polars.read_parquet}[kind]
                return len(open_(path))

        Path("/proc/self/clear_refs").write_text("5")
        before, start, worked = now_mb(), time.perf_counter(), time.process_time()
        rows = read()
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        return {"seconds": seconds, "worked": worked, "memory": peak_mb() - before, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], Path(args.one[1]))))
        return
    print(machine(), f"· {args.count:,} pairs")
    print(versions("hardneg", "datasets", "polars", "pyarrow"))
    print(
        "| file | MB | system | seconds: median (range) | of `datasets` | CPU seconds | MB a second | peak MB above the start |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.count)
        for kind in KINDS if args.only is None else (args.only,):
            path = Path(folder) / f"pairs.{kind}"
            size = path.stat().st_size / 1e6
            found = {system: [] for system in SYSTEMS}
            for _ in range(args.repeat):
                for system in SYSTEMS:
                    found[system].append(in_own_process(__file__, "--one", system, str(path)))
            peer = statistics.median(run["seconds"] for run in found["datasets"])
            for system, runs in found.items():
                seconds = [run["seconds"] for run in runs]
                worked = statistics.median(run["worked"] for run in runs)
                print(
                    f"| {kind} | {size:,.0f} | {system} | {median_and_spread(seconds)} | "
                    f"{statistics.median(seconds) / peer:.1f} | {worked:.1f} | {size / statistics.median(seconds):,.0f} | "
                    f"{max(run['memory'] for run in runs):,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
