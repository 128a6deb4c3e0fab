"""Encoders saved in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hardneg.errors import UsageError
from hardneg.storage.files import read_json


def saved_config(kind: str, folder: Path) -> dict[str, Any]:
    """`config.json` of an encoder of this kind that was saved; UsageError when there is none."""
    if not (folder / "config.json").exists():
        raise UsageError(f"{kind}:{folder}: there is no saved encoder (no config.json)")
    return read_json(folder / "config.json")
