"""``gradience audit``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt
from cyclopts.validators import Number

from gradience.cli.options import NONE_GIVEN, Options
from gradience.cli.output import (
    Format,
    draws_blocks,
    on_terminal,
    prepare_jax,
    print_document,
    print_for_programs,
    print_text,
)
from gradience.errors import AdapterError
from gradience.render.audit import View, audit_text
from gradience.render.plots import Quantity
from gradience.schema.audit import AuditReport
from gradience.schema.findings import RuleGroup
from gradience.schema.reports import SourceLocation

_Switch = Parameter(negative=())


@dataclass(frozen=True, kw_only=True)
class Showing:
    """The options.

    Parameters
    ----------
    top_wasteful:
        How many of the least utilised modules to list.
    layers:
        List every layer and every module, with the random null and the scale beside each.
    scales:
        Show how each module's scaling comes about: alpha, rank, the patterns that matched.
    rank_rules:
        Show what other rules for a rank say, and on which modules they disagree, and why.
    heatmap:
        Draw a map of the update, layer x module.
    heatmap_of:
        What the map shows.
    verbose:
        Show the grounds of each finding, and all that was not analysed.
    """

    top_wasteful: NonNegativeInt = 5
    layers: Annotated[bool, _Switch] = False
    scales: Annotated[bool, _Switch] = False
    rank_rules: Annotated[bool, _Switch] = False
    heatmap: Annotated[bool, _Switch] = False
    heatmap_of: Quantity = "norm"
    verbose: Annotated[bool, Parameter(alias="-v", negative=())] = False

    def view(self) -> View:
        """Return what to show on this terminal."""
        return View(
            top_wasteful=self.top_wasteful,
            layers=self.layers,
            scales=self.scales,
            rank_rules=self.rank_rules,
            heatmap=self.heatmap_of if self.heatmap else None,
            unicode=draws_blocks(),
            verbose=self.verbose,
        )


_AS_USUAL = Showing()


def audit(
    path: Path | None = None,
    /,
    *,
    peft_dir: Path | None = None,
    adapter_config: Path | None = None,
    weights: Path | None = None,
    showing: Annotated[Showing, Parameter(name="*")] = _AS_USUAL,
    suggest_per_layer: Annotated[bool, Parameter(negative=())] = False,
    top_singular_values: NonNegativeInt = 0,
    base: Path | None = None,
    intruders: Annotated[bool, Parameter(negative=())] = False,
    intruder_k: PositiveInt = 10,
    intruder_eps: Annotated[float, Parameter(validator=Number(gt=0.0, lte=1.0))] = 0.5,
    cache: bool = True,
    seed: NonNegativeInt = 0,
    append: Path | None = None,
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto",
    judging: Options = NONE_GIVEN,
) -> int:
    """Analyse a trained adapter for waste, and for what is wrong with it.

    Parameters
    ----------
    path:
        The adapter's folder, or its weights file.
    peft_dir:
        The same, as an option.
    adapter_config:
        An adapter_config.json elsewhere than beside the weights.
    weights:
        A weights file of another name.
    suggest_per_layer:
        Suggest a rank for each module, as rank_pattern and alpha_pattern of peft.LoraConfig.
    top_singular_values:
        How many singular values per module the JSON holds.
    base:
        The base model: a folder with safetensors, or organisation/name in the hub's local cache. Adds UDR, SDI,
        relative norms and what a 16-bit merge keeps. Streamed; nothing is downloaded.
    intruders:
        With --base, count intruder dimensions (arXiv 2410.21228). Slower.
    intruder_k:
        How many leading singular vectors of W + dW to look at.
    intruder_eps:
        A vector with less overlap than this with each of W's is an intruder.
    cache:
        Keep norms of base weights, by the base's identity, in the user's cache folder.
    seed:
        Of the iterative methods.
    append:
        A run.jsonl to add the audit to, as a metrics event under the run's own run_id.
    device:
        Where the spectral core runs.
    """
    settled, folder = judging.settled(), _one_of(path, peft_dir)
    if base is None and (intruders or showing.view().heatmap == "udr"):
        raise AdapterError("this needs the base model's weights", advice="give them with --base PATH")
    prepare_jax(device, serial_kernels=base is None)
    from gradience.verbs.audit import audit_adapter  # noqa: PLC0415  # imports jax, after its environment is set

    report = audit_adapter(
        folder,
        adapter_config=adapter_config,
        weights=weights,
        top_singular_values=top_singular_values,
        suggest_per_layer=suggest_per_layer,
        base=base,
        intruders=intruders,
        intruder_k=intruder_k,
        intruder_eps=intruder_eps,
        norms_cache=cache,
        seed=seed,
        progress=on_terminal("base"),
        select=settled.select,
        ignore=settled.ignore,
        settings=settled.settings,
    )
    if append is not None:
        from gradience.verbs.audit.append import append_audit  # noqa: PLC0415  # the recorder, only where a log is written

        append_audit(append, report)
    _show(report, settled.format, showing.view())
    return settled.exit_code(report.findings)


def _show(report: AuditReport, kind: Format, view: View) -> None:
    if kind == "json":
        print_document(report)
    elif kind == "text":
        print_text(audit_text(report, view))
    else:
        locations = [SourceLocation(report.weights_path)] * len(report.findings)
        groups: tuple[RuleGroup, ...] = ("weights", "weights_and_base")
        print_for_programs(kind, report.findings, locations=locations, groups=groups, not_run=report.not_run)


def _one_of(path: Path | None, peft_dir: Path | None) -> Path:
    if (path is None) == (peft_dir is None):
        message = "give the adapter's folder once: 'gradience audit DIR' or '--peft-dir DIR'"
        raise AdapterError(message)
    return path or peft_dir or Path()
