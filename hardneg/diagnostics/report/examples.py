"""Example queries: their texts, and their candidates with score and verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.diagnostics.subject import Subject
from hardneg.mining.run import PART_ROWS, Run
from hardneg.storage.arrow import read_parquet

_SHOWN = 14  # candidates per query

_CUT = 320  # characters per text


def choose(subject: Subject, most: int) -> list[tuple[int, str]]:
    """(row, reason) of the queries to show: the most suspicious ones, and those with the hardest negatives."""
    with np.errstate(invalid="ignore"):
        gap = np.nan_to_num(subject.positive[:, None] - subject.scores, nan=np.inf)
    hardest = np.argsort(gap.min(1), kind="stable")
    if subject.probability is not None:
        suspicion = np.nan_to_num(subject.probability, nan=-1.0).max(1)
        what = "likely false negative"
    else:
        suspicion = np.where(np.isfinite(subject.positive), np.nan_to_num(subject.scores, nan=-np.inf).max(1), -np.inf)
        what = "negative with a very high score"
    suspicious = np.argsort(-suspicion, kind="stable")
    chosen: dict[int, str] = {}
    for one, other in zip(suspicious.tolist(), hardest.tolist(), strict=True):
        if len(chosen) >= most:
            break
        if subject.counts[one]:
            chosen.setdefault(one, what)
        if subject.counts[other] and len(chosen) < most:
            chosen.setdefault(other, "negative nearer than the positive" if gap[other].min() < 0 else "small margin")
    return list(chosen.items())


def examples(run: Run, subject: Subject, most: int = 200) -> list[dict[str, Any]]:
    """One entry per query: its texts, its positives, and its candidates in the order of their ranks."""
    chosen = choose(subject, most)
    rows = np.array([row for row, _ in chosen], np.int64)
    found = _candidates(run, subject, rows)
    first = {row: subject.pairs.positives.take(np.array([row])).values[:3] for row, _ in chosen}
    shown = [document for entries in found.values() for document, *_ in entries]
    wanted = np.unique(np.array(shown + [int(d) for rows_ in first.values() for d in rows_], np.int64))
    texts = dict(zip(wanted.tolist(), map(_cut, subject.pairs.documents.take(wanted)), strict=True))
    asked = dict(zip(rows.tolist(), map(_cut, subject.pairs.queries.take(rows)), strict=True))
    out = []
    for row, why in chosen:
        probability = {} if subject.probability is None else dict(
            zip(subject.documents[row].tolist(), subject.probability[row].tolist(), strict=True)
        )  # fmt: skip
        negatives = set(subject.documents[row][subject.real[row]].tolist())
        entries = []
        for document, rank, score, verdict in found[row]:
            chance = probability.get(document)
            entries.append({
                "id": subject.pairs.document_ids[document].as_py(),
                "text": texts[document],
                "rank": rank,
                "score": round(score, 4),
                "verdict": verdict,
                "negative": document in negatives,
                "probability": None if chance is None or not np.isfinite(chance) else round(float(chance), 3),
            })  # fmt: skip
        positive = float(subject.positive[row])
        out.append({
            "id": subject.pairs.query_ids[row].as_py(),
            "why": why,
            "query": asked[row],
            "positives": [texts[int(document)] for document in first[row]],
            "positive_score": None if np.isnan(positive) else round(positive, 4),
            "candidates": entries,
        })  # fmt: skip
    return out


def _candidates(run: Run, subject: Subject, rows: NDArray[np.int64]) -> dict[int, list[tuple[int, int, float, str]]]:
    """(document, rank, score, verdict) of the candidates of these queries: the negatives, and the nearest of the others."""
    files = run.candidate_files()
    out: dict[int, list[tuple[int, int, float, str]]] = {int(row): [] for row in rows}
    query_ids = subject.pairs.query_ids.cast(pa.string())
    for number in np.unique(rows // PART_ROWS).tolist():
        here = rows[rows // PART_ROWS == number]
        table = read_parquet(files[number], ["query_id", "document_id", "rank", "score", "verdict"])
        wanted = query_ids.take(pa.array(here.tolist()))
        table = table.filter(pc.is_in(table["query_id"].cast(pa.string()), value_set=wanted))
        places = pc.index_in(table["query_id"].cast(pa.string()), value_set=wanted).to_pylist()
        documents = pc.index_in(table["document_id"], value_set=subject.pairs.document_ids).to_pylist()
        columns = zip(
            places,
            documents,
            table["rank"].to_pylist(),
            table["score"].to_pylist(),
            table["verdict"].to_pylist(),
            strict=True,
        )
        for place, document, rank, score, verdict in columns:
            out[int(here[place])].append((document, rank, score, verdict))
    for row, entries in out.items():
        mine = set(subject.documents[row][subject.real[row]].tolist())
        first = sorted(entries, key=lambda e: (e[0] not in mine, e[1]))[:_SHOWN]
        out[row] = sorted(first, key=lambda e: e[1])
    return out


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else text[:_CUT] + " …"
