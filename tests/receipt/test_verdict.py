"""The verdict on numbers alone: at each threshold, and just beside it."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np
import pytest
from tables import every

from gradience.rules.served import APART, BEYOND, CLEAR, COARSE, EXPLAINED, FINE, UNLIKE
from gradience.schema.receipt import RECEIPT_SCHEMA_ID, Receipt, ReceiptRow, SelfDistance
from gradience.verbs.receipt.verdict import LogProbPairs, _Span, conclude

ROWS, WIDTH = 8, 16
RNG = np.random.default_rng(0)
# Orthogonal directions, equally long: the adapter's effect, what two parts do, and one that nothing of the adapter does
# and rounding, which moves all tokens alike
SIGNS = np.sign(RNG.standard_normal((ROWS * WIDTH, 2)))
SIZE = 2.0  # of the adapter's effect, in which distances are measured
BASIS = SIZE * np.linalg.qr(np.concatenate([SIGNS, RNG.standard_normal((ROWS * WIDTH, 4))], axis=1))[0].T
NOISE, FORM, EFFECT, ONE, OTHER, AWAY = BASIS
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
        noise=[SelfDistance(of=of, residual=size, predictions=1) for of, size in {**MEASURED, **noise}.items()],
    )


class Model:
    """Two parts with effects of .3, and a scale that moves along the adapter's own effect."""

    size = 0.2  # of the noise of a form
    groups: ClassVar = {"one": frozenset({"m.one"}), "other": frozenset({"m.other"})}
    whole = frozenset({"m.one", "m.other"})

    def parts(self):
        return {"one": [ADAPTER - 0.3 * ONE], "other": [ADAPTER - 0.3 * OTHER]}

    def noises(self):
        return {"bfloat16": [ADAPTER + 0.01 * NOISE]}

    def stored(self):
        return {form: self.mistaken(form, frozenset(), 1.0) for form in ("one form", "another")}

    def mistaken(self, form, missing, factor):
        some = self.without(missing)[0] + (factor - 1.0) * EFFECT if missing else self.scaled(factor)[0]
        after = BASE if missing == self.whole else some
        return [after + self.size * (NOISE if form == "one form" else FORM)]

    def without(self, paths):
        return [ADAPTER - 0.3 * ONE * ("m.one" in paths) - 0.3 * OTHER * ("m.other" in paths)]

    def scaled(self, factor):
        return [BASE + factor * EFFECT + 0.05 * (factor - 1.0) * AWAY]

    def factors(self):
        return {0.5: "half", 2.0: "twice", 4.0: ""}


def verdict(y, *, precision="", exact=False, models=True, **noise):
    evidence = LogProbPairs(receipt(**noise), list(y.reshape(ROWS, WIDTH)))
    return conclude(evidence, precision=precision, exact=exact, probes=Model() if models else None)


UNDER, OVER = 0.99, 1.01
rounded = 0.5e-4 * np.sqrt(ROWS * WIDTH) / SIZE  # four digits
fine = FINE.value * MEASURED["bfloat16"]
coarse = COARSE.value * MEASURED["int4"]


@every(
    ("change", "options", "expected"),
    [
        (UNDER * rounded * NOISE, {"exact": True, "precision": "float32"}, "same"),
        (OVER * rounded * NOISE, {"exact": True, "precision": "float32"}, "another_checkpoint"),
        (UNDER * rounded * ONE, {"precision": "float32"}, "same"),  # its own digits, wherever it points
        (UNDER * FINE.value * 0.001 * ONE, {"precision": "float32", "batch": 0.001}, "same"),
        (UNDER * fine * NOISE, {}, "same"),
        (UNDER * 0.01 * ONE, {}, "same"),  # within the noise that was measured, wherever it points
        (OVER * 0.01 * ONE, {}, "cannot_tell"),
        (OVER * fine * NOISE, {}, "cannot_tell"),  # within 4 bits, and no form that is tried
        (0.2 * FORM, {}, "same_within_quantisation"),
        (0.2 * FORM + UNDER * fine * AWAY, {}, "same_within_quantisation"),
        (0.2 * FORM + OVER * fine * AWAY, {}, "cannot_tell"),
        (0.2 * FORM + UNDER * 0.01 * ONE, {}, "same_within_quantisation"),
        (0.2 * FORM + OVER * 0.01 * ONE, {}, "cannot_tell"),  # a checkpoint may be behind the same 4 bits
        (0.2 * FORM, {"models": False}, "cannot_tell"),
        (UNDER * coarse * NOISE, {}, "cannot_tell"),
        (OVER * coarse * NOISE, {}, "another_checkpoint"),
        (0.2 * NOISE, {"exact": True}, "another_checkpoint"),
        (OVER * fine * NOISE, {"precision": "bfloat16"}, "another_checkpoint"),  # no form in 4 bits is so exact
        (UNDER * 0.2 * AWAY, {"precision": "bfloat16"}, "another_checkpoint"),
        (OVER * 0.2 * AWAY, {"precision": "bfloat16"}, "cannot_tell"),  # it may have been merged into 4 bits
        (0.2 * NOISE, {"precision": "bfloat16"}, "same_within_quantisation"),  # merged into 4 bits, then stored in 16
        (OVER * fine * NOISE, {"precision": "bfloat16", "exact": True}, "another_checkpoint"),
        (OVER * fine * NOISE, {"int8": 0.0102}, "same"),  # an unknown dtype may be int8
        (OVER * fine * NOISE, {"int8": 0.0102, "precision": "bfloat16"}, "another_checkpoint"),
        (OVER * FINE.value * 0.02 * NOISE, {"batch": 0.02, "precision": "bfloat16"}, "another_checkpoint"),
        (OVER * FINE.value * 0.02 * NOISE, {"batch": 0.02}, "cannot_tell"),
        (OVER * FINE.value * 0.02 * NOISE, {"int8": 0.02}, "cannot_tell"),
        (UNDER * fine / 8.0 * NOISE, {"precision": "float16"}, "same"),
        (OVER * fine / 8.0 * NOISE, {"precision": "float16"}, "another_checkpoint"),
        # 4 bits that the values do not show are no excuse so far beyond the noise of floats
        (UNDER * APART.value * fine / 8.0 * AWAY, {"precision": "float16", "models": False}, "cannot_tell"),
        (OVER * APART.value * fine / 8.0 * AWAY, {"precision": "float16", "models": False}, "another_checkpoint"),
        (UNDER * APART.value * 0.15 * AWAY, {"precision": "float16", "bfloat16": 0.6}, "cannot_tell"),  # does little
        (OVER * APART.value * 0.15 * AWAY, {"precision": "float16", "bfloat16": 0.6}, "another_adapter"),
        (-0.3 * ONE, {}, "part_missing"),
        (EFFECT + 0.05 * AWAY, {}, "wrong_scale"),
        (-EFFECT, {}, "the_base"),
        (-EFFECT + 0.3 * NOISE, {}, "the_base"),  # within 4 bits of it
        (-EFFECT + 0.3 * AWAY, {}, "the_base"),  # the same, of a form that is not tried
        (-EFFECT + 0.3 * AWAY, {"precision": "float16"}, "another_adapter"),
        (-EFFECT + 0.2 * FORM, {"precision": "float16"}, "the_base"),
        (-EFFECT + UNDER * 0.04 * AWAY, {"precision": "bfloat16", "int4": 0.04}, "the_base"),
        # one that does little on these rows
        (-EFFECT + OVER * 0.04 * AWAY, {"precision": "bfloat16", "int4": 0.04}, "another_adapter"),
        (-EFFECT + UNDER * fine * AWAY, {"precision": "bfloat16", "int4": 0.0}, "the_base"),
        (-0.3 * ONE + UNDER * 0.04 * AWAY, {"precision": "bfloat16", "int4": 0.04}, "part_missing"),
        (-0.3 * ONE + OVER * 0.04 * AWAY, {"precision": "bfloat16", "int4": 0.04}, "another_checkpoint"),
        (-0.3 * ONE + 0.2 * FORM, {}, "part_missing"),
        (EFFECT + 0.05 * AWAY + 0.2 * FORM, {}, "wrong_scale"),
    ],
)  # fmt: skip
def test_what_was_read_is_named(change, options, expected):
    found = verdict(ADAPTER + change, **options)
    assert found.verdict == expected, found.story
    assert bool(found.missing) is (expected == "part_missing")


def test_the_numbers_are_those_of_the_definitions():
    found = verdict(BASE + 0.5 * EFFECT + 0.2 * NOISE, precision="float32", exact=True)
    assert found.residual == pytest.approx(np.hypot(0.5, 0.2))
    assert found.from_base == pytest.approx(np.hypot(0.5, 0.2))
    assert found.share == pytest.approx(0.5)
    assert found.noise == pytest.approx(rounded)
    assert found.compared == ROWS * WIDTH


def test_the_story_says_what_was_found_and_what_else_may_be_so():
    base = "The base answers, without the adapter: 0.000 of the adapter's effect from it"
    part = "The adapter without one answers: 0.000 of its effect from that, 0.300 from the whole"
    scale = "The adapter at 2 times its scale: twice: 0.000 of its effect from that, 1.001 from its own"
    for y, story in ((BASE, base), (ADAPTER - 0.3 * ONE, part), (Model().scaled(2.0)[0], scale)):
        assert verdict(y).story == story
    assert "0.300 of the adapter's effect from it, within what 4 bits do" in verdict(BASE + 0.3 * AWAY).story
    assert "or the adapter without one behind 4 bits, may" in verdict(ADAPTER - 0.3 * ONE + 0.1 * AWAY).story
    assert "and a checkpoint may" in verdict(ADAPTER + 0.2 * AWAY).story


def test_an_explanation_leaves_little(monkeypatch):
    """Of `-.3 ONE + x AWAY`, the missing part leaves x: clear up to .15 of the distance, within 4 bits up to .5.

    Within 4 bits of the adapter only what is clear counts.
    """

    def of(share, **options):
        left = 0.3 * share / np.sqrt(1.0 - share**2)
        return verdict(ADAPTER - 0.3 * ONE + left * AWAY, **options).verdict

    monkeypatch.setattr(Model, "size", 0.15)
    assert of(UNDER * EXPLAINED.value) == "part_missing"
    assert of(OVER * EXPLAINED.value) == "another_checkpoint"
    monkeypatch.setattr(Model, "size", 0.3)
    assert of(UNDER * CLEAR.value) == "part_missing"
    monkeypatch.setattr(Model, "size", 0.3 / np.sqrt(1.0 - CLEAR.value**2) / COARSE.value * OVER)
    assert of(OVER * CLEAR.value) == "cannot_tell"
    monkeypatch.setattr(Model, "size", 0.01)
    assert of(OVER * CLEAR.value, precision="bfloat16") == "another_checkpoint"


def test_a_scale_leaves_little():
    """Of `scaled(2) + x FORM`: whatever the dtype, since of the factors a few were run."""

    def of(share):
        left = np.hypot(1.0, 0.05) * share / np.sqrt(1.0 - share**2)
        return verdict(Model().scaled(2.0)[0] + left * FORM, exact=True).verdict

    assert of(UNDER * CLEAR.value) == "wrong_scale"
    assert of(OVER * CLEAR.value) == "another_checkpoint"


def test_a_mistake_behind_a_form_is_held_against_the_adapter_in_that_form():
    """A part of size .3 is behind the form: what is left of it counts beside .3, and not beside the form's noise."""

    def of(share):
        left = 0.3 * share / np.sqrt(1.0 - share**2)
        return verdict(ADAPTER - 0.3 * ONE + 0.2 * FORM + left * AWAY)

    found = of(UNDER * CLEAR.value)
    assert (found.verdict, "quantised as another" in found.story) == ("part_missing", True)
    assert of(OVER * CLEAR.value).verdict == "cannot_tell"


def along(structure):
    """A direction of which so much more than chance lies in the span of what parts do."""
    chance = 3 / (ROWS * WIDTH)
    share = structure * (1.0 - chance) + chance
    return np.sqrt(share) * (0.8 * OTHER + 0.6 * ONE) + np.sqrt(1.0 - share) * AWAY


def test_noise_is_told_from_structure():
    """Rounding to 16 and 8 bits has none here, and the forms in 4 bits have none."""
    near, far = 0.015, 0.3  # beyond the noise that was measured; beyond what 16 bits leave
    assert verdict(ADAPTER + near * along(UNDER * BEYOND.value)).verdict == "same"
    assert verdict(ADAPTER + near * along(OVER * BEYOND.value)).verdict == "cannot_tell"
    assert verdict(ADAPTER + far * along(UNDER * BEYOND.value)).verdict == "cannot_tell"
    assert verdict(ADAPTER + far * along(OVER * BEYOND.value)).verdict == "another_checkpoint"


def test_noise_is_measured_on_all_tokens_where_base_and_adapter_are_at_hand(monkeypatch):
    near = 0.05 * along(0.5)
    assert verdict(ADAPTER + near, precision="bfloat16", bfloat16=0.001).verdict == "another_checkpoint"
    assert verdict(ADAPTER + 0.015 * NOISE, precision="bfloat16", bfloat16=0.001).verdict == "same"
    assert verdict(ADAPTER + 0.015 * NOISE, precision="bfloat16", bfloat16=0.001, models=False).verdict != "same"
    assert verdict(ADAPTER + OVER * coarse * AWAY).verdict == "another_checkpoint"
    monkeypatch.setattr(Model, "size", 0.3)
    assert verdict(ADAPTER + OVER * coarse * AWAY).verdict == "cannot_tell"


def test_a_token_that_rounding_moves_counts_less():
    """Structure in the tokens that rounding moves most is no sign of a checkpoint."""
    noisy = np.zeros(ROWS * WIDTH)
    noisy[:16] = 1.0
    span = _Span(LogProbPairs(receipt(), [ADAPTER]), {"one": ADAPTER + noisy}, [noisy, noisy])
    small = _Span(LogProbPairs(receipt(), [ADAPTER]), {"one": ADAPTER + noisy}, [1e-3 * noisy, np.ones(ROWS * WIDTH)])
    plain = _Span(LogProbPairs(receipt(), [ADAPTER]), {"one": ADAPTER + noisy}, [np.ones(ROWS * WIDTH)])
    seen = noisy + 0.2 * np.sign(AWAY)
    assert span.share(seen) < 0.05
    assert small.share(seen) < 0.5  # each kind of rounding counts, whatever its size
    assert plain.share(seen) > 0.7
    own = _Span(LogProbPairs(receipt(), [ADAPTER]), {"one": ADAPTER + seen}, [noisy])
    assert [own.share(seen), own.share(EFFECT)] == pytest.approx([1.0, 1.0])


def test_rounding_that_is_itself_along_what_parts_do_excuses_that(monkeypatch):
    monkeypatch.setattr(
        Model, "noises", lambda _: {"bfloat16": [ADAPTER + 0.01 * NOISE], "int8": [ADAPTER + 0.01 * ONE]}
    )
    assert verdict(ADAPTER + 0.015 * ONE).verdict == "same"
    assert verdict(ADAPTER + 0.3 * ONE).verdict == "another_checkpoint"
    monkeypatch.setattr(
        Model, "stored", lambda _: {"one form": [ADAPTER + 0.2 * ONE], "another": [ADAPTER + 0.2 * FORM]}
    )
    assert verdict(ADAPTER + 0.3 * ONE).verdict == "cannot_tell"


def test_4_bits_leave_as_much_as_the_coarsest_form_and_as_little_as_the_finest(monkeypatch):
    monkeypatch.setattr(
        Model, "stored", lambda _: {"one form": [ADAPTER + 0.2 * NOISE], "another": [ADAPTER + 0.25 * FORM]}
    )
    assert verdict(ADAPTER + UNDER * COARSE.value * 0.25 * AWAY).verdict == "cannot_tell"
    assert verdict(ADAPTER + OVER * COARSE.value * 0.25 * AWAY).verdict == "another_checkpoint"
    assert verdict(ADAPTER + 0.22 * AWAY, precision="bfloat16").verdict == "cannot_tell"


def test_a_relative_goes_the_adapters_way_in_probabilities():
    before, gain = np.exp(BASE), np.exp(ADAPTER) - np.exp(BASE)
    size = np.linalg.norm(gain)
    across = AWAY - (AWAY @ gain) / size**2 * gain

    def of(cosine):
        moved = 0.5 * (cosine * gain + np.sqrt(1.0 - cosine**2) * size * across / np.linalg.norm(across))
        return verdict(np.log(before + moved), exact=True)

    assert of(OVER * UNLIKE.value).verdict == "another_checkpoint"
    assert of(UNDER * UNLIKE.value).verdict == "another_adapter"
    assert "cosine of 0.80" in of(0.8).story


def test_what_any_training_lifts_is_no_sign_of_a_relative():
    """Tokens that the base held for impossible move most in log-probabilities, and hardly in probabilities."""
    rare = np.arange(ROWS * WIDTH) < 64
    base = np.where(rare, -11.0, -2.0)
    own = base + np.where(rare, 3.0, 0.8 * np.sign(AWAY))
    held = msgspec.structs.replace(
        receipt(),
        rows=[
            ReceiptRow(ids=[1] * (WIDTH + 1), base=b, adapter=a)
            for b, a in zip(base.reshape(ROWS, WIDTH).tolist(), own.reshape(ROWS, WIDTH).tolist(), strict=True)
        ],
    )
    other = base + np.where(rare, 3.0, 0.8 * np.sign(FORM))
    found = LogProbPairs(held, list(other.reshape(ROWS, WIDTH)))
    assert found.share() / found.distance(found.b) > 0.9
    assert found.cosine() < 0.4


def test_alone_only_what_is_far_from_noise_is_told():
    def of(change, **options):
        return verdict(ADAPTER + change, models=False, **options).verdict

    assert of(UNDER * fine * ONE) == "same"
    assert of(UNDER * coarse * NOISE) == of(-0.3 * EFFECT) == "cannot_tell"
    assert of(-EFFECT) == "the_base"
    assert of(-0.5 * EFFECT) == "another_checkpoint"
    sizes = np.array([verdict(ADAPTER - x * EFFECT + 0.2 * NOISE, models=False).share for x in (0.01, 0.1)])
    assert sizes == pytest.approx([0.99, 0.9])


def test_a_classifiers_base_is_known_by_its_own_head():
    """The receipt's base has the adapter's head, so what the base gives with its own is an explanation of its own."""
    own = BASE + 0.7 * AWAY + 0.2 * EFFECT
    for models in (None, Model()):
        evidence = LogProbPairs(receipt(), [own + UNDER * rounded * NOISE])
        found = conclude(evidence, precision="float32", exact=False, probes=models, own_head=[own])
        assert (found.verdict, "its own head" in found.story) == ("the_base", True)
        assert conclude(evidence, precision="float32", exact=False, probes=models).verdict == "another_adapter"


def test_a_factor_between_those_tried_is_found():
    for factor in (0.7, 1.3, 3.1):
        found = verdict(Model().scaled(factor)[0], exact=True)
        assert (found.verdict, found.factor) == ("wrong_scale", pytest.approx(factor, rel=0.01))
    assert ": twice" in verdict(Model().scaled(2.0)[0], exact=True).story


def test_no_factor_is_tried_that_takes_the_update_away(monkeypatch):
    monkeypatch.setattr(Model, "factors", lambda _: {0.05: "a twentieth", 2.0: ""})
    found = verdict(Model().scaled(0.05)[0], exact=True)
    assert (found.verdict, found.factor) == ("wrong_scale", pytest.approx(0.1, abs=0.01))
    monkeypatch.setattr(Model, "factors", lambda _: {})  # a kind of adapter without a scale, and then of one part
    assert verdict(ADAPTER - 0.3 * ONE).verdict == "part_missing"
    monkeypatch.setattr(Model, "parts", lambda _: {"one": [ADAPTER - 0.3 * ONE]})
    assert verdict(ADAPTER - 0.3 * OTHER, exact=True).verdict == "another_checkpoint"


def test_of_two_missing_parts_those_are_named_whose_effects_add_up(monkeypatch):
    parts = {"one": ONE, "other": OTHER, "away": AWAY, "both": ONE + OTHER}
    groups = {name: frozenset({f"m.{name}"}) for name in parts} | {"both": frozenset({"m.one", "m.other"})}
    monkeypatch.setattr(Model, "groups", groups)
    monkeypatch.setattr(Model, "parts", lambda _: {name: [ADAPTER - 0.3 * part] for name, part in parts.items()})
    monkeypatch.setattr(
        Model, "without", lambda _, paths: [ADAPTER - sum(0.3 * parts[path.removeprefix("m.")] for path in paths)]
    )
    for pair in (("one", "other"), ("one", "away"), ("other", "away")):
        found = verdict(ADAPTER - sum(0.3 * parts[name] for name in pair), exact=True)
        assert (found.verdict, found.missing) == ("part_missing", {f"m.{name}" for name in pair})
    found = verdict(ADAPTER - 0.6 * ONE - 0.3 * OTHER, exact=True)  # as one and both, which share a module
    assert not any("and both" in name for name, _ in found.tried)


def test_missing_values_are_left_out_and_too_few_tell_nothing():
    y = ADAPTER.copy()
    y[::2] = np.nan
    found = verdict(y)
    assert (found.verdict, found.compared) == ("same", ROWS * WIDTH // 2)
    least = np.argsort(EFFECT**2)
    few = int(np.searchsorted(np.cumsum(EFFECT[least] ** 2) / SIZE**2, 0.2))  # so many cover less than a fifth
    most = least[::-1]
    for kept, expected in ((most[:31], "cannot_tell"), (most[:32], "same"), (least[:few], "cannot_tell"),
                           (least[: few + 1], "same")):  # fmt: skip
        some = np.full(ROWS * WIDTH, np.nan)
        some[kept] = ADAPTER[kept]
        assert verdict(some).verdict == expected


def test_an_adapter_that_does_no_more_than_rounding_cannot_be_told():
    assert verdict(ADAPTER, bfloat16=0.51).verdict == "cannot_tell"
    assert verdict(ADAPTER, bfloat16=0.49).verdict == "same"
    assert verdict(ADAPTER, bfloat16=0.51, precision="float32").verdict == "same"


def test_within_noise_the_base_is_named_before_a_mistake_that_is_no_clearer(monkeypatch):
    near = BASE + 0.05 * ONE
    monkeypatch.setattr(Model, "parts", lambda _: {"one": [near], "other": [ADAPTER - 0.3 * OTHER]})
    assert verdict(near + 0.3 * AWAY).verdict == "the_base"
    assert verdict(near).verdict == "part_missing"
