"""Inputs of a mining pass: the dataset, its vectors, and the fingerprints of both."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hardneg import renamed
from hardneg.data.pairs import Pairs, open_pairs, save_pairs
from hardneg.data.read import read_pairs
from hardneg.encoders.base import Encoder
from hardneg.encoders.embed import embed, fit
from hardneg.encoders.factory import make_encoder
from hardneg.encoders.precomputed import aligned, open_vectors
from hardneg.errors import RunError
from hardneg.memory import release
from hardneg.mining.options import MineOptions
from hardneg.progress import Progress, silent
from hardneg.storage.files import sha256_file
from hardneg.storage.json_files import read_json, write_json


@dataclass
class Inputs:
    """Inputs of a mining pass.

    Attributes:
        pairs: the dataset.
        query_vectors: `[n, d]`, one row per query of the dataset, in its order.
        document_vectors: `[N, d]`, one row per document of the dataset, in its order.
        fingerprints: fingerprints of the dataset, the encoder and the vectors, by name. They identify the pass.
    """

    pairs: Pairs
    query_vectors: Any
    document_vectors: Any
    fingerprints: dict[str, Any]


class Clock:
    """Measures the seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._last, 3)
        self._last = now


@dataclass(frozen=True)
class Resources:
    """Settings that affect how a pass runs, but not its result.

    Attributes:
        batch_size: number of texts that an encoder processes at once.
        device: device of the encoders; None: the one that torch finds.
        cache: folder for embeddings that several runs share; None: keep them inside the run.
        progress: callback that reports the progress of each stage.
        clock: measures the time of each stage.
    """

    batch_size: int = 32
    device: str | None = None
    cache: str | Path | None = None
    progress: Progress = silent
    clock: Clock = field(default_factory=Clock)

    def embeddings(self, folder: Path) -> Path:
        """Return the folder with the embeddings of the run in `folder`."""
        return Path(self.cache) if self.cache is not None else folder / "embeddings"

    def encoder(self, spec: str, seed: int) -> Encoder:
        """Make the encoder that `spec` names."""
        return make_encoder(spec, seed=seed, device=self.device, batch_size=self.batch_size)


def open_inputs(
    source: str | Path | Pairs,
    folder: Path,
    options: MineOptions,
    vectors: tuple[np.ndarray, np.ndarray] | None,
    encoder: Encoder | None,
    resources: Resources,
) -> Inputs:
    """Read the dataset, then open its vectors or encode it. The arguments are those of `mine`."""
    if isinstance(source, Pairs):
        pairs = source
        if not (folder / "source" / "dataset.json").exists():
            save_pairs(pairs, folder / "source")  # so that the run can be exported and selected from
    else:
        pairs = _read(str(source), folder, options, resources.progress)
    release()
    resources.clock.lap("read")
    fingerprints: dict[str, Any] = {"source": pairs.name, **pairs.digests}
    names = "query vectors", "corpus vectors"
    if options.query_embeddings is not None and options.corpus_embeddings is not None:
        names = options.query_embeddings, options.corpus_embeddings
        vectors = open_vectors(names[0]), open_vectors(names[1])
        fingerprints["query_embeddings"], fingerprints["corpus_embeddings"] = (
            sha256_file(Path(name)) for name in names
        )
    if vectors is not None:
        queries = aligned(vectors[0], pairs.query_rows, pairs.source_query_rows, names[0], "queries")
        documents = aligned(vectors[1], pairs.document_rows, pairs.source_document_rows, names[1], "documents")
        fingerprints["encoder"] = None
        resources.clock.lap("embeddings")
        return Inputs(pairs, queries, documents, fingerprints)
    return _encoded(
        pairs, folder, options, encoder or resources.encoder(options.encoder, options.seed), resources, fingerprints
    )


def _encoded(
    pairs: Pairs,
    folder: Path,
    options: MineOptions,
    encoder: Encoder,
    resources: Resources,
    fingerprints: dict[str, Any],
) -> Inputs:
    """Encode the dataset, and add the fingerprints of the encoder and its vectors to `fingerprints`."""
    fit(encoder, pairs, resources.progress)
    fingerprints["encoder"] = encoder.fingerprint()
    resources.clock.lap("encoder")
    queries, documents, keys = embed(
        encoder,
        pairs,
        resources.embeddings(folder),
        query_prompt=options.query_prompt,
        document_prompt=options.document_prompt,
        precision=options.precision,
        progress=resources.progress,
    )
    fingerprints["query_vectors"], fingerprints["document_vectors"] = keys
    resources.clock.lap("encode")
    return Inputs(pairs, queries, documents, fingerprints)


def _read(source: str, folder: Path, options: MineOptions, progress: Progress) -> Pairs:
    store = folder / "source"
    if (store / "dataset.json").exists():
        return open_pairs(store)
    advance = progress("read", 1)
    pairs = read_pairs(source, options.read, store)
    advance(1)
    return pairs


def check_config(folder: Path, options: MineOptions) -> None:
    """Raise RunError if the unfinished run in `folder` has other options; record the options of a new run."""
    path = folder / "progress" / "config.json"
    if path.exists():
        same_config(read_json(path), options.to_json(), folder)
    else:
        write_json(path, options.to_json())


def same_config(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raise RunError if any option differs; the message names those that do. Old names of filters equal the new ones."""
    before, now = renamed.with_new_filters(before), renamed.with_new_filters(now)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        differences = "; ".join(f"{name}: {before.get(name)!r} before, {now[name]!r} now" for name in changed)
        raise RunError(
            f"{folder} was started with other options ({differences}): resume with the same options, or use --overwrite"
        )


def check_inputs(folder: Path, inputs: Inputs) -> None:
    """Raise RunError if the unfinished run in `folder` has other inputs; record the inputs of a new run."""
    path = folder / "progress" / "inputs.json"
    if not path.exists():
        write_json(path, inputs.fingerprints)
        return
    before = read_json(path)
    changed = [name for name in inputs.fingerprints if before.get(name) != inputs.fingerprints[name]]
    if changed:
        raise RunError(f"{folder} was started with other inputs ({', '.join(changed)} changed since): use --overwrite")
