"""A process that encodes on one device, for `hardneg.encoders.device_pool`. It reads requests from stdin and answers on stdout.

Requests and answers are lines of JSON, vectors follow their line as bytes of float32.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import IO, Any

import torch

from hardneg.encoders.forward import Counts
from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder
from hardneg.errors import HardnegError


def answer_pipe() -> IO[bytes]:
    """Stdout, for answers alone: what libraries print goes to stderr. Ctrl-C is left to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is interrupted as well, and ends this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Load the model that the first line names, then encode until stdin ends."""
    answers = answer_pipe()
    requests = sys.stdin.buffer
    setup = json.loads(requests.readline())
    torch.set_num_threads(setup["threads"])
    try:
        encoder = SentenceTransformersEncoder(
            setup["name"], setup["device"], setup["batch_size"], setup["precision"], setup["backend"]
        )
        _answer(answers, kind="ready", fingerprint=encoder.fingerprint())
        for line in requests:
            _encode(encoder, json.loads(line), answers)
    except BrokenPipeError:
        return
    except HardnegError as error:
        _answer(answers, kind="failed", message=str(error))


def _encode(encoder: SentenceTransformersEncoder, request: dict[str, Any], answers: IO[bytes]) -> None:
    def advance(count: int) -> None:
        _answer(answers, kind="progress", count=count)

    encoder.counts = Counts()
    vectors = encoder.encode_arranged(request["texts"], request["prompt"], request["tokens"], advance)
    counts = [encoder.counts.memory, encoder.counts.numbers]
    _answer(answers, kind="vectors", shape=list(vectors.shape), counts=counts)
    answers.write(vectors.astype("<f4", copy=False).tobytes())
    answers.flush()


def _answer(answers: IO[bytes], **values: Any) -> None:
    answers.write(json.dumps(values).encode() + b"\n")
    answers.flush()
