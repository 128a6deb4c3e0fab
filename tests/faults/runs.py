"""Damage runs, kill commands and let processes collide, many times: `python -m tests.faults.runs --seconds 120 --seed 0`.

Every case is one of: refused in words that name a file; harmless (the same result as without the fault); a raw error; a
wrong result; a lost one; or the death of the process. The last four are faults. The table counts all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.conftest import run_here, write_jsonl

GOOD = ("refused", "harmless")
FAULTS = ("raw", "wrong", "lost", "died")
MAIN = "import sys; from hardneg_cli.main import main; main(sys.argv[1:])"
ROOT = Path(__file__).parent.parent.parent
VOLATILE = ("timings", "environment", "command", "checksum", "hardneg_version")


def content(folder: Path) -> dict[str, bytes]:
    """What a run says: all its files, and run.json without times and places."""
    found = {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".hardneg-")
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
            "import os, signal, sys; import hardneg.mining.run as run\n"
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


def finished_runs(place: Place, rng: random.Random) -> str:
    """One damaged file in a finished run, then a command that reads the run."""
    run, out = place.copy(place.run, "damaged"), place.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    path = rng.choice(place.files(run))
    damage(path, rng)
    what = rng.choice(("select", "judge", "diagnose", "export"))
    file = place.folder / f"{what}.out"
    args: dict[str, list[str | Path]] = {
        "select": ["select", run, "--out", out, "--negatives", "2"],
        "judge": ["judge", run, "--sample", "20", "--out", file.with_suffix(".csv"), "--overwrite"],
        "diagnose": ["diagnose", run, "--json"],
        "export": ["export", run, "--format", "triplet", "--out", file.with_suffix(".jsonl"), "--overwrite"],
    }
    paths = {"judge": file.with_suffix(".csv"), "export": file.with_suffix(".jsonl")}

    def expected() -> bool:
        if what == "select":
            found = content(out)
            if path.name == "posterior.json":  # it is copied as it is, and refused when it is used
                found["posterior.json"] = place.whole["select"]["posterior.json"]
            return found == place.whole["select"]
        # The numbers of a diagnosis are compared by its own tests.
        return what == "diagnose" or paths[what].read_bytes() == place.whole[what]["output"]

    return outcome(args[what], expected)


def interrupted_runs(place: Place, rng: random.Random) -> str:
    """One damaged file in an interrupted run, then --resume: the same bytes, or a refusal."""
    run = place.copy(place.cut, "damaged")
    damage(rng.choice(place.files(run)), rng)
    args: list[str | Path] = ["mine", place.source, "--out", run, *place.options, "--resume"]
    return outcome(args, lambda: content(run) == place.whole["mine"])


def killed(place: Place, rng: random.Random) -> str:
    """A command that replaces a run is killed at a random moment, by a random signal; then it is done again."""
    run = place.copy(place.run, "killed")
    again: dict[str, list[str | Path]] = {
        "mine": ["mine", place.source, "--out", run, *place.options, "--overwrite"],
        "select": ["select", run, "--negatives", "3"],
    }
    args = again[rng.choice(("mine", "select"))]
    started = subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    time.sleep(rng.uniform(1.0, 6.0))
    started.send_signal(rng.choice((signal.SIGKILL, signal.SIGINT, signal.SIGTERM)))
    started.wait()
    if run_here("diagnose", run, "--json").returncode != 0:
        return "lost"
    if run_here(*args).returncode != 0:
        return "lost"
    names = [p.name for p in place.folder.iterdir() if "killed" in p.name]
    whole = {k: v for k, v in content(place.run).items() if k not in ("posterior.json", "run.json")}
    same = {k: v for k, v in content(run).items() if k not in ("posterior.json", "run.json")} == whole
    return "harmless" if same and names == ["killed"] else "wrong"


def two_processes(place: Place, rng: random.Random) -> str:
    """Two processes write one folder: one of them is refused, or both take turns; the run is whole."""
    run = place.copy(place.run, "shared")
    args = [["mine", place.source, "--out", run, *place.options, "--overwrite"], ["select", run, "--negatives", "3"]]
    chosen = [rng.choice(args), rng.choice(args)]
    both = [
        subprocess.Popen([sys.executable, "-c", MAIN, *map(str, each)], stderr=subprocess.PIPE, text=True,
                         stdout=subprocess.DEVNULL, cwd=ROOT)
        for each in chosen
    ]  # fmt: skip
    errors = [each.communicate()[1] for each in both]
    if any("Traceback" in error for error in errors):
        return "raw"
    refused = [error for each, error in zip(both, errors, strict=True) if each.returncode]
    if any("is being written by" not in error for error in refused) or len(refused) == 2:
        return "wrong"
    whole = {k: v for k, v in content(place.run).items() if k not in ("posterior.json", "run.json")}
    same = {k: v for k, v in content(run).items() if k not in ("posterior.json", "run.json")} == whole
    names = [p.name for p in place.folder.iterdir() if "shared" in p.name]
    return ("refused" if refused else "harmless") if same and names == ["shared"] else "wrong"


KINDS: dict[str, Callable[[Place, random.Random], str]] = {
    "finished run, one file damaged": finished_runs,
    "interrupted run, one file damaged": interrupted_runs,
    "killed while replacing a run": killed,
    "two processes on one folder": two_processes,
}


def count(folder: Path, kind: str, seed: int, seconds: float, most: int = 10**9) -> tuple[Counter[str], list[int]]:
    """(the outcomes; the seeds of the faults) of one kind, tried for so many seconds in a child process that may die."""
    place, found, faults = Place(folder), Counter[str](), list[int]()
    until, case = time.monotonic() + seconds, 0
    while time.monotonic() < until and case < most:
        child = os.fork()
        if child == 0:
            try:
                code = (*GOOD, *FAULTS).index(KINDS[kind](place, random.Random(f"{kind} {seed} {case}")))
            except BaseException:
                code = (*GOOD, *FAULTS).index("raw")
            os._exit(code)
        _, status = os.waitpid(child, 0)
        result = (*GOOD, *FAULTS)[os.WEXITSTATUS(status)] if os.WIFEXITED(status) else "died"
        found[result] += 1
        if result in FAULTS:
            faults.append(case)
        case += 1
    return found, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="for each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder to work in")
    parser.add_argument("--kind", choices=KINDS)
    given = parser.parse_args()
    bad = 0
    print(f"{'kind':36}" + "".join(f"{name:>10}" for name in ("cases", *GOOD, *FAULTS)))
    for number, kind in enumerate(KINDS):
        if given.kind not in (None, kind):
            continue
        folder = given.folder / str(number)
        folder.mkdir(parents=True)
        found, faults = count(folder, kind, given.seed, given.seconds)
        print(f"{kind:36}" + "".join(f"{n:>10,}" for n in (found.total(), *(found[x] for x in (*GOOD, *FAULTS)))))
        if faults:
            print(f"  faults in the cases {faults}")
        bad += len(faults)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
