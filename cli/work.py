"""The command `hardneg work`."""

from __future__ import annotations

import re
from typing import Any

import click

from .main import print_json
from .options import THREADS, Finite
from .plain import plain
from .show import say


def _share(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", value)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f"{value!r} is no share: write 1/16 to 16/16")
    return int(found[1]), int(found[2])


@click.command()
@click.argument("run")
@click.option("--task", metavar="NAME", help="Do this task alone. What it needs must be done.")
@click.option(
    "--shard",
    "share",
    callback=_share,
    metavar="I/N",
    help="Do every N-th task only, from the I-th on, and wait for others to do theirs: for job arrays on file systems without "
    "locks.  [default: whatever nobody else does]",
)
@click.option(
    "--wait",
    type=Finite(0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up when no task was finished, by anybody, for so long.",
)
@click.option("--threads", type=THREADS, metavar="N", help="Number of CPU threads.  [default: all cores]")
@click.option(
    "--device", metavar="NAME", help="Device of the encoders, such as cuda:1.  [default: a GPU if torch finds one]"
)
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Texts that an st: encoder encodes at once.")
@click.option("--list", "listed", is_flag=True, help="List the tasks and their states, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def work(run: str, listed: bool, as_json: bool, **given: Any) -> None:
    """Do tasks of the plan in RUN, which 'hardneg mine SOURCE --out RUN --plan SHARDS' has written.

    Start any number of workers, on any machines that share the folder. Each takes a task that is ready and that nobody
    else does. A worker that dies loses its task only, which another one does again. The last one finishes the run: it is
    the same as from 'hardneg mine', byte for byte.

    \b
    Examples:
      hardneg work run
      hardneg work run --device cuda:1
      hardneg work run --list
      sbatch --array=1-16 --wrap 'hardneg work run'
      sbatch --array=1-16 --wrap 'hardneg work run --shard $SLURM_ARRAY_TASK_ID/16'
      seq 4 | xargs -P 4 -I{} hardneg work run --threads 4
    """
    from hardneg.tasks.worker import states, tasks_and_states
    from hardneg.tasks.worker import work as do_work

    if given["task"] is not None and given["share"] is not None:
        raise click.UsageError("--task and --shard exclude each other")
    if listed:
        found = tasks_and_states(run)
        if as_json:
            print_json({"run": run, "tasks": dict(found), "states": states(found)})
        else:
            click.echo("\n".join(f"{state:5}  {name}" for name, state in found) or f"{plain(run)} is finished")
        return
    done = do_work(run, report=say, **given)
    if as_json:
        print_json({"run": run, "done": done})
    else:
        say(f"{done:,} {'task was' if done == 1 else 'tasks were'} done here")
