"""The section about the data: what the model was fed, and the lengths that a check of the data had found."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Final
from xml.etree.ElementTree import Element

from gradience.render.html import Story
from gradience.render.html.figures import NARROW, WIDE, draw_bars
from gradience.render.html.pieces import figure, section, table
from gradience.render.monitor import fed_rows

_MOST: Final = 200  # bars: a log may be anybody's


def data_section(story: Story) -> Element | None:
    """What the model was fed; None where it was not recorded."""
    report = story.diagnosis.monitor
    data = (report.data if report is not None else None) or {}
    rows = fed_rows(data)
    if not rows:
        return None
    columns = [("Count", itemgetter(0)), ("Value", itemgetter(1))]
    counts = table(columns, rows, caption="Of the micro-batches that the recorder watched")
    return section("data", "Data", counts, _lengths(data.get("announced")))


def _lengths(announced: object) -> Element | None:
    """The histogram of lengths that a check of the data recorded."""
    told: Mapping[str, Any] = announced if isinstance(announced, dict) else {}
    bins, width, limit = told.get("bins"), told.get("bin_width"), told.get("max_length")
    if not isinstance(bins, list) or not all(isinstance(n, int) and n >= 0 for n in bins) or not any(bins):
        return None
    if not isinstance(width, int) or width < 1:
        return None
    cut = limit if isinstance(limit, int) and limit > 0 else None
    label = f"Tokens per sequence: {sum(bins):,} sequences, bars of {width:,} tokens."
    drawn = [draw_bars(bins[:_MOST], width, size, label, cut) for size in (WIDE, NARROW)]
    text = f"Sequences by their tokens before the cut, {width:,} tokens a bar; by `gradience check --data`."
    return figure("Tokens per sequence", drawn, caption=text, wide=True)
