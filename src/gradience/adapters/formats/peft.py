"""PEFT's own format: the tensors that make up each module, and the roles of the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Final

from gradience.adapters.config import ANALYSED, PROMPTS, UNMERGEABLE, AdapterConfig, ScalingRules
from gradience.adapters.formats.assembly import DORA_NOTE, Assembly, other_role, role_of, whole_adapter
from gradience.adapters.formats.foreign import is_diffusers
from gradience.adapters.kinds.incomplete import expert_modules, parameter_nests, vera_modules
from gradience.adapters.kinds.lora import adalora_module, lora_module
from gradience.adapters.kinds.products import loha_module, lokr_module
from gradience.adapters.layout import Adapter, Builder, Context, Files, Format, Group, LeftoverTensor, Module, parse_key
from gradience.adapters.traits import start_of
from gradience.errors import AdapterError
from gradience.io.safetensors import TensorSource
from gradience.schema.audit import LeftoverReason, Role

_FAMILIES: Final = (
    ("hada_", "LOHA"),
    ("lokr_", "LOKR"),
    ("vera_", "VERA"),
    ("lora_", "LORA"),
)
_BUILDERS: Final[dict[str, Builder]] = {
    "LORA": lora_module,
    "ADALORA": adalora_module,
    "LOHA": loha_module,
    "LOKR": lokr_module,
}
_WITHOUT_PATTERNS: Final = frozenset({"ADALORA", "VERA"})

_MOST_LAYERS: Final = 100_000
_UNSCALED: Final = (
    "no adapter_config.json states alpha: the ranks are those of the tensors, but the scale s is not known; norms are "
    "given at s = 1, and the size of the update is not judged"
)


def _matches(files: Files) -> bool:
    """Whether some tensor has a PEFT name. diffusers' names fit too, but it writes no config beside the weights."""
    keys, metadata = files.source.tensors, files.source.metadata
    named = any(key.startswith("base_model.") or parse_key(key) is not None for key in keys)
    return named and (files.has_config or not is_diffusers(keys, metadata))


def _read(files: Files) -> Adapter:
    """Read an adapter in PEFT's format, with a role for every tensor of the file.

    Raises:
        AdapterError: the config is missing, of another adapter type, or has a pattern that cannot be matched.
    """
    source, assumed = files.source, files.unscaled and not files.has_config
    config = files.read_config() if _matches(files) and not assumed else files.optional_config()
    declared = config.peft_type.upper() if config.peft_type else None
    groups, roles = _gather(source, config)
    if declared is not None and declared not in ANALYSED:
        return _recognised_only(source, config, roles)
    # PEFT's default alpha would stand for MLX-LM's scale, and every number be wrong.
    if declared is None and config.lora_parameters is not None and groups:
        raise AdapterError(
            f"the config is MLX-LM's, but the tensors of {source.path} are PEFT's",
            advice="give the config that was saved with them, with --adapter-config",
        )
    kind = _kind(declared, groups)
    ctx = _context(source, config, groups)
    assembly = Assembly(PEFT, source, roles)
    _build(assembly, ctx, kind, groups)
    if assumed and (groups or _matches(files)):
        if kind != "LORA" or not assembly.modules or "magnitude" in roles.values():
            files.read_config()  # which raises
        assembly.modules = [replace(m, alpha=float(m.r), scale=1.0, config_r=None) for m in assembly.modules]
        return assembly.adapter(config, [_UNSCALED])
    unmatched = ctx.rules.unmatched() if kind not in _WITHOUT_PATTERNS else ([], [])
    return assembly.adapter(config, _notes(ctx, assembly.modules, roles, unmatched), unmatched)


def _gather(source: TensorSource, config: AdapterConfig) -> tuple[list[Group], dict[str, Role]]:
    """The groups of tensors of each module's update, and a role for every tensor."""
    groups: dict[tuple[str, str], Group] = {}
    roles: dict[str, Role] = {}
    for name in source.tensors:
        key = parse_key(name)
        if key is None:
            roles[name] = other_role(name, config)
            continue
        field = f"{key.field}.bias" if key.leaf == "bias" else key.field
        groups.setdefault((key.module, key.adapter), Group(key.module, key.adapter)).keys[field] = name
        roles[name] = role_of(field)
    return list(groups.values()), roles


def _recognised_only(source: TensorSource, config: AdapterConfig, roles: dict[str, Role]) -> Adapter:
    whole = ("full_module", "bias", "base_copy", "token_rows")
    kept: dict[str, Role] = {key: role if role in whole else "not_analysed" for key, role in roles.items()}
    kind = (config.peft_type or "").upper()
    if kind in PROMPTS:
        why = f"peft_type {kind} trains a prompt and changes no weight: there is no update to analyse"
    elif kind in UNMERGEABLE:
        why = f"peft_type {kind} depends on the input, and PEFT has no merge for it: there is no update to analyse"
    else:
        # Looked for and not imported: PEFT brings torch, and headers need neither.
        installed = "" if find_spec("peft") else ", and install PEFT (in the clone: pip install -e '.[hf]')"
        why = f"peft_type {kind}: its update is what PEFT's merge makes of the base: give it with --base{installed}"
        needs_base = LeftoverTensor("*", why, LeftoverReason.NEEDS_BASE)
        return replace(whole_adapter(PEFT, config, source, kept, needs_base), by_peft=True)
    return whole_adapter(PEFT, config, source, kept, LeftoverTensor("*", why, LeftoverReason.TYPE_NOT_ANALYSED))


def _kind(declared: str | None, groups: Sequence[Group]) -> str:
    """The adapter type that the tensors belong to; the config must not declare another."""
    present = {
        kind for group in groups for prefix, kind in _FAMILIES for field in group.keys if field.startswith(prefix)
    }
    # AdaLoRA's tensors are LoRA's and lora_E.
    if any("lora_E" in group.keys for group in groups):
        present = (present - {"LORA"}) | {"ADALORA"}
    if declared is None:
        return min(present, default="LORA")  # of several the same one, in whatever order the file has them
    if present and declared not in present:
        raise AdapterError(
            f"the config says peft_type {declared}, but the file holds tensors of {' and '.join(sorted(present))}",
            advice="config and weights belong to different adapters: give the right config with --adapter-config",
        )
    return declared


def _context(source: TensorSource, config: AdapterConfig, groups: Sequence[Group]) -> Context:
    modules = {group.module for group in groups}
    return Context(
        source,
        config,
        ScalingRules(config),
        several=len({group.adapter for group in groups}) > 1,
        attention=frozenset(m for m in modules if f"{m}.base_layer.out_proj" in modules),
        layers=_unrolled(config),
    )


def _unrolled(config: AdapterConfig) -> tuple[int, ...]:
    ranges = config.layer_replication or []
    if any(not 0 <= start <= end <= _MOST_LAYERS for start, end in ranges):
        raise AdapterError(f"layer_replication in the adapter config is not a list of [start, end): {ranges[:4]}")
    layers: list[int] = []
    for start, end in ranges:
        layers += range(start, end)
        if len(layers) > _MOST_LAYERS:
            raise AdapterError("layer_replication in the adapter config makes more than 100 000 layers")
    return tuple(layers)


def _build(assembly: Assembly, ctx: Context, kind: str, groups: Sequence[Group]) -> None:
    """Build each group's modules and add them to the assembly."""
    if kind == "VERA":
        for group, result in zip(groups, vera_modules(ctx, list(groups)), strict=True):
            assembly.add(group, result)
        return
    nests = parameter_nests(ctx, dict.fromkeys(group.module for group in groups)) if kind == "LORA" else {}
    nested = {module for modules in nests.values() for module in modules}
    by_module: dict[str, list[Group]] = {}
    for group in groups:
        by_module.setdefault(group.module, []).append(group)
        if group.module not in nested:
            assembly.add(group, _BUILDERS[kind](ctx, group))
    for path, modules in nests.items():
        for same in _by_adapter(by_module, modules):
            for group, experts in expert_modules(ctx, path, same):
                assembly.add(group, experts)


def _by_adapter(by_module: Mapping[str, list[Group]], modules: Sequence[str]) -> Iterable[list[Group]]:
    """The nested groups of each adapter in the file, innermost first."""
    adapters: dict[str, list[Group]] = {}
    for module in modules:
        for group in by_module[module]:
            adapters.setdefault(group.adapter, []).append(group)
    return adapters.values()


def _notes(
    ctx: Context, modules: Sequence[Module], roles: Mapping[str, Role], unmatched: tuple[list[str], list[str]]
) -> list[str]:
    notes = [*_notes_on_the_base(ctx.config), *_notes_on_layers(ctx, roles), *_notes_on_ranks(modules)]
    if (other := _not_targeted(ctx.config, modules)) is not None:
        notes.append(other)
    for name, keys in zip(("rank_pattern", "alpha_pattern"), unmatched, strict=True):
        if keys:
            notes.append(f"{len(keys)} keys of {name} match no module of the file (first: {keys[0]!r})")
    if ctx.rules.contested:
        notes.append(
            f"{len(ctx.rules.contested)} modules match several keys of a pattern, with different values (first: "
            f"{ctx.rules.contested[0]}): PEFT sorts the keys when it saves, so the one that held in training may "
            "be another than the first, which PEFT applies on loading and is used here"
        )
    if ctx.several:
        names = sorted({m.adapter or "" for m in modules})
        notes.append(f"the file holds several adapters ({', '.join(names)}); the config was applied to each")
    return notes


def _not_targeted(config: AdapterConfig, modules: Sequence[Module]) -> str | None:
    """A note if the config's list of targets names no module of the file, else None."""
    targets = config.target_modules
    if not isinstance(targets, list) or not targets or not modules:
        return None
    suffixes = tuple(f".{target}" for target in targets)
    if any(f".{m.name.partition(':')[0]}".endswith(suffixes) or m.expert is not None for m in modules):
        return None
    return f"no target module of the config ({', '.join(targets[:4])}) is in the file: is it another adapter's?"


def _notes_on_the_base(config: AdapterConfig) -> list[str]:
    notes = []
    if start_of(config.init_lora_weights).changes_base:
        notes.append(
            f"init_lora_weights={config.init_lora_weights!r} changed the base model's weights at the start: "
            "s B A is not the whole change to the original base"
        )
    if config.kasa_config is not None:
        notes.append("KaSA removed the r smallest singular values from the base: s B A is not the whole change to it")
    if config.alora_invocation_tokens:
        notes.append("aLoRA: the update applies only after its invocation tokens, and cannot be merged")
    if config.arrow_config is not None:
        notes.append("Arrow: this adapter routes among others; what it does depends on the input")
    return notes


def _notes_on_layers(ctx: Context, roles: Mapping[str, Role]) -> list[str]:
    notes = []
    if "magnitude" in roles.values():
        notes.append(DORA_NOTE)
    if ctx.attention:
        notes.append(
            "MultiheadAttention: PEFT up to 0.21.2 applies out_proj's update twice (PR #3774); it is given here once"
        )
    return notes


def _notes_on_ranks(modules: Sequence[Module]) -> list[str]:
    wrong = [m.name for m in modules if m.config_r is not None and m.config_r != m.r]
    if not wrong:
        return []
    where = f"{len(wrong)} of {len(modules)} modules (first: {wrong[0]})"
    return [f"{where} have another rank in the file than in the config; the file's is used"]


PEFT: Final = Format("peft", _matches, _read, is_peft=True)
