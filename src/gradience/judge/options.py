"""The options of the verbs that judge a run or an adapter, as records: the command line parses what the library takes.

They stand apart from their verbs, whose modules import JAX.
"""

# Annotations are evaluated here, so that a record of the command line that inherits these fields has their types.
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from gradience.errors import OptionError
from gradience.io import PathLike
from gradience.ranges import Count, Positive, Share, VerbOptions, Whole


@dataclass(frozen=True, kw_only=True)
class AuditOptions(VerbOptions):
    """What an audit adds to what the adapter's own weights say.

    Parameters
    ----------
    suggest_per_layer:
        Suggest a rank for each module, as rank_pattern and alpha_pattern of peft.LoraConfig.
    top_singular_values:
        How many singular values per module to put into the JSON.
    base:
        Base model: a folder with safetensors, or organisation/name in the local hub cache. Never downloaded.
    intruders:
        With --base, count intruder dimensions (arXiv 2410.21228). Slower.
    intruder_k:
        How many leading singular vectors of W + dW to examine.
    intruder_eps:
        A vector that overlaps less than this with each singular vector of W is an intruder.
    norms_cache:
        Keep norms of base weights in the user's cache folder until the base's files change.
    against:
        A fleet (see gradience fleet audit): where this adapter stands among its healthy ones, in percentiles.
    optimizer:
        The optimizer that trained it, such as muon, if no training arguments lie beside the adapter.
    seed:
        Random seed.
    """

    suggest_per_layer: bool = False
    top_singular_values: Whole = 0
    base: Path | None = None
    intruders: bool = False
    intruder_k: Count = 10
    intruder_eps: Share = 0.5
    norms_cache: bool = True
    against: Path | None = None
    optimizer: str | None = None
    seed: Whole = 0

    def refuse_bad(self) -> None:
        """Refuse an option out of its range, and intruders without a base."""
        super().refuse_bad()
        if self.intruders and self.base is None:
            raise OptionError("--intruders needs the base model's weights", advice="give them with --base PATH")


class AuditKeywords(TypedDict, total=False):
    """`AuditOptions` as keywords."""

    suggest_per_layer: bool
    top_singular_values: int
    base: PathLike | None
    intruders: bool
    intruder_k: int
    intruder_eps: float
    norms_cache: bool
    against: PathLike | None
    optimizer: str | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions(VerbOptions):
    """Where the parts of a run lie, and what it is judged for.

    Parameters
    ----------
    run:
        Of several runs, the one of this name or id; or the path to the log, if it is elsewhere.
    adapter:
        Path to the adapter, if it is elsewhere or one of several.
    config:
        Path to the configuration, if it is elsewhere: anything that gradience check reads.
    base:
        Base model: a folder with safetensors, or organisation/name in the local hub cache. Never downloaded.
    task:
        What is trained: a dataset (sst2, glue/mnli) or an objective (sft, dpo, grpo, ...).
    gap_threshold:
        Held-out over train perplexity from which the gap is a finding. Default: 1.5.
    """

    run: Path | None = None
    adapter: Path | None = None
    config: Path | None = None
    base: Path | None = None
    task: str | None = None
    gap_threshold: Positive | None = None


class DiagnoseKeywords(TypedDict, total=False):
    """`DiagnoseOptions` as keywords."""

    run: PathLike | None
    adapter: PathLike | None
    config: PathLike | None
    base: PathLike | None
    task: str | None
    gap_threshold: float | None


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
