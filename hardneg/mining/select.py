"""Filter and sample again from the candidates of a run, without a new search."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardneg.errors import UsageError
from hardneg.mining.miner import Judged
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import PartWriter, Run, prepare
from hardneg.mining.samplers import draw, query_keys
from hardneg.mining.specs import parse_filters, parse_sampler
from hardneg.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """What may be chosen anew: as in `MineOptions`; None keeps what the run has."""

    filters: tuple[str, ...] | None = None
    default_filters: bool | None = None
    sampler: str | None = None
    negatives: int | None = None
    seed: int | None = None


def select(
    run: str | Path | Run,
    options: SelectOptions,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    force: bool = False,
    batch_size: int = 32,
    device: str | None = None,
    progress: Progress = silent,
    command: list[str] | None = None,
) -> Run:
    """Judge the candidates of `run` again.

    Args:
        run: a finished run.
        options: what to change.
        out: a new run folder; None replaces `run` (its run.json keeps the history).
        overwrite: replace a run that stands at `out`.
        force: use a posterior that was learned with another encoder.

    Returns:
        The new run. Queries keep the candidates they have: none is searched deeper.
    """
    run = run if isinstance(run, Run) else Run(run)
    config = {**run.info["config"], **{k: v for k, v in vars(options).items() if v is not None}}
    config["filters"] = list(config["filters"])
    chain = parse_filters(config["filters"], config["default_filters"])
    used = chain.check(run.info["fingerprints"], force)
    sampler = parse_sampler(config["sampler"])
    if config["negatives"] < 1:
        raise UsageError("negatives must be 1 or more")
    folder = Path(out) if out is not None else run.folder.with_name(f".{run.folder.name}.select")
    if out is None:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.resolve() == run.folder.resolve():
        raise UsageError(f"--out {out} is the run itself: leave --out away to replace it")
    prepare(folder, resume=False, overwrite=overwrite)
    reopened = Reopened(run, folder, batch_size=batch_size, device=device, progress=progress)
    pairs = reopened.pairs
    for name in ("source", "embeddings"):
        _link_tree(run.folder / name, folder / name)
    if (run.folder / "posterior.json").exists():
        shutil.copy2(run.folder / "posterior.json", folder / "posterior.json")
    keys = query_keys(pairs.query_ids)
    writer = PartWriter(folder, pairs, chain.names)
    advance = progress("select", len(pairs))
    for part in reopened:
        candidates = part.candidates
        start, stop = writer.span(part.number)
        verdicts = chain.verdicts(candidates, reopened.context)
        kept = (verdicts == 0) & candidates.real
        chosen = draw(sampler, candidates, kept, config["negatives"], config["seed"], keys[start:stop])
        deep = int((candidates.real.sum(1) > run.info["resolved"]["depth"]).sum())
        probability = chain.false_probability(candidates, reopened.context, chosen)
        writer.write(part.number, Judged(candidates, verdicts, chosen, part.all_positive_scores, deep, probability))
        advance(stop - start)
    kept_keys = ("hardneg_version", "resolved", "timings", "environment")
    before = {"config": run.info["config"], "command": run.info["command"], "counts": run.info["counts"]}
    writer.finish(
        {
            **{key: run.info[key] for key in kept_keys},
            "fingerprints": {**_without_posteriors(run.info["fingerprints"]), **used},
            "warnings": [*run.info["warnings"], *chain.notes(config)],
            "command": command,
            "config": config,
            "seed": config["seed"],
            "selections": [*run.info["selections"], before],
        }
    )
    if out is not None:
        return Run(folder, verify=False)
    old = run.folder.with_name(f".{run.folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(run.folder, old)
    os.replace(folder, run.folder)
    shutil.rmtree(old)
    return Run(run.folder, verify=False)


def _without_posteriors(fingerprints: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fingerprints.items() if not name.startswith("posterior:")}


def _link_tree(source: Path, target: Path) -> None:
    """A copy of a folder that shares its files where the file system can; both are only ever replaced, not written into."""

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
