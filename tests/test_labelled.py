"""What a diagnosis says of the labelled pairs themselves, and of what leaks, whatever the negatives are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg.diagnostics.diagnose import Diagnosis, diagnose
from hardneg.diagnostics.ranking import rank
from hardneg.errors import UsageError

from .conftest import unit
from .test_diagnose_data import mined

N = 300


def parts(seed: int = 0) -> tuple[list[str], list[str], list[str], np.ndarray, np.ndarray]:
    """Queries, their positives, other documents, and vectors: each query is near its positive."""
    rng = np.random.default_rng(seed)
    names = [f"word{i}" for i in range(400)]
    texts = [" ".join(rng.choice(names, 20)) for _ in range(2 * N)]
    asked = [f"query {i} " + " ".join(text.split()[:5]) for i, text in enumerate(texts[:N])]
    d = unit(rng.standard_normal((2 * N, 48)))
    return asked, texts[:N], texts[N:], unit(d[:N] + 0.6 * unit(rng.standard_normal((N, 48)))), d


def found(
    folder: Path, asked: list[str], given: list[str], others: list[str], q: Any, d: Any, **options: Any
) -> Diagnosis:
    ids = [f"d{i}" for i in range(2 * N)]
    pairs = hardneg.Pairs.from_columns(asked, given, corpus=others) if len(set(given)) == N and all(given) else None
    if pairs is None:  # with ids, as equal texts would become one document
        (folder / "beir" / "qrels").mkdir(parents=True)
        import json

        rows = [json.dumps({"_id": i, "text": t}) for i, t in zip(ids, [*given, *others], strict=True)]
        (folder / "beir" / "corpus.jsonl").write_text("\n".join(rows))
        rows = [json.dumps({"_id": f"q{i}", "text": t}) for i, t in enumerate(asked)]
        (folder / "beir" / "queries.jsonl").write_text("\n".join(rows))
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(N))]
        (folder / "beir" / "qrels" / "train.tsv").write_text("\n".join(lines))
        pairs = hardneg.read_pairs(str(folder / "beir"))
    return diagnose(mined(pairs, q, d, folder, **options))


def codes(diagnosis: Diagnosis) -> dict[str, Any]:
    return {each.code: each for each in diagnosis.findings}


NEW = {"empty-positives", "common-positive", "answered", "one-vector"}


def test_clean_pairs_have_none(tmp_path: Path) -> None:
    diagnosis = found(tmp_path, *parts())
    assert not NEW & codes(diagnosis).keys()
    numbers = diagnosis.measured.numbers
    assert (numbers["empty_positives"], numbers["equal_positives"], numbers["one_vector"]) == (0, 0, 0)
    assert numbers["common_positive"] == pytest.approx(1 / N)
    assert numbers["common_positive_times"] == 1


@pytest.mark.parametrize("share", [0.04, 0.5])
def test_positives_without_text(tmp_path: Path, share: float) -> None:
    asked, given, others, q, d = parts()
    count = int(share * N)
    given[:count] = [""] * count
    finding = codes(found(tmp_path, asked, given, others, q, d))["empty-positives"]
    assert finding.value == pytest.approx(count / N)
    assert finding.severity == ("error" if share > 0.1 else "warning")
    assert set(finding.ids) <= {f"q{i}" for i in range(count)}
    assert finding.ids


@pytest.mark.parametrize("share", [0.08, 0.5])
def test_one_text_for_many_queries(tmp_path: Path, share: float) -> None:
    asked, given, others, q, d = parts()
    count = int(share * N)
    given[:count] = ["404  Not found" if i % 2 else "404 not found" for i in range(count)]
    finding = codes(found(tmp_path, asked, given, others, q, d))["common-positive"]
    assert finding.value == pytest.approx(count / N)
    assert f"{count} times as many" in finding.text
    assert finding.ids[0] in {f"d{i}" for i in range(count)}


def test_names_of_classes_are_no_such_text(tmp_path: Path) -> None:
    asked, _, others, q, d = parts()
    pairs = hardneg.Pairs.from_columns(asked, [f"class {i % 10}" for i in range(N)], corpus=others)
    np.savez(tmp_path / "d.npz", ids=np.array(pairs.document_ids.to_pylist()), vectors=d[: len(pairs.document_ids)])
    np.save(tmp_path / "q.npy", q)
    given = {"query_embeddings": str(tmp_path / "q.npy"), "corpus_embeddings": str(tmp_path / "d.npz")}
    diagnosis = diagnose(hardneg.mine(pairs, tmp_path / "run", hardneg.MineOptions(depth=20, **given), force=True))
    assert diagnosis.measured.numbers["common_positive"] == pytest.approx(0.1)
    assert "common-positive" not in codes(diagnosis)


@pytest.mark.parametrize("share", [0.04, 0.5])
@pytest.mark.parametrize("how", ["holds", "equals"])
def test_queries_that_hold_their_answer(tmp_path: Path, share: float, how: str) -> None:
    asked, given, others, q, d = parts()
    count = int(share * N)
    for i in range(count):
        asked[i] = f"tell me: {given[i].upper()} please" if how == "holds" else f" {given[i].upper()}"
    diagnosis = found(tmp_path, asked, given, others, q, d)
    finding = codes(diagnosis)["answered"]
    assert finding.value == pytest.approx(count / N)
    assert set(finding.ids) <= {f"{i}" for i in range(count)} | {f"q{i}" for i in range(count)}
    assert diagnosis.measured.numbers["equal_positives"] == pytest.approx(count / N if how == "equals" else 0)


def test_queries_with_the_vectors_of_their_positives(tmp_path: Path) -> None:
    asked, given, others, q, d = parts()
    q[:30] = d[:30]
    finding = codes(found(tmp_path, asked, given, others, q, d))["one-vector"]
    assert finding.value == pytest.approx(0.1)
    # Of inner products, a score says nothing of that.
    other = found(tmp_path / "ip", asked, given, others, q, d, metric="ip")
    assert "one_vector" not in other.measured.numbers


def test_a_few_mislabelled_pairs_are_information(tmp_path: Path) -> None:
    asked, given, others, q, d = parts()
    q[:24] = q[:24][::-1].copy()  # 8 % have the vector of another query
    finding = codes(found(tmp_path, asked, given, others, q, d)).get("mislabelled")
    assert finding is not None
    assert finding.severity == "info"


def test_what_one_query_has_left_says_nothing_of_the_others(tmp_path: Path) -> None:
    asked, given, others, q, d = parts()
    near = unit(np.arange(1, 49.0)[None])[0]  # all other queries find only documents near to them
    d[N:] = unit(near + 0.05 * unit(np.random.default_rng(5).standard_normal((N, 48))))
    q[3:] = unit(q[3:] + 3 * near)
    diagnosis = found(tmp_path, asked, given, others, q, d, filters=("score:max=0.7",))
    assert diagnosis.measured.numbers["none"] > 0.9
    assert not {"hub", "easy", "hub-skew", "slice"} & codes(diagnosis).keys()
    assert "few-negatives" in codes(diagnosis)


def test_training_queries_that_leak_are_named(tmp_path: Path) -> None:
    asked, given, others, q, d = parts()
    pairs = hardneg.Pairs.from_columns(asked, given, corpus=others)
    run = mined(pairs, q, d, tmp_path)
    texts = [f"another question {i} of nobody" for i in range(40)]
    texts[3], texts[7] = asked[11].upper(), asked[20] + " now"
    evaluation = hardneg.Pairs.from_columns(
        texts, [given[11] if i == 3 else f"answer number {i} to it" for i in range(40)]
    )
    numbers = diagnose(run, evaluation=evaluation).measured
    assert numbers.ids["leaked_training_ids"] == [pairs.query_ids[11].as_py(), pairs.query_ids[20].as_py()]
    assert numbers.ids["leaked_training_pair_ids"] == [pairs.query_ids[11].as_py()]


def test_an_evaluation_set_may_be_a_path(tmp_path: Path) -> None:
    asked, given, others, q, d = parts()
    run = mined(hardneg.Pairs.from_columns(asked, given, corpus=others), q, d, tmp_path)
    lines = ["query,positive", *(f"{a},{b}" for a, b in zip(asked[:5], given[:5], strict=True))]
    (tmp_path / "test.csv").write_text("\n".join(lines))
    found = diagnose(run, evaluation=tmp_path / "test.csv").measured.numbers
    assert found["leaked_pairs"].value == 1
    with pytest.raises(UsageError, match="evaluation is list: give a dataset"):
        diagnose(run, evaluation=[1])  # type: ignore[arg-type]


def test_temperatures_fit_the_scale_of_inner_products(tmp_path: Path) -> None:
    asked, given, others, q, d = parts()
    pairs = hardneg.Pairs.from_columns(asked, given, corpus=others)
    low_high = []
    for factor in (1, 64):
        run = mined(pairs, q, d * factor, tmp_path / str(factor), metric="ip")
        numbers = diagnose(run, temperature=0.1 * factor).measured.numbers
        low_high.append((numbers["temperature_low"] / factor, numbers["temperature_high"] / factor))
    assert low_high[0] == pytest.approx(low_high[1], rel=1e-3)


def test_runs_with_other_positives_are_not_ranked_without_a_word(tmp_path: Path) -> None:
    asked, given, others, q, d = parts()
    pairs = hardneg.Pairs.from_columns(asked, given, corpus=others)
    values = pairs.positives.values.copy()
    values[:20] = np.roll(values[:20], 1)
    moved = replace(pairs, positives=replace(pairs.positives, values=values))
    runs = [mined(each, q, d, tmp_path / name) for name, each in (("a", pairs), ("b", moved))]
    (note,) = [each for each in rank(runs).notes if "different positives" in each]
    assert "for 20 queries" in note
    assert not [each for each in rank([runs[0], mined(pairs, q, d, tmp_path / "c")]).notes if "different" in each]


def test_positives_that_repeat_their_query(tmp_path: Path) -> None:
    """Docstrings that were left in the code; a few words that stand there by chance are none."""
    asked, given, others, q, d = parts()
    given[:90] = [f'def f{i}():\n    """{asked[i].upper()}."""\n    return {given[i]}' for i in range(90)]
    diagnosis = found(tmp_path, asked, given, others, q, d)
    finding = codes(diagnosis)["repeated"]
    assert finding.value == pytest.approx(0.3)
    assert finding.severity == "warning"
    assert "word for word: 30.0% of the pairs" in finding.text
    assert "answered" not in codes(diagnosis)
    assert finding.ids


def test_short_queries_and_those_of_many_texts_repeat_nothing(tmp_path: Path) -> None:
    asked, given, others, q, d = parts()
    for i in range(N):  # names, of which each positive and its negatives speak
        asked[i] = f"topic {i // 10}" if i < 100 else f"all that there is about topic {i // 10} and {i} more"
        given[i] = f"{given[i]} topic {i // 10}" if i < 100 else given[i]
    diagnosis = found(tmp_path / "short", asked, given, others, q, d)
    assert diagnosis.measured.numbers["repeated_queries"].value == 0
    held = " ".join(asked[100:])
    given = [*given[:100], *(f"{text} {held}" for text in given[100:])]
    others = [f"{text} {held}" for text in others]
    diagnosis = found(tmp_path / "many", asked, given, others, q, d)
    assert diagnosis.measured.numbers["repeated_queries"].value < 0.01


def test_documents_that_no_query_is_about_mislabel_nothing(tmp_path: Path) -> None:
    """Half of the positives are no nearer than others of their kind; documents of another kind are no measure of that."""
    rng = np.random.default_rng(0)
    asked, given, others, _, _ = parts()
    far = [f"foreign text {i} of other things" for i in range(5 * N)]
    own, q = rng.standard_normal((2, N, 24))
    own, q = unit(own), unit(unit(own) + 0.9 * unit(q))
    weak = rng.random(N) < 0.5
    q[weak] = unit(q[weak] - 1.1 * own[weak] * (q[weak] * own[weak]).sum(1, keepdims=True))
    d = np.zeros((2 * N + len(far), 48))
    d[:N, :24], d[N : 2 * N, :24], d[2 * N :, 24:] = (
        own,
        unit(rng.standard_normal((N, 24))),
        rng.standard_normal((len(far), 24)),
    )
    pairs = hardneg.Pairs.from_columns(asked, given, corpus=[*others, *far])
    values = []
    for name, count in (("own", 2 * N), ("foreign", len(d))):
        some = pairs if count == len(d) else hardneg.Pairs.from_columns(asked, given, corpus=others)
        run = mined(some, np.pad(q, ((0, 0), (0, 24))), unit(d[:count]), tmp_path / name)
        values.append(diagnose(run).measured.numbers["mislabelled"])
    assert values[0].value == values[1].value < 0.2
