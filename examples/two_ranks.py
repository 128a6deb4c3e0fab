"""Two processes, one encoder: the batch, its negatives and the memory bank are those of both.

torchrun --nproc-per-node 2 examples/two_ranks.py
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from functions import pairs_of_functions

import hardneg

dist.init_process_group("gloo")  # with GPUs: "nccl", and device=f"cuda:{os.environ['LOCAL_RANK']}" below
torch.set_num_threads(1)  # the processes share the cores
pairs, held = pairs_of_functions()  # the same on every rank
options = hardneg.TrainOptions(
    epochs=3, batch_size=16, negatives=4, refresh="steps:20", bank=512, filters=("margin:relative=0.05",), learning_rate=3e-3
)  # fmt: skip
model = hardneg.HashedEncoder(64)
# Each rank encodes its share of every generation and of every evaluation; rank 0 writes the folder.
done = hardneg.train(pairs, model, "two-ranks", options, evaluation=held, device="cpu", overwrite=True)
if dist.get_rank() == 0:
    print(f"{os.environ['WORLD_SIZE']} ranks, {done['steps']} steps")
    for each in done["evaluations"]:
        print(each)
dist.destroy_process_group()
