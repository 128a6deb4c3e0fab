"""The mining pass: from a dataset to a run folder."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardneg.data.builder import open_pairs, save_pairs
from hardneg.data.formats import read_pairs
from hardneg.data.pairs import Pairs
from hardneg.data.store import read_json, sha256_file, write_json
from hardneg.encoders.base import Encoder, make_encoder
from hardneg.encoders.precomputed import aligned, open_vectors
from hardneg.errors import DataError, RunError, UsageError
from hardneg.index.choose import AnyIndex, Recall, make_index
from hardneg.index.corpus import Corpus, checked_norms
from hardneg.index.device import DeviceIndex
from hardneg.index.exact import ExactIndex
from hardneg.index.ivf import IVFIndex
from hardneg.memory import release
from hardneg.mining.embed import embed, fit
from hardneg.mining.filters import Group
from hardneg.mining.miner import Judged, Miner
from hardneg.mining.options import MineOptions, resolve_depth
from hardneg.mining.run import PartWriter, Run, prepare
from hardneg.mining.specs import parse_filters, parse_sampler
from hardneg.progress import Progress, silent


@dataclass
class _Inputs:
    """What a pass works on, and what identifies it."""

    pairs: Pairs
    query_vectors: Any
    document_vectors: Any
    fingerprints: dict[str, Any]


def mine(
    source: str | Path | Pairs,
    out: str | Path,
    options: MineOptions | None = None,
    *,
    vectors: tuple[np.ndarray, np.ndarray] | None = None,
    encoder: Encoder | None = None,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    threads: int | None = None,
    batch_size: int = 32,
    device: str | None = None,
    cache: str | Path | None = None,
    progress: Progress = silent,
    command: list[str] | None = None,
) -> Run:
    """Mine hard negatives and write a run folder.

    Args:
        source: what `read_pairs` takes, or a dataset that is read already.
        out: the run folder.
        options: what decides the result.
        vectors: (queries `[n, d]`, documents `[N, d]`), float16 or float32, instead of files or an encoder.
        encoder: a loaded encoder, instead of the one that the options name.
        resume: go on with an interrupted run; its final bytes are those of an uninterrupted one.
        overwrite: replace a run that stands at `out`.
        force: use a posterior that was learned with another encoder.
        threads, batch_size, device: how fast, never what (a model may round differently by batch size).
        cache: folder for embeddings, to share them between runs; by default inside the run.
        progress: told of the stages.
        command: kept in run.json.

    Raises:
        UsageError, DataError, RunError: see their messages. A run in which every candidate was
            rejected is written whole before the DataError says so.
    """
    options = options or MineOptions()
    options.validate()
    folder = Path(out)
    if resume and (folder / "run.json").exists():
        run = Run(folder)
        _same_config(run.info["config"], options.to_json(), folder)
        shutil.rmtree(folder / "progress", ignore_errors=True)  # killed between the last write and the cleaning up
        return run
    previous_threads = torch.get_num_threads()
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads={threads} must be 1 or more")
        torch.set_num_threads(threads)
    prepare(folder, resume=resume, overwrite=overwrite)
    try:
        _check_config(folder, options)
        clock = _Clock()
        inputs = _inputs(source, folder, options, vectors, encoder, batch_size, device, cache, progress, clock)
        chain = parse_filters(options.filters, options.default_filters)
        inputs.fingerprints |= chain.check(inputs.fingerprints, force)
        _check_inputs(folder, inputs)
        embedder = guide_embedder(inputs.pairs, options, folder, cache, batch_size, device, progress)
        return _mine(folder, inputs, options, embedder, progress, clock, command)
    except (DataError, UsageError, RunError):
        # Bad input found before anything of worth was made: leave no half-made folder in the way of the next try.
        if not resume and not any((folder / name).exists() for name in ("run.json", "embeddings", "candidates")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        torch.set_num_threads(previous_threads)


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._last, 3)
        self._last = now


def _mine(
    folder: Path,
    inputs: _Inputs,
    options: MineOptions,
    embedder: Callable[[str], tuple[Any, Corpus]],
    progress: Progress,
    clock: _Clock,
    command: list[str] | None,
) -> Run:
    pairs = inputs.pairs
    chain = parse_filters(options.filters, options.default_filters)
    depth, max_depth = resolve_depth(options, len(pairs.document_ids))
    built = progress("index", 1)
    index, recall = _index(inputs, options, depth)
    built(1)
    miner = Miner(
        pairs,
        inputs.query_vectors,
        index,
        chain,
        parse_sampler(options.sampler),
        depth=depth,
        max_depth=max_depth,
        negatives=options.negatives,
        seed=options.seed,
        embed=embedder,
    )
    writer = PartWriter(folder, pairs, chain.names)
    clock.lap("index")
    searched = progress("search", len(pairs))
    written = progress("write", len(pairs))
    # One part is written while the next is searched: a search leaves a worker idle at its end, writing needs one.
    with ThreadPoolExecutor(1) as background:
        writing: Future[None] | None = None
        for part in range(writer.parts):
            start, stop = writer.span(part)
            if writer.finished(part):
                searched(stop - start)
                written(stop - start)
                continue
            judged = miner.mine(start, stop, _queries_done(searched, len(pairs.document_ids)))
            if writing is not None:
                writing.result()
            writing = background.submit(_write, writer, part, judged, written)
            del judged
        clock.lap("search")
        if writing is not None:
            writing.result()
        clock.lap("write")
    head = {
        "hardneg_version": _version("hardneg"),
        "command": command,
        "config": options.to_json(),
        "resolved": {
            "depth": depth,
            "max_depth": max_depth,
            "index": index.name,
            "recall": recall.to_json(),
            "dimension": index.dimension,
        },
        "fingerprints": inputs.fingerprints,
        "seed": options.seed,
        "warnings": [*warnings(pairs, options), *_missed(recall)],
        "timings": clock.seconds,
        "environment": _environment(index),
        "selections": [],
    }
    info = writer.finish(head)
    if not any(int(k) for k in info["counts"]["negatives"]):
        raise DataError(_all_rejected(folder, info["counts"]["verdicts"]))
    return Run(folder, verify=False)


def _index(inputs: _Inputs, options: MineOptions, depth: int) -> tuple[AnyIndex, Recall]:
    queries, documents = inputs.query_vectors, inputs.document_vectors
    if queries.shape[1] != documents.shape[1]:
        raise DataError(
            f"query vectors have {queries.shape[1]} dimensions, corpus vectors {documents.shape[1]}: "
            f"embed both with the same encoder"
        )
    checked_norms(queries, "query", zero_allowed=options.metric != "cosine")
    return make_index(
        options.index, documents, options.metric, queries=queries, k=depth, recall=options.recall, seed=options.seed,
        device=options.index_device,
    )  # fmt: skip


def _missed(recall: Recall) -> list[str]:
    if recall.reached:
        return []
    return [
        f"the index finds {recall.measured:.3f} (standard error {recall.error:.3f}) of the {recall.k} nearest documents, "
        f"less than the {recall.target} asked for: use --index exact"
    ]


def _write(writer: PartWriter, part: int, judged: Judged, advance: Callable[[int], None]) -> None:
    writer.write(part, judged)
    release()
    advance(len(judged.verdicts))


def _queries_done(advance: Callable[[int], None], documents: int) -> Callable[[int], None]:
    """Turns (query, document) pairs done into queries done, so that the bar moves within a part."""
    done = [0, 0]

    def count(pairs: int) -> None:
        done[0] += pairs
        queries = done[0] // documents
        advance(queries - done[1])
        done[1] = queries

    return count


def _all_rejected(folder: Path, verdicts: dict[str, int]) -> str:
    rejected = {name: n for name, n in verdicts.items() if name != "kept" and n}
    if not rejected:
        return f"no query has a candidate that could be a negative; the run with all candidates is in {folder}"
    worst = max(rejected, key=lambda name: rejected[name])
    return (
        f"all candidates were rejected, most of them ({rejected[worst]:,} of {sum(verdicts.values()):,}) by the filter "
        f"{worst!r}: loosen it, or raise --depth. The run with every verdict is in {folder}; "
        f"'hardneg select' filters it again without a new search"
    )


def _inputs(
    source: str | Path | Pairs,
    folder: Path,
    options: MineOptions,
    vectors: tuple[np.ndarray, np.ndarray] | None,
    encoder: Encoder | None,
    batch_size: int,
    device: str | None,
    cache: str | Path | None,
    progress: Progress,
    clock: _Clock,
) -> _Inputs:
    if isinstance(source, Pairs):
        pairs = source
        if not (folder / "source" / "dataset.json").exists():
            save_pairs(pairs, folder / "source")  # a run stands alone: it can be exported and selected from
    else:
        pairs = _read(str(source), folder, options, progress)
    release()
    clock.lap("read")
    prints: dict[str, Any] = {"source": pairs.name, **pairs.digests}
    if options.query_embeddings is not None and options.corpus_embeddings is not None:
        names = options.query_embeddings, options.corpus_embeddings
        vectors = open_vectors(names[0]), open_vectors(names[1])
        prints["query_embeddings"], prints["corpus_embeddings"] = (sha256_file(Path(name)) for name in names)
    else:
        names = "query vectors", "corpus vectors"
    if vectors is not None:
        queries = aligned(vectors[0], pairs.query_rows, pairs.source_query_rows, names[0], "queries")
        documents = aligned(vectors[1], pairs.document_rows, pairs.source_document_rows, names[1], "documents")
        prints["encoder"] = None
        clock.lap("embeddings")
        return _Inputs(pairs, queries, documents, prints)
    encoder = encoder or make_encoder(options.encoder, seed=options.seed, device=device, batch_size=batch_size)
    fit(encoder, pairs, progress)
    prints["encoder"] = encoder.fingerprint()
    clock.lap("encoder")
    queries, documents, keys = embed(
        encoder,
        pairs,
        Path(cache) if cache is not None else folder / "embeddings",
        query_prompt=options.query_prompt,
        document_prompt=options.document_prompt,
        precision=options.precision,
        progress=progress,
    )
    prints["query_vectors"], prints["document_vectors"] = keys
    clock.lap("encode")
    return _Inputs(pairs, queries, documents, prints)


def _read(source: str, folder: Path, options: MineOptions, progress: Progress) -> Pairs:
    store = folder / "source"
    if (store / "dataset.json").exists():
        return open_pairs(store)
    advance = progress("read", 1)
    pairs = read_pairs(source, options.read, store)
    advance(1)
    return pairs


def guide_embedder(
    pairs: Pairs,
    options: MineOptions,
    folder: Path,
    cache: str | Path | None,
    batch_size: int,
    device: str | None,
    progress: Progress,
) -> Callable[[str], tuple[Any, Corpus]]:
    """Vectors of guide models, made at their first use and kept."""
    made: dict[str, tuple[Any, Corpus]] = {}

    def vectors_of(spec: str) -> tuple[Any, Corpus]:
        if spec not in made:
            guide = make_encoder(spec, seed=options.seed, device=device, batch_size=batch_size)
            fit(guide, pairs, progress)
            place = Path(cache) if cache is not None else folder / "embeddings"
            queries, documents, _ = embed(
                guide, pairs, place, query_prompt="", document_prompt="", precision=options.precision,
                progress=progress, label="guide ",
            )  # fmt: skip
            made[spec] = queries, Corpus(documents, "cosine")
        return made[spec]

    return vectors_of


def _check_config(folder: Path, options: MineOptions) -> None:
    path = folder / "progress" / "config.json"
    if path.exists():
        _same_config(read_json(path), options.to_json(), folder)
    else:
        write_json(path, options.to_json())


def _same_config(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        said = "; ".join(f"{name}: {before.get(name)!r} before, {now[name]!r} now" for name in changed)
        raise RunError(f"{folder} was started with other options ({said}): resume with the same, or use --overwrite")


def _check_inputs(folder: Path, inputs: _Inputs) -> None:
    path = folder / "progress" / "inputs.json"
    if not path.exists():
        write_json(path, inputs.fingerprints)
        return
    before = read_json(path)
    changed = [name for name in inputs.fingerprints if before.get(name) != inputs.fingerprints[name]]
    if changed:
        raise RunError(f"{folder} was started with other inputs ({', '.join(changed)} changed since): use --overwrite")


def warnings(pairs: Pairs, options: MineOptions) -> list[str]:
    """What was noticed in the dataset, in words."""
    notes = pairs.notes
    said = {
        "empty_query_texts": "{} queries have an empty text: they were mined all the same",
        "empty_document_texts": "{} documents have an empty text: the filter 'empty' keeps them from being negatives",
        "repeated_query_rows": "{} rows repeat a query: their positives were put together",
        "repeated_document_rows": "{} rows repeat a document: it counts once",
        "skipped_unknown_judgements": "{} judgements name unknown ids and were skipped",
        "query_group_conflicts": "{} queries stand under several groups: the first counts",
        "document_group_conflicts": "{} documents stand under several groups: the first counts",
        "group_ids_of_a_query_and_a_document": "{} ids in groups.tsv name a query and a document: the group was given to both",
        "groups_of_unknown_ids": "{} lines of groups.tsv name unknown ids",
    }
    chain = parse_filters(options.filters, options.default_filters)
    found = chain.notes(options.to_json())
    found += [text.format(f"{notes[name]:,}") for name, text in said.items() if notes.get(name)]
    alone = int((pairs.positives.lengths == 0).sum())
    if alone:
        found.append(f"{alone:,} queries have no positive: margins and guides do not apply to them")
    if pairs.document_groups is not None and not any(isinstance(f, Group) for f in chain.filters):
        found.append(
            "the dataset has groups that no filter uses: --filter group rejects documents of the query's group"
        )
    return found


def _environment(index: AnyIndex) -> dict[str, Any]:
    names = ("torch", "faiss-cpu", "numpy", "scikit-learn", "pyarrow")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpus": os.cpu_count(),
        "threads": index.threads,
        "kernel": index.kernel.name if isinstance(index, ExactIndex | IVFIndex) else None,
        "index_device": str(index.device) if isinstance(index, DeviceIndex) else "cpu",
        "packages": {name: _version(name) for name in names},
        "byteorder": sys.byteorder,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
