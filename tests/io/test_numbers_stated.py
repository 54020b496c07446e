"""Numbers within the code that decide an answer, by value: most were measured, and one that moves is a decision.

The thresholds of rules have a table of their own, and so have limits. Sizes of buffers and the like, which decide how
fast an answer comes and not which, are in neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

STATED: dict[str, dict[str, Any]] = {
    "rules.config.rate": {
        "_HINTED_CONFIDENCE": 0.6,
        "_BLIND_CONFIDENCE": 0.4,
        "_PISSA_CONFIDENCE": 0.5,
        "_OTHER_INIT_CONFIDENCE": 0.3,
    },
    "rules.log.divergence": {
        "_FIFTH": 5,
        "_WINDOW": 3,
        "_SPIKES": 100,
        "_ACCUMULATED": (2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128, 256),
    },
    "rules.log.facts": {"_SHOWS_A_CURVE": 3, "FEW_EVALS": 5, "_PARTS": 5},
    "rules.log.held_out": {"_LAST": 0.25, "_CLASSES": range(2, 21)},
    "rules.log.learning": {
        "_FEW": 9,
        "_FEW_P": {4: 0.17, 5: 0.1, 6: 0.05, 7: 0.05, 8: 0.05},
        "_FEW_FALL": {2: 0.6, 3: 0.4},
        "_STEP_NOISE": 0.2,
        "_QUANTILE": 2.326,
        "_SPANS": (0.3, 0.5, 0.65),
    },
    "rules.log.numbers": {"_STRAIGHT": 0.02, "_AROUND": 6, "_SAME_RATE": 1e-9},
    "rules.log.rewards": {"_THIRD": 3},
    "rules.log.statistics": {
        "FEW_POINTS": 128,
        "MOST_POINTS": 2048,
        "_LARGEST": 1e100,
        "_FEW_DIFFERENCES": 6,
        "_EXACT": 40,
        "_CURVED": 9,
        "_LEAST_FALL": 0.02,
        "_SAMPLE": 33,
        "_BEFORE": 8,
        "_MANY": 1000,
        "_NEAR": 0.6,
        "_HIGHEST": 700.0,
    },
    "rules.weights.ranks": {"_ROUNDING": 1e-9},
    "spectral.atoms": {"_SETTLED": 1e-4, "_ROUNDING": 2e-6, "_RESOLVED": 1e-3, "_SHARE": 0.05},
    "spectral.dense": {"EXACT_UP_TO": 2048, "_LEADING": 64, "_SLACK": 1e-4},
    "spectral.intruders": {
        "EXACT_UP_TO": 768,
        "SETTLED_UP_TO": 2048,
        "_VECTORS": 640,
        "_RESOLVED": 1e-7,
        "_ROUNDING": 1e-4,
    },
    "spectral.krylov": {"_DEPENDENT": 1e-10},
    "spectral.lanczos": {"_GUARD": 6, "_VECTORS": 768, "EXACT_UNDER": 96, "_SMALL": 768, "_ANGLE": 2e-3},
    "spectral.merging": {"EXACT": 1e-6, "_CANCELLED": 1e-10, "_NOTHING": 1e-24, "_SINGLE": 1e37},
    "spectral.norms": {"_WIDTH": 2, "_STEPS": 64, "_ERROR": 2e-6},
    "spectral.quantities": {"SHARES": (0.9, 0.95, 0.99)},
    "spectral.reduced": {
        "_FLOOR": 1e-7,
        "_DENSE_UNDER": 768,
        "_MOST_PASSES": 40,
        "_SETTLED": 1e-4,
        "_ROUNDING": 1e-15,
        "_FIRST_RANK": 32,
    },
    "spectral.sketch": {"DIMENSIONS": 128, "_SEED": 20130811},
    "spectral.subspace": {"_TRUSTED": 1e-4, "_FLOOR": 1e-6},
    "spectral.update": {"_SAMPLES": 8, "TRUSTED_SHARE": 1e-2},
    "verbs.merge.check": {"_SAMPLE": 1 << 19},
    "verbs.merge.config": {"TIES_DENSITY": 0.2, "_LARGEST": 1e6, "_SHOWN": 4},
    "verbs.resize.adapter": {"_NAMED": 8},
    "verbs.resize.calibrated": {
        "CHOSEN_BY": 128,
        "MEASURED_ON": 64,
        "MEASURED_ROWS": 256,
        "LEAST": 24,
        "_ROUNDS": 8,
        "_BACKWARD": 2,
    },
    "verbs.resize.choice": {"_STEPS": 100},
    "verbs.resize.pieces": {"FLOOR": 1e-9},
    "verbs.resize.plan": {"_MEGABYTE": 1_000_000, "_RECORD": 4096},
}


@pytest.mark.parametrize("module", STATED)
def test_a_number_that_decides_an_answer_is_as_stated(module):
    held = vars(import_module(f"gradience.{module}"))
    assert {name: held[name] for name in STATED[module]} == STATED[module]
