"""The verdict on numbers alone: at each threshold, and just beside it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from tables import every

from gradience.prove.receipt.verdict import Evidence, conclude
from gradience.rules.served import CLEAR, COARSE, EXPLAINED, FINE, LEAST, NOISE_LIKE, SIGNIFICANT, UNLIKE
from gradience.schema.receipt import RECEIPT_SCHEMA_ID, Noise, Receipt, ReceiptRow

ROWS, WIDTH = 8, 16
RNG = np.random.default_rng(0)
# Orthonormal directions: the adapter's effect, what two parts do, and one that nothing of the adapter does
BASIS = np.linalg.qr(RNG.standard_normal((ROWS * WIDTH, 5)))[0].T
EFFECT, ONE, OTHER, NOISE, AWAY = BASIS
BASE = np.full(ROWS * WIDTH, -5.0)
ADAPTER = BASE + EFFECT
MEASURED = {"batch": 0.0, "bfloat16": 0.01, "int8": 0.005, "int4": 0.2}


def receipt(**noise):
    rows = zip(BASE.reshape(ROWS, WIDTH).tolist(), ADAPTER.reshape(ROWS, WIDTH).tolist(), strict=True)
    return Receipt(
        schema=RECEIPT_SCHEMA_ID,
        task="causal-lm",
        adapter="",
        rows=[ReceiptRow(ids=[1] * (WIDTH + 1), base=b, adapter=a) for b, a in rows],
        noise=[Noise(of=of, residual=size, predictions=1) for of, size in {**MEASURED, **noise}.items()],
    )


class Model:
    """Two parts with effects of .3, and a scale that moves along the adapter's own effect."""

    groups: ClassVar = {"one": frozenset({"m.one"}), "other": frozenset({"m.other"})}

    def parts(self):
        return {"one": [ADAPTER - 0.3 * ONE], "other": [ADAPTER - 0.3 * OTHER]}

    def in_4_bits(self):
        return [ADAPTER + 0.2 * NOISE]

    def without(self, paths):
        return [ADAPTER - 0.3 * ONE * ("m.one" in paths) - 0.3 * OTHER * ("m.other" in paths)]

    def scaled(self, factor):
        return [BASE + factor * EFFECT + 0.05 * (factor - 1.0) * AWAY]

    def factors(self):
        return {0.5: "half", 2.0: "twice", 4.0: ""}


def verdict(y, *, precision="", exact=False, models=True, **noise):
    evidence = Evidence(receipt(**noise), list(y.reshape(ROWS, WIDTH)))
    return conclude(evidence, precision=precision, exact=exact, probes=Model() if models else None)


UNDER, OVER = 0.99, 1.01
rounded = 0.5e-4 * np.sqrt(ROWS * WIDTH)  # four digits, and an effect of size 1
fine = FINE.value * MEASURED["bfloat16"]
coarse = COARSE.value * MEASURED["int4"]


@every(
    ("change", "options", "expected"),
    [
        (UNDER * rounded * NOISE, {"exact": True, "precision": "float32"}, "same"),
        (OVER * rounded * NOISE, {"exact": True, "precision": "float32"}, "another_checkpoint"),
        (UNDER * fine * NOISE, {}, "same"),
        (UNDER * 0.01 * ONE, {}, "same"),  # within the noise that was measured, wherever it points
        (OVER * 0.01 * ONE, {}, "cannot_tell"),
        (OVER * fine * NOISE, {}, "same_within_quantisation"),
        (UNDER * coarse * NOISE, {}, "same_within_quantisation"),
        (OVER * coarse * NOISE, {}, "another_checkpoint"),
        (OVER * fine * NOISE, {"precision": "bfloat16"}, "another_checkpoint"),  # no 4 bits are so exact
        (UNDER * LEAST.value * 0.2 * NOISE, {"precision": "bfloat16"}, "another_checkpoint"),
        (OVER * LEAST.value * 0.2 * NOISE, {"precision": "bfloat16"}, "same_within_quantisation"),
        (OVER * LEAST.value * 0.2 * NOISE, {"precision": "bfloat16", "exact": True}, "another_checkpoint"),
        (OVER * fine * NOISE, {"int8": 0.0101}, "same"),  # an unknown dtype may be int8
        (OVER * fine * NOISE, {"int8": 0.0101, "precision": "bfloat16"}, "another_checkpoint"),
        (UNDER * fine / 8.0 * NOISE, {"precision": "float16"}, "same"),
        (OVER * fine / 8.0 * NOISE, {"precision": "float16"}, "another_checkpoint"),
        (-0.3 * ONE, {}, "part_missing"),
        (-0.3 * ONE - 0.3 * OTHER, {}, "part_missing"),
        (EFFECT + 0.05 * AWAY, {}, "wrong_scale"),
        (-EFFECT, {}, "the_base"),
        (-EFFECT + 0.3 * NOISE, {}, "the_base"),  # within 4 bits of it
        (-EFFECT + 0.3 * NOISE, {"precision": "float16"}, "another_adapter"),
    ],
)  # fmt: skip
def test_what_was_read_is_named(change, options, expected):
    found = verdict(ADAPTER + change, **options)
    assert found.verdict == expected, found.story


def test_the_numbers_are_those_of_the_definitions():
    found = verdict(BASE + 0.5 * EFFECT + 0.2 * NOISE, precision="float32", exact=True)
    assert found.residual == pytest.approx(np.hypot(0.5, 0.2))
    assert found.from_base == pytest.approx(np.hypot(0.5, 0.2))
    assert found.share == pytest.approx(0.5)
    assert found.noise == pytest.approx(rounded)
    assert found.compared == ROWS * WIDTH


def test_an_explanation_leaves_little():
    """Of `-.3 ONE + x NOISE`, the missing part leaves x: clear up to .15 of the distance, within 4 bits up to .5."""

    def of(share, **options):
        left = 0.3 * share / np.sqrt(1.0 - share**2)
        return verdict(ADAPTER - 0.3 * ONE + left * NOISE, **options).verdict

    assert of(UNDER * CLEAR.value, exact=True) == "part_missing"
    assert of(OVER * CLEAR.value, exact=True) == "another_checkpoint"
    assert of(UNDER * EXPLAINED.value) == "part_missing"
    assert of(OVER * EXPLAINED.value) == "another_checkpoint"
    assert of(OVER * CLEAR.value, precision="bfloat16") == "another_checkpoint"


def test_noise_is_told_from_structure():
    """Between noise and structure nothing is claimed; the share of the span is over what chance puts there."""
    chance = 3 / (ROWS * WIDTH)

    def of(structure):
        share = structure * (1.0 - chance) + chance
        return verdict(ADAPTER + 0.3 * (np.sqrt(share) * OTHER * 0.8 + np.sqrt(share) * ONE * 0.6
                                        + np.sqrt(1.0 - share) * AWAY)).verdict  # fmt: skip

    assert of(UNDER * NOISE_LIKE.value) == "same_within_quantisation"
    assert of(OVER * NOISE_LIKE.value) == "cannot_tell"
    assert of(UNDER * EXPLAINED.value) == "cannot_tell"
    assert of(OVER * EXPLAINED.value) == "another_checkpoint"


def test_a_relative_goes_the_adapters_way():
    def of(cosine):
        return verdict(BASE + cosine * EFFECT + np.sqrt(1.0 - cosine**2) * AWAY, exact=True).verdict

    assert of(OVER * UNLIKE.value) == "another_checkpoint"
    assert of(UNDER * UNLIKE.value) == "another_adapter"


def test_alone_a_drift_of_the_share_is_not_noise():
    def of(change, **options):
        return verdict(ADAPTER + change, models=False, **options).verdict

    assert of(0.2 * NOISE) == "same_within_quantisation"
    assert of(-0.3 * EFFECT) == "cannot_tell"
    assert of(-EFFECT) == "the_base"
    assert of(-0.5 * EFFECT) == "another_checkpoint"
    sizes = np.array([verdict(ADAPTER - x * EFFECT + 0.2 * NOISE, models=False).share for x in (0.01, 0.1)])
    assert sizes == pytest.approx([0.99, 0.9])
    assert SIGNIFICANT.value == 4.0


def test_a_factor_between_those_tried_is_found():
    for factor in (0.7, 1.3, 3.1):
        found = verdict(Model().scaled(factor)[0], exact=True)
        assert (found.verdict, found.factor) == ("wrong_scale", pytest.approx(factor, rel=0.01))
    assert ": twice" in verdict(Model().scaled(2.0)[0], exact=True).story


def test_missing_values_are_left_out_and_too_few_tell_nothing():
    y = ADAPTER.copy()
    y[::2] = np.nan
    found = verdict(y)
    assert (found.verdict, found.compared) == ("same", ROWS * WIDTH // 2)
    y[31:] = np.nan
    y[:31] = ADAPTER[:31]
    assert verdict(y).verdict == "cannot_tell"
    y[31] = ADAPTER[31]
    covered = float((EFFECT[:32] ** 2).sum())
    assert (verdict(y).verdict == "cannot_tell") == (covered < 0.2)


def test_an_adapter_that_does_no_more_than_rounding_cannot_be_told():
    assert verdict(ADAPTER, bfloat16=0.51).verdict == "cannot_tell"
    assert verdict(ADAPTER, bfloat16=0.49).verdict == "same"
    assert verdict(ADAPTER, bfloat16=0.51, precision="float32").verdict == "same"
