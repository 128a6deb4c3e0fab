"""Names of models on a hub: whether it can be reached, before its library tries that for minutes."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

_SECONDS = 5.0  # for the hub to answer at all


@functools.cache
def _unreached(endpoint: str) -> str:
    """Why the hub does not answer; empty if it does. Asked once."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        get_session().head(endpoint, timeout=_SECONDS)
    except Exception as error:  # of the library for HTTP that it uses, which depends on its version
        return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return ""


def unreached(name: str) -> str:
    """Why the hub that `name` would be loaded from cannot be reached; empty if it can, or if `name` is a folder or a file."""
    if os.path.exists(Path(name).expanduser()):
        return ""
    try:
        from huggingface_hub import constants
    except ImportError:
        return ""
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreached(constants.ENDPOINT)


def loading_options(name: str) -> dict[str, Any]:
    """Arguments for loading `name`: of the local cache alone where the hub cannot be reached."""
    return {"local_files_only": True} if unreached(name) else {}


def why_not(name: str, reason: str) -> str:
    """What an error says of a model that could not be loaded for this reason."""
    hub = unreached(name)
    return f"({reason.rstrip('.')}; the hub: {hub})" if hub else f"({reason})"
