"""The options of ``audit``, apart from its work, which imports JAX."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

from cyclopts import Parameter

from gradience.io import PathLike
from gradience.ranges import LIBRARY_ONLY, SELDOM, Seed, VerbOptions, Whole


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
    norms_cache:
        Keep norms of base weights in the user's cache folder until the base's files change.
    optimizer:
        The optimizer that trained it, such as muon, if no training arguments lie beside the adapter.
    seed:
        Random seed.
    """

    suggest_per_layer: bool = False
    top_singular_values: Annotated[Whole, LIBRARY_ONLY] = 0
    base: Path | None = None
    norms_cache: Annotated[bool, SELDOM, Parameter(name="--cache", negative="--no-cache", show_default=True)] = True
    optimizer: Annotated[str | None, SELDOM] = None
    seed: Seed = 0


class AuditKeywords(TypedDict, total=False):
    """`AuditOptions` as keywords."""

    suggest_per_layer: bool
    top_singular_values: int
    base: PathLike | None
    norms_cache: bool
    optimizer: str | None
    seed: int
