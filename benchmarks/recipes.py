"""The recipes that benchmarks/trainings.py trains, one for each way in which a run can be healthy or broken.

A label with a question mark depends on how the training went. The held-out loss outside the log decides that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

LEARNT = 0.94  # a run has learnt if its held-out loss fell below this multiple of the one before
DIVERGED = 1.5  # a run has diverged if its held-out loss rose above this multiple of the one before


@dataclass(frozen=True)
class Recipe:
    """One training: its data and model, its length, and its fault."""

    kind: str = "lm"  # or "classes"
    examples: int = 2000
    steps: int = 100
    batch: int = 8
    every: int = 5  # steps per logged row
    lr: float = 1e-3
    scheduler: str = "linear"
    warmup: int = 0
    lora: bool = False
    evals: int = 0
    accumulate: int = 1
    spread: float = 0.0  # spread of the examples' difficulty, which makes the noise between rows
    classes: int = 2
    first_row: bool = False  # log the first step alone, too
    fault: str | None = None
    must: tuple[str, ...] = ()
    mustnot: tuple[str, ...] = ()


class Truth(NamedTuple):
    """Held-out loss before and after training, measured outside the log."""

    before: float
    after: float


_CLEAN = ("ANY_WARNING", "DIVERGED", "REPEATED", "SCALE", "NAN")
_IF_LEARNT = ("LEARNS?",)  # must be said if the held-out loss fell under LEARNT of it
_HEALTHY = Recipe(must=_IF_LEARNT, mustnot=_CLEAN)
_IDLE = Recipe(must=("NO_LEARNING",), mustnot=("LEARNS", "DIVERGED"), examples=4000)
_EXPLODED = Recipe(must=("DIVERGED?",), mustnot=("LEARNS?",), first_row=True)
_AGAIN = Recipe(must=("REPEATED",), mustnot=("DIVERGED", "NAN"), examples=64, lr=3e-3)

RECIPES: dict[str, Recipe] = {
    "healthy_2_rows": replace(_HEALTHY, steps=20, every=10, must=()),
    "healthy_4_rows": replace(_HEALTHY, steps=120, every=30, lr=2e-3),
    "healthy_5_rows_lora": replace(_HEALTHY, steps=150, every=30, lora=True, lr=5e-3, scheduler="constant"),
    "healthy_8_rows": replace(_HEALTHY, steps=120, every=15, lora=True, lr=5e-3, scheduler="cosine", warmup=5),
    "healthy_12_rows": replace(_HEALTHY, steps=120, every=10, scheduler="constant"),
    "healthy_20_rows": replace(_HEALTHY, steps=100, every=5, scheduler="cosine", warmup=10),
    "healthy_28_rows_lora": replace(_HEALTHY, steps=140, every=5, lora=True, lr=5e-3),
    "healthy_60_rows": replace(_HEALTHY, steps=60, every=1, batch=16, lr=4e-3, spread=0.3),
    "healthy_128_noisy": replace(_HEALTHY, steps=128, every=1, batch=2, lr=3e-3, spread=0.15),
    "healthy_130_constant": replace(_HEALTHY, steps=130, every=1, batch=4, scheduler="constant", lr=2e-3, spread=0.5),
    "healthy_evals": replace(_HEALTHY, steps=150, every=5, evals=5, scheduler="cosine"),
    "healthy_evals_lora": replace(_HEALTHY, steps=120, every=10, evals=4, lora=True, lr=5e-3),
    "healthy_3_epochs": replace(_HEALTHY, steps=150, every=10, batch=16, examples=800),
    "healthy_classes": replace(_HEALTHY, kind="classes", steps=120, every=6, batch=16, lr=2e-3, evals=5),
    "healthy_classes_4": replace(
        _HEALTHY, kind="classes", classes=4, steps=120, every=12, batch=16, lr=2e-2, lora=True, evals=5
    ),
    "healthy_classes_every_row": replace(_HEALTHY, kind="classes", steps=80, every=1, batch=16, lr=2e-2, lora=True),
    "lr_x100": replace(_EXPLODED, steps=100, every=5, lr=0.3),
    "lr_x100_9_rows": replace(_EXPLODED, steps=90, every=10, lr=0.5, scheduler="constant"),
    "lr_x100_4_rows": replace(_EXPLODED, steps=40, every=10, lr=0.5),
    "lr_x100_every_row": replace(_EXPLODED, steps=60, every=1, lr=0.2, lora=True, scheduler="cosine", warmup=4),
    "lr_x100_evals": replace(_EXPLODED, steps=100, every=5, lr=0.3, evals=5),
    "lr_x100_classes": replace(
        _EXPLODED, kind="classes", steps=100, every=5, lr=1.0, evals=5, batch=16, scheduler="constant"
    ),
    "repeated_50": replace(_AGAIN, steps=400, every=10),
    "repeated_50_5_rows": replace(_AGAIN, steps=400, every=80, scheduler="constant"),
    "repeated_25": replace(_AGAIN, steps=200, every=5, lr=5e-3),
    "repeated_100_lora": replace(_AGAIN, steps=400, every=20, batch=16, lr=2e-2, lora=True),
    "lr_zero": replace(_IDLE, steps=60, every=3, lr=0.0),
    "lr_tiny": replace(_IDLE, steps=60, every=3, lr=1e-8),
    "lr_tiny_evals": replace(_IDLE, steps=80, every=8, lr=1e-8, evals=5),
    "stale_optimizer": replace(_IDLE, steps=120, every=4, fault="stale"),
    "stale_classes": replace(_IDLE, kind="classes", steps=60, every=3, batch=16, fault="stale", evals=4),
    "shuffled_labels": Recipe(
        kind="classes",
        fault="shuffled",
        steps=100,
        every=5,
        batch=16,
        evals=5,
        must=("AT_CHANCE",),
        mustnot=("LEARNS", "DIVERGED"),
    ),
    "shuffled_labels_4": Recipe(
        kind="classes",
        classes=4,
        fault="shuffled",
        steps=100,
        every=5,
        batch=16,
        evals=4,
        must=("AT_CHANCE",),
        mustnot=("LEARNS", "DIVERGED"),
        lora=True,
        lr=2e-3,
    ),
    "masked_nan": Recipe(fault="nan", steps=80, every=4, must=("NAN",), mustnot=("SKIPPED", "LEARNS")),
    "fp16_skips": replace(
        _HEALTHY,
        fault="fp16",
        steps=30,
        every=1,
        batch=16,
        lr=2e-3,
        must=("SKIPPED", "LEARNS?"),
        mustnot=("NAN", *_CLEAN),
        warmup=3,
    ),
    "fp16_skips_long": replace(
        _HEALTHY, fault="fp16", steps=90, every=1, batch=8, must=("SKIPPED", "LEARNS?"), mustnot=("NAN", *_CLEAN)
    ),
    "summed_loss": Recipe(
        fault="summed",
        accumulate=8,
        batch=2,
        steps=40,
        every=4,
        evals=4,
        must=("SCALE",),
        mustnot=("DIVERGED", "GAP", "NAN"),
    ),
    "summed_loss_16": Recipe(
        fault="summed",
        accumulate=16,
        batch=2,
        steps=36,
        every=6,
        evals=6,
        lora=True,
        lr=5e-3,
        must=("SCALE",),
        mustnot=("DIVERGED", "GAP", "NAN"),
    ),
    "summed_loss_no_eval": Recipe(
        fault="summed", accumulate=16, batch=1, steps=40, every=4, must=("SCALE",), mustnot=("DIVERGED", "NAN")
    ),
    "accumulated_fine": replace(_HEALTHY, accumulate=8, batch=2, steps=40, every=4, evals=4),
    "resumed": Recipe(fault="resumed", steps=80, every=4, must=("RESUMED",), mustnot=("DIVERGED", "NAN")),
    "stopped_early": replace(
        _HEALTHY, steps=40, every=2, evals=6, scheduler="constant", lr=1e-3, must=("UNFINISHED", "LEARNS?")
    ),
    "overfit": Recipe(
        examples=64, steps=300, every=10, lr=3e-3, evals=8, must=("OVERFIT",), mustnot=("DIVERGED", "NAN")
    ),
    "leak": Recipe(
        fault="leak", examples=96, steps=400, every=10, lr=3e-3, evals=8, must=(), mustnot=("DIVERGED", "NAN")
    ),
    "plateau": Recipe(
        steps=600,
        every=10,
        batch=8,
        examples=20000,
        lr=6e-3,
        scheduler="constant",
        must=("PLATEAU", "LEARNS?"),
        mustnot=("DIVERGED", "ANY_WARNING"),
    ),
    "bad_batch": Recipe(fault="bad_batch", steps=150, every=2, lr=1e-3, must=("SPIKE",), mustnot=("DIVERGED", "NAN")),
    "dpo_healthy": Recipe(kind="dpo", steps=60, every=2, examples=600, lr=1e-3, mustnot=(*_CLEAN, "SATURATED")),
    "dpo_saturated": Recipe(
        kind="dpo",
        fault="saturated",
        steps=160,
        every=5,
        examples=64,
        scheduler="constant",
        lr=1e-2,
        must=("SATURATED",),
        mustnot=("NAN", "DIVERGED"),
    ),
    "grpo_clipped": Recipe(
        kind="grpo", fault="clipped", steps=24, examples=64, lr=1e-4, must=("CLIPPED",), mustnot=("NAN", "DIVERGED")
    ),
}


def labels_of(wanted: tuple[str, ...], truth: Truth) -> list[str]:
    """Return the labels. Those with a question mark are returned only if the held-out loss confirms them."""
    lost = not math.isfinite(truth.after) or truth.after > DIVERGED * truth.before
    borne_out = {"LEARNS?": truth.after < LEARNT * truth.before, "DIVERGED?": lost}
    return [label.rstrip("?") for label in wanted if borne_out.get(label, True)]
