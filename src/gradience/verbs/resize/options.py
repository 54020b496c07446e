"""The options of ``resize``, apart from its work, which imports JAX."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NamedTuple, TypeAlias, TypedDict, get_args

from gradience.errors import OptionError
from gradience.io import PathLike
from gradience.ranges import LIBRARY_ONLY, SELDOM, Count, Positive, Range, Seed, Share, VerbOptions, option_name
from gradience.schema.writing import Criterion, Dtype

BY_OUTPUTS: Final[tuple[Criterion, ...]] = ("kl", "rank", "max_params", "max_mb")
"""The criteria that can choose by outputs; the other criteria are rules on singular values."""

MOST_FLIPS: Final = 0.02
"""Share of predictions that a choice by KL may change, unless told otherwise: a judgement. Where confidence is low a
small KL hides many changed answers."""

_OnRows: TypeAlias = Annotated[bool, Range(lambda x: x in {0.0, 1.0}, "true, and the rows by --data FILE")]


class Target(NamedTuple):
    """One criterion and its number; with a KL also the share of predictions that may change."""

    criterion: Criterion
    value: float
    flips: float = MOST_FLIPS


@dataclass(frozen=True, kw_only=True)
class ResizeOptions(VerbOptions):
    """How the new ranks are chosen: by exactly one criterion, and with calibration by what the outputs lose.

    sigma_1 >= sigma_2 >= ... are the singular values of a module's update s B A, and k is its new rank. Calibration
    takes inputs without labels; it needs the base and gradience[hf].

    Parameters
    ----------
    rank:
        k = RANK in every module that has more.
    energy:
        Least k with sum_{i<=k} sigma_i^2 >= ENERGY * sum sigma_i^2. The relative error of the module is then at most
        sqrt(1 - ENERGY).
    max_mb:
        The weights file has at most MAX_MB * 10^6 bytes. Ranks go where they keep most sigma^2 per byte.
    max_params:
        The factors A and B have at most MAX_PARAMS parameters. Ranks go where they keep most sigma^2 per parameter.
    like_suggested:
        Each module at the rank that 'gradience audit --suggest-per-layer' suggests: its k@90%.
    kl:
        On --data's rows: the fewest pieces for which the outputs' measured KL from the whole adapter is at most KL, in
        nats per prediction, and at most 5 % of the adapter's own from the base, and at most 2 % of predictions change.
    flips:
        With --kl: share of predictions that may change their most probable class or token. Default: 0.02.
    data:
        Rows for --kl, --calibrate and --recover: JSONL or Parquet with text, prompt or messages, or plain text with an
        input on each line.
    calibrate:
        Choose by outputs, on --data's rows, as --kl always does. Over all modules at once those pieces are kept that do
        most to the outputs per parameter: for --kl, or within --max-mb or the parameters of --rank. A module may leave
        the adapter. What it cost is measured on other rows of the file.
    recover:
        On --data's rows the smaller adapter's A and B are then trained for 300 steps towards the outputs with the whole
        adapter. They are kept if the KL on texts held out falls beyond chance.
    seed:
        Of the choice of inputs, of their order, and of the labels drawn from the model.
    dtype:
        Dtype of the new factors. Default: unchanged.
    base:
        Base model: a folder with safetensors, or organisation/name in the local hub cache. Never downloaded.
    """

    rank: Count | None = None
    energy: Share | None = None
    max_mb: Positive | None = None
    max_params: Annotated[Count | None, LIBRARY_ONLY] = None
    like_suggested: Annotated[bool, Range(lambda x: x in {0.0, 1.0}, "true")] = False
    kl: Annotated[float, Range(lambda x: x > 0.0, "above 0, in nats")] | None = None
    flips: Annotated[Share | None, LIBRARY_ONLY] = None
    data: Path | None = None
    calibrate: _OnRows = False
    recover: _OnRows = False
    seed: Seed = 0
    dtype: Annotated[Dtype | None, SELDOM] = None
    base: Path | None = None

    @property
    def inputs(self) -> Path | None:
        """The file to calibrate on; None without calibration."""
        return self.data if self.calibrate or self.kl is not None else None

    @property
    def recovers_on(self) -> Path | None:
        """The file of texts to recover on; None without recovery."""
        return self.data if self.recover else None

    def target(self) -> Target:
        """The one criterion given; the other options go with it.

        Raises:
            OptionError: none or several are given, a number is out of its range, or an option that goes with the
                criterion is missing, or of no use for it.
        """
        values = {name: getattr(self, name) for name in get_args(Criterion)}
        # `is`, because a given 0.0 equals False
        names = [name for name, value in values.items() if value is not None and value is not False]
        if len(names) != 1:
            got = " and ".join(map(option_name, names)) or "none"
            raise OptionError(
                f"expected exactly one criterion, got {got}",
                advice="give --kl, --rank, --energy, --max-mb or --like-suggested",
            )
        [criterion] = names
        self.refuse_bad()
        self._refuse_inputs(criterion)
        return Target(criterion, float(values[criterion]), MOST_FLIPS if self.flips is None else self.flips)

    def _refuse_inputs(self, criterion: Criterion) -> None:
        if self.flips is not None and criterion != "kl":
            raise OptionError("--flips is a bound beside a KL, and none is given", advice="give --kl, or leave it out")
        asking = [name for name in ("calibrate", "kl", "recover") if getattr(self, name) not in {None, False}]
        names = list(map(option_name, asking))
        if self.data is None and names:
            raise OptionError(f"{names[0]} needs --data", advice="give --data FILE")
        if self.data is not None and not names:
            raise OptionError("nothing asks for --data's rows", advice="give --kl, --calibrate or --recover as well")
        if self.calibrate and criterion not in BY_OUTPUTS:
            raise OptionError(
                f"{option_name(criterion)} is a rule on singular values, which --calibrate does without",
                advice="with --calibrate give --kl, --rank or --max-mb",
            )
        if names and self.base is None:
            raise OptionError(f"{names[0]} needs --base, because it runs the model", advice="give --base MODEL")


class ResizeKeywords(TypedDict, total=False):
    """The options of `resize` as keywords."""

    rank: int | None
    energy: float | None
    max_mb: float | None
    max_params: int | None
    like_suggested: bool
    kl: float | None
    flips: float | None
    data: PathLike | None
    calibrate: bool
    recover: bool
    seed: int
    dtype: Dtype | None
    base: PathLike | None
