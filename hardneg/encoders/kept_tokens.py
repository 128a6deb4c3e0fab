"""Tokens that are kept: a training encodes the same texts many times, and their tokens never change.

On a GPU the tokenizer, which runs on the host, takes longer than a small model; on the processor it is most of the work of an
embedding bag. What a tokenizer makes of a text does not depend on the weights, so it is kept by a digest of the text, and a batch is
put together from it: the same tensors as the tokenizer would have made, which is checked before it is relied on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Features = dict[str, Any]
Tokenize = Callable[[list[str]], Features]

LIMIT = 1 << 30  # bytes of tokens that are kept; texts beyond are tokenized anew each time

_CHECKS = 3  # batches that are put together and compared with what the tokenizer makes, before they are relied on
_ENTRY = 160  # bytes that a text costs beside its tokens: the digest, the key, the object


@dataclass
class _Layout:
    """How the tensors of a tokenizer are put together from what is kept of each text.

    Attributes:
        ids: the name of the tensor that holds the tokens; what is kept of a text is its part of it.
        kinds: the dtype of each tensor, in the order in which the tokenizer names them.
        others: values that are no tensors, the same for all texts.
        flat: the tokens of all texts stand one after another, and `offsets` says where each begins; else one row per text.
        left: whether rows are filled up on the left; None: no row was filled up yet.
        within, beyond: the value of each other tensor at a token, and of each tensor where a row is filled up.
        checked: batches that were put together and compared.
    """

    ids: str
    kinds: dict[str, torch.dtype]
    others: Features
    flat: bool = False
    left: bool | None = None
    within: dict[str, int] = field(default_factory=dict)
    beyond: dict[str, int] = field(default_factory=dict)
    checked: int = 0


class _Unlike(Exception):
    """A tokenizer whose tensors are of no form that can be kept."""


class KeptTokens:
    """What a tokenizer made of texts, by text. Several threads may use it, and copies of a model share it.

    Args:
        limit: bytes to keep at most; texts beyond are tokenized each time.

    Attributes:
        hits, misses: texts that were found, and that were tokenized.
        usable: False once the tokenizer was seen to make what cannot be kept; then it is asked each time.

    >>> kept = KeptTokens()
    >>> def tokenize(texts):
    ...     lengths = torch.tensor([len(text) for text in texts])
    ...     tokens = torch.tensor([ord(letter) for text in texts for letter in text])
    ...     return {"input_ids": tokens, "offsets": lengths.cumsum(0) - lengths}
    >>> kept.features(["ab", "c"], "", tokenize)["offsets"].tolist(), kept.features(["c"], "", tokenize)["input_ids"].tolist()
    ([0, 2], [99])
    >>> kept.hits, kept.misses
    (1, 2)
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.bytes = limit, 0
        self.hits = self.misses = 0
        self.usable = True
        self._rows: dict[bytes, bytes] = {}
        self._layouts: dict[str, _Layout] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptTokens:
        return self  # the tokens do not depend on the weights, which differ in a copy

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptTokens, (self.limit,)  # another process begins anew

    def features(self, texts: Sequence[str], setting: str, tokenize: Tokenize) -> Features:
        """What the tokenizer makes of n texts.

        Args:
            texts: the texts.
            setting: all else that the tokens depend on, such as the prompt and the length at which texts are cut.
            tokenize: returns the tensors of some texts.
        """
        texts = list(texts)
        if not self.usable or not texts:
            return tokenize(texts)
        key = hashlib.blake2b(setting.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        digests = [
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=key).digest() for text in texts
        ]
        rows = [self._rows.get(digest) for digest in digests]
        missing = [i for i, row in enumerate(rows) if row is None]
        self.hits += len(texts) - len(missing)
        self.misses += len(missing)
        try:
            if len(missing) == len(texts):
                made = tokenize(texts)
                self._take(digests, rows, missing, made, setting)
                return made
            if missing:
                self._take(digests, rows, missing, tokenize([texts[i] for i in missing]), setting)
            return self._joined([row for row in rows if row is not None], self._layouts.get(setting), texts, tokenize)
        except _Unlike:
            self.usable = False
            self._rows, self._layouts, self.bytes = {}, {}, 0
            return tokenize(texts)

    def _keep(self, digest: bytes, row: bytes) -> None:
        size = len(row) + _ENTRY
        if self.bytes + size <= self.limit and digest not in self._rows:
            self._rows[digest] = row
            self.bytes += size

    def _take(
        self, digests: list[bytes], rows: list[bytes | None], which: list[int], made: Features, setting: str
    ) -> None:
        """Keep what was made of the texts `which`, and put it into `rows`."""
        layout = self._layouts.get(setting)
        if layout is None:
            layout = self._layouts[setting] = _layout_of(made)
        for i, row in zip(which, _parts(made, len(which), layout), strict=True):
            rows[i] = row
            self._keep(digests[i], row)

    def _joined(self, rows: list[bytes], layout: _Layout | None, texts: list[str], tokenize: Tokenize) -> Features:
        """The tensors of a batch, put together from what was kept of its texts."""
        if layout is None:  # another thread found that nothing can be kept
            return tokenize(texts)
        flat = np.frombuffer(b"".join(rows), np.int32)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows)) // 4
        if not layout.flat and layout.left is None and (lengths != lengths[0]).any():
            made = tokenize(texts)  # the first batch that is filled up: it shows how
            _parts(made, len(texts), layout)
            return made
        found = _flat_features(flat, lengths, layout) if layout.flat else _padded_features(flat, lengths, layout)
        found = {**{name: found[name] for name in layout.kinds}, **layout.others}
        if layout.checked < _CHECKS:
            layout.checked += 1
            if not _same(found, tokenize(texts)):
                raise _Unlike
        return found


def keep_tokens(*encoders: Any, limit: int = LIMIT) -> list[Any]:
    """Let those of the encoders that can keep the tokens of texts from now on; returns them. See `keeping_tokens`."""
    able = list({id(each): each for each in encoders if getattr(each, "kept_tokens", False) is None}.values())
    for each in able:
        each.kept_tokens = KeptTokens(limit // len(able))
    return able


@contextmanager
def keeping_tokens(*encoders: Any, limit: int = LIMIT) -> Iterator[None]:
    """Let those of the encoders that can keep the tokens of texts from here to the end of the block.

    Args:
        encoders: encoders; one that can has an attribute `kept_tokens`.
        limit: bytes of all tokens together.
    """
    able = keep_tokens(*encoders, limit=limit)
    try:
        yield
    finally:
        for each in able:
            each.kept_tokens = None


def _same(found: Features, right: Features) -> bool:
    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return x.dtype == y.dtype and torch.equal(x, y)
        return bool(x == y)

    return found.keys() == right.keys() and all(equal(x, right[name]) for name, x in found.items())


def _layout_of(made: Features) -> _Layout:
    """The form of what a tokenizer returned."""
    tensors = {name: x for name, x in made.items() if isinstance(x, torch.Tensor)}
    others = {name: x for name, x in made.items() if not isinstance(x, torch.Tensor)}
    kinds = {name: x.dtype for name, x in tensors.items()}
    if "input_ids" not in tensors or any(not isinstance(x, str | int | float | bool | None) for x in others.values()):
        raise _Unlike
    if any(kind not in (torch.int64, torch.int32) for kind in kinds.values()):
        raise _Unlike
    if tensors.keys() == {"input_ids", "offsets"} and all(x.ndim == 1 for x in tensors.values()):
        return _Layout("input_ids", kinds, others, flat=True)
    mask = tensors.get("attention_mask")
    if mask is None or mask.ndim != 2:
        raise _Unlike
    return _Layout("input_ids", kinds, others)


def _parts(made: Features, count: int, layout: _Layout) -> list[bytes]:
    """What is kept of each text. Raises _Unlike if the tensors are of another form than the first ones."""
    tensors = {name: x for name, x in made.items() if isinstance(x, torch.Tensor)}
    others = {name: x for name, x in made.items() if not isinstance(x, torch.Tensor)}
    if {name: x.dtype for name, x in tensors.items()} != layout.kinds or others != layout.others:
        raise _Unlike
    return _flat_parts(tensors, layout, count) if layout.flat else _padded_parts(tensors, layout, count)


def _flat_parts(tensors: dict[str, torch.Tensor], layout: _Layout, count: int) -> list[bytes]:
    ids, starts = tensors[layout.ids].numpy(), tensors["offsets"].numpy()
    ends = np.append(starts[1:], len(ids))
    if len(starts) != count or (count and starts[0] != 0) or (ends < starts).any():
        raise _Unlike
    small = _small(ids)
    return [small[a:b].tobytes() for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def _padded_parts(tensors: dict[str, torch.Tensor], layout: _Layout, count: int) -> list[bytes]:
    mask = tensors["attention_mask"].numpy().astype(bool)
    if any(x.shape != mask.shape for x in tensors.values()) or len(mask) != count:
        raise _Unlike
    width, lengths = mask.shape[1], mask.sum(1)
    filled = not mask.all()
    left = bool(filled and not mask[:, 0].all()) if layout.left is None else layout.left
    if not np.array_equal(mask, _mask(lengths, left)) or (lengths == 0).any():
        raise _Unlike  # filled up on another side, or to another length than that of the longest text
    for name, x in tensors.items():
        values = x.numpy()
        _constant(layout.beyond, name, values[~mask])
        if name != layout.ids:
            _constant(layout.within, name, values[mask])
    if filled:
        layout.left = left  # last: another thread fills rows up as soon as it is known how
    ids = _small(tensors[layout.ids].numpy())
    if left:
        return [row[width - length :].tobytes() for row, length in zip(ids, lengths.tolist(), strict=True)]
    return [row[:length].tobytes() for row, length in zip(ids, lengths.tolist(), strict=True)]


def _mask(lengths: NDArray[np.int64], left: bool) -> NDArray[np.bool_]:
    """bool `[n, L]`: where the tokens of each text are in rows as long as the longest, which are filled up on one side."""
    width = int(lengths.max(initial=0))
    place = np.arange(width)
    return place >= width - lengths[:, None] if left else place < lengths[:, None]


def _constant(known: dict[str, int], name: str, values: NDArray[Any]) -> None:
    """Remember the one value of a tensor; raises _Unlike if it has several."""
    if len(values):
        first = known.setdefault(name, int(values[0]))
        if (values != first).any():
            raise _Unlike


def _small(ids: NDArray[Any]) -> NDArray[np.int32]:
    if len(ids) and (ids.min(initial=0) < -(2**31) or ids.max(initial=0) >= 2**31):
        raise _Unlike
    return ids.astype(np.int32)


def _flat_features(flat: NDArray[np.int32], lengths: NDArray[np.int64], layout: _Layout) -> dict[str, torch.Tensor]:
    starts = np.cumsum(lengths) - lengths
    return {
        layout.ids: torch.from_numpy(flat.copy()).to(layout.kinds[layout.ids]),
        "offsets": torch.from_numpy(starts).to(layout.kinds["offsets"]),
    }


def _padded_features(flat: NDArray[np.int32], lengths: NDArray[np.int64], layout: _Layout) -> dict[str, torch.Tensor]:
    mask = _mask(lengths, bool(layout.left))
    found = {}
    for name, kind in layout.kinds.items():
        out = np.full(mask.shape, layout.beyond.get(name, 0), np.int64 if kind == torch.int64 else np.int32)
        out[mask] = flat if name == layout.ids else layout.within[name]
        found[name] = torch.from_numpy(out)
    return found
