"""The queries of a report: which of them are shown, and their texts, candidates, scores and verdicts as JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.picture import Picture
from hardneg.diagnostics.estimates import sampled
from hardneg.diagnostics.report.flags import Flags
from hardneg.diagnostics.report.neighborhood import Map, neighborhood
from hardneg.diagnostics.report.thumbnails import Thumbnails
from hardneg.diagnostics.subject import Subject
from hardneg.mining.parts import PART_ROWS
from hardneg.mining.run import Run
from hardneg.mining.run_tables import read_candidates
from hardneg.storage.arrow import values_of

_CANDIDATES = 14  # the largest number of candidates per query

_POSITIVES = 3  # the largest number of positives per query

_CHARACTERS = 4_000_000  # of the texts of all documents together, about

_SHORTEST, _LONGEST = 160, 1200  # characters that a text is cut to

_AT_RANDOM = 0.3  # of the queries that are shown, if not all are


@dataclass(frozen=True)
class Chosen:
    """The queries that a report shows.

    Attributes:
        rows: int64 `[m]`, their rows, in the order of the table.
        why: why each is shown.
    """

    rows: NDArray[np.int64]
    why: list[str]


def choose(subject: Subject, flags: Flags, most: int, seed: int = 0) -> Chosen:
    """Choose the queries to show: some at random, and of the others those that findings concern, the worst first.

    Args:
        subject: the negatives.
        flags: the queries that each finding concerns.
        most: the largest number of queries.
        seed: the random seed.
    """
    n = len(subject.pairs)
    chosen: dict[int, str] = {}
    for row in sampled(n, int(most * _AT_RANDOM), np.random.default_rng(seed)).tolist() if n > most else []:
        chosen[row] = "drawn at random"
    with np.errstate(invalid="ignore"):
        margins = np.nan_to_num(subject.positive[:, None] - subject.scores, nan=np.inf).min(1)
        told = subject.scores if subject.probability is None else subject.probability
        suspicion = np.nan_to_num(told, nan=-np.inf).max(1)
    queues = [(code, rows) for code, rows in flags.worst.items()]
    queues.append(
        (
            "likely false negative" if subject.probability is not None else "high score",
            np.argsort(-suspicion, kind="stable"),
        )
    )
    queues.append(("small margin", np.argsort(margins, kind="stable")))
    for place in range(n):
        if len(chosen) >= most:
            break
        for why, rows in queues:
            if place < len(rows) and len(chosen) < most:
                row = int(rows[place])
                if chosen.get(row, "drawn at random") == "drawn at random":
                    chosen[row] = why
    rows = np.array(sorted(chosen, key=lambda row: (-suspicion[row], row)), np.int64)
    return Chosen(rows, [chosen[int(row)] for row in rows])


def query_data(
    run: Run, subject: Subject, chosen: Chosen, flags: Flags, pictures: Thumbnails | None = None
) -> dict[str, Any]:
    """What a report shows of its queries, as JSON values; see the script `table.js` for how they are read.

    `pictures` keeps the small copies of pictures.
    """
    pictures = Thumbnails() if pictures is None else pictures
    rows = chosen.rows
    candidates, rejected = _candidates(run, subject, chosen)
    positives = [subject.pairs.positives.take(np.array([row])).values for row in rows]
    shown = [each[:_POSITIVES] for each in positives]
    needed = np.unique(np.concatenate([np.empty(0, np.int64), *shown, *(each["document"] for each in candidates)]))
    length = int(np.clip(_CHARACTERS // max(1, len(needed)), _SHORTEST, _LONGEST))
    verdicts = sorted({name for each in candidates for name in each["verdict"]})
    documents, queries = subject.pairs.documents.take(needed), subject.pairs.queries.take(rows)
    maps = neighborhood(subject, rows, shown, [each["document"] for each in candidates])
    place = {int(document): i for i, document in enumerate(needed)}
    code = {name: i for i, name in enumerate(verdicts)}
    with np.errstate(invalid="ignore"):
        means = np.where(
            subject.counts[rows] > 0, np.nansum(subject.scores[rows], 1) / subject.counts[rows].clip(1), np.nan
        )
        margin = np.nan_to_num(subject.positive[rows, None] - subject.scores[rows], nan=np.inf).min(1)
        chance = None if subject.probability is None else np.nan_to_num(subject.probability[rows], nan=-1.0).max(1)
    return {
        "documents": {
            "ids": subject.pairs.document_ids.take(pa.array(needed)).to_pylist(),
            "texts": [_cut(text, length) for text in documents],
            "pictures": [pictures.of(item) for item in documents],
        },
        "pictures": pictures.uris,
        "verdicts": verdicts,
        "length": length,
        "rejected_scores": np.round(rejected, 4).tolist(),
        "queries": {
            "id": subject.pairs.query_ids.take(pa.array(rows)).cast(pa.string()).to_pylist(),
            "text": [_cut(text, length) for text in queries],
            "picture": [pictures.of(item) for item in queries],
            "why": chosen.why,
            "flags": flags.of(rows),
            "negatives": subject.counts[rows].tolist(),
            "hardness": _numbers(means),
            "margin": _numbers(margin),
            "probability": [None] * len(rows) if chance is None else _numbers(np.where(chance >= 0, chance, np.nan)),
            "positive": _numbers(subject.positive[rows]),
            "positives": [[place[int(d)] for d in each] for each in shown],
            "more_positives": [len(each) - len(some) for each, some in zip(positives, shown, strict=True)],
            "candidates": [_rows(each, place, code) for each in candidates],
            "map": [_map(each) for each in maps],
        },
    }  # fmt: skip


def _numbers(values: NDArray[Any]) -> list[float | None]:
    return [round(float(v), 4) if np.isfinite(v) else None for v in values]


def _rows(found: dict[str, NDArray[Any]], place: dict[int, int], code: dict[str, int]) -> list[list[Any]]:
    """[document, rank, score, verdict, whether it is a negative, P(relevant)] of each candidate."""
    rows = []
    for document, rank, score, verdict, negative, chance in zip(*(found[name] for name in _FIELDS), strict=True):
        probability = round(float(chance), 3) if np.isfinite(chance) else None
        rows.append(
            [place[int(document)], int(rank), round(float(score), 4), code[str(verdict)], int(negative), probability]
        )
    return rows


_FIELDS = ("document", "rank", "score", "verdict", "negative", "probability")


def _map(found: Map | None) -> dict[str, Any] | None:
    return None if found is None else {"share": round(found.share, 3), "points": np.round(found.points, 3).tolist()}


def _candidates(
    run: Run, subject: Subject, chosen: Chosen
) -> tuple[list[dict[str, NDArray[Any]]], NDArray[np.float32]]:
    """Read the candidates of the chosen queries.

    Returns:
        For each query, the columns of its candidates by name: its negatives and the nearest others, in the order of their ranks.
        And the scores of what filters rejected, of queries drawn at random.
    """
    files, rows = run.candidate_files(), chosen.rows
    out: list[dict[str, NDArray[Any]]] = [_nothing() for _ in rows]
    rejected: list[NDArray[np.float32]] = []
    at_random = np.array([why == "drawn at random" for why in chosen.why]) | (len(rows) == len(subject.pairs))
    parts = rows // PART_ROWS
    for number in np.unique(parts).tolist():
        table = read_candidates(files[number], ["query_id", "document_id", "rank", "score", "verdict"])
        here = np.flatnonzero(parts == number)
        wanted = subject.pairs.query_ids.take(pa.array(rows[here])).cast(pa.string())
        table = table.filter(pc.is_in(table["query_id"].cast(pa.string()), value_set=wanted))
        owner = values_of(pc.index_in(table["query_id"].cast(pa.string()), value_set=wanted))
        columns = {
            "document": subject.pairs.document_rows_of.of(table["document_id"]),
            "rank": values_of(table["rank"].combine_chunks()),
            "score": values_of(table["score"].combine_chunks()),
            "verdict": np.array(table["verdict"].cast(pa.string()).to_pylist(), object),
        }  # fmt: skip
        order = np.lexsort((columns["rank"], owner))
        starts = np.searchsorted(owner[order], np.arange(len(here) + 1))
        for i, place in enumerate(here.tolist()):
            mine = order[starts[i] : starts[i + 1]]
            found = {name: values[mine] for name, values in columns.items()}
            if at_random[place]:
                rejected.append(found["score"][~np.isin(found["verdict"], ("kept", "known"))])
            out[place] = _shown(found, subject, int(rows[place]))
    return out, np.concatenate([np.empty(0, np.float32), *rejected])


def _nothing() -> dict[str, NDArray[Any]]:
    return {name: np.empty(0, object if name == "verdict" else np.int64) for name in _FIELDS}


def _shown(found: dict[str, NDArray[Any]], subject: Subject, row: int) -> dict[str, NDArray[Any]]:
    """The negatives and the nearest others, with the columns `negative` and `probability`."""
    real = subject.real[row]
    negatives = subject.documents[row][real]
    negative = np.isin(found["document"], negatives)
    probability = np.full(len(negative), np.nan)
    if subject.probability is not None:
        known = dict(zip(negatives.tolist(), subject.probability[row][real].tolist(), strict=True))
        probability[negative] = [known[d] for d in found["document"][negative].tolist()]
    first = np.sort(np.lexsort((found["rank"], ~negative))[:_CANDIDATES])
    return {
        name: values[first] for name, values in (*found.items(), ("negative", negative), ("probability", probability))
    }


def _cut(text: str, length: int) -> str:
    return str(text) if isinstance(text, Picture) or len(text) <= length else text[:length] + " …"
