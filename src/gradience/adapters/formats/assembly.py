"""What the readers of formats share: tensors sorted into groups by name, and what is built of them made an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gradience.adapters.config import AdapterConfig
from gradience.adapters.layout import Adapter, Format, Found, Group, Module, NeedsBase, Role, Skipped
from gradience.adapters.roles import explained
from gradience.io.safetensors import TensorSource
from gradience.io.sorting import natural_key
from gradience.schema.audit import LeftoverReason

DORA_NOTE: Final = "DoRA: the numbers below describe s B A, before the rescaling by magnitude, which needs the base"
_ROLES: Final[dict[str, Role]] = {
    "alpha": "scale",
    **dict.fromkeys(("magnitude", "m", "lora_magnitude_vector"), "magnitude"),  # LyCORIS, MLX-LM, PEFT
}


def role_of(field: str) -> Role:
    """The role of a tensor that is part of a group, by its field."""
    return "bias" if field.endswith(".bias") else _ROLES.get(field, "lora_pair")


class Assembly:
    """An adapter in the making: groups with what was built of them, and a role for every tensor of the file."""

    def __init__(self, file_format: Format, source: TensorSource, roles: dict[str, Role]) -> None:
        self.modules: list[Module] = []
        self._format = file_format
        self._source = source
        self._roles = roles
        self._waiting: list[NeedsBase] = []
        self._skipped: dict[Skipped, None] = {}  # each once, in order
        self._placed: set[str] = set()

    def add(self, group: Group, found: Found | Iterable[Found]) -> None:
        """Take what was built of a group; a group of which nothing came is not analysed."""
        keys = group.keys.values()
        self._placed.update(keys)
        kept = False
        for one in (found,) if isinstance(found, Module | NeedsBase | Skipped) else found:
            kept = kept or not isinstance(one, Skipped)
            if isinstance(one, Module):
                self.modules.append(one)
            elif isinstance(one, NeedsBase):
                self._waiting.append(one)
            else:
                self._skipped[one] = None
        if not kept:
            self._roles.update(dict.fromkeys(keys, "not_analysed"))

    def adapter(
        self, config: AdapterConfig, notes: Sequence[str] = (), unmatched: tuple[list[str], list[str]] = ([], [])
    ) -> Adapter:
        """The adapter; `unmatched` are the keys of rank_pattern and of alpha_pattern that match no module."""
        rest = {key: role for key, role in self._roles.items() if key not in self._placed}
        waiting = [Skipped(one.module.name, one.reason, LeftoverReason.NEEDS_BASE) for one in self._waiting]
        return Adapter(
            file_format=self._format,
            config=config,
            modules=sorted(self.modules, key=lambda module: natural_key(module.name)),
            roles=self._roles,
            tensors=self._source.tensors,
            skipped=[*self._skipped, *waiting, *explained(rest)],
            notes=list(notes),
            weights=[self._source.path],
            base_dependent=[one.module for one in self._waiting],
            unmatched_rank_patterns=unmatched[0],
            unmatched_alpha_patterns=unmatched[1],
        )

    @property
    def dora_notes(self) -> list[str]:
        """A remark where magnitudes rescale the updates."""
        return [DORA_NOTE] if any(module.magnitude is not None for module in self.modules) else []


def whole_adapter(
    file_format: Format, config: AdapterConfig, source: TensorSource, roles: dict[str, Role], why: Skipped
) -> Adapter:
    """An adapter of whose updates nothing is analysed, for one reason."""
    return Adapter(file_format, config, [], roles, source.tensors, [why], [], [source.path])


def grouped(source: TensorSource, endings: Mapping[str, str]) -> tuple[list[Group], dict[str, Role]]:
    """Tensors sorted into groups by the end of their names, and their roles; `unknown` is what no ending fits.

    `endings` maps the end of a name to a field; the first that fits decides. The stem before it is the module.
    """
    groups: dict[str, Group] = {}
    roles: dict[str, Role] = {}
    for key in source.tensors:
        ending = next((end for end in endings if key.endswith(end)), None)
        if ending is None:
            roles[key] = "unknown"
            continue
        stem, field = key.removesuffix(ending), endings[ending]
        groups.setdefault(stem, Group(stem)).keys[field] = key
        roles[key] = role_of(field)
    return list(groups.values()), roles
