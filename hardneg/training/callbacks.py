"""Callbacks: the numbers of a training, every few steps, for the log, TensorBoard and people."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hardneg.errors import MissingDependencyError


class Callback(Protocol):
    """Receives the numbers of a training. If it raises a `HardnegError`, the training stops."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Scalars of a step, by name; of an evaluation, `evaluation/ndcg@10` and so on."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Watcher(Callback, Protocol):
    """A callback that also receives the vectors of every step, such as `hardneg.Diagnostics`."""

    def batch(self, step: int, queries: Tensor, documents: Tensor, mined: Tensor | None = None, **more: Any) -> Any: ...


class LogFile:
    """`log.jsonl`: one JSON object an entry. Entries after `step` are dropped, because a resumed training writes them again."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    if entry["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    continue  # cut off where the process was killed
        path.write_text("".join(line + "\n" for line in kept), "utf-8")
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def log(self, step: int, values: dict[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """Scalars for TensorBoard, in a folder."""

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


def mean_of(rows: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Means of the loss's statistics over several batches."""
    return {name: float(torch.stack([row[name].float() for row in rows]).mean()) for name in rows[0]} if rows else {}
