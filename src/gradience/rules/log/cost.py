"""What a run's speed and memory show, by the `throughput` events of its log (CST191 to CST196).

A log without them gives these rules no meaning. The first window holds what happens once: compilation, the workers'
start, the allocator's first blocks; it is left out of every comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Final

from gradience.rules import Observation, Premise, Threshold, Unknown
from gradience.rules.log.facts import LogRule, RunFacts, seen, shown
from gradience.rules.log.statistics import median
from gradience.schema import as_float
from gradience.schema.events import Throughput

WAITS = Threshold("waits", 0.3, "of the time of a step", "a judgement: a third of the time could be won")
PADDED = Threshold("padded", 1 / 3, "of the tokens that are computed", "a judgement")
SLOWER = Threshold(
    "slower", 1.5, "times the seconds a step of the first third", "2 of 20 healthy runs on a busy machine passed 1.3"
)
SAME_WORK = Threshold("same_work", 1.1, "times the tokens a step of the first third", "a judgement")
RISING = Threshold(
    "rising", 0.9, "of all pairs of windows, the later the slower", "a change at once, as by another job, gives 0.75"
)
CREPT = Threshold("crept", 0.05, "of the memory held first", "a judgement: a cache that fills is smaller, or settles")
FULL = Threshold("full", 0.85, "of the memory there is", "what torch reserved beyond allocated in real runs: 3 to 15 %")
WINDOWS: Final = 6
TIMED: Final = 12  # four in each third: with two, 1 of 20 healthy runs on a busy machine seemed to slow down
_SURE: Final = 2.0  # standard errors of a slope
_STEADY: Final = 0.5  # of the growth of the first half that the second half has at least
_FAILED: Final = (
    "OutOfMemory",
    "MemoryError",
    "out of memory",
    "allocate memory",
    "ALLOC_FAILED",
    "RESOURCE_EXHAUSTED",
)
_GREW: Final = 1.05  # times the peak before: a smaller rise needs no cause
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
    "CST192",
    severity="warning",
    confidence=0.9,
    phrase=lambda v: f"{as_float(v['share']):.0%} of its tokens were padding",
    thresholds=(PADDED,),
    meant_for=_HAS_PACE,
)
def _padding(facts: RunFacts) -> Observation | None:
    """padding takes over a third

    over {padded} of the tokens that went through the model are padding

    Why: Padding costs the same time and memory as text, and teaches nothing.
    Scope: batches with a mask; the gain is an upper bound, where time goes with tokens
    Action: group rows by length (group_by_length), or pack them
    Verify: tokens a second without padding, before and after
    """
    windows = _windows(facts)
    known = [one for one in windows if one.tokens_per_second is not None and one.padded_tokens_per_second]
    room = sum(as_float(one.padded_tokens_per_second or 0) for one in known)
    if not room:
        raise Unknown("the tokens were not counted")
    share = 1 - sum(as_float(one.tokens_per_second or 0) for one in known) / room
    if share <= PADDED.value:
        return None
    return Observation(
        f"{share:.0%} of the tokens in the batches are padding: without it up to {1 / (1 - share):.1f} times as fast.",
        {"share": share, "gain": 1 / (1 - share)},
        evidence=seen(f"tokens with and without padding of {len(known)} windows"),
    )


@LogRule(
    "CST193",
    severity="warning",
    confidence=0.7,
    phrase=lambda v: f"steps became {shown(v, 'times', '.2g')} times as slow",
    thresholds=(SLOWER, SAME_WORK, RISING),
    meant_for=_HAS_PACE,
)
def _slowing(facts: RunFacts) -> Observation | None:
    """steps slow down

    each window of the last third is slower than each of the first, by {slower} at the median, with at most {same_work}
    of its tokens a step; and {rising} of the windows are in order

    Why: Something grows with the steps: a list, a cache, a file that is read from its beginning, a card that heats up.
    Scope: windows of ten steps or more; other jobs on the machine that come one by one look the same
    Action: look for what is kept from step to step, and at the card's clock
    Verify: seconds a step after a restart from the last checkpoint
    """
    timed = [one for one in _windows(facts) if one.seconds_per_step is not None]
    if len(timed) < TIMED:
        raise Unknown(f"{len(timed)} windows after the first were timed, and {TIMED} are needed")
    if not _work(timed) and facts.objective.kind == "rl":
        raise Unknown("answers may have grown: their tokens were not counted")
    third = len(timed) // 3
    first, last = ([as_float(one.seconds_per_step or 0) for one in part] for part in (timed[:third], timed[-third:]))
    work = [_work(part) for part in (timed[:third], timed[-third:])]
    times = median(last) / median(first) if median(first) else 1.0
    more_work = work[0] and work[1] / work[0] > SAME_WORK.value
    pairs = [a < b for a, b in combinations([as_float(one.seconds_per_step or 0) for one in timed], 2)]
    if times < SLOWER.value or min(last) <= max(first) or more_work or sum(pairs) < RISING.value * len(pairs):
        return None
    return Observation(
        f"A step takes {median(last):.3g} s at the end and took {median(first):.3g} s at first.",
        {"times": times, "first": median(first), "last": median(last)},
        evidence=seen(f"seconds a step of {third} windows at either end"),
    )


def _work(windows: Sequence[Throughput]) -> float:
    """Tokens a step, with padding where that is known; 0 if not counted."""
    pairs = [(one.padded_tokens_per_second or one.tokens_per_second or 0, one.seconds_per_step or 0) for one in windows]
    return median([as_float(speed) * as_float(seconds) for speed, seconds in pairs])


@LogRule(
    "CST194",
    severity="warning",
    confidence=0.7,
    phrase=lambda _: "its memory grew with the steps",
    thresholds=(CREPT,),
    meant_for=_HAS_PACE,
)
def _creeping(facts: RunFacts) -> Observation | None:
    """memory creeps up

    the memory held between steps grows along a line, by {crept} at least, in the second half as in the first

    Why: What grows with every step reaches the limit at some step.
    Scope: memory at the ends of windows; a cache that fills looks the same until it settles
    Action: keep numbers and no tensors from step to step: loss.item() or loss.detach()
    Verify: held_bytes of the throughput events after the change
    """
    ends = [(one.step, one.held_bytes) for one in _windows(facts) if one.step is not None and one.held_bytes]
    if len(ends) < WINDOWS:
        raise Unknown("the memory between steps was not recorded")
    steps, sizes = [float(step) for step, _ in ends], [float(size) for _, size in ends]
    slope, error = _line(steps, sizes)
    middle = len(sizes) // 2
    early, late = sizes[middle] - sizes[0], sizes[-1] - sizes[middle]
    grown = (steps[-1] - steps[0]) * slope
    if slope <= _SURE * error or grown < CREPT.value * sizes[0] or late < _STEADY * early or early <= 0:
        return None
    left = _left(facts, sizes[-1], slope, error)
    return Observation(
        f"The memory between steps grows by {gib(slope * 100)} every 100 steps{left}.",
        {"bytes_per_step": slope, "error": error, "held": sizes[-1]},
        evidence=seen(f"held_bytes of {len(ends)} windows, from {gib(sizes[0])} to {gib(sizes[-1])}"),
    )


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of the least-squares line, and its standard error; 0 and infinity where all x are equal."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    spread = sum((one - mx) ** 2 for one in x)
    if not spread:
        return 0.0, math.inf
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - my - slope * (a - mx)) ** 2 for a, b in zip(x, y, strict=True))
    return slope, math.sqrt(rest / max(len(x) - 2, 1) / spread)


def _left(facts: RunFacts, held: float, slope: float, error: float) -> str:
    """The steps until the memory is full, from the fastest to the slowest growth; empty if the limit is not known."""
    total = facts.run.paces[-1].total_bytes
    if total is None or total <= held:
        return ""
    # Both are above 0, because the slope is over two of its errors
    soonest, latest = ((total - held) / (slope + sign * _SURE * error) for sign in (1, -1))
    return f": full in {soonest:,.0f}{f' to {latest:,.0f}' if round(latest) > round(soonest) else ''} steps"


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


@LogRule(
    "CST196",
    severity="info",
    confidence=0.7,
    phrase=lambda v: f"the peak of its memory is of {v['of']}",
    thresholds=(FULL,),
    meant_for=_HAS_PACE,
)
def _peak(facts: RunFacts) -> Observation | None:
    """what the peak is of

    the highest memory, {full} of what there is or in a run that ended out of memory, came with an evaluation or with
    the longest row

    Why: One batch decides whether a run fits, and a change for that batch alone costs the others nothing.
    Scope: windows whose peak is over that of the window before; none where both came at once
    Action: of an evaluation: a smaller per_device_eval_batch_size; of a row: cut rows at a lower max_length
    Verify: peak_bytes of the throughput events around that step
    """
    known = [one for one in facts.run.paces if one.peak_bytes and one.step is not None]
    if len(known) < WINDOWS:
        raise Unknown("the memory of the windows was not recorded")
    if not _named(facts) and _highest(facts) < FULL.value * (known[-1].total_bytes or math.inf):
        return None
    sizes = [one.peak_bytes or 0 for one in known]
    at = sizes.index(max(sizes))
    of = _came_with(facts, known[: at + 1]) if at and sizes[at] >= _GREW * sizes[at - 1] else ""
    if not of:
        return None
    return Observation(
        f"The peak, {gib(sizes[at])}, came with {of}; until then it was {gib(sizes[at - 1])}.",
        {"of": of, "step": known[at].step, "peak_bytes": sizes[at], "before": sizes[at - 1]},
        evidence=seen(f"peak_bytes at steps {known[at - 1].step} and {known[at].step}"),
    )


def _came_with(facts: RunFacts, windows: Sequence[Throughput]) -> str:
    """What the last of these windows has that no earlier one has; empty if that is neither or both."""
    *earlier, last = windows
    # A window ends as its row is logged, and the Trainer evaluates after that: then it is in the next window
    within = range(earlier[-1].step or 0, last.step or 0)
    evaluated = next((event.step for event in facts.history if event.step in within), None)
    longest = (last.longest or 0) > max(one.longest or 0 for one in earlier)
    if longest == (evaluated is not None):
        return ""
    return f"the longest row, {last.longest:,} tokens" if longest else f"the evaluation at step {evaluated}"


RULES: Final[tuple[LogRule, ...]] = (_waiting, _padding, _slowing, _creeping, _out_of_memory, _peak)
