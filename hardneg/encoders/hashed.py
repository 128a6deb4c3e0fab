"""The default encoder: the mean of the vectors of a text's hashed features, scaled to unit length.

It needs no download and no GPU, and trains like any `nn.Module`. It retrieves sensibly even without training, because
`fit` initializes the table by latent semantic analysis (Deerwester et al. 1990): the right singular vectors of the
TF-IDF matrix of a sample of the texts, times the inverse document frequencies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hardneg.encoders.base import checked_vectors
from hardneg.encoders.factory import EncoderOptions
from hardneg.encoders.features import hashed_features
from hardneg.encoders.kept_tokens import KeptTokens
from hardneg.encoders.saved import replaced_folder, saved_config, write_config
from hardneg.errors import RunError, UsageError
from hardneg.storage.files import write_array

_MAX_SEED = 2**32 - 1  # the largest that scikit-learn takes


class _Config(TypedDict):
    dimension: int
    buckets: int
    sample: int
    seed: int


class HashedEncoder(nn.Module):
    """Encodes texts to unit vectors from their hashed words, word pairs and character trigrams.

    Args:
        dimension: d.
        buckets: number of rows in the table of vectors. Features with the same hash share a row.
        sample: maximum number of texts to fit on.
        seed: seed of the initial weights.
        dropout: probability of leaving out each feature of a text, drawn anew for every forward pass in training mode.
            Self-supervised training needs it: two passes see two views of a text (SimCSE, arXiv 2104.08821, which
            applies dropout inside the network).

    Raises:
        UsageError: a size below 1, a seed that is not 0 to 4294967295, or a `dropout` that is not in [0, 1).

    >>> HashedEncoder(dimension=4, seed=1).encode(["a text", "another"]).shape
    (2, 4)
    """

    def __init__(
        self, dimension: int = 256, buckets: int = 1 << 15, sample: int = 8192, seed: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        for name, value, low, high in (
            ("dimension", dimension, 1, None), ("buckets", buckets, 1, None), ("sample", sample, 1, None),
            ("seed", seed, 0, _MAX_SEED),
        ):  # fmt: skip
            _check_whole(name, value, low, high)
        self.dimension, self.buckets, self.sample, self.seed = dimension, buckets, sample, seed
        self.dropout = dropout
        generator = np.random.default_rng(seed)
        initial = generator.standard_normal((buckets + 1, dimension), np.float32)
        initial /= np.sqrt(np.float32(dimension))
        self.table = nn.EmbeddingBag.from_pretrained(torch.from_numpy(initial), freeze=False, mode="mean")
        self.fitted = False
        self.kept_tokens: KeptTokens | None = None  # set while the same texts are encoded again and again

    @property
    def dropout(self) -> float:
        """Probability of leaving out each feature while training."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value < 1:
            raise UsageError(f"dropout={value!r} must be a number, 0 or more and below 1")
        self._dropout = float(value)

    def fit(self, texts: Sequence[str]) -> None:
        """Initialize the table from `texts`, a sample of the dataset's queries and documents."""
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
        rows = np.flatnonzero(counts)  # the other columns are zero: of few texts, nearly all are
        columns = (np.cumsum(counts > 0) - 1)[features]
        matrix = csr_matrix((values, columns, offsets), shape=(n, len(rows)))
        components = min(self.dimension, n - 1, len(rows))
        weight = self.table.weight.detach().cpu().numpy()
        scale = np.float32(0.3) * idf
        if components >= 1:
            # One thread, so that the order of summation, and with it the weights, do not depend on the number of cores.
            with threadpool_limits(1):
                svd = TruncatedSVD(components, n_iter=2, random_state=self.seed).fit(matrix)
            learned = np.zeros((len(rows), self.dimension), np.float32)
            learned[:, :components] = svd.components_.T
            # Features outside the sample keep random directions, at 0.3 of the root mean square length of the others.
            scale *= np.sqrt(np.mean(np.sum(learned**2, axis=1)))
            scale /= np.maximum(np.sqrt(np.einsum("ij,ij->i", weight, weight)), np.float32(1e-12))
        table = weight * scale[:, None]
        if components >= 1:
            table[rows] = learned * idf[rows, None]
        with torch.no_grad():
            self.table.weight.copy_(torch.from_numpy(table))
        self.fitted = True

    def forward(self, features: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Unit vectors of n texts, float `[n, d]`, from int64 features `[m]` and int64 offsets `[n]` where each text starts."""
        if self.training and self.dropout:
            features, offsets = self._drop_features(features, offsets)
        out: torch.Tensor = nn.functional.normalize(self.table(features, offsets), dim=1)
        return out

    def _drop_features(self, features: torch.Tensor, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave out random features. A text that would lose all of them keeps its first one."""
        kept = torch.rand(len(features), device=features.device) >= self.dropout
        ends = torch.cat([offsets[1:], offsets.new_tensor([len(features)])])
        before = torch.cat([offsets.new_zeros(1), kept.cumsum(0)])
        kept[offsets[before[ends] == before[offsets]]] = True
        starts = torch.cat([offsets.new_zeros(1), kept.cumsum(0)])[offsets]
        return features[kept], starts

    def vectors(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
        """Unit vectors of n texts, float32 `[n, d]`, with gradients, on the device of the weights."""
        kept = self.kept_tokens
        made = self._features(texts, prompt) if kept is None else self._kept_features(kept, texts, prompt)
        device = self.table.weight.device
        out: torch.Tensor = self(made["input_ids"].to(device), made["offsets"].to(device))
        return out

    def _kept_features(self, kept: KeptTokens, texts: Sequence[str], prompt: str) -> dict[str, torch.Tensor]:
        return kept.features(texts, f"{self.buckets}\n{prompt}", lambda some: self._features(some, prompt))

    def _features(self, texts: Sequence[str], prompt: str) -> dict[str, torch.Tensor]:
        """The features of all texts, int64 `[m]`, and where each text starts, int64 `[n]`."""
        features, offsets = hashed_features([prompt + text for text in texts] if prompt else texts, self.buckets)
        return {"input_ids": torch.from_numpy(features), "offsets": torch.from_numpy(offsets[:-1])}

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, prompt: str = "") -> NDArray[np.float32]:
        """Unit vectors of n texts, float32 `[n, d]`, without dropout. Empty texts share one vector, not zero."""
        training = self.training
        self.eval()
        out = np.empty((len(texts), self.dimension), np.float32)
        try:
            for start in range(0, len(texts), 1024):
                part = texts[start : start + 1024]
                found = checked_vectors(self.vectors(part, prompt=prompt), len(part), self.dimension, self)
                out[start : start + len(part)] = found
        finally:
            self.train(training)
        return out

    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        digest = hashlib.sha256(b"hashed-1")
        digest.update(self.table.weight.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `table.npy` to `folder`. A folder that is there already is replaced when they are complete.

        Raises:
            RunError: the folder cannot be written, for example because the disk is full.
        """
        with replaced_folder(folder) as new:
            write_array(new / "table.npy", self.table.weight.detach().cpu().numpy())
            values = {name: getattr(self, name) for name in ("dimension", "buckets", "sample", "seed", "dropout")}
            write_config("hashed", new, values, "table.npy")

    @classmethod
    def load(cls, folder: str | Path) -> HashedEncoder:
        """Load an encoder that `save` wrote.

        Raises:
            UsageError: the folder holds no saved encoder. RunError: the encoder is damaged.
        """
        folder = Path(folder)
        config = saved_config("hashed", folder, _Config, "table.npy")
        table = _saved_table(folder / "table.npy")
        # Before the encoder is made: a damaged number must not ask for all the memory there is.
        if table.shape != (config["buckets"] + 1, config["dimension"]):
            raise RunError(
                f"{folder / 'table.npy'} has shape {list(table.shape)}, config.json says "
                f"[{config['buckets'] + 1}, {config['dimension']}]: save the encoder again"
            )
        try:
            encoder = cls(
                config["dimension"], config["buckets"], config["sample"], config["seed"], config.get("dropout", 0.0)
            )
        except UsageError as error:
            raise RunError(f"{folder / 'config.json'}: {error}: save the encoder again") from None
        with torch.no_grad():
            encoder.table.weight.copy_(torch.from_numpy(table))
        encoder.fitted = True
        return encoder


def _check_whole(name: str, value: Any, low: int, high: int | None) -> None:
    """UsageError if an argument is not an integer from `low` to `high`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        limits = f"{low} or more" if high is None else f"{low} to {high}"
        raise UsageError(f"{name}={value!r} must be an integer, {limits}")


def _saved_table(path: Path) -> NDArray[np.float32]:
    """The table of a saved encoder; RunError if it is no array of finite numbers `[buckets + 1, d]`."""
    try:
        table = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python, and a made-up one can raise nearly anything
        raise RunError(f"{path} cannot be read ({error!r}): save the encoder again") from None
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind != "f" or not np.isfinite(table).all():
        raise RunError(f"{path} is no table of finite numbers [buckets + 1, d]: save the encoder again")
    return table.astype(np.float32, copy=False)


def from_spec(folder: str, options: EncoderOptions) -> HashedEncoder:
    """Make the encoder of the spec `hashed`, or `hashed:FOLDER` with saved weights."""
    return HashedEncoder.load(folder) if folder else HashedEncoder(seed=options.seed)
