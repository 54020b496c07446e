"""A rule on what is served speaks of its own verdict, in the report's words and numbers, and of no other."""

from __future__ import annotations

from typing import get_args

from gradience.rules import judge
from gradience.rules.served import SERVED_RULES
from gradience.schema.receipt import VERIFY_SERVED_SCHEMA_ID, ServedVerdict, VerifyServedReport

RULE_OF = {
    "the_base": "RCP501",
    "part_missing": "RCP502",
    "wrong_scale": "RCP503",
    "another_checkpoint": "RCP504",
    "another_adapter": "RCP505",
    "tokens_or_template_differ": "RCP506",
}


def test_each_verdict_that_is_wrong_has_its_rule():
    for verdict in get_args(ServedVerdict):
        report = VerifyServedReport(
            schema=VERIFY_SERVED_SCHEMA_ID,
            receipt="receipt.json",
            target="there",
            kind="endpoint",
            how="asked",
            verdict=verdict,
            story="It is so.",
            residual=0.5,
            factor=2.0,
        )
        found = judge(SERVED_RULES, report).findings
        assert [one.id for one in found] == ([RULE_OF[verdict]] if verdict in RULE_OF else [])
        assert [(one.message, one.severity) for one in found] == [("It is so.", "error")] * len(found)
        assert all(one.values == {"residual": 0.5, "factor": 2.0} for one in found)
