"""What a server answers, beside what its engine is known to make of the adapter: which foretold loss is the case."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec

from gradience.blocks import counted
from gradience.errors import AdapterError, ConfigError
from gradience.io import Progress
from gradience.rules import judge
from gradience.rules.config.serving import ENGINES, Loss, engine_of, known_engines, losses, unjudged
from gradience.rules.served import SERVED_RULES
from gradience.schema import as_float
from gradience.schema.receipt import VerifyServedReport
from gradience.verbs.check.run import facts_to_serve
from gradience.verbs.receipt.endpoint import Endpoint
from gradience.verbs.receipt.run import verify_served
from gradience.verbs.verify.options import AnswerOptions

_NEAR: Final = 0.05  # by which a factor that was found may miss the one foretold: it is interpolated
_UNTRIED: Final = {"another_checkpoint", "another_adapter"}
_TOLD: Final = {"the_base", "part_missing", "wrong_scale", *_UNTRIED}
_ASK: Final = "The server does not say which engine it is: --serve ENGINE@VERSION compares with what it leaves out."
_WITHOUT: Final = "--adapter and --base tell whether the server's engine is known to do this to the adapter."


def verify_asked(
    target: str, answers: AnswerOptions, *, base: Path | None, adapter: Path | None, progress: Progress | None
) -> VerifyServedReport:
    """Return what a target answers with; of a server also which of the losses that are foretold of its engine that is.

    Args:
        target: a folder, or a server's address.
        answers: the receipt, the name under which the server serves the adapter, its engine and its flags.
        base: the receipt's base.
        adapter: the receipt's adapter; without it nothing is foretold.
        progress: called with (steps done, steps in all, name of the step).

    Raises:
        GradienceError: as `verify_served` raises; or the engine is not known, or nothing can be foretold of it.
    """
    is_served = target.startswith(("http://", "https://"))
    if (answers.serve or answers.server_flags) and (not is_served or adapter is None):
        raise AdapterError(
            "--serve is of a server and of the adapter that it serves",
            advice="give http://host:port or a command with {port}, --adapter and --base",
        )
    engine, around = _named(answers.serve), None
    if is_served and adapter is not None:
        engine = engine or Endpoint(target, model=answers.model, timeout=answers.timeout).engine()
        if engine:
            around = facts_to_serve(adapter, base, engine=engine, server_flags=answers.server_flags)
    foretold = [] if around is None else list(losses(engine, around))
    dropped = frozenset[str]().union(*(one.modules for one in foretold if one.effect == "dropped"))
    report = verify_served(
        answers.receipt or "",
        target,
        base=base,
        adapter=adapter,
        model=answers.model,
        timeout=answers.timeout,
        foretold={f"what {_title(engine)} leaves out": dropped} if dropped else None,
        progress=progress,
    )
    if not is_served or report.verdict not in _TOLD:
        return report
    if around is None:
        return msgspec.structs.replace(report, notes=[*report.notes, _WITHOUT if adapter is None else _ASK])
    held = frozenset(one for group in (around.around.groups or {}).values() for one in group)
    cause = unjudged(engine) or _cause(report, engine, foretold, held - dropped)
    report = msgspec.structs.replace(report, engine=engine, cause=f"{cause[:1].upper()}{cause[1:]}")
    return msgspec.structs.replace(report, findings=judge(SERVED_RULES, report).findings)


def _named(serve: str | None) -> str:
    """The one engine that is named; empty if none is."""
    if serve is None:
        return ""
    named = known_engines([serve])
    if len(named) > 1:
        raise ConfigError(f"--serve names {len(named)} engines, and one serves", advice="name one")
    return named[0]


def _title(engine: str) -> str:
    return ENGINES[engine_of(engine)].title


def _cause(report: VerifyServedReport, engine: str, foretold: Sequence[Loss], rest: Collection[str]) -> str:
    """The foretold loss that the verdict is, in words; or that none is.

    Args:
        report: what was read.
        engine: its name.
        foretold: what is known of it.
        rest: the modules that it is not known to leave out.
    """
    dropped, misread, refused = (
        [one for one in foretold if one.effect == effect] for effect in ("dropped", "misread", "refused")
    )
    dropped.sort(key=lambda one: -len(one.modules))
    if report.verdict == "wrong_scale" and (scaled := [one for one in misread if one.factor]):
        found = as_float(report.factor or 0.0)
        one = min(scaled, key=lambda one: abs(found / (one.factor or 1.0) - 1.0))
        near = abs(found / (one.factor or 1.0) - 1.0) < _NEAR
        return f"Foretold{'' if near else f' is another scale, {one.factor:.3g} of its own'}: {one.words}"
    if report.verdict == "part_missing":
        missing = frozenset(report.missing)
        for one in dropped:
            if both := missing & one.modules:
                part = "" if both == missing else f" of {len(both)} of the {counted(len(missing), 'missing module')}"
                return f"Foretold{part}: {one.words}"
    if report.verdict == "the_base" and dropped:
        more = f". Nothing of the {counted(len(rest), 'other module')} shows on these rows either" if rest else ""
        return f"Foretold: {dropped[0].words}{more}"
    if report.verdict == "the_base" and refused:
        return f"Foretold is a refusal, so the adapter may not be loaded at all: {refused[0].words}"
    if report.verdict in _UNTRIED and misread:
        return f"Foretold, and not tried here: {misread[0].words}"
    return f"Nothing that is known of {_title(engine)} foretells this of the adapter (gradience check --serve {engine})"
