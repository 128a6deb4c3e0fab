"""A process of the engine `processes`. It reads tasks from stdin and says on stdout what became of them, as lines of JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from hardneg.encoders.device_process import answer_pipe
from hardneg.errors import HardnegError
from hardneg.tasks.drive import News
from hardneg.tasks.engines import news_of
from hardneg.tasks.graph import Task
from hardneg.tasks.worker import Worker


def main() -> None:
    """Do tasks until stdin ends, which it does when the process that drives this one ends."""
    answers = answer_pipe()
    setup = json.loads(sys.stdin.buffer.readline())
    torch.set_num_threads(setup["threads"])
    worker: Worker | None = None
    for line in sys.stdin.buffer:
        value = json.loads(line)
        task = Task(**{**value, "words": tuple(value["words"]), "numbers": tuple(value["numbers"])})
        try:
            worker = worker or Worker(Path(setup["folder"]), setup["device"], setup["batch_size"])
            news = news_of(0, task, worker.do)
        except HardnegError as error:
            news = News(0, task.name, "failed", type(error).__name__, str(error))
        try:
            answers.write(json.dumps(asdict(news)).encode() + b"\n")
            answers.flush()
        except BrokenPipeError:
            return
