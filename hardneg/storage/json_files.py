"""JSON files that describe our own folders: written whole, with a checksum, and decoded by one checked reader.

The files are untrusted when they are read. The reader limits their size, and checks their depth, their numbers, the type
of every entry and the checksum. So code that uses an entry does not need to check it again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from hardneg.errors import RunError
from hardneg.storage.files import atomic_path, fingerprint

MAX_BYTES = 1 << 28  # our largest files list a few thousand files and counts
MAX_DEPTH = 64
LARGEST = 1 << 256  # of a whole number: states of random generators have 128 bits

_CHECKSUM = "checksum"


def write_json(path: Path, value: dict[str, Any], *, checksum: bool = False, volatile: Collection[str] = ()) -> None:
    """Write an object as indented JSON, whole or not at all.

    Args:
        path: the file.
        value: the object.
        checksum: add the entry `checksum`, a SHA-256 hash of all other entries. `read_json` verifies it.
        volatile: entries that the hash leaves out because they differ from one writing to the next, such as times.

    Raises:
        ValueError: the object contains NaN or infinity.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    if checksum:
        # The hash is that of the decoded text, because that is what a reader sees (keys are strings then).
        decoded = json.loads(text)
        text = json.dumps({**decoded, _CHECKSUM: _hash(decoded, volatile)}, indent=2, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", "utf-8")


def read_json(
    path: Path, schema: Any = None, *, checksum: bool = False, volatile: Collection[str] = (), remedy: str = ""
) -> dict[str, Any]:
    """Read a JSON object from an untrusted file.

    Args:
        path: the file.
        schema: a type that the object must fit, usually a `TypedDict`. Entries that it does not name may be there.
        checksum: whether the entry `checksum` is required. If it is there, it is verified in any case, and left out of
            the result.
        volatile: the entries that the hash leaves out.
        remedy: the end of an error message: what to do about a damaged file.

    Raises:
        RunError: the file is missing, too large, not JSON, nested too deeply, or does not fit the schema or its
            checksum. The message names the file.
    """
    value = decode_json(path, remedy)
    remedy = _end(remedy)
    written = value.pop(_CHECKSUM, None)
    if written is None and checksum:
        raise RunError(f"{path} has no checksum{remedy}")
    if written is not None and written != _hash(value, volatile):
        raise RunError(f"{path} does not fit its own checksum{remedy}")
    if schema is not None:
        try:
            msgspec.convert(value, schema)
        except msgspec.ValidationError as error:
            raise RunError(f"{path} is not what hardneg writes ({error}){remedy}") from None
    return value


def read_json_lines(path: Path, *schemas: Any) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines that `add_line` wrote; those that are damaged or cut off are left out.

    Args:
        path: the file.
        schemas: the type of the first object, and that of the others. If the first one does not fit, there are none.

    Raises:
        RunError: the file cannot be read, or is too large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RunError(f"{path} has more than {MAX_BYTES >> 20} MB: the file is damaged")
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error})") from None
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            value = msgspec.json.decode(line)
            if _fault(value, MAX_DEPTH):
                raise ValueError
            msgspec.convert(value, schemas[min(len(found), len(schemas) - 1)])
            found.append(value)
        except (ValueError, RecursionError):  # also msgspec's errors
            if not found:
                return []
    return found


def _hash(value: dict[str, Any], volatile: Collection[str]) -> str:
    return fingerprint({name: each for name, each in value.items() if name not in volatile})


def _end(remedy: str) -> str:
    return f": {remedy}" if remedy else ": the file is damaged"


def decode_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """The object in a JSON file, with its checksum and before its entries are checked; RunError as in `read_json`."""
    remedy = _end(remedy)
    try:
        if not path.is_file():
            raise FileNotFoundError
        if path.stat().st_size > MAX_BYTES:
            raise RunError(f"{path} has more than {MAX_BYTES >> 20} MB{remedy}")
        text = path.read_text("utf-8-sig")
        value = msgspec.json.decode(text)
        fault = _fault(value, MAX_DEPTH)
        if fault:
            raise RunError(f"{path} {fault}{remedy}")
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error})") from None
    except RecursionError:
        raise RunError(f"{path} is nested more than {MAX_DEPTH} levels deep{remedy}") from None
    except ValueError as error:  # also UnicodeDecodeError and all errors of msgspec
        raise RunError(f"{path} is not readable as JSON ({error}){remedy}") from None
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a JSON {type(value).__name__}, expected an object{remedy}")
    return value


def is_number(value: Any) -> bool:
    """Whether a value from a JSON file is a number that a float can hold. Whole numbers in JSON may have any number of digits.

    >>> is_number(1), is_number(True), is_number(10**400), is_number(float("nan"))
    (True, False, False, False)
    """
    most = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and -most <= value <= most


def _fault(value: Any, levels: int) -> str:
    """What no file of ours holds, as the end of a sentence: too deep nesting, or a number of which Python cannot write the digits."""
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        return "holds a whole number of more than 77 digits"
    if not isinstance(value, dict | list):
        return ""
    if levels == 0:
        return f"is nested more than {MAX_DEPTH} levels deep"
    children = value.values() if isinstance(value, dict) else value
    return next((fault for child in children if (fault := _fault(child, levels - 1))), "")
