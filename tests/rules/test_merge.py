"""The rules of a merge check on its numbers alone: each at its threshold, and just beside it."""

from __future__ import annotations

from tables import every

from gradience.rules import judge
from gradience.rules.merge import MERGE_RULES
from gradience.schema.compare import ComparedAdapter
from gradience.schema.merge import (
    MERGE_CHECK_SCHEMA_ID,
    CheckedAdapter,
    CheckedModule,
    CheckedPair,
    Kept,
    MergeCheckReport,
    SignConflict,
)


def adapter(name="a", *, base="m", other=0.5, weight=1.0, obstacles=()):
    told = ComparedAdapter(
        name=name, path=name, format="peft", base_model=base, modules=1, rank=[8, 8], scaling=[2.0, 2.0]
    )
    kept = Kept(coefficient=1.0, other=other)
    return CheckedAdapter(adapter=told, weight=weight, weighted_norm=1.0, kept=kept, obstacles=list(obstacles))


def pair(**fields):
    return CheckedPair(first="a", second="b", **fields)


def signs(cancelled, error=0.0):
    return SignConflict(
        conflict=0.4, cancelled=cancelled, conflict_error=0.0, cancelled_error=error, entries=9, of=9
    )  # fmt: skip


def report(*pairs, **fields):
    given = {"adapters": [adapter("a"), adapter("b")], "modules": [CheckedModule(name="m")], **fields}
    return MergeCheckReport(schema=MERGE_CHECK_SCHEMA_ID, pairs=list(pairs), **given)


def found(full):
    return {item.id: item for item in judge(MERGE_RULES, full).findings}


def reasons(full):
    return {item.id: item.reason for item in judge(MERGE_RULES, full).not_run}


@every(
    ("full", "rule", "speaks"),
    [
        (report(pair(cosine=-0.1)), "MRG401", True),
        (report(pair(cosine=-0.099)), "MRG401", False),
        (report(adapters=[adapter("a", base="m"), adapter("b", base="n")]), "MRG407", True),
        (report(adapters=[adapter("a", base="m"), adapter("b", base="m")]), "MRG407", False),
        (report(adapters=[adapter("a", obstacles=["it is DoRA", "and more"])]), "MRG408", True),
        (report(pair()), "MRG401", False),
    ],
)
def test_a_rule_speaks_at_its_threshold_and_is_silent_beside_it(full, rule, speaks):
    assert (rule in found(full)) is speaks


def test_findings_have_the_numbers_of_their_case():
    full = report(
        pair(cosine=-0.456),
        adapters=[adapter("a", base="n", other=0.875, weight=0.5), adapter("b", obstacles=["it is DoRA", "other"])],
        signs=signs(0.625),
    )
    seen = {rule: (item.message, item.values) for rule, item in found(full).items()}
    assert seen == {
        "MRG401": (
            "a and b point against each other: cosine -0.46 of their weighted updates.",
            {"first": "a", "second": "b", "cosine": -0.456},
        ),
        "MRG407": ("The configs name 2 base models: m, n.", {"base_models": ["m", "n"]}),
        "MRG408": ("b is not plain LoRA: it is DoRA.", {"adapter": "b", "obstacles": ["it is DoRA", "other"]}),
    }


def test_opposed_updates_are_said_and_twins_are_not():
    assert set(found(report(pair(cosine=-0.95)))) == {"MRG401"}
    assert set(found(report(pair(cosine=0.95)))) == set()


def test_without_a_module_in_common_what_compares_them_is_not_judged():
    lacking = reasons(report(modules=[]))
    assert lacking == {"MRG401": "no module in two of the adapters"}
    assert reasons(report(signs=signs(0.1))) == {}


def test_configs_without_a_base_are_counted_and_those_with_one_are_still_compared():
    full = report(
        adapters=[adapter("a", base="m"), adapter("b", base=None), adapter("c", base="n"), adapter("d", base="")]
    )
    assert set(found(full)) == {"MRG407"}
    assert reasons(full) == {"MRG407": "2 of the configs name no base model"}
    assert reasons(report(adapters=[adapter("a", base="m"), adapter("b", base="m")])) == {}
