"""Runs are ranked by what their negatives promise to teach; fixes and next lines can be typed."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hardneg
from hardneg.diagnostics.commands import mine_again, with_posterior_there
from hardneg.diagnostics.compare import compare
from hardneg.diagnostics.findings.base import Finding
from hardneg.diagnostics.labels import ranking_rows
from hardneg.diagnostics.ranking import Ranking, rank, ranking
from hardneg.diagnostics.report.plain_page import write_ranking
from hardneg.diagnostics.subject import Subject
from hardneg.errors import UsageError
from hardneg.mining.mine import mine
from hardneg.mining.options import MineOptions
from hardneg.mining.select import SelectOptions, select
from tests.conftest import run_here


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[hardneg.Run]:
    """Hard, random and deeper negatives of 300 questions in 30 groups."""
    folder = tmp_path_factory.mktemp("ranked")
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    topics = [" ".join(rng.choice(words, 4)) for _ in range(30)]
    asked = [f"{topics[i % 30]} {' '.join(rng.choice(words, 2))} {i}" for i in range(300)]
    answers = [f"{topics[i % 30]} {' '.join(rng.choice(words, 3))} answer" for i in range(300)]
    groups = [str(i % 30) for i in range(300)]
    pairs = hardneg.Pairs.from_columns(asked, answers, groups=groups)
    hard = mine(pairs, folder / "hard", MineOptions(depth=100, filters=("group",)))
    return [
        hard,
        mine(pairs, folder / "random", MineOptions(depth=290, sampler="uniform", filters=("group",), seed=1)),
        mine(pairs, folder / "false", MineOptions(depth=100)),
        select(hard, SelectOptions(add_filters=("rank:min=40",)), folder / "deeper"),
    ]


def test_runs_are_ranked_against_the_truth(runs: list[hardneg.Run]) -> None:
    """Groups tell it of every run over the dataset, also where a filter `group` was used on some."""
    subjects = [Subject.of_run(run) for run in runs]
    found = ranking(subjects, 0.05)
    assert found.false_by == "groups"
    names = [Path(each.name).name for each in found.runs]
    assert names[0] == "hard"
    assert names[-1] == "false"
    first, *others = found.runs
    assert first.place == 1
    assert first.behind.value == 0
    assert all(each.behind.low > 0 for each in others)
    by_name = dict(zip(names, found.runs, strict=True))
    assert by_name["hard"].measures["false_share"].value == 0
    groups = subjects[2].pairs.document_groups
    assert groups is not None
    assert subjects[2].pairs.query_groups is not None
    truth = (groups[subjects[2].documents] == subjects[2].pairs.query_groups[:, None]).mean()
    assert by_name["false"].measures["false_share"].value == pytest.approx(truth)
    # `useful` and its paired interval, against a loop over queries.
    one = subjects[0]
    q, d = (np.asarray(each, np.float64) for each in one.vectors or ())
    q, d = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (q, d))
    values = []
    for i in range(300):
        scores = np.array(
            [q[i] @ d[j] for j in [one.pairs.positives.values[i], *one.documents[i][one.documents[i] >= 0]]]
        )
        p = np.exp(scores / 0.05)
        values.append(1 - p[0] / p.sum())
    # The hashed encoder of another seed, that of "random", is another yardstick.
    assert [Path(each).name for each in found.scored_by] == ["deeper", "random"]
    assert first.useful_by[found.scored_by[0]].value == pytest.approx(np.mean(values), abs=1e-4)
    both = [each.value for each in first.useful_by.values()]
    assert first.measures["useful"].value == pytest.approx(np.mean(both))


def without_groups(pairs: hardneg.Pairs) -> hardneg.Pairs:
    return replace(pairs, query_groups=None, document_groups=None, group_names=())


@pytest.fixture(scope="module")
def encoders(runs: list[hardneg.Run], tmp_path_factory: pytest.TempPathFactory) -> list[hardneg.Run]:
    """The same texts without groups, mined with two encoders, and deeper negatives of the second one."""
    folder = tmp_path_factory.mktemp("encoders")
    pairs = without_groups(runs[2].pairs())
    one, two = (
        mine(pairs, folder / f"c_{name}", MineOptions(depth=60), encoder=hardneg.HashedEncoder(64, seed=seed))
        for name, seed in (("a", 0), ("b", 5))
    )
    return [one, two, select(two, SelectOptions(add_filters=("rank:min=30",)), folder / "c_deep")]


def placed(found: Ranking) -> list[tuple[int | None, str]]:
    return [(each.place, Path(each.name).name) for each in found.runs]


@pytest.mark.parametrize("turned", [False, True])
def test_the_selection_that_a_fix_makes_wins(runs: list[hardneg.Run], tmp_path: Path, turned: bool) -> None:
    """A run with many false negatives, and the same without those of the query's group, which is not said to be unknown."""
    bad = runs[2]
    fixed = select(bad, SelectOptions(add_filters=("group",)), tmp_path / "fixed")
    pair = [fixed, bad] if turned else [bad, fixed]
    found = compare(*pair)
    assert found.ranking.false_by == "groups"
    assert placed(found.ranking) == [(1, "fixed"), (2, "false")]
    best, worst = found.ranking.runs
    assert best.measures["false_share"].value == 0
    assert worst.measures["false_share"].value > 0.7
    assert worst.behind.low > 0
    assert any("by groups none is false" in note for note in found.ranking.notes)
    sides = [found.after, found.before] if turned else [found.before, found.after]
    assert sides[0].measured.numbers["false_source"] == "groups"
    assert sides[1].measured.numbers["groups_removed"]  # of the run by itself, groups tell nothing


def test_a_run_more_does_not_turn_the_order_of_the_others(runs: list[hardneg.Run], tmp_path: Path) -> None:
    bad = runs[2]
    random = select(bad, SelectOptions(sampler="uniform"), tmp_path / "uniform")
    before = rank([bad, random])
    assert placed(before) == [(1, "uniform"), (2, "false")]  # by hardness alone, it is the other way round
    fixed = select(bad, SelectOptions(add_filters=("group",)), tmp_path / "fixed")
    for given in ([bad, random, fixed], [fixed, random, bad]):
        found = rank(given)
        assert [each for _, each in placed(found) if each != "fixed"] == ["uniform", "false"]
        shares = {each.name: each.measures["useful"].value for each in found.runs}
        assert all(shares[each.name] == each.measures["useful"].value for each in before.runs)
    # Of a run whose groups are others, nothing is known: it has no place.
    other = Subject.of_run(fixed)
    assert other.pairs.query_groups is not None
    other = replace(other, name="x", pairs=replace(other.pairs, query_groups=other.pairs.query_groups[::-1].copy()))
    found = ranking([other, *map(Subject.of_run, (bad, random))], 0.05)
    assert placed(found) == [(1, "uniform"), (2, "false"), (None, "x")]
    assert "useful" not in found.runs[2].measures
    assert any("how many negatives of x are false is not known" in note for note in found.notes)
    assert ranking_rows(found.to_json())[1][2][:4] == ("?", "x", "?", "?")
    only = rank([runs[0], runs[3]])
    assert only.false_by == "groups"
    assert any("the order is that of hardness" in note for note in only.notes)


def test_one_calibrated_run_judges_the_others(
    runs: list[hardneg.Run], encoders: list[hardneg.Run], tmp_path: Path
) -> None:
    """A posterior is enough for all runs of its encoder: it says about what the groups say, which these runs do not have."""
    pairs = without_groups(runs[2].pairs())
    plain = mine(pairs, tmp_path / "plain", MineOptions(depth=100))
    deep = mine(pairs, tmp_path / "deep", MineOptions(depth=250, sampler="uniform"))
    unknown = rank([plain, deep])
    assert unknown.false_by == "unknown"
    assert placed(unknown) == [(1, "plain"), (2, "deep")]  # the one with most false negatives
    (note,) = [each for each in unknown.notes if "not known for all runs" in each]
    assert typed(note) == [["calibrate", str(deep.folder)], ["compare", str(plain.folder), str(deep.folder)]]
    assert run_here("calibrate", plain.folder).returncode == 0
    for given in ([plain, deep], [deep, plain]):
        found = rank(given)
        assert found.false_by == "posterior"
        assert placed(found) == [(1, "deep"), (2, "plain")]
        assert any(f"deep is judged by the posterior {plain.folder}" in note for note in found.notes)
    grouped = runs[2].pairs()
    assert grouped.query_groups is not None
    assert grouped.document_groups is not None
    for run, each in zip((deep, plain), found.runs, strict=True):
        truth = grouped.document_groups[Subject.of_run(run).documents] == grouped.query_groups[:, None]
        assert each.measures["false_share"].value == pytest.approx(truth.mean(), abs=0.1)
    two = compare(plain, deep).ranking
    assert (two.false_by, placed(two)) == ("posterior", placed(found))
    # It is not valid for another encoder: that run has no place until it is calibrated, and the others keep theirs.
    other = encoders[0]
    found = rank([other, plain, deep])
    assert placed(found) == [(1, "deep"), (2, "plain"), (None, "c_a")]
    (note,) = [each for each in found.notes if "it has no place" in each]
    *commands, last = typed(note)
    assert [each[0] for each in commands] == ["calibrate"]
    for words in commands:
        assert run_here(*words).returncode == 0
    done = run_here(*last, "--json")
    (other.folder / "posterior.json").unlink()
    value = json.loads(done.stdout)
    assert [each["place"] for each in value["runs"]].count(None) == 0
    order = [Path(each["name"]).name for each in value["runs"]]
    assert order.index("deep") < order.index("plain")
    assert any("not judged by one posterior" in each for each in value["notes"])


def typed(note: str) -> list[list[str]]:
    """The commands of a note, as arguments."""
    quoted = note[note.index("'hardneg") + 1 : note.index("' tells it")]
    return [shlex.split(each)[1:] for each in quoted.split(" && ")]


@pytest.mark.slow
def test_a_posterior_of_other_candidates_is_not_lent(runs: list[hardneg.Run], tmp_path: Path) -> None:
    """Nor is one that tells nothing, for which judgements are asked."""
    pairs = without_groups(runs[2].pairs())
    plain = mine(pairs, tmp_path / "plain", MineOptions(depth=60))
    fused = mine(pairs, tmp_path / "fused", MineOptions(depth=60, candidates=("dense", "bm25")))
    uniform = select(plain, SelectOptions(sampler="uniform"), tmp_path / "uniform")
    posterior = hardneg.calibrate(plain)
    posterior.save(plain.folder / "posterior.json")
    assert rank([plain, fused]).false_by == "unknown"
    assert rank([plain, uniform]).false_by == "posterior"
    dull = replace(posterior, report={**posterior.report, "uninformative": "nothing tells them apart"})
    dull.save(plain.folder / "posterior.json")
    found = rank([plain, uniform])
    assert found.false_by == "unknown"
    assert any(f"hardneg judge {plain.folder} --sample 300" in note for note in found.notes)


@pytest.mark.parametrize("turned", [False, True])
def test_encoders_that_contradict_each_other_do_not_decide(encoders: list[hardneg.Run], turned: bool) -> None:
    """Each run looks harder to its own encoder; the order in which they are given changes nothing."""
    one, two, deep = encoders
    for given, first in ((encoders[:2], [(1, "c_a"), (1, "c_b")]), (encoders, [(1, "c_a"), (1, "c_b"), (3, "c_deep")])):
        found = rank(given[::-1] if turned else given)
        assert sorted(placed(found)) == first
        assert found.scored_by == [str(one.folder), str(two.folder)]
        by = {each.name: [number.value for number in each.useful_by.values()] for each in found.runs}
        assert by[str(one.folder)][0] > by[str(two.folder)][0]
        assert by[str(one.folder)][1] < by[str(two.folder)][1]
        second = found.runs[1]
        assert second.behind.low < 0 < second.behind.high
        (note,) = [each for each in found.notes if "cannot be told apart" in each]
        assert f"{one.folder} promises to teach more by the vectors of {one.folder} (+0.0" in note
        assert f"{two.folder} by those of {two.folder} (+0.0" in note
    # Deeper negatives are easier to both encoders, also to that which found them.
    found = rank([deep, one] if turned else [one, deep])
    assert placed(found) == [(1, "c_a"), (2, "c_deep")]
    assert found.runs[1].behind.low > 0
    assert not any("cannot be told apart" in note for note in found.notes)


def test_whose_vectors_scored_is_said(encoders: list[hardneg.Run], tmp_path: Path) -> None:
    one, two, deep = (str(each.folder) for each in encoders)
    page = tmp_path / "r.html"
    several = run_here("compare", one, two, deep, "--html", page).stdout
    for text in (several, page.read_text()):
        assert f"useful by the vectors of {one}: {one} 0." in text
        assert f"useful by the vectors of {two}: " in text
    assert f"All are scored by the vectors of {two}." in run_here("compare", two, deep).stdout
    value = json.loads(run_here("compare", one, two, "--json").stdout)["ranking"]
    assert value["scored_by"] == [one, two]
    assert set(value["runs"][0]["useful_by"]) == {one, two}
    # A run that keeps no vectors is scored by those of the others, which is said; without any, each by its own scores.
    subjects = [Subject.of_run(each) for each in encoders[:2]]
    found = ranking([replace(subjects[0], vectors=None), subjects[1]], 0.05)
    assert found.scored_by == [two]
    assert any(f"{one} keeps no vectors" in note for note in found.notes)
    found = ranking([replace(each, vectors=None) for each in subjects], 0.05)
    assert found.scored_by == []
    assert any("no run keeps vectors" in note for note in found.notes)


def test_unknown_false_negatives_are_said(encoders: list[hardneg.Run], tmp_path: Path) -> None:
    runs = encoders
    found = rank([run.folder for run in runs])
    assert found.false_by == "unknown"
    assert any("hardneg calibrate" in note for note in found.notes)
    write_ranking(found, tmp_path / "ranking.html")
    page = (tmp_path / "ranking.html").read_text()
    assert str(runs[0].folder) in page
    assert "<script" not in page
    with pytest.raises(UsageError, match="two or more"):
        rank([runs[0]])


def test_the_command_compares_any_number(runs: list[hardneg.Run], tmp_path: Path) -> None:
    folders = [str(run.folder) for run in runs]
    done = run_here("compare", *folders, "--json", "--html", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert len(value["runs"]) == 4
    assert (tmp_path / "r.html").exists()
    two = run_here("compare", folders[0], folders[3])
    assert "behind the first" in two.stdout
    assert run_here("compare", folders[0]).returncode == 2


@pytest.mark.slow
def test_groups_stay_the_truth_where_one_run_was_calibrated(runs: list[hardneg.Run], tmp_path: Path) -> None:
    calibrated = hardneg.calibrate(runs[2])
    calibrated.save(tmp_path / "posterior.json")
    filtered = select(
        runs[2], SelectOptions(add_filters=(f"posterior:{tmp_path}/posterior.json",)), tmp_path / "filtered"
    )
    assert Subject.of_run(filtered).probability is not None
    found = compare(runs[2], filtered)
    for side in (found.before, found.after):
        assert side.measured.numbers["false_source"] == "groups"
    assert found.ranking.false_by == "groups"


def test_fixes_carry_the_filters_on(runs: list[hardneg.Run], tmp_path: Path) -> None:
    """The command that mines again can be typed, also after a selection, and has the selection's filters."""
    source = tmp_path / "a pairs.jsonl"
    source.write_text("\n".join(json.dumps({"query": f"q {i} x", "positive": f"p {i} x"}) for i in range(30)))
    out = tmp_path / "mined here"
    from hardneg_cli import mine as command  # noqa: F401  the command line is in the same process

    done = run_here("mine", source, "--out", out, "--filter", "rank:min=2", "--depth", "20")
    assert done.returncode == 0, done.stderr
    info = hardneg.Run(out).info
    info = {**info, "command": ["mine", str(source), "--out", str(out), "--filter=rank:min=2", "--depth", "20"]}
    text = mine_again(
        {**info, "config": {**info["config"], "filters": ["rank:min=2", "margin:relative=0.05"]}}, str(out)
    )
    name, *words = shlex.split(text)
    assert name == "hardneg"
    again = run_here(*words, "--depth", "25")
    assert again.returncode == 0, again.stderr
    config = hardneg.Run(f"{out}-2").info["config"]
    assert list(config["filters"]) == ["rank:min=2", "margin:relative=0.05"]
    assert config["depth"] == 25


def test_a_posterior_that_rejects_nothing_is_said(runs: list[hardneg.Run], tmp_path: Path) -> None:
    """A fix never offers a posterior that is there and rejects nothing; one that rejects is used without learning it again."""
    run = select(runs[2], SelectOptions(), tmp_path / "run")
    finding = Finding(
        "x", "error", "t", "n", 1.0, 0.5, [], f"hardneg calibrate {run.folder} && hardneg select {run.folder} --out b"
    )
    assert with_posterior_there(run, [finding])[0].fix == finding.fix
    posterior = hardneg.calibrate(run)
    posterior.save(run.folder / "posterior.json")
    assert with_posterior_there(run, [finding])[0].fix == f"hardneg select {run.folder} --out b"
    replace(posterior, report={**posterior.report, "rejected": 0}).save(run.folder / "posterior.json")
    fix = with_posterior_there(run, [finding])[0].fix
    assert "rejects nothing" in fix
    done = run_here(*shlex.split(fix.partition("#")[0])[1:])
    assert done.returncode == 0, done.stderr
