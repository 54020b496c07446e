"""The options of ``audit``, apart from its work, which imports JAX."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

from cyclopts import Parameter

from gradience.errors import OptionError
from gradience.io import PathLike
from gradience.ranges import LIBRARY_ONLY, SELDOM, Count, Seed, Share, VerbOptions, Whole


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
    optimizer:
        The optimizer that trained it, such as muon, if no training arguments lie beside the adapter.
    seed:
        Random seed.
    """

    suggest_per_layer: bool = False
    top_singular_values: Annotated[Whole, LIBRARY_ONLY] = 0
    base: Path | None = None
    intruders: bool = False
    intruder_k: Annotated[Count, LIBRARY_ONLY] = 10
    intruder_eps: Annotated[Share, LIBRARY_ONLY] = 0.5
    norms_cache: Annotated[bool, SELDOM, Parameter(name="--cache", negative="--no-cache", show_default=True)] = True
    optimizer: Annotated[str | None, SELDOM] = None
    seed: Seed = 0

    def refuse_bad(self) -> None:
        """Refuse an option out of its range, and intruders without a base."""
        super().refuse_bad()
        if self.intruders and self.base is None:
            raise OptionError("--intruders needs --base", advice="give --base MODEL")


class AuditKeywords(TypedDict, total=False):
    """`AuditOptions` as keywords."""

    suggest_per_layer: bool
    top_singular_values: int
    base: PathLike | None
    intruders: bool
    intruder_k: int
    intruder_eps: float
    norms_cache: bool
    optimizer: str | None
    seed: int
