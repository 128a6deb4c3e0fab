"""Scores of a cross-encoder: a model that reads query and document together."""

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
    """float32 `[n, K]`: score each query of `queries` `[n]` with its row of `documents` `[n, K]`.

    Both hold row numbers of the dataset. Where `documents` is -1, the score is -inf.

    `model` is a sentence-transformers cross-encoder, or `module:PKG.MOD:FACTORY` of an object with `predict(pairs) -> scores`.

    Raises:
        UsageError: the model cannot be loaded, or scores a pair with NaN or infinity.
    """
    name = f"cross-encoder:{model}"
    if name not in context.cache:
        context.cache[name] = load_cross_encoder(model)
    predict: Predict = context.cache[name]
    rows, columns = np.nonzero(documents >= 0)
    distinct, positions = np.unique(documents[rows, columns], return_inverse=True)
    query_texts, document_texts = context.pairs.queries.take(queries), context.pairs.documents.take(distinct)
    pairs = [
        (query_texts[i], document_texts[j]) for i, j in zip(rows.tolist(), positions.ravel().tolist(), strict=True)
    ]
    values = np.asarray(predict(pairs), np.float32).reshape(len(pairs)) if pairs else np.empty(0, np.float32)
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UsageError(f"the cross-encoder {model} scores the pair {pairs[bad]!r} with {values[bad]}")
    scores = np.full(documents.shape, -np.inf, np.float32)
    scores[rows, columns] = values
    return scores


def load_cross_encoder(model: str, *, device: str | None = None, batch_size: int = 32) -> Predict:
    """Load a cross-encoder, named as in `cross_encoder_scores`, and return its `predict` function.

    Args:
        model: the name.
        device: where it runs, such as cpu or cuda; None: a GPU if there is one. An object of your own decides itself.
        batch_size: pairs scored at once.

    Raises:
        MissingDependencyError: sentence-transformers is not installed. UsageError: the model cannot be loaded.
    """
    if model.startswith("module:"):
        from hardneg.encoders.factory import call_factory

        scorer = call_factory(model.removeprefix("module:"))
        predict = getattr(scorer, "predict", None)
        if not callable(predict):
            raise UsageError(f"{model}: the factory returned a {type(scorer).__name__} without predict(pairs)")
        return lambda pairs: predict(pairs)
    try:
        from sentence_transformers import CrossEncoder as Model
    except ImportError:
        raise MissingDependencyError("sentence-transformers", "st", "the cross-encoder") from None
    try:
        loaded = Model(model, device=device)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"cross-encoder:{model}: the model cannot be loaded ({str(error).splitlines()[0]})") from error
    return lambda pairs: loaded.predict(pairs, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True)
