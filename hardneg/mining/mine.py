"""The mining pass turns a dataset into a run folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from hardneg.ambient import own_settings
from hardneg.data.pairs import Pairs
from hardneg.data.read import as_pairs
from hardneg.data.tables import is_path
from hardneg.encoders.base import Encoder
from hardneg.encoders.devices import parse_devices
from hardneg.encoders.factory import checked_encoder, object_spec
from hardneg.encoders.report import metric_notes
from hardneg.errors import DataError
from hardneg.index.base import Index
from hardneg.index.per_source import make_index_of
from hardneg.index.recall import Recall
from hardneg.index.vectors import checked_norms, checked_threads
from hardneg.memory import release
from hardneg.mining.environment import environment, package_version
from hardneg.mining.filters.base import Chain
from hardneg.mining.guides import guide_embedder
from hardneg.mining.inputs import (
    Inputs,
    check_config,
    check_finished,
    check_inputs,
    check_sources,
    open_inputs,
    reading_of,
)
from hardneg.mining.miner import Judged, Miner
from hardneg.mining.options import MineChoices, MineOptions, chosen, resolve_depth, with_corpus_file, with_given
from hardneg.mining.parts import PartWriter
from hardneg.mining.resources import Resources
from hardneg.mining.run import Run
from hardneg.mining.run_folder import copy_posterior, posterior_files, relative_paths, run_output
from hardneg.mining.sanity import check_positives
from hardneg.mining.sources.base import SourceInputs
from hardneg.mining.sources.search import FusedSearch, only_dense
from hardneg.mining.specs import parse_filters, parse_fusion, parse_sampler, parse_sources
from hardneg.mining.warnings import tell, warnings
from hardneg.progress import Progress, with_progress
from hardneg.storage.remote import is_url


@with_progress
@own_settings()
def mine(
    source: str | Path | Pairs | Any,
    out: str | Path,
    options: MineOptions | None = None,
    *,
    corpus: Any = None,
    vectors: tuple[np.ndarray, np.ndarray] | None = None,
    encoder: Encoder | str | Any = None,
    resume: bool = False, overwrite: bool = False, force: bool = False, threads: int | None = None,
    batch_size: int | None = None, device: str | None = None, devices: str | None = None, cache: str | Path | None = None,
    progress: Progress | bool = False, command: list[str] | None = None,
    **choices: Unpack[MineChoices],
) -> Run:  # fmt: skip
    """Mine hard negatives and write a run folder.

    Args:
        source: anything that `read_pairs` takes, such as a path or a `datasets.Dataset`, or `Pairs`.
        out: the run folder.
        options: the options that decide the result; None: the defaults.
        corpus: additional documents: a file or folder, or texts or a table in memory.
        vectors: (queries `[n, d]`, documents `[N, d]`), float16 or float32, instead of files or an encoder.
        encoder: an encoder, a `SentenceTransformer`, or a spec, used instead of the one that the options name.
        resume: continue an interrupted run; its final bytes are those of an uninterrupted one.
        overwrite: replace the run in `out`.
        force: use a posterior of another encoder, and vectors for which positives score like random documents.
        threads, batch_size, device, devices (such as `cuda:0,cuda:1`): speed, not the result (but a model may round differently).
        cache: folder for embeddings, to share them between runs; None: keep them inside the run.
        progress: True for bars (lines where there is no terminal), or a callback that reports the progress of each stage.
        command: the command line, recorded in run.json, which prints the warnings of the run; None: each is a `HardnegWarning`.
        choices: options by name, such as `negatives=5` or `query_column="asked"` (of `ReadOptions`), in place of those in `options`.

    Raises:
        UsageError, DataError, RunError: if every candidate was rejected, the run is written before a DataError says so.
    """
    assert callable(progress)  # see `with_progress`
    if isinstance(encoder, str):
        choices, encoder = {**choices, "encoder": encoder}, None  # type: ignore[typeddict-unknown-key]
    if is_path(corpus) and not isinstance(source, Pairs):
        choices, corpus = with_corpus_file(choices, options, corpus), None
    (options := with_given(chosen(options or MineOptions(), choices))).validate()
    if encoder is not None:
        options = replace(options, encoder=object_spec(encoder))
        encoder = checked_encoder(encoder, "encoder", batch_size, "auto")
    source = source if corpus is None and is_path(source) else as_pairs(source, options.read, corpus)
    several, target = parse_devices(devices), Path(out)
    resources = Resources(batch_size, device, several, options.encoder_precision, cache, progress)
    with (
        torch_threads(threads),
        run_output(target, resume=resume, overwrite=overwrite, config=options.to_json()) as folder,
    ):
        finished = (folder / "run.json").exists()
        if finished:
            check_finished(source, folder, options, vectors, encoder, resources, target)
        else:
            _begin(folder, target, source, options, (vectors, encoder), resources, command, force)
        # `progress` is still there if the process was killed between the last write and the clean-up.
        shutil.rmtree(folder / "progress", ignore_errors=True)
    return mined_run(target, finished, command)


def mined_run(target: Path, finished: bool, command: list[str] | None) -> Run:
    """The run that a pass wrote; DataError if every candidate was rejected, unless it was `finished` before. Tells its warnings."""
    run = Run(target, verify=False)
    tell(run.info["warnings"], command)
    if not finished and not any(int(k) for k in run.info["counts"]["negatives"]):
        raise DataError(_all_rejected(target, run.info["counts"]["verdicts"]))
    return run


def _begin(
    folder: Path,
    target: Path,
    source: Any,
    options: MineOptions,
    given: tuple[tuple[np.ndarray, np.ndarray] | None, Encoder | None],
    resources: Resources,
    command: list[str] | None,
    force: bool,
) -> None:
    """Begin a run, or go on with an interrupted one, and finish it. `given`: vectors and encoder, see `mine`."""
    check_config(folder, options.to_json(), target)
    chain = parse_filters(options.filters, options.default_filters)

    def check(found: dict[str, Any]) -> None:
        check_inputs(folder, found | chain.check(found, force), target, record=False)

    inputs = open_inputs(source, folder, options, *given, resources, check)
    inputs.fingerprints |= chain.check(inputs.fingerprints, force)
    check_inputs(folder, inputs.fingerprints, target)
    _mine(folder, target, inputs, options, chain, resources, command, force)


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Set the number of torch threads, and restore it afterwards; None changes nothing."""
    if threads is None:
        yield
        return
    checked_threads(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mine(
    folder: Path,
    target: Path,
    inputs: Inputs,
    options: MineOptions,
    chain: Chain,
    resources: Resources,
    command: list[str] | None,
    force: bool,
) -> None:
    """Build the index, mine every part, and write the run to `folder`, from where it comes to `target`."""
    pairs, clock = inputs.pairs, resources.clock
    depth, max_depth = resolve_depth(options, len(pairs.document_ids))
    advance = resources.progress("index", 1)
    index, recall = _index(inputs, options, depth)
    given = inputs.fingerprints.get("encoder") is None
    doubts = check_positives(pairs, inputs.query_vectors, index, options.seed, given, force)
    advance(1)
    sources = _sources(inputs, options, index, folder, target, resources)
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
        embed=guide_embedder(pairs, folder, resources, seed=options.seed, precision=options.precision),
        sources=sources,
    )
    writer = PartWriter(folder, pairs, chain.names)
    clock.lap("index")
    _mine_parts(miner, writer, resources)
    paths = [path for path in (options.query_embeddings, options.corpus_embeddings) if path and not is_url(path)]
    paths += posterior_files(inputs.fingerprints)
    paths += [path for each in (sources.sources if sources else ()) for path in each.files]
    left = keep_posterior(folder, target, paths)
    resolved: dict[str, Any] = {"depth": depth, "max_depth": max_depth, "index": index.name, "recall": recall.to_json()}
    resolved |= {"dimension": index.dimension, **(sources.to_json() if sources else {})}
    resolved |= {} if inputs.encoding is None else {"encoder": inputs.encoding}
    said = [*doubts, *left, *inputs.notes, *(sources.notes if sources else ())]
    said += metric_notes(inputs.encoding, options.metric)
    said += [*warnings(pairs, options, depth, inputs.fingerprints), *missed(recall)]
    said += chain.of_chosen(writer.mean_probability(), options.to_json())
    writer.finish(
        run_head(
            options.to_json(), command, resolved, inputs.fingerprints, reading_of(pairs), said, clock.seconds, environment(index),
            relative_paths(target, paths),
        )
    )  # fmt: skip


def run_head(
    config: dict[str, Any], command: list[str] | None, resolved: dict[str, Any], fingerprints: dict[str, Any],
    reading: dict[str, Any], said: list[str], seconds: dict[str, float], machine: dict[str, Any], paths: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """What `run.json` says of a pass, before the counts and the files."""
    return {
        "hardneg_version": package_version("hardneg"),
        "command": command,
        "config": config,
        "resolved": resolved,
        "fingerprints": fingerprints,
        "reading": reading,
        "seed": config["seed"],
        "warnings": said,
        "timings": seconds,
        "environment": machine,
        "selections": [],
        "paths": paths,
    }


def _sources(
    inputs: Inputs, options: MineOptions, index: Index, folder: Path, target: Path, resources: Resources
) -> FusedSearch | None:
    """Open the sources of candidates, and check that they are those of the interrupted run; None: only the index is searched."""
    sources = parse_sources(options.candidates)
    if only_dense(sources):
        return None
    given = SourceInputs(inputs.pairs, inputs.query_vectors, index, folder, options.to_json(), resources)
    opened = FusedSearch.open(sources, parse_fusion(options.fusion), given)
    check_sources(folder, opened.fingerprints, target)
    inputs.fingerprints |= opened.fingerprints
    resources.clock.lap("sources")
    return opened


def keep_posterior(folder: Path, target: Path, used: list[str]) -> list[str]:
    """Copy the posterior in the run that is replaced, if the new run uses it; or say that it goes with the old run."""
    own = target / "posterior.json"
    if folder.resolve() == target.resolve() or not own.is_file():
        return []
    if any(os.path.realpath(path) == os.path.realpath(own) for path in used):
        copy_posterior(own, folder / own.name)
        return []
    return [
        f"{own} was removed with the run that this one replaces: it was learned from that run. Learn it again (hardneg calibrate)"
    ]


def _mine_parts(miner: Miner, writer: PartWriter, resources: Resources) -> None:
    """Mine and write all parts that are not on disk yet.

    One part is written while the next is searched: writing needs one worker, and a search leaves one idle at its end.
    """
    pairs, clock = miner.pairs, resources.clock
    advance_search, advance_write = (resources.progress(stage, len(pairs)) for stage in ("search", "write"))
    with ThreadPoolExecutor(1) as background:
        writing: Future[None] | None = None
        for part in range(writer.parts):
            start, stop = writer.span(part)
            if writer.finished(part):
                advance_search(stop - start)
                advance_write(stop - start)
                continue
            judged = miner.mine(start, stop, _queries_done(advance_search, len(pairs.document_ids)))
            if writing is not None:
                writing.result()
            writing = background.submit(_write, writer, part, judged, advance_write)
            del judged
        clock.lap("search")
        if writing is not None:
            writing.result()
        clock.lap("write")


def _index(inputs: Inputs, options: MineOptions, depth: int) -> tuple[Index, Recall]:
    """Build the index and measure its recall; DataError if the vectors do not fit together."""
    queries, documents = inputs.query_vectors, inputs.document_vectors
    if queries.shape[1] != documents.shape[1]:
        raise DataError(
            f"query vectors have {queries.shape[1]} dimensions, corpus vectors {documents.shape[1]}: "
            f"embed both with the same encoder"
        )
    checked_norms(queries, "query", zero_allowed=options.metric != "cosine")
    return make_index_of(
        inputs.pairs.mixed, options.index, documents, options.metric, queries=queries, k=depth, recall=options.recall,
        seed=options.seed, device=options.index_device,
    )  # fmt: skip


def missed(recall: Recall) -> list[str]:
    """A warning for `run.json` if the index misses its target recall."""
    if recall.reached:
        return []
    return [
        f"the index finds {recall.measured:.3f} (standard error {recall.error:.3f}) of the {recall.k} nearest documents, "
        f"less than the {recall.target} asked for: use --index exact"
    ]


def _write(writer: PartWriter, part: int, judged: Judged, advance: Callable[[int], None]) -> None:
    """Write one part, free its memory, and report the progress."""
    writer.write(part, judged)
    release()
    advance(len(judged.verdicts))


def _queries_done(advance: Callable[[int], None], documents: int) -> Callable[[int], None]:
    """Convert counts of scored (query, document) pairs to counts of queries, so that the progress moves within a part."""
    done = [0, 0]

    def count(pairs: int) -> None:
        done[0] += pairs
        queries = done[0] // documents
        advance(queries - done[1])
        done[1] = queries

    return count


def _all_rejected(folder: Path, verdicts: dict[str, int]) -> str:
    """The message for a run without any negative."""
    rejected = {name: n for name, n in verdicts.items() if name != "kept" and n}
    if not rejected:
        return f"no query has a candidate that could be a negative; the run with all candidates is in {folder}"
    strictest = max(rejected, key=lambda name: rejected[name])
    return (
        f"all candidates were rejected, most of them ({rejected[strictest]:,} of {sum(verdicts.values()):,}) by the filter "
        f"{strictest!r}: loosen it, or raise --depth. The run with every verdict is in {folder}; "
        f"'hardneg select' filters it again without a new search"
    )
