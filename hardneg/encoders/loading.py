"""Loads sentence-transformers models, with torch or with another back end."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hardneg.encoders.hub import loading_options, why_not
from hardneg.errors import MissingDependencyError, UsageError, reason_of, suggestion
from hardneg.storage.files import sha256_file

BACKENDS = ("torch", "onnx", "openvino")

_KEY = ",backend="


def split_backend(rest: str) -> tuple[str, str]:
    """(name or path of the model, back end) of the part of a spec after `st:`.

    Raises:
        UsageError: there is no such back end.

    >>> split_backend("all-MiniLM-L6-v2,backend=onnx"), split_backend("all-MiniLM-L6-v2")
    (('all-MiniLM-L6-v2', 'onnx'), ('all-MiniLM-L6-v2', 'torch'))
    """
    name, found, backend = rest.rpartition(_KEY)
    if not found:
        return rest, "torch"
    if backend not in BACKENDS:
        raise UsageError(f"st:{rest}: unknown back end {backend!r}.{suggestion(backend, BACKENDS)}")
    return name, backend


def files_digest(name: str) -> str:
    """SHA-256 of the files of a model, as 64 hexadecimal digits: what another back end than torch reads its weights from.

    Args:
        name: the folder, or the name under which the model is in the local cache of the hub.

    Raises:
        UsageError: the files are not on this machine.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(
                snapshot_download(name if "/" in name else f"sentence-transformers/{name}", local_files_only=True)
            )
        except (OSError, ValueError) as error:
            raise UsageError(
                f"st:{name}: the files of the model are not found ({error}): save it, and give the folder"
            ) from None
    digest = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file() and each.suffix not in (".md", ".tmp")):
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def load_model(name: str, device: str | None, backend: str = "torch") -> Any:
    """A `SentenceTransformer`.

    Args:
        name: name or path of the model.
        device: its device; None lets sentence-transformers choose.
        backend: one of `BACKENDS`.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
        UsageError: the model cannot be loaded, or what the back end needs is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        if find_spec("sentence_transformers") is not None:  # it is there, and lacks something itself
            reason = str(error).strip().splitlines()[0]
            raise UsageError(
                f"st:{name}: sentence-transformers cannot be loaded ({reason}): install what it needs"
            ) from error
        raise MissingDependencyError("sentence-transformers", "st", f"the encoder st:{name}") from None
    more = loading_options(name) | ({} if backend == "torch" else {"backend": backend})
    try:
        return SentenceTransformer(name, device=device, **more)
    except Exception as error:  # a damaged model fails in many ways, deep in other libraries
        reason = reason_of(error)
        lacking = isinstance(error, ImportError) or "pip install" in str(error)
        if backend != "torch" and lacking:
            raise UsageError(
                f"st:{name}{_KEY}{backend}: what sentence-transformers needs for this back end is not installed ({reason}). "
                f"Install it with: pip install 'sentence-transformers[{backend}]'"
            ) from error
        raise UsageError(
            f"st:{name}: the model cannot be loaded {why_not(name, reason)}. Give the folder of a saved model, "
            f"or a name that this machine can reach"
        ) from error
