"""Judgements: draw pairs with known chances, write them for people or programs to judge, and read them back."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.data.readers.rows import opened
from hardneg.data.texts import shown
from hardneg.errors import DataError, first_few
from hardneg.false_negatives.model import Posterior, selection_of, sources_of
from hardneg.false_negatives.population import Ladder, Population
from hardneg.hashing import mix
from hardneg.mining.reopen import Reopened
from hardneg.mining.samplers import query_keys
from hardneg.storage.arrays import Mask
from hardneg.storage.arrow import values_of
from hardneg.storage.files import atomic_path, fingerprint

COLUMNS = (
    "query_id", "document_id", "relevant", "query", "positive", "document", "score", "rank",
    "inclusion_probability", "part", "look", "alpha", "drawn_for",
)  # fmt: skip

HELD_OUT, FIT = "hold-out", "fit"

FEWEST = 20  # judgements

_HELD_SHARE = 0.75  # of the pairs that are drawn

_STRATA = 5  # of probability, times as many of rank

_LOOKS = 100  # looks at one file

_LEAST_CHANCE = 1e-12  # of being drawn

_SHOWN = 3  # positives that are shown


@dataclass(frozen=True)
class Drawn:
    """Pairs drawn from the open candidates of a run.

    Attributes:
        place: int64 `[m]`, positions among the open candidates.
        inclusion: float64 `[m]`, the chance of each pair to be drawn into its part.
        held_out: bool `[m]`, True for the pairs that test the guarantee; the others are for learning.
        look: int64 `[m]`, the look at which each pair was first drawn, from 1 (see `guarantee`).
        left_out: number of pairs judged earlier that this draw does not contain.
    """

    place: NDArray[np.int64]
    inclusion: NDArray[np.float64]
    held_out: Mask
    look: NDArray[np.int64]
    left_out: int = 0


def draw_pairs(population: Population, rungs: Ladder, sample: int, seed: int) -> Drawn:
    """Draw `sample` pairs, or all of them if there are fewer.

    Three quarters are held out for the guarantee: each pair that is a negative with one of the ladder's thresholds has the same
    chance. The others are spread over strata of probability and rank. A larger sample with the same seed contains the smaller one:
    each pair has a random number, and the lowest are taken (sequential Poisson sampling, Ohlsson 1998; with equal chances this is
    simple random sampling).
    """
    pairs = population.pairs
    keys = query_keys(population.run.pairs.query_ids)[pairs.query] ^ mix(
        pairs.document.astype(np.uint64) + np.uint64(1)
    )
    random = [mix(keys ^ mix(np.array([2 * seed + i], np.uint64))).astype(np.float64) / 2.0**64 for i in (0, 1)]
    able = np.logical_or.reduce(rungs.chosen)
    held = _lowest(random[0], able.astype(np.float64), min(round(sample * _HELD_SHARE), int(able.sum())))
    rest = np.ones(len(able), bool)
    rest[held[0]] = False
    weight = _spread(population.probabilities, pairs.rank) * rest
    fit = _lowest(random[1], weight, min(sample - len(held[0]), int(rest.sum())))
    return Drawn(
        np.concatenate([held[0], fit[0]]),
        np.concatenate([held[1], fit[1]]),
        np.arange(len(held[0]) + len(fit[0])) < len(held[0]),
        np.ones(len(held[0]) + len(fit[0]), np.int64),
    )


def _lowest(
    random: NDArray[np.float64], weight: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(positions, chances) of the `count` lowest ratios of random number to weight."""
    with np.errstate(divide="ignore"):
        ratio = np.where(weight > 0, random / weight, np.inf)
    order = np.argsort(ratio, kind="stable")[: count + 1]
    taken = order[:count]
    some = weight[weight > 0]
    if len(some) and some.min() == some.max():
        return taken, np.full(count, count / len(some))
    limit = ratio[order[count]] if len(order) > count and np.isfinite(ratio[order[count]]) else np.inf
    return taken, np.minimum(1.0, limit * weight[taken])


def _spread(probability: NDArray[np.float32], rank: NDArray[np.int32]) -> NDArray[np.float64]:
    """Weights that give each stratum of probability and rank the same chance."""
    certain = np.searchsorted([0.05, 0.2, 0.5, 0.8], probability)
    ranked = np.searchsorted(np.quantile(rank, np.linspace(0, 1, _STRATA + 1)[1:-1]) if len(rank) else [0], rank)
    stratum = certain * _STRATA + ranked
    count = np.bincount(stratum, minlength=_STRATA * _STRATA)
    weights: NDArray[np.float64] = 1.0 / count[stratum]
    return weights


def write_judgements(
    path: Path,
    population: Population,
    drawn: Drawn,
    relevant: list[int | None] | None = None,
    *,
    alpha: float,
    drawn_for: str,
) -> None:
    """Write the pairs as CSV, one per line, in the order in which to judge them. `relevant` is empty where it is not given.

    `alpha` and `drawn_for` (a hash of the run, the posterior and the selection) tell `calibrate` what the pairs were drawn for.
    Ids and texts are written with `as_cell`, because people open the file in a spreadsheet.
    """
    pairs = population.run.pairs
    shown = population.pairs.take(drawn.place)
    ids = [
        known_ids.take(pa.array(rows)).to_pylist()
        for known_ids, rows in ((pairs.query_ids, shown.query), (pairs.document_ids, shown.document))
    ]
    texts = pairs.queries.take(shown.query), pairs.documents.take(shown.document)
    known = pairs.positives.take(shown.query)
    lines = []
    for i in range(len(drawn.place)):
        positives = known.values[known.offsets[i] : known.offsets[i + 1]][:_SHOWN]
        lines.append(
            {
                "query_id": as_cell(ids[0][i]), "document_id": as_cell(ids[1][i]),
                "relevant": "" if relevant is None or relevant[i] is None else relevant[i],
                "query": as_cell(texts[0][i]), "positive": as_cell(" | ".join(pairs.documents.take(positives))),
                "document": as_cell(texts[1][i]),
                "score": f"{shown.score[i]:.6f}", "rank": int(shown.rank[i]),
                "inclusion_probability": repr(float(drawn.inclusion[i])),
                "part": HELD_OUT if drawn.held_out[i] else FIT,
                "look": int(drawn.look[i]), "alpha": repr(alpha),
                "drawn_for": f"{drawn_for}-{int(drawn.held_out.sum())}",
            }
        )  # fmt: skip
    # Shuffled by the hashes of their ids, so that the order does not reveal which pairs are suspected.
    order = np.argsort(mix(query_keys(pa.array([f"{a}\t{b}" for a, b in zip(*ids, strict=True)], pa.string()))))
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(lines[i] for i in order)


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_cell(text: str) -> str:
    """A text as a cell of a spreadsheet, where it is not taken for a formula.

    Spreadsheets run a cell that starts with one of these: = + - @ tab, carriage return. Such a cell gets a single quote in
    front. So does one that starts with quotes and then one of these, so that `from_cell` gives every text back.

    >>> as_cell("=1+1"), as_cell("'=1+1"), as_cell("'tis")
    ("'=1+1", "''=1+1", "'tis")
    """
    return "'" + text if text.lstrip("'").startswith(_FORMULA) else text


def from_cell(cell: str) -> str:
    """The text that `as_cell` made a cell of.

    >>> from_cell("''=1+1"), from_cell("'tis")
    ("'=1+1", "'tis")
    """
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


@dataclass(frozen=True)
class Judgements:
    """Judged pairs of a run.

    Attributes:
        query, document: int64 `[m]`, rows of the dataset.
        relevant: bool `[m]`.
        inclusion: float64 `[m]`, the chance of being drawn; NaN if the file does not state it.
        held_out: bool `[m]`, True for the pairs that test the guarantee.
        skipped: number of rows of the file without a judgement.
        look: int64 `[m]`, the look at which each pair was first drawn, from 1.
        alpha: what the pairs were drawn for; None if the file does not say it.
        drawn_for: a hash of the run, the posterior and the selection that the pairs were drawn for, and behind a hyphen how many
            were held out; None as for `alpha`.
    """

    query: NDArray[np.int64]
    document: NDArray[np.int64]
    relevant: Mask
    inclusion: NDArray[np.float64]
    held_out: Mask
    skipped: int
    look: NDArray[np.int64]
    alpha: float | None
    drawn_for: str | None

    def those(self, mask: Mask) -> Judgements:
        """The judgements where `mask`, bool `[m]`, is True."""
        columns = ("query", "document", "relevant", "inclusion", "held_out", "look")
        return replace(self, **{name: getattr(self, name)[mask] for name in columns})


def read_judgements(path: Path, pairs: Pairs) -> Judgements:
    """Read judged pairs.

    Raises:
        DataError: a column is missing, a value of `relevant` is not 0 or 1, ids are not in the dataset, two judgements of one pair
            differ, a held-out pair was not judged, or there are no judgements.
    """
    rows = judgement_rows(path)
    judged = [(line, row) for line, row in rows if row["relevant"].strip()]
    wrong = [line for line, row in judged if row["relevant"].strip() not in ("0", "1")]
    if wrong:
        raise DataError(f"{path}: 'relevant' must be 0 or 1, it is not in the lines {first_few(wrong)}")
    open_ = [line for line, row in rows if not row["relevant"].strip() and row.get("part") == HELD_OUT]
    if open_ and judged:
        raise DataError(
            f"{path}: {len(open_):,} pairs held out for the guarantee are not judged (lines {first_few(open_)}): "
            f"judge them all, leaving some out would bend the result"
        )
    if not judged:
        raise DataError(f"{path} holds no judgements: write 1 (relevant) or 0 into the column 'relevant'")
    query = _rows_of([from_cell(row["query_id"]) for _, row in judged], pairs.query_ids, judged, path, "query")
    document = _rows_of(
        [from_cell(row["document_id"]) for _, row in judged], pairs.document_ids, judged, path, "document"
    )
    relevant = np.array([row["relevant"].strip() == "1" for _, row in judged])
    inclusion = np.array([_chance(row.get("inclusion_probability"), line, path) for line, row in judged])
    held_out = np.array([row.get("part") == HELD_OUT for _, row in judged])
    _, first, pair = np.unique(np.stack([query, document], 1), axis=0, return_index=True, return_inverse=True)
    pair = pair.ravel()
    twice = np.flatnonzero(relevant != relevant[first][pair])
    if len(twice):
        lines = sorted({judged[i][0] for i in twice} | {judged[first[pair[i]]][0] for i in twice})
        raise DataError(f"{path} judges pairs both ways (lines {first_few(lines)}): decide, and leave one line each")
    look = np.array([_look(row.get("look"), line, path) for line, row in judged], np.int64)
    alpha = _one([row.get("alpha") for _, row in judged], "alpha", path)
    return Judgements(
        query[first], document[first], relevant[first], inclusion[first], held_out[first], len(rows) - len(judged),
        look[first], None if alpha is None else _chance(alpha, judged[0][0], path, "alpha"),
        _one([row.get("drawn_for") for _, row in judged], "drawn_for", path),
    )  # fmt: skip


def _look(text: str | None, line: int, path: Path) -> int:
    plain = "" if text is None else text.strip()
    if not plain:
        return 1
    if not plain.isascii() or not plain.isdigit() or len(plain) > 3 or not 1 <= int(plain) <= _LOOKS:
        raise DataError(f"{path}:{line}: the look is {shown(text)}: hardneg judge writes 1 to {_LOOKS}")
    return int(plain)


def _one(values: list[str | None], name: str, path: Path) -> str | None:
    """The value that all judged rows have in this column; None without one. Raises DataError if they differ."""
    found = {value.strip() for value in values if value is not None and value.strip()}
    if len(found) > 1:
        raise DataError(
            f"{path}: the column {name!r} holds {first_few(sorted(found))}: these are files of several draws. Judge one file, "
            f"and extend it with hardneg judge --judged"
        )
    return found.pop() if found else None


def draw_id(run: Reopened, posterior: Posterior | None) -> str:
    """A hash of what decides which pairs are drawn, but for alpha, sample and seed."""
    info = run.run.info
    return fingerprint(
        {
            "sources": sources_of(info["fingerprints"]),
            "depth": info["resolved"]["depth"],
            "selection": selection_of(info["config"]),
            "posterior": None if posterior is None else posterior.to_json(),
        }
    )[:16]


def check_drawn_for(judged: Judgements, path: str | Path | None, alpha: float, drawn_for: str) -> None:
    """Raise DataError for judgements that were drawn for something else."""
    if judged.alpha is not None and judged.alpha != alpha:
        raise DataError(
            f"{path} was drawn for alpha {judged.alpha:g}, not {alpha:g}: which pairs are drawn depends on it. Leave --alpha out to "
            f"use that of the file, or draw anew (hardneg judge RUN --alpha {alpha:g})"
        )
    if judged.drawn_for is None:
        return
    made_for, _, count = judged.drawn_for.partition("-")
    held = int(judged.held_out.sum())
    if made_for == drawn_for and count != str(held):
        raise DataError(
            f"{path}: {count} pairs were held out for the guarantee, and {held} are there now: lines are missing, or the column "
            f"'part' was changed. Leaving some out would bend the result. --learn judged takes any, and gives no guarantee"
        )
    if made_for != drawn_for:
        raise DataError(
            f"{path} was drawn for another run, depth, selection or posterior than this: a guarantee would not hold. Use the run and "
            f"the --posterior that it was drawn for, draw anew (hardneg judge), or use --learn judged, which gives no guarantee"
        )


def check_enough(count: int, where: str) -> None:
    """Raise DataError for judgements that are too few to learn or to certify anything from, if they stand alone."""
    if count < FEWEST:
        raise DataError(f"{where}: {count} judgements, {FEWEST} are the least that anything can be said from")


def no_strangers(strange: Mask, judged: Judgements, pairs: Pairs) -> None:
    """Raise DataError if some judged pairs are not among the candidates."""
    if strange.any():
        first = int(np.flatnonzero(strange)[0])
        pair = (
            pairs.query_ids[int(judged.query[first])].as_py(),
            pairs.document_ids[int(judged.document[first])].as_py(),
        )
        raise DataError(
            f"{int(strange.sum()):,} judged pairs are no candidates of this run that a posterior could judge, the first: "
            f"query {pair[0]!r}, document {pair[1]!r}. Was the file drawn for another run, or with other filters?"
        )


def judgement_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, row) for each row of a file of judgements. Raises DataError if it is no CSV in UTF-8 or lacks a column."""
    csv.field_size_limit(1 << 27)  # texts may be longer than the default allows
    with opened(path, once=True) as stream:
        try:
            reader = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), strict=True)
            found = reader.fieldnames or []
            missing = [name for name in ("query_id", "document_id", "relevant") if name not in found]
            if missing:
                other = next((mark for mark in ";\t" if len(found) == 1 and mark in found[0]), None)
                raise DataError(
                    f"{path} has no column {', '.join(missing)}: it needs query_id, document_id and relevant (0 or 1)"
                    + (f". Save it with commas between the cells, not {other!r}" if other else "")
                )
            return [(reader.line_num, {k: v or "" for k, v in row.items() if k is not None}) for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is not readable as CSV in UTF-8 ({error})") from None


def _rows_of(
    ids: list[str], known: pa.Array, judged: list[tuple[int, dict[str, str]]], path: Path, what: str
) -> NDArray[np.int64]:
    places = pc.index_in(pa.array(ids, known.type), value_set=known)
    if places.null_count:
        bad = [i for i, place in enumerate(places.to_pylist()) if place is None]
        said = first_few(f"line {judged[i][0]}: {shown(ids[i])}" for i in bad)
        raise DataError(f"{path}: {len(bad):,} {what} ids are not in the run's dataset ({said}): is it of another run?")
    return values_of(places).astype(np.int64)


def _chance(text: str | None, line: int, path: Path, name: str = "inclusion_probability") -> float:
    if not text:
        return float("nan")
    try:
        chance = float(text)
    except ValueError:
        chance = -1.0
    if not _LEAST_CHANCE <= chance <= 1:
        raise DataError(f"{path}, line {line}: {name} {shown(text)} must be above 0 and at most 1")
    return chance


def judge_with(rate: Callable[[Any, Any], Any], population: Population, drawn: Drawn, cut: float) -> list[int | None]:
    """Judge pairs with a cross-encoder: relevant if its score is above `cut`. `rate` takes rows of queries and of documents."""
    shown = population.pairs.take(drawn.place)
    return [int(score > cut) for score in np.asarray(rate(shown.query, shown.document), np.float64).ravel()]
