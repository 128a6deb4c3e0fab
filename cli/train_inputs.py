"""What `hardneg train` trains, and what it evaluates on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .reading import read_options
from .show import say, warn
from .source_columns import read_own, said_of_columns

if TYPE_CHECKING:
    from hardneg.data.pairs import Pairs
    from hardneg.encoders.base import Encoder

_VALIDATION = ("dev", "validation", "valid", "val")  # names of splits that are there to choose an encoder by
_ON_TRAINING_PAIRS = (
    "the encoder is evaluated on the pairs that it is trained on, which says little: SOURCE has no splits. Give other pairs with "
    "--eval-source, or --eval-split none"
)


def evaluated_on(source: str, pairs: Pairs, given: dict[str, Any], leads: bool) -> tuple[Pairs, Pairs | None]:
    """(the pairs to train on, those to evaluate on); says which these are, where nobody named them."""
    from hardneg.data.read import read_pairs
    from hardneg.training.held_out import hold_out

    if given["eval_source"] is not None or given["eval_split"] is not None:
        split = given["eval_split"] or "test"
        if given["eval_source"] is None:
            named = read_pairs(source, read_options(given, split))
        else:
            named = evaluation_source(given, split, say if leads else lambda text: None)
        if leads and named.digests == pairs.digests:
            warn([_ON_TRAINING_PAIRS])
        return pairs, named
    found = validation_of(source, pairs, given)
    if found is not None:
        if leads:
            say(f"evaluated on the split {found[0]!r} of {source}")
        return pairs, found[1]
    if given["self_supervised"]:  # it learns nothing of the labels
        return pairs, pairs if int((pairs.positives.lengths > 0).sum()) else None
    parts = hold_out(pairs, seed=given["seed"])
    if leads:
        many = (
            "too few queries to hold some out: nothing is evaluated" if parts is None else f"{len(parts[1]):,} queries"
        )
        say(f"evaluated on: {many}" + ("" if parts is None else ", which are not trained on"))
    return (pairs, None) if parts is None else parts


def evaluation_source(given: dict[str, Any], split: str, tell: Callable[[str], None]) -> Pairs:
    """The dataset of --eval-source, by the columns that were named for SOURCE where it has them."""
    found, _, left = read_own(given["eval_source"], given, split)
    if left:
        tell(f"evaluated on {given['eval_source']}: {said_of_columns(found, given, left)}")
    return found


def validation_of(source: str, pairs: Pairs, given: dict[str, Any]) -> tuple[str, Pairs] | None:
    """(name, pairs) of the split that SOURCE has for this purpose, if it has one. A single file has no splits."""
    from hardneg.data.read import read_pairs
    from hardneg.errors import HardnegError

    if not (source.startswith("builtin:") or Path(source).is_dir()):
        return None
    for name in _VALIDATION:
        try:
            found = read_pairs(source, read_options(given, name))
        except HardnegError:
            continue
        if found.digests == pairs.digests:
            return None  # it has no splits, and is read alike under every name
        if len(found.positives.values):
            return name, found
    return None


def model_of(given: dict[str, Any]) -> Encoder:
    """The encoder to train, with the dropout that --dropout or --self-supervised asks for."""
    import torch

    from hardneg.encoders.factory import make_encoder
    from hardneg.errors import UsageError

    device, rank = given["device"], os.environ.get("LOCAL_RANK")
    if rank is not None and (device or "cuda").startswith("cuda") and torch.cuda.is_available():
        device = f"cuda:{rank}"  # torchrun: each rank has its own, and none loads its model on the first one
    model = make_encoder(given["encoder"], seed=given["seed"], device=device)
    dropout = given["dropout"] if given["dropout"] is not None else 0.3 if given["self_supervised"] else 0.0
    if dropout and hasattr(model, "dropout"):
        model.dropout = dropout
    elif given["dropout"] or (dropout and not given["encoder"].startswith("st:")):
        raise UsageError(
            f"the dropout of {given['encoder']} cannot be set: --dropout needs the encoder 'hashed', --self-supervised "
            f"'hashed' or an st: encoder"
        )
    return model
