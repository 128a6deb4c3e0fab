"""An encoder learns the scores of a reranker. Here the reranker counts words; a cross-encoder has the same method `predict`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from functions import pairs_of_functions

import hardneg


class Reranker:
    """Scores a pair by the words of the question that the code has, also as parts of its names."""

    def predict(self, pairs: list[tuple[str, str]]) -> list[float]:
        scores = []
        for question, code in pairs:
            asked = set(re.findall(r"[a-z]{3,}", question.lower()))
            scores.append(4.0 * len(asked & set(re.findall(r"[a-z]{3,}", code.lower()))) / max(len(asked), 1))
        return scores

    def fingerprint(self) -> str:
        """Changes whenever the scores would: a run does not mix those of two rerankers."""
        return "words-1"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    pairs, held = pairs_of_functions()
    run = hardneg.mine(pairs, "mined", depth=30, negatives=8, overwrite=True)
    # With a model: "cross-encoder:cross-encoder/ms-marco-MiniLM-L6-v2"
    scored = run.score("cross-encoder:module:distillation:Reranker")
    print(f"{scored.pairs:,} pairs have scores")

    options = hardneg.TrainOptions(
        epochs=3,
        batch_size=32,
        negatives=8,
        refresh="never",
        distill="kl",
        filters=("teacher:margin=0",),
        learning_rate=3e-3,
    )
    model = hardneg.HashedEncoder(64)
    done = hardneg.train(pairs, model, "distilled", options, evaluation=held, run=run, device="cpu", overwrite=True)
    for each in done["evaluations"]:
        print(each)
