"""Damage for tests of files: bits flipped, files cut, swapped and removed, values of JSON replaced. All seeded."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from hardneg.storage.files import sha256_file
from hardneg.storage.json_files import write_json


def json_values() -> list[str]:
    """Texts of JSON values that an entry should not have: of other types, out of range, and too deep for a parser."""
    deep = "[" * 20_000 + "]" * 20_000
    values = [
        "null",
        "true",
        '"x"',
        "-1",
        "0",
        "1",
        "2.5",
        "1e999",
        "NaN",
        "-Infinity",
        "[]",
        "{}",
        '{"a": [1]}',
        '"\\ud800"',
    ]
    return [*values, "9" * 30, "9" * 5000, "99999999999999", deep]


def tree(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def mutate(folder: Path, rng: np.random.Generator, other: Path | None = None) -> str:
    """Damage one file below `folder` in one way; returns what was done.

    Args:
        folder: the folder.
        rng: decides what is done.
        other: a folder of the same kind, from which a file may be taken.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    kinds = ["flip", "flip", "cut", "grow", "remove", "swap", "zeros"]
    kinds += ["value"] * 6 if path.suffix == ".json" else []
    kinds += ["other"] if other is not None else []
    kind = kinds[int(rng.integers(len(kinds)))]
    data = bytearray(path.read_bytes())
    if kind == "flip" and data:
        at = int(rng.integers(len(data)))
        # Half of the flips hit the head of a file, where formats keep their lengths and names.
        at = at if rng.integers(2) else at % 256
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
    elif kind == "cut":
        path.write_bytes(data[: int(rng.integers(len(data) + 1))])
    elif kind == "grow":
        path.write_bytes(data + bytes(rng.integers(0, 256, int(rng.integers(1, 9)), dtype=np.uint8)))
    elif kind == "zeros" and data:
        start = int(rng.integers(len(data)))
        path.write_bytes(data[:start] + bytes(len(data) - start))
    elif kind == "remove":
        path.unlink()
    elif kind == "swap":
        with_ = files[int(rng.integers(len(files)))]
        path.write_bytes(with_.read_bytes())
        with_.write_bytes(data)
    elif kind == "other" and other is not None:
        same = other / path.relative_to(folder)
        if same.is_file():
            shutil.copy(same, path)
    elif kind == "value":
        _replace_value(path, rng)
    return f"{kind} {path.relative_to(folder)}"


def _replace_value(path: Path, rng: np.random.Generator) -> None:
    """Replace one value anywhere in a JSON file, or remove or rename its key."""
    value = json.loads(path.read_text())
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    visit(value)
    node, key = places[int(rng.integers(len(places)))]
    how = int(rng.integers(4))
    texts = json_values()
    if how == 0 and isinstance(node, dict):
        del node[key]
    elif how == 1 and isinstance(node, dict):
        node[f"{key}x"] = node.pop(key)
    elif how == 2 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
        node[key] += int(rng.integers(1, 3))
    else:
        node[key] = "@here@"
        chosen = texts[int(rng.integers(len(texts)))]
        path.write_text(json.dumps(value, indent=2).replace('"@here@"', chosen))
        return
    path.write_text(json.dumps(value, indent=2))


def old_files(folder: Path) -> None:
    """Turn a folder of vectors into what version 0.2 wrote: a file for each shard, named in the manifest."""
    vectors = np.load(folder / "vectors.npy")
    head = json.loads((folder / "manifest.json").read_text())
    del head["checksum"]
    for part in head["parts"]:
        name = f"part-{part['start'] // max(1, head['parts'][0]['rows']):05d}.npy"
        np.save(folder / name, vectors[part["start"] : part["start"] + part["rows"]])
        part |= {"file": name, "sha256": sha256_file(folder / name)}
    write_json(folder / "manifest.json", head, checksum=True)
    (folder / "vectors.npy").unlink()
