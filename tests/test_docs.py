"""The documents run as they stand: every Python block of `docs/`, and every example in a docstring."""

from __future__ import annotations

import doctest
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from .pages import PAGES as ALL_PAGES
from .pages import ROOT, python_blocks
from .processes import run_code

LONG = ("integrations", "pictures", "candidates", "diagnosis", "coming-from")  # they train, or mine again and again
OWN_PROCESS = ("extending", *LONG)  # they register parts, start threads and processes, or change settings
PAGES = [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in LONG)) for page in ALL_PAGES]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "hardneg").rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as somebody would type them; no block is left out of the test."""
    found = python_blocks(page)
    shutil.copytree(tiny_model, tmp_path / "all-MiniLM-L6-v2")  # a folder of that name is what a name would load
    assert len(found) == page.read_text().count("```python")
    code = "\n".join(found)
    if page.stem in OWN_PROCESS:
        done = run_code(code, cwd=tmp_path, seconds=280)
        assert done.returncode == 0, done.stderr
    else:  # torch is loaded already, which takes longer than most blocks
        monkeypatch.chdir(tmp_path)
        exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


def test_examples_of_own_parts_are_short() -> None:
    for block in python_blocks(ROOT / "docs" / "extending.md"):
        assert len([line for line in block.splitlines() if line.strip()]) <= 20, block


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried
    assert not failed
