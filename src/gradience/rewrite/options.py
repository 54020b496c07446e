"""The options of the verbs that write an adapter, as records: the command line parses what the library takes.

A record's docstring documents its options for both; it stands apart from its verb, whose module imports JAX.
"""

# Annotations are evaluated here, so that a record of the command line that inherits these fields has their types.
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias, get_args

from gradience.errors import OptionError
from gradience.schema.writing import Criterion

Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
PiecesOf: TypeAlias = Literal["two-sided", "svd"]

BY_OUTPUTS: Final[tuple[Criterion, ...]] = ("kl", "rank", "max_params", "max_mb")
"""The criteria that can choose by outputs; the other criteria are rules on singular values."""

_COUNT: Final = (lambda x: x >= 1 and x == int(x), "a whole number from 1")
_SHARE: Final = (lambda x: 0.0 < x <= 1.0, "above 0, at most 1")
_RANGES: Final[dict[Criterion, tuple[Callable[[float], bool], str]]] = {
    "rank": _COUNT,
    "energy": _SHARE,
    "rel_error": (lambda x: 0.0 <= x < 1.0, "from 0, under 1"),
    "max_mb": (lambda x: x > 0.0, "above 0"),
    "max_params": _COUNT,
    "like_suggested": (lambda x: x == 1, "true"),
    "kl": (lambda x: x > 0.0, "above 0, in nats"),
    "sv_ratio": (lambda x: x >= 1.0, "from 1"),
    "sv_fro": _SHARE,
    "sv_cumulative": _SHARE,
}


class Target(NamedTuple):
    """One criterion and its number."""

    criterion: Criterion
    value: float


@dataclass(frozen=True, kw_only=True)
class ResizeOptions:
    """How the new ranks are chosen: by exactly one criterion, and with calibration by what the outputs lose.

    sigma_1 >= sigma_2 >= ... are the singular values of a module's update s B A, and k is its new rank. Calibration
    takes inputs without labels; it needs the base and gradience[hf].

    Parameters
    ----------
    rank:
        k = RANK in every module that has more.
    energy:
        Least k with sum_{i<=k} sigma_i^2 >= ENERGY * sum sigma_i^2.
    rel_error:
        Least k with sqrt(sum_{i>k} sigma_i^2 / sum sigma_i^2) <= REL_ERROR: the relative error of the module.
    max_mb:
        The weights file has at most MAX_MB * 10^6 bytes. Ranks go where they keep most sigma^2 per byte.
    max_params:
        The factors A and B have at most MAX_PARAMS parameters. Ranks go where they keep most sigma^2 per parameter.
    like_suggested:
        Each module at the rank that 'gradience audit --suggest-per-layer' suggests: its k@90%.
    sv_ratio:
        k = the number of sigma_i > sigma_1 / SV_RATIO. This and the next two as in sd-scripts' resize_lora.py.
    sv_fro:
        Least k with sqrt(sum_{i<=k} sigma_i^2 / sum sigma_i^2) >= SV_FRO.
    sv_cumulative:
        Least k with sum_{i<=k} sigma_i / sum sigma_i >= SV_CUMULATIVE.
    kl:
        With --calibrate: the fewest pieces for which the outputs' measured KL from the whole adapter is at most KL,
        in nats per prediction.
    calibrate:
        File of inputs: JSONL or Parquet with text, prompt or messages, or plain text with an input on each line. Over
        all modules at once those pieces are kept that do most to the outputs per parameter: for --kl, or within
        --max-params, --max-mb or the parameters of --rank. A module may leave the adapter. What it cost is measured
        on other inputs of the file.
    calibrate_tokens:
        The same as JSONL of token ids.
    pieces:
        two-sided: by inputs and gradients of each module; svd: those of the weights alone.
    seed:
        Of the choice of inputs and of the labels drawn from the model.
    dtype:
        Dtype of the new factors. Default: unchanged.
    base:
        Base model: a folder with safetensors, or organisation/name in the local hub cache. Never downloaded.
    """

    rank: int | None = None
    energy: float | None = None
    rel_error: float | None = None
    max_mb: float | None = None
    max_params: int | None = None
    like_suggested: bool = False
    sv_ratio: float | None = None
    sv_fro: float | None = None
    sv_cumulative: float | None = None
    kl: float | None = None
    calibrate: Path | None = None
    calibrate_tokens: Path | None = None
    pieces: PiecesOf = "two-sided"
    seed: int = 0
    dtype: Dtype | None = None
    base: Path | None = None

    @property
    def inputs(self) -> Path | None:
        """The file to calibrate on, of texts or of token ids; None without calibration."""
        return self.calibrate_tokens if self.calibrate is None else self.calibrate

    def target(self) -> Target:
        """The one criterion given; the other options go with it.

        Raises:
            OptionError: none or several are given, a number is out of its range, or an option that goes with the
                criterion is missing, given twice, or of no use for it.
        """
        values = {name: getattr(self, name) for name in get_args(Criterion)}
        # `is`, because a given 0.0 equals False
        given = [name for name, value in values.items() if value is not None and value is not False]
        if len(given) != 1:
            got = " and ".join(map(_option, given)) or "none"
            raise OptionError(f"expected exactly one criterion, got {got}", advice=f"give one of {_listed(values)}")
        [criterion] = given
        value, (holds, wanted) = values[criterion], _RANGES[criterion]
        is_number = isinstance(value, int | float)
        if is_number and not math.isfinite(value):
            raise OptionError(f"{_option(criterion)} is {value}, expected a finite number")
        if not (is_number and holds(value)):
            raise OptionError(f"{_option(criterion)} is {value}, expected {wanted}")
        if self.seed < 0:
            raise OptionError(f"--seed is {self.seed}, expected a whole number from 0")
        self._refuse_inputs(criterion)
        return Target(criterion, float(value))

    def _refuse_inputs(self, criterion: Criterion) -> None:
        given = [name for name in ("calibrate", "calibrate_tokens") if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError("got --calibrate and --calibrate-tokens, expected one of them", advice="give one")
        if not given and criterion == "kl":
            raise OptionError("--kl is measured on inputs, and none are given", advice="give --calibrate FILE")
        if given and criterion not in BY_OUTPUTS:
            raise OptionError(
                f"{_option(criterion)} is a rule on singular values, which --calibrate does without",
                advice=f"with --calibrate give one of {_listed(BY_OUTPUTS)}",
            )
        if given and self.base is None:
            raise OptionError(f"{_option(given[0])} runs the model, and no base is given", advice="give --base MODEL")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(_option, names))
