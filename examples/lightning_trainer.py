"""PyTorch Lightning, with negatives that are mined again as its trainer trains."""

from __future__ import annotations

import lightning
import torch
from functions import pairs_of_functions
from lightning.pytorch.loggers import CSVLogger

import hardneg
from hardneg.integrations.lightning import RefreshNegatives

pairs, held = pairs_of_functions()
torch.manual_seed(0)
encoder = hardneg.HashedEncoder(64)  # any torch.nn.Module that turns texts into vectors
encoder.fit(pairs.documents.slice(0, len(pairs.document_ids)))
print("before:", hardneg.evaluate(held, encoder, ["ndcg@10"]).means)
negatives = hardneg.HardNegatives(
    pairs, encoder, num_negatives=4, depth=30, refresh="steps:20", filters=["margin:relative=0.05"]
)


class Retriever(lightning.LightningModule):
    """An encoder whose loss masks known positives, and what the filters suspect, by the rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.loss = encoder, negatives.loss(temperature=0.05)

    def training_step(self, batch: dict, number: int) -> torch.Tensor:
        queries, positives, hard = (self.encoder.vectors(batch[name]) for name in ("query", "positive", "negatives"))
        loss = self.loss(queries, positives, shared=hard, **negatives.masks(batch["rows"]))
        self.log("loss", loss, batch_size=len(queries))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


trainer = lightning.Trainer(
    max_epochs=3, accelerator="cpu", callbacks=[RefreshNegatives(negatives)], logger=CSVLogger("lightning"), log_every_n_steps=5,
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
)  # fmt: skip
trainer.fit(Retriever(), negatives.loader(32))
print(f"loss {trainer.logged_metrics['loss']:.3f}")
print("after:", hardneg.evaluate(held, encoder, ["ndcg@10"]).means)
