"""Seeded mutators: values that readers trip over, and damage to bytes."""

from __future__ import annotations

import json
from random import Random
from typing import Any

TEXTS = (
    "", " ", "text", "größe", "a\0b", "\ufeffmark", "\u202eright to left", "\u2028", "line\nbreak", "cr\rhere", "tab\there",
    '"quoted"', 'one " quote', "'=1+1", "=1+1", "+1", "-1", "@x", "\t=1", "[red]", "a[/b]", ":smile:", "\x1b[31m",
    "1", "0", "1e999", "nan", "-inf", "0x10", "1_000", "٣", "9" * 5000, "x" * 200_000, "../../x", "x,y;z", "\\", "{}", "[]",
)  # fmt: skip

# Written into JSON as they are; the last ones are no values of Python.
LITERALS = (
    "null", "true", "0", "-1", "1e308", "1e999", "NaN", "-Infinity", "1.5", "9" * 5000, "-" + "9" * 4000, "[]", "{}",
    "[" * 400 + "]" * 400, "[" * 100_000 + "]" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, '["a", null, 3]', '[["a"]]',
    '{"docid": 1, "text": "t"}', '[{"docid": "d", "text": null}]', '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', "'a'", "tru",
    "0x10", "01", "1.", "--1", '"open', "[1,", "\ufeff1",
)  # fmt: skip

_WORDS = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x7FFF, 1 << 20)
_LONGS = (0, 1, (1 << 63) - 1, (1 << 64) - 1, 1 << 63, 1 << 40, 1 << 31)


def damaged(data: bytes, rng: Random) -> bytes:
    """The bytes with one kind of damage in one to eight places, and sometimes cut off."""
    out = bytearray(data)
    kind = rng.randrange(7)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not out:
            break
        at = rng.randrange(len(out))
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            at &= ~3
            out[at : at + 4] = rng.choice((*_WORDS, rng.randrange(1 << 32), rng.randrange(1000))).to_bytes(4, "little")
        elif kind == 3:
            at &= ~7
            out[at : at + 8] = rng.choice((*_LONGS, rng.randrange(1 << 64), rng.randrange(1000))).to_bytes(8, "little")
        elif kind == 4:
            del out[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            out[at:at] = out[at : at + rng.randrange(1, 64)]
        else:
            out[at:at] = rng.choice(TEXTS)[:1000].encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        del out[rng.randrange(len(out) + 1) :]
    return bytes(out)


def sometimes_damaged(data: bytes, rng: Random, share: float = 0.4) -> bytes:
    """The bytes, damaged in this share of cases."""
    return damaged(data, rng) if rng.random() < share else data


def json_text(value: Any, rng: Random, share: float) -> str:
    """JSON of a value of dicts, lists and scalars, in which this share of entries is replaced, renamed, left out or repeated."""
    if rng.random() < share:
        return (
            rng.choice(LITERALS)
            if rng.random() < 0.5
            else json.dumps(rng.choice(TEXTS), ensure_ascii=rng.random() < 0.5)
        )
    if isinstance(value, list):
        return "[" + ", ".join(json_text(item, rng, share) for item in value) + "]"
    if isinstance(value, dict):
        entries = []
        for name, item in value.items():
            if rng.random() < share / 2:
                continue
            key = rng.choice(TEXTS)[:100] if rng.random() < share / 2 else name
            entries += [json.dumps(key) + ": " + json_text(item, rng, share)] * (2 if rng.random() < share / 2 else 1)
        return "{" + ", ".join(entries) + "}"
    return json.dumps(value)


def cell(good: str, rng: Random, share: float) -> str:
    """A cell of a table, replaced in this share of cases."""
    return rng.choice(TEXTS)[:20_000] if rng.random() < share else good
