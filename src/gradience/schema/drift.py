"""Types of a report of `gradience bench`: what an adapter changes on texts of its own and on others."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from gradience.schema import Fraction, NonNegativeInt, about
from gradience.schema.document import Estimate, Report

DRIFT_SCHEMA_ID: Final = "gradience.drift/v3"


class TextsChanged(msgspec.Struct, kw_only=True, frozen=True):
    """How the outputs on some texts change from the base to the base with the adapter."""

    texts: Annotated[NonNegativeInt, about("Different texts that were read.")]
    predictions: Annotated[NonNegativeInt, about("Predictions on them.")]
    digest: Annotated[str, about("`sha256:...` of their token ids.")]
    kl: Annotated[Estimate, about("KL(base, adapter) of the output distributions, in nats per prediction.")]
    flips: Annotated[Fraction, about("Share of predictions whose most probable token or class changes.")]
    loss: Annotated[
        Estimate | None,
        about("Loss with the adapter less that of the base, in nats per prediction; null without known labels."),
    ] = None


class Lowered(msgspec.Struct, kw_only=True, frozen=True):
    """What the adapter does at a lower scale, or without some of its modules."""

    name: Annotated[str, about("Such as `alpha x 0.8`, or the group that is left out: `attention`, `every q_proj`.")]
    factor: Annotated[Fraction | None, about("Factor of lora_alpha; null for a group.")] = None
    modules: Annotated[NonNegativeInt, about("Modules that are left out; 0 for a scale.")] = 0
    gain_kept: Annotated[
        Estimate | None,
        about("Fall of the loss on own texts over that by the whole adapter; null where that is not above zero."),
    ] = None
    drift_left: Annotated[
        Estimate | None,
        about("KL from the base on the other texts over that of the whole adapter; null where that is zero."),
    ] = None


class DriftReport(Report, kw_only=True, frozen=True):
    """How much an adapter changes what it was trained for, and what it was not."""

    schema: Literal["gradience.drift/v3"] = DRIFT_SCHEMA_ID
    adapter: Annotated[str, about("The adapter, as given.")]
    base: Annotated[str, about("The base model, as given.")]
    task: Annotated[str, about("`causal-lm`, `sequence-classification` or `token-classification`.")]
    texts: Annotated[str, about("The file of own texts, as given; empty without one.")] = ""
    elsewhere: Annotated[str, about("The file of other texts, as given; empty for the built-in sentences.")] = ""
    seed: Annotated[NonNegativeInt, about("Seed of the choice of texts.")]
    own: Annotated[TextsChanged | None, about("On own texts; null without a file of them.")] = None
    other: TextsChanged
    scales: Annotated[list[Lowered], about("By falling factor; empty if no module has a scale.")] = []
    groups: Annotated[list[Lowered], about("Without one group of modules after the other, the largest first.")] = []
    notes: list[str] = []
