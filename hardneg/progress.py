"""How long work tells how far it is: one small callback, so that the library knows no terminal."""

from __future__ import annotations

from collections.abc import Callable

# progress("encode documents", 5000) returns a function that is called with how many more are done.
Progress = Callable[[str, int], Callable[[int], None]]


def silent(stage: str, total: int) -> Callable[[int], None]:
    """Progress that nobody watches."""
    return lambda count: None
