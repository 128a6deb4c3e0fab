"""Commands that messages advise: they can be typed as they are, with the names of the files that were given."""

# ruff: noqa: F811
from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from hardneg.errors import DataError
from hardneg.false_negatives.calibrate import NotCertified, calibrate

from .conftest import hardneg
from .test_calibrate import data, fill, mined, topic_of  # noqa: F401


def advised(error: pytest.ExceptionInfo[DataError]) -> list[list[str]]:
    """The commands in a message, as a shell reads them."""
    found = re.findall(r"hardneg (judge .*?)(?= keeps|;| \(with the same|, to calibrate|\), then)", str(error.value))
    return [shlex.split(each) for each in found]


def typed(words: list[str]) -> int:
    """Type a command; returns how many pairs it wrote."""
    done = hardneg(*words)
    assert done.returncode == 0, done.stderr
    with open(words[words.index("--out") + 1], newline="") as f:
        return sum(1 for _ in csv.DictReader(f))


def by_model(path: Path, out: Path) -> Path:
    """What a model says that errs in one case of ten, as `judge --judge` writes it."""

    def said(query: str, document: str) -> int:
        right = topic_of(query) == topic_of(document)
        return int(right ^ ((int(query[1:]) * 3 + int(document[1:]) * 13) % 10 == 0))

    with open(fill(path, out, said), newline="") as f:
        rows = list(csv.DictReader(f))
    with open(out, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "judge": "cross-encoder:module:tests.test_calibrate:make_oracle"} for row in rows)
    return out


def test_a_person_alone(mined: Path, tmp_path: Path) -> None:
    assert typed(["judge", str(mined), "--sample", "60", "--out", str(tmp_path / "my f.csv")]) == 60
    person = fill(tmp_path / "my f.csv", tmp_path / "it's done.csv")
    (tmp_path / "it's done-2.csv").write_text("somebody's")
    with pytest.raises(NotCertified) as error:
        calibrate(mined, person)
    ((*words,),) = advised(error)
    assert words[words.index("--judged") + 1] == str(person)
    assert words[words.index("--out") + 1] == str(tmp_path / "it's done-3.csv")
    assert typed(words) == int(words[words.index("--sample") + 1])


@pytest.mark.slow
def test_a_model_that_judged_too_little(mined: Path, tmp_path: Path) -> None:
    """Both ways of drawing the person's pairs: chosen by the model's answers, and a plain sample."""
    typed(["judge", str(mined), "--sample", "60", "--alpha", "0.1", "--out", str(tmp_path / "m.csv")])
    model = by_model(tmp_path / "m.csv", tmp_path / "model.csv")
    with pytest.raises(DataError, match="not by a person") as refused:
        calibrate(mined, model)
    ((*words,),) = advised(refused)
    assert words[words.index("--sample") + 1] == "60"
    for name, more in (("chosen", ["--predictions", str(model)]), ("plain", [])):
        person = tmp_path / f"{name}.csv"
        start = ["judge", str(mined), "--sample", "40", "--alpha", "0.1", "--out", str(person), *more]
        assert typed(start) == 40
        fill(person, person, lambda q, d: 0)
        with pytest.raises(NotCertified, match="the model judged only 60 pairs. Let it judge more first") as error:
            calibrate(mined, person, predictions=model)
        first, second = advised(error)
        assert "--judge" in first
        larger = first[first.index("--out") + 1]
        if name == "chosen":
            assert second[second.index("--predictions") + 1] == larger
            assert typed([*first, "--yes"]) == typed(second) == int(first[first.index("--sample") + 1])
        else:
            assert "--predictions" not in second
            assert second[second.index("--judged") + 1] == str(person)
            assert typed(second) == int(first[first.index("--sample") + 1])


def test_a_model_that_judged_enough(mined: Path, tmp_path: Path) -> None:
    typed(["judge", str(mined), "--sample", "900", "--alpha", "0.1", "--out", str(tmp_path / "m.csv")])
    model, person = by_model(tmp_path / "m.csv", tmp_path / "model.csv"), tmp_path / "p.csv"
    typed(["judge", str(mined), "--sample", "40", "--alpha", "0.1", "--out", str(person), "--predictions", str(model)])
    fill(person, person, lambda q, d: 0)
    with pytest.raises(NotCertified) as error:
        calibrate(mined, person, predictions=model)
    ((*words,),) = advised(error)
    assert words[words.index("--predictions") + 1] == str(model)
    assert typed(words) == int(words[words.index("--sample") + 1])


def test_no_more_pairs_are_advised_or_promised_than_there_are(mined: Path, tmp_path: Path) -> None:
    oracle = "cross-encoder:module:tests.test_calibrate:make_oracle"
    done = hardneg("judge", mined, "--sample", "60", "--judge", oracle, "--out", tmp_path / "m.csv")
    assert done.returncode == 0, done.stderr
    assert re.search(r"--predictions \S+m\.csv --sample 60 ", done.stdout)
    done = hardneg("judge", mined, "--predictions", tmp_path / "m.csv", "--sample", "400", "--out", tmp_path / "p.csv")
    assert done.returncode == 0, done.stderr
    assert "wrote 60 pairs" in done.stdout
    assert "there are no more: --sample 400 asks for more than the model judged in" in done.stdout
