"""The options of ``merge``, apart from its work, which imports JAX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypedDict

from cyclopts import Parameter, Token

from gradience.errors import AdapterError
from gradience.ranges import SELDOM, Count, Share, VerbOptions, Whole
from gradience.schema.merge import MergeMethod
from gradience.schema.writing import Dtype


def parsed_weights(text: str | None) -> list[float] | None:
    """Return the numbers of a list such as `0.5,0.5`, or None if no list is given.

    Raises:
        AdapterError: an item is not a number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise AdapterError(f"--weights {text!r} is not a list of numbers", advice="write --weights 0.5,0.5") from error


def _weights(_: object, tokens: Sequence[Token]) -> list[float] | None:
    return parsed_weights(tokens[0].value)


@dataclass(frozen=True, kw_only=True)
class MergeOptions(VerbOptions):
    """How adapters are merged. Which options go together depends on the method, and weights on the adapters.

    Parameters
    ----------
    method:
        linear: S, at the rank that it has. cat: S, factors side by side, rank sum r_i. svd: the best rank-RANK
        approximation of S. ties: entries kept are the DENSITY * n largest of n in each dW_i; then, entry by entry,
        the mean of w_i dW_i over the adapters that agree with the sign of their sum. dare_linear: each entry kept
        with probability DENSITY and divided by it, then S. dare_ties: the same, then signs and means as for ties.
        ties and dare are dense (one module in memory: about 24 bytes an entry), and cut to the best rank RANK.
    weights:
        One number per adapter, as 0.5,0.5. Without it 1/n each; 1 for ties and dare_ties, which are means already.
    rank:
        Of svd, ties and dare: without it the largest rank that an adapter has in the module.
    density:
        Share of entries that ties or dare keeps. ties: 0.2 without it, the paper's. dare: to be given.
    seed:
        Random seed.
    heads_from:
        Which adapter's heads, biases and token rows win on conflict: A, B, ... by position, or the adapter's name.
    dtype:
        Dtype of the new factors. Default: unchanged.
    force_mix:
        Merge adapters of different base models, or without a module in common.
    """

    method: MergeMethod = "linear"
    weights: Annotated[Sequence[float] | None, Parameter(converter=_weights, n_tokens=1, metavar="STR")] = None
    rank: Count | None = None
    density: Share | None = None
    seed: Annotated[Whole, SELDOM] = 0
    heads_from: Annotated[str | None, SELDOM] = None
    dtype: Annotated[Dtype | None, SELDOM] = None
    force_mix: Annotated[bool, SELDOM] = False


class MergeKeywords(TypedDict, total=False):
    """The options of `merge` as keywords."""

    method: MergeMethod
    weights: Sequence[float] | None
    rank: int | None
    density: float | None
    seed: int
    heads_from: str | None
    dtype: Dtype | None
    force_mix: bool
