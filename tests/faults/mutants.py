"""Change the code in small ways, and count how many changes the tests notice: `python -m tests.faults.mutants`.

The changes (mutants) are those of cosmic-ray: another number, operator or comparison, a condition turned round, a loop
that is left out. Each is tried in a child process, with the tests of its part of the code. Only those that survive are
of interest: they show what no test looks at. Needs `pip install cosmic-ray`, and torch with one thread.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).parent.parent.parent

# Part of the code: (its modules, the tests that look at it as arguments of pytest: those that take few seconds).
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "filters": (
        tuple(f"hardneg/mining/filters/{name}.py" for name in ("base", "identity", "limits", "models")),
        ("tests/test_filters.py", "tests/test_own_parts.py", "tests/test_written_specs.py"),
    ),
    "masks": (
        ("hardneg/losses/masks.py", "hardneg/losses/mask_sets.py"),
        ("tests/test_infonce.py", "tests/test_online_filters.py", "-k", "not ranks and not compile and not memory"),
    ),
    "samplers": (
        ("hardneg/mining/samplers.py", "hardneg/bank/sampler.py"),
        ("tests/test_samplers.py", "tests/test_sampler.py", "tests/test_bank.py", "-k", "not ranks"),
    ),
    "store": (
        tuple(f"hardneg/storage/{name}.py" for name in ("folders", "files", "json_files", "vectors")),
        ("tests/test_damaged_files.py", "tests/test_folders.py", "tests/test_run_paths.py", "-k", "not change2"),
    ),
    "guarantee": (
        ("hardneg/false_negatives/guarantee.py",),
        ("tests/test_calibrate.py",),
    ),
}

# Kinds of changes that leave the meaning in most places, or that only break type annotations.
LEFT_OUT = ("NoOp", "VariableReplacer", "VariableInserter", "RemoveDecorator", "ExceptionReplacer")


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    path: str
    operator: str
    occurrence: int
    source: str

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def change(self) -> str:
        """The changed lines, as a unified diff without context."""
        before = (ROOT / self.path).read_text("utf-8").splitlines()
        lines = difflib.unified_diff(before, self.source.splitlines(), lineterm="", n=0)
        return "\n".join(line for line in lines if not line.startswith(("---", "+++")))


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    """Imports the changed source in place of the module's own."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.mutant.module:
            return None
        file = str(ROOT / self.mutant.path)
        return importlib.util.spec_from_file_location(
            fullname, file, loader=_Loader(fullname, file, self.mutant.source)
        )


def _meaning(source: str) -> str:
    """The source as a syntax tree without annotations and docstrings, in which changes have no effect."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def places(path: str) -> list[tuple[str, str, int]]:
    """(module, operator, occurrence) of every change that cosmic-ray can make in a module."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast((ROOT / path).read_text("utf-8"))))
    found = []
    for name in operator_names():
        if not any(part in name for part in LEFT_OUT):
            operator = get_operator(name)()
            count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
            found += [(path, name, occurrence) for occurrence in range(count)]
    return found


def mutant_at(path: str, operator: str, occurrence: int) -> Mutant | None:
    """The changed module; None if the change leaves its meaning as it is, or if it is no Python."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / path).read_text("utf-8")
    changed = mutate_code(source, get_operator(operator)(), occurrence)
    with contextlib.suppress(SyntaxError):
        if changed is not None and _meaning(changed) != _meaning(source):
            return Mutant(path, operator, occurrence, changed)
    return None


def chosen(part: str, most: int, seed: int) -> list[Mutant | None]:
    """So many mutants of a part, drawn at random; 0: all of them."""
    everywhere = [place for path in PARTS[part][0] for place in places(path)]
    random.Random(f"{part} {seed}").shuffle(everywhere)
    found: list[Mutant | None] = []
    for place in everywhere:
        mutant = mutant_at(*place)
        if mutant is not None:
            found.append(mutant)
            if len(found) == most:
                break
    return found


def _child(mutant: Mutant | None, tests: Sequence[str]) -> int:
    """Start the tests in a child process with the changed module. Returns its process id."""
    process = os.fork()
    if process:
        return process
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    import pytest

    sys.stdout = sys.stderr = io.StringIO()
    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant))
    try:
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "timeout=0", *tests]))
    except BaseException:
        code = 1
    os._exit(min(code, 1))


def attempt(
    waiting: list[Mutant | None], tests: Sequence[str], limit: float, at_once: int
) -> Iterator[tuple[Mutant | None, str]]:
    """Try mutants, some at once: (the mutant, `killed`, `timeout` or `survived`)."""
    running: dict[int, tuple[Mutant | None, float]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            mutant = waiting.pop(0)
            running[_child(mutant, tests)] = mutant, time.monotonic() + limit
        time.sleep(0.05)
        for process, (mutant, until) in list(running.items()):
            done, status = os.waitpid(process, os.WNOHANG)
            late = not done and time.monotonic() > until
            if late:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
                _, status = os.waitpid(process, 0)
            if done or late:
                del running[process]
                yield mutant, "timeout" if late else "survived" if status == 0 else "killed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this part; may be repeated")
    parser.add_argument("--most", type=int, default=60, help="mutants of each part, drawn at random; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=2, help="processes that run tests at the same time")
    given = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    import faiss
    import hypothesis
    import pyarrow.parquet
    import sklearn.linear_model
    import torch

    assert all((faiss, hypothesis, pyarrow, sklearn))  # what takes seconds to import is imported once, before the forks
    torch.set_num_threads(1)
    table: dict[str, Counter[str]] = {}
    for part in given.part or PARTS:
        tests = PARTS[part][1]
        found = chosen(part, given.most, given.seed)
        total = len(found)
        started = time.monotonic()
        _, result = next(attempt([None], tests, 3600, 1))
        assert result == "survived", f"the tests of {part} fail without any change"
        limit = 3 * (time.monotonic() - started) + 20
        table[part] = Counter()
        for mutant, result in attempt(found, tests, limit, given.at_once):
            table[part][result] += 1
            print(f"{part}: {table[part].total()} of {total}", end="\r", file=sys.stderr, flush=True)
            if result == "survived" and mutant is not None:
                print(f"survived: {mutant.path} ({mutant.operator} {mutant.occurrence})\n{mutant.change()}", flush=True)
        print(part, dict(table[part]), f"limit {limit:.0f} s", flush=True)
    print(f"{'part':12}{'mutants':>9}{'killed':>8}{'timeout':>9}{'survived':>10}{'score':>8}")
    for part, counts in table.items():
        tried = counts.total()
        cells = ((tried, 9), (counts["killed"], 8), (counts["timeout"], 9), (counts["survived"], 10))
        score = 1 - counts["survived"] / max(1, tried)
        print(f"{part:12}" + "".join(f"{n:>{width},}" for n, width in cells) + f"{score:>8.1%}")


if __name__ == "__main__":
    main()
