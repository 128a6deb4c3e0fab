"""Progress of long computations, reported through a callback, so that the library does not depend on a terminal.

`progress("encode documents", 5000)` starts a stage of 5000 items and returns a function. That function is called with
the number of items finished since its last call.
"""

from __future__ import annotations

from collections.abc import Callable

Advance = Callable[[int], None]
Progress = Callable[[str, int], Advance]


def silent(stage: str, total: int) -> Advance:
    """A `Progress` callback that ignores all reports."""
    return lambda count: None
