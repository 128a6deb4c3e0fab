"""What a pass refuses before it encodes: it costs nobody the encoding, and leaves no folder in the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hardneg
from hardneg import DataError, MineOptions, Pairs, RunError, UsageError
from hardneg.false_negatives.model import Posterior

PAIRS = Pairs.from_columns([f"question {i}" for i in range(20)], [f"answer {i}" for i in range(20)])


class Watched:
    """An encoder that must not be asked for vectors while `closed`."""

    dimension = 20

    def __init__(self, name: str = "watched", closed: bool = True) -> None:
        self.name, self.closed = name, closed

    def encode(self, texts: Sequence[str], *, prompt: str = "") -> np.ndarray:
        assert not self.closed, "the texts were encoded before the options were checked"
        return np.array([np.eye(20)[int(text.split()[-1])] for text in texts], np.float32)

    def fingerprint(self) -> str:
        return self.name


def foreign(folder: Path) -> str:
    """The file of a posterior that was learned with another encoder."""
    path = folder / "foreign.json"
    Posterior(("score",), (1.0,), 0.0, 0.5, "groups", {"encoder": "another"}).save(path)
    return f"posterior:{path}"


def trec(folder: Path) -> str:
    (folder / "bad.trec").write_text("q0 Q0 nobody 1 1.0 run\n")
    return f"trec:{folder / 'bad.trec'}"


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"depth": 21}, DataError, "depth 21 is more than the 20 documents"),
        ({"filters": ("group",)}, UsageError, "needs groups"),
        ({"filters": (foreign,)}, RunError, "learned with another encoder"),
        ({"candidates": ("dense", trec)}, DataError, "none of its 1 lines"),
        ({"candidates": ("dense", "bm25:stemmer=klingon")}, UsageError, "there is no stemmer"),
    ],
)
def test_nothing_is_encoded_in_vain(
    tmp_path: Path, choices: dict[str, Any], error: type[Exception], message: str
) -> None:
    made: dict[str, Any] = {
        name: value if isinstance(value, int) else tuple(each(tmp_path) if callable(each) else each for each in value)
        for name, value in choices.items()
    }
    out = tmp_path / "run"
    with pytest.raises(error, match=message):
        hardneg.mine(PAIRS, out, MineOptions(**made), encoder=Watched())
    assert not out.exists() or not any(out.iterdir())
    assert len(hardneg.mine(PAIRS, out, MineOptions(depth=10), encoder=Watched(closed=False)).pairs()) == 20


def test_another_encoder_is_refused_before_it_encodes(tmp_path: Path) -> None:
    """An interrupted run goes on with its encoder alone."""
    with pytest.raises(RuntimeError, match="killed"):
        hardneg.mine(
            PAIRS,
            tmp_path / "run",
            MineOptions(depth=10, sampler=_Killed()),
            encoder=Watched(closed=False),
            overwrite=True,
        )
    with pytest.raises(RunError, match="was started with other inputs"):
        hardneg.mine(
            PAIRS, tmp_path / "run", MineOptions(depth=10, sampler=_Killed()), encoder=Watched("other"), resume=True
        )


class _Killed:
    """A sampler that ends the pass."""

    def log_weights(self, candidates: Any) -> Any:
        raise RuntimeError("killed")
