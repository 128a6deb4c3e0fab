"""The wheel, in an environment of its own; and the promises that the source makes."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import hardneg

ROOT = Path(__file__).parent.parent


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


def test_public_names_exist() -> None:
    for name in hardneg.__all__:
        assert getattr(hardneg, name).__doc__, name
    assert set(hardneg.__all__) == set(dir(hardneg))


def test_rooms_import_only_from_below() -> None:
    """The floors of the architecture in the README; and the library knows no terminal."""
    floors = {"errors": 0, "hashing": 0, "memory": 0, "progress": 0, "data": 1, "encoders": 2, "index": 2, "mining": 3}
    floors |= {"losses": 2, "bank": 4, "calibration": 4, "training": 5, "diagnostics": 6}
    for path in (ROOT / "hardneg").rglob("*.py"):
        room = path.relative_to(ROOT / "hardneg").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        text = path.read_text()
        assert not re.search(r"^\s*(import|from) (rich|click)", text, re.M), path
        code = re.sub(r"if TYPE_CHECKING:\n(    .*\n)+", "", text)
        for other in re.findall(r"^\s*from hardneg\.(\w+)", code, re.M):
            assert floors[other] <= floors[room], f"{path} imports hardneg.{other}"


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
