"""What a run's speed and memory show, by the `throughput` events of its log (CST191, CST195).

A log without them gives these rules no meaning. The first window holds what happens once: compilation, the workers'
start, the allocator's first blocks; it is left out of every comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gradience.rules import Observation, Premise, Threshold, Unknown
from gradience.rules.log.facts import LogRule, RunFacts, seen, shown
from gradience.rules.log.statistics import median
from gradience.schema import as_float
from gradience.schema.events import Throughput

WAITS = Threshold("waits", 0.3, "of the time of a step", "a judgement: a third of the time could be won")
FULL = Threshold("full", 0.85, "of the memory there is", "what torch reserved beyond allocated in real runs: 3 to 15 %")
WINDOWS: Final = 6
_FAILED: Final = (
    "OutOfMemory",
    "MemoryError",
    "out of memory",
    "allocate memory",
    "ALLOC_FAILED",
    "RESOURCE_EXHAUSTED",
)
_KILLED: Final = frozenset({"no_run_end", "unknown"})
_HAS_PACE: Final[Premise[RunFacts]] = Premise(
    "the log has throughput events", lambda facts: None if facts.run.paces else "the log has no throughput event"
)
_ENDED: Final[Premise[RunFacts]] = Premise(
    "the log has throughput events, or names the error", lambda facts: None if _named(facts) else _HAS_PACE(facts)
)


def _windows(facts: RunFacts) -> Sequence[Throughput]:
    """The windows after the first.

    Raises:
        Unknown: they are too few.
    """
    if len(facts.run.paces) <= WINDOWS:
        raise Unknown(f"throughput events: {len(facts.run.paces)}, and {WINDOWS + 1} are needed")
    return facts.run.paces[1:]


def gib(size: float) -> str:
    """Bytes in GiB, with two significant digits."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**30:.2g} GiB"


@LogRule(
    "CST191",
    severity="warning",
    confidence=0.8,
    phrase=lambda v: f"waited for data {as_float(v['share']):.0%} of the time",
    thresholds=(WAITS,),
    meant_for=_HAS_PACE,
)
def _waiting(facts: RunFacts) -> Observation | None:
    """waits for data

    at the median of the windows, {waits} of the time of a step passed before its batch was there

    Why: The device stands still while the next batch is read, tokenised or collated.
    Scope: what the host waited; a device that is still busy with earlier steps waits less
    Action: give the DataLoader workers (dataloader_num_workers), or tokenise before training
    Verify: seconds a step before and after, in the same log line
    Seen: https://github.com/pytorch/examples/issues/387 -- data loading takes most of the time, and the GPU waits
    """
    windows = _windows(facts)
    shares = [as_float(one.waiting_share) for one in windows if one.waiting_share is not None]
    if not shares:
        raise Unknown("the waiting was not timed")
    share = median(shares)
    if share < WAITS.value:
        return None
    each = median([as_float(one.seconds_per_step) for one in windows if one.seconds_per_step is not None])
    return Observation(
        f"A step waits {share:.0%} of its {each:.3g} s for data.",
        {"share": share, "seconds_per_step": each, "windows": len(shares)},
        evidence=seen(f"waiting_share of {len(shares)} windows, median {share:.0%}"),
    )


@LogRule(
    "CST195",
    severity="error",
    confidence=0.7,
    place="end",
    phrase=lambda v: (
        f"{'' if v['named'] else 'probably '}out of memory at step {shown(v, 'step', 'd')}"
        f"{', unless it still runs' if v.get('open') else ''}"
    ),
    thresholds=(FULL,),
    meant_for=_ENDED,
)
def _out_of_memory(facts: RunFacts) -> Observation | None:
    """ended out of memory

    the run ended by an error of memory; or with an error, or no recorded end (a warning), at its highest memory, {full}
    of what there is

    Why: A process that asks for more than there is ends without a word, or with an error that the log only names.
    Scope: logs with throughput events, or with the error; a run that still goes on looks like one that was killed
    Action: recompute activations (gradient_checkpointing), or make the batch smaller with gradient accumulation
    Verify: gradience check RUN --base MODEL --memory SIZE before the next run
    Source: arithmetic -- more memory than there is cannot be had
    """
    named = _named(facts)
    if not named and facts.status not in _KILLED | {"error"}:
        return None
    memory, total = _highest(facts), facts.run.paces[-1].total_bytes if facts.run.paces else None
    if not named and (not total or not memory):
        raise Unknown("the memory, or its limit, was not recorded")
    if not named and memory < FULL.value * (total or 0):
        return None
    # An error ended the step after the last one; where a process was killed is not known
    step = (facts.run.last_step or 0) + (1 if facts.status == "error" else 0)
    of = f": the highest before was {gib(memory)}{f' of {gib(total)}' if total else ''}" if memory else ""
    unsaid = facts.status in _KILLED and not named
    open_ = ", unless it still runs" if unsaid else ""
    return Observation(
        f"{'Out' if named else 'Probably out'} of memory at step {step}{_batch(facts)}{open_}{of}.",
        {"step": step, "named": named, "open": unsaid, "peak_bytes": memory, "total_bytes": total},
        severity="warning" if unsaid else None,
        confidence=0.95 if named else 0.5 if unsaid else None,
        evidence=seen(f"memory of {len(facts.run.paces)} events, status {facts.status}"),
    )


def _named(facts: RunFacts) -> bool:
    """Whether the run ended by an error that is one of memory."""
    return facts.status not in {"ok", "aborted"} and any(word in (facts.status_reason or "") for word in _FAILED)


def _highest(facts: RunFacts) -> int:
    """The highest memory: allocated, where that is known, since a healthy run may reserve all there is."""
    peaks = [[getattr(one, name) or 0 for one in facts.run.paces] for name in ("peak_bytes", "reserved_bytes")]
    return next((max(sizes) for sizes in peaks if any(sizes)), 0)


def _batch(facts: RunFacts) -> str:
    """The batch as it was seen last, else as it was set."""
    last = facts.run.paces[-1] if facts.run.paces else None
    if last is not None and last.rows and last.longest:
        return f", batch of {last.rows} x {last.longest:,}"
    rows, length = facts.config.training.batch_size, facts.config.training.max_length
    return f", batch of {rows}{f' x at most {length:,}' if length else ''}" if rows else ""


RULES: Final[tuple[LogRule, ...]] = (_waiting, _out_of_memory)
