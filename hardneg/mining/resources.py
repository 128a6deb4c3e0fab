"""Settings that affect how a pass runs, but not its result, and the time of its stages."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from hardneg.encoders.base import Encoder
from hardneg.encoders.devices import check_one_way
from hardneg.encoders.factory import make_encoder
from hardneg.progress import Progress, silent
from hardneg.storage.files import check_name


class Clock:
    """Measures the seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now = time.perf_counter()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._last, 3)
        self._last = now


@dataclass(frozen=True)
class Resources:
    """Settings that affect how a pass runs, but not its result.

    Attributes:
        batch_size: number of texts that an encoder processes at once; None: as many as is fast.
        device: device of the encoders; None: the one that torch finds.
        devices: several devices that encode at the same time, see `parse_devices`.
        encoder_precision: number format of the products of encoders, for those that are made from a spec.
        cache: folder for embeddings that several runs share; None: keep them inside the run.
        progress: callback that reports the progress of each stage.
        clock: measures the time of each stage.
    """

    batch_size: int | None = None
    device: str | None = None
    devices: tuple[str, ...] = ()
    encoder_precision: str = "float32"
    cache: str | Path | None = None
    progress: Progress = silent
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        check_one_way(self.device, self.devices)
        if self.cache is not None:
            check_name(self.cache)

    def embeddings(self, folder: Path) -> Path:
        """Return the folder with the embeddings of the run in `folder`."""
        return Path(self.cache) if self.cache is not None else folder / "embeddings"

    def encoder(self, spec: str, seed: int) -> Encoder:
        """Make the encoder that `spec` names."""
        device = self.devices[0] if self.devices else self.device
        return make_encoder(
            spec, seed=seed, device=device, batch_size=self.batch_size, precision=self.encoder_precision
        )
