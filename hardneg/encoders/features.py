"""Hashed features of texts, as array work: words, pairs of words, and character trigrams of words.

Identifiers are taken apart (`getFileName`, `get_file_name` -> get, file, name), so that code and prose
meet. Everything is computed on the bytes of all texts at once; there is no loop over texts or words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardneg.hashing import UInt, mix

Int = NDArray[np.int64]

_PRIME = np.uint64(0x100000001B3)
_LONGEST_WORD = 64  # bytes hashed of one word; the rest of a longer one (base64, hashes) says nothing
_POWERS = np.cumprod(np.full(_LONGEST_WORD, _PRIME, np.uint64), dtype=np.uint64)

_KIND = np.zeros(256, np.uint8)  # 0 separator, 1 lower case or other letter, 2 upper case, 3 digit
_KIND[[*range(ord("a"), ord("z") + 1), *range(128, 256)]] = 1
_KIND[ord("A") : ord("Z") + 1] = 2
_KIND[ord("0") : ord("9") + 1] = 3
_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[ord("A") : ord("Z") + 1] += 32


def hashed_features(texts: Sequence[str], buckets: int, most: int = 4096) -> tuple[Int, Int]:
    """Distinct features of each text.

    Args:
        texts: n texts.
        buckets: features are numbers from 0 to `buckets` - 1; `buckets` itself stands for "no feature".
        most: features kept of one text, lowest numbers first: a bound on the work.

    Returns:
        (features `[m]`, offsets `[n + 1]`): text i has `features[offsets[i]:offsets[i + 1]]`, at least one.
    """
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.array([len(e) for e in encoded], np.int64)
    # A separator after every text, and before the first, keeps them apart: features depend on no neighbor.
    data = np.frombuffer(b"\0" + b"\0".join([*encoded, b""]), np.uint8)
    owner = np.concatenate([[0], np.repeat(np.arange(len(texts)), lengths + 1)])
    numbers, rows = _features(data, owner)
    numbers = numbers % np.uint64(buckets)
    keys = np.unique(rows * np.int64(buckets + 1) + numbers.astype(np.int64))
    rows, features = np.divmod(keys, buckets + 1)
    counts = np.bincount(rows, minlength=len(texts))
    if counts.max(initial=0) > most:
        place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = place < most
        rows, features = rows[kept], features[kept]
        counts = np.minimum(counts, most)
    bare = np.flatnonzero(counts == 0)
    if len(bare):
        features = np.insert(features, np.searchsorted(rows, bare), buckets)
        counts[bare] = 1
    return features, np.concatenate([[0], np.cumsum(counts)])


def _features(data: NDArray[np.uint8], owner: Int) -> tuple[UInt, Int]:
    """(hash, text) of every word, pair of neighboring words, and trigram."""
    kind = _KIND[data]
    inside = kind > 0
    starts, ends = _words(kind, inside)
    if len(starts) == 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    lower = _LOWER[data].astype(np.uint64) + np.uint64(1)
    used = np.minimum(ends, starts + _LONGEST_WORD)
    # How far each byte stands from the start of its word (bytes before the first word: whatever, not summed).
    begin = np.zeros(len(data), np.int64)
    begin[starts] = starts
    place = np.arange(len(data)) - np.maximum.accumulate(begin)
    weighted = lower * _POWERS[np.minimum(place, _LONGEST_WORD - 1)]
    # reduceat sums [start, used) when starts and ends alternate; the sums in between are not wanted.
    bounds = np.empty(2 * len(starts), np.int64)
    bounds[0::2], bounds[1::2] = starts, used
    words = mix(np.add.reduceat(np.append(weighted, np.uint64(0)), bounds)[0::2])
    rows = owner[starts]
    same = rows[1:] == rows[:-1]
    pairs = mix(words[:-1] * np.uint64(3) + words[1:])[same]
    # Trigrams lie within a word and the one byte on each side of it, all that is not a letter counted alike.
    letters = np.where(inside, lower, np.uint64(0))
    trigrams = (letters[:-2] * np.uint64(257) + letters[1:-1]) * np.uint64(257) + letters[2:]
    centre = np.flatnonzero(inside[1:-1])
    return (
        np.concatenate([words, pairs, mix(trigrams[centre] + np.uint64(1 << 40))]),
        np.concatenate([rows, rows[:-1][same], owner[1:-1][centre]]),
    )


def _words(kind: NDArray[np.uint8], inside: NDArray[np.bool_]) -> tuple[Int, Int]:
    """Starts and ends of words: runs of letters or digits, cut before a capital that follows a small letter."""
    before = np.empty_like(kind)
    before[0], before[1:] = 0, kind[:-1]
    digit = (kind == 3) != (before == 3)
    begins = inside & ((before == 0) | ((kind == 2) & (before == 1)) | digit)
    after_end = (~inside & (before > 0)) | (begins & (before > 0))
    ends = np.flatnonzero(after_end)
    starts = np.flatnonzero(begins)
    if len(ends) < len(starts):
        ends = np.append(ends, len(kind))
    return starts, ends
