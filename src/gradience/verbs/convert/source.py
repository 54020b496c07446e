"""The adapter that is converted: which of its modules can be, and why the others cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from gradience.adapters.config import ScalingRules
from gradience.adapters.kinds.lora import base_changing
from gradience.adapters.kinds.products import MOST_RANK, loha_module, lokr_module
from gradience.adapters.layout import Adapter, Array, Context, Group, Module, parse_key
from gradience.adapters.open import AdapterFiles, open_adapter
from gradience.base.weights import BaseWeights, find_shards
from gradience.errors import AdapterError
from gradience.io.safetensors import DTYPES, TensorSource
from gradience.io.types import PathLike
from gradience.verbs.writing import raw_config

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return safetensors' name of the type, such as `BF16`."""
    return _NAMES[dtype]


def padded(array: Array, shape: tuple[int, ...]) -> Array:
    """Return the array with zeros behind it on each axis, up to the shape."""
    if array.shape == shape:
        return array
    wide = np.zeros(shape, array.dtype)
    wide[tuple(slice(0, size) for size in array.shape)] = array
    return wide


_LARGEST_PRODUCT: Final = 1 << 14  # rank of the pair that a LoHa or LoKr product is unfolded to; bounds memory
_SHOWN: Final = 3  # names in a message
_RECOMPUTED: Final = ("pissa", "olora")


class Source(NamedTuple):
    """An opened adapter, its config as written, its base if one was given, and the modules to convert."""

    files: AdapterFiles
    adapter: Adapter
    tensors: TensorSource
    raw: dict[str, Any]
    base: BaseWeights | None
    modules: list[Module]

    @property
    def experts(self) -> list[Module]:
        """The modules that are one of several stacked experts."""
        return [module for module in self.modules if module.expert is not None]

    @property
    def layers(self) -> list[Module]:
        """The modules that are a layer of their own."""
        return [module for module in self.modules if module.expert is None]

    @property
    def label(self) -> str:
        """The type of the adapter, with what makes it special."""
        config = self.adapter.config
        if self.adapter.format != "peft":
            dora = any(module.magnitude is not None for module in self.modules)
            return self.adapter.format.upper() + (" DoRA" if dora else "")
        marks = {
            "DoRA": config.use_dora,
            "rsLoRA": config.use_rslora,
            "KaSA": config.kasa_config is not None,
            "BD-LoRA": bool(config.use_bdlora),
            str(config.init_lora_weights): base_changing(config.init_lora_weights) is not None,
        }
        return " ".join([(config.peft_type or "LORA").upper(), *(mark for mark, is_so in marks.items() if is_so)])

    @property
    def is_plain(self) -> bool:
        """Whether it is a plain LoRA of PEFT's already: alpha / r, no part that is not a pair."""
        return self.adapter.format == "peft" and self.label == "LORA"


def open_source(
    path: PathLike, *, adapter_config: PathLike | None, weights: PathLike | None, base: PathLike | None
) -> Source:
    """Return the adapter with the modules that can be converted.

    Raises:
        AdapterError: its files cannot be read, or it is of a kind that is no LoRA in disguise.
    """
    files, adapter = open_adapter(path, adapter_config=adapter_config, weights=weights)
    if adapter.source is None:
        raise AdapterError(f"{path} cannot be read again", advice="give the adapter's folder")
    tensors = adapter.source
    _refuse_kind(adapter)
    adapter = _with_large_products(adapter, tensors)
    found = BaseWeights(find_shards(Path(base))) if base is not None else None
    if adapter.base_dependent and found is None:
        why = next(s.reason for s in adapter.skipped if s.name == adapter.base_dependent[0].name)
        raise AdapterError(why, advice="give the base model that it was trained on with --base PATH")
    modules = [*adapter.modules, *adapter.base_dependent]
    if not modules:
        why = "; ".join(f"{s.name}: {s.reason}" for s in adapter.skipped[:_SHOWN]) or "it holds no update"
        raise AdapterError(f"no module of {files.weights} can be converted ({why})")
    raw = raw_config(files.config) if files.config.is_file() else {}
    return Source(files, adapter, tensors, raw, found, modules)


def _refuse_kind(adapter: Adapter) -> None:
    """Refuse what is no weight update, or one that cannot be known."""
    config = adapter.config
    init = base_changing(config.init_lora_weights)
    why = None
    if config.alora_invocation_tokens:
        why = "aLoRA applies after its invocation tokens only: a plain LoRA would apply everywhere"
    elif config.arrow_config is not None:
        why = "Arrow routes among adapters: what it does depends on the input"
    elif config.use_qalora:
        why = "QALoRA pools its inputs for a GPTQ base, and PEFT has no merge of it to compare with"
    elif adapter.format == "torchtune":
        why = "torchtune's names and the order of its query and key rows are its own: export it to PEFT from torchtune"
    elif init is not None and str(config.init_lora_weights).lower() not in _RECOMPUTED:
        why = f"{config.init_lora_weights} changed the base, by an amount that cannot be recomputed"
    elif init is not None and config.use_dora:
        why = f"DoRA on a base that {config.init_lora_weights} changed cannot be recomputed"
    if why is not None:
        raise AdapterError(f"this adapter cannot be converted: {why}", advice="see docs/convert.md for what can be")


def refuse_modules(source: Source) -> None:
    """Refuse a module whose pair has no place in another format.

    Raises:
        AdapterError: with the first of them.
    """
    for module in source.modules:
        why = None
        if module.adapter is not None:
            why = "the file holds several adapters: save each on its own first"
        elif _on_parameter(source, module):
            why = "a LoRA on a parameter of this name has no place in another format"
        elif (module.base_name or "").endswith((".in_proj_weight", "in_proj_weight", ".out_proj.base_layer.weight")):
            why = "MultiheadAttention's nested pair has no place in another format"
        if why is not None:
            raise AdapterError(f"{module.name}: {why}")


def _with_large_products(adapter: Adapter, source: TensorSource) -> Adapter:
    """Return the adapter with LoHa and LoKr modules of a rank that is too high for an audit."""
    build = {"LOHA": loha_module, "LOKR": lokr_module}.get((adapter.config.peft_type or "").upper())
    if build is None:
        return adapter
    ctx = Context(source, adapter.config, ScalingRules(adapter.config))
    groups: dict[str, Group] = {}
    for name, role in adapter.roles.items():
        if role == "not_analysed" and (key := parse_key(name)) is not None:
            groups.setdefault(key.module, Group(key.module)).keys[key.field] = name
    found = [build(ctx, group, most_rank=_LARGEST_PRODUCT) for group in groups.values()]
    more = [module for module in found if isinstance(module, Module) and module.r > MOST_RANK]
    placed = {name for module in more for name in module.keys.values()}
    return replace(
        adapter,
        modules=[*adapter.modules, *more],
        roles={name: "lora_pair" if name in placed else role for name, role in adapter.roles.items()},
    )


def _on_parameter(source: Source, module: Module) -> bool:
    """Return whether the module is a single parameter that is no layer's weight."""
    named = module.base_name is None or not module.base_name.endswith(".weight")
    return bool(source.adapter.config.target_parameters) and module.expert is None and named
