"""What of a model is trained, and how fast: frozen parameters, learning rates of their own, LoRA, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from hardneg.encoders.lora import Lora
from hardneg.errors import UsageError
from hardneg.losses.arguments import number
from hardneg.training.towers import SIDES, Towers


def parse_rates(specs: Iterable[Any]) -> list[tuple[str, float]]:
    """(pattern, learning rate) of each text `PATTERN=RATE`; UsageError for anything else.

    >>> parse_rates(["document=1e-5"])
    [('document', 1e-05)]
    """
    found = []
    for spec in specs:
        pattern, equals, rate = spec.rpartition("=") if isinstance(spec, str) else ("", "", "")
        try:
            value = float(rate)
        except ValueError:
            value = -1.0
        if not equals or not pattern or value < 0:
            raise UsageError(f"learning_rates: {spec!r} must be PATTERN=RATE, such as document=1e-5")
        found.append((pattern, number(f"learning_rates: {pattern}", value, 0, above=True)))
    return found


def prepare_model(
    towers: Towers, lora: str | None, freeze: Sequence[str], gradient_checkpointing: bool, rates: Sequence[str] = ()
) -> list[nn.Parameter]:
    """Make of a model what is trained, in place.

    Args:
        towers: the model.
        lora, freeze, gradient_checkpointing: see `TrainOptions`.
        rates: its `learning_rates`, whose patterns are only checked here.

    Returns:
        The parameters that `freeze` has frozen, which are to be trainable again when the training is over: another one, of the same
        model, may train them.

    Raises:
        UsageError: the model cannot do that, a pattern fits no parameter, or nothing is left to train.
    """
    encoders = [towers.tower(side) for side in (SIDES[:1] if towers.shared else SIDES)]
    for asked, method, name in (
        (lora is not None, "add_lora", "lora"),
        (gradient_checkpointing, "enable_gradient_checkpointing", "gradient checkpointing"),
    ):
        for each in encoders if asked else []:
            if not hasattr(each, method):
                raise UsageError(
                    f"{name} needs an st: encoder with a transformer, which a {type(each).__name__} is not"
                )
            getattr(each, method)(*([Lora.parse(lora)] if method == "add_lora" else []))
    rated = [(pattern, matching(towers, pattern)) for pattern, _ in parse_rates(rates)]
    frozen = [p for pattern in freeze for _, p in matching(towers, pattern) if p.requires_grad]
    fixed = {id(parameter) for parameter in frozen}

    def is_trained(parameter: nn.Parameter) -> bool:
        return parameter.requires_grad and id(parameter) not in fixed

    if not any(map(is_trained, towers.parameters())):
        raise UsageError(f"freeze={tuple(freeze)!r} leaves nothing to train")
    for pattern, named in rated:
        if not any(is_trained(parameter) for _, parameter in named):
            raise UsageError(
                f"learning_rates: every parameter that {pattern!r} names is frozen, so its rate has no effect: leave it out"
            )
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def thaw(frozen: Iterable[nn.Parameter]) -> None:
    """Make parameters trainable again."""
    for parameter in frozen:
        parameter.requires_grad_(True)


def matching(towers: nn.Module, pattern: str) -> list[tuple[str, nn.Parameter]]:
    """The parameters whose names fit a pattern; `query` and `document` stand for the towers.

    Raises:
        UsageError: none does. The message names some that there are.
    """
    wanted = f"{pattern}_tower.*" if pattern in SIDES else pattern
    named = list(towers.named_parameters())
    found = [(name, parameter) for name, parameter in named if fnmatchcase(name, wanted)]
    if not found:
        some = ", ".join(name for name, _ in named[:: max(1, len(named) // 3)][:3])
        if pattern == "document":  # the towers share one encoder: `Towers` has no other way to lack this one
            raise UsageError(
                f"no parameter fits the pattern 'document': one encoder serves both sides (query_tower). There are two from Python "
                f"only, as in hardneg.train(pairs, hardneg.Towers(queries, documents), ...); otherwise give a pattern of names, "
                f"which are {some} ..."
            )
        raise UsageError(f"no parameter fits the pattern {pattern!r}. Parameters are called {some} ...")
    return found


def parameter_groups(module: nn.Module, weight_decay: float, rates: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The parameters in groups for an optimizer: biases and norms (with one dimension) do not decay.

    Args:
        module: the model.
        weight_decay: of the matrices.
        rates: learning rates of their own, see `TrainOptions`.
    """
    own: dict[int, float] = {}
    for pattern, rate in parse_rates(rates):
        own |= {id(parameter): rate for _, parameter in matching(module, pattern)}
    groups = _by_decay([p for p in module.parameters() if id(p) not in own], weight_decay)
    for rate in sorted(set(own.values())):
        parameters = [p for p in module.parameters() if own.get(id(p)) == rate]
        groups += [{**each, "lr": rate} for each in _by_decay(parameters, weight_decay)]
    return groups


def _by_decay(parameters: list[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    if not weight_decay:
        return [{"params": parameters}] if parameters else []
    matrices, others = ([p for p in parameters if (p.ndim > 1) == wide] for wide in (True, False))
    decaying = [{"params": matrices}] if matrices else []
    return [*decaying, *([{"params": others, "weight_decay": 0.0}] if others else [])]
