"""A small model like CLIP (arXiv 2103.00020): it encodes pictures of glyphs and their names into one vector space."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hardneg.demo_data.glyphs import SIZE, bitmap, parse_glyph
from hardneg.encoders.factory import EncoderOptions
from hardneg.encoders.hashed import HashedEncoder
from hardneg.encoders.saved import replaced_folder, saved_config, write_config
from hardneg.errors import RunError, UsageError

_CHUNK = 1024


class _Config(TypedDict):
    dimension: int
    width: int
    seed: int


class GlyphEncoder(nn.Module):
    """Encodes pictures with a convolutional network, and all other texts with a `HashedEncoder`.

    A picture is given as the text that names it (see `hardneg.demo_data.glyphs`).

    Args:
        dimension: d.
        width: number of channels in the first convolution.
        seed: seed of the initial weights.
    """

    def __init__(self, dimension: int = 128, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.dimension, self.width, self.seed = dimension, width, seed
        self.names = HashedEncoder(dimension, buckets=1 << 13, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            side = SIZE // 8
            self.pictures = nn.Sequential(
                nn.Conv2d(1, width, 5, stride=2, padding=2),
                nn.GroupNorm(4, width),
                nn.ReLU(),
                nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
                nn.GroupNorm(4, 2 * width),
                nn.ReLU(),
                nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
                nn.GroupNorm(4, 4 * width),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(4 * width * side * side, dimension),
            )

    @property
    def fitted(self) -> bool:
        """Whether the encoder of the names is fitted."""
        return self.names.fitted

    def fit(self, texts: Sequence[str]) -> None:
        """Fit the encoder of the names to the names in `texts`, or to all texts if there are none."""
        self.names.fit([text for text in texts if parse_glyph(text) is None] or list(texts))

    def vectors(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
        """Unit vectors of n texts, float32 `[n, d]`, with gradients. The prompt is put before names only."""
        glyphs = [parse_glyph(text) for text in texts]
        drawn = [i for i, glyph in enumerate(glyphs) if glyph is not None]
        named = [i for i, glyph in enumerate(glyphs) if glyph is None]
        device = self.names.table.weight.device
        parts = []
        if drawn:
            images = np.stack([bitmap(*glyph) for glyph in glyphs if glyph is not None])
            pixels = torch.from_numpy(images).to(device)[:, None].float() / 127.5 - 1
            parts.append(nn.functional.normalize(self.pictures(pixels), dim=1))
        if named:
            parts.append(self.names.vectors([texts[i] for i in named], prompt=prompt))
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor(drawn + named, device=device)
        return torch.cat([part.float() for part in parts])[torch.argsort(order)]

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, prompt: str = "") -> NDArray[np.float32]:
        """Unit vectors of n texts, float32 `[n, d]`."""
        training = self.training
        self.eval()
        parts = [
            self.vectors(texts[i : i + _CHUNK], prompt=prompt).float().cpu().numpy()
            for i in range(0, len(texts), _CHUNK)
        ]
        self.train(training)
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), np.float32)

    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        digest = hashlib.sha256(b"glyphs-1")
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` to `folder`.

        Raises:
            RunError: the folder cannot be written, for example because the disk is full.
        """
        with replaced_folder(folder) as new:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()},
                new / "model.safetensors",
            )
            values = {"dimension": self.dimension, "width": self.width, "seed": self.seed}
            write_config("glyphs", new, values, "model.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> GlyphEncoder:
        """Load an encoder that `save` wrote.

        Raises:
            UsageError: the folder holds no saved encoder. RunError: the encoder is damaged.
        """
        folder = Path(folder)
        config = saved_config("glyphs", folder, _Config, "model.safetensors")
        try:
            weights = load_file(folder / "model.safetensors")
            # Before the encoder is made: a damaged number must not ask for all the memory there is.
            width, dimension = len(weights["pictures.0.weight"]), len(weights["pictures.10.weight"])
            if (width, dimension) != (config["width"], config["dimension"]):
                raise ValueError(f"the weights are those of width {width} and dimension {dimension}")
            if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
                raise ValueError("the weights hold NaN or infinity")
            encoder = cls(config["dimension"], config["width"], config["seed"])
            encoder.load_state_dict(weights)
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError, UsageError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise RunError(f"glyphs:{folder} is not a saved glyph encoder ({reason}): save the encoder again") from None
        encoder.names.fitted = True
        return encoder


def from_spec(folder: str, options: EncoderOptions) -> GlyphEncoder:
    """Make the encoder of the spec `glyphs`, or `glyphs:FOLDER` with saved weights."""
    return GlyphEncoder.load(folder) if folder else GlyphEncoder(seed=options.seed)
