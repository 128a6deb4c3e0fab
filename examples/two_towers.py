"""Two encoders, one for queries and one for documents, trained by `hardneg.train` with a learned filter of false negatives."""

from __future__ import annotations

from functions import pairs_of_functions

import hardneg
from hardneg.evaluation import evaluate_vectors

pairs, held = pairs_of_functions()
towers = hardneg.Towers(hardneg.HashedEncoder(64, seed=0), hardneg.HashedEncoder(64, seed=0))
options = hardneg.TrainOptions(
    epochs=3, batch_size=32, negatives=4, refresh="epoch", filters=("posterior:learned",), learning_rate=3e-3,
    learning_rates=("document=1e-3",),
)  # fmt: skip
hardneg.train(
    pairs, towers, "two-towers", options, device="cpu", overwrite=True
)  # two-towers/last has a folder for each tower

query, document = towers.tower("query"), towers.tower("document")
queries = query.encode(held.queries.slice(0, len(held)))
documents = document.encode(held.documents.slice(0, len(held.document_ids)))
print(evaluate_vectors(held, queries, documents, ["ndcg@10"]))
