"""Faults that are put into the healthy logs of curves.py, each with the id of the detector that should find it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

from curves import HALF, KINDS, LN2, Log, clean, schedule, share

Fault = Callable[[random.Random, Log], str]  # changes the log, and returns the detector that should find the fault


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
    held_out = next((loss for row, loss, _ in log.evals if row >= start), level)  # it does not fall further either
    stays = next((accuracy for row, _, accuracy in log.evals if row >= start), 0.0)
    log.evals = [
        (row, held_out * (1 + rng.gauss(0, 0.002)), stays) if row >= start else (row, loss, accuracy)
        for row, loss, accuracy in log.evals
    ]
    return "PLT105"


def no_learning(rng: random.Random, log: Log) -> str:
    level = LN2 if log.kind in {"dpo", "classification"} else rng.uniform(1.0, 3.0)
    sigma = rng.choice([0.005, 0.01, 0.02, 0.05])
    log.losses = [level * (1 + rng.gauss(0, sigma)) for _ in range(log.rows)]
    # weights that stand still leave everything else still, too
    log.norms = [math.exp(rng.gauss(0, 0.3)) for _ in range(log.rows)]
    log.evals = [(row, level * (1 + rng.gauss(0, 2e-4)), accuracy) for row, _, accuracy in log.evals]
    if log.kind == "dpo":
        no_separation(rng, log)
    return "NOL106"


def explosion(rng: random.Random, log: Log) -> str:
    start, top = _at(rng, log, 0.5, 0.8), rng.uniform(math.log(20), math.log(1000))
    for i in range(start, log.rows):
        log.norms[i] *= math.exp(top * min(1.0, (i - start + 1) / max(1, 0.1 * log.rows)))
    return "GRD107"


def burst(rng: random.Random, log: Log) -> str:
    """Multiply the gradient norm of three to six rows by 20 to 200: fewer are the heavy tail of a healthy run."""
    start, times = _at(rng, log), rng.uniform(20, 200)
    for i in range(start, min(log.rows, start + rng.randint(3, 6))):
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
    kinds = ONLY_IN.get(fault) or (KINDS[:-1] if fault in NOT_IN_RL else KINDS)
    least = 30 if fault is no_learning else 20
    rows = rng.randint(least, 60) if rng.random() < HALF else rng.randint(80, 800)
    log = clean(rng, rng.choice(kinds), rows)
    log.fault = fault.__name__
    return log, fault(rng, log)


# The faults below belong to one objective or to our log format, so other programs' formats cannot hold them.


def memorized(rng: random.Random, log: Log) -> str:
    """Put held-out losses 0.5 to 1.5 nats over the training loss, after three epochs."""
    gap = rng.uniform(0.5, 1.5)
    log.evals = [(row, log.losses[row] + gap, 0.7) for row in (log.rows // 2, log.rows - 1)]
    log.epochs = 3.0
    return "GAP111"


def unfinished(rng: random.Random, log: Log) -> str:
    """Let the held-out loss fall by 4 to 20 % to the end, evaluated four times or more."""
    count, fall, high = rng.randint(4, 12), rng.uniform(0.04, 0.2), rng.uniform(0.8, 2.0)
    for k in range(1, count + 1):
        loss = high * (1 - fall * 4 * k / count) * (1 + rng.gauss(0, 0.001))
        log.evals = [*log.evals[: k - 1], (k * log.rows // count - 1, loss, 0.7)]
    return "UND126"


def epoch_steps(rng: random.Random, log: Log) -> str:
    """Let the training loss step down by 8 to 35 % at the ends of two to four epochs."""
    epochs, drop = rng.randint(2, 4), rng.uniform(0.08, 0.35)
    log.losses = [x * (1 - drop) ** int(i * epochs / log.rows) for i, x in enumerate(log.losses)]
    log.epochs = float(epochs)
    return "MEM127"


def chance(rng: random.Random, log: Log) -> str:
    rows = [log.rows * k // 4 - 1 for k in range(1, 5)]
    log.evals = [(row, LN2 * math.exp(rng.gauss(0, 0.02)), share(rng, log.examples, 0.5)) for row in rows]
    return "CHN112"


def few_examples(rng: random.Random, log: Log) -> str:
    log.examples = rng.randint(50, 400)
    log.evals = [(log.rows - 1, log.losses[-1], share(rng, log.examples, rng.uniform(0.6, 0.85)))]
    return "SML113"


def no_end(_: random.Random, log: Log) -> str:
    log.ended = False
    return "END114"


def torn_line(_: random.Random, log: Log) -> str:
    log.ended, log.torn = False, True
    return "TRN115"


def resumed_same(rng: random.Random, log: Log) -> str:
    """Resume with the same data and weights: steps that are run again have the same losses up to rounding."""
    row = _at(rng, log, 0.4, 0.6)
    again = log.losses[row : row + min(8, log.rows - row - 1)]
    log.resumed = (row, [loss * math.exp(rng.gauss(0, 0.001)) for loss in again])
    return "RES116"


def resumed_other(rng: random.Random, log: Log) -> str:
    """Resume from other weights: steps that are run again have losses that differ by 30 to 100 %."""
    row, factor = _at(rng, log, 0.4, 0.6), rng.uniform(1.3, 2.0)
    again = log.losses[row : row + min(8, log.rows - row - 1)]
    log.resumed = (row, [loss * factor * math.exp(rng.gauss(0, 0.02)) for loss in again])
    return "RES116"


def sparse(rng: random.Random, log: Log) -> str:
    keep = rng.randint(2, 19)
    log.losses, log.norms, log.rates = log.losses[:keep], log.norms[:keep], log.rates[:keep]
    log.columns = {name: values[:keep] for name, values in log.columns.items()}
    log.evals = [pair for pair in log.evals if pair[0] < keep]
    return "GAP118"


def broken_adapter(_: random.Random, log: Log) -> str:
    log.audit = {"verdict": "broken"}
    return "NUM201"


def no_separation(rng: random.Random, log: Log) -> str:
    pairs = rng.choice([8, 32, 128])
    log.columns["rewards/accuracies"] = [share(rng, pairs, 0.5) for _ in range(log.rows)]
    log.columns["rewards/margins"] = [rng.gauss(0, 0.05) for _ in range(log.rows)]
    return "PRF119"


def chosen_falls(rng: random.Random, log: Log) -> str:
    low = rng.uniform(1.5, 6.0)
    log.columns["rewards/chosen"] = [
        -low * (1 - math.exp(-4 * i / log.rows)) + rng.gauss(0, 0.2) for i in range(log.rows)
    ]
    return "PRF120"


def reward_falls(rng: random.Random, log: Log) -> str:
    """Let the reward fall within a tenth of the run, by 40 to 90 % of where it was, and under its first level."""
    start = _at(rng, log, 0.3, 0.6)
    reward = log.columns["reward"]
    level, first = sorted(reward[start - 8 : start])[4], sorted(reward[:8])[4]
    fall = level - min(level * (1 - rng.uniform(0.4, 0.9)), first)
    for i in range(start, log.rows):
        log.columns["reward"][i] = rng.gauss(level, 0.05) - fall * min(1.0, (i - start) / max(1, 0.1 * log.rows))
    return "RWD122"


def equal_groups(rng: random.Random, log: Log) -> str:
    start, equal = _at(rng, log, 0.2, 0.5), rng.uniform(0.93, 1.0)
    late = [share(rng, 32, equal) for _ in range(start, log.rows)]
    log.columns["frac_reward_zero_std"][start:] = late
    return "ZVR123"


def kl_high(rng: random.Random, log: Log) -> str:
    far = rng.uniform(3.0, 20.0)
    log.columns["kl"] = [far * i / log.rows * math.exp(rng.gauss(0, 0.3)) for i in range(log.rows)]
    return "KLD124"


def cut_off(rng: random.Random, log: Log) -> str:
    cut = rng.uniform(0.6, 1.0)
    log.columns["completions/clipped_ratio"] = [share(rng, 64, cut) for _ in range(log.rows)]
    return "CLP125"


_TEXT = ("gaussian", "heavy-tailed", "epoch-steps", "every-step")
_LM = (*_TEXT, "classification")
LOG_FAULTS: tuple[Fault, ...] = (
    memorized,
    unfinished,
    epoch_steps,
    chance,
    few_examples,
    no_end,
    torn_line,
    resumed_same,
    resumed_other,
    sparse,
    broken_adapter,
    no_separation,
    chosen_falls,
    reward_falls,
    equal_groups,
    kl_high,
    cut_off,
)
ONLY_IN: dict[Fault, tuple[str, ...]] = {
    memorized: _LM,
    unfinished: _LM,
    epoch_steps: _TEXT,
    chance: ("classification",),
    few_examples: ("classification",),
    resumed_same: _LM,
    resumed_other: _LM,
    **dict.fromkeys((reward_falls, equal_groups, kl_high, cut_off), ("grpo",)),
}
