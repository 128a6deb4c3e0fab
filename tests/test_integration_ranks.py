"""`HardNegatives` in the trainer of sentence-transformers on two ranks: what is learned is what one process learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import in_two_ranks

pytest.importorskip("sentence_transformers", reason="the package sentence-transformers is not installed")

# Without dropout, which differs between one process and two, and with plain SGD, whose steps show the scale of the gradients.
SCRIPT = """
import json, os, sys
from pathlib import Path
import multiprocessing
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from hardneg.integrations.sentence_transformers import HardNegatives, InfoNCE

FOLDER = Path(sys.argv[1])

def train(out, batch, pieces=None, resume=None):
    model = SentenceTransformer(MODEL, device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = [{"query": f"question {i} of {i % 7}", "positive": f"answer {i} to {i % 7}"} for i in range(32)]
    corpus = [f"a remark on {i}" for i in range(10)]
    negatives = HardNegatives(rows, model, corpus=corpus, num_negatives=2, depth=10, refresh="steps:2")
    arguments = SentenceTransformerTrainingArguments(
        str(FOLDER / out), max_steps=6, per_device_train_batch_size=batch, report_to=[], use_cpu=True, save_steps=3, logging_steps=1,
        learning_rate=0.05, optim="sgd", max_grad_norm=0.0, batch_sampler=negatives.batch_sampler, disable_tqdm=True,
    )
    loss = InfoNCE(model, negatives, mini_batch_size=pieces)
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=negatives.dataset, loss=loss, callbacks=[negatives])
    trainer.train(resume_from_checkpoint=resume and str(FOLDER / out / resume))
    name = f"{out}-{'again' if resume else 'first'}-{os.environ.get('RANK', 0)}"
    torch.save(model.state_dict(), FOLDER / f"{name}.pt")
    losses = [each for each in trainer.state.log_history if "loss" in each]
    (FOLDER / f"{name}.json").write_text(json.dumps([[each["loss"], each["negatives_generation"]] for each in losses]))

def on_ranks(*arguments):
    def one(rank, port):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.set_num_threads(1)
        train(*arguments)
        torch.distributed.destroy_process_group()
    import socket
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [multiprocessing.get_context("fork").Process(target=one, args=(rank, port)) for rank in (0, 1)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
        assert each.exitcode == 0, each.exitcode

torch.set_num_threads(1)
on_ranks("two", 4)
on_ranks("two", 4, None, "checkpoint-3")
on_ranks("pieces", 4, 3)
train("one", 8)
"""


@pytest.mark.slow
def test_two_ranks_learn_what_one_process_does(tiny_model: Path, tmp_path: Path) -> None:
    """Also after a resume, and with gradient caching."""
    import torch

    in_two_ranks(SCRIPT.replace("MODEL", repr(str(tiny_model))), tmp_path)
    one = torch.load(tmp_path / "one-first-0.pt", weights_only=True)
    log = json.loads((tmp_path / "one-first-0.json").read_text())
    assert [generation for _, generation in log] == [0, 0, 1, 1, 2, 2]
    before = torch.load(tmp_path / "two-first-0.pt", weights_only=True)
    for name in ("two-first-0", "two-first-1", "two-again-0", "two-again-1", "pieces-first-0", "pieces-first-1"):
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for key, tensor in one.items():
            torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=1e-4)
            if name.startswith("two"):
                assert torch.equal(found[key], before[key]), (name, key)
        assert [[pytest.approx(loss, abs=1e-4), generation] for loss, generation in log] == json.loads(
            (tmp_path / f"{name}.json").read_text()
        )
