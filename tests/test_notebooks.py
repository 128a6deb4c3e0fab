"""The notebooks run, and what stands in them is what they gave."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 300  # of each cell, on a slow machine


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        assert path.name in (FOLDER / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_again(path: Path, tmp_path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    for cell in stored.cells:
        if cell.cell_type == "code":
            assert cell.execution_count, f"{path.name} was not executed before it was committed"
            assert not any(out.output_type == "error" for out in cell.outputs)
            assert "/tmp/" not in str(cell.outputs)
    assert any("image/png" in out.get("data", {}) for cell in stored.cells for out in cell.get("outputs", []))
    again = nbformat.read(path, as_version=4)
    client = NotebookClient(
        again, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    for before, after in zip(stored.cells, again.cells, strict=True):
        kinds = [[out.output_type for out in cell.get("outputs", [])] for cell in (before, after)]
        shown = [[kind for kind in each if kind != "stream"] for each in kinds]
        assert shown[0] == shown[1], before.source
