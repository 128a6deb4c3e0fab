"""Names of files whose bytes are not UTF-8: no run and no table could hold them, so they are refused where they are given."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import hardneg
from hardneg import MineOptions, UsageError, mine
from tests.conftest import run_here

BAD = os.fsdecode(b"caf\xe9")
REFUSED = r"the name .*caf\\xe9.* is not in UTF-8 .*: a run cannot record it, so rename the file or folder"
SHORT = MineOptions(depth=8, negatives=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"query": f"question {i}", "positive": f"answer {i}"} for i in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        for name in ("good.jsonl", f"{BAD}.jsonl"):
            (tmp_path / name).write_text(text)
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    vectors = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    (tmp_path / "v").mkdir()
    for name in ("good.npy", f"{BAD}.npy", f"v/{BAD}0.npy", f"v/{BAD}1.npy"):
        np.save(tmp_path / name, vectors)
    return tmp_path


@pytest.mark.parametrize("place", ["source", "out", "cache", "vectors", "shards", "corpus"])
def test_mine_refuses_such_a_name(place: str, folder: Path) -> None:
    good, vectors = str(folder / "good.jsonl"), str(folder / "good.npy")
    bad_vectors = str(folder / ("v/*.npy" if place == "shards" else f"{BAD}.npy"))
    with pytest.raises(UsageError, match=REFUSED):
        mine(
            str(folder / f"{BAD}.jsonl") if place == "source" else good,
            folder / BAD if place == "out" else folder / "run",
            SHORT,
            corpus=str(folder / f"{BAD}.jsonl") if place == "corpus" else None,
            cache=folder / BAD if place == "cache" else None,
            query_embeddings=vectors if place in ("vectors", "shards") else None,
            corpus_embeddings=bad_vectors if place in ("vectors", "shards") else None,
        )
    assert not (folder / "run").exists()
    assert not (folder / BAD).exists()


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.csv"])
def test_export_refuses_such_a_name(name: str, folder: Path) -> None:
    run = mine(str(folder / "good.jsonl"), folder / "run", SHORT)
    with pytest.raises(UsageError, match=REFUSED):
        run.export("triplet", folder / f"{BAD}-{name}")
    assert not (folder / f"{BAD}-{name}").exists()


def test_every_command_refuses_such_an_argument(folder: Path) -> None:
    for command in (
        ("mine", folder / f"{BAD}.jsonl", "--out", folder / "run"),
        ("mine", folder / "good.jsonl", "--out", folder / "run", f"--corpus-embeddings={folder / BAD}.npy"),
        ("inspect", folder / f"{BAD}.jsonl"),
        ("evaluate", folder / "good.jsonl", "--cache", folder / BAD),
    ):
        done = run_here(*command)
        assert done.returncode == 2
        assert "caf\\xe9" in done.stderr
        assert "so rename the file or folder" in done.stderr
    assert not (folder / "run").exists()


def test_a_folder_above_may_have_such_a_name_where_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = folder / BAD
    inside.mkdir()
    for name in ("good.jsonl", "good.npy"):
        (folder / name).rename(inside / name)
    monkeypatch.chdir(inside)
    vectors = {"query_embeddings": "good.npy", "corpus_embeddings": "good.npy"}
    with pytest.raises(UsageError, match=REFUSED):
        mine("good.jsonl", "run", SHORT, force=True, **vectors)
    run = mine("good.jsonl", folder / "run", SHORT, force=True, **vectors)
    assert "paths" not in run.info or run.info["paths"] == {}
    assert len(hardneg.read_pairs("good.jsonl")) == 40
