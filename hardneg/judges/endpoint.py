"""One endpoint of the OpenAI kind: an address, a key, and requests that are sent again when they fail for a passing reason.

The key is read from the environment, is sent to this address alone (redirects are refused), and is taken out of every message.
"""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import math
import os
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from hardneg.errors import DataError, UsageError
from hardneg.judges.cost import Post

DEFAULT_URL = "https://api.openai.com/v1"

_LOCAL = ("localhost", "127.0.0.1", "::1")

_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
_OF_THE_REQUEST = (400, 413, 422)

_LONGEST_WAIT = 300.0  # seconds that a server may ask us to wait

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0  # seconds before a request is sent again, at least

_LARGEST = 1 << 20  # bytes of an answer

_OPTIONAL = ("response_format", "temperature", "seed", "max_tokens")  # what some models refuse


Posting = Callable[[], AbstractContextManager[Post]]


def uncounted() -> AbstractContextManager[Post]:
    return nullcontext(Post())


class EndpointError(DataError):
    """The endpoint refuses requests, or fails again and again."""


class RequestRefused(EndpointError):
    """The endpoint refuses one request, such as one that is too long for the model, or fails at it while it answers others."""


class _Passing(Exception):
    """A failure that may pass. `wait`: the seconds that the server asks for, or None. `limit`: whether it limits all requests."""

    def __init__(self, reason: str, wait: float | None = None, limit: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.limit = wait, limit


class _Deadline:
    """Cuts a connection when a time is over, whatever it is doing then: its own timeout begins anew with every byte.

    Raises:
        TimeoutError: at the end of the block, if the time was over.
    """

    def __init__(self, connection: http.client.HTTPConnection, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        self._socket: socket.socket | None = None  # the connection forgets its own when the server is to close it
        self._over = False
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def connect(self) -> None:
        """Connect, if it is not connected; and give up if that took all the time."""
        if self._connection.sock is None:
            self._connection.connect()
        self._socket = self._connection.sock
        if self._over:
            self._cut()

    def _cut(self) -> None:
        self._over = True
        found = self._socket or self._connection.sock
        if found is not None:
            with suppress(OSError):
                socket.socket.shutdown(
                    found, socket.SHUT_RDWR
                )  # not that of TLS, whose state belongs to the other thread

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._over:
            raise TimeoutError(f"no whole answer within {self._seconds:g} seconds") from None


class Endpoint:
    """Sends requests to `URL/chat/completions`. Threads share it; each has a connection of its own, which stays open.

    Args:
        url: the base URL; None: OPENAI_BASE_URL, or that of OpenAI.
        key_variable: environment variable of the key. Hosts on this machine need none.
        allow_http: allow http to other hosts than this machine.
        timeout: seconds until a request is given up.
        retries: how often a request is sent again.

    Raises:
        UsageError: the address cannot be used, or there is no key.
    """

    def __init__(
        self, url: str | None, key_variable: str, *, allow_http: bool = False, timeout: float = 60.0, retries: int = 6
    ) -> None:
        self.url = (url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL).rstrip("/")
        parts = _address(self.url)
        local = parts.hostname in _LOCAL
        if parts.scheme == "http" and not local and not allow_http:
            raise UsageError(
                f"{self.url} is not encrypted: the key and all texts could be read on the way. Use https, or --allow-http if you "
                f"trust that network"
            )
        if not re.fullmatch(r"[A-Za-z_]\w*", key_variable, re.ASCII):
            raise UsageError(
                "the key is given by the name of the environment variable that holds it (key_variable, --judge-key); what was "
                "given is no such name, and is not shown in case it is the key"
            )
        self._key = os.environ.get(key_variable, "").strip()
        if not self._key and not local:
            raise UsageError(f"the judge at {self.url} needs a key: set the environment variable {key_variable}")
        if not self._key.isascii() or not self._key.isprintable():
            raise UsageError(f"the key in {key_variable} holds characters that no key has")
        self.parts, self.timeout, self.retries = parts, timeout, retries
        self._proxy = _proxy(parts)
        self.retried = 0
        self._answered = 0  # requests; while others are answered, a limit is no failure
        self._limited = 0  # how often in a row all threads were held back
        self.refused: set[str] = set()
        self._own = threading.local()
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._stop = threading.Event()

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def stop(self) -> None:
        """Let requests that wait give up."""
        self._stop.set()

    def ask(self, request: dict[str, Any], post: Posting = uncounted) -> dict[str, Any]:
        """The decoded answer to one request.

        Args:
            request: the request.
            post: counts each try, and raises to keep it from being sent.

        Raises:
            RequestRefused: what this request asks is refused. EndpointError: it was refused, or failed `retries` times more.
        """
        failed, answered, own, before = 0, self._answered, 0.0, self._answered
        while True:
            self._wait_until(own)
            sent = {name: value for name, value in request.items() if name not in self.refused}
            began = time.monotonic()
            try:
                with post() as counted:
                    answer = self._send(sent, counted)
            except _Refused as refused:
                with self._lock:
                    self.refused |= refused.names
            except _Passing as error:
                with self._lock:  # a limit that lets others pass is none of this request
                    failed = 1 if error.limit and answered != self._answered else failed + 1
                    answered = self._answered
                if failed > self.retries:
                    # Where others are answered meanwhile, it is this request that the server stumbles over.
                    kind = EndpointError if error.limit or self._answered == before else RequestRefused
                    raise kind(
                        f"{self.url}: {self._clean(str(error))}, {failed} times in a row. Try again later: answers so far are kept"
                    ) from None
                own = self._held_back(error, failed, began)
            else:
                with self._lock:
                    self._answered += 1
                    self._limited = max(0, self._limited - 1)
                return answer

    def _held_back(self, error: _Passing, failed: int, began: float) -> float:
        """The moment until which a request waits that failed so often; all do, if the server limits them or says how long."""
        with self._lock:
            self.retried += 1
            if error.limit and began >= self._not_before:  # one of many that ran into the same limit raises it once
                self._limited += 1
            times = min(max(failed, self._limited if error.limit else 0), 10)
            pause = min(_FIRST_PAUSE * 2.0 ** (times - 1), _LONGEST_PAUSE) * (1 + random.random())
            moment = time.monotonic() + max(pause, error.wait or 0.0)
            if error.limit or error.wait is not None:
                self._not_before = max(self._not_before, moment)
        return moment

    def _wait_until(self, moment: float) -> None:
        """Wait until this moment, and as long as all threads are held back; these do not go on all at one time."""
        while (left := max(moment, self._not_before) - time.monotonic()) > 0:
            if self._stop.wait(left + random.random() * min(left, 4.0) / 4):
                break
        if self._stop.is_set():
            raise EndpointError(f"{self.url}: stopped")

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if found is not None:
            return found
        host, port = str(self.parts.hostname), self.parts.port
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        if self._proxy is None:
            found = kind(host, port, timeout=self.timeout)
        else:
            found = kind(*self._proxy, timeout=self.timeout)
            found.set_tunnel(host, port)
        self._own.connection = found
        return found

    def _drop(self) -> None:
        found = getattr(self._own, "connection", None)
        if found is not None:
            found.close()
            self._own.connection = None

    def _send(self, request: dict[str, Any], post: Post) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "User-Agent": "hardneg"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        content = json.dumps(request).encode()
        try:
            connection = self._connection()
            with _Deadline(connection, self.timeout) as deadline:
                deadline.connect()
                post.sent = True
                connection.request("POST", f"{self.parts.path}/chat/completions", content, headers)
                response = connection.getresponse()
                post.status = response.status
                body = response.read(_LARGEST + 1)
            status, after = response.status, response.getheader("Retry-After")
            if response.will_close or len(body) > _LARGEST:
                self._drop()
        except ssl.SSLCertVerificationError as error:
            self._drop()
            raise EndpointError(f"{self.url}: its certificate is not trusted ({error.verify_message})") from None
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise _Passing(f"the connection failed ({type(error).__name__}: {error})") from None
        answer = self._checked(status, body, after, request)
        post.answer = answer
        return answer

    def _checked(self, status: int, body: bytes, after: str | None, request: dict[str, Any]) -> dict[str, Any]:
        if status in _PASSING:
            raise _Passing(f"the server answers {status} {_phrase(status)}", _seconds(after, self.url), status == 429)
        if status in (401, 403):  # the body may repeat the key, or a part of it
            raise EndpointError(
                f"{self.url} answers {status} {_phrase(status)}: is the key the right one for this address?"
            )
        said = self._clean(body[:2000].decode("utf-8", "replace"))
        if status == 400:
            names = {name for name in _OPTIONAL if name in request and name in said}
            if names:
                raise _Refused(names)
        if status != 200:
            hint = ": redirects are not followed, as they would get the key" if 300 <= status < 400 else ""
            kind = RequestRefused if status in _OF_THE_REQUEST else EndpointError
            raise kind(f"{self.url} answers {status} {_phrase(status)}{hint} ({said[:200].strip()!r})")
        try:
            if len(body) > _LARGEST:
                raise ValueError
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise _Passing("the answer is no JSON, or was cut off") from None
        if not isinstance(value, dict):
            raise _Passing("the answer is no JSON object")
        return value

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _Refused(Exception):
    """The model refuses some optional parameters."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(*sorted(names))
        self.names = names


def _phrase(status: int) -> str:
    return http.client.responses.get(status, "")


def _seconds(after: str | None, url: str) -> float | None:
    """The seconds of a header Retry-After, which is a number or a date."""
    if after is None:
        return None
    try:
        seconds = float(after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    if not math.isfinite(seconds):
        return None
    if seconds > _LONGEST_WAIT:
        raise EndpointError(
            f"{url} asks to come back in {seconds:,.0f} seconds: try again then; answers so far are kept"
        )
    return max(0.0, seconds)


def _address(url: str) -> urllib.parse.SplitResult:
    """The parts of an address; UsageError if it is none that requests can be sent to."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
        if "[" in parts.netloc:
            ipaddress.IPv6Address(host)
        fits = parts.scheme in ("http", "https") and host != "" and port != 0
        fits = fits and parts.path.isascii() and not any(each.isspace() or not each.isprintable() for each in url)
        fits = fits and not any(each in url for each in "?#\\") and "@" not in parts.netloc
        fits = fits and re.fullmatch(r"\[[^]]+\](:[0-9]*)?|[^\[\]]+", parts.netloc) is not None
    except ValueError:
        fits = False
    if not fits:
        raise UsageError(
            "the address of the judge must look like https://HOST/v1, without a name, a key or a query in it "
            "(--judge-url, or the environment variable OPENAI_BASE_URL)"
        )
    return parts


def _proxy(parts: urllib.parse.SplitResult) -> tuple[str, int | None] | None:
    """Host and port of the proxy on the way to an address; None without one. Plain http never goes through a proxy."""
    host, proxy = str(parts.hostname), urllib.request.getproxies().get("https")
    if parts.scheme != "https" or host in _LOCAL or not proxy or urllib.request.proxy_bypass(host):
        return None
    try:
        by = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        found, port = by.hostname or "", by.port
        if not found or port == 0 or any(each.isspace() for each in by.netloc) or not found.encode("idna"):
            raise ValueError
    except ValueError:
        raise UsageError("the proxy of the environment variable HTTPS_PROXY must look like http://HOST:PORT") from None
    return found, port
