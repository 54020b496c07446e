"""A training loop with the hook on the model or without, as digests of each step; as a program, in two processes."""

from __future__ import annotations

import hashlib
import random
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gradience.hf import watch_batches

sys.path.insert(0, str(Path(__file__).parent))
from training import llama, sequences  # beside this file

STEPS = 12
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def digest(model: nn.Module, loss: torch.Tensor) -> str:
    found = hashlib.sha256(loss.detach().numpy().tobytes())
    for parameter in model.parameters():
        found.update(parameter.detach().numpy().tobytes())
        if parameter.grad is not None:
            found.update(parameter.grad.numpy().tobytes())
    found.update(repr((random.getstate(), np.random.get_state())).encode())  # noqa: NPY002  # the global state
    found.update(torch.get_rng_state().numpy().tobytes())
    return found.hexdigest()


def train(kind: str, *, watched: bool, rank: int = 0) -> list[str]:
    inner = llama(seed=3)
    inner.enable_input_require_grads()
    inner.gradient_checkpointing_enable()
    inner.train()
    watch = watch_batches(inner, max_length=12) if watched else None
    model = nn.parallel.DistributedDataParallel(inner) if kind == "processes" else inner
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", enabled=kind == "fp16")
    data = sequences(4 * STEPS, seed=7 + rank)
    digests = []
    for step in range(STEPS):
        ids = torch.stack([row["input_ids"] for row in data[4 * step : 4 * step + 4]])
        with torch.autocast("cpu", dtype=DTYPES[kind]) if kind in DTYPES else nullcontext():
            loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        digests.append(digest(inner, loss))
    if watch is not None:
        assert watch.values()["supervised"] == 8 * 4 * 12
    return digests


def process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    same = train("processes", watched=False, rank=rank) == train("processes", watched=True, rank=rank)
    torch.distributed.destroy_process_group()
    assert same


if __name__ == "__main__":
    torch.multiprocessing.start_processes(process, (sys.argv[1],), nprocs=2, start_method="fork")
