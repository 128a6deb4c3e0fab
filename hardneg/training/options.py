"""Everything that a training can be told, checked before it begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hardneg import renamed
from hardneg.bank.curriculum import Curriculum
from hardneg.errors import RunError, UsageError, suggestion
from hardneg.evaluation.ranking import parse_measures
from hardneg.index.base import Index
from hardneg.losses.variants import Variants
from hardneg.mining.filters.base import Filter
from hardneg.mining.samplers import Sampler
from hardneg.mining.specs import parse_filters, parse_sampler
from hardneg.refresh.staleness import Schedule
from hardneg.registry import spec_of

LR_SCHEDULERS = ("constant", "linear", "cosine")
AMP = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        epochs: over the pairs; `steps`, if given, counts instead: updates of the weights.
        batch_size: pairs a batch, of each rank.
        accumulate: batches an update. Their negatives are their own; for more negatives take a larger batch with `mini_batch_size`.
        mini_batch_size: texts encoded at once, with gradient caching (arXiv 2101.06983): the batch may be larger than memory.
        negatives: mined ones a query; 0: in-batch negatives only.
        negative_sampling: how they are drawn among the kept, a sampler spec.
        curriculum: from random to mined ones.
        filters, default_filters: which of the mined may be negatives; those that can, work in the loss, too.
        refresh: when they are mined anew: `never` (once, at the start), `epoch`, `steps:N`, `staleness:...`.
        share: of the documents that a refresh encodes, the rest is moved by a linear map.
        depth: candidates kept per query.
        index: see `make_index`.
        lag: steps until a refresh is used: repeatable whatever the machine, as a step waits for it if need be. None:
            half of what lies between two refreshes. `wait=False`: as soon as it is ready.
        bank: rows of the memory bank, 0: none; `bank_age`: batches until a row is not used any more; `bank_start`: batches
            until it is used at all, None: an epoch (while the encoder moves fast, old vectors teach it to tell old from
            new); `bank_fresh`: share of its rows that is encoded anew before each batch, the others are moved along;
            `momentum`: of the encoder that fills it, None: the trained one itself.
        temperature, learn_temperature, variants, dimensions: see `InfoNCE`.
        learning_rate, weight_decay, warmup (share of the steps), lr_scheduler (`constant`, `linear` or `cosine` after the
            warm-up), max_grad_norm (norm of the gradient, None: not at all).
        amp: `no`, `bf16` or `fp16`.
        evaluate_every: updates between evaluations, None: after every epoch; `measures`: the first decides which is best.
        save_every: updates between checkpoints, None: after every epoch.
        log_every: updates between two entries of the log.
        query_prompt, document_prompt: texts before each.
        workers: processes that prepare batches.
        seed: of everything that is random.
    """

    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    mini_batch_size: int | None = None
    negatives: int = 4
    negative_sampling: str | Sampler = "uniform"
    curriculum: Curriculum = field(default_factory=Curriculum)
    filters: tuple[str | Filter, ...] = ()
    default_filters: bool = True
    refresh: str = "epoch"
    share: float = 1.0
    depth: int = 50
    index: str | Callable[[Any, str], Index] = "auto"
    lag: int | None = None
    wait: bool = True
    bank: int = 0
    bank_age: int | None = None
    bank_start: int | None = None
    bank_fresh: float = 0.0
    momentum: float | None = None
    temperature: float = 0.05
    learn_temperature: bool = False
    variants: Variants = field(default_factory=Variants)
    dimensions: tuple[int, ...] | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.1
    lr_scheduler: str = "linear"
    max_grad_norm: float | None = 1.0
    amp: str = "no"
    evaluate_every: int | None = None
    measures: tuple[str, ...] = ("ndcg@10", "mrr@10", "recall@100")
    save_every: int | None = None
    log_every: int = 10
    query_prompt: str = ""
    document_prompt: str = ""
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "log_every", "depth"):
            _at_least(name, getattr(self, name), 1)
        for name in ("steps", "mini_batch_size", "evaluate_every", "save_every", "bank_age", "bank_start"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 0 if name == "bank_start" else 1)
        for name in ("negatives", "bank", "workers", "seed", "weight_decay"):
            _at_least(name, getattr(self, name), 0)
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name}={getattr(self, name)} must be above 0")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise UsageError(f"max_grad_norm={self.max_grad_norm} must be above 0, or None")
        if not 0 <= self.warmup <= 1:
            raise UsageError(f"warmup={self.warmup} is a share of the steps: 0 to 1")
        for name in ("momentum", "bank_age", "bank_fresh", "bank_start"):
            if getattr(self, name) and not self.bank:
                raise UsageError(f"{name} is of the bank: give bank, too")
        if not 0 <= self.bank_fresh <= 1 or (self.momentum is not None and self.bank_fresh):
            raise UsageError(
                f"bank_fresh={self.bank_fresh} must be 0 to 1, and 0 where a momentum encoder fills the bank"
            )
        if self.variants.hard_weight != 1:
            raise UsageError(
                "the trainer's mined negatives are negatives of the whole batch: hard_weight has no meaning"
            )
        for name, known in (("lr_scheduler", LR_SCHEDULERS), ("amp", AMP)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name}={getattr(self, name)!r}.{suggestion(str(getattr(self, name)), known)}")
        Schedule.parse(self.refresh)
        parse_sampler(self.negative_sampling)
        parse_filters(self.filters, self.default_filters, training=True)
        parse_measures(self.measures)
        if not self.measures:
            raise UsageError("measures must name one or more: the first decides which checkpoint is best")

    def to_json(self) -> dict[str, Any]:
        """Plain values; filters and samplers that were given as objects become their specs."""
        whole = {each.name: getattr(self, each.name) for each in fields(self)}
        whole |= {"filters": [spec_of(each) for each in self.filters]}
        whole |= {name: spec_of(getattr(self, name)) for name in ("negative_sampling", "index")}
        return {**whole, "curriculum": asdict(self.curriculum), "variants": asdict(self.variants)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainOptions:
        """The options that `to_json` gave, in this version or in 0.1; RunError for anything else."""
        try:
            given: dict[str, Any] = {
                name: tuple(each) if isinstance(each, list) else each
                for name, each in renamed.with_new_names(value, renamed.TRAIN_OPTIONS).items()
            }
            given["filters"] = tuple(map(renamed.filter_spec, given["filters"]))
            given |= {"curriculum": Curriculum(**given["curriculum"]), "variants": Variants(**given["variants"])}
            return cls(**given)
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"these are no options of a training ({error!r})") from None

    def changed(self, before: Mapping[str, Any] | TrainOptions) -> list[str]:
        """Names of the options that differ from those of an interrupted training, and may not.

        Args:
            before: those options, or what `to_json` gave then, in this version or in 0.1.

        Raises:
            RunError: these are no options of a training.
        """
        before = before.to_json() if isinstance(before, TrainOptions) else before
        if not isinstance(before, Mapping) or not isinstance(before.get("filters"), list):
            raise RunError("these are no options of a training")
        then = renamed.with_new_names(before, renamed.TRAIN_OPTIONS)
        then["filters"] = [renamed.filter_spec(str(spec)) for spec in before["filters"]]
        now = json.loads(json.dumps(self.to_json()))
        free = {"log_every", "save_every", "workers"}
        return [name for name in {**now, **then} if name not in free and now.get(name) != then.get(name)]


def _at_least(name: str, value: float, low: int) -> None:
    if value < low:
        raise UsageError(f"{name}={value} must be {low} or more")
