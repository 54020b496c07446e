"""What an adapter changes on texts of its own and on others, as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gradience.blocks import (
    Block,
    Columns,
    Title,
    count,
    counted,
    estimated,
    facts,
    percent,
    set_off,
    short_path,
    table,
)
from gradience.blocks.text import as_text
from gradience.schema.document import Estimate
from gradience.schema.drift import DriftReport, Lowered, TextsChanged

_GROUPS: Final = 10  # rows of a table without --verbose
_HALF: Final = 0.5  # of the drift


@as_text
def drift_text(report: DriftReport, *, verbose: bool = False) -> Iterator[Block]:
    """The report for a terminal; `verbose` lists every group."""
    yield Title("GRADIENCE BENCH")
    elsewhere = short_path(report.elsewhere) if report.elsewhere else "built-in sentences"
    yield facts(
        [
            ("Adapter", report.adapter),
            ("Base", report.base),
            ("Own texts", "" if report.own is None else f"{short_path(report.texts)}, {_size(report.own)}"),
            ("Elsewhere", f"{elsewhere}, {_size(report.other)}"),
        ]
    )
    read = [("own texts", report.own), ("elsewhere", report.other)]
    changes = table(_CHANGES, [(name, change) for name, change in read if change is not None])
    yield from set_off("From base to adapter, with 95 % intervals over texts", [changes])
    if report.scales:
        scales = table((*_LOWERED, ("scale", "", lambda row: row.name)), report.scales)
        yield from set_off("The whole adapter at a lower scale", (scales, *_halved(report.scales)))
    if report.groups:
        groups = table((*_LOWERED, ("left out", "", _group)), report.groups, most=None if verbose else _GROUPS)
        yield from set_off("Without a group of modules", [groups])
    yield ""
    yield from (f"Note: {note}" for note in report.notes)
    yield "KL says how much the outputs change, not which ability is lost: to know, measure that ability."


def _halved(scales: list[Lowered]) -> Iterator[Block]:
    """The largest scale at which at most half of the drift is left, and what of the gain."""
    halved = next((one for one in scales if one.drift_left and one.drift_left.value <= _HALF), None)
    if halved is not None and halved.factor is not None:
        gain = f", with {_share(halved.gain_kept)} of the gain" if halved.gain_kept else ""
        yield f"  lora_alpha x {halved.factor:g} leaves {_share(halved.drift_left)} of the drift{gain}"


def _group(row: Lowered) -> str:
    return f"{row.name} ({counted(row.modules, 'module')})"


def _size(change: TextsChanged) -> str:
    return f"{change.texts} texts, {count(change.predictions)} predictions"


def _share(estimate: Estimate | None) -> str:
    return estimated(estimate, ".0%")


_CHANGES: Final[Columns[tuple[str, TextsChanged]]] = (
    ("KL, nats", "<24", lambda row: estimated(row[1].kl, ".4f")),
    ("flips", ">6", lambda row: percent(row[1].flips)),
    ("loss, nats", "<27", lambda row: estimated(row[1].loss, "+.4f")),
    ("on", "", lambda row: row[0]),
)
_LOWERED: Final[Columns[Lowered]] = (
    ("gain kept", "<17", lambda row: _share(row.gain_kept)),
    ("drift left", "<17", lambda row: _share(row.drift_left)),
)
