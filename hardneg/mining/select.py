"""Selection: filter and sample the candidates of a run again, without a new search."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardneg.errors import UsageError
from hardneg.mining.filters.base import Chain, Filter
from hardneg.mining.miner import choose_negatives
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import PartWriter, Run, prepare
from hardneg.mining.samplers import Sampler, query_keys
from hardneg.mining.specs import parse_filters, parse_sampler
from hardneg.progress import Progress, silent
from hardneg.registry import spec_of


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """Options of a selection, with the meaning they have in `MineOptions`. None keeps the value of the run."""

    filters: tuple[str | Filter, ...] | None = None
    default_filters: bool | None = None
    sampler: str | Sampler | None = None
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
    """Filter and sample the candidates of `run` again.

    Args:
        run: a finished run.
        options: what to change.
        out: a new run folder; None: replace `run`. run.json keeps the history of selections.
        overwrite: replace the run in `out`.
        force: use a posterior even if it was learned with another encoder.
        batch_size, device: settings for encoding with guide models.
        progress: callback that reports the progress of each stage.
        command: the command line, recorded in run.json.

    Returns:
        The new run. It has the same candidates as `run`: no query is searched deeper.

    Raises:
        UsageError, RunError: see their messages.
    """
    run = run if isinstance(run, Run) else Run(run)
    chosen = _Selection.of(run, options)
    used = chosen.chain.check(run.info["fingerprints"], force)
    folder = Path(out) if out is not None else run.folder.with_name(f".{run.folder.name}.select")
    if out is None:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.resolve() == run.folder.resolve():
        raise UsageError(f"--out {out} is the run itself: omit --out to replace it")
    prepare(folder, resume=False, overwrite=overwrite)
    reopened = Reopened(run, folder, batch_size=batch_size, device=device, progress=progress)
    for name in ("source", "embeddings"):
        _link_tree(run.folder / name, folder / name)
    if (run.folder / "posterior.json").exists():
        shutil.copy2(run.folder / "posterior.json", folder / "posterior.json")
    writer = PartWriter(folder, reopened.pairs, chosen.chain.names)
    _write_parts(reopened, chosen, writer, progress)
    writer.finish(_head(run, chosen, used, command))
    if out is not None:
        return Run(folder, verify=False)
    _replace(run.folder, folder)
    return Run(run.folder, verify=False)


@dataclass(frozen=True)
class _Selection:
    """The configuration of a selection, and the filters and sampler that it names.

    The configuration is that of the run, with the options of the selection in place of its own.
    """

    config: dict[str, Any]
    chain: Chain
    sampler: Sampler

    @classmethod
    def of(cls, run: Run, options: SelectOptions) -> _Selection:
        """The selection for these options; UsageError if they cannot be used."""
        given = {name: value for name, value in vars(options).items() if value is not None}
        config = {**run.info["config"], **given}
        chain = parse_filters(config["filters"], config["default_filters"])
        sampler = parse_sampler(config["sampler"])
        if config["negatives"] < 1:
            raise UsageError("negatives must be 1 or more")
        written = {"filters": [spec_of(each) for each in config["filters"]], "sampler": spec_of(config["sampler"])}
        return cls({**config, **written}, chain, sampler)


def _write_parts(reopened: Reopened, chosen: _Selection, writer: PartWriter, progress: Progress) -> None:
    """Filter and sample every part of the run."""
    config, depth = chosen.config, reopened.run.info["resolved"]["depth"]
    keys = query_keys(reopened.pairs.query_ids)
    advance = progress("select", len(reopened.pairs))
    for part in reopened:
        candidates = part.candidates
        judged = choose_negatives(
            chosen.chain, chosen.sampler, reopened.context, candidates,
            chosen.chain.verdicts(candidates, reopened.context), part.all_positive_scores, negatives=config["negatives"],
            seed=config["seed"], keys=keys, widened=int((candidates.real.sum(1) > depth).sum()),
        )  # fmt: skip
        writer.write(part.number, judged)
        advance(len(candidates.queries))


def _head(run: Run, chosen: _Selection, used: dict[str, str], command: list[str] | None) -> dict[str, Any]:
    """The content of the selection's `run.json`, except what `PartWriter.finish` adds."""
    info = run.info
    previous = {"config": info["config"], "command": info["command"], "counts": info["counts"]}
    return {
        **{key: info[key] for key in ("hardneg_version", "resolved", "timings", "environment")},
        "fingerprints": {**_without_posteriors(info["fingerprints"]), **used},
        "warnings": [*info["warnings"], *chosen.chain.notes(chosen.config)],
        "command": command,
        "config": chosen.config,
        "seed": chosen.config["seed"],
        "selections": [*info["selections"], previous],
    }


def _replace(folder: Path, new: Path) -> None:
    """Put `new` in the place of `folder`."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old)


def _without_posteriors(fingerprints: dict[str, Any]) -> dict[str, Any]:
    """The fingerprints, except those of posterior files."""
    return {name: value for name, value in fingerprints.items() if not name.startswith("posterior:")}


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder with hard links where the file system allows it.

    That is safe because files in a run are replaced as a whole, never changed in place.
    """

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
