"""Where a run comes from: the rows of a table for its report."""

from __future__ import annotations

import shlex
from datetime import date
from importlib.metadata import version
from typing import Any

from hardneg.mining.run import Run

_SHOWN = 16  # characters of a fingerprint


def provenance(run: Run) -> list[tuple[str, str]]:
    """(what, value) for the dataset, the encoder, the options, the command that makes the run again, and the versions."""
    info: dict[str, Any] = run.info
    config, prints, resolved = info["config"], info["fingerprints"], info.get("resolved", {})
    encoder = prints.get("encoder") or prints.get("corpus_embeddings")
    given = [config.get(name) for name in ("query_embeddings", "corpus_embeddings")]
    rows = [
        ("run", str(run.folder)),
        ("dataset", str(prints.get("source"))),
        ("content of queries, documents, labels", ", ".join(_short(prints.get(n)) for n in ("queries", "documents", "labels"))),
        ("encoder", f"{' and '.join(map(str, given)) if any(given) else config.get('encoder')} ({_short(encoder)})"),
        ("index", f"{resolved.get('index')}, depth {resolved.get('depth')}"),
        ("filters", " ".join(config.get("filters") or []) or "the defaults"),
        ("sampler", f"{config.get('sampler')}, {config.get('negatives')} negatives, seed {config.get('seed')}"),
        *_commands(info),
        ("made with", f"hardneg {info.get('hardneg_version')}"),
        ("this page", f"hardneg {version('hardneg')}, {date.today().isoformat()}"),
    ]  # fmt: skip
    return rows


def _short(fingerprint: Any) -> str:
    return str(fingerprint)[:_SHOWN] if fingerprint else "no fingerprint"


def _commands(info: dict[str, Any]) -> list[tuple[str, str]]:
    """The command that mined the run, and those that selected from it since."""
    steps = [*info.get("selections", []), info]
    return [
        ("then" if i else "command", shlex.join(["hardneg", *map(str, step["command"])]) if step.get("command") else "made in Python")
        for i, step in enumerate(steps)
    ]  # fmt: skip
