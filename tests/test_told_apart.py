"""A diagnosis knows what it does not know: groups of another run, what a posterior announced, and fixes that can work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg.diagnostics import LiveFindings, diagnose_training
from hardneg.diagnostics.commands import mine_again, with_other_encoder, with_posterior_there
from hardneg.diagnostics.compare import compare
from hardneg.diagnostics.diagnose import diagnose, examine
from hardneg.diagnostics.estimates import Estimate, Measurements
from hardneg.diagnostics.findings.base import Finding
from hardneg.diagnostics.findings.rules import find
from hardneg.diagnostics.findings.thresholds import Thresholds
from hardneg.diagnostics.labels import number_rows, ranking_rows
from hardneg.diagnostics.measures.languages import guessed_language
from hardneg.diagnostics.ranking import rank, ranking
from hardneg.diagnostics.subject import Subject
from hardneg.encoders.hashed import HashedEncoder
from hardneg.errors import RunError
from hardneg.false_negatives.announced import Announced
from hardneg.false_negatives.calibrate import calibrate
from hardneg.false_negatives.model import Posterior, selection_of
from hardneg.mining.mine import mine
from hardneg.mining.options import MineOptions
from hardneg.mining.select import SelectOptions, select
from tests.conftest import run_here, unit

QUERIES = 300


def columns(groups: bool = True, change: str = "") -> hardneg.Pairs:
    """300 questions about 30 topics, with or without the topics as groups."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    topics = [" ".join(rng.choice(words, 4)) for _ in range(30)]
    asked = [f"{topics[i % 30]} {' '.join(rng.choice(words, 2))} {i}" for i in range(QUERIES)]
    answers = [f"{topics[i % 30]} {' '.join(rng.choice(words, 3))} answer{change}" for i in range(QUERIES)]
    return hardneg.Pairs.from_columns(asked, answers, groups=[str(i % 30) for i in range(QUERIES)] if groups else None)


def probability_of(run: hardneg.Run) -> float:
    """The mean probability of the negatives of a run."""
    found = Subject.of_run(run).probability
    assert found is not None
    return float(np.nanmean(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("told")


@pytest.fixture(scope="module")
def with_groups(folder: Path) -> hardneg.Run:
    return mine(columns(), folder / "with", MineOptions(depth=60))


@pytest.fixture(scope="module")
def without(folder: Path) -> hardneg.Run:
    return mine(columns(False), folder / "without", MineOptions(depth=60))


@pytest.fixture(scope="module")
def calibrated(with_groups: hardneg.Run) -> Path:
    """A posterior of 7 negatives that says its score is all there is to relevance, and expects 5 % false ones of them."""
    learned = Posterior(
        ("score",), (20.0,), -15.0, 1.0, "known positives", {"encoder": with_groups.info["fingerprints"]["encoder"]}
    )
    path = with_groups.folder.parent / "p.json"
    learned.save(path)
    seen = select(with_groups, SelectOptions(add_filters=(f"posterior:{path}",)), path.with_name("seen"))
    mean = probability_of(seen)
    report = {"alpha": 0.05, "expected": mean, "selection": selection_of(with_groups.info["config"])}
    path.unlink()
    replace(learned, report=report).save(path)
    return path


@pytest.mark.parametrize("first", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_run_without_groups_is_judged_by_those_of_the_same_texts(
    with_groups: hardneg.Run, without: hardneg.Run, first: bool
) -> None:
    runs = [with_groups, without] if first else [without, with_groups]
    found = compare(*runs)
    shares = [each.measures["false_share"].value for each in found.ranking.runs]
    assert shares[0] == shares[1] > 0.3
    assert found.ranking.false_by == "groups"
    assert len({each.measures["useful"].value for each in found.ranking.runs}) == 1
    assert any("read without groups" in note and str(with_groups.folder) in note for note in found.ranking.notes)
    sides = [each.measured.numbers for each in (found.before, found.after)]
    assert sides[0]["false_source"] == sides[1]["false_source"] == "groups"
    assert sides[0]["false_share"] == sides[1]["false_share"]


def test_groups_of_other_texts_tell_nothing(with_groups: hardneg.Run, tmp_path: Path) -> None:
    others = mine(columns(False, "!"), tmp_path / "others", MineOptions(depth=60))
    found = rank([with_groups, others])
    assert found.false_by == "unknown"
    assert all("false_share" not in each.measures for each in found.runs)
    assert any("not known for all runs" in note for note in found.notes)
    assert "?" in ranking_rows(found.to_json())[1][0]
    other_groups = Subject.of_run(with_groups)
    assert other_groups.pairs.query_groups is not None
    pairs = replace(other_groups.pairs, query_groups=other_groups.pairs.query_groups[::-1].copy())
    found = ranking([Subject.of_run(with_groups), replace(other_groups, name="x", pairs=pairs)], 0.05)
    assert found.false_by == "unknown"
    assert any("different groups" in note for note in found.notes)


def test_queries_without_a_group_are_not_counted_as_without_false_negatives(with_groups: hardneg.Run) -> None:
    whole = Subject.of_run(with_groups)
    assert whole.pairs.query_groups is not None
    some = whole.pairs.query_groups.copy()
    some[: QUERIES // 2] = -1
    half = replace(whole, pairs=replace(whole.pairs, query_groups=some))
    found = ranking([half, replace(half, name="twin")], 0.05).runs[0].measures
    kept = ranking([whole, replace(whole, name="twin")], 0.05).runs[0].measures
    assert found["false_share"].sample == found["useful"].sample == QUERIES // 2
    assert found["false_share"].value == pytest.approx(kept["false_share"].value, abs=0.1)
    nothing = replace(whole, pairs=replace(whole.pairs, query_groups=np.full_like(some, -1)))
    assert ranking([nothing, replace(nothing, name="twin")], 0.05).false_by == "unknown"


def test_fewer_negatives_than_the_posterior_was_calibrated_for_are_said(
    with_groups: hardneg.Run, calibrated: Path, tmp_path: Path
) -> None:
    same = select(with_groups, SelectOptions(add_filters=(f"posterior:{calibrated}",)), tmp_path / "same")
    assert not [each for each in same.info["warnings"] if "expected to be false" in each]
    assert "false-announced" not in [each.code for each in diagnose(same).findings]
    fewer = select(
        with_groups, SelectOptions(add_filters=(f"posterior:{calibrated}",), negatives=2), tmp_path / "fewer"
    )
    (note,) = [each for each in fewer.info["warnings"] if "expected to be false" in each]
    mean = probability_of(fewer)
    assert f"about {mean:.1%} of these negatives" in note
    assert "negatives 7 then, 2 now" in note
    assert "hardneg calibrate" in note
    found = diagnose(fewer)
    announced = found.measured.numbers["false_announced"]
    assert mean > 1.25 * announced
    finding = next(each for each in found.findings if each.code == "false-announced")
    assert finding.value == pytest.approx(mean)
    assert f"{announced:.1%}" in finding.text
    assert "negatives 7 then, 2 now" in finding.text
    assert finding.fix.startswith(f"hardneg calibrate {fewer.folder} && hardneg select {fewer.folder}")
    mined = mine(
        columns(), tmp_path / "mined", MineOptions(depth=60, negatives=2, filters=(f"posterior:{calibrated}",))
    )
    assert note in mined.info["warnings"]


def test_a_calibration_keeps_the_selection_that_it_is_for(tmp_path: Path) -> None:
    run = mine(columns(False), tmp_path / "run", MineOptions(depth=40, negatives=5))
    report = calibrate(run).report
    assert report["selection"] == selection_of(run.info["config"])
    said = Announced.of(report)
    assert said is not None
    assert said.changed({**run.info["config"], "negatives": 3}) == ["negatives 5 then, 3 now"]
    assert said.differs(said.expected, {**run.info["config"], "sampler": "uniform"})
    assert not said.differs(said.expected, run.info["config"])
    assert Announced.of({"expected": float("nan")}) is None
    assert Announced.of({"expected": True}) is None


def test_a_posterior_of_another_selection_is_calibrated_again(
    with_groups: hardneg.Run, calibrated: Path, tmp_path: Path
) -> None:
    """One that was calibrated for this selection, and is used, is not."""
    fix = "hardneg calibrate run && hardneg select run --add-filter posterior:run/posterior.json --out run-2"
    finding = Finding("near-query", "warning", "", "near_query_positives", 0.2, 0.05, [], fix)
    for negatives, again in ((7, False), (2, True)):
        options = SelectOptions(add_filters=(f"posterior:{calibrated}",), negatives=negatives)
        run = select(with_groups, options, tmp_path / str(negatives))
        (run.folder / "posterior.json").write_bytes(
            calibrated.read_bytes().replace(b'"report": {', b'"report": {"rejected": 9, ')
        )
        (found,) = with_posterior_there(run, [finding])
        assert ("hardneg judge" not in found.fix) == again, found.fix


def test_groups_stand_beside_a_posterior_and_a_disagreement_is_said(
    with_groups: hardneg.Run, calibrated: Path, tmp_path: Path
) -> None:
    run = select(with_groups, SelectOptions(add_filters=(f"posterior:{calibrated}",)), tmp_path / "run")
    subject = replace(Subject.of_run(run), level_range=(0.0, 0.0))
    truth = examine(replace(subject, probability=None)).measured.numbers["false_share"]
    low = replace(subject, probability=np.where(subject.real, np.float32(0.01), np.nan).astype(np.float32))
    found = examine(low)
    assert found.measured.numbers["false_source"] == "posterior"
    assert found.measured.numbers["false_by_groups"] == truth
    labels = {label: value for label, value, _ in number_rows(found.measured.to_json()["numbers"])}
    assert labels["false negatives, by posterior"] == "1.0%"
    assert labels["false negatives, by groups"] == f"{truth.value:.1%}"
    finding = next(each for each in found.findings if each.code == "groups-disagree")
    assert f"by groups {truth.value:.1%}" in finding.text
    assert "groups are broader than relevance" in finding.text
    equal = replace(subject, probability=np.where(subject.real, np.float32(truth.value), np.nan).astype(np.float32))
    assert "groups-disagree" not in [each.code for each in examine(equal).findings]


def test_another_encoder_leaves_out_what_holds_for_the_old_one() -> None:
    filters = ["group", "posterior:run/p.json", "margin:absolute=0.1", "margin:relative=0.1", "score:max=0.9"]
    command = [
        "mine",
        "a.csv",
        "--encoder",
        "st:OLD",
        "--query-prompt=q ",
        "--out",
        "run",
        "--filter",
        "posterior:run/p.json",
    ]
    info = {"command": command, "selections": [], "config": {"filters": filters}}
    text, _, note = with_other_encoder(info, "run", "st:NAME").partition("   # ")
    assert text == "hardneg mine a.csv --filter group --filter margin:relative=0.1 --out run-2 --encoder st:NAME"
    assert all(
        each in note
        for each in ("posterior:run/p.json", "margin:absolute=0.1", "score:max=0.9", "hardneg calibrate run-2")
    )
    assert "--filter posterior:run/p.json" in mine_again(info, "run")  # with the same encoder it stays
    info["config"] = {"filters": ["group"]}
    assert "#" not in with_other_encoder(info, "run", "st:NAME")


def test_a_posterior_of_another_encoder_is_refused_before_anything_is_encoded(calibrated: Path, tmp_path: Path) -> None:
    encoded: list[int] = []

    class Counting(HashedEncoder):
        def encode(self, *texts: Any, **more: Any) -> Any:
            encoded.append(1)
            return super().encode(*texts, **more)

    options = MineOptions(depth=20, filters=(f"posterior:{calibrated}",))
    with pytest.raises(RunError, match="learned with another encoder"):
        mine(columns(), tmp_path / "run", options, encoder=Counting(16))
    assert not encoded
    assert not (tmp_path / "run").exists()
    vectors = unit(np.random.default_rng(0).standard_normal((QUERIES, 8)))
    with pytest.raises(RunError, match="learned with another encoder"):
        mine(columns(), tmp_path / "run", options, vectors=(vectors, vectors))
    assert not (tmp_path / "run").exists()


def subject_of(run: hardneg.Run, scores: list[float]) -> Subject:
    """A run whose negatives have these scores, and whose positives have a score of 0.45."""
    subject = Subject.of_run(run)
    subject.scores[:, : len(scores)] = scores
    subject.documents[:, len(scores) :] = -1
    subject.scores[:, len(scores) :] = np.nan
    return replace(subject, positive=np.full(QUERIES, 0.45, np.float32))


@pytest.mark.parametrize(
    "scores",
    [
        [0.2, 0.18, 0.17, 0.17, 0.16],
        [0.44, 0.3, 0.2],
        *(pytest.param(each, marks=pytest.mark.slow) for each in ([0.38, 0.37, 0.36], [0.1, 0.09], [0.5, 0.49, 0.0])),
    ],
)
def test_no_temperature_is_advised_that_makes_another_finding(with_groups: hardneg.Run, scores: list[float]) -> None:
    subject = subject_of(with_groups, scores)
    about = {"taught-out", "temperature-low", "temperature-high"}
    numbers = examine(subject).measured.numbers
    low, high = numbers["temperature_low"], numbers["temperature_high"]
    for t in (low, (low * high) ** 0.5, high):
        codes = {each.code for each in examine(subject, temperature=t).findings}
        assert not codes & about, (t, codes)
    for t in (0.01, 0.02, 0.05, 0.1):
        found = {each.code: each for each in examine(subject, temperature=t).findings}
        assert not {"taught-out", "temperature-high"} <= set(found), t
        if "taught-out" in found and t < low:
            assert f"between {low:.3g} and {high:.3g}" in found["taught-out"].fix


def test_the_others_of_a_batch_count_for_the_highest_temperature(with_groups: hardneg.Run) -> None:
    """Three equal negatives count alike at any temperature; far more than random documents they count at 0.05."""
    subject = subject_of(with_groups, [0.4, 0.4, 0.39])
    found = examine(subject, temperature=0.05)
    assert found.measured.numbers["temperature_high"] > 0.05
    assert "temperature-high" not in [each.code for each in found.findings]
    assert "temperature-high" in [each.code for each in examine(subject, temperature=3.0).findings]


def test_a_fix_says_what_it_costs(with_groups: hardneg.Run) -> None:
    found = diagnose(with_groups)
    finding = next(each for each in found.findings if each.code == "false-negatives")
    now, then = found.alternatives[:2]
    assert then.added == ("group",)
    assert f"mean score {now.mean_score:.3f} -> {then.mean_score:.3f}" in finding.fix
    assert f"still teach {now.teaching:.0%} -> {then.teaching:.0%}" in finding.fix
    assert now.teaching == pytest.approx(found.measured.numbers["teaching"].value, abs=1e-6)
    assert "groups are as narrow as relevance" in finding.text
    assert then.false_share is None  # the filter leaves none that groups could tell of: that is not 0
    assert now.false_share == pytest.approx(found.measured.numbers["false_share"].value, abs=0.01)


def test_no_fix_asks_for_what_is_there() -> None:
    def fix(code: str, **numbers: object) -> str:
        measured = Measurements({"relative": 0.0, **numbers})
        return next(each.fix for each in find(measured, Thresholds(), "run") if each.code == code)

    assert fix("easy", sampler="uniform").startswith("hardneg select run --sampler top")
    assert "--sampler" not in fix("easy", sampler="top")
    others = {"others_positives": Estimate(0.9, 0.8, 1.0, 100), "others_expected": 0.1}
    assert "--sampler uniform" in fix("others-positives", sampler="top", **others)
    assert "--sampler uniform" not in fix("others-positives", sampler="uniform", **others)


def log_of(folder: Path, rows: list[dict[str, float]]) -> Path:
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps({"schema": "hardneg-train-1", "finished": True}))
    lines = [json.dumps({"step": 10 * i, "temperature": 0.05, **row}) for i, row in enumerate(rows, 1)]
    (folder / "log.jsonl").write_text("\n".join(lines))
    return folder


def test_a_training_that_masks_much_is_said(tmp_path: Path) -> None:
    much = {"masked": 0.41, "rejected/known": 0.02, "rejected/posterior": 0.03}
    found = diagnose_training(log_of(tmp_path / "much", [much] * 4))
    (finding,) = found.findings
    assert finding.code == "masked-much"
    assert "since step 10: 41% of the documents of a batch are masked" in finding.text
    assert "reject only 5% of the nearest candidates" in finding.text
    assert "threshold=" in finding.fix
    for fine in ({**much, "masked": 0.2}, {**much, "rejected/group": 0.5}, {"teaching": 0.9}):
        assert not diagnose_training(log_of(tmp_path / str(len(fine) + len(str(fine))), [fine] * 4)).findings
    live = LiveFindings()
    assert [len(live.look(step, {"masked": 0.4})) for step in (1, 2, 3)] == [0, 0, 1]


def test_a_training_whose_number_goes_to_and_fro_has_no_finding_and_that_is_said(tmp_path: Path) -> None:
    rows = [{"teaching": each} for each in (0.45, 0.52, 0.55, 0.47, 0.6, 0.49, 0.27)]
    done = run_here("diagnose", log_of(tmp_path / "t", rows))
    assert "no problem that the last 3 entries all show" in done.stdout


def test_words_of_a_diagnosis(with_groups: hardneg.Run, without: hardneg.Run) -> None:
    assert [guessed_language(text) for text in ("krk zvk", "Как дела?", "안녕하세요")] == [
        "Latin script",
        "Cyrillic script",
        "Korean",
    ]
    said = run_here("diagnose", with_groups.folder).stdout
    assert "those that use them" not in said
    assert "suit them" in said
    assert "useful: the softmax weight" in run_here("compare", with_groups.folder, without.folder).stdout
