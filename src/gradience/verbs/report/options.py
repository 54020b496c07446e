"""The options of ``report``."""

# Annotations are evaluated here, so that a record of the command line that inherits these fields has their types.
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from gradience.io import PathLike
from gradience.ranges import VerbOptions


@dataclass(frozen=True, kw_only=True)
class ReportOptions(VerbOptions):
    """Where the parts of a run lie, and what the page says beside the diagnosis.

    Parameters
    ----------
    run:
        Of several runs, the one of this name or id; or the path to the log, if it is elsewhere.
    adapter:
        Path to the adapter, if it is elsewhere: its folder or its weights file.
    config:
        Path to the configuration, if it is elsewhere: anything that gradience check reads.
    base:
        Base model: a folder with safetensors, or organisation/name in the local hub cache. Never downloaded.
    task:
        What is trained: a dataset (sst2, glue/mnli) or an objective (sft, dpo, grpo, ...).
    compare:
        Another adapter, to be compared with this one by their weights (repeat it for several); or a run's folder, whose
        checkpoint-N are compared as a series.
    bench:
        The --out of a gradience bench: what it measured becomes a part of the report.
    against:
        A fleet (see gradience fleet audit): where the adapter stands among its healthy ones, in percentiles.
    """

    run: Path | None = None
    adapter: Path | None = None
    config: Path | None = None
    base: Path | None = None
    task: str | None = None
    compare: Sequence[Path] = ()
    bench: Path | None = None
    against: Path | None = None


class ReportKeywords(TypedDict, total=False):
    """`ReportOptions` as keywords."""

    run: PathLike | None
    adapter: PathLike | None
    config: PathLike | None
    base: PathLike | None
    task: str | None
    compare: Sequence[PathLike]
    bench: PathLike | None
    against: PathLike | None
