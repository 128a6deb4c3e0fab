"""What encoders of texts and pictures share: each item goes to the tower of its kind, and pictures are decoded on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from hardneg.data.picture import Picture
from hardneg.data.texts import Texts
from hardneg.errors import UsageError

_THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes outside of Python's lock


def takes_pictures(encoder: Any) -> bool:
    """Whether an encoder encodes pictures: it says so by `pictures = True`."""
    return bool(getattr(encoder, "pictures", False))


def check_takes(encoder: Any, texts: Any, what: str) -> None:
    """Raise UsageError if items may be pictures and the encoder takes texts alone: it would encode their names.

    Args:
        encoder: the encoder.
        texts: the items; pictures may only be among those of `Texts`.
        what: what they are, for the message.
    """
    if isinstance(texts, Texts) and texts.pictures and not takes_pictures(encoder):
        raise UsageError(
            f"the {what} are pictures, and the encoder {type(encoder).__name__} takes texts: use open_clip:MODEL,pretrained=TAG, "
            f"or st: with a model that encodes both (your own encoder says so by the attribute pictures = True)"
        )


def decoded_by(prepare: Callable[[Any], Any], pictures: Sequence[Picture]) -> list[Any]:
    """What `prepare` makes of each picture, decoded by Pillow, in order. Several threads work on it.

    Raises:
        DataError: a picture is missing, was changed, is cut off or too large.
    """
    if len(pictures) < 2 or _THREADS < 2:
        return [prepare(picture.decode()) for picture in pictures]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda picture: prepare(picture.decode()), pictures))


def vectors_by_kind(
    items: Sequence[str],
    of_texts: Callable[[list[str]], torch.Tensor],
    of_pictures: Callable[[list[Picture]], torch.Tensor],
) -> torch.Tensor:
    """The vectors of texts and pictures, float `[n, d]` in their order, with gradients.

    Args:
        items: n texts and pictures.
        of_texts, of_pictures: make the vectors of the items of one kind.
    """
    kinds = [isinstance(item, Picture) for item in items]
    pictures = [item for item in items if isinstance(item, Picture)]
    if not pictures:
        return of_texts(list(items))
    if len(pictures) == len(items):
        return of_pictures(pictures)
    parts = [of_pictures(pictures), of_texts([item for item in items if not isinstance(item, Picture)])]
    both = torch.cat([part.float() for part in parts])
    order = sorted(range(len(items)), key=lambda i: not kinds[i])  # stable: pictures first, as they stand in `both`
    return both[torch.argsort(torch.tensor(order, device=both.device))]
