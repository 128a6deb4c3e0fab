"""What we write, we and others read back the same: csv, json, pandas, polars and datasets, over texts of all kinds of characters."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardneg import MineOptions, Pairs, Run, export, mine, read_pairs

ODD = "\"'`,;|\t\n\r\\ #=+-@<>{}[]"
BREAKS = [
    "\r\n",
    "\n\n",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\u200b",
    "\ufeff",
    "\u202e",
    "\x7f",
]
WORDS = [
    "007", "1e5", "-0", "0x1F", "1_000", "TRUE", "null", "NA", "NaN", "inf", "None", "2024-01-01", "1.0", "  lead", "trail  ",
    "''", '""', '"', "\\N", "\\", "\ufeffbom",
]  # fmt: skip


def wild(rng: random.Random) -> str:
    """A text of printable and of odd characters, of line breaks, and of any planes of Unicode."""
    planes = ((0x80, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000))
    parts = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.random()
        if kind < 0.3:
            parts.append(chr(rng.randrange(0x21, 0x7F)))
        elif kind < 0.5:
            parts.append(rng.choice(ODD))
        else:
            parts.append(rng.choice(BREAKS) if kind < 0.6 else chr(rng.randrange(*rng.choice(planes))))
    return "".join(parts)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(0)
    return [f"{wild(rng)} {i}" for i in range(300)] + WORDS


@pytest.fixture(scope="module")
def run(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    pairs = Pairs.from_columns([f"Q{text}" for text in texts], texts)
    vectors = np.random.default_rng(0).normal(size=(len(texts), 8)).astype(np.float32)
    options = MineOptions(negatives=1, depth=8, default_filters=False)
    return mine(pairs, tmp_path_factory.mktemp("wild") / "run", options, vectors=(vectors, vectors), force=True)


def by_hardneg(path: Path) -> Iterable[tuple[str, str]]:
    pairs = read_pairs(str(path))
    for i in range(len(pairs)):
        row = np.array([i])
        yield from (
            (pairs.queries.take(row)[0], text) for text in pairs.documents.take(pairs.positives.take(row).values)
        )


def by_datasets(kind: str, path: Path, **options: Any) -> Iterable[Any]:
    import datasets

    loaded = datasets.load_dataset(
        kind, data_files=str(path), split="train", cache_dir=str(path.parent / "cache"), **options
    )
    return [tuple(row.values()) for row in loaded]


def separated_readers(separator: str) -> dict[str, Callable[[Path], Iterable[Any]]]:
    import pandas
    import polars

    def by_csv(path: Path) -> list[list[str]]:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.reader(file, delimiter=separator))[1:]

    return {
        "hardneg": by_hardneg,
        "csv": by_csv,
        "pandas": lambda path: pandas.read_csv(path, sep=separator, keep_default_na=False, dtype=str).itertuples(
            index=False
        ),
        "polars": lambda path: polars.read_csv(path, separator=separator, infer_schema=False).rows(),
        "datasets": lambda path: by_datasets("csv", path, sep=separator, keep_default_na=False),
    }


def readers(suffix: str) -> dict[str, Callable[[Path], Iterable[Any]]]:
    import pandas
    import polars

    if suffix in (".csv", ".tsv"):
        return separated_readers("," if suffix == ".csv" else "\t")
    if suffix == ".parquet":
        return {
            "hardneg": by_hardneg,
            "polars": lambda path: polars.read_parquet(path).rows(),
            "pandas": lambda path: pandas.read_parquet(path).itertuples(index=False),
            "datasets": lambda path: by_datasets("parquet", path),
        }

    def by_json(path: Path) -> list[Any]:
        with open(path, newline="\n", encoding="utf-8") as file:
            return [tuple(json.loads(line).values()) for line in file]

    return {
        "hardneg": by_hardneg,
        "json": by_json,
        "polars": lambda path: polars.read_ndjson(path).rows(),
        "pandas": lambda path: pandas.read_json(path, lines=True, dtype=False).itertuples(index=False),
        "datasets": lambda path: by_datasets("json", path),
    }


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_everybody_reads_what_we_write(run: Run, texts: list[str], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    export(run, "triplet", path)
    wanted = {(f"Q{text}", text) for text in texts}
    for name, read in readers(suffix).items():
        assert {(str(row[0]), str(row[1])) for row in read(path)} == wanted, name
