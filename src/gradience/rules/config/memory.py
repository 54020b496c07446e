"""Whether a training step fits the card that --memory states (MEM001)."""

from __future__ import annotations

from gradience.rules import Observation, Premise, Threshold, Unknown, cite
from gradience.rules.config.facts import ConfigRule, Facts

MEASURED = cite(
    "PEFT's method comparison, 33 runs of Llama-3.2-3B on an L40S (measured)",
    "the reserved peak of 31 runs lies within 7 % of the one foretold, of one at 8 %; one is unknown",
)
TIGHT = Threshold("tight", 0.85, "of the card's memory", "what torch reserved beyond allocated: 1.03 to 1.10 times")


def _stated(facts: Facts) -> str | None:
    memory = facts.around.memory
    return None if memory is not None and memory.limit_bytes else "no memory is stated (--memory)"


@ConfigRule(
    "MEM001",
    severity="error",
    confidence=0.8,
    predicts=True,
    thresholds=(TIGHT,),
    evidence=(MEASURED,),
    meant_for=Premise("the card's memory is stated", _stated),
    settings=("batch_size", "max_length"),
)
def _too_large(facts: Facts) -> Observation | None:
    """a training step does not fit the card

    the peak foretold for the longest batch is over the memory that --memory states; a warning over {tight} of it

    Why: The run ends at its first long batch, which may come hours after its start.
    Scope: one device; what is assumed stands beside the number
    Action: recompute activations, or make the batch smaller with gradient accumulation
    Verify: torch.cuda.max_memory_allocated() after a step of the longest batch
    Source: arithmetic -- more bytes than the card has cannot be allocated
    """
    memory = facts.around.memory
    if memory is None or memory.peak_bytes is None or not memory.limit_bytes:
        raise Unknown("" if memory is None else memory.reason)
    share = memory.peak_bytes / memory.limit_bytes
    if share <= TIGHT.value:
        return None
    peak, limit = (f"{size / 2**30:.3g} GiB" for size in (memory.peak_bytes, memory.limit_bytes))
    fitting = [f"{one.change} ({one.peak_bytes / 2**30:.3g} GiB)" for one in memory.changes]
    values = {"peak_bytes": memory.peak_bytes, "limit_bytes": memory.limit_bytes}
    if share <= 1:
        return Observation(f"a step takes about {peak} of {limit}: tight", values, severity="warning")
    return Observation(
        f"a step takes about {peak}, and the card has {limit}",
        values,
        action=f"the cheapest change that fits: {fitting[0]}" if fitting else None,
    )


RULES = (_too_large,)
