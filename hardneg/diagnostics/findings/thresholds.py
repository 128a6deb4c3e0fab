"""The thresholds at which a measurement becomes a finding."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from hardneg.errors import UsageError, suggestion
from hardneg.storage.json_files import is_number


@dataclass(frozen=True)
class Thresholds:
    """The limits of all findings.

    Beyond a limit, a number becomes a warning. Beyond a limit whose name ends in `_error`, it becomes an error. Most
    are upper limits; `like_random`, `easy`, `rank`, `effective`, `recall`, `overlap`, `hit_rate`, `second_easy` and
    `teaching` are lower limits.

    Each limit lies between the values of seven runs without a planted fault and the value of a run with the planted
    fault that it should detect. The cost of false negatives was measured by training with them. See
    `benchmarks/thresholds.py`, and "Limits of a diagnosis" in `benchmarks/RESULTS.md`.

    Attributes:
        false_share, false_share_error: the share of negatives that are relevant. A share of up to 0.05 had no
            measurable cost. A share of 0.3 costs about half of what mined negatives gain over random ones (Banking77).
        announced: how many times the share of false negatives that a posterior expects is above what it announced.
        like_random_error: how often a positive is nearer to its query than a random document is; 0.5 by chance.
        easy, easy_error: the hardness, on a scale from random documents (0) to positives (1).
        above_positive: the share of negatives that score above the positive. The finding is only information, because
            an untrained encoder finds many such negatives.
        near_duplicates: the share of a query's negatives that nearly repeat an earlier one.
        corpus_near_duplicates: the share of documents that have a near copy in the corpus.
        hub, hub_error: the share of queries that have the same document as a negative. The limit is at least five times
            the share expected by chance.
        rank, rank_error: the effective rank, divided by the largest possible rank.
        mean_cosine_error: the mean cosine of two random documents.
        all_near: the mean cosine of two random documents, or queries, above which near vectors tell nothing of near texts: less the
            mean, a cosine of 0.95 is one of 0.8, and a cosine of 0.9 one of 0.6.
        effective: the effective number of negatives at the temperature, divided by the number of negatives.
        temperature_outside: how many times the temperature is above the recommended ones, which are known to a factor of 1.17.
        surface_auc: the AUC of telling negatives from positives by their form.
        lexical_auc: the AUC of telling negatives from positives by their words.
        at_longest: the share of documents that are exactly as long as the longest one.
        few, few_error: the share of queries with fewer negatives than requested.
        recall: the recall of the index.
        drift: the drift of the encoder since the run was mined (see `Staleness`). A training with refreshed negatives
            (ANCE) refreshes them long before this limit; see `Schedule`.
        overlap: the share of nearest documents that have stayed the same since then.
        stale_scores_error: the share of scores that do not match the vectors of the run.
        mislabelled, mislabelled_error, mislabelled_few: at most the share of pairs whose positive is no nearer than one of another
            query; a few are information.
        hit_rate: the share of queries with a positive among their candidates.
        near_query: the share of negatives that are a positive of a query that asks nearly the same.
        others: how many times the share of negatives that are positives of other queries is above that of the whole corpus, in odds.
        copied, chunks, translations: the shares of negatives that are, in other form, a positive of their query.
        hub_skew: the skewness of the number of queries that a document is a negative of.
        never_retrieved: the share of documents that no query retrieves, beyond what is expected by chance.
        lexical: the share of negatives that BM25 finds as well.
        second_easy: the hardness for a second encoder, on the same scale as `easy`.
        both_above: the share of negatives that both encoders put above the positive.
        leaked, leaked_error: the share of evaluation queries that were trained on with their answer, and of leaked queries.
        teaching: the share of negatives that still teach at the temperature.
        masked, masked_times: the share of the documents of a training's batches that are masked, and how many times it is above the
            share of candidates that the filters reject.
        slice_times, slice_more: how many times, and by how much, a slice must be worse than the other queries.
        empty_positives, empty_positives_error: the share of pairs whose positive has no text.
        common_positive, common_positive_error, common_positive_times: the share of queries that have the most frequent text as a
            positive, and how many times the median positive's that must be.
        answered, answered_error: the share of queries that hold the text of their positive.
        repeated, repeated_error: the share of pairs whose positive holds its query word for word.
        boilerplate: the share of documents, or of queries, that hold one and the same run of characters.
        one_vector, one_vector_error: the share of queries whose vector is that of their positive.

    >>> Thresholds(hub=0.2).hub
    0.2
    """

    false_share: float = 0.05
    false_share_error: float = 0.3
    announced: float = 1.25
    like_random_error: float = 0.6
    easy: float = 0.3
    easy_error: float = 0.1
    above_positive: float = 0.6
    near_duplicates: float = 0.1
    corpus_near_duplicates: float = 0.2
    hub: float = 0.1
    hub_error: float = 0.2
    rank: float = 0.1
    rank_error: float = 0.03
    mean_cosine_error: float = 0.9
    all_near: float = 0.75
    effective: float = 0.25
    temperature_outside: float = 1.2
    surface_auc: float = 0.8
    lexical_auc: float = 0.85
    at_longest: float = 0.05
    few: float = 0.02
    few_error: float = 0.5
    recall: float = 0.9
    drift: float = 0.05
    overlap: float = 0.7
    stale_scores_error: float = 0.05
    mislabelled: float = 0.1
    mislabelled_error: float = 0.3
    mislabelled_few: float = 0.03
    hit_rate: float = 0.3
    near_query: float = 0.05
    others: float = 5.0
    copied: float = 0.02
    chunks: float = 0.02
    translations: float = 0.02
    hub_skew: float = 10.0
    never_retrieved: float = 0.5
    lexical: float = 0.95
    second_easy: float = 0.3
    both_above: float = 0.1
    leaked: float = 0.01
    leaked_error: float = 0.1
    teaching: float = 0.5
    masked: float = 0.25
    masked_times: float = 3.0
    slice_times: float = 2.0
    slice_more: float = 0.15
    empty_positives: float = 0.005
    empty_positives_error: float = 0.1
    common_positive: float = 0.02
    common_positive_error: float = 0.2
    common_positive_times: float = 20.0
    answered: float = 0.02
    answered_error: float = 0.2
    repeated: float = 0.05
    repeated_error: float = 0.5
    boilerplate: float = 0.1
    one_vector: float = 0.02
    one_vector_error: float = 0.2

    @classmethod
    def load(cls, path: str | Path) -> Thresholds:
        """Load some or all limits from a JSON file; the others keep their defaults.

        Args:
            path: a file with a JSON object of numbers, for example `{"hub": 0.2}`.

        Raises:
            UsageError: the file is missing or not valid JSON, a name is unknown, or a value is not a finite number.
        """
        try:
            value = json.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{path} does not exist") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror or error})") from None
        except (ValueError, RecursionError) as error:  # also a number of too many digits
            raise UsageError(f"{path} is not readable as JSON ({error})") from None
        if not isinstance(value, dict):
            raise UsageError(f"{path} must hold a JSON object that maps names of thresholds to numbers")
        names = [each.name for each in fields(cls)]
        for name, number in value.items():
            if name not in names:
                raise UsageError(f"{path}: unknown threshold {name!r}.{suggestion(name, names)}")
            if not is_number(number):
                raise UsageError(f"{path}: the threshold {name} is {number!r:.80}, expected a number")
        return cls(**value)
