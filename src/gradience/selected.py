"""Which rules a caller and a project's settings leave out of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from gradience.configs.preferences import Preferences, read_preferences
from gradience.policy.selection import left_out, matching

__all__ = ["rules_left_out"]


def rules_left_out(
    ids: Sequence[str],
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    settings: str | PathLike[str] | None = None,
) -> dict[str, str]:
    """Return the rules that a verb is not to apply, each with the reason for its report.

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
    from gradience.policy.registry import all_ids  # noqa: PLC0415  # every rule there is, for those with settings

    return matching(all_ids(), filed, option)
