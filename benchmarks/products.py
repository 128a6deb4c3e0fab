"""Products of float32 by torch's library and by numpy's: GFLOP/s of one thread, for the shapes of a search and of an encoder.

Which one `hardneg.products` takes is said at the end. Each is timed several times in turns, in seconds of the thread; the best counts.

    python benchmarks/products.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from common import machine, versions

from hardneg.products import numpy_is_faster, one_thread_each

SHAPES = {  # (rows, columns, inner)
    "queries with the documents of a list": (1024, 447, 384),
    "queries with 1,000 centroids": (1024, 1000, 384),
    "a tile with a block of queries": (384, 1024, 384),
    "a layer of MiniLM, 384 to 384": (1024, 384, 384),
    "384 to 1,536": (1024, 1536, 384),
    "1,536 to 384": (1024, 384, 1536),
}


def rates(rows: int, columns: int, inner: int, rounds: int = 15) -> dict[str, float]:
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((n, inner), np.float32) for n in (rows, columns))
    out = np.empty((rows, columns), np.float32)
    tensors = [torch.from_numpy(each) for each in (left, right, out)]
    runs: dict[str, Callable[[], object]] = {
        "torch": lambda: torch.mm(tensors[0], tensors[1].t(), out=tensors[2]),
        "numpy": lambda: np.matmul(left, right.T, out=out),
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            best[name] = min(best[name], time.thread_time() - start)
    return {name: 2e-9 * rows * columns * inner / seconds for name, seconds in best.items()}


def main() -> None:
    torch.set_num_threads(1)
    print(machine())
    print(versions("torch", "numpy"))
    print(f"{'product':<40}{'torch':>8}{'numpy':>8}{'ratio':>8}")
    with one_thread_each():
        for name, shape in SHAPES.items():
            found = rates(*shape)
            print(f"{name:<40}{found['torch']:>8.1f}{found['numpy']:>8.1f}{found['numpy'] / found['torch']:>8.2f}")
    print(f"taken here: {'numpy' if numpy_is_faster() else 'torch'}")


if __name__ == "__main__":
    main()
