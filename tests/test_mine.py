"""The whole pass: against a naive miner, the same bytes whatever happens, and what stands in the run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import hardneg.mining.miner as miner_module
import hardneg.mining.parts as parts_module
import hardneg.mining.run as run_module
from hardneg import (
    DataError,
    HashedEncoder,
    MineOptions,
    Pairs,
    ReadOptions,
    Run,
    RunError,
    TrainOptions,
    UsageError,
    evaluate,
    make_encoder,
    mine,
    read_pairs,
    select,
    train,
)
from hardneg.data.texts import fold
from hardneg.encoders.embed import fit
from hardneg.mining.run_folder import VOLATILE
from hardneg.mining.select import SelectOptions
from hardneg.progress import silent
from hardneg.storage.files import sha256_file
from hardneg.storage.json_files import write_json

from .conftest import unit, write_jsonl
from .processes import Started, run_code


def dataset(n: int = 300, extra: int = 100, seed: int = 0) -> tuple[Pairs, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    documents = unit(rng.standard_normal((n + extra, 16)))
    queries = unit(documents[:n] + 0.6 * rng.standard_normal((n, 16)) / 4)
    pairs = Pairs.from_columns(
        [f"query {i}" for i in range(n)], [f"doc {i}" for i in range(n)], corpus=[f"extra {i}" for i in range(extra)]
    )
    return pairs, queries, documents


def files(folder: Path) -> dict[str, str]:
    """Hash of every file but run.json, whose timings differ, and of what run.json says besides them."""
    found = {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    info = json.loads((folder / "run.json").read_text())
    for key in ("timings", "environment", "command"):
        del info[key]
    found["run.json"] = json.dumps(info, sort_keys=True)
    return found


def test_equals_a_naive_miner(tmp_path: Path) -> None:
    pairs, queries, documents = dataset()
    options = MineOptions(depth=40, max_depth=40, negatives=5, filters=("margin:relative=0.2", "rank:min=3"))
    run = mine(pairs, tmp_path / "run", options, vectors=(queries, documents))
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    rows = run.negatives().to_pylist()
    assert [row["query_id"] for row in rows] == [f"q{i}" for i in range(300)]
    counts: Counter[str] = Counter()
    for i, row in enumerate(rows):
        positive = scores[i, i]
        order = np.argsort(-scores[i], kind="stable")[:40]
        expected = []
        for rank, d in enumerate(order, 1):
            if d == i:
                verdict = "known"
            elif scores[i, d] > positive - abs(positive) * 0.2:
                verdict = "margin"
            elif rank < 3:
                verdict = "rank"
            else:
                verdict = "kept"
                expected.append((f"d{d}", rank))
            counts[verdict] += 1
        assert list(zip(row["negative_ids"], row["negative_ranks"], strict=True)) == expected[:5]
        assert row["positive_ids"] == [f"d{i}"]
        assert row["positive_scores"] == pytest.approx([positive], abs=1e-6)
        assert row["negative_scores"] == pytest.approx([scores[i, int(d[1:])] for d in row["negative_ids"]], abs=1e-6)
        assert row["negative_false_probability"] is None
    table = pq.read_table(run.candidate_files()[0])
    assert table.schema.names == ["query_id", "document_id", "rank", "score", "verdict"]
    assert [str(t) for t in table.schema.types] == ["string", "string", "int32", "float", "string"]
    assert Counter(table["verdict"].to_pylist()) == counts
    assert {k: v for k, v in run.info["counts"]["verdicts"].items() if v} == counts
    assert run.info["counts"]["candidates"] == 300 * 40 == len(table)


def test_statistics_are_those_of_the_files(tmp_path: Path) -> None:
    pairs, queries, documents = dataset()
    options = MineOptions(depth=30, max_depth=30, filters=("margin:absolute=0.3",))
    run = mine(pairs, tmp_path / "run", options, vectors=(queries, documents))
    rows = run.negatives().to_pylist()
    lengths = Counter(len(row["negative_ids"]) for row in rows)
    assert run.info["counts"]["negatives"] == {str(k): v for k, v in sorted(lengths.items())}
    values = {
        "positive": [s for row in rows for s in row["positive_scores"]],
        "negative": [s for row in rows for s in row["negative_scores"]],
        "difference": [min(row["positive_scores"]) - s for row in rows for s in row["negative_scores"]],
    }
    for name, numbers in values.items():
        assert run.info["scores"][name]["median"] == pytest.approx(np.median(numbers), abs=1e-5)
        assert run.info["scores"][name]["mean"] == pytest.approx(np.mean(numbers), abs=1e-5)
        assert run.info["scores"][name]["p95"] == pytest.approx(np.quantile(numbers, 0.95), abs=1e-5)


@pytest.mark.parametrize("sampler", ["top", "uniform", "softmax", "simans"])
def test_same_bytes_whatever_the_work_was_cut_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    pairs, queries, documents = dataset()
    options = MineOptions(depth=20, sampler=sampler, filters=("margin:relative=0.3",), seed=3)
    mine(pairs, tmp_path / "a", options, vectors=(queries, documents), threads=1)
    monkeypatch.setattr(miner_module, "_BLOCK", 7)
    mine(pairs, tmp_path / "b", options, vectors=(queries, documents), threads=3)
    monkeypatch.setattr("hardneg.index.vectors.TILE_BYTES", 4 * 16 * 64)
    mine(pairs, tmp_path / "c", options, vectors=(queries, documents))
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_approximate_indexes_mine_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    pairs, queries, documents = dataset()
    options = MineOptions(index=index, recall=0.9, depth=20, filters=("margin:relative=0.3",))
    run = mine(pairs, tmp_path / "a", options, vectors=(queries, documents), threads=1)
    monkeypatch.setattr(miner_module, "_BLOCK", 7)
    monkeypatch.setattr(miner_module, "_AHEAD", 50)
    for module in (parts_module, run_module):
        monkeypatch.setattr(module, "PART_ROWS", 40)
    other = mine(pairs, tmp_path / "b", options, vectors=(queries, documents), threads=3)
    assert run.negatives().equals(other.negatives())
    resolved = run.info["resolved"]
    assert resolved["index"] == index
    assert resolved["recall"]["target"] == 0.9
    assert 0.85 < resolved["recall"]["measured"] <= 1
    assert not [w for w in run.info["warnings"] if "index finds" in w]
    # What is found is scored as an exact search scores it.
    exact = mine(pairs, tmp_path / "c", MineOptions(depth=20, index="exact"), vectors=(queries, documents))
    both = [
        {
            (r["query_id"], r["document_id"]): r["score"]
            for f in a.candidate_files()
            for r in pq.read_table(f).to_pylist()
        }
        for a in (run, exact)
    ]
    common = both[0].keys() & both[1].keys()
    assert len(common) > 0.85 * len(both[1])
    assert all(both[0][pair] == both[1][pair] for pair in common)


def test_a_missed_recall_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, queries, documents = dataset()
    monkeypatch.setattr(
        "hardneg.index.ivf.IVFIndex.tune", lambda self, q, truth, recall: setattr(self, "probe_margin", 0.0)
    )
    run = mine(pairs, tmp_path / "a", MineOptions(index="ivf", recall=0.99, depth=20), vectors=(queries, documents))
    assert any("less than the 0.99 asked for: use --index exact" in w for w in run.info["warnings"])
    with pytest.raises(UsageError, match="recall 0 must be above 0"):
        mine(pairs, tmp_path / "b", MineOptions(recall=0), vectors=(queries, documents))


def test_seeds_and_subsets(tmp_path: Path) -> None:
    pairs, queries, documents = dataset(100)
    options = MineOptions(depth=30, sampler="uniform", seed=1)
    whole = mine(pairs, tmp_path / "a", options, vectors=(queries, documents)).negatives().to_pylist()
    rows = np.array([70, 3, 55])
    ids = [f"q{i}" for i in rows]
    part = Pairs.from_columns(
        [f"query {i}" for i in rows],
        [f"doc {i}" for i in rows],
        corpus=[f"doc {i}" for i in range(100)] + [f"extra {i}" for i in range(100)],
        query_ids=ids,
    )
    texts = part.documents.slice(0, len(part.document_ids))
    order = [int(t.split()[1]) + (100 if t.startswith("extra") else 0) for t in texts]
    again = mine(part, tmp_path / "b", options, vectors=(queries[rows], documents[order])).negatives().to_pylist()
    for i, row in zip(rows, again, strict=True):
        names = [texts[int(d[1:])] for d in row["negative_ids"]]
        expected = [
            f"doc {d[1:]}" if int(d[1:]) < 100 else f"extra {int(d[1:]) - 100}" for d in whole[i]["negative_ids"]
        ]
        assert names == expected
    other = mine(pairs, tmp_path / "c", MineOptions(depth=30, sampler="uniform", seed=2), vectors=(queries, documents))
    assert other.negatives().to_pylist() != whole


def test_widening_is_for_those_who_ran_out(tmp_path: Path) -> None:
    """One query has 30 positives at the top; it alone is searched deeper."""
    rng = np.random.default_rng(0)
    documents = unit(rng.standard_normal((400, 16)))
    queries = unit(documents[:20] + 0.1)
    nearest = np.argsort(-(queries[0] @ documents.T))[:30]
    texts = [f"doc {i}" for i in range(400)]
    pairs = Pairs.from_columns(
        [f"query {i}" for i in range(20)],
        [[texts[d] for d in nearest] if i == 0 else texts[i] for i in range(20)],
        corpus=texts,
    )
    order = [int(t.split()[1]) for t in pairs.documents.slice(0, 400)]
    vectors = queries, documents[order]
    run = mine(pairs, tmp_path / "run", MineOptions(depth=25, negatives=5), vectors=vectors)
    candidates = Counter(pq.read_table(run.candidate_files()[0])["query_id"].to_pylist())
    assert candidates == {f"q{i}": 100 if i == 0 else 25 for i in range(20)}
    assert run.info["counts"]["widened"] == 1
    assert all(len(row["negative_ids"]) == 5 for row in run.negatives().to_pylist())
    assert run.negatives().to_pylist()[0]["negative_ranks"] == [31, 32, 33, 34, 35]
    narrow = mine(pairs, tmp_path / "narrow", MineOptions(depth=25, max_depth=25, negatives=5), vectors=vectors)
    assert narrow.negatives().to_pylist()[0]["negative_ids"] == []
    assert narrow.negatives().to_pylist()[1:] == run.negatives().to_pylist()[1:]
    # Going on by steps ends where one great step ends.
    deep = mine(pairs, tmp_path / "deep", MineOptions(depth=7, max_depth=100, negatives=5), vectors=vectors)
    assert deep.negatives().to_pylist() == run.negatives().to_pylist()
    # Deeper documents cannot have a rank of at most 25: nobody is searched deeper for that.
    ranked = mine(
        pairs, tmp_path / "rank", MineOptions(depth=25, negatives=5, filters=("rank:max=25",)), vectors=vectors
    )
    assert ranked.info["counts"]["widened"] == 0


CHILD = """
import os, signal, sys
import hardneg.storage.files as store
import hardneg.mining.parts as parts
import hardneg.mining.run as run
import hardneg.mining.miner as miner
parts.PART_ROWS = run.PART_ROWS = 64
store.SHARD_ROWS = 64
left = int(sys.argv[3])
replace = os.replace
def dying(a, b):
    # Dies before or after each of the renames that make a file real.
    global left
    left -= 1
    if left == 0: os.kill(os.getpid(), signal.SIGKILL)
    replace(a, b)
    left -= 1
    if left == 0: os.kill(os.getpid(), signal.SIGKILL)
os.replace = dying
from hardneg import MineOptions, mine
options = MineOptions(depth=20, sampler="uniform", filters=("margin:relative=0.1",))
mine(sys.argv[1], sys.argv[2], options, resume=sys.argv[4] == "resume")
print(left)
"""


@pytest.mark.parametrize("count", [1, pytest.param(12, marks=pytest.mark.faults)])
def test_killed_at_a_step_and_resumed(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(50)]
    rows = [
        {"query": " ".join(rng.choice(words, 3)) + f" {i}", "positive": " ".join(rng.choice(words, 8)) + f" {i}"}
        for i in range(150)
    ]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)

    def child(out: Path, die_at: int, mode: str) -> subprocess.CompletedProcess[str]:
        return run_code(CHILD, source, out, str(die_at), mode)

    whole = child(tmp_path / "whole", 10**9, "fresh")
    assert whole.returncode == 0, whole.stderr
    steps = 10**9 - int(whole.stdout)
    expected = files(tmp_path / "whole")
    assert "candidates/part-00002.parquet" in expected
    assert not (tmp_path / "whole" / "progress").exists()
    # One place in the middle, or a spread of them with the first and the last.
    middle = np.linspace(1, steps, count + 2).astype(int).tolist()
    places = sorted(set(middle if count > 1 else middle[1:-1]))
    for place in places:
        out = tmp_path / f"killed-{place}"
        killed = child(out, place, "fresh")
        assert killed.returncode == -signal.SIGKILL, (place, killed.stderr)
        again = child(out, 10**9, "resume")
        assert again.returncode == 0, (place, again.stderr)
        assert files(out) == expected, place


@pytest.mark.faults
def test_killed_from_outside(tmp_path: Path) -> None:
    """A real kill -9 at whatever moment, of the real command, again and again until it is done."""
    pairs, queries, documents = dataset(20_000, 0)
    np.save(tmp_path / "q.npy", queries)
    np.save(tmp_path / "d.npy", documents)
    texts = [{"query": f"query {i}", "positive": f"doc {i}"} for i in range(20_000)]
    source = write_jsonl(tmp_path / "pairs.jsonl", texts)
    vectors = ["--query-embeddings", str(tmp_path / "q.npy"), "--corpus-embeddings", str(tmp_path / "d.npy")]
    common = ["mine", str(source), *vectors, "--depth", "50", "--sampler", "uniform"]
    command = [sys.executable, "-c", "from hardneg_cli.main import main; main()", *common]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    kills = 0
    for attempt in range(30):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed"), "--resume"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            code = process.wait(timeout=1.5 + 0.35 * attempt)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert code == 0
        break
    assert kills >= 1
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    del pairs


def test_interrupt_ends_with_130_and_resumes(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "p.jsonl", [{"query": f"q {i}", "positive": f"d {i}"} for i in range(200)])
    code = (
        "import sys, time, hardneg.encoders.hashed as h\n"
        "def slow(self, texts, prompt=''):\n"
        "    print('encoding', flush=True); time.sleep(60)\n"
        "h.HashedEncoder.encode = slow\n"
        "from hardneg_cli.main import main; main()"
    )
    arguments = ["mine", str(source), "--out", str(tmp_path / "run")]
    with Started(code, *arguments) as process:
        assert process.first_line() == "encoding"
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
        assert "--resume" in process.said("err")
    with pytest.raises(RunError, match="unfinished run: go on with"):
        Run(tmp_path / "run")
    assert len(mine(source, tmp_path / "run", resume=True).negatives()) == 200


def test_resume_wants_the_same_options_and_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, queries, documents = dataset(100)
    out = tmp_path / "run"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "here")

    with monkeypatch.context() as patch:
        patch.setattr(parts_module.PartWriter, "finish", fail)
        with pytest.raises(OSError, match="No space left"):
            mine(pairs, out, MineOptions(depth=20), vectors=(queries, documents))
    with pytest.raises(RunError, match=r"holds an unfinished run: go on with resume=True \(--resume\)"):
        mine(pairs, out, MineOptions(depth=20), vectors=(queries, documents))
    with pytest.raises(RunError, match=r"other options \(depth: 20 before, 21 now\)"):
        mine(pairs, out, MineOptions(depth=21), vectors=(queries, documents), resume=True)
    other, _, _ = dataset(99, 101)
    with pytest.raises(RunError, match=r"other inputs"):
        mine(other, out, MineOptions(depth=20), vectors=(queries[:99], documents), resume=True)
    run = mine(pairs, out, MineOptions(depth=20), vectors=(queries, documents), resume=True)
    assert len(run.negatives()) == 100
    again = mine(pairs, out, MineOptions(depth=20), vectors=(queries, documents), resume=True)
    assert again.info == run.info
    with pytest.raises(RunError, match="holds a finished run"):
        mine(pairs, out, MineOptions(depth=20), vectors=(queries, documents))


def test_out_is_never_somebody_elses(tmp_path: Path) -> None:
    pairs, queries, documents = dataset(20)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(RunError, match="is no hardneg run"):
            mine(pairs, tmp_path / "thesis", vectors=(queries, documents), **flags)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        mine(pairs, tmp_path / "file", vectors=(queries, documents))
    mine(pairs, tmp_path / "run", vectors=(queries, documents))
    mine(pairs, tmp_path / "run", MineOptions(seed=1), vectors=(queries, documents), overwrite=True)


def test_damage_is_found(tmp_path: Path) -> None:
    pairs, queries, documents = dataset(20)
    run = mine(pairs, tmp_path / "run", vectors=(queries, documents))
    path = run.candidate_files()[0]
    original = path.read_bytes()
    path.write_bytes(original[:-1] + b"x")
    with pytest.raises(RunError, match="part-00000.parquet does not fit its checksum"):
        Run(tmp_path / "run")
    path.unlink()
    with pytest.raises(RunError, match="part-00000.parquet is missing"):
        Run(tmp_path / "run")
    path.write_bytes(original)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**info, "schema_version": 99}))
    with pytest.raises(RunError, match="schema version 99"):
        Run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps({**info, "seed": 77}))
    with pytest.raises(RunError, match=r"run\.json does not fit its own checksum"):
        Run(tmp_path / "run")
    del info["checksum"]
    write_json(tmp_path / "run" / "run.json", {**info, "files": {"../x": "0"}}, checksum=True, volatile=VOLATILE)
    with pytest.raises(RunError, match=r"'\.\./x', which is not one of a run"):
        Run(tmp_path / "run")
    write_json(tmp_path / "run" / "run.json", {**info, "seed": "7", "counts": {}}, checksum=True, volatile=VOLATILE)
    with pytest.raises(RunError, match=r"run\.json is not what hardneg writes"):
        Run(tmp_path / "run")
    write_json(tmp_path / "run" / "run.json", {**info, "schema_version": 1})  # a run of version 0.2 has no checksum
    assert len(Run(tmp_path / "run").negatives()) == 20
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(RunError, match="not readable as JSON"):
        Run(tmp_path / "run")


def test_embeddings_in_file_order_follow_splits_and_repeats(tmp_path: Path, beir: Path) -> None:
    rng = np.random.default_rng(0)
    queries, documents = (unit(rng.standard_normal((n, 8))) for n in (12, 60))
    np.save(tmp_path / "q.npy", queries.astype(np.float16))
    np.save(tmp_path / "d.npy", documents.astype(np.float16))
    options = MineOptions(
        query_embeddings=str(tmp_path / "q.npy"),
        corpus_embeddings=str(tmp_path / "d.npy"),
        depth=60,
        default_filters=False,
    )
    run = mine(beir, tmp_path / "run", options)
    row = next(row for row in run.negatives().to_pylist() if row["query_id"] == "11")
    best = np.argsort(-(queries[11] @ documents.T))[:7]
    assert row["negative_ids"] == [f"d{i}" for i in best]
    np.save(tmp_path / "q.npy", queries[:5])
    with pytest.raises(DataError, match=r"q.npy: 5 vectors for 12 queries \(11 distinct\)"):
        mine(beir, tmp_path / "run2", options)
    assert not (tmp_path / "run2").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (MineOptions(depth=21), DataError, r"depth 21 is more than the 20 documents"),
        (MineOptions(depth=5, negatives=6), UsageError, r"raise depth \(--depth\) to 6"),
        (MineOptions(depth=9, max_depth=8), UsageError, r"max depth 8 is below the depth 9"),
        (MineOptions(index="hnws"), UsageError, r"unknown index 'hnws'"),
        (MineOptions(metric="l3"), UsageError, r"Did you mean 'l2'"),
        (MineOptions(filters=("nope",)), UsageError, r"unknown filter"),
        (MineOptions(filters=("group",)), UsageError, r"needs groups"),
        (MineOptions(query_embeddings="x.npy"), UsageError, r"both query embeddings and corpus"),
        (MineOptions(query_embeddings="x.npy", corpus_embeddings="y.npy"), DataError, r"x.npy does not exist"),
        (MineOptions(seed=-1), UsageError, r"the seed"),
        (MineOptions(filters=("score:max=-2",)), DataError, r"all candidates were rejected.*filter 'score'"),
        (MineOptions(encoder="hash"), UsageError, r"Did you mean 'hashed'"),
        (MineOptions(encoder="st:"), UsageError, r"incomplete"),
        (MineOptions(encoder="st:/no/such/model"), UsageError, r"cannot be loaded"),
        (MineOptions(encoder="module:nowhere.mod:f"), UsageError, r"cannot import 'nowhere.mod'"),
        (MineOptions(encoder="module:json:dump"), UsageError, r"."),
        (MineOptions(encoder="module:json:dumb"), UsageError, r"Did you mean 'dump'"),
    ],
)
def test_bad_options(tmp_path: Path, options: MineOptions, error: type[Exception], message: str) -> None:
    pairs = Pairs.from_columns([f"q {i}" for i in range(20)], [f"d {i}" for i in range(20)])
    if options.encoder == "module:json:dump":
        with pytest.raises(TypeError):  # the factory's own error is not dressed up as ours
            mine(pairs, tmp_path / "run", options)
        return
    with pytest.raises(error, match=message):
        mine(pairs, tmp_path / "run", options)
    if "all candidates" in message:
        assert set(Run(tmp_path / "run").negatives()["negative_ids"].to_pylist()[0]) == set()
    else:
        assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("candidates/*"))


def test_vectors_of_two_encoders(tmp_path: Path) -> None:
    pairs = Pairs.from_columns(["q"], ["d"])
    with pytest.raises(DataError, match="query vectors have 4 dimensions, corpus vectors 5"):
        mine(pairs, tmp_path / "run", vectors=(np.ones((1, 4), np.float32), np.ones((1, 5), np.float32)))


def test_select(tmp_path: Path) -> None:
    pairs, queries, documents = dataset(200)
    first = MineOptions(depth=40, max_depth=40, filters=("margin:relative=0.1",))
    second = MineOptions(
        depth=40, max_depth=40, filters=("margin:relative=0.4", "rank:min=2"), sampler="uniform", seed=5, negatives=3
    )
    run = mine(pairs, tmp_path / "a", first, vectors=(queries, documents))
    direct = mine(pairs, tmp_path / "b", second, vectors=(queries, documents))
    before = files(tmp_path / "a")
    choice = SelectOptions(filters=second.filters, sampler="uniform", seed=5, negatives=3)
    selected = select(run, choice, tmp_path / "c")
    assert files(tmp_path / "a") == before
    for name in ("negatives.parquet", "candidates/part-00000.parquet"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert selected.info["counts"] == direct.info["counts"]
    assert selected.info["scores"] == direct.info["scores"]
    select(tmp_path / "a", choice)
    changed = Run(tmp_path / "a")
    assert changed.negatives().equals(direct.negatives())
    assert [s["config"]["filters"] for s in changed.info["selections"]] == [["margin:relative=0.1"]]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]
    with pytest.raises(UsageError, match="is the run itself"):
        select(changed, choice, tmp_path / "a")
    with pytest.raises(RunError, match="keeps no document vectors"):
        select(changed, SelectOptions(filters=("duplicate:near=0.9",)))


def test_select_by_vectors_that_the_run_keeps(tmp_path: Path, beir: Path) -> None:
    options = MineOptions(depth=30, max_depth=30)
    run = mine(beir, tmp_path / "a", options)
    near = MineOptions(depth=30, max_depth=30, filters=("duplicate:near=0.5", "guide:hashed,margin=0.1"))
    direct = mine(beir, tmp_path / "b", near)
    selected = select(run, SelectOptions(filters=near.filters), tmp_path / "c")
    assert selected.negatives().equals(direct.negatives())
    assert selected.info["counts"]["verdicts"]["duplicate#2"] > 0
    assert selected.info["counts"]["verdicts"]["guide"] > 0


def test_group_filter_end_to_end(tmp_path: Path) -> None:
    pairs = Pairs.from_columns(
        [f"query {i}" for i in range(60)], [f"doc {i}" for i in range(60)], groups=[i % 6 for i in range(60)]
    )
    run = mine(pairs, tmp_path / "run", MineOptions(filters=("group",), depth=40))
    for row in run.negatives().to_pylist():
        assert len(row["negative_ids"]) == 7
        assert all(int(d[1:]) % 6 != int(row["query_id"][1:]) % 6 for d in row["negative_ids"])


def test_guide_filter_end_to_end(tmp_path: Path) -> None:
    """Against a naive loop over the guide's own vectors."""
    pairs, queries, documents = dataset(80, 20)
    options = MineOptions(depth=30, max_depth=30, filters=("guide:hashed,margin=0.05",))
    run = mine(pairs, tmp_path / "run", options, vectors=(queries, documents))
    stores = {p.name.split("-")[0]: np.load(p / "vectors.npy") for p in (tmp_path / "run" / "embeddings").iterdir()}
    q, d = (stores[side].astype(np.float64) for side in ("queries", "documents"))
    q, d = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, d))
    checked = 0
    for row in pq.read_table(run.candidate_files()[0]).to_pylist():
        i, j = int(row["query_id"][1:]), int(row["document_id"][1:])
        slack = q[i] @ d[i] - 0.05 - q[i] @ d[j]
        if row["verdict"] in ("kept", "guide") and abs(slack) > 1e-5:
            assert (row["verdict"] == "kept") == (slack > 0)
            checked += 1
    assert checked > 1000


# What other tools do with hard input was run and written down; these are the right answers to the same.


def test_copies_of_the_positive_and_of_the_query_are_never_negatives(tmp_path: Path) -> None:
    pairs = Pairs.from_columns(
        ["how tall is the tower", "how old is the bridge"],
        ["The tower is 300 m tall", "The bridge is old"],
        corpus=[
            "the tower is 300 m tall",
            "The tower is 300 m tall ",
            "ＴＨＥ tower is 300\u00a0m tall",
            "How tall is the tower",
        ]
        + [f"something else {i}" for i in range(20)],
    )
    run = mine(pairs, tmp_path / "run", MineOptions(depth=20))
    texts = pairs.documents.slice(0, len(pairs.document_ids))
    for row in run.negatives().to_pylist()[:1]:
        folded = {fold(texts[int(d[1:])]) for d in row["negative_ids"]}
        assert len(row["negative_ids"]) == 7
        assert not folded & {"the tower is 300 m tall", "how tall is the tower"}
    assert run.info["counts"]["verdicts"]["duplicate"] == 4


def test_empty_texts_are_said_and_never_negatives(tmp_path: Path) -> None:
    pairs = Pairs.from_columns(["", "q 1", "q 2"], ["d 0", "", "d 2"], corpus=["", *(f"e {i}" for i in range(9))])
    run = mine(pairs, tmp_path / "run")
    empty = pairs.document_ids.to_pylist()[pairs.documents.slice(0, 12).index("")]
    rows = run.negatives().to_pylist()
    assert [len(row["negative_ids"]) > 0 for row in rows] == [False, True, True]
    assert all(empty not in row["negative_ids"] for row in rows)
    assert [w for w in run.info["warnings"] if "empty" in w] == [
        "1 query has an empty text: its pairs are left out, and it gets no negatives",
        "1 document has an empty text: the filter 'empty' keeps it from being a negative",
        "1 positive is empty: its query is mined without it",
    ]


@pytest.mark.parametrize("blank", ["", "   ", "\t\n"])
def test_a_query_without_text_is_no_pair(tmp_path: Path, blank: str) -> None:
    write_jsonl(
        tmp_path / "p.jsonl",
        [{"query": blank if i == 3 else f"q {i}", "positive": f"d {i}", "label": int(i != 5)} for i in range(12)],
    )
    pairs = read_pairs(str(tmp_path / "p.jsonl"))
    assert pairs.positives.lengths.tolist() == [int(i not in (3, 5)) for i in range(12)]
    run = mine(pairs, tmp_path / "run", MineOptions(depth=9))
    assert [len(row["negative_ids"]) for row in run.negatives().to_pylist()] == [0 if i == 3 else 7 for i in range(12)]
    run.export("triplet", tmp_path / "out.jsonl")
    exported = [json.loads(line)["query"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert set(exported) == {f"q {i}" for i in range(12) if i not in (3, 5)}
    encoder = make_encoder("hashed")
    fit(encoder, pairs, silent)
    assert evaluate(pairs, encoder).queries == 10


def test_tiny_corpus_keeps_every_query_and_repeats_nothing(tmp_path: Path) -> None:
    pairs = Pairs.from_columns(["q 1", "q 2"], ["d 1", "d 2"], corpus=["e"])
    run = mine(pairs, tmp_path / "run", MineOptions(negatives=5))
    rows = run.negatives().to_pylist()
    assert [len(row["negative_ids"]) for row in rows] == [2, 2]
    assert all(len(set(row["negative_ids"])) == 2 for row in rows)
    assert run.info["counts"]["negatives"] == {"2": 2}


def test_one_query_in_two_rows(tmp_path: Path) -> None:
    for ids in (None, ["a", "b"]):
        pairs = Pairs.from_columns(["q", "q"], ["d 1", "d 2"], corpus=["e"], query_ids=ids)
        run = mine(pairs, tmp_path / f"run{ids is None}", MineOptions(negatives=3))
        assert {d for row in run.negatives().to_pylist() for d in row["negative_ids"]} == {"d2"}


def test_negative_positive_score(tmp_path: Path) -> None:
    vectors = np.array([[1, 0]], np.float32), unit(np.array([[-0.5, 1], [-0.51, 1], [-0.6, 1]]))
    pairs = Pairs.from_columns(["q"], ["d 0"], corpus=["d 1", "d 2"])
    run = mine(pairs, tmp_path / "run", MineOptions(filters=("margin:relative=0.05",)), vectors=vectors)
    assert run.negatives().to_pylist()[0]["negative_ids"] == ["d2"]


def test_a_document_in_sixty_pairs_fills_one_slot(tmp_path: Path) -> None:
    queries = [f"query {i}" for i in range(160)]
    pairs = Pairs.from_columns(queries, ["the same document"] * 60 + [f"doc {i}" for i in range(60, 160)])
    assert len(pairs.document_ids) == 101
    run = mine(pairs, tmp_path / "run", MineOptions(negatives=100, depth=101))
    assert run.info["counts"]["negatives"] == {"100": 160}


def test_query_without_a_positive_is_mined_and_said(tmp_path: Path, beir: Path) -> None:
    run = mine(beir, tmp_path / "run", MineOptions(depth=20, filters=("margin:relative=0.9",)))
    row = next(row for row in run.negatives().to_pylist() if row["query_id"] == "11")
    assert len(row["negative_ids"]) == 7
    assert row["positive_ids"] == row["positive_scores"] == []
    assert any(w.startswith("1 query has no positive") for w in run.info["warnings"])


def test_integer_and_unicode_ids(tmp_path: Path, beir: Path) -> None:
    run = mine(beir, tmp_path / "run", MineOptions(depth=20, read=ReadOptions(split="train")))
    ids = run.negatives()["query_id"].to_pylist()
    assert "größe" in ids
    assert ids == read_pairs(str(beir)).query_ids.to_pylist()


def test_a_split_that_is_given_as_pairs_is_the_same_run_as_its_path(beir: Path, tmp_path: Path) -> None:
    """The digests of a split are those of the whole dataset, and its run can be opened, selected from and resumed."""
    mine(read_pairs(str(beir)), tmp_path / "pairs", MineOptions(encoder="hashed"))
    mine(str(beir), tmp_path / "path", MineOptions(encoder="hashed"))
    ours, theirs = Run(tmp_path / "pairs"), Run(tmp_path / "path")
    assert ours.pairs().digests == theirs.pairs().digests
    assert ours.negatives().equals(theirs.negatives())
    assert select(ours, SelectOptions(negatives=2), tmp_path / "selected").info["counts"]["queries"] == 11
    mine(read_pairs(str(beir)), tmp_path / "pairs", MineOptions(encoder="hashed"), resume=True)


def test_options_of_reading_are_taken_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("asked,said\n" + "".join(f"what is {i} {i % 7},it is {i} {i % 5}\n" for i in range(30)), "utf-8")
    run = mine(path, tmp_path / "run", query_column="asked", positive_column="said", depth=5, negatives=2)
    read = ReadOptions(query_column="asked", positive_column="said")
    same = mine(path, tmp_path / "same", MineOptions(read=read, depth=5, negatives=2))
    assert run.info["config"] == same.info["config"]
    with pytest.raises(UsageError, match="no option 'querycolumn'. Did you mean 'query_column'"):
        mine(path, tmp_path / "no", querycolumn="asked")  # type: ignore[call-arg]
    trained = train(
        path, HashedEncoder(8, 256), tmp_path / "trained", TrainOptions(steps=1, batch_size=4, depth=5, negatives=1),
        read=read, device="cpu",
    )  # fmt: skip
    assert trained["steps"] == 1
