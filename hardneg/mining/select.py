"""Filter and sample again from the candidates of a run, without a new search."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hardneg.data.arrow import read_parquet, values_of
from hardneg.data.pairs import Pairs, Ragged
from hardneg.data.store import EmbeddingStore, read_json, sha256_file
from hardneg.encoders.precomputed import aligned, open_vectors
from hardneg.errors import RunError, UsageError
from hardneg.index.corpus import Corpus
from hardneg.mining.candidates import Candidates, Context, Float
from hardneg.mining.filters import lowest_scores
from hardneg.mining.mine import guide_embedder
from hardneg.mining.miner import Judged
from hardneg.mining.options import MineOptions
from hardneg.mining.run import PartWriter, Run, prepare
from hardneg.mining.samplers import draw, query_keys
from hardneg.mining.specs import parse_filters, parse_sampler
from hardneg.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """What may be chosen anew: as in `MineOptions`; None keeps what the run has."""

    filters: tuple[str, ...] | None = None
    default_filters: bool | None = None
    sampler: str | None = None
    negatives: int | None = None
    seed: int | None = None


def select(
    run: str | Path | Run,
    options: SelectOptions,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    batch_size: int = 32,
    device: str | None = None,
    progress: Progress = silent,
    command: list[str] | None = None,
) -> Run:
    """Judge the candidates of `run` again.

    Args:
        run: a finished run.
        options: what to change.
        out: a new run folder; None replaces `run` (its run.json keeps the history).
        overwrite: replace a run that stands at `out`.

    Returns:
        The new run. Queries keep the candidates they have: none is searched deeper.
    """
    run = run if isinstance(run, Run) else Run(run)
    config = {**run.info["config"], **{k: v for k, v in vars(options).items() if v is not None}}
    config["filters"] = list(config["filters"])
    chain = parse_filters(config["filters"], config["default_filters"])
    sampler = parse_sampler(config["sampler"])
    if config["negatives"] < 1:
        raise UsageError("negatives must be 1 or more")
    pairs = run.pairs()
    folder = Path(out) if out is not None else run.folder.with_name(f".{run.folder.name}.select")
    if out is None:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.resolve() == run.folder.resolve():
        raise UsageError(f"--out {out} is the run itself: leave --out away to replace it")
    prepare(folder, resume=False, overwrite=overwrite)
    for name in ("source", "embeddings"):
        _link_tree(run.folder / name, folder / name)
    keys = query_keys(pairs.query_ids)
    guide_options = MineOptions(seed=config["seed"], precision=config["precision"])
    context = Context(
        pairs,
        _index_opener(run, pairs),
        pairs.known_positives(),
        guide_embedder(pairs, guide_options, folder, None, batch_size, device, progress),
    )
    writer = PartWriter(folder, pairs, chain.names)
    advance = progress("select", len(pairs))
    positive_scores = _positive_scores(run)
    for part, path in enumerate(run.candidate_files()):
        start, stop = writer.span(part)
        candidates, all_positive = _load(path, pairs, start, stop, positive_scores)
        verdicts = chain.verdicts(candidates, context)
        kept = (verdicts == 0) & candidates.real
        chosen = draw(sampler, candidates, kept, config["negatives"], config["seed"], keys[start:stop])
        deep = int((candidates.real.sum(1) > run.info["resolved"]["depth"]).sum())
        writer.write(part, Judged(candidates, verdicts, chosen, all_positive, deep))
        advance(stop - start)
    kept_keys = ("hardneg_version", "resolved", "fingerprints", "warnings", "timings", "environment")
    before = {"config": run.info["config"], "command": run.info["command"], "counts": run.info["counts"]}
    writer.finish(
        {
            **{key: run.info[key] for key in kept_keys},
            "command": command,
            "config": config,
            "seed": config["seed"],
            "selections": [*run.info["selections"], before],
        }
    )
    if out is not None:
        return Run(folder, verify=False)
    old = run.folder.with_name(f".{run.folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(run.folder, old)
    os.replace(folder, run.folder)
    shutil.rmtree(old)
    return Run(run.folder, verify=False)


def _positive_scores(run: Run) -> Ragged:
    column = run.negatives()["positive_scores"].combine_chunks()
    lengths = values_of(column.value_lengths())
    return Ragged(np.concatenate([[0], np.cumsum(lengths)]), values_of(column.flatten()))


def _load(path: Path, pairs: Pairs, start: int, stop: int, positive_scores: Ragged) -> tuple[Candidates, Float]:
    """The candidates of one part, as the search gave them."""
    table = read_parquet(path, ["query_id", "document_id", "score"])
    ids = pairs.query_ids.slice(start, stop - start)
    rows = _places(table["query_id"], ids, path)
    documents = _places(table["document_id"], pairs.document_ids, path)
    counts = np.bincount(rows, minlength=stop - start)
    if len(rows) and (np.diff(rows) < 0).any():
        raise RunError(f"{path}: the queries are not in the order of the dataset: the run is damaged")
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (stop - start, int(counts.max(initial=0)))
    found = np.full(shape, -1, np.int32)
    scores = np.full(shape, -np.inf, np.float32)
    found[rows, place] = documents
    scores[rows, place] = values_of(table["score"])
    part = positive_scores.take(np.arange(start, stop))
    width = int(part.lengths.max(initial=0))
    all_positive = np.full((stop - start, width), -np.inf, np.float32)
    all_positive[np.arange(width) < part.lengths[:, None]] = part.values
    lowest = lowest_scores(all_positive)
    empty = np.empty((stop - start, 0), np.float32)
    return Candidates(np.arange(start, stop), found, scores, lowest, empty), all_positive


def _places(column: pa.ChunkedArray, ids: pa.Array, path: Path) -> np.ndarray:
    places = pc.index_in(column, value_set=ids)
    if places.null_count:
        first = column.filter(pc.is_null(places))[0].as_py()
        raise RunError(f"{path}: the id {first!r} is not in the run's dataset: the run is damaged")
    return values_of(places).astype(np.int64)


def _index_opener(run: Run, pairs: Pairs) -> Callable[[], Corpus]:
    """Opens the document vectors only if a filter asks for them."""

    def open_index() -> Corpus:
        config = run.info["config"]
        if config["corpus_embeddings"] is not None:
            path = Path(config["corpus_embeddings"])
            if not path.exists() or sha256_file(path) != run.info["fingerprints"]["corpus_embeddings"]:
                raise RunError(
                    f"{path} is missing or has changed since the run was made: this filter needs its vectors"
                )
            array: Any = aligned(
                open_vectors(path), pairs.document_rows, pairs.source_document_rows, str(path), "documents"
            )
            return Corpus(array, config["metric"])
        for manifest in sorted((run.folder / "embeddings").glob("documents-*/manifest.json")):
            head = read_json(manifest)
            store = EmbeddingStore(manifest.parent, head["key"], head["rows"], head["dimension"], head["dtype"])
            if head["key"] == run.info["fingerprints"].get("document_vectors") and store.complete:
                return Corpus(store.open(), config["metric"])
        raise RunError(f"{run.folder} keeps no document vectors: this filter needs them; mine again without --cache")

    return open_index


def _link_tree(source: Path, target: Path) -> None:
    """A copy of a folder that shares its files where the file system can; both are only ever replaced, not written into."""

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
