"""The wheel, in an environment of its own, and the public names."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from packaging.version import Version

import hardneg

from . import oldest

ROOT = Path(__file__).parent.parent


def test_lower_bounds_agree(tmp_path: Path) -> None:
    """Each package has one, in all extras the same, and not above what the suite runs with; see `make test-oldest`."""
    found = oldest.bounds()
    assert len(found) >= 25
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines())
    there = {oldest.normal(name): Version(version) for name, version in pinned.items()}
    for name, bound in found.items():
        assert name not in there or Version(bound) <= there[name], name
    other = tmp_path / "pyproject.toml"
    table = '[project]\ndependencies = ["torch>=2.5"]\n[project.optional-dependencies]\none = ["{}"]\n'
    for requirement, message in (("Torch>=2.6", "give both the same bound"), ("rich", "no lower bound")):
        other.write_text(table.format(requirement))
        with pytest.raises(ValueError, match=message):
            oldest.bounds(other)


def test_wheel_holds_both_packages_and_runs(tmp_path: Path) -> None:
    """Built without isolation, from what is installed; its dependencies come from this environment."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wheel = next(tmp_path.glob("hardneg-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"hardneg", "hardneg_cli"} <= tops
    assert "cli" not in tops
    assert "tests" not in tops
    sources = {f"hardneg/{p.relative_to(ROOT / 'hardneg').as_posix()}" for p in (ROOT / "hardneg").rglob("*.py")}
    sources |= {f"hardneg_cli/{p.name}" for p in (ROOT / "cli").glob("*.py")} | {"hardneg/py.typed"}
    sources |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "hardneg").rglob("*.pyi")}
    assert sources <= set(names)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    # click, rich and the rest are taken from here, hardneg itself must come from the wheel.
    for path in sys.path:
        if path.endswith("site-packages"):
            (site / "dependencies.pth").write_text(path + "\n")
    code = "import hardneg, hardneg_cli.main as m; print(hardneg.__file__); m.main(['--help'])"
    python = tmp_path / "venv" / "bin" / "python"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert "mine" in done.stdout


PACKAGES = [
    "hardneg",
    *sorted(".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "hardneg").rglob("*/__init__.pyi")),
]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist(package: str) -> None:
    """Every name of a stub can be loaded, says what it is, and stands in the list once."""
    module = import_module(package)
    assert module.__all__ == dir(module) == sorted(set(module.__all__))
    for name in module.__all__:
        if name.isupper():  # a constant
            assert getattr(module, name)
        else:
            assert getattr(module, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    for package in PACKAGES:
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            _ = import_module(package).nothing


def test_names_at_the_top_are_few_and_are_those_of_the_rooms() -> None:
    rooms = [name for name in hardneg.__all__ if isinstance(getattr(hardneg, name), ModuleType)]
    assert len(hardneg.__all__) - len(rooms) <= 50
    everywhere = {name for package in PACKAGES[1:] for name in import_module(package).__all__}
    # Verbs are named as the file they stand in, which a room cannot offer beside that file.
    alone = {name for name in hardneg.__all__ if name not in everywhere and name not in rooms} - {"__version__"}
    verbs = {"mine", "select", "calibrate", "export", "diagnose", "compare", "train"}
    assert alone == verbs | {"DataError", "HardnegError", "HardnegWarning", "RunError", "UsageError"}
