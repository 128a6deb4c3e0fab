"""A small dataset with a finished and an interrupted run of it, what whole commands write, and damage to copies of them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import run_here, write_jsonl

MAIN = "import sys; from hardneg_cli.main import main; main(sys.argv[1:])"
ROOT = Path(__file__).parent.parent.parent
VOLATILE = ("timings", "environment", "command", "checksum", "hardneg_version")


def content(folder: Path) -> dict[str, bytes]:
    """What a run says: all its files but the cache of features, and run.json without times and places."""
    found = {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".hardneg-") and p.parent.name != "features"
    }
    if "run.json" in found:
        info = json.loads(found["run.json"])
        found["run.json"] = json.dumps({k: v for k, v in info.items() if k not in VOLATILE}, sort_keys=True).encode()
    return found


def damage(path: Path, rng: random.Random) -> None:
    """Flip a bit, cut the file, swap two pieces of it, or write zeros into it."""
    data = bytearray(path.read_bytes())
    if not data:
        return
    at, size = rng.randrange(len(data)), rng.randint(1, 16)
    kind = rng.choice(("flip", "flip", "flip", "cut", "swap", "zero"))
    if kind == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "swap":
        other = rng.randrange(len(data))
        one, two = data[at : at + size], data[other : other + size]
        data[at : at + size], data[other : other + size] = two, one
    else:
        data[at : at + size] = bytes(len(data[at : at + size]))
    path.unlink()
    path.write_bytes(data)


class Place:
    """A small dataset, a finished run of it, and an interrupted one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = [{"query": f"query {i} of {i % 9}", "positive": f"text {i} on {i % 9} and {i % 4}"} for i in range(60)]
        self.source = write_jsonl(folder / "pairs.jsonl", rows)
        self.run = folder / "run"
        self.options = ["--depth", "20", "--negatives", "3", "--filter", "margin:relative=0.01", "--sampler", "uniform"]
        self.done("mine", self.source, "--out", self.run, *self.options)
        self.done("calibrate", self.run, "--learn", "known")
        self.whole = {"mine": {k: v for k, v in content(self.run).items() if k != "posterior.json"}}
        self.done("select", self.run, "--out", folder / "selected", "--negatives", "2")
        self.whole["select"] = content(folder / "selected")
        self.done("judge", self.run, "--sample", "20", "--out", folder / "whole.csv")
        self.done("export", self.run, "--format", "triplet", "--out", folder / "whole.jsonl")
        for what, name in (("judge", "whole.csv"), ("export", "whole.jsonl")):
            self.whole[what] = {"output": (folder / name).read_bytes()}
        self.cut = folder / "cut"
        code = (
            "import os, signal, sys; import hardneg.mining.parts as run\n"
            "run.PartWriter.finish = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n" + MAIN
        )
        self.process(code, "mine", self.source, "--out", self.cut, *self.options)

    def done(self, *args: str | Path) -> str:
        """Run a command that must succeed, in this process."""
        ended = run_here(*args)
        assert ended.returncode == 0, (args, ended.stderr)
        return ended.stdout

    def process(self, code: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120)

    def copy(self, of: Path, name: str) -> Path:
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(of, target)
        return target

    def files(self, folder: Path) -> list[Path]:
        return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]


def outcome(args: list[str | Path], expected: Callable[[], bool]) -> str:
    """Run a command in this process, and say what became of it."""
    try:
        ended = run_here(*args)
    except (Exception, SystemExit):
        return "raw"
    if "Traceback" in ended.stderr:
        return "raw"
    if ended.returncode == 0:
        return "harmless" if expected() else "wrong"
    return "refused" if ended.stderr.strip() else "raw"
