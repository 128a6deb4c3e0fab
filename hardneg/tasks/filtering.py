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
from hardneg.mining.miner import Block, Judged, choose_negatives
from hardneg.mining.parts import PART_ROWS, PartWriter
from hardneg.mining.samplers import query_keys
from hardneg.mining.specs import parse_sampler
from hardneg.storage.arrays import Int, Ragged
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
    number, context = int(which[1:]), context_of(bench)
    width, last = bench.plan.depths[number], number == len(bench.plan.depths) - 1
    verdicts, shorts = [np.empty((0, width), np.uint8)], [np.empty(0, np.int64)]
    for part in bench.plan.parts(block):
        found = _replayed(bench, block, part, number)
        if number == 0:
            judged = found.verdicts = bench.chain.verdicts(found.candidates, context)
        else:
            rows, deeper = _deeper(bench, found, block, part, number)
            judged = bench.chain.verdicts(deeper, context)
            found.deeper.append((rows, deeper, judged))
        verdicts.append(judged)
        if not last:
            shorts.append(found.short(int(bench.plan.config["negatives"]), bench.chain, width) + part * PART_ROWS)
    arrays: dict[str, NDArray[Any]] = {"verdicts": np.concatenate(verdicts), "short": np.concatenate(shorts)}
    return Outcome(bench.records.save(task.name, arrays), {"short": len(arrays["short"])})


def context_of(bench: Bench) -> Context:
    """The context of the filters, which all blocks share."""
    if "context" not in bench.shared:
        context = Context(
            bench.pairs, lambda: bench.whole, bench.pairs.known_positives(), guides(bench), lambda: _nearest(bench)
        )
        if "graph" in bench.plan.indexes:
            context.cache["neighbor graph"] = graph_of(bench)
        bench.shared["context"] = context
    made: Context = bench.shared["context"]
    return made


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


def _replayed(bench: Bench, block: int, part: int, number: int) -> Block:
    """A part after the rounds before this one, from the verdicts that they left; before any, its candidates alone."""
    start, stop = _span(bench, part)
    begin = bench.plan.block(block)[0]
    queries, inside = np.arange(start, stop), slice(start - begin, stop - begin)
    answer = neighbors(bench.records.array(named("merge", "r0", block), "keys")[inside])
    scores = _positive_scores(bench, block, part)
    candidates = Candidates(
        queries, answer.documents, answer.scores, lowest_scores(scores), bench.query_vectors(start, stop)
    )
    verdicts = np.zeros(answer.documents.shape, np.uint8)
    if number > 0:
        verdicts = np.array(bench.records.array(named("judge", "r0", block), "verdicts")[inside])
    found = Block(candidates, verdicts, scores)
    for r in range(1, number):
        rows, deeper = _deeper(bench, found, block, part, r)
        places = _places(bench, block, r - 1, rows + start)
        judged = np.array(bench.records.array(named("judge", f"r{r}", block), "verdicts")[places])
        found.deeper.append((rows, deeper, judged))
    return found


def _deeper(bench: Bench, found: Block, block: int, part: int, number: int) -> tuple[Int, Candidates]:
    """The queries of a part that were searched deeper in a round, as rows of the part, and their candidates."""
    start, stop = _span(bench, part)
    short = np.array(bench.records.array(named("judge", f"r{number - 1}", block), "short"))
    short = short[(short >= start) & (short < stop)]
    keys = bench.records.array(named("merge", f"r{number}", block), "keys")
    answer = neighbors(keys[_places(bench, block, number - 1, short)])
    rows = short - start
    return rows, replace(found.candidates.rows(rows), documents=answer.documents, scores=answer.scores)


def _places(bench: Bench, block: int, number: int, short: Int) -> Int:
    """Where these queries are among all of the block that the round found to need a deeper search."""
    return np.searchsorted(np.array(bench.records.array(named("judge", f"r{number}", block), "short")), short)


def _positive_scores(bench: Bench, block: int, part: int) -> Ragged:
    """The scores of all positives of the queries of a part, float32."""
    begin, end = bench.plan.block(block)
    lists = bench.pairs.positives.take(np.arange(begin, end))
    start, stop = _span(bench, part)
    whole = Ragged(lists.offsets, np.array(bench.records.array(named("merge", "r0", block), "positives")))
    return whole.take(np.arange(start - begin, stop - begin))


def write(bench: Bench, task: Task) -> Outcome:
    """Draw the negatives of a block of queries, and write its parts."""
    (block,) = task.numbers
    config = bench.plan.config
    if "keys" not in bench.shared:
        bench.shared["keys"] = query_keys(bench.pairs.query_ids)
    writer = PartWriter(bench.folder, bench.pairs, bench.chain.names)
    files: dict[str, str] = {}
    for part in bench.plan.parts(block):
        found = _replayed(bench, block, part, len(bench.plan.depths))
        candidates, verdicts = found.merged()
        chosen = choose_negatives(
            bench.chain, parse_sampler(config["sampler"]), context_of(bench), candidates, verdicts, found.positive_scores,
            widened=int((candidates.real.sum(1) > bench.plan.depths[0]).sum()), negatives=int(config["negatives"]),
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
