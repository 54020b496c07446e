"""Suggested ranks: what each rule reads, what a cut costs, why rules disagree, and what PEFT makes of a pattern."""

from __future__ import annotations

import json
import math

import audited
import msgspec
import pytest
from tables import every

from gradience.rules.weights.ranks import (
    bucket,
    candidates,
    cut,
    disagreements,
    error_at,
    measured,
    of_pattern,
    patterns_of,
    priced_ranks,
    rank_pattern,
    rank_rules,
    suggest,
    suggested_ranks,
    whole,
)
from gradience.schema.audit import ModuleRank

ERRORS = {"1": 0.8, "2": 0.4, "4": 0.2}


def module(name="m", r=8, k90=2, **fields):
    usual = {"energy_rank_90": k90, "stable_rank": 1.4, "effective_rank": 3.0, "knee_rank": 2, "frobenius_norm": 3.0}
    errors = {str(k): 0.8 / k for k in range(1, r)}
    return audited.module(name, r, **{**usual, "relative_errors": errors, **fields})


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
            "the first direction holds 80% of the energy and 2 hold 90 %; many small singular values follow, which "
            "the entropy of the effective rank counts and energy hardly does"
        ),
    ),
    (
        {"k90": 8, "stable_rank": 2.0, "effective_rank": 8.0, "knee_rank": 1},
        (
            "the first direction holds 50% of the energy and 8 are needed for 90 %: stable rank and knee see the "
            "peak, k@90% the tail behind it"
        ),
    ),
    (
        {"k90": 2, "stable_rank": 2.0, "effective_rank": 2.0, "knee_rank": 8},
        (
            "the first direction holds 50% of the energy, and the spectrum falls without a clear bend: the rules cut "
            "at different places"
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


def test_no_error_at_or_above_the_present_rank():
    assert error_at(module(r=8), 8) == 0.0
    assert suggest([module(r=8)], 16).params_saved == 0


def test_candidates_are_the_powers_of_two_below_the_largest_rank_and_the_suggestions():
    assert [c.rank for c in candidates([module(r=6), module(r=3)])] == [1, 2, 4]
    assert [(c.rank, c.for_engines) for c in candidates([module(k90=5)])] == [(1, 1), (2, 2), (4, 4), (5, 8)]
    unmeasured = module("z", k90=None)  # counts as of rank 1
    assert [c.rank for c in candidates([module(k90=7), unmeasured])] == [1, 2, 4, 7]
    assert [c.rank for c in candidates([module(k90=5), unmeasured])] == [1, 2, 3, 4, 5]
    assert candidates([]) == []


def test_a_suggestion_is_a_whole_rank_and_no_power_of_two():
    assert suggested_ranks([9, 9, 11], 16) == {"median": 9, "p90": 11}
    assert suggested_ranks([2, 3], 16) == {"median": 3, "p90": 3}
    assert suggested_ranks([], 16) == {}
    assert [whole(k, 8) for k in (0.0, 2.0, 2.0 + 1e-12, 2.1, 9.0)] == [1, 2, 2, 3, 8]


def test_a_report_prices_each_rank_that_a_suggestion_may_name():
    assert priced_ranks([5, 5, 8], 8) == {1, 2, 4, 5}
    assert priced_ranks([9, 10, 20], 20) == {1, 2, 4, 8, 9, 10, 16, 18}  # p90 between 10 and 20


def test_a_zero_module_keeps_its_rank():
    zero = module("layers.1.q", k90=None, state="zero", relative_errors={})
    assert rank_pattern([module("layers.0.q"), zero], bytes_per_param=4).rank_pattern == {r"layers\.1\.q": 8}


def test_experts_of_one_parameter_share_the_largest_rank():
    experts = [module(f"mlp.experts.w[{e}]", k90=k, expert=e) for e, k in enumerate((1, 4))]
    pattern = rank_pattern(experts, bytes_per_param=4)
    assert (pattern.r, pattern.rank_pattern) == (4, {})
    assert [row.rank for row in pattern.modules] == [4, 4]


@pytest.mark.parametrize("rslora", [False, True])
def test_loraconfig_takes_the_pattern_and_the_model_has_its_ranks_and_scalings(rslora):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q = torch.nn.Linear(16, 16)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(Block() for _ in range(12))
            self.encoder = torch.nn.Module()
            self.encoder.layers = torch.nn.ModuleList(Block() for _ in range(2))

        def forward(self, x):
            return x

    names = [f"layers.{i}.q" for i in range(12)] + [f"encoder.layers.{i}.q" for i in range(2)]
    ks = [1 + i % 8 for i in range(len(names))]
    modules = [
        module(n, k90=k, rslora=rslora, scaling=2.0 if i % 3 else 0.5)
        for i, (n, k) in enumerate(zip(names, ks, strict=True))
    ]
    pattern = rank_pattern(modules, bytes_per_param=4)
    printed = json.loads(msgspec.json.encode(pattern))
    fields = {k: printed[k] for k in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")}
    model = peft.get_peft_model(Net(), peft.LoraConfig(target_modules=["q"], **fields))
    for item, k in zip(modules, ks, strict=True):
        layer = model.base_model.model.get_submodule(item.name)
        assert layer.r["default"] == k
        assert layer.scaling["default"] == pytest.approx(float(item.scaling))
