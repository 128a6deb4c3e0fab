"""Sources and vectors at URLs: every store that fsspec knows, broken connections, refusals, and shards that do not fit."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest

import hardneg
from hardneg import DataError, MineOptions, RunError, UsageError, mine
from hardneg.data.options import ReadOptions
from hardneg.mining.reopen import Reopened, open_run_vectors
from hardneg.storage import remote
from tests.conftest import asked_span, run_here

ROWS = [{"query": f"question {i}", "positive": f"answer {i}"} for i in range(60)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CORPUS = "".join(json.dumps({"_id": f"c{i}", "text": f"other {i}"}) + "\n" for i in range(20))
SHORT = MineOptions(depth=8, negatives=2)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_WAIT", 0.001)


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


class Server(http.server.BaseHTTPRequestHandler):
    """A store that answers ranges, refuses what is secret, and breaks off in the middle as often as it is told."""

    files: ClassVar[dict[str, bytes]] = {}
    breaks: ClassVar[list[int]] = []  # bytes after which the next answers end
    asked: ClassVar[list[str]] = []

    def log_message(self, *given: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        if self.path.startswith("/secret"):
            self.send_error(403)
            return
        data = self.files.get(self.path.partition("?")[0])
        if data is None:
            self.send_error(404)
            return
        given = self.headers.get("Range")
        start, stop = asked_span(given, len(data))
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(data)}"')
        if given:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        self.asked.append(given or "")
        most = self.breaks.pop(0) if self.breaks else stop - start
        self.wfile.write(data[start : min(stop, start + most)])
        if most < stop - start:
            self.close_connection = True


@pytest.fixture
def web() -> Iterator[str]:
    Server.files, Server.breaks, Server.asked = {"/pairs.jsonl": LINES.encode()}, [], []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()


def same(a: hardneg.Pairs, b: hardneg.Pairs) -> bool:
    return a.digests == b.digests and a.document_ids.equals(b.document_ids)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_pairs_patterns_and_corpora_at_urls(kind: str, tmp_path: Path, memory: Any) -> None:
    for name, content in (
        ("a.jsonl", LINES[: len(LINES) // 2]),
        ("b.jsonl", LINES[len(LINES) // 2 :]),
        ("c.jsonl", CORPUS),
    ):
        (tmp_path / name).write_text(content)
    (tmp_path / "a.jsonl").write_text("".join(LINES.splitlines(True)[:30]))
    (tmp_path / "b.jsonl").write_text("".join(LINES.splitlines(True)[30:]))
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        memory.pipe(f"/data/x/{name}", (tmp_path / name).read_bytes())
    root = f"file://{tmp_path}" if kind == "file" else "memory://data/x"
    expected = hardneg.read_pairs(str(tmp_path / "[ab].jsonl"), ReadOptions(corpus=str(tmp_path / "c.jsonl")))
    found = hardneg.read_pairs(f"{root}/[ab].jsonl", ReadOptions(corpus=f"{root}/c.jsonl"))
    assert same(found, expected)
    assert found.name == f"{root}/[ab].jsonl"
    one = hardneg.read_pairs(f"{root}/a.jsonl", corpus=f"{root}/c.jsonl")
    assert same(one, hardneg.read_pairs(str(tmp_path / "a.jsonl"), corpus=str(tmp_path / "c.jsonl")))
    with pytest.raises(DataError, match=rf"{root}/none.jsonl does not exist"):
        hardneg.read_pairs(f"{root}/none.jsonl")
    with pytest.raises(DataError, match=r"no\*.jsonl does not exist, or names no file"):
        hardneg.read_pairs(f"{root}/no*.jsonl")


def test_a_beir_folder_at_a_url(memory: Any, tmp_path: Path) -> None:
    for name, content in (
        ("corpus.jsonl", CORPUS),
        ("queries.jsonl", '{"_id": "q1", "text": "ask"}\n'),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\nq1\tc3\t1\n"),
    ):
        memory.pipe(f"/beir/{name}", content.encode())
    pairs = hardneg.read_pairs("memory://beir")
    assert len(pairs.document_ids) == 20
    assert pairs.positives.values.tolist() == [3]
    memory.pipe("/beir/qrels/train.tsv", b"q1\tc99\t1\n")
    with pytest.raises(DataError, match=r"memory://beir/qrels/train.tsv, line 1: the document id 'c99' is unknown"):
        hardneg.read_pairs("memory://beir")


def test_errors_name_the_url_and_the_line(memory: Any) -> None:
    memory.pipe("/data/bad.jsonl", b'{"query": "a", "positive": "b"}\n{oops\n')
    with pytest.raises(DataError, match=r"memory://data/bad.jsonl, line 2"):
        hardneg.read_pairs("memory://data/bad.jsonl")
    with pytest.raises(UsageError, match="nosuch"):
        hardneg.read_pairs("nosuch://data/bad.jsonl")
    done = run_here("inspect", "memory://data/bad.jsonl")
    assert done.returncode == 1
    assert "memory://data/bad.jsonl, line 2" in done.stderr


def test_a_connection_that_breaks_is_opened_again_and_that_is_said(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_READ", 500)
    expected = mine_vectors_free(tmp_path / "here")
    Server.breaks = [700, 300]
    run = mine(f"{web}/pairs.jsonl", tmp_path / "run", SHORT)
    assert same(run.pairs(), expected)
    assert [note for note in run.info["warnings"] if "reading broke off 2 times, and went on from there" in note]
    assert not list((tmp_path / "run").rglob("*.part"))
    assert not list((tmp_path / "run").rglob("fetched"))


def mine_vectors_free(place: Path) -> hardneg.Pairs:
    place.with_suffix(".jsonl").write_text(LINES)
    return hardneg.read_pairs(str(place.with_suffix(".jsonl")))


def test_what_was_copied_before_a_failure_is_not_copied_again(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_READ", 500)
    Server.breaks = [10**9, 10**9, 300] + [0] * 50
    with pytest.raises(
        DataError,
        match=r"pairs.jsonl cannot be read .*6 times\): try again; with resume=True .--resume., what was copied is kept",
    ):
        remote.fetch(f"{web}/pairs.jsonl", tmp_path / "copies", [])
    (part,) = (tmp_path / "copies").rglob("*.part")
    held = part.stat().st_size
    assert 0 < held < len(LINES)
    Server.breaks, Server.asked = [], []
    notes: list[str] = []
    copy = remote.fetch(f"{web}/pairs.jsonl", tmp_path / "copies", notes)
    assert copy.read_text() == LINES
    assert notes == []
    Server.asked = []
    remote.fetch(f"{web}/pairs.jsonl", tmp_path / "copies", notes)
    assert Server.asked == []
    Server.files["/pairs.jsonl"] = LINES.upper().encode()  # another version: nothing of the old one is used
    assert remote.fetch(f"{web}/pairs.jsonl", tmp_path / "copies", notes).read_text() == LINES.upper()


def test_403_is_said_at_once(web: str) -> None:
    with pytest.raises(DataError, match=r"secret.jsonl is refused \(.*\): check the credentials"):
        hardneg.read_pairs(f"{web}/secret.jsonl")
    with pytest.raises(DataError, match=r"gone.jsonl does not exist"):
        hardneg.read_pairs(f"{web}/gone.jsonl")


@pytest.mark.parametrize("name", ["401/gone.jsonl", "Forbidden.jsonl", "403.jsonl", "AccessDenied"])
def test_a_number_in_a_name_is_no_refusal(name: str, web: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist"):
        remote.fetch(f"{web}/{name}", tmp_path / "copies", [])
    shown = f"http://127.0.0.1:40177/{name}"
    for said in (FileNotFoundError(shown), ConnectionError(f"cannot connect to {shown}"), OSError(5, "read", shown)):
        assert "refused" not in str(remote.failed(shown, said))
    for said in (ConnectionError(f"403, message='Forbidden', url='{shown}'"), OSError("Access Denied.")):
        assert "check the credentials" in str(remote.failed(shown, said))
    hidden = FileNotFoundError(shown)
    hidden.__cause__ = ConnectionError("HTTP 401 of the store")
    assert "check the credentials" in str(remote.failed(shown, hidden))


def test_out_at_a_url_is_refused_clearly(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(LINES)
    with pytest.raises(UsageError, match=r"s3://bucket/run is a URL: a run has to be on a disk of this machine"):
        mine(str(tmp_path / "pairs.jsonl"), "s3://bucket/run", SHORT)
    run = mine(str(tmp_path / "pairs.jsonl"), tmp_path / "run", SHORT)
    with pytest.raises(UsageError, match="is a URL: an export has to be"):
        run.export("triplet", "s3://bucket/t.jsonl")
    with pytest.raises(UsageError, match="is a URL"):
        run.select("gs://bucket/run")
    done = run_here("mine", tmp_path / "pairs.jsonl", "--out", "s3://bucket/run")
    assert (done.returncode, "s3://bucket/run is a URL" in done.stderr) == (2, True)
    assert not Path("s3:").exists()


def vectors(n: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    (tmp_path / "pairs.jsonl").write_text(LINES)
    queries = vectors(60, 0)
    documents = queries + 0.1 * vectors(60, 1)
    np.save(tmp_path / "q.npy", queries)
    np.save(tmp_path / "d.npy", documents)
    (tmp_path / "emb").mkdir()
    for i in range(3):
        np.save(tmp_path / "emb" / f"d{i}.npy", documents[i * 20 : i * 20 + 20])
    return tmp_path


def options(folder: Path | str, documents: str) -> MineOptions:
    return MineOptions(
        depth=8, negatives=2, query_embeddings=f"{folder}/q.npy", corpus_embeddings=f"{folder}/{documents}"
    )


def candidates(run: hardneg.Run) -> list[Any]:
    return [path.read_bytes() for path in run.candidate_files()]


def test_vectors_in_several_files_and_at_urls(given: Path, memory: Any) -> None:
    one = mine(str(given / "pairs.jsonl"), given / "one", options(given, "d.npy"))
    several = mine(str(given / "pairs.jsonl"), given / "several", options(given, "emb/*.npy"))
    assert candidates(several) == candidates(one)
    for path in (given / "q.npy", *(given / "emb").iterdir()):
        memory.pipe(f"/v/{path.relative_to(given)}", path.read_bytes())
    far = mine(str(given / "pairs.jsonl"), given / "far", options("memory://v", "emb/*.npy"))
    assert candidates(far) == candidates(one)
    memory.store.clear()  # the run keeps its copy
    for run in (several, far):
        opened = open_run_vectors(run, run.pairs(), "documents")
        np.testing.assert_array_equal(opened[:], np.load(given / "d.npy"))
        assert len(list(Reopened(hardneg.Run(run.folder)))) == 1
        assert (
            run.select(given / "s" / run.folder.name, add_filters=("duplicate:near=0.99",)).info["counts"]["queries"]
            == 60
        )
    np.save(given / "emb" / "d1.npy", vectors(20, 9))
    with pytest.raises(RunError, match="has changed since"):
        open_run_vectors(several, several.pairs(), "documents")


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        (np.ones((20, 9), np.float32), r"d1.npy: holds float32 of 9 dimensions, but d0.npy holds float32 of 8"),
        (np.ones((20, 8), np.float16), r"d1.npy: holds float16 of 8 dimensions, but d0.npy holds float32 of 8"),
        (
            np.ones((20, 8), ">f4"),
            r"d1.npy: expected floats of 16, 32 or 64 bits in the byte order of this machine, got >f4",
        ),
        (np.ones(20, np.float32), r"d1.npy: expected floats of shape \[rows, dimensions\]"),
        (np.ones((20, 8), np.int32), r"d1.npy: expected floats"),
        (np.ones((7, 8), np.float32), r"emb/\*.npy: 47 vectors for 60 documents"),
        (np.full((20, 8), np.nan, np.float32), r"20 of 60 corpus vectors hold NaN or infinite values.*: rows 20, 21"),
    ],
)
def test_shards_that_do_not_fit(given: Path, shard: np.ndarray, message: str) -> None:
    path, right = given / "emb" / "d1.npy", (given / "emb" / "d1.npy").read_bytes()
    np.save(path, shard)
    with pytest.raises(DataError, match=message):
        mine(str(given / "pairs.jsonl"), given / "run", options(given, "emb/*.npy"))
    path.write_bytes(right)
    again = mine(str(given / "pairs.jsonl"), given / "run", options(given, "emb/*.npy"), resume=True)
    assert candidates(again) == candidates(mine(str(given / "pairs.jsonl"), given / "one", options(given, "d.npy")))


def test_a_shard_that_is_cut_off_and_other_kinds_of_files(given: Path) -> None:
    path = given / "emb" / "d2.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"d2.npy: not a readable .npy file of numbers"):
        mine(str(given / "pairs.jsonl"), given / "run", options(given, "emb/*.npy"))
    (given / "emb" / "d3.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"several files of vectors must be .npy files, but one is d3.npz"):
        mine(str(given / "pairs.jsonl"), given / "run", options(given, "emb/*"))
    with pytest.raises(DataError, match="no file fits this pattern"):
        mine(str(given / "pairs.jsonl"), given / "run", options(given, "none/*.npy"))


def test_a_store_of_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server_of = pytest.importorskip("moto.server", reason="no moto: pip install s3fs 'moto[server]'")
    pytest.importorskip("s3fs", reason="no s3fs: pip install s3fs 'moto[server]'")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):  # fmt: skip
            monkeypatch.setenv(name, value)
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("bucket")
        (tmp_path / "pairs.jsonl").write_text(LINES)
        for i in range(3):
            part = "".join(LINES.splitlines(True)[i * 20 : i * 20 + 20])
            system.pipe(f"bucket/set/part-{i}.jsonl", part.encode())
        found = hardneg.read_pairs("s3://bucket/set/part-*.jsonl")
        assert same(found, hardneg.read_pairs(str(tmp_path / "pairs.jsonl")))
        assert same(hardneg.read_pairs("s3://bucket/set"), found)
        with pytest.raises(DataError, match=r"s3://bucket/none.jsonl does not exist"):
            hardneg.read_pairs("s3://bucket/none.jsonl")
    finally:
        server.stop()
