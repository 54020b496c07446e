"""The trainings of rl_runs.py: in each one fault is induced, or none; and what is to be said of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TUNING, HELD_OUT = (0, 1), (2, 3)  # seeds


@dataclass(frozen=True)
class Recipe:
    """One training: its method, what departs from the healthy one, and its label."""

    method: str
    reward: str = "low"
    arguments: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None
    must: tuple[str, ...] = ()
    mustnot: tuple[str, ...] = ()


_FALSE = ("KL_ZERO", "NULL_REWARD", "TIES", "SWAPPED")  # false unless induced
_EVALS = {"eval_strategy": "steps", "eval_steps": 10}
_GENTLE = {"learning_rate": 1.5e-4, "max_completion_length": 40}  # or most completions end up cut off
RECIPES: dict[str, Recipe] = {
    "grpo-healthy": Recipe("grpo", arguments=_GENTLE, mustnot=("WARNING",)),
    "grpo-healthy-kl": Recipe("grpo", arguments={**_GENTLE, "beta": 0.04}, mustnot=("WARNING",)),
    "grpo-healthy-mu": Recipe("grpo", arguments={**_GENTLE, "num_iterations": 2}, mustnot=("WARNING",)),
    "grpo-entropy": Recipe("grpo", "one", {"learning_rate": 6e-3}, must=("ENTROPY",)),
    "grpo-kl": Recipe("grpo", "one", {"learning_rate": 6e-3, "beta": 1e-3}, must=("KL",)),
    "grpo-long": Recipe("grpo", "long", {"learning_rate": 3e-3}, must=("LONG",)),
    "grpo-short": Recipe("grpo", "short", {"learning_rate": 3e-3}, must=("SHORT",)),
    "grpo-repeats": Recipe("grpo", "repeats", {"learning_rate": 4e-3}, must=("LONG|ENTROPY",)),
    "grpo-clipped": Recipe("grpo", arguments={"num_iterations": 8, "learning_rate": 1e-2}, must=("CLIP",)),
    "grpo-equal": Recipe("grpo", "never", must=("EQUAL",)),
    "grpo-always": Recipe("grpo", "always", must=("EQUAL",)),
    "grpo-cut": Recipe("grpo", arguments={"max_completion_length": 4}, must=("CUT_OFF",)),
    "grpo-noise": Recipe("grpo", "noise", must=("CANNOT_TELL",), mustnot=("LEARNS",)),
    "grpo-null": Recipe("grpo", "null", must=("NULL_REWARD",)),
    "grpo-half-null": Recipe("grpo", "half_null", mustnot=("WARNING",)),
    "grpo-kl-zero": Recipe("grpo", arguments={"beta": 0.04}, fault="same_reference", must=("KL_ZERO",)),
    "grpo-rate": Recipe("grpo", arguments={"learning_rate": 0.3}, must=("FELL|RATE",)),
    "grpo-healthy-two": Recipe("grpo", "low+one", _GENTLE, mustnot=("WARNING", "COMPONENT")),
    "grpo-drowned": Recipe("grpo", "low+brief", _GENTLE, must=("COMPONENT",)),
    "grpo-against": Recipe("grpo", "low+upper", {"learning_rate": 1e-3}, must=("COMPONENT",)),
    "grpo-dead": Recipe("grpo", "low+never", _GENTLE, must=("CONSTANT",)),
    "grpo-fifth-null": Recipe("grpo", "fifth_null", _GENTLE, must=("SOME_NULL",)),
    "grpo-other-reference": Recipe("grpo", arguments={**_GENTLE, "beta": 1e-3}, fault="other_reference", must=("KL",)),
    "grpo-low-rate": Recipe("grpo", arguments={"learning_rate": 1e-7}, fault="lora", must=("CANNOT_TELL|LOW_RATE",)),
    "rloo-healthy": Recipe("rloo", arguments=_GENTLE, mustnot=("WARNING",)),
    "rloo-entropy": Recipe("rloo", "one", {"learning_rate": 6e-3, "beta": 0.0}, must=("ENTROPY",)),
    "rloo-kl": Recipe("rloo", "one", {"learning_rate": 6e-3, "beta": 1e-3}, must=("KL",)),
    "rloo-equal": Recipe("rloo", "never", {"beta": 0.0}, must=("EQUAL",)),
    "rloo-cut": Recipe("rloo", arguments={"max_completion_length": 4}, must=("CUT_OFF",)),
    "rloo-noise": Recipe("rloo", "noise", must=("CANNOT_TELL",), mustnot=("LEARNS",)),
    "rloo-long": Recipe("rloo", "long", {"learning_rate": 3e-3, "beta": 0.0}, must=("LONG",)),
    "dpo-healthy": Recipe("dpo", mustnot=("WARNING", "BOTH_FALL")),
    "dpo-healthy-evals": Recipe("dpo", arguments=_EVALS, fault="plain", mustnot=("SWAPPED",)),
    "dpo-swapped": Recipe("dpo", arguments=_EVALS, fault="swapped", must=("SWAPPED",), mustnot=("OVERFITS",)),
    "dpo-early-fall": Recipe("dpo", arguments={"learning_rate": 3e-2, "beta": 0.01}, must=("BOTH_FALL",)),
    "dpo-equal": Recipe("dpo", fault="equal", must=("TIES",), mustnot=("SWAPPED", "LEARNS")),
    "dpo-reference": Recipe("dpo", fault="same_reference", must=("TIES",), mustnot=("SWAPPED", "LEARNS")),
    "dpo-fall": Recipe("dpo", arguments={"learning_rate": 1e-2, "beta": 0.005}, must=("BOTH_FALL",)),
    "dpo-saturated": Recipe("dpo", arguments={"learning_rate": 1e-3, "beta": 0.5}, fault="plain", must=("SATURATED",)),
    "dpo-rate": Recipe("dpo", arguments={"learning_rate": 0.3}, must=("DIVERGED|BOTH_FALL|RATE",)),
    "dpo-random": Recipe("dpo", fault="shuffled", must=("NOT_APART",), mustnot=("LEARNS",)),
    "kto-healthy": Recipe("kto", mustnot=("WARNING",)),
    "kto-random": Recipe("kto", fault="shuffled", must=("NOT_APART|CANNOT_TELL",), mustnot=("LEARNS",)),
    "kto-rate": Recipe("kto", arguments={"learning_rate": 0.3}, must=("DIVERGED|BOTH_FALL|RATE",)),
    "orpo-healthy": Recipe("orpo", arguments={"learning_rate": 2e-3}, mustnot=("WARNING",)),
    "orpo-equal": Recipe("orpo", fault="equal", must=("TIES",), mustnot=("SWAPPED",)),
    "orpo-rate": Recipe("orpo", arguments={"learning_rate": 0.3}, must=("DIVERGED|RATE|BOTH_FALL",)),
}


def labels_of(name: str) -> tuple[list[str], list[str]]:
    """Return what must be said of the runs of a recipe, and what would be false."""
    recipe = RECIPES[name]
    induced = {word for words in recipe.must for word in words.split("|")}
    return list(recipe.must), sorted({*recipe.mustnot, *(word for word in _FALSE if word not in induced)})
