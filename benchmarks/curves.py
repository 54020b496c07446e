"""Synthetic training logs for benchmarks/detectors.py: clean ones of seven kinds, and sixteen faults put into them.

Nothing here is a real run. The noise is that of logs in ../shared/data: 1 to 10 % between rows where several
steps are averaged, 20 % and skewed where every step is logged; gradient norms are log-normal, 0.2 to 0.4.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

KINDS = ("gaussian", "heavy-tailed", "epoch-steps", "every-step", "classification", "dpo", "grpo")
PEAK = 2e-4
LN2 = math.log(2.0)
HALF, FIFTH = 0.5, 0.2  # probabilities


@dataclass
class Log:
    """One log as columns; `every` is steps per row."""

    kind: str
    losses: list[float]
    norms: list[float]
    rates: list[float]
    evals: list[tuple[int, float, float]]  # row, loss, accuracy
    every: int
    epochs: float
    labels: int | None = None
    fault: str | None = None
    scheduler: str = "cosine"
    repeats: list[int] = field(default_factory=list)  # rows written twice
    extras: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of training."""
        return len(self.losses)


def student(rng: random.Random) -> float:
    """Return a t variate of 3 degrees of freedom, scaled to unit variance."""
    chi = sum(rng.gauss(0, 1) ** 2 for _ in range(3))
    return rng.gauss(0, 1) / math.sqrt(chi / 3) / math.sqrt(3)


def clean(rng: random.Random, kind: str, rows: int | None = None) -> Log:
    """Return a healthy run."""
    n = rows or (
        rng.randint(20, 60) if rng.random() < HALF else int(math.exp(rng.uniform(math.log(80), math.log(1500))))
    )
    epochs = rng.choice([1.0, 2.0, 3.0])
    scheduler = rng.choice(["cosine", "linear", "constant"])
    rates = schedule(n, scheduler, rng.uniform(0.02, 0.1))
    trend = shape(rng, kind, n, epochs)
    sigma = {
        "every-step": rng.uniform(0.1, 0.2),
        "classification": rng.uniform(0.1, 0.4),
        "dpo": rng.uniform(0.01, 0.05),
    }
    noise = sigma.get(kind, rng.choice([0.01, 0.02, 0.05, 0.1]))
    losses = [noisy(rng, kind, x, noise) for x in trend]
    log = Log(kind, losses, norms(rng, n, kind), rates, [], rng.choice([1, 5, 10]), epochs, scheduler=scheduler)
    log.labels = 2 if kind == "classification" else None
    log.evals = evaluations(rng, kind, trend, n)
    log.extras = {"dpo": {"rewards/margins": 0.1, "rewards/chosen": 0.0}, "grpo": {"reward": 1.0, "kl": 0.01}}.get(
        kind, {}
    )
    return log


def shape(rng: random.Random, kind: str, n: int, epochs: float) -> list[float]:
    """Return the loss without its noise."""
    if kind == "grpo":
        return [0.01 * (1 + math.sin(i / 20)) for i in range(n)]
    start = {"classification": LN2, "dpo": LN2}.get(kind, rng.uniform(1.2, 3.0))
    share = {"classification": rng.uniform(0.01, 0.5), "dpo": rng.uniform(0.4, 0.9)}.get(kind, rng.uniform(0.4, 0.93))
    tau = rng.uniform(0.05, 0.5) * n
    slow = [math.exp(-i / tau) for i in range(n)]
    if rng.random() < HALF:
        slow = [1.0 / math.sqrt(1 + 3 * i / tau) for i in range(n)]
    trend = [start * (share + (1 - share) * s) for s in slow]
    if kind == "epoch-steps":
        trend = [x * 0.85 ** int(i * epochs / n) for i, x in enumerate(trend)]
    return trend


def noisy(rng: random.Random, kind: str, level: float, sigma: float) -> float:
    if kind == "grpo":
        return rng.gauss(0, 1) * 0.01 + level
    if kind == "heavy-tailed":
        return max(level * (1 + sigma * student(rng)), 0.01 * level)
    if kind in {"every-step", "classification"}:
        return level * math.exp(rng.gauss(0, sigma))
    return max(level * (1 + rng.gauss(0, sigma)), 0.01 * level)


def schedule(n: int, name: str, warmup: float, peak: float = PEAK) -> list[float]:
    up = max(1, int(warmup * n))
    rates = []
    for i in range(n):
        if i < up:
            rates.append(peak * i / up)
        elif name == "constant":
            rates.append(peak)
        else:
            done = (i - up) / max(1, n - up)
            rates.append(peak * ((1 - done) if name == "linear" else 0.5 * (1 + math.cos(math.pi * done))))
    return rates


def norms(rng: random.Random, n: int, kind: str) -> list[float]:
    sigma, power, level = rng.uniform(0.1, 0.4), rng.uniform(-0.4, 0.3), math.exp(rng.uniform(-2, 2))
    heavy = kind in {"heavy-tailed", "grpo"}
    return [level * (1 + i) ** power * math.exp(sigma * (student(rng) if heavy else rng.gauss(0, 1))) for i in range(n)]


def evaluations(rng: random.Random, kind: str, trend: list[float], n: int) -> list[tuple[int, float, float]]:
    if kind == "grpo" or rng.random() < FIFTH:
        return []
    count, gap, sigma = rng.randint(3, 12), rng.uniform(0.0, 0.1), rng.uniform(0.002, 0.01)
    found = []
    for k in range(1, count + 1):
        row = min(n - 1, k * n // count)
        loss = (trend[row] + gap * trend[0] * 0.5) * (1 + rng.gauss(0, sigma))
        found.append((row, loss, min(0.95, 0.7 + 0.02 * k)))
    return found


Fault = Callable[[random.Random, Log], str]  # changes the log, returns the detector that should speak


def _at(rng: random.Random, log: Log, low: float = 0.3, high: float = 0.8) -> int:
    return max(10, int(rng.uniform(low, high) * log.rows))


def nan_loss(rng: random.Random, log: Log) -> str:
    start = _at(rng, log)
    log.losses[start:] = [math.nan] * (log.rows - start)
    return "NUM101"


def nan_gradient(rng: random.Random, log: Log) -> str:
    start = _at(rng, log)
    log.norms[start : start + 3] = [math.nan] * 3
    return "NUM101"


def masked_zero(rng: random.Random, log: Log) -> str:
    start = _at(rng, log)
    log.losses[start:] = [0.0] * (log.rows - start)
    log.norms[start:] = [math.nan] * (log.rows - start)
    return "NUM102"


def masked_average(rng: random.Random, log: Log) -> str:
    start = _at(rng, log)
    before = sorted(log.losses[start - 5 : start])[2]
    log.losses[start] = before * rng.uniform(0.4, 0.8)
    log.norms[start] = math.nan
    return "NUM102"


def spike(rng: random.Random, log: Log) -> str:
    start, high = _at(rng, log), rng.uniform(0.6, 3.0)
    for i in range(start, min(log.rows, start + rng.randint(1, 5))):
        log.losses[i] += high * (1.0 if log.losses[i] > LN2 else LN2)
    return "DIV103"


def tall_spike(rng: random.Random, log: Log) -> str:
    """Put in a spike that anyone would call one: 1.5 to 3 nats, and at least 10 times the usual change."""
    start, high = _at(rng, log), rng.uniform(1.5, 3.0)
    changes = sorted(abs(b - a) for a, b in pairwise(log.losses))
    high = max(high, 10 * changes[len(changes) // 2])
    for i in range(start, min(log.rows, start + rng.randint(1, 5))):
        log.losses[i] += high
    return "DIV103"


def divergence(rng: random.Random, log: Log) -> str:
    start, top = _at(rng, log, 0.2, 0.75), rng.uniform(1.5, 4.0) * log.losses[0]
    for i in range(start, log.rows):
        done = min(1.0, (i - start) / max(1, 0.15 * log.rows))
        log.losses[i] = log.losses[i] * (1 - done) + done * top * math.exp(rng.gauss(0, 0.05))
    return "DIV104"


def plateau(rng: random.Random, log: Log) -> str:
    start = _at(rng, log, 0.35, 0.6)
    level = sorted(log.losses[start - 5 : start + 5])[5]
    sigma = rng.choice([0.005, 0.01, 0.02, 0.05])
    log.losses[start:] = [level * (1 + rng.gauss(0, sigma)) for _ in range(start, log.rows)]
    log.rates = schedule(log.rows, "constant", 0.05)
    return "PLT105"


def no_learning(rng: random.Random, log: Log) -> str:
    level = LN2 if log.kind in {"dpo", "classification"} else rng.uniform(1.0, 3.0)
    sigma = rng.choice([0.005, 0.01, 0.02, 0.05])
    log.losses = [level * (1 + rng.gauss(0, sigma)) for _ in range(log.rows)]
    return "NOL106"


def explosion(rng: random.Random, log: Log) -> str:
    start, top = _at(rng, log, 0.5, 0.8), rng.uniform(math.log(20), math.log(1000))
    for i in range(start, log.rows):
        log.norms[i] *= math.exp(top * min(1.0, (i - start + 1) / max(1, 0.1 * log.rows)))
    return "GRD107"


def burst(rng: random.Random, log: Log) -> str:
    start, times = _at(rng, log), rng.uniform(20, 200)
    for i in range(start, min(log.rows, start + rng.randint(1, 4))):
        log.norms[i] *= times
    return "GRD107"


def vanishing(rng: random.Random, log: Log) -> str:
    start, factor = _at(rng, log, 0.2, 0.7), rng.choice([0.0, 1e-4, 1e-5])
    log.norms[start:] = [x * factor for x in log.norms[start:]]
    log.rates = schedule(log.rows, "constant", 0.05)
    return "GRD108"


def rate_zero(rng: random.Random, log: Log) -> str:
    start = rng.choice([0, _at(rng, log, 0.2, 0.6)])
    log.rates[start:] = [0.0] * (log.rows - start)
    return "LRS109"


def rate_low(rng: random.Random, log: Log) -> str:
    share = rng.uniform(0.01, 0.4)
    log.rates = [x * share for x in log.rates]
    return "LRS109"


def rate_restart(rng: random.Random, log: Log) -> str:
    start = _at(rng, log, 0.65, 0.85)
    log.scheduler = "linear"
    whole = schedule(log.rows, "linear", 0.05)
    log.rates = whole[:start] + whole[1 : log.rows - start + 1]
    return "LRS109"


def overfit(rng: random.Random, log: Log) -> str:
    count, rise, sigma = rng.randint(5, 12), rng.uniform(0.05, 0.6), rng.uniform(0.002, 0.01)
    best = rng.randint(1, count - 3)
    low = rng.uniform(0.6, 2.0)
    log.evals = []
    for k in range(count):
        done = (k - best) / (count - 1 - best) if k > best else (best - k) / max(1, best)
        loss = low * (1 + (rise if k > best else 0.2) * done) * (1 + rng.gauss(0, sigma))
        log.evals.append((min(log.rows - 1, (k + 1) * log.rows // count), loss, 0.7))
    log.losses = [x * (1 - 0.4 * i / log.rows) for i, x in enumerate(log.losses)]
    log.epochs = 5.0
    return "OVF110"


def duplicates(rng: random.Random, log: Log) -> str:
    log.repeats = sorted({_at(rng, log) for _ in range(rng.randint(1, 5))})
    return "DUP117"


FAULTS: tuple[Fault, ...] = (
    nan_loss,
    nan_gradient,
    masked_zero,
    masked_average,
    spike,
    tall_spike,
    divergence,
    plateau,
    no_learning,
    explosion,
    burst,
    vanishing,
    rate_zero,
    rate_low,
    rate_restart,
    overfit,
    duplicates,
)
NOT_IN_RL = {spike, tall_spike, divergence, plateau, no_learning, vanishing, masked_average, overfit}


def broken(rng: random.Random, fault: Fault) -> tuple[Log, str]:
    """Return a run with the fault in it, and the id of the detector that should find it."""
    kinds = KINDS[:-1] if fault in NOT_IN_RL else KINDS
    least = 30 if fault is no_learning else 20
    rows = rng.randint(least, 60) if rng.random() < HALF else rng.randint(80, 800)
    log = clean(rng, rng.choice(kinds), rows)
    log.fault = fault.__name__
    return log, fault(rng, log)


def _named(value: float) -> float | str:
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity"


def write_native(log: Log, path: Path) -> None:
    """Write the log as the recorder would."""
    head = {"schema": "gradience.vnext.telemetry/v1", "run_id": "r", "session": "s"}
    optimizer = {"name": "adamw_torch", "lr": PEAK}
    training = {"lr_scheduler": log.scheduler, "max_steps": log.rows * log.every}
    config: dict[str, Any] = {"model_name": "m", "optimizer": optimizer, "training": training}
    if log.labels:
        config |= {"num_labels": log.labels, "lora": {"task_type": "SEQ_CLS"}}
    elif log.kind not in {"dpo", "grpo"}:
        config["lora"] = {"task_type": "CAUSAL_LM"}
    lines: list[dict[str, Any]] = [{"event": "run_start", "step": None, "config": config}]
    for row in _rows(log):
        if "eval_loss" in row:
            metrics = {"loss": row["eval_loss"], "accuracy": row["eval_accuracy"], "n": 2000}
            lines.append({"event": "eval", "step": row["step"], "split": "eval", "metrics": metrics})
        else:
            kept = {
                "lr" if k == "learning_rate" else k: _named(v) if isinstance(v, float) else v for k, v in row.items()
            }
            lines.append({"event": "train_step", **kept})
    lines.append({"event": "run_end", "step": None, "status": "ok"})
    with path.open("w", encoding="utf-8") as file:
        for seq, line in enumerate(lines):
            file.write(json.dumps({**head, "ts": 1.7e9 + seq, "seq": seq, **line}) + "\n")


def write_trainer_state(log: Log, path: Path) -> None:
    """Write the log as the Hugging Face Trainer would: the one format that every peer reads."""
    rows = _rows(log)
    last = log.rows * log.every
    state = {"global_step": last, "max_steps": last, "epoch": log.epochs, "num_train_epochs": int(log.epochs)}
    state |= {"logging_steps": log.every, "eval_steps": log.every, "save_steps": log.every, "train_batch_size": 8}
    state |= {"best_metric": None, "best_model_checkpoint": None, "total_flos": 0, "log_history": rows}
    path.write_text(json.dumps(state), encoding="utf-8")  # bare NaN, as the Trainer writes it


def _rows(log: Log) -> list[dict[str, Any]]:
    by_row: dict[int, tuple[float, float]] = {row: (loss, accuracy) for row, loss, accuracy in log.evals}
    rows: list[dict[str, Any]] = []
    for i, loss in enumerate(log.losses):
        step, epoch = (i + 1) * log.every, (i + 1) * log.epochs / log.rows
        row = {"step": step, "loss": loss, "grad_norm": log.norms[i], "learning_rate": log.rates[i], "epoch": epoch}
        rows += [row | log.extras] * (2 if i in log.repeats else 1)
        if i in by_row:
            rows.append({"step": step, "epoch": epoch, "eval_loss": by_row[i][0], "eval_accuracy": by_row[i][1]})
    return rows
