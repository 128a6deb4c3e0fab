"""For PyTorch Lightning: negatives that are mined again while its trainer trains."""

from __future__ import annotations

from typing import Any

from hardneg.errors import MissingDependencyError
from hardneg.integrations.negatives import HardNegatives

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback  # type: ignore[assignment, unused-ignore]
    except ImportError:
        raise MissingDependencyError("lightning", "lightning", "hardneg.integrations.lightning") from None


class RefreshNegatives(Callback):
    """Tells `HardNegatives` what the trainer does: `Trainer(callbacks=[RefreshNegatives(negatives)])`.

    The training loader is `negatives.loader(batch_size)`. Negatives are saved in every checkpoint, and a training that is resumed has
    the same ones; within an epoch, the loader goes on after the batches that were trained on.
    """

    def __init__(self, negatives: HardNegatives) -> None:
        self.negatives = negatives

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.negatives.check_alone(trainer.world_size)
        batches = trainer.num_training_batches
        known = isinstance(batches, int)
        self.negatives.begin(updates=max(1, batches // trainer.accumulate_grad_batches) if known else None)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.negatives.begin_epoch(int(trainer.current_epoch))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        last = batch_idx + 1 == trainer.num_training_batches
        if last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.negatives.step()
        else:
            self.negatives.batch()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.negatives.end_epoch()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.negatives.close()

    def state_dict(self) -> dict[str, Any]:
        return self.negatives.state_dict() if self.negatives.index is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self.negatives.load_state_dict(state_dict)
            self.negatives.skip_trained()
