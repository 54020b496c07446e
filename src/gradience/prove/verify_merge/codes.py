"""A merge where the base, or the merged model, is stored in 4-bit codes: what the codes cost the update.

An adapter that was trained on a base in codes learnt dW beside Q(W), W rounded to codes and back. The merge of both may
be stored in 16 bits, which costs little; be rounded to codes again, which may cost more than dW itself; or the adapter
may have been merged into the weights before their rounding, beside which it was never trained.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import jax.numpy as jnp

from gradience.adapters.layout import Array
from gradience.prove.verify_merge.judge import Judgement
from gradience.schema.merge import ModuleVerdict
from gradience.spectral.quantised import CodesLoss, codes_loss

_SIGMAS: Final = 6.0
_FEW: Final = 36  # entries: n random signs all agree at sqrt(n) sigma, here 6
_LIKE: Final = 1.1  # of the loss that is expected: scales in 8 bits add to it
_OTHER: Final = 0.01  # share of codes that may be others, of weights at a border between two


class CodesVerdict(NamedTuple):
    """A judgement, and norms over norm(dW)."""

    judged: Judgement
    lost: float | None
    """norm(M - W - dW) / norm(dW)."""
    expected: float | None
    """The same if W + dW is rounded to codes again."""


def of_codes(
    w: Array, m: Array, update: Array, judged: Judgement, *, form: str, block: int, requantised: bool
) -> CodesVerdict:
    """Return the verdict on a module whose base or merged weight is in codes.

    Args:
        w: the base's weight as its codes give it back, or as stored.
        m: the merged weight, likewise.
        update: dW, of the same shape.
        judged: what the comparison with merges in floating point gives.
        form: the codes, a name of `gradience.spectral.quantised.FORMATS`.
        block: weights that share a scale.
        requantised: whether the merged weight is in codes.
    """
    base, merged, delta = (jnp.asarray(x, jnp.float32) for x in (w, m, update))
    sums = codes_loss(base, merged, delta, form, block)
    loss = CodesLoss[float](*(float(x) for x in sums))
    if not 0.0 < loss.update < math.inf:
        return CodesVerdict(judged, None, None)
    error, least = math.sqrt(loss.lost / loss.update), math.sqrt(loss.expected / loss.update)
    off = loss.along - (loss.expected_along if requantised else 0.0)
    is_whole = abs(off) <= _SIGMAS * math.sqrt(loss.spread)
    if requantised:
        verdict, reason = _requantised(loss, error, least, is_whole=is_whole)
        told = judged._replace(
            verdict=verdict, factor=None, precision=None, reason=f"rounded to {form} again: {reason}"
        )
        return CodesVerdict(told, error, least)
    if judged.verdict == "other" and is_whole and loss.other_codes <= _OTHER * w.size:
        reason = (
            f"merged into the weights before they were rounded to {form}, beside which the adapter was not trained: "
            f"norm(M - W - dW) / norm(dW) is {error:.3g}"
        )
        return CodesVerdict(judged._replace(verdict="within_rounding", reason=reason), error, None)
    return CodesVerdict(judged, error, None)


def _requantised(loss: CodesLoss[float], error: float, least: float, *, is_whole: bool) -> tuple[ModuleVerdict, str]:
    told = f"norm(M - W - dW) / norm(dW) is {error:.3g}, and {least:.3g} is what the rounding costs"
    if not loss.changed:
        return ("absent" if loss.would_change >= _FEW else "unresolved"), f"no code differs from the base's; {told}"
    if is_whole and error <= _LIKE * least:
        return "within_rounding", told
    return "other", told
