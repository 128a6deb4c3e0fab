"""A server that speaks OpenAI's chat completions, on this machine, and fails in every way that such servers do."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-0123456789"

_TEXTS = re.compile(r"<query ([^>]*)>\n(.*?)\n</query \1>\n<document \1>\n(.*?)\n</document \1>", re.DOTALL)

Grade = Callable[[str, str], int]
Fault = Callable[["JudgeServer", list[tuple[str, str]], int], Any]


class JudgeServer(ThreadingHTTPServer):
    """Answers with `grade(query, document)`, after a fault, if there is one.

    `fault(server, pairs, times asked before)` returns None to answer as usual, bytes to answer with these as the content, or
    (status, headers, body) to send; it may sleep, or raise ConnectionError to cut the connection.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, grade: Grade, fault: Fault | None = None, seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.grade, self.fault, self.seconds = grade, fault, seconds
        self.asked: Counter[tuple[str, str]] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: JudgeServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        pairs = [(query, document) for _, query, document in _TEXTS.findall(body["messages"][-1]["content"])]
        with server.lock:
            before = max(server.asked[pair] for pair in pairs)
            server.asked.update(pairs)
            server.requests.append(body)
            server.headers.append(dict(self.headers))
            server.times.append(time.monotonic())
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.seconds)
            made = server.fault(server, pairs, before) if server.fault else None
            if isinstance(made, tuple):
                self._send(*made)
                return
            grades = [server.grade(*pair) for pair in pairs]
            several = "grades" in body["messages"][-1]["content"].rpartition("</document")[2]
            content = json.dumps({"grades": grades} if several else {"grade": grades[0]}) if made is None else made
            usage = {"prompt_tokens": 400, "completion_tokens": 6}
            self._send(200, {}, json.dumps({"choices": [{"message": {"content": content}}], "usage": usage}))
        except ConnectionError:
            self.close_connection = True
            self.connection.close()
        finally:
            with server.lock:
                server.at_once -= 1

    def _send(self, status: int, headers: dict[str, str], body: str) -> None:
        content = body.encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
