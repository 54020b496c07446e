"""Determine, without PEFT, what PEFT would adapt: a base's module tree, and PEFT's targets, ranks and sizes.

Everything that imitates another library's decisions is in this package (and in `adapters.patterns`, for PEFT's matching
of rank_pattern and alpha_pattern). It imitates PEFT 0.21.2 and transformers 5.24.0, and transformers 4.x for the older
names of modules. tests/base compares the package with the installed libraries on small real models. When either library
changes, read again: PEFT's `tuners/tuners_utils.py` (targets), `utils/other.py` (patterns, modules to save),
`utils/constants.py` (default targets) and `utils/transformers_weight_conversion.py` (fused experts); transformers'
`conversion_mapping.py` (renamed and fused modules) and the `base_model_prefix` of its classes.

This file reads the keys of a base's config.json that decide its module tree. model_types.toml has the facts about model
types that are only in the code of the two libraries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from gradience.errors import AdapterError
from gradience.io.reading import decode_json, own_table, read_small

_LARGEST: Final = 16 << 20  # bytes


class _Targets(msgspec.Struct, frozen=True):
    types: str
    modules: list[str] | str


class _ModelTypes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tables of model_types.toml. A text is a list of words."""

    conv1d: str
    mamba: str
    gate_up: str
    w1_w3: str
    renamed: str
    as_mixtral: str
    as_qwen2: str
    prefixes: dict[str, str]
    targets: list[_Targets]


_TABLES: Final = own_table(__file__, "model_types.toml", _ModelTypes)
_FUSING: Final = frozenset(f"{_TABLES.gate_up} {_TABLES.w1_w3}".split())
_RENAMED: Final = frozenset(_TABLES.renamed.split())
_AS_MIXTRAL: Final = frozenset(_TABLES.as_mixtral.split())
_AS_QWEN2: Final = frozenset(_TABLES.as_qwen2.split())
_PREFIXES: Final = {name: prefix for prefix, names in _TABLES.prefixes.items() for name in names.split()}

CONV1D_TYPES: Final = frozenset(_TABLES.conv1d.split())
"""Model types whose blocks use transformers' Conv1D, which stores a weight as (in, out)."""

MAMBA_TYPES: Final = frozenset(_TABLES.mamba.split())
"""Model types in which PEFT refuses out_proj and conv1d."""

DEFAULT_TARGETS: Final = {name: group.modules for group in _TABLES.targets for name in group.types.split()}
"""The modules that PEFT's LoRA adapts if target_modules is null, by model type."""


class Architecture(msgspec.Struct, frozen=True):
    """The keys of config.json that decide names and shapes. Other keys are ignored."""

    model_type: str = ""
    architectures: list[str] | None = None

    @property
    def head(self) -> str:
        """The name of the class that the files were saved from, or an empty text."""
        return (self.architectures or [""])[0]

    @property
    def prefix(self) -> str:
        """The attribute under which a class with a head keeps the bare model; `model` if the type is not known."""
        return _PREFIXES.get(self.model_type, "model")

    @property
    def is_renamed(self) -> bool:
        """Whether transformers 5 renames or splits modules on loading, in ways that are not imitated here."""
        return self.model_type in _RENAMED

    @property
    def fuses_experts(self) -> bool:
        """Whether transformers 5 fuses the experts of a layer, which files hold singly, into two 3-D parameters."""
        return self.model_type in _FUSING

    @property
    def expert_names(self) -> dict[str, str]:
        """Module name to the parameter that PEFT adapts instead, under transformers 5. Empty for most model types."""
        if self.model_type in _AS_MIXTRAL:
            return {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
        if self.model_type in _AS_QWEN2:
            fused = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
            return {"gate": "gate.weight", **fused}
        return {}


def read_architecture(folder: Path) -> Architecture:
    """The keys of the folder's config.json that decide names and shapes.

    Raises:
        AdapterError: the file is missing, too large, or not a model's config.
    """
    path = folder / "config.json"
    try:
        return decode_json(read_small(path, most=_LARGEST, what="a model's config"), Architecture)
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}", advice="give the base model's folder") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{path}: no config of a model: {error}", advice="download it again") from error
