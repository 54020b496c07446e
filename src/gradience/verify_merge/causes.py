"""Factors that a merge goes wrong by, and what would explain them."""

from __future__ import annotations

import math

from gradience.adapters.modules import Module

__all__ = ["causes_of", "usual_factors"]

_SAME = 0.02  # relative: the difference of two factors that are taken for one (heuristic)


def usual_factors(module: Module) -> dict[float, str]:
    """Return the factors of dW that a mistake leads to, each with the mistake."""
    s, r = module.scale, float(module.r)
    root = math.sqrt(r)
    found = {2.0: "merged twice, or at twice the strength", 0.5: "merged at half strength", -1.0: "subtracted"}
    told = {
        "as if alpha / r had been left out": 1.0 / s if s else 0.0,
        "as if it had been scaled twice": s,
        "as if alpha had not been divided by r": root if module.rslora else r,
        "as if rsLoRA's alpha / sqrt(r) had been taken for alpha / r": 1.0 / root if module.rslora else 0.0,
        "as if alpha / r had been taken for rsLoRA's alpha / sqrt(r)": 0.0 if module.rslora else root,
    }
    for why, factor in told.items():
        if factor not in {0.0, 1.0}:
            found[factor] = f"{found[factor]}, or {why}" if factor in found else why
    return found


def causes_of(module: Module, factor: float) -> str | None:
    """Return what would explain a factor, or None."""
    near = [why for usual, why in usual_factors(module).items() if math.isclose(usual, factor, rel_tol=_SAME)]
    return "; ".join(near) or None
