"""Data of the examples: what functions of the standard library say they do, and their source. Nothing is downloaded."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import hardneg


def pairs_of_functions(files: int = 120) -> tuple[hardneg.Pairs, hardneg.Pairs]:
    """Pairs to train on, and pairs to evaluate on. A query is the first line of a docstring, its positive the function without it."""
    rows: dict[str, str] = {}  # what is said of each function, once, by its source
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:files]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            said = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if said and len(said.splitlines()[0].split()) >= 3 and len(node.body) > 1:
                node.body = node.body[1:]
                if said.splitlines()[0] not in rows.values():
                    rows.setdefault(ast.unparse(node)[:500], said.splitlines()[0])
    questions, code = list(rows.values()), list(rows)
    test = set(range(0, len(code), 5))
    train = [i for i in range(len(code)) if i not in test]
    pairs = hardneg.Pairs.from_columns([questions[i] for i in train], [code[i] for i in train])
    # All documents are there to be found.
    held = hardneg.Pairs.from_columns(
        [questions[i] for i in sorted(test)], [code[i] for i in sorted(test)], corpus=code
    )
    return pairs, held
