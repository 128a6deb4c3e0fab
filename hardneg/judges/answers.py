"""Answers of a judge on disk, by the content of what was asked. Nothing is asked, or paid for, twice.

Each judge (endpoint, model, prompt) has one file of JSON lines. A line is appended as soon as an answer is there, in one write, so
a killed process loses only what was still under way. The file holds hashes and grades: no texts, and no key.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

from hardneg.errors import RunError
from hardneg.judges.prompt import GRADES
from hardneg.storage.files import fingerprint

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
        if self.path.is_file():
            self._read()

    def key(self, query: str, document: str) -> str:
        """The hash of a pair under this judge."""
        content = json.dumps([self._salt, query, document], ensure_ascii=True).encode()
        return hashlib.sha256(content).hexdigest()[:40]

    def get(self, key: str) -> int | None:
        return self._grades.get(key)

    def put(self, grades: dict[str, int]) -> None:
        """Keep answers, on disk before this returns."""
        lines = "".join(json.dumps({"pair": key, "grade": grade}) + "\n" for key, grade in grades.items())
        with self._lock:
            if self._file is None:
                self._file = self._opened()
            os.write(self._file, lines.encode())
            self._grades.update(grades)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                os.fsync(self._file)
                os.close(self._file)
                self._file = None

    def _opened(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            file = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise RunError(
                f"{self.path}: answers cannot be kept there ({error.strerror}): choose another --judge-cache"
            ) from None
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":  # the line that a killed process was writing
            os.write(file, b"\n")
        return file

    def _read(self) -> None:
        if self.path.stat().st_size > _MOST_BYTES:
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
