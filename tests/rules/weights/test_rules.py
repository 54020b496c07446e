"""The verdict on an adapter and its findings: right at every threshold, and quiet on normal things."""

from __future__ import annotations

import pytest
from tables import every

from gradience.rules.weights import at_risk, health, observe_verdict
from gradience.rules.weights.rules import WEIGHTS_RULES, judge_adapter, non_finite, random_like, too_large, zero_update
from gradience.schema.audit import (
    AUDIT_SCHEMA_ID,
    AuditReport,
    AuditSummary,
    BaseComparison,
    BaseReport,
    Intruders,
    LedgerEntry,
    LeftoverReason,
    MergeSurvival,
    ModuleAudit,
    NotAnalysed,
    NotCompared,
)

PAIRS = [LedgerEntry(role="lora_pair", tensors=2, params=5, bytes=24, share=1.0)]


def module(name: str = "m", r: int = 8, **fields) -> ModuleAudit:
    given = {
        "module_type": "attn", "shape": [16, 12], "params": 224, "scaling": 2.0, "spectral_norm": 1.0,
        "frobenius_norm": 1.5, "stable_rank": 1.5, "null_stable_rank": 6.0, **fields,
    }  # fmt: skip
    return ModuleAudit(name=name, r=r, **given)


def report(**fields) -> AuditReport:
    modules = fields.get("modules", [])
    given = {
        "peft_dir": "d", "weights_path": "w", "format": "peft", "health": health(modules), "ledger": PAIRS,
        "summary": AuditSummary(total_lora_params=1, n_layers=1, utilization_mean=0.5 if modules else None), **fields,
    }  # fmt: skip
    return AuditReport(schema=AUDIT_SCHEMA_ID, **given)


def compared(*, stored="BF16", cosine=0.4, changed=0.1, dtype="bfloat16", **fields) -> BaseComparison:
    return BaseComparison(
        weight="w", dtype=stored, update="factors", spectral_norm=1.0, frobenius_norm=1.0, update_spectral_norm=1.0,
        update_frobenius_norm=1.0, survival=MergeSurvival(dtype=dtype, changed=changed, cosine=cosine, gain=1.0),
        **fields,
    )  # fmt: skip


def intruders(count) -> Intruders:
    return Intruders(k=10, eps=0.5, count=count, counts={"0.5": count}, undecided=0, method="exact", converged=True)


def found(full, **own):
    return {item.id: item for item in judge_adapter(full, **own).findings}


def reasons(full, **own):
    return {item.id: item.reason for item in judge_adapter(full, **own).not_run}


# --- health ------------------------------------------------------------------------------------------------------


@every(
    ("states", "verdict", "reason"),
    [
        (["ok"] * 4, "trained", "all 4 modules carry a finite, non-zero update"),
        (["ok"], "trained", "the only module carries a finite, non-zero update"),
        (["ok", "zero", "ok", "ok"], "partial", "1 of 4 modules have a zero update (first: 1)"),
        (["zero"] * 4, "untrained", "the update of all 4 modules is exactly zero"),
        (["not_known", "ok", "ok"], "trained", "all 2 modules carry a finite, non-zero update (1 more are not known)"),
        (["not_known", "zero", "ok"], "partial", "1 of 2 modules have a zero update (first: 1) (1 more are not known)"),
        (["not_known", "not_known", "ok"], "not_analysed", "only 1 of 3 modules could be analysed: no update is known"),
        (["not_known", "not_known", "non_finite"], "broken", "1 of 1 modules hold NaN or infinite weights (first: 2)"),
        (["not_known", "not_known"], "not_analysed", "no update is known"),
        (["ok", "non_finite", "zero", "ok"], "broken", "1 of 4 modules hold NaN or infinite weights (first: 1)"),
    ],
)
def test_the_worst_state_decides(states, verdict, reason):
    seen = health([module(str(i), state=state) for i, state in enumerate(states)])
    assert (seen.verdict, seen.reason) == (verdict, reason)


@every(
    ("cause", "verdict"),
    [
        (LeftoverReason.NEEDS_BASE, "not_analysed"),
        (LeftoverReason.SHAPE, "not_analysed"),
        (LeftoverReason.TRAINING_ONLY, "trained"),  # no part of the update
        (LeftoverReason.WHOLE_WEIGHTS, "trained"),
        (LeftoverReason.UNKNOWN, "trained"),  # a bias, a head: its name does not make it a module
    ],
)
def test_a_verdict_needs_half_of_the_adapter_s_modules(cause, verdict):
    left = [NotAnalysed(name=f"x{i}", reason="why", cause=cause) for i in range(5)]
    assert health([module(str(i)) for i in range(4)], not_analysed=left).verdict == verdict
    assert health([module(str(i)) for i in range(5)], not_analysed=left).verdict == "trained"


@every(
    ("norms", "verdict"),
    [
        ([1.0] * 9 + [0.99e-4], "partial"),
        ([1.0] * 9 + [1.01e-4], "trained"),
        ([1.0] * 2 + [0.5e-4] * 8, "partial"),  # the larger ones decide, not the most
        ([1.0] * 9 + [9e3], "trained"),  # one that is too large makes no other one small
    ],
)
def test_a_module_that_hardly_moved_beside_the_others_is_untrained(norms, verdict):
    seen = health([module(str(i), frobenius_norm=norm) for i, norm in enumerate(norms)])
    assert seen.verdict == verdict
    if verdict == "partial":
        small = sum(norm < 1e-3 for norm in norms)
        assert f"{small} of 10 modules is under 0.0001 of the larger ones'" in seen.reason


def test_nothing_to_read_is_broken_but_something_unread_is_not_analysed():
    assert health([]).verdict == "broken"
    assert health([], peft_type="IA3").verdict == "not_analysed"
    skipped = [NotAnalysed(name="x.lora_a", reason="a kind that is not analysed yet")]
    assert health([], not_analysed=skipped).verdict == "not_analysed"


@every(
    ("n", "r", "stable_rank", "verdict"),
    [
        (4, 4, 5.4, "random_like"),  # 5.4 of 6.0 is the share of 0.9
        (4, 4, 5.39, "trained"),
        (3, 4, 5.9, "trained"),
        (4, 3, 5.9, "trained"),
    ],
)
def test_random_like_needs_four_modules_of_rank_four_at_nine_tenths_of_the_null(n, r, stable_rank, verdict):
    assert health([module(str(i), r=r, stable_rank=stable_rank) for i in range(n)]).verdict == verdict


@every(
    ("flat", "of", "kind", "verdict"),
    [
        (4, 10, "linear", "random_like"),
        (4, 11, "linear", "trained"),
        (3, 7, "linear", "trained"),
        (12, 12, "vera", "trained"),
        (12, 12, "linear", "random_like"),
    ],
)
def test_random_numbers_in_some_layers_are_told_among_trained_ones(flat, of, kind, verdict):
    """Four modules, and four tenths of them."""
    rows = [module(f"layers.{i}", kind=kind, stable_rank=5.5 if i < flat else 1.5) for i in range(of)]
    seen = health(rows)
    assert seen.verdict == verdict
    assert (f"in {flat} of {of} modules (first: layers.0)" in seen.reason) is (verdict == "random_like")


@pytest.mark.parametrize(("relative", "verdict"), [(9.9e-5, "near_untrained"), (1e-4, "trained"), (None, "trained")])
def test_near_untrained_needs_a_base_and_a_tiny_norm(relative, verdict):
    assert health([module()], relative_frobenius=relative).verdict == verdict


@pytest.mark.parametrize(("relative", "verdict"), [(1.0, "trained"), (1.01, "oversized"), (29.0, "oversized")])
def test_an_update_larger_than_its_base_is_not_trained(relative, verdict):
    seen = health([module(str(i)) for i in range(4)], relative_frobenius=relative)
    assert seen.verdict == verdict
    assert (f"{relative:.3g} times the norm" in seen.reason) is (verdict == "oversized")


@pytest.mark.parametrize(("relative", "verdict"), [(1e-5, "near_untrained"), (0.5, "random_like"), (2.0, "oversized")])
def test_the_size_beside_a_base_goes_before_the_spectra(relative, verdict):
    assert health([module(str(i), stable_rank=5.9) for i in range(4)], relative_frobenius=relative).verdict == verdict


@every(
    ("n", "b", "verdict"),
    [
        (4, 5.4, "random_like"),  # 0.9 of 6
        (4, 5.39, "trained"),
        (4, 6.9, "random_like"),
        (4, 7.0, "trained"),  # midway to 8: orthonormal, as an SVD writes it
        (3, 5.9, "trained"),
        (4, None, "trained"),
    ],
)
def test_a_noise_like_second_factor_is_random_like_whatever_the_product(n, b, verdict):
    rows = [module(str(i), b_stable_rank=b, b_null_stable_rank=6.0 if b else None) for i in range(n)]
    seen = health(rows)
    assert seen.verdict == verdict
    assert ("lora_B" in seen.reason) is (verdict == "random_like")


@every(
    ("optimizer", "verdict", "judged"),
    [
        (None, "random_like", True),
        ("adamw_torch", "random_like", True),
        ("muon", "trained", False),
        ("DistributedShampoo", "trained", False),
    ],
)
def test_what_an_orthogonalising_optimizer_trained_is_not_judged_by_its_flatness(optimizer, verdict, judged):
    rows = [module(str(i), stable_rank=5.9) for i in range(4)]
    seen = health(rows, optimizer=optimizer)
    assert seen.verdict == verdict
    assert ("or trained with Muon or another orthogonalising optimizer" in seen.reason) is judged
    full = report(modules=rows, health=seen, optimizer=optimizer)
    assert ("RND203" in found(full)) is judged
    assert ("RND203" in reasons(full)) is not judged


def sized(size, **fields) -> AuditReport:
    summary = AuditSummary(total_lora_params=1, n_layers=1, utilization_mean=0.5, update_size=size)
    return report(modules=[module()], summary=summary, **fields)


def test_without_a_base_an_update_far_above_ordinary_ones_is_a_warning():
    assert "SIZ215" not in found(sized(3.0))
    finding = found(sized(3.1))["SIZ215"]
    assert (finding.severity, finding.confidence) == ("warning", 0.6)
    assert finding.values == {"update_size": 3.1}


def test_beside_its_base_the_size_relative_to_it_decides_and_intruders_are_a_second_witness():
    ordinary = BaseReport(path="b", files=1, compared=1, relative_frobenius=0.5)
    assert "SIZ215" not in found(sized(31.0, base=ordinary))
    nothing = BaseReport(path="b", files=1, compared=0)  # no module's weight is in it: as without a base
    assert found(sized(3.1, base=nothing))["SIZ215"].confidence == 0.6
    verdict = health([module()], relative_frobenius=29.0)
    counted = [None, 0, 4]
    bases = [BaseReport(path="b", files=1, compared=1, relative_frobenius=29.0, intruder_total=n) for n in counted]
    findings = [found(sized(1.0, base=base, health=verdict))["SIZ215"] for base in bases]
    assert [(f.severity, f.confidence) for f in findings] == [("error", 0.9), ("error", 0.9), ("error", 0.97)]
    assert "4 intruder dimensions" in findings[2].evidence[1].says


@every(
    ("verdict", "rule", "severity", "confidence", "message"),
    [
        ("broken", "NUM201", None, None, "Broken: why."),
        ("untrained", "TRN202", None, None, "Untrained: why."),
        ("near_untrained", "TRN202", "warning", 0.7, "Near-untrained: why."),
        ("partial", "TRN202", "warning", 0.9, "Partial: why."),
        ("random_like", "RND203", None, None, "Random-like: why."),
        ("oversized", "SIZ215", None, None, "As large as the weights: why."),
    ],
)
def test_a_verdict_is_a_finding_of_one_rule(verdict, rule, severity, confidence, message):
    rules = {each.id: each for each in (non_finite, zero_update, random_like, too_large)}
    seen = observe_verdict(rules[rule].verdicts, verdict, "why")
    assert (seen.severity, seen.confidence, seen.message) == (severity, confidence, message)
    assert [(ground.source, ground.says) for ground in seen.evidence] == [("the weights file", "why")]
    assert [each.id for each in WEIGHTS_RULES if verdict in getattr(each, "verdicts", ())] == [rule]


@pytest.mark.parametrize("verdict", ["trained", "not_analysed"])
def test_a_good_verdict_is_no_finding(verdict):
    assert not any(verdict in getattr(rule, "verdicts", ()) for rule in WEIGHTS_RULES)
    assert observe_verdict(zero_update.verdicts, verdict, "why") is None


# --- the file alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "seen"), [(0.5, True), (0.499, False)])
def test_a_file_that_is_half_something_else_is_worth_one_hint(share, seen):
    ledger = [
        LedgerEntry(role="full_module", tensors=2, params=10, bytes=76, share=share),
        LedgerEntry(role="lora_pair", tensors=2, params=5, bytes=24, share=1 - share),
    ]
    findings = found(report(modules=[module()], ledger=ledger))
    assert set(findings) == ({"LED205"} if seen else set())
    if seen:
        assert findings["LED205"].message == "50% of this file is full module, not LoRA."
        assert findings["LED205"].evidence[0].says == "76 bytes are no LoRA factor"


def test_a_head_that_the_config_declares_is_meant():
    ledger = [LedgerEntry(role="full_module", tensors=2, params=10, bytes=76, share=0.9)]
    judged = report(modules=[module()], ledger=ledger)
    assert [item.id for item in judge_adapter(judged).findings] == ["LED205"]
    assert judge_adapter(judged, modules_to_save=["classifier"]).findings == []


def test_magnitudes_and_scales_are_lora_s_own():
    ledger = [LedgerEntry(role=role, tensors=1, params=1, bytes=1, share=0.5) for role in ("magnitude", "scale")]
    assert found(report(modules=[module()], ledger=ledger)) == {}


def test_an_ordinary_adapter_has_no_finding():
    assert found(report(modules=[module()]), alpha=16.0, r=8) == {}


def test_a_factor_without_its_partner_is_an_error_and_another_leftover_is_none():
    def left(cause, n):
        return [NotAnalysed(name=f"layers.{i}.q", reason="as the file has it", cause=cause) for i in range(n)]

    both = [*left(LeftoverReason.FACTOR_MISSING, 4), NotAnalysed(name="x", reason="of another kind")]
    finding = found(report(modules=[module()], not_analysed=both))["NUM209"]
    assert finding.severity == "error"
    assert finding.values == {"modules": 4}
    assert finding.message == "4 modules have one factor only (first: layers.0.q): the file is incomplete."
    assert [ground.source for ground in finding.evidence] == ["layers.0.q", "layers.1.q", "layers.2.q"]
    others = [cause for cause in LeftoverReason if cause is not LeftoverReason.FACTOR_MISSING]
    for cause in (*others, None):
        assert found(report(modules=[module()], not_analysed=left(cause, 1))) == {}


def test_another_rank_than_the_config_s_is_named_with_both():
    finding = found(report(modules=[module("a"), module("b", r=16, config_r=4)]))["SCL206"]
    assert "1 of 2 modules" in finding.message
    assert "(first: b, r=16 on disk, 4 by the config)" in finding.message
    assert finding.values == {"modules": 1}


def test_patterns_without_a_module_are_counted_and_the_first_three_shown():
    finding = found(report(modules=[module()], unmatched_patterns=["a", "b", "c", "d"]))["SCL207"]
    assert finding.message == "4 keys of rank_pattern or alpha_pattern match no module: 'a', 'b', 'c' and 1 more."
    assert finding.values == {"patterns": ["a", "b", "c", "d"]}
    many = found(report(modules=[module()], unmatched_patterns=["a"] * 21))["SCL207"]
    assert many.values == {"patterns": ["a"] * 20}
    three = found(report(modules=[module()], unmatched_patterns=["a", "b", "c"]))["SCL207"]
    assert three.message.endswith("'a', 'b', 'c'.")


@every(
    ("alpha", "r", "of_module", "seen"),
    [
        (8.0, 9, 8.0, True),
        (8.0, 8, 8.0, False),
        (9.0, 64, 9.0, False),
        (9.0, 64, 8.0, False),
        (8.0, 64, 16.0, False),
        (8.0, None, 8.0, False),
    ],
)
def test_alpha_at_its_default_counts_from_rank_nine_on(alpha, r, of_module, seen):
    findings = found(report(modules=[module(alpha=of_module, scaling=0.125)]), alpha=alpha, r=r)
    assert ("SCL208" in findings) == seen
    if seen:
        says = "lora_alpha is at PEFT's default of 8 with r=9: the update is scaled by s=0.125."
        assert findings["SCL208"].message == says
        assert findings["SCL208"].values == {"lora_alpha": 8, "r": 9, "scaling": 0.125}


def test_an_alpha_that_a_pattern_gives_is_set_on_purpose():
    assert found(report(modules=[module(alpha=8.0, alpha_pattern="q")]), alpha=8.0, r=64) == {}


# --- beside the base ---------------------------------------------------------------------------------------------


@every(
    ("dtype", "relative", "cosine", "risky"),
    [
        ("bfloat16", 2.9e-3, 0.95, True),
        ("bfloat16", 3e-3, 0.95, False),
        ("bfloat16", 4e-3, 0.89, True),
        ("bfloat16", 4e-3, 0.9, False),
        ("float16", 2.9e-4, 0.99, True),
        ("float16", 3e-4, 0.99, False),
        ("bfloat16", 0.0, None, False),
        ("bfloat16", 2.9e-3, 0.0, True),  # nothing of it arrives
        ("bfloat16", "NaN", 0.1, False),
    ],
)
def test_a_merge_is_at_risk_by_size_or_by_what_it_realises(dtype, relative, cosine, risky):
    assert at_risk(module(base=compared(dtype=dtype, cosine=cosine), relative_frobenius=relative)) == risky


@pytest.mark.parametrize(("stored", "severity"), [("BF16", "warning"), ("F16", "warning"), ("F32", "info")])
def test_a_lossy_merge_is_a_warning_where_the_base_is_stored_in_16_bits(stored, severity):
    rows = [
        module("mild", base=compared(stored=stored, cosine=0.8), relative_frobenius=1e-3),
        module("worst", base=compared(stored=stored, cosine=0.4, changed=0.25), relative_frobenius=1e-3),
        module("fine", base=compared(stored=stored, cosine=0.99), relative_frobenius=1e-2),
    ]
    findings = found(report(modules=rows, base=BaseReport(path="b", files=1, compared=3)))
    assert {item.id: item.severity for item in findings.values()} == {"MRG210": severity}
    assert findings["MRG210"].message == (
        "Merging into bfloat16 would lose part of the update in 2 of 3 modules: in worst it changes 25% of "
        "its entries, and what the merge adds has cosine 0.40 with the update."
    )
    assert findings["MRG210"].values == {"modules": 2, "worst": "worst"}
    assert found(report(modules=rows)) == {}


@pytest.mark.parametrize(
    ("counted", "severity", "starts", "action"),
    [
        (0, "error", "None of 9 modules", "Give the base model this adapter was trained on"),
        (1, "warning", "Only 1 of 9 modules", "See why each of these has no weight in the base"),
    ],
)
def test_a_base_that_fits_no_module_is_an_error_and_one_that_fits_some_a_warning(counted, severity, starts, action):
    missed = [NotCompared(name=f"m{i}", reason=f"no weight {i}") for i in range(7)]
    base = BaseReport(path="b", files=1, compared=counted, not_compared=missed)
    finding = found(report(modules=[module("a"), module("b")], base=base))["BAS211"]
    assert finding.severity == severity
    assert finding.message.startswith(starts)
    assert finding.action.startswith(action)
    assert finding.message.endswith("m4: no weight 4 and 2 more.")
    assert finding.values == {"compared": counted, "not_compared": 7}
    alike = [NotCompared(name=one.name, reason="no such weight") for one in missed]
    base = BaseReport(path="b", files=1, compared=counted, not_compared=alike)
    finding = found(report(modules=[module("a"), module("m0")], base=base))["BAS211"]
    of = "None" if counted == 0 else "Only 1"
    assert finding.message == f"{of} of 8 modules could be compared with the base: m0 and 6 more: no such weight."


@every(
    ("held", "error", "n", "said"),
    [
        (1.0, 0.01, 4, "once"),
        (1.25, 0.01, 4, "once"),
        (1.26, 0.01, 4, None),
        (0.75, 0.01, 4, "once"),
        (0.74, 0.01, 4, None),
        (1.75, 0.01, 4, "twice"),
        (2.26, 0.01, 4, None),
        (3.0, 0.01, 4, None),
        (0.0, 0.01, 4, None),
        (-1.0, 0.01, 4, None),
        (1.0, 0.25 / 3, 4, "once"),
        (1.0, 0.0834, 4, None),
        (1.0, 0.01, 3, None),
        (1.0, None, 4, None),
    ],
)
def test_a_base_holds_the_update_where_its_weights_have_as_much_of_it_as_it_has(held, error, n, said):
    rows = [module(f"m{i}", base=compared(cosine=0.99, held=held), relative_frobenius=1e-2) for i in range(n)]
    rows.append(module("other", base=compared(cosine=0.99), relative_frobenius=1e-2))
    full = report(modules=rows, base=BaseReport(path="b", files=1, compared=n, held=held, held_error=error))
    seen = found(full).get("BAS216")
    assert (None if seen is None else (seen.severity, seen.values)) == (said and ("warning", {"held": held}))
    assert said is None or f"hold this update {said} already (<W, dW> / norm(dW)^2 is {held:.2f})" in seen.message
    assert reasons(full).get("BAS216") == (
        None if n == 4 else "needs 4 modules of plain LoRA beside their base's weights; there are 3"
    )


@every(
    ("cause", "rule", "severity", "action"),
    [
        ("unread_codes", "BAS217", "info", "Compare with the same model in 16 bits"),
        ("damaged_codes", "BAS211", "error", "Get the base's files again"),
    ],
)
def test_codes_that_cannot_be_read_are_no_wrong_base(cause, rule, severity, action):
    missed = [NotCompared(name=name, reason="in such codes", cause=cause) for name in ("m0", "m1")]
    base = BaseReport(path="b", files=1, compared=0, not_compared=missed)
    finding = found(report(modules=[module("m0"), module("m1")], base=base))
    assert set(finding) == {rule}
    assert finding[rule].severity == severity
    assert finding[rule].action.startswith(action)
    assert "m0 and 1 more" in finding[rule].message
    assert "in such codes" in finding[rule].message


@every(("changed", "speaks"), [(0.5, False), (0.49, True), (0.0, True)])
def test_an_update_that_most_codes_do_not_show_is_lost_if_it_is_merged_into_them(changed, speaks):
    base = BaseReport(path="b", files=1, compared=1, codes={"NF4": 1}, in_codes_changed_median=changed,
                      in_codes_cosine_median=0.25)  # fmt: skip
    finding = found(report(modules=[module(base=compared(cosine=0.99), relative_frobenius=1e-2)], base=base))
    assert set(finding) == ({"BAS218"} if speaks else set())
    assert not speaks or finding["BAS218"].severity == "info"
    assert not speaks or finding["BAS218"].values == {"lost": 1.0 - changed, "cosine": 0.25}
    lost = BaseReport(path="b", files=1, compared=1, codes={"NF4": 1}, in_codes_changed_median=0.0)
    assert "BAS218" in reasons(report(modules=[module()], base=lost))  # no update, nothing lost


def test_intruders_are_counted_and_the_module_with_most_is_named():
    rows = [
        module(name, base=compared(cosine=0.99, intruders=intruders(count)), relative_frobenius=1e-2)
        for name, count in (("few", 1), ("many", 3))
    ]
    base = BaseReport(path="b", files=1, compared=2, intruder_total=4, intruder_modules=2)
    finding = found(report(modules=rows, base=base))["INT212"]
    assert finding.message == "4 intruder dimensions in 2 modules (k=10, eps=0.5); most in many: 3."
    assert finding.values == {"total": 4, "k": 10, "eps": 0.5}
    none = BaseReport(path="b", files=1, compared=2, intruder_total=0, intruder_modules=0)
    assert "INT212" not in {**found(report(modules=rows, base=none)), **reasons(report(modules=rows, base=none))}


# --- what was not judged -----------------------------------------------------------------------------------------


def test_a_whole_audit_without_a_base_lacks_the_base_only():
    rows = [module(str(i)) for i in range(4)]
    assert set(reasons(report(modules=rows))) == {"MRG210", "BAS211", "INT212", "BAS216", "BAS217", "BAS218"}
    base = BaseReport(path="b", files=1, compared=4)
    assert set(reasons(report(modules=rows, base=base))) == {"INT212", "BAS216", "BAS218"}


def test_rules_without_their_input_say_which_it_is():
    empty = report(modules=[], ledger=[], health=health([], peft_type="IA3"))
    lacking = reasons(empty)
    why = "no module was analysed: peft_type IA3 is recognised, not analysed"
    assert {lacking[rule] for rule in ("NUM201", "TRN202", "SIZ215", "SCL206", "SCL207", "SCL208")} == {why}
    assert {lacking[rule] for rule in ("LED205", "NUM209")} == {"no tensor was read"}
    assert lacking["RND203"] == "needs 4 measured modules of rank 4 or more; there are 0"
    assert lacking["MRG210"] == lacking["BAS211"] == "no base model was given (--base)"
    assert set(lacking) == {rule.id for rule in WEIGHTS_RULES}


@pytest.mark.parametrize(("n", "r", "able"), [(3, 4, 3), (4, 3, 0)])
def test_random_factors_are_not_judged_with_few_modules_or_low_rank(n, r, able):
    lacking = reasons(report(modules=[module(str(i), r=r) for i in range(n)]))
    assert lacking["RND203"] == f"needs 4 measured modules of rank 4 or more; there are {able}"


@pytest.mark.parametrize(("fmt", "kind"), [("kohya", None), ("peft", "LOHA")])
def test_what_peft_s_config_does_not_describe_is_not_judged_by_it(fmt, kind):
    lacking = reasons(report(modules=[module()], format=fmt, peft_type=kind))
    assert (
        lacking["SCL207"] == lacking["SCL208"] == f"PEFT's LoraConfig does not describe it ({fmt}, {kind or 'no type'})"
    )


def everything() -> AuditReport:
    missing = NotAnalysed(name="x", reason="lora_B is missing beside lora_A", cause=LeftoverReason.FACTOR_MISSING)
    return report(
        modules=[module(config_r=4, alpha=8.0)],
        ledger=[LedgerEntry(role="bias", tensors=2, params=10, bytes=76, share=1.0)],
        health=health([]),
        unmatched_patterns=["a", "b", "c", "d"],
        not_analysed=[missing],
        summary=AuditSummary(total_lora_params=1, n_layers=1, utilization_mean=0.1),
        base=BaseReport(path="b", files=1, compared=0, not_compared=[NotCompared(name="m", reason="no weight")]),
    )


def test_every_finding_carries_evidence_and_the_gravest_come_first():
    findings = judge_adapter(everything(), alpha=8.0, r=64).findings
    assert [item.id for item in findings] == [
        "NUM201", "NUM209", "BAS211", "SCL206", "SCL207", "LED205", "SCL208",
    ]  # fmt: skip
    assert all(item.evidence and item.confidence is not None for item in findings)


def test_no_rule_both_finds_something_and_is_not_judged():
    empty_file = report(modules=[], ledger=[], health=health([]))
    for full in (everything(), empty_file):
        assert found(full, alpha=8.0, r=64).keys() & reasons(full, alpha=8.0, r=64).keys() == set()
    assert "NUM201" in found(empty_file)  # a file that holds no adapter tensor is broken


@every(
    ("size", "cosine", "dtype", "risk"),
    [
        (0.0, 0.95, "bfloat16", False),
        (2.9e-3, 0.95, "bfloat16", True),
        (3e-3, 0.95, "bfloat16", False),
        (2.9e-4, 0.95, "float16", True),
        (3e-4, 0.95, "float16", False),
        (1.0, 0.9, "bfloat16", False),
        (1.0, 0.899, "bfloat16", True),
        (1.0, None, "bfloat16", False),
    ],
)
def test_a_merge_loses_an_update_that_is_small_or_comes_out_otherwise(size, cosine, dtype, risk):
    assert at_risk(module(relative_frobenius=size, base=compared(cosine=cosine, dtype=dtype))) is risk


@every(
    ("stored", "severity"),
    [
        (("BF16", "F32"), "warning"),
        (("F32", "F16"), "warning"),
        (("F32", "F32"), "info"),
        (("BF16", "BF16"), "warning"),
    ],
)
def test_a_merge_that_loses_is_a_warning_where_one_weight_is_stored_in_16_bits(stored, severity):
    base = BaseReport(path="b", files=1, compared=2, relative_frobenius=0.5)
    rows = [
        module(name, relative_frobenius=0.1, base=compared(stored=kind))
        for name, kind in zip("ab", stored, strict=True)
    ]
    assert found(report(modules=rows, base=base))["MRG210"].severity == severity
