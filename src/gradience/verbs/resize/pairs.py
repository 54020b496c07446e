"""The pairs of tensors that can be resized, by the path whose rank PEFT gives them; what cannot is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

from gradience.adapters.kinds.lora import base_changing
from gradience.adapters.layout import Adapter, Array, Module
from gradience.errors import AdapterError
from gradience.io.safetensors import TensorInfo, TensorSource

_CONVERT: Final = "turn it into plain LoRA first: see 'gradience convert --help'"
_KINDS: Final = ("linear", "embedding", "conv", "expert", "dora")

T = TypeVar("T")


class Pair(NamedTuple):
    """Two factor tensors of a file: those of one module, or of all experts of a parameter.

    `path` is what PEFT matches patterns against: pairs that share it (of several adapters in a file, or of one
    MultiheadAttention) share their rank. `turned`: the base stores the weight transposed to B A.
    """

    path: str
    modules: tuple[Module, ...]
    a_name: str
    b_name: str
    a: TensorInfo
    b: TensorInfo
    turned: bool
    magnitude: str | None = None
    """The tensor of DoRA's magnitudes."""
    alpha: str | None = None
    """The tensor of the module's own alpha, which kohya's files have."""

    @property
    def r(self) -> int:
        """The present rank."""
        return self.modules[0].r

    @property
    def cost(self) -> int:
        """The parameters of one rank."""
        return (self.a.size + self.b.size) // self.r

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of A and B at another rank."""
        n = len(self.modules)
        return (rank * n, *self.a.shape[1:]), (self.b.shape[0], rank * n, *self.b.shape[2:])

    def in_file_order(self, of_b: T, of_a: T) -> tuple[T, T]:
        """Return what belongs to the module's (b, a) as what belongs to the file's: B and A trade places if turned."""
        return (of_a, of_b) if self.turned else (of_b, of_a)

    def factors(self, source: TensorSource) -> list[tuple[Array, Array]]:
        """Return (b, a) of the module, or of each expert, as B A has them whatever the base's orientation."""
        if self.modules[0].expert is not None:
            return [module.load() for module in self.modules]
        a, b = source.read(self.a_name), source.read(self.b_name)
        return [(b.reshape(len(b), self.r), a.reshape(self.r, -1))]


def pairs_of(adapter: Adapter) -> list[Pair]:
    """Return the adapter's pairs, in the order of its modules.

    Raises:
        AdapterError: the adapter, or one of its modules, is of a kind that has no factors of its own to cut.
    """
    _refuse(adapter)
    shared: dict[str, list[Module]] = {}
    for module in adapter.modules:
        shared.setdefault(module.keys.get("lora_embedding_A") or module.keys["lora_A"], []).append(module)
    pairs = [_pair(adapter, modules) for modules in shared.values()]
    _refuse_unequal(pairs)
    return pairs


def _refuse_unequal(pairs: Sequence[Pair]) -> None:
    """Raise where pairs that one pattern governs have two ranks, or two scales: no config says that."""
    seen: dict[str, Module] = {}
    for pair in pairs:
        one, first = pair.modules[0], seen.setdefault(pair.path, pair.modules[0])
        if (one.r, one.scale) != (first.r, first.scale):
            raise AdapterError(
                f"{first.name} and {one.name} share their config, but have ranks {first.r} and {one.r}",
                advice="save each adapter in a folder of its own",
            )


def _pair(adapter: Adapter, modules: Sequence[Module]) -> Pair:
    first = modules[0]
    embedding = "lora_embedding_A" in first.keys
    a_name, b_name = (first.keys[f"lora_{'embedding_' if embedding else ''}{side}"] for side in "AB")
    a, b = adapter.tensors[a_name], adapter.tensors[b_name]
    path = first.name if adapter.format == "kohya" else first.pattern_path
    if path is None or (first.expert is not None and first.base_name is None):
        raise AdapterError(
            f"{first.name}: which parameter this pair belongs to cannot be told, so no pattern can give it a rank",
            advice="name the parameters in target_parameters as the model does",
        )
    return Pair(
        path,
        tuple(modules),
        a_name,
        b_name,
        a,
        b,
        turned=embedding or (adapter.config.fan_in_fan_out and len(a.shape) == 2),
        magnitude=first.keys.get("lora_magnitude_vector"),
        alpha=first.keys.get("alpha"),
    )


def _refuse(adapter: Adapter) -> None:
    """Raise where a rank cannot be lowered without changing what the adapter does beyond what is left out."""
    reason = _reason(adapter)
    if reason is not None:
        raise AdapterError(f"cannot resize this adapter: {reason}", advice=_CONVERT)
    lost = [name for name, role in adapter.roles.items() if role == "not_analysed"]
    if lost:
        why = adapter.skipped[0].reason if adapter.skipped else "not understood"
        raise AdapterError(
            f"cannot resize this adapter: {len(lost)} of its tensors depend on the rank in a way that is not known "
            f"({lost[0]}: {why})",
            advice="'gradience audit --verbose' lists them",
        )
    if not adapter.modules:
        raise AdapterError("cannot resize this adapter: it holds no LoRA pair", advice="give the folder PEFT saved")


def _reason(adapter: Adapter) -> str | None:
    """Return why the adapter as a whole is of the wrong kind, or None."""
    config = adapter.config
    if adapter.format == "kohya":
        return _not_plain(adapter)
    if adapter.format != "peft":
        return f"it is in {adapter.format}'s format, not PEFT's or kohya's"
    if config.peft_type not in {"LORA", None}:
        return f"peft_type {config.peft_type} has no B A of its own"
    other = next((m for m in [*adapter.modules, *adapter.base_dependent] if m.kind not in _KINDS), None)
    return _variant(adapter) if other is None else f"{other.name} is of kind {other.kind}"


def _not_plain(adapter: Adapter) -> str | None:
    """Return why a file of kohya's is none of plain pairs, or None."""
    plain = {"lora_A", "lora_B", "alpha"}
    other = next((m for m in adapter.modules if m.kind not in {"linear", "conv"} or not m.keys.keys() <= plain), None)
    return None if other is None else f"{other.name} is more than one pair of factors ({other.kind})"


def _variant(adapter: Adapter) -> str | None:
    """Return why a LoRA of a special sort cannot be cut, or None."""
    config = adapter.config
    if base_changing(config.init_lora_weights) is not None:
        return (
            f"init_lora_weights={config.init_lora_weights!r}: PEFT takes a part out of the base when it loads the "
            "adapter, and another rank would take out another part"
        )
    if config.kasa_config is not None:
        return "KaSA takes as many singular values out of the base as its rank, so another rank is another base"
    if config.use_bdlora:
        return "BD-LoRA's factors are block-diagonal, and the best factors of a lower rank are not"
    if config.use_qalora:
        return "QALoRA's A is of pooled inputs, which has no merge to check a result against"
    if config.ensure_weight_tying and any("lora_embedding_A" in m.keys for m in adapter.modules):
        return "ensure_weight_tying: the embedding and the head share factors, which two cuts would tear apart"
    return None
