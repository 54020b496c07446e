"""What the file of each target can hold (holds.toml), compared with an adapter before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from gradience.adapters import OUTPUTS, TOWER
from gradience.adapters.layout import PREFIX, Module
from gradience.base.weights import ties_head
from gradience.errors import AdapterError, few
from gradience.io.reading import own_table
from gradience.schema.audit import Role
from gradience.schema.writing import TargetFormat
from gradience.verbs.convert.source import is_of_pipeline
from gradience.verbs.convert.updates import Conversion, LayerUpdate, is_embedding, is_router, keeps_dora, kernel_of
from gradience.verbs.convert.write import parameters_rank, shared

Part: TypeAlias = Literal[
    "alphas",
    "ranks",
    "expert_ranks",
    "rslora",
    "magnitudes",
    "dora_in_part",
    "whole",
    "bias",
    "lora_bias",
    "token_rows",
    "base_copy",
    "unknown",
    "convolution",
    "multihead",
    "parameter",
    "lone_experts",
    "tower",
    "wrapped",
    "pipeline",
    "replicated",
    "tied_head",
    "head",
    "embedding",
    "no_model",
]


class _Pair(NamedTuple):
    """A pair of factors as it will be, or as it is read."""

    name: str
    rank: int
    scale: float
    is_expert: bool


REST: Final[frozenset[Role]] = frozenset({"full_module", "bias", "base_copy", "token_rows", "unknown", "not_analysed"})
"""The roles of tensors that belong to no update."""
_FILES: Final[dict[TargetFormat, str]] = {"peft": "a plain PEFT LoRA", "mlx": "MLX-LM's file"}
_OUT_OF_DROP: Final = "leave them out with --drop, or merge the adapter into the base instead"


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of a part in a file that does not hold it as it is."""

    lacks: str = ""
    """Why it has no place."""
    mend: str = ""
    """What to do, where --drop leaves nothing that is of use."""
    says: str = ""
    """How it is written instead, or what to know of it."""


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    what: str
    peft: Literal["holds"] | Cell
    mlx: Literal["holds"] | Cell

    def cell(self, target: TargetFormat) -> Cell:
        cell = self.mlx if target == "mlx" else self.peft
        return Cell() if cell == "holds" else cell


HOLDS: Final = own_table(__file__, "holds.toml", dict[Part, _Row])


class Subject(NamedTuple):
    """What is compared: a conversion with the paths of its modules, and its updates once they are there."""

    run: Conversion
    paths: Mapping[str, str]
    elsewhere: Collection[str] = ()
    """The tensors of other components."""
    updates: Sequence[LayerUpdate] = ()

    @property
    def modules(self) -> list[Module]:
        """The modules to convert."""
        return [one for one in self.run.source.modules if one.expert is not None or one.name in self.paths]

    @property
    def pairs(self) -> list[_Pair]:
        """The updates' pairs; the modules' before there are updates."""
        if not self.updates:
            return [_Pair(one.name, one.r, one.scale, one.expert is not None) for one in self.modules]
        return [_Pair(one.target, one.part.rank, one.part.scale, one.parameter is not None) for one in self.updates]

    def path(self, module: Module) -> str:
        """The path of a module in the target."""
        return self.paths.get(module.name, module.name)

    def tensors(self, *roles: Role) -> list[str]:
        """The tensors of these roles."""
        held = self.run.source.adapter.roles.items()
        return [name for name, role in held if role in roles and name not in self.elsewhere]


def _modules(holds: Callable[[Subject, Module], object]) -> Callable[[Subject], list[str]]:
    return lambda subject: [module.name for module in subject.modules if holds(subject, module)]


def _tensors(*roles: Role) -> Callable[[Subject], list[str]]:
    """The tensors of these roles in PEFT's files, where a role is known to be one."""
    return lambda subject: subject.tensors(*roles) if subject.run.source.adapter.file_format.is_peft else []


def _of_other_scales(subject: Subject) -> list[str]:
    ((scale, _),) = Counter(one.scale for one in subject.pairs).most_common(1)
    return [one.name for one in subject.pairs if one.scale != scale]


def _lower(pairs: Sequence[_Pair], beside: Sequence[_Pair] = ()) -> list[str]:
    most = max((one.rank for one in [*pairs, *beside]), default=0)
    return [one.name for one in pairs if one.rank < most]


def _lower_experts(subject: Subject) -> list[str]:
    """The experts of a lower rank than others, or than a router, which is a parameter beside them."""
    experts = [one for one in subject.pairs if one.is_expert]
    return _lower(experts, [one for one in subject.pairs if is_router(one.name)])


def _unknown(subject: Subject) -> list[str]:
    is_peft = subject.run.source.adapter.file_format.is_peft
    return subject.tensors("unknown", "not_analysed") if is_peft else subject.tensors(*REST)


def _dora_in_part(subject: Subject) -> list[str]:
    plain = [module.name for module in subject.modules if not keeps_dora(subject.run, module)]
    return plain if len(plain) < len(subject.modules) else []


def _on_parameter(subject: Subject, module: Module) -> bool:
    """Whether the module is a bare parameter that is neither a layer's weight nor stacked experts."""
    named = module.base_name is None or not module.base_name.endswith(".weight")
    return bool(subject.run.source.adapter.config.target_parameters) and module.expert is None and named


def _is_lone_expert(subject: Subject, module: Module) -> bool:
    path = subject.path(module).split(".")
    return module.expert is None and any(two[0] == "experts" and two[1].isdigit() for two in pairwise(path))


def _is_tied(subject: Subject, module: Module) -> bool | None:
    """Whether a module is a head that the base ties to its embedding; None of a head whose base is not at hand."""
    base = subject.run.source.base
    if not subject.path(module).endswith(OUTPUTS):
        return False
    return None if base is None else base.find(f"{module.name}.weight") is None and ties_head(base)


_FOUND: Final[dict[Part, Callable[[Subject], list[str]]]] = {
    "alphas": _of_other_scales,
    "ranks": lambda subject: _lower(subject.pairs),
    "expert_ranks": _lower_experts,
    "rslora": _modules(lambda subject, _: subject.run.source.traits.rslora),
    "magnitudes": _modules(lambda subject, one: keeps_dora(subject.run, one)),
    "dora_in_part": _dora_in_part,
    "whole": _tensors("full_module"),
    "bias": lambda subject: [name for name in _tensors("bias")(subject) if ".lora_B." not in name],
    "lora_bias": lambda subject: [name for name in _tensors("bias")(subject) if ".lora_B." in name],
    "token_rows": _tensors("token_rows"),
    "base_copy": _tensors("base_copy"),
    "unknown": _unknown,
    "convolution": _modules(lambda x, one: one.expert is None and kernel_of(x.run.source, one, x.path(one))),
    "multihead": _modules(
        lambda _, one: (one.base_name or "").endswith(("in_proj_weight", ".out_proj.base_layer.weight"))
    ),
    "parameter": _modules(_on_parameter),
    "lone_experts": _modules(_is_lone_expert),
    "tower": _modules(lambda subject, one: TOWER.search(subject.path(one))),
    "wrapped": _modules(lambda subject, one: subject.path(one).startswith("model.language_model.")),
    "pipeline": _modules(lambda subject, one: is_of_pipeline(subject.run.source, one)),
    "replicated": _modules(lambda subject, _: subject.run.source.raw.get("layer_replication")),
    "tied_head": _modules(_is_tied),
    "head": _modules(lambda subject, one: _is_tied(subject, one) is None),
    "no_model": _modules(lambda subject, _: subject.run.source.is_of_no_model),
    "embedding": _modules(
        lambda x, one: is_embedding(x.run.source, one) and "mlx" in {x.run.source.adapter.format, x.run.target}
    ),
}


def left_out(subject: Subject, *, drop: bool) -> set[str]:
    """The modules and tensors that the target's file cannot hold, where `drop` asks to leave them out.

    Raises:
        AdapterError: there are such, and `drop` is false or does not help.
    """
    target, lost, said, mends = subject.run.target, set[str](), list[str](), list[str]()
    for part, row in HOLDS.items():
        cell = row.cell(target)
        found = _FOUND[part](subject) if cell.lacks else []
        if found and drop and not cell.mend:
            lost.update(found)
        elif found:
            said.append(f"{few([name.removeprefix(PREFIX) for name in found])} ({row.what}; {cell.lacks})")
            mends += [cell.mend] if cell.mend else []
    if said:
        held = subject.run.source.files.weights
        raise AdapterError(
            f"{_FILES[target]} cannot hold all of {held}: {'; '.join(said)}",
            advice=mends[0] if mends else _OUT_OF_DROP,
        )
    if lost and all(module.name in lost for module in subject.modules):
        raise AdapterError(f"without {few(sorted(lost))} no module of {subject.run.source.files.weights} is left")
    return lost


def remarks(subject: Subject) -> Iterator[str]:
    """Yield how parts are written that the target's file does not hold as they are."""
    rank, scale = shared(subject.updates)
    values = {"rank": rank, "scale": scale, "expert_rank": parameters_rank(subject.updates)}
    for part, row in HOLDS.items():
        says = row.cell(subject.run.target).says
        if says and (found := _FOUND[part](subject)):
            yield says.format(count=len(found), **values)
