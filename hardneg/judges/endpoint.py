"""One endpoint of the OpenAI kind: an address, a key, and requests that are sent again when they fail for a passing reason.

The key is read from the environment, is sent to this address alone (redirects are refused), and is taken out of every message.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import ssl
import threading
import time
import urllib.parse
import urllib.request
from typing import Any

from hardneg.errors import DataError, UsageError

DEFAULT_URL = "https://api.openai.com/v1"

_LOCAL = ("localhost", "127.0.0.1", "::1")

_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)

_LONGEST_WAIT = 300.0  # seconds that a server may ask us to wait

_LARGEST = 1 << 20  # bytes of an answer

_OPTIONAL = ("response_format", "temperature", "seed", "max_tokens")  # what some models refuse


class EndpointError(DataError):
    """The endpoint refuses requests, or fails again and again."""


class _Passing(Exception):
    """A failure that may pass. `wait`: the seconds that the server asks for, or None."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


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
        parts = urllib.parse.urlsplit(self.url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.username
            or parts.query
            or parts.fragment
        ):
            raise UsageError(
                "the address of the judge must look like https://HOST/v1, without a name, a key or a query in it "
                "(--judge-url, or the environment variable OPENAI_BASE_URL)"
            )
        local = parts.hostname in _LOCAL
        if parts.scheme == "http" and not local and not allow_http:
            raise UsageError(
                f"{self.url} is not encrypted: the key and all texts could be read on the way. Use https, or --allow-http if you "
                f"trust that network"
            )
        self._key = os.environ.get(key_variable, "").strip()
        if not self._key and not local:
            raise UsageError(f"the judge at {self.url} needs a key: set the environment variable {key_variable}")
        if not self._key.isascii() or not self._key.isprintable():
            raise UsageError(f"the key in {key_variable} holds characters that no key has")
        self.parts, self.timeout, self.retries = parts, timeout, retries
        self.retried = 0
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

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The decoded answer to one request.

        Raises:
            EndpointError: it was refused, or failed `retries` times more.
        """
        failed = 0
        while True:
            self._wait_until(self._not_before)
            sent = {name: value for name, value in request.items() if name not in self.refused}
            try:
                return self._send(sent)
            except _Refused as refused:
                with self._lock:
                    self.refused |= refused.names
            except _Passing as error:
                failed += 1
                if failed > self.retries:
                    raise EndpointError(
                        f"{self.url}: {self._clean(str(error))}, {failed} times in a row. Try again later: answers so far are kept"
                    ) from None
                with self._lock:
                    self.retried += 1
                wait = error.wait
                if wait is not None:  # asked of all threads
                    with self._lock:
                        self._not_before = max(self._not_before, time.monotonic() + wait)
                else:
                    pause = min(0.5 * 2.0 ** (failed - 1), 30.0)
                    self._wait_until(time.monotonic() + pause * (0.5 + random.random() / 2))  # not all at one time

    def _wait_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            if self._stop.wait(left):
                break
        if self._stop.is_set():
            raise EndpointError(f"{self.url}: stopped")

    def _connection(self) -> http.client.HTTPConnection:
        found: http.client.HTTPConnection | None = getattr(self._own, "connection", None)
        if found is not None:
            return found
        host, port = str(self.parts.hostname), self.parts.port
        secure = self.parts.scheme == "https"
        proxy = urllib.request.getproxies().get(self.parts.scheme)
        if host in _LOCAL or not proxy or not secure or urllib.request.proxy_bypass(host):
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            found = kind(host, port, timeout=self.timeout)
        else:
            by = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            found = http.client.HTTPSConnection(by.hostname or "", by.port, timeout=self.timeout)
            found.set_tunnel(host, port)
        self._own.connection = found
        return found

    def _drop(self) -> None:
        found = getattr(self._own, "connection", None)
        if found is not None:
            found.close()
            self._own.connection = None

    def _send(self, request: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "User-Agent": "hardneg"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        content = json.dumps(request).encode()
        try:
            connection = self._connection()
            connection.request("POST", f"{self.parts.path}/chat/completions", content, headers)
            response = connection.getresponse()
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
        return self._checked(status, body, after, request)

    def _checked(self, status: int, body: bytes, after: str | None, request: dict[str, Any]) -> dict[str, Any]:
        if status in _PASSING:
            raise _Passing(f"the server answers {status} {_phrase(status)}", _seconds(after, self.url))
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
            raise EndpointError(f"{self.url} answers {status} {_phrase(status)}{hint} ({said[:200].strip()!r})")
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
    if not seconds <= _LONGEST_WAIT:
        raise EndpointError(
            f"{url} asks to come back in {seconds:,.0f} seconds: try again then; answers so far are kept"
        )
    return max(0.0, seconds)
