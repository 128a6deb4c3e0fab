"""Folders are marked, locked and replaced at the end; files are written whole, wherever they go."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hardneg
from hardneg import DataError, MineOptions, RunError, UsageError, mine, select
from hardneg.mining.run import Run
from hardneg.mining.select import SelectOptions
from hardneg.storage import folders
from hardneg.storage.files import atomic_path
from hardneg.storage.folders import locked, staging
from hardneg.storage.vectors import EmbeddingStore
from tests.conftest import run_here, write_jsonl
from tests.processes import Started

SHORT = MineOptions(depth=10, negatives=2, default_filters=False)
SHORT_THREE = MineOptions(depth=10, negatives=3, default_filters=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"query": f"question {i} about {i % 7}", "positive": f"answer {i} on {i % 7}"} for i in range(40)]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def busy(code: str, *args: str | Path) -> Iterator[Started]:
    """A process that says `ready` and waits until the block ends, when it is killed."""
    with Started(code, *args, cwd=Path(__file__).parent.parent) as process:
        assert process.first_line() == "ready"
        yield process


HOLD = """
import sys, time
from pathlib import Path
from hardneg.storage.folders import locked
with locked(Path(sys.argv[1]), sys.argv[2]):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "change",
    [
        {"source": "no such file.jsonl"},
        {"options": MineOptions(depth=10, negatives=2, filters=("group",))},
        {"options": MineOptions(encoder="st:/no/such/model", depth=10, negatives=2)},
        {"options": MineOptions(depth=1000, negatives=2)},
    ],
)
def test_a_failing_overwrite_leaves_the_old_run(tmp_path: Path, source: Path, change: dict[str, object]) -> None:
    mine(source, tmp_path / "run", SHORT)
    before = content(tmp_path / "run")
    arguments = {"source": source, "options": SHORT, **change}
    with pytest.raises(hardneg.HardnegError):
        mine(out=tmp_path / "run", overwrite=True, **arguments)  # type: ignore[arg-type]
    assert content(tmp_path / "run") == before


def _dying(what: str, source: Path, run: Path, left: int, how: str) -> tuple[int, int]:
    """Replace a run in a child process that kills itself after `left` steps: (how it ended, steps that were left)."""
    read, write = os.pipe()
    child = os.fork()  # which spares it the seconds that loading torch takes
    if child == 0:
        try:
            torch.set_num_threads(1)  # the threads of this process are not in the child
            left = _die_after(left, how == "atomic", what, source, run)
            os.write(write, str(left).encode())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as answer:
        return os.waitstatus_to_exitcode(status), int(answer.read() or 0)


def _die_after(left: int, atomic: bool, what: str, source: Path, run: Path) -> int:
    """Replace a run, and kill this process before or after the step with this number. A step changes a folder."""
    module: Any = folders

    def dies(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            value = function(*args, **options)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return value

        return called

    if not atomic:
        module._exchange = lambda one, other: False
    for name in ("replace", "rename", "unlink", "rmdir"):
        setattr(os, name, dies(getattr(os, name)))
    module._exchange = dies(module._exchange)
    if what == "mine":
        mine(source, run, SHORT_THREE, overwrite=True)
    else:
        select(run, SelectOptions(negatives=1))
    return left


@pytest.mark.parametrize(
    ("what", "how", "count"),
    [
        ("select", "two steps", 4),
        *(
            pytest.param(what, how, 25, marks=pytest.mark.faults)
            for what in ("mine", "select")
            for how in ("atomic", "two steps")
        ),
    ],
)
def test_killed_while_a_run_is_replaced(tmp_path: Path, source: Path, what: str, how: str, count: int) -> None:
    """Whenever it is killed, the folder holds the old run or the new one, whole, and the next command leaves no traces."""
    mine(source, tmp_path / "whole", SHORT)
    old = content(tmp_path / "whole")
    ended, left = _dying(what, source, tmp_path / "whole", 10**6, how)
    assert ended == 0
    new = content(tmp_path / "whole")
    assert len(list(tmp_path.iterdir())) == 2
    steps = 10**6 - left
    # The last steps are those of the replacement.
    for place in sorted(set(np.linspace(max(1, steps - 24), steps, count).astype(int).tolist())):
        run = tmp_path / f"run{place}"
        mine(source, run, SHORT)
        assert _dying(what, source, run, place, how)[0] == -signal.SIGKILL, place
        Run(run)
        same = {"run.json", ".hardneg-run"}
        found = {name: each for name, each in content(run).items() if name not in same}
        assert found in ({n: b for n, b in each.items() if n not in same} for each in (old, new)), place
        if what == "mine":
            mine(source, run, SHORT, overwrite=True)
        else:
            select(run, SelectOptions(negatives=1))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["pairs.jsonl", run.name, "whole"], place
        hardneg.storage.folders.remove_folder(run)


def test_an_interrupted_overwrite_goes_on(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine(source, tmp_path / "run", SHORT)
    other = MineOptions(depth=10, negatives=3, default_filters=False)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hardneg.mining.parts.PartWriter.finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mine(source, tmp_path / "run", other, overwrite=True)
    assert Run(tmp_path / "run").info["config"]["negatives"] == 2
    assert mine(source, tmp_path / "run", other, resume=True).info["config"]["negatives"] == 3
    assert Run(tmp_path / "run").info["config"]["negatives"] == 3
    assert not staging(tmp_path / "run").exists()


def test_only_our_folders_are_removed(tmp_path: Path, source: Path) -> None:
    thesis = tmp_path / "work"
    (thesis / "progress").mkdir(parents=True)
    (thesis / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="is no hardneg run"):
        mine(source, thesis, SHORT, overwrite=True)
    with pytest.raises(RunError, match="is no hardneg run"):
        mine(source, thesis, SHORT, resume=True)
    assert (thesis / "thesis.tex").read_text() == "x"
    mine(source, tmp_path / "run", SHORT)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "plots").mkdir()
    (tmp_path / "run" / "plots" / "a.png").write_text("a")
    mine(source, tmp_path / "run", SHORT, overwrite=True)
    select(tmp_path / "run", SelectOptions(negatives=1))
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "run" / "plots" / "a.png").read_text() == "a"


def test_a_folder_has_one_writer(tmp_path: Path, source: Path) -> None:
    run = tmp_path / "run"
    mine(source, run, SHORT)
    with busy(HOLD, run, "run") as other:
        for call in (
            lambda: mine(source, run, SHORT, overwrite=True),
            lambda: mine(source, run, SHORT, resume=True),
            lambda: select(run, SelectOptions(negatives=1)),
        ):
            with pytest.raises(RunError, match=f"run is being written by process {other.pid}"):
                call()
    mine(source, run, SHORT, overwrite=True)  # a killed process holds nothing
    with locked(run, "run"), pytest.raises(RunError, match="by this process already"):
        mine(source, run, SHORT, overwrite=True)
    mine(source, run, SHORT, overwrite=True)


def test_many_writers_take_turns_or_are_refused(tmp_path: Path) -> None:
    counts = {"held": 0, "most": 0, "done": 0, "refused": 0}

    def write() -> None:
        for _ in range(50):
            try:
                with folders.output_folder(tmp_path / "out", "run", replace=True, known=("a",)) as new:
                    counts["held"] += 1
                    counts["most"] = max(counts["most"], counts["held"])
                    (new / "a").write_text("x")
                    counts["held"] -= 1
                counts["done"] += 1
            except RunError:
                counts["refused"] += 1
                time.sleep(0.001)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts["most"] == 1
    assert counts["done"] + counts["refused"] == 200
    assert counts["done"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_cache_has_one_writer(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "v", "key", 3, 2)
    with (
        busy(HOLD, tmp_path / "v", "vectors") as other,
        pytest.raises(RunError, match=f"v is being written by process {other.pid}"),
    ):
        store.fill(lambda start, stop: np.ones((stop - start, 2), np.float32), lambda n: None)
    store.fill(lambda start, stop: np.ones((stop - start, 2), np.float32), lambda n: None)
    with busy(HOLD, tmp_path / "v", "vectors"):  # what is complete needs no lock
        EmbeddingStore(tmp_path / "v", "key", 3, 2).fill(lambda start, stop: np.empty(0), lambda n: None)


def test_through_a_symbolic_link_and_from_inside(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "disk" / "run"
    mine(source, real, SHORT)
    link = tmp_path / "link"
    link.symlink_to(real)
    select(link, SelectOptions(negatives=1))
    mine(source, link, SHORT, overwrite=True)
    assert link.is_symlink()
    assert os.listdir(real.parent) == ["run"]
    monkeypatch.chdir(real)
    assert run_here("select", ".", "--negatives", "1").returncode == 0
    assert Run(Path()).info["config"]["negatives"] == 1
    assert len(Run(real).info["selections"]) == 1


def test_a_run_can_be_moved(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its vectors are found from wherever a command runs, and by content, whatever their path is called."""
    rng = np.random.default_rng(0)
    place = tmp_path / "one" / "deep"
    place.mkdir(parents=True)
    for name in ("q", "d"):
        np.save(place / f"{name}.npy", rng.standard_normal((40, 8)).astype(np.float32))
    monkeypatch.chdir(place)
    given = {"query_embeddings": "q.npy", "corpus_embeddings": "d.npy"}
    options = MineOptions(depth=10, negatives=2, **given)  # type: ignore[arg-type]
    mine(source, "run", options)
    monkeypatch.chdir(tmp_path)
    near = SelectOptions(filters=("duplicate:near=0.9",))
    select(place / "run", near, tmp_path / "near")
    os.rename(tmp_path / "one", tmp_path / "two")
    moved = tmp_path / "two" / "deep"
    select(moved / "run", near, tmp_path / "near2")
    whole = {name: str(moved / path) for name, path in given.items()}
    again = MineOptions(depth=10, negatives=2, **whole)  # type: ignore[arg-type]
    mine(source, moved / "run", again, resume=True)
    np.save(moved / "q.npy", np.zeros((40, 8), np.float32))
    with pytest.raises(RunError, match="other inputs"):
        mine(source, moved / "run", again, resume=True)
    (moved / "d.npy").unlink()
    with pytest.raises(RunError, match=r"d\.npy, which .*run was mined with, is missing \(looked for"):
        select(moved / "run", near, tmp_path / "near3")


def test_a_finished_run_is_of_these_inputs(tmp_path: Path, source: Path) -> None:
    mine(source, tmp_path / "run", SHORT)
    mine(source, tmp_path / "run", SHORT, resume=True)
    source.write_text(source.read_text().replace("answer 3 ", "reply 3 "))
    with pytest.raises(RunError, match=r"other inputs \(document_vectors, documents, encoder"):
        mine(source, tmp_path / "run", SHORT, resume=True)


def test_devices_pipes_and_sockets_are_written_to(tmp_path: Path, source: Path) -> None:
    mine(source, tmp_path / "run", SHORT)
    expected = tmp_path / "expected.jsonl"
    assert run_here("export", tmp_path / "run", "--format", "triplet", "--out", expected).returncode == 0
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    assert run_here("export", tmp_path / "run", "--format", "triplet", "--out", fifo).returncode == 0
    reader.join()
    assert read == [expected.read_bytes()]
    assert fifo.is_fifo()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        with atomic_path(tmp_path / "socket") as temporary:
            temporary.write_bytes(b"through a socket")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b"through a socket"
    before = os.stat("/dev/null")
    done = run_here("export", tmp_path / "run", "--format", "triplet", "--out", "/dev/null", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert os.stat("/dev/null").st_rdev == before.st_rdev
    code = "from hardneg_cli.main import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "export",
        str(tmp_path / "run"),
        "--format",
        "triplet",
        "--out",
        "/dev/stdout",
    ]
    appended = tmp_path / "appended"
    appended.write_bytes(b"first line\n")
    with open(appended, "ab") as out:
        subprocess.run(command, stdout=out, check=True, stderr=subprocess.DEVNULL)
    assert appended.read_bytes().startswith(b"first line\n" + expected.read_bytes())
    with pytest.raises(UsageError, match="is a folder"), atomic_path(tmp_path):
        pass


def test_a_linked_file_is_replaced_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


WRITER = """
import sys, time
from pathlib import Path
from hardneg.storage.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("never")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_writer_leaves_is_removed(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    with busy(WRITER, path), atomic_path(path) as temporary:
        temporary.write_text("mine")  # two at once do not meet
    assert path.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_path(path) as temporary:
        temporary.write_text("again")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_damaged_json_is_refused_in_words(tmp_path: Path) -> None:
    from hardneg.storage.json_files import read_json, write_json

    path = tmp_path / "a.json"
    for text, message in (
        ("[" * 100_000, "more than 64 levels deep"),
        ('{"a":' * 70 + "1" + "}" * 70, "more than 64 levels deep"),
        ('{"a": ' + "1" * 5000 + "}", "not readable as JSON"),
        ('{"a": NaN}', "not readable as JSON"),
        ("[1]", "holds a JSON list"),
        ('{"a": "1"}', r"not what hardneg writes \(Expected `int`, got `str` - at `\$\[\.\.\.\]`\)"),
    ):
        path.write_text(text)
        with pytest.raises(RunError, match=rf"a\.json .*{message}"):
            read_json(path, dict[str, int])
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(RunError, match=r"a\.json is not readable"):
        read_json(path)
    write_json(path, {"a": 1, "time": 2}, checksum=True, volatile=("time",))
    whole = path.read_bytes()
    assert read_json(path, checksum=True, volatile=("time",)) == {"a": 1, "time": 2}
    changed = 0
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                changed += read_json(path, checksum=True, volatile=("time",))["a"] != 1
            except RunError as error:
                assert "a.json" in str(error)  # noqa: PT017
    assert changed == 0
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(RunError, match="has no checksum"):
        read_json(path, checksum=True)


def test_threads_are_given_back(tmp_path: Path, source: Path) -> None:
    import torch

    before = torch.get_num_threads()
    with pytest.raises(DataError):
        mine(source, tmp_path / "run", MineOptions(depth=1000), threads=1)
    assert torch.get_num_threads() == before


def test_the_place_of_a_claim_is_made(tmp_path: Path) -> None:
    from hardneg.storage.folders import claimed

    with claimed(tmp_path / "one" / "two" / "claim") as mine:
        assert mine
        with claimed(tmp_path / "one" / "two" / "claim") as other:
            assert not other
