"""Distillation in a training: the scores of a run's teacher for the documents of each batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError, suggestion
from hardneg.losses.distillation import KINDS, distillation_loss
from hardneg.mining.mined import Mined
from hardneg.mining.run import Run
from hardneg.mining.spec_options import SpecOptions, split_spec
from hardneg.mining.teachers import TEACHER, Teachers

_ALL = 0.999  # a share of scores from which on none is said to be missing

_SAMPLE = 1000  # queries whose candidates are looked at before the training begins


@dataclass(frozen=True)
class Distillation:
    """How a training learns from a teacher.

    Attributes:
        kind: `kl` or `margin-mse`; see `distillation_loss`.
        weight: of this loss; it is added to InfoNCE.
        temperature: what the teacher's scores are divided by.
        alone: whether InfoNCE is left out.
        teacher: the name of the teacher in the run, as in `hardneg score --name`.
    """

    kind: str = "kl"
    weight: float = 1.0
    temperature: float = 1.0
    alone: bool = False
    teacher: str = TEACHER

    @classmethod
    def parse(cls, spec: str) -> Distillation:
        """What `kl`, `margin-mse:weight=0.1` or `kl:alone,temperature=2,teacher=NAME` describes; UsageError for anything else.

        >>> Distillation.parse("margin-mse:weight=0.1").weight
        0.1
        """
        if not isinstance(spec, str):
            raise UsageError(f"distill={spec!r} must be a text, such as 'kl' or 'margin-mse:weight=0.1'")
        kind, words, given = split_spec(spec, "distill")
        if kind not in KINDS:
            raise UsageError(f"distill={spec!r}.{suggestion(kind, KINDS)}")
        options = SpecOptions(spec, "distill", [word for word in words if word != "alone"], given)
        weight, temperature = (options.number(name, 1.0, 1e-9) for name in ("weight", "temperature"))
        teacher = options.text("teacher", TEACHER)
        options.done()
        return cls(kind, weight or 1.0, temperature or 1.0, "alone" in words, teacher or TEACHER)


class Teaching:
    """The teacher of a training.

    Args:
        spec: see `Distillation.parse`.
        run: the mining run whose candidates are the negatives, with the scores of the teacher.
        pairs: the training data.

    Raises:
        UsageError: there is no run, it has no such teacher, or the teacher has scored none of its candidates, or, for
            `margin-mse`, none of the positives.
    """

    def __init__(self, spec: str, run: Run | None, pairs: Pairs) -> None:
        self.options = Distillation.parse(spec)
        if run is None:
            raise UsageError(
                f"distill={spec!r} needs the scores of a teacher: mine a run, score it with hardneg score RUN --scorer "
                f"cross-encoder:NAME (or --scores FILE), and train with --run RUN"
            )
        self.scores = Teachers(run.folder / "teacher", pairs).named(self.options.teacher)
        mined = Mined.of_run(run)
        rows = np.linspace(0, len(pairs) - 1, min(_SAMPLE, len(pairs))).astype(np.int64)
        found = np.isfinite(self.scores.of(rows, mined.documents[rows])) & mined.kept[rows]
        self.share = float(found.sum() / max(1, mined.kept[rows].sum()))
        if not found.any():
            raise UsageError(
                f"the teacher {self.options.teacher!r} of {run.folder} has scored none of the candidates that may be negatives: "
                f"{self.scores.more('kept')}"
            )
        listed = pairs.positives.take(rows).padded()
        known = np.isfinite(self.scores.of(rows, listed)) & (listed >= 0)
        self.positives = float(known.sum() / max(1, (listed >= 0).sum()))
        if self.options.kind == "margin-mse" and not known.any():
            raise UsageError(
                f"the teacher {self.options.teacher!r} of {run.folder} has scored none of the positives, which margin-mse "
                f"compares with: {self.scores.more('kept')}"
            )

    def warning(self) -> str | None:
        """What to say of candidates and positives without scores; None if there are none."""
        lacking = []
        if self.share <= _ALL:
            lacking.append(f"{self.share:.0%} of the candidates that may be negatives; the others do not count")
        if self.positives <= _ALL:
            without = "are left out" if self.options.kind == "margin-mse" else "compare their negatives alone"
            lacking.append(f"{self.positives:.0%} of the positives; the queries of the others {without}")
        if not lacking:
            return None
        return f"the teacher has scored {', and '.join(lacking)} in the distillation. To score them: {self.scores.more('kept')}"

    def loss(
        self,
        rows: tuple[Tensor, Tensor, Tensor],
        queries: Tensor,
        documents: Tensor,
        scale: Tensor,
        similarity: str = "cosine",
    ) -> Tensor:
        """The weighted loss of a batch, `[]`.

        Args:
            rows: `query_rows`, `document_rows` and `mined` of the batch.
            queries, documents: `[B, d]` and `[B + M, d]`, their vectors, with gradients.
            scale: 1 / temperature of the encoder.
            similarity: as in `InfoNCE`.
        """
        query_rows, document_rows, mined = rows
        places = torch.cat([torch.arange(len(query_rows))[:, None], mined], 1)
        listed = torch.where(places >= 0, document_rows[places.clamp(min=0)], -1)  # -1: encoded by another rank
        found = self.scores.of(query_rows.numpy(), listed.numpy())
        teacher = torch.from_numpy(np.where(np.isfinite(found), found, np.float32(np.nan))).to(queries.device)
        vectors = documents[places.clamp(min=0).to(documents.device)]
        value = distillation_loss(
            queries,
            vectors,
            teacher,
            self.options.kind,
            scale=scale,
            teacher_temperature=self.options.temperature,
            similarity=similarity,
        )
        return self.options.weight * value
