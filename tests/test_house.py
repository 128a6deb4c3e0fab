"""The structure of the code: import order, no import cycles, short files and functions, no unsafe or heavy imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hardneg"
# A package imports only from packages before it in this list.
ROOMS = (
    "flags", "errors", "ambient",
    "hashing", "lazy", "memory", "products", "progress", "renamed", "registry", "storage", "data", "encoders", "index",
    "losses", "mining", "judges", "false_negatives", "tasks", "refresh", "bank", "evaluation", "exports", "demo_data", "diagnostics",
    "training", "integrations", "version", "__main__",
)  # fmt: skip
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; stubs, which only list names, are left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, anywhere in it: in functions and under TYPE_CHECKING, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "hardneg"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hardneg":
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else str(node.module))
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "hardneg"


def test_rooms_import_only_from_rooms_below() -> None:
    known = modules()
    assert {room(name) for name in known} - {"hardneg"} == set(ROOMS)
    floor = {name: i for i, name in enumerate(ROOMS)}
    for module, path in known.items():
        if module == "hardneg":
            continue
        for other in imports(path, known):
            assert other != "hardneg", f"{path} imports the package itself"
            if room(other) != room(module):
                assert floor[room(other)] < floor[room(module)], f"{module} imports {other}, which stands above it"


def test_upper_rooms_are_named_in_the_registry_alone() -> None:
    """A module named in a string is an import in disguise: the registry is the only place for it."""
    known = modules()
    named = re.compile(r"""["'](hardneg\.[a-z_]+(?:\.[a-z_]+)*)(?::\w+)?["']""")
    for module, path in known.items():
        found = {name for name in named.findall(path.read_text()) if name in known}
        if module == "hardneg.registry":
            assert found
        else:
            assert {room(name) for name in found} <= {room(module)}, f"{module} names {found}"


def test_no_circle_of_imports() -> None:
    known = modules()
    graph = {module: imports(path, known) for module, path in known.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_file_and_no_function_is_too_long() -> None:
    for path in (*PACKAGE.rglob("*.py"), *(ROOT / "cli").glob("*.py")):
        text = path.read_text()
        assert text.count("\n") <= LONGEST_FILE, f"{path} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                kernel = any("triton.jit" in ast.unparse(each) for each in node.decorator_list)
                # The signature of a kernel names every pointer, flag and size, and one is that of another library; what counts is
                # what follows.
                given = kernel or node.name == "mine_hard_negatives"
                length = node.end_lineno - (node.body[0].lineno if given else node.lineno) + 1
                assert length <= LONGEST_FUNCTION, f"{path}: {node.name} has {length} lines"


def test_the_architecture_is_drawn_as_it_is() -> None:
    """Its page names every room, in the order of the floors, and every file."""
    drawn = (ROOT / "docs" / "architecture.md").read_text()
    places = [drawn.index(f"\n  {name}/") for name in ROOMS if (PACKAGE / name).is_dir()]
    assert places == sorted(places)
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"\b{path.stem}\b", drawn), f"{path.relative_to(ROOT)} is missing in docs/architecture.md"


def test_the_library_knows_no_terminal() -> None:
    """Only the bars of `progress=True` do, and they load rich when they are shown."""
    for path in PACKAGE.rglob("*.py"):
        allowed = "click" if path == PACKAGE / "progress.py" else "rich|click"
        assert not re.search(rf"^\s*(import|from) ({allowed})", path.read_text(), re.M), path


def test_nothing_unsafe_is_called() -> None:
    for folder in ("hardneg", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert not re.search(r"import pickle|torch\.load\(|allow_pickle=True|(?<![.\w])eval\(|\bexec\(", text), path
            for call in re.findall(r"np\.(?:load|save)\(.*\)", text):
                assert "allow_pickle=False" in call, (path, call)


def test_mining_loads_only_what_it_needs() -> None:
    """Each of these costs every process that mines 100 MB or a second."""
    code = "import sys, hardneg.mining.mine; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"sklearn", "scipy", "pandas", "transformers", "sentence_transformers", "datasets"} & set(loaded)


def test_help_loads_neither_torch_nor_numpy() -> None:
    code = "import sys; from hardneg_cli.main import main\ntry: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mine" in done.stdout
    assert not {"torch", "numpy", "pyarrow", "faiss", "rich"} & set(done.stderr.split())


def test_the_files_of_tests_that_are_named_exist() -> None:
    named = [
        (path.name, found)
        for path in (
            ROOT / "Makefile",
            ROOT / "README.md",
            ROOT / "CONTRIBUTING.md",
            ROOT / "SECURITY.md",
            ROOT / "pyproject.toml",
        )
        for found in re.findall(r"\btests/[\w/]+\.py", path.read_text())
    ]
    assert len(named) > 3
    assert [each for each in named if not (ROOT / each[1]).is_file()] == []
