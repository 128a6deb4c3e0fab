"""Surface bias: whether negatives can be told from positives without the query.

If they can, a model may learn the difference in form or words instead of relevance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import Measurements, sampled
from hardneg.diagnostics.subject import Subject

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_SAMPLE = 4000  # the largest number of negatives, and of positives

_CHARACTERS = 2000  # characters at the start of a text whose words are counted

_TELLING = 5  # half the largest number of telling words to list


def looks(texts: list[str]) -> NDArray[np.float64]:
    """Describe the form of each text by seven numbers.

    Returns:
        float64 `[n, 7]`. The columns are log(1 + characters), log(1 + words), characters per word, and the shares of
        digits, ASCII capitals, ASCII punctuation and non-ASCII characters.

    >>> looks(["Ab1,"]).round(2).tolist()
    [[1.61, 0.69, 4.0, 0.25, 0.25, 0.25, 0.0]]
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
            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            out[i, 6] = 0 if text.isascii() else (codes > 127).mean()
    return out


def surface_bias(subject: Subject, rng: np.random.Generator) -> Measurements:
    """Measure how well negatives can be told from positives without the query.

    Both AUCs are those of a logistic regression, cross-validated by document. An AUC of 0.5 means that negatives and
    positives look alike; 1 means that they can always be told apart without reading the query. Such a classifier is
    known as a hypothesis-only baseline (Gururangan et al. 2018, arXiv 1803.02324). With fewer than 20 negatives or 20
    positives, nothing is measured.

    The numbers are:

    - `surface_auc`: the AUC by the form of the texts (see `looks`).
    - `lexical_auc`: the AUC by the words that occur. The ids `telling_words` list the most informative words, as
      `-word` for negatives and `+word` for positives.
    - `length_ratio`: the median length of negatives divided by that of positives.
    - `at_longest`: the share of documents that are exactly as long as the longest one, in characters, words or bytes,
      whichever share is largest. If it is high, the texts were truncated.
    """
    from sklearn.preprocessing import StandardScaler

    out = Measurements()
    negatives = subject.documents[subject.real]
    positives = subject.pairs.positives.values
    if len(negatives) < 20 or len(positives) < 20 or subject.pairs.documents.pictures:
        return out  # the name of a picture says nothing of what is in it
    sides = [values[sampled(len(values), _SAMPLE, rng)].astype(np.int64) for values in (negatives, positives)]
    documents, kinds = np.concatenate(sides), np.repeat([0, 1], [len(part) for part in sides])
    texts = subject.pairs.documents.take(documents)
    features = looks(texts)
    out.numbers["surface_auc"] = _cross_validated_auc(StandardScaler().fit_transform(features), kinds, documents)
    words, names = _words(texts)
    if len(names):
        out.numbers["lexical_auc"] = _cross_validated_auc(words, kinds, documents)
        out.ids["telling_words"] = _telling_words(words, kinds, names)
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


def _cross_validated_auc(features: Any, kinds: NDArray[np.integer], documents: NDArray[np.integer]) -> float:
    """The AUC of telling positives (1) from negatives (0). Each document is predicted by a model fitted without it."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict

    folds = GroupKFold(min(5, len(np.unique(documents))), shuffle=True, random_state=0)
    predicted = cross_val_predict(_model(), features, kinds, groups=documents, cv=folds, method="decision_function")
    return float(roc_auc_score(kinds, predicted))


def _words(texts: list[str]) -> tuple[Any, NDArray[np.str_]]:
    """Find which words occur in which text.

    Returns:
        (sparse float64 matrix with a row for each text and a column for each word, 1 where the word occurs; the words).
        Words that occur in fewer than three texts are left out.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(binary=True, min_df=3, max_features=20_000, dtype=np.float64)
    try:
        occurrences = vectorizer.fit_transform([text[:_CHARACTERS] for text in texts])
    except ValueError:  # no word is left
        return None, np.array([], np.str_)
    return occurrences, vectorizer.get_feature_names_out()


def _telling_words(words: Any, kinds: NDArray[np.integer], names: NDArray[np.str_]) -> list[str]:
    """List the words that contribute most to the difference between negatives (kind 0) and positives (kind 1).

    The contribution of a word is its weight in the model times the difference of its frequencies.
    """
    weights = _model().fit(words, kinds).coef_[0]
    shares = [np.asarray(words[kinds == kind].mean(0)).ravel() for kind in (0, 1)]
    contributions = weights * (shares[1] - shares[0])
    chosen = np.argsort(-contributions, kind="stable")[: 2 * _TELLING]
    return [f"{'+' if weights[i] > 0 else '-'}{names[i]}" for i in chosen if contributions[i] > 0]
