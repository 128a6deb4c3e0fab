"""Use any model of open_clip as an encoder: texts and pictures in one vector space (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hardneg.data.picture import Picture
from hardneg.encoders.factory import EncoderOptions
from hardneg.encoders.modalities import decoded_by, vectors_by_kind
from hardneg.encoders.saved import add_weights, replaced_folder
from hardneg.errors import MissingDependencyError, UsageError
from hardneg.storage.arrow import brief

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
BATCH = 32  # items at once on a GPU, by default

_FORM = "write open_clip:MODEL,pretrained=TAG_OR_FILE, or open_clip:FOLDER of a saved model"
_AT_ONCE = 32  # on a CPU: items that go through a tower together, whatever batch size is asked for


class OpenClipEncoder(nn.Module):
    """A model of open_clip as an encoder of texts and pictures that can be trained.

    On a CPU, towers always get 32 items at once, the last ones filled up: so the vectors of an item do not depend on the batch size.

    Args:
        name: a model that open_clip knows, such as `ViT-B-32`; `hf-hub:ORG/REPO`; or a folder with `open_clip_config.json`.
        pretrained: a tag that open_clip knows for the model, a `.safetensors` file, or `none` for weights drawn from `seed`. A
            folder brings its own.
        seed: seed of weights that are drawn.
        device: device of the model; None: a GPU if there is one.
        batch_size: items at once on a GPU.

    Raises:
        MissingDependencyError: open_clip is not installed.
        UsageError: the model is unknown or cannot be loaded, or there are no weights.
    """

    pictures = True

    def __init__(
        self,
        name: str,
        pretrained: str | None = None,
        *,
        seed: int = 0,
        device: str | None = None,
        batch_size: int = BATCH,
    ) -> None:
        super().__init__()
        library = _library()
        folder = Path(name) if (Path(name) / CONFIG).is_file() else None
        schema = f"local-dir:{name}" if folder is not None else name
        tag, file = _weights(library, name, folder, pretrained)
        self.device_name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self.model, _, self.preprocess = library.create_model_and_transforms(
                    schema, pretrained=tag, device="cpu", pretrained_text=file is None and pretrained != "none"
                )
                if file is not None:
                    library.load_checkpoint(self.model, str(file))
                self.tokenizer = library.get_tokenizer(schema)
            except Exception as error:  # in many ways, deep in other libraries
                raise UsageError(f"open_clip:{name}: the model cannot be loaded ({brief(error)}): {_FORM}") from error
        self.config = _config(library, name, folder, self.model)
        self.model.to(self.device_name)
        self.drawn, self.batch_size, self.fitted = pretrained == "none", batch_size, True
        with torch.no_grad():
            self._dimension = int(self.model.encode_text(self._tokens([""])).shape[1])

    @property
    def dimension(self) -> int:
        """d, the number of components of each vector."""
        return self._dimension

    @property
    def learning_rate(self) -> float:
        """The highest learning rate that suits the model: 1e-5 to tune it further, 5e-4 from drawn weights, as open_clip's own."""
        return 5e-4 if self.drawn else 1e-5

    def encode_texts(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
        """Unit vectors of n texts by the text tower, float32 `[n, d]`, with gradients."""
        return nn.functional.normalize(
            self.model.encode_text(self._tokens([prompt + text for text in texts])).float(), dim=1
        )

    def encode_pictures(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Unit vectors of n pictures by the image tower, float32 `[n, d]`, with gradients.

        Raises:
            DataError: a picture is missing, was changed, is cut off or too large.
        """
        pixels = torch.stack(decoded_by(self.preprocess, pictures)).to(self._device())
        return nn.functional.normalize(self.model.encode_image(pixels).float(), dim=1)

    def vectors(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
        """Unit vectors of n items, float32 `[n, d]`, with gradients; the prompt is put before texts only."""
        return vectors_by_kind(texts, lambda some: self.encode_texts(some, prompt=prompt), self.encode_pictures)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], *, prompt: str = "") -> NDArray[np.float32]:
        """Unit vectors of n items, float32 `[n, d]`; the prompt is put before texts only."""
        training = self.training
        self.eval()
        if not len(texts):
            return np.empty((0, self.dimension), np.float32)
        try:
            vectors = vectors_by_kind(
                texts,
                lambda some: self._steadily(lambda part: self.encode_texts(part, prompt=prompt), some),
                lambda some: self._steadily(self.encode_pictures, some),
            )
            return vectors.numpy()
        finally:
            self.train(training)

    def _steadily(self, encode: Any, items: Sequence[Any]) -> torch.Tensor:
        """The vectors of items of one kind, on the CPU, by batches; there each batch has one size."""
        on_cpu = self._device().type == "cpu"
        step = _AT_ONCE if on_cpu else self.batch_size
        parts = []
        for start in range(0, len(items), step):
            part = list(items[start : start + step])
            fill = step - len(part) if on_cpu else 0
            parts.append(encode(part + part[-1:] * fill)[: len(part)].cpu())
        return torch.cat(parts)

    def _device(self) -> torch.device:
        weights: torch.Tensor = next(self.model.parameters())
        return weights.device

    def _tokens(self, texts: list[str]) -> torch.Tensor:
        tokens: torch.Tensor = self.tokenizer(texts)
        return tokens.to(self._device())

    def fingerprint(self) -> str:
        """A hash of all that the vectors depend on: weights, architecture, how pictures are prepared, and the tokenizer."""
        digest = hashlib.sha256(b"open_clip-1")
        tokens = self.tokenizer(["A quick test: 1 + 2 = three?", "größe 你好"])
        digest.update(json.dumps(self.config, sort_keys=True, default=str).encode() + np.asarray(tokens).tobytes())
        add_weights(digest, self.model.state_dict())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the model as open_clip reads it (`local-dir:FOLDER`). The spec `open_clip:FOLDER` loads it.

        Raises:
            RunError: the folder cannot be written, for example because the disk is full.
        """
        from safetensors.torch import save_file

        with replaced_folder(folder) as new:
            state = {name: x.detach().cpu().clone().contiguous() for name, x in self.model.state_dict().items()}
            save_file(state, new / WEIGHTS)
            (new / CONFIG).write_text(json.dumps(self.config, indent=1, default=list))
            inner: Any = getattr(self.tokenizer, "tokenizer", None)
            if hasattr(inner, "save_pretrained"):
                inner.save_pretrained(str(new))


def _library() -> Any:
    try:
        import open_clip
    except ImportError:
        raise MissingDependencyError("open_clip_torch", "open-clip", "the encoder open_clip:") from None
    except RuntimeError as error:  # of torchvision, whose operators were compiled for another torch
        raise UsageError(
            f"open_clip cannot be imported ({brief(error)}): torch and torchvision must be builds of one kind. For the CPU: pip "
            f"install --force-reinstall --no-deps torchvision --index-url https://download.pytorch.org/whl/cpu"
        ) from error
    logging.getLogger().addFilter(_quiet)
    return open_clip


def _quiet(record: logging.LogRecord) -> bool:
    """Leave out that weights were drawn: it was asked for."""
    return "initialized randomly" not in record.getMessage() and "no CLIP weights found" not in record.getMessage()


def _weights(library: Any, name: str, folder: Path | None, pretrained: str | None) -> tuple[str | None, Path | None]:
    """(the tag, the file of the weights): one of them or none is given; UsageError if there are no weights, or pickled ones."""
    if pretrained not in (None, "", "none") and Path(str(pretrained)).is_file():
        _no_pickle(Path(str(pretrained)))
        return None, Path(str(pretrained))
    if folder is not None:
        files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin", ".pth", ".pt")]
        if pretrained not in (None, "", "none"):
            raise UsageError(f"open_clip:{name}: {pretrained} is no file, and a folder has no tags: {_FORM}")
        if pretrained == "none" and files:
            raise UsageError(f"open_clip:{name}: the folder has weights ({files[0].name}): leave out pretrained=none")
        if pretrained != "none" and not files:
            raise UsageError(f"open_clip:{name}: the folder has no weights ({WEIGHTS}); pretrained=none draws some")
        if files and not any(path.suffix == ".safetensors" for path in files):
            _no_pickle(files[0])
        return None, None
    if name.startswith("hf-hub:") or pretrained == "none":
        return None, None
    tags = library.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        known = ", ".join(tags) or "none; see open_clip.list_pretrained()"
        raise UsageError(
            f"open_clip:{name} needs pretrained=, one of its tags ({known}), a .safetensors file, or none for drawn weights"
            + (f"; {pretrained!r} is neither" if pretrained else "")
        )
    return pretrained, None


def _no_pickle(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise UsageError(
            f"{path}: hardneg loads weights from .safetensors only, because other files may run code: load them in Python with "
            f"weights_only=True, and write them with safetensors.torch.save_file"
        )


def _config(library: Any, name: str, folder: Path | None, model: Any) -> dict[str, Any]:
    """What `open_clip_config.json` holds: the architecture, and how pictures are prepared."""
    if folder is not None:
        architecture = json.loads((folder / CONFIG).read_text("utf-8"))["model_cfg"]
    elif name.startswith("hf-hub:"):
        from open_clip.factory import _get_hf_config

        architecture = _get_hf_config(name.removeprefix("hf-hub:"))["model_cfg"]
    else:
        architecture = library.get_model_config(name)
    return {"model_cfg": architecture, "preprocess_cfg": library.get_model_preprocess_cfg(model)}


def from_spec(rest: str, options: EncoderOptions) -> OpenClipEncoder:
    """Make the encoder of the spec `open_clip:MODEL,pretrained=TAG_OR_FILE` or `open_clip:FOLDER`."""
    name, _, pretrained = rest.partition(",pretrained=")
    if not name or (not pretrained and "," in name):
        raise UsageError(f"the encoder 'open_clip:{rest}' is incomplete: {_FORM}")
    return OpenClipEncoder(
        name, pretrained or None, seed=options.seed, device=options.device, batch_size=options.batch_size or BATCH
    )
