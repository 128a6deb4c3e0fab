"""Judge: draw candidates of a run, for people or a cross-encoder to say which are relevant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hardneg.ambient import own_settings
from hardneg.errors import DataError, UsageError
from hardneg.false_negatives.calibrate import check_rates, open_run
from hardneg.false_negatives.judgements import (
    Drawn,
    Judgements,
    check_drawn_for,
    draw_id,
    draw_pairs,
    judge_with,
    read_judgements,
    write_judgements,
)
from hardneg.false_negatives.model import Posterior
from hardneg.false_negatives.population import Population, ladder
from hardneg.false_negatives.sources import family
from hardneg.mining.cross_encoder import rater
from hardneg.mining.run import Run
from hardneg.progress import Progress, with_progress
from hardneg.storage.outputs import check_place


@with_progress
@own_settings()
def judge(
    run: str | Path | Run,
    out: str | Path,
    *,
    sample: int = 300,
    alpha: float = 0.05,
    seed: int = 0,
    posterior: Posterior | None = None,
    judged: str | Path | None = None,
    cross_encoder: str | None = None,
    cut: float = 0.5,
    progress: Progress | bool = False,
) -> Drawn:
    """Draw candidates of a run for judging, and write them as CSV.

    Args:
        run: a finished run.
        out: the CSV file.
        sample: number of pairs. With the same run, alpha, seed and posterior, a larger sample contains the smaller one.
        alpha: share of false negatives to be guaranteed. Pairs are drawn near the thresholds that this alpha decides between.
        seed: random seed of the draw.
        posterior: the posterior whose threshold is to be certified; None: one learned from the known positives.
        judged: a file of earlier judgements; they are copied to the new file.
        cross_encoder: judges the pairs instead of people: relevant if its score is above `cut`.
        cut: see `cross_encoder`.
        progress: True for bars, or called with the progress of each stage.

    Raises:
        DataError, UsageError: see their messages.
    """
    assert callable(progress)  # see `with_progress`
    check_rates(alpha, 0.95)
    check_place(Path(out))
    if sample < 1:
        raise UsageError("the sample must be 1 pair or more")
    reopened, features = open_run(run, progress)
    model = family(reopened, features, posterior, "auto", seed, progress).model
    population = Population(reopened, features, model, progress)
    if not len(population.probabilities):
        raise DataError(
            f"{reopened.run.folder}: every candidate was rejected by other filters: nothing is left to judge"
        )
    drawn = draw_pairs(population, ladder(population, alpha), sample, seed)
    drawn_for = draw_id(reopened, posterior)
    relevant: list[int | None] | None = None
    if cross_encoder is not None:
        relevant = judge_with(rater(reopened.context, cross_encoder), population, drawn, cut)
    elif judged is not None:
        earlier = read_judgements(Path(judged), reopened.pairs)
        check_drawn_for(earlier, judged, alpha, drawn_for)
        relevant, drawn = _taken_over(earlier, population, drawn, str(judged))
    write_judgements(Path(out), population, drawn, relevant, alpha=alpha, drawn_for=drawn_for)
    return drawn


def _taken_over(judged: Judgements, population: Population, drawn: Drawn, file: str) -> tuple[list[int | None], Drawn]:
    """The earlier judgements of the drawn pairs, and the draw with the looks of the earlier file.

    Raises:
        DataError: pairs that were held out earlier are not among the drawn ones.
    """
    asked = population.pairs.take(drawn.place)
    pairs = list(zip(asked.query.tolist(), asked.document.tolist(), strict=True))
    earlier = list(zip(judged.query.tolist(), judged.document.tolist(), strict=True))
    known = dict(zip(earlier, judged.relevant.tolist(), strict=True))
    # A pair that was for learning first tests the guarantee from this look on.
    looked = dict(zip(earlier, np.where(judged.held_out, judged.look, 0).tolist(), strict=True))
    missing = set(earlier) - set(pairs)
    held = sum(pair in missing for pair, is_held in zip(earlier, judged.held_out, strict=True) if is_held)
    if held:
        raise DataError(
            f"{held:,} pairs of {file} that test the guarantee are not among those drawn now: a larger --sample with the same "
            f"--seed, --alpha and --posterior contains them"
        )
    next_look = int(judged.look.max(initial=0)) + 1
    look = np.array([looked.get(pair) or next_look for pair in pairs], np.int64)
    relevant = [int(known[pair]) if pair in known else None for pair in pairs]
    return relevant, replace(drawn, look=look, left_out=len(missing))
