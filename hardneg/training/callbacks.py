"""Callbacks receive the numbers of a training: the log file, TensorBoard, and your own."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor

from hardneg.encoders.saved import written
from hardneg.errors import MissingDependencyError, RunError, UsageError, reason_of, suggestion
from hardneg.storage.files import atomic_path, sha256_file
from hardneg.storage.json_files import read_json, write_json


class Callback(Protocol):
    """Receives the numbers of a training. An exception that it raises, such as a `HardnegError`, stops the training.

    After an interruption, the steps since the last checkpoint are trained again, and their numbers are passed again. A
    callback that writes a file should drop what it has of later steps, and may have a method `sync()`, which is called
    before each checkpoint: what it received until then must be on disk afterwards, because it will not be passed again.
    """

    def log(self, step: int, values: dict[str, float]) -> None:
        """Receive the numbers of a step, by name. The names of an evaluation start with `evaluation/`."""
        ...

    def close(self) -> None:
        """Called once, when the training ends or fails."""
        ...


@runtime_checkable
class Watcher(Callback, Protocol):
    """A callback that also receives the vectors of every step, such as `hardneg.Diagnostics`."""

    def batch(self, step: int, queries: Tensor, documents: Tensor, mined: Tensor | None = None, **more: Any) -> Any:
        """Receive the vectors of the last batch of a step, without gradients.

        Args:
            step: the number of the step.
            queries: `[B, d]`.
            documents: `[B + M, d]`, first the positive of each query, then the mined negatives.
            mined: int64 `[B, K]`, the rows of `documents` with the mined negatives of each query; -1 for a document
                that another rank encodes.
            more: `bank`, `index` and `statistics` (of the loss).
        """
        ...


WANDB_RUN = "wandb-run.json"  # the id of the run, so that a resumed training goes on with it


class _WandbRun(TypedDict):
    id: str


class _Record(TypedDict):
    bytes: int
    sha256: str


REPORTS = ("tensorboard", "wandb")


def checked_reports(names: Sequence[str]) -> tuple[str, ...]:
    """The value of `report_to`; UsageError for anything but names of `REPORTS`."""
    found = (names,) if isinstance(names, str) else tuple(names)
    for name in found:
        if name not in REPORTS:
            raise UsageError(f"report_to={name!r}.{suggestion(str(name), REPORTS)}")
    return found


class LogFile:
    """Writes `log.jsonl`, one JSON object for each entry.

    Args:
        path: the file. Entries that it has already are kept up to `step`.
        step: the step from which the training continues. Later entries are dropped, because they will be written again.

    Raises:
        RunError: the file cannot be written, for example because the disk is full; or entries before the last checkpoint have
            changed.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.record = path, path.with_name(f".hardneg-{path.stem}.json")
        self._check()
        with written(path, "the training stopped"):
            self.record.unlink(missing_ok=True)  # the entries after `step` are about to go
            kept = []
            if path.exists():
                for line in path.read_text("utf-8", "replace").splitlines():
                    try:
                        if 0 < step >= json.loads(line)["step"]:  # what was evaluated before the first step is, again
                            kept.append(line)
                    except (ValueError, KeyError, TypeError, RecursionError):
                        continue  # a line that was cut off when the process was killed
            # As a whole: killed in between, the log would lose entries that no training writes again.
            with atomic_path(path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), "utf-8")
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115
            self._keep_record()

    def _keep_record(self) -> None:
        """Write down what the log holds, so that a change of it is noticed."""
        write_json(self.record, {"bytes": self.path.stat().st_size, "sha256": sha256_file(self.path)}, checksum=True)

    def _check(self) -> None:
        """RunError if the entries that were on disk at the last checkpoint have changed."""
        if not self.record.exists() or not self.path.exists():
            return
        remedy = f"remove {self.path} to go on without its entries"
        recorded = read_json(self.record, _Record, checksum=True, remedy=remedy)
        start = self.path.read_bytes()[: max(0, recorded["bytes"])]
        if hashlib.sha256(start).hexdigest() != recorded["sha256"]:
            raise RunError(f"{self.path} is damaged, or was changed: {remedy}")

    def log(self, step: int, values: dict[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with written(self.path, "the training stopped"):
            self.file.write(json.dumps({"step": step, **finite}) + "\n")
            self.file.flush()

    def sync(self) -> None:
        """Wait until all entries are on disk."""
        with written(self.path, "the training stopped"):
            os.fsync(self.file.fileno())
        with suppress(OSError):  # the record before is still that of the log's beginning
            self._keep_record()

    def close(self) -> None:
        with suppress(OSError):  # every entry was flushed already, or its error raised
            self.file.close()


class TensorBoard:
    """Writes the numbers for TensorBoard.

    Args:
        folder: the folder to write to.
        step: the step from which the training continues. TensorBoard hides entries after it.

    Raises:
        MissingDependencyError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingDependencyError("tensorboard", "tensorboard", "writing for TensorBoard") from None
        self.writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def close(self) -> None:
        self.writer.close()


class WandbLog:
    """Writes the numbers to a run of Weights & Biases, which a resumed training goes on with.

    The project is `hardneg` unless the environment variable WANDB_PROJECT names another. Its own files go where wandb puts them.

    Args:
        folder: the folder of the training, which keeps the id of the run.
        options: the options of the training, which the run shows.

    Raises:
        MissingDependencyError: wandb is not installed. RunError: it cannot begin, for example because nobody is logged in.
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingDependencyError("wandb", "wandb", "reporting to wandb") from None
        path = folder / WANDB_RUN
        if not path.exists():
            write_json(path, {"id": secrets.token_hex(4)}, checksum=True)
        project = os.environ.get("WANDB_PROJECT", "hardneg")
        identity = read_json(path, _WandbRun, checksum=True, remedy=f"remove {path} to begin another run")["id"]
        name = folder.name.removeprefix(".").partition(".")[0]
        try:
            self.run: Any = wandb.init(project=project, name=name, id=identity, resume="allow", config=options)
        except (wandb.Error, OSError, ValueError) as error:
            raise RunError(
                f"wandb cannot begin a run ({reason_of(error)}): log in, or set WANDB_MODE=offline"
            ) from None
        # Steps since the last checkpoint are logged again after an interruption, which wandb's own counter would refuse.
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **{n if "/" in n else f"train/{n}": v for n, v in values.items()}})

    def close(self) -> None:
        self.run.finish()


def mean_of(rows: Sequence[dict[str, Tensor]], sources: Sequence[str] = ()) -> dict[str, float]:
    """The mean of each of the loss's statistics over several batches.

    Args:
        rows: the statistics of each batch; of a mixture, with the number of its `source`.
        sources: the names of the sources of a mixture. The mean loss of the batches of each is `loss/NAME`.

    >>> mean_of([{"loss": torch.tensor(1.0)}, {"loss": torch.tensor(2.0)}])
    {'loss': 1.5}
    """
    if not rows:
        return {}
    means = {
        name: float(torch.stack([row[name].float() for row in rows]).mean()) for name in rows[0] if name != "source"
    }
    if sources:
        of, losses = (torch.stack([row[name].float() for row in rows]).tolist() for name in ("source", "loss"))
        for i, name in enumerate(sources):
            own = [loss for source, loss in zip(of, losses, strict=True) if source == i]
            means |= {f"loss/{name}": sum(own) / len(own)} if own else {}
    return means
