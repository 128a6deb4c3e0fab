"""Whether the options of a training fit the data, the model and the machine: asked before any work."""

from __future__ import annotations

import os

import numpy as np
import torch

from hardneg.data.mixed import Mixed
from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError
from hardneg.training.distributed import World
from hardneg.training.options import TrainOptions


def check_fits(options: TrainOptions, pairs: Pairs, dimension: int, world: World) -> None:
    """Check the options of a training against everything else.

    Args:
        options: the options.
        pairs: the training data.
        dimension: d of the model.
        world: the ranks of the training.

    Raises:
        UsageError: no query could have a negative, there are not enough documents, vectors are shorter than `dimensions`
            asks for, or the bank does not fit into memory.
    """
    trainable = int((pairs.positives.lengths > 0).sum())
    if options.negatives == 0 and options.bank == 0 and min(options.batch_size * world.size, trainable) == 1:
        reason = f"batch_size={options.batch_size}" if trainable > 1 else "a single pair"
        raise UsageError(
            f"{reason} with negatives=0 and bank=0: no query would have a negative, and the loss would always be 0. Take a "
            f"larger batch_size, mined negatives (negatives=4) or a memory bank"
        )
    documents = len(pairs.document_ids)
    if options.negatives >= documents:
        raise UsageError(
            f"negatives={options.negatives} of {documents:,} documents: take fewer than there are documents"
        )
    if pairs.mixed is not None:
        _check_sources(options, pairs, pairs.mixed)
    _check_enough_negatives(options, pairs)
    if options.dimensions is not None and max(options.dimensions) > dimension:
        raise UsageError(
            f"dimensions={options.dimensions}: the vectors have {dimension} components, and cannot be cut to "
            f"{max(options.dimensions)}"
        )
    needed, memory = 4 * options.bank * dimension, _memory(world.device)
    if memory is not None and needed > memory:
        raise UsageError(
            f"bank={options.bank}: the rows, of {dimension} components, need {needed / 2**30:,.0f} GB, more than the "
            f"{memory / 2**30:,.0f} GB of memory: take fewer rows"
        )


def ungrouped(pairs: Pairs) -> list[str]:
    """The sources of a mixture whose documents have no groups."""
    if pairs.mixed is None or pairs.document_groups is None:
        return []
    grouped = np.unique(pairs.mixed.documents[pairs.document_groups >= 0])
    return [name for i, name in enumerate(pairs.mixed.names) if i not in grouped]


def _check_enough_negatives(options: TrainOptions, pairs: Pairs) -> None:
    """UsageError if a query has more positives than its dataset, or source, can spare."""
    if options.negatives == 0:
        return
    mixed, positives = pairs.mixed, pairs.positives.lengths
    documents = len(pairs.document_ids)
    there = np.full(len(positives), documents) if mixed is None else np.diff(mixed.starts)[mixed.queries]
    short = np.flatnonzero((positives > 0) & (there - positives < options.negatives))
    if len(short):
        row = int(short[0])
        raise UsageError(
            f"negatives={options.negatives}: the query {pairs.query_ids[row].as_py()!r} has {positives[row]:,} positives among "
            f"{there[row]:,} documents, which leaves {there[row] - positives[row]:,} ({len(short):,} such queries): take "
            f"fewer negatives, or give more documents"
        )


def _check_sources(options: TrainOptions, pairs: Pairs, mixed: Mixed) -> None:
    """UsageError for a source whose queries could not get their negatives from its own documents."""
    trainable = np.bincount(mixed.queries[pairs.positives.lengths > 0], minlength=len(mixed))
    for i, (name, count) in enumerate(zip(mixed.names, np.diff(mixed.starts).tolist(), strict=True)):
        if trainable[i] == 1 and options.negatives == 0 and options.bank == 0:
            raise UsageError(
                f"the source {name!r} has a single pair, and with negatives=0 and bank=0 its query would have no negative: leave the "
                f"source out, or take mined negatives (negatives=4)"
            )
        if options.negatives >= count:
            raise UsageError(
                f"negatives={options.negatives} of the {count:,} documents of the source {name!r}: negatives come from the "
                f"query's own source, so take fewer, or leave it out"
            )


def _memory(device: torch.device) -> int | None:
    """Bytes of memory of the device; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
