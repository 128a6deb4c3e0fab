"""Batches of pairs for a training step, and the rows of the memory bank that go with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hardneg.bank.examples import Examples, ExampleTexts
from hardneg.bank.memory_bank import BankView, MemoryBank
from hardneg.bank.momentum import MomentumEncoder
from hardneg.bank.sampler import MemoryBankSampler
from hardneg.data.pairs import Pairs
from hardneg.errors import DataError, UsageError
from hardneg.losses.gather import Ranks
from hardneg.refresh.encode import Items
from hardneg.training.checks import check_fits
from hardneg.training.distributed import World
from hardneg.training.optim import mixed_precision
from hardneg.training.options import TrainOptions
from hardneg.training.towers import Towers


@dataclass(frozen=True)
class Batch:
    """One batch of pairs. It holds every mined negative once, even if several queries have it.

    Attributes:
        queries: the B queries: texts, or the items that replace them.
        documents: B + M documents: first the positive of each query, then the M distinct mined negatives.
        query_rows: int64 `[B]`, the rows of the queries in the dataset.
        document_rows: int64 `[B + M]`, the rows of the documents in the dataset.
        mined: int64 `[B, K]`, the positions in `documents` of the K mined negatives of each query; -1 for a document
            that another rank encodes.
    """

    queries: list[Any]
    documents: list[Any]
    query_rows: Tensor
    document_rows: Tensor
    mined: Tensor

    @classmethod
    def of(cls, examples: Sequence[ExampleTexts]) -> Batch:
        """Collate the examples that a sampler has drawn into one batch."""
        rows = [e.rows.positive for e in examples]
        # Where pairs share few documents, a positive may stand in a batch several times: each query keeps its own copy.
        place = {row: i for i, row in reversed(list(enumerate(rows)))}
        items = [e.positive for e in examples]
        for e in examples:
            for row, item in zip(e.rows.negatives, e.negatives, strict=True):
                if row not in place:
                    place[row] = len(items)
                    items.append(item)
                    rows.append(row)
        return cls(
            [e.query for e in examples],
            items,
            torch.tensor([e.rows.query for e in examples]),
            torch.tensor(rows),
            torch.tensor([[place[row] for row in e.rows.negatives] for e in examples], dtype=torch.int64),
        )

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """`query_rows`, `document_rows` and `mined`."""
        return self.query_rows, self.document_rows, self.mined

    def without_others(self, world: World) -> Batch:
        """The batch without mined negatives that another rank encodes.

        Each document is encoded by one rank only, because the loss gathers the vectors of all ranks.
        """
        size = len(self.queries)
        rows = self.document_rows.to(world.device)
        ranks = Ranks.here({"queries": size, "hard": len(rows) - size}, world.device)
        positives, mined = ranks.gathered(rows[:size], "queries"), ranks.gathered(rows[size:], "hard")
        owner = ranks.gathered(torch.full_like(rows[size:], world.rank), "hard")
        # The positives of all ranks are encoded anyway. A negative that several ranks drew belongs to the lowest rank.
        kept = ~torch.isin(rows[size:], torch.cat([positives, mined[owner < world.rank]])).cpu()
        kept = torch.cat([torch.ones(size, dtype=torch.bool), kept])
        places = torch.where(kept, kept.cumsum(0) - 1, -1)
        documents = [item for item, keep in zip(self.documents, kept.tolist(), strict=True) if keep]
        return Batch(self.queries, documents, self.query_rows, self.document_rows[kept], places[self.mined])


class TrainingBatches:
    """The batches of a training, and its memory bank.

    A training loop iterates over `batches()`, passes `bank_view()` to the loss, calls `used(...)` after each batch, and
    calls `updated()` after each update of the weights.

    Args:
        pairs: the training data.
        towers: the model. A momentum encoder starts as a copy of it.
        options: the options of the training.
        world: the ranks of the training.
        queries, documents: items that replace the texts of `pairs`; see `Examples`.

    Attributes:
        sampler: draws the batches and owns the bank.
        momentum: the momentum encoder that fills the bank; None: the trained encoder fills it.

    Raises:
        UsageError: there are too few pairs for one batch on every rank, or the options do not fit the data or the model
            (see `check_fits`).
    """

    def __init__(
        self, pairs: Pairs, towers: Towers, options: TrainOptions, world: World, *, queries: Items | None = None,
        documents: Items | None = None,
    ) -> None:  # fmt: skip
        self.options, self.world, self.towers = options, world, towers
        self.documents = documents or pairs.documents
        check_fits(options, pairs, towers.dimension, world)
        trainable = int((pairs.positives.lengths > 0).sum())
        whole = options.batch_size * world.size
        if world.size > 1 and trainable < whole and pairs.mixed is None:
            raise UsageError(
                f"{trainable:,} pairs are too few for batches of {options.batch_size} on each of {world.size} ranks"
            )
        bank = None
        if options.bank:
            bank = MemoryBank(options.bank, towers.dimension, max_age=options.bank_age).to(world.device)
        self.sampler = MemoryBankSampler(
            pairs, batch_size=options.batch_size, negatives=options.negatives,
            negative_sampling=options.negative_sampling, curriculum=options.curriculum, batches=options.batches, bank=bank,
            bank_start=options.bank_start, seed=options.seed, drop_last=trainable >= whole or pairs.mixed is not None,
            rank=world.rank, ranks=world.size,
        )  # fmt: skip
        self.loader: DataLoader[Any] = DataLoader(
            Examples(pairs, queries, documents), batch_sampler=self.sampler, collate_fn=Batch.of,
            num_workers=options.workers, persistent_workers=options.workers > 0,
            generator=torch.Generator().manual_seed(options.seed),  # so that it never draws from the model's generator
        )  # fmt: skip
        self._source: int | None = None  # of the last batch
        self.momentum = None
        if bank is not None and options.momentum is not None:
            self.momentum = MomentumEncoder(towers, options.momentum)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources of a mixture; none for any other dataset."""
        mixed = self.sampler.pairs.mixed
        return () if mixed is None else mixed.names

    @property
    def bank(self) -> MemoryBank | None:
        return self.sampler.bank

    def batches(self) -> Iterator[Batch]:
        """The batches of this epoch that were not trained on yet.

        Raises:
            UsageError: the pairs do not fill a single batch.
        """
        self.sampler.rewind()
        some = False
        for batch in self.loader:
            some = True
            yield batch if self.world.size == 1 else batch.without_others(self.world)
        if not some and self.sampler.done == 0:
            whole = self.options.batch_size * self.world.size
            raise UsageError(
                f"{len(self.sampler.trainable):,} pairs do not fill one batch of {whole} in which no query and no "
                f"positive is repeated: take a smaller batch_size"
            )

    def named(self, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss's statistics of the batch that is trained on, of a mixture with its `source`, for `mean_of`."""
        source = self.sampler.source
        return (
            statistics if source is None else {**statistics, "source": torch.tensor(source, device=self.world.device)}
        )

    @property
    def comparable(self) -> bool:
        """Whether the effective rank of the last batch can be compared with others: of a mixture, only in its largest source."""
        mixed = self.sampler.mixed
        return mixed is None or self._source == int(np.argmax(mixed.counts))

    def bank_view(self) -> BankView | None:
        """The bank's rows for the next batch; None without a bank, or before it is used.

        With the option `bank_fresh`, a share of the rows is first encoded again, and the others are drift-compensated.
        """
        bank = self.sampler.bank
        if bank is None or not self.sampler.bank_in_use:
            return None
        if self.options.bank_fresh and len(bank):
            bank.encode_again(self._encode_rows, self.options.bank_fresh, seed=self.sampler.total)
        return self.sampler.bank_view()

    def _encode_rows(self, rows: Tensor) -> Tensor:
        """The vectors of these documents as the bank keeps them, by the encoder as it is now."""
        vectors = self.towers.encode(self.documents.take(rows.numpy()), "document")
        return self._compared(torch.from_numpy(vectors))

    def _compared(self, vectors: Tensor) -> Tensor:
        """The vectors `[n, d]` as the loss compares them: of length 1, or as they are where it takes inner products."""
        return vectors if self.options.metric == "ip" else torch.nn.functional.normalize(vectors, dim=1)

    def used(self, batch: Batch, queries: Tensor, documents: Tensor) -> None:
        """Count a batch that was trained on, and write its documents to the bank.

        Args:
            batch: the batch.
            queries: `[B, d]`, the vectors of its queries.
            documents: `[B + M, d]`, the vectors of its documents. With a momentum encoder, its vectors are written
                instead.

        Raises:
            DataError: a vector is NaN or infinite. All ranks raise it, because each has the rows of all ranks.
        """
        self._source = self.sampler.source
        if self.sampler.vectors is not None:
            self._keep_vectors(batch, queries.detach(), documents[: len(queries)].detach())
        if self.sampler.bank is None:
            self.sampler.advance()
            return
        if self.momentum is not None:
            documents = self._slowly_encoded(batch.documents)
        kept = self._compared(documents.detach().float())
        try:
            self.sampler.advance(kept, batch.document_rows.to(kept.device))
        except DataError as error:
            if self.momentum is None:
                raise
            raise DataError(f"{error} (These vectors are those of the momentum encoder.)") from None

    def _keep_vectors(self, batch: Batch, queries: Tensor, positives: Tensor) -> None:
        """Give the vectors of the pairs of all ranks to the sampler, which composes batches by them."""
        ranks = Ranks.here({"queries": len(queries)}, self.world.device)

        def of_all(rows: Tensor) -> Any:
            return (rows if ranks.size == 1 else ranks.gathered(rows.to(self.world.device), "queries").cpu()).numpy()

        with torch.no_grad():
            made = [ranks.gathered(each.float(), "queries") for each in (queries, positives)]
        self.sampler.keep_vectors(of_all(batch.query_rows), of_all(batch.document_rows[: len(queries)]), *made)

    def _slowly_encoded(self, items: Sequence[Any]) -> Tensor:
        """The vectors of documents by the momentum encoder, as the training encodes its own."""
        assert self.momentum is not None
        step = self.options.mini_batch_size or len(items)
        with mixed_precision(self.options.amp, self.world.device):
            parts = [self.momentum(items[i : i + step], "document") for i in range(0, len(items), step)]
        return torch.cat([part.float() for part in parts])

    def updated(self) -> None:
        """Move the momentum encoder, if there is one. Call this after each update of the weights."""
        if self.momentum is not None:
            self.momentum.update(self.towers)

    def close(self) -> None:
        """End the worker processes, which would otherwise live until Python collects its garbage."""
        iterator: Any = getattr(self.loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()

    def state(self) -> dict[str, Any]:
        """The state of the sampler, the bank and the momentum encoder, as tensors and plain values."""
        sampler = self.sampler.state_dict()
        bank = sampler.pop("bank", None)  # beside the sampler, as in checkpoints of version 0.1
        return {
            "sampler": sampler,
            "bank": bank,
            "momentum": None if self.momentum is None else dict(self.momentum.state_dict()),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.sampler.load_state_dict({**state["sampler"], "bank": state["bank"]})
        bank = self.sampler.bank
        if bank is not None and (
            bank.size != self.options.bank or int(bank.ids.max()) >= len(self.sampler.pairs.document_ids)
        ):
            raise ValueError(f"its bank has {bank.size} rows, or documents that are not in the data")
        if self.momentum is not None:
            self.momentum.load_state_dict(state["momentum"])
