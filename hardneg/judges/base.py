"""What a judge is: it reads pairs of a query and a document, and gives each a value and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from hardneg import registry
from hardneg.errors import UsageError
from hardneg.judges.cost import Budget, Estimate, Prices
from hardneg.progress import Progress, silent

NO_ANSWER = -1


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """How a judge is asked. What does not apply to a judge has no effect on it.

    Attributes:
        url: base URL of an endpoint, such as http://localhost:8000/v1; None: the environment variable OPENAI_BASE_URL, or that of
            OpenAI.
        key_variable: environment variable that holds the key. The key itself is never an option.
        allow_http: send texts and the key to other hosts than this machine without encryption.
        concurrency: most requests at once.
        pairs_per_request: pairs that one request asks about.
        timeout: seconds until a request is given up and asked again, also if its answer comes byte by byte.
        retries: how often a request that fails for a passing reason is sent again.
        prices: what tokens cost; None: not known.
        budget: where to stop; None: no limit.
        cache: folder of the answers; None: `hardneg/judgements` in the user's cache folder.
        batch_size, device: of a cross-encoder.
        cut: a pair is relevant from this grade on (endpoints, default 2), or above this score (cross-encoders, default 0.5).
        confirm: asked with the estimate before anything is paid; False ends with UsageError. None: not asked.
    """

    url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    allow_http: bool = False
    concurrency: int = 8
    pairs_per_request: int = 1
    timeout: float = 60.0
    retries: int = 6
    prices: Prices | None = None
    budget: Budget | None = None
    cache: str | Path | None = None
    batch_size: int = 32
    device: str | None = None
    cut: float | None = None
    confirm: Callable[[Estimate], bool] | None = None

    def __post_init__(self) -> None:
        for name, low in (("concurrency", 1), ("pairs_per_request", 1), ("batch_size", 1), ("retries", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise UsageError(f"{name} must be a whole number of at least {low}, not {value!r}")
        if not 0 < self.timeout <= 86400:
            raise UsageError(f"timeout {self.timeout} must be more than 0 seconds, and at most a day")


@dataclass(frozen=True)
class Verdicts:
    """What a judge says about m pairs.

    Attributes:
        relevant: int8 `[m]`: 1 relevant, 0 not relevant, -1 no answer.
        value: float64 `[m]`: the grade or the score behind it; NaN without an answer.
        notes: what is to be known about single pairs, by their position.
        counts: what happened, for people to read, such as requests or answers that were not understood.
    """

    relevant: NDArray[np.int8]
    value: NDArray[np.float64]
    notes: dict[int, str] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)


class Judge(Protocol):
    """Says which documents are relevant.

    Attributes:
        name: the spec of the judge; it stands in the file of judgements.
        prompt: the whole prompt; "" for a judge without one.
    """

    name: str
    prompt: str

    def judge(self, pairs: Sequence[tuple[str, str]], progress: Progress = silent) -> Verdicts:
        """Judge pairs of (query, document)."""
        ...


def make_judge(spec: str, options: JudgeOptions | None = None) -> Judge:
    """The judge that a spec names: `openai:MODEL` or `cross-encoder:NAME`, or one that was registered.

    Raises:
        UsageError: the spec or an option cannot be used, or what was registered makes no judge; the message suggests the nearest name.
    """
    kind, _, rest = spec.partition(":")
    return checked_judge(registry.find("judge", kind)(rest, options or JudgeOptions()), f"the judge {spec!r}")


def checked_judge(given: object, where: str) -> Judge:
    """`given` itself, if it is a judge; UsageError says what it lacks. `where` names it in the message."""
    if isinstance(given, type):
        raise UsageError(f"{where} is the class {given.__name__}: give an object, {given.__name__}(...)")
    lacks = [name for name in ("name", "prompt") if not isinstance(getattr(given, name, None), str)]
    lacks += [] if callable(getattr(given, "judge", None)) else ["judge(pairs, progress)"]
    if lacks:
        raise UsageError(f"{where} is a {type(given).__name__}, which is no judge: it lacks {', '.join(lacks)}")
    return cast(Judge, given)


def verdicts_of(judge: Judge, pairs: Sequence[tuple[str, str]], progress: Progress = silent) -> Verdicts:
    """What a judge says about pairs of (query, document); UsageError if these are no verdicts on as many pairs."""
    said: object = judge.judge(pairs, progress)
    if not isinstance(said, Verdicts):
        raise UsageError(f"the judge {judge.name!r} returned a {type(said).__name__}, expected hardneg.judges.Verdicts")
    for name in ("relevant", "value"):
        shape = np.shape(getattr(said, name))
        if shape != (len(pairs),):
            raise UsageError(f"the judge {judge.name!r} returned {name} of shape {shape} for {len(pairs):,} pairs")
    if not np.isin(said.relevant, (NO_ANSWER, 0, 1)).all():
        raise UsageError(f"the judge {judge.name!r} returned other verdicts than 1, 0, and -1 for no answer")
    return said


def need_model(kind: str, model: str) -> str:
    """The model in the spec of a judge; UsageError if it names none."""
    if not model:
        raise UsageError(f"the judge {kind!r} names no model: write {kind}:MODEL")
    return model
