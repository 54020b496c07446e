"""A model sharded by FSDP2 over processes on the CPU, with the hooks called as the Trainer calls them."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training import arguments, llama, sequences
from transformers import TrainerControl, TrainerState

from gradience.hf import GradienceCallback

STEPS = 3


def sharded(processes):
    model, mesh = llama(), init_device_mesh("cpu", (processes,))
    for layer in model.base_model.model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main():
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    model = sharded(processes)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    state = TrainerState(max_steps=STEPS, is_world_process_zero=rank == 0, log_history=[], train_batch_size=4)
    args, control = arguments(sys.argv[1]), TrainerControl()
    recorder = GradienceCallback(spectral_every=2)
    shown = {"model": model, "optimizer": optimizer, "train_dataloader": SimpleNamespace(dataset=sequences())}
    recorder.on_train_begin(args, state, control, **shown)
    for step, row in enumerate(sequences(STEPS, seed=rank), 1):
        batch = {key: value[None] for key, value in row.items()}
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state.global_step = step
        recorder.on_step_end(args, state, control, **shown)
        recorder.on_log(args, state, control, logs={"loss": loss.item(), "learning_rate": 1e-2}, **shown)
    recorder.on_train_end(args, state, control, **shown)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a process that tears down its libraries: seen on a machine under load


if __name__ == "__main__":
    main()
