"""Which texts a model encodes together: equal ones once, texts of similar length side by side, as many as a budget of tokens allows.

What is encoded together depends on the texts alone, never on threads, devices or time, because a model may round differently in
another batch. So the vectors are the same bytes wherever they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from hardneg.storage.arrays import Float, Int

PIECE = 256  # texts that are tokenized at once; a device takes whole pieces
UNIT = 8 * PIECE  # texts that are handed to a device at once
UNLIMITED = 2**62  # tokens of a batch whose number of texts is given
CPU_TOKENS = 2048  # a larger batch leaves the caches of a core, a smaller one multiplies matrices that are too flat
_FEWEST_TOKENS = 256
_SHARES = 32  # batches that a small set is cut into at least, so that every core has some
_CHARACTERS = 4  # a token
_GROUP = 128  # tokens that pay for one more forward and backward pass on a processor
_ENDS = 256  # places where a batch that is trained on may be cut


@dataclass(frozen=True)
class Arrangement:
    """The distinct texts of a list, the longest first.

    Attributes:
        texts: the distinct texts, m of them. The longest come first, so that what does not fit into memory is found at once.
        places: int64 `[n]`: text i of the list is `texts[places[i]]`.
        tokens: the budget of a batch: its number of texts times the length of the longest one, in tokens.
    """

    texts: list[str]
    places: Int
    tokens: int


def arrange(texts: Sequence[str], tokens: int = CPU_TOKENS) -> Arrangement:
    """The distinct texts by length, and the budget that suits them: less than `tokens` if they are few.

    >>> found = arrange(["a", "long text", "a"])
    >>> found.texts, found.places.tolist(), found.tokens
    (['long text', 'a'], [1, 0, 1], 256)
    """
    first = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    distinct = list(first)
    lengths = np.fromiter(map(len, distinct), np.int64, len(distinct))
    order = np.argsort(-lengths, kind="stable")
    place = np.empty(len(distinct), np.int64)
    place[order] = np.arange(len(distinct))
    share = int(lengths.sum()) // _CHARACTERS // _SHARES
    return Arrangement(
        [distinct[i] for i in order.tolist()],
        place[np.fromiter((first[text] for text in texts), np.int64, len(texts))],
        tokens if tokens == UNLIMITED else int(np.clip(share, min(_FEWEST_TOKENS, tokens), tokens)),
    )


@runtime_checkable
class Arranging(Protocol):
    """An encoder that is given the texts of a whole shard, sorted by length, and can do so on several devices."""

    def arrange(self, texts: list[str], prompt: str = "") -> Arrangement:
        """The distinct texts by length, and the budget of a batch."""
        ...

    def encode_arranged(
        self, texts: Sequence[str], prompt: str, tokens: int, advance: Callable[[int], None] = ...
    ) -> Float:
        """The vectors of texts of similar length side by side, float32 `[n, d]`."""
        ...


@dataclass(frozen=True)
class Batch:
    """Texts that go through the model together.

    Attributes:
        rows: int64 `[b]`, which of the piece's texts they are.
        features: what the model takes, tensors with one row per text.
        splits: whether every tensor has one row per text, so that rows can be taken.
    """

    rows: Int
    features: dict[str, Any]
    splits: bool


def batches(features: dict[str, Any], count: int, tokens: int, most: int | None = None) -> list[Batch]:
    """Cut a tokenized piece into batches without needless padding.

    Args:
        features: what the tokenizer returned for the piece: `attention_mask` `[count, L]`, and other tensors.
        count: number of texts.
        tokens: the budget of a batch: texts times the length of the longest.
        most: texts in a batch at most; None: as many as the budget allows.

    Returns:
        The batches, the longest texts first. A piece whose features are of another form (tensors that do not have one row per
        text, or no mask) is one batch as it is.
    """
    return _cut_into(features, count, lambda lengths: _by_budget(lengths, tokens, most))


def groups(features: dict[str, Any], count: int) -> list[Batch]:
    """Cut a batch that is trained on into groups of texts of similar length, so that few tokens are padding.

    The padding of a batch is as long as its longest text, and is computed like any token. Here the sizes of the groups are those
    with the fewest tokens, where each group costs as much as `_GROUP` further tokens.

    Args:
        features: what the tokenizer returned for the batch: `attention_mask` `[count, L]`, and other tensors.
        count: number of texts.

    Returns:
        The groups, the longest texts first; one group as it is where `batches` would return one.
    """
    return _cut_into(features, count, _by_length)


def _cut_into(features: dict[str, Any], count: int, sizes: Callable[[Int], list[int]]) -> list[Batch]:
    """Cut features into batches of these sizes, which are asked for with the lengths of the texts `[count]`, the longest first."""
    mask = features.get("attention_mask")
    tensors = [x for x in features.values() if isinstance(x, torch.Tensor)]
    splits = bool(tensors) and all(x.ndim > 0 and len(x) == count for x in tensors)
    if not splits or not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return [Batch(np.arange(count), features, splits)]
    lengths = mask.sum(1).clamp(min=1).numpy()
    order = np.argsort(-lengths, kind="stable")
    width, found, start = mask.shape[1], [], 0
    padded = "right" if bool(mask[:, 0].all()) else "left" if bool(mask[:, -1].all()) else None
    for size in sizes(np.full(count, width, np.int64) if padded is None else lengths[order]):
        longest = width if padded is None else int(lengths[order[start]])
        rows = order[start : start + size]
        span = slice(0, longest) if padded != "left" else slice(width - longest, width)
        found.append(Batch(rows, {name: _cut(x, rows, span, width) for name, x in features.items()}, True))
        start += size
    return found


def _by_budget(lengths: Int, tokens: int, most: int | None) -> list[int]:
    """As many texts in each batch as the budget of tokens allows."""
    found, start = [], 0
    while start < len(lengths):
        fit = max(1, tokens // int(lengths[start]))
        found.append(min(len(lengths) - start, fit if most is None else min(most, fit)))
        start += found[-1]
    return found


def _by_length(lengths: Int) -> list[int]:
    """The sizes with the fewest tokens, each group counted as `_GROUP` more: found for 1, 2, ... texts from what is best for fewer."""
    ends = np.unique(np.linspace(0, len(lengths), min(len(lengths), _ENDS) + 1).astype(np.int64))
    costs, before = np.zeros(len(ends)), np.zeros(len(ends), np.int64)
    for end in range(1, len(ends)):
        total = costs[:end] + (ends[end] - ends[:end]) * lengths[ends[:end]] + _GROUP
        before[end] = total.argmin()
        costs[end] = total[before[end]]
    found, end = [], len(ends) - 1
    while end > 0:
        found.append(int(ends[end] - ends[before[end]]))
        end = before[end]
    return found[::-1]


def _cut(value: Any, rows: Int, span: slice, width: int) -> Any:
    """These rows of a tensor and, if its second axis is that of the tokens, these tokens; other values as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    taken = value[torch.from_numpy(np.ascontiguousarray(rows))]
    return taken[:, span].contiguous() if taken.ndim > 1 and taken.shape[1] == width else taken
