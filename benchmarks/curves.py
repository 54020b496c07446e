"""Synthetic healthy training logs of seven kinds for benchmarks/detectors.py; faults.py puts faults into them.

Nothing here is a real run. The noise is like that of logs in ../shared/data. Between rows it is 1 to 10 % if several
steps are averaged, and 20 % and skewed if every step is logged. Gradient norms are log-normal, 0.2 to 0.4.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field
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
    columns: dict[str, list[float]] = field(default_factory=dict)  # further values of each row
    examples: int = 2000  # per evaluation
    resumed: tuple[int, list[float]] | None = None  # row gone back to, and the losses first logged beyond it
    audit: dict[str, Any] | None = None
    ended: bool = True
    torn: bool = False

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
    log.columns = columns(random.Random(repr(losses[0])), kind, n)  # noqa: S311  # a stream of its own
    return log


def columns(rng: random.Random, kind: str, n: int) -> dict[str, list[float]]:
    """Return the columns that TRL logs beside the loss: rewards whose margin grows (DPO), or a rising reward (GRPO)."""
    if kind == "dpo":
        margin, order, pairs = rng.uniform(0.2, 3.0), rng.uniform(0.6, 0.95), rng.choice([8, 32, 128])
        chosen, sigma = rng.uniform(-0.8, 0.5), rng.uniform(0.05, 0.3)
        grown = [1 - math.exp(-4 * i / n) for i in range(n)]
        return {
            "rewards/margins": [margin * g + rng.gauss(0, sigma * margin * max(g, 0.1)) for g in grown],
            "rewards/accuracies": [share(rng, pairs, 0.5 + (order - 0.5) * g) for g in grown],
            "rewards/chosen": [chosen * g + rng.gauss(0, 0.1) for g in grown],
        }
    if kind == "grpo":
        start, rise, sigma = rng.uniform(0.1, 0.8), rng.uniform(0.05, 0.6), rng.uniform(0.02, 0.15)
        equal, far, cut, groups = rng.uniform(0, 0.4), rng.uniform(0.001, 0.3), rng.uniform(0, 0.2), rng.choice([8, 32])
        return {
            "reward": [start + rise * i / n + rng.gauss(0, sigma) for i in range(n)],
            "frac_reward_zero_std": [share(rng, groups, equal) for _ in range(n)],
            "kl": [far * i / n * math.exp(rng.gauss(0, 0.3)) for i in range(n)],
            "completions/clipped_ratio": [share(rng, 4 * groups, cut) for _ in range(n)],
        }
    return {}


def share(rng: random.Random, n: int, p: float) -> float:
    """Return the fraction of n random draws of probability p that came true."""
    return sum(rng.random() < p for _ in range(n)) / n


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


def _named(value: float) -> float | str:
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity"


def write_native(log: Log, path: Path) -> None:
    """Write the log as the recorder would."""
    lines = [_start(log), *_events(log)]
    if log.audit is not None:
        lines.append({"event": "metrics", "step": log.rows * log.every, "kind": "lora_audit", "metrics": log.audit})
    if log.ended:
        lines.append({"event": "run_end", "step": None, "status": "ok"})
    if log.resumed is not None:
        lines = _resume(log, lines)
    head = {"schema": "gradience.vnext.telemetry/v1", "run_id": "r", "session": "s"}
    with path.open("w", encoding="utf-8") as file:
        for seq, line in enumerate(lines):
            text = json.dumps({**head, "ts": 1.7e9 + seq, "seq": seq, **line}) + "\n"
            file.write(text[: len(text) // 2] if log.torn and seq == len(lines) - 1 else text)


def _start(log: Log) -> dict[str, Any]:
    optimizer = {"name": "adamw_torch", "lr": PEAK}
    training = {"lr_scheduler": log.scheduler, "max_steps": log.rows * log.every}
    config: dict[str, Any] = {"model_name": "m", "optimizer": optimizer, "training": training}
    if log.labels:
        config |= {"num_labels": log.labels, "lora": {"task_type": "SEQ_CLS"}}
    elif log.kind not in {"dpo", "grpo"}:
        config["lora"] = {"task_type": "CAUSAL_LM"}
    return {"event": "run_start", "step": None, "config": config}


def _events(log: Log) -> list[dict[str, Any]]:
    lines = []
    for row in _rows(log):
        if "eval_loss" in row:
            metrics = {"loss": row["eval_loss"], "accuracy": row["eval_accuracy"], "n": log.examples}
            lines.append({"event": "eval", "step": row["step"], "split": "eval", "metrics": metrics})
        else:
            kept = {
                "lr" if k == "learning_rate" else k: _named(v) if isinstance(v, float) else v for k, v in row.items()
            }
            lines.append({"event": "train_step", **kept})
    return lines


def _resume(log: Log, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines with a resumed start inserted, which runs again some rows that were already logged."""
    row, losses = log.resumed or (0, [])
    back = row * log.every
    at = next(i for i, line in enumerate(lines) if i and (line["step"] is None or line["step"] > back))
    lost = [
        {"event": "train_step", "step": back + (i + 1) * log.every, "loss": loss, "lr": PEAK, "grad_norm": 1.0}
        for i, loss in enumerate(losses)
    ]
    again = {**lines[0], "session": "s2", "seq": 0, "resumed_from_step": back}
    later = [{**line, "session": "s2", "seq": i} for i, line in enumerate(lines[at:], 1)]
    return [*lines[:at], *lost, again, *later]


def write_trainer_state(log: Log, path: Path) -> None:
    """Write the log as the Hugging Face Trainer would, which is the only format that every peer reads."""
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
        row |= {name: values[i] for name, values in log.columns.items()}
        rows += [row] * (2 if i in log.repeats else 1)
        if i in by_row:
            rows.append({"step": step, "epoch": epoch, "eval_loss": by_row[i][0], "eval_accuracy": by_row[i][1]})
    return rows
