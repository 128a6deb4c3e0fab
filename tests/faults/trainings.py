"""Faults of trainings: kills, damaged trainings and saved encoders; and full disks, for every command that writes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hardneg
from tests.conftest import run_here
from tests.faults.place import MAIN, ROOT, Place, content, damage, outcome

OPTIONS = ["--steps", "16", "--batch-size", "8", "--save-every", "4", "--log-every", "1", "--refresh", "steps:6"]
OPTIONS += ["--negatives", "2", "--eval-split", "train", "--evaluate-every", "8", "--device", "cpu"]


def results(folder: Path) -> tuple[object, ...]:
    """What a training gives: its log and numbers without seconds, its encoders, and the names of its files."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    info = json.loads((folder / "train.json").read_text())
    for each in (info, *info["generations"], *rows):
        for name in [name for name in each if "seconds" in name or name == "checksum"]:
            del each[name]
    encoders = [hardneg.HashedEncoder.load(folder / name).fingerprint() for name in ("best", "last")]
    return rows, info, encoders, sorted(p.name for p in folder.iterdir())


class Trained:
    """A finished training of the place's dataset, an interrupted one, and a run mined with the first."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.folder, self.cut, self.run = (place.folder / name for name in ("trained", "trained-cut", "trained-run"))
        if not self.run.exists():
            place.done("train", place.source, "--out", self.folder, *OPTIONS)
            code = (
                "import os, signal; import hardneg.training.checkpoint as checkpoint\n"
                "write, count = checkpoint.write, 0\n"
                "def written(*a, **k):\n"
                "    global count\n"
                "    write(*a, **k)\n"
                "    count += 1\n"
                "    count == 2 and os.kill(os.getpid(), signal.SIGKILL)\n"
                "checkpoint.write = written\n" + MAIN
            )
            place.process(code, "train", place.source, "--out", self.cut, *OPTIONS)
            assert (self.cut / "checkpoints" / "step-00000008").exists()
            place.done(*self.mining(self.folder / "best", self.run))
        self.whole, self.mined = results(self.folder), content(self.run)

    def mining(self, encoder: Path, out: Path) -> list[str | Path]:
        return ["mine", self.place.source, "--encoder", f"hashed:{encoder}", "--out", out, *self.place.options]

    def training(self, out: Path, *more: str) -> list[str | Path]:
        return ["train", self.place.source, "--out", out, *OPTIONS, *more]


def interrupted_trainings(place: Place, rng: random.Random) -> str:
    """One damaged file in an interrupted training, then --resume: the same results, or a refusal."""
    trained = Trained(place)
    out = place.copy(trained.cut, "damaged")
    damage(rng.choice(place.files(out)), rng)
    return outcome(trained.training(out, "--resume"), lambda: results(out) == trained.whole)


def saved_encoders(place: Place, rng: random.Random) -> str:
    """One damaged file in a saved encoder, then mining with it: the same run, or a refusal."""
    trained, out = Trained(place), place.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    encoder = place.copy(trained.folder / "best", "damaged-encoder")
    damage(rng.choice(place.files(encoder)), rng)

    def expected() -> bool:
        found, wanted = content(out), dict(trained.mined)
        found.pop("run.json")  # it names the folder of the encoder
        wanted.pop("run.json")
        return found == wanted

    return outcome(trained.mining(encoder, out), expected)


def killed_trainings(place: Place, rng: random.Random) -> str:
    """A training, new or in place of a finished one, is killed at a random moment; then it goes on to the same results."""
    trained, replaces = Trained(place), rng.random() < 0.5
    out = place.folder / "killed-training"
    shutil.rmtree(out, ignore_errors=True)
    if replaces:
        shutil.copytree(trained.folder, out)
    more = ["--overwrite"] if replaces else []
    started = subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, trained.training(out, *more))],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    time.sleep(rng.uniform(2.0, 8.0))
    started.send_signal(rng.choice((signal.SIGKILL, signal.SIGINT, signal.SIGTERM)))
    started.wait()
    if replaces and results(out) != trained.whole:
        return "lost"
    run_here(*trained.training(out, "--resume"))  # refused if nothing was begun, or nothing is left to do
    if not (out / "train.json").exists() or not json.loads((out / "train.json").read_text())["finished"]:
        ended = run_here(*trained.training(out, "--overwrite"))
        if ended.returncode != 0:
            return "lost"
    names = [p.name for p in place.folder.iterdir() if "killed-training" in p.name]
    return "harmless" if results(out) == trained.whole and names == [out.name] else "wrong"


LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
from hardneg_cli.main import main
import hardneg, safetensors.torch, pyarrow.parquet  # what is imported late may write caches
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main(sys.argv[1:])
"""


Run = Callable[[Place, list[str | Path]], subprocess.CompletedProcess[str]]


def full_disks(place: Place, rng: random.Random) -> str:
    """No file may grow beyond some size, as on a full disk: an error in words, nothing lost, and later the same result."""
    limit = str(int(10 ** rng.uniform(1, 5.5)))
    return filled(place, rng, lambda place, args: place.process(LIMITED, limit, *args))


def filled(place: Place, rng: random.Random, run_limited: Run) -> str:
    """Run a command that writes while there is little space, and once more when there is enough."""
    writes = ("mine", "engine", "replace", "select", "judge", "calibrate", "export", "train")
    trained, what = Trained(place), rng.choice(writes)
    run = place.copy(place.run, "full")
    out = place.folder / "full-out"
    for each in (out, out.with_suffix(".csv"), out.with_suffix(".jsonl")):
        shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)
    args: list[str | Path] = {
        "mine": ["mine", place.source, "--out", out, *place.options],
        "engine": [
            "mine",
            place.source,
            "--out",
            out,
            *place.options,
            "--filter",
            "posterior:learned",
            "--engine",
            "local",
        ],
        "replace": ["mine", place.source, "--out", run, *place.options, "--overwrite"],
        "select": ["select", run, "--negatives", "2"],
        "judge": ["judge", run, "--sample", "20", "--out", out.with_suffix(".csv")],
        "calibrate": ["calibrate", run, "--learn", "known"],
        "export": ["export", run, "--format", "triplet", "--out", out.with_suffix(".jsonl")],
        "train": trained.training(out),
    }[what]
    before = content(run)
    done = run_limited(place, args)
    if "Traceback" in done.stderr or (done.returncode and not done.stderr.strip()):
        return "raw"
    if done.returncode < 0:
        return "died"
    kept = content(run) == before if what != "select" or done.returncode else True
    if done.returncode and (not kept or run_here("diagnose", run, "--json").returncode):
        return "lost"
    if done.returncode and what == "train" and (out / "train.json").exists():
        resumed = run_here(*args, "--resume")
        if resumed.returncode:
            run_here(*args, "--overwrite")
    elif (
        done.returncode
        and run_here(*args, *(["--resume"] if what in ("mine", "engine") and out.exists() else [])).returncode
    ):
        return "lost"
    return ("refused" if done.returncode else "harmless") if _as_whole(what, place, trained, run, out) else "wrong"


def _as_whole(what: str, place: Place, trained: Trained, run: Path, out: Path) -> bool:
    """Whether the command has written what it writes without faults."""
    if what == "train":
        return results(out) == trained.whole
    if what in ("judge", "export"):
        path = out.with_suffix(".csv" if what == "judge" else ".jsonl")
        return path.read_bytes() == place.whole[what]["output"]
    if what == "engine":
        return run_here("verify", out).returncode == 0 and run_here("diagnose", out, "--json").returncode == 0
    found = content(out if what == "mine" else run)
    wanted = place.whole["select"] if what == "select" else place.whole["mine"]
    names = {*found} & {*wanted} - {"run.json", "posterior.json"}
    return bool(names) and all(found[name] == wanted[name] for name in names)


KINDS: dict[str, Callable[[Place, random.Random], str]] = {
    "interrupted training, one file damaged": interrupted_trainings,
    "saved encoder, one file damaged": saved_encoders,
    "training killed": killed_trainings,
    "disk full": full_disks,
}
