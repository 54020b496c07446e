"""Adapters beside the one that a report is on: which are compared, and the files they lie in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from gradience.adapters.folder import WEIGHT_NAMES, find_files
from gradience.compare import compare_adapters
from gradience.errors import GradienceError
from gradience.schema.compare_adapters import CompareAdaptersReport

__all__ = ["compared", "compared_files"]


def compared(weights: Path | None, others: Sequence[str | os.PathLike[str]]) -> CompareAdaptersReport:
    """Return the run's adapter beside others; or a run's checkpoints as a series, where one such folder is given.

    Raises:
        GradienceError: there is nothing to compare, or an adapter cannot be read.
    """
    places = [Path(other) for other in others]
    if len(places) == 1 and _holds_checkpoints_only(places[0]):
        return compare_adapters(places[0])
    both = [*([] if weights is None else [weights]), *places]
    if len({place.resolve() for place in both}) < len(("one", "other")):
        raise GradienceError(
            f"compare: expected a second adapter, came {', '.join(map(str, both))}",
            advice="give this run's adapter by --adapter, another by --compare; or a folder of checkpoints",
        )
    return compare_adapters(*both)


def _holds_checkpoints_only(place: Path) -> bool:
    return (
        place.is_dir()
        and not any((place / name).is_file() for name in WEIGHT_NAMES)
        and any(place.glob("checkpoint-*"))
    )


def compared_files(report: CompareAdaptersReport) -> Iterator[Path]:
    """Yield the files of weights that were compared."""
    for adapter in report.adapters:
        found = find_files(Path(adapter.path))
        yield from found.shards or (found.weights,)
