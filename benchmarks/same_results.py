"""Whether two versions of hardneg make the same files: a check for changes that must not change any result.

    python benchmarks/same_results.py record OLD --data DATA                 # with the one version
    python benchmarks/same_results.py record NEW --data DATA                 # with the other
    python benchmarks/same_results.py compare OLD/digests.json NEW/digests.json

`record` mines, calibrates, judges, selects, diagnoses, compares, exports and trains on Banking77 and Cranfield (BEIR
folders with MiniLM vectors in `minilm/`) and on builtin:pycode, through the command line, and writes a SHA-256 of every
file. JSON is compared without the times, versions and command lines it records. Words that a version renamed count as
equal (`RENAMED`): options, and names of features and filters.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# What was renamed since version 0.1.0, old -> new.
RENAMED = {
    "crowd_query": "shared_query", "crowd_positive": "shared_positive", "crowd_votes": "shared_votes",
    "reach_query": "local_score_query", "reach_positive": "local_score_positive",
    "crowd:max": "shared-neighbors:max", "crowd": "shared-neighbors",
    "policy": "negative_sampling", "rate": "lr_scheduler", "clip": "max_grad_norm", "chunk": "mini_batch_size",
}  # fmt: skip
VOLATILE = {"timings", "environment", "command", "hardneg_version", "seconds", "swap_seconds", "evaluation/seconds"}


def hardneg(folder: Path, *args: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hardneg_cli", *args], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != expect:
        raise SystemExit(f"hardneg {' '.join(args)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def fill_judgements(path: Path, groups: Path) -> None:
    """Judge a drawn sample by the truth: documents of the query's group are relevant."""
    with open(groups, encoding="utf-8", newline="") as f:
        group = {row["id"]: row["group"] for row in csv.DictReader(f, delimiter="\t")}
    with open(path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        row["relevant"] = str(int(group[row["query_id"]] == group[row["document_id"]]))
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def with_vectors(folder: Path, data: Path, renamed: dict[str, str]) -> None:
    """A dataset with vectors: every index, filter and sampler, then judgements, then what is made of a run."""
    name = data.name
    given = [
        str(data),
        "--query-embeddings",
        f"{data}/minilm/queries.npy",
        "--corpus-embeddings",
        f"{data}/minilm/corpus.npy",
    ]
    shared = renamed.get("crowd:max", "crowd:max")
    runs = {
        "exact": ["--depth", "300", "--filter", "margin:relative=0.05"],
        "ivf": ["--index", "ivf", "--recall", "0.9", "--sampler", "simans", "--filter", "rank:min=3"],
        "hnsw": ["--index", "hnsw", "--sampler", "softmax:temperature=0.1", "--filter", "score:max=0.9"],
        "ip": ["--metric", "ip", "--filter", "duplicate:near=0.95", "--filter", "distinct"],
        "l2": ["--metric", "l2", "--sampler", "uniform", "--negatives", "4"],
        "shared": ["--depth", "100", "--filter", f"{shared}=0.25"],
    }
    for run, options in runs.items():
        hardneg(folder, "mine", *given, "--out", f"{name}-{run}", *options)
    hardneg(folder, "calibrate", f"{name}-exact", "--out", f"{name}-known.json")
    hardneg(folder, "select", f"{name}-exact", "--filter", f"posterior:{name}-known.json", "--out", f"{name}-select")
    if (data / "groups.tsv").exists():
        hardneg(folder, "judge", f"{name}-exact", "--sample", "300", "--out", f"{name}-f.csv")
        fill_judgements(folder / f"{name}-f.csv", data / "groups.tsv")
        hardneg(
            folder, "calibrate", f"{name}-exact", f"{name}-f.csv", "--uncertified", "--out", f"{name}-certified.json"
        )
        hardneg(
            folder, "calibrate", f"{name}-exact", f"{name}-f.csv", "--learn", "judged", "--out", f"{name}-judged.json"
        )
        hardneg(folder, "calibrate", f"{name}-exact", "--learn", "groups", "--out", f"{name}-groups.json")
    for run in ("exact", "select", "ivf"):
        (folder / f"{name}-{run}-diagnosis.json").write_text(hardneg(folder, "diagnose", f"{name}-{run}", "--json"))
    (folder / f"{name}-comparison.json").write_text(
        hardneg(folder, "compare", f"{name}-exact", f"{name}-select", "--json")
    )
    (folder / f"{name}-evaluation.json").write_text(hardneg(folder, "evaluate", *given, "--json"))
    for layout in ("triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron"):
        hardneg(folder, "export", f"{name}-select", "--format", layout, "--scores", "--out", f"{name}-{layout}.jsonl")
    hardneg(folder, "export", f"{name}-select", "--format", "trec", "--out", f"{name}.trec")
    hardneg(folder, "export", f"{name}-select", "--format", "beir", "--out", f"{name}-beir")


def trained(folder: Path, source: str, renamed: dict[str, str]) -> None:
    """Two trainings: refresh, bank, sketches and learned posterior; momentum, gradient caching and a margin."""
    name = source.replace("builtin:", "").rsplit("/", 1)[-1]
    policy, chunk, rate = (
        "--" + renamed.get(option, option).replace("_", "-") for option in ("policy", "chunk", "rate")
    )
    shared = renamed.get("crowd:max", "crowd:max")
    runs = {
        "one": ["--steps", "60", "--refresh", "steps:20", policy, "simans", "--filter", "posterior:learned", "--bank", "512",
                "--bank-start", "10", "--bank-age", "20", "--save-every", "30"],
        "two": ["--steps", "30", "--refresh", "steps:10", "--share", "0.5", "--filter", "margin:relative=0.05", "--filter",
                f"{shared}=0.3", "--bank", "256", "--bank-start", "5", "--momentum", "0.9", chunk, "16", rate, "cosine",
                "--learn-temperature", "--symmetric"],
    }  # fmt: skip
    for run, options in runs.items():
        hardneg(
            folder, "train", source, "--out", f"{name}-trained-{run}", "--batch-size", "32", "--threads", "2", *options
        )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under `folder`, JSON without what differs from run to run."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "digests.json"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json" or name.endswith("log.jsonl"):
            lines = path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
            data = "\n".join(canonical(json.loads(line)) for line in lines).encode()
        elif path.suffix == ".parquet":
            data = parquet_bytes(path)
        elif path.suffix == ".safetensors":
            data = tensor_bytes(path)
        else:
            data = path.read_bytes()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def parquet_bytes(path: Path) -> bytes:
    """The file itself; where it holds a verdict that was renamed, its rows with the new names."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    verdicts = set(table["verdict"].to_pylist()) if "verdict" in table.column_names else set()
    if not verdicts & {*RENAMED, *RENAMED.values()}:
        return path.read_bytes()
    rows = table.to_pydict()
    rows["verdict"] = [RENAMED.get(value, value) for value in rows["verdict"]]
    return json.dumps(rows).encode()


def tensor_bytes(path: Path) -> bytes:
    """Names and values of all tensors but numpy's global random numbers, which nothing here seeds."""
    from safetensors.numpy import load_file

    tensors = {name: array for name, array in load_file(path).items() if not name.endswith("random.numpy")}
    return b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))


def canonical(value: Any) -> str:
    text = json.dumps(_stable(value), sort_keys=True, ensure_ascii=False)
    return re.sub(r'"files": \{[^}]*\}|"sha256": "[0-9a-f]{64}"', "", text)


def _stable(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        # The fingerprint of a posterior is that of its file, which is compared itself.
        kept = {
            name: each for name, each in value.items() if name not in VOLATILE and not name.startswith("posterior:")
        }
        return {RENAMED.get(name, name): _stable(each, name) for name, each in kept.items()}
    if isinstance(value, list):
        # A checkpoint's pairs of names and values; nothing here seeds the global random numbers of Python and numpy.
        return [_stable(each) for each in value if not (isinstance(each, list) and each[:1] in (["python"], ["numpy"]))]
    if isinstance(value, str):
        for old in sorted(RENAMED, key=len, reverse=True):
            value = re.sub(rf"(?<![\w-]){re.escape(old)}(?![\w-])", RENAMED[old], value)
    return value


def record(args: argparse.Namespace) -> None:
    folder = Path(args.folder).resolve()
    folder.mkdir(parents=True)
    import hardneg as package

    print(f"recording {package.__file__}", flush=True)
    options = hardneg(folder, "train", "--help")
    renamed = RENAMED if "--negative-sampling" in options else {}
    for name in ("banking77", "cranfield"):
        start = time.perf_counter()
        with_vectors(folder, Path(args.data).resolve() / name, renamed)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    start = time.perf_counter()
    hardneg(folder, "mine", "builtin:pycode", "--out", "pycode-run", "--filter", "margin:relative=0.05")
    hardneg(folder, "calibrate", "pycode-run", "--out", "pycode-known.json")
    (folder / "pycode-diagnosis.json").write_text(hardneg(folder, "diagnose", "pycode-run", "--json"))
    trained(folder, "builtin:pycode", renamed)
    trained(folder, str(Path(args.data).resolve() / "banking77"), renamed)
    print(f"pycode and training: {time.perf_counter() - start:.0f} s", flush=True)
    (folder / "digests.json").write_text(json.dumps(digests(folder), indent=1))


def compare(args: argparse.Namespace) -> None:
    old, new = (json.loads(Path(path).read_text()) for path in (args.old, args.new))
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    for name in changed:
        print(f"differs: {name}{'' if name in old and name in new else ' (only in one)'}")
    print(f"{len(old):,} files before, {len(new):,} after, {len(changed):,} differ")
    sys.exit(1 if changed else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("record")
    one.add_argument("folder")
    one.add_argument("--data", required=True, help="a folder with banking77 and cranfield")
    one.set_defaults(run=record)
    two = commands.add_parser("compare")
    two.add_argument("old")
    two.add_argument("new")
    two.set_defaults(run=compare)
    three = commands.add_parser("digest", help="digests of a recorded folder again")
    three.add_argument("folder")
    three.set_defaults(
        run=lambda a: (Path(a.folder) / "digests.json").write_text(json.dumps(digests(Path(a.folder)), indent=1))
    )
    given = parser.parse_args()
    given.run(given)
