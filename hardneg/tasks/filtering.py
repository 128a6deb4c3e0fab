"""Tasks of the filters: a round for a block of queries, then its negatives and the parts of the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import UsageError
from hardneg.index.vectors import VectorStore
from hardneg.mining.candidates import Candidates, Context
from hardneg.mining.filters.base import lowest_scores
from hardneg.mining.miner import Judged, choose_negatives
from hardneg.mining.parts import PART_ROWS, PartWriter
from hardneg.mining.rounds import Round, Rounds
from hardneg.mining.samplers import query_keys
from hardneg.mining.specs import parse_sampler
from hardneg.storage.arrays import Float, Int
from hardneg.storage.files import sha256_file
from hardneg.tasks.bench import Bench
from hardneg.tasks.graph import Task, named
from hardneg.tasks.neighbors import graph_of
from hardneg.tasks.plan import SIDES
from hardneg.tasks.records import Outcome
from hardneg.tasks.search import neighbors
from hardneg.tasks.vectors import encoded_vectors


def judge(bench: Bench, task: Task) -> Outcome:
    """Filter a block of queries in a round: the verdicts on what was found, and the queries that have to be searched deeper."""
    (which,), (block,) = task.words, task.numbers
    number = int(which[1:])
    rounds, width = rounds_of(bench), bench.plan.depths[number]
    verdicts, shorts = [], []
    for part in bench.plan.parts(block):
        before = _replayed(bench, rounds, block, part, number)
        if number == 0:
            after = rounds.first(before.candidates)
            verdicts.append(after.verdicts)
        else:
            short = _short(bench, block, part, number - 1)
            found = _deeper(bench, before, short, block, number)
            judged = rounds.chain.verdicts(found, rounds.context)
            after = rounds.next(before, short - part * PART_ROWS, found, width, judged)
            verdicts.append(judged)
        shorts.append(rounds.short(after) + part * PART_ROWS)
    empty = np.empty((0, width), np.uint8)
    arrays: dict[str, NDArray[Any]] = {"verdicts": np.concatenate([empty, *verdicts]), "short": np.concatenate(shorts)}
    return Outcome(bench.records.save(task.name, arrays), {"short": len(arrays["short"])})


def rounds_of(bench: Bench) -> Rounds:
    """The rounds of filtering, with a context that all blocks share."""
    if "rounds" not in bench.shared:
        plan, config = bench.plan, bench.plan.config
        context = Context(
            bench.pairs, lambda: bench.whole, bench.pairs.known_positives(), guides(bench), lambda: _nearest(bench)
        )
        if "graph" in plan.indexes:
            context.cache["neighbor graph"] = graph_of(bench)
        depths = plan.depths
        bench.shared["rounds"] = Rounds(bench.chain, context, depths[0], depths[-1], int(config["negatives"]))
    rounds: Rounds = bench.shared["rounds"]
    return rounds


def _nearest(bench: Bench) -> NDArray[np.int32]:
    """int32 `[n, m]`: the first documents found for every query."""
    if not bench.plan.nearest:
        raise UsageError(
            "a filter compares queries with each other and does not say so: let its property `needs` hold 'nearest'"
        )
    tasks = [named("merge", "near", block) for block in range(bench.plan.block_count)]
    return np.concatenate([neighbors(bench.records.array(task, "keys")).documents for task in tasks])


def guides(bench: Bench) -> Any:
    """A function that returns the vectors of a guide model, which the tasks of the plan have encoded."""
    first = 0 if bench.plan.given else 1

    def vectors_of(spec: str) -> tuple[Any, VectorStore]:
        known: dict[str, Any] = bench.shared.setdefault("guides", {})
        if spec not in known:
            number = next((n for n, m in enumerate(bench.plan.models) if m.spec == spec and n >= first), None)
            if number is None:
                raise UsageError(
                    f"the encoder {spec!r} is not one of the plan: let the filter's `guide_encoders` name it"
                )
            queries, documents = (
                cast(Any, encoded_vectors(bench.folder, bench.plan, bench.records, side, number)) for side in SIDES
            )
            known[spec] = queries, VectorStore(documents, "cosine")
        found: tuple[Any, VectorStore] = known[spec]
        return found

    return vectors_of


def _span(bench: Bench, part: int) -> tuple[int, int]:
    return part * PART_ROWS, min((part + 1) * PART_ROWS, bench.plan.queries)


def _replayed(bench: Bench, rounds: Rounds, block: int, part: int, number: int) -> Round:
    """A part after the rounds before this one, from the verdicts that they left; before any, its candidates alone."""
    start, stop = _span(bench, part)
    begin = bench.plan.block(block)[0]
    queries, inside = np.arange(start, stop), slice(start - begin, stop - begin)
    found = neighbors(bench.records.array(named("merge", "r0", block), "keys")[inside])
    lowest = lowest_scores(positive_scores(bench, block, part))
    candidates = Candidates(queries, found.documents, found.scores, lowest, bench.query_vectors(start, stop))
    if number == 0:
        return Round(candidates, np.zeros(found.documents.shape, np.uint8), rounds.depth, np.ones(len(queries), bool))
    after = rounds.first(candidates, np.array(bench.records.array(named("judge", "r0", block), "verdicts")[inside]))
    for r in range(1, number):
        short = _short(bench, block, part, r - 1)
        deeper = _deeper(bench, after, short, block, r)
        verdicts = np.array(
            bench.records.array(named("judge", f"r{r}", block), "verdicts")[_places(bench, block, r - 1, short)]
        )
        after = rounds.next(after, short - start, deeper, bench.plan.depths[r], verdicts)
    return after


def _short(bench: Bench, block: int, part: int, number: int) -> Int:
    """int64: the queries of a part that a round found to need a deeper search."""
    start, stop = _span(bench, part)
    short = np.array(bench.records.array(named("judge", f"r{number}", block), "short"))
    return short[(short >= start) & (short < stop)]


def _places(bench: Bench, block: int, number: int, short: Int) -> Int:
    """Where these queries are among all of the block that the round found to need a deeper search."""
    return np.searchsorted(np.array(bench.records.array(named("judge", f"r{number}", block), "short")), short)


def _deeper(bench: Bench, before: Round, short: Int, block: int, number: int) -> Candidates:
    """The candidates that the search of a round found for these queries."""
    keys = bench.records.array(named("merge", f"r{number}", block), "keys")
    found = neighbors(keys[_places(bench, block, number - 1, short)])
    rows = short - before.candidates.queries[0]
    return replace(before.candidates.rows(rows), documents=found.documents, scores=found.scores)


def positive_scores(bench: Bench, block: int, part: int) -> Float:
    """float32 `[n, p]`: the scores of all positives of the queries of a part; -inf where there is none."""
    begin, end = bench.plan.block(block)
    whole = bench.pairs.positives.take(np.arange(begin, end))
    start, stop = _span(bench, part)
    inside = whole.take(np.arange(start - begin, stop - begin))
    values = bench.records.array(named("merge", "r0", block), "positives")
    table = np.full((len(inside), int(inside.lengths.max(initial=0))), -np.inf, np.float32)
    table[np.arange(table.shape[1]) < inside.lengths[:, None]] = values[
        whole.offsets[start - begin] : whole.offsets[stop - begin]
    ]
    return table


def write(bench: Bench, task: Task) -> Outcome:
    """Draw the negatives of a block of queries, and write its parts."""
    (block,) = task.numbers
    rounds, config = rounds_of(bench), bench.plan.config
    if "keys" not in bench.shared:
        bench.shared["keys"] = query_keys(bench.pairs.query_ids)
    writer = PartWriter(bench.folder, bench.pairs, rounds.chain.names)
    files: dict[str, str] = {}
    for part in bench.plan.parts(block):
        last = _replayed(bench, rounds, block, part, len(bench.plan.depths))
        chosen = choose_negatives(
            rounds.chain, parse_sampler(config["sampler"]), rounds.context, last.candidates, last.verdicts,
            positive_scores(bench, block, part), widened=rounds.widened(last), negatives=rounds.negatives,
            seed=int(config["seed"]), keys=bench.shared["keys"],
        )  # fmt: skip
        writer.write(part, Judged.joined([chosen]))
        for path in written_by(part):
            files[path] = sha256_file(bench.folder / path)
    return Outcome(files, {"rows": bench.plan.block(block)[1] - bench.plan.block(block)[0]})


def written_by(part: int) -> Iterator[str]:
    """The files of a part of the run."""
    yield f"candidates/part-{part:05d}.parquet"
    yield f"progress/negatives-{part:05d}.parquet"
    yield f"progress/part-{part:05d}.json"
