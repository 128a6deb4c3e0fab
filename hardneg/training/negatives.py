"""Mined negatives while training: generations of the index, the filters, and what both say in the loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.bank.memory_bank import BankView
from hardneg.bank.sampler import MemoryBankSampler
from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.mining.candidates import NEAREST_FOUND, Context
from hardneg.mining.mined import Mined
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.mining.specs import parse_filters
from hardneg.refresh.generation import Generation, Items, Recipe
from hardneg.refresh.refreshed_index import RefreshedIndex
from hardneg.refresh.snapshot import ModuleSnapshots
from hardneg.refresh.staleness import Schedule
from hardneg.training.batches import Batch
from hardneg.training.distributed import World
from hardneg.training.online_filters import OnlineFilters, Rows
from hardneg.training.options import TrainOptions
from hardneg.training.towers import Towers


class MinedNegatives:
    """Gives a sampler the candidates of the generation in use, and the loss the masks of the filters.

    In a loop: `masks` for the loss, `updated` after an update of the weights (True: the sampler draws from other
    candidates now, so begin its batches again), `end_epoch` after an epoch.

    Args:
        pairs: what to train on.
        towers: the model, whose weights are copied for every generation.
        options: of the training.
        world: the ranks; the first builds the generations.
        sampler: that is told the candidates.
        run: candidates of a mining pass, used instead of mining here.
        queries, documents: what stands for the texts of `pairs`, see `Examples`.
        embed: see `Context`.
        resume: a folder that `save` wrote.
        step: of the model.
        learned: what `state` gave of the filters.
    """

    def __init__(
        self, pairs: Pairs, towers: Towers, options: TrainOptions, world: World, sampler: MemoryBankSampler, *,
        run: Run | None = None, queries: Items | None = None, documents: Items | None = None, embed: Any = None,
        resume: Path | None = None, step: int = 0, learned: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.pairs, self.options, self.world, self.sampler = pairs, options, world, sampler
        self.known, self.embed = pairs.known_positives(), embed
        self.documents = documents or pairs.documents
        chain = parse_filters(options.filters, options.default_filters, training=True)
        self.filters = OnlineFilters(chain, pairs, self._context(None), world.device, options.seed)
        if learned is not None:
            self.filters.load(learned)
        self.index: RefreshedIndex | None = None
        self.swap_seconds = 0.0
        mines = (options.negatives > 0 or self.filters.needs_neighbors) and run is None
        if mines and world.leads:
            count = len(pairs.document_ids)
            self.index = RefreshedIndex(
                self.documents,
                ModuleSnapshots(towers, lambda model, items, side: model.encode(items, side)),
                ids=count,
                queries=(queries or pairs.queries, len(pairs)),
                schedule=options.refresh,
                recipe=Recipe(index=options.index, depth=min(options.depth, count), share=options.share, seed=options.seed),
                lag=self._lag(len(sampler)) if options.wait else None,
                resume=resume,
                step=step,
            )  # fmt: skip
        self.mines = mines
        if mines:
            self._use_generation()
        elif run is not None:
            self._use_run(run)

    def masks(self, batch: Batch, bank: BankView | None) -> dict[str, Any]:
        """What the filters say of everything in this step, as arguments of `InfoNCE`."""
        device = self.world.device
        documents, size = batch.document_rows.to(device), len(batch.queries)
        none = documents.new_empty(0)
        rows = Rows(batch.query_rows.to(device), documents[:size], documents[size:], none if bank is None else bank.ids)
        return self.filters.masks(rows)

    def updated(self) -> bool:
        """The weights were updated. True: other candidates are in use now, begin the sampler's batches again."""
        return self._swapped(lambda index: index.step())

    def end_epoch(self) -> None:
        self.sampler.end_epoch()
        self._swapped(lambda index: index.end_epoch())

    def _swapped(self, tell: Callable[[RefreshedIndex], bool]) -> bool:
        if not self.mines:
            return False
        swapped = bool(self.world.broadcast_int(int(self.index is not None and tell(self.index))))
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
            assert generation.neighbors is not None
            context = self._context(generation)
            mined = Mined.of_neighbors(generation.neighbors, generation.ids, self.pairs, context, self.filters.fixed)
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
        documents, scores, positive, kept = map(self.world.broadcast_array, tables, kinds)
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
            assert generation.neighbors is not None
            return generation.neighbors.documents[:, :NEAREST_FOUND]

        return Context(self.pairs, index, self.known, self.embed, nearest)

    # Checkpoints.

    def save(self, folder: Path) -> None:
        """Write the generations."""
        if self.index is not None:
            self.index.save(folder)

    def close(self) -> None:
        """Stop a build that is under way."""
        if self.index is not None:
            self.index.close()
