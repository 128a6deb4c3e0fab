"""Commands in the fixes of findings: they can be typed as they stand, and keep what the user had chosen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hardneg.diagnostics.findings.base import Finding
from hardneg.errors import HardnegError
from hardneg.false_negatives.model import Posterior
from hardneg.mining.run import Run

_DROPPED = ("--out", "--filter")  # options of the old command that the new one has otherwise; each has a value

_FLAGS = ("--resume", "--overwrite", "--json")

IN_WORDS = "mine again, with"  # where the command is not known, such as for a run that was mined from Python


def mine_again(info: dict[str, Any], run: str) -> str:
    """The command that mines a run again into another folder, with its source, its options, and the filters that it has now.

    Args:
        info: the content of run.json.
        run: the folder of the run.

    Returns:
        The command, to which options can be added; or the words "mine again, with".

    >>> info = {"command": ["mine", "a b.jsonl", "--out", "run", "--depth", "50"], "selections": []}
    >>> mine_again({**info, "config": {"filters": ["rank:min=2"]}}, "run")
    "hardneg mine 'a b.jsonl' --depth 50 --filter rank:min=2 --out run-2"
    """
    selections = info.get("selections") or []
    command = selections[0].get("command") if selections else info.get("command")
    if not isinstance(command, list) or command[:1] != ["mine"] or "-" in command:
        return IN_WORDS
    kept, skip = [], False
    for word in map(str, command):
        if skip or word in _FLAGS or word.partition("=")[0] in _DROPPED:
            skip = not skip and word in _DROPPED
            continue
        kept.append(word)
    filters = [str(each) for each in info["config"]["filters"]]
    if any(each.startswith("object:") for each in filters):
        return IN_WORDS
    more = [word for each in filters for word in ("--filter", each)]
    return "hardneg " + shlex.join([*kept, *more, "--out", f"{run}-2"])


def with_posterior_there(run: Run, findings: Sequence[Finding]) -> list[Finding]:
    """The findings whose fix is to calibrate, with what is already there: a posterior that only has to be used, or one that rejects
    nothing, so that using it would not help."""
    path = run.folder / "posterior.json"
    if not path.exists():
        return list(findings)
    try:
        report = Posterior.load(path).report
    except HardnegError:
        return list(findings)  # calibrating again replaces it
    where = shlex.quote(str(run.folder))
    used = any(str(each).startswith("posterior:") for each in run.info["config"]["filters"])
    nothing = "uninformative" in report or report.get("rejected") == 0
    judge = f"hardneg judge {where} --sample 300 --out {shlex.quote(f'{run.folder}-judged.csv')}"
    out = []
    for each in findings:
        if "hardneg calibrate" not in each.fix:
            out.append(each)
        elif nothing or used:
            why = "posterior.json rejects nothing" if nothing else "the posterior is used already"
            out.append(replace(each, fix=f"{judge}   # {why}: only judgements tell more"))
        else:
            command = each.fix.partition(" && ")[2]
            out.append(replace(each, fix=command or each.fix))
    return out
