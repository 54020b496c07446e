"""Types of the reports of verbs that write an adapter, and of the provenance: the sources, operation and loss."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from gradience.schema import Fraction, Json, NonNegativeInt, about
from gradience.schema.document import Estimate, Report

PROVENANCE_SCHEMA_ID: Final = "gradience.vnext.provenance/v1"


class SourceFile(msgspec.Struct, kw_only=True, frozen=True):
    """One file that was read, by name and content; its folder is not recorded."""

    name: str
    bytes: NonNegativeInt
    digest: Annotated[str, about("`sha256:...`, or `etag:...` for a file in the hub's cache.")]


NonNegative: TypeAlias = Annotated[float, Meta(ge=0.0)]
PredictedKl: TypeAlias = Annotated[
    NonNegative | None, about("KL by what was left out of this module alone, as predicted; null without calibration.")
]


class ModuleChange(msgspec.Struct, kw_only=True, frozen=True):
    """The ranks and the error of one module's update after an operation."""

    name: str
    rank_before: NonNegativeInt
    rank_after: NonNegativeInt
    relative_error: Annotated[
        Fraction | None,
        about("Frobenius norm of what was left out over that of the update; null if the update is zero."),
    ] = None
    kl_predicted: PredictedKl = None


class Calibration(msgspec.Struct, kw_only=True, frozen=True):
    """How an adapter was cut by its effect on a model's outputs, and the change measured on other inputs.

    KL is the divergence of the smaller adapter's output distribution from the whole adapter's, in nats per prediction.
    """

    seed: Annotated[NonNegativeInt, about("Seed of the choice of inputs and of the labels drawn.")]
    inputs: Annotated[NonNegativeInt, about("Inputs by which the pieces were chosen.")]
    predictions: Annotated[NonNegativeInt, about("Predictions on these inputs.")]
    digest: Annotated[str, about("`sha256:...` of the token ids of these inputs.")]
    kl_predicted: Annotated[
        NonNegative,
        about("KL predicted from the pieces left out, on the inputs by which they were chosen; usually too low."),
    ]
    kl: Annotated[NonNegative, about("KL measured on other inputs, before the factors are rounded or trained.")]
    flips: Annotated[Fraction, about("Share of predictions whose most probable class changed.")]
    effect_kl: (
        Annotated[
            NonNegative,
            about("KL of the base without the adapter's factors from the whole adapter, on the same inputs."),
        ]
        | None
    ) = None
    effect_flips: Annotated[Fraction, about("Share of predictions that the adapter's factors change.")] | None = None
    bound_by: Annotated[
        list[Limit],
        about(
            "With --kl: the limits that the next smaller size passed. `kl`: the KL asked for. `effect`: 5 % of "
            "effect_kl. `flips`: the share of flips. Empty if nothing smaller was tried."
        ),
    ] = []
    measured_inputs: Annotated[NonNegativeInt, about("Inputs on which KL was measured.")]
    measured_predictions: Annotated[NonNegativeInt, about("Predictions on the measured inputs.")]
    cut_inputs: Annotated[NonNegativeInt, about("Inputs of both kinds that were cut because they were too long.")] = 0


class Apart(msgspec.Struct, kw_only=True, frozen=True):
    """How outputs differ from the whole adapter's on some texts, per prediction; or how two such differ."""

    kl: Annotated[Estimate, about("KL from the whole adapter's output distributions, in nats.")]
    flips: Annotated[Estimate, about("Share of predictions with another most probable class.")]
    loss: Annotated[Estimate | None, about("Loss above the whole adapter's, in nats; null without known labels.")] = (
        None
    )


class Recovery(msgspec.Struct, kw_only=True, frozen=True):
    """How the smaller adapter was trained towards the whole one's outputs, and what that changed on held-out texts."""

    written: Annotated[bool, about("Whether the result has the trained factors; if not, it has those of the cut.")]
    reason: Annotated[str, about("Why the trained factors were not taken; empty if they were.")] = ""
    steps: Annotated[NonNegativeInt, about("Steps of the training.")]
    seed: Annotated[NonNegativeInt, about("Seed of the choice of texts and of their order.")]
    inputs: Annotated[NonNegativeInt, about("Texts that it was trained on.")]
    digest: Annotated[str, about("`sha256:...` of the token ids of these texts.")]
    held_inputs: Annotated[NonNegativeInt, about("Held-out texts.")]
    held_predictions: Annotated[NonNegativeInt, about("Predictions on the held-out texts.")]
    cut_inputs: Annotated[NonNegativeInt, about("Texts of both kinds that were cut because they were too long.")] = 0
    effect_kl: Annotated[NonNegative, about("KL of the base's outputs from the whole adapter's, on held-out texts.")]
    before: Annotated[Apart, about("The smaller adapter before the training, as it would be stored.")]
    after: Annotated[Apart | None, about("The same after the training; null if that left numbers not finite.")] = None
    change: Annotated[Apart | None, about("After less before, text by text.")] = None


class Provenance(msgspec.Struct, kw_only=True, frozen=True):
    """The record written beside an adapter as `gradience_provenance.json`."""

    schema: str = PROVENANCE_SCHEMA_ID
    operation: Annotated[str, about("The verb: `resize`, `convert`, `merge`, ...")]
    version: Annotated[str, about("Version of the program that wrote it.")]
    created: Annotated[float, about("Unix time in seconds.")]
    options: Annotated[dict[str, Json], about("Options that were asked for, without paths.")] = {}
    sources: list[SourceFile] = []
    relative_error: Annotated[
        Fraction | None,
        about("Relative Frobenius error of the whole adapter, from the sums of squares over its modules."),
    ] = None
    modules: list[ModuleChange] = []
    notes: list[str] = []
    calibration: Calibration | None = None
    recovery: Recovery | None = None


RESIZE_SCHEMA_ID: Final = "gradience.resize/v2"

Limit: TypeAlias = Literal["kl", "effect", "flips"]
Criterion: TypeAlias = Literal["rank", "energy", "max_mb", "max_params", "like_suggested", "kl"]


class ResizedModule(msgspec.Struct, kw_only=True, frozen=True):
    """One module's update before and after. Experts of one parameter share their rank."""

    name: Annotated[str, about("Module path without `base_model.model.`.")]
    kind: Annotated[str, about("How the update is stored: `linear`, `embedding`, `conv`, `dora`, ...")]
    rank_before: NonNegativeInt
    rank_after: Annotated[NonNegativeInt, about("Rank of the factors on disk; 0 if the module left the adapter.")]
    relative_error: Annotated[
        Fraction | None,
        about(
            "Frobenius norm of what was left out over that of the update, before the factors are rounded to their "
            "dtype; at most 1. Null if the update is zero. For DoRA it is of the whole change to the weight with "
            "refitted magnitudes, and may exceed the error of s B A."
        ),
    ] = None
    params_before: NonNegativeInt
    params_after: NonNegativeInt
    kl_predicted: PredictedKl = None


class ResizeReport(Report, kw_only=True, frozen=True):
    """The result of `gradience resize`, or of its dry run, which writes nothing."""

    schema: Literal["gradience.resize/v2"] = RESIZE_SCHEMA_ID
    source: Annotated[str, about("The adapter, as given.")]
    out: Annotated[str, about("Folder or file that was written; null in a dry run.")] | None = None
    criterion: Annotated[Criterion, about("The option that set the ranks.")]
    value: Annotated[float, about("Value of the criterion; 0 if it has none.")]
    dtype: Annotated[str, about("Dtype of the new factors, by its safetensors name; null: unchanged.")] | None = None
    r: Annotated[
        NonNegativeInt,
        about("`r` of the new config, with exceptions in `rank_pattern`; the commonest rank without a config."),
    ]
    lora_alpha: int | float
    use_rslora: bool
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, int | float] = {}
    relative_error: Annotated[
        Fraction | None,
        about("Relative Frobenius error over all modules, from sums of squares; null if all updates are zero."),
    ] = None
    params_before: Annotated[NonNegativeInt, about("Parameters of the factors.")]
    params_after: Annotated[NonNegativeInt, about("Parameters of the new factors.")]
    bytes_before: Annotated[NonNegativeInt, about("Bytes of the weights file.")]
    bytes_after: Annotated[NonNegativeInt, about("Bytes of the new weights file.")]
    modules: list[ResizedModule] = []
    notes: list[str] = []
    calibration: Calibration | None = None
    recovery: Recovery | None = None


CONVERT_SCHEMA_ID: Final = "gradience.convert/v2"

TargetFormat: TypeAlias = Literal["peft", "mlx"]
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]


class ConvertedModule(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One module's update before and after the conversion."""

    name: Annotated[str, about("Its path in the source adapter.")]
    kind: Annotated[str, about("`linear`, `embedding`, `conv`, `dora`, `adalora`, `loha`, `lokr`, ...")]
    target: Annotated[str, about("Its path in the written adapter.")]
    rank_before: Annotated[NonNegativeInt, about("Rank of its factors as stored.")]
    rank_after: Annotated[NonNegativeInt, about("Rank of the LoRA that is written.")]
    method: Annotated[
        Literal["copied", "factors", "truncated", "dense"],
        about(
            "`copied`: the factors' own numbers, at most transposed or padded. `factors`: the same update, from "
            "factors computed in float64. `truncated`: the best approximation of rank_after, from the factors. "
            "`dense`: likewise, from the update as a matrix, which needed the base weight or the whole product."
        ),
    ]
    relative_error: Annotated[
        NonNegative | None,
        about(
            "Frobenius norm of what is left out over that of the update, before the factors are rounded to their "
            "stored dtype; null if the update is zero."
        ),
    ] = None


class ConvertReport(Report, kw_only=True, frozen=True):
    """An adapter converted to another format, module by module."""

    schema: Literal["gradience.convert/v2"]
    source: Annotated[str, about("Folder or file that was read.")]
    source_format: Annotated[str, about("`peft`, `mlx`, `kohya` or `diffusers`.")]
    source_type: Annotated[str, about("PEFT's peft_type with its variant; else the format.")]
    target_format: TargetFormat
    out: Annotated[str, about("Folder that was written; empty in a dry run.")] = ""
    options: Annotated[dict[str, str | int | float | bool], about("Options that were asked for, without paths.")] = {}
    modules: list[ConvertedModule] = []
    relative_error: Annotated[
        NonNegative | None,
        about("Relative Frobenius error of the whole: root of the sum of squares left out over that of the updates."),
    ] = None
    params_before: Annotated[NonNegativeInt, about("Elements of all tensors that were read.")] = 0
    params_after: Annotated[NonNegativeInt, about("Elements of all tensors that are written.")] = 0
    carried: Annotated[list[str], about("Tensors besides the modules that are copied bit for bit.")] = []
    dropped: Annotated[list[str], about("Tensors that the target cannot hold, left out on request.")] = []
    notes: list[str] = []
