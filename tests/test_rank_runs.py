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
from hardneg.diagnostics.ranking import rank, ranking
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
    """Where a filter `group` hides the groups from some runs, order is by hardness and that is said; the truth is given here."""
    subjects = [
        replace(Subject.of_run(run), info={**run.info, "counts": {**run.info["counts"], "verdicts": {}}})
        for run in runs
    ]
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
    assert first.measures["useful"].value == pytest.approx(np.mean(values), abs=1e-4)


def test_unknown_false_negatives_are_said(runs: list[hardneg.Run], tmp_path: Path) -> None:
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
