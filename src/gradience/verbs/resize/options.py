"""The options of ``resize``, apart from its work, which imports JAX."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NamedTuple, TypedDict, get_args

from cyclopts import Parameter

from gradience.errors import OptionError
from gradience.io import PathLike
from gradience.ranges import LIBRARY_ONLY, Count, Positive, Range, Seed, Share, VerbOptions, option_name
from gradience.schema.writing import Criterion, Dtype

BY_OUTPUTS: Final[tuple[Criterion, ...]] = ("kl", "rank", "max_params", "max_mb")
"""The criteria that can choose by outputs; the other criteria are rules on singular values."""

MOST_FLIPS: Final = 0.02
"""Share of predictions that a choice by KL may change, unless told otherwise: a judgement. Where confidence is low a
small KL hides many changed answers."""


_OR_BARE: Final = Parameter(metavar="[PATH]")


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
        With --calibrate: the fewest pieces for which the outputs' measured KL from the whole adapter is at most KL,
        in nats per prediction, and at most 5 % of the adapter's own from the base, and at most FLIPS change.
    flips:
        With --kl: share of predictions that may change their most probable class or token. Default: 0.02.
    data:
        Rows for --calibrate and --recover without a file of their own, and for --kl: JSONL or Parquet with text,
        prompt or messages, or plain text with an input on each line.
    calibrate:
        Choose by outputs, on --data's rows or on those of a file given here. Over all modules at once those pieces are
        kept that do most to the outputs per parameter: for --kl, or within --max-mb or the parameters of --rank. A
        module may leave the adapter. What it cost is measured on other inputs of the file.
    recover:
        On --data's rows, or on those of a file given here, the smaller adapter's A and B are then trained for 300
        steps towards the outputs with the whole adapter. They are kept if the KL on texts held out falls beyond chance.
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
    calibrate: Annotated[Path | bool | None, _OR_BARE] = None
    recover: Annotated[Path | bool | None, _OR_BARE] = None
    seed: Seed = 0
    dtype: Dtype | None = None
    base: Path | None = None

    @property
    def inputs(self) -> Path | None:
        """The file to calibrate on; None without calibration."""
        return self._file(given=self.calibrate or self.kl is not None)

    @property
    def recovers_on(self) -> Path | None:
        """The file of texts to recover on; None without recovery."""
        return self._file(given=self.recover)

    def _file(self, *, given: Path | bool | None) -> Path | None:
        """The file given, or that of --data if none is."""
        return self.data if given is True else given or None

    def target(self) -> Target:
        """The one criterion given; the other options go with it.

        Raises:
            OptionError: none or several are given, a number is out of its range, or an option that goes with the
                criterion is missing, given twice, or of no use for it.
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
        self._refuse_data(criterion)
        names = ["calibrate"] * bool(self.calibrate)
        if self.flips is not None and criterion != "kl":
            raise OptionError("--flips is a bound beside a KL, and none is given", advice="give --kl, or leave it out")
        if self.inputs is None and criterion == "kl":
            raise OptionError("--kl is measured on inputs, and none are given", advice="give --data FILE")
        names = names or ["data"] * (self.inputs is not None)
        if names and criterion not in BY_OUTPUTS:
            raise OptionError(
                f"{option_name(criterion)} is a rule on singular values, which --calibrate does without",
                advice="with --calibrate give --kl, --rank or --max-mb",
            )
        names += ["recover"] * bool(self.recover)
        if names and self.base is None:
            raise OptionError(
                f"{option_name(names[0])} runs the model, and no base is given", advice="give --base MODEL"
            )

    def _refuse_data(self, criterion: Criterion) -> None:
        bare = [name for name in ("calibrate", "recover") if getattr(self, name) is True]
        if self.data is None and bare:
            name = option_name(bare[0])
            raise OptionError(
                f"{name} takes --data's rows, and none are given", advice=f"give --data FILE, or {name} FILE"
            )
        if self.data is not None and not bare and (criterion != "kl" or self.calibrate):
            raise OptionError("nothing asks for --data's rows", advice="give --calibrate or --recover without a file")


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
    calibrate: PathLike | bool | None
    recover: PathLike | bool | None
    seed: int
    dtype: Dtype | None
    base: PathLike | None
