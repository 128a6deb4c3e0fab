"""`mine_hard_negatives` of sentence-transformers, by a mining pass of hardneg."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from hardneg.data.notes import warn_of_empty_texts
from hardneg.data.pairs import Pairs
from hardneg.data.read import read_pairs
from hardneg.data.tables import table_rows
from hardneg.errors import DataError, UsageError
from hardneg.integrations.rescored import rescored_columns, rescored_rows
from hardneg.mining.filters.base import Filter
from hardneg.mining.filters.limits import Margin, Score, Window
from hardneg.mining.mine import mine
from hardneg.mining.options import MineOptions
from hardneg.mining.run import Run
from hardneg.mining.samplers import Top, Uniform
from hardneg.mining.specs import filters_of

LIMITS = ("absolute_margin", "relative_margin", "max_score", "min_score")

FORMATS = ("triplet", "n-tuple", "labeled-pair", "labeled-list")


def mine_hard_negatives(
    dataset: Any, model: Any, anchor_column_name: str | None = None, positive_column_name: str | None = None,
    corpus: list[str] | None = None, cross_encoder: Any = None, range_min: int = 0, range_max: int | None = None,
    max_score: float | None = None, min_score: float | None = None, absolute_margin: float | None = None,
    relative_margin: float | None = None, num_negatives: int = 3, sampling_strategy: Literal["random", "top"] = "top",
    query_prompt_name: str | None = None, query_prompt: str | None = None, corpus_prompt_name: str | None = None,
    corpus_prompt: str | None = None, include_positives: bool = False,
    output_format: Literal["triplet", "n-tuple", "labeled-pair", "labeled-list"] = "triplet", output_scores: bool = False,
    batch_size: int = 32, faiss_batch_size: int = 16384, use_faiss: bool = False,
    use_multi_process: list[str] | bool = False, verbose: bool = True, cache_folder: str | None = None,
    as_triplets: bool | None = None, margin: float | None = None, *, filters: Sequence[str | Filter] = (),
    default_filters: bool = True, ids: bool = False, seed: int = 0, run: str | Path | None = None, overwrite: bool = False,
) -> Any:  # fmt: skip
    """`sentence_transformers.util.mine_hard_negatives` by a mining pass of hardneg: the same arguments and output formats.

    The arguments up to `margin` are those of that function. `use_faiss` and `faiss_batch_size` have no effect, as hardneg searches
    in its own way; `include_positives` and `use_multi_process` are refused. Unlike there, documents that copy the query, a positive
    or each other are left out (`default_filters`), and the cache knows the weights of the model.

    Args:
        filters, default_filters: filters of hardneg besides those of the arguments, and whether to use the default ones.
        ids: whether to add columns with ids beside the texts. Take them out before training: the trainer takes them for texts.
        seed: seed of `sampling_strategy="random"`.
        run, overwrite: a folder to keep the run in, with the verdict of every candidate, and whether to replace one that is there.

    Returns: a `datasets.Dataset`.

    Raises:
        UsageError: an argument cannot be used. DataError: the dataset has no pairs.
    """
    _refused(include_positives=include_positives, use_multi_process=use_multi_process)
    if as_triplets is not None:
        output_format = "triplet" if as_triplets else "n-tuple"
    _known("output_format", output_format, FORMATS)
    _known("sampling_strategy", sampling_strategy, ("top", "random"))
    given = (absolute_margin if margin is None else margin, relative_margin, max_score, min_score)
    limits = dict(zip(LIMITS, given, strict=True))
    dataset, filters = as_dataset(dataset), filters_of(filters)
    anchor, positive = _columns(dataset, anchor_column_name, positive_column_name)
    queries, positives = list(dataset[anchor]), list(dataset[positive])
    limited = any(value is not None for value in limits.values())
    last = _range(range_min, range_max, num_negatives, queries, limited)
    pairs = read_pairs({"query": queries, "positive": positives}, corpus=corpus)
    warn_of_empty_texts(pairs)
    depth = min(last + _most_positives(queries), len(pairs.document_ids))
    if num_negatives > depth:
        raise UsageError(
            f"num_negatives={num_negatives} is more than the {depth:,} documents: add a corpus, or ask for fewer"
        )
    rescored, drawn = cross_encoder is not None and limited, sampling_strategy == "random"
    own = [] if rescored else [*_limits(limits), *([Window(first=range_min, last=last)] if range_min or drawn else [])]
    prompts = _prompt(model, query_prompt, query_prompt_name), _prompt(model, corpus_prompt, corpus_prompt_name)
    options = MineOptions(
        depth=depth, max_depth=depth, negatives=depth if rescored else num_negatives, filters=(*own, *filters), seed=seed,
        default_filters=default_filters, precision="float32", sampler=Uniform() if drawn and not rescored else Top(),
        query_prompt=prompts[0], document_prompt=prompts[1],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run" if run is None else Path(run)
        more = {"encoder": model, "batch_size": batch_size, "cache": cache_folder, "overwrite": overwrite}
        mined = _mined(pairs, folder, options, verbose, **more)
        if rescored:
            scored = rescored_rows(
                mined, cross_encoder, limits, (range_min, last), num_negatives, drawn, seed, batch_size
            )
            made = type(dataset).from_dict(
                rescored_columns(mined, scored, output_format, num_negatives, output_scores, ids)
            )
        else:
            made = _output(mined, output_format, output_scores, ids)  # in memory, so the folder may go
        if verbose and run is not None:
            print(mined)
    return _renamed(made, anchor, positive)


def _renamed(made: Any, anchor: str, positive: str) -> Any:
    """The dataset with the names of columns that were given."""
    names = {"query": anchor, "positive": positive, "document": positive, "documents": positive}
    return made.rename_columns({old: new for old, new in names.items() if old in made.column_names})


def _mined(pairs: Pairs, folder: Path, options: MineOptions, verbose: bool, **given: Any) -> Run:
    """Mine; a run without any negative is one as well."""
    try:
        return mine(pairs, folder, options, progress=verbose, **given)
    except DataError:
        if not (folder / "run.json").is_file():
            raise
        warnings.warn("no query has a negative within these limits: loosen them, or raise range_max", stacklevel=3)
        return Run(folder)


def as_dataset(source: Any) -> Any:
    """A `datasets.Dataset`; of another table in memory, the same rows. `DataError` if it is none."""
    if hasattr(source, "column_names") and hasattr(source, "features"):
        return source
    from datasets import Dataset

    rows = [dict(row) for _, row in table_rows(source, "train", "the dataset")()]
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in (rows[0] if rows else {})})


def _known(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{name}={value!r} must be one of {', '.join(known)}")


def _refused(**given: Any) -> None:
    reasons = {
        "include_positives": "the run keeps every candidate with its rank: hardneg.mining.Reopened reads them",
        "use_multi_process": "give hardneg.mine the devices, devices='cuda:0,cuda:1': it encodes in a process on each",
    }
    for name, value in given.items():
        if value:
            raise UsageError(f"{name}={value!r} is not supported: {reasons[name]}")


def _columns(dataset: Any, anchor: str | None, positive: str | None) -> tuple[str, str]:
    names = list(dataset.column_names)
    for given in (anchor, positive):
        if given is not None and given not in names:
            raise UsageError(f"the dataset has no column {given!r}; it has: {', '.join(names)}")
    if len(names) < 2:
        raise UsageError(f"the dataset has {len(names)} column, but pairs need two: anchor and positive")
    chosen = anchor or names[0], positive or names[1]
    if chosen[0] == chosen[1]:
        other = "positive_column_name" if positive is None else "anchor_column_name"
        raise UsageError(
            f"anchor and positive would both be the column {chosen[0]!r}: give {other} as well; the dataset has: "
            f"{', '.join(names)}"
        )
    return chosen


def _most_positives(queries: Iterable[str]) -> int:
    return max(Counter(queries).values(), default=1)


def _range(first: int, last: int | None, count: int, queries: list[str], limited: bool) -> int:
    """The last rank of the window, as sentence-transformers chooses it."""
    if last is None:
        last = first + (10 * count if limited else count) + _most_positives(queries)
    if not 0 <= first < last or count > last - first:
        raise UsageError(
            f"range_min={first} and range_max={last} leave {max(0, last - first)} candidates, and num_negatives={count} were "
            f"asked for"
        )
    return last


def _limits(limits: dict[str, float | None]) -> list[Filter]:
    made: list[Filter] = []
    absolute, relative = limits["absolute_margin"], limits["relative_margin"]
    if absolute is not None or relative is not None:
        made.append(Margin(absolute=absolute, relative=relative))
    if limits["max_score"] is not None or limits["min_score"] is not None:
        low, high = limits["min_score"], limits["max_score"]
        made.append(Score(min=-math.inf if low is None else low, max=math.inf if high is None else high))
    return made


def _prompt(model: Any, text: str | None, name: str | None) -> str | None:
    if text is not None or name is None:
        return text
    known = getattr(model, "prompts", None) or {}
    if name not in known:
        raise UsageError(f"the model has no prompt {name!r}; it has: {', '.join(known) or 'none'}")
    return str(known[name])


def _output(run: Any, format: str, scores: bool, ids: bool) -> Any:
    if format != "labeled-list":
        return run.to_dataset(format, scores=scores, ids=ids)
    # One row a positive, which comes first.
    whole = run.to_dataset(format, ids=ids)
    values = run.to_dataset(format, scores=True)["scores"] if scores else whole["labels"]
    name = "scores" if scores else "labels"
    rows: list[dict[str, Any]] = []
    for row, value in zip(whole, values, strict=True):
        negatives = [i for i, label in enumerate(row["labels"]) if label == 0]
        for first in (i for i, label in enumerate(row["labels"]) if label == 1):
            taken = [first, *negatives]
            lists = {key: [row[key][i] for i in taken] for key in ("document_ids", "documents") if key in row}
            single = {key: row[key] for key in ("query_id", "query") if key in row}
            if negatives:
                rows.append({**single, **lists, name: [value[i] for i in taken]})
    return type(whole).from_list(rows)
