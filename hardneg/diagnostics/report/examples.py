"""The example queries of a report: their texts, and their candidates with scores and verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.picture import Picture
from hardneg.diagnostics.report.thumbnails import Thumbnails
from hardneg.diagnostics.subject import Subject
from hardneg.mining.parts import PART_ROWS
from hardneg.mining.run import Run
from hardneg.mining.run_tables import read_candidates

_CANDIDATES = 14  # the largest number of candidates per query

_CHARACTERS = 320  # the largest number of characters per text


def choose(subject: Subject, most: int) -> list[tuple[int, str]]:
    """Choose the queries to show: those with the most suspicious negatives, and those with the hardest ones.

    Args:
        subject: the negatives.
        most: the largest number of queries.

    Returns:
        (row of the query, reason for showing it).
    """
    with np.errstate(invalid="ignore"):
        margins = np.nan_to_num(subject.positive[:, None] - subject.scores, nan=np.inf)
    hardest = np.argsort(margins.min(1), kind="stable")
    if subject.probability is not None:
        suspicion = np.nan_to_num(subject.probability, nan=-1.0).max(1)
        reason = "likely false negative"
    else:
        suspicion = np.where(np.isfinite(subject.positive), np.nan_to_num(subject.scores, nan=-np.inf).max(1), -np.inf)
        reason = "negative with a very high score"
    suspicious = np.argsort(-suspicion, kind="stable")
    chosen: dict[int, str] = {}
    for one, other in zip(suspicious.tolist(), hardest.tolist(), strict=True):
        if len(chosen) >= most:
            break
        if subject.counts[one]:
            chosen.setdefault(one, reason)
        if subject.counts[other] and len(chosen) < most:
            chosen.setdefault(
                other, "negative nearer than the positive" if margins[other].min() < 0 else "small margin"
            )
    return list(chosen.items())


def examples(run: Run, subject: Subject, most: int = 200, pictures: Thumbnails | None = None) -> list[dict[str, Any]]:
    """Collect what a report shows of its example queries.

    Args:
        run: the run, to read the candidates from.
        subject: the negatives of the run.
        most: the largest number of queries.
        pictures: keeps the small copies of pictures.

    Returns:
        For each query: its id, its text, the reason for showing it, up to three positives, the lowest score of a
        positive, and candidates in the order of their ranks. Entries `picture` are places in `pictures`.
    """
    pictures = Thumbnails() if pictures is None else pictures
    chosen = choose(subject, most)
    rows = np.array([row for row, _ in chosen], np.int64)
    candidates = _candidates(run, subject, rows)
    first = {row: subject.pairs.positives.take(np.array([row])).values[:3] for row, _ in chosen}
    shown = [document for entries in candidates.values() for document, *_ in entries]
    shown += [int(document) for positives in first.values() for document in positives]
    needed = np.unique(np.array(shown, np.int64))
    texts = dict(zip(needed.tolist(), map(_shortened, subject.pairs.documents.take(needed)), strict=True))
    queries = dict(zip(rows.tolist(), map(_shortened, subject.pairs.queries.take(rows)), strict=True))
    out = []
    for row, why in chosen:
        probability = {} if subject.probability is None else dict(
            zip(subject.documents[row].tolist(), subject.probability[row].tolist(), strict=True)
        )  # fmt: skip
        negatives = set(subject.documents[row][subject.real[row]].tolist())
        entries = []
        for document, rank, score, verdict in candidates[row]:
            chance = probability.get(document)
            entries.append({
                "id": subject.pairs.document_ids[document].as_py(),
                "text": texts[document],
                **_picture(texts[document], pictures),
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
            "query": queries[row],
            **_picture(queries[row], pictures),
            "positives": [{"text": (text := texts[int(d)]), **_picture(text, pictures)} for d in first[row]],
            "positive_score": None if np.isnan(positive) else round(positive, 4),
            "candidates": entries,
        })  # fmt: skip
    return out


def _candidates(run: Run, subject: Subject, rows: NDArray[np.int64]) -> dict[int, list[tuple[int, int, float, str]]]:
    """Read candidates of the queries in `rows`: their negatives first, then the nearest other candidates.

    Returns:
        For each row, (document, rank, score, verdict) of each candidate, in the order of their ranks.
    """
    files = run.candidate_files()
    out: dict[int, list[tuple[int, int, float, str]]] = {int(row): [] for row in rows}
    query_ids = subject.pairs.query_ids.cast(pa.string())
    for number in np.unique(rows // PART_ROWS).tolist():
        here = rows[rows // PART_ROWS == number]
        table = read_candidates(files[number], ["query_id", "document_id", "rank", "score", "verdict"])
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
        negatives = set(subject.documents[row][subject.real[row]].tolist())
        first = sorted(entries, key=lambda e: (e[0] not in negatives, e[1]))[:_CANDIDATES]
        out[row] = sorted(first, key=lambda e: e[1])
    return out


def _picture(item: str, pictures: Thumbnails) -> dict[str, int]:
    place = pictures.of(item)
    return {} if place is None else {"picture": place}


def _shortened(text: str) -> str:
    return text if isinstance(text, Picture) or len(text) <= _CHARACTERS else text[:_CHARACTERS] + " …"
