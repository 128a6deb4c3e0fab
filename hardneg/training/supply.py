"""What a training step is fed: pairs, mined negatives of the generation in use, rows of the bank, and the masks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from hardneg.bank.memory_bank import BankView, MemoryBank, MomentumEncoder
from hardneg.bank.mined import Mined
from hardneg.bank.sampler import Examples, MemoryBankSampler
from hardneg.bank.sampler import Texts as ExampleTexts
from hardneg.data.pairs import Pairs
from hardneg.encoders.snapshot import ModuleSnapshots
from hardneg.errors import UsageError
from hardneg.index.generation import Generation, Items, Recipe
from hardneg.index.refreshed import RefreshedIndex
from hardneg.index.staleness import Schedule
from hardneg.losses.ranks import Ranks
from hardneg.mining.candidates import Context
from hardneg.mining.crowds import SPREAD
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.mining.specs import parse_filters
from hardneg.training.distributed import World
from hardneg.training.online import OnlineFilters, Rows
from hardneg.training.options import TrainOptions
from hardneg.training.towers import Towers


@dataclass(frozen=True)
class Batch:
    """One batch of pairs; every document stands in it once, however often it is a negative.

    Attributes:
        queries: B items.
        documents: P + M items: the positives, one a query, then the mined negatives.
        query_rows: int64 `[B]`, document_rows: int64 `[B + M]`: rows of the dataset.
        mined: int64 `[B, K]`: where each query's mined negatives stand among the documents; -1: on another rank.
    """

    queries: list[Any]
    documents: list[Any]
    query_rows: Tensor
    document_rows: Tensor
    mined: Tensor

    @classmethod
    def of(cls, examples: Sequence[ExampleTexts]) -> Batch:
        positives = [e.rows.positive for e in examples]
        place = {row: i for i, row in enumerate(positives)}
        items = [e.positive for e in examples]
        for e in examples:
            for row, item in zip(e.rows.negatives, e.negatives, strict=True):
                if row not in place:
                    place[row] = len(items)
                    items.append(item)
        return cls(
            [e.query for e in examples],
            items,
            torch.tensor([e.rows.query for e in examples]),
            torch.tensor(list(place)),
            torch.tensor([[place[row] for row in e.rows.negatives] for e in examples], dtype=torch.int64),
        )

    def without_others(self, world: World) -> Batch:
        """Without mined negatives that another rank encodes: the loss gathers the vectors of all."""
        size = len(self.queries)
        rows = self.document_rows.to(world.device)
        ranks = Ranks.here(size, world.device)
        positives, mined = ranks.gathered(rows[:size]), ranks.gathered(rows[size:])
        owner = ranks.gathered(torch.full_like(rows[size:], world.rank))
        kept = ~torch.isin(rows[size:], torch.cat([positives, mined[owner < world.rank]])).cpu()
        kept = torch.cat([torch.ones(size, dtype=torch.bool), kept])
        places = torch.where(kept, kept.cumsum(0) - 1, -1)
        documents = [item for item, stays in zip(self.documents, kept.tolist(), strict=True) if stays]
        return Batch(self.queries, documents, self.query_rows, self.document_rows[kept], places[self.mined])


class Supply:
    """Batches and their negatives.

    In a loop: `for batch in batches()`, then `masks` and `seen` for the loss, `used` after the batch, `stepped` after an
    update of the weights, and once more `batches()` when that says True; `end_epoch` when they are through.

    Args:
        pairs: what to train on.
        towers: the model, whose weights are copied for every generation.
        options: of the training.
        world: the ranks; the first builds the generations.
        run: candidates of a mining pass, used instead of mining here.
        queries, documents: what stands for the texts of `pairs`, see `Examples`.
        embed: see `Context`.
        resume: a folder that `save` wrote; learned: what `state` gave of the filters.
    """

    def __init__(
        self, pairs: Pairs, towers: Towers, options: TrainOptions, world: World, *, run: Run | None = None,
        queries: Items | None = None, documents: Items | None = None, embed: Any = None, resume: Path | None = None,
        step: int = 0, learned: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.pairs, self.options, self.world = pairs, options, world
        self.known, self.embed = pairs.known_positives(), embed
        self.documents = documents or pairs.documents
        chain = parse_filters(options.filters, options.default_filters, training=True)
        self.filters = OnlineFilters(chain, pairs, self._context(None), world.device, options.seed)
        if learned is not None:
            self.filters.load(learned)
        trainable = int((pairs.positives.lengths > 0).sum())
        whole = options.batch_size * world.size
        if world.size > 1 and trainable < whole:
            raise UsageError(
                f"{trainable:,} pairs are too few for batches of {options.batch_size} on {world.size} ranks"
            )
        self.sampler = MemoryBankSampler(
            pairs, batch_size=options.batch_size, negatives=options.negatives, policy=options.policy,
            curriculum=options.curriculum, seed=options.seed, drop_last=trainable >= whole, rank=world.rank,
            ranks=world.size,
        )  # fmt: skip
        self.loader: DataLoader[Any] = DataLoader(
            Examples(pairs, queries, documents), batch_sampler=self.sampler, collate_fn=Batch.of,
            num_workers=options.workers, persistent_workers=options.workers > 0,
            generator=torch.Generator().manual_seed(options.seed),  # its own: beginning anew must not move the model's numbers
        )  # fmt: skip
        self.bank = self.momentum = None
        self.bank_start = len(self.sampler) if options.bank_start is None else options.bank_start
        if options.bank:
            self.bank = MemoryBank(options.bank, towers.dimension, max_age=options.bank_age).to(world.device)
            if options.momentum is not None:
                self.momentum = MomentumEncoder(towers, options.momentum)
        self.towers = towers
        self.index: RefreshedIndex | None = None
        self.swap_seconds = 0.0
        mines = (options.negatives > 0 or self.filters.needs_neighbours) and run is None
        if mines and world.leads:
            count = len(pairs.document_ids)
            self.index = RefreshedIndex(
                self.documents,
                ModuleSnapshots(towers, lambda model, items, side: model.encode(items, side)),
                ids=count,
                queries=(queries or pairs.queries, len(pairs)),
                schedule=options.refresh,
                recipe=Recipe(index=options.index, depth=min(options.depth, count), share=options.share, seed=options.seed),
                lag=self._lag(len(self.sampler)) if options.wait else None,
                resume=resume,
                step=step,
            )  # fmt: skip
        self.mines = mines
        if mines:
            self._use_generation()
        elif run is not None:
            self._use_run(run)

    # What a step gets.

    def batches(self) -> Iterator[Batch]:
        """Those of this epoch that were not trained on yet."""
        self.sampler.rewind()
        found = False
        for batch in self.loader:
            found = True
            yield batch if self.world.size == 1 else batch.without_others(self.world)
        if not found and self.sampler.done == 0:
            raise UsageError(
                f"not one batch of {self.options.batch_size * self.world.size} pairs without a repeated query or positive can "
                f"be made of {len(self.sampler.trainable):,} pairs: take a smaller batch_size"
            )

    def seen(self) -> BankView | None:
        """The bank's rows for this batch, some encoded anew and the others moved along if the options say so."""
        if self.bank is None or self.sampler.total < self.bank_start:
            return None
        if self.options.bank_fresh and len(self.bank):
            self.bank.encode_again(self._encode_rows, self.options.bank_fresh, seed=self.sampler.total)
        return self.bank.view()

    def _encode_rows(self, rows: Tensor) -> Tensor:
        vectors = self.towers.encode(self.documents.take(rows.numpy()), "document")
        return torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)

    def masks(self, batch: Batch, bank: BankView | None) -> dict[str, Any]:
        """What the filters say of everything in this step, as arguments of `InfoNCE`."""
        device = self.world.device
        documents, size = batch.document_rows.to(device), len(batch.queries)
        none = documents.new_empty(0)
        rows = Rows(batch.query_rows.to(device), documents[:size], documents[size:], none if bank is None else bank.ids)
        return self.filters.masks(rows)

    # What happened.

    def used(self, batch: Batch, documents: Tensor) -> None:
        """A batch was trained on, with these vectors `[B + M, d]` of its documents."""
        self.sampler.advance()
        if self.bank is not None:
            if self.momentum is not None:
                documents = self.momentum(batch.documents, "document")
            unit = torch.nn.functional.normalize(documents.detach().float(), dim=1)
            self.bank.push(unit, batch.document_rows.to(unit.device))

    def stepped(self) -> bool:
        """The weights were updated. True: other negatives are in use now, begin `batches` again."""
        if self.momentum is not None:
            self.momentum.update(self.towers)
        return self._swapped(lambda index: index.step())

    def end_epoch(self) -> None:
        self.sampler.end_epoch()
        self._swapped(lambda index: index.end_epoch())

    def _swapped(self, tell: Callable[[RefreshedIndex], bool]) -> bool:
        if not self.mines:
            return False
        swapped = bool(self.world.told(int(self.index is not None and tell(self.index))))
        if swapped:
            self._use_generation()
        return swapped

    # Generations.

    def _lag(self, batches: int) -> int:
        schedule = Schedule.parse(self.options.refresh)
        updates = max(1, batches // self.options.accumulate)
        between = schedule.steps or (schedule.check if schedule.measures else updates)
        return self.options.lag if self.options.lag is not None else between // 2

    def _use_generation(self) -> None:
        start = time.perf_counter()
        mined = None
        if self.index is not None:
            generation = self.index.generation
            assert generation.neighbours is not None
            context = self._context(generation)
            mined = Mined.of_neighbours(
                generation.neighbours, generation.ids, self.pairs, context, self.filters.settled
            )
            mined = self.filters.use(mined, context)
        if self.world.size > 1:
            mined = self._shared(mined)
        self.sampler.rewind()
        self.sampler.use(mined)
        self.swap_seconds = time.perf_counter() - start

    def _shared(self, mined: Mined | None) -> Mined:
        """What the first rank mined, and the sketches that it made, on all ranks."""
        tables = [None] * 4 if mined is None else [
            mined.documents, mined.scores, mined.positive_scores[:, None], mined.kept
        ]  # fmt: skip
        kinds = (np.int32, np.float32, np.float32, np.bool_)
        documents, scores, positive, kept = map(self.world.shown, tables, kinds)
        self.filters.share(self.world)
        return Mined(
            documents.astype(np.int32), scores.astype(np.float32), positive[:, 0].astype(np.float32), kept.astype(bool)
        )

    def _use_run(self, run: Run) -> None:
        reopened = Reopened(run)
        mine, theirs = self.pairs.digests, reopened.pairs.digests
        if any(mine.get(name) != theirs.get(name) for name in ("queries", "documents")):
            raise UsageError(f"the run {run.folder} was mined for another dataset than {self.pairs.name}")
        self.sampler.use(self.filters.use(Mined.of_run(run), reopened.context))

    def _context(self, generation: Generation | None) -> Context:
        def index() -> Any:
            if generation is None:
                raise UsageError("no generation was built yet")
            return generation.index

        def nearest() -> NDArray[np.int32]:
            assert generation is not None
            assert generation.neighbours is not None
            return generation.neighbours.documents[:, :SPREAD]

        return Context(self.pairs, index, self.known, self.embed, nearest)

    # Checkpoints.

    def state(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "sampler": self.sampler.state_dict(),
            "bank": None if self.bank is None else dict(self.bank.state_dict()),
            "momentum": None if self.momentum is None else dict(self.momentum.state_dict()),
            "filters": self.filters.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])
        if self.momentum is not None:
            self.momentum.load_state_dict(state["momentum"])

    def save(self, folder: Path) -> None:
        """The generations."""
        if self.index is not None:
            self.index.save(folder)

    def close(self) -> None:
        if self.index is not None:
            self.index.close()
