"""Scores of a cross-encoder, which reads query and document together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.errors import MissingDependencyError, UsageError
from hardneg.mining.candidates import Context
from hardneg.storage.arrays import Float

Predict = Callable[[list[tuple[str, str]]], Any]


def cross_encoder_scores(
    context: Context, model: str, queries: NDArray[np.integer], documents: NDArray[np.integer]
) -> Float:
    """float32 `[n, K]`: scores of queries `[n]` with documents `[n, K]`, given as rows; -inf for -1.

    `model` is a sentence-transformers cross-encoder, or `module:PKG.MOD:FACTORY` of an object with `predict(pairs) -> scores`.

    Raises:
        UsageError: the model cannot be loaded, or scores a pair with NaN or infinity.
    """
    name = f"cross-encoder:{model}"
    if name not in context.cache:
        context.cache[name] = load_cross_encoder(model)
    predict: Predict = context.cache[name]
    rows, columns = np.nonzero(documents >= 0)
    wanted, place = np.unique(documents[rows, columns], return_inverse=True)
    asked_queries, texts = context.pairs.queries.take(queries), context.pairs.documents.take(wanted)
    asked = [(asked_queries[i], texts[j]) for i, j in zip(rows.tolist(), place.ravel().tolist(), strict=True)]
    answer = np.asarray(predict(asked), np.float32).reshape(len(asked)) if asked else np.empty(0, np.float32)
    if not np.isfinite(answer).all():
        bad = int(np.flatnonzero(~np.isfinite(answer))[0])
        raise UsageError(f"the cross-encoder {model} scores the pair {asked[bad]!r} with {answer[bad]}")
    scores = np.full(documents.shape, -np.inf, np.float32)
    scores[rows, columns] = answer
    return scores


def load_cross_encoder(model: str) -> Predict:
    if model.startswith("module:"):
        from hardneg.encoders.factory import call_factory

        made = call_factory(model.removeprefix("module:"))
        predict = getattr(made, "predict", None)
        if not callable(predict):
            raise UsageError(f"{model}: the factory returned a {type(made).__name__} without predict(pairs)")
        return lambda pairs: predict(pairs)
    try:
        from sentence_transformers import CrossEncoder as Model
    except ImportError:
        raise MissingDependencyError("sentence-transformers", "st", "the cross-encoder") from None
    try:
        loaded = Model(model)
    except (OSError, ValueError) as error:
        raise UsageError(f"cross-encoder:{model}: the model cannot be loaded ({str(error).splitlines()[0]})") from error
    return lambda pairs: loaded.predict(pairs, show_progress_bar=False, convert_to_numpy=True)
