"""Selection: filter and sample the candidates of a run again, without a new search."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hardneg import registry
from hardneg.ambient import own_settings
from hardneg.data.pairs import Pairs
from hardneg.errors import UsageError, no_giants, suggestion
from hardneg.mining.filters.base import Chain, Filter, with_found
from hardneg.mining.miner import choose_negatives
from hardneg.mining.options import MAYBE_COUNT, MAYBE_FLAG, check_types, plain
from hardneg.mining.parts import PartWriter
from hardneg.mining.relabels import FILE as RELABELS
from hardneg.mining.relabels import FOUND, HOW, Relabels
from hardneg.mining.reopen import Reopened
from hardneg.mining.run import Run
from hardneg.mining.run_folder import copy_posterior, located_filters, posterior_files, relative_paths, run_output
from hardneg.mining.samplers import Sampler, query_keys
from hardneg.mining.specs import check_guides, filters_of, no_code, parse_filters, parse_sampler
from hardneg.mining.warnings import tell
from hardneg.progress import Progress, with_progress
from hardneg.registry import spec_of
from hardneg.storage.arrow import values_of
from hardneg.storage.folders import link_tree
from hardneg.storage.remote import refuse_url


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """Options of a selection, with the meaning they have in `MineOptions`. None keeps the value of the run.

    Attributes:
        filters: filters in place of those of the run.
        add_filters: more filters, applied after those.
        default_filters, sampler, negatives, seed: as in `MineOptions`.
        relabel: what to do with candidates that `evidence` found relevant: `drop`, `ignore` or `promote` (see `Relabels`); `none`
            undoes what was relabelled before.
        evidence: a CSV file of judgements, or several.
        promote_from: with `promote`, the lowest grade or score of a new positive; what is relevant, but below, is ignored. None: all
            that is relevant is promoted.
        leave_out: ids of queries whose known positives are left out, as `check_pairs` finds them doubtful.
    """

    filters: tuple[str | Filter, ...] | None = None
    add_filters: tuple[str | Filter, ...] = ()
    default_filters: bool | None = None
    sampler: str | Sampler | None = None
    negatives: int | None = None
    seed: int | None = None
    relabel: str | None = None
    evidence: str | tuple[str, ...] | None = None
    promote_from: float | None = None
    leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        no_giants(self)
        for each in fields(self):
            object.__setattr__(self, each.name, plain(getattr(self, each.name)))
        if self.filters is not None:
            object.__setattr__(self, "filters", filters_of(self.filters))
        object.__setattr__(self, "add_filters", filters_of(self.add_filters))
        self._check_relabel()
        check_types(self, {"negatives": MAYBE_COUNT, "seed": MAYBE_COUNT, "default_filters": MAYBE_FLAG})

    def _check_relabel(self) -> None:
        if self.relabel not in (None, *HOW):
            raise UsageError(f"relabel must be one of {', '.join(HOW)}, not {self.relabel!r}")
        if (self.relabel in FOUND) != (self.evidence is not None):
            raise UsageError(
                "relabel (drop, ignore, promote) and evidence (a file of judgements) go together: give both"
            )
        if self.promote_from is not None and self.relabel != "promote":
            raise UsageError("promote_from has a meaning with relabel='promote' only")
        least = self.promote_from
        if least is not None and (
            isinstance(least, bool) or not isinstance(least, (int, float)) or not isfinite(least)
        ):
            raise UsageError(
                f"promote_from must be a finite number, a grade or a score, not {least!r} (--promote-from)"
            )


@with_progress
@own_settings()
def select(
    run: str | Path | Run,
    options: SelectOptions,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    force: bool = False,
    batch_size: int | None = None,
    device: str | None = None,
    progress: Progress | bool = False,
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
        progress: True for bars, or a callback that reports the progress of each stage.
        command: the command line, recorded in run.json.

    Returns:
        The new run. It has the same candidates as `run`: no query is searched deeper.

    Raises:
        UsageError, RunError: see their messages.
    """
    assert callable(progress)  # see `with_progress`
    run = run if isinstance(run, Run) else Run(run)
    if out is not None:
        refuse_url(out, "a run")
    target = run.folder if out is None else Path(out)
    if out is not None and target.resolve() == run.folder.resolve():
        raise UsageError(f"--out {out} is the run itself: omit --out to replace it")
    chosen = _Selection.of(run, options)
    used = chosen.chain.check(run.info["fingerprints"], force)
    replace = overwrite or out is None
    with run_output(target, overwrite=replace, purpose="select" if out is None else "new", resumable=False) as folder:
        for name in ("source", "embeddings", "features", "teacher"):
            link_tree(run.folder / name, folder / name)
        run.check_unchanged()  # since it was opened: another selection would be lost otherwise
        copy_posterior(run.folder / "posterior.json", folder / "posterior.json")
        pairs, relabels = _relabelled(run, options)
        reopened = Reopened(run, folder, pairs=pairs, batch_size=batch_size, device=device, progress=progress)
        if relabels is not None:
            relabels.write(folder / RELABELS, pairs)
        writer = PartWriter(folder, reopened.pairs, chosen.chain.names)
        began = time.perf_counter()
        _write_parts(reopened, chosen, writer, progress)
        head = _head(run, target, chosen, used, relabels, command)
        head["warnings"] += chosen.chain.of_chosen(writer.mean_probability(), chosen.config)
        writer.finish({**head, "timings": {**run.info["timings"], "select": time.perf_counter() - began}})
    selected = Run(target, verify=False)
    tell(own_warnings(selected.info), command)  # those of the reading and of the search were told when these were done
    return selected


def own_warnings(info: Mapping[str, Any]) -> list[str]:
    """The warnings of a selection's `run.json` that are of the selection itself, not of the run that it was made from."""
    return list(info["warnings"][info["selections"][-1].get("warnings", 0) :])


def _relabelled(run: Run, options: SelectOptions) -> tuple[Pairs, Relabels | None]:
    """The dataset with the labels that the selection asks for, and what was relabelled."""
    source = run.pairs(relabelled=False)
    found = None if options.relabel == "none" else run.relabels(source)
    if options.relabel in FOUND:
        files = (options.evidence,) if isinstance(options.evidence, str) else options.evidence
        found = registry.verb("relabels")(files, source, options.relabel, options.promote_from)
    if options.leave_out:
        places = pc.index_in(pa.array(options.leave_out, source.query_ids.type), value_set=source.query_ids)
        if places.null_count:
            unknown = options.leave_out[places.to_pylist().index(None)]
            raise UsageError(f"the query {unknown!r} that is to be left out is not in {run.folder}")
        removed = Relabels.removing(np.unique(values_of(places).astype(np.int64)), source)
        found = removed if found is None else found.and_also(removed)
    if found is None:
        return source, None
    return found.of(source), found


def select_by_name(run: Run, out: str | Path | None = None, **options: Any) -> Run:
    """`select` with the fields of `SelectOptions` as arguments."""
    known = [each.name for each in fields(SelectOptions)]
    chosen = {name: options.pop(name) for name in known if name in options}
    unknown = next((name for name in options if name not in inspect.signature(select).parameters), None)
    if unknown is not None:
        raise UsageError(f"select has no option {unknown!r}.{suggestion(unknown, known)}")
    return select(run, SelectOptions(**chosen), out, **options)


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
        """The selection for these options.

        Raises:
            UsageError: the options cannot be used, or the run was mined with an object that has to be given again.
            RunError: a spec of the run names a module.
        """
        others = ("add_filters", "relabel", "evidence", "promote_from", "leave_out")
        given = {name: value for name, value in vars(options).items() if value is not None and name not in others}
        own = {"filters": located_filters(run.folder, run.info)} if "filters" not in given else {}
        config = {**run.info["config"], **own, **given}
        config["filters"] = (*config["filters"], *options.add_filters)
        # Specs that the caller did not give come from a file, and must not run code that the file names.
        from_file = [*own.get("filters", ()), *(() if "sampler" in given else (config["sampler"],))]
        for spec in from_file:
            no_code(spec, str(run.folder / "run.json"))
        chain = parse_filters(config["filters"], config["default_filters"])
        check_guides(chain)
        sampler = parse_sampler(config["sampler"])
        if config["negatives"] < 1:
            raise UsageError("negatives must be 1 or more")
        if not 0 <= config["seed"] < 2**63:
            raise UsageError(f"the seed {config['seed']} must be 0 to 2^63 - 1")
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
            chosen.chain.verdicts(candidates, reopened.context), part.positive_scores, negatives=config["negatives"],
            seed=config["seed"], keys=keys, widened=int((candidates.real.sum(1) > depth).sum()),
        )  # fmt: skip
        writer.write(part.number, judged)
        advance(len(candidates.queries))


def _head(
    run: Run, target: Path, chosen: _Selection, used: dict[str, str], relabels: Relabels | None,
    command: list[str] | None,
) -> dict[str, Any]:  # fmt: skip
    """The content of the selection's `run.json`, except what `PartWriter.finish` adds."""
    info = run.info
    prints = {name: value for name, value in info["fingerprints"].items() if name != "relabels"}
    if relabels is not None:
        prints["relabels"] = relabels.digest()
    found = with_found(chosen.config, info["resolved"]["depth"], prints)
    previous = {
        "config": info["config"],
        "command": info["command"],
        "counts": info["counts"],
        "warnings": len(info["warnings"]),
    }
    return {
        **{key: info[key] for key in ("hardneg_version", "resolved", "environment") if key in info},
        "fingerprints": {**_without_posteriors(prints), **used},
        "warnings": [*info["warnings"], *chosen.chain.notes(found)],
        "command": command,
        "config": chosen.config,
        "seed": chosen.config["seed"],
        **({} if relabels is None else {"relabelled": relabels.counts() or info.get("relabelled", {})}),
        "selections": [*info["selections"], previous],
        "paths": {**_moved_paths(run, target), **relative_paths(target, posterior_files(used))},
    }


def _moved_paths(run: Run, target: Path) -> dict[str, str]:
    """The paths that the run records, as seen from `target`."""
    places = {path: os.path.join(run.folder, place) for path, place in run.info.get("paths", {}).items()}
    return {path: relative_paths(target, [place])[place] for path, place in places.items()}


def _without_posteriors(fingerprints: dict[str, Any]) -> dict[str, Any]:
    """The fingerprints, except those of posterior files."""
    return {name: value for name, value in fingerprints.items() if not name.startswith("posterior:")}
