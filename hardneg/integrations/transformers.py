"""For the `Trainer` of transformers: negatives that are mined again while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hardneg.errors import MissingDependencyError, RunError
from hardneg.integrations.negatives import HardNegatives as _HardNegatives

try:
    from transformers import TrainerCallback
except ImportError:
    raise MissingDependencyError("transformers", "st", "hardneg.integrations.transformers") from None


class HardNegatives(_HardNegatives, TrainerCallback):
    """Negatives as a callback: `Trainer(train_dataset=negatives.examples, callbacks=[negatives], ...)`.

    The arguments of the trainer need `remove_unused_columns=False`, and its `data_collator` gets the items of `examples`. Negatives
    are saved with every checkpoint, and a training that is resumed has the same ones. With `dataloader_num_workers` above 0,
    batches that workers read ahead may still have the negatives before a refresh.

    Arguments and errors are those of `hardneg.integrations.HardNegatives`.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.check_alone(args.world_size)
        updates = max(1, int(state.max_steps / max(state.num_train_epochs, 1)))
        if state.global_step:
            folder = _checkpoint(args, state)
            if not folder.is_dir():
                raise RunError(
                    f"{folder} does not exist: the checkpoint that is resumed was saved without this callback, so the "
                    f"negatives that it was trained with are not known"
                )
            self.begin(folder, updates=updates)
        else:
            self.begin(updates=updates)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.begin_epoch(int(state.epoch or 0))

    def on_substep_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.batch()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.step()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        """Add generation, age and masked share to what the trainer logs."""
        if self.index is not None and logs is not None and "loss" in logs:
            numbers = self.numbers()
            logs |= numbers
            if state.log_history:
                state.log_history[-1] |= numbers

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.end_epoch()

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.is_world_process_zero:
            self.save(_checkpoint(args, state))

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.close()


def _checkpoint(args: Any, state: Any) -> Path:
    """The folder of the negatives in a checkpoint of the trainer."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "hardneg"
