"""Where a written adapter came from: which files, by which operation, at what cost."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema import Fraction, Json, NonNegativeInt, about
from gradience.schema.audit import NotCompared
from gradience.schema.document import Report

PROVENANCE_SCHEMA_ID: Final = "gradience.vnext.provenance/v1"


class SourceFile(msgspec.Struct, kw_only=True, frozen=True):
    """One file that was read, by name and content; never by where it lay."""

    name: str
    bytes: NonNegativeInt
    digest: Annotated[str, about("`sha256:...`, or `etag:...` of a file in the hub's cache.")]


NonNegative: TypeAlias = Annotated[float, Meta(ge=0.0)]
PredictedKl: TypeAlias = Annotated[
    NonNegative | None, about("KL by what was left out of this module alone, as predicted; null without calibration.")
]


class ModuleChange(msgspec.Struct, kw_only=True, frozen=True):
    """What became of one module's update."""

    name: str
    rank_before: NonNegativeInt
    rank_after: NonNegativeInt
    relative_error: Annotated[
        Fraction | None, about("Frobenius norm of what was left out over that of the update; null where it is zero.")
    ] = None
    kl_predicted: PredictedKl = None


class Calibration(msgspec.Struct, kw_only=True, frozen=True):
    """How an adapter was cut by what it does to a model's outputs, and what that changed on other inputs.

    KL is that of the smaller adapter's output distribution from the whole one's, in nats per prediction.
    """

    pieces: Annotated[
        Literal["two-sided", "svd"],
        about(
            "`two-sided`: those of H^(1/2) G^(1/2), with the second moments of what goes into a module's "
            "factors and of what comes back to them. `svd`: those of s B A itself."
        ),
    ]
    seed: Annotated[NonNegativeInt, about("Of the choice of inputs and of the labels drawn.")]
    inputs: Annotated[NonNegativeInt, about("Inputs that the pieces were chosen by.")]
    predictions: Annotated[NonNegativeInt, about("Their predictions.")]
    digest: Annotated[str, about("`sha256:...` of their token ids.")]
    kl_predicted: Annotated[
        NonNegative, about("By the pieces left out, on the inputs they were chosen by: too low as a rule.")
    ]
    kl: Annotated[NonNegative, about("Measured on other inputs, before factors are rounded.")]
    flips: Annotated[Fraction, about("Share of predictions whose most probable class changed.")]
    measured_inputs: NonNegativeInt
    measured_predictions: NonNegativeInt
    measured_digest: str
    cut_inputs: Annotated[NonNegativeInt, about("Inputs of both kinds that were too long and were cut.")] = 0


class Provenance(msgspec.Struct, kw_only=True, frozen=True):
    """The record that is written beside an adapter, as `gradience_provenance.json`."""

    schema: str = PROVENANCE_SCHEMA_ID
    operation: Annotated[str, about("The verb: `resize`, `convert`, `merge`, ...")]
    version: Annotated[str, about("Of the program that wrote it.")]
    created: Annotated[float, about("Unix time in seconds.")]
    options: Annotated[dict[str, Json], about("What was asked for, without paths.")] = {}
    sources: list[SourceFile] = []
    relative_error: Annotated[Fraction | None, about("Of the whole: over all modules' squared Frobenius norms.")] = None
    modules: list[ModuleChange] = []
    notes: list[str] = []
    calibration: Calibration | None = None


RESIZE_SCHEMA_ID: Final = "gradience.resize/v2"

Criterion: TypeAlias = Literal[
    "rank", "energy", "rel_error", "max_mb", "max_params", "like_suggested", "sv_ratio", "sv_fro", "sv_cumulative", "kl"
]


class ResizedModule(msgspec.Struct, kw_only=True, frozen=True):
    """One module's update before and after. Experts of one parameter share their rank."""

    name: Annotated[str, about("Module path without `base_model.model.`.")]
    kind: Annotated[str, about("How the update is stored: `linear`, `embedding`, `conv`, `dora`, ...")]
    rank_before: NonNegativeInt
    rank_after: Annotated[NonNegativeInt, about("The rank of the factors on disk; 0: it left the adapter.")]
    relative_error: Annotated[
        Fraction | None,
        about(
            "Frobenius norm of what was left out over that of the update, before the factors are rounded "
            "to their dtype; null where the update is zero. For DoRA: of the whole change to the weight, magnitudes "
            "refitted, and it may exceed that of s B A. At most 1."
        ),
    ] = None
    params_before: NonNegativeInt
    params_after: NonNegativeInt
    kl_predicted: PredictedKl = None


class ResizeReport(Report, kw_only=True, frozen=True):
    """What `gradience resize` did or, for a dry run, would do."""

    schema: Literal["gradience.resize/v2"] = RESIZE_SCHEMA_ID
    source: Annotated[str, about("The adapter, as given.")]
    out: Annotated[str, about("The folder or file written; null for a dry run.")] | None = None
    criterion: Criterion
    value: Annotated[float, about("The criterion's number; 0 where it has none.")]
    dtype: Annotated[str, about("Of the new factors, by safetensors' name; null: as they were.")] | None = None
    r: Annotated[NonNegativeInt, about("`r` of the new config, exceptions in `rank_pattern`; else the commonest rank.")]
    lora_alpha: int | float
    use_rslora: bool
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, int | float] = {}
    relative_error: Annotated[
        Fraction | None, about("Of the whole: over all modules' squared Frobenius norms; null if all are zero.")
    ] = None
    params_before: Annotated[NonNegativeInt, about("Parameters of the factors.")]
    params_after: NonNegativeInt
    bytes_before: Annotated[NonNegativeInt, about("Of the weights file.")]
    bytes_after: NonNegativeInt
    modules: list[ResizedModule] = []
    notes: list[str] = []
    calibration: Calibration | None = None


MITIGATE_SCHEMA_ID: Final = "gradience.mitigate/v2"


class MitigatedModule(msgspec.Struct, kw_only=True, frozen=True):
    """One module: intruders among the k leading left singular vectors of W + dW, before and after."""

    name: Annotated[str, about("Module path without `base_model.model.`.")]
    before: Annotated[NonNegativeInt, about("Intruders at eps; an undecided vector counts.")]
    scaled: Annotated[NonNegativeInt, about("Vectors shown to be intruders: these were scaled.")]
    after: Annotated[NonNegativeInt, about("Intruders of the adapter as written, counted anew.")]
    undecided: Annotated[
        NonNegativeInt, about("Vectors that the bounds leave open; 0 where exact. These were not scaled.")
    ]
    relative_change: Annotated[Fraction, about("Frobenius norm of what was taken out over that of dW.")]
    method: Literal["exact", "lanczos"]
    converged: bool
    alpha_factor: Annotated[
        Fraction, about("The factor of lora_alpha that changes dW by as much: 1 - relative_change.")
    ] = 1.0
    alpha_after: Annotated[NonNegativeInt, about("Intruders of alpha_factor x dW, counted the same way.")] = 0


class MitigateReport(Report, kw_only=True, frozen=True):
    """What `gradience mitigate` did or, for a dry run, would do. dW' = (I - (1 - scale) U U^T) dW."""

    schema: Literal["gradience.mitigate/v2"] = MITIGATE_SCHEMA_ID
    source: Annotated[str, about("The adapter, as given.")]
    base: Annotated[str, about("The base model, as given.")]
    out: Annotated[str, about("The folder written; null for a dry run.")] | None = None
    scale: Annotated[Fraction, about("What is left of dW along each intruder direction.")]
    k: NonNegativeInt
    eps: Fraction
    before: Annotated[NonNegativeInt, about("Intruders over all modules.")]
    after: NonNegativeInt
    alpha_after: Annotated[
        NonNegativeInt, about("Intruders where lora_alpha is lowered instead, by the same change per module.")
    ] = 0
    modules: list[MitigatedModule] = []
    not_looked_at: Annotated[list[NotCompared], about("Copied bit for bit, with the reason.")] = []


CONVERT_SCHEMA_ID: Final = "gradience.convert/v2"

Target: TypeAlias = Literal["peft", "mlx"]


class ConvertedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module's update before and after."""

    name: Annotated[str, about("Its path in the adapter that was read.")]
    kind: Annotated[str, about("`linear`, `embedding`, `conv`, `dora`, `adalora`, `loha`, `lokr`, ...")]
    target: Annotated[str, about("Its path in the adapter that is written.")]
    rank_before: Annotated[NonNegativeInt, about("The rank of its factors, as they are stored.")]
    rank_after: Annotated[NonNegativeInt, about("The rank of the LoRA that is written.")]
    method: Annotated[
        Literal["copied", "factors", "truncated", "dense"],
        about(
            "`copied`: the factors' own numbers, turned or padded at most. `factors`: the same update "
            "from factors computed in float64. `truncated`: the best approximation of rank_after, from the factors. "
            "`dense`: the same from the update as a matrix, which took the base weight or the whole product."
        ),
    ]
    relative_error: Annotated[
        NonNegative | None,
        about(
            "Frobenius norm of what is left out over that of the update, before the factors are rounded "
            "to the type they are stored in; null where the update is zero."
        ),
    ] = None


class ConvertReport(Report, kw_only=True, frozen=True):
    """What an adapter became in another format, module by module."""

    schema: Literal["gradience.convert/v2"]
    source: Annotated[str, about("The folder or file that was read.")]
    source_format: Annotated[str, about("`peft`, `mlx`, `kohya` or `diffusers`.")]
    source_type: Annotated[str, about("PEFT's peft_type, with what makes it special; else the format.")]
    target_format: Target
    out: Annotated[str, about("The folder that was written; empty on a dry run.")] = ""
    options: Annotated[dict[str, str | int | float | bool], about("What was asked for, without paths.")] = {}
    modules: list[ConvertedModule] = []
    relative_error: Annotated[
        NonNegative | None, about("Of the whole: square root of the sum of squares left out over that of the updates.")
    ] = None
    params_before: Annotated[NonNegativeInt, about("Elements of all tensors that were read.")] = 0
    params_after: Annotated[NonNegativeInt, about("Elements of all tensors that are written.")] = 0
    carried: Annotated[list[str], about("Tensors that are copied bit for bit beside the modules.")] = []
    dropped: Annotated[list[str], about("Tensors that the target has no place for, left out as asked.")] = []
    notes: list[str] = []
