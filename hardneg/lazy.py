"""Lazy imports: public names of a package load their module when they are first used (PEP 562).

The stub `__init__.pyi` of a package lists its names as imports. Type checkers read it, and `attach` reads it when the
package is imported. The package lazy_loader of scientific-python.org works in the same way.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def attach(package: str, init: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The functions `__getattr__` and `__dir__`, and the list `__all__`, for a package.

    Args:
        package: `__name__` of the package.
        init: `__file__` of the package. The stub is in the same folder.
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
        # A stub line `from hardneg import losses` names a subpackage.
        return import_module(f"{package}.{name}") if homes[name] == package else getattr(module, name)

    return load, lambda: names, names
