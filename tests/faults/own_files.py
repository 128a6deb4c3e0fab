"""What hardneg wrote itself and reads again: runs, posteriors, scores of teachers. Damaged as it is, and sealed again.

A file with a checksum is refused by it, whatever else is wrong. So most inputs have their checksums put right, as somebody
would do who means harm: then the decoders behind the checksums are reached.
"""

from __future__ import annotations

import io
import json
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq

import hardneg
from hardneg.data.pairs import Pairs
from hardneg.false_negatives.filters import PosteriorFilter
from hardneg.false_negatives.model import Posterior, selection_of
from hardneg.mining.mine import mine
from hardneg.mining.mined import Mined
from hardneg.mining.options import MineOptions
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.mining.run_folder import VOLATILE
from hardneg.mining.select import SelectOptions, _head, _Selection, select
from hardneg.mining.teachers import Teachers, TeacherScores
from tests.faults.damage import Files, changed_json, changed_table, lay, made_once, sealed_json
from tests.faults.kind import Kind, Typed
from tests.faults.mutators import damaged
from tests.faults.sources import use, write

QUERIES = 12
DOCUMENTS = 20

# Runs.


@cache
def run_files() -> Files:
    """A run of given vectors, with its posterior and the scores of a teacher. The paths in it are those as seen from the run."""

    def make(folder: Path) -> None:
        rng = np.random.default_rng(0)
        documents = rng.standard_normal((DOCUMENTS, 8)).astype(np.float32)
        np.save(folder / "d.npy", documents)
        np.save(
            folder / "q.npy",
            documents[:QUERIES] + np.float32(0.3) * rng.standard_normal((QUERIES, 8)).astype(np.float32),
        )
        pairs = Pairs.from_columns(
            [f"query {i}" for i in range(QUERIES)],
            [[f"text {i}", f"text {(i + 5) % DOCUMENTS}"][: 1 + i % 2] for i in range(QUERIES)],
            corpus=[f"text {i}" for i in range(DOCUMENTS)],
        )
        options = MineOptions(
            query_embeddings=str(folder / "q.npy"), corpus_embeddings=str(folder / "d.npy"), depth=8, negatives=3, sampler="uniform",
            filters=("margin:relative=0.05",),
        )  # fmt: skip
        run = mine(pairs, folder / "run", options, command=[])
        known = run.pairs()
        scores = {f"{q} {d}": 0.1 for q in known.query_ids.to_pylist() for d in known.document_ids.to_pylist()}
        rows = [
            json.dumps({"query_id": k.split()[0], "document_id": k.split()[1], "score": v}) for k, v in scores.items()
        ]
        (folder / "scores.jsonl").write_text("\n".join(rows))
        hardneg.score(run, scores=folder / "scores.jsonl", command=[])
        posterior_of(run).save(folder / "run" / "posterior.json")
        (folder / "scores.jsonl").unlink()
        info = json.loads((folder / "run" / "run.json").read_bytes())
        names = {str(folder / name): name for name in ("q.npy", "d.npy")}
        info["config"] |= {
            option: names[info["config"][option]] for option in ("query_embeddings", "corpus_embeddings")
        }
        info["paths"] = {names[path]: place for path, place in info["paths"].items()}
        info |= {"timings": {}, "command": None}
        (folder / "run" / "run.json").write_bytes(sealed_json(json.dumps(info).encode(), VOLATILE))

    return made_once(make)


def posterior_of(run: Run) -> Posterior:
    """A posterior with everything that one can have."""
    config = run.info["config"]
    selection = {**selection_of(config), "filters": list(config["filters"])}
    prints = {name: run.info["fingerprints"][name] for name in ("query_embeddings", "corpus_embeddings")}
    guarantee = {
        "threshold": 0.3,
        "selection": selection,
        "depth": 8,
        "drawn_from": dict(prints),
        "alpha": 0.05,
        "confidence": 0.95,
    }
    small = hardneg.false_negatives.model.LogisticModel(("score",), (2.0,), -1.0)
    report = {"expected": 0.05, "announced": 0.04, "selection": selection}
    return Posterior(
        ("score", "margin"), (3.0, 1.5), -2.0, 0.3, "judgements", prints, report, guarantee, small
    )  # fmt: skip


_PARTS = ("candidates/part-00000.parquet", "negatives.parquet")


def make_run(folder: Path, rng: Random) -> None:
    """A run of which one file is damaged, in most cases with all checksums put right, and what is to be done with it."""
    files = dict(run_files())
    head, sealed = json.loads(files["run/run.json"]), rng.random() < 0.8
    what = rng.randrange(10)
    if what < 5:
        data = changed_json(files["run/run.json"], rng)
        files["run/run.json"] = sealed_json(data, VOLATILE) if sealed else data
    elif what < 8:
        name = rng.choice((*_PARTS, *_PARTS, *(each for each in sorted(head["files"]) if each.startswith("source/"))))
        data = files[f"run/{name}"]
        made = changed_table(data, rng) if name.endswith(".parquet") and rng.random() < 0.8 else None
        made = changed_json(data, rng) if name.endswith(".json") else made
        files[f"run/{name}"] = damaged(data, rng) if made is None else made
        if sealed:
            head["files"][name] = sha256(files[f"run/{name}"]).hexdigest()
            files["run/run.json"] = sealed_json(json.dumps(head).encode(), VOLATILE)
    elif what == 8:
        files["run/run.json"] = damaged(files["run/run.json"], rng)
    else:
        del files[rng.choice(sorted(files))]
    files["use"] = rng.choice(
        ("open", "open", "open", "mined", "mined", "head", "head", "head", "select", "diagnose")
    ).encode()
    lay(folder, files)


def read_run(folder: Path) -> None:
    """Open a run, and do the first steps of the commands that read it; sometimes a whole command."""
    run, what = Run(folder / "run"), (folder / "use").read_text()
    pairs = run.pairs()
    assert len(run.negatives(pairs)) == len(pairs)
    assert repr(run)
    assert run._repr_html_()
    if what == "open":
        use(pairs)
        assert sum(run.info["counts"]["verdicts"].values()) >= 0
    elif what == "mined":
        mined = Mined.of_run(run)
        assert mined.documents.max(initial=-1) < len(pairs.document_ids)
        assert not np.isnan(mined.scores).any()
    elif what == "head":
        chosen = _Selection.of(run, SelectOptions(negatives=2))
        used = chosen.chain.check(run.info["fingerprints"])
        head = _head(run, folder / "selected", chosen, used, None, None)
        assert json.dumps(head, allow_nan=False)
        for part in Reopened(run, pairs=pairs):
            assert part.candidates.documents.shape == part.kept.shape
    elif what == "select":
        made = select(run, SelectOptions(negatives=2), folder / "selected", command=[])
        assert made.info["config"]["negatives"] == 2
    else:
        assert json.dumps(hardneg.diagnose(run).to_json(), allow_nan=False)


# Posteriors.


def make_posterior(folder: Path, rng: Random) -> None:
    data = run_files()["run/posterior.json"]
    data = damaged(data, rng) if rng.random() < 0.1 else changed_json(data, rng)
    write(folder / "posterior.json", sealed_json(data) if rng.random() < 0.7 else data)


def read_posterior(folder: Path) -> None:
    path = folder / "posterior.json"
    found = Posterior.load(path)
    filter = PosteriorFilter(posterior=found, file=str(path))
    config = {"negatives": 3, "seed": 0, "default_filters": True, "sampler": "top", "filters": ["rank:min=2"]}
    prints = {"query_embeddings": "1", "corpus_embeddings": "2"}
    said = [*filter.notes({**config, "found_depth": 9, "found_in": prints}), *(filter.of_chosen(0.2, config) or ())]
    assert all(isinstance(each, str) for each in said)
    for model in (found, found.in_loss):
        if model is not None:
            values = {name: np.ones((2, 3), np.float32) for name in model.features}
            made = model.probability(values)
            assert ((made >= 0) & (made <= 1)).all()
    found.save(folder / "again.json")
    assert Posterior.load(folder / "again.json") == found
    filter.check(prints, force=True)


# The scores of teachers.


def make_teacher(folder: Path, rng: Random) -> None:
    files = {name.removeprefix("run/"): data for name, data in run_files().items() if name.startswith("run/teacher/")}
    head, part = (
        sorted(name for name in files if name.endswith(".json")),
        sorted(name for name in files if name.endswith(".parquet")),
    )
    if rng.random() < 0.4:
        data = changed_json(files[head[0]], rng)
        files[head[0]] = sealed_json(data) if rng.random() < 0.7 else data
    else:
        files[part[0]] = (
            damaged(files[part[0]], rng)
            if rng.random() < 0.3
            else _resealed(changed_table(files[part[0]], rng), files[head[0]])
        )
    lay(folder, files)


def _resealed(data: bytes, head: bytes) -> bytes:
    """A part of the scores of a teacher with the checksum of its content, if it has one."""
    from hardneg.mining.teachers import _META, _digest
    from hardneg.storage.arrays import pair_keys

    pairs = _pairs()
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
        rows = [
            ids.of(table[name])
            for name, ids in (("query_id", pairs.query_rows_of), ("document_id", pairs.document_rows_of))
        ]
        keys, scores = (
            pair_keys(rows[0], rows[1], len(pairs.document_ids)),
            table["score"].to_numpy().astype(np.float32),
        )
        seal = _digest(json.loads(head)["fingerprint"], keys, scores)
    except Exception:  # this table can have none
        return data
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_META: json.dumps({"sha256": seal}).encode()}), out)
    return out.getvalue()


@cache
def _pairs() -> Pairs:
    with tempfile.TemporaryDirectory() as place:
        lay(Path(place), run_files())
        return Run(Path(place) / "run").pairs()


def read_teacher(folder: Path) -> None:
    pairs = _pairs()
    teachers = Teachers(folder / "teacher", pairs)
    for name in teachers.names:
        found: TeacherScores = teachers.named(name)
        assert found.more()
        queries = np.arange(QUERIES)
        scores = found.of(queries, np.tile(np.arange(-1, DOCUMENTS), (QUERIES, 1)))
        assert not np.isinf(scores[:, 1:]).any()
        assert teachers.by_hash(found.fingerprint) is found


KINDS: dict[str, Kind | Typed] = {
    "run": Kind(make_run, read_run, risky=True),
    "posterior": Kind(make_posterior, read_posterior),
    "teacher": Kind(make_teacher, read_teacher, risky=True),
}
