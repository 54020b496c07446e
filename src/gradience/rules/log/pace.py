"""The speed and the memory of a run, over its windows of steps."""

from __future__ import annotations

from collections.abc import Sequence

from gradience.rules.log.statistics import median
from gradience.schema import as_float
from gradience.schema.events import Throughput
from gradience.schema.reports import Pace


def pace_of(paces: Sequence[Throughput]) -> Pace | None:
    """The speed and the memory of a run's windows of steps; None if there is none."""
    if not paces:
        return None
    # The first window holds what happens once: compilation, the workers' start.
    timed = paces[1:] or paces

    def middle(name: str) -> float | None:
        values = [as_float(value) for one in timed if (value := getattr(one, name)) is not None]
        return median(values) if values else None

    def most(name: str) -> int | None:
        return max((value for one in paces if (value := getattr(one, name)) is not None), default=None)

    counted = [one for one in timed if one.tokens_per_second is not None and one.padded_tokens_per_second]
    room = sum(as_float(one.padded_tokens_per_second or 0) for one in counted)
    text = sum(as_float(one.tokens_per_second or 0) for one in counted)
    return Pace(
        windows=len(paces),
        seconds_per_step=middle("seconds_per_step"),
        waiting_share=middle("waiting_share"),
        tokens_per_second=middle("tokens_per_second"),
        padded_tokens_per_second=middle("padded_tokens_per_second"),
        samples_per_second=middle("samples_per_second"),
        padding_share=max(0.0, 1 - text / room) if room else None,
        longest=most("longest"),
        peak_bytes=most("peak_bytes"),
        reserved_bytes=most("reserved_bytes"),
        total_bytes=most("total_bytes"),
        of_process=any(one.held_bytes is not None and one.reserved_bytes is None for one in paces),
    )
