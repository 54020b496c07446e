"""Logs of RL and preference runs drawn at random, with one fault each or none, as twelve trainers write them.

The levels, the noise and the columns follow those of benchmarks/rl_runs.py, and public logs or the source of verl,
OpenRLHF, Tinker, NeMo-RL and prime-rl. A run's name decides its half for good: `unseen` ones are for one last count.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

Track = dict[str, list[float]]  # by TRL's names

SEEDS = 6
_PREFERENCE = ("dpo", "kto", "orpo", "tinker-dpo")
_RL = ("grpo", "rloo", "verl", "verl-file", "openrlhf", "tinker", "nemo-rl", "prime-rl")
_NAMES: dict[str, dict[str, str]] = {
    "verl": {
        "reward": "critic/rewards/mean",
        "entropy": "actor/entropy",
        "kl": "actor/kl_loss",
        "completions/mean_length": "response_length/mean",
        "completions/clipped_ratio": "response_length/clip_ratio",
        "gap": "training/rollout_probs_diff_mean",
        "gap_kl": "rollout_corr/kl",
        "loss": "actor/pg_loss",
        "grad_norm": "actor/grad_norm",
        "learning_rate": "actor/lr",
    },
    "openrlhf": {
        "reward": "reward",
        "entropy": "entropy_loss",
        "kl": "kl",
        "completions/mean_length": "response_length",
        "completions/clipped_ratio": "truncated",
        "gap_kl": "vllm_kl",
        "loss": "policy_loss",
        "learning_rate": "actor_lr",
    },
    "tinker": {
        "reward": "env/all/reward/total",
        "entropy": "optim/entropy",
        "kl": "kl_policy_base",
        "completions/mean_length": "env/all/ac_tokens_per_turn",
        "gap_kl": "optim/kl_sample_train_v2",
        "learning_rate": "optim/lr",
    },
    "tinker-dpo": {
        "loss": "dpo_loss",
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
        "rewards/chosen": "chosen_reward",
        "rewards/rejected": "rejected_reward",
        "learning_rate": "learning_rate",
    },
    "nemo-rl": {
        "reward": "train/reward",
        "entropy": "train/approx_entropy",
        "kl": "train/kl_penalty",
        "completions/mean_length": "train/mean_gen_tokens_per_sample",
        "completions/clipped_ratio": "train/truncation_rate",
        "gap_kl": "train/gen_kl_error",
        "loss": "train/loss",
        "grad_norm": "train/grad_norm",
        "learning_rate": "train/lr",
    },
    "prime-rl": {
        "reward": "reward/all/mean",
        "entropy": "entropy/all/mean",
        "completions/mean_length": "decode_len/all/mean",
        "completions/clipped_ratio": "is_truncated/all/mean",
        "gap_kl": "mismatch_kl/all/mean",
        "loss": "loss/mean",
        "grad_norm": "optim/grad_norm",
        "learning_rate": "optim/lr",
    },
}
_NAMES["verl-file"] = _NAMES["verl"]


class Drawn(NamedTuple):
    """One run: who logged it, its fault (empty for a healthy twin), its seed."""

    trainer: str
    fault: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.trainer}-{self.fault or 'healthy'}-{self.seed}"

    @property
    def unseen(self) -> bool:
        """Whether it is of the half that is counted once."""
        return hashlib.sha256(self.name.encode()).digest()[0] % 2 == 1


def _rl(rng: random.Random, n: int) -> Track:
    scale = rng.choice([1.0, 1.0, 1.0, 2.0, 10.0])
    first, gain, sigma = rng.uniform(0.1, 0.5) * scale, rng.uniform(0.15, 0.5) * scale, rng.uniform(0.02, 0.1) * scale
    long, wide, far, gap = rng.uniform(60, 900), rng.uniform(0.3, 1.6), rng.uniform(0.003, 0.1), rng.uniform(5e-4, 3e-3)
    equal, cut, share = rng.uniform(0.0, 0.25), rng.uniform(0.0, 0.15), rng.uniform(0.5, 0.8)
    times = [i / (n - 1) for i in range(n)]
    reward = [first + gain * (1 - math.exp(-3 * t)) + rng.gauss(0, sigma) for t in times]
    peak = 10 ** rng.uniform(-5.5, -4.5)
    return {
        "reward": reward,
        "reward_std": [rng.uniform(0.25, 0.45) * scale * (1 - 0.3 * t) for t in times],
        "rewards/correct/mean": [share * x for x in reward],
        "rewards/correct/std": [0.3 * scale * rng.uniform(0.9, 1.1) for _ in times],
        "rewards/format/mean": [(1 - share) * x for x in reward],
        "rewards/format/std": [0.12 * scale * rng.uniform(0.8, 1.2) * (1 - 0.6 * t) for t in times],
        "frac_reward_zero_std": [_binomial(rng, 32, equal + 0.1 * t) for t in times],
        "entropy": [wide * (1 - 0.35 * t) * math.exp(rng.gauss(0, 0.05)) for t in times],
        "kl": [far * (t + 1e-3) * math.exp(rng.gauss(0, 0.3)) for t in times],
        "completions/mean_length": [long * (1 + 0.2 * t) * math.exp(rng.gauss(0, 0.08)) for t in times],
        "completions/clipped_ratio": [_binomial(rng, 128, cut) for _ in times],
        "gap_kl": [gap * math.exp(rng.gauss(0, 0.3)) for _ in times],
        "gap": [0.6 * math.sqrt(gap) * 0.3 * math.exp(rng.gauss(0, 0.2)) for _ in times],
        "loss": [rng.gauss(0, 0.02) for _ in times],
        "grad_norm": [0.4 * math.exp(rng.gauss(0, 0.3)) for _ in times],
        "learning_rate": [peak * (1 - 0.9 * t) for t in times],
    }


def _pairs(rng: random.Random, n: int, kind: str) -> Track:
    margin, order, pairs = rng.uniform(0.4, 2.5), rng.uniform(0.66, 0.9), rng.choice([16, 32, 64])
    start, end = {"kto": (0.5, 0.42), "orpo": (3.7, 2.9)}.get(kind, (math.log(2), rng.uniform(0.35, 0.55)))
    grown = [1 - math.exp(-4 * i / n) for i in range(n)]
    chosen, of, rejected = rng.uniform(-0.3, 0.4), rng.uniform(-300, -80), rng.uniform(-300, -80)
    peak = 10 ** rng.uniform(-6, -5)
    good = [chosen * g + rng.gauss(0, 0.08) for g in grown]
    gaps = [margin * g + rng.gauss(0, 0.15 * margin) * max(g, 0.1) for g in grown]
    track = {
        "loss": [end + (start - end) * (1 - g) + rng.gauss(0, 0.03) for g in grown],
        "rewards/chosen": good,
        "rewards/rejected": [a - b for a, b in zip(good, gaps, strict=True)],
        "rewards/margins": gaps,
        "rewards/accuracies": [_binomial(rng, pairs, 0.5 + (order - 0.5) * g) for g in grown],
        "logps/chosen": [of + 8 * g * chosen + rng.gauss(0, 6) for g in grown],
        "logps/rejected": [rejected - 10 * margin * g + rng.gauss(0, 6) for g in grown],
        "grad_norm": [rng.uniform(2, 6) * math.exp(rng.gauss(0, 0.3)) for _ in grown],
        "learning_rate": [peak * (1 - 0.9 * i / n) for i in range(n)],
    }
    if kind == "kto":
        del track["rewards/accuracies"]  # it has no pairs
    return track


def _binomial(rng: random.Random, n: int, p: float) -> float:
    return sum(rng.random() < p for _ in range(n)) / n


def _nan(rng: random.Random, track: Track) -> None:
    rows = rng.sample(range(len(track["reward"])), max(1, round(rng.uniform(0.15, 0.3) * len(track["reward"]))))
    for row in rows:
        track["reward"][row] = math.nan


def _dip(rng: random.Random, track: Track) -> None:
    """1.3 -> .5 -> 1.0: what was lost comes back in part."""
    top, n = rng.uniform(0.8, 1.6), len(track["reward"])
    low, end = rng.uniform(0.25, 0.5) * top, rng.uniform(0.68, 0.82) * top
    points = [(0.0, top), (0.2, top), (0.5, low), (0.6, low), (0.9, end), (1.0, end)]
    track["reward"] = [_line(points, i / (n - 1)) + rng.gauss(0, 0.04 * top) for i in range(n)]


def _line(points: list[tuple[float, float]], at: float) -> float:
    for (x, y), (right, top) in pairwise(points):
        if at <= right:
            return y + (top - y) * (at - x) / (right - x)
    return points[-1][1]


def _flat(rng: random.Random, track: Track) -> None:
    level, peak = sum(track["reward"][:3]) / 3, 10 ** rng.uniform(-7, -5.9)
    track["reward"] = [level * (1 + rng.gauss(0, 0.03)) for _ in track["reward"]]
    track["learning_rate"] = [peak * x / max(track["learning_rate"]) for x in track["learning_rate"]]
    track["kl"] = [1e-5 * rng.uniform(0.5, 2) for _ in track["kl"]]


def _cut(rng: random.Random, track: Track) -> None:
    share, most = rng.uniform(0.6, 0.95), rng.choice([128.0, 256.0, 512.0])
    track["completions/clipped_ratio"] = [_binomial(rng, 128, share) for _ in track["reward"]]
    track["completions/mean_length"] = [most * (0.75 + 0.25 * share) * rng.uniform(0.97, 1) for _ in track["reward"]]


def _kl_first(rng: random.Random, track: Track) -> None:
    level = 10 ** rng.uniform(-0.4, 2.2)
    track["kl"] = [level * math.exp(rng.gauss(0, 0.15)) for _ in track["kl"]]


def _gap_first(rng: random.Random, track: Track) -> None:
    times = 10 ** rng.uniform(1.3, 2.2)
    _wider(track, lambda _: times)


def _gap_grows(rng: random.Random, track: Track) -> None:
    times, n = 10 ** rng.uniform(1.6, 2.4), len(track["reward"])
    _wider(track, lambda row: times ** (row / n))


def _wider(track: Track, times: Callable[[int], float]) -> None:
    track["gap_kl"] = [max(x, 1e-3) * times(row) for row, x in enumerate(track["gap_kl"])]
    track["gap"] = [max(x, 6e-3) * math.sqrt(times(row)) for row, x in enumerate(track["gap"])]


def _component(track: Track, name: str, means: list[float], stds: list[float]) -> None:
    track[f"rewards/{name}/mean"], track[f"rewards/{name}/std"] = means, stds
    each = [track[key] for key in track if key.startswith("rewards/") and key.endswith("/mean")]
    track["reward"] = [sum(values) for values in zip(*each, strict=True)]


def _drowned(rng: random.Random, track: Track) -> None:
    """A third function pays for something in units of its own: characters, percent, log-probabilities."""
    wide = rng.uniform(15, 400) * track["rewards/correct/std"][0]
    level = rng.choice([-1, 1]) * rng.uniform(1, 5) * wide
    means = [
        level + 0.2 * wide * i / len(track["reward"]) + rng.gauss(0, 0.1 * wide) for i in range(len(track["reward"]))
    ]
    _component(track, "length", means, [wide * rng.uniform(0.8, 1.2) for _ in means])
    track["reward_std"] = [wide * rng.uniform(0.8, 1.2) for _ in means]


def _dead(rng: random.Random, track: Track) -> None:
    level = rng.choice([0.0, 0.0, -1.0, 0.1])
    _component(track, "tests", [level for _ in track["reward"]], [0.0 for _ in track["reward"]])


def _against(rng: random.Random, track: Track) -> None:
    """The total rises by one function, while what the task asks for falls."""
    n, scale = len(track["reward"]), track["rewards/correct/std"][0] / 0.3
    keep, gain, high = rng.uniform(0.2, 0.5), rng.uniform(1.0, 2.0), rng.uniform(0.5, 0.8)
    falls = [scale * high * (1 - (1 - keep) * i / n) + rng.gauss(0, 0.04 * scale) for i in range(n)]
    rises = [scale * gain * i / n + rng.gauss(0, 0.04 * scale) for i in range(n)]
    _component(track, "correct", falls, track["rewards/correct/std"])
    _component(track, "style", rises, [0.4 * scale for _ in range(n)])


def _entropy(rng: random.Random, track: Track) -> None:
    end, n = rng.uniform(0.01, 0.06), len(track["entropy"])
    track["entropy"] = [x * end ** min(1.0, 2 * i / n) for i, x in enumerate(track["entropy"])]


def _swapped(rng: random.Random, track: Track) -> None:
    n = len(track["loss"])
    track["rewards/accuracies"] = [min(1.0, 0.5 + 3 * i / n) - rng.choice([0, 0, 0.015]) for i in range(n)]
    right = rng.uniform(0.08, 0.24)
    track["eval_rewards/accuracies"] = [right * rng.uniform(0.85, 1.15) for _ in range(5)]
    track["eval_loss"] = [0.7 + 0.25 * i * rng.uniform(0.9, 1.1) for i in range(5)]


def _early_fall(rng: random.Random, track: Track) -> None:
    n, lost, start = len(track["loss"]), rng.uniform(80, 300), rng.uniform(1, 0.18 * len(track["loss"]))
    fallen = [1 - math.exp(-2.5 * i / start) for i in range(n)]
    for name in ("logps/chosen", "logps/rejected"):
        track[name] = [x - lost * f * rng.uniform(0.95, 1.05) for x, f in zip(track[name], fallen, strict=True)]
    for name in ("rewards/chosen", "rewards/rejected"):
        track[name] = [x - 0.1 * lost * f for x, f in zip(track[name], fallen, strict=True)]


def _unstable(rng: random.Random, track: Track) -> None:
    n, first = len(track["loss"]), track["loss"][0]
    top, low = first * rng.uniform(2.2, 4.0), first * rng.uniform(0.6, 0.9)
    points = [(0.0, first), (0.12, first), (0.25, top), (0.35, top), (0.6, low), (1.0, low)]
    track["loss"] = [_line(points, i / (n - 1)) * math.exp(rng.gauss(0, 0.06)) for i in range(n)]
    track["grad_norm"] = [
        x * (30 if points[1][0] < i / n < points[4][0] else 1) for i, x in enumerate(track["grad_norm"])
    ]


def _dead_gradient(rng: random.Random, track: Track) -> None:
    """Both answers have lost nearly all probability; the margin is what is left by chance, and nothing moves."""
    n, level, margin = len(track["loss"]), rng.uniform(-240, -170), rng.uniform(1.3, 2.4)
    for name, apart in (("logps/chosen", 0.0), ("logps/rejected", 10 * margin)):
        track[name] = [max(-70 - apart, level) if i == 0 else level - apart + rng.gauss(0, 3) for i in range(n)]
    track["rewards/chosen"] = [0.1 * (x + 70) for x in track["logps/chosen"]]
    track["rewards/margins"] = [0.0 if i == 0 else margin + rng.gauss(0, 1.0) for i in range(n)]
    track["rewards/rejected"] = [a - b for a, b in zip(track["rewards/chosen"], track["rewards/margins"], strict=True)]
    track["rewards/accuracies"] = [_binomial(rng, 16, 0.65) for _ in range(n)]
    track["loss"] = [0.693 if i == 0 else 0.55 + rng.gauss(0, 0.1) for i in range(n)]
    track["grad_norm"] = [60.0 if i == 0 else 1e-3 * math.exp(rng.gauss(0, 0.5)) for i in range(n)]


class Fault(NamedTuple):
    """What is done to a healthy run, by whom it can be logged, what must be said then, and what would be false."""

    does: Callable[[random.Random, Track], None]
    trainers: tuple[str, ...]
    must: tuple[str, ...]
    mustnot: tuple[str, ...] = ()


_COMPONENTS = ("grpo", "rloo")
_WITH_KL = ("grpo", "rloo", "verl", "openrlhf", "tinker", "nemo-rl")
_WITH_CUT = ("grpo", "verl", "openrlhf", "nemo-rl", "prime-rl")
_WITH_GAP = ("grpo", "verl-file", "tinker", "nemo-rl", "prime-rl")
FAULTS: dict[str, Fault] = {
    "nan": Fault(_nan, ("grpo", "verl", "openrlhf", "tinker"), ("SOME_NULL",)),
    "dip": Fault(_dip, _RL, ("FELL",)),
    "flat": Fault(_flat, ("grpo", "rloo"), ("LOW_RATE",), ("LEARNS",)),
    "cut": Fault(_cut, _WITH_CUT, ("CUT_OFF",)),
    "kl-first": Fault(_kl_first, _WITH_KL, ("KL",)),
    "gap-first": Fault(_gap_first, _WITH_GAP, ("MISMATCH",)),
    "gap-grows": Fault(_gap_grows, _WITH_GAP, ("MISMATCH",)),
    "drowned": Fault(_drowned, _COMPONENTS, ("COMPONENT",)),
    "dead": Fault(_dead, _COMPONENTS, ("CONSTANT",)),
    "against": Fault(_against, _COMPONENTS, ("COMPONENT",)),
    "entropy": Fault(_entropy, ("grpo", "verl", "tinker", "nemo-rl", "prime-rl"), ("ENTROPY",)),
    "swapped": Fault(_swapped, ("dpo", "orpo"), ("SWAPPED",), ("OVERFITS",)),
    "early-fall": Fault(_early_fall, ("dpo", "orpo", "tinker-dpo"), ("BOTH_FALL",)),
    "unstable": Fault(_unstable, _PREFERENCE, ("UNSTABLE",)),
    "dead-gradient": Fault(_dead_gradient, ("dpo",), ("BOTH_FALL",), ("LEARNS",)),
}


def runs() -> Iterator[Drawn]:
    """All runs: each fault by each trainer that could log it in two seeds, and six healthy ones of each trainer."""
    for fault, of in FAULTS.items():
        seeds = 2 if len(of.trainers) > 3 else SEEDS if len(of.trainers) == 1 else 4
        yield from (Drawn(trainer, fault, seed) for trainer in of.trainers for seed in range(seeds))
    yield from (Drawn(trainer, "", seed) for trainer in (*_RL, *_PREFERENCE) for seed in range(SEEDS))


def write(run: Drawn, out: Path) -> Path:
    """Draw a run and write it as its trainer does; return the file."""
    rng = random.Random(run.name)  # noqa: S311  # seeded on purpose
    n = rng.choice([24, 40, 60, 120, 300])
    track = _pairs(rng, n, run.trainer) if run.trainer in _PREFERENCE else _rl(rng, n)
    if run.fault:
        FAULTS[run.fault].does(rng, track)
    elif run.trainer in {"dpo", "orpo"}:
        right = sum(track["rewards/accuracies"][-5:]) / 5 - rng.uniform(0.0, 0.1)
        track["eval_rewards/accuracies"] = [right - 0.05 / (i + 1) for i in range(5)]
        track["eval_loss"] = [track["loss"][i * (n - 1) // 4] + 0.02 for i in range(5)]
    folder = out / run.name
    folder.mkdir(parents=True, exist_ok=True)
    return _WRITERS.get(run.trainer, _trl)(folder, run, track, rng)


def _rows(run: Drawn, track: Track) -> list[dict[str, float]]:
    names = _NAMES[run.trainer]
    kept = {names[name]: values for name, values in track.items() if name in names}
    return [dict(zip(kept, values, strict=True)) for values in zip(*kept.values(), strict=True)]


def _trl(folder: Path, run: Drawn, track: Track, rng: random.Random) -> Path:
    every, n = rng.choice([1, 5, 10]), len(track["loss"])
    gap = [0.8 * math.sqrt(2 * max(x, 0.0)) for x in track.pop("gap_kl", [])]  # that of log-probabilities
    track.pop("gap", None)
    if run.trainer == "grpo" and (run.fault.startswith("gap") or run.seed % 2):
        track["sampling/sampling_logp_difference/mean"] = gap
    kept = {name: values for name, values in track.items() if not name.startswith("eval_")}
    rows: list[dict[str, Any]] = [
        {**{name: values[i] for name, values in kept.items()}, "epoch": (i + 1) / n, "step": (i + 1) * every}
        for i in range(n)
    ]
    held = {name: values for name, values in track.items() if name.startswith("eval_")}
    for i in range(5 if held else 0):
        at = max(1, (i + 1) * n // 5) * every
        rows.append({**{name: values[i] for name, values in held.items()}, "epoch": (i + 1) / 5, "step": at})
    rows.sort(key=lambda row: row["step"])
    if run.trainer in _RL or run.seed % 2:
        peft = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(peft), encoding="utf-8")
    state = {"global_step": n * every, "max_steps": n * every, "num_train_epochs": 1, "epoch": 1.0, "log_history": rows}
    path = folder / "trainer_state.json"
    path.write_text(json.dumps(state), encoding="utf-8")
    return path


def _verl(folder: Path, run: Drawn, track: Track, _: random.Random) -> Path:
    lead = "(TaskRunner pid=4711) " if run.seed % 2 else ""
    said = [
        " - ".join(f"{name}:np.float64({x!r})" if "actor" in name else f"{name}:{x!r}" for name, x in row.items())
        for row in _rows(run, track)
    ]
    path = folder / "train.log"
    path.write_text("".join(f"{lead}step:{i} - {text}\n" for i, text in enumerate(said, 1)), encoding="utf-8")
    return path


def _verl_file(folder: Path, run: Drawn, track: Track, _: random.Random) -> Path:
    path = folder / "verl.jsonl"
    path.write_text("".join(json.dumps({"step": i, "data": row}) + "\n" for i, row in enumerate(_rows(run, track), 1)))
    return path


def _openrlhf(folder: Path, run: Drawn, track: Track, _: random.Random) -> Path:
    path = folder / "train.log"
    path.write_text(
        "".join(f"(PPOTrainer pid=99) \u2728 Global step {i}: {row}\n" for i, row in enumerate(_rows(run, track), 1)),
        encoding="utf-8",
    )
    return path


def _tinker(folder: Path, run: Drawn, track: Track, _: random.Random) -> Path:
    rows = _rows(run, track)
    for i, row in enumerate(rows):
        row |= {"step": i, "progress/batch": i, "progress/done_frac": (i + 1) / len(rows), "time/total": 300.0}
        if run.trainer == "tinker":
            mixed = 1.0 - track["frac_reward_zero_std"][i]
            row |= {"env/all/by_group/frac_mixed": mixed, "env/all/by_group/frac_all_bad": 1.0 - mixed}
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _wandb_csv(folder: Path, run: Drawn, track: Track, _: random.Random) -> Path:
    path = folder / "history.csv"
    rows = _rows(run, track)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["_step", *rows[0]])
        writer.writeheader()
        writer.writerows({"_step": i, **row} for i, row in enumerate(rows, 1))
    return path


_WRITERS = {
    "verl": _verl,
    "verl-file": _verl_file,
    "openrlhf": _openrlhf,
    "tinker": _tinker,
    "tinker-dpo": _tinker,
    "nemo-rl": _wandb_csv,
    "prime-rl": _wandb_csv,
}
