"""The engine `ray`: actors of a Ray cluster that do tasks. What they make goes through files; Ray carries only names.

An actor keeps the encoder and the shards that it has opened, as any worker does. Ray's own retries are off: whether a task is done
is decided by its files, and an actor that dies is replaced here, where it is counted.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hardneg.errors import HardnegError, MissingDependencyError, RunError, reason_of
from hardneg.tasks.drive import News
from hardneg.tasks.engines import news_of
from hardneg.tasks.graph import Task
from hardneg.tasks.worker import Worker

_STARTS = 120.0  # seconds that a cluster has to start an actor, before it counts as one that has no room for it


class Actor:
    """What runs on the cluster."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.setup = setup
        self.worker: Worker | None = None
        # Ray hands over the search path of its own start; what was added since then may hold the module of an encoder.
        sys.path += [each for each in setup["path"] if each not in sys.path]
        torch.set_num_threads(setup["threads"])

    def do(self, task: dict[str, Any]) -> dict[str, Any]:
        """Do a task; what became of it, as plain values."""
        asked, setup = Task(**task), self.setup
        try:
            self.worker = self.worker or Worker(Path(setup["folder"]), setup["device"], setup["batch_size"])
        except HardnegError as error:
            return asdict(News(0, asked.name, "failed", type(error).__name__, str(error)))
        return asdict(news_of(0, asked, self.worker.do))


class RayCrew:
    """Actors of the cluster that this process is connected to, of the one that `ray` finds (`RAY_ADDRESS`), or of a local one.

    Args:
        folder: the run folder, which all machines of the cluster see under this path.
        size: the number of actors; 0: one for each GPU, or as many as the processors have room for.
        threads: the processors of each actor, and its threads; None: all of a machine that has GPUs, shared out, else 1.
        device, batch_size: of encoders.

    Raises:
        MissingDependencyError: Ray is not installed. RunError: the cluster has no room for an actor.
    """

    def __init__(
        self, folder: Path, size: int = 0, threads: int | None = None, device: str | None = None, batch_size: int | None = None
    ) -> None:  # fmt: skip
        try:
            import ray
        except ImportError:
            raise MissingDependencyError("ray", "ray", "--engine ray") from None
        self._ray: Any = ray
        self._owned = _connected(ray)
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if device is None or device.startswith("cuda") else 0
        cpus = int(there.get("CPU", 1))
        self.size = size or gpus or max(1, cpus // (threads or 1))
        share = threads or max(1, cpus // self.size)
        options = {"num_cpus": share, "num_gpus": min(1.0, gpus / self.size), "max_restarts": 0, "max_task_retries": 0}
        self._made = ray.remote(Actor).options(**options)
        path = [os.path.abspath(each) for each in sys.path]
        setup = {
            "folder": str(folder.resolve()), "threads": share, "device": device, "batch_size": batch_size, "path": path
        }  # fmt: skip
        self._setup = ray.put(setup)
        self._wanted = options
        self._actors = [self._made.remote(self._setup) for _ in range(self.size)]
        self._began = time.monotonic()
        self._running: dict[Any, tuple[int, str]] = {}

    def send(self, worker: int, task: Task) -> None:
        try:
            reference = self._actors[worker].do.remote({**task._asdict(), "after": list(task.after)})
        except Exception as error:
            raise self._gone(error) from error
        self._running[reference] = worker, task.name

    def news(self, timeout: float) -> list[News]:
        """What happened; RunError if the cluster is gone, or has no room for a single actor."""
        if not self._running:
            time.sleep(timeout)
            return []
        try:
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout, fetch_local=True)
            if ready and len(self._running) > 1:
                ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        except Exception as error:
            raise self._gone(error) from error
        if ready:
            self._began = 0.0
        elif self._began and time.monotonic() - self._began > _STARTS:
            self._check_room()
        return [self._outcome(reference) for reference in ready]

    def _outcome(self, reference: Any) -> News:
        worker, task = self._running.pop(reference)
        exceptions = self._ray.exceptions
        try:
            value: dict[str, Any] = self._ray.get(reference)
        except exceptions.RayTaskError as error:  # no error of ours: whatever a library raised
            return News(worker, task, "died", message=reason_of(error.cause or error))
        except exceptions.RayActorError as error:
            return News(worker, task, "died", message=reason_of(error))
        except exceptions.RayError as error:
            raise self._gone(error) from error
        return News(**{**value, "worker": worker})

    def _check_room(self) -> None:
        """RunError, unless the actors only wait for others who work on machines that have room for one."""
        needs = {"CPU": self._wanted["num_cpus"], "GPU": self._wanted["num_gpus"]}
        machines = [each["Resources"] for each in self._ray.nodes() if each["Alive"]]
        fits = any(all(has.get(name, 0) >= need for name, need in needs.items()) for has in machines)
        free = self._ray.available_resources()
        if fits and any(free.get(name, 0) < need for name, need in needs.items()):
            return
        raise RunError(
            f"no actor has started for {_STARTS:.0f} s: the cluster has {self._ray.cluster_resources()}, and each needs "
            f"{self._wanted['num_cpus']} processors and {self._wanted['num_gpus']} GPUs: give --threads less, or --engine ray:N"
        )

    def replace(self, worker: int) -> None:
        try:
            self._ray.kill(self._actors[worker], no_restart=True)
            self._actors[worker] = self._made.remote(self._setup)
        except Exception as error:
            raise self._gone(error) from error
        self._began = time.monotonic()

    def _gone(self, error: Exception) -> RunError:
        return RunError(
            f"the Ray cluster went away ({reason_of(error)}). What is done is kept in files: go on with --resume, with this engine or "
            f"another one"
        )

    def close(self) -> None:
        for actor in self._actors:
            try:
                self._ray.kill(actor, no_restart=True)
            except Exception:  # the cluster may be gone
                break
        if self._owned:
            self._ray.shutdown()


def _connected(ray: Any) -> bool:
    """Connect to a cluster, unless this process is connected already. Returns whether to disconnect at the end."""
    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        ray.init(include_dashboard=False, **quiet)
    return True
