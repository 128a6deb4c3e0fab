"""Damaged and made-up folders of indexes and generations: every one is loaded or refused in words, never anything else."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardneg.errors import RunError
from hardneg.index.factory import make_index
from hardneg.index.files import load_index, save_index
from hardneg.refresh.generation import Order, Recipe, build, load_generation, save_generation
from hardneg.storage.files import sha256_file

from .test_approximate import clustered

DOCUMENTS = clustered(120, dimension=8)
VALUES = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**40, 1e308, 5e-324, 0.5, "", "x", "ivf", "../x", "\x00",
    "\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace"), [], [1], {}, {"a": 1}, [[[[]]]], "9" * 5000,
]  # fmt: skip
RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 400,
    "[" * 2000 + "]" * 2000,
    '{"a":' * 200 + "1" + "}" * 200,
    "nul",
    "",
]


class Rows:
    def take(self, rows: np.ndarray) -> Any:
        return DOCUMENTS[rows]


def make_index_folder(kind: str) -> Callable[[Path], None]:
    return lambda folder: save_index(make_index(kind, DOCUMENTS, k=5, recall=0.9)[0], folder)


def make_generation_folder(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        order = Order(Rows(), np.arange(len(DOCUMENTS)), (Rows(), 20), 0, 0)
        save_generation(
            build(Recipe(index=kind, depth=5, recall=0.9), order, lambda items, side: items, lambda: False), folder
        )

    return make


def search_index(folder: Path) -> None:
    found = load_index(folder, DOCUMENTS, threads=1).search(DOCUMENTS[:3], 5)
    assert found.documents.shape == (3, 5)


def search_generation(folder: Path) -> None:
    generation = load_generation(folder, threads=1)
    generation.search(DOCUMENTS[:3], 5)
    generation.rows_of(np.arange(4))
    generation.times_retrieved()


KINDS = {
    "ivf": (make_index_folder("ivf"), search_index),
    "hnsw": (make_index_folder("hnsw"), search_index),
    "exact": (make_index_folder("exact"), search_index),
    "generation": (make_generation_folder("ivf"), search_generation),
    "generation with a graph": (make_generation_folder("hnsw"), search_generation),
}


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all entries of a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way] * bool(way) + [each for key, child in children for each in places(child, (*way, key))]


def replaced(text: str, rng: random.Random) -> str:
    """JSON with one entry replaced, removed or added."""
    value = json.loads(text)
    value.pop("checksum", None) if rng.random() < 0.8 and "generation" not in value.get("schema", "") else None
    *way, last = rng.choice(places(value))
    parent = value
    for key in way:
        parent = parent[key]
    choice = rng.random()
    if choice < 0.15 and isinstance(parent, dict):
        del parent[last]
    elif choice < 0.25 and isinstance(parent, dict):
        parent[str(rng.choice(VALUES))] = parent[last]
    elif choice < 0.45:
        parent[last] = "<raw>"
        return json.dumps(value).replace('"<raw>"', rng.choice(RAW))
    else:
        parent[last] = rng.choice(VALUES)
    return json.dumps(value)


def mutated_array(content: bytes, rng: random.Random) -> bytes:
    """An array with another header, or other numbers."""
    length = 10 + int.from_bytes(content[8:10], "little")
    header, body = content[:length], content[length:]
    choice = rng.random()
    if choice < 0.5:
        parts = {
            b"'<i4'": [b"'<i8'", b"'>i4'", b"'|O'", b"'<f4'", b"'<U9'", b"'xyz'", b"[('a', '<i4')]", b"'<M8[s]'"],
            b"'<i8'": [b"'<i4'", b"'>i8'", b"'|O'", b"'<u8'", b"'<m8'"],
            b"'<f4'": [b"'<f2'", b"'>f4'", b"'<c8'", b"'|V4'", b"'<f8'"],
            b"'<f2'": [b"'<f4'", b"'<i2'", b"'|b1'"],
            b"False": [b"True", b"None", b"7"],
            b"'shape'": [b"'shap'", b"7", b"__import__('os')"],
            b"(": [b"(0, ", b"(-1, ", b"(99999999999, ", b"((1,), ", b"[", b"(1.5, ", b"(True, ", b"(10**9**9, "],
        }
        old = rng.choice([part for part in parts if part in header])
        new = header.replace(old, rng.choice(parts[old]), 1).rstrip(b" \n")
        return new[:8] + (len(new) + 1 - 10).to_bytes(2, "little") + new[10:] + b"\n" + body
    if choice < 0.8 and body:
        position = rng.randrange(len(body))
        return header + body[:position] + bytes([rng.randrange(256)]) + body[position + 1 :]
    return flipped(content, rng)


def flipped(content: bytes, rng: random.Random) -> bytes:
    """A file with some bits changed, or cut, or longer."""
    changed = bytearray(content)
    choice = rng.random()
    if choice < 0.2:
        return bytes(changed[: rng.randrange(len(changed))])
    if choice < 0.25:
        return bytes(changed) + rng.randbytes(rng.randrange(1, 50))
    for _ in range(rng.choice([1, 1, 2, 8])):
        # Mostly near the beginning, where the numbers are that a reader trusts.
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 300)
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def sign(folder: Path) -> None:
    """Record the checksums of the files as they are now, as somebody would who makes up a folder."""
    for path in (folder / "index.json", folder / "generation.json"):
        if path.exists():
            head = json.loads(path.read_text())
            if path.name == "index.json":
                head.pop("checksum", None)
            head["files"] = {name: sha256_file(folder / name) for name in head["files"]}
            path.write_text(json.dumps(head))


def damage(folder: Path, rng: random.Random) -> str:
    """Damage one file of the folder. Returns what was done."""
    path = rng.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    content, signed = path.read_bytes(), rng.random() < 0.7
    if path.suffix == ".json":
        path.write_bytes(replaced(content.decode(), rng).encode() if rng.random() < 0.8 else flipped(content, rng))
        return f"{path.name}: {path.read_bytes()[:2000]!r}"
    path.write_bytes(mutated_array(content, rng) if path.suffix == ".npy" else flipped(content, rng))
    if signed:
        sign(path.parent)
    return f"{path.name}: {path.read_bytes()[:300]!r}, signed: {signed}"


def raw_errors(kind: str, folder: Path, rounds: int, seed: int) -> tuple[list[str], int]:
    """(descriptions of folders that raised something other than RunError, the number of folders that were refused)."""
    make, use = KINDS[kind]
    make(folder / "good")
    rng, raw, refused = random.Random(seed), [], 0
    for _ in range(rounds):
        shutil.rmtree(folder / "bad", ignore_errors=True)
        shutil.copytree(folder / "good", folder / "bad")
        done = damage(folder / "bad", rng)
        try:
            use(folder / "bad")
        except RunError as error:
            refused += 1
            if str(folder / "bad") not in str(error):
                raw.append(f"names no file: {error} for {done}")
        except Exception as error:
            raw.append(f"{error!r} for {done}")
    return raw, refused


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    raw, refused = raw_errors(kind, tmp_path, 60, seed=1)
    assert raw == []
    assert refused > 30


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(2, 5))
@pytest.mark.parametrize("kind", KINDS)
def test_much_damage_is_refused_in_words(kind: str, seed: int, tmp_path: Path) -> None:
    raw, _ = raw_errors(kind, tmp_path, 1000, seed)
    assert raw == []
