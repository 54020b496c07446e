"""What the sources show of an adapter: each fact at its threshold and just beside it, and files of two runs."""

from __future__ import annotations

import math

import audited
import pytest
from tables import every

from gradience.rules.joins import correlate
from gradience.rules.joins.run import JOINS
from gradience.rules.joins.symptoms import (
    Stated,
    damage,
    disagreements,
    log_symptoms,
    outgrown,
    recorded_disagreements,
    shows_learning,
    sum_of_rates,
    symptoms_of,
    weights_symptoms,
)
from gradience.schema.audit import AuditSummary, Health, LedgerEntry
from gradience.schema.document import Finding, NotRun
from gradience.schema.events import ConfigSnapshot, LoraSnapshot, Metrics, OptimizerSnapshot, TrainingSnapshot, Wiring
from gradience.schema.wiring import OptimizerWiring
from gradience.telemetry.series import RunSeries


def module(name="layers.0.q", *, rms=1e-3, **fields):
    norm = rms if isinstance(rms, str) else rms * 12.0  # of 144 entries
    return audited.module(name, **{"shape": [16, 9], "alpha": 16.0, "frobenius_norm": norm, **fields})


def report(*modules, verdict="trained", findings=(), roles=("lora_pair", "full_module"), **fields):
    summary = AuditSummary(total_lora_params=1000, n_layers=len(modules))
    held = [LedgerEntry(role=role, tensors=1, params=1, bytes=1, share=0.5) for role in roles]
    health = Health(verdict=verdict, reason="why")
    return audited.report(*modules, health=health, ledger=held, summary=summary, findings=list(findings), **fields)


def facts(full):
    return {item.id: item for item in weights_symptoms(full) if item.finding is None}


def finding(rule, severity="warning", **values):
    return Finding(id=rule, severity=severity, message=f"{rule} found", values=values)


# --- sizes and layers --------------------------------------------------------------------------------------------


@every(
    ("rms", "fact"), [(0.202, "exploded"), (0.198, None), (6.1e-5, None), (5.9e-5, "tiny"), (0.0, None), ("NaN", None)]
)
def test_an_update_is_huge_over_a_fifth_and_hardly_there_under_six_in_a_hundred_thousand(rms, fact):
    assert set(facts(report(module(rms=rms)))) == ({fact} if fact else set())


def test_the_module_with_the_largest_entries_is_named_and_only_a_trained_adapter_is_hardly_there():
    huge = facts(report(module("a", rms=0.3), module("b", rms=0.5), module("c", rms=1e-5)))
    assert set(huge) == {"exploded"}
    assert huge["exploded"].seen.message == "a typical entry of the update of b is 0.5, over 0.2"
    assert huge["exploded"].seen.values["rms"] == pytest.approx(0.5)
    assert facts(report(module(rms=1e-5), verdict="partial")) == {}
    tiny = facts(report(module("a", rms=2e-5), module("b", rms=4e-5)))["tiny"]
    assert tiny.seen.message == "a typical entry of the largest update is 4e-05, under 6e-05"
    assert tiny.seen.values == {"tiny": tiny.seen.message, "rms": pytest.approx(4e-5)}


def layer(*numbers):
    return [module(f"layers.{n}.{x}", layer=n) for n in numbers for x in "qv"]


@every(
    ("modules", "says"),
    [
        (layer(0, 3), None),
        (layer(3), "1 of at least 4 layers are adapted"),
        (layer(2), None),
        (layer(0, 1, 4), None),
        (layer(1, 7), "2 of at least 8 layers are adapted"),
        ([module(layer=None)], None),
        ([module("layers.7.q", layer=7), module("lm_head")], "1 of at least 8 layers are adapted"),
        ([module("down_blocks.1.q", layer=7), module("up_blocks.3.q", layer=107)], None),  # sections, not counted
        ([module("layers.7.q", layer=7), module("down_blocks.1.q", layer=107)], None),
    ],
)
def test_under_half_of_four_layers_and_more_are_few(modules, says):
    few = facts(report(*modules)).get("few_layers")
    assert (few and few.seen.message) == says
    if says is not None:
        adapted, *_, least, _, _, _ = says.split()
        assert few.seen.values == {"few": says, "layers": int(adapted), "least": int(least)}


def test_a_file_of_factors_alone_has_no_head():
    assert set(facts(report(module(), roles=("lora_pair",)))) == {"no_head"}
    assert facts(report(roles=("lora_pair",))) == {}


# --- findings as symptoms ----------------------------------------------------------------------------------------


@every(
    ("rule", "verdict", "modules", "tags", "value"),
    [
        ("NUM201", "broken", 1, {"broken"}, "lost"),
        ("NUM201", "broken", 0, set(), "lost"),  # an empty file holds no NaN
        ("TRN202", "untrained", 1, {"untrained"}, "zero"),
        ("TRN202", "near_untrained", 1, {"near_untrained"}, "zero"),
        ("TRN202", "partial", 1, {"partial"}, None),
        ("RND203", "random_like", 1, {"random_like"}, None),
        ("SCL206", "broken", 1, set(), None),
    ],
)
def test_a_finding_on_the_weights_has_the_verdict_as_its_tag_and_its_reason_as_a_value(
    rule, verdict, modules, tags, value
):
    full = report(*[module()] * modules, verdict=verdict, findings=[finding(rule, n=1)])
    symptom = next(item for item in weights_symptoms(full) if item.finding is not None)
    assert symptom.tags == {*tags, "n", "warning"}
    assert symptom.seen.values == {"n": 1, **({value: "why"} if value else {})}


# --- sizes by the learning rates -------------------------------------------------------------------------------------


def rated(*points, last=None, optimizers=()):
    """A run with (step, learning rate) in its rows."""
    run = RunSeries("r", last_step=points[-1][0] if last is None else last)
    for step, rate in points:
        run.steps.append(step)
        run.rates.append(rate)
        run.losses.append(1.0)
    run.wirings += [
        Wiring(ts=0.0, run_id="r", step=0, phase="start", optimizer=OptimizerWiring(names=name.split()))
        for name in optimizers
    ]
    return run


def config(name="adamw_torch", lr=1.0, steps=None, **extras):
    optimizer = OptimizerSnapshot(name=name, lr=lr, extras=extras)
    return ConfigSnapshot(optimizer=optimizer, training=TrainingSnapshot(max_steps=steps))


@every(
    ("run", "stated", "total"),
    [
        (rated((10, 0.5), (20, 0.25)), config(), 10 * 1.0 + 10 * 0.5),
        (rated((10, 2.0), (20, 3.0)), config(), 10 * 2.0 + 10 * 3.0),  # a warm-up: the larger of the two ends
        (rated((10, 0.5), (20, math.nan), (30, 0.25)), config(), 10 * 1.0 + 20 * 0.5),
        (rated((10, 0.5), (10, 9.0), (20, 0.25)), config(), 10 * 1.0 + 10 * 0.5),
        (rated((10, 0.5), last=14), config(), 10 * 1.0 + 4 * 0.5),
        (rated((10, 0.5), last=14), config(steps=30), 10 * 1.0 + 20 * 0.5),
        (rated((10, math.nan)), config(), 10.0),
        (rated((10, 0.5)), config(lr=None), None),
        (rated((10, 0.5)), config(name=None), None),
        (rated((10, 0.5)), config(lr_groups=[1e-4, 1e-3]), None),
        *((rated((10, 0.5)), config(name=name), 10.0) for name in ("adam", "paged_adamw_8bit", "Lion", "lion_8bit")),
        *((rated((10, 0.5)), config(name=name), None) for name in ("sgd", "muon", "adafactor", "prodigy", "lamb")),
        (rated((10, 0.5), optimizers=["Muon"]), config(), None),  # what trains goes before what is configured
        (rated((10, 0.5), optimizers=["Muon", "AdamW"]), config(name="sgd"), 10.0),
        (rated((10, 0.5), optimizers=["PagedAdamW8bit"]), config(), 10.0),
        (rated((10, 0.5), optimizers=["AdamW Muon"]), config(), None),  # two together
    ],
)
def test_the_sum_of_the_learning_rates_is_the_largest_that_the_rows_allow(run, stated, total):
    assert sum_of_rates(run, stated) == (None if total is None else pytest.approx(total))


@every(
    ("moved", "found"),
    [([15.0], False), ([15.01], True), ([21.0, None, 3.0], False), ([21.1, None, 3.0], True), ([None], False)],
)
def test_lora_b_is_outgrown_beyond_half_again_the_sum_of_the_rates(moved, found):
    symptoms = list(outgrown(rated((10, 0.5)), config(), report(*(module(b_rms=rms) for rms in moved))))
    assert [(item.source, item.id) for item in symptoms] == (
        [("log", "summed_rates"), ("weights", "outgrown")] if found else []
    )
    assert list(outgrown(rated((10, 0.5)), config(name="sgd"), report(module(b_rms=99.0)))) == []


def test_what_outgrew_its_rates_is_said_with_all_three_numbers():
    (cause,) = correlate(JOINS, outgrown(rated((10, 0.5)), config(), report(module(b_rms=25.0))), frozenset()).causes
    assert (cause.id, cause.severity) == ("SIZ331", "warning")
    assert cause.message == (
        "Entries of lora_B began at 0 and are at 25, 2.5 times as far as all steps of this log could move them (10)."
    )


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_log_without_an_evaluation_shows_that(evaluated):
    assert [item.id for item in log_symptoms([], evaluated=evaluated)] == ["nothing_held_out"] * (not evaluated)


@every(("not_run", "evaluations", "shown"), [([], 0, True), (["NOL106"], 1, False), (["NOL106"], 2, True)])
def test_a_log_shows_learning_by_its_rows_or_by_two_evaluations(not_run, evaluations, shown):
    assert shows_learning([NotRun(id=rule, reason="x") for rule in not_run], evaluations) is shown


def test_a_file_that_ends_too_early_is_damaged_and_without_a_reason_nothing_is():
    (item,) = damage("a.safetensors is truncated")
    assert (item.id, item.seen.values["damaged"]) == ("damaged", "a.safetensors is truncated")
    assert damage("") == []


def test_a_rate_of_zero_says_in_how_many_rows_and_one_that_was_short_of_its_peak_does_not():
    zero, short = log_symptoms([finding("LRS109", rows=7), finding("LRS109", peak=1e-5)], evaluated=True)
    says = "the learning rate was 0 in 7 rows"
    assert zero.seen.values == {"rows": 7, "rate_zero": says, "not_learnt": says}
    assert short.seen.values == {"peak": 1e-5}


def test_only_a_loss_that_does_not_fall_and_a_rate_of_zero_say_that_nothing_was_learnt():
    """Rows without a gradient do not, in a run whose loss falls."""
    found = log_symptoms([finding(rule) for rule in ("NOL106", "GRD108")], evaluated=True)
    assert [item.seen.values.get("not_learnt") for item in found] == ["the loss does not fall", None]
    vanished = [symptom for symptom in found if symptom.id == "GRD108"]
    low = symptoms_of("config", [finding("LR001")])
    assert correlate(JOINS, [*vanished, *low], frozenset()).causes == []


def test_what_stops_a_run_by_itself_says_so():
    found = [
        *(finding("VAL001", **{name: 0.0}) for name in ("lr", "lora_alpha", "epochs", "weight_decay")),
        *(finding("TGT002", severity) for severity in ("error", "warning")),
        finding("LR001"),
    ]
    stops = [item.seen.values.get("stops") for item in symptoms_of("config", found)]
    assert stops == [*["VAL001 found"] * 3, None, "TGT002 found", None, None]


# --- files of two runs -------------------------------------------------------------------------------------------


def apart(lora, *modules, **fields):
    found = disagreements([Stated("the config", LoraSnapshot(**lora))], report(*(modules or [module()]), **fields))
    return [(item.source, item.id, item.seen.values.get("differs") or item.seen.values.get("idle")) for item in found]


@every(
    ("lora", "modules", "differs"),
    [
        ({"r": 8}, [module()], None),
        ({"r": 4}, [module()], "r=4 in the config, r=8 on disk in layers.0.q"),
        ({"r": 4, "rank_pattern": {"q": 8}}, [module()], None),
        ({"r": 4, "init": "pissa_niter_4"}, [module()], None),  # converted: twice the rank
        ({"r": 2, "rank_pattern": {"q": 4}, "init": "pissa"}, [module()], None),
        ({"r": 2, "init": "pissa"}, [module()], "r=2 in the config, r=8 on disk in layers.0.q"),
        ({"r": 4, "init": "gaussian"}, [module()], "r=4 in the config, r=8 on disk in layers.0.q"),
        ({"alpha": 16.0}, [module()], None),
        ({"alpha": 32.0}, [module()], "lora_alpha=32 in the config, alpha=16 in layers.0.q"),
        ({"alpha": 32.0, "alpha_pattern": {"q": 16.0}}, [module()], None),
        ({"alpha": 8.0, "init": "olora"}, [module()], None),
        ({"alpha": 16.0, "init": "olora", "use_rslora": True}, [module(alpha=16 * 2**0.5)], None),
        ({"alpha": 8.0, "init": "olora", "use_rslora": True}, [module()],
         "lora_alpha=8 in the config, alpha=16 in layers.0.q"),
        ({"alpha": 4.0, "init": "olora"}, [module()], "lora_alpha=4 in the config, alpha=16 in layers.0.q"),
        ({"alpha": 32.0}, [module(alpha=None)], None),
        ({"target_modules": ["q"]}, [module()], None),
        ({"target_modules": ["0.q"]}, [module()], None),
        ({"target_modules": ["v"]}, [module()], "target_modules v in the config, layers.0.q was adapted"),
        ({"target_modules": ["v", "k", "o", "x"]}, [module()],
         "target_modules v, k, o in the config, layers.0.q was adapted"),
        ({"target_modules": ["q"]}, [module("layers.0.xq")],
         "target_modules q in the config, layers.0.xq was adapted"),
        ({"target_modules": []}, [module()], None),
        ({"target_modules": ["q"]}, [module("q")], None),
        ({"target_modules": ["v"]}, [module(expert=0)], None),
        ({"target_modules": "all-linear"}, [module()], None),
        ({"target_modules": ["v"], "extras": {"target_parameters": ["w"]}}, [module()], None),
        ({"peft_type": "IA3"}, [module()], "peft_type IA3 in the config, the file holds LoRA factors"),
    ],
)  # fmt: skip
def test_a_configuration_of_another_adapter_is_told_by_rank_alpha_and_names(lora, modules, differs):
    found = [entry for entry in apart(lora, *modules) if entry[1] != "idle_targets" and entry[1] != "adapted"]
    expected = [("config", "other_config", differs), ("weights", "other_adapter", None)] if differs else []
    assert found == expected


@every(
    ("targets", "idle"),
    [(["q"], None), (["q", "v"], "v"), (["q", "a", "b", "c", "d"], "a, b, c and 1 more"), ("all-linear", None)],
)
def test_a_target_of_whose_name_nothing_was_adapted_is_named(targets, idle):
    expected = [("config", "idle_targets", idle), ("weights", "adapted", None)] if idle else []
    assert apart({"target_modules": targets}) == expected


def test_adapters_of_other_formats_types_or_without_modules_are_not_compared():
    assert apart({"r": 4}, format="kohya") == []
    assert apart({"r": 4}, peft_type="IA3") == []
    assert len(apart({"r": 4}, peft_type="LORA")) == 2
    assert disagreements([Stated("the config", LoraSnapshot(r=4))], report()) == []


@every(
    ("audit", "modules", "found"),
    [
        ({"n_layers": 2, "total_lora_params": 500}, 1, 4),
        ({"n_layers": 1, "total_lora_params": 500}, 1, 0),  # programs count parameters differently
        ({"n_layers": 2, "total_lora_params": 1000}, 1, 0),
        ({"n_layers": 2}, 1, 0),
        ({"n_layers": True, "total_lora_params": 500}, 1, 0),
        ({"n_layers": 2, "total_lora_params": 500}, 0, 0),
        (None, 1, 0),
    ],
)
def test_an_audit_in_the_log_is_of_another_adapter_where_all_its_counts_differ(audit, modules, found):
    run = RunSeries("r")
    if audit is not None:
        run.latest_metrics["lora_audit"] = Metrics(ts=0.0, run_id="r", step=1, kind="lora_audit", metrics=audit)
    seen = recorded_disagreements(run, report(*[module()] * modules))
    assert len(seen) == found
    if found:
        assert seen[0].seen.values == {"differs": "2 adapted modules recorded, 1 in the file"}
        assert [item.id for item in seen] == ["other_log", "other_adapter"] * 2


@every(
    ("init", "ranks", "alphas", "differs"),
    [
        ("pissa", (16, 16), (32.0, 32.0), None),  # twice both, as PEFT converts it
        ("pissa_niter_4", (16, 16), (32.0, 32.0), None),
        (None, (16, 16), (16.0, 16.0), "r=8 in the config, r=16 on disk in a"),
        ("pissa", (16, 24), (16.0, 16.0), "r=8 in the config, r=24 on disk in b"),
        ("pissa", (8, 16), (16.0, 32.0), None),  # one was converted
        (None, (8, 8), (32.0, 32.0), "lora_alpha=16 in the config, alpha=32 in a"),
        ("pissa", (8, 8), (16.0, 8.0), "lora_alpha=16 in the config, alpha=8 in b"),
        ("pissa", (8, 8), (32.0, 8.0), "lora_alpha=16 in the config, alpha=8 in b"),
    ],
)
def test_a_converted_start_has_twice_the_rank_and_alpha_in_every_module_that_differs(init, ranks, alphas, differs):
    rows = [module(name, r=r, alpha=alpha) for name, r, alpha in zip("ab", ranks, alphas, strict=True)]
    stated = Stated("the config", LoraSnapshot(r=8, alpha=16.0, init=init))
    found = disagreements([stated], report(*rows))
    assert [item.seen.values["differs"] for item in found if item.source == "config"] == ([differs] if differs else [])


def test_an_update_without_an_entry_has_no_size():
    assert facts(report(module(shape=[0, 9], frobenius_norm=0.0))) == {}
