"""Candidates of several sources: each source lists what it should, lists are fused as the formulas say, and all commands follow."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardneg import DataError, MineOptions, Pairs, ReadOptions, RunError, UsageError, calibrate, diagnose, mine, select
from hardneg.index.base import Neighbors
from hardneg.mining import Reopened, Run, SelectOptions
from hardneg.mining.parts import PartWriter
from hardneg.mining.sources import BM25, CandidateSource, Interleave, ReciprocalRank, Scores
from hardneg.mining.sources.fusion import Fusion, fuse
from hardneg.mining.sources.trec import _Lists
from tests.conftest import WORDS, run_here, write_jsonl


class Letters:
    """An encoder: counts of letters."""

    dimension = 26

    def encode(self, texts: Any, *, prompt: str = "") -> np.ndarray:
        return np.array([[(prompt + t).lower().count(chr(97 + i)) + 0.1 for i in range(26)] for t in texts], np.float32)

    def fingerprint(self) -> str:
        return "letters"


class Unasked(Letters):
    """An encoder that nobody asks."""

    def encode(self, texts: Any, *, prompt: str = "") -> np.ndarray:
        raise AssertionError("something was encoded before the candidates were looked at")


class Ends(Letters):
    """Another one: first and last letters of words."""

    def encode(self, texts: Any, *, prompt: str = "") -> np.ndarray:
        return super().encode([" ".join(w[0] + w[-1] for w in t.split()) for t in texts], prompt=prompt)

    def fingerprint(self) -> str:
        return "ends"


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(80)]
    queries = [" ".join(rng.permutation(text.split())[:4]) for text in texts[:40]]
    groups = [str(i % 8) for i in range(80)]
    return Pairs.from_columns(queries, texts[:40], corpus=texts[40:], groups=groups[:40], corpus_groups=groups[40:])


@pytest.fixture(scope="module")
def trec(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another system over every second query, with an unknown query and an unknown document."""
    path = tmp_path_factory.mktemp("trec") / "other.run"
    ids, documents = pairs.query_ids.to_pylist(), pairs.document_ids.to_pylist()
    lines = [
        f"{ids[i]}\tQ0 {documents[(7 * i + 3 * r) % 80]} {r} {100 - r / 2} other"
        for i in range(0, 40, 2)
        for r in range(1, 13)
    ]
    path.write_text("\n".join([*lines, f"strange Q0 {documents[0]} 1 5 x", f"{ids[1]} Q0 strange 1 5 x"]) + "\n")
    return path


@pytest.fixture(scope="module")
def fused(pairs: Pairs, trec: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    candidates = ("dense", "bm25", f"trec:{trec},label=other", "encoder:module:tests.test_sources:Ends")
    options = MineOptions(depth=20, negatives=3, candidates=candidates)
    return mine(pairs, tmp_path_factory.mktemp("fused") / "run", options, encoder=Letters())


def naive(fusion: Fusion, lists: list[Neighbors], depth: int) -> list[list[int]]:
    """Fusion by its formula, one query after the other."""
    out = []
    for i in range(len(lists[0].documents)):
        worth: dict[int, float] = {}
        for s, each in enumerate(lists):
            places = [(r, int(d)) for r, d in enumerate(each.documents[i], 1) if d >= 0]
            known = [float(each.scores[i, r - 1]) for r, _ in places]
            for (rank, document), score in zip(places, known, strict=True):
                if isinstance(fusion, ReciprocalRank):
                    value = (fusion.weights[s] if fusion.weights else 1.0) / (fusion.k + rank)
                elif isinstance(fusion, Interleave):
                    value = max(worth.get(document, 0.0), 1 / ((rank - 1) * len(lists) + s + 1))
                    worth[document] = 0.0
                else:
                    spread = max(known) - min(known)
                    value = (score - min(known)) / spread if spread > 0 else 1.0
                worth[document] = worth.get(document, 0.0) + value
        out.append(sorted(worth, key=lambda d: (-round(worth[d], 12), d))[:depth])
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9), st.integers(1, 15))
def test_lists_are_fused_as_the_formulas_say(seed: int, sources: int, width: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(sources):
        documents = np.stack([rng.permutation(20)[:width] for _ in range(3)]).astype(np.int32)
        # Quarters, so that scores are equal at times and sums are exact.
        scores = -np.sort(-rng.integers(0, 9, (3, width)).astype(np.float32) / 4, axis=1)
        empty = np.arange(width) >= rng.integers(0, width + 1, (3, 1))
        lists.append(Neighbors(np.where(empty, -np.inf, scores).astype(np.float32), np.where(empty, -1, documents)))
    weights = tuple(rng.integers(1, 4, sources).astype(float))
    for fusion in (ReciprocalRank(), ReciprocalRank(k=10, weights=weights), Scores(), Interleave()):
        found, listed = fuse(fusion, [str(i) for i in range(sources)], lists, depth)
        expected = naive(fusion, lists, depth)
        worth = [row[row >= 0].tolist() for row in found]
        assert [sorted(row) for row in worth] == [sorted(row) for row in expected] or isinstance(
            fusion, Scores | ReciprocalRank
        )
        for i, row in enumerate(worth):
            assert len(row) == len(expected[i])
            assert (np.diff(listed.fused[i, : len(row)]) <= 0).all()
            for s, each in enumerate(lists):
                place = {int(d): r for r, d in enumerate(each.documents[i], 1) if d >= 0}
                assert listed.ranks[s, i, : len(row)].tolist() == [place.get(d, 0) for d in row]
        if not isinstance(fusion, Scores):
            assert worth == expected


def test_bm25_lists_what_bm25s_does(pairs: Pairs, fused: Run) -> None:
    """The same scores as of the package itself, with its own tokenizer and retrieval."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    texts, queries = pairs.documents.slice(0, 80), pairs.queries.slice(0, 40)
    model = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    model.index(bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    asked = bm25s.tokenize(queries, stopwords="en", stemmer=stemmer, show_progress=False)
    documents, scores = model.retrieve(asked, k=20, show_progress=False)
    part = Reopened(fused).part(0)
    listed = part.candidates.listed
    assert listed is not None
    place = listed.labels.index("bm25")
    checked = 0
    for i in range(40):
        theirs = dict(zip(documents[i].tolist(), scores[i].tolist(), strict=True))
        for j in np.flatnonzero(listed.ranks[place, i]):
            document, rank = int(part.candidates.documents[i, j]), int(listed.ranks[place, i, j])
            assert listed.scores[place, i, j] == pytest.approx(scores[i, rank - 1], rel=1e-5)
            if document in theirs:
                assert listed.scores[place, i, j] == pytest.approx(theirs[document], rel=1e-5)
                checked += 1
    assert checked > 300


def test_every_candidate_has_its_sources_and_the_score_of_the_encoder(pairs: Pairs, fused: Run) -> None:
    vectors = Letters().encode(pairs.queries.slice(0, 40)), Letters().encode(pairs.documents.slice(0, 80))
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in vectors]
    table = pq.read_table(fused.candidate_files()[0]).to_pylist()
    query, document = ({id: i for i, id in enumerate(ids.to_pylist())} for ids in (pairs.query_ids, pairs.document_ids))
    labels = ["dense", "bm25", "other", "encoder"]
    assert fused.info["schema_version"] == 3
    assert list(fused.info["resolved"]["sources"]) == labels
    found = dict.fromkeys(labels, 0)
    for row in table:
        exact = unit[0][query[row["query_id"]]] @ unit[1][document[row["document_id"]]]
        assert row["score"] == pytest.approx(exact, abs=2e-3)  # vectors are stored in 16 bits
        assert row["dense_score"] in (None, row["score"])
        for label in labels:
            found[label] += row[f"{label}_rank"] is not None
        expected = sum(1 / (60 + row[f"{label}_rank"]) for label in labels if row[f"{label}_rank"])
        assert row["fusion_score"] == pytest.approx(expected, rel=1e-6)
    assert found == fused.info["counts"]["sources"]
    assert all(found.values())
    said = " ".join(fused.info["warnings"])
    assert "1 query ids are not in the dataset" in said
    assert "1 document ids are not in the dataset" in said
    assert "lists nothing for 20 of 40 queries" in said


def test_margins_compare_with_the_score_of_the_encoder(fused: Run, tmp_path: Path) -> None:
    run = select(fused, SelectOptions(filters=("margin:relative=0.02",)), tmp_path / "run")
    part = Reopened(run).part(0)
    positive = part.candidates.positive_scores[:, None]
    for row in pq.read_table(run.candidate_files()[0]).to_pylist():
        if row["verdict"] == "kept":
            assert row["score"] <= positive[int(row["query_id"][1:]), 0] * 0.98 + 1e-6
    assert run.info["counts"]["verdicts"]["margin"] > 0
    # Top takes the first of the fused list.
    kept = np.argmax(part.kept, axis=1)
    first = run.negatives()["negative_ranks"].to_pylist()
    assert [ranks[0] - 1 for ranks in first if ranks] == [k for k, ranks in zip(kept, first, strict=True) if ranks]


def test_the_rest_of_the_house_takes_such_runs(fused: Run, tmp_path: Path) -> None:
    found = diagnose(fused)
    sources = found.measured.to_json()["numbers"]["sources"]
    assert list(sources) == ["dense", "bm25", "other", "encoder"]
    assert all(0 <= each["negatives"] <= 1 and 0 <= each["false_rate"] <= 1 for each in sources.values())
    ids = fused.negatives()["negative_ids"].to_pylist()
    rows = {(r["query_id"], r["document_id"]): r for r in pq.read_table(fused.candidate_files()[0]).to_pylist()}
    named = [rows[q, d] for q, ds in zip(fused.negatives()["query_id"].to_pylist(), ids, strict=True) for d in ds]
    assert sources["bm25"]["negatives"] == pytest.approx(np.mean([r["bm25_rank"] is not None for r in named]))
    posterior = calibrate(fused, learn="known")
    posterior.save(tmp_path / "posterior.json")
    chosen = select(fused, SelectOptions(add_filters=(f"posterior:{tmp_path}/posterior.json",)), tmp_path / "chosen")
    assert chosen.sources == fused.sources
    assert chosen.to_dataset("labeled-list", scores=True).num_rows == 40


@pytest.mark.slow
def test_the_same_bytes_in_any_process_and_after_a_kill(
    pairs: Pairs, trec: Path, fused: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = MineOptions(depth=20, negatives=3, candidates=tuple(fused.info["config"]["candidates"]))
    code = (
        "import sys; from pathlib import Path; from tests.test_sources import *\n"
        "run = Run(sys.argv[1]); options = MineOptions(depth=20, negatives=3, candidates=tuple(run.info['config']['candidates']))\n"
        "mine(run.pairs(), sys.argv[2], options, encoder=Letters(), threads=2)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"}
    again = [sys.executable, "-c", code, str(fused.folder), str(tmp_path / "again")]
    subprocess.run(again, check=True, env=environment, cwd=Path(__file__).parent.parent)
    assert files_of(tmp_path / "again") == files_of(fused.folder)
    with monkeypatch.context() as patched:
        patched.setattr(PartWriter, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            mine(pairs, tmp_path / "killed", options, encoder=Letters())
    copy = tmp_path / "copy.run"
    copy.write_text(trec.read_text().replace(" 99.5 ", " 3 "))
    moved = tuple(each.replace(str(trec), str(copy)) for each in options.candidates if isinstance(each, str))
    for finished in (False, True):
        with pytest.raises(RunError, match="candidates:other"):
            mine(
                pairs,
                tmp_path / "killed",
                dataclasses.replace(options, candidates=moved),
                encoder=Letters(),
                resume=True,
            )
        for name in ("fusion", "candidates"):
            other = dataclasses.replace(options, **{name: "interleave" if name == "fusion" else ("dense", "bm25")})
            with pytest.raises(RunError, match=f"other options.*{name}"):
                mine(pairs, tmp_path / "killed", other, encoder=Letters(), resume=True)
        if not finished:
            resumed = mine(pairs, tmp_path / "killed", options, encoder=Letters(), resume=True)
            assert files_of(resumed.folder) == files_of(fused.folder)


def files_of(folder: Path) -> dict[str, str]:
    return {name: sha for name, sha in Run(folder).info["files"].items() if not name.startswith("source/")}


def test_dense_alone_is_what_it_was(pairs: Pairs, tmp_path: Path) -> None:
    plain = mine(pairs, tmp_path / "plain", MineOptions(depth=20), encoder=Letters())
    named = mine(pairs, tmp_path / "named", MineOptions(depth=20, candidates=["dense"]), encoder=Letters())  # type: ignore[arg-type]
    assert plain.info["schema_version"] == 2
    assert "candidates" not in plain.info["config"]
    assert "sources" not in plain.info["counts"]
    assert files_of(plain.folder) == files_of(named.folder)
    assert pq.read_schema(plain.candidate_files()[0]).names == ["query_id", "document_id", "rank", "score", "verdict"]


def test_queries_left_short_are_searched_deeper_in_all_sources(pairs: Pairs, tmp_path: Path) -> None:
    options = MineOptions(
        depth=5, negatives=5, candidates=("bm25", "dense"), fusion="interleave", filters=("rank:min=3",)
    )
    run = mine(pairs, tmp_path / "run", options, encoder=Letters())
    assert run.info["counts"]["widened"] == 40
    assert run.info["counts"]["negatives"] == {"5": 40}
    depths = pq.read_table(run.candidate_files()[0])["bm25_rank"].to_pylist()
    assert max(d for d in depths if d) > 5


def test_what_the_dataset_brings_along(tmp_path: Path) -> None:
    rows = [{"query": f"q {w}", "positive": f"p {w}", "negative": [f"n {w}", f"m {w}"]} for w in WORDS]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    done = run_here("mine", source, "--out", tmp_path / "run", "--candidates", "given", "--negatives", "2", "--json")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "run" / "candidates" / "part-00000.parquet").to_pylist()
    run = Run(tmp_path / "run")
    names = dict(zip(run.pairs().document_ids.to_pylist(), run.pairs().documents.slice(0, 57), strict=True))
    assert [names[r["document_id"]] for r in table[:2]] == [f"n {WORDS[0]}", f"m {WORDS[0]}"]
    assert [r["given_rank"] for r in table[:2]] == [1, 2]
    assert len(table) == 2 * len(WORDS)
    assert all(r["given_score"] is None for r in table)
    assert not len(run.pairs().judged_negatives.values)  # remembered, and judged by nobody
    none = Pairs.from_columns(["a b"], ["c d"], corpus=["e"])
    with pytest.raises(UsageError, match="brings no negatives along"):
        mine(none, tmp_path / "none", MineOptions(candidates=("given",)), encoder=Letters())
    assert ReadOptions(negatives="candidates").negatives == "candidates"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q0 Q0 d0 1", "4 fields"),
        ("q0 Q0 d0 1 nan x", "finite"),
        ("q0 Q0 d0 one 2 x", "finite"),
        ("q0 Q0 d0 1 2 x\nq0 Q0 d0 2 1 x", "there twice for one query"),
        ("other Q0 d0 1 2 x", "none of its 1 lines"),
        ("", "is empty"),
        ("q0\td0\tx", "finite"),
        ("q0\td0\t1\nq0 Q0 d1 2 3 x", "line 2: 6 fields, but the lines before have 3"),
        ("q0 Q0 d0 1 2 x\nq0\td1\t1", "line 2: 3 fields, but the lines before have 6"),
        ("q0\td0\t1\nq0\td1\t2\n", r"counts 1, 2, 3, .*: ranks, .*MS MARCO.* awk "),
    ],
)
def test_damaged_trec_runs_are_refused(pairs: Pairs, tmp_path: Path, line: str, message: str) -> None:
    ids, documents = pairs.query_ids.to_pylist(), pairs.document_ids.to_pylist()
    (tmp_path / "f").write_text(line.replace("q0", ids[0]).replace("d0", documents[0]).replace("d1", documents[1]))
    with pytest.raises(DataError, match=message):
        mine(pairs, tmp_path / "run", MineOptions(candidates=(f"trec:{tmp_path}/f",)), encoder=Unasked())


def test_rankings_of_tevatron_are_the_trec_run_of_the_same_scores(pairs: Pairs, tmp_path: Path) -> None:
    """Three columns; equal scores in the order of the file. The scores of the second file are counted from 1, and yet no ranks."""
    queries, documents = pairs.query_ids.to_pylist(), pairs.document_ids.to_pylist()
    listed = [(query, documents[(3 * i + j) % len(documents)]) for i, query in enumerate(queries) for j in range(5)]
    for name, scores in (("a", [7.5, 9.0, 7.5, -1.0, 2.0]), ("b", [1.0, 2.0, 3.0, 5.0, 4.0])):
        three = [f"{query}\t{document}\t{scores[k % 5]}\n" for k, (query, document) in enumerate(listed)]
        six = [f"{query} Q0 {document} {k + 1} {scores[k % 5]} x\n" for k, (query, document) in enumerate(listed)]
        found = []
        for kind, lines in (("three", three), ("six", six)):
            (tmp_path / f"{name}-{kind}").write_text("".join(lines))
            opened = _Lists(tmp_path / f"{name}-{kind}", "trec", pairs)
            found.append((opened.lists.values.tolist(), opened.lists.offsets.tolist(), opened.scores.tolist()))
        assert found[0] == found[1]
        best = [documents[row] for row in found[0][0][:5]]
        order = sorted(range(5), key=lambda j: -scores[j])
        assert best == [listed[j][1] for j in order]


@pytest.mark.parametrize(
    ("candidates", "fusion", "message"),
    [
        (("bm2",), "rrf", "unknown candidates 'bm2'.*bm25"),
        (("bm25:k1=-1",), "rrf", "k1=-1 must be"),
        (("bm25:b=2",), "rrf", "b=2 must be"),
        (("bm25", "bm25"), "rrf", "there twice"),
        (("bm25:label=a", "bm25:k1=1,label=a"), "rrf", "have the label 'a'"),
        (("bm25:label=A b",), "rrf", "the label 'A b'"),
        (("dense", "bm25"), "rff", "unknown fusion 'rff'.*rrf"),
        (("dense", "bm25"), "rrf:weights=1", "1 weights for 2 sources"),
        (("dense",), "scores", "only one source"),
        ((), "rrf", "empty list"),
        (("trec:",), "rrf", "as in trec:FILE is missing"),
    ],
)
def test_wrong_candidates_are_refused_before_any_work(candidates: Any, fusion: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MineOptions(candidates=candidates, fusion=fusion).validate()


def test_wrong_languages_and_missing_files_are_refused(pairs: Pairs, tmp_path: Path) -> None:
    for source, message in (
        ("bm25:stemmer=englsh", "no stemmer 'englsh'.*english"),
        ("bm25:stopwords=klingon", "no stop words for 'klingon'"),
        ("trec:nowhere.run", "nowhere.run does not exist"),
        ("encoder:nothing:x", "nothing"),
    ):
        with pytest.raises(UsageError, match=message):
            mine(pairs, tmp_path / "run", MineOptions(candidates=(source,)), encoder=Unasked())
        assert not (tmp_path / "run" / "run.json").exists()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


class Backwards(CandidateSource):
    """A source of a user's own: the last documents of the corpus."""

    name = "backwards"

    def open(self, inputs: Any) -> Any:
        return OpenBackwards(len(inputs.pairs.document_ids))


class OpenBackwards:
    fingerprint, notes = None, ()

    def __init__(self, size: int) -> None:
        self.reach = self.size = size

    def search(self, queries: np.ndarray, k: int) -> Neighbors:
        rows = np.tile(np.arange(self.size - 1, self.size - 1 - k, -1, dtype=np.int32), (len(queries), 1))
        return Neighbors(-np.arange(k, dtype=np.float32) + np.zeros((len(queries), 1), np.float32), rows)


def test_a_source_of_ones_own(pairs: Pairs, tmp_path: Path) -> None:
    options = MineOptions(depth=6, candidates=("dense", Backwards()), fusion="interleave", negatives=2)
    run = mine(pairs, tmp_path / "run", options, encoder=Letters())
    part = Reopened(run).part(0).candidates
    assert part.listed is not None
    assert (part.documents[part.listed.ranks[1] == 1] == 79).all()
    assert run.info["config"]["candidates"] == ["dense", "object:tests.test_sources.Backwards(label=)"]


def test_damaged_columns_are_refused(fused: Run, tmp_path: Path) -> None:
    for column, value, message in (
        ("bm25_rank", 0, "below 1"),
        ("fusion_score", 1e9, "order of the column"),
        ("bm25_score", float("nan"), "NaN or infinite"),
    ):
        folder = tmp_path / column
        shutil.copytree(fused.folder, folder)
        path = folder / "candidates" / "part-00000.parquet"
        table = pq.read_table(path)
        values = table[column].to_pylist()
        place = max(i for i, each in enumerate(values) if each is not None)
        values[place] = value
        import pyarrow as pa

        damaged = table.set_column(table.column_names.index(column), column, pa.array(values, table[column].type))
        pq.write_table(damaged, path)
        with pytest.raises(RunError, match=message):
            Reopened(Run(folder, verify=False)).part(0)


def test_bm25_without_words_says_so(tmp_path: Path) -> None:
    pairs = Pairs.from_columns(["the", "a b"], ["of", "I"], corpus=["?", "and"])
    with pytest.raises(DataError, match="no query has a candidate"):
        mine(pairs, tmp_path / "run", MineOptions(candidates=(BM25(),), negatives=1, depth=4), encoder=Letters())
    assert "nothing was listed" in " ".join(Run(tmp_path / "run").info["warnings"])
