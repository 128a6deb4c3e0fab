"""What tells which negatives of several runs are false: one evidence for all of them, so that a difference is one of the negatives."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardneg.data.pairs import Pairs
from hardneg.diagnostics.measures.false_share import filtered_by_group, in_group
from hardneg.diagnostics.subject import Subject
from hardneg.errors import HardnegError, RunError
from hardneg.false_negatives.model import Posterior, identity, sources_of
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.mining.run_folder import located_filters
from hardneg.progress import Progress, silent
from hardneg.storage.arrays import Float
from hardneg.storage.files import sha256_file


@dataclass(frozen=True)
class Evidence:
    """What tells which negatives of several runs are false.

    Attributes:
        subjects: the runs, with the groups that tell it, or with the probabilities.
        known: for each run, whether it is told.
        by: `groups`, `posterior` or `unknown`.
        notes: what to know of it.
    """

    subjects: list[Subject]
    known: list[bool]
    by: str
    notes: list[str]

    def of(self, number: int) -> NDArray[np.float64] | None:
        """float64 `[n, K]`: P(relevant) of the negatives of one run; NaN where it is not known and for padding. None: not known."""
        subject = self.subjects[number]
        if not self.known[number]:
            return None
        if self.by == "groups":
            return in_group(subject.pairs, np.arange(len(subject.pairs)), subject.documents)
        return np.where(subject.real, np.asarray(subject.probability, np.float64), np.nan)


def common_evidence(subjects: Sequence[Subject]) -> Evidence:
    """The evidence that tells most of the runs which of their negatives are false.

    Groups come first: they belong to the dataset, and are read for every run over it, calibrated or not, filtered by them (whose share
    is 0 then) or not, and also for one that was read from the same texts without them. Else posteriors. If neither tells it of two
    runs, it is unknown. One run that is not told takes nothing from the others.
    """
    grouped, notes = _with_groups(subjects)
    known = [each is not None for each in grouped]
    if sum(known) >= 2:
        found = [
            old if new is None else replace(new, probability=None) for old, new in zip(subjects, grouped, strict=True)
        ]
        return Evidence(
            found, known, "groups", [*notes, *_filtered(found, known), *_not_told(subjects, known, "groups")]
        )
    known = [each.probability is not None and each.told_by == "posterior" for each in subjects]
    if sum(known) >= 2:
        return Evidence(list(subjects), known, "posterior", [*notes, *_not_told(subjects, known, "posterior")])
    notes += _not_told(subjects, known, "unknown")
    return Evidence(list(subjects), [False] * len(known), "unknown", notes)


def has_groups(pairs: Pairs) -> bool:
    """Whether groups can tell of any query which documents are relevant."""
    queries, documents = pairs.query_groups, pairs.document_groups
    return queries is not None and documents is not None and bool((queries >= 0).any())


def _with_groups(subjects: Sequence[Subject]) -> tuple[list[Subject | None], list[str]]:
    """The runs with the groups that most of them share, None for one with others, and notes; all None if none are shared by most."""
    grouped = [each for each in subjects if has_groups(each.pairs)]
    nothing: list[Subject | None] = [None] * len(subjects)
    if not grouped:
        return nothing, []
    distinct: list[Subject] = []
    for each in sorted(grouped, key=lambda each: each.name):  # so that the order of the runs does not matter
        if not any(_with_groups_of(each, other) is not None for other in distinct):
            distinct.append(each)
    told = [[_with_groups_of(each, other) for each in subjects] for other in distinct]
    counts = [sum(each is not None for each in some) for some in told]
    best = int(np.argmax(counts))
    notes = []
    if counts.count(counts[best]) > 1:
        return nothing, ["the runs were read with different groups, so these do not tell which negatives are false"]
    owner = distinct[best]
    lent = [
        old.name for old, new in zip(subjects, told[best], strict=True) if new is not None and not has_groups(old.pairs)
    ]
    without = [
        old.name for old, new in zip(subjects, told[best], strict=True) if new is None and not has_groups(old.pairs)
    ]
    others = [old.name for old, new in zip(subjects, told[best], strict=True) if new is None and has_groups(old.pairs)]
    if lent and counts[best] >= 2:
        what = "the same texts were read without groups, and are judged by these"
        notes.append(f"groups are those of {owner.name}; {', '.join(lent)}: {what}")
    if without:
        notes.append(f"the groups of {owner.name} are not those of {', '.join(without)}: the texts differ")
    if others:
        notes.append(f"{', '.join(others)} and {owner.name} were read with different groups")
    return told[best], notes


def _with_groups_of(subject: Subject, other: Subject) -> Subject | None:
    """The run with the groups of another one; None if its own differ, or if it has none and other texts."""
    own, groups = subject.pairs, other.pairs
    if has_groups(own):
        same = np.array_equal(own.query_groups, groups.query_groups)  # type: ignore[arg-type]
        same = same and np.array_equal(own.document_groups, groups.document_groups)  # type: ignore[arg-type]
        return subject if same else None
    texts = [(pairs.digests.get("queries"), pairs.digests.get("documents")) for pairs in (own, groups)]
    if None in texts[0] or texts[0] != texts[1]:
        return None
    lent = replace(
        own, query_groups=groups.query_groups, document_groups=groups.document_groups, group_names=groups.group_names
    )
    return replace(subject, pairs=lent)


def _filtered(subjects: Sequence[Subject], known: Sequence[bool]) -> list[str]:
    """What to know of runs that were filtered by the groups that judge them."""
    names = [each.name for each, told in zip(subjects, known, strict=True) if told and filtered_by_group(each)]
    if not names:
        return []
    note = (
        f"a filter 'group' left {', '.join(sorted(names))} no negative of its query's group, so by groups none is false there; "
        f"relevant documents of other groups are not counted, in any run"
    )
    return [f"{note}. All runs are such: the order is that of hardness" if len(names) == sum(known) else note]


def _not_told(subjects: Sequence[Subject], known: Sequence[bool], by: str) -> list[str]:
    """Which runs have no evidence, and the commands that would make some."""
    missing = sorted((each for each, told in zip(subjects, known, strict=True) if not told), key=lambda each: each.name)
    if not missing:
        return []
    names = ", ".join(each.name for each in missing)
    if by == "groups":
        return [
            f"how many negatives of {names} are false is not known by the groups of the others, so it has no place: mine it again "
            f"from the dataset that they were mined from, with its groups"
        ]
    first: dict[str, Subject] = {}
    for each in missing:
        first.setdefault(repr(_kin(each.info)), each)
    commands = " && ".join(
        [
            *(_command(each) for each in first.values()),
            f"hardneg compare {' '.join(shlex.quote(each.name) for each in subjects)}",
        ]
    )
    tells = f"'{commands}' tells it (a posterior judges all runs of its encoder and its sources of candidates)"
    if by == "posterior":
        return [
            f"how many negatives of {names} are false is not known, as it is for the others, so it has no place: {tells}"
        ]
    return [
        f"how many negatives are false is not known for all runs (not of {names}): the order is that of hardness, and the first may "
        f"be the one with most false negatives. {tells}"
    ]


def _command(subject: Subject) -> str:
    """The command that makes a posterior of a run; with judgements, if the one that is there tells nothing."""
    run = shlex.quote(subject.name)
    path = Path(subject.name) / "posterior.json"
    try:
        useless = path.exists() and not _tells(Posterior.load(path), subject.info)
    except HardnegError:
        useless = False
    if not useless:
        return f"hardneg calibrate {run}"
    judged = shlex.quote(f"{subject.name}-judged.csv")
    return f"hardneg judge {run} --sample 300 --out {judged} && hardneg calibrate {run} {judged}"


def _kin(info: dict[str, Any]) -> tuple[Any, ...]:
    """What two runs have in common if a posterior of one is valid for the other: texts, prompts, encoder or vectors, the metric, and
    the sources of the candidates. Not their depth: the features do not depend on it."""
    prints, config = info.get("fingerprints", {}), info.get("config", {})
    of = {name: value for name, value in sources_of(prints).items() if name not in ("labels", "relabels")}
    sources = sorted(info.get("resolved", {}).get("sources", {}))
    return (
        sorted(of.items()),
        sources,
        config.get("metric"),
        config.get("query_prompt"),
        config.get("document_prompt"),
    )


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a posterior of one run is valid for the other; not if the texts of one are not known."""
    known = all(
        each["fingerprints"].get(name) is not None for each in (one, other) for name in ("queries", "documents")
    )
    return known and _kin(one) == _kin(other)


def _tells(posterior: Posterior, info: dict[str, Any]) -> bool:
    """Whether a posterior tells relevant candidates of a run from others, from what each run keeps."""
    models = any(":" in name for name in posterior.needed)  # other models, scores of teachers
    return (
        "uninformative" not in posterior.report
        and not models
        and posterior.fingerprints == identity(info.get("fingerprints", {}))
    )


def judged_by_posteriors(
    subjects: Sequence[Subject], runs: Sequence[Run], rows: NDArray[np.int64], progress: Progress = silent
) -> tuple[list[Subject], list[str]]:
    """Lend posteriors to runs whose negatives have no probabilities.

    A run is judged by its own `posterior.json` if it has one, or else by a posterior of another run of the same texts, encoder and
    sources of candidates: its features mean the same there.

    Args:
        subjects: the negatives of `runs`.
        runs: the runs.
        rows: the queries whose negatives are judged.
        progress: called with the number of runs done.

    Returns:
        (the runs, with probabilities where a posterior judges them; notes). Without change if groups tell it anyway.
    """
    if common_evidence(subjects).by == "groups":
        return list(subjects), []
    lacking = [each.probability is None or each.told_by != "posterior" for each in subjects]
    used = [None if lack else _used(run) for run, lack in zip(runs, lacking, strict=True)]
    there = [run.folder / "posterior.json" for run in runs]
    found, notes, lent = list(subjects), list[str](), list[str]()
    judged_by = {str(run.folder): sha256_file(path) for run, path in zip(runs, used, strict=True) if path is not None}
    advance = progress("judge by posteriors", sum(lacking))
    for i, run in enumerate(runs):
        if not lacking[i]:
            continue
        kin = [j for j, other in enumerate(runs) if j == i or _alike(other.info, run.info)]
        paths = [there[i]], [path for j in kin for path in (used[j], there[j]) if path is not None]
        chosen = next((best for some in paths if (best := _best(some, run)) is not None), None)
        if chosen is not None:
            path, posterior = chosen
            try:
                found[i] = replace(
                    subjects[i], probability=_probabilities(subjects[i], run, posterior, rows), told_by="posterior"
                )
                judged_by[str(run.folder)] = sha256_file(path)
                lent.append(f"{run.folder} is judged by the posterior {path}")
            except HardnegError as error:
                notes.append(f"{run.folder} cannot be judged by the posterior {path}: {error}")
        advance(1)
    if common_evidence(found).by != "posterior":
        return found, notes  # it judges one run alone, so none is compared by it
    if len(set(judged_by.values())) > 1:
        lent.append(
            f"{', '.join(sorted(judged_by))} are not judged by one posterior: a part of a difference may be theirs"
        )
    return found, [*lent, *notes]


def _used(run: Run) -> Path | None:
    """The file of the posterior that a run was selected with; None if it is not there any more."""
    try:
        files = [spec.partition(":")[2].split(",")[0] for spec in located_filters(run.folder, run.info)
                 if spec.startswith("posterior:")]  # fmt: skip
    except RunError:
        return None
    return Path(files[-1]) if files and Path(files[-1]).is_file() else None


def _best(paths: Sequence[Path], run: Run) -> tuple[Path, Posterior] | None:
    """Of the posteriors that tell something of a run, the best founded one; of equal ones the first by its content, so that the order
    of the runs does not matter."""
    found: list[tuple[tuple[bool, bool, str, str], Path, Posterior]] = []
    for path in paths:
        try:
            if not path.is_file():
                continue
            posterior = Posterior.load(path)
        except HardnegError:
            continue  # what is no posterior tells nothing
        if _tells(posterior, run.info):
            key = (posterior.guarantee is None, posterior.source != "judgements", sha256_file(path), str(path))
            found.append((key, path, posterior))
    if not found:
        return None
    _, path, posterior = min(found, key=lambda each: each[0])
    return path, posterior


def _probabilities(subject: Subject, run: Run, posterior: Posterior, rows: NDArray[np.int64]) -> Float:
    from hardneg.diagnostics.measures.hidden_positives import negatives_relevant
    from hardneg.false_negatives.features import PairFeatures

    reopened = Reopened(run, pairs=run.pairs())
    return negatives_relevant(subject, reopened, PairFeatures(reopened.context), posterior, rows)
