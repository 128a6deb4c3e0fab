"""Tensors of a tokenizer's lists, made at once.

Tokenizers of transformers that are written in Rust work on all cores, but transformers then walks through every token in Python,
three times for BERT, to see whether there is any. On a GPU that takes longer than a small model does. Here the lists become tensors
in numpy, with the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_METHOD = "_encode_plus"  # what transformers' tokenizers call for every batch; where there is none, nothing is changed


class _Quick:
    """Stands for a tokenizer's method. A copy of the tokenizer has a copy of this, which belongs to the copy."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: Any, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        method = getattr(type(self.tokenizer), _METHOD)
        if not isinstance(text, list) or getattr(return_tensors, "value", return_tensors) != "pt":
            return method(self.tokenizer, text, *args, return_tensors=return_tensors, **kwargs)
        made = method(self.tokenizer, text, *args, return_tensors=None, **kwargs)
        arrays = _arrays(made)
        if arrays is None:
            return made.convert_to_tensors(return_tensors)
        for name, array in arrays.items():
            made[name] = torch.from_numpy(array)
        return made


def _arrays(made: Any) -> dict[str, Any] | None:
    """The lists as arrays; None if some are not of whole numbers, or of different lengths."""
    found = {}
    for name, value in made.items():
        if not isinstance(value, list):
            return None
        try:
            array = np.array(value)
        except ValueError:  # lists of different lengths
            return None
        if array.dtype != np.int64 or array.ndim < 2:
            return None
        found[name] = array
    return found


@contextmanager
def quick_tensors(tokenizer: Any) -> Iterator[None]:
    """Within the block, a fast tokenizer of transformers makes tensors of its lists at once; any other is left as it is.

    Several threads may do so with one tokenizer: the first that leaves ends it for all, and values are the same with and without.

    Args:
        tokenizer: of a model; may be None.
    """
    if not getattr(tokenizer, "is_fast", False) or not hasattr(type(tokenizer), _METHOD):
        yield
        return
    vars(tokenizer)[_METHOD] = _Quick(tokenizer)
    try:
        yield
    finally:
        vars(tokenizer).pop(_METHOD, None)
