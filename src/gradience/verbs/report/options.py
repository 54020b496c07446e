"""The options of ``report``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradience.io import PathLike
from gradience.verbs.diagnose.options import PartsKeywords, RunParts


@dataclass(frozen=True, kw_only=True)
class ReportOptions(RunParts):
    """Where the parts of a run lie, and what the page says beside the diagnosis.

    Parameters
    ----------
    compare:
        Another adapter, to be compared with this one by their weights (repeat it for several); or a run's folder, whose
        checkpoint-N are compared as a series.
    bench:
        The --out of a gradience bench: what it measured becomes a part of the report.
    """

    compare: Sequence[Path] = ()
    bench: Path | None = None


class ReportKeywords(PartsKeywords, total=False):
    """`ReportOptions` as keywords."""

    compare: Sequence[PathLike]
    bench: PathLike | None
