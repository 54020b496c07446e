"""Random reports, generated from their types, and the lines that the terminal and the pages show of each.

Every field of a report has a random value of its type, or its default, drawn by its own name, so that a new field
leaves the others as they are. So branches of a view are reached that no existing run reaches. The lines are pinned
in `golden/reports_drawn.json`. After an intended change,
`python tests/drawn_reports.py` writes the file again, and its diff shows the change as a reader sees it.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from msgspec import inspect

from gradience.render import findings
from gradience.schema import (
    audit as of_audit,
    compare as of_compare,
    diagnose as of_diagnose,
    document as of_findings,
    drift as of_drift,
    fleet as of_fleet,
    merge as of_merge,
    reports as of_reports,
    writing as of_writing,
)
from gradience.schema.events import SCHEMA_ID
from gradience.verbs.audit import view as audit
from gradience.verbs.bench import drift_view as drift, view as bench
from gradience.verbs.check import view as check
from gradience.verbs.compare import view as compare
from gradience.verbs.convert import view as convert
from gradience.verbs.diagnose import view as diagnose
from gradience.verbs.fleet import view as fleet
from gradience.verbs.merge import view as merge
from gradience.verbs.monitor import view as monitor
from gradience.verbs.report import page
from gradience.verbs.report.story import Story
from gradience.verbs.resize import view as resize
from gradience.verbs.runs import view as runs
from gradience.verbs.verify import view as verify

GOLDEN: Final = Path(__file__).parent / "golden" / "reports_drawn.json"
MODULES: Final = ("model.layers.3.self_attn.q_proj", "model.layers.10.mlp.up_proj")
WORDS: Final = ["alpha", *MODULES, "eval", "a b", "checkpoint-20"]
WHOLE: Final = [0, 1, 2, 3, 5, 8, 12, 33, 1234, 5_000_000]
NUMBERS: Final = [0.0, 1e-7, 3e-4, 0.02, 0.25, 0.5, 0.96, 1.0, 1.5, 3.25, 12.0, 1234.5]
DEEPEST: Final = 5

Make = Callable[[random.Random, Any, int], Any]


def _within(kind: Any, values: list[Any], rng: random.Random) -> Any:
    least = kind.ge if kind.ge is not None else -1e300
    most = kind.le if kind.le is not None else 1e300
    return rng.choice([value for value in values if least <= value <= most])


def _struct(rng: random.Random, kind: Any, depth: int) -> Any:
    given = {}
    seed = rng.random()
    for field in kind.fields:
        own = random.Random(f"{seed} {field.name}")  # noqa: S311  # an input repeats itself
        optional = not field.required
        if optional and (depth > DEEPEST or own.random() < 0.25):
            continue
        given[field.name] = made(own, field.type, depth + 1)
    return kind.cls(**given)


def _union(rng: random.Random, kind: Any, depth: int) -> Any:
    some = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
    if len(some) < len(kind.types) and rng.random() < 0.3:
        return None
    return made(rng, some[0] if rng.random() < 0.9 else rng.choice(some), depth)


def _some(rng: random.Random, kind: Any, make: Callable[[], Any]) -> list[Any]:
    length = max(rng.choice([0, 1, 2, 2, 3, 7]), kind.min_length or 0)
    return [make() for _ in range(length if kind.max_length is None else min(length, kind.max_length))]


MAKERS: Final[dict[type, Make]] = {
    inspect.BoolType: lambda rng, _, __: rng.random() < 0.5,
    inspect.IntType: lambda rng, kind, _: _within(kind, WHOLE, rng),
    inspect.FloatType: lambda rng, kind, _: _within(kind, NUMBERS, rng),
    inspect.StrType: lambda rng, kind, _: SCHEMA_ID if kind.pattern else rng.choice(WORDS),  # an event's format
    inspect.NoneType: lambda *_: None,
    inspect.AnyType: lambda rng, _, __: rng.choice([None, 3, 0.125, "word", [1, 2]]),
    inspect.LiteralType: lambda rng, kind, _: rng.choice(list(kind.values)),
    inspect.EnumType: lambda rng, kind, _: rng.choice(list(kind.cls)),
    inspect.UnionType: _union,
    inspect.StructType: _struct,
    inspect.Metadata: lambda rng, kind, depth: made(rng, kind.type, depth),
    inspect.ListType: lambda rng, kind, depth: _some(rng, kind, lambda: made(rng, kind.item_type, depth + 1)),
    inspect.VarTupleType: lambda rng, kind, depth: tuple(
        _some(rng, kind, lambda: made(rng, kind.item_type, depth + 1))
    ),
    inspect.TupleType: lambda rng, kind, depth: tuple(made(rng, one, depth + 1) for one in kind.item_types),
    inspect.DictType: lambda rng, kind, depth: dict(
        _some(rng, kind, lambda: (_key(rng, kind.key_type), made(rng, kind.value_type, depth + 1)))
    ),
}


def _key(rng: random.Random, kind: Any) -> Any:
    return rng.choice(["1", "2", "4", "8", *WORDS]) if isinstance(kind, inspect.StrType) else made(rng, kind, DEEPEST)


def made(rng: random.Random, kind: Any, depth: int = 0) -> Any:
    """A random value of a type."""
    return MAKERS[type(kind)](rng, kind, depth)


def report_of(kind: type, seed: str) -> Any:
    """A random report of a type. The same seed gives the same report."""
    return made(random.Random(seed), inspect.type_info(kind))  # noqa: S311  # an input repeats itself


def _page(html: str) -> str:
    """The text of a page, one line per element, without its style and the coordinates of its figures."""
    # Nor the ticks of a figure: which they are depends on matplotlib's version.
    ticks = r"<text[^>]*>\s*[-\d.e\u2212]+[kMBT]?\s*</text>"
    bare = re.sub(rf"<style.*?</style>|<script.*?</script>|{ticks}", "", html, flags=re.DOTALL)
    return "\n".join(text for part in re.split(r"<[^>]*>", bare) if (text := " ".join(part.split())))


def _html(page: Any) -> str:
    from gradience.blocks.html.pieces import page_html  # needs matplotlib

    return _page(page_html(page))


def _curves_page(report: Any) -> str:
    from gradience.verbs.runs.curves import curves_figure  # the same

    return _html(runs.curves_page(report, curves_figure(report.curves, report.metric)))


def _run_page(report: Any) -> str:
    return _page(page.report_html(Story(report)))


PAGES: Final = ("page of a fleet", "page of curves", "page of a run")
FULL: Final = audit.View(heatmap="norm", verbose=True, top_wasteful=2)
VIEWS: Final[dict[str, tuple[type, Callable[[Any], str]]]] = {
    "audit": (of_audit.AuditReport, audit.audit_text),
    "audit in full": (of_audit.AuditReport, lambda it: audit.audit_text(it, FULL)),
    "check": (of_reports.CheckReport, check.check_text),
    "check in full": (of_reports.CheckReport, lambda it: check.check_text(it, verbose=True)),
    "diagnose": (of_diagnose.DiagnoseReport, diagnose.diagnose_text),
    "diagnose in full": (of_diagnose.DiagnoseReport, lambda it: diagnose.diagnose_text(it, verbose=True)),
    "Markdown": (of_diagnose.DiagnoseReport, lambda it: page.report_markdown(Story(it))),
    "compare": (of_compare.CompareAdaptersReport, compare.compare_adapters_text),
    "compare in full": (
        of_compare.CompareAdaptersReport,
        lambda it: compare.compare_adapters_text(it, top=2, heatmap=True, verbose=True),
    ),
    "bench": (of_compare.BenchReport, bench.bench_text),
    "bench without --out": (of_drift.DriftReport, drift.drift_text),
    "monitor": (of_reports.MonitorReport, monitor.monitor_text),
    "monitor in full": (of_reports.MonitorReport, lambda it: monitor.monitor_text(it, verbose=True)),
    "merge": (of_merge.MergeReport, merge.merge_text),
    "merge in full": (of_merge.MergeReport, lambda it: merge.merge_text(it, verbose=True)),
    "merge --check": (of_merge.MergeCheckReport, merge.merge_check_text),
    "merge --check in full": (of_merge.MergeCheckReport, lambda it: merge.merge_check_text(it, verbose=True)),
    "verify": (of_merge.VerifyMergedReport, verify.verify_merged_text),
    "verify in full": (of_merge.VerifyMergedReport, lambda it: verify.verify_merged_text(it, verbose=True)),
    "resize": (of_writing.ResizeReport, resize.resize_text),
    "resize in full": (of_writing.ResizeReport, lambda it: resize.resize_text(it, verbose=True)),
    "convert": (of_writing.ConvertReport, convert.convert_text),
    "convert in full": (of_writing.ConvertReport, lambda it: convert.convert_text(it, verbose=True)),
    "fleet audit": (of_fleet.FleetAuditReport, fleet.fleet_audit_text),
    "fleet show": (of_fleet.FleetShowReport, fleet.fleet_show_text),
    "query": (of_fleet.QueryReport, fleet.query_text),
    "runs best": (of_fleet.RunsBestReport, runs.runs_best_text),
    "validate": (of_reports.ValidateReport, findings.validate_text),
    "import": (of_reports.ImportReport, findings.import_text),
    "rule": (of_findings.RuleCard, findings.rule_text),
    "page of a fleet": (of_fleet.FleetShowReport, lambda it: _html(fleet.fleet_page(it))),
    "page of curves": (of_fleet.RunsCurvesReport, _curves_page),
    "page of a run": (of_diagnose.DiagnoseReport, _run_page),
}
EACH: Final = 1  # reports of each view; most verbs have two views
LONGEST: Final = 110  # lines
TRIED: Final = 60  # seeds that are tried: some give reports that contradict themselves


def shown(name: str, seed: int) -> list[str]:
    """The lines that a view shows of the report of a seed."""
    kind, view = VIEWS[name]
    return view(report_of(kind, f"{name} {seed}")).split("\n")


def _kinds_of(lines: list[str]) -> set[str]:
    """The lines as far as the view writes them, without what the report has in them."""
    values = "|".join(re.escape(word) for word in sorted(WORDS, key=len, reverse=True))
    return {re.sub(rf"{values}|[\d.,e+-]+", "#", line) for line in lines}


def all_shown() -> dict[str, list[str]]:
    """The lines of those reports of each view that show most kinds of lines, of those that can be shown."""
    found: dict[str, list[str]] = {}
    for name in VIEWS:
        screens: dict[int, list[str]] = {}
        for seed in range(TRIED):
            with contextlib.suppress(ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
                screens[seed] = shown(name, seed)
        screens = {seed: lines for seed, lines in screens.items() if len(lines) <= LONGEST}
        seen: set[str] = set()
        for _ in range(EACH):
            seed = max(screens, key=lambda each: len(_kinds_of(screens[each]) - seen))
            seen |= _kinds_of(screens[seed])
            found[f"{name} {seed}"] = screens.pop(seed)
    return found


if __name__ == "__main__":
    sys.stdout.write(f"{GOLDEN}\n")
    GOLDEN.write_text(json.dumps(all_shown(), indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
