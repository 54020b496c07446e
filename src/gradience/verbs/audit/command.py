"""The command ``gradience audit``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt

from gradience.commands import options as opt
from gradience.commands.bar import on_terminal
from gradience.commands.output import NOT_DECIDED, draws_blocks
from gradience.device import prepare_jax
from gradience.ranges import SELDOM
from gradience.schema.reports import SourceLocation
from gradience.verbs.audit.options import AuditOptions
from gradience.verbs.audit.view import View, audit_text


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """What the text shows.

    Parameters
    ----------
    top_wasteful:
        How many of the least utilised modules to list.
    heatmap:
        Draw a map of the update's norm, layer x module.
    verbose:
        Show the evidence for each finding, which rules were skipped, how each module's scaling is derived, the ranks
        that other rules suggest, and every layer and module.
    """

    top_wasteful: NonNegativeInt = 3
    heatmap: bool = False
    verbose: Annotated[opt.Flag, Parameter(alias="-v")] = False

    def view(self) -> View:
        """Return these options as the view for this terminal."""
        return View(**asdict(self) | {"heatmap": "norm" if self.heatmap else None}, unicode=draws_blocks())


_VIEW = ViewOptions()
_AUDIT = AuditOptions()


def audit(
    path: Path | None = None,
    /,
    *,
    peft_dir: opt.PeftDir = None,
    files: opt.Files = opt.BESIDE,
    showing: Annotated[ViewOptions, opt.RECORD] = _VIEW,
    options: Annotated[AuditOptions, opt.RECORD] = _AUDIT,
    append: Annotated[Path | None, SELDOM] = None,
    device: opt.Device = "auto",
    judging: opt.Options = opt.DEFAULT_OPTIONS,
) -> int:
    """Analyse a trained adapter for waste, and for what is wrong with it.

    With --base the report adds UDR, SDI, relative norms and what a 16-bit merge keeps; the base is streamed.

    Parameters
    ----------
    path:
        The adapter's folder, or its weights file.
    append:
        A run.jsonl to which the audit is added, as a metrics event under the run's own run_id.
    """
    resolved, folder = judging.resolved(), opt.given_once("audit", path, peft_dir)
    prepare_jax(device, serial_kernels=options.base is None)
    from gradience.verbs.audit.run import audit_adapter  # imports jax, after its environment is set

    report = audit_adapter(
        folder,
        options=options,
        progress=on_terminal("audit"),
        **asdict(files),
        **resolved.rules,
    )
    if append is not None:
        from gradience.verbs.audit.run import append_audit  # numpy, after its environment is set

        append_audit(append, report)
    shown = resolved.show(
        report,
        lambda it: audit_text(it, showing.view()),
        report.findings,
        groups=("weights", "weights_and_base", "between", "joins"),
        locations=lambda: [SourceLocation(report.weights_path)] * len(report.findings),
        not_run=report.not_run,
    )
    return NOT_DECIDED if report.health.verdict == "not_analysed" else shown
