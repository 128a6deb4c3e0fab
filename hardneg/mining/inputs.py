"""What a mining pass works on: the dataset, its vectors, and fingerprints of both."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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
from hardneg.storage.files import read_json, sha256_file, write_json


@dataclass
class Inputs:
    """What a pass works on.

    Attributes:
        pairs: the dataset.
        query_vectors: `[n, d]`, document_vectors: `[N, d]`, in the order of its rows.
        fingerprints: of the dataset, the encoder and the vectors: what identifies the pass.
    """

    pairs: Pairs
    query_vectors: Any
    document_vectors: Any
    fingerprints: dict[str, Any]


class Clock:
    """Seconds by stage."""

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
    """What a pass is carried out with. Nothing here changes its result.

    Attributes:
        batch_size: texts that an encoder takes at once.
        device: of encoders; None: what torch finds.
        cache: folder for embeddings, to share them between runs; None: inside the run.
        progress: told of the stages.
        clock: takes their times.
    """

    batch_size: int = 32
    device: str | None = None
    cache: str | Path | None = None
    progress: Progress = silent
    clock: Clock = field(default_factory=Clock)

    def embeddings(self, folder: Path) -> Path:
        """Where the embeddings of a run in `folder` stand."""
        return Path(self.cache) if self.cache is not None else folder / "embeddings"

    def encoder(self, spec: str, seed: int) -> Encoder:
        """The encoder that `spec` names."""
        return make_encoder(spec, seed=seed, device=self.device, batch_size=self.batch_size)


def open_inputs(
    source: str | Path | Pairs,
    folder: Path,
    options: MineOptions,
    vectors: tuple[np.ndarray, np.ndarray] | None,
    encoder: Encoder | None,
    resources: Resources,
) -> Inputs:
    """Read the dataset, and open its vectors or encode it; arguments as of `mine`."""
    if isinstance(source, Pairs):
        pairs = source
        if not (folder / "source" / "dataset.json").exists():
            save_pairs(pairs, folder / "source")  # a run stands alone: it can be exported and selected from
    else:
        pairs = _read(str(source), folder, options, resources.progress)
    release()
    resources.clock.lap("read")
    prints: dict[str, Any] = {"source": pairs.name, **pairs.digests}
    names = "query vectors", "corpus vectors"
    if options.query_embeddings is not None and options.corpus_embeddings is not None:
        names = options.query_embeddings, options.corpus_embeddings
        vectors = open_vectors(names[0]), open_vectors(names[1])
        prints["query_embeddings"], prints["corpus_embeddings"] = (sha256_file(Path(name)) for name in names)
    if vectors is not None:
        queries = aligned(vectors[0], pairs.query_rows, pairs.source_query_rows, names[0], "queries")
        documents = aligned(vectors[1], pairs.document_rows, pairs.source_document_rows, names[1], "documents")
        prints["encoder"] = None
        resources.clock.lap("embeddings")
        return Inputs(pairs, queries, documents, prints)
    return _encoded(
        pairs, folder, options, encoder or resources.encoder(options.encoder, options.seed), resources, prints
    )


def _encoded(
    pairs: Pairs, folder: Path, options: MineOptions, encoder: Encoder, resources: Resources, prints: dict[str, Any]
) -> Inputs:
    """The inputs with vectors of `encoder`, and their fingerprints added to `prints`."""
    fit(encoder, pairs, resources.progress)
    prints["encoder"] = encoder.fingerprint()
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
    prints["query_vectors"], prints["document_vectors"] = keys
    resources.clock.lap("encode")
    return Inputs(pairs, queries, documents, prints)


def _read(source: str, folder: Path, options: MineOptions, progress: Progress) -> Pairs:
    store = folder / "source"
    if (store / "dataset.json").exists():
        return open_pairs(store)
    advance = progress("read", 1)
    pairs = read_pairs(source, options.read, store)
    advance(1)
    return pairs


def check_config(folder: Path, options: MineOptions) -> None:
    """RunError if the unfinished run in `folder` was started with other options; else they are written down."""
    path = folder / "progress" / "config.json"
    if path.exists():
        same_config(read_json(path), options.to_json(), folder)
    else:
        write_json(path, options.to_json())


def same_config(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """RunError that names the options which differ."""
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        said = "; ".join(f"{name}: {before.get(name)!r} before, {now[name]!r} now" for name in changed)
        raise RunError(f"{folder} was started with other options ({said}): resume with the same, or use --overwrite")


def check_inputs(folder: Path, inputs: Inputs) -> None:
    """RunError if the unfinished run in `folder` was started with other inputs; else they are written down."""
    path = folder / "progress" / "inputs.json"
    if not path.exists():
        write_json(path, inputs.fingerprints)
        return
    before = read_json(path)
    changed = [name for name in inputs.fingerprints if before.get(name) != inputs.fingerprints[name]]
    if changed:
        raise RunError(f"{folder} was started with other inputs ({', '.join(changed)} changed since): use --overwrite")
