"""Suggested ranks: conservative, priced, and applied by PEFT as they are written."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, strategies as st

from gradience.rules.weights.ranks import (
    BUCKETS,
    bucket,
    candidates,
    disagreements,
    error_at,
    percentile,
    priced_ranks,
    rank_pattern,
    rank_rules,
    suggest,
    suggested_ranks,
    whole,
)
from gradience.schema.audit import ModuleAudit


def module(name: str = "m", r: int = 8, k90: int | None = 2, **fields) -> ModuleAudit:
    given_fields = {
        "module_type": "attn", "shape": [16, 12], "params": r * 28, "scaling": 2.0, "spectral_norm": 1.0,
        "frobenius_norm": 1.5, "energy_rank_90": k90, "stable_rank": 1.4, "effective_rank": 3.0, "knee_rank": 2,
        "relative_errors": {str(k): 0.8 / k for k in range(1, r)}, **fields,
    }  # fmt: skip
    return ModuleAudit(name=name, r=r, **given_fields)


@given(k=st.floats(0, 2000), cap=st.integers(1, 2000))
def test_a_bucket_holds_k_unless_the_present_rank_is_less(k, cap):
    size = bucket(k, cap)
    assert 1 <= size <= cap
    assert size >= min(k, cap) or size == cap
    assert size in BUCKETS or size == cap


@given(ks=st.lists(st.integers(1, 512), min_size=2, max_size=2), cap=st.integers(1, 512))
def test_a_bucket_never_falls_as_k_grows(ks, cap):
    low, high = sorted(ks)
    assert bucket(low, cap) <= bucket(high, cap)


@given(values=st.lists(st.floats(0, 1e6), min_size=1), share=st.floats(0, 1))
def test_a_percentile_lies_within_its_values(values, share):
    assert min(values) <= percentile(values, share) * (1 + 1e-12) + 1e-12
    assert percentile(values, share) <= max(values) * (1 + 1e-12) + 1e-12


def test_no_error_at_or_above_the_present_rank():
    assert error_at(module(r=8), 8) == 0.0
    assert suggest([module(r=8)], 16).params_saved == 0


def test_energy_kept_weighs_modules_by_their_energy():
    large, small = module("a", frobenius_norm=3.0), module("b", frobenius_norm=0.0, relative_errors={"1": 1.0})
    assert suggest([large, small], 1).energy_kept == pytest.approx(1 - 0.8**2)


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


def test_rules_agree_on_one_direction_and_disagree_with_a_reason_on_a_long_tail():
    one = module(k90=1, stable_rank=1.0, effective_rank=1.0, knee_rank=1)
    assert disagreements([one]) == []
    tail = module("tail", k90=2, stable_rank=1.1, effective_rank=7.6, knee_rank=1)
    flat_tail = module("flat", k90=8, stable_rank=1.9, effective_rank=8.0, knee_rank=1)
    found = {item.name: item.why for item in disagreements([one, tail, flat_tail])}
    assert "entropy" in found["tail"]
    assert "tail behind it" in found["flat"]
    assert [r.rule for r in rank_rules([one])] == ["energy_90", "effective_rank", "stable_rank", "knee"]


def test_neighbouring_buckets_are_no_disagreement():
    assert disagreements([module(k90=4, stable_rank=1.9, effective_rank=2.2, knee_rank=2)]) == []


def test_a_pattern_keeps_every_scaling_and_names_only_exceptions():
    modules = [module("layers.0.q"), module("layers.1.q", k90=8), module("layers.2.q", scaling=4.0)]
    pattern = rank_pattern(modules, bytes_per_param=2.0)
    assert pattern.r == 2
    assert pattern.lora_alpha == 4
    assert pattern.rank_pattern == {r"layers\.1\.q": 8}
    assert pattern.alpha_pattern == {r"layers\.1\.q": 16, r"layers\.2\.q": 8}
    assert pattern.params_saved == 2 * 6 * 28
    assert pattern.bytes_saved == 2 * pattern.params_saved


def test_a_zero_module_keeps_its_rank():
    zero = module("layers.1.q", k90=None, state="zero", relative_errors={})
    assert rank_pattern([module("layers.0.q"), zero], bytes_per_param=4).rank_pattern == {r"layers\.1\.q": 8}


def test_experts_of_one_parameter_share_the_largest_rank():
    experts = [module(f"mlp.experts.w[{e}]", k90=k, expert=e) for e, k in enumerate((1, 4))]
    pattern = rank_pattern(experts, bytes_per_param=4)
    assert (pattern.r, pattern.rank_pattern) == (4, {})
    assert [row.rank for row in pattern.modules] == [4, 4]


NAMES = ("layers.0.attn.q", "layers.1.attn.q", "layers.10.attn.q", "encoder.layers.1.attn.q", "head.q", "other_q")


@given(
    st.lists(st.integers(1, 8), min_size=len(NAMES), max_size=len(NAMES)),
    st.booleans(),
    st.sampled_from([0.25, 2.0, 3.7]),
)
def test_peft_resolves_every_pattern_to_the_module_it_was_written_for(ks, rslora, scaling):
    """Resolve with PEFT's own rule, spelt out: first key for which re.match(rf'(.*\\.)?({key})$', name)."""
    import math
    import re

    modules = [module(n, k90=k, rslora=rslora, scaling=scaling) for n, k in zip(NAMES, ks, strict=True)]
    pattern = rank_pattern(modules, bytes_per_param=4)

    def resolve(patterns, default, name):
        return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name)), default)

    for item, k in zip(modules, ks, strict=True):
        r = resolve(pattern.rank_pattern, pattern.r, item.name)
        alpha = resolve(pattern.alpha_pattern, pattern.lora_alpha, item.name)
        assert r == k
        assert alpha / (math.sqrt(r) if rslora else r) == pytest.approx(scaling)


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
