"""The kind of an adapter, and which verbs may rewrite it: both are decided here and nowhere else.

Every verb that changes, combines or replays adapters asks this module instead of keeping a list of its own. `traits_of`
gives the facts: type, initialisation, variants, and tensors beside the pairs. `obstacles` gives the reasons for which
an operation must refuse the adapter. Nothing here reads a tensor's data. NumPy is not imported, so that rules on
configs can use `start_of` cheaply. Facts about PEFT are those of version 0.21.2; tests/adapters/test_traits.py compares
them with the library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from gradience.adapters.layout import Adapter, Module

_KOHYAS_PAIR: Final = {"lora_A", "lora_B", "alpha"}


class Start(NamedTuple):
    """An initialisation of LoRA's factors (`init_lora_weights`), and its effect on the base model."""

    name: str
    changes_base: bool = False
    """The base's weights changed at the start, so dW is not s B A.

    The factors' initial product was subtracted from them; with LoftQ they were quantised.
    """
    recomputable: bool = False
    """The change of the base can be computed from the base weight and the rank alone."""
    doubled: bool = False
    """A conversion to plain LoRA doubles r and alpha (PEFT's `subtract_mutated_init`)."""


DEFAULT_START: Final = Start("default")

# PEFT 0.21.2, tuners/lora/layer.py: LoraLayer.update_layer and the *_init methods. `orthogonal` starts with B != 0 but
# with B A = 0, and `eva` and `mica` start with one zero factor. So these three leave the base weight unchanged.
_STARTS: Final = {
    "pissa": Start("pissa", changes_base=True, recomputable=True, doubled=True),
    "olora": Start("olora", changes_base=True, recomputable=True, doubled=True),
    "corda": Start("corda", changes_base=True, doubled=True),  # needs its calibration data
    "lora_ga": Start("lora_ga", changes_base=True),  # needs the gradients of its first batches
    "loftq": Start("loftq", changes_base=True, doubled=True),  # the base is quantised
    "eva": Start("eva", doubled=True),
    "gaussian": Start("gaussian"),
    "mica": Start("mica"),
    "orthogonal": Start("orthogonal", doubled=True),
}


def start_of(init: object) -> Start:
    """The initialisation that a value of `init_lora_weights` names; the default for booleans, None and unknown names.

    PEFT reads `pissa_niter_4` as PiSSA by randomised SVD, whose result cannot be recomputed exactly. It reads every
    name that begins with `corda` as CorDA.

    >>> start_of("pissa_niter_4").changes_base, start_of("pissa_niter_4").recomputable, start_of("eva").changes_base
    (True, False, False)
    """
    if not isinstance(init, str):
        return DEFAULT_START
    name = init.lower()
    if name in _STARTS:
        return _STARTS[name]
    stem = next((stem for stem in _STARTS if _STARTS[stem].changes_base and name.startswith(stem)), None)
    return DEFAULT_START if stem is None else _STARTS[stem]._replace(recomputable=False)


class Operation(StrEnum):
    """An operation on an adapter."""

    RESIZE = "resize"
    MERGE = "merge"
    CONVERT = "convert"
    REPLAY = "replay"
    """Merge the adapter into the base again, to compare the result with a merged model (verify-merge)."""


class Obstacle(StrEnum):
    """A reason for which an operation cannot be carried out on an adapter. The value is a template for its text."""

    FORMAT = "it is in {format}'s format, not PEFT's"
    TORCHTUNE = (
        "torchtune's names and the order of its query and key rows are its own: export it to PEFT from torchtune"
    )
    PEFT_TYPE = "peft_type {peft_type} is not LoRA"
    START = "init_lora_weights={init!r}: {start} changed the base model, so its update is not s B A alone"
    START_UNKNOWN = "{init} changed the base, by an amount that cannot be recomputed"
    DORA = "DoRA rescales each row of W + s B A: its update does not follow from the factors alone"
    DORA_ON_CHANGED_BASE = "DoRA on a base that {init} changed cannot be recomputed"
    KASA = "KaSA takes as many singular values out of the base as its rank (kasa_config)"
    BDLORA = "BD-LoRA's factors are block-diagonal (use_bdlora)"
    QALORA = "QALoRA's A is of pooled inputs for a GPTQ base, and PEFT has no merge of it to compare with (use_qalora)"
    ARROW = "Arrow routes among adapters: what it does depends on the input (arrow_config)"
    ALORA = "aLoRA applies after its invocation tokens only (alora_invocation_tokens)"
    LORA_BIAS = "lora_bias: a bias of its own beside B A"
    TIED = "ensure_weight_tying: the embedding and the head share factors, which two cuts would tear apart"
    SEVERAL_ADAPTERS = "the file holds several adapters: save each on its own first"
    MODULE_KIND = "{module} is of kind {kind}"
    MORE_THAN_A_PAIR = "{module} is more than one pair of factors ({kind})"
    BASE_DEPENDENT = "the update of {dependent} is a function of the base weight"
    UNKNOWN_TENSORS = "{count} of its tensors are not understood (first: {tensor})"


class Refusal(NamedTuple):
    """An obstacle and its text with the details filled in, for a report or an error."""

    obstacle: Obstacle
    text: str


@dataclass(frozen=True, slots=True)
class Traits:
    """The facts about an adapter that decide what may be done with it, from its config and headers alone."""

    format: str
    peft_type: str
    """PEFT's type in capitals; LORA if the format or the config has none."""
    start: Start
    init: object
    """The value of `init_lora_weights` in the config."""
    dora: bool
    rslora: bool
    alora: bool
    arrow: bool
    kasa: bool
    bdlora: bool
    qalora: bool
    lora_bias: bool
    tied_embedding: bool
    """The embedding and the head share their factors (ensure_weight_tying)."""
    several: bool
    """More than one adapter in the file."""
    unknown: tuple[str, ...]
    """The tensors that belong neither to a pair nor to another part that is understood."""

    @property
    def is_peft_lora(self) -> bool:
        """Whether PEFT would load it as LoRA."""
        return self.format == "peft" and self.peft_type == "LORA"

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that distinguish it from plain LoRA, as words for a label, such as `DoRA rsLoRA pissa`."""
        marks = (
            ("DoRA", self.dora),
            ("rsLoRA", self.rslora),
            ("KaSA", self.kasa),
            ("BD-LoRA", self.bdlora),
            (str(self.init), self.start.changes_base),
        )
        return tuple(name for name, holds in marks if holds)

    @property
    def is_plain(self) -> bool:
        """Whether it is PEFT's plain LoRA: dW = alpha / r B A."""
        return self.is_peft_lora and not self.variants


def traits_of(adapter: Adapter) -> Traits:
    """The traits of an opened adapter."""
    config, modules = adapter.config, adapter.modules
    fields = {field for module in modules for field in module.keys}
    return Traits(
        format=adapter.format,
        peft_type=(config.peft_type or "LORA").upper(),
        start=start_of(config.init_lora_weights),
        init=config.init_lora_weights,
        dora=config.use_dora or any(module.magnitude is not None for module in modules),
        rslora=config.use_rslora,
        alora=bool(config.alora_invocation_tokens),
        arrow=config.arrow_config is not None,
        kasa=config.kasa_config is not None or "lora_diag" in fields,
        bdlora=bool(config.use_bdlora),
        qalora=config.use_qalora,
        lora_bias=config.lora_bias or "lora_B.bias" in fields,
        tied_embedding=config.ensure_weight_tying and "lora_embedding_A" in fields,
        several=any(module.adapter is not None for module in modules),
        unknown=tuple(name for name, role in adapter.roles.items() if role in {"unknown", "not_analysed"}),
    )


# The kinds of module (`Module.kind`) whose two factors an operation can work on.
_KINDS: Final[dict[Operation, frozenset[str]]] = {
    Operation.RESIZE: frozenset({"linear", "embedding", "conv", "expert", "dora"}),
    Operation.MERGE: frozenset({"linear", "embedding", "conv", "expert"}),
}

# The obstacles that stop each operation, in the order of its reports. After one of `_ENDING`, no more are reported.
_ENDING: Final = (Obstacle.FORMAT, Obstacle.PEFT_TYPE)
_ASKED: Final[dict[Operation, tuple[Obstacle, ...]]] = {
    Operation.RESIZE: (
        *_ENDING,
        Obstacle.MODULE_KIND,
        Obstacle.START,
        Obstacle.KASA,
        Obstacle.BDLORA,
        Obstacle.QALORA,
        Obstacle.TIED,
    ),
    Operation.MERGE: (
        *_ENDING,
        Obstacle.START,
        Obstacle.DORA,
        Obstacle.KASA,
        Obstacle.BDLORA,
        Obstacle.QALORA,
        Obstacle.ARROW,
        Obstacle.ALORA,
        Obstacle.LORA_BIAS,
        Obstacle.SEVERAL_ADAPTERS,
        Obstacle.MODULE_KIND,
        Obstacle.BASE_DEPENDENT,
        Obstacle.UNKNOWN_TENSORS,
    ),
    Operation.CONVERT: (
        Obstacle.ALORA,
        Obstacle.ARROW,
        Obstacle.QALORA,
        Obstacle.TORCHTUNE,
        Obstacle.START_UNKNOWN,
        Obstacle.DORA_ON_CHANGED_BASE,
    ),
    # With these, a correctly merged model may differ from a replayed merge.
    Operation.REPLAY: (Obstacle.START_UNKNOWN, Obstacle.DORA_ON_CHANGED_BASE, Obstacle.QALORA),
}


def obstacles(adapter: Adapter, operation: Operation) -> Iterator[Refusal]:
    """Yield the reasons for which the operation must refuse the whole adapter; none if it may proceed.

    The gravest comes first. A format or type that the operation does not support ends the list.
    """
    if operation is Operation.RESIZE and adapter.format == "kohya":
        yield from _of_kohyas_file(adapter)
        return
    traits = traits_of(adapter)
    stranger, dependent = _first_stranger(adapter, operation), next(iter(adapter.base_dependent), None)
    holding = _holding(traits) | {
        Obstacle.MODULE_KIND: stranger is not None,
        Obstacle.BASE_DEPENDENT: dependent is not None,
    }
    details = {
        "format": traits.format,
        "peft_type": traits.peft_type,
        "init": traits.init,
        "start": traits.start.name,
        "module": stranger and stranger.name,
        "kind": stranger and stranger.kind,
        "dependent": dependent and dependent.name,
        "count": len(traits.unknown),
        "tensor": next(iter(traits.unknown), None),
    }
    for obstacle in _ASKED[operation]:
        if holding[obstacle]:
            yield Refusal(obstacle, obstacle.format(**details))
            if obstacle in _ENDING:
                return


def _holding(traits: Traits) -> dict[Obstacle, bool]:
    """Whether each obstacle holds, of those that the traits decide."""
    changed = traits.start.changes_base
    return {
        Obstacle.FORMAT: traits.format != "peft",
        Obstacle.TORCHTUNE: traits.format == "torchtune",
        Obstacle.PEFT_TYPE: traits.peft_type != "LORA",
        Obstacle.START: changed,
        Obstacle.START_UNKNOWN: changed and not traits.start.recomputable,
        Obstacle.DORA_ON_CHANGED_BASE: changed and traits.start.recomputable and traits.dora,
        Obstacle.DORA: traits.dora,
        Obstacle.KASA: traits.kasa,
        Obstacle.BDLORA: traits.bdlora,
        Obstacle.QALORA: traits.qalora,
        Obstacle.ARROW: traits.arrow,
        Obstacle.ALORA: traits.alora,
        Obstacle.LORA_BIAS: traits.lora_bias,
        Obstacle.TIED: traits.tied_embedding,
        Obstacle.SEVERAL_ADAPTERS: traits.several,
        Obstacle.UNKNOWN_TENSORS: bool(traits.unknown),
    }


def _first_stranger(adapter: Adapter, operation: Operation) -> Module | None:
    """The first module of a kind that the operation cannot work on; DoRA has its own obstacle and is left out."""
    kinds = _KINDS.get(operation)
    if kinds is None:
        return None
    return next((module for module in adapter.modules if module.kind not in kinds and module.magnitude is None), None)


def _of_kohyas_file(adapter: Adapter) -> Iterator[Refusal]:
    """Yield the reason for which a kohya file cannot be resized: a module that is not one plain pair."""
    for module in adapter.modules:
        if module.kind not in {"linear", "conv"} or not module.keys.keys() <= _KOHYAS_PAIR:
            text = Obstacle.MORE_THAN_A_PAIR.format(module=module.name, kind=module.kind)
            yield Refusal(Obstacle.MORE_THAN_A_PAIR, text)
            return
