"""Writes the plan of a pass: reads the source, checks what a plan cannot hold, and records what workers must find."""

from __future__ import annotations

import glob
import itertools
from pathlib import Path
from typing import Any

from hardneg.data.pairs import Pairs
from hardneg.encoders.base import Encoder, dimension_of, prompt_of
from hardneg.encoders.embed import fit, vector_keys
from hardneg.encoders.modalities import check_takes
from hardneg.encoders.precomputed import open_aligned, order_notes
from hardneg.encoders.report import encoding_of, metric_notes
from hardneg.errors import DataError, UsageError
from hardneg.false_negatives.shared_neighbors import NEAREST
from hardneg.index.factory import fastest_index
from hardneg.index.vectors import VectorStore, checked_norms
from hardneg.mining.candidates import NEAREST_FOUND
from hardneg.mining.encoding import set_precision
from hardneg.mining.environment import package_version
from hardneg.mining.inputs import check_config, check_inputs, read_source, reading_of
from hardneg.mining.mine import keep_posterior
from hardneg.mining.options import MineOptions, resolve_depth, search_depths
from hardneg.mining.parts import PART_ROWS
from hardneg.mining.resources import Resources
from hardneg.mining.run_folder import posterior_files, relative_paths
from hardneg.mining.sanity import check_positives
from hardneg.mining.sources.search import only_dense
from hardneg.mining.specs import parse_filters, parse_sources
from hardneg.mining.warnings import warnings
from hardneg.registry import spec_of
from hardneg.storage.files import sha256_file
from hardneg.storage.remote import is_url
from hardneg.tasks.plan import BLOCK_PARTS, MOST_SHARDS, SIDES, Given, Model, Plan, SearchIndex, cut
from hardneg.tasks.vectors import digest_of, rows_between

_ROWS = 1024  # shards begin at a multiple of this where the products that choose lists depend on it


def refuse(options: MineOptions, shards: int, source: Any = None) -> None:
    """UsageError for what a plan cannot hold. Nothing has been read or written yet."""
    if isinstance(source, Pairs) and source.mixed is not None:
        raise UsageError(
            "a mixture cannot be cut into tasks: mine it without an engine, or each of its sources by itself"
        )
    if not 1 <= shards <= MOST_SHARDS:
        raise UsageError(f"{shards} shards: give 1 to {MOST_SHARDS:,}")
    for what, part in (
        ("the index", options.index), ("the sampler", options.sampler), *(("the filter", each) for each in options.filters)
    ):  # fmt: skip
        if spec_of(part).startswith("object:"):
            raise UsageError(
                f"{what} {spec_of(part).removeprefix('object:')} is an object of this process, which no other worker has: register "
                f"it under a name that workers register as well, or mine without an engine"
            )
    if options.index == "hnsw":
        raise UsageError("a graph (--index hnsw) is one piece and cannot be sharded: use --index ivf, exact or auto")
    if options.index_device != "cpu":
        raise UsageError(
            f"--index-device {options.index_device}: scores of a GPU are not the same bytes in every cut, so shards are searched on "
            f"processors: leave it out (encoders use GPUs)"
        )
    for place in (options.query_embeddings, options.corpus_embeddings):
        if place is not None and (is_url(place) or glob.has_magic(str(place))):
            raise UsageError(
                f"{place}: workers read vectors from one file that all of them reach: bring it there first, and name that file"
            )
    if not only_dense(parse_sources(options.candidates)):
        raise UsageError(
            "only the candidates 'dense' can be sharded: mine the others in one process (hardneg mine without --plan and --engine)"
        )


def write_plan(
    folder: Path,
    target: Path,
    source: str | Path | Pairs,
    options: MineOptions,
    resources: Resources,
    *,
    shards: int,
    command: list[str] | None = None,
    force: bool = False,
) -> Plan:
    """Read the source into the run folder, and write the plan of the pass.

    Args:
        folder: where the run is written. `target`: where it will be.
        source, options, resources, command, force: as for `mine`. The encoder and vectors are those that the options name.
        shards: the number of shards of the corpus.

    Raises:
        UsageError: for what a plan cannot hold, before anything is written. DataError, RunError: as `mine`.
    """
    refuse(options, shards, source)
    check_config(folder, options.to_json(), target)
    notes: list[str] = []
    pairs = read_source(source, folder, options, resources, notes)
    planner = _Planner(pairs, options, resources, folder, shards, force)
    fingerprints = planner.opened()
    check_inputs(folder, fingerprints, target)
    paths = [path for path in (options.query_embeddings, options.corpus_embeddings) if path is not None]
    paths += posterior_files(fingerprints)
    plan = Plan(
        config=options.to_json(), fingerprints=fingerprints, queries=len(pairs), documents=len(pairs.document_ids),
        shards=planner.shards, blocks=planner.blocks, models=planner.models, given=planner.given, depths=planner.depths,
        nearest=min(NEAREST_FOUND, len(pairs.document_ids)) if "nearest" in planner.needs else 0, indexes=planner.indexes,
        head={
            "command": command,
            "resolved": planner.resolved,
            "reading": reading_of(pairs),
            "doubts": planner.doubts,
            "left": keep_posterior(folder, target, paths),
            "warnings": [
                *notes,
                *metric_notes(planner.resolved.get("encoder"), options.metric),
                *warnings(pairs, options, planner.depths[0], fingerprints),
            ],
            "paths": relative_paths(target, paths),
            "timings": resources.clock.seconds,
        },
        force=force, cache=None if resources.cache is None else str(Path(resources.cache).resolve()),
        version=str(package_version("hardneg")),
    )  # fmt: skip
    plan.save(folder)
    return plan


class _Planner:
    """What a plan is made of, found step by step."""

    def __init__(
        self, pairs: Pairs, options: MineOptions, resources: Resources, folder: Path, shards: int, force: bool
    ) -> None:
        self.pairs, self.options, self.resources, self.folder, self.force = pairs, options, resources, folder, force
        self.chain = parse_filters(options.filters, options.default_filters)
        self.needs = frozenset(name for each in self.chain.filters for name in each.needs)
        depth, max_depth = resolve_depth(options, len(pairs.document_ids))
        self.depths = list(search_depths(depth, max_depth))
        self.indexes = self._indexes(depth)
        aligned = _ROWS if any(index.kind == "ivf" for index in self.indexes.values()) else 1
        self.shards = cut(len(pairs.document_ids), shards, aligned)
        parts = -(-len(pairs) // PART_ROWS)
        self.blocks = cut(len(pairs), max(-(-parts // BLOCK_PARTS), min(parts, shards)), PART_ROWS)
        self.models: list[Model] = []
        self.given: dict[str, Given] = {}
        self.doubts: list[str] = []
        self.resolved: dict[str, Any] = {"depth": depth, "max_depth": max_depth, "index": self.indexes["main"].kind}

    def _indexes(self, depth: int) -> dict[str, SearchIndex]:
        options, documents = self.options, len(self.pairs.document_ids)
        kind = fastest_index(documents, len(self.pairs)) if options.index == "auto" else options.index
        kind = "exact" if options.recall == 1 else kind
        found = {"main": SearchIndex(kind, depth, options.recall, options.seed, "queries")}  # type: ignore[arg-type]
        if "neighbors" in self.needs:
            # As `neighbor_graph` searches it: the index that suits documents as queries, with the recall and the seed of `make_index`.
            kind = fastest_index(documents, documents)
            found["graph"] = SearchIndex(kind, min(NEAREST, documents), 0.95, 0, "documents")  # type: ignore[arg-type]
        return found

    def opened(self) -> dict[str, Any]:
        """Open encoders and vectors. Returns the fingerprints of everything that decides the result."""
        options, fingerprints = self.options, {"source": self.pairs.name, **self.pairs.digests}
        prints: dict[str, Any] = fingerprints
        if options.query_embeddings is not None and options.corpus_embeddings is not None:
            names = {"queries": options.query_embeddings, "documents": options.corpus_embeddings}
            prints |= {"query_embeddings": sha256_file(Path(names["queries"]))}
            prints |= {"corpus_embeddings": sha256_file(Path(names["documents"])), "encoder": None}
            self._open_given(names)
        else:
            encoder = self.resources.encoder(options.encoder, options.seed)
            set_precision(encoder, options, self.folder)
            model = self._model(options.encoder, encoder, options.query_prompt, options.document_prompt)
            prints |= {"encoder": model.fingerprint}
            prints |= {"query_vectors": model.keys["queries"], "document_vectors": model.keys["documents"]}
            self.resolved["encoder"] = encoding_of(encoder, options.query_prompt, options.document_prompt)
            self.resolved["dimension"] = model.dimension
        for spec in dict.fromkeys(spec for each in self.chain.filters for spec in each.guide_encoders):
            self._model(spec, self.resources.encoder(spec, options.seed), None, None)
        return prints | self.chain.check(prints, self.force)

    def _model(self, spec: str, encoder: Encoder, query_prompt: str | None, document_prompt: str | None) -> Model:
        """Fit an encoder, and add it to the models."""
        pairs = self.pairs
        fit(encoder, pairs, self.resources.progress)
        check_takes(encoder, pairs.queries, "queries")
        check_takes(encoder, pairs.documents, "documents")
        prompts = [prompt_of(encoder, "query", query_prompt), prompt_of(encoder, "document", document_prompt)]
        keys = vector_keys(encoder, pairs, prompts[0], prompts[1], self.options.precision)
        number_format = None
        if hasattr(encoder, "go_on") and hasattr(encoder, "in_effect"):
            in_effect = encoder.in_effect()
            number_format = {name: str(in_effect[name]) for name in ("precision", "precision_reason")}
        model = Model(
            spec, encoder.fingerprint(), dimension_of(encoder), dict(zip(SIDES, prompts, strict=True)),
            dict(zip(SIDES, keys, strict=True)), number_format,
        )  # fmt: skip
        self.models.append(model)
        return model

    def _open_given(self, names: dict[str, str]) -> None:
        """Check given vectors as a whole, and remember what is in each shard and block."""
        zero = self.options.metric != "cosine"
        vectors: dict[str, Any] = {side: open_aligned(name, self.pairs, side) for side, name in names.items()}
        queries, documents = vectors["queries"], vectors["documents"]
        if queries.shape[1] != documents.shape[1]:
            raise DataError(
                f"query vectors have {queries.shape[1]} dimensions, corpus vectors {documents.shape[1]}: embed both with the same "
                f"encoder"
            )
        checked_norms(queries, "query", zero_allowed=zero)
        store = VectorStore(documents, self.options.metric)
        self.doubts = check_positives(self.pairs, queries, store, self.options.seed, True, self.force)
        for side, bounds in (("queries", self.blocks), ("documents", self.shards)):
            spans = itertools.pairwise(bounds)
            digests = [digest_of(rows_between(vectors[side], *span)) for span in spans]
            file, dtype = str(Path(names[side]).resolve()), str(vectors[side].dtype)
            self.given[side] = Given(file, bounds, digests, int(vectors[side].shape[1]), dtype)  # type: ignore[arg-type]
        self.doubts += order_notes(map(Path, names.values()))
        self.resolved["dimension"] = int(documents.shape[1])
