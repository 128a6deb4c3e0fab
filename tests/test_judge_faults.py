"""Judges when all goes wrong: servers that drip, limits, budgets under failures, odd addresses, full disks, two at once."""

from __future__ import annotations

import errno
import itertools
import json
import os
import socketserver
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hardneg.errors import RunError, UsageError
from hardneg.judges import endpoint
from hardneg.judges.answers import KeptAnswers
from hardneg.judges.base import NO_ANSWER, JudgeOptions, make_judge
from hardneg.judges.cost import Budget, Estimate, Prices
from hardneg.judges.endpoint import EndpointError
from hardneg.judges.openai import OpenAIJudge

from .judge_server import Fault, JudgeServer
from .processes import Started, run_code
from .test_judges import PAIRS, TRUTH, grade, judge, key  # noqa: F401


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds of the first pause, a tenth of what it is: for tests that wait for many."""
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE", endpoint._FIRST_PAUSE / 10)
    return endpoint._FIRST_PAUSE


class _Drip(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1 << 16)
        whole = self.server.whole  # type: ignore[attr-defined]
        try:
            for i in itertools.count():
                self.request.sendall(whole[i : i + 1] or b" ")
                time.sleep(0.05)
        except OSError:
            pass


@pytest.mark.parametrize(
    "whole", [b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"HTTP/1.1 200 "]
)  # fmt: skip
def test_a_server_that_sends_byte_by_byte_is_given_up(tmp_path: Path, whole: bytes) -> None:
    """The first bytes at once, then one byte every 50 ms for ever: the timeout is that of the whole request."""

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), _Drip) as server:
        server.whole = whole  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        asked = make_judge("openai:m", JudgeOptions(url=url, cache=tmp_path, timeout=0.4, retries=1))
        began = time.monotonic()
        with pytest.raises(EndpointError, match="no whole answer within 0.4 seconds.*2 times in a row"):
            asked.judge(PAIRS[:1])
        assert 0.8 < time.monotonic() - began < 5
        server.shutdown()


@pytest.mark.usefixtures("pause")
@pytest.mark.parametrize("status", [503, *(pytest.param(each, marks=pytest.mark.slow) for each in (429, 200))])
def test_requests_that_are_sent_again_count(tmp_path: Path, status: int) -> None:
    """Every second request fails: none is sent beyond the budget, and what came and could not be used is paid for."""
    fails = itertools.cycle([False, True])
    prices, lock = Prices(1.0, 1.0), threading.Lock()

    def fault(server: JudgeServer, pairs: list[tuple[str, str]], before: int) -> Any:
        with lock:
            return (status, {}, "{cut") if next(fails) else None

    with JudgeServer(grade, fault) as server:
        said = judge(server, tmp_path, budget=Budget(11, "requests"), prices=prices, retries=9).judge(PAIRS)
        assert len(server.requests) == said.counts["requests"] <= 11
        assert said.counts["requests"] >= 10
        usual = 406 * sum(grade >= 0 for grade in said.relevant.tolist())
        used = said.counts["tokens in"] + said.counts["tokens out"]
        assert used > usual if status == 200 else used == usual
    with JudgeServer(grade, lambda *_: (status, {}, "{cut")) as server:
        said = judge(server, tmp_path / "b", budget=Budget(3, "requests"), retries=9).judge(PAIRS)
        assert len(server.requests) == said.counts["requests"] == 3
        assert (said.relevant == -1).all()


@pytest.mark.usefixtures("pause")
def test_a_budget_of_tokens_counts_answers_that_were_cut(tmp_path: Path) -> None:
    with JudgeServer(grade, lambda *_: (200, {}, "{cut")) as server:
        asked = judge(server, tmp_path, budget=Budget(900, "tokens"), retries=50, concurrency=1)
        said = asked.judge(PAIRS[:1])
        assert 1 < len(server.requests) < 20
        assert 0 < said.counts["tokens in"] + said.counts["tokens out"] <= 900


@pytest.mark.parametrize(
    "after", ["0", "-5", "nan", "inf", "Mon, 01 Jan 2001 00:00:00 GMT", "soon", "-inf", "9" * 5000]
)
def test_no_retry_after_switches_the_pauses_off(tmp_path: Path, after: str, pause: float) -> None:
    def fault(server: JudgeServer, pairs: list[tuple[str, str]], before: int) -> Any:
        return (429, {"Retry-After": after}, "") if before < 2 else None

    with JudgeServer(grade, fault) as server:
        judge(server, tmp_path, concurrency=1).judge(PAIRS[:1])
        first, second, third = server.times
        assert second - first >= pause
        assert third - second >= 2 * pause


@pytest.mark.usefixtures("pause")
def test_a_limit_that_lets_others_pass_ends_nothing(tmp_path: Path) -> None:
    """One pair is refused three times, each time after others were answered: more often than `retries`, and yet no failure."""
    asked: list[OpenAIJudge] = []
    answered = [0]

    def fault(server: JudgeServer, pairs: list[tuple[str, str]], before: int) -> Any:
        if pairs[0] != PAIRS[0] or before == 3:
            time.sleep(0.1)  # so that some are left to be answered until the end
            return None
        until = time.monotonic() + 30
        while asked[0].endpoint._answered == answered[-1] and time.monotonic() < until:
            time.sleep(0.01)
        answered.append(asked[0].endpoint._answered)
        return 429, {}, ""

    with JudgeServer(grade, fault) as server:
        asked.append(judge(server, tmp_path, retries=1, concurrency=2))
        said = asked[0].judge(PAIRS)
        assert said.value.tolist() == TRUTH.tolist()
        assert answered == sorted(set(answered))
        assert len(answered) == 4


def test_one_limit_slows_all_threads(tmp_path: Path) -> None:
    def one(server: JudgeServer, pairs: list[tuple[str, str]], before: int) -> Any:
        time.sleep(0.05)
        return (429, {}, "") if pairs[0] == PAIRS[0] and not before else None

    with JudgeServer(grade, one) as server:
        judge(server, tmp_path / "one", concurrency=4).judge(PAIRS)
        assert max(b - a for a, b in itertools.pairwise(sorted(server.times))) >= 0.2


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999/v1", "http://[::1/v1", "http://127.0.0.1/vé", "http://127.0.0.1:abc", "http://127.0.0.1/v 1",
            "http://127.0.0.1\n/v1", "http://a..b/v1", "http://:p@127.0.0.1/v1", "http://127.0.0.1:0/v1", " ", "http://127.0.0.1/v1?",
            "http://127.0.0.1:-1/v1", "https://" + "x" * 70 + ".com/v1", "http://[::1]x/v1", "http://127.0.0.1/\x00"],
)  # fmt: skip
def test_odd_addresses(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="must look like"):
        make_judge("openai:m", JudgeOptions(url=url, cache=tmp_path, allow_http=True))
    if "\x00" not in url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(UsageError, match="must look like"):
            make_judge("openai:m", JudgeOptions(cache=tmp_path, allow_http=True))


def test_odd_proxies_and_timeouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for timeout in (0.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="timeout"):
            JudgeOptions(timeout=timeout)
    for proxy in ("http://proxy:abc", "http://[::1", "http://a b:3128"):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(UsageError, match="HTTPS_PROXY"):
            make_judge("openai:m", JudgeOptions(url="https://example.com/v1", cache=tmp_path))


def test_two_judges_at_once_do_not_pay_twice(tmp_path: Path) -> None:
    """Another process is refused while one asks, and an answer that came meanwhile is not asked for."""
    with JudgeServer(grade, seconds=0.05) as server:
        late = judge(server, tmp_path)  # opened before anything is there
        code = (
            "from hardneg.judges.base import *\nfrom hardneg.errors import RunError\n"
            f"asked = make_judge('openai:stub', JudgeOptions(url={server.url!r}, cache={str(tmp_path)!r}, concurrency=1))\n"
            f"try: asked.judge({PAIRS!r})\nexcept RunError as error: raise SystemExit(str(error))"
        )
        first = Started(code)
        while len(server.requests) < 3:
            assert first.poll() is None
            time.sleep(0.01)
        second = run_code(code)
        with pytest.raises(RunError, match=rf"jsonl is being written by process {first.pid}"):
            late.judge(PAIRS)
        assert f"{late.kept.path} is being written by process {first.pid}" in second.stderr
        assert first.wait() == 0
        assert late.judge(PAIRS).value.tolist() == TRUTH.tolist()
        assert late.judge(PAIRS).counts["asked now"] == 0
        assert set(server.asked.values()) == {1}


def test_two_judges_of_one_process(tmp_path: Path) -> None:
    with JudgeServer(grade, seconds=0.05) as server:
        one, other = judge(server, tmp_path, concurrency=1), judge(server, tmp_path)
        thread = threading.Thread(target=one.judge, args=(PAIRS[:10],))
        thread.start()
        while not server.requests:
            time.sleep(0.01)
        with pytest.raises(RunError, match="jsonl is being written by this process"):
            other.judge(PAIRS[:10])
        thread.join()
        assert set(server.asked.values()) == {1}


def test_short_writes_and_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = os.write, [10**6]

    def write(file: int, content: bytes) -> int:
        n = min(len(content), 7, left[0])
        if not n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= n
        return real(file, content[:n])

    with JudgeServer(grade) as server:
        asked = judge(server, tmp_path, concurrency=1)
        monkeypatch.setattr("hardneg.judges.answers.os.write", write)
        asked.judge(PAIRS[:5])
        left[0] = 150  # two lines, and a part of the third
        with pytest.raises(RunError, match=r"No space left on device\). 7 are kept.*the same command goes on"):
            asked.judge(PAIRS)
        monkeypatch.undo()
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        again = judge(server, tmp_path, concurrency=1)
        before = len(server.requests)
        said = again.judge(PAIRS)
        assert said.value.tolist() == TRUTH.tolist()
        assert said.counts["damaged lines in the cache"] == 0
        assert len(server.requests) - before == len(PAIRS) - 7


def test_a_disk_that_fails_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    kept = KeptAnswers(tmp_path, {"model": "m"})
    monkeypatch.setattr("hardneg.judges.answers.os.fsync", sync)
    with pytest.raises(RunError, match="1 are kept"), kept.alone():
        kept.put({"a": 1})
    (tmp_path / "folder").write_text("")
    with pytest.raises(RunError, match="cannot be written to"), KeptAnswers(tmp_path / "folder", {}).alone():
        pass


def test_the_estimate_and_the_budget_say_what_they_are() -> None:
    assert "about 12.30 in the currency of --price" in str(Estimate(1, 0, 1, 1, 1, 12.3))
    assert "less than 0.01 in the currency of --price" in str(Estimate(1, 0, 1, 1, 1, 0.001))


def test_the_command_and_the_documentation_promise_the_same_of_a_budget() -> None:
    promise = "budget of requests is never exceeded, one of money or tokens only if a request takes more than was set aside for it"
    code = (
        "from hardneg_cli.judge_options import _confirm\nfrom hardneg.judges.cost import Estimate\n"
        "_confirm(Estimate(1, 0, 1, 1, 1, None))"
    )
    done = run_code(code)
    assert promise in done.stderr
    assert promise in " ".join(Path(__file__).parents[1].joinpath("docs", "judges.md").read_text("utf-8").split())


def test_a_pair_at_which_the_server_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    def failing(server: JudgeServer, pairs: list[tuple[str, str]], times: int) -> Any:
        return (500, {}, "{}") if any("question 7" in query for query, _ in pairs) else None

    pairs = [(f"question {i}", f"document {i}") for i in range(12)]
    with JudgeServer(lambda query, document: 3, failing, seconds=0.05) as server:
        said = judge(server, tmp_path, concurrency=4, retries=1).judge(pairs)
    assert said.relevant.tolist() == [NO_ANSWER if i == 7 else 1 for i in range(12)]
    with (
        JudgeServer(lambda query, document: 3, lambda *_: (500, {}, "{}")) as server,
        pytest.raises(EndpointError, match="answers 500"),
    ):
        judge(server, tmp_path / "b", concurrency=4, retries=1).judge(pairs)


@pytest.mark.parametrize("together", [1, 4])
def test_a_pair_that_is_refused_does_not_stop_the_others(tmp_path: Path, together: int) -> None:
    """As a text that is longer than the model takes: it has no answer, and is counted; refused from the start, all is."""
    body = json.dumps({"error": {"message": "maximum context length exceeded"}})

    def refusing(bad: str) -> Fault:
        def fault(server: JudgeServer, pairs: list[tuple[str, str]], times: int) -> Any:
            return (400, {}, body) if any(bad in query for query, _ in pairs) else None

        return fault

    pairs = [(f"question {i}", f"document {i}") for i in range(12)]
    options = {"pairs_per_request": together, "concurrency": 1, "retries": 1}
    with JudgeServer(lambda query, document: 3, refusing("question 7")) as server:
        said = judge(server, tmp_path / "a", **options).judge(pairs)
    assert said.relevant.tolist() == [NO_ANSWER if i == 7 else 1 for i in range(12)]
    assert said.counts["refused by the endpoint"] == 1
    with JudgeServer(lambda query, document: 3, refusing("question")) as server:
        with pytest.raises(EndpointError, match="answers 400 .*maximum context length"):
            judge(server, tmp_path / "b", **options).judge(pairs)
        assert len(server.requests) <= 4


def test_a_key_in_place_of_its_name_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the name of the environment variable") as caught:
        make_judge(
            "openai:stub", JudgeOptions(url="https://127.0.0.9/v1", cache=tmp_path, key_variable="sk-SECRET-1234")
        )
    assert "SECRET" not in str(caught.value)
