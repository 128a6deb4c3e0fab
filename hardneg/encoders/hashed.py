"""The embedded default: hashed words and character trigrams -> EmbeddingBag, mean, unit length.

It needs no download and no GPU, trains like any `nn.Module`, and retrieves sensibly before any
training: `fit` sets the table to latent semantic analysis (Deerwester et al. 1990), the right singular
vectors of the TF-IDF matrix of a sample of the texts, times the inverse document frequencies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hardneg.encoders.factory import EncoderOptions
from hardneg.encoders.features import hashed_features
from hardneg.encoders.saved import saved_config
from hardneg.errors import UsageError
from hardneg.storage.files import write_array, write_json


class HashedEncoder(nn.Module):
    """Texts to unit vectors.

    Args:
        dimension: d.
        buckets: rows of the table; features that hash alike share one.
        sample: texts that `fit` looks at, at most.
        seed: of the initialisation.
        dropout: share of a text's features that is left out at random in training mode, each time anew: another view of
            the text, which is what self-supervised training needs (SimCSE, arXiv 2104.08821, on the inputs).
    """

    def __init__(
        self, dimension: int = 256, buckets: int = 1 << 15, sample: int = 8192, seed: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout={dropout} must be 0 or more and below 1")
        self.dimension, self.buckets, self.sample, self.seed = dimension, buckets, sample, seed
        self.dropout = dropout
        self.table = nn.EmbeddingBag(buckets + 1, dimension, mode="mean")
        generator = np.random.default_rng(seed)
        start = generator.standard_normal((buckets + 1, dimension), np.float32) / np.sqrt(np.float32(dimension))
        self.table.weight = nn.Parameter(torch.from_numpy(start))
        self.fitted = False

    def fit(self, texts: Sequence[str]) -> None:
        """Set the table from `texts`: an even sample of the dataset's queries and documents."""
        from scipy.sparse import csr_matrix
        from sklearn.decomposition import TruncatedSVD
        from threadpoolctl import threadpool_limits

        features, offsets = hashed_features(texts, self.buckets)
        n = len(texts)
        counts = np.bincount(features, minlength=self.buckets + 1)
        idf = (np.log((1 + n) / (1 + counts)) + 1).astype(np.float32)
        values = idf[features]
        norms = np.sqrt(np.add.reduceat(values.astype(np.float64) ** 2, offsets[:-1]))
        values /= np.repeat(norms, np.diff(offsets)).astype(np.float32)
        matrix = csr_matrix((values, features, offsets), shape=(n, self.buckets + 1))
        components = min(self.dimension, n - 1)
        table = self.table.weight.detach().numpy() * np.float32(0.3)
        if components >= 1:
            # One thread: sums in another order would give other weights on another number of cores.
            with threadpool_limits(1):
                svd = TruncatedSVD(components, n_iter=2, random_state=self.seed).fit(matrix)
            seen = counts > 0
            table[seen, :components] = svd.components_.T[seen].astype(np.float32)
            table[seen, components:] = 0
            # Features that the sample never had keep random directions, as long as the others are on average.
            size = np.sqrt(np.mean(np.sum(table[seen] ** 2, axis=1)))
            rest = table[~seen]
            table[~seen] = (
                rest * np.float32(0.3 * size) / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-12)
            )
        with torch.no_grad():
            self.table.weight.copy_(torch.from_numpy(table * idf[:, None]))
        self.fitted = True

    def forward(self, features: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """float `[n, d]` of unit length, from int64 features `[m]` and the starts `[n]` of each text's."""
        if self.training and self.dropout:
            features, offsets = self._thinned(features, offsets)
        out: torch.Tensor = nn.functional.normalize(self.table(features, offsets), dim=1)
        return out

    def _thinned(self, features: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Without some of the features; the first of a text that would lose all stays."""
        kept = torch.rand(len(features), device=features.device) >= self.dropout
        ends = torch.cat([offsets[1:], offsets.new_tensor([len(features)])])
        before = torch.cat([offsets.new_zeros(1), kept.cumsum(0)])
        kept[offsets[before[ends] == before[offsets]]] = True
        starts = torch.cat([offsets.new_zeros(1), kept.cumsum(0)])[offsets]
        return features[kept], starts

    def vectors(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
        """float32 `[n, d]` of unit length, on the device of the weights, with gradients."""
        if prompt:
            texts = [prompt + text for text in texts]
        features, offsets = hashed_features(texts, self.buckets)
        device = self.table.weight.device
        out: torch.Tensor = self(torch.from_numpy(features).to(device), torch.from_numpy(offsets[:-1]).to(device))
        return out

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, prompt: str = "") -> NDArray[np.float32]:
        """float32 `[n, d]`, unit length. An empty text has a vector of its own, never zeros. Without dropout."""
        training = self.training
        self.eval()
        out = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), 1024):
            part = texts[start : start + 1024]
            out[start : start + len(part)] = self.vectors(part, prompt=prompt).cpu().numpy()
        self.train(training)
        return out

    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"hashed-1")
        digest.update(self.table.weight.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `table.npy` to `folder`."""
        folder = Path(folder)
        write_array(folder / "table.npy", self.table.weight.detach().cpu().numpy())
        config = {
            "kind": "hashed",
            "dimension": self.dimension,
            "buckets": self.buckets,
            "sample": self.sample,
            "seed": self.seed,
            "dropout": self.dropout,
        }
        write_json(folder / "config.json", config)

    @classmethod
    def load(cls, folder: str | Path) -> HashedEncoder:
        """An encoder that `save` wrote; UsageError when there is none."""
        folder = Path(folder)
        config = saved_config("hashed", folder)
        table = np.load(folder / "table.npy", allow_pickle=False)
        try:
            encoder = cls(
                config["dimension"], config["buckets"], config["sample"], config["seed"], config.get("dropout", 0.0)
            )
        except (KeyError, TypeError) as error:
            raise UsageError(f"hashed:{folder}: config.json is not one of a hashed encoder ({error})") from None
        if table.shape != tuple(encoder.table.weight.shape):
            raise UsageError(
                f"hashed:{folder}: table.npy has shape {table.shape}, config.json says {tuple(encoder.table.weight.shape)}"
            )
        with torch.no_grad():
            encoder.table.weight.copy_(torch.from_numpy(table))
        encoder.fitted = True
        return encoder


def from_spec(folder: str, options: EncoderOptions) -> HashedEncoder:
    """`hashed`, or `hashed:FOLDER` with saved weights."""
    return HashedEncoder.load(folder) if folder else HashedEncoder(seed=options.seed)
