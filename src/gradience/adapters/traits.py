"""The kind of an adapter, and which verbs may rewrite it: both are decided here and nowhere else.

Every verb that changes, combines or replays adapters asks this module instead of keeping a list of its own. `traits_of`
gives the facts: type, initialisation, variants, and tensors beside the pairs. `obstacles` gives the reasons for which
an operation must refuse the adapter. Nothing here reads a tensor's data. NumPy is not imported, so that rules on
configs can use `start_of` cheaply. Facts about PEFT are those of version 0.21.2; tests/adapters/test_traits.py compares
them with the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """Merge the adapter into the base again, to compare the result with a merged model (verify)."""


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
    def strange(self) -> int:
        """The number of tensors that are not understood."""
        return len(self.unknown)

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


class _Subject(NamedTuple):
    """What an obstacle is asked about: the traits, and the first module that is in the way by itself."""

    traits: Traits
    stranger: Module | None
    """Of a kind that the operation cannot work on; DoRA has its own obstacle and is left out."""
    dependent: Module | None
    """With an update that only follows with the base."""


class _Obstacle(NamedTuple):
    """A reason for which operations cannot be carried out on an adapter; the text is a template for a `_Subject`."""

    stops: frozenset[Operation]
    text: str
    holds: Callable[[_Subject], object]
    is_last: bool = False
    """Whether no more reasons are given after it."""


_RESIZE, _MERGE, _CONVERT, _REPLAY = (frozenset({operation}) for operation in Operation)
_FACTORS: Final = frozenset({"linear", "embedding", "conv", "expert"})
_KINDS: Final = {Operation.RESIZE: _FACTORS | {"dora"}, Operation.MERGE: _FACTORS}
"""The kinds of module (`Module.kind`) whose two factors an operation can work on."""


def _is_lost(subject: _Subject) -> bool:
    start = subject.traits.start
    return start.changes_base and not start.recomputable


_OBSTACLES: Final = (
    _Obstacle(
        _RESIZE | _MERGE,
        "it is in {traits.format}'s format, not PEFT's",
        lambda x: x.traits.format != "peft",
        is_last=True,
    ),
    _Obstacle(
        _RESIZE | _MERGE,
        "peft_type {traits.peft_type} is not LoRA",
        lambda x: x.traits.peft_type != "LORA",
        is_last=True,
    ),
    _Obstacle(
        _CONVERT,
        "torchtune's names and the order of its query and key rows are its own: export it to PEFT from torchtune",
        lambda x: x.traits.format == "torchtune",
    ),
    _Obstacle(
        _RESIZE | _MERGE,
        "init_lora_weights={traits.init!r}: {traits.start.name} changed the base model, so its update is not s B A "
        "alone",
        lambda x: x.traits.start.changes_base,
    ),
    _Obstacle(
        _CONVERT | _REPLAY,
        "{traits.init} changed the base, by an amount that cannot be recomputed",
        _is_lost,
    ),
    _Obstacle(
        _MERGE,
        "DoRA rescales each row of W + s B A: its update does not follow from the factors alone",
        lambda x: x.traits.dora,
    ),
    _Obstacle(
        _CONVERT | _REPLAY,
        "DoRA on a base that {traits.init} changed cannot be recomputed",
        lambda x: x.traits.dora and x.traits.start.changes_base and not _is_lost(x),
    ),
    _Obstacle(
        _RESIZE | _MERGE,
        "KaSA takes as many singular values out of the base as its rank (kasa_config)",
        lambda x: x.traits.kasa,
    ),
    _Obstacle(
        _RESIZE | _MERGE,
        "BD-LoRA's factors are block-diagonal (use_bdlora)",
        lambda x: x.traits.bdlora,
    ),
    _Obstacle(
        _RESIZE | _MERGE | _CONVERT | _REPLAY,
        "QALoRA's A is of pooled inputs for a GPTQ base, and PEFT has no merge of it to compare with (use_qalora)",
        lambda x: x.traits.qalora,
    ),
    _Obstacle(
        _MERGE | _CONVERT,
        "Arrow routes among adapters: what it does depends on the input (arrow_config)",
        lambda x: x.traits.arrow,
    ),
    _Obstacle(
        _MERGE | _CONVERT,
        "aLoRA applies after its invocation tokens only (alora_invocation_tokens)",
        lambda x: x.traits.alora,
    ),
    _Obstacle(_MERGE, "lora_bias: a bias of its own beside B A", lambda x: x.traits.lora_bias),
    _Obstacle(
        _RESIZE,
        "ensure_weight_tying: the embedding and the head share factors, which two cuts would tear apart",
        lambda x: x.traits.tied_embedding,
    ),
    _Obstacle(
        _MERGE | _CONVERT,
        "the file holds several adapters: save each on its own first",
        lambda x: x.traits.several,
    ),
    _Obstacle(_RESIZE | _MERGE, "{stranger.name} is of kind {stranger.kind}", lambda x: x.stranger),
    _Obstacle(_MERGE, "the update of {dependent.name} is a function of the base weight", lambda x: x.dependent),
    _Obstacle(
        _MERGE,
        "{traits.strange} of its tensors are not understood (first: {traits.unknown[0]})",
        lambda x: x.traits.unknown,
    ),
)
"""The gravest first."""


def obstacles(adapter: Adapter, operation: Operation) -> Iterator[str]:
    """Yield the reasons for which the operation must refuse the whole adapter; none if it may proceed.

    The gravest comes first. A format or type that the operation does not support ends the list.
    """
    if operation is Operation.RESIZE and adapter.format == "kohya":
        yield from _of_kohyas_file(adapter)
        return
    # Converting and replaying work on whole updates, of any kind, and so have no entry.
    known = _KINDS.get(operation)
    strangers = (one for one in adapter.modules if known and one.kind not in known and one.magnitude is None)
    subject = _Subject(traits_of(adapter), next(strangers, None), next(iter(adapter.base_dependent), None))
    for obstacle in _OBSTACLES:
        if operation in obstacle.stops and obstacle.holds(subject):
            yield obstacle.text.format(**subject._asdict())
            if obstacle.is_last:
                return


def _of_kohyas_file(adapter: Adapter) -> Iterator[str]:
    """Yield the reason for which a kohya file cannot be resized: a module that is not one plain pair."""
    for module in adapter.modules:
        if module.kind not in {"linear", "conv"} or not module.keys.keys() <= _KOHYAS_PAIR:
            yield f"{module.name} is more than one pair of factors ({module.kind})"
            return
