"""Vectors on disk: one file whatever the number of shards, resumed to the byte, and those of older versions."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hardneg.storage.arrays import Sharded
from hardneg.storage.files import add_line
from hardneg.storage.vectors import EmbeddingStore
from tests.damage import old_files
from tests.processes import run_code

DATA = np.random.default_rng(0).standard_normal((95, 4)).astype(np.float16)


@pytest.fixture(autouse=True)
def shards_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.storage.vectors.SHARD_ROWS", 10)


def store(folder: Path) -> EmbeddingStore:
    return EmbeddingStore(folder, "key", len(DATA), 4)


def filled(folder: Path) -> EmbeddingStore:
    made = store(folder)
    made.fill(lambda start, stop: DATA[start:stop], lambda count: None)
    return made


def recorded(asked: list[int], start: int, stop: int) -> np.ndarray:
    asked.append(stop - start)
    return DATA[start:stop]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".hardneg-")}


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_any_number_of_shards_is_one_open_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.storage.vectors.SHARD_ROWS", 1)
    with few_descriptors(20):  # with one map a shard, there are 95
        vectors = filled(tmp_path / "s").open()
        np.testing.assert_array_equal(vectors[:], DATA)
        old_files(tmp_path / "s")
        monkeypatch.setattr("hardneg.storage.arrow._MOST_OPEN", 8)
        older = store(tmp_path / "s").open()
        assert isinstance(older, Sharded)
        np.testing.assert_array_equal(older[np.arange(95)[::-1]], DATA[::-1])
    np.testing.assert_array_equal(np.load(tmp_path / "s" / "part-00094.npy"), DATA[94:])


def test_numpy_reads_the_file(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    assert sorted(content(tmp_path / "s")) == ["manifest.json", "vectors.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "s" / "vectors.npy", mmap_mode="r"), DATA)


def test_the_cost_of_a_shard_does_not_grow_with_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    append = add_line

    def counted(path: Path, value: dict[str, object]) -> None:
        append(path, value)
        written.append(path.stat().st_size - sum(written))

    monkeypatch.setattr("hardneg.storage.vectors.add_line", counted)
    filled(tmp_path / "s")
    assert len(written) == 11
    assert max(written[1:]) - min(written[1:]) <= 2  # the digits of the row


CHILD = """
import os, signal, sys
from pathlib import Path
import numpy as np
import hardneg.storage.vectors as vectors
vectors.SHARD_ROWS = 10
left = int(sys.argv[2])
def dying(name):
    do = getattr(os, name)
    def step(*args):
        # Dies before or after each of the calls that make something durable.
        global left
        left -= 1
        if left == 0: os.kill(os.getpid(), signal.SIGKILL)
        do(*args)
        left -= 1
        if left == 0: os.kill(os.getpid(), signal.SIGKILL)
    setattr(os, name, step)
dying("fsync"), dying("replace")
data = np.random.default_rng(0).standard_normal((95, 4)).astype(np.float16)
store = vectors.EmbeddingStore(Path(sys.argv[1]), "key", 95, 4)
store.fill(lambda start, stop: data[start:stop], lambda count: None)
print(left)
"""


def child(folder: Path, die_at: int) -> subprocess.CompletedProcess[str]:
    return run_code(CHILD, folder, str(die_at))


@pytest.mark.parametrize("places", [(9,), pytest.param(tuple(range(1, 60)), marks=pytest.mark.faults)])
def test_killed_at_any_step_and_resumed_to_the_byte(tmp_path: Path, places: tuple[int, ...]) -> None:
    filled(tmp_path / "whole")
    expected = content(tmp_path / "whole")
    for place in places:
        died = child(tmp_path / str(place), place)
        if died.returncode == 0:
            assert place > 40, died.stdout
            break
        assert died.returncode == -signal.SIGKILL, died.stderr
        again = store(tmp_path / str(place))
        asked: list[int] = []
        before = sum(part["rows"] for part in again.parts)
        again.fill(partial(recorded, asked), lambda count: None)
        assert sum(asked) == len(DATA) - before
        assert content(tmp_path / str(place)) == expected


def test_a_line_that_was_cut_off_and_a_damaged_shard_are_made_again(tmp_path: Path) -> None:
    expected = content(filled(tmp_path / "whole").folder)
    child(tmp_path / "s", 21)
    log = tmp_path / "s" / "shards.jsonl"
    named = len(log.read_text().splitlines()) - 1
    assert named >= 3
    log.write_bytes(log.read_bytes()[:-9])  # as after a power cut
    with open(tmp_path / "s" / "vectors.npy", "r+b") as file:
        file.seek(128 + 13 * 8)
        file.write(b"??")
    assert [part["start"] for part in store(tmp_path / "s").parts] == [i * 10 for i in range(named - 1) if i != 1]
    filled(tmp_path / "s")
    assert content(tmp_path / "s") == expected


def test_old_files_are_taken_over_by_an_interrupted_encoding(tmp_path: Path) -> None:
    expected = content(filled(tmp_path / "s").folder)
    old_files(tmp_path / "s")
    manifest = tmp_path / "s" / "manifest.json"
    head = json.loads(manifest.read_text())
    del head["checksum"]
    manifest.write_text(json.dumps({**head, "parts": head["parts"][:7]}))
    made = store(tmp_path / "s")
    asked: list[int] = []
    made.fill(lambda start, stop: asked.append(start) or DATA[start:stop], lambda count: None)
    assert asked == [70, 80, 90]
    assert content(tmp_path / "s") == expected


def test_a_file_is_hashed_once_while_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "s")
    store(tmp_path / "s")
    monkeypatch.setattr("hardneg.storage.vectors._sha256_of", lambda *given: "read again")
    assert EmbeddingStore.at(tmp_path / "s").complete
    os.utime(tmp_path / "s" / "vectors.npy", (1, 1))
    assert not EmbeddingStore.at(tmp_path / "s").complete
