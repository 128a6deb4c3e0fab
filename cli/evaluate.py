"""The command `hardneg evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .main import print_json
from .options import SEED_OF_MODELS, Sectioned, encoding
from .reading import read_options, reading
from .show import print_evaluation, progress_bars, warn

_SECTIONS = {"split": "Reading SOURCE", "measures": "Measures", "encoder": "Vectors", "seed": "Other options"}

_FITTED = (
    "this encoder was fitted just now on the texts that it is evaluated on, queries and positives included: its score is no baseline "
    "for a trained one. That is 'before' in DIR/train.json, the encoder as 'hardneg train' fitted it to the training data"
)


@click.command(cls=Sectioned, sections=_SECTIONS)
@click.argument("source")
@reading("test", "Split to evaluate on, of a BEIR folder, a saved dataset or a built-in dataset.")
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="NAME@K",
    help="Measure to compute: ndcg@K · mrr@K · recall@K. Repeat the option for several.  [default: ndcg@10 mrr@10 "
    "recall@10 recall@100]",
)
@click.option(
    "--zero-shot",
    is_flag=True,
    help="Also measure zero-shot classification: how many documents, such as pictures, have a right query as the nearest.",
)
@encoding
@click.option(
    "--cache",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder that keeps the vectors, to use them again.",
)
@click.option(
    "--metric",
    default="cosine",
    show_default=True,
    metavar="NAME",
    help="Score of two vectors: cosine · ip (inner product) · l2 (minus the squared distance).",
)
@click.option(
    "--seed",
    type=SEED_OF_MODELS,
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of the initial weights of an encoder without saved weights.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the measures as one JSON object on stdout.")
def evaluate(source: str, measures: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Measure how well an encoder finds the positives of SOURCE in its whole corpus.

    SOURCE is a dataset, as for 'hardneg mine'.

    \b
    Examples:
      hardneg evaluate beir/scifact --encoder st:all-MiniLM-L6-v2
      hardneg evaluate builtin:pycode --split train --measure mrr@10
    """
    from hardneg.data.read import read_pairs
    from hardneg.encoders.base import Fittable
    from hardneg.encoders.devices import check_one_way, parse_devices
    from hardneg.encoders.factory import make_encoder
    from hardneg.encoders.precomputed import open_aligned, order_notes
    from hardneg.errors import UsageError
    from hardneg.evaluation.ranking import parse_measures
    from hardneg.evaluation.retrieval import DEFAULT, check_metric, evaluate_vectors
    from hardneg.evaluation.retrieval import evaluate as run_evaluate

    check_one_way(given["device"], given["devices"])
    names = measures or DEFAULT
    parse_measures(names)
    check_metric(given["metric"])
    files = given["query_embeddings"], given["corpus_embeddings"]
    if (files[0] is None) != (files[1] is None):
        raise UsageError("give both --query-embeddings and --corpus-embeddings, or neither")
    fresh = False
    with progress_bars() as progress:
        pairs = read_pairs(source, read_options(given), progress=progress)
        if files[0] is not None:
            if given["zero_shot"]:
                raise UsageError("--zero-shot needs an encoder, not vectors that are given")
            queries, documents = open_aligned(files[0], pairs, "queries"), open_aligned(files[1], pairs, "documents")
            evaluation = evaluate_vectors(pairs, queries, documents, names, given["metric"])
        else:
            devices = parse_devices(given["devices"])
            encoder = make_encoder(
                given["encoder"], seed=given["seed"], device=devices[0] if devices else given["device"],
                batch_size=given["batch_size"], precision=given["encoder_precision"],
            )  # fmt: skip
            fresh = isinstance(encoder, Fittable) and not encoder.fitted
            evaluation = run_evaluate(
                pairs, encoder, names, progress=progress, devices=devices,
                **{name: given[name] for name in ("query_prompt", "document_prompt", "metric", "cache", "zero_shot")},
            )  # fmt: skip
    if files[0] is not None:
        warn(order_notes(map(Path, files)))
    if fresh:
        warn([_FITTED])  # not in the JSON: the numbers are what they are
    if as_json:
        print_json(evaluation.to_json())
    else:
        print_evaluation(evaluation.to_json(), source)
