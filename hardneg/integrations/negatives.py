"""Hard negatives for a training loop that is not ours: drawn for every pair, and mined again as the model learns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from hardneg.bank.sampler import MemoryBankSampler
from hardneg.data.notes import warn_of_empty_texts
from hardneg.data.options import ReadOptions
from hardneg.data.read import as_pairs
from hardneg.encoders.base import prompt_of
from hardneg.encoders.embed import fit
from hardneg.encoders.factory import checked_encoder
from hardneg.encoders.kept_tokens import keep_tokens
from hardneg.errors import UsageError
from hardneg.integrations.batches import PairBatches
from hardneg.integrations.drawn import DrawnNegatives
from hardneg.integrations.examples import NegativeExamples, collate
from hardneg.integrations.saved_negatives import SCHEMA, packed, read_saved, unpacked
from hardneg.losses.infonce import InfoNCE
from hardneg.losses.variants import Variants
from hardneg.mining.filters.base import Filter
from hardneg.mining.samplers import Sampler
from hardneg.mining.specs import filters_of, parse_filters
from hardneg.progress import silent
from hardneg.refresh.context import context_of
from hardneg.refresh.generation import Recipe
from hardneg.refresh.refreshed_index import RefreshedIndex
from hardneg.refresh.snapshot import ModuleSnapshots
from hardneg.refresh.staleness import Schedule
from hardneg.registry import spec_of
from hardneg.storage.files import write_array
from hardneg.storage.json_files import write_json
from hardneg.training.online_filters import OnlineFilters, Rows

_logger = logging.getLogger("hardneg")

_AHEAD = 2  # batches that a loop may have fetched before the one that it trains on is done

Int = NDArray[np.int64]


class HardNegatives:
    """Mined negatives for every (query, positive) pair of a dataset, for any training loop.

    `examples` is a dataset for torch: one item a pair, with texts and rows. Call `begin()` before the training, `step()` after each
    update of the weights (or `batch()` after each batch that updates nothing), `begin_epoch(n)` and `end_epoch()`. When `step()`
    returns True, new negatives were mined with the weights of a moment ago; the batches from the next but one on have them.

    A candidate that the filters reject is never a negative. Where fewer than k pass, random documents take their places: none that
    a filter rejected, and none that `group`, `duplicate:text`, `empty` or a known positive rules out. A query for which no such
    document is left gets its negatives again. Once for each mining, the logger `hardneg` says how many there were.

    Args:
        source: the pairs: `Pairs`, or anything that `hardneg.read_pairs` takes, such as a `datasets.Dataset`.
        model: the model that is trained: a `SentenceTransformer`, or an encoder that is a `torch.nn.Module` (see `Trainable`).
        corpus: additional documents: texts, a table, or a file.
        num_negatives: k, negatives for each query.
        filters: filters or their specs, as for `hardneg.mine`; also `posterior:learned`, and `posterior:FILE`.
        default_filters: whether to use `empty`, `duplicate:text` and `distinct`.
        sampler: how negatives are drawn from the kept candidates, anew in every epoch.
        refresh: when to mine again: `never`, `epoch`, `steps:N` (or N) or `staleness:...` (see `Schedule`).
        depth: candidates for each query.
        index: the index, as for `hardneg.mine`.
        share: share of the documents that a refresh encodes again.
        lag: updates between the start of a refresh and its use, which makes trainings repeatable; None: half of those between two
            refreshes or checks. Where `begin` does not know how many there are in an epoch, a refresh is used as soon as it is ready.
        query_prompt, document_prompt: text that is put before each query and document when mining; None: the model's own.
        seed: seed of all draws.
        read: how to read `source`.

    Attributes:
        pairs: the dataset.
        filters: the filters, as masks of a loss.
        epoch: the epoch, from 0.
        examples: the dataset of examples, `NegativeExamples`.
        drawn: the negatives in use.

    Raises:
        UsageError, DataError: an argument cannot be used, or the data cannot be read.
    """

    def __init__(
        self, source: Any, model: Any, *, corpus: Any = None, num_negatives: int = 4,
        filters: Sequence[str | Filter] = (), default_filters: bool = True, sampler: str | Sampler = "uniform",
        refresh: str | int = "epoch", depth: int = 100, index: str = "auto", share: float = 1.0, lag: int | None = None,
        query_prompt: str | None = None, document_prompt: str | None = None, seed: int = 0,
        read: ReadOptions | None = None,
    ) -> None:  # fmt: skip
        self.pairs = as_pairs(source, read or ReadOptions(), corpus)
        if self.pairs.mixed is not None:
            raise UsageError(
                f"{self.pairs.name!r} is a mixture, whose batches are of one source each, and other trainers make their own "
                f"batches: give each source a HardNegatives of its own, or train with hardneg.train or a MemoryBankSampler"
            )
        warn_of_empty_texts(self.pairs)
        self.encoder: Any = checked_encoder(model, "model")
        if not isinstance(self.encoder, torch.nn.Module):
            raise UsageError(f"model: a {type(model).__name__} cannot be trained: it is no torch.nn.Module")
        fit(self.encoder, self.pairs, silent)
        keep_tokens(self.encoder)  # each refresh encodes the same texts
        counted = isinstance(refresh, int) and not isinstance(refresh, bool)
        self.refresh = f"steps:{refresh}" if counted else str(refresh)
        self.schedule = Schedule.parse(self.refresh)
        self.seed, self.lag = seed, lag
        self.prompts = {"query": query_prompt, "document": document_prompt}
        count = len(self.pairs.document_ids)
        self.recipe = Recipe(index=index, depth=min(depth, count), share=share, seed=seed)
        self.known = self.pairs.known_positives()
        chain = parse_filters(filters_of(filters), default_filters, training=True)
        self.filters = OnlineFilters(
            chain, self.pairs, context_of(None, self.pairs, self.known), torch.device("cpu"), seed
        )
        self.draws = MemoryBankSampler(
            self.pairs, batch_size=1, negatives=num_negatives, negative_sampling=sampler, seed=seed,
            allowed=self.filters.allowed,
        )  # fmt: skip
        self._sampler = spec_of(sampler)
        self.index: RefreshedIndex | None = None
        self.trained = 0  # batches
        self.epoch, self._drawn, self._fetched = 0, 0, 0
        self.masked: Tensor | None = None  # by the last call of a loss that masks
        self._began = 0  # batches before this epoch
        self._skip = 0  # batches of this epoch that the loader leaves out, see `skip_trained`
        self._told = False  # whether it was said that negatives of this generation were drawn at random
        self._ended = False  # whether `end_epoch` was called for this epoch
        self.drawn = DrawnNegatives(len(self.pairs), num_negatives)
        self.examples = NegativeExamples(self.pairs, self._rows_for_batch)

    @property
    def num_negatives(self) -> int:
        return self.draws.negatives

    # Called by the loop.

    def begin(self, folder: str | Path | None = None, *, updates: int | None = None) -> None:
        """Mine the first negatives, or continue from what `save` wrote. Without this, the first batch does it.

        Args:
            folder: what `save` wrote; None: begin anew.
            updates: updates of the weights in an epoch, for the schedule `epoch`.

        Raises:
            RunError: the folder does not exist, is damaged, or belongs to other data or options.
        """
        if folder is not None:
            self._resume(Path(folder), updates)
            return
        if self.index is not None:  # a batch was fetched before the training began
            self.index.lag, self._fetched = self._lag(updates), self.trained
            return
        self.index = self._new_index(updates)
        self._mine()
        self._draw(0)

    def _resume(self, folder: Path, updates: int | None) -> None:
        """Continue from a folder. Nothing changes before all of it has been read."""
        state, tables = read_saved(folder, self._identity(), self.drawn.shape, len(self.pairs.document_ids))
        index = self._new_index(updates, resume=folder / "generations", step=state.step)
        self.close()
        self.index = index
        self.filters.load(state.filters)
        self.trained = self._fetched = state.trained
        self.epoch, self._drawn, self._began, self._ended = state.epoch, state.drawn, state.began, state.ended
        self._mine()
        self.drawn.clear()
        for start, rows in tables:
            self.drawn.put(start, rows)

    def _new_index(self, updates: int | None, resume: Path | None = None, step: int = 0) -> RefreshedIndex:
        return RefreshedIndex(
            self.pairs.documents, ModuleSnapshots(self.encoder, self._encode), ids=len(self.pairs.document_ids),
            queries=(self.pairs.queries, len(self.pairs)), schedule=self.refresh, recipe=self.recipe, lag=self._lag(updates),
            prepare=self.filters.of_generation, resume=resume, step=step,
        )  # fmt: skip

    def check_alone(self, processes: int) -> None:
        """UsageError if each of several processes would learn a posterior of its own."""
        if self.filters.to_learn is not None and processes > 1:
            raise UsageError(
                "posterior:learned would learn another posterior on each of the processes: calibrate a run, and give its file"
            )

    def step(self) -> bool:
        """Count a batch and an update of the weights. Returns True if negatives were mined again."""
        self.batch()
        swapped = self._index.step()
        if swapped:
            self._mine()
            self._draw(self.trained + _AHEAD)
        return swapped

    def batch(self) -> None:
        """Count a batch that did not update the weights."""
        self.trained += 1

    def begin_epoch(self, epoch: int) -> None:
        """Draw other negatives for an epoch, unless they are its own already. Raises UsageError if it is no number from 0."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise UsageError(f"epoch={epoch!r} must be a whole number, 0 or more")
        if self.index is None:
            self.begin()
        if epoch == self.epoch:
            return
        if epoch > self.epoch and not self._ended:
            self.end_epoch()  # a training that is resumed at the end of an epoch goes on with the next one
        self.epoch, self._fetched, self._ended, self._began = epoch, self.trained, False, self.trained
        self._draw(self.trained)

    def skip_trained(self) -> None:
        """Let the loader begin after the batches of this epoch that were trained on, where a loop does not skip them itself."""
        self._skip = 0 if self._ended else self.trained - self._began

    def skipped(self) -> int:
        """Batches that the loader leaves out now, once; see `skip_trained`."""
        skip, self._skip = self._skip, 0
        return skip

    def end_epoch(self) -> None:
        """Mark the end of an epoch: with the schedule `epoch`, negatives are mined again."""
        self._ended = True
        if self._index.end_epoch():
            self._mine()

    def loader(self, batch_size: int, *, drop_last: bool = True, num_workers: int = 0) -> DataLoader[dict[str, Any]]:
        """A data loader of batches as `collate` makes them, in which no query and no positive stands twice.

        Every epoch (see `begin_epoch`) has another order. A last batch that is not full is left out, unless `drop_last` is False.

        Raises:
            UsageError: there are fewer pairs than a batch has.
        """
        batches = PairBatches(self, batch_size, drop_last)
        if not len(batches):
            raise UsageError(f"{len(self.examples):,} pairs do not fill a batch of {batch_size}: use drop_last=False")
        if num_workers and self.index is None:
            self.begin()  # each worker would mine for itself
        return DataLoader(self.examples, batch_sampler=batches, collate_fn=collate, num_workers=num_workers)

    def numbers(self) -> dict[str, float]:
        """For a log: the number of the generation in use, its age in updates, and the share of the loss that was masked last."""
        found = {"negatives_generation": float(self._index.generation.number), "negatives_age": float(self._index.age)}
        return found if self.masked is None else {**found, "negatives_masked": float(self.masked)}

    def close(self) -> None:
        """Stop a refresh that is under way."""
        index, self.index = self.index, None
        if index is not None:
            index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # For the loss.

    def loss(self, temperature: float = 0.05, variants: Variants | None = None, **options: Any) -> InfoNCE:
        """`hardneg.InfoNCE` with the limits of the filters; `options` are its other arguments.

        Call it with `masks`: `loss(queries, positives, shared=negatives, **negatives.masks(batch["rows"]))`.
        """
        return InfoNCE(temperature, variants=self.filters.variants(variants or Variants()), **options)

    def masks(self, rows: Tensor) -> dict[str, Any]:
        """What the filters say of all documents of a batch, as arguments of `hardneg.InfoNCE`.

        Args:
            rows: int64 `[B, 2 + k]`: the row of each query, of its positive and of its negatives, as in the examples. The loss
                gets the vectors of the negatives as `shared`, `[B * k, d]`, row by row.

        Returns:
            Keyword arguments of `InfoNCE.forward`.

        Raises:
            UsageError: these are no rows of the dataset.
        """
        if rows.ndim != 2 or rows.shape[1] < 2 or rows.is_floating_point():
            raise UsageError(f"rows have shape {list(rows.shape)} and type {rows.dtype}, expected int64 [B, 2 + k]")
        queries, documents = len(self.pairs), len(self.pairs.document_ids)
        inside = (rows >= 0).all() & (rows[:, 0] < queries).all() & (rows[:, 1:] < documents).all()
        if not bool(inside):
            raise UsageError(f"rows that are not those of {queries:,} queries and {documents:,} documents")
        self.filters.to(rows.device)
        return self.filters.masks(Rows(rows[:, 0], rows[:, 1], rows[:, 2:].flatten(), rows.new_empty(0)))

    # Saving.

    def save(self, folder: str | Path) -> None:
        """Write all that a training needs to go on with the same negatives, into a folder of its own."""
        folder = Path(folder)
        self._index.save(folder / "generations")
        tables = []
        for i, (start, rows) in enumerate(self.drawn.tables()):
            sha = write_array(folder / f"negatives-{i}.npy", rows)
            tables.append({"start": start, "file": f"negatives-{i}.npy", "sha256": sha})
        state = {
            "schema": SCHEMA, "identity": self._identity(), "trained": self.trained, "step": self._index.now,
            "epoch": self.epoch, "drawn": self._drawn, "began": self._began, "ended": self._ended, "tables": tables,
            "filters": self.filters.state(),
        }  # fmt: skip
        write_json(folder / "negatives.json", state, checksum=True)

    def state_dict(self) -> dict[str, Any]:
        """What `save` writes, as tensors of bytes by the names of the files, for checkpoints that are one file."""
        return packed(self.save)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned. Raises RunError if it belongs to other data or options."""
        self._place = unpacked(state)  # stays while vectors in it are in use
        self.begin(self._place.name)

    def _identity(self) -> dict[str, Any]:
        digests = {name: self.pairs.digests.get(name) for name in ("queries", "documents", "labels")}
        options = {
            "refresh": self.refresh, "lag": self.lag, "seed": self.seed, "negatives": self.num_negatives,
            "sampler": self._sampler, "prompts": self.prompts, "recipe": self.recipe.to_json(),
        }  # fmt: skip
        filters = [each.spec for each in self.filters.fixed.filters]
        return {**digests, **options, "filters": filters, "learned": self.filters.to_learn is not None}

    # Mining.

    @property
    def _index(self) -> RefreshedIndex:
        if self.index is None:
            raise UsageError("the training has not begun: call begin() first")
        return self.index

    def _lag(self, updates: int | None) -> int | None:
        """Updates between the start of a refresh and its use."""
        if self.lag is not None:
            return self.lag
        between = self.schedule.steps or (self.schedule.check if self.schedule.measures else updates)
        return None if between is None else between // 2

    def _encode(self, model: Any, items: Sequence[Any], side: str) -> Any:
        return model.encode(items, prompt=prompt_of(model, side, self.prompts[side]))

    def _mine(self) -> None:
        """Use the candidates of the generation in use."""
        self.draws.use(self.filters.use(self._index.prepared), at=self._drawn)
        self._told = False

    def _draw(self, start: int) -> None:
        """Draw negatives for all queries, to be used from batch `start` on."""
        self.drawn.put(start, self.draws.negatives_of(np.arange(len(self.pairs)), self._drawn))
        self._drawn += 1
        filled = self.draws.filled
        if filled.negatives and filled.against == filled.negatives:
            raise UsageError(
                "the filters reject every document of the corpus for every query: loosen the filters, or add documents"
            )
        if self._told or not (filled.random or filled.repeated):
            return
        self._told = True
        again = f", and {filled.repeated:,} repeat another one of the query," if filled.repeated else ""
        if filled.against:
            again += f" {filled.against:,} of these of queries for which the filters reject every document,"
        _logger.warning(
            f"{filled.random:,} of {filled.negatives:,} negatives were drawn at random{again} because fewer than "
            f"{self.num_negatives} of the {self.recipe.depth} candidates pass the filters"
        )

    def _rows_for_batch(self, queries: Int) -> Int:
        """int64 `[b, k]`: the negatives of these queries in the batch that is fetched now."""
        if get_worker_info() is not None:  # a worker does not know which batch this is
            if self.drawn.empty:
                raise UsageError("the training has not begun: call begin() before the loader starts its workers")
            return self.drawn.newest(queries)
        if self.drawn.empty:
            self.begin()
        batch = self._fetched
        self._fetched += 1
        return self.drawn.at(batch, queries)
