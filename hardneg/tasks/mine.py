"""A mining pass by an engine: the plan, all of its tasks, and the run; the same bytes as from `hardneg.mine`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Unpack

from hardneg.data.pairs import Pairs
from hardneg.data.read import as_pairs
from hardneg.data.tables import is_path
from hardneg.errors import RunError
from hardneg.mining.inputs import check_config, check_finished
from hardneg.mining.mine import mined_run, torch_threads
from hardneg.mining.options import MineChoices, MineOptions, chosen, with_given
from hardneg.mining.resources import Resources
from hardneg.mining.run import Run
from hardneg.mining.run_folder import run_output
from hardneg.progress import Progress, with_progress
from hardneg.tasks.drive import Crew, Losses, drive
from hardneg.tasks.engines import LocalCrew, ProcessCrew, parse_engine, workers_of
from hardneg.tasks.plan import FILE, Plan, check_source
from hardneg.tasks.planning import refuse, write_plan
from hardneg.tasks.ray_crew import RayCrew


@with_progress
def plan_run(
    source: str | Path | Pairs | Any, out: str | Path, options: MineOptions | None = None, *, shards: int,
    force: bool = False, device: str | None = None, batch_size: int | None = None, cache: str | Path | None = None,
    progress: Progress | bool = False, command: list[str] | None = None, **choices: Unpack[MineChoices],
) -> Plan:  # fmt: skip
    """Read a source and write the plan of a pass, for workers on any number of machines (`work`).

    Args:
        source, out, options, force, device, batch_size, cache, progress, command, choices: as for `hardneg.mine`.
        shards: the number of shards of the corpus, each of which is searched by a task for each block of queries.

    Raises:
        UsageError: for what a plan cannot hold. RunError: `out` is not empty. DataError: as `hardneg.mine`.
    """
    assert callable(progress)  # see `with_progress`
    options, source = _checked(source, options, choices, shards)
    target, resources = Path(out), _resources(options, device, batch_size, cache, progress)
    with run_output(target, config=options.to_json()) as folder:
        return write_plan(folder, target, source, options, resources, shards=shards, command=command, force=force)


@with_progress
def mine_with(
    engine: str, source: str | Path | Pairs | Any, out: str | Path, options: MineOptions | None = None, *,
    shards: int | None = None, resume: bool = False, overwrite: bool = False, force: bool = False,
    threads: int | None = None, device: str | None = None, batch_size: int | None = None,
    cache: str | Path | None = None, progress: Progress | bool = False, command: list[str] | None = None,
    **choices: Unpack[MineChoices],
) -> tuple[Run, Losses]:  # fmt: skip
    """Mine with an engine. The run is the same, byte for byte, as from `hardneg.mine`, whatever the engine and the shards.

    Args:
        engine: `local`, `processes[:N]` or `ray[:N]`, with N workers.
        source, out, options: as for `hardneg.mine`; the encoder is one that the options name.
        shards: the number of shards of the corpus; None: one for each worker.
        resume: go on with a run that was interrupted, or that was planned.
        threads: threads of each worker.
        overwrite, force, device, batch_size, cache, progress, command, choices: as for `hardneg.mine`.

    Returns:
        (the run, what went wrong meanwhile and was done again).

    Raises:
        As `hardneg.mine`. UsageError: for what a plan cannot hold. RunError: also if the run to be resumed is cut into other shards,
            a task killed its worker again and again, or the cluster went away.
    """
    assert callable(progress)  # see `with_progress`
    parse_engine(engine)
    options, source = _checked(source, options, choices, shards or 1)
    target, resources = Path(out), _resources(options, device, batch_size, cache, progress)
    losses = Losses()
    with (
        torch_threads(threads),
        run_output(target, resume=resume, overwrite=overwrite, config=options.to_json()) as folder,
    ):
        finished = (folder / "run.json").exists()
        if finished:
            check_finished(source, folder, options, None, None, resources, target)
        else:
            if (folder / "progress" / FILE).exists():
                check_config(folder, options.to_json(), target)
                plan = _planned(folder, shards)
            else:
                count = shards or workers_of(engine)
                plan = write_plan(
                    folder, target, source, options, resources, shards=count, command=command, force=force
                )
            losses = _driven(engine, folder, plan, resources, threads)
        shutil.rmtree(folder / "progress", ignore_errors=True)
    return mined_run(target, finished, command), losses


def _driven(engine: str, folder: Path, plan: Plan, resources: Resources, threads: int | None) -> Losses:
    crew = crew_of(engine, folder, threads, resources.device, resources.batch_size)
    try:
        return drive(folder, plan, crew, resources.progress)
    finally:
        crew.close()


def _planned(folder: Path, shards: int | None) -> Plan:
    """The plan to go on with."""
    plan = Plan.load(folder)
    check_source(folder)
    if shards is not None and shards != plan.shard_count:
        raise RunError(
            f"{folder} was planned with {plan.shard_count} shards, not {shards}: leave --shards out to go on with it"
        )
    return plan


def _checked(
    source: Any, options: MineOptions | None, choices: MineChoices, shards: int
) -> tuple[MineOptions, str | Path | Pairs]:
    """The options, checked, and the source."""
    options = with_given(chosen(options or MineOptions(), choices))
    options.validate()
    refuse(options, shards)
    return options, source if is_path(source) else as_pairs(source, options.read)


def _resources(
    options: MineOptions, device: str | None, batch_size: int | None, cache: str | Path | None, progress: Progress
) -> Resources:
    return Resources(batch_size, device, (), options.encoder_precision, cache, progress)


def crew_of(
    engine: str, folder: Path, threads: int | None = None, device: str | None = None, batch_size: int | None = None
) -> Crew:
    """The workers of an engine.

    Raises:
        UsageError: there is no such engine, or a package that it needs is not installed.
    """
    name, _ = parse_engine(engine)
    if name == "local":
        return LocalCrew(folder, device, batch_size)
    if name == "processes":
        return ProcessCrew(folder, workers_of(engine), threads, device, batch_size)
    return RayCrew(folder, parse_engine(engine)[1], threads, device, batch_size)
