"""Public names that load their module when they are first used.

The names of a package stand in one place, its `__init__.pyi`, as imports: type checkers read them there, and so does
`attach` when the package is imported. (PEP 562; the same idea as the package lazy_loader of scientific-python.org.)
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def attach(package: str, init: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: its `__name__`.
        init: its `__file__`; the stub stands beside it.
    """
    stub = ast.parse(Path(init).with_suffix(".pyi").read_text("utf-8"))
    homes = {
        alias.name: node.module or ""
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if (alias.asname or alias.name) == alias.name
    }
    names = sorted(homes)

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(homes[name])
        # `from hardneg import losses`: a package of the package.
        return import_module(f"{package}.{name}") if homes[name] == package else getattr(module, name)

    return load, lambda: names, names
