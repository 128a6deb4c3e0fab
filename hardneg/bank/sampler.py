"""What a training step gets: pairs without duplicates, and negatives from three places: mined, random, and a bank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from hardneg import renamed
from hardneg.bank.batches import distinct_batches
from hardneg.bank.composition import Composition
from hardneg.bank.curriculum import Curriculum
from hardneg.bank.examples import Example
from hardneg.bank.filling import Allowed, Filled, Filling
from hardneg.bank.hard_batches import RANDOM, HardBatches, near_pairs, parse_batches
from hardneg.bank.memory_bank import BankView, MemoryBank
from hardneg.bank.mixed_batches import MixedBatches, Plan
from hardneg.bank.pair_graph import PairVectors
from hardneg.data.pairs import Pairs
from hardneg.data.texts import distinct_keys
from hardneg.errors import RunError, UsageError
from hardneg.hashing import mix
from hardneg.mining.mined import Mined
from hardneg.mining.samplers import Sampler as NegativeSampler
from hardneg.mining.samplers import draw, query_keys
from hardneg.mining.specs import parse_sampler
from hardneg.registry import spec_of
from hardneg.storage.arrays import Int


class MemoryBankSampler(Sampler[list[Example]]):
    """A batch sampler: `DataLoader(examples, batch_sampler=sampler)`, with any number of workers.

    Every epoch goes through the queries that have a positive, in another order. No query and no positive stands twice in
    a batch, by text; a repeated one waits for a later batch. Only one that is repeated so often that the batches of an epoch
    would not suffice (in more than 4 of 5) may stand in a batch several times: give the loss the ids, which mask it. The last
    batch may be short, unless `drop_last`. Everything depends on the seed and the number of the batch alone.

    Negatives come from three places. Each query gets `negatives` mined ones, drawn among the kept candidates by
    `negative_sampling`. As `curriculum` says, and where too few are kept, random documents take their places. And every
    query of a batch meets the rows of `bank`, once `bank_start` batches were trained on: `bank_view()` gives them to the
    loss, `advance(vectors, ids)` writes the batch into the bank.

    Of a mixture (see `hardneg.mixture`) each batch has pairs, negatives and rows of the bank of one source; an epoch goes through each
    source as often as its weight says (see `MixedBatches`), and its batches are shuffled.

    Resuming: call `advance` after each batch. `state_dict` then names the first batch that was not trained on, however
    far workers have read ahead, and a sampler that loads it goes on from there.

    Args:
        pairs: the dataset.
        mined: candidates; None: random negatives only.
        batch_size: queries a batch.
        negatives: mined ones for each query; 0: none.
        negative_sampling: how mined negatives are drawn: a sampler, or its spec (top, uniform, softmax, simans).
        curriculum: None: all mined.
        batches: which pairs stand in a batch together: `random`, or `hard:group=32` (see `HardBatches`), composed from the
            candidates in use when an epoch begins; without any, batches are random. With `hard:graph=training` give the vectors of
            each batch to `keep_vectors`; the first epoch is random.
        bank: a memory bank; None: no further negatives.
        bank_start: batches before the bank is used; None: an epoch. While the encoder moves fast, old vectors teach it
            to tell old from new.
        seed: of orders and draws.
        drop_last: leave out batches that are not full.
        rank, ranks: of a distributed job: every rank takes its part of each batch of `batch_size * ranks` queries.
        allowed: says of random documents, int64 `[n, K]`, which may be negatives of queries, int64 `[n]`, as bool `[n, K]`. With it,
            no candidate that was rejected is drawn either, and a query that has no other document left gets its negatives again.
            None: any document but a known positive.

    Attributes:
        filled: how many places of the last draw got a random document, or a negative again.

    Raises:
        UsageError: a size or rank that cannot be, or no query has a positive.

    >>> from hardneg import Pairs
    >>> pairs = Pairs.from_columns(["a", "b", "c"], ["A", "B", "C"], corpus=["D", "E"])
    >>> [len(batch) for batch in MemoryBankSampler(pairs, batch_size=2, negatives=1)]
    [2, 1]
    """

    def __init__(
        self,
        pairs: Pairs,
        mined: Mined | None = None,
        *,
        batch_size: int,
        negatives: int = 1,
        negative_sampling: str | NegativeSampler = "uniform",
        curriculum: Curriculum | None = None,
        batches: str | HardBatches = RANDOM,
        bank: MemoryBank | None = None,
        bank_start: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        ranks: int = 1,
        allowed: Allowed | None = None,
    ) -> None:
        if batch_size < 1 or negatives < 0:
            raise UsageError(f"batch_size={batch_size} must be 1 or more, negatives={negatives} 0 or more")
        if not 0 <= rank < ranks:
            raise UsageError(f"rank={rank} must be 0 or more and below ranks={ranks}")
        self.pairs, self.negatives, self.seed = pairs, negatives, seed
        self.batch_size, self.drop_last, self.rank, self.ranks = batch_size, drop_last, rank, ranks
        self.negative_sampling = parse_sampler(negative_sampling)
        self._sampling_spec = spec_of(negative_sampling)
        self.curriculum = curriculum or Curriculum()
        self.keys = query_keys(pairs.query_ids)
        self.known = pairs.known_positives()
        hard = parse_batches(batches)
        self.composition = None if hard is None else Composition(hard, pairs, self.known, self._compose)
        self._fill = Filling(pairs, self.known, allowed)
        self.filled = Filled()
        self.trainable = np.flatnonzero(pairs.positives.lengths > 0)
        if len(self.trainable) == 0:
            raise UsageError("no query of the dataset has a positive: there is nothing to train on")
        self.mixed: MixedBatches | None = None
        if pairs.mixed is not None:
            self.mixed = MixedBatches(pairs.mixed, self.trainable, batch_size * ranks, ranks, drop_last)
        self._planned: tuple[int, Plan] | None = None  # of a mixture: the epoch, and its batches
        self.epoch, self.done = 0, 0  # batches trained on, of this epoch
        self.total = 0  # of all epochs
        self._drawn = 0  # batches given out, of all epochs
        self._mined: list[tuple[int, Mined | None]] = []
        self.bank = bank
        self.bank_start = len(self) if bank_start is None else bank_start
        self.use(mined)

    def use(self, mined: Mined | None, at: int | None = None) -> None:
        """Draw from other candidates, such as those of a new generation.

        Args:
            mined: the candidates.
            at: the first batch to draw from them, counted over all epochs; None: the next batch. With workers that read ahead,
                name a batch that they cannot have reached, so that a resumed training draws the same.
        """
        if mined is not None and len(mined.documents) != len(self.pairs):
            raise UsageError(f"candidates of {len(mined.documents):,} queries for a dataset of {len(self.pairs):,}")
        first = self._drawn if at is None else at
        if first < self._drawn:
            raise UsageError(f"batch {first} was given out already ({self._drawn} were): name a later one")
        self._mined = [(start, each) for start, each in self._mined if start < first] + [(first, mined)]
        if self.composition is not None:
            self.composition.use(self.epoch, mined)

    def rewind(self) -> None:
        """Take back batches that were drawn but not trained on: the next `iter` begins after the last `advance`."""
        self._drawn = self.total

    def __len__(self) -> int:
        """Batches of an epoch, approximately: repeated queries and positives may add one."""
        whole = self.batch_size * self.ranks
        if self.mixed is not None:
            return len(self.mixed)
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

    @property
    def source(self) -> int | None:
        """The source of the batch that is trained on now; None where the dataset is no mixture."""
        if self.mixed is None:
            return None
        sources = self._plan(self.epoch, self.mixed).sources
        return sources[min(self.done, len(sources) - 1)]

    @property
    def bank_in_use(self) -> bool:
        """Whether there is a bank, and enough batches were trained on to use it."""
        return self.bank is not None and self.total >= self.bank_start

    def bank_view(self) -> BankView | None:
        """The bank's rows for the batch that is trained on now: none before `bank_start`; None without a bank.

        Those of another source than the batch's are left out: they would teach what batches of one source avoid teaching.
        """
        if self.bank is None:
            return None
        view = self.bank.view() if self.bank_in_use else self.bank.empty_view()
        if self.pairs.mixed is None or self.source is None:
            return view
        first, stop = self.pairs.mixed.span(self.source)
        return view.where((view.ids >= first) & (view.ids < stop))

    def advance(self, vectors: Tensor | None = None, ids: Tensor | None = None, groups: Tensor | None = None) -> None:
        """Count a batch that was trained on, and write its documents into the bank.

        Args:
            vectors: `[n, d]`, the vectors of the batch's documents, for the bank; see `MemoryBank.push`.
            ids, groups: int64 `[n]`, of those documents; of a mixture, ids are their rows.

        Raises:
            UsageError: vectors without a bank, or a bank without vectors; of a mixture, vectors without ids.
        """
        if (vectors is None) != (self.bank is None):
            missing = "advance(vectors, ids): the bank needs them" if vectors is None else "bank=MemoryBank(...)"
            raise UsageError(f"a sampler takes vectors with a bank, and only then: give {missing}")
        if vectors is not None and ids is None and self.mixed is not None:
            raise UsageError(
                "the bank of a mixture needs the rows of the documents, which tell their sources: advance(vectors, ids)"
            )
        self.done += 1
        self.total += 1
        if self.bank is not None and vectors is not None:
            self.bank.push(vectors, ids, groups)

    def end_epoch(self) -> None:
        """Mark the end of an epoch: the next `iter` begins another."""
        self.epoch += 1
        self.done = 0

    def keep_vectors(self, queries: Int, positives: Int, query_vectors: Tensor, positive_vectors: Tensor) -> None:
        """Keep what was made of the pairs of a batch, of all ranks, for `hard:graph=training`; see `PairVectors.write`.

        Raises:
            UsageError: the batches are composed from something else.
        """
        if self.vectors is None:
            raise UsageError(
                f"the sampler keeps vectors of pairs for batches='hard:graph=training' only, not for {self._batches_spec!r}"
            )
        self.vectors.write(queries, positives, query_vectors, positive_vectors)

    @property
    def vectors(self) -> PairVectors | None:
        """The vectors of the pairs, with `hard:graph=training`; else None."""
        return None if self.composition is None else self.composition.vectors

    @property
    def _batches_spec(self) -> str:
        return RANDOM if self.composition is None else self.composition.hard.spec

    def state_dict(self) -> dict[str, Any]:
        """Plain values; with a bank, its tensors under `bank`; with hard batches, the order of this epoch under `composition`."""
        state = {"epoch": self.epoch, "done": self.done, "total": self.total, **self._identity()}
        if self.bank is not None:
            state["bank"] = dict(self.bank.state_dict())
        if self.composition is not None:
            state |= self.composition.state(self.epoch)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; RunError if it belongs to a sampler with other settings or other data."""
        mine, state = self._identity(), {"batches": RANDOM, **renamed.with_new_names(state, renamed.TRAIN_OPTIONS)}
        changed = [name for name, value in mine.items() if state.get(name) != value]
        if changed:
            said = ", ".join(f"{name}: {state.get(name)!r} then, {mine[name]!r} now" for name in changed)
            raise RunError(f"the state is of another sampler ({said}): resume with the same settings and data")
        counts = {name: state.get(name) for name in ("epoch", "done", "total")}
        if not all(type(count) is int and 0 <= count < 2**62 for count in counts.values()):
            raise RunError(f"the state holds no counts of batches ({counts}): it is damaged")
        self.epoch, self.done, self.total = (int(state[name]) for name in counts)
        if self.composition is not None:
            self.composition.load(state, self.epoch, len(self.trainable) if self.mixed is None else self.mixed.pairs)
        self._planned = None
        if self.bank is not None and state.get("bank") is not None:
            self.bank.load_state_dict(state["bank"])
        self._drawn = self.total
        self._mined = [(0, self._mined[-1][1])]

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "ranks": self.ranks,
            "negatives": self.negatives,
            "negative_sampling": self._sampling_spec,
            "batches": self._batches_spec,
            "queries": len(self.trainable),
            "digest": self.pairs.digests.get("queries"),
            **(
                {}
                if self.pairs.mixed is None
                else {"sources": self.pairs.mixed.settings(), "digests": self.pairs.digests}
            ),
        }

    def _pairs_of(self, epoch: int) -> tuple[Int, Int, tuple[Int, Int]]:
        """The pairs of an epoch in random order: queries, positives, and a key for the text of each."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.trainable) if self.mixed is None else self.mixed.order(rng)
        chosen = self.pairs.positives.take(order)
        positives = chosen.values[chosen.offsets[:-1] + rng.integers(chosen.lengths)]
        keys = (
            distinct_keys(self.pairs.query_keys[order], order),
            distinct_keys(self.pairs.document_keys[positives], positives),
        )
        return order, positives, keys

    def _batches(self, epoch: int) -> Iterator[tuple[int, Int, Int]]:
        """(number, queries, positives) of every batch of an epoch, over all ranks."""
        if self.mixed is not None:
            plan = self._plan(epoch, self.mixed)
            yield from zip(range(len(plan.sources)), plan.queries, plan.positives, strict=True)
            return
        order, positives, keys = self._in_order(epoch)
        batches = distinct_batches(*keys, self.batch_size * self.ranks, len(self), self.drop_last)
        for number, taken in enumerate(batches):
            yield number, order[taken], positives[taken]

    def _in_order(self, epoch: int) -> tuple[Int, Int, tuple[Int, Int]]:
        """The pairs of an epoch as `_pairs_of` gives them, in the order of its batches."""
        order, positives, keys = self._pairs_of(epoch)
        if self.composition is None:
            return order, positives, keys
        places = self.composition.order(epoch, self._mined[-1][1])
        return order[places], positives[places], (keys[0][places], keys[1][places])

    def _plan(self, epoch: int, mixed: MixedBatches) -> Plan:
        """The batches of an epoch of a mixture, put together once."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, mixed.plan(*self._in_order(epoch), np.random.default_rng([self.seed, epoch, 2]))
        return self._planned[1]

    def _compose(self, epoch: int, mined: Mined | None) -> Int:
        """The order of the pairs of an epoch, from these candidates; it depends on them, the seed and the epoch alone."""
        assert self.composition is not None
        order, positives, keys = self._pairs_of(epoch)
        if mined is None:
            return np.arange(len(order))
        rng, hard = np.random.default_rng([self.seed, epoch, 1]), self.composition.hard

        def compose(start: int, stop: int) -> Int:
            here = slice(start, stop)
            near = near_pairs(mined, order[here], positives[here], len(self.pairs.document_ids), hard.near, rng)
            return hard.order(near, keys[0][here], keys[1][here], self.batch_size * self.ranks, rng)

        return compose(0, len(order)) if self.mixed is None else self.mixed.composed(compose)

    def _examples(self, batch: int, rows: Int, positives: Int) -> list[Example]:
        negatives = self.negatives_of(rows, batch)
        return [Example(int(q), int(p), tuple(n.tolist())) for q, p, n in zip(rows, positives, negatives, strict=True)]

    def negatives_of(self, rows: Int, batch: int) -> Int:
        """Draw negatives for these queries, without a batch: for a training loop that makes its own batches.

        Args:
            rows: int64 `[b]`, rows of the dataset's queries.
            batch: the number that the draw is seeded with; another number gives another draw from the same candidates.

        Returns:
            int64 `[b, negatives]`, rows of the corpus.
        """
        mined = next(each for start, each in reversed(self._mined) if start <= batch)
        seed = int(mix(np.array([self.seed], np.uint64) + np.uint64(batch + 1))[0] >> np.uint64(2))
        out = np.full((len(rows), self.negatives), -1, np.int64)
        if mined is not None and self.negatives:
            candidates = mined.candidates(rows)
            columns = draw(self.negative_sampling, candidates, mined.kept[rows], self.negatives, seed, self.keys[rows])
            found = np.take_along_axis(candidates.documents, np.maximum(columns, 0), 1)
            out = np.where(columns >= 0, found, -1).astype(np.int64)
            # Keep the curriculum's share of each query's mined negatives, rounded up or down at random.
            share = self.curriculum.share(batch)
            if share < 1:
                places = np.arange(self.negatives + 1, dtype=np.uint64) + np.uint64(1)
                dice = mix(mix(self.keys[rows] ^ np.uint64(seed))[:, None] + places).astype(np.float64) / 2.0**64
                hard = np.floor(share * self.negatives + dice[:, -1])
                out = np.where(np.argsort(np.argsort(dice[:, :-1], axis=1), axis=1) < hard[:, None], out, -1)

        def rejected(place: int) -> Int:
            row = rows[place]
            return np.zeros(0, np.int64) if mined is None else mined.documents[row][~mined.kept[row]].astype(np.int64)

        self.filled = self._fill(out, rows, seed, rejected)
        return out
