"""Scores of a cross-encoder: a model that reads query and document together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.encoders.hub import loading_options, why_not
from hardneg.errors import MissingDependencyError, UsageError, reason_of
from hardneg.mining.candidates import Context
from hardneg.storage.arrays import Float


class CrossScorer:
    """A cross-encoder that is loaded: calling it with (query, document) texts gives their scores.

    Args:
        model: its name, as in `cross_encoder_scores`.
        loaded: an object with `predict(pairs)`.
        own: whether it is a model of sentence-transformers.
        batch_size: pairs that such a model reads at once.
    """

    def __init__(self, model: str, loaded: Any, own: bool, batch_size: int = 32) -> None:
        self.model, self.loaded, self.own, self.batch_size = model, loaded, own, batch_size

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Float:
        """float32 `[m]`: the scores of m pairs, which the model reads in the order of their lengths, so that little is padded.

        Raises:
            UsageError: there are not as many scores as pairs, or one is NaN or infinite.
        """
        if not len(pairs):
            return np.zeros(0, np.float32)
        order = np.argsort([-len(query) - len(document) for query, document in pairs], kind="stable")
        options: dict[str, Any] = {}
        if self.own:
            options = {"batch_size": self.batch_size, "show_progress_bar": False, "convert_to_numpy": True}
        found = np.asarray(self.loaded.predict([pairs[i] for i in order], **options))
        if found.size != len(pairs):
            raise UsageError(
                f"the cross-encoder {self.model} gave scores of the shape {found.shape} for {len(pairs):,} pairs: a teacher gives "
                f"each pair one score (a model with one label)"
            )
        scores = np.empty(len(pairs), np.float32)
        scores[order] = found.astype(np.float32).reshape(len(pairs))
        if not np.isfinite(scores).all():
            bad = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise UsageError(f"the cross-encoder {self.model} scores the pair {pairs[bad]!r} with {scores[bad]}")
        return scores

    @cached_property
    def fingerprint(self) -> str | None:
        """A hash of all that the scores depend on: weights, settings, tokenizer, and the function behind the last layer.

        An object of a user's own has the one that its `fingerprint()` returns; None if it has none.
        """
        if not self.own:
            told = getattr(self.loaded, "fingerprint", None)
            return hashlib.sha256(f"own {told()}".encode()).hexdigest() if callable(told) else None
        from hardneg.encoders.model_digest import model_digest

        function = getattr(self.loaded, "activation_fn", None)
        return model_digest(self.loaded, f"cross-encoder-1 {type(function).__qualname__}")


def cross_encoder_scores(
    context: Context, model: str, queries: NDArray[np.integer], documents: NDArray[np.integer]
) -> Float:
    """float32 `[n, K]`: score each query of `queries` `[n]` with its row of `documents` `[n, K]`.

    Both hold row numbers of the dataset. Where `documents` is -1, the score is -inf. Scores that the run keeps of this very model
    (`hardneg score`) are taken from there.

    `model` is a sentence-transformers cross-encoder, or `module:PKG.MOD:FACTORY` of an object with `predict(pairs) -> scores`.

    Raises:
        UsageError: the model cannot be loaded, or scores a pair with NaN or infinity.
    """
    if (unfit := needs_texts(context.pairs, model)) is not None:
        raise UsageError(unfit)
    name = f"cross-encoder:{model}"
    if name not in context.cache:
        context.cache[name] = load_cross_encoder(model)
    scorer: CrossScorer = context.cache[name]
    scores = np.where(documents >= 0, np.float32(np.nan), np.float32(-np.inf)).astype(np.float32)
    if context.taught is not None and context.taught.names and scorer.fingerprint is not None:
        kept = context.taught.by_hash(scorer.fingerprint)
        scores = scores if kept is None else kept.of(queries, documents)
    rows, columns = np.nonzero(np.isnan(scores))
    scores[rows, columns] = scorer(text_pairs(context.pairs, queries[rows], documents[rows, columns]))
    return scores


def needs_texts(pairs: Pairs, model: str) -> str | None:
    """Why a cross-encoder cannot score a dataset: it has pictures. None if it can; one of your own is given the pictures."""
    if model.startswith("module:") or not (pairs.queries.pictures or pairs.documents.pictures):
        return None
    return f"the cross-encoder {model} reads texts, and the dataset has pictures: use a filter by vectors, or module: with your own"


def text_pairs(pairs: Pairs, queries: NDArray[np.integer], documents: NDArray[np.integer]) -> list[tuple[str, str]]:
    """The texts of m queries and m documents, given by their rows; each text is read once."""
    sides = []
    for texts, rows in ((pairs.queries, queries), (pairs.documents, documents)):
        distinct, places = np.unique(rows, return_inverse=True)
        read = texts.take(distinct) if len(distinct) else []
        sides.append([read[i] for i in places.ravel().tolist()])
    return list(zip(*sides, strict=True))


def load_cross_encoder(model: str, device: str | None = None, batch_size: int = 32) -> CrossScorer:
    """Load a cross-encoder, named as in `cross_encoder_scores`.

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
        if not callable(getattr(scorer, "predict", None)):
            raise UsageError(f"{model}: the factory returned a {type(scorer).__name__} without predict(pairs)")
        return CrossScorer(model, scorer, own=False)
    try:
        from sentence_transformers import CrossEncoder as Model
    except ImportError:
        raise MissingDependencyError("sentence-transformers", "st", "the cross-encoder") from None
    try:
        loaded = Model(model, device=device, **loading_options(model))
    except Exception as error:  # a damaged model fails in many ways, deep in other libraries
        raise UsageError(
            f"cross-encoder:{model}: the model cannot be loaded {why_not(model, reason_of(error))}. Give the folder of a saved "
            f"model, or a name that this machine can reach"
        ) from error
    return CrossScorer(model, loaded, own=True, batch_size=batch_size)
