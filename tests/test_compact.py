"""What a dataset keeps of each item while it is read: few bytes, found again, whatever is renamed."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hardneg
from hardneg.data.builder import Builder
from hardneg.data.compact import Ids, Numbers
from hardneg.storage.arrow import strings

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=400)


@given(st.lists(st.tuples(st.booleans(), TEXT), max_size=300))
def test_ids_are_those_of_a_dictionary(steps: list[tuple[bool, str]]) -> None:
    ids, rows, known = Ids(), [], {}
    for renames, id in steps:
        assert ids.find(id) == known.get(id)
        if id in known:
            continue
        if renames and rows:
            row = len(id) % len(rows)
            del known[rows[row]]
            ids.replace(row, id)
            rows[row] = id
            known[id] = row
        else:
            known[id] = len(rows)
            ids.append(id)
            rows.append(id)
    assert [ids[i] for i in range(len(ids))] == rows
    assert all(ids.find(id) == row for id, row in known.items())
    assert ids.find("\ud800") is None
    column = ids.finish()
    column.validate(full=True)
    assert column.type == pa.large_string()
    assert column.to_pylist() == rows


def test_long_ids_are_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.data.compact._COPIED", 7)
    ids, expected = Ids(), []
    for i in range(50):
        expected.append(f"{i}" + "é" * (i * 13))
        ids.append(expected[-1])
    ids.replace(3, "another")
    expected[3] = "another"
    assert ids.finish().to_pylist() == expected


def test_numbers_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardneg.data.compact._HELD", 8)
    for numbers in (Numbers(), Numbers(tmp_path / "x.tmp")):
        for i in range(30):
            numbers.append(-i * i)
            assert numbers[i // 2] == -((i // 2) ** 2)
        assert numbers.finish().tolist() == [-i * i for i in range(30)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_document_costs_64_bytes_at_most(tmp_path: Path) -> None:
    """Beside its id, whatever its text: it was 341 and more."""
    builder, n = Builder(tmp_path / "d"), 60_000
    rows = [(f"doc{i:06d}", f"text {i} " * 20) for i in range(n)]
    builder.add_query("q", "question", where="here")
    builder.relate(0, 0, 1)
    tracemalloc.start()
    try:
        for id, text in rows:
            builder.add_document(id, text, where="here")
        pairs = hardneg.Pairs.from_contents(builder.finish("many"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    held = 2 << 20  # a block of texts, and of numbers that are not written yet
    assert (peak - held) / n < 64 + 9
    assert pairs.document_ids.type == pa.large_string()
    assert pairs.documents.take(np.array([n - 1])) == [rows[-1][1]]
    assert pairs.document_rows[-1] == n - 1


def test_ids_are_large_strings(tmp_path: Path) -> None:
    """Arrow's strings end at 2 GB, after everything was read. The whole way from a file to an export has large ones."""
    source = tmp_path / "pairs.jsonl"
    rows = [{"query": f"question {i}", "positive": f"answer {i}", "document_id": f"d{i}"} for i in range(40)]
    source.write_text("\n".join(map(json.dumps, rows)))

    pairs = hardneg.read_pairs(str(source))
    assert pairs.document_ids.type == pairs.query_ids.type == pa.large_string()
    run = hardneg.mine(str(source), tmp_path / "run", hardneg.MineOptions(depth=5, negatives=2))
    assert run.pairs().document_ids.type == pa.large_string()
    assert len(run.negatives()) == 40
    assert strings(["a"]).type == pa.large_string()
