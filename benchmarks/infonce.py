"""InfoNCE without the full logits, against full logits with cross_entropy; on a GPU also PyPI's memeff and inf-cl.

    python benchmarks/infonce.py                    # CPU: B = 16,384, d = 384
    python benchmarks/infonce.py --device cuda      # B = 65,536, d = 768, bfloat16; memory at B = 262,144

Forward and backward, the temperature learned. Every system runs in a process of its own, in turns. Gradient errors are
relative (norm of the difference over the norm) to the full logits in float64 for a batch of 2,048, and to the full
float32 logits for the whole one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import in_own_process, machine, median_and_spread, now_mb, peak_mb, versions


def vectors(batch: int, dimension: int, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries and positives of cosine 0.3 or so: a loss of a few nats, as early in training."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.nn.functional.normalize(torch.randn(batch, dimension, generator=generator), dim=1)
    noise = torch.nn.functional.normalize(torch.randn(batch, dimension, generator=generator), dim=1)
    positives = torch.nn.functional.normalize(queries + 3 * noise, dim=1)
    return [each.to(device, dtype).requires_grad_() for each in (queries, positives)]


def full(queries: torch.Tensor, positives: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    q, p = (torch.nn.functional.normalize(each, dim=1) for each in (queries, positives))
    return torch.nn.functional.cross_entropy((q @ p.T).float() * scale.exp(), torch.arange(len(q), device=q.device))


def system(name: str, device: str):
    from hardneg.losses.infonce import InfoNCE
    from hardneg.losses.logsumexp import Tiles

    if name == "full logits":
        scale = torch.tensor(3.0, device=device, requires_grad=True)
        return (lambda q, p: full(q, p, scale)), scale
    tiles = Tiles.fitting(torch.device(device), torch.bfloat16 if "bfloat16" in name else None)
    loss = InfoNCE(1 / torch.tensor(3.0).exp().item(), learn_temperature=True, tiles=tiles).to(device)
    return loss, loss.log_scale


def step(call, queries: torch.Tensor, positives: torch.Tensor) -> None:
    queries.grad = positives.grad = None
    call(queries, positives).backward()


def measure(name: str, batch: int, dimension: int, device: str, repeat: int) -> dict[str, object]:
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    call, _ = system(name, device)
    small = vectors(512, dimension, device, dtype)
    step(call, *small)
    queries, positives = vectors(batch, dimension, device, dtype)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")
        before = now_mb()
    seconds = []
    for _ in range(repeat):
        if device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        step(call, queries, positives)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else peak_mb()
    return {"seconds": seconds, "memory": peak - before}


def errors(name: str, batch: int, dimension: int) -> tuple[float, float]:
    """(of the vectors' gradients, of the temperature's) against the full logits."""
    gradients = []
    for which, dtype in (("full logits", torch.float64 if batch <= 2048 else torch.float32), (name, torch.float32)):
        call, scale = system(which, "cpu")
        queries, positives = vectors(batch, dimension, "cpu", dtype)
        step(call, queries, positives)
        gradients.append((torch.cat([queries.grad, positives.grad]).double(), scale.grad.double()))
    (a, s), (b, t) = gradients
    return float((a - b).norm() / a.norm()), float((s - t).abs() / s.abs())


def product_rate(batch: int, dimension: int, dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of a matrix product of a tile's size, the best of a few."""
    a, b = (torch.randn(n, dimension, device=device).to(dtype) for n in (512, 2048))
    best = 0.0
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(10):
            a @ b.T
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, 10 * 2 * 512 * 2048 * dimension / (time.perf_counter() - started) / 1e9)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--dimension", type=int)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    gpu = args.device != "cpu"
    batch, dimension = args.batch or (65536 if gpu else 16384), args.dimension or (768 if gpu else 384)
    if args.one:
        print(json.dumps(measure(args.one, batch, dimension, args.device, args.repeat)))
        return
    print(machine(), f"· B = {batch:,}, d = {dimension}, {args.device}")
    print(versions("hardneg", "torch"))
    names = ["full logits", "hardneg"] + ([] if gpu else ["hardneg, bfloat16 products"])
    found = {name: [] for name in names}
    memory = dict.fromkeys(names, 0.0)
    for _ in range(2):
        for name in names:
            common = ("--device", args.device, "--batch", str(batch), "--dimension", str(dimension))
            one = in_own_process(__file__, *common, "--repeat", str(args.repeat), "--one", name)
            found[name] += one["seconds"]
            memory[name] = max(memory[name], one["memory"])
    flops = 4 * 2 * batch**2 * dimension  # forward, again for the backward, and two gradients
    print(
        "| system | seconds: median (range) | times as fast | extra MB | GFLOP/s | gradient error, B = 2,048 | whole batch |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    base = sorted(found["full logits"])[len(found["full logits"]) // 2]
    for name in names:
        middle = sorted(found[name])[len(found[name]) // 2]
        work = flops if name != "full logits" else flops * 3 / 4
        cells = ["-", "-"]
        if not gpu and name != "full logits":
            cells = [" / ".join(f"{e:.1e}" for e in errors(name, b, dimension)) for b in (2048, batch)]
        print(
            f"| {name} | {median_and_spread(found[name])} | {base / middle:.2f} | {memory[name]:,.0f} | "
            f"{work / middle / 1e9:,.0f} | {cells[0]} | {cells[1]} |",
            flush=True,
        )
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matrix product alone, {dtype}: {product_rate(batch, dimension, dtype, args.device):,.0f} GFLOP/s")


if __name__ == "__main__":
    main()
