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
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import ModuleType
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
    main = sys.modules["__main__"] = ModuleType("__main__")  # where pickle looks for what the code defines
    exec(compile(code, "<string>", "exec"), main.__dict__)


class Started:
    """A process that does what `python -c CODE ARGUMENTS` does, from its start until it ends or the `with` block does."""

    def __init__(self, code: str, *arguments: str | Path, stdin: str | None = None, cwd: Path | None = None) -> None:
        self.arguments = [str(each) for each in arguments]
        self._folder = tempfile.TemporaryDirectory()
        values = (code, self.arguments, stdin, self._folder.name, dict(os.environ), str(cwd or Path.cwd()))
        self._process = _context().Process(target=_execute, args=values)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The code that it ended with, the negative number of the signal if one ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float = SECONDS) -> int:
        return _finish(self._process, seconds)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def said(self, stream: str) -> str:
        """What it has written so far to its stream `out` or `err`."""
        path = Path(self._folder.name, f"code.{stream}")
        return path.read_text("utf-8") if path.is_file() else ""

    def first_line(self, seconds: float = SECONDS) -> str:
        """The first line that it prints."""
        until = time.monotonic() + seconds
        while "\n" not in self.said("out"):
            assert self.poll() is None, self.said("err")
            assert time.monotonic() < until, f"nothing was printed in {seconds} seconds"
            time.sleep(0.005)
        return self.said("out").splitlines()[0]

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        if self.poll() is None:
            self.kill()
        self._folder.cleanup()


def run_code(
    code: str, *arguments: str | Path, stdin: str | None = None, cwd: Path | None = None, seconds: float = SECONDS
) -> subprocess.CompletedProcess[str]:
    """What `python -c CODE ARGUMENTS` does; see `Started`."""
    with Started(code, *arguments, stdin=stdin, cwd=cwd) as process:
        code_at_end = process.wait(seconds)
        return subprocess.CompletedProcess(process.arguments, code_at_end, process.said("out"), process.said("err"))


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
