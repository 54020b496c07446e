"""The adapter to convert: the modules that can be converted, the refusal of others, and their paths in the target.

Programs name modules differently. diffusers puts a pipeline's component first. kohya writes the dots of a path as
underscores, and only the base's own names tell which underscores were dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from gradience.adapters.config import ScalingRules
from gradience.adapters.files import AdapterFiles
from gradience.adapters.kinds.products import MOST_RANK, loha_module, lokr_module
from gradience.adapters.layout import Adapter, Context, Group, Module, parse_key
from gradience.adapters.traits import Operation, Traits, obstacles, traits_of
from gradience.base.weights import BaseWeights, find_shards, model_type_of
from gradience.configs.document import peft_in
from gradience.configs.families import Dimensions
from gradience.errors import AdapterError
from gradience.io import PathLike
from gradience.io.safetensors import DTYPES, TensorSource
from gradience.rewriting.sides import open_stored

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}

_LARGEST_PRODUCT: Final = 1 << 14  # the largest inner size of a LoHa or LoKr as one pair; it bounds memory
_SHOWN: Final = 3  # names in a message
_ELSEWHERE: Final = ("gptoss", "mixtral", "phimoe", "minimax")  # models, as mlx_lm/models 0.32.2 has them
_KOHYA: Final[dict[str, str]] = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te_": "text_encoder",
    "lora_transformer_": "transformer",
    "lycoris_": "lycoris",
}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return safetensors' name of a dtype, such as `BF16`."""
    return _NAMES[dtype]


class SourceAdapter(NamedTuple):
    """An opened adapter, its config as written, its base if one was given, and the modules to convert."""

    files: AdapterFiles
    adapter: Adapter
    traits: Traits
    tensors: TensorSource
    raw: dict[str, Any]
    base: BaseWeights | None
    modules: list[Module]

    @property
    def experts(self) -> list[Module]:
        """The modules that are one slice of stacked experts."""
        return [module for module in self.modules if module.expert is not None]

    @property
    def layers(self) -> list[Module]:
        """The modules that are whole layers, not slices of stacked experts."""
        return [module for module in self.modules if module.expert is None]

    @property
    def has_experts_elsewhere(self) -> bool:
        """Whether MLX-LM lays the experts of this base out otherwise than Qwen's: by its config, else by its name."""
        kind = "" if self.base is None else model_type_of(self.base)
        named = str(self.raw.get("base_model_name_or_path") or "")
        return re.sub(r"[^a-z]", "", (kind or Path(named).name).lower()).startswith(_ELSEWHERE)

    @property
    def label(self) -> str:
        """The adapter's type with its variants, or its format, as a label for reports."""
        if self.adapter.file_format.is_peft:
            return " ".join([self.traits.peft_type, *self.traits.variants])
        return self.adapter.format.upper() + (" DoRA" if self.traits.dora else "")

    @property
    def is_of_no_model(self) -> bool:
        """Whether MLX-LM is known to have no model of the base's type: by the base, else by PEFT's config."""
        from gradience.rules.config.facts import CheckContext, Facts
        from gradience.rules.config.serving import takes_base

        if "peft_type" not in self.raw:
            return False
        kind = "" if self.base is None else model_type_of(self.base)
        around = CheckContext(model=Dimensions(kind) if kind else None)
        return not takes_base("mlx", Facts(peft_in(self.files.config, self.raw).config, around))


def open_source(
    path: PathLike, *, adapter_config: PathLike | None, weights: PathLike | None, base: PathLike | None
) -> SourceAdapter:
    """Open the adapter, and collect the modules to convert.

    Raises:
        AdapterError: its files cannot be read, or no LoRA can express what it does.
    """
    stored = open_stored(path, adapter_config=adapter_config, weights=weights)
    files, adapter, tensors = stored.files, stored.adapter, stored.tensors
    refusal = next(obstacles(adapter, Operation.CONVERT), None)
    if refusal is not None:
        raise AdapterError(f"this adapter cannot be converted: {refusal}", advice="see docs/convert.md for what can be")
    adapter = _with_large_products(adapter, tensors)
    base_weights = BaseWeights(find_shards(Path(base))) if base is not None else None
    if adapter.by_peft and base_weights is not None:
        from gradience.models.merged import with_merges  # torch, only where PEFT has to merge

        adapter = with_merges(adapter, files.config, base_weights)
    elif adapter.by_peft:
        raise AdapterError(adapter.skipped[0].reason)
    if adapter.base_dependent and base_weights is None:
        why = next(s.reason for s in adapter.skipped if s.name == adapter.base_dependent[0].name)
        raise AdapterError(why, advice="give the base model that it was trained on with --base PATH")
    modules = [*adapter.modules, *adapter.base_dependent]
    if not modules:
        why = "; ".join(f"{s.name}: {s.reason}" for s in adapter.skipped[:_SHOWN]) or "it holds no update"
        raise AdapterError(f"no module of {files.weights} can be converted ({why})")
    return SourceAdapter(files, adapter, traits_of(adapter), tensors, stored.raw, base_weights, modules)


def _with_large_products(adapter: Adapter, source: TensorSource) -> Adapter:
    """Return the adapter with the LoHa and LoKr modules added whose rank is too high for an audit."""
    build = {"LOHA": loha_module, "LOKR": lokr_module}.get((adapter.config.peft_type or "").upper())
    if build is None:
        return adapter
    ctx = Context(source, adapter.config, ScalingRules(adapter.config))
    groups: dict[str, Group] = {}
    for name, role in adapter.roles.items():
        if role == "not_analysed" and (key := parse_key(name)) is not None:
            groups.setdefault(key.module, Group(key.module)).keys[key.field] = name
    built = [build(ctx, group, most_rank=_LARGEST_PRODUCT) for group in groups.values()]
    more = [module for module in built if isinstance(module, Module) and module.r > MOST_RANK]
    placed = {name for module in more for name in module.keys.values()}
    return replace(
        adapter,
        modules=[*adapter.modules, *more],
        roles={name: "lora_pair" if name in placed else role for name, role in adapter.roles.items()},
    )


def components_of(source: SourceAdapter) -> dict[str, list[Module]]:
    """Return the modules by component of the pipeline; for other adapters, one component with an empty name."""
    components: dict[str, list[Module]] = {}
    for module in source.layers:
        components.setdefault(_component(source, module), []).append(module)
    return components


def _component(source: SourceAdapter, module: Module) -> str:
    if source.adapter.file_format.component_prefix:
        return module.name.partition(".")[0]
    if not source.adapter.file_format.module_paths:
        dotted = module.name.partition(".")[0] if "." in module.name else "unnamed"
        return next((name for stem, name in _KOHYA.items() if module.name.startswith(stem)), dotted)
    return ""


def is_of_pipeline(source: SourceAdapter, module: Module) -> bool:
    """Whether a module is one of an image model's parts."""
    of_images = {*_KOHYA.values()} - {"lycoris"}
    return source.adapter.file_format.component_prefix or _component(source, module) in of_images


def paths_of(source: SourceAdapter, *, component: str | None, renames: Mapping[str, str]) -> dict[str, str]:
    """Return the path in the target for each module of the component to convert.

    Raises:
        AdapterError: none of several components is chosen, or the paths need a base and do not follow from it.
    """
    components = components_of(source)
    if component is None and len(components) > 1:
        raise AdapterError(
            f"the file adapts {len(components)} models ({', '.join(components)}), and a target is one model's",
            advice="choose one with --component NAME, with its own folder as --base",
        )
    if not components and component is None:
        return {}
    chosen = next(iter(components)) if component is None else component
    if chosen not in components:
        raise AdapterError(f"no component {chosen!r} in the file", advice=f"it has: {', '.join(components) or 'none'}")
    modules = components[chosen]
    paths = (
        _kohya_paths(modules, source.base) if not source.adapter.file_format.module_paths else _paths(source, modules)
    )
    targets = {name: renamed(path, renames) for name, path in paths.items()}
    _refuse_twice(targets)
    return targets


def _paths(source: SourceAdapter, modules: Iterable[Module]) -> dict[str, str]:
    if source.adapter.file_format.component_prefix:
        return {module.name: module.name.partition(".")[2] for module in modules}
    return {module.name: _peft_path(module) for module in modules}


def _peft_path(module: Module) -> str:
    """Return the module's path as in PEFT's tensor names; in other formats, the module's name."""
    key = next(filter(None, map(parse_key, module.keys.values())), None)
    return key.module if key is not None else module.name


def _kohya_paths(modules: Sequence[Module], base: BaseWeights | None) -> dict[str, str]:
    """Return dotted paths for names whose dots became underscores, by looking them up among the base's names."""
    dotted = {module.name: module.name.partition(".")[2] for module in modules if "." in module.name}
    if len(dotted) == len(modules):
        return dotted
    if base is None:
        raise AdapterError(
            "kohya writes dots as underscores, which only the base's own names undo",
            advice="give the base model's folder with --base PATH",
        )
    known: dict[str, list[str]] = {}
    for file in base.files:
        for name in file.tensors:
            path = name.removesuffix(".weight")
            known.setdefault(path.replace(".", "_"), []).append(path)
    paths: dict[str, str] = {}
    missing: list[str] = []
    for module in modules:
        stem = next((s for s in _KOHYA if module.name.startswith(s)), "")
        hits = known.get(module.name.removeprefix(stem), [])
        # Several paths may be one name without their dots.
        if len(hits) == 1:
            paths[module.name] = hits[0]
        else:
            missing.append(module.name)
    if missing:
        raise AdapterError(
            f"{len(missing)} of {len(modules)} modules are not in the base under their names "
            f"({', '.join(missing[:_SHOWN])})",
            advice="give the base whose names the adapter was trained with (for a UNet: the same layout of blocks)",
        )
    return paths


def parsed_renames(renames: Iterable[str]) -> dict[str, str]:
    """Return the prefixes to replace and their replacements, from texts OLD=NEW.

    Raises:
        AdapterError: a text has no `=`, or no OLD.
    """
    prefixes: dict[str, str] = {}
    for rename in renames:
        old, equals, new = rename.partition("=")
        if not equals or not old:
            raise AdapterError(f"no prefix to replace in {rename!r}", advice="write --rename OLD=NEW")
        prefixes[old.rstrip(".")] = new.rstrip(".")
    return prefixes


def renamed(path: str, renames: Mapping[str, str]) -> str:
    """Return the path with the first matching prefix replaced; a prefix ends at a dot."""
    for old, new in renames.items():
        if path == old or path.startswith(f"{old}."):
            return (new + path[len(old) :]).removeprefix(".")
    return path


def _refuse_twice(paths: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for name, path in paths.items():
        if first.setdefault(path, name) != name:
            raise AdapterError(f"{first[path]} and {name} would both be called {path}", advice="correct --rename")
