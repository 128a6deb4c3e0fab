"""Objects where a spec could stand: filters, samplers, indexes and rules of a user's own, in every place that takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hardneg
from hardneg import DataError, Filter, MineOptions, Pairs, SelectOptions, TrainOptions, UsageError, registry
from hardneg.data import Layout
from hardneg.data.readers.rows import Located, Row, opened
from hardneg.false_negatives import PosteriorFilter
from hardneg.false_negatives.model import Posterior
from hardneg.index import ExactIndex, Neighbors, Recall, VectorStore, make_index
from hardneg.mining import Candidates, Context, parse_filter, parse_filters, parse_sampler
from hardneg.mining.filters import Guide, Margin, Rank, Score
from hardneg.mining.samplers import Softmax
from hardneg.refresh import Recipe, RefreshedIndex

from .conftest import run_here, write_jsonl

WORDS = ("bread", "rivers", "trains", "clouds", "chess", "violins")


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs.from_columns(
        queries=[f"question {i} about {WORDS[i % 6]}" for i in range(60)],
        positives=[f"answer {i} about {WORDS[i % 6]}" for i in range(60)],
    )


@dataclass(frozen=True, kw_only=True)
class Even(Filter):
    """Keeps documents in rows that a number divides."""

    name = "even"
    by: int = 2

    def keep(self, candidates: Candidates, context: Context, alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = candidates.documents % self.by == 0
        return kept


@dataclass(frozen=True)
class Farthest:
    """A sampler: the last ranks first."""

    def log_weights(self, candidates: Candidates) -> NDArray[np.float64]:
        return 1e6 * np.broadcast_to(candidates.ranks, candidates.scores.shape).astype(np.float64)


class Brute(VectorStore):
    """Compares every query with every document."""

    name = "brute"

    def search(self, queries: NDArray[np.floating], k: int, progress: Callable[[int], None] | None = None) -> Neighbors:
        rows = np.tile(np.arange(self.size, dtype=np.int32), (len(queries), 1))
        scores = self.pair_scores(queries, rows)
        best = np.lexsort((rows, -scores), axis=1)[:, :k]
        return Neighbors(np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1))


class Half(Brute):
    """Sees only the first half of the documents, and finds the others nowhere."""

    name = "half"

    def search(self, queries: NDArray[np.floating], k: int, progress: Callable[[int], None] | None = None) -> Neighbors:
        found = super().search(queries, self.size)
        order = np.argsort(found.documents >= self.size // 2, axis=1, kind="stable")[:, :k]
        return Neighbors(*(np.take_along_axis(side, order, 1) for side in found))


def rows_of(run: hardneg.Run, column: str) -> list[list[Any]]:
    return [row[column] for row in run.negatives().to_pylist()]


def test_built_in_filters_as_objects_are_the_same_run(pairs: Pairs, tmp_path: Path) -> None:
    """Today's specs and the objects that they stand for mine the same files, and are written down alike."""
    objects = MineOptions(filters=(Margin(relative=0.05), Rank(min=2, max=30)), sampler=Softmax(0.1), depth=30)
    specs = MineOptions(
        filters=("margin:relative=0.05", "rank:min=2,max=30"), sampler="softmax:temperature=0.1", depth=30
    )
    one, two = (hardneg.mine(pairs, tmp_path / name, options) for name, options in (("o", objects), ("s", specs)))
    assert one.negatives().equals(two.negatives())
    assert one.info["config"] == two.info["config"]
    assert hardneg.mine(pairs, tmp_path / "o", specs, resume=True).info == one.info  # the same options: it is done


def test_a_filter_of_ones_own(pairs: Pairs, tmp_path: Path) -> None:
    run = hardneg.mine(pairs, tmp_path / "run", MineOptions(filters=(Even(by=3),), depth=40))
    assert run.info["config"]["filters"] == ["object:tests.test_own_parts.Even(by=3)"]
    assert run.info["counts"]["verdicts"]["even"] > 0
    ids = pairs.document_ids.to_pylist()
    assert all(ids.index(each) % 3 == 0 for row in rows_of(run, "negative_ids") for each in row)
    again = hardneg.select(run, SelectOptions(filters=(Even(by=5), "rank:min=3")), tmp_path / "again")
    assert again.info["config"]["filters"] == ["object:tests.test_own_parts.Even(by=5)", "rank:min=3"]
    assert all(ids.index(each) % 5 == 0 for row in rows_of(again, "negative_ids") for each in row)
    # Without the object, the text in run.json makes no filter, and that is said.
    with pytest.raises(UsageError, match=r"give the object again, as in SelectOptions\(filters="):
        hardneg.select(run, SelectOptions(negatives=2), tmp_path / "third")


def test_a_registered_filter_is_known_by_its_name(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._PARTS, "filter", dict(registry._PARTS["filter"]))
    registry.register("filter", "even", lambda v: Even(by=v.integer("by", 2, 1)))
    assert parse_filter("even:by=7") == Even(by=7)
    assert parse_filter(Even(by=7).spec) == Even(by=7)
    with pytest.raises(UsageError, match=r"there is no option 'from'\. Known: by"):
        parse_filter("even:from=7")
    registry.register("filter", "broken", lambda v: 3)
    with pytest.raises(UsageError, match="returned a int, which is no Filter"):
        parse_filter("broken")
    for kind, name in (("flter", "x"), ("filter", "a:b"), ("filter", "")):
        with pytest.raises(UsageError):
            registry.register(kind, name, lambda v: v)


@pytest.mark.parametrize(
    "each",
    [Margin(absolute=0.1), Margin(relative=0.05, absolute=0.0), Rank(min=5), Score(min=0.1, max=0.9),
     Guide(model="st:some/model", margin=0.2), Even(by=2), Even(by=4)],
    ids=lambda each: each.spec,
)  # fmt: skip
def test_specs_come_back(each: Filter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        registry._PARTS, "filter", {**registry._PARTS["filter"], "even": lambda v: Even(by=v.integer("by", 2, 1))}
    )
    assert parse_filter(each.spec) == each


def test_a_posterior_that_is_only_in_memory(pairs: Pairs, tmp_path: Path) -> None:
    run = hardneg.mine(pairs, tmp_path / "run", MineOptions(depth=40))
    learned = hardneg.calibrate(run, alpha=0.1)
    learned.save(tmp_path / "p.json")
    inside = hardneg.select(run, SelectOptions(filters=(PosteriorFilter(posterior=learned),)), tmp_path / "a")
    file = hardneg.select(run, SelectOptions(filters=(f"posterior:{tmp_path / 'p.json'}",)), tmp_path / "b")
    assert inside.negatives().equals(file.negatives())
    assert inside.negatives()["negative_false_probability"].null_count == 0
    foreign = Posterior(learned.features, learned.weights, 0.0, 0.5, learned.source, {"encoder": "another"})
    with pytest.raises(hardneg.RunError, match="learned with another encoder"):
        hardneg.select(run, SelectOptions(filters=(PosteriorFilter(posterior=foreign),)), tmp_path / "c")


def test_a_sampler_of_ones_own(pairs: Pairs, tmp_path: Path) -> None:
    run = hardneg.mine(pairs, tmp_path / "run", MineOptions(sampler=Farthest(), depth=20, negatives=3))
    assert run.info["config"]["sampler"] == "object:tests.test_own_parts.Farthest()"
    top = hardneg.select(run, SelectOptions(sampler="top"), tmp_path / "top")
    assert np.mean(rows_of(run, "negative_ranks")) > np.mean(rows_of(top, "negative_ranks")) + 5
    back = hardneg.select(top, SelectOptions(sampler=Farthest()), tmp_path / "back")
    assert rows_of(back, "negative_ids") == rows_of(run, "negative_ids")
    for wrong in (3, object()):
        with pytest.raises(UsageError, match="log_weights"):
            parse_sampler(wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="given as a Filter"):
            parse_filters([wrong])  # type: ignore[list-item]


def test_an_index_of_ones_own(pairs: Pairs, tmp_path: Path) -> None:
    exact = hardneg.mine(pairs, tmp_path / "exact", MineOptions(depth=20))
    own = hardneg.mine(pairs, tmp_path / "own", MineOptions(index=Brute, depth=20))
    assert own.negatives().equals(exact.negatives())
    assert own.info["resolved"]["index"] == own.info["config"]["index"] == "brute"
    assert own.info["resolved"]["recall"]["measured"] == 1.0
    assert own.info["resolved"]["recall"]["queries"] == 60
    worse = hardneg.mine(pairs, tmp_path / "half", MineOptions(index=Half, depth=20))
    assert 0.2 < worse.info["resolved"]["recall"]["measured"] < 0.8
    assert any("less than the 0.95 asked for" in each for each in worse.info["warnings"])


def test_indexes_that_do_not_fit_are_refused() -> None:
    vectors = np.eye(6, dtype=np.float32)
    ready = ExactIndex(vectors)
    assert make_index(ready, vectors) == (ready, Recall(1.0, 0.0, 0.95, 100, 0))
    for index, message in (
        (ExactIndex(vectors[:4]), "holds 4 vectors of 6 dimensions"),
        (ExactIndex(vectors, "ip"), "with the metric 'ip'"),
        (lambda documents, metric: np.zeros(3), "ndarray is no index: it lacks name"),
        (object(), "object is no index"),
        (VectorStore(vectors), "VectorStore is no index: it lacks search"),
    ):
        with pytest.raises(UsageError, match=message):
            make_index(index, vectors)  # type: ignore[arg-type]


def test_training_takes_objects_and_goes_on_with_them(pairs: Pairs, tmp_path: Path) -> None:
    """Filters, sampler and index as objects; interrupted, and resumed to the same weights."""
    common: dict[str, Any] = {
        "steps": 12, "batch_size": 8, "negatives": 2, "refresh": "steps:4", "depth": 20, "save_every": 4,
        "filters": (Even(by=3), Margin(relative=0.01)), "negative_sampling": Farthest(), "index": Brute, "lag": 2,
    }  # fmt: skip
    options = TrainOptions(**common)

    class Stop:
        def log(self, step: int, values: dict[str, float]) -> None:
            if step == 10:
                raise hardneg.DataError("stopped")

        def close(self) -> None: ...

    whole = hardneg.HashedEncoder(16, buckets=256)
    hardneg.train(pairs, whole, tmp_path / "whole", options, device="cpu")
    with pytest.raises(hardneg.DataError, match="stopped"):
        hardneg.train(
            pairs, hardneg.HashedEncoder(16, buckets=256), tmp_path / "cut", options, device="cpu", callbacks=[Stop()]
        )
    second = hardneg.HashedEncoder(16, buckets=256)
    hardneg.train(pairs, second, tmp_path / "cut", options, device="cpu", resume=True)
    assert (whole.table.weight == second.table.weight).all()
    written = json.loads((tmp_path / "cut" / "train.json").read_text())["options"]
    assert written["filters"] == ["object:tests.test_own_parts.Even(by=3)", "margin:relative=0.01"]
    assert (written["negative_sampling"], written["index"]) == ("object:tests.test_own_parts.Farthest()", "brute")
    with pytest.raises(UsageError, match="the vectors change with every generation"):
        Recipe(index=ExactIndex(np.eye(2, dtype=np.float32)))  # type: ignore[arg-type]


def test_a_refreshed_index_is_saved_and_built_again(pairs: Pairs, tmp_path: Path) -> None:
    encoder = hardneg.HashedEncoder(16, buckets=256)
    snapshots = hardneg.ModuleSnapshots(encoder, lambda model, texts, side: model.encode(texts))
    given: dict[str, Any] = {"ids": 60, "queries": (pairs.queries, 60), "recipe": Recipe(index=Brute, depth=5)}
    with RefreshedIndex(pairs.documents, snapshots, **given) as index:
        index.save(tmp_path / "saved")
        first = index.generation.neighbors
    with RefreshedIndex(pairs.documents, snapshots, resume=tmp_path / "saved", **given) as index:
        assert index.generation.index.name == "brute"
        assert first is not None
        found = index.search(encoder.encode(pairs.queries.slice(0, 60)), 5)
        assert (found.documents == first.documents).all()


def test_an_unknown_kind_of_part_is_refused() -> None:
    for act in (
        registry.names,
        lambda kind: registry.find(kind, "even"),
        lambda kind: registry.register(kind, "x", print),
    ):
        with pytest.raises(UsageError, match=r"unknown kind 'filters'.*filter"):
            act("filters")


@pytest.mark.parametrize(
    ("kind", "called"),
    [("filter", "make(options)"), ("candidates", "make(options)"), ("fusion", "make(options)"), ("sampler", "make(options)"),
     ("encoder", "make(rest, options)"), ("judge", "make(rest, options)"), ("reader", "read(path)"),
     ("dataset", "read(split, builder)"), ("layout", "LAYOUT(builder, options)")],
)  # fmt: skip
def test_a_part_that_is_called_otherwise_is_refused(kind: str, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._PARTS, kind, dict(registry._PARTS[kind]))

    class Wrong:
        def __init__(self, a: Any, b: Any, c: Any) -> None: ...

        @staticmethod
        def fits(row: Row) -> bool:
            return False

    name = ".wrong" if kind == "reader" else "wrong"
    parts: list[Any] = [Wrong] if kind == "layout" else [Wrong, lambda: None]
    for wrong in parts:
        with pytest.raises(UsageError, match=rf"{re.escape(called)}.* and what was registered takes \("):
            registry.register(kind, name, wrong)
    assert name not in registry.names(kind)


# Readers and layouts.


class Boxes(Layout):
    """A question, and boxes with answers."""

    name = "boxes"

    @staticmethod
    def fits(row: Row) -> bool:
        return set(row) == {"question", "boxes"}

    def __call__(self, where: str, row: Row) -> None:
        if not isinstance(row["boxes"], list):
            raise DataError(f"{where}: boxes must be a list")
        query = self.builder.add_query(None, row["question"], where=where)
        for box in row["boxes"]:
            self.builder.relate(query, self.builder.add_document(None, box, where=where), 1)


def lines_of(path: Path) -> Located:
    """Lines such as `question = box | box`; the file may be compressed."""
    with opened(path) as f:
        for number, line in enumerate(f, 1):
            question, _, boxes = line.decode().strip().partition(" = ")
            yield f"{path}, line {number}", {"question": question, "boxes": boxes.split(" | ")}


@pytest.fixture
def own_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_PARTS", {**registry._PARTS, "reader": {}, "layout": {}})
    registry.register("reader", ".boxes", lines_of)
    registry.register("layout", "boxes", Boxes)


@pytest.mark.usefixtures("own_readers")
def test_a_file_of_ones_own_kind_is_read_wherever_files_are(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.boxes").write_text("which? = this | that\nwhere? = here\n")
    with gzip.open(tmp_path / "b.boxes.gz", "wt") as f:
        f.write("when? = now\n")
    (tmp_path / "shards").mkdir()
    for name in ("train-0.boxes", "train-1.boxes", "test-0.boxes"):
        (tmp_path / "shards" / name).write_text(f"{name}? = {name}!\n")
    write_jsonl(tmp_path / "c.jsonl", [{"question": "who?", "boxes": ["me"]}])
    for source, queries, documents in (
        ("a.boxes", 2, 3), ("b.boxes.gz", 1, 1), ("*.boxes*", 3, 4), ("shards", 2, 2), ("c.jsonl", 1, 1),
    ):  # fmt: skip
        pairs = hardneg.read_pairs(tmp_path / source)
        assert (len(pairs), len(pairs.document_ids), pairs.reading["format"]) == (queries, documents, "boxes"), source
    named = hardneg.read_pairs(tmp_path / "c.jsonl", hardneg.ReadOptions(format="boxes"))
    assert len(named) == 1
    done = run_here("mine", tmp_path / "a.boxes", "--format", "boxes", "--out", tmp_path / "run", "--negatives", "1")
    assert done.returncode == 0, done.stderr
    run = hardneg.Run(tmp_path / "run")
    assert run.info["reading"]["format"] == "boxes"
    assert len(hardneg.select(run, hardneg.SelectOptions(negatives=2), tmp_path / "again").negatives()) == 2
    write_jsonl(
        tmp_path / "d.jsonl", [{"question": "who?", "boxes": ["me"]}, {"question": "who else?", "boxes": "you"}]
    )
    with pytest.raises(DataError, match=r"d\.jsonl, line 2: boxes must be a list"):
        hardneg.read_pairs(tmp_path / "d.jsonl")


@pytest.mark.usefixtures("own_readers")
def test_parts_that_could_not_be_reached_are_refused(tmp_path: Path) -> None:
    for kind, name, part, message in (
        ("reader", "boxes", lines_of, "under the suffix of its files"),
        ("reader", ".Boxes", lines_of, "under the suffix of its files"),
        ("reader", ".tar.boxes", lines_of, "under the suffix of its files"),
        ("layout", "cases", lines_of, r"a class with a function fits\(row\)"),
    ):
        with pytest.raises(UsageError, match=message):
            registry.register(kind, name, part)
    (tmp_path / "x.crates").write_text("")
    with pytest.raises(DataError, match="a suffix that you registered a reader for"):
        hardneg.read_pairs(tmp_path / "x.crates")
    with pytest.raises(UsageError, match="unknown format 'boxs'.* Did you mean 'boxes'"):
        hardneg.ReadOptions(format="boxs")
