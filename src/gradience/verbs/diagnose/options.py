"""The options of ``diagnose``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

from cyclopts import Parameter

from gradience.io import PathLike
from gradience.ranges import Positive, VerbOptions


@dataclass(frozen=True, kw_only=True)
class RunParts(VerbOptions):
    """Where the parts of a run lie.

    Parameters
    ----------
    run:
        Of several runs, the one of this name or id; or the path to the log, if it is elsewhere.
    adapter:
        Path to the adapter, if it is elsewhere or one of several: its folder or its weights file.
    config:
        Path to the configuration, if it is elsewhere: anything that gradience check reads.
    base:
        Base model: a folder with safetensors, or organisation/name in the local hub cache. Never downloaded.
    task:
        What is trained: a dataset (sst2, glue/mnli) or an objective (sft, dpo, grpo, ...).
    """

    run: Path | None = None
    adapter: Annotated[Path | None, Parameter(alias="--peft-dir")] = None
    config: Path | None = None
    base: Path | None = None
    task: str | None = None


class PartsKeywords(TypedDict, total=False):
    """`RunParts` as keywords."""

    run: PathLike | None
    adapter: PathLike | None
    config: PathLike | None
    base: PathLike | None
    task: str | None


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions(RunParts):
    """Where the parts of a run lie, and what it is judged for.

    Parameters
    ----------
    gap_threshold:
        Held-out over train perplexity from which the gap is a finding. Default: 1.5.
    """

    gap_threshold: Positive | None = None


class DiagnoseKeywords(PartsKeywords, total=False):
    """`DiagnoseOptions` as keywords."""

    gap_threshold: float | None
