"""Inputs that ended in raw errors once: options, specs, files of options, and files of our own that somebody changed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hardneg
from hardneg import DataError, MineOptions, Pairs, ReadOptions, RunError, SelectOptions, TrainOptions, UsageError
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.training_run import read_log
from hardneg.false_negatives.announced import Announced
from hardneg.false_negatives.model import Posterior
from hardneg.index.base import Neighbors
from hardneg.losses.arguments import flag, number, whole
from hardneg.mining.mined import Mined
from hardneg.mining.run_folder import VOLATILE
from hardneg.storage.arrow import ArrowFile
from hardneg.storage.files import read_array, sha256_file
from hardneg.storage.json_files import read_json, read_json_lines
from hardneg.tasks.plan import Plan
from tests.faults.damage import lay, sealed_json
from tests.faults.own_files import read_teacher, run_files
from tests.faults.own_parts import _plan_files, read_plan
from tests.faults.own_trainings import read_generations, training_files
from tests.faults.typed import read_config

GIANT = 10**5000  # Python does not write numbers of more than 4,300 digits: messages with them ended in a ValueError


# Options.


@pytest.mark.parametrize("kind", [TrainOptions, MineOptions, SelectOptions, ReadOptions])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda value: {"a": (value,)}])
def test_numbers_of_thousands_of_digits(kind: Any, wrap: Callable[[Any], Any]) -> None:
    name = {TrainOptions: "steps", MineOptions: "depth", SelectOptions: "seed", ReadOptions: "split"}[kind]
    with pytest.raises(UsageError, match=rf"the option {name} holds a whole number of more than 4,300 digits"):
        kind(**{name: wrap(GIANT)})


def test_arguments_of_thousands_of_digits() -> None:
    for check in (lambda: whole("n", GIANT, 1), lambda: number("n", GIANT, 0, 1), lambda: flag("n", GIANT)):
        with pytest.raises(UsageError, match=r"n=.* must be"):
            check()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"corpus": 3}, "the option corpus must be a path or None, not 3"),
        ({"corpus": (0.5,)}, r"the option corpus must be a path or None, not \(0.5,\)"),
        ({"corpus": [None]}, "the option corpus must be a path or None"),
        ({"image_root": 1}, "the option image_root must be a path or None, not 1"),
        ({"caption_template": 0.5}, "the option caption_template must be text, not 0.5"),
        ({"caption_template": b"{}"}, "the option caption_template must be text, not b'{}'"),
        ({"query_column": ["a"]}, "the option query_column must be text or None"),
        ({"relevant_from": 10**400}, "the option relevant_from must be a finite number or None"),
        ({"relevant_from": float("nan")}, "the option relevant_from must be a finite number or None, not nan"),
        ({"skip_unknown": "no"}, "the option skip_unknown must be True or False, not 'no'"),
    ],
)
def test_options_of_reading(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ReadOptions(**options)


def test_options_of_reading_that_are_fine() -> None:
    ReadOptions(corpus=(Path("a"), "b"), relevant_from=np.float64(1), skip_unknown=True, image_root=Path("x"))  # type: ignore[arg-type]


def test_candidates_that_are_no_list() -> None:
    with pytest.raises(UsageError, match=r"candidates is a list of specs and CandidateSources, not 0.5"):
        MineOptions(candidates=0.5)  # type: ignore[arg-type]


def test_options_of_a_training_without_their_number_of_steps() -> None:
    before = TrainOptions(steps=3).to_json()
    del before["steps"]
    for use in (TrainOptions(steps=3).changed, TrainOptions(steps=3).lengthened):
        with pytest.raises(RunError, match="these are not the options of a training"):
            use(before)


@pytest.mark.parametrize("kind", ["hashed", "glyphs"])
@pytest.mark.parametrize(
    ("name", "words"),
    [("a\0b", "holds a zero byte"), ("\ud800", "is not in UTF-8"), ("9" * 5000, "there is no saved encoder")],
)
def test_folders_of_encoders(kind: str, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        hardneg.make_encoder(f"{kind}:{name}")


def test_folders_of_runs() -> None:
    with pytest.raises(UsageError, match="holds a zero byte"):
        hardneg.Run("a\0b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("depth = " + "9" * 5000, "is no TOML file"),
        ("depth = inf", "depth: inf is no number that this option can have"),
        ("depth = nan", "depth: nan is not a valid integer range"),
        ("help-all = true", "has no option 'help-all'"),
    ],
)
def test_files_of_options(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "command").write_text("mine")
    (tmp_path / "options.toml").write_text(text)
    with pytest.raises(click.UsageError, match=words):
        read_config(tmp_path)


# JSON.


@pytest.mark.parametrize(
    "literal", ["1" + "0" * 100, "-1" + "0" * 100, "[1" + "0" * 100 + "]", '{"a": 1' + "0" * 100 + "}"]
)
def test_whole_numbers_in_our_files(tmp_path: Path, literal: str) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"n": ' + literal + "}")
    with pytest.raises(
        RunError, match=r"a\.json (holds a whole number of more than 77 digits|is not readable as JSON)"
    ):
        read_json(file)
    assert read_json_lines(file, dict[str, Any]) == []
    file.write_text(json.dumps({"n": 2**128 - 1}))  # as states of random generators
    assert read_json(file)["n"] == 2**128 - 1


@pytest.mark.parametrize(
    "text",
    [
        '{"hub": ' + "9" * 5000 + "}",
        '{"hub": ' + "9" * 400 + "}",
        '{"a":' * 5000 + "1" + "}" * 5000,
        '{"hub": NaN}',
        '{"hub": true}',
    ],
)
def test_limits_of_findings(tmp_path: Path, text: str) -> None:
    (tmp_path / "limits.json").write_text(text)
    with pytest.raises(
        UsageError, match=r"limits\.json(: the threshold hub is .*, expected a number| is not readable as JSON)"
    ):
        Thresholds.load(tmp_path / "limits.json")


def test_limits_of_findings_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Thresholds.load(tmp_path)


def test_a_log_with_numbers_that_no_float_holds(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 1' + "0" * 400 + ', "masked": 0.5}\n{"step": 1' + "0" * 400 + ', "loss": 1}\n')
    assert read_log(log) == ([{"step": 1.0, "masked": 0.5}], 1)


def test_what_a_posterior_announces(tmp_path: Path) -> None:
    assert Announced.of({"expected": 10**400}) is None
    value = json.loads(run_files()["run/posterior.json"])
    value["report"]["expected"] = 10**400
    (tmp_path / "p.json").write_text(json.dumps(value))
    with pytest.raises(RunError, match=r"p\.json"):
        Posterior.load(tmp_path / "p.json")


# Arrays, tables, plans, generations.


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "text", ["{'descr': ('<f4'", "(" * 300, "{'descr': '<f4', 'shape': (1,), 'fortran_order': 3L}("]
)
def test_arrays_with_made_up_headers(tmp_path: Path, text: str) -> None:
    """numpy parses the header as Python: tokenize raised an error of its own."""
    file = tmp_path / "a.npy"
    file.write_bytes(header(text))
    with pytest.raises(RunError, match=r"a\.npy is no array that numpy can read"):
        read_array(file, sha256_file(file))
    encoder = hardneg.HashedEncoder(dimension=4, buckets=8)
    encoder.save(tmp_path / "encoder")
    table, config = tmp_path / "encoder" / "table.npy", tmp_path / "encoder" / "config.json"
    table.write_bytes(header(text))
    config.write_bytes(
        sealed_json(json.dumps({**json.loads(config.read_bytes()), "sha256": sha256_file(table)}).encode())
    )
    with pytest.raises(RunError, match=r"table\.npy cannot be read"):
        hardneg.HashedEncoder.load(tmp_path / "encoder")


@pytest.mark.parametrize("name", ["query_id", "document_id"])
def test_scores_of_teachers_with_lists_as_ids(tmp_path: Path, name: str) -> None:
    lay(tmp_path, {n.removeprefix("run/"): data for n, data in run_files().items() if n.startswith("run/teacher/")})
    (part,) = tmp_path.glob("teacher/*/*.parquet")
    table = pq.ParquetFile(io.BytesIO(part.read_bytes())).read()
    column = pa.array([[None]] * len(table))
    pq.write_table(table.set_column(table.column_names.index(name), name, column), part)
    with pytest.raises(RunError, match=rf"the column '{name}' is list<.*>, expected text.*: the file is damaged"):
        read_teacher(tmp_path)


def test_a_plan_with_vectors_of_one_side(tmp_path: Path) -> None:
    lay(tmp_path, _plan_files())
    read_plan(tmp_path)
    path = tmp_path / "progress" / "plan.json"
    value = json.loads(path.read_bytes())
    value["given"]["other"] = value["given"].pop("documents")
    path.write_bytes(sealed_json(json.dumps(value).encode()))
    with pytest.raises(
        RunError,
        match=r"plan\.json is not what hardneg writes \(vectors of queries, other, not of queries and documents\)",
    ):
        read_plan(tmp_path)


@pytest.mark.parametrize("odd", [-1, 4, 1 << 40])
def test_a_generation_of_other_documents(odd: int) -> None:
    pairs = Pairs.from_columns(["a", "b"], ["c", "d"], corpus=["e", "f"])
    neighbors = Neighbors(np.ones((2, 2), np.float32), np.zeros((2, 2), np.int32))
    with pytest.raises(RunError, match=r"the generation numbers its documents .* but the dataset has 4"):
        Mined.of_neighbors(neighbors, np.array([0, 1, 2, odd]), pairs)


@pytest.mark.parametrize("kind", ["saved dataset", "own folder", "parquet"])
def test_names_of_columns_that_are_not_utf8(tmp_path: Path, kind: str) -> None:
    """Arrow decodes the names of columns when somebody asks for them, long after it read the file."""
    table, file = pa.table({"query": ["a"], "nested": [{"zzzz": 1}]}), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, file, store_schema=False)
    else:
        with (pa.ipc.new_stream if kind == "saved dataset" else pa.ipc.new_file)(file, table.schema) as writer:
            writer.write_table(table)
    path = tmp_path / {"saved dataset": "data.arrow", "own folder": "ids.arrow", "parquet": "pairs.parquet"}[kind]
    path.write_bytes(file.getvalue().replace(b"zzzz", b"zz\xffz"))
    read: Callable[[], object] = lambda: ArrowFile(path, DataError, stream=kind == "saved dataset")  # noqa: E731
    if kind == "parquet":
        read = lambda: hardneg.read_pairs(str(path))  # noqa: E731
    with pytest.raises(DataError, match=rf"{path.name}: not a readable .*'utf-8' codec can't decode"):
        read()


@pytest.mark.parametrize(
    "change", [lambda info: info.pop("hardneg_version"), lambda info: info.update(hardneg_version=[1])]
)
def test_a_run_without_the_version_that_made_it(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    lay(tmp_path, run_files())
    path = tmp_path / "run" / "run.json"
    info = json.loads(path.read_bytes())
    change(info)
    path.write_bytes(sealed_json(json.dumps(info).encode(), VOLATILE))
    if "hardneg_version" in info:
        with pytest.raises(RunError, match=r"run\.json is not what hardneg writes \(Expected `str`, got `array`"):
            hardneg.Run(tmp_path / "run")
    else:
        made = hardneg.select(tmp_path / "run", SelectOptions(negatives=1), tmp_path / "selected")
        assert made.info["config"]["negatives"] == 1


@pytest.mark.parametrize("change", [lambda value: value.pop("files"), lambda value: value.update(files="x")])
def test_a_plan_without_the_hashes_of_its_source(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    lay(tmp_path, _plan_files())
    path = tmp_path / "progress" / "source.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(sealed_json(json.dumps(value).encode()))
    with pytest.raises(RunError, match=r"source\.json is not what hardneg writes .*: plan anew with another"):
        read_plan(tmp_path)


@pytest.mark.parametrize("entry", [{"drift": "far"}, {"seconds": 3}, {"drift": None}, 7])
def test_a_history_of_refreshes_that_is_none(tmp_path: Path, entry: Any) -> None:
    files = {n.partition("/generations/")[2]: data for n, data in training_files().items() if "/generations/" in n}
    head = json.loads(files["refreshed.json"])
    lay(tmp_path / "generations", {**files, "refreshed.json": json.dumps({**head, "history": [{}]}).encode()})
    read_generations(tmp_path)  # an earlier version may have noted less
    lay(tmp_path / "generations", {**files, "refreshed.json": json.dumps({**head, "history": [entry]}).encode()})
    with pytest.raises(RunError, match=r"refreshed\.json does not describe a refreshed index"):
        read_generations(tmp_path)


def test_a_run_whose_encoder_is_described_by_a_word(tmp_path: Path) -> None:
    lay(tmp_path, run_files())
    path = tmp_path / "run" / "run.json"
    info = json.loads(path.read_bytes())
    info["resolved"]["encoder"] = "x"
    path.write_bytes(sealed_json(json.dumps(info).encode(), VOLATILE))
    with pytest.raises(RunError, match=r"run\.json is not what hardneg writes"):
        hardneg.Run(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"documents": 10**15, "shards": [0, 10**15]}, "1,000,000,000,000,000 documents in 1 shards"),
        ({"queries": 10**12, "blocks": [0, 10**12]}, "a block has more than 65,536 queries"),
        ({"depths": [8] * 100_000}, "depths do not rise"),
    ],
)
def test_a_plan_of_more_tasks_than_can_be_counted(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """It took all the time and memory that there is, as the tasks were listed before the plan was held against the dataset."""
    lay(tmp_path, _plan_files())
    path = tmp_path / "progress" / "plan.json"
    path.write_bytes(sealed_json(json.dumps({**json.loads(path.read_bytes()), **change}).encode()))
    with pytest.raises(RunError, match=rf"plan\.json is not what hardneg writes \({words}\)"):
        Plan.load(tmp_path)
