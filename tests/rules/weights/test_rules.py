"""The verdict on an adapter and its findings: right at every threshold, and quiet on normal things."""

from __future__ import annotations

from audited import module, report
from tables import every

from gradience.rules import judge
from gradience.rules.weights import at_risk, health, observe_verdict
from gradience.rules.weights.rules import WEIGHTS_RULES
from gradience.schema.audit import (
    AuditSummary,
    BaseComparison,
    BaseReport,
    LedgerEntry,
    LeftoverReason,
    MergeSurvival,
    NotAnalysed,
    NotCompared,
)


def compared(*, stored="BF16", cosine=0.4, changed=0.1, dtype="bfloat16", **fields) -> BaseComparison:
    return BaseComparison(
        weight="w", dtype=stored, update="factors", spectral_norm=1.0, frobenius_norm=1.0,
        update_frobenius_norm=1.0, survival=MergeSurvival(dtype=dtype, changed=changed, cosine=cosine, gain=1.0),
        **fields,
    )  # fmt: skip


def beside(compared_=1, **fields) -> BaseReport:
    return BaseReport(path="b", files=1, compared=compared_, **fields)


def missed(n, reason="no weight {}", cause=None):
    return [NotCompared(name=f"m{i}", reason=reason.format(i), cause=cause) for i in range(n)]


def left(cause, n=1):
    return [NotAnalysed(name=f"layers.{i}.q", reason="as the file has it", cause=cause) for i in range(n)]


def ledger(**shares):
    return [
        LedgerEntry(role=role, tensors=1, params=1, bytes=round(100 * share), share=share)
        for role, share in shares.items()
    ]


def sized(size, **fields):
    summary = AuditSummary(total_lora_params=1, n_layers=1, utilization_mean=0.5, update_size=size)
    return report(module(), summary=summary, **fields)


def found(full):
    return {item.id: item for item in judge(WEIGHTS_RULES, full).told}


def reasons(full):
    return {item.id: item.reason for item in judge(WEIGHTS_RULES, full).not_run}


# --- health ------------------------------------------------------------------------------------------------------


def states(*names):
    return [module(str(i), state=state) for i, state in enumerate(names)]


def alike(n, **fields):
    return [module(f"layers.{i}", **fields) for i in range(n)]


def flat(n, of):
    return [module(f"layers.{i}", stable_rank=5.5 if i < n else 1.5) for i in range(of)]


def normed(*norms):
    return [module(str(i), frobenius_norm=norm) for i, norm in enumerate(norms)]


SKIPPED = [NotAnalysed(name=name, reason=why) for name, why in (("a", "not read"), ("b", "x"), ("c", "x"))]
WHOLE = [NotAnalysed(name="*", reason="not read")]
UNKNOWN = [module(name, state="not_known", note=note) for name, note in (("a", "quantised"), ("b", "sparse"))]


@every(
    ("modules", "given", "verdict", "reason"),
    [
        (states(*["ok"] * 4), {}, "trained", "all 4 modules carry a finite, non-zero update"),
        (states("ok"), {}, "trained", "the only module carries a finite, non-zero update"),
        (states("ok", "zero", "ok", "ok"), {}, "partial", "1 of 4 modules have a zero update (first: 1)"),
        (states(*["zero"] * 4), {}, "untrained", "the update of all 4 modules is exactly zero"),
        (states("not_known", "ok", "ok"), {}, "trained",
         "all 2 modules carry a finite, non-zero update (1 more are not known)"),
        (states("not_known", "zero", "ok"), {}, "partial",
         "1 of 2 modules have a zero update (first: 1) (1 more are not known)"),
        (states("not_known", "not_known", "ok"), {}, "not_analysed",
         "only 1 of 3 modules could be analysed: no update is known"),
        (states("not_known", "not_known", "non_finite"), {}, "broken",
         "1 of 1 modules hold NaN or infinite weights (first: 2)"),
        (states("not_known", "not_known"), {}, "not_analysed", "no update is known"),
        (states("ok", "non_finite", "zero", "ok"), {}, "broken",
         "1 of 4 modules hold NaN or infinite weights (first: 1)"),
        (UNKNOWN, {}, "not_analysed", "quantised"),  # the first says why
        ([*UNKNOWN, module("c")], {}, "not_analysed", "only 1 of 3 modules could be analysed: quantised"),
        (states("ok"), {"update_size": 1.5e-4}, "near_untrained",
         "the update is 1.5e-04 of freshly initialised weights' norm, at most 0.00015"),
        (states("ok"), {"update_size": 1.51e-4}, "trained", "the only module carries a finite, non-zero update"),
        (states("ok"), {"update_size": 1e-9, "relative_frobenius": 0.5}, "trained", "the only module carries"),
        ([], {}, "broken", "the file holds no adapter tensor"),
        ([], {"peft_type": "IA3"}, "not_analysed", "peft_type IA3 is recognised, not analysed"),
        ([], {"not_analysed": WHOLE}, "not_analysed", "not read"),
        ([], {"not_analysed": SKIPPED[:1]}, "not_analysed", "not read (a)"),
        ([], {"not_analysed": SKIPPED}, "not_analysed", "not read (a and 2 more)"),
        # half of the modules make a verdict; what is no module of the adapter does not count
        (alike(4), {"not_analysed": left(LeftoverReason.NEEDS_BASE, 5)}, "not_analysed", "only 4 of 9 modules"),
        (alike(5), {"not_analysed": left(LeftoverReason.NEEDS_BASE, 5)}, "trained", "all 5 modules"),
        (alike(4), {"not_analysed": left(LeftoverReason.SHAPE, 5)}, "not_analysed", "only 4 of 9 modules"),
        (alike(4), {"not_analysed": left(LeftoverReason.TRAINING_ONLY, 5)}, "trained", "all 4 modules"),
        (alike(4), {"not_analysed": left(LeftoverReason.WHOLE_WEIGHTS, 5)}, "trained", "all 4 modules"),
        (alike(4), {"not_analysed": left(LeftoverReason.UNKNOWN, 5)}, "trained", "all 4 modules"),  # a bias, a head
        # a module that hardly moved beside the larger ones
        (normed(*[1.0] * 9, 0.99e-4), {}, "partial", "the update of 1 of 10 modules is under 0.0001 of the larger"),
        (normed(*[1.0] * 9, 1.01e-4), {}, "trained", ""),
        (normed(1.0, 1.0, *[0.5e-4] * 8), {}, "partial", "the update of 8 of 10 modules"),  # not the most decide
        (normed(*[1.0] * 9, 9e3), {}, "trained", ""),  # one that is too large makes no other one small
        # as flat as random numbers: 5.4 of 6.0 is the share of 0.9, in four modules of rank 4 and more
        (alike(4, r=4, stable_rank=5.4), {}, "random_like", "the update is as flat as random numbers of its shape"),
        (alike(4, r=4, stable_rank=5.39), {}, "trained", ""),
        (alike(3, r=4, stable_rank=5.9), {}, "trained", ""),
        (alike(4, r=3, stable_rank=5.9), {}, "trained", ""),
        (flat(4, 10), {}, "random_like",
         ("the update is as flat as random numbers of its shape in 4 of 10 modules (first: layers.0)")),
        (flat(4, 11), {}, "trained", ""),  # four tenths of them
        (flat(3, 7), {}, "trained", ""),
        (alike(12, kind="vera", stable_rank=5.5), {}, "trained", ""),
        # lora_B alone, whatever the product; midway to r = 8 it is orthonormal, as an SVD writes it
        (alike(4, b_stable_rank=5.4, b_null_stable_rank=6.0), {}, "random_like", "lora_B is as flat"),
        (alike(4, b_stable_rank=5.39, b_null_stable_rank=6.0), {}, "trained", ""),
        (alike(4, b_stable_rank=6.9, b_null_stable_rank=6.0), {}, "random_like", "lora_B is as flat"),
        (alike(4, b_stable_rank=7.0, b_null_stable_rank=6.0), {}, "trained", ""),
        (alike(3, b_stable_rank=5.9, b_null_stable_rank=6.0), {}, "trained", ""),
        # an optimizer that orthogonalises its steps leaves flat spectra
        (alike(4, stable_rank=5.9), {"optimizer": "adamw_torch"}, "random_like", ""),
        (alike(4, stable_rank=5.9), {"optimizer": "muon"}, "trained", ""),
        (alike(4, stable_rank=5.9), {"optimizer": "DistributedShampoo"}, "trained", ""),
        # the size beside a base goes before the spectra
        ([module()], {"relative_frobenius": 9.94e-5}, "near_untrained",
         "the update is 9.9e-05 of the base weights' norm, under 0.0001"),
        ([module()], {"relative_frobenius": 1e-4}, "trained", ""),
        ([module()], {"relative_frobenius": 1.0}, "trained", ""),
        ([module()], {"relative_frobenius": 1.01}, "oversized", "the update has 1.01 times the norm"),
        (alike(4, stable_rank=5.9), {"relative_frobenius": 1e-5}, "near_untrained", ""),
        (alike(4, stable_rank=5.9), {"relative_frobenius": 0.5}, "random_like", ""),
        (alike(4, stable_rank=5.9), {"relative_frobenius": 2.0}, "oversized", ""),
    ],
)  # fmt: skip
def test_the_verdict_names_what_it_rests_on(modules, given, verdict, reason):
    seen = health(modules, **given)
    assert (seen.verdict, seen.reason[: len(reason)]) == (verdict, reason)


@every(
    ("verdict", "rule", "severity", "confidence", "message"),
    [
        ("broken", "NUM201", None, None, "Broken: why."),
        ("untrained", "TRN202", None, None, "Untrained: why."),
        ("near_untrained", "TRN202", "warning", 0.7, "Near-untrained: why."),
        ("partial", "TRN202", "warning", 0.9, "Partial: why."),
        ("random_like", "RND203", None, None, "Random-like: why."),
        ("oversized", "SIZ215", None, None, "As large as the weights: why."),
        ("trained", None, None, None, None),
        ("not_analysed", None, None, None, None),
    ],
)
def test_a_verdict_is_a_finding_of_one_rule_unless_it_is_good(verdict, rule, severity, confidence, message):
    rules = [each for each in WEIGHTS_RULES if verdict in getattr(each, "verdicts", ())]
    assert [each.id for each in rules] == ([] if rule is None else [rule])
    for each in rules:
        seen = observe_verdict(each.verdicts, verdict, "why")
        assert (seen.severity, seen.confidence, seen.message) == (severity, confidence, message)
        assert [(ground.source, ground.says) for ground in seen.evidence] == [("the weights file", "why")]


# --- rules -------------------------------------------------------------------------------------------------------

LOSES = report(
    module("mild", base=compared(cosine=0.8), relative_frobenius=1e-3),
    module("worst", base=compared(cosine=0.4, changed=0.25), relative_frobenius=1e-3),
    module("fine", base=compared(cosine=0.99), relative_frobenius=1e-2),
    base=beside(3),
)


def stored(*kinds):
    rows = [module(f"m{i}", relative_frobenius=0.1, base=compared(stored=kind)) for i, kind in enumerate(kinds)]
    return report(*rows, base=beside(2, relative_frobenius=0.5))


def holds(held, error=0.01, n=4):
    rows = [module(f"m{i}", base=compared(cosine=0.99, held=held), relative_frobenius=1e-2) for i in range(n)]
    other = module("other", base=compared(cosine=0.99), relative_frobenius=1e-2)
    return report(*rows, other, base=beside(n, held=held, held_error=error))


def in_codes(changed):
    base = beside(codes={"NF4": 1}, in_codes_changed_median=changed, in_codes_cosine_median=0.25)
    return report(module(base=compared(cosine=0.99), relative_frobenius=1e-2), base=base)


@every(
    ("rule", "full", "severity", "values", "says"),
    [
        ("SIZ215", sized(3.1), "warning", {"update_size": 3.1}, ""),
        ("SIZ215", sized(3.0), "info", {"update_size": 3.0}, ""),
        ("SIZ215", sized(1.21), "info", {"update_size": 1.21}, ""),
        ("SIZ215", sized(3.1, base=beside(0)), "warning", {"update_size": 3.1}, ""),  # nothing was compared
        ("NUM209", report(module(), not_analysed=[*left(LeftoverReason.FACTOR_MISSING, 4), *left(None)]), "error",
         {"modules": 4}, "4 modules have one factor only (first: layers.0.q): the file is incomplete."),
        ("SCL206", report(module("a"), module("b", r=16, config_r=4)), "warning", {"modules": 1},
         "(first: b, r=16 on disk, 4 by the config)"),
        ("SCL207", report(module(), unmatched_patterns=["a", "b", "c", "d"]), "warning",
         {"patterns": ["a", "b", "c", "d"]},
         "4 keys of rank_pattern or alpha_pattern match no module: 'a', 'b', 'c' and 1 more."),
        ("SCL207", report(module(), unmatched_patterns=["a"] * 21), "warning", {"patterns": ["a"] * 20}, ""),
        ("SCL207", report(module(), unmatched_patterns=["a", "b", "c"]), "warning", None, "'a', 'b', 'c'."),
        ("MRG210", LOSES, "warning", {"modules": 2, "worst": "worst"},
         ("Merging into bfloat16 would lose part of the update in 2 of 3 modules: in worst it changes 25% of its "
          "entries, and what the merge adds has cosine 0.40 with the update.")),
        ("MRG210", stored("BF16", "F32"), "warning", None, ""),
        ("MRG210", stored("F32", "F16"), "warning", None, ""),
        ("MRG210", stored("F32", "F32"), "info", None, ""),
        ("BAS211", report(module("a"), module("b"), base=beside(0, not_compared=missed(7))), "error",
         {"compared": 0, "not_compared": 7}, "m4: no weight 4 and 2 more."),
        ("BAS211", report(module("a"), module("b"), base=beside(1, not_compared=missed(7))), "warning",
         {"compared": 1, "not_compared": 7}, "Only 1 of 9 modules"),
        ("BAS211", report(module("a"), module("m0"), base=beside(0, not_compared=missed(7, "no such"))), "error",
         None, "None of 8 modules could be compared with the base: m0 and 6 more: no such."),
        ("BAS211", report(module("m0"), base=beside(0, not_compared=missed(2, "in such", "damaged_codes"))),
         "error", None, "m0 and 1 more: in such"),
        ("BAS217", report(module("m0"), base=beside(0, not_compared=missed(2, "in such", "unread_codes"))),
         "info", None, "m0 and 1 more not compared with the base, whose weights are in such."),
        *(("BAS216", holds(held), "warning", {"held": held},
           f"hold this update once already (<W, dW> / norm(dW)^2 is {held:.2f})") for held in (1.0, 1.25, 0.75)),
        ("BAS216", holds(1.75), "warning", {"held": 1.75}, "hold this update twice already"),
        ("BAS216", holds(1.0, 0.25 / 3), "warning", {"held": 1.0}, ""),
        ("BAS218", in_codes(0.49), "info", {"lost": 0.51, "cosine": 0.25}, ""),
        ("BAS218", in_codes(0.0), "info", {"lost": 1.0, "cosine": 0.25}, ""),
    ],
)  # fmt: skip
def test_a_rule_speaks_of_its_case_alone(rule, full, severity, values, says):
    findings = found(full)
    assert set(findings) == {rule}
    assert findings[rule].severity == severity
    assert values is None or findings[rule].values == values
    assert says in findings[rule].message


@every(
    ("rule", "full"),
    [
        ("SIZ215", sized(1.2)),
        ("SIZ215", sized(31.0, base=beside(relative_frobenius=0.5))),  # beside its base the relative size decides
        *(("NUM209", report(module(), not_analysed=left(cause)))
          for cause in (*set(LeftoverReason) - {LeftoverReason.FACTOR_MISSING}, None)),
        ("MRG210", report(*LOSES.modules)),
        *(("BAS216", holds(held)) for held in (1.26, 0.74, 2.26, 3.0, 0.0, -1.0)),
        ("BAS216", holds(1.0, 0.0834)),
        ("BAS216", holds(1.0, None)),
        ("BAS216", holds(1.0, n=3)),
        ("BAS218", in_codes(0.5)),
    ],
)  # fmt: skip
def test_a_rule_is_silent_beside_its_threshold(rule, full):
    assert found(full) == {}, rule


LACKING = report(ledger=[], health=health([], peft_type="IA3"))
NO_MODULE = "no module was analysed: peft_type IA3 is recognised, not analysed"


@every(
    ("rules", "full", "reason"),
    [
        ("NUM201 TRN202 SIZ215 SCL206 SCL207", LACKING, NO_MODULE),
        ("NUM209", LACKING, "no tensor was read"),
        ("MRG210 BAS211", report(*alike(4)), "no base model was given (--base)"),
        ("RND203", LACKING, "needs 4 measured modules of rank 4 or more; there are 0"),
        ("RND203", report(*alike(3)), "needs 4 measured modules of rank 4 or more; there are 3"),
        ("RND203", report(*alike(4, r=3)), "needs 4 measured modules of rank 4 or more; there are 0"),
        ("RND203", report(*alike(4), optimizer="muon"),
         "muon orthogonalises its steps: lora_B is flat whatever it learnt"),
        ("SCL207", report(module(), format="kohya"),
         "PEFT's LoraConfig does not describe it (kohya, no type)"),
        ("SCL207", report(module(), peft_type="LOHA"), "PEFT's LoraConfig does not describe it (peft, LOHA)"),
        ("BAS216", holds(1.0, n=3), "needs 4 modules of plain LoRA beside their base's weights; there are 3"),
    ],
)  # fmt: skip
def test_a_rule_without_its_input_says_which_it_is(rules, full, reason):
    lacking = reasons(full)
    assert {rule: lacking.get(rule) for rule in rules.split()} == dict.fromkeys(rules.split(), reason)


def test_what_was_given_is_judged():
    assert set(reasons(LACKING)) == {rule.id for rule in WEIGHTS_RULES}
    assert set(reasons(report(*alike(4)))) == {"MRG210", "BAS211", "BAS216", "BAS217", "BAS218"}
    assert set(reasons(report(*alike(4), base=beside(4)))) == {"BAS216", "BAS218"}
    no_update = report(module(), base=beside(codes={"NF4": 1}, in_codes_changed_median=0.0))
    assert "BAS218" in reasons(no_update)  # nothing lost


def test_beside_its_base_intruders_are_a_second_witness_of_the_size():
    verdict = health([module()], relative_frobenius=29.0)
    bases = [beside(relative_frobenius=29.0, intruder_total=n) for n in (None, 0, 4)]
    findings = [found(sized(1.0, base=base, health=verdict))["SIZ215"] for base in bases]
    assert [(f.severity, f.confidence) for f in findings] == [("error", 0.9), ("error", 0.9), ("error", 0.97)]
    assert "4 intruder dimensions" in findings[2].evidence[1].says
    assert [found(sized(size))["SIZ215"].confidence for size in (3.1, 3.0)] == [0.6, 0.5]


@every(
    ("compared_", "cause", "action"),
    [
        (0, None, "Give the base model this adapter was trained on"),
        (1, None, "See why each of these has no weight in the base"),
        (0, "damaged_codes", "Get the base's files again"),
        (0, "unread_codes", "Compare with the same model in 16 bits"),
    ],
)
def test_what_to_do_about_a_base_follows_from_why_it_does_not_fit(compared_, cause, action):
    (finding,) = found(report(module(), base=beside(compared_, not_compared=missed(2, cause=cause)))).values()
    assert finding.action.startswith(action)


@every(
    ("dtype", "relative", "cosine", "risky"),
    [
        ("bfloat16", 2.9e-3, 0.95, True),
        ("bfloat16", 3e-3, 0.95, False),
        ("bfloat16", 1.0, 0.899, True),
        ("bfloat16", 1.0, 0.9, False),
        ("float16", 2.9e-4, 0.99, True),
        ("float16", 3e-4, 0.99, False),
        ("bfloat16", 0.0, None, False),
        ("bfloat16", 0.0, 0.95, False),
        ("bfloat16", 2.9e-3, 0.0, True),  # nothing of it arrives
        ("bfloat16", "NaN", 0.1, False),
    ],
)
def test_a_merge_is_at_risk_by_size_or_by_what_it_realises(dtype, relative, cosine, risky):
    assert at_risk(module(base=compared(dtype=dtype, cosine=cosine), relative_frobenius=relative)) == risky


@every(("norm", "config", "read"), [(8.2e-4, "c", False), (8.4e-4, "c", True), (8.2e-4, None, True)])
def test_a_low_utilization_is_not_read_of_an_update_that_is_almost_zero(norm, config, read):
    modules = [module("a", frobenius_norm=1e-5), module("b", frobenius_norm=norm)]
    summary = AuditSummary(total_lora_params=1, n_layers=2, utilization_mean=0.1)
    full = report(*modules, summary=summary, health=health(alike(2)), config_path=config)  # without one: of no scale
    assert ("UTL204" in found(full)) is read
