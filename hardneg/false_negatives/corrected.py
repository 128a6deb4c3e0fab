"""Judgements of a model in the guarantee: corrected by those of a person, or refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.errors import DataError
from hardneg.false_negatives.agreement import Agreement
from hardneg.false_negatives.guarantee import Test, level_of, p_value
from hardneg.false_negatives.judgements import Judgements, check_drawn_for, places, read_judgements
from hardneg.false_negatives.population import Ladder, Population
from hardneg.false_negatives.prediction_powered import Halves, certify_powered
from hardneg.storage.files import sha256_file


def check_judge(judged: Judgements, file: str, trusted: bool, run: Path) -> None:
    """Raise DataError if a model judged, and nobody takes its word for the truth."""
    if judged.by_judge.any() and not trusted:
        name, given = quote(str(run)), quote(file)
        sample, new = min(200, len(judged.query)), quote(str(Path(file).with_name(f"{Path(file).stem}-person.csv")))
        raise DataError(
            f"{file} was judged by {', '.join(judged.judges)}, not by a person. A model errs, and its word alone guarantees nothing. "
            f"Let a person judge a part of these pairs (hardneg judge {name} --predictions {given} --sample {sample} --out {new}), "
            f"then: hardneg calibrate {name} {new} --predictions {given}. Or learn from its judgements without a guarantee (--learn "
            f"judged). If you take its word for the truth: --trust-judge"
        )


@dataclass(frozen=True)
class Predictions:
    """What a model said about many pairs, and what a person said about a part of these.

    Attributes:
        judged: the judgements of the model; a pair without an answer counts as relevant.
        at: int64 `[m]`, for each pair of the person, its place among those of the model; -1 if it is not among them.
    """

    judged: Judgements
    at: NDArray[np.int64]

    @classmethod
    def read(
        cls,
        path: str | Path | None,
        pairs: Pairs,
        person: Judgements,
        file: str | Path | None,
        alpha: float,
        drawn_for: str,
    ) -> Predictions | None:
        """Check what the judgements of the person in `file` were drawn for, and read the model's in `path`, if there are any.

        Raises:
            DataError: either was drawn for something else, or the person judged other pairs.
        """
        check_drawn_for(person, file, alpha, drawn_for)
        if path is None:
            return None
        judged = read_judgements(Path(path), pairs, predictions=True)
        check_drawn_for(judged, path, alpha, drawn_for)
        if person.chosen_by is not None and person.chosen_by != sha256_file(Path(path))[:16]:
            raise DataError(
                f"the person's pairs were chosen by other judgements than those in {path}: use that file, as it was then, or draw anew"
            )
        keys, wanted = judged.key(pairs), person.key(pairs)
        order = np.argsort(keys)
        at = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
        at = np.where(keys[at] == wanted, at, -1)
        strange = person.held_out & ((at < 0) | ~judged.held_out[at])
        if strange.any():
            raise DataError(
                f"{int(strange.sum()):,} pairs that a person judged are not held out in {path}: draw both with the same --seed, "
                f"--alpha and --posterior, the model's with a larger --sample"
            )
        return cls(judged, at)

    def tests(
        self, rungs: Ladder, population: Population, person: Judgements, place: NDArray[np.int64], alpha: float,
        confidence: float,
    ) -> list[Test]:  # fmt: skip
        """The tests of all thresholds, at the latest look of both files.

        Every extension of either file is a look of its own. If the person's pairs are a plain sample, the test without the model is
        made as well, both at half the level: the model helps the more, the more negatives are false and the better it is.
        """
        look = int(person.look.max()) + int(self.judged.look.max()) - 1
        held, mine = self.judged.held_out, place[person.held_out]
        where = places(self.judged, population)[held]
        checked, relevant = np.zeros(len(held), bool), np.zeros(len(held), bool)
        checked[self.at[person.held_out]] = True
        relevant[self.at[person.held_out]] = person.relevant[person.held_out]
        halves = []
        for chosen in rungs.chosen:
            here = chosen[where]
            halves.append(Halves.of(self.judged.relevant[held][here], checked[held][here], relevant[held][here]))
        counts = [int(chosen.sum()) for chosen in rungs.chosen]
        tests = certify_powered(rungs.thresholds, counts, halves, alpha, confidence, look)
        if person.chosen_by is not None:
            return list(tests)
        out: list[Test] = []
        passing = True
        for test, chosen in zip(tests, rungs.chosen, strict=True):
            seen = chosen[mine]
            alone = p_value(
                int((seen & person.relevant[person.held_out]).sum()), int(seen.sum()), test.negatives, alpha
            )
            p = min(1.0, 2 * min(alone, test.p))
            passing = passing and p <= level_of(look, confidence)
            out.append(replace(test, p=p, passed=passing))
        return out

    def agreement(self, person: Judgements) -> Agreement:
        """The model held against the person, on all pairs that both judged."""
        both = self.at >= 0
        answered = self.judged.answered[self.at] & both
        return Agreement.between(
            self.judged.relevant[self.at][answered], person.relevant[answered], int((both & ~answered).sum())
        )

    def report(self, person: Judgements) -> dict[str, Any]:
        """The model, how much it judged, and how well it agrees with the person."""
        return {
            "names": list(self.judged.judges),
            "pairs": len(self.judged.query),
            "without_answer": int((~self.judged.answered).sum()),
            "agreement": self.agreement(person).to_json(),
        }
