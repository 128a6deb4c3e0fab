"""What a worker has open: the dataset, vectors, indexes of shards, encoders, and what filters share."""

from __future__ import annotations

import functools
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs, open_pairs
from hardneg.encoders.base import Encoder
from hardneg.encoders.embed import fit
from hardneg.encoders.factory import make_encoder
from hardneg.errors import RunError
from hardneg.index.kmeans import Centroids
from hardneg.mining.filters.base import Chain
from hardneg.mining.run_folder import located_filters
from hardneg.mining.specs import parse_filters
from hardneg.progress import silent
from hardneg.storage.arrays import Float
from hardneg.tasks.graph import named
from hardneg.tasks.plan import Plan
from hardneg.tasks.records import Records
from hardneg.tasks.vectors import Corpus, Pieces, ShardIndex, ShardLists, encoded_vectors, given_vectors

_SHARDS = 2  # indexes of shards that are kept open
_MODELS = 1  # encoders that are kept


class Bench:
    """What a worker has open. It is filled as tasks need it.

    Args:
        folder: the run folder.
        plan: the plan.
        device, batch_size: of the encoders.
    """

    def __init__(self, folder: Path, plan: Plan, device: str | None = None, batch_size: int | None = None) -> None:
        self.folder, self.plan, self.device, self.batch_size = folder, plan, device, batch_size
        self.records = Records(folder, plan.name)
        self.shared: dict[str, Any] = {}  # what filters share between blocks
        self.index = functools.lru_cache(_SHARDS)(self._index)
        self.encoder = functools.lru_cache(_MODELS)(self._encoder)
        self._vectors = functools.lru_cache(None)(self._opened)

    @cached_property
    def pairs(self) -> Pairs:
        return open_pairs(self.folder / "source")

    @cached_property
    def chain(self) -> Chain:
        info = {"config": self.plan.config, "fingerprints": self.plan.fingerprints, "paths": self.plan.head["paths"]}
        return parse_filters(located_filters(self.folder, info), self.plan.config["default_filters"])

    def vectors(self, side: str, model: int = 0) -> Pieces:
        """The vectors of a side, `queries` or `documents`."""
        return self._vectors(side, model)

    def _opened(self, side: str, model: int) -> Pieces:
        if self.plan.given and model == 0:
            return given_vectors(self.pairs, self.plan.given[side], side)
        return encoded_vectors(self.folder, self.plan, self.records, side, model)

    def query_vectors(self, start: int, stop: int) -> Float:
        """float32 `[n, d]`: the vectors of these queries."""
        return np.asarray(self.vectors("queries")[start:stop], np.float32)

    def norms(self, shard: int) -> NDArray[Any]:
        """float32: the norms of the documents of a shard."""
        return self.records.array(named("norms", shard), "norms")

    def corpus(self, shard: int | None = None) -> Corpus:
        """The documents of a shard, or all."""
        documents = self.vectors("documents")
        if shard is None:
            norms = np.concatenate([self.norms(j) for j in range(self.plan.shard_count)])
            return Corpus(norms, documents, self.plan.metric)
        return Corpus(self.norms(shard), documents.part(*self.plan.shard(shard)), self.plan.metric)

    @cached_property
    def whole(self) -> Corpus:
        """All documents, to score pairs of queries and documents."""
        return self.corpus()

    def centroids(self, name: str) -> Centroids:
        task = named("centroids", name)
        return Centroids(np.array(self.records.array(task, "centroids")), str(self.records.result(task)["metric"]))

    def _index(self, name: str, shard: int) -> ShardIndex | ShardLists:
        """The index `main` or `graph` of a shard."""
        documents = self.vectors("documents").part(*self.plan.shard(shard))
        if self.plan.indexes[name].kind == "exact":
            return self.exact(shard)
        task, tuned = named("assign", name, shard), named("tune", name)
        order = np.array(self.records.array(task, "order")), np.array(self.records.array(task, "offsets"))
        index = ShardLists(
            self.norms(shard), documents, self.plan.metric, centroids=self.centroids(name), order=order,
            probe_margin=self.records.result(tuned)["probe_margin"],
        )  # fmt: skip
        index.whole = np.diff(np.array(self.records.array(tuned, "offsets")))
        return index

    def exact(self, shard: int) -> ShardIndex:
        """The exact index of a shard."""
        if self.shared.get("exact shard") != shard:
            documents = self.vectors("documents").part(*self.plan.shard(shard))
            self.shared |= {
                "exact": ShardIndex(self.norms(shard), documents, self.plan.metric), "exact shard": shard,
            }  # fmt: skip
        index: ShardIndex = self.shared["exact"]
        return index

    def _encoder(self, number: int) -> Encoder:
        """An encoder of the plan; RunError if it is not the one that the plan was written with."""
        model = self.plan.models[number]
        precision = "float32" if model.number_format is None else "auto"
        encoder = make_encoder(
            model.spec,
            seed=int(self.plan.config["seed"]),
            device=self.device,
            batch_size=self.batch_size,
            precision=precision,
        )
        settable: Any = encoder
        if model.number_format is not None:
            settable.go_on(model.number_format["precision"], model.number_format["precision_reason"])
        fit(encoder, self.pairs, silent)
        found = encoder.fingerprint()
        if found != model.fingerprint:
            raise RunError(
                f"the encoder {model.spec!r} is another one here (fingerprint {found[:12]}) than where the plan was written "
                f"({model.fingerprint[:12]}): its weights, or a package that it needs, differ. Give this machine the same ones"
            )
        return encoder
