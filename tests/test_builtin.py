"""The built-in dataset: real, the same every time, split without a shared function."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from hardneg import Pairs, ReadOptions, UsageError, read_pairs
from hardneg.data.texts import fold
from hardneg.demo_data import pycode
from hardneg.demo_data.pycode import _functions

pytestmark = pytest.mark.xdist_group("pycode")


@pytest.fixture(scope="module")
def splits() -> dict[str, Pairs]:
    return {split: read_pairs("builtin:pycode", ReadOptions(split=split)) for split in ("train", "test")}


@pytest.mark.slow
def test_a_script_without_a_main_guard_reads_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import hardneg\nprint(len(hardneg.read_pairs('builtin:pycode', hardneg.ReadOptions(split='test'))))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


@pytest.mark.slow
def test_thousands_of_pairs_in_two_splits(splits: dict[str, Pairs]) -> None:
    train, test = splits["train"], splits["test"]
    assert len(train) > 5000
    assert 0.05 < len(test) / len(train) < 0.2
    codes = {name: {fold(t) for batch in p.documents.batches() for t in batch} for name, p in splits.items()}
    assert not codes["train"] & codes["test"]
    assert len(codes["train"]) == len(train)
    assert (train.positives.lengths == 1).all()


@pytest.mark.slow
def test_equal_docstrings_share_a_group(splits: dict[str, Pairs]) -> None:
    train = splits["train"]
    assert train.query_groups is not None
    assert train.document_groups is not None
    questions = [fold(q) for q in train.queries.slice(0, len(train))]
    by_question: dict[str, set[int]] = {}
    for question, group in zip(questions, train.query_groups.tolist(), strict=True):
        by_question.setdefault(question, set()).add(group)
    assert all(len(groups) == 1 for groups in by_question.values())
    assert len(by_question) == len(np.unique(train.query_groups)) < len(train)
    assert (train.document_groups[train.positives.values] == train.query_groups).all()


@pytest.mark.slow
def test_same_every_time(splits: dict[str, Pairs]) -> None:
    pycode._all_functions.cache_clear()  # read the sources again, not what is kept of them
    again = read_pairs("builtin:pycode", ReadOptions(split="test"))
    assert again.digests == splits["test"].digests
    assert again.query_ids.equals(splits["test"].query_ids)


def test_documents_are_code_without_its_docstring(some_code: Pairs) -> None:
    parsed = 0
    for question, code in zip(some_code.queries.slice(0, 300), some_code.documents.slice(0, 300), strict=True):
        if len(code) == 2000:
            continue  # cut: no longer Python
        tree = ast.parse(textwrap.dedent(code))
        function = tree.body[0]
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(function) != question
        parsed += 1
    assert parsed > 150


def test_functions_of_one_file(tmp_path: Path) -> None:
    source = '''
class A:
    def method(self, x):
        """Return the thing doubled.

        More.
        """
        value = x + x  # a comment that makes it long enough to count
        return value

    def silent(self):
        return "no docstring, so nobody asks for this function, however long"

def short():
    """Too short to be asked."""
    return 1
'''
    (tmp_path / "m.py").write_text(source)
    found = _functions(("m.py", str(tmp_path / "m.py")))
    assert [(label, question) for label, question, _ in found] == [("m.py:A.method@3", "Return the thing doubled.")]
    assert found[0][2].startswith("def method(self, x):\n    value = x + x")
    (tmp_path / "bad.py").write_text("def broken(:\n")
    assert _functions(("bad.py", str(tmp_path / "bad.py"))) == []


def test_unknown_split() -> None:
    with pytest.raises(UsageError, match="no split 'dev'"):
        read_pairs("builtin:pycode", ReadOptions(split="dev"))
