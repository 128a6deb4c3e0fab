"""The last task: join the parts of the run, write `run.json`, and remove what the tasks left."""

from __future__ import annotations

from typing import Any

from hardneg.mining.environment import environment
from hardneg.mining.mine import missed, run_head
from hardneg.mining.parts import PartWriter
from hardneg.mining.sanity import check_positives
from hardneg.tasks.bench import Bench
from hardneg.tasks.encode import notes_of
from hardneg.tasks.graph import Task
from hardneg.tasks.lists import recall_of
from hardneg.tasks.records import Outcome


def finish(bench: Bench, task: Task) -> Outcome:
    """Write `run.json`, the same as `hardneg mine` but for timings, command and environment."""
    plan, config = bench.plan, bench.plan.config
    head, recall = plan.head, recall_of(bench, plan)
    doubts = list(head["doubts"])
    if not plan.given:
        doubts += check_positives(
            bench.pairs, bench.vectors("queries"), bench.whole, int(config["seed"]), False, plan.force  # type: ignore[arg-type]
        )  # fmt: skip
    said = [*doubts, *head["left"], *notes_of(bench), *head["warnings"], *missed(recall)]
    tasks = bench.records.done()
    _check_kept(bench, tasks)
    machine = {**environment(None), "shards": plan.shard_count, "tasks": len(tasks) + 1}
    resolved = {**head["resolved"], "recall": recall.to_json()}
    writer = PartWriter(bench.folder, bench.pairs, bench.chain.names)
    said += bench.chain.of_chosen(writer.mean_probability(), config)
    whole = run_head(
        config, head["command"], _ordered(resolved), dict(plan.fingerprints), head["reading"], said,
        {**head["timings"], **_seconds(bench, tasks)}, machine, head["paths"],
    )  # fmt: skip
    try:
        writer.finish(whole)
    except OSError:  # on some network file systems, the claim of this task cannot be removed while it is held
        if not (bench.folder / "run.json").is_file():
            raise
    return Outcome()


def _check_kept(bench: Bench, tasks: set[str]) -> None:
    """`Damaged` if a file that stays in the run is not what its task left: the task is done again."""
    for task in sorted(tasks):
        if task.startswith(("write-", "store-")):
            bench.records.check_all(task)


def _ordered(resolved: dict[str, Any]) -> dict[str, Any]:
    """The entries in the order in which `mine` writes them."""
    names = ("depth", "max_depth", "index", "recall", "dimension", "encoder")
    return {name: resolved[name] for name in names if name in resolved}


def _seconds(bench: Bench, tasks: set[str]) -> dict[str, float]:
    """Seconds of all workers together, by kind of task."""
    found: dict[str, float] = {}
    for task in sorted(tasks):
        kind = task.partition("-")[0]
        found[kind] = round(found.get(kind, 0.0) + float(bench.records.of(task)["seconds"]), 3)
    return found
