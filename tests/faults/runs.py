"""Damage runs, kill commands and let processes collide, many times: `python -m tests.faults.runs --seconds 120 --seed 0`.

Every case is one of: refused in words that name a file; harmless (the same result as without the fault); a raw error; a
wrong result; a lost one; or the death of the process. The last four are faults. The table counts all of them.
"""

from __future__ import annotations

import argparse
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

import torch

from tests.conftest import run_here
from tests.faults import disks, trainings
from tests.faults.place import MAIN, ROOT, Place, content, damage, outcome

GOOD = ("refused", "harmless")
FAULTS = ("raw", "wrong", "lost", "died")


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
    **trainings.KINDS,
    "disk really full": disks.really_full,
}


def count(place: Place, kind: str, seed: int, seconds: float, most: int = 10**9) -> tuple[Counter[str], list[int]]:
    """(the outcomes; the seeds of the faults) of one kind, tried for so many seconds in a child process that may die."""
    found, faults = Counter[str](), list[int]()
    until, case = time.monotonic() + seconds, 0
    while time.monotonic() < until and case < most:
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)  # the threads of this process are not in the child
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
    bad, place = 0, Place(given.folder)
    trainings.Trained(place)
    print(f"{'kind':40}" + "".join(f"{name:>10}" for name in ("cases", *GOOD, *FAULTS)))
    for kind in KINDS:
        if given.kind not in (None, kind):
            continue
        if kind == "disk really full" and not disks.small(given.folder):
            print(f"{kind:40} not run: {given.folder} is not on a small disk of its own (see tests/faults/disks.py)")
            continue
        found, faults = count(place, kind, given.seed, given.seconds)
        print(f"{kind:40}" + "".join(f"{n:>10,}" for n in (found.total(), *(found[x] for x in (*GOOD, *FAULTS)))))
        if faults:
            print(f"  faults in the cases {faults}")
        bad += len(faults)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
