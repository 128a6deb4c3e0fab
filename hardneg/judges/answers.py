"""Answers of a judge on disk, by the content of what was asked. Nothing is asked, or paid for, twice.

Each judge (endpoint, model, prompt) has one file of JSON lines. A line is appended as soon as an answer is there, in one write, so
a killed process loses only what was still under way. One judge at a time writes to a file, so that two
do not pay for the same. The file holds hashes and grades: no texts, and no key.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hardneg.errors import RunError
from hardneg.judges.prompt import GRADES
from hardneg.storage.files import fingerprint
from hardneg.storage.folders import locked, resolved

_LONGEST = 1 << 10  # bytes of a line

_MOST_BYTES = 1 << 32  # of a file


def default_folder() -> Path:
    """`hardneg/judgements` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "hardneg" / "judgements"


class KeptAnswers:
    """The grades that a judge gave.

    Args:
        folder: the folder of all judges.
        identity: what decides the answers besides the texts.

    Attributes:
        damaged: lines of the file that are no answers; they are not used. The last line of a killed process is one.
    """

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        self._salt = fingerprint(identity)
        self.path = folder / f"{self._salt[:24]}.jsonl"
        self.damaged = 0
        self._grades: dict[str, int] = {}
        self._lock = threading.Lock()
        self._file: int | None = None
        self._size = 0  # of the file when it was read
        if self.path.is_file():
            self._read()

    def key(self, query: str, document: str) -> str:
        """The hash of a pair under this judge."""
        content = json.dumps([self._salt, query, document], ensure_ascii=True).encode()
        return hashlib.sha256(content).hexdigest()[:40]

    def get(self, key: str) -> int | None:
        return self._grades.get(key)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the file for one judge, with the answers that others put there until now.

        Raises:
            RunError: another process, or another judge of this one, holds it; or answers cannot be kept there.
        """
        with locked(resolved(self.path.parent), f"answers-{self.path.stem}", self.path):
            if self.path.is_file():
                self._read()
            try:
                yield
            except BaseException:
                with suppress(RunError):  # the first error says more
                    self.close()
                raise
            self.close()

    def put(self, grades: dict[str, int]) -> None:
        """Keep answers, on disk before this returns.

        Raises:
            RunError: they cannot be written; the message says how many are kept.
        """
        lines = "".join(json.dumps({"pair": key, "grade": grade}) + "\n" for key, grade in grades.items())
        with self._lock:
            if self._file is None:
                self._file = self._opened()
            before = os.fstat(self._file).st_size
            try:
                _write(self._file, lines.encode())
            except OSError as error:
                with suppress(OSError):  # no half of a line, which the next one would run into
                    os.ftruncate(self._file, before)
                raise self._not_kept(error) from None
            self._grades.update(grades)

    def close(self) -> None:
        with self._lock:
            if self._file is None:
                return
            file, self._file = self._file, None
            try:
                os.fsync(file)
            except OSError as error:
                raise self._not_kept(error) from None
            finally:
                os.close(file)

    def _not_kept(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path}: answers cannot be written any more ({error.strerror}). {len(self._grades):,} are kept there: make room, "
            f"then the same command goes on from there"
        )

    def _opened(self) -> int:
        file = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            file = os.open(self.path, flags, 0o600)
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":  # the line that a killed process was writing
                _write(file, b"\n")
        except OSError as error:
            if file is not None:
                os.close(file)
            raise RunError(
                f"{self.path}: answers cannot be kept there ({error.strerror}): choose another --judge-cache"
            ) from None
        return file

    def _read(self) -> None:
        """Read the file, if it has changed since."""
        try:
            self._read_lines()
        except OSError as error:
            raise RunError(
                f"{self.path}: answers cannot be read ({error.strerror}): choose another --judge-cache"
            ) from None

    def _read_lines(self) -> None:
        size = self.path.stat().st_size
        if size == self._size:
            return
        self._size, self.damaged = size, 0
        if size > _MOST_BYTES:
            raise RunError(f"{self.path} is larger than a file of answers can be: remove it")
        with open(self.path, "rb") as lines:
            for line in iter(lambda: lines.readline(_LONGEST), b""):
                if line.isspace():
                    continue
                try:
                    value = json.loads(line)
                    key, grade = value["pair"], value["grade"]
                    if not isinstance(key, str) or isinstance(grade, bool) or grade not in GRADES or len(value) != 2:
                        raise ValueError
                    self._grades[key] = int(grade)
                except (ValueError, KeyError, TypeError, RecursionError):
                    self.damaged += 1


def _write(file: int, content: bytes) -> None:
    """Write all of it: one call may write less."""
    while content:
        content = content[os.write(file, content) :]
