"""The options of ``convert``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypedDict

from cyclopts import Parameter

from gradience.errors import OptionError
from gradience.io import PathLike
from gradience.ranges import Count, Share, VerbOptions
from gradience.schema.writing import TargetFormat


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(VerbOptions):
    """The format to write, and how exact the updates stay.

    Parameters
    ----------
    to:
        peft: W + s B A, s = lora_alpha / r. mlx: W + scale b^T a^T, one rank and one scale for all modules.
    rank:
        At most this rank in each module: the best approximation in Frobenius norm.
    energy:
        In each module the least k with sigma_1^2 + ... + sigma_k^2 >= ENERGY * (sum of all sigma^2).
    base:
        Base model: a folder with safetensors, or organisation/name in the local hub cache. Never downloaded.
    component:
        Which model of a pipeline, where the file adapts several: unet, text_encoder, ...
    renames:
        Replace a prefix of the modules' paths, as OLD=NEW; may be given several times.
    drop:
        Leave out what the target has no place for, such as a saved head; without it that is refused.
    """

    to: TargetFormat = "peft"
    rank: Count | None = None
    energy: Share | None = None
    base: Path | None = None
    component: str | None = None
    renames: Annotated[Sequence[str], Parameter(name="--rename")] = ()
    drop: bool = False

    def refuse_bad(self) -> None:
        """Refuse an option out of its range, and a rank beside an energy.

        Raises:
            OptionError: there is one.
        """
        if self.rank is not None and self.energy is not None:
            raise OptionError("--rank and --energy were both given", advice="give one of them")
        super().refuse_bad()


class ConvertKeywords(TypedDict, total=False):
    """The options of `convert` as keywords."""

    to: TargetFormat
    rank: int | None
    energy: float | None
    base: PathLike | None
    component: str | None
    renames: Sequence[str]
    drop: bool
