"""Hard negatives for a training loop that is not ours: drawn for every pair, and mined again as the model learns."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Sampler as TorchSampler

from hardneg.bank.batches import distinct_batches
from hardneg.bank.sampler import MemoryBankSampler
from hardneg.data.options import ReadOptions
from hardneg.data.pairs import Pairs
from hardneg.data.read import read_pairs
from hardneg.data.tables import is_path
from hardneg.data.texts import distinct_keys
from hardneg.encoders.base import prompt_of
from hardneg.encoders.embed import fit
from hardneg.encoders.factory import checked_encoder
from hardneg.errors import RunError, UsageError
from hardneg.integrations.examples import NegativeExamples, collate
from hardneg.losses.infonce import InfoNCE
from hardneg.losses.variants import Variants
from hardneg.mining.filters.base import Filter
from hardneg.mining.mined import Mined
from hardneg.mining.samplers import Sampler
from hardneg.mining.specs import parse_filters
from hardneg.progress import silent
from hardneg.refresh.context import context_of
from hardneg.refresh.generation import Recipe
from hardneg.refresh.refreshed_index import RefreshedIndex
from hardneg.refresh.snapshot import ModuleSnapshots
from hardneg.refresh.staleness import Schedule
from hardneg.storage.files import read_array, write_array
from hardneg.storage.json_files import read_json, write_json
from hardneg.training.online_filters import OnlineFilters, Rows

_SCHEMA = "hardneg-negatives-1"

_AHEAD = 2  # batches that a loop may have fetched before the one that it trains on is done

Int = NDArray[np.int64]


@dataclass(frozen=True)
class _Table:
    """Negatives of all queries, used from one batch on.

    Attributes:
        start: the first batch, counted from the start of the training.
        rows: int32 `[n, k]`, rows of the corpus, in memory that worker processes share.
    """

    start: int
    rows: Tensor


class HardNegatives:
    """Mined negatives for every (query, positive) pair of a dataset, for any training loop.

    `examples` is a dataset for torch: one item a pair, with texts and rows. Call `begin()` before the training, `step()` after each
    update of the weights (or `batch()` after each batch that updates nothing), `begin_epoch(n)` and `end_epoch()`. When `step()`
    returns True, new negatives were mined with the weights of a moment ago; the batches from the next but one on have them.

    Args:
        source: the pairs: `Pairs`, or anything that `hardneg.read_pairs` takes, such as a `datasets.Dataset`.
        model: the model that is trained: a `SentenceTransformer`, or an encoder that is a `torch.nn.Module` (see `Trainable`).
        corpus: additional documents: texts, a table, or a file.
        num_negatives: k, negatives for each query.
        filters: filters or their specs, as for `hardneg.mine`; also `posterior:learned`, and `posterior:FILE`.
        default_filters: whether to use `empty`, `duplicate:text` and `distinct`.
        sampler: how negatives are drawn from the kept candidates, anew in every epoch.
        refresh: when to mine again: `never`, `epoch`, `steps:N` or `staleness:...` (see `Schedule`).
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

    Raises:
        UsageError, DataError: an argument cannot be used, or the data cannot be read.
    """

    def __init__(
        self, source: Any, model: Any, *, corpus: Any = None, num_negatives: int = 4,
        filters: Sequence[str | Filter] = (), default_filters: bool = True, sampler: str | Sampler = "uniform",
        refresh: str = "epoch", depth: int = 100, index: str = "auto", share: float = 1.0, lag: int | None = None,
        query_prompt: str | None = None, document_prompt: str | None = None, seed: int = 0,
        read: ReadOptions | None = None,
    ) -> None:  # fmt: skip
        self.pairs = _pairs(source, corpus, read or ReadOptions())
        self.encoder: Any = checked_encoder(model, "model")
        if not isinstance(self.encoder, torch.nn.Module):
            raise UsageError(f"model: a {type(model).__name__} cannot be trained: it is no torch.nn.Module")
        fit(self.encoder, self.pairs, silent)
        self.seed, self.refresh, self.lag = seed, refresh, lag
        self.prompts = {"query": query_prompt, "document": document_prompt}
        count = len(self.pairs.document_ids)
        self.recipe = Recipe(index=index, depth=min(depth, count), share=share, seed=seed)
        self.schedule = Schedule.parse(refresh)
        self.known = self.pairs.known_positives()
        chain = parse_filters(tuple(filters), default_filters, training=True)
        self.filters = OnlineFilters(
            chain, self.pairs, context_of(None, self.pairs, self.known), torch.device("cpu"), seed
        )
        self.draws = MemoryBankSampler(
            self.pairs, batch_size=1, negatives=num_negatives, negative_sampling=sampler, seed=seed
        )
        self.index: RefreshedIndex | None = None
        self.trained = 0  # batches
        self.epoch, self._drawn, self._fetched = 0, 0, 0
        self._ended = False  # whether `end_epoch` was called for this epoch
        self._tables: list[_Table] = []
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
        state = None if folder is None else self._state(Path(folder))
        if self.index is not None:
            if state is None:  # a batch was fetched before the training began
                self.index.lag, self._fetched = self._lag(updates), self.trained
                return
            self.close()
        if state is not None:
            self.filters.load(state["filters"])
            self.trained = self._fetched = state["trained"]
            self.epoch, self._drawn, self._ended = state["epoch"], state["drawn"], state["ended"] is True
        self.index = RefreshedIndex(
            self.pairs.documents, ModuleSnapshots(self.encoder, self._encode), ids=len(self.pairs.document_ids),
            queries=(self.pairs.queries, len(self.pairs)), schedule=self.refresh, recipe=self.recipe, lag=self._lag(updates),
            resume=None if folder is None else Path(folder) / "generations", step=0 if state is None else state["step"],
        )  # fmt: skip
        self._mine()
        if state is None:
            self._draw(0)
        else:
            assert folder is not None
            self._tables = [
                _Table(each["start"], _shared(read_array(Path(folder) / each["file"], each["sha256"])))
                for each in state["tables"]
            ]

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
        self._fetched = self.trained + _AHEAD - 1

    def begin_epoch(self, epoch: int) -> None:
        """Draw other negatives for an epoch, unless they are its own already."""
        if self.index is None:
            self.begin()
        if epoch == self.epoch:
            return
        if epoch > self.epoch and not self._ended:
            self.end_epoch()  # a training that is resumed at the end of an epoch goes on with the next one
        self.epoch, self._fetched, self._ended = epoch, self.trained, False
        self._draw(self.trained)

    def end_epoch(self) -> None:
        """Mark the end of an epoch: with the schedule `epoch`, negatives are mined again."""
        self._ended = True
        if self._index.end_epoch():
            self._mine()

    def loader(self, batch_size: int, *, drop_last: bool = True, workers: int = 0) -> DataLoader[dict[str, Any]]:
        """A data loader of batches as `collate` makes them, in which no query and no positive stands twice.

        Every epoch (see `begin_epoch`) has another order.
        """
        batches = _Batches(self, batch_size, drop_last)
        return DataLoader(self.examples, batch_sampler=batches, collate_fn=collate, num_workers=workers)

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
        """
        self.filters.to(rows.device)
        return self.filters.masks(Rows(rows[:, 0], rows[:, 1], rows[:, 2:].flatten(), rows.new_empty(0)))

    # Saving.

    def save(self, folder: str | Path) -> None:
        """Write all that a training needs to go on with the same negatives, into a folder of its own."""
        folder = Path(folder)
        self._index.save(folder / "generations")
        tables = []
        for i, table in enumerate(self._tables):
            sha = write_array(folder / f"negatives-{i}.npy", table.rows.numpy())
            tables.append({"start": table.start, "file": f"negatives-{i}.npy", "sha256": sha})
        state = {
            "schema": _SCHEMA, "identity": self._identity(), "trained": self.trained, "step": self._index.now,
            "epoch": self.epoch, "drawn": self._drawn, "ended": self._ended, "tables": tables, "filters": self.filters.state(),
        }  # fmt: skip
        write_json(folder / "negatives.json", json.loads(json.dumps(state)), checksum=True)

    def state_dict(self) -> dict[str, Any]:
        """What `save` writes, as tensors of bytes by the names of the files, for checkpoints that are one file."""
        with tempfile.TemporaryDirectory() as place:
            self.save(place)
            files = [path for path in sorted(Path(place).rglob("*")) if path.is_file()]
            return {path.relative_to(place).as_posix(): torch.from_numpy(np.fromfile(path, np.uint8)) for path in files}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned. Raises RunError if it belongs to other data or options."""
        self._place = tempfile.TemporaryDirectory()  # stays while vectors in it are in use
        folder = Path(self._place.name)
        for name, content in state.items():
            path = (folder / name).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise RunError(f"the state names the file {name!r}, which is not one of negatives: it is damaged")
            path.parent.mkdir(parents=True, exist_ok=True)
            content.numpy().tofile(path)
        self.begin(folder)

    def _state(self, folder: Path) -> dict[str, Any]:
        state = read_json(folder / "negatives.json", checksum=True)
        if state.get("schema") != _SCHEMA or state.get("identity") != self._identity():
            raise RunError(
                f"{folder} holds the negatives of another dataset, or with other options: resume with the same ones"
            )
        numbers = [state.get(name) for name in ("trained", "step", "epoch", "drawn")]
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise RunError(f"{folder}/negatives.json is damaged")
        for each in state.get("tables", ()):
            if type(each.get("start")) is not int or each.get("file") not in ("negatives-0.npy", "negatives-1.npy"):
                raise RunError(f"{folder}/negatives.json is damaged")
        return state

    def _identity(self) -> dict[str, Any]:
        digests = {name: self.pairs.digests.get(name) for name in ("queries", "documents", "labels")}
        options = {"refresh": self.refresh, "lag": self.lag, "seed": self.seed, "negatives": self.num_negatives}
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
        generation = self._index.generation
        assert generation.neighbors is not None
        context = context_of(generation, self.pairs, self.known)
        mined = Mined.of_neighbors(generation.neighbors, generation.ids, self.pairs, context, self.filters.fixed)
        self.draws.use(self.filters.use(mined, context), at=self._drawn)

    def _draw(self, start: int) -> None:
        """Draw negatives for all queries, to be used from batch `start` on."""
        rows = self.draws.negatives_of(np.arange(len(self.pairs)), self._drawn)
        self._drawn += 1
        before = [table for table in self._tables if table.start < start][-1:]
        self._tables = [*before, _Table(start, _shared(rows))]

    def _rows_for_batch(self, queries: Int) -> Int:
        """int64 `[b, k]`: the negatives of these queries in the batch that is fetched now."""
        if not self._tables:
            self.begin()
        batch = self._fetched
        self._fetched += 1
        table = next((each for each in reversed(self._tables) if each.start <= batch), self._tables[0])
        return np.asarray(table.rows.numpy()[queries], np.int64)


class _Batches(TorchSampler[list[int]]):
    """Batches of places in the examples, in another order in every epoch."""

    def __init__(self, negatives: HardNegatives, batch_size: int, drop_last: bool) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} must be 1 or more")
        self.negatives, self.batch_size, self.drop_last = negatives, batch_size, drop_last

    def __len__(self) -> int:
        count = len(self.negatives.examples)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        negatives = self.negatives
        queries, documents = pair_keys(negatives.pairs, negatives.examples)
        order = np.random.default_rng([negatives.seed, negatives.epoch]).permutation(len(queries))
        batches = distinct_batches(queries[order], documents[order], self.batch_size, len(self), self.drop_last)
        for batch in batches:
            yield order[batch].tolist()


def pair_keys(pairs: Pairs, examples: NegativeExamples) -> tuple[Int, Int]:
    """(int64 `[m]`, int64 `[m]`): a key for the query and for the positive of each pair; equal texts have equal keys."""
    return (
        distinct_keys(pairs.query_keys[examples.queries], examples.queries),
        distinct_keys(pairs.document_keys[examples.positives], examples.positives),
    )


def _pairs(source: Any, corpus: Any, read: ReadOptions) -> Pairs:
    if isinstance(source, Pairs):
        if corpus is not None:
            raise UsageError("corpus has no effect on Pairs: give it to read_pairs or Pairs.from_columns")
        return source
    if is_path(corpus):
        return read_pairs(source, ReadOptions(**{**vars(read), "corpus": corpus}))
    return read_pairs(source, read, corpus=corpus)


def _shared(rows: NDArray[np.integer]) -> Tensor:
    """int32, in memory that worker processes see as well."""
    table = torch.from_numpy(np.ascontiguousarray(rows, np.int32))
    table.share_memory_()  # type: ignore[no-untyped-call]
    return table
