"""WIR170 to WIR188: each fires, is silent at its threshold and on what people do on purpose, and abstains."""

from __future__ import annotations

from typing import Any

import pytest
from log_runs import facts_of, logged_rows

from gradience.rules.log import detect
from gradience.schema.document import Finding
from gradience.schema.events import ConfigSnapshot, OptimizerSnapshot, TrainingSnapshot, Wiring

BASE = {"kind": "base", "tensors": 4, "parameters": 1000}
OWN = {"kind": "adapter", "tensors": 8, "parameters": 100, "trainable_tensors": 8, "trainable": 100, "digest": "s1:a"}
ADAPTER = {"names": ["default"], "active": ["default"], "layers": 4, "trainable_tensors": 8}
HELD = {"names": ["AdamW"], "held": 8, "held_kinds": {"adapter": 100}}
TRAINS = {"trainable_tensors": 4, "matrices": 4}


def look(phase: str = "start", step: int = 0, **fields: Any) -> Wiring:
    given = {"groups": [OWN, BASE], "adapter": ADAPTER, "optimizer": HELD, **fields}
    return Wiring(ts=None, run_id="r", step=step, phase=phase, **given)


def found(rule: str, *wirings: Wiring, **facts_: Any) -> list[Finding]:
    facts = facts_of(logged_rows([], [], []), wirings=wirings, **facts_)
    return [finding for finding in detect(facts).findings if finding.id == rule]


def one(rule: str, *wirings: Wiring, **facts: Any) -> tuple[str, str] | None:
    findings = found(rule, *wirings, **facts)
    return (findings[0].severity, findings[0].message) if findings else None


def test_a_log_without_such_events_is_not_judged():
    verdict = detect(facts_of(logged_rows([], [], [])))
    assert verdict.findings == []
    reasons = {each.reason for each in verdict.not_run if each.id.startswith("WIR")}
    assert reasons == {"the log has no wiring event"}
    assert sum(each.id.startswith("WIR") for each in verdict.not_run) == 21


def test_a_sound_run_has_no_finding():
    saved = look("save", 5, saved={"file": "adapter_model.safetensors", "tensors": 8, "parameters": 100})
    reached = look("gradients", 8, gradients={"steps": 8, "tensors": 8, "reached": 8, "modules": 4})
    verdict = detect(facts_of(logged_rows([], [], []), wirings=[look(), reached, saved, look("resume", 5)]))
    assert not [finding for finding in verdict.findings if finding.id.startswith("WIR")]


def trained(parameters: int, **held: int) -> Wiring:
    kinds = {"adapter": 100, "base": parameters, **held}
    return look(groups=[OWN, {**BASE, **TRAINS, "trainable": parameters}], optimizer={**HELD, "held_kinds": kinds})


@pytest.mark.parametrize(
    ("wiring", "expected"),
    [
        (trained(500), "critical"),
        (trained(499), "warning"),
        (look(groups=[OWN, {**BASE, **TRAINS, "trainable": 1000}], optimizer=None), "critical"),
        (look(groups=[OWN, {**BASE, **TRAINS, "trainable": 1000}]), None),  # in no optimizer
        (look(groups=[OWN, {**BASE, "trainable": 90, "trainable_tensors": 9}], optimizer=None), None),  # biases
        (look(groups=[OWN, {**BASE, "kind": "norm", **TRAINS, "trainable": 1000}], optimizer=None), None),
        (look(groups=[OWN, {**BASE, "kind": "embedding", **TRAINS, "trainable": 1000}], optimizer=None), None),
        (look(groups=[OWN, {**BASE, "kind": "whole", **TRAINS, "trainable": 1000}], optimizer=None), None),
        (look(groups=[OWN, {**BASE, "kind": "head", **TRAINS, "trainable": 1000}], optimizer=None), None),
        (look(groups=[{**BASE, **TRAINS, "trainable": 1000}], adapter=None), None),  # a full fine-tune
    ],
)
def test_the_base_beside_an_adapter(wiring: Wiring, expected: str | None):
    said = one("WIR170", wiring)
    assert (said and said[0]) == expected


def test_the_message_on_the_base_has_its_numbers():
    said = one("WIR170", trained(800))
    assert said is not None
    assert said[1] == (
        "From the start, 800 of the base's 1000 parameters are trained beside the adapter, 8 times as many as the "
        "adapter's."
    )


FROZEN = {**ADAPTER, "trainable_tensors": 0, "frozen_tensors": 8, "frozen_layers": 4}


@pytest.mark.parametrize(
    ("adapter", "optimizer", "expected"),
    [
        (FROZEN, HELD, "critical"),
        (FROZEN, {**HELD, "frozen_adapter": 8}, None),  # to be unfrozen
        ({**ADAPTER, "trainable_tensors": 6, "frozen_tensors": 2, "frozen_layers": 1}, HELD, "warning"),
        ({**ADAPTER, "trainable_tensors": 6, "frozen_tensors": 2, "frozen_layers": 1}, None, None),  # who holds them?
        ({**ADAPTER, "trainable_tensors": 4, "frozen_tensors": 4}, HELD, None),  # LoRA-FA freezes every A
    ],
)
def test_a_frozen_adapter(adapter: dict[str, Any], optimizer: dict[str, Any], expected: str | None):
    said = one("WIR171", look(adapter=adapter, optimizer=optimizer))
    assert (said and said[0]) == expected


def test_a_frozen_active_adapter_names_the_other():
    (said,) = found("WIR171", look(adapter={**FROZEN, "names": ["a", "b"], "active": ["a"], "inactive_trainable": 3}))
    assert said.action == 'Call model.set_adapter("b") before the optimizer is made.'


def called(step: int = 3, **how: Any) -> Wiring:
    return look("pass", step, passes=how)


@pytest.mark.parametrize(
    ("optimizer", "later", "expected"),
    [
        ({"held": 0, "frozen_adapter": 8, "held_frozen": 9}, [], "The optimizer holds 8 of them, to no effect"),
        ({"held": 2, "frozen_adapter": 8, "held_frozen": 9}, [], None),  # it may be unfrozen yet
        ({"held": 2, "frozen_adapter": 8, "held_frozen": 9}, [("gradients", 3, FROZEN)], None),
        ({"held": 2, "frozen_adapter": 8, "held_frozen": 9}, [("gradients", 4, FROZEN)], "none of the adapter's 8"),
        ({"held": 2, "frozen_adapter": 8, "held_frozen": 9}, [("gradients", 4, {})], None),
        ({"held": 2, "frozen_adapter": 8, "held_frozen": 9}, [("gradients", 4, FROZEN), ("save", 9, {})], None),
        ({"held": 2, "frozen_adapter": 8, "held_frozen": 8}, [("gradients", 4, FROZEN)], None),  # chosen so
        ({"held": 2, "frozen_adapter": 8, "held_frozen": 8}, [("save", 4, FROZEN)], "none of the adapter's 8"),
    ],
)
def test_a_frozen_adapter_in_the_optimizer(
    optimizer: dict[str, Any], later: list[tuple[str, int, dict[str, Any]]], expected: str | None
):
    looks = [look(phase, step, adapter={**ADAPTER, **adapter}) for phase, step, adapter in later]
    said = one("WIR171", look(adapter={**ADAPTER, **FROZEN}, optimizer={**HELD, **optimizer}), *looks)
    assert (said is not None) == (expected is not None)
    assert expected is None or expected in said[1]


@pytest.mark.parametrize(("digest", "expected"), [("s1:h", "2 of the head"), ("s1:i", None), (None, None)])
def test_a_head_that_the_optimizer_misses_and_that_stays(digest: str | None, expected: str | None):
    head = {"kind": "head", "tensors": 2, "trainable_tensors": 2, "digest": "s1:h"}
    begun = look(groups=[OWN, head], optimizer={**HELD, "missing": {"head": 2}})
    assert one("WIR172", begun) is None
    said = one("WIR172", begun, look("save", 5, groups=[OWN, {**head, "digest": digest}]))
    assert (said is not None) == (expected is not None)
    assert expected is None or expected in said[1]


def test_a_module_that_is_saved_whole_is_called_by_its_name():
    name = "base_model.model.classifier.modules_to_save.default.weight"
    said = one("WIR172", look(optimizer={**HELD, "missing": {"whole": 2}, "missing_names": [name]}))
    assert said is not None
    assert "2 of the head or other module classifier, trained whole" in said[1]


@pytest.mark.parametrize(("world", "parts", "expected"), [
    (1, ["optimizer"], "warning"), (1, ["loader"], None), (2, ["loader"], "error"), (2, [], None),
])  # fmt: skip
def test_what_was_not_prepared(world: int, parts: list[str], expected: str | None):
    said = one("WIR186", look(unprepared=parts, world_size=world))
    assert (said and said[0]) == expected


def test_an_accelerator_that_prepared_nothing_is_told_with_what_it_was_asked_for():
    said = one("WIR186", look(unprepared=["loader", "model", "optimizer"], asked=["accumulation over 4"]))
    assert said is not None
    assert said[0] == "warning"
    assert said[1].endswith("its prepare has made nothing; what it was asked for does not happen: accumulation over 4.")


@pytest.mark.parametrize(
    ("of_step", "whose"), [(0, "those of step 0."), (5, "those of step 5."), (None, "another model's.")]
)
def test_whose_values_a_saved_adapter_has(of_step: int | None, whose: str):
    saved = {"file": "a.safetensors", "tensors": 8, "parameters": 100, "differs": "lora_A", "of_step": of_step}
    said = one("WIR187", look(), look("save", 6, saved=saved))
    assert said is not None
    assert said[1].endswith(f"lora_A has other values in a.safetensors, {whose}")


@pytest.mark.parametrize(("status", "last", "expected"), [
    ("ok", 6, "warning"), ("ok", 7, "info"), ("ok", 5, None), ("error", 6, None),
])  # fmt: skip
def test_steps_after_the_last_save(status: str, last: int, expected: str | None):
    said = one("WIR187", look(), look("save", 5), fed={last: "aa0001"}, status=status)
    assert (said and said[0]) == expected


@pytest.mark.parametrize(("rows", "invoked", "reached", "expected"), [
    (32, 0, 0, "None of the first 32 rows has the invocation tokens"), (32, 1, 0, "No trainable tensor"),
    (32, None, 0, "No trainable tensor"), (32, 0, 8, None), (0, 0, 0, "No trainable tensor"),
])  # fmt: skip
def test_an_alora_that_is_never_invoked(rows: int, invoked: int | None, reached: int, expected: str | None):
    seen = {"steps": 8, "tensors": 8, "reached": reached, "modules": 4, "silent": 0 if reached else 4}
    wirings = look(frozen_inputs=True), look("gradients", 8, gradients={**seen, "rows": rows, "invoked": invoked})
    said = one("WIR173", *wirings)
    assert (said is not None) == (expected is not None)
    assert expected is None or expected in said[1]
    assert (one("WIR181", *wirings) is None) == (reached > 0 or (invoked == 0 and rows > 0))


def test_an_adapter_that_is_switched_off():
    assert "From the start, the adapter is switched off" in one("WIR171", look(adapter={**FROZEN, "disabled": True}))[1]
    assert "At step 3 the model was called without" in one("WIR171", look(), called(off=True))[1]
    assert one("WIR171", look(), called(training=False)) is None


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ({"held": 0, "missing": {"adapter": 8}}, "made for another model object"),
        ({"held": 0, "missing": {"adapter": 8}, "sharded": True}, None),
        (
            {"held": 0, "held_frozen": 6, "missing": {"adapter": 8}},
            "none of the 8 trainable tensors: all 6 that it holds",
        ),
        ({"held": 0, "held_frozen": 6, "missing": {"adapter": 8}, "strangers": 1}, "made for another model object"),
        ({"held": 4, "missing": {"adapter": 8}, "strangers": 4, "replaced": 4}, "made for another model object"),
        ({"held": 4, "missing": {"adapter": 8}, "strangers": 3, "replaced": 3}, "does not hold 8 trainable tensors"),
        ({"held": 8, "strangers": 2}, None),  # those of a loss
        ({"held": 8, "missing": {"head": 2}, "held_kinds": {"adapter": 100}}, None),
        ({"held": 2, "missing": {"adapter": 8}, "held_kinds": {"head": 2}}, "8 of the adapter"),
        ({"held": 8, "missing": {"base": 4}}, None),
        ({"held": 8, "missing": {"whole": 2}, "held_kinds": {"adapter": 100}}, "2 of the whole"),
        ({"held": 8, "doubled": 3}, "3 tensors are held by more than one optimizer"),
    ],
)
def test_what_the_optimizer_misses(optimizer: dict[str, Any], expected: str | None):
    wired = {"names": ["AdamW"], **optimizer}
    said, later = (one("WIR172", look(), look(*at, optimizer=wired)) for at in (("start", 0), ("gradients", 8)))
    assert (said is not None) == (expected is not None)
    assert expected is None or expected in said[1]
    assert later == (said and (said[0], said[1].replace("From the start,", "At step 8,")))


def test_a_full_fine_tune_may_leave_parameters_out():
    probe = {"names": ["AdamW"], "held": 1, "missing": {"base": 9, "norm": 3}}
    assert one("WIR172", look(adapter=None, optimizer=probe)) is None


def gradients(steps: int, **seen: Any) -> Wiring:
    return look("gradients", steps, gradients={"steps": steps, "tensors": 8, "modules": 4, **seen})


@pytest.mark.parametrize(
    ("wiring", "expected"),
    [
        (gradients(1, detached=8), "critical"),
        (gradients(1, detached=7), None),  # zeros may come first
        (gradients(4, detached=7), "critical"),
        (gradients(4, reached=6, silent=1), "error"),
        (gradients(3, reached=6, silent=1), None),
        (gradients(8, reached=6, unreached={"adapter": 2}), None),  # a factor of a module that learns
    ],
)
def test_gradients_that_do_not_arrive(wiring: Wiring, expected: str | None):
    said = one("WIR173", wiring)
    assert (said and said[0]) == expected


@pytest.mark.parametrize(
    ("lr", "peak", "unmoved", "fires"),
    [
        (1e-6, 1e-6, 90, True),
        (1e-6, 1e-6, 89, False),
        (1e-6, 2e-6, 90, True),
        (1e-6, 2.1e-6, 90, False),  # in warm-up
        (1e-6, None, 90, True),
        (0.0, 0.0, 90, False),
    ],
)
def test_steps_that_are_rounded_away(lr: float, peak: float | None, unmoved: int, *, fires: bool):
    rates = {**HELD, "rates": [{"lr": 1e-7, "peak": 1e-7}, {"lr": lr, "peak": peak}]}
    seen = {"steps": 8, "tensors": 8, "modules": 4, "reached": 8, "narrow": 100, "unmoved": unmoved}
    said = one("WIR190", look("gradients", 8, optimizer=rates, gradients=seen))
    assert (said is not None) == fires
    assert one("WIR190", look("gradients", 8, optimizer=rates, gradients={**seen, "narrow": 0, "unmoved": 0})) is None


@pytest.mark.parametrize(("compared", "kept", "fires"), [(3, 3, True), (2, 2, False), (7, 3, False), (6, 3, True)])
def test_gradients_that_are_kept(compared: int, kept: int, *, fires: bool):
    said = one("WIR185", gradients(8, reached=8, compared=compared, kept=kept))
    assert said == (("error", said[1]) if fires and said else None)
    assert not fires or f"At {kept} of {compared} steps" in said[1]


def test_frozen_inputs_are_named_and_forgotten_once_a_gradient_arrives():
    assert one("WIR181", look(frozen_inputs=True)) is not None
    assert one("WIR181", look(frozen_inputs=True), gradients(8, reached=8)) is None
    assert one("WIR181", look(frozen_inputs=True), gradients(8, reached=1, silent=4)) is not None  # that of a norm
    assert one("WIR181", look(frozen_inputs=True), gradients(8, reached=1, modules=0)) is None
    (said,) = found(
        "WIR173", look("gradients", 1, frozen_inputs=True, gradients={"steps": 1, "tensors": 8, "detached": 8})
    )
    assert said.action == "Call model.enable_input_require_grads(), or pass use_reentrant=False."


def test_adapted_twice_or_merged():
    assert "adapted 2 times over" in one("WIR174", look(adapter={**ADAPTER, "nested": 1}))[1]
    assert "is merged" in one("WIR174", look(adapter={**ADAPTER, "merged": ["default"]}))[1]
    assert "At step 3 the adapter was merged" in one("WIR174", look(), called(merged=True))[1]
    assert one("WIR174", look(), called(off=True)) is None


def saved(**fields: Any) -> Wiring:
    return look("save", 5, **fields)


def resumed(**fields: Any) -> Wiring:
    return look("resume", 5, **fields)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ([OWN, BASE], None),
        ([{**OWN, "digest": "s1:b"}, BASE], "critical"),
        ([{**OWN, "digest": "s1:b", "dtypes": ["bfloat16"]}, BASE], "warning"),
        ([{**OWN, "digest": "s1:b", "sampled": 2}, BASE], None),  # cannot be compared
        ([{**OWN, "digest": "s1:b", "trainable_tensors": 9}, BASE], None),
        ([OWN, {**BASE, "frozen_digest": "s1:d"}], "critical"),
    ],
)
def test_weights_at_a_resume(now: list[dict[str, Any]], expected: str | None):
    before = saved(groups=[OWN, {**BASE, "frozen_digest": "s1:c"}])
    said = one("WIR175", before, resumed(groups=now))
    assert (said and said[0]) == expected


def test_a_resume_is_compared_with_the_save_at_its_step_only():
    other = resumed(groups=[{**OWN, "digest": "s1:b"}, BASE])
    verdict = detect(facts_of(logged_rows([], [], []), wirings=[look("save", 4), other]))
    reasons = {item.id: item.reason for item in verdict.not_run}
    assert reasons["WIR175"] == "what was saved at the step of the resume was not recorded"


def test_the_optimizer_at_a_resume():
    state = {**HELD, "states": 8, "digest": "s1:a"}
    assert "is new" in one("WIR176", saved(optimizer=state), resumed(optimizer=HELD))[1]
    assert one("WIR176", saved(optimizer=HELD), resumed(optimizer=HELD)) is None  # SGD has no state
    other = one("WIR176", saved(optimizer=state), resumed(optimizer={**state, "digest": "s1:b"}))
    assert other is not None
    assert other[0] == "warning"
    assert (
        one("WIR176", saved(optimizer=state), resumed(optimizer={**state, "names": ["SGD"], "digest": "s1:b"})) is None
    )


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"batch_size": 4, "accumulation": 2, "seed": 1}, None),
        ({"batch_size": 8, "accumulation": 1, "seed": 1}, None),  # 8 rows as before
        ({"batch_size": 4, "accumulation": 1, "seed": 1}, "a step has 4 rows; it had 8"),
        ({"batch_size": 4, "accumulation": 2, "seed": 2}, "another order: seed changed"),
        ({"batch_size": 4, "accumulation": 2, "skips": False}, "begins the data anew"),
    ],
)
def test_the_data_at_a_resume(now: dict[str, Any], expected: str | None):
    said = one("WIR177", saved(data={"batch_size": 4, "accumulation": 2, "seed": 1}), resumed(data=now))
    assert (said is not None) == (expected is not None)
    assert expected is None or expected in said[1]


EPOCH = {"batch_size": 2, "rows": 12}  # six steps
FED = {step: f"aa000{step} bb000{step}" for step in range(1, 6)}


@pytest.mark.parametrize(
    ("data", "before", "since", "expected"),
    [
        (EPOCH, FED, {6: "cc0001 cc0002"}, None),
        (EPOCH, FED, {6: FED[1]}, "The resume from step 5 begins the data anew: 2 of its first 2 rows"),
        (EPOCH, FED, {6: f"{FED[2][:6]} cc0001"}, "has another order of the data: 1 of its first 2 rows"),
        ({**EPOCH, "rows": 10}, FED, {6: FED[1]}, None),  # a new epoch
        ({**EPOCH, "rows": 14}, FED, {6: "cc0001 cc0002", 7: "cc0003 cc0004", 8: FED[1]}, None),
        ({**EPOCH, "rows": 9}, FED, {6: FED[1]}, None),  # where an epoch ends is not sure
        ({"rows": 12}, FED, {6: FED[1]}, None),
        (EPOCH, {**FED, 2: FED[1]}, {6: FED[1]}, None),  # rows are drawn with replacement
        (EPOCH, FED, {6: f"{FED[1]} +1:000000"}, None),  # more than 16 rows
        ({**EPOCH, "rows": 42}, FED, {6: FED[1][:6]} | dict.fromkeys(range(7, 16), "cc0001"), None),  # 1 of 10
        ({**EPOCH, "rows": 42}, FED, {6: FED[1][:6]} | dict.fromkeys(range(7, 15), "cc0001"), "1 of its first 9"),
    ],
)
def test_rows_that_come_again_after_a_resume(
    data: dict[str, Any], before: dict[int, str], since: dict[int, str], expected: str | None
):
    said = one("WIR177", saved(data=data), resumed(data=data), fed=since, fed_before=before)
    assert (said is not None) == (expected is not None)
    assert expected is None or expected in said[1]


NEW = {6: "cc0001 cc0002", 7: "cc0003 cc0004", 8: "cc0005 cc0006"}


@pytest.mark.parametrize(
    ("before", "since", "expected"),
    [
        (FED, NEW, None),
        (FED, {6: FED[1], 7: FED[2], 8: "cc0001 cc0002"}, "begins the data anew: 4 of its first 6 rows"),
        ({**FED, 4: FED[2], 5: FED[3]}, {6: FED[1]}, None),  # the second pass of three steps
        ({**FED, 4: FED[2], 5: FED[3]}, {6: FED[2]}, "begins the data anew: 2 of its first 2 rows"),
        ({**FED, 4: FED[2], 5: FED[2]}, {6: FED[2]}, None),  # passes of 3 steps and of 1
        ({**FED, 3: ""}, {6: FED[1], 7: FED[2], 8: "cc0001 cc0002"}, None),  # not all steps are known
        (FED, {6: FED[1], 7: FED[2], 8: FED[3]}, None),  # perhaps the epoch ended with the save
        (FED, {6: "cc0001 cc0002", 7: FED[4], 8: FED[2]}, None),  # it ended a step later
        (FED, {6: FED[4], 7: "cc0001 cc0002", 8: FED[2]}, "another order of the data: 2 of its first 4 rows"),
        ({**FED, 3: FED[1], 4: FED[2], 5: "cc0001 cc0002"}, {6: "cc0003 cc0004"}, None),  # drawn with replacement
        (FED, dict.fromkeys((6, 7, 8), "cc0001"), "a step has 1 rows; it had 2"),
        (FED, {6: "cc0001", 7: "cc0001", 8: "cc0001 cc0002"}, None),  # of no one size
        (dict.fromkeys(FED, "a " * 16 + "+8:0"), dict.fromkeys(NEW, "b " * 16 + "+4:0"), "has 20 rows; it had 24"),
        (dict.fromkeys(FED, "?"), dict.fromkeys(NEW, "a"), None),
    ],
)
def test_the_data_at_a_resume_by_digests_alone(before: dict[int, str], since: dict[int, str], expected: str | None):
    said = one("WIR177", look(), resumed(), fed=since, fed_before=before)
    assert (said is not None) == (expected is not None)
    assert expected is None or expected in said[1]


@pytest.mark.parametrize(
    ("rates", "name", "expected"),
    [
        ([1.0, 0.9, 0.8, 0.7, 0.6, 1.0, 0.9, 0.8], None, "it goes from 0.6 to 1"),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], None, None),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 1.0, 0.9, 0.8], "cosine_with_restarts", None),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 1.0, 0.9], None, None),  # too few to tell
        ([1.0, 0.2, 1.0, 0.2, 1.0, 0.2, 1.0, 0.2], None, None),
        ([0.2, 1.0, 0.2, 1.0, 0.2, 0.2, 1.0, 0.2], None, None),  # of groups in turn: the leap is none
        ([1.0] * 8, None, None),
    ],
)
def test_the_schedule_at_a_resume_by_logged_rates_alone(rates: list[float], name: str | None, expected: str | None):
    steps = list(range(1, len(rates) + 1))
    config = ConfigSnapshot(training=TrainingSnapshot(lr_scheduler=name))
    facts = facts_of(logged_rows(steps, rates, rates, rates), wirings=[look(), resumed()], config=config)
    said = [finding.message for finding in detect(facts).findings if finding.id == "WIR178"]
    assert bool(said) == (expected is not None)
    assert expected is None or expected in said[0]


@pytest.mark.parametrize(("rows", "expected"), [(12, True), (10, False), (9, False), (None, False)])
def test_the_seed_of_a_sampler_counts_within_an_epoch(rows: int | None, expected: bool):  # noqa: FBT001  # a case
    data = {"batch_size": 2, "rows": rows}
    before, now = saved(data={**data, "sampler_seed": 1}), resumed(data={**data, "sampler_seed": 2})
    assert (one("WIR177", before, now) is not None) == expected


@pytest.mark.parametrize(
    ("step", "rate", "expected"), [(3, 0.5, True), (4, 0.5, False), (0, 1.0, False), (0, 0.5, True)]
)
def test_the_schedule_at_a_resume(step: int, rate: float, expected: bool):  # noqa: FBT001  # a case
    now = resumed(schedule={"name": "LambdaLR", "step": step, "rates": [rate]})
    assert (one("WIR178", saved(schedule={"name": "LambdaLR", "step": 5, "rates": [1.0]}), now) is not None) == expected


def test_an_empty_file_of_an_adapter():
    assert one("WIR179", saved(saved={"file": "a.safetensors"})) is not None
    assert one("WIR179", saved(saved={"file": "a.safetensors", "parameters": 1})) is None
    assert one("WIR179", saved(saved={"file": "a.safetensors"}, adapter=None)) is None


@pytest.mark.parametrize(
    ("parameters", "adapter", "expected"),
    [
        (90, {}, None),
        (89, {}, "holds 89 parameters, the model's adapter has 100"),
        (89, {"names": ["default", "b"]}, None),  # the file has one of them
        (89, {"methods": ["ADALORA"]}, None),
    ],
)
def test_a_file_that_lacks_a_part(parameters: int, adapter: dict[str, Any], expected: str | None):
    file = {"file": "a.safetensors", "tensors": 8, "parameters": parameters}
    said = one("WIR179", saved(saved=file, adapter={**ADAPTER, "methods": ["LORA"], **adapter}))
    assert (said is not None) == (expected is not None)
    assert expected is None or (said[0] == "error" and expected in said[1])


@pytest.mark.parametrize(
    ("evaluation", "expected"),
    [
        ({"called": True, "adapted": True}, None),
        ({"called": True}, None),  # a full fine-tune
        ({"called": False}, "did not call the model that trains"),
        ({"called": True, "adapted": False}, "without the adapter that trains"),
    ],
)
def test_another_model_is_evaluated(evaluation: dict[str, Any], expected: str | None):
    said = one("WIR182", look(), look("evaluation", 6, evaluation=evaluation))
    assert (said is not None) == (expected is not None)
    assert expected is None or expected in said[1]


@pytest.mark.parametrize(("dropouts", "expected"), [({"0.1": 4}, True), ({"0": 4}, False), ({}, False)])
def test_training_in_evaluation_mode(dropouts: dict[str, int], expected: bool):  # noqa: FBT001  # a case
    assert (one("WIR183", look(dropouts=dropouts), called(1, training=False)) is not None) == expected
    assert one("WIR183", look(dropouts=dropouts), called(1, merged=True)) is None


def test_the_schedule_of_another_optimizer():
    schedule = {"name": "LambdaLR", "step": 0, "rates": [1.0]}
    assert one("WIR184", look(schedule={**schedule, "foreign": True})) is not None
    assert one("WIR184", look(schedule=schedule)) is None
    assert one("WIR184", look(schedule={**schedule, "foreign": True}, optimizer={**HELD, "sharded": True})) is None


@pytest.mark.parametrize(
    ("steps", "rates", "expected"),
    [
        (4, [{"lr": 0.0, "kinds": ["adapter"], "tensors": 8}, {"lr": 1e-3, "kinds": ["head"]}], True),
        (3, [{"lr": 0.0, "kinds": ["adapter"], "tensors": 8}, {"lr": 1e-3, "kinds": ["head"]}], False),
        (4, [{"lr": 0.0, "peak": 1e-3, "kinds": ["adapter"]}, {"lr": 1e-3, "kinds": ["head"]}], False),  # warms up
        (4, [{"lr": 0.0, "kinds": ["base"]}, {"lr": 1e-3, "kinds": ["adapter"]}], False),
        (4, [{"lr": 0.0, "kinds": ["adapter"]}], False),  # LRS109 says so
    ],
)
def test_a_group_of_rate_0(steps: int, rates: list[dict[str, Any]], expected: bool):  # noqa: FBT001  # a case
    wiring = look("gradients", steps, optimizer={**HELD, "rates": rates}, gradients={"steps": steps, "reached": 8})
    assert (one("WIR180", wiring) is not None) == expected


@pytest.mark.parametrize(("steps", "rateless", "expected"), [(4, 4, True), (4, 3, False), (3, 3, False)])
def test_a_rate_of_0_at_each_step(steps: int, rateless: int, expected: bool):  # noqa: FBT001  # a case
    first = {"steps": steps, "rateless": rateless, "reached": 8}
    looks = look(), look("gradients", steps, gradients=first)
    assert (one("WIR180", *looks) is not None) == expected
    for rates, end, speaks in (([0.0] * 4, "ok", False), ([0.0] * 4, "no_run_end", True), ([1e-4] * 4, "ok", True)):
        run = facts_of(logged_rows([1, 2, 3, 4], [1.0] * 4, [1.0] * 4, rates), wirings=looks, status=end)
        ids = {finding.id for finding in detect(run).findings} & {"WIR180", "LRS109"}
        assert ("WIR180" in ids) == (expected and speaks)
        assert ("LRS109" in ids) == (not any(rates))


@pytest.mark.parametrize(
    ("passes", "now", "expected"), [(4, OWN, "error"), (3, OWN, None), (4, {**OWN, "digest": "s1:b"}, None)]
)
def test_no_step_is_made(passes: int, now: dict[str, Any], expected: str | None):
    looks = look(), look("gradients", groups=[now], gradients={"steps": 0, "backward": passes})
    assert (one("WIR180", *looks) or (None,))[0] == expected
    sharded = {**HELD, "sharded": True}
    assert (
        one("WIR180", look(), look("gradients", groups=[now], optimizer=sharded, gradients={"steps": 0, "backward": 9}))
        is None
    )


@pytest.mark.parametrize(
    ("groups", "rates", "expected"),
    [
        ([1e-4, 1e-3], [1e-4] * 40, None),  # the row has the first group's
        ([1e-4, 1e-3], [4e-5] * 40, "is configured"),
        ([0.0, 1e-3], [0.0] * 40, None),  # WIR180 says it
        (None, [1e-4] * 40, "is configured"),
    ],
)
def test_rates_by_group_are_no_missed_peak(groups: list[float] | None, rates: list[float], expected: str | None):
    extras = {} if groups is None else {"lr_groups": groups}
    config = ConfigSnapshot(optimizer=OptimizerSnapshot(lr=1e-3, extras=extras))
    steps = list(range(1, 41))
    facts = facts_of(logged_rows(steps, [1.0 / step for step in steps], [1.0] * 40, rates), config=config)
    said = [finding.message for finding in detect(facts).findings if finding.id == "LRS109"]
    assert bool(said) == (expected is not None)
    assert expected is None or expected in said[0]
