"""Where the numbers of a training go besides log.jsonl: TensorBoard (see test_trainer.py) and Weights & Biases."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

import hardneg
from hardneg.errors import MissingDependencyError, UsageError
from hardneg.training.callbacks import WANDB_RUN, WandbLog
from hardneg.training.options import TrainOptions

from .test_trainer import encoder, made_pairs

QUIET: dict[str, Any] = {"device": "cpu", "warn": lambda message: None}
SMALL: dict[str, Any] = {"batch_size": 16, "negatives": 0, "log_every": 1, "evaluate_every": 2}


_BLOCK = 32768


def test_names_are_checked_before_any_work(tmp_path: Path) -> None:
    for given in ("wandbb", ["tensorboard", "mlflow"]):
        with pytest.raises(UsageError, match="report_to="):
            hardneg.train(made_pairs(), encoder(), tmp_path / "out", TrainOptions(**SMALL), report_to=given, **QUIET)
    assert not (tmp_path / "out").exists()


def test_without_wandb_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match=r"hardneg\[wandb\]"):
        WandbLog(tmp_path, {})


def test_a_run_of_wandb_goes_on_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By wandb itself, offline: its files hold what log.jsonl holds, and both parts belong to one run."""
    pytest.importorskip("wandb", reason="no wandb: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    pairs, out = made_pairs(), tmp_path / "out"
    for steps in (4, 6):
        options = TrainOptions(**SMALL, steps=steps)
        more = {"report_to": ["wandb"], "evaluation": pairs, "resume": steps == 6}
        hardneg.train(pairs, encoder(), out, options, **more, **QUIET)
    identity = json.loads((out / WANDB_RUN).read_text())["id"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2
    found = [row for file in files for row in _rows(file)]
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    expected = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert {row["step"]: row["train/loss"] for row in found if "train/loss" in row} == pytest.approx(expected)
    assert [row["step"] for row in found if "evaluation/ndcg@10" in row] == [0, 2, 4, 6]  # 0: before the training


def _rows(path: Path) -> list[dict[str, Any]]:
    """The numbers that a file of wandb holds: records in the log format of LevelDB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as proto

    data, place, record, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if _BLOCK - place % _BLOCK < 7:  # no header fits into the rest of a block
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])  # after the checksum
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            message, record = proto.Record.FromString(record), b""
            if message.WhichOneof("record_type") == "history":
                items = message.history.item
                rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return rows
