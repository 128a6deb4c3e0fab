"""Whether negatives can be told from positives by their looks alone: then a model learns the looks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.metrics import Measured, sampled
from hardneg.diagnostics.subject import Subject

_SAMPLE = 4000  # of either kind


def looks(texts: list[str]) -> NDArray[np.float64]:
    """float64 `[n, 7]`: log of characters and of words, mean length of words, shares of digits, capitals, punctuation, and of
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


def surface_bias(subject: Subject, rng: np.random.Generator) -> Measured:
    """How well looks separate negatives from positives.

    `surface_auc`: area under the curve of a logistic regression on `looks`, cross-validated: 0.5 = they look alike, 1 = told
    apart without reading. `length_ratio`: median length of negatives over that of positives. `at_longest`: share of the
    corpus's documents that have exactly the length of the longest one, in characters, words or bytes, whichever is the most:
    texts that were cut off.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    out = Measured()
    negatives = subject.documents[subject.real]
    positives = subject.pairs.positives.values
    if len(negatives) < 20 or len(positives) < 20:
        return out
    chosen = [values[sampled(len(values), _SAMPLE, rng)] for values in (negatives, positives)]
    features = [looks(subject.pairs.documents.take(rows)) for rows in chosen]
    x, y = np.concatenate(features), np.repeat([0, 1], [len(part) for part in features])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    predicted = cross_val_predict(model, x, y, cv=folds, method="decision_function")
    out.numbers["surface_auc"] = float(roc_auc_score(y, predicted))
    lengths = [np.expm1(part[:, 0]) for part in features]
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
