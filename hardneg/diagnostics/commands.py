"""Commands in the fixes of findings: they can be typed as they stand, and keep what the user had chosen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hardneg.diagnostics.findings.base import Finding
from hardneg.errors import HardnegError
from hardneg.false_negatives.announced import Announced
from hardneg.false_negatives.model import Posterior
from hardneg.mining.run import Run

_DROPPED = ("--out", "--filter")  # options of the old command that the new one has otherwise; each has a value

_FLAGS = ("--resume", "--overwrite", "--json")

IN_WORDS = "mine again, with"  # where the command is not known, such as for a run that was mined from Python


_DEPTHS = ("--depth", "--max-depth")

_ENCODING = ("--encoder", "--query-embeddings", "--corpus-embeddings", "--query-prompt", "--document-prompt")


def mine_again(info: dict[str, Any], run: str, dropped: Sequence[str] = (), without: Sequence[str] = ()) -> str:
    """The command that mines a run again into another folder, with its source, its options, and the filters that it has now.

    Args:
        info: the content of run.json.
        run: the folder of the run.
        dropped: more options that are left out, each with a value.
        without: filters that are left out.

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
    kept, skip, left_out = [], False, (*_DROPPED, *dropped)
    for word in map(str, command):
        if skip or word in _FLAGS or word.partition("=")[0] in left_out:
            skip = not skip and word in left_out
            continue
        kept.append(word)
    filters = [str(each) for each in info["config"]["filters"]]
    if any(each.startswith("object:") for each in filters):
        return IN_WORDS
    more = [word for each in filters if each not in without for word in ("--filter", each)]
    return "hardneg " + shlex.join([*kept, *more, "--out", f"{run}-2"])


def mine_deeper(info: dict[str, Any], run: str, documents: int) -> str:
    """The command that mines a run again twice as deep; empty if it had all documents for candidates.

    Queries with too few negatives are searched deeper, up to a largest depth. If that was given, it is raised as well.

    Args:
        info: the content of run.json.
        run: the folder of the run.
        documents: the number of documents.

    >>> info = {"command": ["mine", "a.jsonl", "--out", "run", "--depth", "50", "--max-depth=50"], "resolved": {"depth": 50}}
    >>> mine_deeper({**info, "config": {"filters": [], "max_depth": 50}}, "run", 1000)
    'hardneg mine a.jsonl --out run-2 --depth 100 --max-depth 400'
    >>> mine_deeper({**info, "config": {"filters": [], "max_depth": 50}}, "run", 50)
    ''
    """
    depth = int(info["resolved"]["depth"])
    if depth >= documents:
        return ""
    deeper = min(2 * depth, documents)
    command = f"{mine_again(info, run, _DEPTHS)} --depth {deeper}"
    given = info.get("config", {}).get("max_depth") is not None
    return f"{command} --max-depth {max(deeper, min(4 * deeper, documents))}" if given else command


def rejects_most(info: dict[str, Any]) -> str:
    """The filter of a run that rejects most candidates, in words; empty if none rejects any. Known positives are not counted.

    >>> rejects_most({"counts": {"candidates": 500, "verdicts": {"kept": 100, "known": 50, "empty": 0, "score": 350}}})
    'score, which rejects most (350 of 500 candidates)'
    """
    counts = info.get("counts", {})
    rejected = {name: int(n) for name, n in counts.get("verdicts", {}).items() if name not in ("kept", "known")}
    name = max(rejected, key=lambda each: rejected[each], default="")
    if not rejected.get(name):
        return ""
    return f"{name}, which rejects most ({rejected[name]:,} of {int(counts['candidates']):,} candidates)"


def with_other_encoder(info: dict[str, Any], run: str, spec: str) -> str:
    """The command that mines a run again with another encoder, without the filters that hold for the encoder of the run alone.

    These are posteriors, which are refused with another encoder, and limits on its scores. A comment says what was left out.

    >>> info = {"command": ["mine", "a.jsonl", "--out", "run", "--encoder", "hashed:64"], "selections": []}
    >>> with_other_encoder({**info, "config": {"filters": ["group", "posterior:run/posterior.json"]}}, "run", "st:NAME")
    "hardneg mine a.jsonl --filter group --out run-2 --encoder st:NAME   # without posterior:run/posterior.json, which holds for the \
encoder that it was learned with: 'hardneg calibrate run-2' learns another"
    """
    filters = [str(each) for each in info.get("config", {}).get("filters", ())]
    bound = [each for each in filters if of_one_encoder(each)]
    command = f"{mine_again(info, run, _ENCODING, bound)} --encoder {spec}"
    if not bound:
        return command
    note = f"without {' and '.join(bound)}, which {'hold' if len(bound) > 1 else 'holds'} for the encoder that"
    if any(each.startswith("posterior:") for each in bound):
        return f"{command}   # {note} it was learned with: 'hardneg calibrate {shlex.quote(f'{run}-2')}' learns another"
    return f"{command}   # {note} scored"


def of_one_encoder(spec: str) -> bool:
    """Whether a filter holds for one encoder alone: a posterior, or a limit in units of its scores.

    >>> [of_one_encoder(each) for each in ("posterior:learned", "score:max=0.8", "margin:absolute=0.1", "margin:relative=0.1")]
    [True, True, True, False]
    """
    return spec.startswith(("posterior:", "score:")) or (spec.startswith("margin:") and "absolute=" in spec)


_OF_OTHERS = ("false-announced", "lexical")  # whose fix calibrates for another selection, or another run


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
    said = Announced.of(report)
    used = used and not (
        said is not None and said.changed(run.info["config"])
    )  # calibrated for this selection, it differs
    nothing = "uninformative" in report or report.get("rejected") == 0
    judge = f"hardneg judge {where} --sample 300 --out {shlex.quote(f'{run.folder}-judged.csv')}"
    out = []
    for each in findings:
        if "hardneg calibrate" not in each.fix or each.code in _OF_OTHERS:
            out.append(each)
        elif nothing or used:
            why = "posterior.json rejects nothing" if nothing else "the posterior is used already"
            out.append(replace(each, fix=f"{judge}   # {why}: only judgements tell more"))
        else:
            command = each.fix.partition(" && ")[2]
            out.append(replace(each, fix=command or each.fix))
    return out
