"""Surface bias: whether negatives can be told from positives without the query. A model would learn that instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import Measurements, sampled
from hardneg.diagnostics.subject import Subject

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_SAMPLE = 4000  # of either kind

_CHARACTERS = 2000  # characters of a text that are searched for words

_TELLING = 5  # words that are named for either kind


def looks(texts: list[str]) -> NDArray[np.float64]:
    """float64 `[n, 7]`, the form of each text.

    The columns: log of the number of characters and of words, mean length of words, shares of digits, capitals, punctuation, and of
    characters outside ASCII.
    """
    out = np.zeros((len(texts), 7))
    for i, text in enumerate(texts):
        size, words = len(text), len(text.split())
        kinds = np.frombuffer(text.encode("latin-1", "replace"), np.uint8)
        out[i, 0], out[i, 1] = np.log1p(size), np.log1p(words)
        out[i, 2] = size / max(1, words)
        if size:
            out[i, 3] = ((kinds >= 48) & (kinds <= 57)).mean()
            out[i, 4] = ((kinds >= 65) & (kinds <= 90)).mean()
            letters = ((kinds | 32) >= 97) & ((kinds | 32) <= 122)
            out[i, 5] = (~letters & (kinds > 32) & (kinds < 128) & ~((kinds >= 48) & (kinds <= 57))).mean()
            out[i, 6] = 0 if text.isascii() else sum(c > "\x7f" for c in text) / size
    return out


def surface_bias(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure how well negatives and positives can be told apart without the query.

    Both AUCs are those of a logistic regression, cross-validated by document. 0.5 means that the texts are of one kind, 1 that they
    can be told apart without reading the query (hypothesis-only baselines, Gururangan et al. 2018, arXiv 1803.02324).

    `surface_auc`: by `looks`. `lexical_auc`: by the words that occur. `telling_words`: the most informative words, `-word` for
    negatives and `+word` for positives. `length_ratio`: median length of negatives divided by that of positives. `at_longest`: share
    of the documents that have exactly the length of the longest one, in characters, words or bytes, whichever share is the largest:
    such texts were truncated.
    """
    from sklearn.preprocessing import StandardScaler

    out = Measurements()
    negatives = subject.documents[subject.real]
    positives = subject.pairs.positives.values
    if len(negatives) < 20 or len(positives) < 20:
        return out
    sides = [values[sampled(len(values), _SAMPLE, rng)].astype(np.int64) for values in (negatives, positives)]
    documents, kinds = np.concatenate(sides), np.repeat([0, 1], [len(part) for part in sides])
    texts = subject.pairs.documents.take(documents)
    features = looks(texts)
    out.numbers["surface_auc"] = _told_apart(StandardScaler().fit_transform(features), kinds, documents)
    words, names = _words(texts)
    if len(names):
        out.numbers["lexical_auc"] = _told_apart(words, kinds, documents)
        out.ids["telling_words"] = _telling(words, kinds, names)
    lengths = [np.expm1(features[kinds == kind, 0]) for kind in (0, 1)]
    out.numbers["length_ratio"] = float(np.median(lengths[0]) / max(1.0, float(np.median(lengths[1]))))
    rows = sampled(len(subject.pairs.document_ids), 2 * _SAMPLE, rng)
    texts = subject.pairs.documents.take(rows)
    shares = []
    for sizes in (
        [len(t) for t in texts],
        [len(t.split()) for t in texts],
        [len(t.encode("utf-8", "replace")) for t in texts],
    ):
        values = np.array(sizes)
        shares.append(float((values == values.max()).mean()) if values.max(initial=0) > 20 else 0.0)
    out.numbers["at_longest"] = max(shares)
    return out


def _model() -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(solver="liblinear", random_state=0)


def _told_apart(features: Any, kinds: NDArray[np.integer], documents: NDArray[np.integer]) -> float:
    """AUC of predictions for documents that the model was not fitted on."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict

    folds = GroupKFold(min(5, len(np.unique(documents))), shuffle=True, random_state=0)
    predicted = cross_val_predict(_model(), features, kinds, groups=documents, cv=folds, method="decision_function")
    return float(roc_auc_score(kinds, predicted))


def _words(texts: list[str]) -> tuple[Any, NDArray[np.str_]]:
    """(sparse matrix of the words in each text; the words): words that occur in three texts or more."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(binary=True, min_df=3, max_features=20_000, dtype=np.float64)
    try:
        found = vectorizer.fit_transform([text[:_CHARACTERS] for text in texts])
    except ValueError:  # no word is left
        return None, np.array([], np.str_)
    return found, vectorizer.get_feature_names_out()


def _telling(words: Any, kinds: NDArray[np.integer], names: NDArray[np.str_]) -> list[str]:
    """Words ordered by their contribution to the difference of the two kinds: weight times difference of their shares."""
    weights = _model().fit(words, kinds).coef_[0]
    shares = [np.asarray(words[kinds == kind].mean(0)).ravel() for kind in (0, 1)]
    added = weights * (shares[1] - shares[0])
    chosen = np.argsort(-added, kind="stable")[: 2 * _TELLING]
    return [f"{'+' if weights[i] > 0 else '-'}{names[i]}" for i in chosen if added[i] > 0]
