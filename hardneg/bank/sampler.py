"""What a training step gets: pairs without duplicates, mined negatives by a policy, easy ones first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler

from hardneg.bank.mined import Mined
from hardneg.data.pairs import Int, Pairs, told_apart
from hardneg.errors import RunError, UsageError
from hardneg.hashing import mix
from hardneg.index.generation import Items
from hardneg.mining.samplers import draw, query_keys
from hardneg.mining.specs import parse_sampler

_TRIES = 64  # random documents looked at for one that is no positive


class Example(NamedTuple):
    """One query of a batch: rows of the dataset."""

    query: int
    positive: int
    negatives: tuple[int, ...]


class Texts(NamedTuple):
    """The texts (or what stands for them) of an example, and their rows."""

    query: Any
    positive: Any
    negatives: list[Any]
    rows: Example


@dataclass(frozen=True)
class Curriculum:
    """From easy to hard: the share of mined negatives grows from `start` to `end` over so many batches, the rest is random."""

    start: float = 1.0
    end: float = 1.0
    batches: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.start <= 1 and 0 <= self.end <= 1 and self.batches >= 1):
            raise UsageError("the shares of a curriculum must be 0 to 1, its batches 1 or more")

    def share(self, batch: int) -> float:
        """Of batch number `batch`, counted from 0 over all epochs."""
        return self.start + (self.end - self.start) * min(1.0, batch / self.batches)


class MemoryBankSampler(Sampler[list[Example]]):
    """A batch sampler: `DataLoader(examples, batch_sampler=sampler)`, with any number of workers.

    Every epoch goes through the queries that have a positive in another order. In a batch no query and no positive stands
    twice, by text; what would is put off to a later batch. A batch that stays short at the end is kept unless `drop_last`.
    Everything depends on the seed and the number of the batch alone.

    Which negatives come from where: `negatives` mined ones a query, drawn among the kept by `policy` (a sampler spec:
    top, uniform, softmax, simans), some of them replaced by random documents as `curriculum` says, and where fewer are
    kept. Rows of a `MemoryBank` come on top, in the loop: `bank.view()`.

    Resuming: call `advance()` after each step. `state_dict` then names the first batch that was not trained on, however
    far workers have read ahead, and a sampler that loads it goes on from there.

    Args:
        pairs: the dataset.
        mined: candidates; None: random negatives only.
        batch_size: queries a batch.
        negatives: a query; 0: none.
        policy: how mined negatives are drawn.
        curriculum: None: all mined.
        seed: of orders and draws.
        drop_last: leave out batches that are not full.
        rank, ranks: of a distributed job: every rank takes its part of each batch of `batch_size * ranks` queries.
    """

    def __init__(
        self,
        pairs: Pairs,
        mined: Mined | None = None,
        *,
        batch_size: int,
        negatives: int = 1,
        policy: str = "uniform",
        curriculum: Curriculum | None = None,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size < 1 or negatives < 0:
            raise UsageError(f"batch_size={batch_size} must be 1 or more, negatives={negatives} 0 or more")
        if not 0 <= rank < ranks:
            raise UsageError(f"rank={rank} must be 0 or more and below ranks={ranks}")
        self.pairs, self.negatives, self.seed = pairs, negatives, seed
        self.batch_size, self.drop_last, self.rank, self.ranks = batch_size, drop_last, rank, ranks
        self.policy = parse_sampler(policy)
        self.policy_spec = policy
        self.curriculum = curriculum or Curriculum()
        self.keys = query_keys(pairs.query_ids)
        self.known = pairs.known_positives()
        self.trainable = np.flatnonzero(pairs.positives.lengths > 0)
        if len(self.trainable) == 0:
            raise UsageError("no query of the dataset has a positive: there is nothing to train on")
        self.epoch, self.done = 0, 0  # batches trained on, of this epoch
        self.total = 0  # of all epochs
        self._drawn = 0  # batches given out, of all epochs
        self._mined: list[tuple[int, Mined | None]] = []
        self.use(mined)

    def use(self, mined: Mined | None, at: int | None = None) -> None:
        """Draw from other candidates: those of a new generation.

        Args:
            mined: the candidates.
            at: from this batch on, counted over all epochs; None: from the next that is given out. With workers that
                read ahead, name one that they cannot have reached, so that a resumed training draws the same.
        """
        if mined is not None and len(mined.documents) != len(self.pairs):
            raise UsageError(f"candidates of {len(mined.documents):,} queries for a dataset of {len(self.pairs):,}")
        first = self._drawn if at is None else at
        if first < self._drawn:
            raise UsageError(f"batch {first} was given out already ({self._drawn} were): name a later one")
        self._mined = [(start, each) for start, each in self._mined if start < first] + [(first, mined)]

    def rewind(self) -> None:
        """Take back what was given out and not trained on: the next `iter` begins after the last `advance`."""
        self._drawn = self.total

    def __len__(self) -> int:
        """Batches of an epoch, about: what is put off may make one more."""
        whole = self.batch_size * self.ranks
        return len(self.trainable) // whole if self.drop_last else -(-len(self.trainable) // whole)

    def __iter__(self) -> Iterator[list[Example]]:
        epoch, before = self.epoch, self.total - self.done
        for number, rows, positives in self._batches(epoch):
            if number < self.done or epoch != self.epoch:
                continue
            batch = before + number
            self._drawn = max(self._drawn, batch + 1)
            mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
            yield self._examples(batch, rows[mine], positives[mine])

    def advance(self) -> None:
        """One more batch was trained on."""
        self.done += 1
        self.total += 1

    def end_epoch(self) -> None:
        """All batches of this epoch were trained on: the next `iter` begins another."""
        self.epoch += 1
        self.done = 0

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"epoch": self.epoch, "done": self.done, "total": self.total, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """RunError if it is of a sampler with other settings or other data."""
        mine = self._identity()
        changed = [name for name, value in mine.items() if state.get(name) != value]
        if changed:
            said = ", ".join(f"{name}: {state.get(name)!r} then, {mine[name]!r} now" for name in changed)
            raise RunError(f"the state is of another sampler ({said}): resume with the same settings and data")
        self.epoch, self.done, self.total = (int(state[name]) for name in ("epoch", "done", "total"))
        self._drawn = self.total
        self._mined = [(0, self._mined[-1][1])]

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "ranks": self.ranks,
            "negatives": self.negatives,
            "policy": self.policy_spec,
            "queries": len(self.trainable),
            "digest": self.pairs.digests.get("queries"),
        }

    def _batches(self, epoch: int) -> Iterator[tuple[int, Int, Int]]:
        """(number, queries, positives) of every batch of an epoch, over all ranks."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.trainable)
        chosen = self.pairs.positives.take(order)
        positives = chosen.values[chosen.offsets[:-1] + rng.integers(chosen.lengths)]
        keys = (
            told_apart(self.pairs.query_keys[order], order),
            told_apart(self.pairs.document_keys[positives], positives),
        )
        size, number = self.batch_size * self.ranks, 0
        waiting: list[int] = []
        following = iter(range(len(order)))
        while True:
            taken: list[int] = []
            seen: tuple[set[int], set[int]] = set(), set()
            late: list[int] = []
            while len(taken) < size:
                place = waiting.pop(0) if waiting else next(following, None)
                if place is None:
                    break
                pair = int(keys[0][place]), int(keys[1][place])
                if pair[0] in seen[0] or pair[1] in seen[1]:
                    late.append(place)
                    continue
                seen[0].add(pair[0])
                seen[1].add(pair[1])
                taken.append(place)
            waiting = late + waiting
            if not taken or (len(taken) < size and self.drop_last):
                return
            yield number, order[taken], positives[taken]
            number += 1

    def _examples(self, batch: int, rows: Int, positives: Int) -> list[Example]:
        negatives = self._negatives(batch, rows)
        return [Example(int(q), int(p), tuple(n.tolist())) for q, p, n in zip(rows, positives, negatives, strict=True)]

    def _negatives(self, batch: int, rows: Int) -> Int:
        """int64 `[b, negatives]`."""
        mined = next(each for start, each in reversed(self._mined) if start <= batch)
        seed = int(mix(np.array([self.seed], np.uint64) + np.uint64(batch + 1))[0] >> np.uint64(2))
        out = np.full((len(rows), self.negatives), -1, np.int64)
        if mined is not None and self.negatives:
            candidates = mined.candidates(rows)
            columns = draw(self.policy, candidates, mined.kept[rows], self.negatives, seed, self.keys[rows])
            found = np.take_along_axis(candidates.documents, np.maximum(columns, 0), 1)
            out = np.where(columns >= 0, found, -1).astype(np.int64)
            # So many of each query's stay as are the curriculum's share, rounded up or down by chance.
            share = self.curriculum.share(batch)
            if share < 1:
                places = np.arange(self.negatives + 1, dtype=np.uint64) + np.uint64(1)
                dice = mix(mix(self.keys[rows] ^ np.uint64(seed))[:, None] + places).astype(np.float64) / 2.0**64
                hard = np.floor(share * self.negatives + dice[:, -1])
                out = np.where(np.argsort(np.argsort(dice[:, :-1], axis=1), axis=1) < hard[:, None], out, -1)
        return self._filled(out, rows, seed)

    def _filled(self, negatives: Int, rows: Int, seed: int) -> Int:
        """Random documents in place of -1: none that is a known positive or stands in the row already."""
        size = len(self.pairs.document_ids)
        for i, row in enumerate(rows.tolist()):
            missing = np.flatnonzero(negatives[i] < 0)
            if len(missing) == 0:
                continue
            known = self.known.take(np.array([row])).values
            rng = np.random.default_rng([seed, row])
            pool = rng.integers(0, size, _TRIES + len(missing))
            _, first = np.unique(pool, return_index=True)
            pool = pool[np.sort(first)]
            pool = pool[~np.isin(pool, known) & ~np.isin(pool, negatives[i])]
            if len(pool) < len(missing):  # a tiny corpus: all that is left
                left = np.setdiff1d(np.arange(size), np.concatenate([known, negatives[i]]))
                pool = rng.permutation(left)
            if len(pool) < len(missing):
                raise UsageError(
                    f"query {self.pairs.query_ids[row].as_py()!r}: of {size:,} documents only "
                    f"{self.negatives - len(missing) + len(pool)} can be negatives, {self.negatives} were asked for"
                )
            negatives[i, missing] = pool[: len(missing)]
        return negatives


class Examples(Dataset[Texts]):
    """Texts of what a sampler gives out: `DataLoader(Examples(pairs), batch_sampler=sampler, collate_fn=list)`.

    Args:
        pairs: the dataset.
        queries, documents: what stands for its texts (images, say): anything with `take(rows)`; None: the texts.
    """

    def __init__(self, pairs: Pairs, queries: Items | None = None, documents: Items | None = None) -> None:
        self.queries, self.documents = queries or pairs.queries, documents or pairs.documents

    def __getitem__(self, example: Example) -> Texts:
        documents = list(self.documents.take(np.array([example.positive, *example.negatives])))
        query = self.queries.take(np.array([example.query]))[0]
        return Texts(query, documents[0], documents[1:], example)
