"""Text that many documents or queries share is found, and is no copy of anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hardneg
from hardneg.diagnostics.diagnose import Diagnosis, diagnose
from hardneg.diagnostics.findings.base import Finding
from hardneg.diagnostics.measures.boilerplate import boilerplate, shared_run
from hardneg.diagnostics.measures.copies import trimmed
from hardneg.diagnostics.subject import Subject
from hardneg.mining.mine import mine
from hardneg.mining.options import MineOptions

FOOTER = (
    " This message and any attachment are confidential and meant for the addressee alone. If you have received it in error, "
    "please delete it, and tell the sender so at once."
)
LICENCE = "Licensed under the terms of the common licence; you may not use this text but under them. " * 6
PROMPT = "Represent this question for searching relevant passages: "
N = 200


def columns(words: int, seed: int = 0, count: int = N) -> tuple[list[str], list[str], list[str]]:
    """So many queries, their positives of so many words, and twice as many other documents."""
    rng = np.random.default_rng(seed)
    names = [f"{i}word{i * 7 % 600}" for i in range(600)]
    texts = [" ".join(rng.choice(names, words)) for _ in range(3 * count)]
    asked = [f"{' '.join(text.split()[: max(4, words // 3)])} case {i}" for i, text in enumerate(texts[:count])]
    return asked, texts[:count], texts[count:]


def found(folder: Path, asked: list[str], given: list[str], others: list[str]) -> Diagnosis:
    pairs = hardneg.Pairs.from_columns(asked, given, corpus=others)
    return diagnose(mine(pairs, folder / "run", MineOptions(depth=50)))


def of(diagnosis: Diagnosis, code: str = "boilerplate") -> list[Finding]:
    return [each for each in diagnosis.findings if each.code == code]


@pytest.mark.parametrize("words", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_clean_texts_have_none(tmp_path: Path, words: int) -> None:
    diagnosis = found(tmp_path, *columns(words))
    assert not of(diagnosis)
    assert diagnosis.measured.numbers["document_boilerplate"].value < 0.02
    assert diagnosis.measured.numbers["query_boilerplate"].value < 0.02


def test_a_footer_of_all_documents_is_no_copy(tmp_path: Path) -> None:
    """Short texts that end with the same words: they share most of their shingles, and nothing of what they say."""
    asked, given, others = columns(12, count=80)
    plain = found(tmp_path / "plain", asked, given, others)
    diagnosis = found(tmp_path / "foot", asked, [t + FOOTER for t in given], [t + FOOTER for t in others])
    assert plain.measured.numbers["copied_near"].value == 0
    assert diagnosis.measured.numbers["copied_near"].value == 0
    assert not of(diagnosis, "copied")
    (finding,) = of(diagnosis)
    assert finding.number == "document_boilerplate"
    assert (finding.value, finding.severity) == (1, "warning")
    assert f"100% of the documents end with the same {len(FOOTER) - 1} characters" in finding.text
    assert "this message and any attachment" in finding.text
    assert "--document-prompt" in finding.fix
    assert finding.ids


@pytest.mark.slow
def test_copies_are_found_beside_a_footer(tmp_path: Path) -> None:
    asked, given, others = columns(24)
    others[:N] = [f"{text} updated twice" for text in given]
    plain = found(tmp_path / "plain", asked, given, others)
    diagnosis = found(tmp_path / "foot", asked, [t + FOOTER for t in given], [t + FOOTER for t in others])
    before, now = (each.measured.numbers["copied_near"].value for each in (plain, diagnosis))
    assert before > 0.1
    assert now == pytest.approx(before, abs=0.01)
    assert of(diagnosis, "copied")


@pytest.mark.parametrize("share", [0.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_licence_before_long_documents(tmp_path: Path, share: float) -> None:
    asked, given, others = columns(300, count=80)
    rng = np.random.default_rng(1)
    given, others = ([LICENCE + t if rng.random() < share else t for t in each] for each in (given, others))
    (finding,) = of(found(tmp_path, asked, given, others))
    assert finding.value == pytest.approx(share, abs=0.05)
    assert "documents begin with the same 539 characters" in finding.text


def test_an_instruction_before_all_queries(tmp_path: Path) -> None:
    asked, given, others = columns(30, count=80)
    (finding,) = of(found(tmp_path, [PROMPT + text for text in asked], given, others))
    assert finding.number == "query_boilerplate"
    assert "100% of the queries begin with the same" in finding.text
    assert "represent this question for searching relevant passages" in finding.text
    assert "--query-prompt" in finding.fix


def test_copies_of_one_text_are_no_boilerplate(tmp_path: Path) -> None:
    """Equal texts count once, so that a page that stands there 200 times is none."""
    asked, given, others = columns(12)
    pairs = hardneg.Pairs.from_columns(
        asked, given, corpus=[*others[:N], *["the page that you asked for was not found on this server"] * N],
        corpus_ids=[f"c{i}" for i in range(2 * N)],
    )  # fmt: skip
    run = mine(pairs, tmp_path / "run", MineOptions(depth=50))
    measured = boilerplate(Subject.of_run(run), np.random.default_rng(0))
    assert measured.numbers["document_boilerplate"].value < 0.02


def test_shared_runs_are_those_of_a_slow_search() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        part = "".join(rng.choice(list("abc d"), 60)).strip()
        texts = ["".join(rng.choice(list("xyz "), rng.integers(0, 90))) for _ in range(30)]
        holds = rng.random(30) < 0.4
        texts = [f"{t[:20]}{part if held else ''}{t[20:]}" for t, held in zip(texts, holds, strict=True)]
        shared = shared_run(texts)
        assert shared is not None
        windows = {text[i : i + 40] for text in texts for i in range(len(text) - 39)}
        most = max(sum(window in text for text in texts) for window in windows)
        assert most == holds.sum() == shared.holds.sum()
        assert part in shared.text
        assert (shared.holds == holds).all()
    assert shared_run([]) is None
    assert shared_run(["short", "short"]) is None
    assert shared_run(["a" * 60, "b" * 60]) is None


def test_words_are_trimmed_at_both_ends_alone() -> None:
    common = {"a b c d e", "b c d e f"}
    assert trimmed(["a", "b", "c", "d", "e", "f", "x", "y"], common) == ["x", "y"]
    assert trimmed(["x", "y", "a", "b", "c", "d", "e", "f"], common) == ["x", "y"]
    assert trimmed(["x", "a", "b", "c", "d", "e", "f", "y"], common) == ["x", "a", "b", "c", "d", "e", "f", "y"]
    assert trimmed(["a", "b", "c", "d", "e", "f"], common) == []
    assert trimmed(["a", "b", "c", "d", "e", "x", "a", "b", "c", "d", "e"], common) == ["x"]
    assert trimmed(["a", "b"], common) == ["a", "b"]
