"""Batches of pairs: what a training step encodes, and what the memory bank adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hardneg.bank.examples import Examples, ExampleTexts
from hardneg.bank.memory_bank import BankView, MemoryBank
from hardneg.bank.momentum import MomentumEncoder
from hardneg.bank.sampler import MemoryBankSampler
from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.losses.gather import Ranks
from hardneg.refresh.generation import Items
from hardneg.training.distributed import World
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


class TrainingBatches:
    """The batches of a training, with the rows of its memory bank.

    In a loop: `for batch in batches()`, `bank_view()` for the loss, `used(...)` after each batch, and `updated()` after
    each update of the weights.

    Args:
        pairs: what to train on.
        towers: the model, of which a momentum encoder is a copy.
        options: of the training.
        world: the ranks.
        queries, documents: what stands for the texts of `pairs`, see `Examples`.

    Attributes:
        sampler: draws the batches, and owns the bank.
        momentum: the encoder that fills the bank; None: the trained one does.
    """

    def __init__(
        self, pairs: Pairs, towers: Towers, options: TrainOptions, world: World, *, queries: Items | None = None,
        documents: Items | None = None,
    ) -> None:  # fmt: skip
        self.options, self.world, self.towers = options, world, towers
        self.documents = documents or pairs.documents
        trainable = int((pairs.positives.lengths > 0).sum())
        whole = options.batch_size * world.size
        if world.size > 1 and trainable < whole:
            raise UsageError(
                f"{trainable:,} pairs are too few for batches of {options.batch_size} on {world.size} ranks"
            )
        bank = None
        if options.bank:
            bank = MemoryBank(options.bank, towers.dimension, max_age=options.bank_age).to(world.device)
        self.sampler = MemoryBankSampler(
            pairs, batch_size=options.batch_size, negatives=options.negatives,
            negative_sampling=options.negative_sampling, curriculum=options.curriculum, bank=bank,
            bank_start=options.bank_start, seed=options.seed, drop_last=trainable >= whole, rank=world.rank,
            ranks=world.size,
        )  # fmt: skip
        self.loader: DataLoader[Any] = DataLoader(
            Examples(pairs, queries, documents), batch_sampler=self.sampler, collate_fn=Batch.of,
            num_workers=options.workers, persistent_workers=options.workers > 0,
            generator=torch.Generator().manual_seed(options.seed),  # its own: starting anew must not move the model's
        )  # fmt: skip
        self.momentum = None
        if bank is not None and options.momentum is not None:
            self.momentum = MomentumEncoder(towers, options.momentum)

    @property
    def bank(self) -> MemoryBank | None:
        return self.sampler.bank

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

    def bank_view(self) -> BankView | None:
        """The bank's rows for this batch; some are encoded anew and the others moved along if the options say so."""
        bank = self.sampler.bank
        if bank is None or not self.sampler.bank_in_use:
            return None
        if self.options.bank_fresh and len(bank):
            bank.encode_again(self._encode_rows, self.options.bank_fresh, seed=self.sampler.total)
        return self.sampler.bank_view()

    def _encode_rows(self, rows: Tensor) -> Tensor:
        vectors = self.towers.encode(self.documents.take(rows.numpy()), "document")
        return torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)

    def used(self, batch: Batch, documents: Tensor) -> None:
        """A batch was trained on, with these vectors `[B + M, d]` of its documents: they go to the bank."""
        if self.sampler.bank is None:
            self.sampler.advance()
            return
        if self.momentum is not None:
            documents = self.momentum(batch.documents, "document")
        unit = torch.nn.functional.normalize(documents.detach().float(), dim=1)
        self.sampler.advance(unit, batch.document_rows.to(unit.device))

    def updated(self) -> None:
        """The weights were updated."""
        if self.momentum is not None:
            self.momentum.update(self.towers)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values."""
        sampler = self.sampler.state_dict()
        bank = sampler.pop("bank", None)  # beside the sampler, where version 0.1 kept it
        return {
            "sampler": sampler,
            "bank": bank,
            "momentum": None if self.momentum is None else dict(self.momentum.state_dict()),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.sampler.load_state_dict({**state["sampler"], "bank": state["bank"]})
        if self.momentum is not None:
            self.momentum.load_state_dict(state["momentum"])
