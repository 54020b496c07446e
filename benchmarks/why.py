"""Runs that differ by one thing: whether `gradience why` names it, in four stacks, and on a run and its resume.

    python benchmarks/why.py                 # 12 causes x 3 seeds in a Trainer; the other stacks with one seed
    python benchmarks/why.py --stack loop --seeds 0 1 2

A cause counts as told if it is the one that the report names. A version is changed in the log of a run whose losses
part from step 4 on, since one version is installed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, set_seed
from wired import (
    BATCH,
    ROWS,
    SAVED,
    STEPS,
    Row,
    fit,
    live,
    llama,
    loader,
    loop,
    module,
    quiet,
    rows,
    trainer,
    trl,
    unheard,
)

from gradience import explain_difference

CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"shift": 50},
    "order": {"order": 7},
    "batch_size": {"batch": 2 * BATCH},
    "accumulation": {"micro": 2},
    "lr": {"rate": 2e-3},
    "warmup": {"warmup": 3},
    "dtype": {"dtype": torch.bfloat16},
    "version": {"version": True},
    "base_weights": {"base": 9},
    "adapter_init": {"init": 33},
    "data_row": {"changed": 17},
    "dropout": {"dropout": 0.3},
}


def _model(seed: int, given: dict[str, Any]) -> nn.Module:
    init = given.get("init", seed)
    model = llama(given.get("base", 1), adapter_seed=init, lora_dropout=given.get("dropout", 0.1))
    return model.to(given["dtype"]) if "dtype" in given else model


def _data(given: dict[str, Any]) -> list[Row]:
    found = rows()
    place = given.get("changed")
    if place is not None:
        other = found[place]["input_ids"].flip(0)
        found[place] = {"input_ids": other, "labels": other}
    return found


def run_trainer(out: Path, seed: int, **given: Any) -> None:
    """Train with the Trainer; `order` reorders the data set."""
    seed += given.get("shift", 0)
    data, first = _data(given), given.get("order", 0)
    trainer(
        out, _model(seed, given), data=data[first:] + data[:first], seed=seed, warmup_steps=given.get("warmup", 0),
        learning_rate=given.get("rate", 1e-3), per_device_train_batch_size=given.get("batch", BATCH),
        gradient_accumulation_steps=given.get("micro", 1),
    )  # fmt: skip


def run_sft(out: Path, seed: int, **given: Any) -> None:
    """Train with TRL; `order` is its data_seed."""
    import wired

    seed += given.get("shift", 0)
    usual = wired.texts
    if "changed" in given:
        lines = usual("text").to_list()
        lines[given["changed"]] = lines[0]
        wired.texts = lambda *_names, **_given: wired.Dataset.from_list(lines)
    try:
        trl(
            out, "SFT", _model(seed, given), seed=seed, warmup_steps=given.get("warmup", 0),
            learning_rate=given.get("rate", 1e-3), per_device_train_batch_size=given.get("batch", BATCH),
            gradient_accumulation_steps=given.get("micro", 1), data_seed=given.get("order"),
        )  # fmt: skip
    finally:
        wired.texts = usual


def run_loop(out: Path, seed: int, **given: Any) -> None:
    """Train in a loop whose run_start says nothing of the settings; `order` seeds the loader."""
    seed += given.get("shift", 0)
    model = _model(seed, given)
    optimizer = torch.optim.AdamW(live(model), lr=given.get("rate", 1e-3))
    set_seed(seed)
    data = loader(_data(given), size=given.get("batch", BATCH), seed=given.get("order", seed))
    loop(out, model, optimizer, data=data, schedule=_warm(optimizer, given), micro=given.get("micro", 1), plan={})


def _warm(optimizer: Any, given: dict[str, Any]) -> Any:
    warmup = given.get("warmup", 0)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))


def run_lightning(out: Path, seed: int, **given: Any) -> None:
    """Fit with Lightning; `order` seeds the loader."""
    import lightning

    seed += given.get("shift", 0)
    model = _model(seed, given)

    def configure(self: Any) -> Any:
        optimizer = torch.optim.AdamW(live(self), lr=given.get("rate", 1e-3))
        return [optimizer], [{"scheduler": _warm(optimizer, given), "interval": "step"}]

    lightning.seed_everything(seed, verbose=False)
    data = loader(_data(given), size=given.get("batch", BATCH), seed=given.get("order", seed))
    fit(out, module(model, configure_optimizers=configure), data=data, accumulate_grad_batches=given.get("micro", 1))


STACKS: dict[str, Callable[..., None]] = {
    "trainer": run_trainer,
    "sft": run_sft,
    "loop": run_loop,
    "lightning": run_lightning,
}


def of_another_version(out: Path) -> None:
    """Change the version of torch in a log, and its losses from step 4 on."""
    log = out / "run.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    for event in events:
        for versions in (event.get("versions"), event.get("meta", {}).get("versions")):
            if versions and "torch" in versions:
                versions["torch"] = "2.9.1"
        if event["event"] == "train_step" and event["step"] >= 4 and "loss" in event:  # later than 1
            event["loss"] *= 1.0003
    log.write_text("".join(json.dumps(event) + "\n" for event in events))


def resumed(out: Path, seed: int, change: dict[str, Any]) -> None:
    """Train to the end, then once more from the save at step 6 with a change, in one log."""
    run = {"seed": seed, "save_steps": SAVED, "max_steps": STEPS}
    trainer(out, _model(seed, {}), data=_data({}), **run)
    trainer(out, _model(seed, change), data=_data(change), resume=SAVED, **{**run, **change.get("arguments", {})})


RESUMES: dict[str, dict[str, Any]] = {
    "batch_size": {"arguments": {"per_device_train_batch_size": 2}},
    "accumulation": {"arguments": {"gradient_accumulation_steps": 2}},
    "dropout": {"dropout": 0.4},
    "data_row": {"changed": 20},
    "base_weights": {"base": 9},
    "clipping": {"arguments": {"max_grad_norm": 0.05}},
    "same": {},
}


class InOrder(Trainer):
    """A Trainer that does not shuffle."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(range(ROWS))


def run_in_order(out: Path, seed: int, *, by_loop: bool, **given: Any) -> None:
    """Train on the rows in their order, in a Trainer or in a loop, without clipping and with one optimizer."""
    model, data = _model(seed, {"dropout": 0.0, **given}), _data(given)
    optimizer = torch.optim.AdamW(live(model), lr=given.get("rate", 1e-3))
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    if by_loop:
        batches = torch.utils.data.DataLoader(data, given.get("batch", BATCH))  # type: ignore[arg-type]  # a list is one
        loop(out, model, optimizer, data=batches, plan={})
        return
    trainer(
        out, model, cls=InOrder, data=data, optimizers=(optimizer, constant), max_grad_norm=0.0,
        per_device_train_batch_size=given.get("batch", BATCH),
    )  # fmt: skip


ACROSS: dict[str, dict[str, Any]] = {
    "same": {},
    "lr": {"rate": 3e-3},
    "batch_size": {"batch": 2},
    "base_weights": {"base": 9},
    "adapter_init": {"init": 33},
    "data_row": {"changed": 5},
}


class Score:
    """Counts what was told, and prints what was not."""

    def __init__(self) -> None:
        self.told = self.of = 0

    def take(self, name: str, first: Path, second: Path, wanted: str) -> None:
        """Compare two logs and count."""
        report = explain_difference(first, second)
        got = "same" if report.verdict == "same" else report.cause.cause if report.cause else report.verdict
        self.of += 1
        self.told += got == wanted
        print(f"{'told' if got == wanted else 'MISS'} {name:28} {got}", flush=True)
        if got != wanted:
            print(f"       {report.story}\n       {[(each.cause, each.says[:70]) for each in report.differences]}")
            print(f"       {[(part.quantity, part.step) for part in report.parts]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Have `gradience why` name what two runs differ by.")
    parser.add_argument("--stack", choices=[*STACKS, "resume", "across"], nargs="*")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", choices=list(CHANGES), nargs="*", default=list(CHANGES))
    options = parser.parse_args()
    quiet()
    for stack in options.stack or [*STACKS, "resume", "across"]:
        score = Score()
        for seed in options.seeds if options.stack or stack == "trainer" else options.seeds[:1]:
            with tempfile.TemporaryDirectory() as folder:
                _measure(stack, seed, Path(folder), options.only, score)
        print(f"{stack}: {score.told} of {score.of}", flush=True)


def _measure(stack: str, seed: int, folder: Path, only: list[str], score: Score) -> None:
    if stack == "resume":
        for cause, change in RESUMES.items():
            with unheard():
                resumed(folder / cause, seed, change)
            score.take(f"{stack} {seed} {cause}", folder / cause, folder / cause, cause)
        return
    train: Callable[..., None] = STACKS.get(stack) or partial(run_in_order, by_loop=True)
    first: Callable[..., None] = STACKS.get(stack) or partial(run_in_order, by_loop=False)
    with unheard():
        first(folder / "first", seed)
    for cause, change in ACROSS.items() if stack == "across" else [(cause, CHANGES[cause]) for cause in only]:
        with unheard():
            train(folder / cause, seed, **change)
        if cause == "version":
            of_another_version(folder / cause)
        score.take(f"{stack} {seed} {cause}", folder / "first", folder / cause, cause)


if __name__ == "__main__":
    main()
