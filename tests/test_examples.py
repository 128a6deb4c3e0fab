"""The scripts in examples/ run as they stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != "functions.py")


def test_each_is_named() -> None:
    assert len(SCRIPTS) == 8
    for path in SCRIPTS:
        assert f"[{path.name}]({path.name})" in (FOLDER / "README.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    ranks = "torchrun --nproc-per-node 2 examples/" in path.read_text("utf-8")  # as it says that it is started
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks else []
    done = subprocess.run([sys.executable, *start, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ndcg@10" in done.stdout
    assert "2 ranks" in done.stdout or not ranks
