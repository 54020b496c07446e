"""The effect of resizing on a held-out metric: an experiment of some minutes on a CPU, without a download.

    python benchmarks/resize_quality.py [--seeds 3] [--steps 300]

A small Llama is trained on the spot to copy, reverse and shift strings of digits. LoRA adapters (r = 16, every linear
layer) are then trained on four tasks that it does not know, several seeds each, and resized in each of these ways:

* the ranks that the audit suggests for all modules (median and p90), which is uniform truncation;
* the same size spread over the modules for the least error of the whole (`--max-params`);
* the same size spread for equal relative errors (`--energy` at the largest share that fits);
* the audit's rank for each module (`--like-suggested`), and the largest uniform rank that is no larger;
* rank 1.

The metric is the accuracy on digits of 1000 strings that are in no training set, by teacher forcing. Printed are
the mean over all runs, the mean paired difference to the unresized adapter, and its 95 % confidence interval
(Student's t over runs). Runs of one task are not independent, so the interval is only approximate.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from gradience import audit_adapter, resize_adapter

DIGITS: Final = 8
IGNORED: Final = -100  # the label that the loss ignores
START, EQUALS, FIRST_TASK = 10, 11, 12  # token ids after the ten digits
T_95: Final = {8: 2.306, 11: 2.201, 14: 2.145, 17: 2.110, 19: 2.093}  # two-sided, by degrees of freedom

Rule = Callable[[torch.Tensor], torch.Tensor]

KNOWN: Final[dict[str, Rule]] = {
    "copy": lambda x: x,
    "reverse": lambda x: x.flip(1),
    "shift": lambda x: (x + 1) % 10,
}
TASKS: Final[dict[str, Rule]] = {
    "sort": lambda x: x.sort(dim=1).values,
    "running maximum": lambda x: x.cummax(dim=1).values,
    "reverse and shift": lambda x: (x.flip(1) + 1) % 10,
    "swap neighbours": lambda x: x.view(-1, DIGITS // 2, 2).flip(2).reshape(-1, DIGITS),
}


class Variant(NamedTuple):
    """One way to resize: its name, and the keywords of `resize_adapter`."""

    name: str
    options: dict[str, Any]


class Result(NamedTuple):
    """A variant of one run: held-out accuracy on digits, the factors' parameters, the error of the weights."""

    accuracy: float
    params: int
    error: float


def strings(n: int, generator: torch.Generator, *, held_out: bool) -> torch.Tensor:
    """Return n strings of digits; those whose digits sum to a multiple of 7 are held out of every training set."""
    found: list[torch.Tensor] = []
    while sum(map(len, found)) < n:
        x = torch.randint(10, (2 * n, DIGITS), generator=generator)
        found.append(x[(x.sum(dim=1) % 7 == 0) == held_out])
    return torch.cat(found)[:n]


def batch(x: torch.Tensor, rule: Rule, task: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (tokens, labels) of START task x EQUALS rule(x)."""
    ends = [torch.full((len(x), 1), token) for token in (START, task, EQUALS)]
    tokens = torch.cat([ends[0], ends[1], x, ends[2], rule(x)], dim=1)
    labels = tokens.clone()
    labels[:, :-DIGITS] = IGNORED
    return tokens, labels


def train(model: Any, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int, lr: float) -> None:
    """Train the trainable weights with AdamW and a linearly falling learning rate."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps))
    model.train()
    for _ in range(steps):
        tokens, labels = next(batches)
        optimizer.zero_grad()
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def known_batches(generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        parts = [
            batch(strings(32, generator, held_out=False), rule, FIRST_TASK + i) for i, rule in enumerate(KNOWN.values())
        ]
        yield torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def task_batches(rule: Rule, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield batch(strings(64, generator, held_out=False), rule, FIRST_TASK + len(KNOWN))


@torch.no_grad()
def accuracy(model: Any, rule: Rule, task: int = FIRST_TASK + len(KNOWN)) -> float:
    """Return the share of correctly predicted digits over 1000 held-out strings."""
    x = strings(1000, torch.Generator().manual_seed(12345), held_out=True)
    tokens, labels = batch(x, rule, task)
    guessed = model(input_ids=tokens).logits[:, :-1].argmax(dim=-1)
    wanted = labels[:, 1:]
    return float((guessed[wanted != IGNORED] == wanted[wanted != IGNORED]).double().mean())


def base_model(steps: int) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=FIRST_TASK + len(KNOWN) + 1,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=32,
    )
    model = LlamaForCausalLM(config)
    train(model, known_batches(torch.Generator().manual_seed(0)), steps, 2e-3)
    return model


def variants(folder: Path) -> list[Variant]:
    """Return the ways to resize this adapter."""
    suggested = {name: item.rank for name, item in audit_adapter(folder).suggested.items()}
    found = []
    for name, rank in suggested.items():
        size = resize_adapter(folder, rank=rank).params_after
        found += [
            Variant(f"{name}, uniform", {"rank": rank}),
            Variant(f"{name}, spread", {"max_params": size}),
            Variant(f"{name}, equal error", {"energy": most_energy(folder, size)}),
        ]
    each = resize_adapter(folder, like_suggested=True).params_after
    uniform = max((r for r in range(1, 17) if resize_adapter(folder, rank=r).params_after <= each), default=1)
    found += [Variant("per module", {"like_suggested": True}), Variant("per module, uniform", {"rank": uniform})]
    return [*found, Variant("rank 1", {"rank": 1})]


def most_energy(folder: Path, size: int) -> float:
    """Return the largest share of the energy of each module with which the adapter has at most `size` parameters."""
    low, high = 0.002, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        fits = resize_adapter(folder, energy=middle).params_after <= size
        low, high = (middle, high) if fits else (low, middle)
    return low


def one_run(base: Any, rule: Rule, seed: int, steps: int, place: Path) -> dict[str, Result]:
    """Return the results of one adapter, whole and resized."""
    torch.manual_seed(seed)
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=16, lora_alpha=32, target_modules=linear))
    train(model, task_batches(rule, torch.Generator().manual_seed(seed)), steps, 2e-3)
    model.save_pretrained(place / "whole")
    whole = resize_adapter(place / "whole", rank=16)
    results = {"whole": Result(accuracy(model, rule), whole.params_before, 0.0)}
    for variant in variants(place / "whole"):
        report = resize_adapter(place / "whole", place / "small", force=True, **variant.options)
        small = PeftModel.from_pretrained(copy.deepcopy(base), place / "small").eval()
        results[variant.name] = Result(accuracy(small, rule), report.params_after, report.relative_error or 0.0)
    return results


def interval(values: list[float]) -> str:
    """Return the mean and its 95 % confidence interval."""
    mean, half = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half *= T_95.get(len(values) - 1, 1.96)
    return f"{mean:+.3f}  [{mean - half:+.3f}, {mean + half:+.3f}]"


def table(runs: list[dict[str, Result]]) -> None:
    """Print each variant's mean, and its paired difference to the whole adapter."""
    print(f"  {'':<20} params  rel. error  accuracy  difference to the whole, 95 % interval (n = {len(runs)})")
    for name in runs[0]:
        some = [run[name] for run in runs]
        params, error = statistics.fmean(r.params for r in some), statistics.fmean(r.error for r in some)
        mean = statistics.fmean(r.accuracy for r in some)
        lost = "" if name == "whole" else interval([run[name].accuracy - run["whole"].accuracy for run in runs])
        print(f"  {name:<20} {params:6.0f}  {error:10.1%}  {mean:8.3f}  {lost}")


def versus(runs: list[dict[str, Result]], one: str, other: str) -> None:
    """Print the paired difference of two variants."""
    print(f"  {one} minus {other}: {interval([run[one].accuracy - run[other].accuracy for run in runs])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--base-steps", type=int, default=600)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # at this size a second thread costs more than it gains
    start = time.process_time()
    base = base_model(options.base_steps)
    known = {name: accuracy(base, rule, FIRST_TASK + i) for i, (name, rule) in enumerate(KNOWN.items())}
    print("base, accuracy on what it knows:", ", ".join(f"{name} {value:.3f}" for name, value in known.items()))
    runs: list[dict[str, Result]] = []
    for task, rule in TASKS.items():
        for seed in range(1, options.seeds + 1):
            with tempfile.TemporaryDirectory() as place:
                runs.append(one_run(base, rule, seed, options.steps, Path(place)))
        some = runs[-options.seeds :]
        print(f"{task}: before {accuracy(base, rule):.3f};", end=" ")
        print(", ".join(f"{name} {statistics.fmean(run[name].accuracy for run in some):.3f}" for name in some[0]))
    table(runs)
    for pair in (
        ("median, spread", "median, uniform"),
        ("median, equal error", "median, uniform"),
        ("p90, spread", "p90, uniform"),
        ("p90, equal error", "p90, uniform"),
        ("per module", "per module, uniform"),
    ):
        versus(runs, *pair)
    print(f"{time.process_time() - start:.0f} s of CPU time")


if __name__ == "__main__":
    main()
