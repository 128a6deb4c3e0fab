"""How many tokens a device encodes at once: the fewest with which it is about as fast as it can be, and which fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from hardneg.encoders.forward import Forward, is_out_of_memory

TRIED = tuple(1 << i for i in range(12, 19))  # 4,096 to 262,144 tokens
_CLOSE = 0.95  # of the best rate: a smaller batch that is about as fast leaves memory for others


def fastest_budget(forward: Forward, texts: Sequence[str], prompt: str) -> int:
    """The budget of a batch, in tokens, for a device; see `search`.

    Args:
        forward: the model.
        texts: long ones of the texts to be encoded.
        prompt: is put before each of them.
    """
    features = forward.features(texts, prompt)
    width = max((x.shape[1] for x in features.values() if isinstance(x, torch.Tensor) and x.ndim > 1), default=1)

    def seconds(tokens: int) -> float:
        count = max(1, tokens // width)
        rows = torch.arange(count) % len(texts)
        fits = {n: x[rows] if isinstance(x, torch.Tensor) else x for n, x in features.items()}
        forward.vectors_of(fits)  # the first call chooses kernels and takes memory
        start = time.perf_counter()
        forward.vectors_of(fits)
        return (time.perf_counter() - start) / (count * width)

    return search(seconds, TRIED)


def search(seconds: Callable[[int], float], sizes: Sequence[int]) -> int:
    """The smallest size whose rate is close to the best, among ascending sizes up to the first that does not fit.

    The search ends where a larger size is no longer faster.

    Args:
        seconds: seconds per token with a batch of this many tokens; raises an error of a full memory if it does not fit.
        sizes: ascending.

    >>> search(lambda size: 1 / min(size, 16), [4, 8, 16, 32])
    16
    """
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            rates[size] = 1 / seconds(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        if rates[size] < _CLOSE * max(rates.values()):
            break
    if not rates:
        return sizes[0]
    return min(size for size, rate in rates.items() if rate >= _CLOSE * max(rates.values()))
