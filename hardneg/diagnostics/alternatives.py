"""What the fixes of a diagnosis would do: tried on the run's own candidates before they are offered."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.diagnostics.estimates import Estimate, row_means
from hardneg.diagnostics.findings.base import Finding
from hardneg.diagnostics.findings.threshold_rule import KEEP_ONE
from hardneg.diagnostics.measures.copies import copies
from hardneg.diagnostics.measures.diversity import repeated
from hardneg.diagnostics.measures.false_share import told_by_groups
from hardneg.diagnostics.measures.gradient import TEACHES, weights
from hardneg.diagnostics.measures.others import others_positives
from hardneg.diagnostics.subject import Subject
from hardneg.errors import HardnegError
from hardneg.mining.filters.base import Chain
from hardneg.mining.filters.identity import Group
from hardneg.mining.reopen import Part, Reopened
from hardneg.mining.run import Run
from hardneg.mining.samplers import draw, query_keys
from hardneg.mining.specs import no_code, parse_filters, parse_sampler
from hardneg.progress import Progress
from hardneg.storage.arrays import Float, Mask

_MARGINS = ("0.1", "0.05", "0.02", "0.01", "0")  # relative, the strictest first

_ADDED = re.compile(r"--add-filter (?:'(?=posterior:))?([\w:=.-]+)")  # a spec in the command of a fix

_PARTS = 2  # of the run that are tried, spread over it

_QUERIES = 1024  # of each part: a share of 0.02 (the limit of queries with too few negatives) is known to 0.006


_OF_COPIES = (
    "copied_equal",
    "copied_near",
    "chunk_overlap",
    "translations",
)  # numbers that a fix is to lower, of texts

_OF_OTHERS = "others_positives"

_LEFT = 0.75  # share of a finding's value that a fix may leave

_Fix = tuple[tuple[str, ...], str]  # the filters that a fix adds, and its sampler; empty for that of the run

_NONE: _Fix = ((), "")


@dataclass(frozen=True)
class Alternative:
    """A selection that was tried on a part of the queries.

    Attributes:
        added: the filters that it adds to those of the run; empty for the run as it is.
        false_share: the share of its negatives that are relevant, by the groups; None: not known, as after a filter `group`, which
            leaves none that groups could tell of.
        mean_score: the mean score of its negatives.
        above_positive: the share of its negatives that score above the positive.
        short: the share of queries that have fewer negatives than asked. With a margin, which leaves queries without positives as they
            are, of the others alone; the run as it is, too, if a margin was tried.
        command: the command that makes the selection.
        teaching: the share of its negatives with a softmax weight of at least 0.01, as in `gradient`; None: no query has a positive.
        near_duplicates: the share of a query's negatives that have nearly the vector of an earlier one, as in `diversity`; None
            without vectors.
        changed: the share of queries whose negatives are not those of the run as it is.
        sampler: the sampler that it draws with instead of that of the run; empty for that of the run.
        values: the numbers of the findings whose fix it is, by name, for these negatives; of the run as it is, those of all findings.
    """

    added: tuple[str, ...]
    false_share: float | None
    mean_score: float
    above_positive: float
    short: float
    command: str
    teaching: float | None = None
    near_duplicates: float | None = None
    changed: float = 1.0
    sampler: str = ""
    values: dict[str, float] = field(default_factory=dict)

    @property
    def fix(self) -> tuple[tuple[str, ...], str]:
        """The filters that it adds, and its sampler."""
        return self.added, self.sampler

    def to_json(self) -> dict[str, Any]:
        """The alternative as JSON values."""
        return asdict(self)


def alternatives(
    run: Run, subject: Subject, findings: Sequence[Finding], progress: Progress, temperature: float = 0.05
) -> list[Alternative]:
    """Try what the findings suggest.

    Args:
        run: the run.
        subject: its negatives.
        findings: those whose fix adds a filter, or draws with another sampler, are tried; margins of several widths, if one is among
            them.
        progress: called with the number of selections tried.
        temperature: of the loss, for what still teaches.

    Returns:
        The run as it is, and the selections with more filters or another sampler; none if no fix is such a selection.
    """
    fixes = _fixes_of(findings)
    if not fixes:
        return []
    reopened = Reopened(run, pairs=subject.pairs)
    numbers = np.unique(np.linspace(0, reopened.parts - 1, min(_PARTS, reopened.parts)).astype(int))
    parts = [_some(reopened.part(int(number))) for number in numbers]
    tried = []
    advance = progress("try fixes", len(fixes) + 1)
    margins = any(each.startswith("margin:") for added, _ in fixes for each in added)
    now = _drawn(reopened, parts, _NONE)
    numbered = {fix: {each.number for each in findings if fix in _fixes_of([each])} for fix in fixes}
    numbered[_NONE] = {each.number for each in findings}
    for fix in (_NONE, *fixes):
        try:
            drawn = _drawn(reopened, parts, fix)
            others = [(np.sort(a, 1) != np.sort(b, 1)).any(1) for a, b in zip(drawn, now, strict=True)]
            made = _tried(reopened, subject, parts, drawn, fix, margins, temperature)
            values = _values(subject, parts, drawn, numbered[fix])
            if made.near_duplicates is not None:
                values["near_duplicates"] = made.near_duplicates
            tried.append(replace(made, changed=_mean(others) or 0.0, values=values))
        except HardnegError:  # it needs vectors or texts that the run does not keep
            continue
        finally:
            advance(1)
    return tried


def _fixes_of(findings: Sequence[Finding]) -> list[_Fix]:
    """The filters that each fix adds, and its sampler where it adds none, each once; filters first."""
    samplers: list[_Fix] = []
    for finding in findings:
        if finding.number == _OF_OTHERS and finding.fix.startswith("hardneg select "):
            words = shlex.split(finding.fix.partition("   #")[0])
            samplers += [((), words[i + 1]) for i in range(len(words) - 1) if words[i] == "--sampler"]
    added: list[_Fix] = [(each, "") for each in _added_by(findings)]
    return [*added, *dict.fromkeys(samplers)]


def _added_by(findings: Sequence[Finding]) -> list[tuple[str, ...]]:
    """The filters that each fix adds, each set once."""
    found: list[tuple[str, ...]] = []
    for finding in findings:
        added = tuple(_ADDED.findall(finding.fix))
        if any(spec.startswith("margin:") for spec in added):
            found += [(f"margin:relative={each}",) for each in _MARGINS]
        elif added and not any(spec.startswith("posterior:") for spec in added):
            found.append(added)
    return list(dict.fromkeys(found))


def _some(part: Part) -> Part:
    """At most `_QUERIES` queries of a part, spread over it."""
    count = len(part.candidates.queries)
    rows = np.unique(np.linspace(0, count - 1, min(_QUERIES, count)).astype(np.int64))
    return Part(
        part.number,
        part.candidates.rows(rows),
        part.positive_scores.take(rows),
        part.kept[rows],
        part.rejected_by_posterior[rows],
    )


def _drawn(reopened: Reopened, parts: Sequence[Part], fix: _Fix) -> list[NDArray[np.integer]]:
    """The negatives of each part after a fix: int `[n, K]`, their places among the candidates, -1 for none."""
    config, (added, other) = reopened.run.info["config"], fix
    no_code(config["sampler"], str(reopened.run.folder / "run.json"))
    sampler, keys = parse_sampler(other or config["sampler"]), query_keys(reopened.pairs.query_ids)
    chain = parse_filters(added, False) if added else Chain([])
    out: list[NDArray[np.integer]] = []
    for part in parts:
        candidates = part.candidates
        kept = part.kept & (chain.verdicts(candidates, reopened.context) == 0)
        out.append(draw(sampler, candidates, kept, config["negatives"], config["seed"], keys[candidates.queries]))
    return out


def _tried(
    reopened: Reopened, subject: Subject, parts: Sequence[Part], drawn: Sequence[NDArray[np.integer]], fix: _Fix,
    only_with_positives: bool, temperature: float,
) -> Alternative:  # fmt: skip
    config, (added, sampler) = reopened.run.info["config"], fix
    false, scores, above, counts, teach, near = [], [], [], [], [], []
    for part, columns in zip(parts, drawn, strict=True):
        candidates = part.candidates
        looked = np.isfinite(candidates.positive_scores) | (not only_with_positives)
        real, place = (columns >= 0) & looked[:, None], np.maximum(columns, 0)
        chosen = np.take_along_axis(candidates.scores, place, 1)
        scores.append(chosen[real])
        positive = np.broadcast_to(candidates.positive_scores[:, None], real.shape)
        known = real & np.isfinite(positive)
        above.append((chosen > positive)[known])
        counts.append(real.sum(1)[looked])
        weight = weights(np.where(real, chosen, -np.inf), candidates.positive_scores, temperature)
        several = real.sum(1) > 1
        teach.append(row_means(np.where(real & np.isfinite(weight), weight >= TEACHES, np.nan))[several])
        false.append(_relevant(subject, part, place, real))
        if subject.vectors is not None:
            near.append(
                _near(subject.vectors[1], np.where(real, np.take_along_axis(candidates.documents, place, 1), -1))
            )
    known_false = [each for each in false if each is not None]
    command = " ".join(
        [
            "hardneg select",
            shlex.quote(str(reopened.run.folder)),
            *(f"--add-filter {shlex.quote(spec)}" for spec in added),
            *([f"--sampler {shlex.quote(sampler)}"] if sampler else []),
        ]
    )
    return Alternative(
        added,
        _mean(known_false) if len(known_false) == len(false) and not any(map(_of_group, added)) else None,
        _mean(scores) or 0.0,
        _mean(above) or 0.0,
        _mean([each < config["negatives"] for each in counts]) or 0.0,
        f"{command} --out {shlex.quote(str(reopened.run.folder) + '-2')}" if added or sampler else "",
        _mean([each[np.isfinite(each)] for each in teach]),
        _mean(near),
        sampler=sampler,
    )


def _values(
    subject: Subject, parts: Sequence[Part], drawn: Sequence[NDArray[np.integer]], numbers: set[str]
) -> dict[str, float]:
    """The numbers of findings, of those that are told by which documents are negatives; each for the same queries."""
    rows = np.concatenate([part.candidates.queries for part in parts])
    width = max(subject.documents.shape[1], *(columns.shape[1] for columns in drawn))
    documents = np.full((len(subject.pairs), width), -1, np.int32)
    for part, columns in zip(parts, drawn, strict=True):
        chosen = np.take_along_axis(part.candidates.documents, np.maximum(columns, 0), 1)
        documents[part.candidates.queries, : columns.shape[1]] = np.where(columns >= 0, chosen, -1)
    tried = replace(subject, documents=documents)
    found: dict[str, Any] = {}
    if numbers & set(_OF_COPIES):
        found |= copies(tried, np.random.default_rng(0), rows).numbers
    if _OF_OTHERS in numbers:
        found |= others_positives(replace(tried, vectors=None), np.random.default_rng(0)).numbers
    values = {name: found[name].value for name in sorted(numbers & found.keys()) if isinstance(found[name], Estimate)}
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}


def _near(vectors: Any, documents: NDArray[np.integer]) -> NDArray[np.float64]:
    """float64: the shares of `repeated`, of the queries with negatives."""
    shares = repeated(vectors, documents)
    return shares[np.isfinite(shares)]


def _of_group(spec: str) -> bool:
    """Whether a filter removes all that groups could tell of."""
    return spec.partition(":")[0] == Group.name


def _relevant(subject: Subject, part: Part, place: Any, real: Mask) -> Float | None:
    """float32: for each negative, 1 if it has the group of its query, else 0; None without groups that tell."""
    chosen = np.take_along_axis(part.candidates.documents, place, 1)
    shares = told_by_groups(subject, part.candidates.queries, np.where(real, chosen, -1))
    return None if shares is None else np.asarray(shares[np.isfinite(shares)], np.float32)


def _mean(values: Sequence[Any]) -> float | None:
    whole = np.concatenate([np.asarray(each, np.float64) for each in values]) if values else np.empty(0)
    return float(whole.mean()) if len(whole) else None


_DEFAULTS = ("empty", "duplicate", "duplicate:text", "distinct")  # the default filters, as they can be written

_INSTEAD = {
    "duplicates": KEEP_ONE,
    "copied": "remove these copies from the corpus, or give copies a common 'group' and add the filter group",
    "translations": "give a text and its translations a common 'group', and add the filter group",
    "others-positives": "mine deeper (--depth), or from more documents (--corpus)",
}


def better_fixes(
    findings: Sequence[Finding],
    tried: Sequence[Alternative],
    most_short: float,
    config: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """The findings, with fixes that leave enough negatives, and that make the finding's own number better.

    A margin becomes the widest one that leaves at most `most_short` of the queries with fewer negatives than before; where none does,
    or another filter leaves too few, the fix says so. Filters that the run has already, or that change no negative, are not offered;
    nor is what leaves the finding, with three quarters of its value or more.

    Args:
        findings: the findings.
        tried: the selections that were tried; the first is the run as it is.
        most_short: see above.
        config: the content of `config` in run.json, for the filters of the run.
    """
    before = next((each.short for each in tried if not each.added), 0.0)
    by_fix: dict[_Fix, Alternative] = {each.fix: each for each in tried}
    margins = [each for each in tried if each.added and each.added[0].startswith("margin:") and len(each.added) == 1]
    out = []
    for finding in findings:
        made = (_fixes_of([finding]) or [_NONE])[0]
        added = made[0]
        useless = _useless(finding, made, by_fix, config or {})
        if useless:
            instead = _INSTEAD.get(finding.code, "look at the ids: what are they?")
            out.append(replace(finding, fix=f"{instead} ({useless})"))
            continue
        if added and added[0].startswith("margin:") and margins:
            chosen = next((each for each in margins if each.short <= before + most_short), None)
            least = margins[-1]
            fix = (
                f"no margin leaves enough of these candidates (with {least.added[0]}, {least.short:.1%} of the queries have fewer "
                f"negatives than asked): mine deeper (--depth), or take another encoder"
            )
            if chosen is not None:
                fix = _with_cost(chosen, tried[0])
            finding = replace(finding, fix=fix)
        elif made != _NONE and made in by_fix:
            finding = replace(finding, fix=_with_cost(by_fix[made], tried[0], finding.number))
        out.append(finding)
    return out


def _useless(finding: Finding, fix: _Fix, tried: Mapping[_Fix, Alternative], config: Mapping[str, Any]) -> str:
    """Why the selection of a fix would help nothing; empty if it does, or if that is not known."""
    added, sampler = fix
    used = [str(each) for each in config.get("filters", ())]
    if config.get("default_filters"):
        used += _DEFAULTS
        if " --default-filters" in finding.fix:
            return "the run has the default filters already"
    if fix == _NONE or (added and added[0].startswith("margin:")):
        return ""
    named = " and ".join(added) or f"the sampler {sampler}"
    if added and set(added) <= set(used):
        return f"the run has {named} already"
    made = tried.get(fix)
    if made is None:
        return f"the run does not keep what {named} needs" if tried else ""
    if not made.changed:
        return f"tried: {named} changes none of the negatives"
    now, then = (each.values.get(finding.number) if each else None for each in (tried.get(_NONE), made))
    if now is None or then is None or then <= finding.threshold or then < _LEFT * now:
        return ""
    return f"tried: {named} leaves {then:.1%} of {now:.1%}"


def _with_cost(tried: Alternative, now: Alternative, number: str = "") -> str:
    """The command of a selection, with what it does to the number of the finding, and what it costs."""
    costs = []
    if not now.added:
        if number in now.values and number in tried.values:
            costs.append(f"{now.values[number]:.1%} -> {tried.values[number]:.1%}")
        costs.append(f"mean score {now.mean_score:.3f} -> {tried.mean_score:.3f}")
        if now.teaching is not None and tried.teaching is not None:
            costs.append(f"negatives that still teach {now.teaching:.0%} -> {tried.teaching:.0%}")
    return f"{tried.command}   # {', '.join([*costs, f'{tried.short:.1%} of the queries then have fewer negatives than asked'])}"
