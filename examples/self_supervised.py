"""Training without labels: each document is its own query, seen through dropout (SimCSE, arXiv 2104.08821)."""

from __future__ import annotations

from functions import pairs_of_functions

import hardneg
from hardneg.training.self_supervised import two_views

pairs, held = pairs_of_functions()
views = two_views(pairs)  # the questions are not looked at
model = hardneg.HashedEncoder(64, dropout=0.3)
options = hardneg.TrainOptions(
    epochs=2, batch_size=32, negatives=2, refresh="epoch", filters=("margin:relative=0.1",), learning_rate=1e-3
)
done = hardneg.train(views, model, "self-supervised", options, evaluation=held, device="cpu", overwrite=True)
for each in done["evaluations"]:  # with the questions, which were held out
    print(each)
