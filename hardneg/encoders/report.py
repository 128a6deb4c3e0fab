"""What is said of an encoder after it has encoded: prompts, number format, device."""

from __future__ import annotations

from typing import Any

from hardneg.encoders.base import Encoder, prompt_of


def encoding_of(encoder: Encoder, query_prompt: str | None, document_prompt: str | None) -> dict[str, Any]:
    """The prompts, whose they are, and how the model was run: the entry `resolved.encoder` of `run.json`."""
    found: dict[str, Any] = {}
    for side, given in (("query", query_prompt), ("document", document_prompt)):
        found[f"{side}_prompt"] = prompt_of(encoder, side, given)
        found[f"{side}_prompt_from"] = "model" if given is None else "option"
    in_effect = getattr(encoder, "in_effect", None)
    return {**found, **(in_effect() if callable(in_effect) else {})}
