"""Assemble a file's tensors into modules, and give every other tensor a role.

Such roles are heads, biases, copies of base weights, and leftovers that are not analysed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gradience.adapters import is_embedding
from gradience.adapters.config import AdapterConfig
from gradience.adapters.layout import PREFIX, Adapter, Format, Group, LeftoverTensor, Module, NeedsBase, ReadModule
from gradience.io import natural_key
from gradience.io.safetensors import TensorSource
from gradience.schema.audit import LeftoverReason, Role

_TRAINING_ONLY: Final = re.compile(r"\.(?:lora_velora_embed|lora_monteclora_sampler|ranknum)(?:\.|$)")
_FACTOR_OF_A_TYPE: Final = re.compile(
    r"(?:^|\.)(?:adamss|beft|boft|c3a|deft|delora|fourierft|frod|glora|gralora|hada|hira|hra|ia3|lily|ln_tuning"
    r"|lokr|lora|miss|oft|osf|peanut|poly_lora|poly|psoft|pvera|randlora|road|shira|supertuning|tinylora"
    r"|unilora|vblora|vera|waveft|internal_xlora)_\w+"
)
_HEAD: Final = re.compile(
    r"^(?:\w+\.)?(?:score|classifier|classification_head|qa_outputs|v_head|value_head|reward_head|summary|pre_classifier)"
    r"(?:\.\w+)*\.(?:weight|bias)$"
)
_MANY: Final = 8

_TEXTS: Final = {
    LeftoverReason.UNKNOWN: "not part of any adapter layout known here",
    LeftoverReason.TRAINING_ONLY: "used in training only",
    LeftoverReason.KIND_NOT_ANALYSED: "a tensor of a kind that is not analysed",
}

DORA_NOTE: Final = "DoRA: the update is s B A rescaled by the magnitude, and follows only with the base"
_ROLES: Final[dict[str, Role]] = {
    "alpha": "scale",
    **dict.fromkeys(("magnitude", "m", "lora_magnitude_vector"), "magnitude"),  # LyCORIS, MLX-LM, PEFT
}


def other_role(key: str, config: AdapterConfig) -> Role:  # noqa: PLR0911  # one return a role reads best
    """The role of a tensor whose name `parse_key` does not recognise."""
    name = key.removeprefix(PREFIX)
    # The order matters: a saved module may hold any of the names that are tested further down.
    if ".trainable_tokens_" in name:
        return "token_rows"
    if key in {"base_model.vera_A", "base_model.vera_B"}:
        return "lora_pair"
    # With bias="none" PEFT saves a bias of the base only as part of a copied layer.
    if name.endswith(".bias") and ".base_layer." in name:
        return "bias" if config.bias != "none" else "base_copy"
    if ".original_module." in name or name.endswith((".base_layer.weight", ".token_adapter.base_layer.weight")):
        return "base_copy"
    # As in PEFT's `_set_trainable` a saved module's name ends a path, and need not begin at a dot.
    if ".modules_to_save." in name or any(f"{module}." in name for module in config.modules_to_save or []):
        return "full_module"
    if name.endswith(".bias") and config.bias != "none":
        return "bias"
    if _FACTOR_OF_A_TYPE.search(name) or name == "prompt_embeddings":
        return "not_analysed"
    if name.endswith(".weight") and is_embedding(name.removesuffix(".weight")):
        return "full_module"  # save_embedding_layers, or a vocabulary that was resized
    if _HEAD.search(name):
        return "full_module"  # PEFT saves a task's head whole; older configs do not name it in modules_to_save
    return "unknown"


def explained(roles: dict[str, Role]) -> list[LeftoverTensor]:
    """The reasons why tensors are not analysed. Many tensors with the same reason share an entry."""
    by_cause: dict[LeftoverReason, list[str]] = {}
    for key, role in roles.items():
        if role == "unknown":
            by_cause.setdefault(LeftoverReason.UNKNOWN, []).append(key)
        elif role == "not_analysed":
            training = _TRAINING_ONLY.search(key) is not None
            why = LeftoverReason.TRAINING_ONLY if training else LeftoverReason.KIND_NOT_ANALYSED
            by_cause.setdefault(why, []).append(key)
    return [entry for cause, keys in by_cause.items() for entry in _entries(keys, cause)]


def _entries(keys: list[str], cause: LeftoverReason) -> Iterable[LeftoverTensor]:
    if len(keys) <= _MANY:
        return [LeftoverTensor(key, _TEXTS[cause], cause) for key in keys]
    return [LeftoverTensor(f"{keys[0]} and {len(keys) - 1} more", _TEXTS[cause], cause)]


def role_of(field: str) -> Role:
    """The role of a tensor in a group, by its field."""
    return "bias" if field.endswith(".bias") else _ROLES.get(field, "lora_pair")


class Assembly:
    """Collects the modules that are built from groups of tensors, and keeps a role for every tensor of the file."""

    def __init__(self, file_format: Format, source: TensorSource, roles: dict[str, Role]) -> None:
        self.modules: list[Module] = []
        self._format = file_format
        self._source = source
        self._roles = roles
        self._waiting: list[NeedsBase] = []
        self._skipped: dict[LeftoverTensor, None] = {}  # each once, in order
        self._placed: set[str] = set()

    def add(self, group: Group, found: ReadModule | Iterable[ReadModule]) -> None:
        """Add what was built from a group. Of `LeftoverTensor` alone, the group's tensors are `not_analysed`."""
        keys = group.keys.values()
        # Also of a group that is left over: it has its own entry, and `explained` must not add a second one.
        self._placed.update(keys)
        kept = False
        for one in (found,) if isinstance(found, Module | NeedsBase | LeftoverTensor) else found:
            kept = kept or not isinstance(one, LeftoverTensor)
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
        """The finished adapter; `unmatched` are the keys of rank_pattern and of alpha_pattern that match no module."""
        rest = {key: role for key, role in self._roles.items() if key not in self._placed}
        waiting = [LeftoverTensor(one.module.name, one.reason, LeftoverReason.NEEDS_BASE) for one in self._waiting]
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
        """A note if some module has a DoRA magnitude; else empty."""
        return [DORA_NOTE] if any(module.magnitude is not None for module in self.modules) else []


def whole_adapter(
    file_format: Format, config: AdapterConfig, source: TensorSource, roles: dict[str, Role], why: LeftoverTensor
) -> Adapter:
    """An adapter without modules, because for one reason none of its updates is analysed."""
    return Adapter(file_format, config, [], roles, source.tensors, [why], [], [source.path])


def grouped(source: TensorSource, endings: Mapping[str, str]) -> tuple[list[Group], dict[str, Role]]:
    """Sort tensors into groups by the end of their names, and return the groups and every tensor's role.

    `endings` maps the end of a name to a field. The first ending that fits decides, and the stem before it is the
    module. The role of a tensor that no ending fits is `unknown`.
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
