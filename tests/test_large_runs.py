"""Large files of a run are hashed when they are read or by `hardneg verify`; ids are looked up once; the corpus is read few times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hardneg
from hardneg import MineOptions, RunError, mine
from hardneg.data.id_rows import IdRows
from hardneg.index.factory import make_index
from hardneg.mining.reopen import Reopened, open_run_vectors
from hardneg.mining.run import Run
from hardneg.refresh.drift import compensate
from tests.conftest import run_here, write_jsonl


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    rows = [{"query": f"question {i} of {i % 7}", "positive": f"answer {i} to {i % 11}"} for i in range(300)]
    mine(write_jsonl(folder / "pairs.jsonl", rows), folder / "run", MineOptions(depth=10, negatives=2))
    return folder / "run"


def test_large_files_are_hashed_when_they_are_read(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.mining.run.LARGE", 1000)
    (vectors,) = made.glob("embeddings/documents-*/vectors.npy")
    content = vectors.read_bytes()
    hashed: list[str] = []
    real = hardneg.mining.run.sha256_file
    monkeypatch.setattr("hardneg.mining.run.sha256_file", lambda path: hashed.append(path.name) or real(path))
    Run(made)
    assert "vectors.npy" not in hashed
    assert "part-00000.parquet" in hashed
    try:
        vectors.write_bytes(content[:-8] + b"damaged!")
        run = Run(made)  # opens: this command may not need the vectors
        with pytest.raises(RunError, match="is damaged: its vectors do not fit their checksums"):
            open_run_vectors(run, run.pairs(), "documents")
        with pytest.raises(RunError, match=r"vectors.npy does not fit its checksum"):
            Run(made, verify="all")
        done = run_here("verify", made)
        assert done.returncode == 1
        assert "vectors.npy does not fit its checksum" in done.stderr
    finally:
        vectors.write_bytes(content)
    done = run_here("verify", made)
    assert done.returncode == 0
    assert "files are as they were written" in done.stdout


def test_ids_are_hashed_once_for_all_parts(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("parts", "run", "reopen"):
        monkeypatch.setattr(f"hardneg.mining.{place}.PART_ROWS", 20)
    source = made.parent / "pairs.jsonl"
    run = mine(source, made.parent / "parts", MineOptions(depth=10, negatives=2))
    sizes: list[int] = []
    real = IdRows.__init__

    def counted(self: IdRows, ids: pa.Array) -> None:
        sizes.append(len(ids))
        real(self, ids)

    monkeypatch.setattr(IdRows, "__init__", counted)
    reopened = Reopened(run)
    assert len(list(reopened)) == 15
    assert sizes.count(len(reopened.pairs.document_ids)) == 1


@given(st.lists(st.text(max_size=5), unique=True, max_size=60), st.lists(st.one_of(st.none(), st.text(max_size=5))))
def test_rows_of_ids(ids: list[str], wanted: list[str | None]) -> None:
    expected = [ids.index(each) if each in ids else -1 for each in wanted]
    rows = IdRows(pa.array(ids, pa.string()))
    for column in (
        pa.array(wanted, pa.string()),
        pa.chunked_array([pa.array(wanted, pa.large_string())]),
        pa.array(wanted, pa.string()).dictionary_encode(),
    ):
        assert rows.of(column).tolist() == expected


def test_ids_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.data.id_rows.mix", lambda values: values % np.uint64(3))
    ids = [f"d{i}" for i in range(50)]
    assert IdRows(pa.array(ids)).of(pa.array([*ids[::-1], "none"])).tolist() == [*range(49, -1, -1), -1]


class Counted:
    """An array that counts how many of its rows are read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.read = array, 0
        self.shape, self.dtype, self.ndim, self.size = array.shape, array.dtype, 2, array.size

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Any) -> np.ndarray:
        found = self.array[rows]
        self.read += len(found)
        return found


def test_an_inverted_file_reads_the_corpus_five_times_at_most() -> None:
    """Norms, lists, the exact search that tunes it, the floor and the scan."""
    rng = np.random.default_rng(0)
    documents = rng.standard_normal((20_000, 16)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    counted = Counted(documents)
    index, _ = make_index("ivf", counted, queries=documents, k=10, recall=0.9)  # type: ignore[arg-type]
    sampled = 4 * (4096 + 64 * 141)  # for number formats and centroids
    assert counted.read <= 3 * len(documents) + sampled
    before = counted.read
    index.search(documents, 10)
    assert counted.read - before <= 2 * len(documents)


def test_a_compensated_refresh_makes_no_copy_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((30_000, 32)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((32, 32)))[0].astype(np.float32)
    encoded, fresh = np.arange(20_000), vectors[:20_000] @ turn
    trial, rest = np.arange(0, 20_000, 10), np.arange(20_000, 30_000)
    tracemalloc.start()
    moved, error = compensate(vectors, encoded, fresh, trial, rest)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6 + 16384 * 32 * 8 * 3  # the answer and a block; the copies alone were 10 MB
    assert error < 1e-3
    np.testing.assert_allclose(moved, vectors[rest] @ turn, atol=0.05)
    monkeypatch.setattr("hardneg.refresh.drift._ROWS", 100)
    np.testing.assert_allclose(compensate(vectors, encoded, fresh, trial, rest)[0], moved, atol=1e-4)
