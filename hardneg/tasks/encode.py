"""Tasks that make vectors: encode a piece, measure the lengths in a shard, put the pieces together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hardneg.encoders.embed import encoded
from hardneg.encoders.modalities import check_takes
from hardneg.errors import DataError
from hardneg.index.vectors import checked_norms
from hardneg.storage.files import sha256_file
from hardneg.storage.vectors import EmbeddingStore, Span
from hardneg.tasks.bench import Bench
from hardneg.tasks.graph import Task, named
from hardneg.tasks.plan import SIDES
from hardneg.tasks.records import Outcome
from hardneg.tasks.vectors import encoded_vectors, piece_store


def encode(bench: Bench, task: Task) -> Outcome:
    """Encode the texts of a piece. What a worker that died has written of it is kept."""
    (side,), (number, piece) = task.words, task.numbers
    plan = bench.plan
    model, bounds = plan.models[number], plan.pieces(side)
    store = piece_store(bench.folder, model, number, side, piece, bounds, str(plan.config["precision"]))
    notes: list[str] = []
    if not store.complete:
        notes = _encode(bench, number, side, store, bounds[piece])
    manifest = store.folder / "manifest.json"
    files = {manifest.relative_to(bench.folder).as_posix(): sha256_file(manifest)}
    return Outcome(files, {"notes": notes, "rows": bounds[piece + 1] - bounds[piece]})


def _encode(bench: Bench, number: int, side: str, store: EmbeddingStore, begin: int) -> list[str]:
    """Encode what a piece lacks that begins at row `begin`, or take it from the cache. Returns what went wrong and was done again."""
    model, pairs = bench.plan.models[number], bench.pairs
    whole = _whole(bench, number, side) if bench.plan.cache is not None else None
    if whole is not None and whole.complete:
        known = whole.open()
        store.fill(lambda start, stop: known[begin + start : begin + stop], _ignored)
        return []
    encoder, texts = bench.encoder(number), pairs.queries if side == "queries" else pairs.documents
    check_takes(encoder, texts, side)

    def vectors(spans: list[Span]) -> Iterator[tuple[int, Any]]:
        moved = [Span(span.number, begin + span.start, begin + span.stop) for span in spans]
        return encoded(encoder, texts, model.prompts[side], _ignored, moved)

    try:
        store.fill_with(vectors, _ignored)
    except DataError as error:
        raise DataError(f"{side} from row {begin:,} on: {error}") from None
    said: Any = getattr(encoder, "said", list)
    return [f"encode {side}: {each}" for each in said()]


def _whole(bench: Bench, number: int, side: str) -> EmbeddingStore:
    """Where a run keeps the vectors of a side."""
    plan = bench.plan
    model = plan.models[number]
    folder = Path(plan.cache) if plan.cache is not None else bench.folder / "embeddings"
    key, precision = model.keys[side], str(plan.config["precision"])
    return EmbeddingStore(folder / f"{side}-{key[:16]}", key, plan.count(side), model.dimension, precision)


def notes_of(bench: Bench) -> list[str]:
    """What went wrong while the encoder of the pass encoded, and was done again."""
    if not bench.plan.models or bench.plan.given:
        return []
    tasks = [named("encode", 0, side, piece) for side in SIDES for piece in range(len(bench.plan.pieces(side)) - 1)]
    return [note for task in tasks for note in bench.records.result(task)["notes"]]


def norms(bench: Bench, task: Task) -> Outcome:
    """Measure the lengths of the vectors in a shard, which checks them."""
    (shard,) = task.numbers
    start, stop = bench.plan.shard(shard)
    documents: Any = bench.vectors("documents").part(start, stop)
    try:
        found = checked_norms(documents, "corpus", zero_allowed=bench.plan.metric != "cosine")
    except DataError as error:
        raise DataError(
            f"documents {start:,} to {stop - 1:,}, whose rows are counted from {start:,}: {error}"
        ) from None
    return Outcome(bench.records.save(task.name, {"norms": found}), {"rows": stop - start})


def store(bench: Bench, task: Task) -> Outcome:
    """Copy all vectors of a side to where a run keeps them."""
    (side,), (number,) = task.words, task.numbers
    vectors, whole = encoded_vectors(bench.folder, bench.plan, bench.records, side, number), _whole(bench, number, side)
    if (
        bench.plan.cache is None and whole.folder.is_dir()
    ):  # of a worker that died, or found damaged: its pieces are still there
        shutil.rmtree(whole.folder)
        whole = _whole(bench, number, side)
    whole.fill(lambda start, stop: vectors[start:stop], _ignored)
    kept = sorted(whole.folder.iterdir()) if bench.plan.cache is None else []
    files = {path.relative_to(bench.folder).as_posix(): sha256_file(path) for path in kept if path.is_file()}
    return Outcome(files, {"rows": len(vectors)})


def _ignored(count: int) -> None:
    """A task reports when it is finished."""
