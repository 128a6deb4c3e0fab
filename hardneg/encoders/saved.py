"""Reads the configuration of saved encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hardneg.errors import UsageError
from hardneg.storage.json_files import read_json


def saved_config(kind: str, folder: Path) -> dict[str, Any]:
    """The `config.json` of an encoder saved in `folder`; UsageError if there is none. `kind` is used in the message."""
    if not (folder / "config.json").exists():
        raise UsageError(f"{kind}:{folder}: there is no saved encoder (no config.json)")
    return read_json(folder / "config.json")
