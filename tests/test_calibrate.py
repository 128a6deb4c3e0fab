"""judge -> calibrate -> select, through the command, on clusters whose truth is known; and everything that may be wrong."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hardneg.errors import DataError, RunError, UsageError
from hardneg.false_negatives import judgements as j
from hardneg.false_negatives.calibrate import NotCertified, calibrate
from hardneg.false_negatives.features import SHARED_FEATURES, PairFeatures
from hardneg.false_negatives.judge import judge
from hardneg.false_negatives.model import LogisticModel, Posterior
from hardneg.false_negatives.population import Population, expected_threshold, ladder
from hardneg.false_negatives.sources import hide
from hardneg.mining.mine import mine
from hardneg.mining.options import MineOptions
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.mining.select import SelectOptions, select
from hardneg.storage.arrays import Ragged

from .conftest import hardneg, unit, write_jsonl

pytestmark = pytest.mark.usefixtures("learned_once")

TOPICS, EACH, QUERIES = 30, 25, 300


def topic_of(id: str) -> int:
    return int(id[1:]) % TOPICS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents around topics that overlap; queries with 0 to 3 random ones of their topic as known positives."""
    folder = tmp_path_factory.mktemp("clusters") / "data"
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((TOPICS, 24))
    topics = np.arange(TOPICS * EACH) % TOPICS
    documents = unit(centres[topics] + rng.standard_normal((len(topics), 24)) * 0.75)
    asked = np.arange(QUERIES) % TOPICS
    queries = unit(centres[asked] + rng.standard_normal((QUERIES, 24)) * 0.75)
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "text": f"document {i}"} for i in range(len(topics))])
    write_jsonl(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"query {i}"} for i in range(QUERIES)])
    lines = ["query-id\tcorpus-id\tscore"]
    for i in range(QUERIES):
        chosen = rng.choice(np.flatnonzero(topics == asked[i]), i % 4, replace=False)
        lines += [f"q{i}\td{d}\t1" for d in chosen]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "train.tsv").write_text("\n".join(lines) + "\n")
    np.save(folder / "q.npy", queries)
    np.save(folder / "d.npy", documents)
    return folder


@pytest.fixture(scope="module")
def mined(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    mine(data, out, options(data))
    return out


def options(data: Path, **more: object) -> MineOptions:
    given = {"query_embeddings": str(data / "q.npy"), "corpus_embeddings": str(data / "d.npy"), "depth": 60}
    return MineOptions(**{**given, "max_depth": 60, **more})  # type: ignore[arg-type]


def negatives(run: Path) -> list[tuple[str, str]]:
    rows = pq.read_table(run / "negatives.parquet").to_pylist()
    return [(row["query_id"], id) for row in rows for id in row["negative_ids"]]


def false_share(run: Path) -> float:
    return float(np.mean([topic_of(q) == topic_of(d) for q, d in negatives(run)]))


def fill(path: Path, out: Path, judge_pair: Callable[[str, str], object] | None = None) -> Path:
    with open(path, newline="") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        same = topic_of(row["query_id"]) == topic_of(row["document_id"])
        row["relevant"] = str(int(same) if judge_pair is None else judge_pair(row["query_id"], row["document_id"]))
    with open(out, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return out


def test_from_a_run_to_a_certified_threshold(mined: Path, tmp_path: Path, learned_once: dict[str, Any]) -> None:
    run = tmp_path / "run"
    shutil.copytree(mined, run)
    before = false_share(run)
    drawn = hardneg("judge", run, "--sample", "500", "--alpha", "0.1", "--out", tmp_path / "f.csv", "--json")
    assert drawn.returncode == 0, drawn.stderr
    assert json.loads(drawn.stdout) == {
        "schema": "hardneg-judge-1",
        "file": str(tmp_path / "f.csv"),
        "pairs": 500,
        "held_out": 375,
    }
    fill(tmp_path / "f.csv", tmp_path / "filled.csv")
    done = hardneg("calibrate", run, tmp_path / "filled.csv", "--alpha", "0.1")
    assert done.returncode == 0, done.stderr
    assert "at most 10.0% false, confidence 95%" in done.stdout
    learned_once.clear()
    again = hardneg("calibrate", run, tmp_path / "filled.csv", "--alpha", "0.1", "--out", tmp_path / "p.json", "--json")
    assert (tmp_path / "p.json").read_bytes() == (run / "posterior.json").read_bytes()
    value = json.loads(again.stdout)
    assert value["guarantee"]["alpha"] == 0.1
    expected = {"sampler": "top", "negatives": 7, "seed": 0, "default_filters": True, "filters": []}
    assert value["guarantee"]["selection"] == expected
    selected = hardneg(
        "select", run, "--filter", f"posterior:{run}/posterior.json", "--out", tmp_path / "new", "--json"
    )
    assert selected.returncode == 0, selected.stderr
    after = false_share(tmp_path / "new")
    assert before > 0.5
    assert after <= 0.1
    assert value["guarantee"]["negatives"] == len(negatives(tmp_path / "new"))
    assert json.loads(selected.stdout)["verdicts"]["posterior"] > 0
    # In place the posterior stays beside the run.
    assert hardneg("select", run, "--filter", f"posterior:{run}/posterior.json").returncode == 0
    assert (run / "posterior.json").exists()
    assert negatives(run) == negatives(tmp_path / "new")
    # Judged again, the run offers the same candidates: what a posterior rejected can be judged anew.
    hardneg("judge", run, "--sample", "500", "--alpha", "0.1", "--out", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "f.csv").read_bytes()


@pytest.mark.parametrize("learn", ["known", "hidden"])
def test_without_judgements(mined: Path, tmp_path: Path, learn: str) -> None:
    made = calibrate(mined, learn=learn, alpha=0.1)
    assert made.guarantee is None
    assert made.source == ("known positives" if learn == "known" else "hidden positives")
    made.save(tmp_path / "p.json")
    select(mined, SelectOptions(filters=(f"posterior:{tmp_path}/p.json",)), tmp_path / "new")
    assert false_share(tmp_path / "new") < 0.2
    table = pq.read_table(tmp_path / "new" / "negatives.parquet")
    assert all(len(row) >= 6 for row in table["negative_ids"].to_pylist())
    probabilities = np.concatenate(table["negative_false_probability"].to_pylist())
    assert probabilities.max() <= np.float32(made.threshold)
    assert probabilities.mean() == pytest.approx(0.1, abs=0.01)


def test_mining_with_a_posterior_is_selecting_with_it(data: Path, mined: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    calibrate(mined).save(path)
    spec = f"posterior:{path}"
    select(mined, SelectOptions(filters=(spec,)), tmp_path / "selected")
    mine(data, tmp_path / "mined", options(data, filters=(spec,)))
    for name in ("negatives.parquet", "candidates/part-00000.parquet"):
        assert (tmp_path / "mined" / name).read_bytes() == (tmp_path / "selected" / name).read_bytes(), name
    known = {name for name in Run(tmp_path / "mined").info["fingerprints"] if name.startswith("posterior:")}
    assert known == {spec}
    # Another posterior under the same name is other input: an interrupted run does not go on with it.
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "mined", half)
    (half / "run.json").unlink()
    (half / "progress").mkdir()
    prints = Run(tmp_path / "mined").info["fingerprints"]
    (half / "progress" / "inputs.json").write_text(json.dumps(prints))
    path.write_text(json.dumps({**json.loads(path.read_text()), "threshold": 0.01}))
    with pytest.raises(RunError, match=r"other inputs \(posterior:"):
        mine(data, half, options(data, filters=(spec,)), resume=True)


def test_all_judgements_to_learn_from(mined: Path, tmp_path: Path) -> None:
    judge(mined, tmp_path / "f.csv", sample=1500)
    fill(tmp_path / "f.csv", tmp_path / "filled.csv")
    made = calibrate(mined, tmp_path / "filled.csv", learn="judged", features=SHARED_FEATURES)
    assert made.source == "judgements"
    assert made.report["judged"] == 1500
    assert made.report["ece"] < 0.1
    assert made.guarantee is None
    made.save(tmp_path / "p.json")
    select(mined, SelectOptions(filters=(f"posterior:{tmp_path}/p.json",)), tmp_path / "new")
    assert false_share(tmp_path / "new") < 0.12
    # A threshold of that one can be certified with pairs drawn for it.
    judge(mined, tmp_path / "g.csv", sample=400, alpha=0.1, posterior=made)
    fill(tmp_path / "g.csv", tmp_path / "h.csv")
    certified = calibrate(mined, tmp_path / "h.csv", alpha=0.1, posterior=made)
    assert certified.guarantee is not None
    assert certified.features == made.features


def test_groups_are_a_truth_to_learn_from(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    rows = [f"q{i}\t{i % TOPICS}" for i in range(QUERIES)] + [f"d{i}\t{i % TOPICS}" for i in range(TOPICS * EACH)]
    (folder / "groups.tsv").write_text("id\tgroup\n" + "\n".join(rows[::2]) + "\n")
    mine(folder, tmp_path / "run", options(folder))
    made = calibrate(tmp_path / "run", learn="groups")
    assert made.source == "groups"
    made.save(tmp_path / "p.json")
    select(tmp_path / "run", SelectOptions(filters=(f"posterior:{tmp_path}/p.json",)), tmp_path / "new")
    assert false_share(tmp_path / "new") < 0.1


def test_a_larger_sample_contains_the_smaller(mined: Path, tmp_path: Path) -> None:
    judge(mined, tmp_path / "a.csv", sample=100)
    fill(tmp_path / "a.csv", tmp_path / "filled.csv")
    judge(mined, tmp_path / "b.csv", sample=250, judged=tmp_path / "filled.csv")
    judge(mined, tmp_path / "c.csv", sample=100, seed=1)

    def read(name: str) -> dict[tuple[str, str], dict[str, str]]:
        with open(tmp_path / name, newline="") as f:
            return {(row["query_id"], row["document_id"]): row for row in csv.DictReader(f)}

    a, b, c = read("filled.csv"), read("b.csv"), read("c.csv")
    held = {pair for pair, row in a.items() if row["part"] == j.HELD_OUT}
    assert len(held) == 75
    assert held <= set(b)
    assert all(b[pair]["relevant"] == a[pair]["relevant"] for pair in held)
    assert sum(row["relevant"] == "" for row in b.values()) >= 250 - 100
    assert len(set(a) & set(c)) < 30
    row = next(iter(a.values()))
    assert row["query"].startswith("query ")
    assert row["document"].startswith("document ")
    assert float(row["score"]) <= 1
    assert 1 <= int(row["rank"]) <= 60


def test_chances_are_what_they_are_said_to_be(mined: Path) -> None:
    """Over many seeds, pairs are drawn as often as their inclusion probability says."""
    reopened = Reopened(Run(mined))
    features = PairFeatures(reopened.context)
    population = Population(reopened, features, LogisticModel(SHARED_FEATURES, (3.0, 3.0, 3.0), -4.0))
    rungs = ladder(population, 0.05)
    able = np.logical_or.reduce(rungs.chosen)
    times = np.zeros(len(able))
    said = np.zeros(len(able))
    fit_times, fit_weight = 0.0, 0.0
    for seed in range(300):
        drawn = j.draw_pairs(population, rungs, 400, seed)
        assert len(np.unique(drawn.place)) == 400
        held = drawn.place[drawn.held_out]
        assert able[held].all()
        times[held] += 1
        said[held] = drawn.inclusion[drawn.held_out]
        fit_times += (~drawn.held_out).sum()
        fit_weight += (1 / drawn.inclusion[~drawn.held_out]).sum()
    chance = 300 / able.sum()
    assert np.unique(said[said > 0]) == pytest.approx(chance)
    # Counts of pairs are binomial: their variance is as it should be, none is favoured.
    assert times[able].mean() == pytest.approx(300 * chance)
    assert times[able].var() == pytest.approx(300 * chance * (1 - chance), rel=0.1)
    # Each draw's inverse chances add up to all the pairs there are to draw from.
    assert fit_weight / 300 == pytest.approx(len(able) - 300, rel=0.05)


def test_expected_threshold_is_the_highest_that_keeps_the_expectation(mined: Path) -> None:
    reopened = Reopened(Run(mined))
    population = Population(
        reopened, PairFeatures(reopened.context), LogisticModel(SHARED_FEATURES, (3.0, 3.0, 3.0), -4.0)
    )
    threshold = expected_threshold(population, 0.08)
    assert population.expected(threshold) <= 0.08
    assert population.expected(threshold + 0.02) > 0.08
    every = population.negatives(1.0)
    kept = [part.kept for part in reopened]
    assert every.sum() == 7 * QUERIES
    assert len(every) == sum(int(mask.sum()) for mask in kept)


def test_a_threshold_never_leaves_nothing(mined: Path) -> None:
    """A model that finds everything likely keeps nearly all the negatives that there are, and says what it expects."""
    reopened = Reopened(Run(mined))
    population = Population(
        reopened, PairFeatures(reopened.context), LogisticModel(SHARED_FEATURES, (3.0, 3.0, 3.0), 1.0)
    )
    threshold = expected_threshold(population, 0.05)
    assert population.expected(threshold) > 0.5
    assert population.negatives(threshold).sum() >= 0.95 * 7 * QUERIES


def test_hiding_takes_one_of_several() -> None:
    positives = Ragged.from_pairs(np.array([0, 1, 1, 3, 3, 3]), np.array([5, 6, 7, 1, 2, 3]), 4)
    hidden, rest = hide(positives, 0)
    assert hidden.lengths.tolist() == [0, 1, 0, 1]
    assert rest.lengths.tolist() == [1, 1, 0, 2]
    both = Ragged.from_pairs(
        np.concatenate([hidden.row_numbers(), rest.row_numbers()]), np.concatenate([hidden.values, rest.values]), 4
    )
    assert both.values.tolist() == positives.values.tolist()


class Oracle:
    """A cross-encoder that knows."""

    def predict(self, asked: list[tuple[str, str]]) -> list[float]:
        return [float(int(q.split()[1]) % TOPICS == int(d.split()[1]) % TOPICS) for q, d in asked]


def make_oracle() -> Oracle:
    return Oracle()


def test_a_cross_encoder_judges(mined: Path, tmp_path: Path) -> None:
    judge(mined, tmp_path / "f.csv", sample=60, cross_encoder="module:tests.test_calibrate:make_oracle")
    fill(tmp_path / "f.csv", tmp_path / "filled.csv")
    assert (tmp_path / "f.csv").read_text().split() == (tmp_path / "filled.csv").read_text().split()


def edited(path: Path, out: Path, change: Callable[[list[dict[str, str]]], list[dict[str, str]] | None]) -> Path:
    with open(path, newline="") as f:
        rows = list(csv.DictReader(f))
    rows = change(rows) or rows
    with open(out, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]) if rows else ["query_id"])
        writer.writeheader()
        writer.writerows(rows)
    return out


@pytest.fixture(scope="module")
def judged(mined: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    judge(mined, folder / "f.csv", sample=200, alpha=0.1)
    return fill(folder / "f.csv", folder / "filled.csv")


def put(**values: str) -> Callable[[list[dict[str, str]]], None]:
    def change(rows: list[dict[str, str]]) -> None:
        rows[2].update(values)

    return change


def every(**values: str) -> Callable[[list[dict[str, str]]], None]:
    def change(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row.update(values)

    return change


def without(name: str) -> Callable[[list[dict[str, str]]], None]:
    def change(rows: list[dict[str, str]]) -> None:
        for row in rows:
            del row[name]

    return change


def contradicted(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [*rows, {**rows[0], "relevant": str(1 - int(rows[0]["relevant"]))}]


def open_held_out(rows: list[dict[str, str]]) -> None:
    next(row for row in rows if row["part"] == j.HELD_OUT)["relevant"] = ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(query_id="q99999"), "line 4: 'q99999'.*of another run"),
        (put(document_id="nope"), "1 document ids are not in the run's dataset"),
        (put(relevant="yes"), "'relevant' must be 0 or 1, it is not in the lines 4"),
        (every(relevant="1"), r"no threshold can be certified.*\d+ of \d+ judged negatives are false"),
        (every(relevant=""), "holds no judgements"),
        (contradicted, r"judges pairs both ways \(lines 2, 202\)"),
        (lambda rows: rows[:12], "12 judgements, 20 are the least"),
        (lambda rows: rows[:100], "lines are missing"),
        (open_held_out, "1 pairs held out for the guarantee are not judged"),
        (put(inclusion_probability="2"), "line 4: inclusion_probability '2'"),
        (without("relevant"), "has no column relevant"),
        (without("part"), "--learn judged"),
        (without("inclusion_probability"), "one known chance"),
    ],
)
def test_bad_judgements(
    mined: Path, judged: Path, tmp_path: Path, change: Callable[[list[dict[str, str]]], None], message: str
) -> None:
    path = edited(judged, tmp_path / "bad.csv", change)
    with pytest.raises(DataError, match=message):
        calibrate(mined, path, alpha=0.1)


def test_agreeing_duplicates_count_once(mined: Path, judged: Path, tmp_path: Path) -> None:
    twice = edited(judged, tmp_path / "twice.csv", lambda rows: [*rows, *rows[:30]])
    known = Reopened(Run(mined)).pairs
    once, again = (j.read_judgements(path, known) for path in (judged, twice))
    for name in ("query", "document", "relevant", "inclusion", "held_out"):
        np.testing.assert_array_equal(getattr(once, name), getattr(again, name))
    assert len(once.query) == 200


def test_pairs_that_are_no_candidates(mined: Path, judged: Path, tmp_path: Path) -> None:
    def far(rows: list[dict[str, str]]) -> None:
        rows[0]["query"] = rows[0]["document"] = ""  # otherwise the ids are seen to be those of other texts
        rows[0]["query_id"] = "q0" if rows[0]["query_id"] != "q0" else "q1"
        rows[0]["document_id"] = next(f"d{i}" for i in range(700, 750) if i % TOPICS not in (0, 1))

    path = edited(judged, tmp_path / "far.csv", far)
    for learn in ("auto", "judged"):
        with pytest.raises(DataError, match="1 judged pairs are no candidates of this run"):
            calibrate(mined, path, alpha=0.1, learn=learn)


def test_drawn_for_another_alpha(mined: Path, judged: Path) -> None:
    with pytest.raises(DataError, match=r"drawn for alpha 0\.1, not 0\.4"):
        calibrate(mined, judged, alpha=0.4)


def test_refuses_what_cannot_be_certified(mined: Path, tmp_path: Path) -> None:
    judge(mined, tmp_path / "f.csv", sample=60)
    fill(tmp_path / "f.csv", tmp_path / "filled.csv")
    with pytest.raises(
        NotCertified, match=rf"more judgements would do, with a chance of 9\d%: hardneg judge {mined} --sample \d+"
    ):
        calibrate(mined, tmp_path / "filled.csv")
    loose = calibrate(mined, tmp_path / "filled.csv", uncertified=True)
    assert loose.guarantee is None
    assert loose.report["alpha"] == 0.05
    fill(tmp_path / "f.csv", tmp_path / "bad.csv", lambda q, d: int(hash_of(q, d) % 2))
    refused = hardneg("calibrate", mined, tmp_path / "bad.csv")
    assert refused.returncode == 1
    assert "would hardly help" in refused.stderr
    assert not (mined / "posterior.json").exists()


def hash_of(query: str, document: str) -> int:
    return int(query[1:]) * 31 + int(document[1:])


def test_usage(mined: Path, tmp_path: Path) -> None:
    for wrong, message in (
        ({"learn": "guess"}, "learn must be one of"),
        ({"learn": "judged"}, "give a file"),
        ({"alpha": 0.0}, "alpha 0.0 must be"),
        ({"confidence": 1.0}, "confidence 1.0"),
        ({"features": ("score",)}, "features can be chosen"),
        ({"features": ("sore",), "learn": "groups"}, "unknown feature 'sore'"),
    ):
        with pytest.raises(UsageError, match=message):
            calibrate(mined, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="give no judgements with"):
        calibrate(mined, "x.csv", learn="groups")
    with pytest.raises(UsageError, match="a given posterior is only certified"):
        calibrate(mined, posterior=calibrate(mined))
    with pytest.raises(DataError, match="has no groups"):
        calibrate(mined, learn="groups")
    with pytest.raises(UsageError, match="1 pair or more"):
        judge(mined, tmp_path / "x.csv", sample=0)
    (tmp_path / "there.csv").write_text("mine")
    done = hardneg("judge", mined, "--out", tmp_path / "there.csv")
    assert done.returncode == 1
    assert "may hold judgements" in done.stderr
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_another_encoder_is_refused_unless_forced(data: Path, mined: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    calibrate(mined).save(path)
    vectors = np.load(data / "d.npy")
    np.save(tmp_path / "d.npy", np.roll(vectors, 1, axis=1))
    np.save(tmp_path / "q.npy", np.roll(np.load(data / "q.npy"), 1, axis=1))
    arguments = ["--query-embeddings", tmp_path / "q.npy", "--corpus-embeddings", tmp_path / "d.npy", "--depth", "60"]
    arguments += ["--filter", f"posterior:{path}", "--out", tmp_path / "run"]
    refused = hardneg("mine", data, *arguments)
    assert refused.returncode == 1
    assert "learned with another encoder" in refused.stderr
    assert hardneg("mine", data, *arguments, "--force").returncode == 0


def test_a_guarantee_for_another_selection_is_said(mined: Path, tmp_path: Path) -> None:
    made = calibrate(mined)
    selection = {"sampler": "top", "negatives": 7, "seed": 0, "default_filters": True, "filters": []}
    promise = {"alpha": 0.05, "threshold": made.threshold, "selection": selection}
    Posterior(
        made.features, made.weights, made.intercept, made.threshold, made.source, made.fingerprints, {}, promise
    ).save(tmp_path / "p.json")
    for more, said in (
        ({}, None),
        ({"negatives": 3}, "given for other candidates (negatives 7 then, 3 now)"),
        ({"more": "rank:min=2"}, "filters [] then, ['rank:min=2'] now"),
        ({"threshold": 0.6}, "does not hold for threshold 0.6"),
    ):
        threshold = more.pop("threshold", None)
        spec = f"posterior:{tmp_path}/p.json" + ("" if threshold is None else f",threshold={threshold}")
        filters = (spec, more.pop("more")) if "more" in more else (spec,)
        done = select(mined, SelectOptions(filters=filters, **more), tmp_path / "new", overwrite=True)  # type: ignore[arg-type]
        notes = [note for note in done.info["warnings"] if "guarantee" in note]
        assert (notes == []) if said is None else (said in notes[0])


def test_a_miner_dies_with_its_last_reference(data: Path) -> None:
    """Its index is the largest thing there is: it must not wait for the garbage collector."""
    import gc
    import weakref

    from hardneg.data.read import read_pairs
    from hardneg.index.exact import ExactIndex
    from hardneg.mining.miner import Miner
    from hardneg.mining.samplers import Top
    from hardneg.mining.specs import parse_filters

    queries, documents = (np.load(data / f"{name}.npy") for name in ("q", "d"))
    miner = Miner(
        read_pairs(str(data)), queries, ExactIndex(documents), parse_filters(["shared-neighbors:max=0.9"]), Top(),
        depth=10, max_depth=10, negatives=2,
    )  # fmt: skip
    miner.mine(0, 20)
    alive = weakref.ref(miner.index)
    gc.disable()
    try:
        del miner
        assert alive() is None
    finally:
        gc.enable()


def test_looks_are_noted_and_each_has_its_level(mined: Path, tmp_path: Path) -> None:
    """Judging more after a refusal is a second look, and the file says so."""
    judge(mined, tmp_path / "a.csv", sample=40, alpha=0.1)
    fill(tmp_path / "a.csv", tmp_path / "a1.csv", lambda q, d: 0)
    judge(mined, tmp_path / "b.csv", sample=120, alpha=0.1, judged=tmp_path / "a1.csv")
    with open(tmp_path / "b.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    held = [row for row in rows if row["part"] == j.HELD_OUT]
    assert sorted(int(row["look"]) for row in held) == [1] * 30 + [2] * 60
    assert {row["alpha"] for row in rows} == {"0.1"}
    assert len({row["drawn_for"] for row in rows}) == 1
    # None false: 30 are too few at the first look, and 90 are enough at the second.
    with pytest.raises(NotCertified, match="About .* more judgements would do, with a chance of"):
        calibrate(mined, tmp_path / "a1.csv")
    fill(tmp_path / "b.csv", tmp_path / "b1.csv", lambda q, d: 0)
    made = calibrate(mined, tmp_path / "b1.csv")
    assert made.guarantee is not None
    assert made.guarantee["look"] == 2
    assert made.guarantee["alpha"] == 0.1
    assert {test["look"] for test in made.report["tests"]} == {1, 2}


@pytest.mark.slow
def test_what_passed_at_the_first_look_still_holds_at_the_second(mined: Path, tmp_path: Path) -> None:
    judge(mined, tmp_path / "a.csv", sample=120, alpha=0.1)
    fill(tmp_path / "a.csv", tmp_path / "a1.csv", lambda q, d: 0)
    first = calibrate(mined, tmp_path / "a1.csv")
    judge(mined, tmp_path / "b.csv", sample=300, alpha=0.1, judged=tmp_path / "a1.csv")
    # All that is judged at the second look is false: on its own it would certify nothing.
    edited(tmp_path / "b.csv", tmp_path / "b1.csv", lambda rows: [r | {"relevant": r["relevant"] or "1"} for r in rows])
    second = calibrate(mined, tmp_path / "b1.csv")
    assert first.guarantee is not None
    assert second.guarantee is not None
    assert second.guarantee["look"] == 1
    assert second.guarantee["judged"] == first.guarantee["judged"]


def test_judgements_of_another_alpha_run_or_draw_are_refused(
    data: Path, mined: Path, judged: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"drawn for alpha 0\.1, not 0\.2.*Leave alpha .--alpha. out"):
        calibrate(mined, judged, alpha=0.2)
    assert calibrate(mined, judged, uncertified=True).report["tests"]  # without --alpha: that of the file
    mine(data, tmp_path / "shallow", options(data, depth=40, max_depth=40))
    with pytest.raises(DataError, match="another run, depth, selection or posterior"):
        calibrate(tmp_path / "shallow", judged)
    with pytest.raises(DataError, match=r"test the guarantee are not among those drawn now"):
        judge(mined, tmp_path / "x.csv", sample=300, alpha=0.1, seed=7, judged=judged)
    two = edited(
        judged, tmp_path / "two.csv", lambda rows: [{**r, "drawn_for": str(i % 2)} for i, r in enumerate(rows)]
    )
    with pytest.raises(DataError, match="files of several draws"):
        calibrate(mined, two)
    for look in ("first", "0", "-1", "         5e9", "000000001999999", "\u0665"):
        odd = edited(judged, tmp_path / "odd.csv", put(look=look))
        with pytest.raises(DataError, match=r"odd\.csv:\d+: the look is"):
            calibrate(mined, odd)
    # Held-out pairs that are inconvenient cannot be left out.

    def without_one(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        gone = next(i for i, row in enumerate(rows) if row["part"] == j.HELD_OUT)
        return rows[:gone] + rows[gone + 1 :]

    fewer = edited(judged, tmp_path / "fewer.csv", without_one)
    with pytest.raises(
        DataError, match=r"pairs were held out for the guarantee, and \d+ are there now: lines are missing"
    ):
        calibrate(mined, fewer)


def test_a_file_of_the_first_version_is_still_read(mined: Path, judged: Path, tmp_path: Path) -> None:
    def older(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{k: v for k, v in row.items() if k not in ("look", "alpha", "drawn_for")} for row in rows]

    old = edited(judged, tmp_path / "old.csv", older)
    now, then = calibrate(mined, judged, uncertified=True), calibrate(mined, old, alpha=0.1, uncertified=True)
    assert now.to_json() == then.to_json()


def test_a_guarantee_does_not_travel(data: Path, mined: Path, tmp_path: Path) -> None:
    """To another depth, other vectors or an untested threshold, stricter ones too."""
    judge(mined, tmp_path / "a.csv", sample=150, alpha=0.1)
    fill(tmp_path / "a.csv", tmp_path / "a1.csv", lambda q, d: 0)
    made = calibrate(mined, tmp_path / "a1.csv")
    assert made.guarantee is not None
    path = tmp_path / "p.json"
    made.save(path)

    def warned(spec: str, run: Path = mined) -> str:
        name = f"new{len(list(tmp_path.glob('new*')))}"
        done = select(run, SelectOptions(filters=(spec,)), tmp_path / name, force=True)
        return " ".join(note for note in done.info["warnings"] if "guarantee" in note)

    assert warned(f"posterior:{path}") == ""
    for threshold in (0.9 * made.threshold, min(1.0, 1.1 * made.threshold)):
        assert "only" in warned(f"posterior:{path},threshold={threshold}")
    mine(data, tmp_path / "shallow", options(data, depth=40, max_depth=40))
    assert "depth 60 then, 40 now" in warned(f"posterior:{path}", tmp_path / "shallow")
    rng = np.random.default_rng(5)
    for name, count in (("q", QUERIES), ("d", TOPICS * EACH)):
        np.save(tmp_path / f"{name}.npy", unit(rng.standard_normal((count, 24))))
    vectors = {"query_embeddings": str(tmp_path / "q.npy"), "corpus_embeddings": str(tmp_path / "d.npy")}
    mine(data, tmp_path / "others", options(data, **vectors), force=True)
    assert "other query embeddings" in warned(f"posterior:{path}", tmp_path / "others")
    # Mined again with the posterior: the same candidates, so it holds.
    again = mine(data, tmp_path / "again", options(data, filters=(f"posterior:{path}",)))
    assert not any("guarantee" in note for note in again.info["warnings"])


def test_none_false_among_the_judged_certifies(mined: Path, judged: Path, tmp_path: Path) -> None:
    clean = edited(judged, tmp_path / "clean.csv", every(relevant="0"))
    made = calibrate(mined, clean)
    assert made.guarantee is not None
    assert made.guarantee["false"] == 0
    lower = calibrate(mined, clean, learn="judged")  # what the known positives teach is moved, never above where it was
    assert lower.guarantee is None
    assert lower.report["relevant"] == 0
    assert lower.report["log_loss"] <= lower.report["log_loss_before"]
    with pytest.raises(DataError, match="all 200 judged pairs are not relevant: nothing can be learned"):
        calibrate(mined, clean, learn="judged", features=["score"])


@pytest.mark.slow
def test_when_all_is_judged_and_nothing_certifies_it_says_so(mined: Path, tmp_path: Path) -> None:
    judge(mined, tmp_path / "all.csv", sample=10**6, alpha=0.1)
    fill(tmp_path / "all.csv", tmp_path / "filled.csv", lambda q, d: 1)
    with pytest.raises(NotCertified, match="more judgements would hardly help|More judgements would hardly help"):
        calibrate(mined, tmp_path / "filled.csv")
