"""The training loop: loss, weight update, memory bank, refresh, evaluation, log and checkpoints."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR

from hardneg.diagnostics.live_findings import IN_BATCHES, LiveFindings
from hardneg.diagnostics.measures.batch import Collapse, batch_hardness, effective_rank
from hardneg.errors import DataError
from hardneg.losses.arguments import number
from hardneg.losses.caching import cached_backward
from hardneg.losses.infonce import InfoNCE
from hardneg.progress import Progress, silent
from hardneg.refresh.staleness import movement_of
from hardneg.registry import spec_of
from hardneg.training import checkpoint
from hardneg.training.batches import Batch, TrainingBatches
from hardneg.training.callbacks import Callback, Watcher, mean_of
from hardneg.training.distributed import World
from hardneg.training.fine_tuning import parameter_groups
from hardneg.training.finite import FirstBadStep, first_not_finite
from hardneg.training.negatives import MinedNegatives
from hardneg.training.optim import mixed_precision, rate_at
from hardneg.training.options import TrainOptions
from hardneg.training.progressed import Progressed
from hardneg.training.teaching import Teaching
from hardneg.training.towers import Towers

_ALONE = "every negative of every query was masked"
_ADVICE = "Lower the learning rate, or use bf16 instead of fp16"

Evaluate = Callable[[Towers], dict[str, float]]


class _Collapse(TypedDict):
    first: float | None
    said: bool


class Trainer:
    """Trains towers with the InfoNCE loss. `hardneg.train` creates one.

    Args:
        towers: the model, on the device of `world`.
        batches: the batches, and the memory bank.
        negatives: the mined negatives, and the masks of the filters.
        options: the options of the training.
        world: the ranks of the training.
        teaching: the teacher that the model also learns from; None: none.
        folder: the folder of the checkpoints; None: write none.
        evaluate: evaluates the towers, on all ranks; what it returns on rank 0 counts. None: no evaluation.
        callbacks: called with the numbers of a step or an evaluation.
        on_best: called after an evaluation that is the best so far.
        warn: called with each warning.

    Raises:
        UsageError: two towers on several ranks with `mini_batch_size`.
    """

    def __init__(
        self, towers: Towers, batches: TrainingBatches, negatives: MinedNegatives, options: TrainOptions, world: World, *,
        teaching: Teaching | None = None, folder: Path | None = None, evaluate: Evaluate | None = None,
        callbacks: Sequence[Callback] = (), on_best: Callable[[], None] | None = None, warn: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        options = options.fitting(towers.learning_rate, world.device)
        self.towers, self.batches, self.negatives = towers, batches, negatives
        self.options, self.world, self.teaching = options, world, teaching
        self.folder, self.evaluate, self.callbacks, self.on_best = folder, evaluate, list(callbacks), on_best
        self.warn = warn
        self.criterion = InfoNCE(
            variants=negatives.filters.variants(options.variants), **options.loss_options
        ).to(world.device)  # fmt: skip
        world.same_start(towers)
        groups = parameter_groups(towers, options.weight_decay, options.learning_rates)
        if options.learn_temperature:
            groups.append({"params": list(self.criterion.parameters()), "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(
            groups, lr=options.learning_rate or 1e-3, weight_decay=options.weight_decay,
            fused=world.device.type in ("cpu", "cuda"),
        )  # fmt: skip
        self.per_epoch = max(1, len(batches.sampler) // options.accumulate)
        # Of batches: where `accumulate` does not divide them, updates go on over the end of an epoch.
        self.total = options.steps or max(1, math.ceil(options.epochs * len(batches.sampler) / options.accumulate))
        self.rates = LambdaLR(
            self.optimizer, lambda step: rate_at(step, self.total, options.warmup, options.lr_scheduler)
        )
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=options.amp == "fp16")
        self.done, self.collapse = Progressed(), Collapse()
        self.live = LiveFindings(codes=IN_BATCHES, drawn_by=spec_of(options.negative_sampling))
        self.bad = FirstBadStep(world.device)
        self.stopped = False  # early, see `patience`
        self._batches = 0  # number of batches since the last update
        self._statistics: list[dict[str, Tensor]] = []

    @property
    def over(self) -> bool:
        """Whether the training has reached its last step, or stopped early."""
        return self.done.step >= self.total or self.stopped

    def fit(self, progress: Progress = silent) -> Progressed:
        """Train from the present step to the last one, and return the progress.

        Raises:
            DataError: a loss, a weight or a row of the bank is NaN or infinite. This is noticed at the next log entry,
                evaluation or checkpoint, and nothing is saved from then on.
        """
        advance = progress("train", self.total)
        advance(self.done.step)
        self.towers.train()
        self._evaluate_before()
        while not self.over:
            for batch in self.batches.batches():
                queries, documents = self._backward(batch)
                self._fill_bank(batch, queries, documents)
                if not self._update():
                    continue
                self.batches.updated()
                fresh = self.negatives.updated()
                advance(1)
                self._report(batch, queries, documents, fresh)
                self._evaluate_and_save()
                if fresh or self.over:
                    break
            else:
                self.negatives.end_epoch()
        if (harm := self.done.harm(self.options.measures[0])) is not None:
            self.done.warnings.append(harm)
            self.warn(harm)
        return self.done

    # One step.

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add the gradients of a batch, and return the vectors of its queries and documents without gradients."""
        bank = self.batches.bank_view()
        masks = self.negatives.masks(batch, bank)
        vectors: list[Tensor] = []

        def loss(queries: Tensor, documents: Tensor) -> Tensor:
            vectors[:] = queries.detach(), documents.detach()
            size = len(queries)
            value: Tensor = self.criterion(
                queries, documents[:size], shared=documents[size:], bank=None if bank is None else bank.vectors, **masks
            )
            if self.teaching is not None:
                taught = self.teaching.loss(
                    batch.rows, queries, documents, self.criterion.log_scale.exp(), self.criterion.similarity
                )
                value = taught + (0.0 if self.teaching.options.alone else 1.0) * value
                self.criterion.statistics |= {"distillation": taught.detach(), "loss": value.detach()}
            return self.scaler.scale(value / self.options.accumulate)

        with mixed_precision(self.options.amp, self.world.device):
            if self.options.mini_batch_size is None:
                loss(self.towers(batch.queries, "query"), self.towers(batch.documents, "document")).backward()  # type: ignore[no-untyped-call]
            else:
                sides = [
                    [
                        (items[i : i + self.options.mini_batch_size], side)
                        for i in range(0, len(items), self.options.mini_batch_size)
                    ]
                    for items, side in ((batch.queries, "query"), (batch.documents, "document"))
                ]
                cached_backward(lambda mini_batch: self.towers(*mini_batch), sides, loss)
        self._statistics.append(self.batches.named(self.criterion.statistics))
        self.bad.look(self.criterion.statistics["loss"], self.done.step + 1)
        return vectors[0], vectors[1]

    def _fill_bank(self, batch: Batch, queries: Tensor, documents: Tensor) -> None:
        """Write the documents of a batch to the bank, if there is one."""
        try:
            self.batches.used(batch, queries, documents)
        except DataError as error:
            self._refuse_loss(self.bad.value())  # which may have been the first to break
            reason = re.sub(r"^step \d+: ", "", str(error))  # the bank counts batches
            raise DataError(f"step {self.done.step + 1}: {reason} {self._last_checkpoint()}") from None

    def _update(self) -> bool:
        """Count a batch, and update the weights after every `accumulate` batches. Return whether they were updated."""
        self._batches += 1
        if self._batches < self.options.accumulate:
            return False
        self._batches = 0
        self.world.average_gradients(self.towers, self.criterion)
        self.scaler.unscale_(self.optimizer)
        if self.options.max_grad_norm is not None:
            clip_grad_norm_(self.towers.parameters(), self.options.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.rates.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done.step += 1
        return True

    # Log and evaluation.

    def _report(self, batch: Batch, queries: Tensor, documents: Tensor, fresh: bool) -> None:
        """Pass the numbers of a step to the callbacks. `fresh`: a new generation has just come into use."""
        step, bank, index = self.done.step, self.batches.bank, self.negatives.index
        for callback in self.callbacks:
            if isinstance(callback, Watcher):
                more = {"bank": bank, "index": index, "statistics": self.criterion.statistics}
                callback.batch(step, queries, documents, batch.mined, **more)
        if step % self.options.log_every and step != self.total and not fresh:
            return
        self._check_finite()
        values, alone = mean_of(self._statistics, self.batches.sources), self._alone()
        self._statistics = []
        if not self.world.leads:
            return
        rank = effective_rank(documents)
        values |= {"effective_rank": rank, "learning_rate": float(self.optimizer.param_groups[0]["lr"])}
        values |= batch_hardness(
            queries, documents, batch.mined.to(documents.device), self.criterion.temperature, self.options.metric
        )
        values |= {f"rejected/{name}": share for name, share in self.negatives.rejected.items()}
        if bank is not None:
            ages, used = bank.statistics(), self.batches.sampler.bank_in_use
            values |= {"bank_rows": ages["rows"], "bank_age": ages["mean_age"]} if used else {"bank_rows": 0.0}
        if index is not None:
            values |= {"generation": float(index.generation.number), "age": float(index.age), **movement_of(index)}
        if fresh:
            values["swap_seconds"] = self.negatives.swap_seconds
        collapsed = self.collapse.look(rank) if self.batches.comparable else None
        for warning in (collapsed, alone, *self.live.look(step, values)):
            if warning is not None:
                self.done.warnings.append(f"step {step}: {warning}")
                self.warn(self.done.warnings[-1])
        self._log(values)

    def _alone(self) -> str | None:
        """A warning, once, if every negative of every query was masked in batches since the last entry of the log."""
        if any(_ALONE in each for each in self.done.warnings):
            return None
        rows = [row["alone"] for row in self._statistics]
        count = int((torch.stack(rows) == 1).sum())
        if count == 0:
            return None
        return (
            f"{_ALONE} in {count} of the last {len(rows)} batches, so their loss is 0 and nothing was learned from them. "
            f"Loosen the filters, take a larger batch_size, or use mined negatives or a bank"
        )

    def _check_finite(self, save: bool = False) -> None:
        """DataError, on all ranks, if a loss was not finite; with `save`, also if what would be saved is not."""
        self._refuse_loss(self.bad.value(self.world))
        if not save:
            return
        place = first_not_finite(self.state(), self._may_be_infinite())
        if self.world.any(place is not None):
            raise DataError(
                f"step {self.done.step}: {place or 'what another rank would save'} holds NaN or infinity. {_ADVICE}. "
                f"{self._last_checkpoint()}"
            )

    def _refuse_loss(self, first: int | None) -> None:
        """DataError for the first step whose loss was not finite, if there was one."""
        if first is not None:
            raise DataError(f"step {first}: the loss is NaN or infinite. {_ADVICE}. {self._last_checkpoint()}")

    def _may_be_infinite(self) -> set[str]:
        """The places in the state of what is not trained: such as masks of attention, where infinity has a meaning."""
        trained = {name for name, parameter in self.towers.named_parameters() if parameter.requires_grad}
        fixed = [name for name in self.towers.state_dict() if name not in trained]
        return {f"{place}.{name}" for name in fixed for place in ("towers", "supply.momentum.model")}

    def _last_checkpoint(self) -> str:
        """A sentence that names the last checkpoint."""
        found = None if self.folder is None else checkpoint.latest(self.folder)
        if found is None:
            return "There is no checkpoint from before"
        return f"The last checkpoint is from before, of step {checkpoint.step_of(found)}: {found}"

    def _log(self, values: dict[str, float]) -> None:
        for callback in self.callbacks:
            callback.log(self.done.step, values)

    def _evaluate_and_save(self) -> None:
        """Evaluate and write a checkpoint, each if it is due at this step."""
        step, last = self.done.step, self.done.step == self.total
        every = self.options.evaluate_every or self.per_epoch
        evaluates = self.evaluate is not None and (step % every == 0 or last)
        saves = self.folder is not None and (step % (self.options.save_every or self.per_epoch) == 0 or last)
        if evaluates or saves or last:
            self._check_finite(save=True)
        if self.evaluate is not None and evaluates:
            measures, seconds = self._measured(self.evaluate)
            if self.world.leads:
                self._record({"step": step, **measures}, seconds)
        if evaluates and self.options.patience is not None:
            self.stopped = self.world.broadcast_int(int(self._no_better)) == 1  # rank 0 keeps what was measured
        if self.folder is not None and (saves or self.stopped):
            for callback in self.callbacks:
                if callable(sync := getattr(callback, "sync", None)):
                    sync()  # entries that the checkpoint is ahead of are never written again
            checkpoint.write(self.folder, step, self.state(), self.world, self.negatives.save, self.options.keep)

    @property
    def _no_better(self) -> bool:
        return self.done.no_better(self.options.measures[0], self.options.patience)

    def _evaluate_before(self) -> None:
        """Evaluate the encoder from before the first step, so that what the training did to it can be told."""
        if self.evaluate is None or self.done.step > 0 or self.over:
            return
        measures, seconds = self._measured(self.evaluate)
        if self.world.leads:
            self.done.before = measures
            self._say(measures, seconds)

    def _measured(self, evaluate: Evaluate) -> tuple[dict[str, float], float]:
        """What an evaluation of the encoder measures, and its seconds; the towers train on afterwards."""
        start = time.perf_counter()
        measures = evaluate(self.towers)
        self.towers.train()
        return measures, time.perf_counter() - start

    def _record(self, measures: dict[str, float], seconds: float) -> None:
        """Keep what an evaluation measured, and save the encoder if it is the best so far."""
        if self.done.record(measures, self.options.measures[0]) and self.on_best is not None:
            self.on_best()
        self._say(measures, seconds)

    def _say(self, measures: dict[str, float], seconds: float) -> None:
        values = {f"evaluation/{name}": value for name, value in measures.items() if name != "step"}
        self._log({**values, "evaluation/seconds": seconds})

    # Checkpoints.

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint holds, except the random generators and the generations of the index."""
        rows = self._statistics
        return {
            "progress": vars(self.done),
            "collapse": vars(self.collapse),
            "live": self.live.state(),
            "towers": dict(self.towers.state_dict()),
            "criterion": dict(self.criterion.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "rates": {"last_epoch": self.rates.last_epoch},
            "scaler": self.scaler.state_dict(),
            "supply": {**self.batches.state(), "filters": self.negatives.filters.state()},
            "unlogged": {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned; see `hardneg.training.checkpoint.fitting` for states that do not fit."""
        for name, kind in (("progress", Progressed), ("collapse", _Collapse)):
            msgspec.convert(state[name], kind)
        self.done = Progressed(**state["progress"])
        if self.done.best is not None and self.options.measures[0] not in self.done.best:
            raise ValueError(f"its best evaluation lacks {self.options.measures[0]}")
        self.stopped = self._no_better
        vars(self.collapse).update({name: state["collapse"][name] for name in ("first", "said")})
        self.live.load(state.get("live", {}))  # checkpoints of version 0.1 have none
        self.towers.load_state_dict(state["towers"])
        self.criterion.load_state_dict(state["criterion"])
        self._load_optimizer(state["optimizer"])
        self.rates.last_epoch = int(state["rates"]["last_epoch"])
        for group, base, rate in zip(
            self.optimizer.param_groups, self.rates.base_lrs, self.rates.lr_lambdas, strict=True
        ):
            group["lr"] = base * rate(
                self.rates.last_epoch
            )  # another one than was saved, if the training is longer now
        self.scaler.load_state_dict(state["scaler"])
        self.batches.load(state["supply"])
        columns = {name: values.to(self.world.device) for name, values in state.get("unlogged", {}).items()}
        rows = zip(*columns.values(), strict=True)
        self._statistics = [dict(zip(columns, row, strict=True)) for row in rows]
        checkpoint.restore_random(state["random"], self.world.device)
        place = first_not_finite(state, self._may_be_infinite())
        if place is not None:
            raise ValueError(f"{place} holds NaN or infinity")

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Load the state of the optimizer, whose settings come from the options; torch checks little of it."""
        settings = [
            {n: v for n, v in group.items() if n not in ("params", "lr")} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state)
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            number("the learning rate", group["lr"], 0)
            group.update(own)
        for parameter, moments in self.optimizer.state.items():
            shapes = {name: tuple(each.shape) for name, each in moments.items()}
            if shapes != {"step": (), "exp_avg": tuple(parameter.shape), "exp_avg_sq": tuple(parameter.shape)}:
                raise ValueError(f"its optimizer belongs to other weights (shapes {shapes})")
