"""What is trained, as the event `wiring` has it: parameters by kind, adapter, optimizer, schedule, data.

A digest is `<version>:<16 hex digits>`. It does not depend on the order of the tensors, and only digests of one version
and one `sampled` can be compared.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from gradience.schema import NonNegativeInt, Real, about
from gradience.schema.flat import Checked, Extras

Kind: TypeAlias = Literal["adapter", "whole", "head", "base", "norm", "embedding"]
"""Of a parameter: `whole` is a module that PEFT's `modules_to_save` trains whole, unless it is a head."""

BY_LORA: Final = " (LoRA)"
"""After the name of a module that is adapted, where one that is trained whole has none."""

Digest = Annotated[str, about("Version and 64 bits, such as `s1:0123456789abcdef`.")]
Few = Annotated[list[str], about("The first names, at most eight.")]


class ParameterGroup(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """The parameters of one kind."""

    kind: Annotated[str, about("`adapter`, `whole`, `head`, `base`, `norm` or `embedding`.")]
    tensors: NonNegativeInt = 0
    parameters: NonNegativeInt = 0
    trainable_tensors: NonNegativeInt = 0
    trainable: Annotated[NonNegativeInt, about("Parameters that require a gradient.")] = 0
    matrices: Annotated[NonNegativeInt, about("Trainable tensors of two or more dimensions.")] = 0
    dtypes: Annotated[list[str], about("Of the trainable tensors, else of all.")] = []
    devices: Annotated[list[str], about("Of all tensors.")] = []
    digest: Digest | None = None
    frozen_digest: Digest | None = None
    sampled: Annotated[NonNegativeInt, about("Every n-th element is in the digest of the trainable tensors.")] = 1
    frozen_sampled: Annotated[NonNegativeInt, about("Every n-th element is in the digest of the frozen ones.")] = 1
    extras: Extras = {}


class AdapterWiring(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """The adapters in the model."""

    names: list[str] = []
    active: list[str] = []
    merged: Annotated[list[str], about("Adapters that are merged into the base weights.")] = []
    disabled: Annotated[bool, about("Whether the adapters are switched off.")] = False
    methods: Annotated[list[str], about("PEFT's `peft_type` of each.")] = []
    layers: Annotated[NonNegativeInt, about("Modules that an adapter is put into.")] = 0
    nested: Annotated[NonNegativeInt, about("Adapted models inside an adapted model.")] = 0
    trainable_tensors: Annotated[NonNegativeInt, about("Of the active adapters.")] = 0
    frozen_tensors: Annotated[NonNegativeInt, about("Of the active adapters.")] = 0
    frozen_layers: Annotated[NonNegativeInt, about("Modules all of whose active adapters' tensors are frozen.")] = 0
    frozen_names: Few = []
    new_heads: Annotated[list[str], about("Frozen heads whose weights are as they were drawn, at most eight.")] = []
    inactive_trainable: Annotated[NonNegativeInt, about("Trainable tensors of adapters that are not active.")] = 0
    untied: Annotated[
        list[str], about("Head and embedding trained apart, or adapted ` (LoRA)`, though the model's config ties them.")
    ] = []
    extras: Extras = {}


class RateGroup(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """Parameters that share a learning rate."""

    lr: Real
    peak: Annotated[Real, about("The rate from which the schedule computes, `initial_lr`.")] | None = None
    tensors: NonNegativeInt = 0
    parameters: NonNegativeInt = 0
    kinds: Annotated[list[str], about("Kinds of the parameters; `stranger` for tensors that are not the model's.")] = []
    extras: Extras = {}


class OptimizerWiring(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """What the optimizers hold, together."""

    names: Annotated[list[str], about("Class of each optimizer.")] = []
    sharded: Annotated[bool, about("Whether it holds flat or sharded copies, so `missing` is not known.")] = False
    held: Annotated[NonNegativeInt, about("Trainable tensors of the model that it holds.")] = 0
    held_frozen: Annotated[NonNegativeInt, about("Frozen tensors of the model that it holds.")] = 0
    missing: Annotated[dict[str, int], about("Trainable tensors that it does not hold, by kind.")] = {}
    missing_names: Few = []
    strangers: Annotated[NonNegativeInt, about("Tensors that it holds and the model does not.")] = 0
    doubled: Annotated[NonNegativeInt, about("Tensors that it holds, or several hold, more than once.")] = 0
    replaced: Annotated[
        NonNegativeInt, about("Strangers with shape and dtype of a missing tensor, each counted once.")
    ] = 0
    held_kinds: Annotated[dict[str, int], about("Trainable parameters that it holds, by kind.")] = {}
    frozen_adapter: Annotated[NonNegativeInt, about("Frozen tensors of the adapter that it holds.")] = 0
    rates: list[RateGroup] = []
    states: Annotated[NonNegativeInt, about("Tensors of parameters for which it has a state.")] = 0
    step: Annotated[Real, about("Most steps in a state.")] | None = None
    digest: Digest | None = None
    sampled: NonNegativeInt = 1
    extras: Extras = {}


class ScheduleWiring(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """The schedule of the learning rate."""

    name: str
    step: Annotated[int, about("Steps that it has made.")] | None = None
    rates: list[Real] = []
    foreign: Annotated[bool, about("Whether it sets the rates of an optimizer that does not train.")] = False
    extras: Extras = {}


class DataWiring(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """What decides which rows make a step, and in which order."""

    batch_size: Annotated[NonNegativeInt, about("Rows per process and micro-batch.")] | None = None
    accumulation: Annotated[NonNegativeInt, about("Micro-batches per optimizer step.")] | None = None
    world_size: NonNegativeInt | None = None
    rows: Annotated[NonNegativeInt, about("Rows of the data set.")] | None = None
    fingerprint: Annotated[str, about("Of a `datasets.Dataset`.")] | None = None
    sampler: Annotated[str, about("Class of the sampler.")] | None = None
    seed: Annotated[int, about("Of the order, as a setting.")] | None = None
    sampler_seed: Annotated[int, about("That of the sampler, or of its generator.")] | None = None
    skips: Annotated[bool, about("Whether a resume skips the rows that were seen.")] | None = None
    extras: Extras = {}


class SavedWiring(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """The adapter file that was saved."""

    file: str
    tensors: NonNegativeInt = 0
    parameters: NonNegativeInt = 0
    differs: Annotated[str, about("A factor that has other values than the model's.")] | None = None
    of_step: Annotated[NonNegativeInt, about("The earlier step whose values those are; null if not known.")] | None = (
        None
    )
    adapters: Annotated[list[str], about("The model's adapters of which a file lies there.")] = []
    lacking: Annotated[list[str], about("Active adapters that train, and of which no file lies there.")] = []
    absent: Annotated[dict[str, int], about("Tensors that train and are in none of the files, by kind.")] = {}
    absent_names: Few = []
    extras: Extras = {}


class GradientWiring(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """Which trainable tensors received a gradient in the first steps."""

    steps: Annotated[NonNegativeInt, about("Optimizer steps looked at.")]
    tensors: Annotated[NonNegativeInt, about("Trainable tensors that were looked at.")] = 0
    reached: Annotated[NonNegativeInt, about("Of them, those whose gradient was once not zero.")] = 0
    unreached: Annotated[dict[str, int], about("Tensors that never received a gradient, or only zeros, by kind.")] = {}
    modules: Annotated[NonNegativeInt, about("Adapted modules looked at.")] = 0
    silent: Annotated[NonNegativeInt, about("Adapted modules none of whose tensors received one; no experts.")] = 0
    silent_names: Few = []
    detached: Annotated[NonNegativeInt, about("Tensors whose gradient was never there at all.")] = 0
    compared: Annotated[NonNegativeInt, about("Steps at which the gradient of one tensor was compared so.")] = 0
    kept: Annotated[NonNegativeInt, about("Of them, those whose gradient was added to the step's before.")] = 0
    backward: Annotated[NonNegativeInt, about("Backward passes, where no optimizer step followed them.")] = 0
    rateless: Annotated[NonNegativeInt, about("Of the steps, those at which all learning rates were 0.")] = 0
    narrow: Annotated[NonNegativeInt, about("Elements of 16 bits with a gradient, which did not begin as 0.")] = 0
    unmoved: Annotated[NonNegativeInt, about("Of them, those with the value that they began with.")] = 0
    rows: Annotated[NonNegativeInt, about("Rows that an aLoRA was called with.")] = 0
    invoked: Annotated[NonNegativeInt, about("Of them, those with its invocation tokens.")] | None = None
    extras: Extras = {}


class PassWiring(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """How the model was called for an optimizer step."""

    training: Annotated[bool, about("Whether in training mode, so that dropout acts.")] = True
    merged: Annotated[bool, about("Whether with the adapter merged into the base weights.")] = False
    off: Annotated[bool, about("Whether without the adapter that trains: switched off, or another one active.")] = False
    extras: Extras = {}


class EvaluationWiring(Checked, kw_only=True, frozen=True, omit_defaults=True):
    """What an evaluation called since the last optimizer step."""

    called: Annotated[bool, about("Whether the model that trains was called.")] = True
    adapted: Annotated[bool, about("Whether with the adapter that trains; null without one.")] | None = None
    training: Annotated[bool, about("Whether all calls were without gradients and in training mode.")] = False
    extras: Extras = {}
