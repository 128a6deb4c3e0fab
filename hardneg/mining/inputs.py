"""Inputs of a mining pass: the dataset, its vectors, and the fingerprints of both."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from hardneg.data.inspect import counts_of
from hardneg.data.pairs import Pairs, open_pairs, save_pairs
from hardneg.data.read import numbered_in, read_pairs
from hardneg.encoders.base import Encoder
from hardneg.encoders.embed import embed, fit, vector_keys
from hardneg.encoders.precomputed import aligned, open_aligned, order_notes, vectors_digest
from hardneg.encoders.report import encoding_of
from hardneg.errors import RunError, UsageError
from hardneg.memory import release
from hardneg.mining.encoding import set_precision
from hardneg.mining.options import MineOptions, resolve_depth
from hardneg.mining.resources import Resources
from hardneg.mining.run_folder import FETCHED, changed_options, given_vectors, read_run_json
from hardneg.mining.sources.base import labels_of
from hardneg.mining.sources.trec import TrecRun
from hardneg.mining.specs import parse_filters, parse_sources
from hardneg.progress import Progress
from hardneg.storage.files import sha256_file
from hardneg.storage.json_files import read_json, write_json
from hardneg.storage.remote import is_url


@dataclass
class Inputs:
    """Inputs of a mining pass.

    Attributes:
        pairs: the dataset.
        query_vectors: `[n, d]`, one row per query of the dataset, in its order.
        document_vectors: `[N, d]`, one row per document of the dataset, in its order.
        fingerprints: fingerprints of the dataset, the encoder and the vectors, by name. They identify the pass.
        encoding: how the texts were encoded: prompts, and for models of sentence-transformers also number format and why, device and
            batches; None if the vectors were given.
        notes: what went wrong while encoding and was done again, one sentence each.
    """

    pairs: Pairs
    query_vectors: Any
    document_vectors: Any
    fingerprints: dict[str, Any]
    encoding: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


_BOTH = ("queries", "documents")
_AGAIN = "mine again with --overwrite"


class _SourceInfo(TypedDict):
    """The record of the dataset's files in an unfinished run: SHA-256 by name."""

    files: dict[str, str]


def open_inputs(
    source: str | Path | Pairs,
    folder: Path,
    options: MineOptions,
    vectors: tuple[np.ndarray, np.ndarray] | None,
    encoder: Encoder | None,
    resources: Resources,
    check: Callable[[dict[str, Any]], None],
) -> Inputs:
    """Read the dataset, then open its vectors or encode it. The arguments are those of `mine`.

    `check` is given the fingerprints of what is about to be encoded, and refuses what encoding would be in vain for.
    """
    notes: list[str] = []
    pairs = read_source(source, folder, options, resources, notes)
    fingerprints: dict[str, Any] = {"source": pairs.name, **pairs.digests}
    if options.query_embeddings is not None and options.corpus_embeddings is not None:
        names = [given_vectors(each, folder, notes) for each in (options.query_embeddings, options.corpus_embeddings)]
        queries, documents = (open_aligned(name, pairs, side) for name, side in zip(names, _BOTH, strict=True))
        digests = [vectors_digest(name) for name in names]
        notes += order_notes(names)
    elif vectors is not None:
        whose = ("query vectors", "corpus vectors")
        queries, documents = (
            aligned(each, pairs, side, name) for each, side, name in zip(vectors, _BOTH, whose, strict=True)
        )
        digests = [_array_digest(each) for each in vectors]
    else:
        return _encoded(
            pairs, folder, options, encoder or resources.encoder(options.encoder, options.seed), resources, fingerprints,
            notes, check,
        )  # fmt: skip
    fingerprints |= {"query_embeddings": digests[0], "corpus_embeddings": digests[1], "encoder": None}
    resources.clock.lap("embeddings")
    return Inputs(pairs, queries, documents, fingerprints, notes=notes)


def reading_of(pairs: Pairs) -> dict[str, Any]:
    """What `run.json` says of the reading: what the source was taken for, and how much was in it."""
    return {**pairs.reading, "counts": counts_of(pairs)}


def read_source(
    source: str | Path | Pairs, folder: Path, options: MineOptions, resources: Resources, notes: list[str]
) -> Pairs:
    """Read the dataset, and check that it has what the options, the filters and the sources of candidates need.

    What is refused here costs nobody the encoding. Notes are added to `notes`.
    """
    if isinstance(source, Pairs):
        pairs = source
        if not (folder / "source" / "dataset.json").exists():
            save_pairs(pairs, folder / "source")  # so that the run can be exported and selected from
    else:
        pairs = _read(str(source), folder, options, resources.progress, notes)
    _check_files(folder)
    resolve_depth(options, len(pairs.document_ids))
    for each in parse_filters(options.filters, options.default_filters).filters:
        if (lacking := each.lacks(pairs)) is not None:
            raise UsageError(lacking)
    for source_of_candidates in parse_sources(options.candidates):
        if (lacking := source_of_candidates.lacks(pairs)) is not None:
            raise UsageError(lacking)
        if pairs.mixed is not None and not source_of_candidates.per_source:
            raise UsageError(
                f"the candidates {source_of_candidates.name!r} of a mixture could be documents of another source than the "
                f"query's: use dense, encoder or given, or mine each source by itself"
            )
    release()
    resources.clock.lap("read")
    return pairs


def _encoded(
    pairs: Pairs,
    folder: Path,
    options: MineOptions,
    encoder: Encoder,
    resources: Resources,
    fingerprints: dict[str, Any],
    notes: list[str],
    check: Callable[[dict[str, Any]], None],
) -> Inputs:
    """Encode the dataset, and add the fingerprints of the encoder and its vectors to `fingerprints`."""
    set_precision(encoder, options, folder)
    fit(encoder, pairs, resources.progress)
    fingerprints["encoder"] = encoder.fingerprint()
    prompts = options.query_prompt, options.document_prompt
    keys = vector_keys(encoder, pairs, *prompts, options.precision, fingerprints["encoder"])
    check({**fingerprints, "query_vectors": keys[0], "document_vectors": keys[1]})
    resources.clock.lap("encoder")
    queries, documents, keys = embed(
        encoder,
        pairs,
        resources.embeddings(folder),
        query_prompt=options.query_prompt,
        document_prompt=options.document_prompt,
        precision=options.precision,
        progress=resources.progress,
        devices=resources.devices,
        notes=notes,
    )
    fingerprints["query_vectors"], fingerprints["document_vectors"] = keys
    resources.clock.lap("encode")
    encoding = encoding_of(encoder, options.query_prompt, options.document_prompt)
    return Inputs(pairs, queries, documents, fingerprints, encoding, notes)


def _read(source: str, folder: Path, options: MineOptions, progress: Progress, notes: list[str]) -> Pairs:
    """The dataset, as the interrupted run in `folder` keeps it, or read from the source."""
    store = folder / "source"
    if (store / "dataset.json").exists():
        _check_files(folder)
        pairs = open_pairs(store)
        if not pairs.notes.get("numbered_files") and not is_url(source) and numbered_in(Path(source), options.read):
            raise RunError(
                f"{folder} was begun by an earlier version of hardneg, which read the files of {source} in the order of their letters "
                f"(10 before 2): use --overwrite"
            )
        return pairs
    fetched = folder / FETCHED  # kept until the run is finished, for --resume
    pairs = read_pairs(source, options.read, store, fetched=fetched, notes=notes, progress=progress)
    shutil.rmtree(fetched, ignore_errors=True)
    return pairs


def _check_files(folder: Path) -> None:
    """Raise RunError if a file of the dataset in an unfinished run has changed; record the files of a new run."""
    path = folder / "progress" / "source.json"
    files = sorted(each for each in (folder / "source").rglob("*") if each.is_file())
    now = {each.relative_to(folder).as_posix(): sha256_file(each) for each in files}
    if not path.exists():
        write_json(path, {"files": now}, checksum=True)
        return
    before = read_json(path, _SourceInfo, checksum=True, remedy=_AGAIN)["files"]
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise RunError(f"{folder / name} is missing or damaged: {_AGAIN}")


def check_config(folder: Path, config: dict[str, Any], target: Path) -> None:
    """Raise RunError if the unfinished run in `folder` has other options; record the options of a new run.

    Args:
        folder: where the run is written.
        config: the options, as `MineOptions.to_json` writes them.
        target: where it will be; messages name it.
    """
    path = folder / "progress" / "config.json"
    if path.exists():
        same_config(read_json(path, remedy=_AGAIN), config, target)
    else:
        write_json(path, config, checksum=True)


def same_config(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raise RunError if any option differs; the message names those that do. Old names of filters equal the new ones."""
    changed = changed_options(before, now)
    if changed:
        differences = "; ".join(f"{name}: {before.get(name)!r} before, {now.get(name)!r} now" for name in changed)
        raise RunError(
            f"{folder} was started with other options ({differences}): resume with the same options, or use --overwrite"
        )


def check_inputs(folder: Path, fingerprints: dict[str, Any], target: Path, record: bool = True) -> None:
    """Raise RunError if the run in `folder` has inputs of other fingerprints; record those of a new run."""
    path = folder / "progress" / "inputs.json"
    if path.exists():
        before = read_json(path, dict[str, str | None], remedy=_AGAIN)
        _same_inputs(before, fingerprints, {*before, *fingerprints}, target)
    elif record:
        write_json(path, fingerprints, checksum=True)


def check_sources(folder: Path, fingerprints: dict[str, str], target: Path) -> None:
    """Raise RunError if the unfinished run in `folder` has candidates of other sources; record those of a new run."""
    path = folder / "progress" / "sources.json"
    if path.exists():
        before = read_json(path, dict[str, str], remedy=_AGAIN)
        _same_inputs(before, fingerprints, {*before, *fingerprints}, target)
    else:
        write_json(path, fingerprints, checksum=True)


def check_finished(
    source: str | Path | Pairs,
    folder: Path,
    options: MineOptions,
    vectors: tuple[np.ndarray, np.ndarray] | None,
    encoder: Encoder | None,
    resources: Resources,
    target: Path,
) -> None:
    """Raise RunError if the finished run in `folder` has other options or inputs than those of this call.

    The source is read again, unless it is stdin, which cannot be. The vectors of the encoder are not made again.
    """
    info = read_run_json(folder)
    same_config(info["config"], options.to_json(), target)
    if source == "-":
        return
    pairs = source if isinstance(source, Pairs) else read_pairs(str(source), options.read)
    found: dict[str, Any] = {**pairs.digests}
    if options.query_embeddings is not None and options.corpus_embeddings is not None:
        for name in ("query_embeddings", "corpus_embeddings"):
            place = given_vectors(getattr(options, name), folder, [])
            found[name] = vectors_digest(place, info["fingerprints"].get(name))
    elif vectors is not None:
        found["query_embeddings"], found["corpus_embeddings"] = map(_array_digest, vectors)
    else:
        encoder = encoder or resources.encoder(options.encoder, options.seed)
        set_precision(encoder, options, folder)
        fit(encoder, pairs, resources.progress)
        found["encoder"] = encoder.fingerprint()
        found["query_vectors"], found["document_vectors"] = vector_keys(
            encoder, pairs, options.query_prompt, options.document_prompt, options.precision
        )
    sources = parse_sources(options.candidates)
    for label, each in zip(labels_of(sources), sources, strict=True):
        if isinstance(each, TrecRun):
            found[f"candidates:{label}"] = sha256_file(Path(each.file)) if Path(each.file).is_file() else None
    # Runs of version 0.2 and older have no fingerprints of vectors that were given in memory.
    _same_inputs(info["fingerprints"], found, {*found} & {*info["fingerprints"]}, target)


def _same_inputs(before: dict[str, Any], now: dict[str, Any], names: Iterable[str], target: Path) -> None:
    """Raise RunError if one of these fingerprints differs. The name of the source identifies nothing."""
    changed = [name for name in names if not name.startswith("posterior:") and name != "source"]
    changed = [name for name in changed if before.get(name) != now.get(name)]
    if any(name.startswith("posterior:") for name in names) and _posteriors(before) != _posteriors(now):
        known = _posteriors(before)
        named = [name for name, value in now.items() if name.startswith("posterior:") and str(value) not in known]
        changed += named or ["posterior"]
    if changed:
        raise RunError(
            f"{target} was started with other inputs ({', '.join(sorted(changed))} changed since): use --overwrite, or "
            f"choose another --out"
        )


def _posteriors(fingerprints: dict[str, Any]) -> list[str]:
    """The hashes of posteriors. The paths of their files identify nothing."""
    return sorted(str(value) for name, value in fingerprints.items() if name.startswith("posterior:"))


def _array_digest(array: Any) -> str:
    """SHA-256 of the shape, the number format and the values of vectors `[n, d]`.

    Beyond 4 GB it takes evenly spaced rows only, because reading all of them would take longer than searching.
    """
    digest = hashlib.sha256(f"{tuple(array.shape)} {array.dtype.str}".encode())
    bytes_per_row = max(1, array.shape[1] * array.dtype.itemsize)
    rows = np.arange(len(array))
    if len(array) * bytes_per_row > 1 << 32:
        rows = np.unique(np.linspace(0, len(array) - 1, (1 << 32) // bytes_per_row).astype(np.int64))
    step = max(1, (1 << 24) // bytes_per_row)
    for start in range(0, len(rows), step):
        digest.update(np.ascontiguousarray(array[rows[start : start + step]]).tobytes())
    return digest.hexdigest()
