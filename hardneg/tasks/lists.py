"""Tasks of an inverted file: centroids once, the lists of every shard, and the probe margin that reaches the recall."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from hardneg.index.factory import tuned_on, tuning_sample
from hardneg.index.ivf import default_lists
from hardneg.index.kmeans import Centroids, by_list
from hardneg.index.recall import Recall
from hardneg.index.vectors import workers
from hardneg.storage.arrays import Float, Int
from hardneg.tasks.bench import Bench
from hardneg.tasks.graph import Task, named
from hardneg.tasks.plan import Plan
from hardneg.tasks.records import Outcome
from hardneg.tasks.search import merged, neighbors, packed
from hardneg.tasks.vectors import ShardLists


def centroids(bench: Bench, task: Task) -> Outcome:
    """Train the centroids on a sample of all documents."""
    (name,) = task.words
    whole, seed = bench.whole, bench.plan.indexes[name].seed
    with workers(whole.threads) as pool:
        trained = Centroids.train(whole, default_lists(whole.size), seed, pool)
    return Outcome(bench.records.save(task.name, {"centroids": trained.vectors}), {"metric": trained.metric})


def assign(bench: Bench, task: Task) -> Outcome:
    """Put the documents of a shard into lists."""
    (name,), (shard,) = task.words, task.numbers
    corpus, trained = bench.corpus(shard), bench.centroids(name)
    with workers(corpus.threads) as pool:
        lists = trained.assign(corpus.scaled, corpus.size, pool.map)
    order, offsets = by_list(lists, len(trained))
    return Outcome(bench.records.save(task.name, {"order": order.astype(np.int32), "offsets": offsets}))


def truth(bench: Bench, task: Task) -> Outcome:
    """The true neighbors of the sample that tunes and measures, in a shard."""
    (name,), (shard,) = task.words, task.numbers
    sample, _ = _sample(bench, name)
    index, k = bench.exact(shard), bench.plan.indexes[name].k
    keys = packed(index.search(sample, min(k, index.size)), bench.plan.shard(shard)[0])
    return Outcome(bench.records.save(task.name, {"keys": keys}))


def tune(bench: Bench, task: Task) -> Outcome:
    """Set the probe margin of the whole, and measure its recall."""
    (name,) = task.words
    plan, shards = bench.plan, range(bench.plan.shard_count)
    asked = plan.indexes[name]
    order, offsets = _order(bench, name)
    whole = ShardLists(
        np.concatenate([bench.norms(shard) for shard in shards]), bench.vectors("documents"), plan.metric,
        centroids=bench.centroids(name), order=(order, offsets),
    )  # fmt: skip
    whole.whole, whole.wanted = np.diff(offsets), asked.k
    sample, half = _sample(bench, name)
    keys = merged([bench.records.array(named("truth", name, shard), "keys") for shard in shards], asked.k)
    known = neighbors(keys).documents
    recall = tuned_on(whole, sample, half, known.__getitem__, known.shape[1], asked.recall)
    files = bench.records.save(task.name, {"order": order, "offsets": offsets})
    return Outcome(files, {"probe_margin": whole.probe_margin, "recall": asdict(recall)})


def _sample(bench: Bench, name: str) -> tuple[Float, int]:
    asked = bench.plan.indexes[name]
    return tuning_sample(bench.vectors(asked.queries), asked.seed)


def _order(bench: Bench, name: str) -> tuple[Any, Int]:
    """The documents list by list, and where each list begins: those of all shards, which lie in the order of their rows."""
    parts, counts = [], []
    for shard in range(bench.plan.shard_count):
        task = named("assign", name, shard)
        order, offsets = bench.records.array(task, "order"), np.array(bench.records.array(task, "offsets"))
        lists = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        parts.append((np.array(order, np.int64) + bench.plan.shard(shard)[0], lists))
        counts.append(np.diff(offsets))
    rows, lists = (np.concatenate(each) for each in zip(*parts, strict=True))
    offsets = np.concatenate([[0], np.cumsum(np.sum(counts, axis=0))])
    return rows[np.argsort(lists, kind="stable")].astype(np.int32), offsets


def recall_of(bench: Bench, plan: Plan) -> Recall:
    """The recall of the index of the pass."""
    asked = plan.indexes["main"]
    if asked.kind == "exact":
        return Recall(1.0, 0.0, asked.recall, asked.k, 0)
    return Recall(**bench.records.result(named("tune", "main"))["recall"])
