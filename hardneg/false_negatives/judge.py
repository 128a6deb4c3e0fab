"""Judge: draw candidates of a run, for people or models to say which are relevant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hardneg.ambient import own_settings
from hardneg.errors import DataError, UsageError
from hardneg.false_negatives.calibrate import check_rates, open_run
from hardneg.false_negatives.judgement_file import FIT, HELD_OUT, NEGATIVE, POSITIVE, Row, write_judgements
from hardneg.false_negatives.judgements import (
    Drawn,
    Judgements,
    check_drawn_for,
    draw_checks,
    draw_id,
    draw_negatives,
    draw_pairs,
    read_judgements,
)
from hardneg.false_negatives.model import Posterior
from hardneg.false_negatives.population import OpenPairs, Population, ladder
from hardneg.false_negatives.sources import family
from hardneg.false_negatives.stages import most_open
from hardneg.judges.base import NO_ANSWER, Judge, JudgeOptions, Verdicts, checked_judge, make_judge, verdicts_of
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.progress import Progress, silent, with_progress
from hardneg.storage.files import sha256_file
from hardneg.storage.outputs import check_place

OF = ("sample", "negatives", "positives")


@dataclass(frozen=True)
class Asking:
    """Who judges the pairs of `judge`, and which pairs.

    Attributes:
        judge: a spec (`openai:MODEL`, `cross-encoder:NAME`) or a `Judge`; None: a person fills the file.
        options: of the judges.
        then: a second judge, for the pairs where its answer would change most.
        then_pairs: how many pairs it judges.
        of: `sample`: pairs for a guarantee. `negatives`: the negatives of the run, the most suspicious first, for `relabel`.
            `positives`: known positives, for `check_pairs`.
        predictions: a file that a model filled, by which the pairs for a person are chosen (see `draw_checks`).
    """

    judge: str | Judge | None = None
    options: JudgeOptions = field(default_factory=JudgeOptions)
    then: str | Judge | None = None
    then_pairs: int = 100
    of: str = "sample"
    predictions: str | Path | None = None

    def __post_init__(self) -> None:
        if self.of not in OF:
            raise UsageError(f"pairs are drawn of {' or '.join(OF)}, not of {self.of!r}")
        if self.then is not None and self.judge is None:
            raise UsageError("a second judge needs a first one: give judge= as well (--judge)")
        if self.then_pairs < 1:
            raise UsageError("the second judge must judge 1 pair or more")
        if self.predictions is not None and (self.judge is not None or self.of != "sample"):
            raise UsageError("--predictions chooses pairs of the sample for a person: leave --judge and --of out")

    def judges(self) -> list[Judge]:
        """The judges, loaded."""
        given = [(name, each) for name in ("judge", "then") if (each := getattr(self, name)) is not None]
        return [
            make_judge(each, self.options) if isinstance(each, str) else checked_judge(each, f"{name}=")
            for name, each in given
        ]


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
    asking: Asking | None = None,
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
        asking: who judges, and which pairs; None: a person, a sample.
        cross_encoder, cut: this cross-encoder judges the pairs: relevant if its score is above `cut`.
        progress: True for bars, or called with the progress of each stage.

    Returns:
        What was drawn; with a judge, also what happened when it was asked.

    Raises:
        DataError, UsageError: see their messages.
    """
    assert callable(progress)  # see `with_progress`
    check_rates(alpha, 0.95)
    check_place(Path(out))
    if sample < 1:
        raise UsageError("the sample must be 1 pair or more")
    asking = Asking() if asking is None else asking
    if cross_encoder is not None:
        asking = replace(asking, judge=f"cross-encoder:{cross_encoder}", options=replace(asking.options, cut=cut))
    judges = asking.judges()  # before anything is computed: a missing key or model is said at once
    reopened, features = open_run(run, progress)
    if asking.of == "positives":
        return _judge_positives(Path(out), reopened, sample, seed, alpha, judges, progress)
    model = family(reopened, features, posterior, "auto", seed, progress).model
    population = _judgeable(Population(reopened, features, model, progress))
    drawn_for = draw_id(reopened, posterior)
    drawn, relevant, chosen_by = _draw(population, asking, judged, sample, alpha, seed, drawn_for)
    rows, shown = _rows(drawn, relevant, asking.of), population.pairs.take(drawn.place)
    if judges:
        rows, counts = _asked(judges, asking, population, drawn, shown, rows, progress)
        drawn = replace(drawn, asked=counts)
    write_judgements(
        Path(out), population.run.pairs, shown, rows, alpha=alpha, chosen_by=chosen_by,
        drawn_for="" if asking.of == "negatives" else f"{drawn_for}-{int(drawn.held_out.sum())}",
        prompts={each.name: each.prompt for each in judges},
    )  # fmt: skip
    return drawn


def _judgeable(population: Population) -> Population:
    """The population, if there is anything in it."""
    if not len(population.probabilities):
        folder = population.run.run.folder
        raise DataError(f"{folder}: every candidate was rejected by other filters: nothing is left to judge")
    return population


def _draw(
    population: Population,
    asking: Asking,
    judged: str | Path | None,
    sample: int,
    alpha: float,
    seed: int,
    drawn_for: str,
) -> tuple[Drawn, list[int | None] | None, str]:
    """The pairs to judge, what an earlier file says about them, and the hash of the judgements that they were chosen by."""
    pairs, chosen_by = population.run.pairs, ""
    if asking.of == "negatives":
        drawn, drawn_for = draw_negatives(population, sample), ""
    elif asking.predictions is not None:
        predictions = read_judgements(Path(asking.predictions), pairs, predictions=True)
        check_drawn_for(predictions, asking.predictions, alpha, drawn_for)
        drawn, chosen_by = (
            draw_checks(population, predictions, sample, seed),
            sha256_file(Path(asking.predictions))[:16],
        )
    else:
        drawn = draw_pairs(population, ladder(population, alpha), sample, seed)
    if judged is None:
        return drawn, None, chosen_by
    earlier = read_judgements(Path(judged), pairs, predictions=asking.judge is not None)
    check_drawn_for(earlier, judged, alpha, drawn_for)
    if (earlier.chosen_by or "") != chosen_by:
        raise DataError(
            f"the pairs of {judged} were chosen by other judgements of a model than these: draw with the same --predictions"
        )
    relevant, drawn = _taken_over(earlier, population, drawn, str(judged))
    return drawn, relevant, chosen_by


def _judge_positives(
    out: Path, run: Reopened, sample: int, seed: int, alpha: float, judges: list[Judge], progress: Progress
) -> Drawn:
    """Write known positives of random queries, judged by the first judge, if there is one."""
    pairs = run.pairs
    found = []
    for part in run:
        rows, scores = part.positive_scores.row_numbers(), part.positive_scores.values
        wanted = pairs.positives.take(part.candidates.queries)
        nearer = (part.candidates.scores[rows] > scores[:, None]).sum(1) + 1
        found.append((part.candidates.queries[rows], wanted.values.astype(np.int32), nearer.astype(np.int32), scores))
    every = OpenPairs(*(np.concatenate(each) for each in zip(*found, strict=True)))
    count = min(sample, len(every.query))
    place = np.sort(np.random.default_rng([seed, 1]).choice(len(every.query), count, replace=False))
    drawn = Drawn(place, np.full(count, np.nan), np.zeros(count, bool), np.ones(count, np.int64))
    shown, rows_of = every.take(place), [Row(POSITIVE, float("nan")) for _ in range(count)]
    if judges:
        texts = list(zip(pairs.queries.take(shown.query), pairs.documents.take(shown.document), strict=True))
        said = verdicts_of(judges[0], texts, progress)
        rows_of = _filled(rows_of, np.arange(count), said, judges[0].name)
        drawn = replace(drawn, asked={judges[0].name: said.counts})
    write_judgements(
        out, pairs, shown, rows_of, alpha=alpha, drawn_for="", prompts={each.name: each.prompt for each in judges}
    )
    return drawn


def _rows(drawn: Drawn, relevant: list[int | None] | None, of: str) -> list[Row]:
    """What is known about the drawn pairs before a model judges them."""
    parts = [NEGATIVE if of == "negatives" else HELD_OUT if held else FIT for held in drawn.held_out]
    said: Sequence[int | None] = relevant or [None] * len(parts)
    return [
        Row(part, float(chance), int(look), each)
        for part, chance, look, each in zip(parts, drawn.inclusion, drawn.look, said, strict=True)
    ]


def _asked(
    judges: list[Judge], asking: Asking, population: Population, drawn: Drawn, shown: OpenPairs, rows: list[Row],
    progress: Progress = silent,
) -> tuple[list[Row], dict[str, dict[str, float]]]:  # fmt: skip
    """The rows with what the judges say, and what happened when they were asked, by name."""
    pairs = population.run.pairs
    texts = list(zip(pairs.queries.take(shown.query), pairs.documents.take(shown.document), strict=True))
    first = verdicts_of(judges[0], texts, progress)
    rows = _filled(rows, np.arange(len(rows)), first, judges[0].name)
    counts = {judges[0].name: first.counts}
    if len(judges) > 1:
        places = most_open(population.probabilities[drawn.place], first.relevant, asking.then_pairs)
        second = verdicts_of(judges[1], [texts[i] for i in places], progress)
        rows = _filled(rows, places, second, judges[1].name)
        changed = (second.relevant != NO_ANSWER) & (second.relevant != first.relevant[places])
        counts[judges[1].name] = {**second.counts, "verdicts changed": int(changed.sum())}
    return rows, counts


def _filled(rows: list[Row], places: NDArray[np.int64], said: Verdicts, name: str) -> list[Row]:
    """The rows with verdicts at these places. Where there is no answer, an earlier one stays."""
    out = list(rows)
    for i, place in enumerate(places.tolist()):
        answer = int(said.relevant[i])
        if answer == NO_ANSWER:
            kept = out[place]
            out[place] = replace(kept, note=said.notes.get(i, "")) if kept.judge else replace(
                kept, relevant=None, judge=name, note=said.notes.get(i, "")
            )  # fmt: skip
        else:
            out[place] = replace(
                out[place], relevant=answer, grade=float(said.value[i]), judge=name, note=said.notes.get(i, "")
            )
    return out


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
            f"--seed, --alpha and --posterior contains them, unless the run was scored since (hardneg score: what a teacher says is a "
            f"feature of the posterior)"
        )
    next_look = int(judged.look.max(initial=0)) + 1
    look = np.array([looked.get(pair) or next_look for pair in pairs], np.int64)
    relevant = [int(known[pair]) if pair in known else None for pair in pairs]
    return relevant, replace(drawn, look=look, left_out=len(missing))
