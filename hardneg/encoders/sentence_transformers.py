"""Use any sentence-transformers model as an encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hardneg.encoders.batches import CPU_TOKENS, PIECE, UNLIMITED, Arrangement, Batch, arrange, groups
from hardneg.encoders.budget import fastest_budget
from hardneg.encoders.factory import EncoderOptions, incomplete
from hardneg.encoders.forward import Counts, Forward, tokenized
from hardneg.encoders.kept_tokens import KeptTokens
from hardneg.encoders.loading import files_digest, load_model, split_backend
from hardneg.encoders.lora import LEARNING_RATE, Lora, add_lora, has_lora, merged, save_adapters
from hardneg.encoders.modalities import decoded_by, vectors_by_kind
from hardneg.encoders.model_digest import model_digest
from hardneg.encoders.number_format import Chosen, checked_format, choose, is_slow
from hardneg.encoders.saved import replaced_folder
from hardneg.errors import UsageError

# The metrics of hardneg, by the names that models of sentence-transformers give them.
_METRICS = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}

_PICTURES = 32  # items in a batch of a model of texts and pictures


class SentenceTransformersEncoder(nn.Module):
    """A sentence-transformers model as an encoder that can be trained.

    Args:
        name: name or path of the model, as `SentenceTransformer` takes it, or a loaded model.
        device: device of the model; None lets sentence-transformers choose. Ignored for a loaded model.
        batch_size: texts per batch in `encode`, at most (on the CPU a budget of tokens holds as well); None: as many as the
            budget allows, which is fastest.
        precision: number format of the products in `encode`: `float32`, `bfloat16`, `float16`, or `auto`, which takes bfloat16
            where a short measurement finds it faster and the model bears it. The vectors are float32 in any case.
        backend: `torch`, `onnx` or `openvino`: what runs the model. Only `torch` can be trained.

    Raises:
        MissingDependencyError: sentence-transformers, or what the back end needs, is not installed.
        UsageError: the model cannot be loaded, or the precision is unknown.
    """

    def __init__(
        self,
        name: Any,
        device: str | None = None,
        batch_size: int | None = None,
        precision: str = "float32",
        backend: str = "torch",
    ) -> None:
        super().__init__()
        self.batch_size, self.backend = batch_size, backend
        self.own = isinstance(name, str)  # whether the model may be changed: nobody else holds it
        self.name = name if isinstance(name, str) else None
        self.model = load_model(name, device, backend) if isinstance(name, str) else name
        self.tokens: int | None = None  # the budget of a batch; None: found when it is needed
        self.counts = Counts()
        self.kept_tokens: KeptTokens | None = None  # set while the same texts are encoded again and again
        self.precision = precision
        self.fitted = True

    @property
    def precision(self) -> str:
        """The number format that was asked for; see `number_format` for the one that is used."""
        return self._precision

    @precision.setter
    def precision(self, name: str) -> None:
        self._precision = checked_format(name)
        self._chosen: Chosen | None = None

    @property
    def number_format(self) -> Chosen:
        """The number format that `encode` multiplies in, and why; measured at first use if `precision` is `auto`."""
        if self._chosen is None:
            self._chosen = self._choose()
        return self._chosen

    @property
    def stored(self) -> str:
        """The number format of the weights."""
        kind = next((x.dtype for x in self.model.parameters() if x.is_floating_point()), torch.float32)
        return str(kind).removeprefix("torch.")

    def _choose(self) -> Chosen:
        stored, asked = self.stored, self._precision
        if self.backend != "torch":
            if asked not in ("auto", "float32"):
                raise UsageError(
                    f"the back end {self.backend} has a precision of its own: leave --encoder-precision out"
                )
            return Chosen("float32", f"the back end {self.backend} computes as its model was saved")
        if stored != "float32":
            slow = self.own and asked == "auto" and is_slow(str(self.model.device), stored)
            if asked in ("auto", stored) and not slow:
                return Chosen(stored, f"the model is stored in {stored}")
            if slow:
                self.model.float()
                return Chosen(
                    "float32", f"the model is stored in {stored}, which {self.model.device} multiplies more slowly"
                )
            if not self.own:
                raise UsageError(f"the model is in {stored}: call its method .float() for --encoder-precision {asked}")
            self.model.float()
        if asked != "auto":
            return Chosen(asked, "asked for")
        return choose(str(self.model.device), self._in_both_formats)

    def go_on(self, name: str, reason: str) -> None:
        """Multiply in the number format in which an interrupted pass began, for the reason that it had."""
        self.precision = name
        self._chosen = Chosen(self._choose().name, reason)

    def _in_both_formats(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Vectors of some texts in float32 and in bfloat16."""
        training = self.model.training
        self.model.eval()
        try:
            exact, coarse = (self._forward(name).run(_TRIED, "", 256) for name in ("float32", "bfloat16"))
        finally:
            self.model.train(training)
        return exact, coarse

    def _forward(self, name: str) -> Forward:
        parallel = self.backend == "torch"
        return Forward(self.model, self.dimension, name, self.batch_size, parallel, self.counts, self.kept_tokens)

    def in_effect(self) -> dict[str, Any]:
        """How the model is run: for `run.json`, and for a resumed pass, which has to run it in the same way."""
        chosen = self.number_format
        return {
            "precision": chosen.name,
            "precision_reason": chosen.reason,
            "device": str(self.model.device),
            "batch_size": self.batch_size,
            "batch_tokens": None if self.tokens == UNLIMITED else self.tokens,
        }

    def said(self) -> list[str]:
        """What went wrong since the last call and was done again, one sentence each."""
        counts, self.counts = self.counts, Counts()
        return counts.sentences(str(self.model.device), self.number_format.name)

    @property
    def dimension(self) -> int:
        """d, the number of components of each vector."""
        return int(self.model.get_embedding_dimension())

    @property
    def pictures(self) -> bool:
        """Whether the model encodes pictures as well as texts, as CLIP does."""
        supports = getattr(self.model, "supports", None)
        return bool(callable(supports) and supports("image"))

    @property
    def learning_rate(self) -> float:
        """The highest learning rate that suits the model: 2e-5 for a transformer, 0.2 for a table of static vectors.

        As in the training examples of sentence-transformers; and 2e-4 with LoRA.
        """
        if has_lora(self.model):
            return LEARNING_RATE
        first = next(iter(self.model.children()), None)
        return 0.2 if type(first).__name__ == "StaticEmbedding" else 2e-5

    @property
    def prompts(self) -> dict[str, str]:
        """What the model itself puts before queries and documents, by side.

        Those of its prompts that are named so: `query`; `document`, `passage` or `corpus`, the first that is not empty; else its
        default prompt, if it has none of these names.
        """
        named = getattr(self.model, "prompts", None) or {}
        usual = named.get(getattr(self.model, "default_prompt_name", None) or "") or ""
        found = {}
        for side, names in (("query", ("query",)), ("document", ("document", "passage", "corpus"))):
            found[side] = next((named[name] for name in names if named.get(name)), usual)
        return found

    def vectors(self, texts: Sequence[str], *, prompt: str = "") -> torch.Tensor:
        """The vectors of n texts, `[n, d]`, as the model returns them, on its device, with gradients."""
        if not self.pictures:
            return self._vectors(list(texts), prompt)
        return vectors_by_kind(
            texts,
            lambda some: self._vectors(_as_texts(some), prompt),
            lambda some: self._vectors(decoded_by(_same, some), ""),
        )

    def _vectors(self, items: list[Any], prompt: str) -> torch.Tensor:
        device = next(self.model.parameters()).device
        if self.pictures:
            features = self.model.preprocess(items, prompt=prompt)
        else:
            features = tokenized(self.model, items, prompt, self.kept_tokens)
        on_device = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in features.items()}
        if device.type == "cpu" and not self.pictures and not self._looks_at_the_batch:
            out = self._in_groups(groups(on_device, len(items)))
        else:
            out = self.model(on_device)["sentence_embedding"]
        width = getattr(self.model, "truncate_dim", None)
        return out if width is None else out[..., :width]

    def _in_groups(self, parts: list[Batch]) -> torch.Tensor:
        """The vectors of a batch from those of its groups: on a processor, the time is that of the tokens, padding included."""
        found = [self.model(part.features)["sentence_embedding"] for part in parts]
        return torch.cat(found)[torch.from_numpy(np.argsort(np.concatenate([part.rows for part in parts])))]

    @property
    def _looks_at_the_batch(self) -> bool:
        """Whether the vector of a text depends on the others of its batch: such a model is given whole batches."""
        return any(isinstance(each, torch.nn.modules.batchnorm._BatchNorm) for each in self.model.modules())

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> NDArray[np.float32]:
        """The vectors of n texts, float32 `[n, d]`, as the model returns them: normalized only if it does that.

        Equal texts are encoded once, and texts of similar length together. Raises RunError if a text does not fit into memory.
        """
        if self.pictures:
            return self._encode_kinds(texts, prompt)
        arranged = self.arrange(list(texts), prompt)
        return self.encode_arranged(arranged.texts, prompt, arranged.tokens)[arranged.places]

    def _encode_kinds(self, items: Sequence[str], prompt: str) -> NDArray[np.float32]:
        """The vectors of texts and pictures, float32 `[n, d]`."""
        if not len(items):
            return np.empty((0, self.dimension), np.float32)
        size = self.batch_size or _PICTURES
        found = vectors_by_kind(
            items,
            lambda some: torch.from_numpy(self._encoded(_as_texts(some), prompt)),
            lambda some: torch.cat([
                torch.from_numpy(self._encoded(decoded_by(_same, some[start : start + size]), ""))
                for start in range(0, len(some), size)
            ]),
        )  # fmt: skip
        return found.numpy()

    def _encoded(self, items: list[Any], prompt: str) -> NDArray[np.float32]:
        vectors = self.model.encode(
            items,
            prompt=prompt,  # also an empty one: None would be the model's default
            batch_size=self.batch_size or _PICTURES,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, np.float32)

    def arrange(self, texts: list[str], prompt: str = "") -> Arrangement:
        """The distinct texts by length, and the budget of a batch."""
        if self.tokens is None and texts:
            if (
                self.model.device.type == "cpu"
            ):  # also with a batch size: larger batches of long texts are many times slower
                self.tokens = CPU_TOKENS
            elif self.batch_size is not None:
                self.tokens = UNLIMITED
            else:
                self.tokens = self._fastest_budget(texts, prompt)
        return arrange(texts, self.tokens or CPU_TOKENS)

    def encode_arranged(
        self, texts: Sequence[str], prompt: str, tokens: int, advance: Callable[[int], None] = lambda count: None
    ) -> NDArray[np.float32]:
        """The vectors of texts of similar length side by side, float32 `[n, d]`; see `Forward.run`."""
        name = self.number_format.name
        training = self.model.training
        self.model.eval()
        try:
            forward = self._forward("float32" if name == self.stored else name)
            return forward.run(texts, prompt, tokens, advance)
        finally:
            self.model.train(training)

    def _fastest_budget(self, texts: list[str], prompt: str) -> int:
        """The budget of a batch that encodes most tokens per second on this device, found on some of the texts."""
        longest = sorted(texts[:: max(1, len(texts) // PIECE)], key=len)[-PIECE:]
        return fastest_budget(self._forward(self.number_format.name), longest, prompt)

    def fingerprint(self) -> str:
        """A hash of all that the vectors depend on: weights, modules and their settings, tokenizer and default prompt.

        So a model with other pooling or another tokenizer is another one, whatever its weights. The name of the model is
        not part of it.
        """
        chosen = self.number_format.name  # first: it may change the format of the weights
        digest = model_digest(self.model, "sentence-transformers-2")
        added = []
        if self.backend != "torch":
            added.append(f"{self.backend} {files_digest(str(self.name))}")
        if chosen != self.stored:
            added.append(f"products in {chosen}")
        return hashlib.sha256(" ".join([digest, *added]).encode()).hexdigest() if added else digest

    @property
    def metric(self) -> str | None:
        """What the model says that its vectors are to be compared by, `cosine`, `ip` or `l2`.

        None: it does not say, says another one, or normalizes its vectors, which all metrics rank alike.
        """
        if any(type(module).__name__ == "Normalize" for module in self.model.modules()):
            return None
        return _METRICS.get(str(getattr(self.model, "_similarity_fn_name", None)))

    def compare_by(self, metric: str) -> None:
        """Let the model say, when it is saved, that its vectors are to be compared by `cosine` or `ip`."""
        if metric != (self.metric or "cosine"):
            self.model.similarity_fn_name = next(name for name, known in _METRICS.items() if known == metric)

    def save(self, folder: str | Path) -> None:
        """Write the model in the format of sentence-transformers. The spec `st:FOLDER` loads it.

        A folder that is there already is replaced when the model is written.

        Raises:
            RunError: the folder cannot be written, for example because the disk is full.
        """
        with replaced_folder(folder) as new:
            if not has_lora(self.model):
                self.model.save_pretrained(str(new))
                return
            merged(self.model).save_pretrained(str(new))
            save_adapters(self._transformers(), new / "adapter", self.name)

    # What a training may ask for.

    def _transformers(self) -> list[Any]:
        """The transformers of Hugging Face in the model, in their order."""
        found = [getattr(module, "auto_model", None) for module in self.model.modules()]
        return list({id(each): each for each in found if each is not None}.values())

    def add_lora(self, lora: Lora) -> None:
        """Train small matrices beside the weights from now on. What is saved is a plain model, and beside it the matrices alone
        (in `adapter`); errors: see `hardneg.encoders.lora.add_lora`."""
        add_lora(self._transformers(), lora)

    def enable_gradient_checkpointing(self) -> None:
        """Compute activations again in the backward pass in place of keeping them: less memory, a third more time.

        Raises:
            UsageError: the model holds no transformer that can.
        """
        able = [each for each in self._transformers() if getattr(each, "supports_gradient_checkpointing", False)]
        if not able:
            raise UsageError("gradient checkpointing needs a transformer that can, which this model has not")
        for each in able:
            enable = getattr(
                each, "activation_checkpointing_enable", None
            )  # the name from version 5.2 of transformers on
            (enable or each.gradient_checkpointing_enable)({"use_reentrant": False})


def _same(image: Any) -> Any:
    return image


def _as_texts(items: list[str]) -> list[dict[str, str]]:
    """Texts, marked as such: a model of several kinds would take one that looks like a path or an address for a file to open."""
    return [{"text": item} for item in items]


def from_spec(name: Any, options: EncoderOptions) -> SentenceTransformersEncoder:
    """Make the encoder of the spec `st:NAME_OR_PATH[,backend=NAME]`, or of a loaded model."""
    if name == "":
        raise incomplete("st:")
    backend = "torch"
    if isinstance(name, str):
        name, backend = split_backend(name)
    return SentenceTransformersEncoder(name, options.device, options.batch_size, options.precision, backend)


# Texts on which the number formats are compared.
_TRIED = [
    "what keeps bread soft", "how do glaciers move", "who wrote the first program", "the price of copper fell by four percent",
    "Bread stays soft for days if a part of the flour is scalded, because starch that has gelled holds more water.",
    "A glacier flows downhill under its own weight: the ice deforms within, and slides over the rock where it melts.",
    "def mean(values):\n    return sum(values) / len(values)", "12, 15 and 27", "",
]  # fmt: skip
