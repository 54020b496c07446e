"""A merge where the base, or the merged model, is stored in codes: what the codes cost the update.

An adapter that was trained on a base in codes learnt dW beside Q(W), W rounded to codes and back. The merge of both may
be stored in 16 bits, which costs little; be rounded to codes again, which may cost more than dW itself; or the adapter
may have been merged into the weights before their rounding, beside which it was never trained.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gradience.adapters.layout import Array
from gradience.base.coded import CodedWeight
from gradience.schema.merge import ModuleVerdict
from gradience.verbs.verify.judge import FEW, SIGMAS, Judgement
from gradience.verbs.verify.measure import Case

_LIKE: Final = 1.1  # of the loss that is expected: scales in 8 bits add to it
_OTHER: Final = 0.01  # share of codes that may be others, of weights at a border between two


def of_codes(case: Case, judged: Judgement, *, base: CodedWeight | None, merged: CodedWeight | None) -> Judgement:
    """Return the verdict on a module whose base or merged weight, or both, is in codes, with what they lose of dW.

    Args:
        case: W and M as stored or as their codes give them back, and dW.
        judged: what the comparison with merges in floating point gives.
        base: the codes of W.
        merged: those of M.
    """
    w, m, update = (np.asarray(x, np.float32) for x in (case.w, case.m, case.delta.rows(slice(None))))
    size, error = _norm(update), (m - (w + update)).astype(np.float64)
    if not 0.0 < size < math.inf:
        return judged
    if merged is not None:
        return _requantised(judged, w, m, update, merged)
    lost, is_whole = _norm(error) / size, _is_balanced(error, error, update)
    if base is not None and judged.verdict == "other" and is_whole and _has_codes_of(base, m - update):
        reason = (
            f"merged into the weights before they were rounded to {base.form}, beside which the adapter was not "
            f"trained: norm(M - W - dW) / norm(dW) is {lost:.3g}"
        )
        judged = judged._replace(verdict="within_rounding", reason=reason)
    return judged._replace(lost=lost)


def _norm(x: Array) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


def _is_balanced(off: Array, error: Array, update: Array) -> bool:
    """Whether <off, dW> is what random signs of the error may leave: as much of dW is there as should be."""
    return abs(float(np.sum(off * update))) <= SIGMAS * _norm(error * update)


def _has_codes_of(base: CodedWeight, weight: Array) -> bool:
    """Whether a weight is rounded to the base's codes, nearly everywhere."""
    return int(np.count_nonzero(base.moved(weight - base.whole()))) <= _OTHER * weight.size


def _requantised(judged: Judgement, w: Array, m: Array, update: Array, codes: CodedWeight) -> Judgement:
    """The verdict on an M in codes, beside W + dW rounded to these with the scales and zero points in the file."""
    p, owned = w + update, codes.whole()
    rounding = codes.moved(p - owned)
    error, expected = (m - p).astype(np.float64), (owned + rounding - p).astype(np.float64)
    lost, least = _norm(error) / _norm(update), _norm(expected) / _norm(update)
    why = f"rounded to {codes.form} again: "
    words = f"norm(M - W - dW) / norm(dW) is {lost:.3g}, and {least:.3g} is what the rounding costs"
    if changed := int(np.count_nonzero(m != w)):
        is_whole = _is_balanced(error - expected, error, update)
        verdict: ModuleVerdict = "within_rounding" if is_whole and lost <= _LIKE * least else "other"
        reason = f"{why}{words}; {changed / w.size:.0%} of the weights differ from the base's"
    else:
        verdict = "absent" if np.count_nonzero(rounding) >= FEW else "unresolved"
        reason = f"{why}no code differs from the base's; {words}"
    return judged._replace(verdict=verdict, factor=None, precision=None, reason=reason, lost=lost, expected_lost=least)
