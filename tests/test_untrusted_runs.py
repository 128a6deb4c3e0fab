"""Runs whose files fit their checksums, and are wrong all the same; links; and what changes while it is read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import hardneg
from hardneg import DataError, MineOptions, RunError, SelectOptions, UsageError, diagnose, export, mine, select
from hardneg.false_negatives.calibrate import calibrate
from hardneg.false_negatives.judge import judge
from hardneg.index.exact import ExactIndex
from hardneg.mining.mined import Mined
from hardneg.mining.run import Run
from hardneg.mining.run_folder import VOLATILE
from hardneg.storage.files import sha256_file
from hardneg.storage.folders import staging
from hardneg.storage.json_files import write_json
from tests.conftest import run_here, write_jsonl
from tests.damage import old_files
from tests.faults.place import content

NEGATIVES, CANDIDATES = "negatives.parquet", "candidates/part-00000.parquet"
SHORT = MineOptions(depth=12, negatives=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a run of it, and a run of another dataset with the same ids."""
    folder = tmp_path_factory.mktemp("made")
    for name, word in (("base", "text"), ("other", "word")):
        rows = [
            {"id": f"q{i}", "query": f"query {i} of {i % 9}", "positive": f"{word} {i} on {i % 9} and {i % 4}"}
            for i in range(60)
        ]
        mine(write_jsonl(folder / f"{name}.jsonl", rows), folder / name, SHORT)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "base", tmp_path / "run")
    return tmp_path / "run"


def sealed(run: Path, change: Callable[[dict[str, Any]], object] = lambda info: None) -> None:
    """Give run.json the checksums of the files as they are now."""
    info = json.loads((run / "run.json").read_text())
    info.pop("checksum", None)
    info["files"] = {name: sha256_file(run / name) for name in info["files"] if (run / name).exists()}
    change(info)
    write_json(run / "run.json", info, checksum=True, volatile=VOLATILE)


def everything(run: Path, tmp_path: Path) -> list[BaseException | None]:
    """What each command says that reads a run."""
    calls: list[Callable[[], object]] = [
        lambda: select(run, SelectOptions(negatives=2), tmp_path / "selected"),
        lambda: diagnose(run),
        lambda: judge(run, tmp_path / "f.csv", sample=10),
        lambda: calibrate(run, learn="known"),
        lambda: export(run, "triplet", tmp_path / "t.jsonl"),
        lambda: Mined.of_run(Run(run)),
    ]
    said: list[BaseException | None] = []
    for call in calls:
        try:
            call()
            said.append(None)
        except hardneg.HardnegError as error:
            said.append(error)
    return said


def column(
    name: str, change: Callable[[list[Any]], list[Any]], type: pa.DataType | None = None
) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        values = change(table[name].to_pylist())
        kind = type or (
            pa.string() if name in ("query_id", "document_id", "verdict") else table.schema.field(name).type
        )
        return table.set_column(table.schema.names.index(name), name, pa.array(values, kind))

    return changed


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


WRONG: dict[str, tuple[str, Callable[[pa.Table], pa.Table]]] = {
    "other order": (NEGATIVES, lambda t: t.take([*range(1, 60), 0])),
    "twice": (NEGATIVES, lambda t: pa.concat_tables([t, t])),
    "fewer rows": (NEGATIVES, lambda t: t.slice(0, 59)),
    "no rows": (NEGATIVES, lambda t: t.slice(0, 0)),
    "unknown negative": (NEGATIVES, column("negative_ids", first(["nobody"] * 3))),
    "null negative": (NEGATIVES, column("negative_ids", first([None] * 3))),
    "null list": (NEGATIVES, column("negative_ids", first(None))),
    "numbers as ids": (NEGATIVES, column("negative_ids", lambda v: [[1, 2, 3]] * 60, pa.list_(pa.int64()))),
    "text in place of a list": (NEGATIVES, column("negative_ids", lambda v: ["x"] * 60, pa.string())),
    "fewer scores": (NEGATIVES, column("negative_scores", first([0.5]))),
    "fewer positive scores": (NEGATIVES, column("positive_scores", first([]))),
    "NaN": (NEGATIVES, column("negative_scores", first([float("nan")] * 3))),
    "unknown query": (NEGATIVES, column("query_id", first("nobody"))),
    "no column": (NEGATIVES, lambda t: t.drop_columns(["negative_ids"])),
    "candidates: NaN": (CANDIDATES, column("score", first(float("nan")))),
    "candidates: null": (CANDIDATES, column("score", first(None))),
    "candidates: float16": (CANDIDATES, column("score", lambda v: [np.float16(x) for x in v], pa.float16())),
    "candidates: text": (CANDIDATES, column("score", lambda v: [str(x) for x in v], pa.string())),
    "candidates: ascending": (CANDIDATES, column("score", lambda v: v[::-1])),
    "candidates: the same twice": (CANDIDATES, column("document_id", lambda v: [v[1], *v[1:]])),
    "candidates: null verdict": (CANDIDATES, column("verdict", first(None))),
    "candidates: numbers as verdicts": (CANDIDATES, column("verdict", lambda v: [1] * len(v), pa.int32())),
    "candidates: numbers as ids": (CANDIDATES, column("document_id", lambda v: [1] * len(v), pa.int32())),
    "candidates: some missing": (CANDIDATES, lambda t: t.slice(0, len(t) - 20)),
    "candidates: none": (CANDIDATES, lambda t: t.slice(0, 0)),
}


@pytest.mark.parametrize("case", WRONG)
def test_tables_that_do_not_fit_are_refused(run: Path, tmp_path: Path, case: str) -> None:
    name, change = WRONG[case]
    pq.write_table(change(pq.read_table(run / name)), run / name)
    sealed(run)
    said = everything(run, tmp_path)
    readers = said[:4] + said[5:] if name == CANDIDATES else [said[1], said[4]]
    if name == CANDIDATES:
        del readers[1]  # the diagnosis reads the negatives only
    assert all(
        (isinstance(error, RunError) and name in str(error)) or "candidates" in str(error) for error in readers
    ), said


def test_parts_are_all_there(run: Path, tmp_path: Path) -> None:
    sealed(run, lambda info: info["files"].pop(CANDIDATES))
    assert all("does not name candidates/part-00000.parquet" in str(error) for error in everything(run, tmp_path))


@pytest.mark.parametrize("what", ["source", NEGATIVES, "candidates"])
def test_pieces_of_another_run_are_refused(run: Path, made: Path, tmp_path: Path, what: str) -> None:
    if (run / what).is_dir():
        shutil.rmtree(run / what)
        shutil.copytree(made / "other" / what, run / what)
    else:
        shutil.copy(made / "other" / what, run / what)
    sealed(run)
    said = everything(run, tmp_path)
    if what == "source":
        assert all("source holds other documents than the run was mined with" in str(error) for error in said)


def test_a_manifest_of_too_many_vectors(run: Path) -> None:
    (path,) = run.glob("embeddings/documents-*/manifest.json")
    head = json.loads(path.read_text())
    del head["checksum"]
    write_json(path, {**head, "rows": 10**15}, checksum=True)
    sealed(run)
    with pytest.raises(RunError, match=r"names 1 shards for 1,000,000,000,000,000 vectors"):
        diagnose(run)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY\x01\x00"])
def test_shards_that_are_no_arrays(run: Path, content: bytes) -> None:
    (path,) = run.glob("embeddings/documents-*/vectors.npy")
    vectors = np.load(path)
    path.write_bytes(content)
    sealed(run)
    with pytest.raises(RunError, match=r"embeddings/documents-\w+ is damaged"):
        diagnose(run)
    np.save(path, vectors)
    old_files(path.parent)  # as version 0.2 wrote them
    path = path.with_name("part-00000.npy")
    path.write_bytes(content)
    manifest = path.with_name("manifest.json")
    head = json.loads(manifest.read_text())
    del head["checksum"]
    head["parts"][0]["sha256"] = sha256_file(path)
    write_json(manifest, head, checksum=True)
    sealed(run)
    with pytest.raises(RunError, match=r"part-00000\.npy"):
        diagnose(run)


def test_numbers_of_run_json(run: Path) -> None:
    sealed(run, lambda info: info["resolved"].update(recall={}))
    with pytest.raises(RunError, match="recall"):
        Run(run)


# What changes while a run is open.


def test_a_selection_is_not_lost(run: Path) -> None:
    one, two = Run(run), Run(run)
    select(one, SelectOptions(add_filters=("rank:min=3",)))
    with pytest.raises(RunError, match="changed by another process since it was opened"):
        select(two, SelectOptions(add_filters=("score:max=0.9",)))
    assert Run(run).info["config"]["filters"] == ["rank:min=3"]
    with pytest.raises(RunError, match="changed by another process"):
        export(one, "triplet", run.parent / "t.jsonl")


def test_a_run_that_is_replaced_while_it_is_opened(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """run.json is that of the old run, the files are those of the new one: it is opened again."""
    import hardneg.mining.run as module

    read, count = module.read_run_json, 0

    def replaced(folder: Path) -> dict[str, Any]:
        nonlocal count
        found = read(folder)
        count += 1
        if count == 1:
            select(run, SelectOptions(negatives=1))
        return found

    monkeypatch.setattr(module, "read_run_json", replaced)
    assert Run(run).info["config"]["negatives"] == 1


# Links, and folders of others.


def test_links_inside_a_run_are_not_followed(run: Path, made: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("x")
    shutil.rmtree(run / "embeddings")
    (run / "run.json").unlink()
    (run / "embeddings").symlink_to(victim)
    with pytest.raises(RunError, match=r"embeddings is a symbolic link, and hardneg writes inside its own folder only"):
        mine(made / "base.jsonl", run, SHORT, resume=True)
    assert [p.name for p in victim.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("purpose", ["old", "select"])
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_stands_where_a_run_is_built_is_not_removed(run: Path, tmp_path: Path, purpose: str, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("x")
    beside = staging(run, purpose)
    if kind == "link":
        beside.symlink_to(victim)
    else:
        victim.rename(beside)
        victim = beside
    before = (run / "run.json").read_bytes()
    with pytest.raises(RunError, match=r"is a symbolic link|is no folder of hardneg"):
        select(run, SelectOptions(negatives=1))
    assert (victim / "thesis.tex").read_text() == "x"
    assert (run / "run.json").read_bytes() == before
    assert not run.is_symlink()


def test_the_best_encoder_of_a_training_is_no_link(made: Path, tmp_path: Path) -> None:
    from tests.test_checkpoints import _Stops, options
    from tests.test_trainer import encoder, made_pairs

    pairs, out = made_pairs(), tmp_path / "out"
    given = options(evaluate_every=4, log_every=1)
    with pytest.raises(DataError, match="stopped"):
        hardneg.train(pairs, encoder(), out, given, evaluation=pairs, device="cpu", callbacks=[_Stops(7)])
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("x")
    shutil.rmtree(out / "best")
    (out / "best").symlink_to(victim)
    with pytest.raises(RunError, match=r"best is a symbolic link"):
        hardneg.train(pairs, encoder(), out, given, evaluation=pairs, device="cpu", resume=True)
    assert [p.name for p in victim.iterdir()] == ["thesis.tex"]


def test_a_posterior_that_is_no_file(run: Path, tmp_path: Path) -> None:
    os.mkfifo(run / "posterior.json")
    with pytest.raises(RunError, match=r"posterior\.json is a pipe"):
        select(run, SelectOptions(negatives=1), tmp_path / "selected")
    (run / "posterior.json").unlink()
    (run / "posterior.json").symlink_to(tmp_path / "important")
    (tmp_path / "important").write_text("x")
    done = run_here("calibrate", run, "--learn", "known")
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "important").read_text() == "x"


# What is written over.


def test_files_of_runs_and_of_others_are_not_written_over(run: Path, tmp_path: Path) -> None:
    before = content(run)
    keep = tmp_path / "keep.jsonl"
    keep.write_text("mine\n")
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "corpus.jsonl").write_text("mine\n")
    for arguments in (
        ("calibrate", run, "--learn", "known", "--out", keep),
        ("calibrate", run, "--learn", "known", "--out", run / "run.json"),
        ("calibrate", run, "--learn", "known", "--out", run / NEGATIVES),
        ("diagnose", run, "--html", keep),
        ("compare", run, run, "--html", keep),
        ("export", run, "--format", "triplet", "--out", run / NEGATIVES, "--overwrite"),
        ("judge", run, "--sample", "5", "--out", run / "run.json", "--overwrite"),
        ("export", run, "--format", "beir", "--out", tmp_path / "ds", "--overwrite"),
        ("export", run, "--format", "beir", "--out", run, "--overwrite"),
    ):
        done = run_here(*arguments)
        assert done.returncode in (1, 2), (arguments, done.stdout)
        assert "choose another" in done.stderr, done.stderr
    assert content(run) == before
    assert keep.read_text() == (tmp_path / "ds" / "corpus.jsonl").read_text() == "mine\n"


def test_own_results_are_written_again(run: Path, tmp_path: Path) -> None:
    for _ in range(2):
        calibrate(run, learn="known").save(run / "posterior.json")
        assert run_here("diagnose", run, "--html", tmp_path / "r.html").returncode == 0
        assert run_here("export", run, "--format", "beir", "--out", tmp_path / "beir", "--overwrite").returncode == 0
    (tmp_path / "beir" / "qrels" / "dev.tsv").write_text("of an earlier export")
    assert run_here("export", run, "--format", "beir", "--out", tmp_path / "beir", "--overwrite").returncode == 0
    assert [p.name for p in (tmp_path / "beir" / "qrels").iterdir()] == ["train.tsv"]


def test_an_interrupted_replacement_replaces_no_other_run(
    run: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, options = made / "base.jsonl", MineOptions(depth=12, negatives=2)

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hardneg.mining.parts.PartWriter.finish", stopped)
    with pytest.raises(KeyboardInterrupt):
        mine(source, run, options, overwrite=True)
    monkeypatch.undo()
    run.rename(run.with_name("kept"))
    shutil.copytree(run.with_name("kept"), run)
    select(run, SelectOptions(negatives=1))  # another run now
    with pytest.raises(
        RunError, match=r"is not the run that the interrupted one in .*\.run\.hardneg-new was to replace"
    ):
        mine(source, run, options, resume=True)
    assert Run(run).info["config"]["negatives"] == 1
    mine(source, run, options, overwrite=True)
    assert Run(run).info["config"]["negatives"] == 2
    assert not staging(run).exists()


# What callers set for their whole process.


def test_settings_of_the_caller_do_not_reach_inside(made: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = rng.standard_normal((300, 16)).astype(np.float32)
    queries = (1e-3 * documents[:20]).astype(np.float16)
    source = made / "base.jsonl"
    wanted = [ExactIndex(documents, metric=metric).search(queries, 5) for metric in ("cosine", "ip", "l2")]
    with torch.inference_mode(), np.errstate(all="raise"):
        for metric, found in zip(("cosine", "ip", "l2"), wanted, strict=True):
            again = ExactIndex(documents, metric=metric).search(queries, 5)
            assert (again.documents == found.documents).all()
            assert (again.scores == found.scores).all()
        run = mine(source, tmp_path / "run", SHORT)
        diagnose(run)
        calibrate(run, learn="known")
    assert run.negatives().equals(Run(made / "base").negatives())


def test_training_within_no_grad(tmp_path: Path) -> None:
    from tests.test_trainer import encoder, made_pairs

    pairs, options = made_pairs(), hardneg.TrainOptions(steps=2, negatives=2, batch_size=8, depth=12)
    models = [encoder(), encoder()]
    hardneg.train(pairs, models[0], tmp_path / "a", options, device="cpu")
    with torch.inference_mode(), np.errstate(all="raise"):
        hardneg.train(pairs, models[1], tmp_path / "b", options, device="cpu")
    assert models[0].fingerprint() == models[1].fingerprint()


def test_places_are_usage_errors(run: Path) -> None:
    with pytest.raises(UsageError, match=r"is a file of the run in"):
        judge(run, run / "candidates" / "f.csv", sample=5)
