"""Where the numbers of a training go besides TensorBoard: Weights & Biases, and JSON lines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hardneg.errors import RunError, UsageError


class JsonLines:
    """Writes one JSON object for each step to a file, as a writer of `Diagnostics`.

    Args:
        path: the file. New lines are added at its end.

    Raises:
        RunError: the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "live.jsonl"
    >>> writer = JsonLines(path)
    >>> writer.write(50, {"margin": 0.25})
    >>> path.read_text()
    '{"step": 50, "margin": 0.25}\\n'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.write(None, {})

    def write(self, step: int | None, values: dict[str, float]) -> None:
        """Add a line; a number that is not finite becomes null. Without a step, only check that the file can be written."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                if step is not None:
                    file.write(json.dumps({"step": step, **finite}) + "\n")
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error.strerror or error})") from None

    def flush(self) -> None:
        """Do nothing: every line is written at once."""


class Wandb:
    """Logs to a run of Weights & Biases, as a writer of `Diagnostics`.

    Args:
        run: what `wandb.init()` returned, or anything with `log(values, step=)`.

    Raises:
        UsageError: `run` has no method `log`.
    """

    def __init__(self, run: Any) -> None:
        if not callable(getattr(run, "log", None)):
            raise UsageError(f"{run!r} is no run of wandb: it has no method log(values, step=)")
        self.run = run

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the numbers of a step, each under `negatives/`."""
        self.run.log({f"negatives/{name}": value for name, value in values.items()}, step=step)

    def flush(self) -> None:
        """Do nothing: wandb sends by itself."""
