"""The sources of `hardneg train`: one, or several with weights (`--source B:2.0`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from .reading import read_options
from .show import say
from .source_columns import Given, read_each
from .train_inputs import evaluated_on, evaluation_source, validation_of

if TYPE_CHECKING:
    from hardneg.data.pairs import Pairs
    from hardneg.progress import Progress

_WEIGHT = re.compile(r"(.+):(\d+(?:\.\d*)?|\.\d+)", re.DOTALL)

# What a text before the last colon cannot be by itself: the kind of a source, a drive, a URL without a path, whose number is a port.
_NO_SOURCE = re.compile(r"builtin|hf|[a-zA-Z]|[a-zA-Z][a-zA-Z0-9+.-]*://[^/]*")


@dataclass(frozen=True)
class Source:
    """A source of a training, as it was typed.

    Attributes:
        spec: what is read.
        weight: how often an epoch goes through its pairs.
        note: what is to be said of the reading; None: nothing.
    """

    spec: str
    weight: float = 1.0
    note: str | None = None


def parse_source(text: str) -> Source:
    """A source from `SPEC` or `SPEC:WEIGHT`. A file or folder of the whole name goes first.

    >>> parse_source("beir/scifact:2.0"), parse_source("builtin:pycode"), parse_source("http://host:8080")
    (Source(spec='beir/scifact', weight=2.0, note=None), Source(spec='builtin:pycode', weight=1.0, note=None), \
Source(spec='http://host:8080', weight=1.0, note=None))
    """
    from pathlib import Path

    from hardneg.data.mixed import MOST_WEIGHT
    from hardneg.data.readers.files import present

    match = _WEIGHT.fullmatch(text)
    if match is None:
        file, _, rest = text.rpartition(":")
        if file and present(Path(file)) and not present(Path(text)):
            raise click.UsageError(
                f"{text!r}: {rest!r} after the file {file} is no weight: give a number above 0, such as {file}:2.0"
            )
        return Source(text)
    spec, number = match.groups()
    if present(Path(text)):
        note = None
        if present(Path(spec)):
            other = f"{spec}:{number}{'0' if '.' in number else '.0'}"
            note = f"{text!r} is read as the file of this name, not as {spec!r} with a weight, which is written {other}"
        return Source(text, note=note)
    if _NO_SOURCE.fullmatch(spec) and not present(Path(spec)):
        return Source(text)
    weight = float(number)
    if not 0 < weight <= MOST_WEIGHT:
        raise click.UsageError(
            f"{text!r}: the weight {number} must be above 0, and at most a million; leave the source out for 0"
        )
    return Source(spec, weight)


def sources_of(ctx: click.Context, source: str | None, more: Sequence[str]) -> list[Source]:
    """The sources that were named; those of a file (--config) only if none is typed.

    Raises:
        UsageError: there is none, or a single one with a weight.
    """
    from_file = click.core.ParameterSource.DEFAULT_MAP
    if source is not None and ctx.get_parameter_source("more_sources") == from_file:
        more = ()
    found = [parse_source(each) for each in (*(() if source is None else (source,)), *more)]
    if not found:
        raise click.UsageError("Missing argument 'SOURCE': name a dataset, or several with --source", ctx)
    if len(found) == 1 and found[0].weight != 1:
        raise click.UsageError(
            f"the weight {found[0].weight:g} of {found[0].spec} has no effect on a single source: leave it out, and take "
            f"more or fewer --epochs (if the number belongs to the name, write :1 behind it)"
        )
    return found


def read_sources(
    sources: Sequence[Source], given: Given, leads: bool, progress: Progress
) -> tuple[Pairs, Any, list[Given]]:
    """Read one source, or several that are mixed.

    Returns:
        (the pairs to train on, what they are evaluated on or None, the options that each source was read with).
    """
    from hardneg.data.mixing import mixture, numbered, source_name
    from hardneg.data.read import read_pairs

    if leads:
        for each in sources:
            if each.note is not None:
                say(each.note)
    if len(sources) == 1:
        pairs = read_pairs(sources[0].spec, read_options(given), progress=progress)
        if given["eval_split"] == "none":
            return pairs, None, [given]
        return *evaluated_on(sources[0].spec, pairs, given, leads), [given]
    if given["self_supervised"]:
        raise click.UsageError(
            "--self-supervised takes one SOURCE: it ignores labels, so give all documents as one corpus (--corpus)"
        )
    names = numbered([source_name(each.spec) for each in sources])
    specs = {name: each.spec for name, each in zip(names, sources, strict=True)}
    read, own = read_each(specs, given, progress, say if leads else lambda text: None)
    weights = {name: each.weight for name, each in zip(names, sources, strict=True)}
    mixture(read, weights)  # refuses what cannot be mixed, before anything is evaluated
    trained, evaluation = _evaluated_on(specs, read, own, given, leads)
    if leads:
        for name, pairs in trained.items():
            say(
                f"source {name}: {specs[name]}, weight {weights[name]:g}, {int((pairs.positives.lengths > 0).sum()):,} pairs, "
                f"{len(pairs.document_ids):,} documents"
            )
    return mixture(trained, weights), evaluation, list(own.values())


def _evaluated_on(
    specs: dict[str, str], read: dict[str, Pairs], own: dict[str, Given], given: Given, leads: bool
) -> tuple[dict[str, Pairs], Any]:
    """(the sources to train on, what they are evaluated on: datasets by name, one, or None); says which these are."""
    from hardneg.training.held_out import hold_out_each

    tell = say if leads else (lambda text: None)
    split = given["eval_split"]
    if split == "none":
        return read, None
    if given["eval_source"] is not None:
        return read, evaluation_source(given, split or "test", tell)
    if split is not None:
        return read, _named_split(specs, read, own, split, tell)
    found = {
        name: each for name, spec in specs.items() if (each := validation_of(spec, read[name], own[name])) is not None
    }
    for name, (dev, _) in found.items():
        tell(f"source {name}: evaluated on its split {dev!r}")
    rest, held, others = hold_out_each(
        {name: pairs for name, pairs in read.items() if name not in found}, given["seed"]
    )
    for name in rest:
        many = (
            f"{len(held[name]):,} queries, which are not trained on"
            if name in held
            else "nothing: it has too few queries"
        )
        tell(f"source {name}: evaluated on {many}")
    if others:
        tell(f"{others:,} queries are not trained on: another source holds their question out")
    measured = {name: found[name][1] if name in found else held[name] for name in read if name in found or name in held}
    return {name: rest.get(name, pairs) for name, pairs in read.items()}, measured or None


def _named_split(
    specs: dict[str, str], read: dict[str, Pairs], own: dict[str, Given], split: str, tell: Any
) -> dict[str, Pairs]:
    """The split that was asked for, of each source that has it."""
    from hardneg.data.read import read_pairs
    from hardneg.errors import HardnegError

    found: dict[str, Pairs] = {}
    for name, spec in specs.items():
        try:
            named = read_pairs(spec, read_options(own[name], split))
        except HardnegError as error:
            tell(f"source {name}: not evaluated ({error})")
            continue
        if named.digests == read[name].digests:
            tell(f"source {name}: not evaluated (it has no splits)")
        elif not len(named.positives.values):
            tell(f"source {name}: not evaluated (no query of its split {split!r} has a positive)")
        else:
            found[name] = named
    if not found:
        raise click.UsageError(
            f"--eval-split {split}: no source has such a split: name another one, give --eval-source, or leave it out"
        )
    return found
