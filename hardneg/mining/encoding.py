"""The number format of a pass's encoder, which a resumed pass must not choose anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardneg.encoders.base import Encoder
from hardneg.errors import RunError, UsageError
from hardneg.mining.options import MineOptions
from hardneg.mining.run_folder import read_run_json
from hardneg.storage.json_files import read_json, write_json


def set_precision(encoder: Encoder, options: MineOptions, folder: Path) -> None:
    """Let the encoder multiply in the format that the options ask for or, with `auto`, in the one that this pass began with.

    Args:
        encoder: the encoder.
        options: of the pass.
        folder: of the pass, where its choice is recorded.

    Raises:
        UsageError: the encoder has no choice of number formats, and another one than float32 was asked for.
    """
    asked, chosen = options.encoder_precision, getattr(encoder, "precision", None)
    if chosen is None or not hasattr(encoder, "in_effect"):
        if asked not in ("auto", "float32"):
            raise UsageError(
                f"the encoder {type(encoder).__name__} has no choice of number formats: leave --encoder-precision {asked} out"
            )
        return
    settable: Any = encoder
    if asked != "auto":
        settable.precision = asked
        return
    if chosen == "auto":
        before = _before(folder)
        if before is not None:
            reason = str(before.get("precision_reason", "an earlier version began this pass, and computed in it"))
            settable.go_on(str(before.get("precision", settable.stored)), reason)
    path = folder / "progress" / "encoding.json"
    if (folder / "progress").is_dir() and not path.exists():
        write_json(path, settable.in_effect(), checksum=True)


def _before(folder: Path) -> Mapping[str, Any] | None:
    """How the pass in `folder` encoded before it was interrupted or finished; None: it begins now.

    Version 0.2 and older recorded nothing, and computed in float32.
    """
    path = folder / "progress" / "encoding.json"
    if path.exists():
        recorded: dict[str, Any] = read_json(path, remedy="mine again with --overwrite")
        return recorded
    try:
        return dict(read_run_json(folder)["resolved"].get("encoder") or {})
    except RunError:
        return {} if (folder / "progress" / "inputs.json").exists() else None
