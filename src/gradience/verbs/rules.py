"""The command ``gradience rules``."""

from __future__ import annotations

from gradience.commands import options as opt
from gradience.commands.output import DONE, print_document, print_text
from gradience.render.findings import rule_text, rules_text


def rules(rule_id: str | None = None, /, *, md: opt.Flag = False, json: opt.AsJson = False) -> int:
    """List every rule, the rules of a group or with a common prefix, or explain one.

    Parameters
    ----------
    rule_id:
        An id such as LR001, or a prefix of ids such as LR; case does not matter. Or a group: config, base, serve, data,
        log, weights, weights_and_base, joins, merge, served.
    md:
        Print them as a page of Markdown: when each reports, only where, and its thresholds.
    """
    from gradience.rules import list_rules  # all rules, for those who ask

    report = list_rules(rule_id)
    if json:
        print_document(report)
    elif md:
        from gradience.render.rules import rules_markdown  # for those who ask

        print_text(rules_markdown(report.rules))
    elif len(report.rules) == 1:
        print_text(rule_text(report.rules[0]))
    else:
        print_text(rules_text(report))
    return DONE
