"""LoRA on a parameter (`target_parameters`): one pair of tensors for all experts of a 3-D weight.

A is (E r, in) with experts outermost, B is (out, r E) with experts innermost; dW_e = s B_e A_e
(`lora/layer.py`, ParamWrapper.get_delta_weight). Several parameters of one module are nested: PEFT wraps
them in the order in which the module registers them, so the first is the innermost (`experts.base_layer...`)
and the last has the module's own name. The file says neither their names nor how many experts there are:
names come from the config, E from the rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from gradience.adapters.kinds.lora import common
from gradience.adapters.layout import Array, Context, Group, LoadFactors, Module, Skipped, UnsuitableError
from gradience.adapters.pairs import LoraPair
from gradience.schema.audit import LeftoverReason

# The order in which models register the weights of their experts.
_ORDER: Final = ("gate_up_proj", "gate_proj", "w1", "up_proj", "w3", "w13", "down_proj", "w2")


def parameter_nests(ctx: Context, modules: Iterable[str]) -> dict[str, list[str]]:
    """The modules whose pairs are of parameters: path to its groups' names, innermost first."""
    if not ctx.config.target_parameters:
        return {}
    nests: dict[str, list[str]] = {}
    for module in modules:
        path = _unnested(module)
        if _targets(ctx, path):
            nests.setdefault(path, []).append(module)
    return {path: sorted(held, key=len, reverse=True) for path, held in nests.items()}


def _unnested(module: str) -> str:
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    return module


def _targets(ctx: Context, path: str) -> list[str]:
    """The target parameters that may be the module's: those that name it, else those that name none."""
    targets = ctx.config.target_parameters or []
    owners = {target: target.rpartition(".")[0] for target in targets}
    named = [target for target, owner in owners.items() if owner and _ends(path, owner)]
    if named:
        return named
    listed = ctx.config.target_modules
    is_list = isinstance(listed, list)  # else a pattern or all-linear: go by the name
    other = any(_ends(path, name) for name in listed or ()) if is_list else not path.endswith("experts")
    return [] if other else [target for target, owner in owners.items() if not owner]


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def expert_modules(ctx: Context, path: str, groups: Sequence[Group]) -> list[tuple[Group, list[Module] | Skipped]]:
    """The experts' modules of one wrapped module, by group; `groups` innermost first."""
    try:
        names = _parameters(ctx, path, groups)
        found = [(group, _experts(ctx, group, path, name)) for group, name in zip(groups, names, strict=True)]
        _same_number([some for _, some in found if not isinstance(some, Skipped)])
    except UnsuitableError as error:
        return [(group, Skipped(ctx.name(group), error.reason, error.cause)) for group in groups]
    return found


def _same_number(found: Iterable[Sequence[Module]]) -> None:
    counts = sorted({len(some) for some in found})
    if len(counts) > 1:
        why = f"its parameters would have {' and '.join(map(str, counts))} experts by the config's ranks"
        raise UnsuitableError(why, LeftoverReason.CONFIG)


def _parameters(ctx: Context, path: str, groups: Sequence[Group]) -> list[str]:
    """The parameters' names, innermost first.

    Raises:
        UnsuitableError: they are ambiguous, and it matters.
    """
    candidates = sorted({target.rpartition(".")[2] for target in _targets(ctx, path)})
    if len(candidates) == len(groups) == 1:
        return candidates
    known: list[str] = [name for name in _ORDER if name in candidates]
    if len(known) == len(groups) and _fits(ctx, groups, known):
        return known
    if len({(s.config_r, s.alpha) for s in (ctx.rules.of(f"{path}.{name}") for name in candidates)}) == 1:
        return [f"parameter{depth}" for depth in range(len(groups))]
    why = f"which of {', '.join(candidates)} each pair belongs to is ambiguous, and their ranks differ"
    raise UnsuitableError(why, LeftoverReason.AMBIGUOUS)


def _fits(ctx: Context, groups: Sequence[Group], names: Sequence[str]) -> bool:
    """Whether gate_up_proj really is the one that feeds down_proj."""
    shapes = dict(zip(names, (_widths(ctx, group) for group in groups), strict=True))
    first, last = shapes.get("gate_up_proj"), shapes.get("down_proj")
    if first is None or last is None:
        return True
    return first[1] == last[0] or first[0] == last[1]


def _widths(ctx: Context, group: Group) -> tuple[int, int] | None:
    """(out, in) of a pair."""
    if "lora_A" not in group.keys or "lora_B" not in group.keys:
        return None
    return ctx.shape(group, "lora_B")[0], ctx.shape(group, "lora_A")[-1]


def _experts(ctx: Context, group: Group, path: str, parameter: str) -> list[Module] | Skipped:
    name = f"{path}.{parameter}"
    shown = f"{name}:{group.adapter or 'default'}" if ctx.several else name
    s = ctx.rules.of(name)
    try:
        r, n = _rank_and_number(ctx, group, s.config_r)
    except UnsuitableError as error:
        return Skipped(shown, error.reason, error.cause)
    out, inner = ctx.shape(group, "lora_B")[0], ctx.shape(group, "lora_A")[1]
    pair = _Stack(ctx, LoraPair(group.keys["lora_A"], group.keys["lora_B"], r, inner, out, experts=n))
    square = n > 1 and out == inner
    return [
        Module(
            name=f"{shown}[{e}]" if n > 1 else (path if parameter == "weight" else shown),
            kind="expert" if n > 1 else "linear",
            shape=(out, inner),
            r=r,
            alpha=s.alpha,
            scale=s.scale,
            params=r * (inner + out),
            load=pair.load(e),
            base_name=f"{ctx.base_path(path)}.{parameter}" if not parameter.startswith("parameter") else None,
            expert=e if n > 1 else None,
            note="a square weight: the file does not say whether the base stores it transposed" if square else None,
            **common(ctx, group, s),
        )
        for e in range(n)
    ]


def _rank_and_number(ctx: Context, group: Group, r: int) -> tuple[int, int]:
    """The rank of each expert, which the config gives, and how many share the pair."""
    ctx.require(group, "lora_A", "lora_B")
    a, b = ctx.shape(group, "lora_A"), ctx.shape(group, "lora_B")
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or r < 1 or a[0] % r:
        raise UnsuitableError(
            f"factors of shape {list(a)} and {list(b)} cannot be shared out among experts of rank {r}, "
            "the rank that the config gives"
        )
    return r, a[0] // r


class _Stack:
    """One pair for all experts, read once as long as its experts are asked for one after the other."""

    def __init__(self, ctx: Context, layout: LoraPair) -> None:
        self._ctx, self._layout = ctx, layout

    def load(self, expert: int) -> LoadFactors:
        """A loader of one expert's (b, a)."""

        def load() -> tuple[Array, Array]:
            b, a = self._both()
            return b[expert], a[expert]

        return load

    def _both(self) -> tuple[Array, Array]:
        kept = self._ctx.kept
        held = kept.get("stack")
        if held is None or held[0] is not self:
            kept.clear()  # a thread keeps no more than one pair of an adapter
            held = kept["stack"] = (self, *self._layout.read(self._ctx.source))
        return held[1], held[2]
