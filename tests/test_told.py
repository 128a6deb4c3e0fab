"""What a pass tells: its reading, its encoder, its warnings; and the options that messages name, in Python and as they are typed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg.errors import DataError, HardnegWarning, RunError, UsageError
from hardneg.flags import with_arguments
from hardneg.mining import Candidates, Context, Filter
from hardneg.mining.run_folder import changed_options
from tests.conftest import run_here, write_jsonl
from tests.test_trainer import made_pairs


class Lengths:
    """An encoder that nobody registered: the lengths of the words."""

    dimension = 4

    def encode(self, texts: list[str], *, prompt: str = "") -> np.ndarray:
        return np.array([[len(word) for word in (text.split() * 4)[:4]] for text in texts], np.float32)

    def fingerprint(self) -> str:
        return "lengths"


def labelled(path: Path) -> Path:
    rows = [{"query": f"question {i}", "answer": f"answer {i}", "label": int(i % 4 > 0)} for i in range(40)]
    write_jsonl(path, rows)
    return path


def test_mine_tells_its_reading_in_three_lines(tmp_path: Path) -> None:
    source = labelled(tmp_path / "p.jsonl")
    done = run_here("mine", source, "--out", tmp_path / "run", "--negatives", "1", "--positive-column", "answer")
    assert done.stdout.splitlines()[:3] == [
        "read as pairs (told by its content)",
        "columns: query = query (by its name), positive = answer (as asked), relevance = label (its values are judgements)",
        "found: 40 queries, 40 documents, 30 pairs, 10 judged negatives",
    ]
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["reading"]["counts"]["pairs"] == 30
    shown = run_here("inspect", source)
    assert "column label (its values are judgements)" in shown.stdout
    planned = run_here("mine", source, "--out", tmp_path / "cut", "--negatives", "1", "--engine", "local", "--json")
    assert json.loads(planned.stdout)["reading"]["counts"] == info["reading"]["counts"]


def test_an_encoder_in_memory_is_recorded_as_what_it_is(tmp_path: Path) -> None:
    run = hardneg.mine(made_pairs(), tmp_path / "run", encoder=Lengths(), depth=10, negatives=2)
    assert run.info["config"]["encoder"] == "object:tests.test_told.Lengths"
    again = hardneg.mine(made_pairs(), tmp_path / "run", encoder=Lengths(), depth=10, negatives=2, resume=True)
    assert again.info["config"] == run.info["config"]
    assert (
        hardneg.select(run, hardneg.SelectOptions(negatives=1), tmp_path / "less")
        .info["config"]["encoder"]
        .startswith("object:")
    )
    assert changed_options({"encoder": "hashed"}, {"encoder": "object:a.B"}) == []  # of version 0.2
    assert changed_options({"encoder": "object:a.C"}, {"encoder": "object:a.B"}) == ["encoder"]
    assert changed_options({"encoder": "object:a.C"}, {"encoder": "hashed"}) == ["encoder"]


@dataclass(frozen=True, kw_only=True)
class Noted(Filter):
    """Keeps everything, and has something to say."""

    name = "noted"

    def keep(self, candidates: Candidates, context: Context, alive: Any) -> Any:
        return np.ones(candidates.documents.shape, bool)

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        return ["mind this"]


def test_notes_are_warnings_of_python_at_the_line_of_the_caller(tmp_path: Path) -> None:
    pairs = hardneg.Pairs.from_columns(
        [f"q {i}" for i in range(9)], [f"d {i}" for i in range(8)] + [None], groups=["a", "b", "c"] * 3
    )
    with pytest.warns(HardnegWarning, match=r"1 query has no positive") as caught:
        run = hardneg.mine(pairs, tmp_path / "run", negatives=1)
    assert [str(each.message) for each in caught] == [with_arguments(text) for text in run.info["warnings"]]
    assert any("filters=('group',) (--filter group) rejects" in str(each.message) for each in caught)
    assert {each.filename for each in caught} == {__file__}
    # A selection tells what is its own alone: not again what was told when the run was mined.
    with pytest.warns(HardnegWarning) as caught:
        less = hardneg.select(run, hardneg.SelectOptions(negatives=1, filters=(Noted(),)), tmp_path / "less")
    assert [(str(each.message), each.filename) for each in caught] == [("mind this", __file__)]
    assert less.info["warnings"] == [*run.info["warnings"], "mind this"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hardneg.select(less, hardneg.SelectOptions(negatives=1, filters=()), tmp_path / "again")
    with warnings.catch_warnings():  # the command line prints them itself
        warnings.simplefilter("error")
        hardneg.mine(pairs, tmp_path / "typed", negatives=1, command=["mine"])
    done = run_here("mine", labelled(tmp_path / "p.jsonl"), "--out", tmp_path / "cli", "--negatives", "1")
    assert "note: 10 queries have no positive" in done.stderr
    assert "HardnegWarning" not in done.stderr


@pytest.mark.parametrize(
    ("typed", "both"),
    [
        ("replace it with --overwrite", "replace it with overwrite=True (--overwrite)"),
        ("use --depth 40 or less", "use depth=40 (--depth 40) or less"),
        ("raise --depth to 40 or more", "raise depth (--depth) to 40 or more"),
        ("use --index exact", "use index='exact' (--index exact)"),
        ("choose another --out", "choose another out (--out)"),
        ("ignore it: --group-column ''", "ignore it: group_column='' (--group-column '')"),
        ("a column (group_column='', --group-column '')", "a column (group_column='', --group-column '')"),
        ("needs groups (--group-column), or", "needs groups (--group-column), or"),
        ("leave --encoder-precision out", "leave encoder_precision (--encoder-precision) out"),
        (
            "hardneg mine x --out y --depth 5, or --depth 6.",
            "hardneg mine x --out y --depth 5, or depth=6 (--depth 6).",
        ),
        ("with --judge and --of out", "with --judge and --of out"),  # Python has no such arguments
        ("the file my--depth.csv", "the file my--depth.csv"),
        ("a/run --resume 3/x.jsonl is not there", "a/run --resume 3/x.jsonl is not there"),  # a name
        ("the group is {'a --device cuda': 1}", "the group is {'a --device cuda': 1}"),
        ("it doesn't fit: use --overwrite", "it doesn't fit: use overwrite=True (--overwrite)"),
        (
            "--candidates bm25, or --filter rank:min=2",
            "--candidates bm25, or filters=('rank:min=2',) (--filter rank:min=2)",
        ),
        (
            "use --device cuda:1 or --index hnsw:M=32.",
            "use device='cuda:1' (--device cuda:1) or index='hnsw:M=32' (--index hnsw:M=32).",
        ),
        ("--batch-size 1,024", "batch_size=1,024 (--batch-size 1,024)"),
    ],
)
def test_messages_name_the_argument_beside_the_option(typed: str, both: str) -> None:
    assert with_arguments(typed) == both
    assert with_arguments(both) == both  # a message within a message
    error = UsageError(typed)
    assert (str(error), error.typed) == (both, typed)


def test_errors_name_both_forms_from_python_and_one_on_the_command_line(tmp_path: Path) -> None:
    source = labelled(tmp_path / "p.jsonl")
    hardneg.mine(source, tmp_path / "run", negatives=1)
    with pytest.raises(
        RunError, match=r"replace it with overwrite=True \(--overwrite\), or choose another out \(--out\)"
    ):
        hardneg.mine(source, tmp_path / "run", negatives=1)
    with pytest.raises(DataError, match=r"use depth=40 \(--depth 40\) or less"):
        hardneg.mine(source, tmp_path / "other", depth=41)
    done = run_here("mine", source, "--out", tmp_path / "run", "--negatives", "1")
    assert "replace it with --overwrite, or choose another --out" in done.stderr
    assert "overwrite=True" not in done.stderr
