"""The adapter's config at its new ranks: every key kept, rank and alpha rewritten."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from gradience.policy.pattern_keys import Patterns, alpha_for, patterns_of
from gradience.resize.cut import Job

__all__ = ["NewConfig", "new_config", "new_patterns"]

_RUN_AGAIN: Final = ("orthogonal", "mica")


class NewConfig(NamedTuple):
    """The config as PEFT will read it, and what else was changed in it."""

    fields: dict[str, Any]
    notes: list[str]


def new_patterns(jobs: Iterable[Job]) -> Patterns:
    """Return r, alpha and their exceptions that give each pair its rank at its present scale s."""
    ranks: dict[str, int] = {}
    alphas = {}
    for job in jobs:
        module = job.pair.modules[0]
        ranks[job.pair.path] = min(job.rank, job.pair.r)
        alphas[job.pair.path] = alpha_for(module.scale, ranks[job.pair.path], rslora=module.rslora)
    return patterns_of(ranks, alphas)


def new_config(raw: dict[str, Any], patterns: Patterns) -> NewConfig:
    """Return the config with every key it had and the new ranks."""
    fields = {**raw, **patterns._asdict()}
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower() in _RUN_AGAIN:
        fields["init_lora_weights"] = True
        note = f"init_lora_weights was {init!r}: PEFT would run it again on loading, for a rank it may refuse"
        return NewConfig(fields, [note])
    return NewConfig(fields, [])
