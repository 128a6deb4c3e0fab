"""Text that many documents, or many queries, share: a footer, a licence, an instruction in front of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardneg.data.texts import Texts, fold
from hardneg.diagnostics.estimates import LISTED, Estimate, Measurements, names_of, sampled
from hardneg.diagnostics.subject import Subject

_SAMPLE = 500  # texts that are compared: a share of 0.2 is then known to 0.035

_FEWEST = 20  # different texts, below which what two of them share is no habit

_CHARACTERS = 2000  # at the beginning and at the end of a text that are compared

_RUN = 40  # characters in a row that texts must share: turns of phrase and lines of code are shorter

_ALIKE = 0.9  # of the texts that hold a run, those that hold more of it for the whole to be quoted

_AT_END = 8  # characters before or after a run with which a text still begins or ends with it: a quote, a full stop

_QUOTED = 80  # characters of a run that are quoted

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64


@dataclass(frozen=True)
class SharedRun:
    """A run of characters that many texts share.

    Attributes:
        text: the run, folded.
        holds: bool `[n]`, the texts that hold it.
        where: where most of those hold it: `begin with`, `end with` or `contain`.
    """

    text: str
    holds: NDArray[np.bool_]
    where: str


def boilerplate(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure how many documents, and how many queries, share a text of at least 40 characters.

    Such a text makes texts near one another that have nothing else in common. 500 different texts of each kind are compared, folded,
    by their first and last 2,000 characters. With fewer than 20, nothing is measured; nor is anything of pictures.

    The numbers are:

    - `document_boilerplate`, `query_boilerplate`: the share of them that hold the run of characters that most of them share; 0 if
      no two share one.
    - `document_boilerplate_text`, `query_boilerplate_text`: that run, shortened, with its length and where it stands.

    The ids `document_boilerplate_ids` and `query_boilerplate_ids` name some that hold it.
    """
    out, pairs = Measurements(), subject.pairs
    sides = (
        ("document", pairs.documents, pairs.document_keys, pairs.document_ids),
        ("query", pairs.queries, pairs.query_keys, pairs.query_ids),
    )
    for side, texts, keys, ids in sides:
        if texts.pictures:
            continue
        rows, total = one_of_each(keys, _SAMPLE, rng)
        if total < _FEWEST:
            continue
        found = shared_run(ends_of(texts, rows))
        holds = np.zeros(len(rows), bool) if found is None else found.holds
        out.numbers[f"{side}_boilerplate"] = Estimate.share_of(holds.astype(np.float64), total)
        if found is not None:
            out.numbers[f"{side}_boilerplate_text"] = _described(found)
            out.ids[f"{side}_boilerplate_ids"] = names_of(ids, rows[holds][:LISTED])
    return out


def one_of_each(keys: NDArray[np.integer], most: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """int64: rows of at most `most` different texts, none of them empty, drawn at random and sorted; and how many there are."""
    distinct, first = np.unique(keys, return_index=True)
    first = np.sort(first[distinct != 0]).astype(np.int64)
    return first[sampled(len(first), most, rng)], len(first)


def ends_of(texts: Texts, rows: NDArray[np.int64]) -> list[str]:
    """The beginnings and ends of texts, folded: all of a text of up to 4,000 characters."""
    return [
        fold(text if len(text) <= 2 * _CHARACTERS else f"{text[:_CHARACTERS]} {text[-_CHARACTERS:]}")
        for text in texts.take(rows)
    ]


def shared_run(texts: list[str]) -> SharedRun | None:
    """The run of at least 40 characters that most of the texts hold, as long as nine in ten of those hold all of it.

    All runs of 40 characters are counted by a polynomial hash (Karp and Rabin 1987), each once a text.

    Args:
        texts: folded texts.

    Returns:
        The run; None if no two texts share one.

    >>> offers = ["six fresh", "two brown", "no cheap"]
    >>> found = shared_run([f"{each} eggs. all of our offers are without engagement, and hold for today" for each in offers])
    >>> found.text, found.where
    ('eggs. all of our offers are without engagement, and hold for today', 'end with')
    """
    sizes = np.array([len(text) for text in texts], np.int64)
    starts = np.cumsum(sizes) - sizes
    hashes, of = _windows(texts, sizes, starts)
    if len(hashes) == 0:
        return None
    order = np.argsort(hashes, kind="stable")  # so that the windows of one text stay together
    fresh = np.ones(len(order), bool)
    fresh[1:] = hashes[order[1:]] != hashes[order[:-1]]
    group = np.cumsum(fresh) - 1
    once = fresh.copy()
    once[1:] |= of[order[1:]] != of[order[:-1]]
    times = np.bincount(group[once])
    counts = np.empty(len(order), np.int64)
    counts[order] = times[group]
    most = int(counts.max())
    if most < 2:
        return None
    first = last = int(counts.argmax())  # in the first text that holds it
    own = of == of[first]
    enough = own & (counts >= _ALIKE * most)
    while first > 0 and enough[first - 1]:
        first -= 1
    while last + 1 < len(enough) and enough[last + 1]:
        last += 1
    text = texts[int(of[first])]
    begin = first - int(np.flatnonzero(own)[0])
    run = text[begin : begin + last - first + _RUN].strip()
    holds = np.array([run in each for each in texts], bool)
    return SharedRun(run, holds, _where(run, [each for each, held in zip(texts, holds, strict=True) if held]))


def _windows(
    texts: list[str], sizes: NDArray[np.int64], starts: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """uint64 `[w]` and int64 `[w]`: a hash of each run of 40 characters that lies in one text, and the text's number, in order."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    count = len(codes) - _RUN + 1
    if count < 1:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    mixed = (codes + np.uint64(1)) * _FACTOR
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _FACTOR
    mixed ^= mixed >> np.uint64(32)
    hashes = np.zeros(count, np.uint64)
    for place in range(_RUN):  # Horner's rule, for all windows at once
        hashes = hashes * _FACTOR + mixed[place : place + count]
    of = np.repeat(np.arange(len(texts)), sizes)
    within = np.arange(count) - starts[of[:count]]
    inside = within + _RUN <= sizes[of[:count]]
    return hashes[inside], of[:count][inside]


def _where(run: str, texts: list[str]) -> str:
    """Where most of the texts have the run."""
    begin = np.mean([0 <= text.find(run) <= _AT_END for text in texts])
    end = np.mean([len(text) - text.rfind(run) - len(run) <= _AT_END for text in texts])
    return "begin with" if begin > 0.5 else "end with" if end > 0.5 else "contain"


def _described(found: SharedRun) -> str:
    """Where a run stands, how long it is, and its beginning and end."""
    text = found.text
    if len(text) > _QUOTED:
        head, tail = text[: _QUOTED // 2], text[-_QUOTED // 2 :]
        text = f"{head.rsplit(' ', 1)[0]} ... {tail.split(' ', 1)[-1]}"  # at whole words, where there are any
    return f"{found.where} the same {len(found.text):,} characters, “{text}”"
