"""Mined negatives during a training: they come from generations of the index, and filters choose among them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hardneg.bank.memory_bank import BankView
from hardneg.bank.sampler import MemoryBankSampler
from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.mining.mined import Mined
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.mining.specs import parse_filters
from hardneg.refresh.context import context_of
from hardneg.refresh.encode import Items
from hardneg.refresh.generation import Recipe
from hardneg.refresh.refreshed_index import RefreshedIndex
from hardneg.refresh.snapshot import ModuleSnapshots
from hardneg.refresh.staleness import Schedule
from hardneg.training.batches import Batch
from hardneg.training.checkpoint import fitting
from hardneg.training.distributed import World
from hardneg.training.online_filters import OnlineFilters, Rows
from hardneg.training.options import TrainOptions
from hardneg.training.share import Helper, SharedSnapshots, shared_encoding
from hardneg.training.towers import Towers


class MinedNegatives:
    """Mines negatives during a training, and refreshes them.

    It gives the sampler the candidates of the generation in use, and the loss the masks of the filters. A training loop
    passes `masks(...)` to the loss, calls `updated()` after each update of the weights, and `end_epoch()` after each
    epoch. When `updated()` returns True, the sampler draws from new candidates, and the loop must start its batches
    again.

    Args:
        pairs: the training data.
        towers: the model. Its weights are copied for every generation.
        options: the options of the training.
        world: the ranks of the training; all encode the generations, and rank 0 builds them.
        sampler: the sampler that receives the candidates.
        run: a mining run whose candidates are used; None: mine during the training.
        queries, documents: items that replace the texts of `pairs`; see `Examples`.
        embed: encodes the dataset with a guide model; see `Context`.
        resume: a folder that `save` wrote, to continue from.
        step: the training step of the model.
        learned: the state of the filters in a checkpoint (`OnlineFilters.state`).

    Attributes:
        filters: the filters, as masks of the loss.
        index: the index that is refreshed; None: on other ranks than 0, with `run`, and if nothing is mined.
        swap_seconds: the time that it took to put the generation in use into use.
        rejected: the share of the candidates of the generation in use that each filter rejects; on rank 0 only.

    Raises:
        UsageError: options that do not fit the data, or a run over another dataset.
    """

    def __init__(
        self, pairs: Pairs, towers: Towers, options: TrainOptions, world: World, sampler: MemoryBankSampler, *,
        run: Run | None = None, queries: Items | None = None, documents: Items | None = None, embed: Any = None,
        resume: Path | None = None, step: int = 0, learned: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.pairs, self.options, self.world, self.sampler = pairs, options, world, sampler
        self.documents = documents or pairs.documents
        chain = parse_filters(options.filters, options.default_filters, training=True)
        context = context_of(None, pairs, pairs.known_positives(), embed)
        self.filters = OnlineFilters(chain, pairs, context, world.device, options.seed)
        if learned is not None:
            with fitting((resume or Path("generations")).parent):
                self.filters.load(learned)
        self.index: RefreshedIndex | None = None
        self.swap_seconds = 0.0
        self.rejected: dict[str, float] = {}
        composed = sampler.composition is not None and sampler.vectors is None
        wanted = options.negatives > 0 or composed or self.filters.needs_neighbors
        mines = wanted and run is None
        snapshots: Any = ModuleSnapshots(towers, lambda model, items, side: model.encode(items, side))
        self.shared: SharedSnapshots | Helper | None = None
        if mines and world.size > 1:
            world.same_start(towers)
            sides = {"query": queries or pairs.queries, "document": self.documents}
            self.shared = shared_encoding(world, snapshots, sides, begins=resume is None)
            snapshots = self.shared
        if mines and world.leads:
            count = len(pairs.document_ids)
            self.index = RefreshedIndex(
                self.documents,
                snapshots,
                ids=count,
                queries=(queries or pairs.queries, len(pairs)),
                schedule=options.refresh,
                recipe=Recipe(
                    index=options.index, metric=options.metric, depth=min(options.depth, count), share=options.share,
                    seed=options.seed, sources=pairs.mixed,
                ),
                lag=self._lag(len(sampler)) if options.wait else None,
                prepare=partial(self.filters.of_generation, embed=embed),
                resume=resume,
                step=step,
            )  # fmt: skip
        self.mines = mines
        if mines:
            self._use_generation()
        elif run is not None:
            self._use_run(run)

    def masks(self, batch: Batch, bank: BankView | None) -> dict[str, Any]:
        """The filters' verdicts on all documents of this step, as keyword arguments of `InfoNCE.forward`."""
        device = self.world.device
        documents, size = batch.document_rows.to(device), len(batch.queries)
        bank_rows = documents.new_empty(0) if bank is None else bank.ids
        return self.filters.masks(Rows(batch.query_rows.to(device), documents[:size], documents[size:], bank_rows))

    def updated(self) -> bool:
        """Count an update of the weights. Returns True if new candidates are in use: then start the batches again."""
        return self._swapped(lambda index: index.step())

    def end_epoch(self) -> None:
        """Mark the end of an epoch, for the sampler and the index."""
        self.sampler.end_epoch()
        composition = self.sampler.composition
        if self.world.size > 1 and composition is not None and composition.vectors is not None:
            # One rank composes: others would do the same work beside it, and another processor may round to another order.
            order = composition.order(self.sampler.epoch, None)[:, None] if self.world.leads else None
            shared = self.world.broadcast_array(order, np.int64)
            composition.set(self.sampler.epoch, shared[:, 0].astype(np.int64))
        self._swapped(lambda index: index.end_epoch())

    def _swapped(self, advance: Callable[[RefreshedIndex], bool]) -> bool:
        """Advance the index of rank 0, and use its new generation on all ranks if there is one."""
        if not self.mines:
            return False
        swapped = self._advanced(advance)
        if swapped:
            self._use_generation()
        return swapped

    def _advanced(self, advance: Callable[[RefreshedIndex], bool]) -> bool:
        """Advance the index of rank 0. The other ranks take the snapshots that it has taken, at the same step."""
        swapped = int(self.index is not None and advance(self.index))
        if self.shared is None:
            return bool(self.world.broadcast_int(swapped))
        value = self.world.broadcast_int(2 * self.shared.count + swapped)
        if isinstance(self.shared, Helper):
            self.shared.snapshots_to(value // 2)
        return bool(value % 2)

    # Generations.

    def _lag(self, batches: int) -> int:
        """Steps between the start of a refresh and its use; `batches` is the number of batches in an epoch."""
        schedule = Schedule.parse(self.options.refresh)
        updates = max(1, batches // self.options.accumulate)
        between = schedule.steps or (schedule.check if schedule.measures else updates)
        return self.options.lag if self.options.lag is not None else between // 2

    def _use_generation(self) -> None:
        """Give the candidates of the generation in use to the sampler, on all ranks."""
        start = time.perf_counter()
        mined = None
        if self.index is not None:
            mined = self.filters.use(self.index.prepared)
            total = max(1, int((mined.documents >= 0).sum()))
            self.rejected = {name: count / total for name, count in mined.rejected.items()}
        if self.world.size > 1:
            mined = self._shared(mined)
        self.sampler.rewind()
        self.sampler.use(mined)
        self.swap_seconds = time.perf_counter() - start

    def _shared(self, mined: Mined | None) -> Mined:
        """The candidates that rank 0 mined, on all ranks; the filters share their sketches as well."""
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
        """Give the candidates of a run to the sampler; UsageError if it was mined from another dataset."""
        reopened = Reopened(run)
        trained, mined = self.pairs.digests, reopened.pairs.digests
        if any(trained.get(name) != mined.get(name) for name in ("queries", "documents")):
            raise UsageError(f"the run {run.folder} was mined from another dataset than {self.pairs.name}")
        self.sampler.use(self.filters.use(self.filters.prepared(Mined.of_run(run), reopened.context)))

    # Checkpoints.

    def save(self, folder: Path) -> None:
        """Write the generations of the index to a folder."""
        if self.index is not None:
            self.index.save(folder)

    def close(self) -> None:
        """Stop the build of a generation, if one is under way."""
        if self.index is not None:
            self.index.close()
        if self.shared is not None:
            self.shared.close()
