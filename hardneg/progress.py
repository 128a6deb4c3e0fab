"""Progress of long work, told through one small callback, so that the library needs no terminal.

`progress("encode documents", 5000)` starts a stage and returns a function; call that with the number of items done
since the last call.
"""

from __future__ import annotations

from collections.abc import Callable

Advance = Callable[[int], None]
Progress = Callable[[str, int], Advance]


def silent(stage: str, total: int) -> Advance:
    """Progress that shows nothing."""
    return lambda count: None
