"""InfoNCE without the full logits, against full logits with cross_entropy; on a GPU also against PyPI's packages.

    python benchmarks/infonce.py                    # CPU: B = 16,384, d = 384
    python benchmarks/infonce.py --device cuda      # B = 65,536, d = 768, bfloat16; memory at B = 262,144

Forward and backward. On the CPU every system runs in a process of its own, in turns, and the temperature is learned. On a
GPU they run in turns in one process. Peers, where they are installed: memeff, inf-cl, cut-cross-entropy and liger-kernel (the
last two with the positives as the weights of a classifier). Gradient errors are relative (norm of the difference over the
norm) to the full logits in float64 for a batch of 2,048, and, on the CPU, to the full float32 logits for the whole one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common import in_own_process, machine, median_and_spread, now_mb, peak_mb, versions

TEMPERATURE = 0.05
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def vectors(batch: int, dimension: int, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries and positives of cosine 0.3 or so: a loss of a few nats, as early in training."""
    generator = torch.Generator(device).manual_seed(0)

    def some() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(batch, dimension, generator=generator, device=device), dim=1)

    queries, noise = some(), some()
    positives = torch.nn.functional.normalize(queries + 3 * noise, dim=1)
    return [each.to(device, dtype).requires_grad_() for each in (queries, positives)]


def full(queries: torch.Tensor, positives: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    q, p = (torch.nn.functional.normalize(each, dim=1) for each in (queries, positives))
    return torch.nn.functional.cross_entropy((q @ p.T).float() * scale.exp(), torch.arange(len(q), device=q.device))


def system(name: str, device: str, batch: int = 0) -> tuple[Any, torch.Tensor]:
    """(a loss of queries and positives, its temperature as a parameter)."""
    from hardneg.losses import InfoNCE, PerRole, Tiles, Variants

    if name == "full logits":
        scale = torch.tensor(math.log(1 / TEMPERATURE), device=device, requires_grad=True)
        return (lambda q, p: full(q, p, scale)), scale
    tiles = Tiles.fitting(torch.device(device), torch.bfloat16 if "bfloat16" in name else None)
    variants, given = Variants(), {}
    if "margin" in name:
        variants = Variants(margin_absolute=-0.1)
    if "ids" in name:
        given["ids"] = PerRole(positives=torch.arange(batch, device=device))
    if "sketches" in name:
        sketches = torch.randn(batch, 256, device=device, dtype=torch.bfloat16) / 16
        given["sketches"] = PerRole(queries=sketches, positives=sketches.flip(0))
        variants = Variants(margin_absolute=-0.1, suspect_above=0.9)
    if "torch" in name:
        tiles = Tiles(4096, 16384, backend="torch")
    loss = InfoNCE(TEMPERATURE, learn_temperature=True, tiles=tiles, variants=variants).to(device)
    return (lambda q, p: loss(q, p, **given)), loss.log_scale


def step(call: Loss, queries: torch.Tensor, positives: torch.Tensor) -> None:
    queries.grad = positives.grad = None
    call(queries, positives).backward()


def measure(name: str, batch: int, dimension: int, repeat: int) -> dict[str, object]:
    """Seconds and megabytes of one system on the CPU."""
    call, _ = system(name, "cpu", batch)
    if "ids" not in name:
        step(call, *vectors(512, dimension, "cpu", torch.float32))
    queries, positives = vectors(batch, dimension, "cpu", torch.float32)
    Path("/proc/self/clear_refs").write_text("5")
    before = now_mb()
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        step(call, queries, positives)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "memory": peak_mb() - before}


def errors(name: str, batch: int, dimension: int) -> tuple[float, float]:
    """(of the vectors' gradients, of the temperature's)."""
    gradients = []
    for which, dtype in (("full logits", torch.float64 if batch <= 2048 else torch.float32), (name, torch.float32)):
        call, scale = system(which, "cpu", batch)
        queries, positives = vectors(batch, dimension, "cpu", dtype)
        step(call, queries, positives)
        gradients.append((torch.cat([queries.grad, positives.grad]).double(), scale.grad.double()))
    (a, s), (b, t) = gradients
    return float((a - b).norm() / a.norm()), float((s - t).abs() / s.abs())


def product_rate(batch: int, dimension: int, dtype: torch.dtype) -> float:
    """GFLOP/s of a matrix product of a tile's size on the CPU, the best of a few."""
    a, b = (torch.randn(n, dimension).to(dtype) for n in (512, 2048))
    best = 0.0
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(10):
            a @ b.T
        best = max(best, 10 * 2 * 512 * 2048 * dimension / (time.perf_counter() - started) / 1e9)
    return best


def on_cpu(batch: int, dimension: int, repeat: int) -> None:
    names = ["full logits", "hardneg", "hardneg, ids", "hardneg, bfloat16 products"]
    found = {name: [] for name in names}
    memory = dict.fromkeys(names, 0.0)
    for _ in range(2):
        for name in names:
            sizes = ("--batch", str(batch), "--dimension", str(dimension))
            one = in_own_process(__file__, *sizes, "--repeat", str(repeat), "--one", name)
            found[name] += one["seconds"]
            memory[name] = max(memory[name], one["memory"])
    flops = 3 * 2 * batch**2 * dimension  # scores, and the gradients of both sides
    print(
        "| system | seconds: median (range) | times as fast | extra MB | GFLOP/s | gradient error, B = 2,048 | whole batch |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    base = statistics.median(found["full logits"])
    for name in names:
        middle = statistics.median(found[name])
        cells = ["-", "-"]
        if name != "full logits":
            cells = [" / ".join(f"{e:.1e}" for e in errors(name, b, dimension)) for b in (2048, batch)]
        print(
            f"| {name} | {median_and_spread(found[name])} | {base / middle:.2f} | {memory[name]:,.0f} | "
            f"{flops / middle / 1e9:,.0f} | {cells[0]} | {cells[1]} |",
            flush=True,
        )
    for dtype in (torch.float32, torch.bfloat16):
        print(f"matrix product alone, {dtype}: {product_rate(batch, dimension, dtype):,.0f} GFLOP/s")


# On a GPU.


def peers(dimension: int) -> dict[str, Loss]:
    """Losses of other packages, where they are installed. Each gets unit vectors, as ours makes them."""
    found: dict[str, Loss] = {}
    unit = torch.nn.functional.normalize
    try:
        from memeff import MemoryEfficientQwen3Loss

        plain = MemoryEfficientQwen3Loss(TEMPERATURE, margin=2.0, stable=False)
        margin = MemoryEfficientQwen3Loss(TEMPERATURE, margin=0.1, stable=False)
        found |= {"memeff": plain, "memeff, margin": margin}
    except ImportError:
        print("not installed: memeff")
    try:
        from inf_cl import cal_flash_loss

        found["inf-cl"] = lambda q, p: cal_flash_loss(unit(q, dim=1), unit(p, dim=1), scale=1 / TEMPERATURE).mean()
    except ImportError:
        print("not installed: inf-cl")
    try:
        from cut_cross_entropy import linear_cross_entropy

        def cut(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            target = torch.arange(len(q), device=q.device)
            return linear_cross_entropy(unit(q, dim=1) / TEMPERATURE, unit(p, dim=1), target)

        found["cut-cross-entropy"] = cut
    except ImportError:
        print("not installed: cut-cross-entropy")
    try:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

        def liger(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
            return Liger.apply(unit(q, dim=1) / TEMPERATURE, unit(p, dim=1), torch.arange(len(q), device=q.device))[0]

        found["liger-kernel"] = liger
    except ImportError:
        print("not installed: liger-kernel")
    return found


def timed(call: Loss, batch: int, dimension: int, repeat: int) -> tuple[list[float], float, float]:
    """(milliseconds of each repetition, peak MB above the inputs, the loss), after one step to warm up."""
    queries, positives = vectors(batch, dimension, "cuda", torch.bfloat16)
    value = float(call(queries, positives).detach())
    step(call, queries, positives)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    queries.grad = positives.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeat):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step(call, queries, positives)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return times, (torch.cuda.max_memory_allocated() - before) / 2**20, value


def gpu_error(call: Loss, dimension: int) -> float:
    """Of the vectors' gradients, for a batch of 2,048, against float64."""
    wide = vectors(2048, dimension, "cuda", torch.bfloat16)
    exact = [each.detach().double().requires_grad_() for each in wide]
    step(call, *wide)
    step(lambda q, p: full(q, p, torch.tensor(1 / TEMPERATURE, device="cuda").log()), *exact)
    a, b = (torch.cat([x.grad for x in side]).double() for side in (exact, wide))
    return float((a - b).norm() / a.norm())


def matrix_rate() -> float:
    """TFLOP/s of a product of two bfloat16 matrices of 8,192 x 8,192, random numbers."""
    from triton.testing import do_bench

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / do_bench(lambda: a @ b.T, return_mode="median") / 1e9


def on_gpu(batch: int, dimension: int, repeat: int, slow: float) -> None:
    rate = matrix_rate()
    print(f"{torch.cuda.get_device_name()}; matrix product of 8,192 x 8,192, bfloat16: {rate:.0f} TFLOP/s")
    ours = ["hardneg", "hardneg, ids + margin", "hardneg, ids + margin + sketches", "hardneg, ids + margin, torch"]
    systems = {
        name: (lambda size, name=name: system(name.replace("hardneg", "ours"), "cuda", size)[0]) for name in ours
    }
    systems |= {name: (lambda size, call=call: call) for name, call in peers(dimension).items()}
    systems["full logits"] = lambda size: system("full logits", "cuda")[0]
    print(
        "| system | milliseconds: median (range) | of the matrix rate | extra MB | loss | gradient error, B = 2,048 |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    skipped = set()
    for size in (batch, 4 * batch):
        flops = 3 * 2 * size**2 * dimension
        for name, make in systems.items():
            if name in skipped:
                continue
            try:
                error = f"{gpu_error(make(2048), dimension):.1e}" if size == batch and "sketches" not in name else "-"
                times, memory, value = timed(make(size), size, dimension, repeat if size == batch else 1)
            except (torch.OutOfMemoryError, RuntimeError, AssertionError, ValueError) as failed:
                print(f"| {name}, B = {size:,} | {type(failed).__name__}: {str(failed)[:80]!r} | | | | |", flush=True)
                skipped.add(name)
                torch.cuda.empty_cache()
                continue
            middle = statistics.median(times)
            if middle > slow:  # it would take 16 times as long with four times the batch
                skipped.add(name)
            share = flops / middle / 1e9 / rate
            print(
                f"| {name}, B = {size:,} | {middle:.1f} ({min(times):.1f}-{max(times):.1f}) | {share:.0%} | {memory:,.0f} | "
                f"{value:.4f} | {error} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--dimension", type=int)
    parser.add_argument("--repeat", type=int)
    parser.add_argument(
        "--slow", type=float, default=400, help="milliseconds beyond which the larger batch is left out"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    gpu = args.device != "cpu"
    batch, dimension = args.batch or (65536 if gpu else 16384), args.dimension or (768 if gpu else 384)
    repeat = args.repeat or (7 if gpu else 3)
    if args.one:
        print(json.dumps(measure(args.one, batch, dimension, repeat)))
        return
    print(machine(), f"· B = {batch:,}, d = {dimension}, {args.device}")
    print(
        versions(
            "hardneg", "torch", *(("triton", "memeff", "inf-cl", "cut-cross-entropy", "liger-kernel") if gpu else ())
        )
    )
    if gpu:
        on_gpu(batch, dimension, repeat, args.slow)
    else:
        on_cpu(batch, dimension, repeat)


if __name__ == "__main__":
    main()
