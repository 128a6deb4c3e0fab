"""The dataset `pycode`: docstrings as queries, and the Python functions they describe as documents.

The functions come from installed Python sources, so nothing is downloaded. The dataset depends on the versions of
Python and of the packages.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hardneg.data.builder import Builder
from hardneg.data.texts import fold
from hardneg.errors import DataError

PACKAGES = ("numpy", "sklearn", "torch")

_TEST_SHARE = 10  # one function in ten is in the test split

_SKIP = {"test", "tests", "testing", "idlelib", "site-packages", "lib2to3", "__pycache__", "turtledemo", "_vendor"}

# Syntax trees have no cycles: looking for some takes a third of the time and frees nothing.
_CHILD = (
    "import gc, json, sys; gc.disable(); job = json.load(sys.stdin); sys.path[:] = job['path']; "
    "from hardneg.demo_data.pycode import _functions; json.dump([_functions(f) for f in job['files']], sys.stdout)"
)

_MAX_CHARACTERS = 2000  # per function; the beginning is enough to tell its purpose


def read_pycode(split: str, builder: Builder) -> None:
    """Add the functions of a split to `builder`.

    A query is the first line of a docstring. Its positive is the source of the function without the docstring. The
    sources are the standard library and the installed numpy, scikit-learn and torch. Functions whose docstrings have
    the same first line answer each other's query. They are natural false negatives, and share a group.

    Raises:
        DataError: there are no such sources on this machine.
    """
    rows = [row for rows in _all_functions(tuple(_source_files())) for row in rows]
    seen: set[bytes] = set()
    for label, question, code in rows:
        digest = hashlib.sha256(fold(code).encode("utf-8", "replace")).digest()
        # The split depends on the source alone, so no function is in both splits. Copies are added only once.
        if digest in seen or (digest[0] % _TEST_SHARE == 0) != (split == "test"):
            continue
        seen.add(digest)
        group = hashlib.sha256(fold(question).encode("utf-8", "replace")).hexdigest()[:16]
        query = builder.add_query(f"q:{label}", question, group=group, where=label)
        builder.relate(query, builder.add_document(label, code, group=group, where=label), 1)
    if not seen:
        raise DataError("builtin:pycode: this machine has no Python sources with docstrings")


@functools.lru_cache(maxsize=1)  # so that reading both splits parses half a million lines only once
def _all_functions(files: tuple[tuple[str, str], ...]) -> list[list[tuple[str, str, str]]]:
    """The result of `_functions` for each file, in order. Several child processes share the work.

    They are plain child processes because a multiprocessing pool would import the caller's main module again, which
    fails in a script without `if __name__ == "__main__"`.
    """
    count = max(1, min(_workers(), len(files)))

    def work(part: int) -> list[list[tuple[str, str, str]]]:
        job = json.dumps({"path": sys.path, "files": files[part::count]})
        child = subprocess.run([sys.executable, "-c", _CHILD], input=job, capture_output=True, text=True, check=False)
        if child.returncode:
            raise DataError(f"reading Python sources failed in a child process: {child.stderr.strip()[-500:]}")
        functions: list[list[tuple[str, str, str]]] = json.loads(child.stdout)
        return functions

    with ThreadPoolExecutor(count) as pool:
        parts = list(pool.map(work, range(count)))
    return [parts[i % count][i // count] for i in range(len(files))]


def _workers() -> int:
    """Number of child processes: the available cores, but at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _source_files() -> Iterator[tuple[str, str]]:
    """(label, path) of every source file, in a fixed order. The label is the path in the library or package."""
    roots = [("", Path(sysconfig.get_paths()["stdlib"]))]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            roots.append((package + "/", Path(spec.origin).parent))
    for prefix, root in roots:
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if not _SKIP.intersection(part.lower() for part in relative.parts):
                yield prefix + relative.as_posix(), str(path)


def _functions(file: tuple[str, str]) -> list[tuple[str, str, str]]:
    """(label, first line of the docstring, source without the docstring) of each documented function in one file."""
    name, path = file
    try:
        source = Path(path).read_text("utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, OSError, RecursionError, ValueError):
        return []  # not valid in this version of Python; the standard library ships such files on purpose
    lines = source.splitlines(keepends=True)
    functions = []
    for node, scope in _walk(tree, ()):
        question = _question(node)
        first = node.body[0]
        body = node.body[1:]
        if question is None or not body or first.end_lineno is None or node.end_lineno is None:
            continue
        head = lines[node.lineno - 1 : first.lineno - 1]
        rest = lines[first.end_lineno : node.end_lineno]
        code = _dedented(head + rest)
        if len(code) >= 60:
            label = f"{name}:{'.'.join((*scope, node.name))}@{node.lineno}"
            functions.append((label, question, code[:_MAX_CHARACTERS]))
    return functions


def _walk(
    node: ast.AST, scope: tuple[str, ...]
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, tuple[str, ...]]]:
    """(function, names of the functions and classes around it) of every function below `node`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, scope
            yield from _walk(child, (*scope, child.name))
        elif isinstance(child, ast.ClassDef):
            yield from _walk(child, (*scope, child.name))
        elif not isinstance(child, ast.expr):  # no expression holds a function with a docstring
            yield from _walk(child, scope)


def _question(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """The first line of the docstring, if it has at least three words and at most 200 characters; otherwise None."""
    docstring = ast.get_docstring(node)
    if not docstring:
        return None
    line = docstring.strip().split("\n", 1)[0].strip()
    return line if len(line.split()) >= 3 and len(line) <= 200 else None


def _dedented(lines: list[str]) -> str:
    """The lines as one text, without the indentation of the first line."""
    indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    return "".join(line[indent:] if line[:indent].isspace() or not indent else line for line in lines).strip()
