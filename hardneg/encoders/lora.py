"""LoRA: train small matrices beside the weights of a transformer, whose own weights stay (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hardneg.errors import MissingDependencyError, UsageError, suggestion

LEARNING_RATE = 2e-4  # ten times that of whole transformers, as in the examples of peft


@dataclass(frozen=True)
class Lora:
    """The matrices that are added.

    Attributes:
        rank: r, the rank of each product of two matrices.
        alpha: the product is multiplied by alpha / r; None: alpha = 2 r.
        dropout: probability of leaving out inputs of the added matrices.
        targets: names of the modules that get them, or their last parts; empty: all linear ones of the transformer.

    >>> Lora.parse("16").rank, Lora.parse("r=8,alpha=32,targets=query+value").targets
    (16, ('query', 'value'))
    """

    rank: int = 8
    alpha: int | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    @classmethod
    def parse(cls, spec: Any) -> Lora:
        """What a text such as `8` or `r=8,alpha=16,dropout=0.1,targets=query+value` describes; UsageError for anything else."""
        given: dict[str, str] = {}
        for part in str(spec).split(","):
            name, equals, value = part.strip().partition("=")
            given["r" if not equals else name] = value if equals else name
        known = ("r", "alpha", "dropout", "targets")
        for name in given:
            if name not in known:
                raise UsageError(f"lora={spec!r}: there is no {name!r}.{suggestion(name, known)}")
        try:
            made = cls(
                int(given.get("r", "8")),
                int(given["alpha"]) if "alpha" in given else None,
                float(given.get("dropout", "0")),
                tuple(each for each in given.get("targets", "").split("+") if each),
            )
        except ValueError:
            raise UsageError(f"lora={spec!r} must be a rank, such as 8, or r=8,alpha=16,dropout=0.1") from None
        if made.rank < 1 or not 0 <= made.dropout < 1 or (made.alpha is not None and made.alpha < 1):
            raise UsageError(f"lora={spec!r}: r and alpha must be 1 or more, and dropout 0 or more and below 1")
        return made


def add_lora(transformers: list[Any], lora: Lora) -> None:
    """Add the matrices to transformers of Hugging Face, in place. From then on only these are trained.

    Raises:
        MissingDependencyError: peft is not installed. UsageError: there is no transformer, or no module of a target's name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingDependencyError("peft", "lora", "training with LoRA") from None
    if not transformers:
        raise UsageError("LoRA needs a transformer, which this model has not: leave --lora out")
    alpha = 2 * lora.rank if lora.alpha is None else lora.alpha
    for each in transformers:
        if getattr(each, "peft_config", None):
            raise UsageError("this model has adapters already: merge them first, or load it without them")
        targets = list(lora.targets) or "all-linear"
        config = LoraConfig(r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=targets)
        try:
            inject_adapter_in_model(config, each)
        except ValueError as error:  # it names the modules that it looked for
            raise UsageError(f"LoRA: {str(error).splitlines()[0]}") from None


def has_lora(model: nn.Module) -> bool:
    """Whether matrices were added to a part of this model."""
    return any(getattr(each, "peft_config", None) for each in model.modules())


def merged(model: Any) -> Any:
    """A copy of a model with the added matrices multiplied into its weights: a plain model, as fast as without them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(model)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
        if getattr(parent, "peft_config", None):
            del parent.peft_config
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    return plain


def save_adapters(transformers: list[Any], folder: Path, base: str | None) -> None:
    """Write the added matrices alone, in the format of peft: of one transformer to `folder`, of several to subfolders.

    Args:
        transformers: what `add_lora` was given.
        folder: where to write.
        base: the name of the model that they belong to, for `adapter_config.json`.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    for i, each in enumerate(transformers):
        place = folder if len(transformers) == 1 else folder / str(i)
        place.mkdir(parents=True)
        config = copy.copy(each.peft_config["default"])
        config.base_model_name_or_path, config.inference_mode = base, True
        config.save_pretrained(str(place))
        state = get_peft_model_state_dict(each)
        tensors = {f"base_model.model.{name}": value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
