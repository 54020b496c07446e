"""Which rules a verb applies: those selected, less those ignored, by id or by the beginning of one.

An excluded rule is listed as not judged, with the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from gradience.configs.preferences import Preferences, read_preferences
from gradience.errors import ConfigError
from gradience.schema.findings import Excluded, Finding, NotRun


def left_out(known: Sequence[str], wanted: Collection[str], unwanted: Collection[str]) -> dict[str, str]:
    """The known ids that are not to be applied, each with the reason for the report.

    >>> left_out(["LR001", "LR002", "TGT001"], ["LR001", "LR002"], ["LR002"])
    {'LR002': 'ignored on request', 'TGT001': 'not selected'}
    """
    reasons = {rule_id: Excluded.NOT_SELECTED.value for rule_id in known if rule_id not in wanted}
    return {
        rule_id: reasons.get(rule_id, Excluded.IGNORED.value) for rule_id in known if rule_id in {*reasons, *unwanted}
    }


def matching(known: Sequence[str], entries: Iterable[str], option: str) -> list[str]:
    """The ids that begin with one of the entries, in any case; `ALL` is every id.

    Raises:
        ConfigError: an entry is the beginning of no id.
    """
    asked = [entry.strip().upper() for given in entries for entry in given.split(",")]
    strange = [entry for entry in asked if not _hits(known, entry)]
    if strange:
        names = ", ".join(entry or "an empty text" for entry in strange)
        raise ConfigError(f"--{option}: no rule is called {names}", advice=f"rules: {' '.join(known)}")
    return [rule_id for rule_id in known if any(rule_id in _hits(known, entry) for entry in asked)]


def _hits(known: Sequence[str], entry: str) -> list[str]:
    if entry == "ALL":
        return list(known)
    return [rule_id for rule_id in known if entry and rule_id.startswith(entry)]


def without(
    findings: Iterable[Finding], not_run: Iterable[NotRun], reasons: Mapping[str, str]
) -> tuple[list[Finding], list[NotRun]]:
    """The findings and the rules not run, less those left out; these are among the latter with their reason."""
    kept = [finding for finding in findings if finding.id not in reasons]
    others = [item for item in not_run if item.id not in reasons]
    return kept, others + [NotRun(id=rule_id, reason=reason) for rule_id, reason in reasons.items()]


def excluded_rules(
    ids: Sequence[str],
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: str | PathLike[str] | None = None,
) -> dict[str, str]:
    """The rules that a verb is not to apply, each with the reason for its report.

    Args:
        ids: the rules that the verb has.
        select: ids of them, or beginnings of ids, to apply; all by default.
        ignore: ids, or beginnings of ids, to leave out.
        settings: a settings file, whose `select` and `ignore` apply where the arguments of that name are empty. It may
            name the rules of other verbs too.

    Raises:
        ConfigError: the file cannot be read, or an entry is the beginning of no id.
    """
    given = {"select": list(select), "ignore": list(ignore)}
    filed = Preferences() if settings is None else read_preferences(Path(settings))
    wanted = _matching(ids, given["select"], filed.select, "select") if given["select"] or filed.select else ids
    return left_out(ids, wanted, _matching(ids, given["ignore"], filed.ignore, "ignore"))


def _matching(ids: Sequence[str], given: list[str], filed: list[str], option: str) -> list[str]:
    if given or not filed:
        return matching(ids, given, option)
    from gradience.rules.registry import all_ids  # noqa: PLC0415  # every rule there is, for those with settings

    return matching(all_ids(), filed, option)
