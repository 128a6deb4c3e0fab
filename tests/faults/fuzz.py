"""Read many damaged inputs of every kind, and count what happens: `python -m tests.faults.fuzz --seconds 60 --seed 0`.

An input is accepted, or refused with one of our errors. Any other error is raw, which is a fault, and so is the death of
the process that reads: by a signal, or by hanging. Every kind is read in a process of its own, which is started again.
`--kind KIND --case N` reads one case here, to look into it.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from hardneg.errors import HardnegError
from tests.faults.kinds import KINDS, emptied

LONGEST_SILENCE = 30  # seconds for one case, after which its process is taken to hang
MEMORY = 3 << 30  # bytes that a process may have more than at its start


@dataclass
class Tally:
    """What happened to the inputs of one kind.

    Attributes:
        counts: number of cases that were `accepted`, `refused` or `raw`.
        raw: for each place that raised a raw error, the first case and its traceback.
        deaths: (case, how the process ended).
    """

    counts: Counter[str] = field(default_factory=Counter)
    raw: dict[str, str] = field(default_factory=dict)
    deaths: list[tuple[int, str]] = field(default_factory=list)

    @property
    def fine(self) -> bool:
        """Whether every case was accepted or refused."""
        return not self.counts["raw"] and not self.deaths


def case(kind: str, seed: int, number: int, folder: Path) -> tuple[str, str]:
    """Make and read one input: (`accepted`, `refused` or `raw`; the error in words)."""
    KINDS[kind].make(emptied(folder), Random(f"{kind} {seed} {number}"))
    try:
        KINDS[kind].read(folder)
    except HardnegError as error:
        if not str(error).strip():
            return "raw", "an error without a message"
        return "refused", str(error)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        trace = "".join(traceback.format_exception(error, limit=-6, chain=False))
        return "raw", f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}\n{trace[-3000:]}"
    return "accepted", ""


def here(kind: str, seed: int, numbers: Iterator[int] | range, folder: Path, until: float = float("inf")) -> Tally:
    """Read cases in this process, until the time is over."""
    tally = Tally()
    for number in numbers:
        if time.monotonic() > until:
            break
        verdict, words = case(kind, seed, number, folder / "input")
        tally.counts[verdict] += 1
        if verdict == "raw":
            tally.raw.setdefault(words.partition("\n")[0], f"case {number}: {words}")
    return tally


def apart(kind: str, seed: int, first: int, cases: int, seconds: float, folder: Path) -> Tally:
    """Read cases in processes of their own, until their number or the time is reached."""
    tally, until, number, last = Tally(), time.monotonic() + seconds, first, first + cases
    while number < last and time.monotonic() < until:
        command = [
            sys.executable,
            "-m",
            "tests.faults.fuzz",
            "--child",
            kind,
            "--seed",
            str(seed),
            "--case",
            str(number),
        ]
        command += ["--cases", str(last - number), "--seconds", str(until - time.monotonic()), "--folder", str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "0"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        number, hangs = _follow(process, number, tally)
        code = process.wait()
        if hangs or code:
            tally.deaths.append((number - 1, "hangs" if hangs else f"exit code {code}"))
        elif number < last:
            break  # its time is over
    return tally


def _follow(process: subprocess.Popen[bytes], number: int, tally: Tally) -> tuple[int, bool]:
    """Count what the process reports: (the case after the last one that it began, whether it hangs)."""
    assert process.stdout is not None
    unread = b""
    while True:
        if not select.select([process.stdout], [], [], LONGEST_SILENCE)[0]:
            process.kill()
            return number, True
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part:
            return number, False
        *lines, unread = (unread + part).split(b"\n")
        for line in lines:
            what, _, rest = line.decode("utf-8", "replace").partition(" ")
            if what == "begin":
                number = int(rest) + 1
                continue
            tally.counts[what] += 1
            if what == "raw":
                words = rest.encode().decode("unicode_escape")
                tally.raw.setdefault(words.partition("\n")[0], f"case {number - 1}: {words}")


def _child(kind: str, seed: int, first: int, cases: int, seconds: float, folder: Path) -> None:
    """Read cases and report each one on standard output."""
    until = time.monotonic() + seconds
    os.fsync = lambda descriptor: None  # nothing here has to last
    KINDS[kind].make(emptied(folder / "warm"), Random(0))
    with open("/proc/self/statm") as f:
        now = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(first, first + cases):
        if time.monotonic() > until:
            break
        print(f"begin {number}", flush=True)
        verdict, words = case(kind, seed, number, folder / "input")
        print(verdict, words.encode("unicode_escape").decode() if verdict == "raw" else "", flush=True)


def table(tallies: dict[str, Tally]) -> str:
    """The counts as a table, then the first case of every fault."""
    lines = [f"{'kind':<15}{'inputs':>9}{'accepted':>10}{'refused':>9}{'raw errors':>12}{'deaths':>8}"]
    for kind, tally in tallies.items():
        inputs = sum(tally.counts.values()) + len(tally.deaths)
        counts = [tally.counts[name] for name in ("accepted", "refused", "raw")]
        lines.append(f"{kind:<15}{inputs:>9,}{counts[0]:>10,}{counts[1]:>9,}{counts[2]:>12,}{len(tally.deaths):>8,}")
    for kind, tally in tallies.items():
        lines += [f"\n{kind}, {words}" for words in tally.raw.values()]
        lines += [f"\n{kind}, case {number}: {how}" for number, how in tally.deaths]
    return "\n".join(lines)


def main() -> int:
    """Fuzz the kinds one after the other. 1 if there is a fault, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="time for all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; may be repeated")
    parser.add_argument("--case", type=int, default=0, help="the first case")
    parser.add_argument("--cases", type=int, default=1 << 40, help="the most cases of each kind")
    parser.add_argument(
        "--keep", type=Path, help="with one --kind and --case: make the input in this folder, and read it"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _child(given.child, given.seed, given.case, given.cases, given.seconds, given.folder)
        return 0
    if given.keep:
        print(*case(given.kind[0], given.seed, given.case, given.keep), sep="\n")
        return 0
    tallies = {}
    kinds = given.kind or list(KINDS)
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            tallies[kind] = apart(kind, given.seed, given.case, given.cases, given.seconds / len(kinds), Path(folder))
    print(table(tallies))
    return 0 if all(tally.fine for tally in tallies.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
