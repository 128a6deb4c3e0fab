"""Everything that needs a GPU: the tests that are marked so, the benchmark of the loss, and a training.

    make gpu                                          # with the environment of the suite
    make gpu GPU_PYTHON=python3 GPU_OUT=results       # with a Python that has a CUDA build of torch

The parts run one after the other, each within its own time, the most telling first; what they print goes to files in --out,
as they print it, and `summary.json` has the exit status and the seconds of each. Nothing has to be installed but torch with CUDA,
triton, pytest and what hardneg needs; peers are measured where they are installed (memeff, inf-cl, cut-cross-entropy,
liger-kernel).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Kernels are compiled by many processes at once, where pytest-xdist is installed.
SHARED = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []

# (name, command, most seconds). The commands' own Python is put first.
PARTS: list[tuple[str, list[str], int]] = [
    ("kernel tests", ["-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *SHARED, "tests/test_fused.py"], 240),
    ("training tests", ["-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *SHARED, "tests/test_cuda_training.py"], 90),
    ("loss", ["benchmarks/infonce.py", "--device", "cuda"], 150),
    ("index tests", ["-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *SHARED, "tests/test_device.py"], 60),
    ("training", ["-m", "hardneg_cli", "train", "builtin:pycode", "--out", "{scratch}/trained", "--steps", "40",
                  "--batch-size", "512", "--device", "cuda", "--eval-split", "none"], 90),
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=[name for name, _, _ in PARTS], help="a part; repeatable")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device, or a build of torch without CUDA: nothing to do", file=sys.stderr)
        return 1
    args.out.mkdir(parents=True, exist_ok=True)
    summary = {}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "hardneg_cli").symlink_to(ROOT / "cli")  # where the package is not installed
        paths = [scratch, str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
        }
        for name, command, most in PARTS:
            if args.only and name not in args.only:
                continue
            started = time.perf_counter()
            with open(args.out / f"{name.replace(' ', '-')}.txt", "w") as file:
                try:
                    done: int | str = subprocess.run(
                        [sys.executable, *(part.format(scratch=scratch) for part in command)], cwd=ROOT, env=environment,
                        stdout=file, stderr=subprocess.STDOUT, timeout=most, check=False,
                    ).returncode  # fmt: skip
                except subprocess.TimeoutExpired:
                    done = f"stopped after {most} s"
            summary[name] = {"status": done, "seconds": round(time.perf_counter() - started, 1)}
            print(f"{name}: {summary[name]}", flush=True)
            (args.out / "summary.json").write_text(json.dumps(summary, indent=1))
    return int(any(each["status"] != 0 for each in summary.values()))


if __name__ == "__main__":
    sys.exit(main())
