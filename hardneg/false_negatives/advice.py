"""What to do when no threshold can be certified: commands that can be typed as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from hardneg.false_negatives.corrected import Predictions
from hardneg.false_negatives.guarantee import Test, judgements_needed
from hardneg.false_negatives.judgements import Judgements
from hardneg.false_negatives.population import Population


@dataclass(frozen=True)
class Files:
    """The files that a calibration was given.

    Attributes:
        judgements: those that are to certify a threshold.
        predictions: those of a model, which a person's correct; None without them.
    """

    judgements: Path
    predictions: Path | None = None

    @classmethod
    def of(cls, judgements: str | Path, predictions: str | Path | None) -> Files:
        return cls(Path(judgements), None if predictions is None else Path(predictions))


def not_certified(
    tests: list[Test], alpha: float, confidence: float, judgements: Judgements, population: Population,
    predictions: Predictions | None, files: Files,
) -> str:  # fmt: skip
    """Why no threshold was certified, and which command helps, if one does."""
    strictest = tests[0]
    held, judged = int(judgements.held_out.sum()), len(judgements.relevant)
    expected = population.expected(strictest.threshold)
    needed, chance = judgements_needed(strictest, alpha, confidence, held, expected)
    found = (
        f"no threshold can be certified to keep false negatives at {alpha:.1%} or less with confidence {confidence:.0%}: "
        f"even with the strictest, {strictest.false} of {strictest.judged} judged negatives are false"
    )
    if needed is None:
        more = (
            f"more judgements would hardly help (the chance is {chance:.0%} at best): allow a larger --alpha, or mine with a better "
            f"encoder"
        )
    else:
        wanted = -(-judged * needed // max(held, 1))
        sample = max(judged + 1, min(wanted, len(population.probabilities)))
        more = (
            f"about {sample - judged:,} more judgements would do, with a chance of {chance:.0%}: "
            f"{_commands(sample, alpha, judgements, population, predictions, files)} "
            f"(with the same --seed and --posterior as before, if you gave any)"
        )
    return f"{found}. {more[0].upper()}{more[1:]}. --uncertified writes a posterior without a guarantee"


def _commands(
    sample: int, alpha: float, judgements: Judgements, population: Population, predictions: Predictions | None, files: Files
) -> str:  # fmt: skip
    """How to get that many judgements."""
    start = f"hardneg judge {quote(str(population.run.run.folder))} --sample {sample} --alpha {alpha:g}"
    by_model = f" --judge {_judge(judgements)}" if judgements.by_judge.any() else ""
    new = _free(files.judgements)
    keep = f"--judged {quote(str(files.judgements))} --out {quote(str(new))} keeps those there are"
    if predictions is None or files.predictions is None:
        return f"{start}{by_model} {keep}"
    chosen = judgements.chosen_by is not None
    model = files.predictions
    there = len(predictions.judged.query)
    if sample <= there:
        return f"{start}{f' --predictions {quote(str(model))}' if chosen else ''} {keep}"
    larger = _free(model)
    first = (
        f"the model judged only {there:,} pairs. Let it judge more first: {start} --judge {_judge(predictions.judged)} --judged "
        f"{quote(str(model))} --out {quote(str(larger))}; then "
    )
    if chosen:  # those that were chosen by other answers cannot be kept
        return (
            f"{first}draw the person's pairs anew: {start} --predictions {quote(str(larger))} --out {quote(str(new))}"
        )
    return f"{first}{start} {keep}, to calibrate with --predictions {quote(str(larger))}"


def _judge(judged: Judgements) -> str:
    """The spec of the model that judged, if it is known."""
    return quote(judged.judges[0]) if len(judged.judges) == 1 and ":" in judged.judges[0] else "SPEC"


def _free(path: Path) -> Path:
    """A name beside a file, for its extension, that is not taken."""
    number = 2
    while (found := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return found
