"""GUA150: what a guard did to the run it watched: steps that it dropped, and weights that it put back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gradience.rules.log.facts import RunFacts, seen
from gradience.rules.rule import Observation, Rule, few
from gradience.schema.events import Metrics
from gradience.schema.findings import Evidence


def _guarded(facts: RunFacts) -> Observation | None:
    back, dropped, ended = (_of(facts, action) for action in ("rollback", "drop", "stop"))
    if not (back or dropped or ended):
        return None
    done = [f"the weights were put back to those of step {e.metrics.get('to_step')} at {e.step}" for e in back]
    if dropped:
        done.append(f"{len(dropped)} further steps were dropped, the first at {dropped[0].step}")
    if ended:
        done.append(f"training was stopped at {ended[0].step}: {ended[0].metrics.get('reason')}")
    return Observation(
        f"Gradients were not finite, and the guard acted: {few(done, between='; ')}.",
        {
            "rollbacks": len(back),
            "dropped": len(back) + len(dropped) + len(ended),
            "first_step": min(e.step or 0 for e in (*back, *dropped, *ended)),
            "stopped_at": ended[0].step if ended else None,
        },
        severity="error" if ended else None,
        action="The NaN came back whatever the guard did: look at the data and the learning rate before another run."
        if ended
        else None,
        evidence=seen(f"{len(facts.guarded)} guard events in the log"),
    )


def _of(facts: RunFacts, action: str) -> list[Metrics]:
    return [event for event in facts.guarded if event.metrics.get("action") == action]


RULES: Final[Sequence[Rule[RunFacts]]] = (
    Rule(
        id="GUA150",
        title="the guard acted",
        groups=("log",),
        severity="warning",
        condition="the log has rollbacks, dropped steps or a stop by the guard; an error where it stopped the training",
        observe=_guarded,
        confidence=1.0,
        evidence=(
            Evidence(
                source="gradience.hf.guard",
                says="a step with a gradient that is not finite is dropped, and the newest good weights are put back",
            ),
        ),
        rationale="The optimizer's moments, the schedule and the position in the data went on as if nothing had been.",
        action="See which data stood in those steps; the run is usable where the loss goes on as before.",
        scope="runs recorded with a guard",
        verify="Compare the loss before and after the steps named, and audit the adapter for non-finite weights.",
    ),
)
