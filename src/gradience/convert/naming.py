"""What each module is called in the target: names taken apart, and kohya's underscores undone by the base's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from gradience.adapters.keys import parse_key
from gradience.adapters.modules import Module
from gradience.base.weights import BaseWeights
from gradience.convert.source import Source
from gradience.errors import AdapterError

__all__ = ["components_of", "parsed_renames", "paths_of", "renamed"]

_KOHYA: Final[dict[str, str]] = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_te_": "text_encoder",
    "lora_transformer_": "transformer",
    "lycoris_": "lycoris",
}
_SHOWN: Final = 3


def components_of(source: Source) -> dict[str, list[Module]]:
    """Return the modules by the pipeline's component that they belong to; one nameless component elsewhere."""
    found: dict[str, list[Module]] = {}
    for module in source.layers:
        found.setdefault(_component(source, module), []).append(module)
    return found


def _component(source: Source, module: Module) -> str:
    if source.adapter.format == "diffusers":
        return module.name.partition(".")[0]
    if source.adapter.format == "kohya":
        dotted = module.name.partition(".")[0] if "." in module.name else "unnamed"
        return next((name for stem, name in _KOHYA.items() if module.name.startswith(stem)), dotted)
    return ""


def paths_of(source: Source, *, component: str | None, renames: Mapping[str, str]) -> dict[str, str]:
    """Return the path in the target for each module of the component that is converted.

    Raises:
        AdapterError: there are several components, or names that only a base could tell.
    """
    found = components_of(source)
    if component is None and len(found) > 1:
        raise AdapterError(
            f"the file adapts {len(found)} models ({', '.join(found)}), and a target is one model's",
            advice="choose one with --component NAME, with its own folder as --base",
        )
    if not found and component is None:
        return {}
    chosen = next(iter(found)) if component is None else component
    if chosen not in found:
        raise AdapterError(f"no component {chosen!r} in the file", advice=f"it has: {', '.join(found) or 'none'}")
    modules = found[chosen]
    paths = _kohya_paths(modules, source.base) if source.adapter.format == "kohya" else _paths(source, modules)
    found_paths = {name: renamed(path, renames) for name, path in paths.items()}
    _refuse_twice(found_paths)
    return found_paths


def _paths(source: Source, modules: Iterable[Module]) -> dict[str, str]:
    if source.adapter.format == "diffusers":
        return {module.name: module.name.partition(".")[2] for module in modules}
    return {module.name: _peft_path(module) for module in modules}


def _peft_path(module: Module) -> str:
    """Return the module's path as PEFT's keys have it; the name itself in other formats."""
    key = next((found for name in module.keys.values() if (found := parse_key(name)) is not None), None)
    return key.module if key is not None else module.name


def _kohya_paths(modules: Sequence[Module], base: BaseWeights | None) -> dict[str, str]:
    """Return dotted paths for names whose dots became underscores, which only a list of the real names undoes."""
    dotted = {module.name: module.name.partition(".")[2] for module in modules if "." in module.name}
    if len(dotted) == len(modules):
        return dotted
    if base is None:
        raise AdapterError(
            "kohya writes dots as underscores, and only the base's own names tell which is which",
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
    """Return prefixes to replace, from OLD=NEW.

    Raises:
        AdapterError: one has no `=`.
    """
    found: dict[str, str] = {}
    for rename in renames:
        old, equals, new = rename.partition("=")
        if not equals or not old:
            raise AdapterError(f"no prefix to replace in {rename!r}", advice="write --rename OLD=NEW")
        found[old.rstrip(".")] = new.rstrip(".")
    return found


def renamed(path: str, renames: Mapping[str, str]) -> str:
    """Return the path with the first prefix that fits replaced, on a dot."""
    for old, new in renames.items():
        if path == old or path.startswith(f"{old}."):
            return (new + path[len(old) :]).removeprefix(".")
    return path


def _refuse_twice(paths: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for name, path in paths.items():
        if first.setdefault(path, name) != name:
            raise AdapterError(f"{first[path]} and {name} would both be called {path}", advice="correct --rename")
