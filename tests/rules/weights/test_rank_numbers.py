"""Suggested ranks number by number: what each rule reads, what a cut costs, and why rules disagree."""

from __future__ import annotations

import math

import pytest
from tables import every

from gradience.rules.weights import AdapterFacts, health, modules_analysed
from gradience.rules.weights.ranks import (
    alpha_for,
    bucket,
    candidates,
    cut,
    disagreements,
    measured,
    of_pattern,
    patterns_of,
    priced_ranks,
    rank_pattern,
    rank_rules,
    suggest,
)
from gradience.rules.weights.rules import judge_adapter
from gradience.schema.audit import (
    AUDIT_SCHEMA_ID,
    AuditReport,
    AuditSummary,
    LedgerEntry,
    ModuleAudit,
    ModuleRank,
    NotAnalysed,
)

ERRORS = {"1": 0.8, "2": 0.4, "4": 0.2}


def module(name="m", r=8, k90=2, **fields):
    given = {
        "module_type": "attn", "shape": [16, 12], "params": r * 28, "scaling": 2.0, "spectral_norm": 1.0,
        "frobenius_norm": 3.0, "energy_rank_90": k90, "stable_rank": 1.4, "effective_rank": 3.0, "knee_rank": 2,
        "relative_errors": ERRORS, **fields,
    }  # fmt: skip
    return ModuleAudit(name=name, r=r, **given)


@every(
    ("fields", "ranks"),
    [
        ({}, [2, 3, 2, 2]),
        ({"stable_rank": 2.0, "effective_rank": 2.5}, [2, 2, 2, 2]),  # exactly 2 is not rounded up; to even
        ({"stable_rank": 2.001, "effective_rank": 3.5}, [2, 4, 3, 2]),
        ({"k90": None, "stable_rank": None, "effective_rank": None, "knee_rank": None}, [1, 1, 1, 1]),
        ({"k90": 8, "stable_rank": 0.5, "effective_rank": 0.4, "knee_rank": 1}, [8, 1, 1, 1]),
    ],
)
def test_each_rule_reads_its_own_number(fields, ranks):
    found = rank_rules([module(**fields)])
    assert [rule.rule for rule in found] == ["energy_90", "effective_rank", "stable_rank", "knee"]
    assert [rule.median for rule in found] == [rule.p90 for rule in found] == ranks


def test_a_rule_has_the_median_and_the_ninetieth_percentile_over_the_modules():
    found = rank_rules([module(str(k), k90=k) for k in (1, 2, 3, 8)])[0]
    assert (found.median, found.p90) == (2.5, pytest.approx(6.5))
    assert (found.median_rank, found.p90_rank) == (3, 7)
    assert rank_rules([]) == []


def test_a_cut_costs_the_energy_of_what_is_left_out():
    modules = [module("a"), module("b", frobenius_norm=4.0), module("c", r=2, relative_errors={"1": 0.8})]
    kept, error, saved = cut(modules, lambda m: 2)
    lost = (9 + 16) * 0.4**2 / (9 + 16 + 9)
    assert (kept, error, saved) == (pytest.approx(1 - lost), pytest.approx(math.sqrt(lost)), 2 * 6 * 28)
    assert cut([module(frobenius_norm=0.0)], lambda m: 1) == (1.0, 0.0, 7 * 28)
    found = suggest(modules, 1, bytes_per_param=2.5)
    assert (found.rank, found.relative_error_worst) == (1, 0.8)
    assert (found.params_saved, found.bytes_saved) == ((7 + 7 + 1) * 28, round((7 + 7 + 1) * 28 * 2.5))
    assert [each.rank for each in candidates([module(r=8), module(r=2)])] == [1, 2, 4]


@every(("k", "cap", "size"), [(0.5, 8, 1), (1, 8, 1), (3, 8, 4), (9, 12, 12), (2000, 4096, 4096)])
def test_a_bucket_is_the_next_power_of_two_and_at_most_the_rank(k, cap, size):
    assert bucket(k, cap) == size


def test_only_modules_with_a_known_spectrum_are_measured():
    modules = [module("a"), module("b", state="zero"), module("c", k90=None)]
    assert [m.name for m in measured(modules)] == ["a"]


WHY = [
    (
        {"k90": 2, "stable_rank": 1.25, "effective_rank": 7.6, "knee_rank": 1},
        (
            "the first direction holds 80% of the energy and 2 hold 90 %; many small singular values follow, "
            "which the entropy "
            "of the effective rank counts and energy hardly does"
        ),
    ),
    (
        {"k90": 8, "stable_rank": 2.0, "effective_rank": 8.0, "knee_rank": 1},
        (
            "the first direction holds 50% of the energy and 8 are needed for 90 %: stable rank and knee see the "
            "peak, k@90% "
            "the tail behind it"
        ),
    ),
    (
        {"k90": 2, "stable_rank": 2.0, "effective_rank": 2.0, "knee_rank": 8},
        (
            "the first direction holds 50% of the energy, and the spectrum falls without a clear bend: the rules "
            "cut at "
            "different places"
        ),
    ),
    ({"k90": 4, "stable_rank": 2.0, "effective_rank": 2.0, "knee_rank": 2}, None),  # neighbours
]


@every(("fields", "why"), WHY)
def test_rules_that_lie_two_buckets_apart_have_a_reason(fields, why):
    assert [found.why for found in disagreements([module(**fields)])] == ([why] if why else [])


def test_the_widest_disagreement_comes_first():
    wide = module("wide", k90=1, stable_rank=1.0, effective_rank=8.0, knee_rank=1)
    narrow = module("narrow", k90=2, stable_rank=2.0, effective_rank=8.0, knee_rank=2)
    assert [found.name for found in disagreements([narrow, wide])] == ["wide", "narrow"]
    odd = module("odd", r=6, k90=2, stable_rank=2.0, effective_rank=6.0, knee_rank=2)  # 2, 4, 6: two apart
    assert [found.buckets["effective_rank"] for found in disagreements([odd])] == [6]


@every(
    ("scale", "rank", "rslora", "alpha"),
    [(2.0, 4, False, 8), (2.0, 4, True, 4), (0.1, 3, False, pytest.approx(0.3)), (1.0, 2, True, pytest.approx(2**0.5))],
)
def test_alpha_gives_the_scale_at_the_rank(scale, rank, rslora, alpha):
    found = alpha_for(scale, rank, rslora=rslora)
    assert found == alpha
    assert isinstance(found, int) == isinstance(alpha, int)


def test_patterns_name_exceptions_and_begin_where_a_path_is_another_s_end():
    found = patterns_of({"a.q": 4, "b.a.q": 8, "c.v": 4}, {"a.q": 8, "b.a.q": 8, "c.v": 16})
    assert found == (4, 8, {r"b\.a\.q": 8}, {r"c\.v": 16})
    other = patterns_of({"a.q": 8, "b.a.q": 4, "c.v": 4}, {"a.q": 8, "b.a.q": 8, "c.v": 8})
    assert other.rank_pattern == {r"^a\.q": 8}
    given = patterns_of({"a.q": 4}, {"a.q": 8}, default=(2, 2))
    assert given == (2, 2, {r"a\.q": 4}, {r"a\.q": 8})


def test_a_suggestion_for_each_module_has_its_costs():
    found = rank_pattern([module("a", k90=2), module("b", k90=8)], bytes_per_param=2.0)
    assert [(row.rank, row.relative_error, row.params_saved) for row in found.modules] == [(2, 0.4, 168), (8, 0.0, 0)]
    assert (found.params_saved, found.bytes_saved, found.use_rslora) == (168, 336, False)
    assert found.relative_error == pytest.approx(math.sqrt(9 * 0.16 / 18))
    assert found.energy_kept == pytest.approx(1 - 9 * 0.16 / 18)
    broken = module("c", k90=None, state="non_finite", frobenius_norm="NaN", relative_errors={})
    beside = rank_pattern([module("a", k90=2), broken, module("b", k90=8)], bytes_per_param=2.0)
    assert (beside.relative_error, beside.energy_kept) == (found.relative_error, found.energy_kept)
    assert beside.modules[1] == ModuleRank(name="c", r=8, rank=8, relative_error=0.0, params_saved=0)
    assert rank_pattern([], bytes_per_param=2.0) is None
    assert rank_pattern([module("a"), module("b", scaling="Infinity")], bytes_per_param=2.0) is None


@pytest.mark.parametrize(
    ("skipped", "reason"),
    [
        ([("*", "not read")], "not read"),
        ([("a", "not read")], "not read (a)"),
        ([("a", "not read"), ("b", "x"), ("c", "x")], "not read (a and 2 more)"),
    ],
)
def test_an_adapter_of_which_nothing_was_analysed_says_why(skipped, reason):
    left = [NotAnalysed(name=name, reason=why) for name, why in skipped]
    assert health([], not_analysed=left).reason == reason


def test_health_names_numbers():
    near = health([module()], relative_frobenius=9.94e-5)
    assert near.reason == "the update is 9.9e-05 of the base weights' norm, under 0.0001"
    assert health([]).reason == "the file holds no adapter tensor"
    assert health([], peft_type="IA3").reason == "peft_type IA3 is recognised, not analysed"
    assert health([module()]).reason == "the only module carries a finite, non-zero update"
    summary = AuditSummary(total_lora_params=0, n_layers=0)
    report = AuditReport(schema=AUDIT_SCHEMA_ID, peft_dir="d", weights_path="w", format="peft", health=health([]),
                         ledger=[], summary=summary)  # fmt: skip
    assert modules_analysed(AdapterFacts(report)) == "no module was analysed: the file holds no adapter tensor"


def test_what_fills_a_file_beside_lora_is_named_the_two_largest_first():
    sizes = {"full_module": (40, 0.4), "bias": (10, 0.1), "token_rows": (30, 0.3)}
    ledger = [LedgerEntry(role=role, tensors=1, params=1, bytes=n, share=share) for role, (n, share) in sizes.items()]
    report = AuditReport(
        schema=AUDIT_SCHEMA_ID,
        peft_dir="d",
        weights_path="w",
        format="peft",
        health=health([module()]),
        ledger=ledger,
        summary=AuditSummary(total_lora_params=1, n_layers=1),
        modules=[module()],
    )
    (found,) = [item for item in judge_adapter(report).findings if item.id == "LED205"]
    assert found.message == "80% of this file is full module and token rows, not LoRA."
    assert found.evidence[0].says == "80 bytes are no LoRA factor"


def test_ranks_with_a_price_lie_between_none_and_the_present_one():
    assert priced_ranks([0, 3, 6, 8], 8) == {1, 2, 3, 4, 5, 6}  # the median is 4.5: rank 5
    assert priced_ranks([], 4) == {1, 2}


def test_an_update_that_its_rank_does_not_bound_is_suggested_no_more_than_it_has():
    found = rank_pattern([module("a", r=4, k90=6), module("b", k90=2)], bytes_per_param=2.0)
    assert (found.r, found.rank_pattern, found.params_saved) == (4, {"b": 2}, 168)
    assert [(row.rank, row.params_saved) for row in found.modules] == [(4, 0), (2, 168)]


def test_the_cost_of_a_pattern_is_that_of_its_largest_and_its_worst_module():
    pattern = rank_pattern(
        [module("a", k90=2), module("b", k90=4), module("c", r=16, k90=8, relative_errors={**ERRORS, "8": 0.1})],
        bytes_per_param=2.0,
    )
    cost = of_pattern(pattern)
    assert (cost.rank, cost.relative_error_worst, cost.for_engines) == (8, 0.4, 8)
    assert (cost.params_saved, cost.energy_kept) == (pattern.params_saved, pattern.energy_kept)
    odd = rank_pattern([module("a", k90=2), module("b", r=12, k90=9, relative_errors={"9": 0.1})], bytes_per_param=2.0)
    assert (of_pattern(odd).rank, of_pattern(odd).for_engines) == (9, 12)


def test_where_no_update_is_known_the_first_module_says_why():
    unknown = [module(name, state="not_known", note=note) for name, note in (("a", "quantised"), ("b", "sparse"))]
    assert (health(unknown).verdict, health(unknown).reason) == ("not_analysed", "quantised")
    assert health([module(state="not_known")]).reason == "no update is known"
    few = health([*unknown, module("c")])
    assert (few.verdict, few.reason) == ("not_analysed", "only 1 of 3 modules could be analysed: quantised")
    enough = health([*unknown, module("c"), module("d")])
    assert (enough.verdict, enough.reason) == (
        "trained",
        "all 2 modules carry a finite, non-zero update (2 more are not known)",
    )
