"""The rule that most findings are: one number, compared with a limit for each severity."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hardneg.diagnostics.commands import IN_WORDS
from hardneg.diagnostics.estimates import Estimate, Measurements
from hardneg.diagnostics.findings.base import Finding, FindingRule
from hardneg.diagnostics.findings.thresholds import Thresholds

KEEP_ONE = (
    "keep one of each group of copies in the corpus, and mine again: no filter compares a query's negatives with one another but "
    "distinct, which rejects equal ones"
)


_LONG = 1.5  # times the median length, from which a hub is taken to be one by its length


@dataclass(frozen=True)
class ThresholdRule(FindingRule):
    """A rule that compares one number with a threshold for each severity.

    Attributes:
        code, number: as in `Finding`.
        text, fix: templates of the finding's text and fix. `{v}` stands for the number, and the name of a measurement
            for its value; `{rest}` is 1 less the number. Both may also use `{run}`, `{out}` and `{posterior}`, which are quoted
            for a shell, `{mine}`, the command that mines again, `{otherwise}`, the same with another encoder,
            `{exact}`, with an exact index,
            `{suits}`, the temperatures that suit the negatives, and `{item}` and `{items}`: what the documents are, texts or pictures.
        info, warning, error: the name of the threshold for each severity; empty for none.
        ids: the name of the measured ids to list as examples; empty for none.
        above: True if the number should not be above the threshold, False if it should not be below it.
        chance: the name of the measurement of the value expected by chance; empty for none. The threshold is at least
            five times that value.
    """

    code: str
    number: str
    text: str
    fix: str
    warning: str = ""
    error: str = ""
    ids: str = ""
    above: bool = True
    chance: str = ""
    info: str = ""

    def check(self, measured: Measurements, thresholds: Thresholds, run: str) -> Finding | None:
        """Report the highest severity whose threshold is exceeded.

        An estimate exceeds a threshold only if its whole interval lies beyond it.
        """
        number = measured.numbers.get(self.number)
        if number is None:
            return None
        value, bound = (
            (number.value, number.low if self.above else number.high)
            if isinstance(number, Estimate)
            else (number, number)
        )
        if not math.isfinite(bound):
            return None
        least_limit = 5 * float(measured.numbers.get(self.chance, 0.0))
        for severity, name in (("error", self.error), ("warning", self.warning), ("info", self.info)):
            if not name:
                continue
            limit = float(getattr(thresholds, name))
            limit = max(limit, least_limit) if self.chance else limit
            if bound > limit if self.above else bound < limit:
                values = {
                    "mine": measured.numbers.get("mine_again", IN_WORDS),
                    "otherwise": measured.numbers.get("mine_otherwise", f"{IN_WORDS} --encoder st:NAME"),
                    "exact": measured.numbers.get("mine_exact", f"{IN_WORDS} --index exact"),
                    "items": "texts",
                    **measured.numbers,
                    "v": value,
                    "rest": 1 - value,
                    "run": shlex.quote(run),
                    "out": shlex.quote(f"{run}-2"),
                }
                values["suits"] = _suits(measured) or "a higher temperature"
                values["item"] = str(values["items"])[:-1]
                values["posterior"] = shlex.quote(f"posterior:{run}/posterior.json")
                values |= self.words(values)
                text, fix = self.text.format(**values), self.fix.format(**values)
                ids = measured.ids.get(self.ids, [])
                return Finding(self.code, severity, text, self.number, float(value), limit, ids, fix)
        return None

    def words(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Further words for the templates, made of those that there are; a subclass may have some."""
        return {}


def _suits(measured: Measurements) -> str:
    """The temperatures that suit the negatives, in words; empty if none does, or if it was not measured."""
    low, high = (measured.numbers.get(name) for name in ("temperature_low", "temperature_high"))
    return "" if low is None or high is None else f"a temperature between {low:.3g} and {high:.3g}"


def _drawing_nearest(values: Mapping[str, Any]) -> str:
    """The command that draws the nearest candidates that pass the filters."""
    return f"hardneg select {values['run']} --sampler top --out {values['out']}"


class Hub(ThresholdRule):
    """A document that is a negative of very many queries: because it has no content, or because its vector is long."""

    def words(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Where inner products prefer a long vector, the cause and its cure; see `vector_faults`."""
        times = float(values.get("hub_length", 1.0))
        if times > _LONG:
            return {
                "long": f", and its vector is {times:.1f} times as long as the median one: by inner products long ones win",
                "shorten": "normalize the vectors, or mine with --metric cosine",
            }
        return {
            "long": "", "shorten": "look at it: has it no content? Remove it, or filter by score or rank",
        }  # fmt: skip


class Easy(ThresholdRule):
    """Negatives that are hardly nearer than random documents. Where the nearest are drawn already, that is no advice."""

    def words(self, values: Mapping[str, Any]) -> dict[str, str]:
        """`nearest`, what leads to nearer negatives."""
        if values.get("sampler") == "top":
            told = "the nearest that pass the filters are drawn already"
            return {"nearest": f"{told}: take fewer filters, a lower rank:min, or a better encoder"}
        return {"nearest": f"{_drawing_nearest(values)}   # or a lower rank:min, or a better encoder"}


class FewNegatives(ThresholdRule):
    """Queries with too few negatives: their search went not deep enough, or a filter rejects much."""

    def words(self, values: Mapping[str, Any]) -> dict[str, str]:
        """`deeper`, what leaves more."""
        deeper = values.get("mine_deeper", f"{IN_WORDS} a higher --depth")
        loosen = f"loosen the filter {values.get('rejects_most') or 'with most verdicts'}"
        if deeper:
            return {"deeper": f"{deeper}   # or {loosen}"}
        return {"deeper": f"all documents are candidates already: {loosen}"}


class Duplicates(ThresholdRule):
    """Negatives that nearly repeat one another. Only equal texts can be filtered out."""

    def words(self, values: Mapping[str, Any]) -> dict[str, str]:
        """`once`, what leaves one of each."""
        if values.get("distinct_used", True):
            return {"once": KEEP_ONE}
        return {
            "once": f"hardneg select {values['run']} --add-filter distinct --out {values['out']}   # of those that are equal"
        }


class TaughtOut(ThresholdRule):
    """Negatives that teach nothing. Where another temperature suits them, it is said: it costs nothing."""

    def words(self, values: Mapping[str, Any]) -> dict[str, str]:
        """`easier`, what would make them teach."""
        sampler = values.get("sampler")
        if sampler is None:  # a training draws from all that were mined
            drawn_by = str(values.get("drawn_by", "")).partition(":")[0]
            nearest = "" if drawn_by in ("simans", "top") else "--negative-sampling simans or top, "
            nearer = f"take nearer negatives: {nearest}a smaller --depth, or refresh more often"
        elif sampler == "top":
            nearer = "mine again with the encoder as it is now, or with fewer filters: the nearest are drawn already"
        else:
            nearer = f"take nearer negatives: {_drawing_nearest(values)}"
        low, now = values.get("temperature_low"), values.get("temperature")
        if low is None or now is None or now >= low:
            return {"easier": nearer}
        return {"easier": f"{values['suits']}; or {nearer}"}


class FalseNegatives(ThresholdRule):
    """The share of negatives that are relevant. Where groups tell it, the filter `group` leaves them out."""

    def words(self, values: Mapping[str, Any]) -> dict[str, str]:
        """`told`, what they are; `without_false`, the command that leaves them out."""
        if values.get("false_source") == "groups":
            told = "of their query's group: false, if groups are as narrow as relevance (coarse ones throw useful negatives away)"
            added = f"hardneg select {values['run']} --add-filter group"
        else:
            told = "relevant documents that nobody labelled"
            added = f"hardneg calibrate {values['run']} && hardneg select {values['run']} --add-filter {values['posterior']}"
        return {"told": told, "without_false": f"{added} --out {values['out']}"}
