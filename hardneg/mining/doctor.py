"""What this machine has, and which index, kernel and number format will be picked on it, and why: for `hardneg doctor`."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hardneg.encoders.number_format import GAIN, choose, product_rates
from hardneg.index.factory import AUTO_DOCUMENTS, AUTO_QUERIES
from hardneg.index.int8 import int8_is_exact
from hardneg.index.kernel_choice import kernel_seconds
from hardneg.mining.environment import package_version
from hardneg.products import numpy_is_faster

_PACKAGES = ("hardneg", "torch", "faiss-cpu", "numpy", "scikit-learn", "pyarrow", "safetensors")
# What each extra, or back end, brings: package and the module that is looked for.
_OPTIONAL = {
    "sentence-transformers": ("sentence_transformers", "st: encoders, guides and cross-encoders"),
    "transformers": ("transformers", "st: encoders, guides and cross-encoders"),
    "datasets": ("datasets", "saved Hugging Face datasets"),
    "lightning": ("lightning", "the callback of Lightning"),
    "altair": ("altair", "HTML reports"),
    "matplotlib": ("matplotlib", "builtin:glyphs"),
    "tensorboard": ("tensorboard", "--tensorboard"),
    "optimum-onnx": ("optimum.onnxruntime", "st:NAME,backend=onnx"),
    "optimum-intel": ("optimum.intel", "st:NAME,backend=openvino"),
}
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "amx_fp16",
    "asimd",
    "bf16",
    "i8mm",
)


def examine(folder: Path, dimension: int = 384) -> dict[str, Any]:
    """Look at the machine and measure it, in a few seconds.

    Args:
        folder: whose disk is looked at.
        dimension: of the vectors for which the kernels of the search are measured.

    Returns:
        `packages`, `optional`, `machine`, `devices` (with product rates in GFLOP/s, of one core on a processor), `kernels` (seconds
        by name), and `picks`: for each thing that is chosen by itself, what is taken here and why.
    """
    devices = {name: _device(name) for name in ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())))}
    seconds = kernel_seconds(dimension)
    return {
        "packages": {"python": platform.python_version(), **{name: package_version(name) for name in _PACKAGES}},
        "optional": {
            name: {"version": package_version(name) if _there(module) else None, "for": purpose}
            for name, (module, purpose) in _OPTIONAL.items()
        },
        "machine": _machine(folder),
        "devices": devices,
        "kernels": {"dimension": dimension, "seconds": seconds, "int8_is_exact": int8_is_exact(dimension)},
        "picks": _picks(devices, seconds, dimension),
    }


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # the package around it is missing
        return False


def _machine(folder: Path) -> dict[str, Any]:
    model, flags = platform.processor() or "unknown", ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
        flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:  # not Linux
        pass
    found = {
        "platform": platform.platform(terse=True),
        "processor": model,
        "instructions": [each for each in _FLAGS if each in flags.split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "disk_free_bytes": shutil.disk_usage(folder).free,
    }
    if hasattr(os, "sched_getaffinity"):
        found["cores_allowed"] = len(os.sched_getaffinity(0))
    if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", ())):
        found["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return found


def _device(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"gflops": {kind: round(rate, 1) for kind, rate in product_rates(name).items()}}
    if name != "cpu":
        properties = torch.cuda.get_device_properties(name)
        found |= {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    return found


def _picks(devices: dict[str, Any], seconds: dict[str, float], dimension: int) -> dict[str, dict[str, str]]:
    encoder = "cuda:0" if "cuda:0" in devices else "cpu"
    rates = product_rates(encoder)
    chosen = choose(encoder, None)
    fastest = min(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {1000 * each:.2f} ms" for name, each in seconds.items())
    found = {
        "--device": (encoder, "the first GPU that torch finds" if encoder != "cpu" else "torch finds no GPU"),
        "--encoder-precision": (
            chosen.name,
            f"{chosen.reason}. bfloat16 is taken from {GAIN} times the rate of float32 on, if the model bears it",
        ),
        "kernel of exact search": (
            fastest,
            f"a tile of vectors with {dimension} components takes {times}, with what the rescoring of a coarse format costs",
        ),
        "products of float32": (
            "numpy" if numpy_is_faster() else "torch",
            "numpy's OpenBLAS is faster than torch's MKL on processors of AMD" if numpy_is_faster()
            else "numpy's OpenBLAS is taken on processors of AMD, where torch has MKL",
        ),
        "--index": (
            "exact", f"ivf from {AUTO_DOCUMENTS:,} documents and {AUTO_QUERIES:,} queries on, where building it pays"
        ),
        "--index-device": (
            "cpu", "cuda searches faster, but its scores differ by rounding, so it is never taken without being asked for"
        ),
    }  # fmt: skip
    if encoder != "cpu" and rates.get("float16", 0) > 1.5 * rates[chosen.name]:
        found["--encoder-precision"] = (
            chosen.name,
            f"{chosen.reason}. float16 would be faster: --encoder-precision float16",
        )
    return {name: {"pick": pick, "why": why} for name, (pick, why) in found.items()}
