"""A merge where the base, or the merged model, is stored in codes: what the codes cost the update.

An adapter that was trained on a base in codes learnt dW beside Q(W), W rounded to codes and back. The merge of both may
be stored in 16 bits, which costs little; be rounded to codes again, which may cost more than dW itself; or the adapter
may have been merged into the weights before their rounding, beside which it was never trained.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from gradience.adapters.layout import Array
from gradience.base.coded import Coded
from gradience.prove.verify_merge.judge import Judgement
from gradience.schema.merge import ModuleVerdict

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


class CodesLoss(NamedTuple):
    """What codes cost a merge: sums over the entries of W, dW and M, with p = W + dW.

    Q rounds to the codes of M, or of W if M is in none, with the scales and zero points that the file has.
    """

    lost: float
    """|M - p|^2."""
    expected: float
    """|Q(p) - p|^2."""
    update: float
    """|dW|^2."""
    along: float
    """<M - p, dW>."""
    expected_along: float
    """<Q(p) - p, dW>."""
    spread: float
    """The sum of (M - p)^2 dW^2: the variance of <M - p, dW> if the signs of M - p are random."""
    changed: int
    """The number of entries in which M differs from W."""
    would_change: int
    """The number of entries in which Q(p) differs from the codes' own weight."""
    other_codes: int
    """The number of entries in which Q(M - dW) is not W: of a merge into the weights before their rounding, few."""


def codes_loss(w: Array, m: Array, update: Array, *, base: Coded | None, merged: Coded | None) -> CodesLoss:
    """The sums for one module, W, M and dW of one shape; at least one of W and M is in codes."""
    before = merged if merged is not None else base
    assert before is not None  # noqa: S101  # by the premise
    p, owned = w + update, before.whole()
    rounding = before.moved(p - owned)
    error, expected = (m - p).astype(np.float64), (owned + rounding - p).astype(np.float64)
    back = 0 if base is None else np.count_nonzero(base.moved(m - update - base.whole()))
    return CodesLoss(
        lost=float(np.sum(error**2)),
        expected=float(np.sum(expected**2)),
        update=float(np.sum(update.astype(np.float64) ** 2)),
        along=float(np.sum(error * update)),
        expected_along=float(np.sum(expected * update)),
        spread=float(np.sum((error * update) ** 2)),
        changed=int(np.count_nonzero(m != w)),
        would_change=int(np.count_nonzero(rounding)),
        other_codes=int(back),
    )


def of_codes(
    w: Array, m: Array, update: Array, judged: Judgement, *, base: Coded | None, merged: Coded | None
) -> CodesVerdict:
    """Return the verdict on a module whose base or merged weight is in codes.

    Args:
        w: the base's weight as its codes give it back, or as stored.
        m: the merged weight, likewise.
        update: dW, of the same shape.
        judged: what the comparison with merges in floating point gives.
        base: the codes of the base's weight.
        merged: those of the merged weight.
    """
    w, m, update = (np.asarray(x, np.float32) for x in (w, m, update))
    loss = codes_loss(w, m, update, base=base, merged=merged)
    if not 0.0 < loss.update < math.inf:
        return CodesVerdict(judged, None, None)
    error, least = math.sqrt(loss.lost / loss.update), math.sqrt(loss.expected / loss.update)
    off = loss.along - (loss.expected_along if merged is not None else 0.0)
    is_whole = abs(off) <= _SIGMAS * math.sqrt(loss.spread)
    if merged is not None:
        verdict, reason = _requantised(loss, error, least, w.size, is_whole=is_whole)
        told = judged._replace(
            verdict=verdict, factor=None, precision=None, reason=f"rounded to {merged.form} again: {reason}"
        )
        return CodesVerdict(told, error, least)
    if base is not None and judged.verdict == "other" and is_whole and loss.other_codes <= _OTHER * w.size:
        reason = (
            f"merged into the weights before they were rounded to {base.form}, beside which the adapter was not "
            f"trained: norm(M - W - dW) / norm(dW) is {error:.3g}"
        )
        return CodesVerdict(judged._replace(verdict="within_rounding", reason=reason), error, None)
    return CodesVerdict(judged, error, None)


def _requantised(
    loss: CodesLoss, error: float, least: float, entries: int, *, is_whole: bool
) -> tuple[ModuleVerdict, str]:
    told = f"norm(M - W - dW) / norm(dW) is {error:.3g}, and {least:.3g} is what the rounding costs"
    if not loss.changed:
        return ("absent" if loss.would_change >= _FEW else "unresolved"), f"no code differs from the base's; {told}"
    told += f"; {loss.changed / entries:.0%} of the weights differ from the base's"
    if is_whole and error <= _LIKE * least:
        return "within_rounding", told
    return "other", told
