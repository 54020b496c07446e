"""The command ``gradience audit``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt
from cyclopts.validators import Number

from gradience.cli import options as opt
from gradience.cli.output import COULD_NOT_JUDGE, draws_blocks, on_terminal
from gradience.device import prepare_jax
from gradience.errors import AdapterError
from gradience.render.audit import View, audit_text
from gradience.render.plots import Quantity
from gradience.schema.reports import SourceLocation


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """What the text shows.

    Parameters
    ----------
    top_wasteful:
        How many of the least utilised modules to list.
    layers:
        List every layer and every module, each with its random null and its scale.
    scales:
        Show how each module's scaling is derived: alpha, rank, the patterns that matched.
    rank_rules:
        Show the ranks that other rules suggest, and the modules on which they disagree.
    heatmap:
        Draw a map of the update, layer x module.
    heatmap_of:
        The quantity that the map shows.
    """

    top_wasteful: NonNegativeInt = 3
    layers: opt.Flag = False
    scales: opt.Flag = False
    rank_rules: opt.Flag = False
    heatmap: opt.Flag = False
    heatmap_of: Quantity = "norm"
    verbose: opt.Details = False

    def view(self) -> View:
        """Return these options as the view for this terminal."""
        chosen = asdict(self)
        quantity = chosen.pop("heatmap_of")
        return View(**chosen | {"heatmap": quantity if self.heatmap else None}, unicode=draws_blocks())


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """What is compared with the base model.

    Parameters
    ----------
    intruders:
        With --base, count intruder dimensions (arXiv 2410.21228). Slower.
    intruder_k:
        How many leading singular vectors of W + dW to examine.
    intruder_eps:
        A vector that overlaps less than this with each singular vector of W is an intruder.
    norms_cache:
        Keep norms of base weights in the user's cache folder until the base's files change.
    """

    base: opt.Base = None
    intruders: opt.Flag = False
    intruder_k: PositiveInt = 10
    intruder_eps: Annotated[float, Parameter(validator=Number(gt=0.0, lte=1.0))] = 0.5
    norms_cache: Annotated[bool, Parameter(name="--cache")] = True


_DEFAULT_VIEW = ViewOptions()
_NO_BASE = BaseOptions()


def audit(
    path: Path | None = None,
    /,
    *,
    peft_dir: opt.PeftDir = None,
    adapter_config: opt.AdapterConfig = None,
    weights: opt.WeightsFile = None,
    showing: Annotated[ViewOptions, Parameter(name="*")] = _DEFAULT_VIEW,
    suggest_per_layer: opt.Flag = False,
    top_singular_values: NonNegativeInt = 0,
    beside: Annotated[BaseOptions, Parameter(name="*")] = _NO_BASE,
    against: Path | None = None,
    seed: opt.Seed = 0,
    append: Path | None = None,
    device: opt.Device = "auto",
    options: opt.Options = opt.DEFAULT_OPTIONS,
) -> int:
    """Analyse a trained adapter for waste, and for what is wrong with it.

    With --base the report adds UDR, SDI, relative norms and what a 16-bit merge keeps; the base is streamed.

    Parameters
    ----------
    path:
        The adapter's folder, or its weights file.
    suggest_per_layer:
        Suggest a rank for each module, as rank_pattern and alpha_pattern of peft.LoraConfig.
    top_singular_values:
        How many singular values per module to put into the JSON.
    against:
        A fleet (see gradience fleet audit): where this adapter stands among its healthy ones, in percentiles.
    append:
        A run.jsonl to which the audit is added, as a metrics event under the run's own run_id.
    """
    resolved, folder = options.resolved(), opt.given_once("audit", path, peft_dir)
    if beside.base is None and (beside.intruders or showing.view().heatmap == "udr"):
        raise AdapterError("this needs the base model's weights", advice="give them with --base PATH")
    prepare_jax(device, serial_kernels=beside.base is None)
    from gradience.judge.audit import audit_adapter  # imports jax, after its environment is set

    report = audit_adapter(
        folder,
        adapter_config=adapter_config,
        weights=weights,
        top_singular_values=top_singular_values,
        suggest_per_layer=suggest_per_layer,
        against=against,
        seed=seed,
        progress=on_terminal("base"),
        **asdict(beside),
        **resolved.rules,
    )
    if append is not None:
        from gradience.judge.audit import append_audit  # numpy, after its environment is set

        append_audit(append, report)
    shown = resolved.show(
        report,
        lambda it: audit_text(it, showing.view()),
        report.findings,
        groups=("weights", "weights_and_base"),
        locations=lambda: [SourceLocation(report.weights_path)] * len(report.findings),
        not_run=report.not_run,
    )
    return COULD_NOT_JUDGE if report.health.verdict == "not_analysed" else shown
