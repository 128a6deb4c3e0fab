"""Stores that fail in passing, answer with a status, cannot be reached, or change a file while it is copied."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

import hardneg
from hardneg import DataError, RunError, mine
from hardneg.storage import remote
from tests.conftest import asked_span, run_here
from tests.test_remote import LINES, SHORT, no_waiting, same

assert no_waiting  # a fixture

OLD, NEW = LINES.encode(), LINES.upper().encode()


class Store(http.server.BaseHTTPRequestHandler):
    """A store with one file. Each request takes the next of `statuses`, and each answer with content is followed by the next of
    `contents`."""

    content: ClassVar[bytes] = OLD
    contents: ClassVar[list[bytes]] = []
    statuses: ClassVar[list[int]] = []
    tagged: ClassVar[tuple[str, ...]] = ("HEAD", "GET")
    ranges: ClassVar[bool] = True
    cut: ClassVar[bool] = False
    asked: ClassVar[list[str]] = []

    def log_message(self, *given: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        store, data = Store, Store.content
        store.asked.append(self.command)
        status = store.statuses.pop(0) if store.statuses else 200
        if status != 200:
            self.send_error(status)
            return
        given = self.headers.get("Range") if store.ranges else None
        start, stop = asked_span(given, len(data))
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(stop - start))
        if self.command in store.tagged:
            self.send_header("ETag", f'"{hash(data)}"')
        if given:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[start : start + (stop - start) // 2] if store.cut and start else data[start:stop])
        if store.contents:
            store.content = store.contents.pop(0)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in (
        ("content", OLD),
        ("contents", []),
        ("statuses", []),
        ("asked", []),
        ("ranges", True),
        ("cut", False),
    ):
        monkeypatch.setattr(Store, name, value)
    monkeypatch.setattr(Store, "tagged", ("HEAD", "GET"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/pairs.jsonl"
    server.shutdown()
    thread.join()


@pytest.mark.parametrize("tagged", [("HEAD", "GET"), ("HEAD",), ("GET",)])
def test_a_file_that_changes_while_it_is_copied_is_copied_anew(
    tagged: tuple[str, ...], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_READ", 500)
    monkeypatch.setattr(Store, "tagged", tagged)
    Store.contents = [OLD, NEW]
    notes: list[str] = []
    assert remote.fetch(store, tmp_path, notes).read_bytes() == NEW
    assert notes == [f"{store}: it changed while it was copied, and was copied anew 1 times"]


def test_a_file_that_keeps_changing_is_refused(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_READ", 500)
    Store.contents = [OLD, NEW] * 50
    with pytest.raises(DataError, match=r"changes while it is copied \(6 times in a row\): wait until it is written"):
        remote.fetch(store, tmp_path, [])
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".version"]


def test_a_file_of_another_store_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pipe("/data/pairs.jsonl", OLD)
    opened = system.open

    def changed(name: str, *given: Any, **options: Any) -> Any:
        found = opened(name, *given, **options)
        monkeypatch.setattr(type(system), "open", original)
        system.pipe("/data/pairs.jsonl", NEW)  # of the same size
        return found

    original = type(system).open
    monkeypatch.setattr(type(system), "open", lambda self, *given, **options: changed(*given, **options))
    assert remote.fetch("memory://data/pairs.jsonl", tmp_path, []).read_bytes() == NEW
    system.store.clear()


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_status_that_passes_is_tried_again_and_one_that_stays_is_named(
    status: int, store: str, tmp_path: Path
) -> None:
    Store.statuses = [status] * 6
    notes: list[str] = []
    assert remote.fetch(store, tmp_path / "a", notes).read_bytes() == OLD
    assert notes == [f"{store}: reading broke off 3 times, and went on from there"]
    Store.statuses = [status] * 100
    with pytest.raises(
        DataError, match=rf"pairs.jsonl cannot be read \(HTTP {status} .*, 6 times\): check the URL, or try again$"
    ):
        remote.fetch(store, tmp_path / "b", [])


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"pairs.jsonl is refused \(HTTP 401 Unauthorized\): check the credentials"),
        (403, r"pairs.jsonl is refused \(HTTP 403 Forbidden\): check the credentials"),
        (404, r"pairs.jsonl does not exist$"),
        (410, r"pairs.jsonl does not exist$"),
        (418, r"pairs.jsonl cannot be read \(HTTP 418 .*\): check the URL, or try again$"),
    ],
)
def test_an_answer_that_stays_is_not_asked_for_again(status: int, message: str, store: str, tmp_path: Path) -> None:
    Store.statuses = [status] * 100
    with pytest.raises(DataError, match=message) as raised:
        remote.fetch(store, tmp_path, [])
    assert str(raised.value).count("http://") == 1
    assert Store.asked == ["HEAD", "GET"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/pairs.jsonl", "http://no-such-host.invalid/pairs.jsonl"])
def test_a_store_that_cannot_be_reached(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(.*6 times\): check the URL, or try again") as raised:
        remote.fetch(url, tmp_path, [])
    assert "does not exist" not in str(raised.value)


def test_a_server_that_gives_no_parts_of_files(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_READ", 500)
    monkeypatch.setattr(Store, "ranges", False)
    assert remote.fetch(store, tmp_path, []).read_bytes() == OLD


def test_what_a_message_promises_is_kept(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_READ", 500)
    monkeypatch.setattr(Store, "cut", True)
    out = tmp_path / "run"
    with pytest.raises(DataError, match="with resume=True .--resume., what was copied is kept"):
        mine(store, out, SHORT)
    assert [path.stat().st_size > 0 for path in out.rglob("*.part")] == [True]
    monkeypatch.setattr(Store, "cut", False)
    with pytest.raises(RunError, match="an unfinished run"):
        mine(store, out, SHORT)
    run = mine(store, out, SHORT, resume=True)
    (tmp_path / "pairs.jsonl").write_bytes(OLD)
    assert same(run.pairs(), hardneg.read_pairs(str(tmp_path / "pairs.jsonl")))
    assert not (out / "progress").exists()


def test_nothing_is_promised_where_nothing_is_kept(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_READ", 500)
    monkeypatch.setattr(Store, "cut", True)
    with pytest.raises(DataError, match="cannot be read") as raised:
        hardneg.read_pairs(store)
    assert "resume" not in str(raised.value)
    Store.statuses = [404] * 100
    done = run_here("mine", store, "--out", tmp_path / "run")
    assert "does not exist" in done.stderr
    assert not (tmp_path / "run").exists()
