"""Package versions and machine details that a run records."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hardneg.index.base import Index
from hardneg.index.cuda import DeviceIndex
from hardneg.index.exact import ExactIndex
from hardneg.index.ivf import IVFIndex


def environment(index: Index | None) -> dict[str, Any]:
    """The entry `environment` of `run.json`: versions, machine, and the threads, kernel and device of the index, if there is one."""
    names = ("torch", "faiss-cpu", "numpy", "scikit-learn", "pyarrow")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpus": os.cpu_count(),
        "threads": None if index is None else index.threads,
        "kernel": index.kernel.name if isinstance(index, ExactIndex | IVFIndex) else None,
        "index_device": str(index.device) if isinstance(index, DeviceIndex) else "cpu",
        "packages": {name: package_version(name) for name in names},
        "byteorder": sys.byteorder,
    }


def package_version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
