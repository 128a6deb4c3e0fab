"""The order of shards: that of the numbers in their names, as they were written, whether the numbers are padded or not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_NUMBER = re.compile(r"([0-9]+)")


def in_order(files: Iterable[Path]) -> list[Path]:
    """The files in the order of their names; those whose names differ in numbers only are in the order of these numbers.

    Names of other forms keep the places that they have in the order of the letters.

    >>> [path.name for path in in_order(map(Path, ["part-0", "part-10", "part-2", "rest"]))]
    ['part-0', 'part-2', 'part-10', 'rest']
    """
    by_letters = sorted(files)
    forms: dict[str, list[int]] = {}
    for place, file in enumerate(by_letters):
        forms.setdefault(_NUMBER.sub("#", str(file)), []).append(place)
    found = list(by_letters)
    for places in forms.values():
        for place, file in zip(places, sorted((by_letters[place] for place in places), key=_numbers), strict=True):
            found[place] = file
    return found


def _numbers(file: Path) -> tuple[list[int], str]:
    return [int(digits) for digits in _NUMBER.findall(str(file))], str(file)
