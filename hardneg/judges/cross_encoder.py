"""A cross-encoder as a judge: relevant is what it scores above a cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hardneg.judges.base import JudgeOptions, Verdicts, need_model
from hardneg.mining.cross_encoder import load_cross_encoder
from hardneg.progress import Progress, silent

CUT = 0.5

_CHUNK = 32  # batches between two reports of progress


class CrossEncoderJudge:
    """A sentence-transformers cross-encoder, or `module:PKG.MOD:FACTORY` of an object with `predict(pairs) -> scores`.

    Pairs are scored in the order of their lengths, so that a batch is hardly padded.

    Args:
        model: the name.
        options: `batch_size`, `device` and `cut`.

    Raises:
        UsageError: the model cannot be loaded.
    """

    prompt = ""

    def __init__(self, model: str, options: JudgeOptions) -> None:
        self.name = f"cross-encoder:{model}"
        self.cut = CUT if options.cut is None else options.cut
        self.batch_size = options.batch_size
        self.scorer = load_cross_encoder(model, device=options.device, batch_size=options.batch_size)

    def judge(self, pairs: Sequence[tuple[str, str]], progress: Progress = silent) -> Verdicts:
        """Judge pairs of (query, document). Raises UsageError if a score is NaN or infinite."""
        advance = progress("judge", len(pairs))
        scores = np.empty(len(pairs), np.float64)
        order = np.argsort([-len(query) - len(document) for query, document in pairs], kind="stable")
        step = self.batch_size * _CHUNK
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            scores[rows] = self.scorer([pairs[i] for i in rows])
            advance(len(rows))
        return Verdicts((scores > self.cut).astype(np.int8), scores, {}, {"pairs": len(pairs)})


def from_spec(model: str, options: JudgeOptions) -> CrossEncoderJudge:
    return CrossEncoderJudge(need_model("cross-encoder", model), options)
