"""What the monitor says of the audit that a log holds: compress after training, and never train with less."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from gradience.rules.log import detect
from gradience.rules.log.facts import RunFacts, Series
from gradience.rules.log.recorded import error_bound
from gradience.schema import ConfigSnapshot, LoraSnapshot


def module(name="q", *, r=16, sigma=None, kind="attn"):
    """A module as an audit logs it, from its singular values."""
    sigma = [1.0, 0.2, 0.05] if sigma is None else sigma
    total = sum(s * s for s in sigma)

    def holding(share):
        return next(k for k in range(1, len(sigma) + 1) if sum(s * s for s in sigma[:k]) >= share * total - 1e-12)

    ranks = {f"energy_rank_{int(100 * share)}": holding(share) for share in (0.90, 0.95, 0.99)}
    return {"name": name, "module_type": kind, "r": r, "frobenius_norm": math.sqrt(total), **ranks}


def audit(modules=None, *, median=1, tail=2, verdict="trained", **more):
    modules = [module(f"m{i}") for i in range(4)] if modules is None else modules
    return {
        "verdict": verdict,
        "energy_rank_90_p50": 1.0,
        "energy_rank_90_p90": 2.0,
        "suggested_r_global_median": median,
        "suggested_r_global_90": tail,
        "modules": modules,
        **more,
    }


def by_type(*, energy, params):
    """Attention, and an MLP with that share of the energy and that percentage of the parameters."""
    return {
        "attn": {"n": 8, "params": 100 - params, "energy_share": 1 - energy},
        "mlp": {"n": 6, "params": params, "energy_share": energy},
    }


def facts(payload, **more):
    return RunFacts(series=Series([], [], []), audit=payload, status="ok", **more)


def said(about, payload, **more):
    return next((f for f in detect(facts(payload, **more))[0] if f.id == about), None)


def reason(about, payload):
    return next((item.reason for item in detect(facts(payload))[1] if item.id == about), None)


def test_a_low_rank_update_may_be_compressed_after_training_at_a_named_cost():
    finding = said("CMP213", audit())
    assert "After training the update fits rank 2 of 16" in finding.message
    assert finding.severity == "info"
    assert finding.values["error_bound"] == pytest.approx(0.1)  # 99 % of the energy in two directions: 10 % at most


def test_no_advice_from_an_audit_says_to_train_with_less_rank():
    types = {
        "attn": {"n": 4, "params": 50, "energy_share": 0.999},
        "mlp": {"n": 4, "params": 50, "energy_share": 0.001},
    }
    findings, _ = detect(facts(audit(by_type=types)))
    ours = [f for f in findings if f.id in {"CMP213", "TYP214"}]
    assert len(ours) == 2
    for finding in ours:
        text = " ".join(filter(None, (finding.message, finding.action, finding.rationale))).lower()
        assert "train with less" not in text
        assert "lower r" not in text
        assert "reduce r" not in text
    assert "keep training at r=16" in next(f.action for f in ours if f.id == "CMP213")


def test_an_update_that_needs_its_rank_gets_nothing():
    assert said("CMP213", audit(tail=16)) is None


@pytest.mark.parametrize("verdict", ["untrained", "broken", "random_like"])
def test_no_rank_is_suggested_for_an_adapter_that_is_out_of_order(verdict):
    payload = audit(verdict=verdict)
    assert said("CMP213", payload) is None
    assert verdict in reason("CMP213", payload)


@pytest.mark.parametrize(
    ("verdict", "rule", "severity"),
    [("broken", "NUM201", "error"), ("untrained", "TRN202", "error"), ("random_like", "RND203", "warning")],
)
def test_the_verdict_of_the_audit_is_a_finding_of_the_run(verdict, rule, severity):
    assert said(rule, audit(verdict=verdict)).severity == severity


def test_modules_left_out_of_the_log_leave_no_bound_on_the_whole():
    finding = said("CMP213", audit(modules_omitted=100))
    assert finding.values["error_bound"] is None
    assert "31.6 %" in finding.message


def test_ranks_that_differ_are_not_judged_together():
    payload = audit([module(r=16), module(r=8)])
    assert said("CMP213", payload) is None
    assert "do not share one" in reason("CMP213", payload)


def test_without_modules_the_rank_is_that_of_the_config():
    config = ConfigSnapshot(lora=LoraSnapshot(r=32))
    assert said("CMP213", audit([]), config=config).values["rank"] == 32


def test_a_type_of_modules_that_carries_nothing_is_named_with_its_share():
    types = {
        "attn": {"n": 8, "params": 40, "energy_share": 0.995},
        "mlp": {"n": 6, "params": 60, "energy_share": 0.005},
    }
    finding = said("TYP214", audit(by_type=types))
    assert "Modules of type mlp carry next to nothing: 6 modules, 60% of the LoRA parameters" in finding.message


@pytest.mark.parametrize(("energy", "params"), [(0.02, 60), (0.005, 2)])
def test_a_type_that_carries_something_or_is_small_is_not(energy, params):
    assert said("TYP214", audit(by_type=by_type(energy=energy, params=params))) is None


def test_a_log_without_an_audit_is_told_once():
    reasons = [item for item in detect(facts(None))[1] if "audit" in item.reason]
    assert [item.id for item in reasons] == ["CMP213"]
    for payload, why in (
        (audit(n_layers=0), "the audit in the log found no LoRA weights"),
        (audit(n_layers=4, total_lora_params=0), "the audit in the log found no LoRA weights"),
        (audit(n_layers=4, verdict="random_like"), "the adapter is random_like: there is no rank to compress it to"),
        (audit(n_layers=4, verdict=7), None),
    ):
        assert reason("CMP213", payload) == why
        assert (said("CMP213", payload) is None) is (why is not None)


def test_other_writers_audits_with_odd_values_do_no_harm():
    payload = {"modules": [1, {"r": "8"}], "by_type": {"attn": 3}, "verdict": 7}
    assert {f.id for f in detect(RunFacts(series=Series([], [], []), audit=payload, status="ok"))[0]} == set()


spectra = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=16).map(lambda s: sorted(s, reverse=True))


@given(st.lists(spectra, min_size=1, max_size=5), st.integers(1, 20))
def test_the_bound_is_never_under_the_true_error(layers, rank):
    modules = [module(r=len(sigma), sigma=sigma) for sigma in layers]
    lost = sum(sum(s * s for s in sigma[rank:]) for sigma in layers)
    total = sum(sum(s * s for s in sigma) for sigma in layers)
    assert error_bound(modules, rank) >= math.sqrt(lost / total) - 1e-9
