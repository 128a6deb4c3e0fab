"""Processes of the tests, forked from one that has loaded torch and hardneg, so that each begins at once.

They are real processes: each has a pid, can be killed, and shares no memory with the test. Only the start of Python and the imports
are left out, which take longer than most of what is tested; tests of these two start a process of their own.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

# What most processes need. Their parent imports it when the first of them is started, once for each worker of pytest.
LOADED = [
    "numpy", "torch", "torch.distributed", "faiss", "pyarrow.parquet", "sklearn", "hardneg", "hardneg_cli.main", "hardneg_cli.mine",
    "hardneg.mining.mine", "hardneg.mining.select", "hardneg.exports.export", "hardneg.training.train", "hardneg.bank.memory_bank",
    "hardneg.losses.infonce", "pytest", "hypothesis.strategies",
]  # fmt: skip
SECONDS = 120  # after which a process is ended


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)  # no effect once it runs
    return context


def _settle(folder: str, name: str, environment: Mapping[str, str], place: str) -> None:
    """The streams, the environment and the folder that the test gives: those of the parent are of the first test."""
    for number, stream in ((1, "out"), (2, "err")):
        file = os.open(os.path.join(folder, f"{name}.{stream}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)


def _finish(process: ForkServerProcess, seconds: float) -> int:
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"process {process.pid} was not done after {seconds} seconds")
    return process.exitcode


def _execute(
    code: str, arguments: list[str], stdin: str | None, folder: str, environment: Mapping[str, str], place: str
) -> None:
    _settle(folder, "code", environment, place)
    if stdin is not None:
        Path(folder, "code.in").write_text(stdin, "utf-8")
        sys.stdin = open(Path(folder, "code.in"), encoding="utf-8")  # noqa: SIM115
    sys.argv = ["-c", *arguments]
    sys.path.insert(0, place)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})


def run_code(
    code: str, *arguments: str | Path, stdin: str | None = None, cwd: Path | None = None, seconds: float = SECONDS
) -> subprocess.CompletedProcess[str]:
    """What `python -c CODE ARGUMENTS` does; a process that was killed has the negative number of its signal as its code."""
    given = [str(each) for each in arguments]
    with tempfile.TemporaryDirectory() as folder:
        values = (code, given, stdin, folder, dict(os.environ), str(cwd or Path.cwd()))
        process = _context().Process(target=_execute, args=values)
        process.start()
        ended = _finish(process, seconds)
        said = [Path(folder, f"code.{stream}").read_text("utf-8") for stream in ("out", "err")]
    return subprocess.CompletedProcess(given, ended, *said)


def _rank(work: Callable[[int, Path], Any], rank: int, folder: str, environment: Mapping[str, str], place: str) -> None:
    _settle(folder, f"rank-{rank}", environment, place)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        work(rank, Path(folder))
    except BaseException:  # at once: the other rank may wait for this one
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    dist.destroy_process_group()


def on_two_ranks(work: Callable[[int, Path], Any], folder: Path, seconds: float = SECONDS) -> list[str]:
    """Call `work(rank, folder)`, a function of a module, in two processes of a gloo group; returns what each has printed.

    The ranks exchange files in `folder`; their part of an assertion that fails is shown.
    """
    values = (str(folder), dict(os.environ), str(Path.cwd()))
    ranks = [_context().Process(target=_rank, args=(work, rank, *values)) for rank in (0, 1)]
    for each in ranks:
        each.start()
    try:
        codes = [_finish(each, seconds) for each in ranks]
    finally:
        for each in ranks:
            if each.is_alive():
                each.kill()
        said = {
            (rank, stream): path.read_text("utf-8") if path.is_file() else ""
            for rank in (0, 1)
            for stream in ("out", "err")
            for path in [folder / f"rank-{rank}.{stream}"]
        }
    assert codes == [0, 0], "\n".join(f"rank {rank}: {said[rank, 'err'][-3000:]}" for rank in (0, 1))
    return [said[rank, "out"] for rank in (0, 1)]
