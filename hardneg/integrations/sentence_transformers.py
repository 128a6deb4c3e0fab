"""For sentence-transformers: `mine_hard_negatives` with its signature, negatives that its trainer mines again, and `InfoNCE`."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
import yaml  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import RandomSampler
from yaml.representer import SafeRepresenter  # type: ignore[import-untyped, unused-ignore]

from hardneg.data.picture import Picture
from hardneg.encoders.base import prompt_of
from hardneg.errors import MissingDependencyError, UsageError
from hardneg.integrations.batches import pair_keys, shuffled_batches
from hardneg.integrations.mine_hard_negatives import mine_hard_negatives
from hardneg.integrations.negatives import HardNegatives as _AnyNegatives
from hardneg.integrations.transformers import HardNegatives as _HardNegatives
from hardneg.losses.caching import cached_gradients
from hardneg.losses.infonce import InfoNCE as _InfoNCE
from hardneg.losses.variants import Variants

try:
    from sentence_transformers.base.sampler import DefaultBatchSampler
except ImportError:
    raise MissingDependencyError("sentence-transformers", "st", "hardneg.integrations.sentence_transformers") from None


_logger = logging.getLogger("hardneg")

# The trainer writes examples of its dataset into the model card of each checkpoint, as YAML: pictures by their names.
yaml.add_representer(Picture, SafeRepresenter.represent_str)  # type: ignore[no-untyped-call, unused-ignore]

# Labels are rows of a dataset. Their bits from this one on are a mark that tells whose: training and evaluation have other rows.
_ROW_BITS = 40
_marks = itertools.count(1)
_MARKED: WeakValueDictionary[int, HardNegatives] = WeakValueDictionary()


class HardNegatives(_HardNegatives):
    """Negatives that `SentenceTransformerTrainer` mines again while it trains: its dataset and a callback in one.

    `negatives = HardNegatives(dataset, model, num_negatives=4, refresh="steps:500")`, then give the trainer
    `train_dataset=negatives.dataset` and `callbacks=[negatives]`. The dataset has the columns `query`, `positive`, `negative_1`,
    ..., and `label` with the rows of these texts and a mark that tells of which dataset, by which `InfoNCE` of this module masks
    known and suspected positives; losses of the trainer that read no labels ignore it.

    Negatives are saved with every checkpoint, and a training that is resumed has the same ones. With `dataloader_num_workers` above
    0, batches that workers read ahead may still have the negatives before a refresh.

    The trainer puts no prompts before texts but those of its own arguments. Where these are not the ones of mining, the logger
    `hardneg` says so: give `SentenceTransformerTrainingArguments(prompts=negatives.column_prompts)`.

    Arguments and errors are those of `hardneg.integrations.HardNegatives`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._mark = next(_marks)
        _MARKED[self._mark] = self

    @property
    def dataset(self) -> Any:
        """A `datasets.Dataset`, whose negatives are those in use when a batch is fetched.

        Its texts are read anew for every batch: rows may be selected, shuffled and filtered, but what `map` or `add_column` changes is
        refused when a row is read.
        """
        try:
            from datasets import Dataset
        except ImportError:
            raise MissingDependencyError("datasets", "st", "HardNegatives.dataset") from None
        made = Dataset.from_dict({"pair": np.arange(len(self.examples))})
        made.set_transform(self._columns_of)
        return made

    @property
    def column_prompts(self) -> dict[str, str]:
        """The prompts of mining by columns of `dataset`: `SentenceTransformerTrainingArguments(prompts=...)` trains with them too."""
        query, document = (prompt_of(self.encoder, side, self.prompts[side]) for side in ("query", "document"))
        return {"query": query, **dict.fromkeys(_text_columns(self.num_negatives)[1:], document)}

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Begin, and say so if the trainer does not put the prompts before the texts that they were mined with."""
        mined, given = self.column_prompts, getattr(args, "prompts", None)
        if not _trains_with(given, mined):
            query, document = mined["query"], mined["positive"]
            _logger.warning(
                f"negatives are mined with the prompts {query!r} (queries) and {document!r} (documents), but the trainer has "
                f"prompts={given!r}: give its arguments prompts=negatives.column_prompts, or HardNegatives the query_prompt and "
                f"document_prompt that are trained with ('' for none)"
            )
        super().on_train_begin(args, state, control, **more)

    def _columns_of(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        if set(batch) != {"pair"}:
            changed = ", ".join(repr(name) for name in batch if name != "pair") or "without 'pair'"
            raise UsageError(
                f"the columns of HardNegatives.dataset were changed ({changed}), by map or add_column: its texts are read anew for "
                f"every batch, so that has no effect. Change the source, and make HardNegatives of it; select, shuffle and filter work"
            )
        rows = self.examples.rows(batch["pair"])
        columns: dict[str, list[Any]] = {}
        for i, name in enumerate(_text_columns(self.num_negatives)):
            columns[name] = (self.pairs.documents if i else self.pairs.queries).take(rows[:, i])
        columns["label"] = (rows + (self._mark << _ROW_BITS)).tolist()
        return columns

    @property
    def batch_sampler(self) -> DistinctBatches:
        """For `SentenceTransformerTrainingArguments(batch_sampler=negatives.batch_sampler)`: no query or positive twice in a batch.

        Unlike the trainer's own `no_duplicates`, it never reads a text, and its batches do not depend on the negatives in use.
        """
        return DistinctBatches(*pair_keys(self.pairs, self.examples), self._mark)

    def masks(self, rows: Tensor) -> dict[str, Any]:
        """See `hardneg.HardNegatives.masks`; also takes the column `label`, which tells whose rows these are.

        Raises:
            UsageError: these are rows of another dataset.
        """
        mark = _mark_of(rows)
        if mark not in (0, self._mark):
            raise UsageError("these labels are of the dataset of another HardNegatives: its own `masks` takes them")
        return super().masks(rows - (mark << _ROW_BITS))


def _mark_of(labels: Tensor) -> int:
    """The mark of the `HardNegatives` that labels come from; 0 if they have none. UsageError if there are several."""
    if labels.is_floating_point() or not labels.numel():
        return 0
    marks = labels >> _ROW_BITS if labels.dtype == torch.int64 else torch.zeros_like(labels)
    mark = int(marks.flatten()[0])
    if bool((marks != mark).any()):
        raise UsageError("a batch has rows of several datasets of HardNegatives: give the trainer each as a dataset")
    return mark


def _text_columns(negatives: int) -> list[str]:
    """The columns of texts of the dataset of `HardNegatives`."""
    return ["query", "positive", *(f"negative_{i + 1}" for i in range(negatives))]


def _trains_with(given: Any, mined: dict[str, str]) -> bool:
    """Whether the prompts that a trainer was given are those of mining, for one of its datasets at least."""
    several = [each for name, each in given.items() if name not in mined] if isinstance(given, dict) else []
    for prompts in (given, *several):
        named = prompts if isinstance(prompts, dict) else dict.fromkeys(mined, prompts)
        if all((named.get(column) or "") == prompt for column, prompt in mined.items()):
            return True
    return False


@dataclass(frozen=True)
class DistinctBatches:
    """Makes batch samplers for pairs; a value that training arguments can be saved with.

    Attributes:
        queries, documents: int64 `[m]`, a key for the query and for the positive of each pair.
        mark: of the `HardNegatives` that the pairs are of.
    """

    queries: NDArray[np.int64]
    documents: NDArray[np.int64]
    mark: int

    def __call__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: Any = None,
        generator: Any = None,
        seed: int = 0,
    ) -> Any:
        """A batch sampler for the dataset of the `HardNegatives`, or for rows of it; for any other the default of the trainer."""
        places = _places_of(dataset, self.mark)
        if places is None:
            order = RandomSampler(dataset, generator=generator)
            return DefaultBatchSampler(
                order, batch_size=batch_size, drop_last=drop_last, generator=generator, seed=seed
            )
        return _Batches((self.queries[places], self.documents[places]), dataset, batch_size, drop_last, seed)


def _places_of(dataset: Any, mark: int) -> NDArray[np.int64] | None:
    """int64 `[m]`: the pairs that the rows of a dataset are; None if it is not of the `HardNegatives` with this mark."""
    transform = getattr(dataset, "_format_kwargs", {}).get("transform")
    while isinstance(transform, partial):  # of the trainer, which adds the name of a dataset
        transform = transform.keywords.get("transform")
    owner = getattr(transform, "__self__", None)
    if not isinstance(owner, HardNegatives) or owner._mark != mark:
        return None
    return np.asarray(dataset.with_format("numpy")["pair"][:], np.int64)


class _Batches(DefaultBatchSampler):  # type: ignore[misc]
    """Batches of the places of pairs, in another order in every epoch."""

    def __init__(
        self, keys: tuple[NDArray[np.int64], NDArray[np.int64]], dataset: Any, batch_size: int, drop_last: bool, seed: int
    ) -> None:  # fmt: skip
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last, seed=seed)
        self._keys = keys

    def __iter__(self) -> Iterator[list[int]]:
        batches = shuffled_batches(self._keys, [self.seed or 0, self.epoch], self.batch_size, len(self), self.drop_last)
        # The trainer counts on `len(self)` batches; repetitions may add a few, which are left for another epoch.
        yield from itertools.islice(batches, len(self))


class InfoNCE(nn.Module):
    """The InfoNCE loss of hardneg as a loss of sentence-transformers.

    Every query is compared with all positives and negatives of the batch, those of all ranks included. With `negatives`, known
    positives, equal texts and what the filters suspect are masked, by the rows in the column `label`. A batch of the dataset of
    another `HardNegatives`, for evaluation, is masked by what that one knows.

    Args:
        model: the `SentenceTransformer` that is trained.
        negatives: the `HardNegatives` that the dataset comes from; None: nothing is masked.
        temperature, learn_temperature, variants, dimensions: see `hardneg.InfoNCE`.
        mini_batch_size: texts encoded at once (gradient caching, arXiv 2101.06983), so that a batch can be larger than memory;
            None: all.
    """

    def __init__(
        self,
        model: Any,
        negatives: _AnyNegatives | None = None,
        *,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        variants: Variants | None = None,
        dimensions: Sequence[int] | None = None,
        mini_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if mini_batch_size is not None and mini_batch_size < 1:
            raise UsageError(f"mini_batch_size={mini_batch_size} must be 1 or more, or None")
        longest = model.get_embedding_dimension() if hasattr(model, "get_embedding_dimension") else None
        if dimensions is not None and longest is not None and max(dimensions) > longest:
            raise UsageError(f"dimensions={tuple(dimensions)}: the model has vectors with {longest} components")
        self.model, self.negatives, self.mini_batch_size = model, negatives, mini_batch_size
        if negatives is not None:
            variants = negatives.filters.variants(variants or Variants())
        self.loss = _InfoNCE(temperature, learn_temperature=learn_temperature, variants=variants, dimensions=dimensions)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss, `[]`, of tokenized queries, positives and negatives; `labels` are their rows, int64 `[B, 2 + k]`."""
        features = list(sentence_features)
        if len(features) < 2:
            raise UsageError("InfoNCE needs two columns of texts or more: queries, positives and negatives")
        masks: dict[str, Any] = {}
        if self.negatives is not None and labels is not None:
            if labels.ndim != 2 or labels.shape[1] != len(features):
                raise UsageError(
                    f"the labels have shape {list(labels.shape)}, expected the rows of {len(features)} texts for each of the "
                    f"batch: train on the dataset of HardNegatives"
                )
            # Negatives column by column, as their vectors are.
            negatives = labels[:, 2:].T.reshape(len(labels), -1)
            masks = self._owner(labels).masks(torch.cat([labels[:, :2], negatives], 1))

        def loss(*sides: Tensor) -> Tensor:
            value: Tensor = self.loss(sides[0], sides[1], shared=torch.cat(sides[2:]) if sides[2:] else None, **masks)
            if self.negatives is not None:
                self.negatives.masked = self.loss.statistics["masked"]
            return value

        if self.mini_batch_size is None or not torch.is_grad_enabled():
            return loss(*(self._vectors(each) for each in features))
        return cached_gradients(self._vectors, [self._chunks(each) for each in features], loss)

    def _owner(self, labels: Tensor) -> _AnyNegatives:
        """Whose rows these labels are: in an evaluation, those of another `HardNegatives` than the loss was given."""
        assert self.negatives is not None
        mark = _mark_of(labels)
        owner = _MARKED.get(mark) if mark else self.negatives
        if owner is None:
            raise UsageError("the labels are of the dataset of a HardNegatives that no longer exists: keep it")
        return owner

    def _vectors(self, features: dict[str, Tensor]) -> Tensor:
        vectors: Tensor = self.model(dict(features))["sentence_embedding"]
        return vectors

    def _chunks(self, features: dict[str, Any]) -> list[dict[str, Any]]:
        assert self.mini_batch_size is not None
        return _cut(features, self.mini_batch_size)

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        return {"temperature": self.loss.temperature, "mini_batch_size": self.mini_batch_size}


def _cut(features: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """The tokenized texts of a batch in chunks of `size` texts.

    Raises:
        UsageError: they are of a form in which it is not known which numbers are whose.
    """
    flat = (
        "offsets" in features and features["input_ids"].ndim == 1
    )  # all tokens in one row, as StaticEmbedding takes them
    rows = {
        name: len(x)
        for name, x in features.items()
        if isinstance(x, Tensor) and x.ndim and not (flat and name == "input_ids")
    }
    if len(set(rows.values())) != 1:
        found = ", ".join(f"{name}: {count}" for name, count in rows.items())
        raise UsageError(f"mini_batch_size: what the model takes has no row for each text ({found}): leave it out")
    count = next(iter(rows.values()))
    chunks: list[dict[str, Any]] = []
    of_texts = {name: x for name, x in features.items() if name in rows or (isinstance(x, list) and len(x) == count)}
    for start in range(0, count, size):
        chunk = {**features, **{name: x[start : start + size] for name, x in of_texts.items()}}
        if flat:
            ids, begin = features["input_ids"], int(features["offsets"][start])
            end = int(features["offsets"][start + size]) if start + size < count else len(ids)
            chunk |= {"input_ids": ids[begin:end], "offsets": chunk["offsets"] - begin}
        chunks.append(chunk)
    return chunks


__all__ = ["HardNegatives", "InfoNCE", "mine_hard_negatives"]
