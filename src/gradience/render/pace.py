"""The speed and the memory of a run in one line."""

from __future__ import annotations

from gradience.blocks import gib, number, percent
from gradience.schema.reports import Pace


def pace_words(pace: Pace) -> str:
    """Seconds a step, tokens a second, and the peak against what there is; what was not recorded is left out."""
    return "; ".join(part for part in (_steps(pace), _rate(pace), _memory(pace)) if part)


def _steps(pace: Pace) -> str:
    if pace.seconds_per_step is None:
        return ""
    waits = "" if pace.waiting_share is None else f", {percent(pace.waiting_share)} of it waiting for data"
    return f"{number(pace.seconds_per_step, '.3g')} s a step{waits}"


def _rate(pace: Pace) -> str:
    """Tokens a second, else samples."""
    if pace.tokens_per_second is not None:
        padding = "" if pace.padding_share is None else f" ({percent(pace.padding_share)} padding beside them)"
        return f"{number(pace.tokens_per_second, ',.0f')} tokens/s{padding}"
    if pace.padded_tokens_per_second is not None:
        return f"{number(pace.padded_tokens_per_second, ',.0f')} tokens/s"
    return "" if pace.samples_per_second is None else f"{number(pace.samples_per_second, '.3g')} samples/s"


def _memory(pace: Pace) -> str:
    of = "" if pace.total_bytes is None else f" of {gib(pace.total_bytes)}"
    if pace.peak_bytes is not None:
        reserved = "" if pace.reserved_bytes is None else f" ({gib(pace.reserved_bytes)} reserved)"
        return f"peak {gib(pace.peak_bytes)}{reserved}{of} GiB{' (the process)' if pace.of_process else ''}"
    return "" if pace.reserved_bytes is None else f"{gib(pace.reserved_bytes)}{of} GiB reserved"


def memory_words(foretold: int, pace: Pace) -> str:
    """The memory of a step as `check` foretold it beside what a run took; empty if the run does not tell it."""
    took = ((pace.peak_bytes, "used"), (pace.reserved_bytes, "reserved"))
    parts = [f"{gib(size)} {word}" for size, word in took if size is not None]
    if pace.of_process and pace.peak_bytes is not None:
        whole = f"the run was on a CPU, where the whole process took {gib(pace.peak_bytes)}"
        return f"{gib(foretold)} GiB foretold for a step on a card; {whole}"
    return f"{gib(foretold)} GiB foretold, {', '.join(parts)}" if parts else ""
