"""Runs a sentence-transformers model over texts: tokenizes ahead, keeps every core or the device busy, and survives a full memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardneg.encoders.base import checked_vectors
from hardneg.encoders.batches import PIECE, Batch, batches
from hardneg.encoders.kept_tokens import KeptTokens
from hardneg.encoders.linear_layers import quick_linear
from hardneg.encoders.number_format import TYPES
from hardneg.encoders.quick_tensors import quick_tensors
from hardneg.errors import RunError, reason_of
from hardneg.products import pool_of_cores
from hardneg.storage.arrays import Float

_TOLD_BY = ("truncation_side", "padding_side", "pad_token_id", "model_max_length")  # of a tokenizer

_AHEAD = 2  # batches that a device works on before the vectors of the first are fetched


@dataclass
class Counts:
    """What went wrong and was done again.

    Attributes:
        memory: batches that did not fit into memory and were cut in two.
        numbers: texts with a NaN or infinite value in the low number format, which were encoded again in float32.
    """

    memory: int = 0
    numbers: int = 0

    def sentences(self, device: str, name: str) -> list[str]:
        """One sentence for each kind, for people."""
        found = []
        if self.memory:
            found.append(
                f"{self.memory:,} batches did not fit into the memory of {device} and were cut in two: a smaller --batch-size "
                f"saves the retries"
            )
        if self.numbers:
            found.append(
                f"{self.numbers:,} texts had NaN or infinite values in {name} and were encoded again in float32: "
                f"--encoder-precision float32 does so from the start"
            )
        return found


@dataclass
class Forward:
    """A model, and how it is run.

    Attributes:
        model: a `SentenceTransformer`, in evaluation mode.
        dimension: d.
        number_format: `float32`, or `bfloat16` or `float16`: then its products are in that format (autocast).
        most: texts in a batch; None: as many as the budget of tokens allows.
        parallel: whether several threads may call the model at once, each with one core. Not for models that have threads of
            their own.
        counts: what was done again.
        kept: the tokens of texts that were encoded before, if they are kept.
    """

    model: Any
    dimension: int
    number_format: str = "float32"
    most: int | None = None
    parallel: bool = True
    counts: Counts = field(default_factory=Counts)
    kept: KeptTokens | None = None

    def __post_init__(self) -> None:
        self.device = torch.device(self.model.device)
        self.lock = threading.Lock()  # a tokenizer cannot be called by two threads at once

    def run(
        self, texts: Sequence[str], prompt: str, tokens: int, advance: Callable[[int], None] = lambda count: None
    ) -> Float:
        """The vectors of n texts, float32 `[n, d]`.

        Args:
            texts: texts of similar length side by side, see `arrange`.
            prompt: is put before each text by the model.
            tokens: the budget of a batch.
            advance: called with the number of texts that are done.

        Raises:
            RunError: a single text does not fit into memory, or the device failed.
        """
        out = np.empty((len(texts), self.dimension), np.float32)

        def keep(rows: np.ndarray, vectors: Float) -> None:
            out[rows] = checked_vectors(vectors, len(rows), self.dimension, self.model)
            advance(len(rows))

        stream = self._batches(texts, prompt, tokens)
        try:
            if self.device.type == "cpu":
                self._on_cores(stream, texts, prompt, keep)
            else:
                self._on_device(stream, texts, prompt, keep)
        finally:
            stream.close()
        return out

    def _batches(self, texts: Sequence[str], prompt: str, tokens: int) -> Generator[Batch, None, None]:
        """The batches of all pieces; rows are those of `texts`. The next piece is tokenized while this one is encoded."""
        size = max(PIECE, self.most or 0)
        starts = range(0, len(texts), size)
        with ThreadPoolExecutor(1) as ahead:
            waiting = None
            for start in [*starts, None]:
                ready: list[Batch] = waiting.result() if waiting is not None else []
                if start is not None:
                    waiting = ahead.submit(self._tokenized, texts[start : start + size], start, prompt, tokens)
                yield from ready

    def _tokenized(self, texts: Sequence[str], start: int, prompt: str, tokens: int) -> list[Batch]:
        found = batches(self.features(texts, prompt), len(texts), tokens, self.most)
        found = [Batch(batch.rows + start, batch.features, batch.splits) for batch in found]
        if self.device.type != "cuda":
            return found
        return [Batch(batch.rows, _pinned(batch.features), batch.splits) for batch in found]

    def features(self, texts: Sequence[str], prompt: str) -> dict[str, Any]:
        """What the model takes for these texts."""
        with self.lock:
            return tokenized(self.model, list(texts), prompt, self.kept)

    def _on_cores(self, stream: Iterator[Batch], texts: Sequence[str], prompt: str, keep: Callable[..., None]) -> None:
        """Every core encodes batches of its own, each with one thread: no core waits for another within a layer."""
        before = torch.get_num_threads()
        turn = threading.Lock()
        ended = threading.Event()

        def work() -> None:
            with torch.inference_mode(), self._autocast():
                while not ended.is_set():
                    with turn:
                        batch = next(stream, None)
                    if batch is None:
                        return
                    vectors = self._vectors(batch, texts, prompt)
                    with turn:
                        keep(batch.rows, vectors)

        if not self.parallel:
            for batch in stream:
                keep(batch.rows, self._vectors(batch, texts, prompt))
            return
        with pool_of_cores(before) as pool:
            try:
                working = [pool.submit(work) for _ in range(before)]
                for each in working:
                    each.result()
            finally:  # also when a worker failed, or the user interrupts
                ended.set()

    def _on_device(self, stream: Iterator[Batch], texts: Sequence[str], prompt: str, keep: Callable[..., None]) -> None:
        """The device works on a batch while the next is sent and the vectors of the one before are fetched."""
        waiting: deque[tuple[Batch, Tensor, Any]] = deque()

        def finish() -> None:
            batch, vectors, done = waiting.popleft()
            if done is not None:
                done.synchronize()
            keep(batch.rows, self._finite(vectors.numpy(), batch, texts, prompt))

        try:
            with self._autocast():  # once, so that the weights are cast once
                for batch in stream:
                    waiting.append((batch, *self._launched(batch, texts, prompt)))
                    if len(waiting) >= _AHEAD:
                        finish()
                while waiting:
                    finish()
        except RuntimeError as error:
            raise RunError(
                f"the device {self.device} failed while it encoded ({reason_of(error)}). What was written before is kept: the "
                f"same command goes on from there (mine and train with --resume), also with another --device"
            ) from error

    def _launched(self, batch: Batch, texts: Sequence[str], prompt: str) -> tuple[Tensor, Any]:
        """(vectors that will be there when the event has happened, the event; None: they are there)."""
        made = self._whole(batch)
        if made is None:
            return torch.from_numpy(self._halved(batch, texts, prompt)), None
        if self.device.type != "cuda":
            return made.cpu(), None
        host = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
        host.copy_(made, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        return host, done

    def _vectors(self, batch: Batch, texts: Sequence[str], prompt: str) -> Float:
        """The vectors of a batch, float32 `[b, d]`."""
        made = self._whole(batch)
        if made is None:
            return self._halved(batch, texts, prompt)
        return self._finite(made.cpu().numpy(), batch, texts, prompt)

    def _whole(self, batch: Batch) -> Tensor | None:
        """The vectors of a batch, float32 `[b, d]`, on the device; None if the batch does not fit into its memory."""
        try:
            with self._autocast():
                return self._model(batch.features)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _halved(self, batch: Batch, texts: Sequence[str], prompt: str) -> Float:
        """The vectors of a batch that did not fit into memory, from two halves of it."""
        count = len(batch.rows)
        if count == 1:
            tokens = batch.features.get("attention_mask")
            length = f" of {int(tokens.sum()):,} tokens" if isinstance(tokens, Tensor) else ""
            raise RunError(
                f"the memory of {self.device} is too small for a single text{length}. What was written before is kept: use a "
                f"device with more memory, --encoder-precision bfloat16, or a smaller max_seq_length in the model's folder, "
                f"and run the same command again (mine and train with --resume)"
            )
        self.counts.memory += 1
        found = []
        for rows in (batch.rows[: count // 2], batch.rows[count // 2 :]):
            half = Batch(rows, self.features([texts[i] for i in rows.tolist()], prompt), batch.splits)
            found.append(self._vectors(half, texts, prompt))
        return np.concatenate(found)

    def _finite(self, vectors: Float, batch: Batch, texts: Sequence[str], prompt: str) -> Float:
        """The vectors, those with NaN or infinite values again in float32 if they were made in a lower format."""
        bad = np.flatnonzero(~np.isfinite(vectors).all(1))
        if len(bad) == 0 or self.number_format == "float32":
            return vectors
        self.counts.numbers += len(bad)
        vectors = vectors.copy()
        with torch.autocast(self.device.type, enabled=False):
            features = self.features([texts[i] for i in batch.rows[bad].tolist()], prompt)
            vectors[bad] = self._model(features).cpu().numpy()
        return vectors

    def vectors_of(self, features: dict[str, Any]) -> Float:
        """The vectors of one batch, float32 `[b, d]`; raises what torch raises where memory is short."""
        with self._autocast():
            found: Float = self._model(features).cpu().numpy()
        return found

    def _model(self, features: dict[str, Any]) -> Tensor:
        """What the model makes of tokenized texts, float32 `[b, d]`, on its device."""
        moved = {
            name: x.to(self.device, non_blocking=True) if isinstance(x, Tensor) else x for name, x in features.items()
        }
        with torch.inference_mode(), quick_linear(self.device, self.number_format):
            made: Tensor = self.model(moved)["sentence_embedding"]
            width = getattr(self.model, "truncate_dim", None)
            return (made if width is None else made[..., :width]).float()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.number_format == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=TYPES[self.number_format])


def tokenized(model: Any, texts: list[str], prompt: str, kept: KeptTokens | None = None) -> dict[str, Any]:
    """What a sentence-transformers model takes for these texts; tokens that are kept are not made again."""
    tokenizer = getattr(model, "tokenizer", None)
    if kept is None:
        return _preprocessed(model, tokenizer, texts, prompt)
    state = [getattr(model, "max_seq_length", None), *(getattr(tokenizer, name, None) for name in _TOLD_BY)]
    if isinstance(tokenizer, Sized):
        state.append(len(tokenizer))  # with what was added to it
    setting = f"{state}\n{prompt}"
    return kept.features(texts, setting, lambda some: _preprocessed(model, tokenizer, some, prompt))


def _preprocessed(model: Any, tokenizer: Any, texts: list[str], prompt: str) -> dict[str, Any]:
    with quick_tensors(tokenizer):
        return dict(model.preprocess(texts, prompt=prompt))


def _pinned(features: dict[str, Any]) -> dict[str, Any]:
    return {name: x.pin_memory() if isinstance(x, Tensor) else x for name, x in features.items()}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the processor or of a GPU was too small."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
