"""The options of a training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from hardneg import renamed
from hardneg.bank.curriculum import Curriculum
from hardneg.bank.hard_batches import RANDOM, HardBatches, parse_batches
from hardneg.encoders.lora import Lora
from hardneg.errors import RunError, UsageError, no_giants, suggestion
from hardneg.evaluation.ranking import parse_measures
from hardneg.index.base import Index
from hardneg.index.factory import INDEXES
from hardneg.losses.arguments import LARGEST, flag, number, whole
from hardneg.losses.infonce import TEMPERATURES
from hardneg.losses.variants import Variants
from hardneg.mining.filters.base import Filter
from hardneg.mining.samplers import Sampler
from hardneg.mining.specs import no_code, parse_filters, parse_sampler
from hardneg.refresh.generation import Recipe
from hardneg.refresh.staleness import Schedule
from hardneg.registry import spec_of
from hardneg.training.fine_tuning import parse_rates
from hardneg.training.teaching import Distillation

# What a training compares vectors by; the temperature it starts with unless another is given; the highest one.
# Inner products of whole vectors have no temperature in DPR (Karpukhin et al. 2020, arXiv 2004.04906), so theirs is 1.
TRAIN_METRICS = {"cosine": (0.05, TEMPERATURES[1]), "ip": (1.0, 1000.0)}

LR_SCHEDULERS = ("constant", "linear", "cosine")
AMP = ("no", "bf16", "fp16")

# Options of later versions, with the values that trainings without them had.
_LATER: dict[str, Any] = {"batches": RANDOM, "patience": None, "keep": 1, "metric": "cosine"}
_LATER |= {"distill": None, "lora": None, "freeze": [], "learning_rates": [], "gradient_checkpointing": False}

# Options that an interrupted training may be resumed with other values of.
_FREE = {"log_every", "save_every", "workers", "keep", "patience"}

# The lowest and the highest value of each option that is an integer.
_WHOLE = (
    *((name, 1, LARGEST) for name in ("batch_size", "accumulate", "log_every", "depth", "keep")),
    *((name, 0, LARGEST) for name in ("negatives", "bank")),
    ("workers", 0, 1024),
    ("seed", 0, 2**32 - 1),  # the largest seed of numpy and scikit-learn
)
_WHOLE_OR_NONE = (
    *((name, 1) for name in ("steps", "mini_batch_size", "evaluate_every", "save_every", "bank_age", "patience")),
    *((name, 0) for name in ("bank_start", "lag")),
)
_NUMBERS: dict[str, dict[str, Any]] = {
    "epochs": {"low": 0, "above": True, "high": 1e9},
    "share": {"low": 0, "above": True, "high": 1},
    "bank_fresh": {"low": 0, "high": 1},
    "momentum": {"low": 0, "high": 1, "below": True},
    "learning_rate": {"low": 0, "above": True},
    "weight_decay": {"low": 0},
    "warmup": {"low": 0, "high": 1},
    "max_grad_norm": {"low": 0, "above": True},
}


@dataclass(frozen=True)
class TrainOptions:
    """The options of a training, checked when they are created. The attributes are grouped by topic.

    Duration and batches:
        epochs: number of passes over the pairs; may be a fraction.
        steps: number of weight updates, which replaces `epochs`; None: train for `epochs`.
        batch_size: pairs per batch, on each rank.
        accumulate: batches per weight update (gradient accumulation). Negatives are not shared between these batches.
            For more negatives, use a larger batch with `mini_batch_size`.
        mini_batch_size: texts encoded at once, so that a batch can be larger than memory (gradient caching, arXiv
            2101.06983); None: encode the whole batch at once.
        batches: which pairs stand in a batch together: `random`, or `hard:group=32`, pairs that are hard for one another by the
            mined candidates (see `HardBatches`). They are composed anew for every epoch, from the candidates in use; with
            `hard:graph=training` from the vectors of the last epoch, for which nothing is mined.

    Mined negatives:
        negatives: mined negatives for each query; 0: in-batch negatives only.
        negative_sampling: how negatives are drawn among the kept candidates: a sampler, or its spec such as
            `simans:a=100`.
        curriculum: how the share of mined negatives grows from random to mined ones.
        filters: filters or their specs, which decide which candidates may be negatives. Filters that judge a pair by
            itself also mask entries of the loss (see `OnlineFilters`).
        default_filters: whether to use the filters `empty`, `duplicate:text` and `distinct`.

    Refresh:
        refresh: when to mine again, with the weights of that time: `never` (only before the first step), `epoch`,
            `steps:N`, or `staleness:...`, which measures how far the encoder has moved (see `Schedule`).
        share: share of the documents that a refresh encodes. The vectors of the others are drift-compensated.
        depth: candidates for each query.
        index: spec of the index, as for `make_index`, or a function that builds one.
        lag: steps between the start of a refresh and its use; None: half the steps between two refreshes. A step waits
            for the refresh if necessary, so that a training can be repeated on any machine.
        wait: False: use a refresh as soon as it is ready, whatever `lag` says. Such a training cannot be repeated
            exactly.

    Memory bank:
        bank: number of rows; 0: no bank.
        bank_age: number of batches after which a row is no longer used; None: no limit.
        bank_start: number of batches before the bank is used; None: one epoch. While the encoder moves fast, old
            vectors only teach it to tell old from new.
        bank_fresh: share of the rows that is encoded again before each batch. The other rows are drift-compensated.
        momentum: share of its weights that a momentum encoder keeps at each update. This second encoder fills the bank
            (MoCo, arXiv 1911.05722); None: the trained encoder fills the bank.

    Loss:
        metric: what queries and documents are compared by, in the loss, by the miner and in evaluations: `cosine`, or `ip`,
            inner products of the vectors as the encoder returns them, which learns their lengths as well.
        temperature: the temperature at the start (see `InfoNCE`); None: 0.05 for cosine, 1 for ip.
        learn_temperature: whether the temperature is learned.
        variants: variants of the loss; see `Variants`.
        distill: learn the scores of the teacher of a run as well: `kl`, `margin-mse`, and how (see `Distillation`); None: no.
        dimensions: lengths to which vectors are cut, so that short vectors are useful as well (Matryoshka, arXiv
            2205.13147); None: whole vectors only.

    What is trained:
        lora: train small matrices beside the weights of an `st:` model (arXiv 2106.09685), such as `8` or `r=16,alpha=32`; see
            `hardneg.encoders.lora.Lora`. What is saved is a plain model, and beside it the matrices alone.
        freeze: patterns of parameters that stay as they are: `query` and `document` for a tower, or a pattern of names such as
            `*.embeddings.*` (`*` stands for any text).
        learning_rates: learning rates of their own, as `PATTERN=RATE` with the same patterns; of several that fit, the last counts.
        gradient_checkpointing: compute activations of an `st:` transformer again in place of keeping them: less memory, more time.

    Optimizer:
        learning_rate: the highest learning rate, at the end of the warm-up; None: the encoder's own (`learning_rate`), or 0.001.
        weight_decay: weight decay of AdamW, on matrices only: not on biases and norms.
        warmup: share of the steps in which the learning rate rises.
        lr_scheduler: the learning rate after the warm-up: `constant`, or falling to 0 as `linear` or `cosine`.
        max_grad_norm: the norm to which gradients are clipped; None: no clipping.
        amp: mixed precision: `no`, `bf16` or `fp16`; None: `bf16` on a GPU that has it, else `no`.

    Evaluation, checkpoints and log:
        evaluate_every: steps between two evaluations; None: one epoch.
        measures: what is evaluated. The first measure decides which encoder is the best.
        patience: evaluations in a row without a better first measure after which the training stops early; None: never.
        save_every: steps between two checkpoints; None: one epoch.
        keep: number of checkpoints that are kept, the last ones.
        log_every: steps between two log entries.

    Other options:
        query_prompt: text that is put before each query; None: what the encoder has itself for queries, if it does.
        document_prompt: text that is put before each document; None: likewise.
        workers: number of processes that prepare batches; 0: the training process prepares them.
        seed: seed of all random choices.

    Raises:
        UsageError: an option has a value or a type that cannot be used. Integers of numpy count as integers, and any
            iterable of filters, measures or dimensions as a tuple.

    >>> TrainOptions(steps=1000, batch_size=128, refresh="steps:200").negatives
    4
    """

    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    mini_batch_size: int | None = None
    batches: str | HardBatches = RANDOM
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
    metric: str = "cosine"
    temperature: float | None = None
    learn_temperature: bool = False
    variants: Variants = field(default_factory=Variants)
    distill: str | None = None
    dimensions: tuple[int, ...] | None = None
    lora: str | None = None
    freeze: tuple[str, ...] = ()
    learning_rates: tuple[str, ...] = ()
    gradient_checkpointing: bool = False
    learning_rate: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.1
    lr_scheduler: str = "linear"
    max_grad_norm: float | None = 1.0
    amp: str | None = None
    evaluate_every: int | None = None
    measures: tuple[str, ...] = ("ndcg@10", "mrr@10", "recall@100")
    patience: int | None = None
    save_every: int | None = None
    keep: int = 1
    log_every: int = 10
    query_prompt: str | None = None
    document_prompt: str | None = None
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        no_giants(self)
        for name, low, high in _WHOLE:
            self._set(name, whole(name, getattr(self, name), low, high))
        for name, low in _WHOLE_OR_NONE:
            if getattr(self, name) is not None:
                self._set(name, whole(name, getattr(self, name), low))
        for name, limits in _NUMBERS.items():
            if getattr(self, name) is not None or name not in ("momentum", "max_grad_norm", "learning_rate"):
                self._set(name, number(name, getattr(self, name), **limits))
        for name in ("default_filters", "wait", "learn_temperature", "gradient_checkpointing"):
            self._set(name, flag(name, getattr(self, name)))
        self._set_metric()
        for name in ("refresh", "lr_scheduler", "amp", "query_prompt", "document_prompt"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and (name.endswith("prompt") or name == "amp")):
                raise UsageError(f"{name}={value!r} must be a text")
        for name, kind in (("curriculum", Curriculum), ("variants", Variants)):
            if not isinstance(getattr(self, name), kind):
                raise UsageError(f"{name}={getattr(self, name)!r} must be a {kind.__name__}(...)")
        for name in ("filters", "measures", "freeze", "learning_rates"):
            self._set(name, _several(name, getattr(self, name), "text"))
        if self.dimensions is not None:
            lengths = _several("dimensions", self.dimensions, "number")
            self._set("dimensions", tuple(whole("dimensions", each, 1) for each in lengths))
        self._check_parts()

    def _set_metric(self) -> None:
        """Check the metric, and the temperature that goes with it."""
        if self.metric == "l2":
            raise UsageError(
                "metric='l2': there is no loss for squared distances. Train by cosine, or by ip (inner products)"
            )
        if not isinstance(self.metric, str) or self.metric not in TRAIN_METRICS:
            raise UsageError(f"metric={self.metric!r}.{suggestion(str(self.metric), TRAIN_METRICS)}")
        usual, highest = TRAIN_METRICS[self.metric]
        given = usual if self.temperature is None else self.temperature
        self._set("temperature", number("temperature", given, TEMPERATURES[0], highest))

    @property
    def loss_options(self) -> dict[str, Any]:
        """The arguments of `InfoNCE` that these options decide alone."""
        return {
            "temperature": self.temperature,
            "learn_temperature": self.learn_temperature,
            "temperature_range": (TEMPERATURES[0], TRAIN_METRICS[self.metric][1]),
            "similarity": "dot" if self.metric == "ip" else "cosine",
            "dimensions": self.dimensions,
        }

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the class is frozen; a checked value replaces the given one

    def _check_parts(self) -> None:
        """Check the specs, and the options that belong together."""
        for name in ("momentum", "bank_age", "bank_fresh", "bank_start"):
            if getattr(self, name) and not self.bank:
                raise UsageError(f"{name} is of the bank: give the option bank as well")
        if self.momentum is not None and self.bank_fresh:
            raise UsageError(f"bank_fresh={self.bank_fresh} must be 0 if a momentum encoder fills the bank")
        if self.variants.hard_weight != 1:
            raise UsageError(
                "mined negatives are shared by the whole batch here, so hard_weight has no meaning: leave it at 1"
            )
        for name, known in (("lr_scheduler", LR_SCHEDULERS), ("amp", AMP)):
            if getattr(self, name) not in known and not (name == "amp" and self.amp is None):
                raise UsageError(f"{name}={getattr(self, name)!r}.{suggestion(str(getattr(self, name)), known)}")
        if self.dimensions == ():
            raise UsageError("dimensions must name one length or more, or be None")
        if isinstance(self.index, str) and self.index not in INDEXES:
            raise UsageError(f"index={self.index!r}.{suggestion(self.index, INDEXES)}")
        if not isinstance(self.index, str) and not callable(self.index) and not isinstance(self.index, Index):
            raise UsageError(f"index={self.index!r} must be the name of an index, or a function that builds one")
        Recipe(index=self.index, depth=self.depth, share=self.share, seed=self.seed)
        Schedule.parse(self.refresh)
        parse_sampler(self.negative_sampling)
        parse_batches(self.batches)
        if self.lora is not None:
            Lora.parse(self.lora)
        parse_rates(self.learning_rates)
        if self.distill is not None:
            Distillation.parse(self.distill)
            if self.negatives == 0:
                raise UsageError(
                    f"distill={self.distill!r} learns the scores of mined negatives, and negatives=0 has none: take negatives=4"
                )
        parse_filters(self.filters, self.default_filters, training=True)
        parse_measures(self.measures)
        if not self.measures:
            raise UsageError("measures must name one or more: the first decides which encoder is the best")

    def fitting(self, learning_rate: float, device: torch.device) -> TrainOptions:
        """The options with what was left open decided.

        Args:
            learning_rate: that of the encoder.
            device: where it is trained.
        """
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return replace(
            self,
            learning_rate=learning_rate if self.learning_rate is None else self.learning_rate,
            amp=("bf16" if bf16 else "no") if self.amp is None else self.amp,
        )

    def to_json(self) -> dict[str, Any]:
        """The options as plain values. Filters, samplers and indexes that are objects become their specs."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain |= {"filters": [spec_of(each) for each in self.filters]}
        plain |= {name: spec_of(getattr(self, name)) for name in ("negative_sampling", "index")}
        plain["batches"] = self.batches if isinstance(self.batches, str) else self.batches.spec
        return {**plain, "curriculum": asdict(self.curriculum), "variants": asdict(self.variants)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainOptions:
        """The options that `to_json` returned, in this version or in 0.1; RunError for anything else."""
        try:
            given: dict[str, Any] = {
                name: tuple(each) if isinstance(each, list) else each
                for name, each in {**_LATER, **renamed.with_new_names(value, renamed.TRAIN_OPTIONS)}.items()
            }
            given["filters"] = tuple(map(renamed.filter_spec, given["filters"]))
            for spec in (*given["filters"], given["negative_sampling"]):
                no_code(spec, "the options of the training")
            given |= {"curriculum": Curriculum(**given["curriculum"]), "variants": Variants(**given["variants"])}
            return cls(**given)
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"these are not the options of a training ({error!r})") from None
        except UsageError as error:
            raise RunError(f"these are not the options of a training: {error}") from None

    def changed(self, before: Mapping[str, Any] | TrainOptions) -> list[str]:
        """Return the names of options that differ from an interrupted training and must not.

        A training may be resumed for longer (see `lengthened`); its learning rate then follows the schedule of the new length.

        Args:
            before: the options of that training, or what their `to_json` returned, in this version or in 0.1.

        Raises:
            RunError: `before` does not hold the options of a training.
        """
        then, now = _options_of(before), _plain(self.to_json())
        free = _FREE | ({"steps", "epochs"} if self.lengthened(before) else set())
        return [name for name in {**now, **then} if name not in free and now.get(name) != then.get(name)]

    def lengthened(self, before: Mapping[str, Any] | TrainOptions) -> bool:
        """Whether these options ask for more steps or epochs than those of an earlier training; errors: see `changed`."""
        then = _options_of(before)
        if self.steps is None or then["steps"] is None:  # where only the new one counts steps, the data decide
            return then["steps"] is None and (self.steps is not None or self.epochs > then["epochs"])
        return self.steps > int(then["steps"])


def _options_of(before: Mapping[str, Any] | TrainOptions) -> dict[str, Any]:
    """The options of an earlier training as plain values with the names of this version; RunError for anything else."""
    before = _plain(before.to_json()) if isinstance(before, TrainOptions) else before
    if not isinstance(before, Mapping) or not isinstance(before.get("filters"), list):
        raise RunError("these are not the options of a training")
    then = {**_LATER, **renamed.with_new_names(before, renamed.TRAIN_OPTIONS)}
    then["filters"] = [renamed.filter_spec(str(spec)) for spec in before["filters"]]
    steps, epochs = then.get("steps"), then.get("epochs")
    if "steps" not in then or not (steps is None or type(steps) is int) or type(epochs) not in (int, float):
        raise RunError(f"these are not the options of a training (steps: {steps!r}, epochs: {epochs!r})")
    return then


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options as a JSON file holds them: tuples become lists."""
    value: dict[str, Any] = json.loads(json.dumps(options))
    return value


def _several(name: str, value: Any, what: str) -> tuple[Any, ...]:
    """An option of several values as a tuple; UsageError if it is one text, or cannot be iterated over."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise UsageError(f"{name}={value!r} must be a tuple of {what}s, even if it is only one")
    return tuple(value)
