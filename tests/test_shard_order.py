"""Shards whose numbers are not padded: texts and vectors are read in the order in which they were written, and that is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hardneg
from hardneg import MineOptions, RunError, mine
from hardneg.data.read import numbered_in
from hardneg.data.readers import files as reading
from hardneg.data.readers.shard_order import in_order
from hardneg.encoders import precomputed
from hardneg.mining.reopen import open_run_vectors
from tests.conftest import run_here

ROWS = [{"query": f"question {i}", "positive": f"answer {i}"} for i in range(120)]
SAID = "12 files are read in the order of the numbers in their names, as 2 before 10, not of their letters"


def vectors(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """120 pairs and their vectors, in one file and in 12 shards `part-0` to `part-11`."""
    (tmp_path / "s").mkdir()
    (tmp_path / "v").mkdir()
    documents = vectors(120)
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    np.save(tmp_path / "all.npy", documents)
    for i in range(12):
        rows = slice(10 * i, 10 * i + 10)
        (tmp_path / "s" / f"part-{i}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[rows]))
        np.save(tmp_path / "v" / f"part-{i}.npy", documents[rows])
    return tmp_path


def options(folder: Path, documents: str) -> MineOptions:
    return MineOptions(
        depth=8,
        negatives=2,
        query_embeddings=str(folder / "all.npy"),
        corpus_embeddings=str(folder / documents),
    )


def by_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as version 0.2 and older did."""
    monkeypatch.setattr(reading.source_files, "__defaults__", ("train", sorted))
    monkeypatch.setattr(precomputed.vector_files, "__defaults__", (sorted,))


def bytes_of(run: hardneg.Run) -> list[bytes]:
    return [path.read_bytes() for path in run.candidate_files()]


def test_vectors_in_shards_are_those_in_one_file(folder: Path) -> None:
    one = mine(str(folder / "all.jsonl"), folder / "one", options(folder, "all.npy"))
    several = mine(str(folder / "all.jsonl"), folder / "several", options(folder, "v/*.npy"))
    assert bytes_of(several) == bytes_of(one)
    (note,) = [note for note in several.info["warnings"] if "joined in the order of the numbers" in note]
    assert note.endswith("part-0.npy, part-1.npy, ..., part-11.npy")
    assert not [note for note in one.info["warnings"] if "order of the numbers" in note]


@pytest.mark.parametrize("source", ["s", "s/*.jsonl", "s/part-*.jsonl"])
def test_texts_in_shards_are_those_in_one_file(source: str, folder: Path) -> None:
    pairs = hardneg.read_pairs(str(folder / source))
    assert pairs.digests == hardneg.read_pairs(str(folder / "all.jsonl")).digests
    assert pairs.notes["numbered_files"] == 12
    assert numbered_in(folder / "all.jsonl", hardneg.ReadOptions()) == 0
    shown = run_here("inspect", folder / source)
    assert SAID in " ".join(shown.stdout.split()) + " ".join(shown.stderr.split())


def test_the_corpus_of_a_beir_folder_in_shards(folder: Path) -> None:
    (folder / "beir" / "corpus").mkdir(parents=True)
    for i in range(12):
        line = json.dumps({"_id": f"d{i}", "text": f"text {i}"}) + "\n"
        (folder / "beir" / "corpus" / f"corpus-{i}.jsonl").write_text(line)
    (folder / "beir" / "queries.jsonl").write_text('{"_id": "q", "text": "ask"}\n')
    (folder / "beir" / "qrels").mkdir()
    (folder / "beir" / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td3\t1\n")
    pairs = hardneg.read_pairs(str(folder / "beir"))
    assert pairs.document_ids.to_pylist() == [f"d{i}" for i in range(12)]
    assert pairs.notes["numbered_files"] == 12


def test_padded_names_say_nothing(folder: Path) -> None:
    for kind in ("s", "v"):
        for path in sorted((folder / kind).iterdir()):
            number = path.stem.removeprefix("part-")
            path.rename(path.with_name(f"part-{number.zfill(5)}{path.suffix}"))
    run = mine(str(folder / "s"), folder / "run", options(folder, "v/*.npy"))
    assert not [note for note in run.info["warnings"] if "order of the numbers" in note]


def test_a_finished_run_in_the_order_of_letters_stays_readable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        by_letters(before)
        old = mine(str(folder / "all.jsonl"), folder / "old", options(folder, "v/*.npy"), force=True)
        expected = np.asarray(open_run_vectors(old, old.pairs(), "documents")[:])
    np.testing.assert_array_equal(open_run_vectors(old, old.pairs(), "documents")[:], expected)
    assert not np.array_equal(expected, np.load(folder / "all.npy"))
    again = mine(str(folder / "all.jsonl"), folder / "old", options(folder, "v/*.npy"), resume=True)
    assert bytes_of(again) == bytes_of(old)
    np.save(folder / "v" / "part-3.npy", vectors(10))
    with pytest.raises(RunError, match="has changed since"):
        open_run_vectors(old, old.pairs(), "documents")


@pytest.mark.parametrize(("source", "documents"), [("s", "all.npy"), ("all.jsonl", "v/*.npy")])
def test_an_unfinished_run_in_the_order_of_letters_is_refused(
    source: str, documents: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        by_letters(before)
        before.setattr("hardneg.mining.mine.check_positives", stopped)
        with pytest.raises(KeyboardInterrupt):
            mine(str(folder / source), folder / "run", options(folder, documents))
    with pytest.raises(RunError, match="--overwrite"):
        mine(str(folder / source), folder / "run", options(folder, documents), resume=True)
    done = mine(str(folder / source), folder / "run", options(folder, documents), overwrite=True)
    assert bytes_of(done) == bytes_of(mine(str(folder / "all.jsonl"), folder / "one", options(folder, "all.npy")))


def stopped(*given: object) -> list[str]:
    raise KeyboardInterrupt


@given(st.lists(st.integers(0, 10**6), unique=True), st.sampled_from(["{}.npy", "part-{}-of-9.npy", "a/{}/b2.npy"]))
def test_unpadded_numbers_are_in_their_order(numbers: list[int], form: str) -> None:
    found = in_order(Path(form.format(number)) for number in numbers)
    assert found == [Path(form.format(number)) for number in sorted(numbers)]


@given(st.lists(st.text("ab019-", min_size=1), unique=True))
def test_every_file_is_there_once_in_an_order_of_its_own(names: list[str]) -> None:
    found = in_order(map(Path, names))
    assert sorted(found) == sorted(map(Path, names))
    assert in_order(reversed(found)) == found
