"""Vectors that do not belong to the texts, in any order of memory, or that are no numbers in one of several files."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import hardneg
from hardneg import DataError, MineOptions, Pairs, RunError, UsageError, mine
from hardneg.mining import sanity

SHORT = MineOptions(depth=8, negatives=2)


def dataset(n: int) -> tuple[Pairs, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((n, 24)).astype(np.float32)
    documents = (queries + 0.3 * rng.standard_normal((n, 24))).astype(np.float32)
    return Pairs.from_columns([f"q{i}" for i in range(n)], [f"d{i}" for i in range(n)]), queries, documents


def doubts(run: hardneg.Run) -> list[str]:
    return [note for note in run.info["warnings"] if "no better than random documents" in note]


def test_few_queries_with_the_wrong_vectors_are_told(tmp_path: Path) -> None:
    pairs, queries, documents = dataset(150)
    assert doubts(mine(pairs, tmp_path / "right", SHORT, vectors=(queries, documents))) == []
    wrong = documents[np.random.default_rng(0).permutation(150)]
    (note,) = doubts(mine(pairs, tmp_path / "wrong", SHORT, vectors=(queries, wrong)))
    assert "of 150 queries" in note
    assert note.endswith("or are in another order than the source, mine again with the right ones")
    few = dataset(15)
    assert doubts(mine(few[0], tmp_path / "few", SHORT, vectors=(few[1], few[2][::-1]))) == []


@pytest.mark.parametrize(
    ("share", "error", "count", "found"),
    [
        (0.5, 0.01, 200, "refused"),
        (0.5, 0.01, 199, "told"),
        (0.5, 0.04, 200, "told"),  # the interval of 4 errors holds 0.6, that of 2 does not
        (0.5, 0.05, 200, ""),
        (0.5, 0.01, 20, "told"),
        (0.5, 0.01, 19, ""),
        (0.7, 0.01, 1000, ""),
    ],
)
def test_what_is_certain_is_refused(
    share: float, error: float, count: int, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanity, "beats_random", lambda *given: (share, error, count))
    pairs, queries, _ = dataset(20)
    if found == "refused":
        with pytest.raises(DataError, match="no better than random"):
            sanity.check_positives(pairs, queries, None, 0, True, False)  # type: ignore[arg-type]
    else:
        said = sanity.check_positives(pairs, queries, None, 0, True, False)  # type: ignore[arg-type]
        assert bool(said) == (found == "told")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_the_order_of_memory_changes_no_bit(dtype: type, tmp_path: Path) -> None:
    pairs, queries, documents = dataset(300)
    queries, documents = queries.astype(dtype), documents.astype(dtype)
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"query": f"q{i}", "positive": f"d{i}"}) + "\n" for i in range(300))
    )
    (tmp_path / "F").mkdir()
    for name, array in (("q", queries), ("d", documents)):
        np.save(tmp_path / f"C{name}.npy", array)
        np.save(tmp_path / f"F{name}.npy", np.asfortranarray(array))
        for i in range(3):
            np.save(tmp_path / "F" / f"{name}{i}.npy", np.asfortranarray(array[100 * i : 100 * i + 100]))
    files = {"C": ("Cq.npy", "Cd.npy"), "F": ("Fq.npy", "Fd.npy"), "shards": ("F/q*.npy", "F/d*.npy")}
    runs = {
        name: mine(
            str(tmp_path / "p.jsonl"),
            tmp_path / f"run-{name}",
            SHORT,
            query_embeddings=str(tmp_path / q),
            corpus_embeddings=str(tmp_path / d),
        )
        for name, (q, d) in files.items()
    }
    wide = np.zeros((300, 48), dtype)
    wide[:, :24] = documents
    if dtype != np.float64:
        runs["memory"] = mine(pairs, tmp_path / "m", SHORT, vectors=(np.asfortranarray(queries), wide[:, :24]))
    content = {name: run.candidate_files()[0].read_bytes() for name, run in runs.items() if name != "memory"}
    assert content["F"] == content["C"]
    assert content["shards"] == content["C"]
    if "memory" in runs:
        scores = [runs[name].negatives()["negative_scores"].to_pylist() for name in ("C", "memory")]
        assert scores[0] == scores[1]


def sharded(tmp_path: Path, value: float, dtype: type = np.float32) -> MineOptions:
    _, queries, documents = dataset(60)
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"query": f"q{i}", "positive": f"d{i}"}) + "\n" for i in range(60))
    )
    documents = documents.astype(dtype)
    documents[47] = value
    np.save(tmp_path / "q.npy", queries)
    for i in range(3):
        np.save(tmp_path / f"d{i}.npy", documents[20 * i : 20 * i + 20])
    return MineOptions(
        depth=8,
        negatives=2,
        query_embeddings=str(tmp_path / "q.npy"),
        corpus_embeddings=str(tmp_path / "d*.npy"),
    )


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, np.float32), (np.inf, np.float32), (0, np.float32), (1e300, np.float64)]
)
def test_a_bad_row_is_named_with_its_file(value: float, dtype: type, tmp_path: Path) -> None:
    options = sharded(tmp_path, value, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"1 of 60 corpus vectors .*: rows 47 \(the first is row 7 of .*d2\.npy\)"):
            mine(str(tmp_path / "p.jsonl"), tmp_path / "run", options)


def test_a_damaged_run_says_what_to_do(tmp_path: Path) -> None:
    pairs, queries, documents = dataset(60)
    run = mine(pairs, tmp_path / "run", SHORT, vectors=(queries, documents))
    path = run.candidate_files()[0]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        RunError, match="does not fit its checksum .*: the run is damaged: mine again, or restore a copy"
    ):
        hardneg.Run(tmp_path / "run")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("name", ["queries.arrow", "corpus.arrow"])
def test_a_full_disk_names_the_file_of_texts(name: str, tmp_path: Path) -> None:
    (tmp_path / f".{name}.tmp").symlink_to("/dev/full")
    rows = [{"query": f"q{i}" * 50, "positive": f"d{i}" * 50} for i in range(9000)]
    with pytest.raises(OSError, match="No space left on device") as raised:
        hardneg.read_pairs(rows, folder=tmp_path)
    assert raised.value.filename == str(tmp_path / name)
    assert not isinstance(raised.value, UsageError)


CUT = """
import os, sys
from pathlib import Path
import numpy as np
from hardneg import DataError
from hardneg.index.exact import ExactIndex
from hardneg.index.vectors import VectorStore
from hardneg.encoders.precomputed import open_vectors
from hardneg.storage.arrays import Rows

place = sys.argv[1]
vectors = np.random.default_rng(0).standard_normal((4000, 64)).astype("f4")
for kind in ("norms", "queries", "search", "pairs", "shards", "rows"):
    for i in range(2):
        np.save(f"{place}/{kind}{i}.npy", vectors[2000 * i : 2000 * i + 2000])
    np.save(f"{place}/{kind}.npy", vectors)
    documents = open_vectors(f"{place}/{kind}?.npy" if kind == "shards" else f"{place}/{kind}.npy").array
    documents = Rows(documents, np.arange(4000)[::-1]) if kind == "rows" else documents
    index = VectorStore(np.zeros((1, 64), "f4") + 1) if kind in ("queries", "norms") else ExactIndex(documents)
    os.truncate(f"{place}/{kind}{'1' if kind == 'shards' else ''}.npy", 5000)
    try:
        if kind == "norms":
            ExactIndex(documents)
        elif kind == "queries":
            index.prepared(documents[1000:2000])
        elif kind == "pairs":
            index.pair_scores(vectors[:2], np.array([[3900], [5]]))
        else:
            index.search(vectors[:2], 5)
    except DataError as error:
        print(error)
"""


def test_a_file_that_is_cut_off_while_it_is_used_does_not_kill(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    for kind, line in zip(("norms", "queries", "search", "pairs", "shards1", "rows"), said, strict=True):
        assert f"{kind}.npy was cut off while it was in use: write it again" in line
