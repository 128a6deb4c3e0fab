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
    metric = getattr(encoder, "metric", None)
    if metric is not None and metric != "cosine":  # what is left out is cosine, or does not matter
        found["metric"] = metric
    in_effect = getattr(encoder, "in_effect", None)
    return {**found, **(in_effect() if callable(in_effect) else {})}


def metric_notes(encoding: dict[str, Any] | None, metric: str) -> list[str]:
    """A sentence if vectors are compared by something else than their model says. `encoding`: what `encoding_of` returned, or None.

    >>> metric_notes({"metric": "ip"}, "ip"), len(metric_notes({"metric": "ip"}, "cosine"))
    ([], 1)
    """
    says = (encoding or {}).get("metric")
    if says is None or says == metric:
        return []
    return [
        f"the model says that its vectors are made for the metric {says}, and they are compared by {metric}: see --metric {says}"
    ]
