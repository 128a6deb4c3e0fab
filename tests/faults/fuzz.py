"""Read many damaged inputs of every kind, and count what happens: `python -m tests.faults.fuzz --seconds 60 --seed 0`.

An input is accepted, or refused with one of our errors. Any other error is raw, which is a fault, and so is the death of
the process that reads: by a signal, or by hanging. `--jobs N` reads in N processes, which take the kinds in turns; one that
dies is started again. The same kind, seed and number always make the same bytes: `--kind KIND --case N --keep FOLDER` makes
and reads one case here, to look into it. Inputs are made in memory (/dev/shm) where that can be.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from hardneg.errors import HardnegError
from tests.faults.crew import Job, place
from tests.faults.kind import Kind
from tests.faults.kinds import KINDS, TRIAL


@dataclass
class Tally:
    """What happened to the inputs of one kind.

    Attributes:
        counts: number of cases that were `accepted`, `refused` or `raw`.
        raw: for each place that raised a raw error, the first case and its traceback.
        deaths: (case, how the process ended).
        seconds: the time that they took.
    """

    counts: Counter[str] = field(default_factory=Counter)
    raw: dict[str, str] = field(default_factory=dict)
    deaths: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def fine(self) -> bool:
        """Whether every case was accepted or refused."""
        return not self.counts["raw"] and not self.deaths

    @property
    def inputs(self) -> int:
        """The number of cases, with those that killed their process."""
        return sum(self.counts.values()) + len(self.deaths)


def case(kind: str, seed: int, number: int, folder: Path) -> tuple[str, str]:
    """Make and read one input: (`accepted`, `refused` or `raw`; the error in words).

    Args:
        kind: its name.
        seed, number: decide the input.
        folder: an empty folder, or none, where files of the input are made.
    """
    made, rng = (KINDS if kind in KINDS else TRIAL)[kind], Random(f"{kind} {seed} {number}")
    given = made.make(folder, rng) if isinstance(made, Kind) else made.make(rng)
    try:
        if isinstance(made, Kind):
            made.read(folder)
        else:
            assert given is not None
            made.read(given)
    except HardnegError as error:
        words = str(error)
        if not words.strip():
            return "raw", "an error without a message"
        return "refused", words
    except made.refuses as error:  # what a user sees as a message, too
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
        verdict, words = case(kind, seed, number, emptied(folder / "input"))
        tally.counts[verdict] += 1
        if verdict == "raw":
            tally.raw.setdefault(words.partition("\n")[0], f"case {number}: {words}")
    return tally


def apart(kind: str, seed: int, first: int, cases: int, seconds: float, folder: Path) -> Tally:
    """Read cases of one kind in a process of its own, until their number or the time is reached."""
    return crowd([kind], seed, first, cases, seconds, folder)[kind]


def crowd(
    kinds: Sequence[str],
    seed: int,
    first: int,
    cases: int,
    seconds: float,
    folder: Path,
    jobs: int = 1,
    tell: Callable[[dict[str, Tally]], None] | None = None,
) -> dict[str, Tally]:
    """Read cases of several kinds in processes of their own, which take the kinds in turns.

    Args:
        kinds: their names.
        seed, first, cases: the seed, the first case of each kind and the most cases of each.
        seconds: the time for all.
        folder: where inputs are made.
        jobs: the number of processes. Process j of J reads the cases `first` + j, `first` + j + J, and so on.
        tell: called about every minute with what was found so far.
    """
    until = time.monotonic() + seconds
    crew = [Job(kinds, seed, range(first + j, first + cases, jobs), until, folder / f"job-{j}") for j in range(jobs)]
    tallies = {kind: Tally() for kind in kinds}
    said = time.monotonic()
    try:
        while True:
            working = [job.look(tallies) for job in crew]  # all of them, so that none is left dead
            if not any(working):
                break
            time.sleep(0.05)
            if tell is not None and time.monotonic() - said > 60:
                said = time.monotonic()
                for job in crew:
                    job.count(tallies)
                tell(tallies)
    finally:
        for job in crew:
            job.end()
            job.count(tallies)
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    """The counts as a table, then the first case of every fault."""
    lines = [
        f"{'kind':<18}{'inputs':>11}{'accepted':>11}{'refused':>11}{'raw errors':>12}{'deaths':>8}{'a second':>10}"
    ]
    every = Tally()
    for kind, tally in tallies.items():
        lines.append(_line(kind, tally))
        every.counts += tally.counts
        every.deaths += tally.deaths
        every.seconds += tally.seconds
    lines.append(_line("all", every))
    for kind, tally in tallies.items():
        lines += [f"\n{kind}, {words}" for words in tally.raw.values()]
        lines += [f"\n{kind}, case {number}: {how}" for number, how in tally.deaths]
    return "\n".join(lines)


def _line(name: str, tally: Tally) -> str:
    counts = "".join(
        f"{tally.counts[each]:>{wide},}" for each, wide in (("accepted", 11), ("refused", 11), ("raw", 12))
    )
    rate = f"{tally.inputs / tally.seconds:,.0f}" if tally.seconds else ""
    return f"{name:<18}{tally.inputs:>11,}{counts}{len(tally.deaths):>8,}{rate:>10}"


def _progress(tallies: dict[str, Tally]) -> None:
    """One line: all inputs and faults so far, and the inputs of each kind."""
    faults = sum(tally.counts["raw"] + len(tally.deaths) for tally in tallies.values())
    total = sum(tally.inputs for tally in tallies.values())
    each = ", ".join(f"{kind} {tally.inputs:,}" for kind, tally in tallies.items())
    print(f"{time.strftime('%H:%M:%S')} {total:,} inputs, {faults:,} faults: {each}", flush=True)


def emptied(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main() -> int:
    """Fuzz the kinds in turns. 1 if there is a fault, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="time for all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; may be repeated")
    parser.add_argument(
        "--but", action="append", choices=list(KINDS), default=[], help="not this kind; may be repeated"
    )
    parser.add_argument("--case", type=int, default=0, help="the first case")
    parser.add_argument("--cases", type=int, default=1 << 40, help="the most cases of each kind")
    parser.add_argument("--jobs", type=int, default=1, help="processes that read at the same time")
    parser.add_argument(
        "--keep", type=Path, help="with one --kind and --case: make the input in this folder, and read it"
    )
    given = parser.parse_args()
    if given.keep:
        kind = KINDS[given.kind[0]]
        verdict = case(given.kind[0], given.seed, given.case, emptied(given.keep))
        if not isinstance(kind, Kind):
            print(repr(kind.make(Random(f"{given.kind[0]} {given.seed} {given.case}"))))
        print(*verdict, sep="\n")
        return 0
    kinds = [kind for kind in given.kind or KINDS if kind not in given.but]
    began = time.monotonic()
    with place() as folder:
        tallies = crowd(kinds, given.seed, given.case, given.cases, given.seconds, folder, given.jobs, _progress)
    took = time.monotonic() - began
    print(table(tallies))
    total = sum(tally.inputs for tally in tallies.values())
    print(
        f"\n{total:,} inputs in {took:,.0f} s, {total / took:,.0f} a second, {given.jobs} at a time, seed {given.seed}"
    )
    return 0 if all(tally.fine for tally in tallies.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
