"""Hashed features of texts: words, pairs of neighboring words, and character trigrams of words.

Identifiers are split into words (`getFileName` and `get_file_name` -> get, file, name), so that code and prose share
features. All texts are processed at once as one array of bytes, without a loop over texts or words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardneg.hashing import UInt, mix

Int = NDArray[np.int64]

_PRIME = np.uint64(0x100000001B3)
_LONGEST_WORD = 64  # bytes of a word that are hashed; longer words (base64, hashes) carry no more meaning
_POWERS = np.cumprod(np.full(_LONGEST_WORD, _PRIME, np.uint64), dtype=np.uint64)

# The kind of each byte: 0 separator, 1 lower-case or non-ASCII letter, 2 upper-case letter, 3 digit.
_KIND = np.zeros(256, np.uint8)
_KIND[[*range(ord("a"), ord("z") + 1), *range(128, 256)]] = 1
_KIND[ord("A") : ord("Z") + 1] = 2
_KIND[ord("0") : ord("9") + 1] = 3
_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[ord("A") : ord("Z") + 1] += 32


def hashed_features(texts: Sequence[str], buckets: int, most: int = 4096) -> tuple[Int, Int]:
    """The distinct features of each text.

    Args:
        texts: n texts.
        buckets: number of hash values. A feature is a number from 0 to `buckets - 1`.
        most: maximum number of features per text. A text with more keeps those with the lowest numbers.

    Returns:
        (features, int64 `[m]`; offsets, int64 `[n + 1]`). Text i has `features[offsets[i]:offsets[i + 1]]`. A text
        without any feature has the single feature `buckets`.

    >>> features, offsets = hashed_features(["", "two words"], 1000)
    >>> features[offsets[0] : offsets[1]].tolist()
    [1000]
    """
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.array([len(e) for e in encoded], np.int64)
    # A separator before the first and after every text keeps the features of neighboring texts apart.
    data = np.frombuffer(b"\0" + b"\0".join([*encoded, b""]), np.uint8)
    owner = np.concatenate([[0], np.repeat(np.arange(len(texts)), lengths + 1)])
    numbers, rows = _features(data, owner)
    numbers = numbers % np.uint64(buckets)
    keys = np.unique(rows * np.int64(buckets + 1) + numbers.astype(np.int64))
    rows, features = np.divmod(keys, buckets + 1)
    counts = np.bincount(rows, minlength=len(texts))
    if counts.max(initial=0) > most:
        position = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = position < most
        rows, features = rows[kept], features[kept]
        counts = np.minimum(counts, most)
    without = np.flatnonzero(counts == 0)
    if len(without):
        features = np.insert(features, np.searchsorted(rows, without), buckets)
        counts[without] = 1
    return features, np.concatenate([[0], np.cumsum(counts)])


def _features(data: NDArray[np.uint8], owner: Int) -> tuple[UInt, Int]:
    """(hashes, text numbers), each `[m]`, of all words, pairs of neighboring words, and trigrams."""
    kind = _KIND[data]
    inside = kind > 0
    starts, ends = _words(kind, inside)
    if len(starts) == 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    lower = _LOWER[data].astype(np.uint64) + np.uint64(1)
    hashed_ends = np.minimum(ends, starts + _LONGEST_WORD)
    # The offset of each byte from the start of its word. It is undefined, and not used, before the first word.
    word_start = np.zeros(len(data), np.int64)
    word_start[starts] = starts
    position = np.arange(len(data)) - np.maximum.accumulate(word_start)
    weighted = lower * _POWERS[np.minimum(position, _LONGEST_WORD - 1)]
    # With alternating starts and ends, every second sum of reduceat is that of a word. The others are not used.
    bounds = np.empty(2 * len(starts), np.int64)
    bounds[0::2], bounds[1::2] = starts, hashed_ends
    words = mix(np.add.reduceat(np.append(weighted, np.uint64(0)), bounds)[0::2])
    rows = owner[starts]
    same = rows[1:] == rows[:-1]
    pairs = mix(words[:-1] * np.uint64(3) + words[1:])[same]
    # A trigram is a byte of a word with the bytes before and after it. All separators count as the same byte.
    letters = np.where(inside, lower, np.uint64(0))
    trigrams = (letters[:-2] * np.uint64(257) + letters[1:-1]) * np.uint64(257) + letters[2:]
    centers = np.flatnonzero(inside[1:-1])
    return (
        np.concatenate([words, pairs, mix(trigrams[centers] + np.uint64(1 << 40))]),
        np.concatenate([rows, rows[:-1][same], owner[1:-1][centers]]),
    )


def _words(kind: NDArray[np.uint8], inside: NDArray[np.bool_]) -> tuple[Int, Int]:
    """(starts, ends) of the words: runs of letters or of digits, split where a capital follows a small letter."""
    before = np.empty_like(kind)
    before[0], before[1:] = 0, kind[:-1]
    digit_boundary = (kind == 3) != (before == 3)
    begins = inside & ((before == 0) | ((kind == 2) & (before == 1)) | digit_boundary)
    after_end = (~inside & (before > 0)) | (begins & (before > 0))
    ends = np.flatnonzero(after_end)
    starts = np.flatnonzero(begins)
    if len(ends) < len(starts):
        ends = np.append(ends, len(kind))
    return starts, ends
