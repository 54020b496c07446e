"""PEFT's own layout: which tensors form a pair, and what the other ones are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gradience.adapters.config import AdapterConfig, matching_pattern, scaling
from gradience.adapters.modules import Adapter, Array, LoadFactors, Module, Role, Skipped
from gradience.adapters.names import natural_key
from gradience.adapters.tensors import TensorInfo, TensorSource

__all__ = ["PREFIX", "read_peft"]

PREFIX: Final = "base_model.model."

_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?P<rest>.+))?$")
_LORA = re.compile(r"(?:^|\.)lora_\w+")
_BASE_CHANGING: Final = ("pissa", "olora", "corda", "loftq", "lora_ga", "kasa")
_ANALYSED: Final = frozenset({"LORA", None})


@dataclass(slots=True)
class _Pair:
    """The tensor names of one module's factors, as they are found."""

    a: str | None = None
    b: str | None = None
    embedding: bool = False


def read_peft(source: TensorSource, config: AdapterConfig) -> Adapter:
    """Return the adapter's modules, with a role for every tensor of the file.

    Raises:
        AdapterError: a pattern of the config is no regular expression.
    """
    peft_type = config.peft_type.upper() if config.peft_type else None
    if peft_type not in _ANALYSED:
        return _recognised_only(source, config)
    pairs, roles = _sort(source.tensors, config)
    modules: list[Module] = []
    skipped: list[Skipped] = []
    for name in sorted(pairs, key=natural_key):
        found = _module(source, config, name, pairs[name])
        if isinstance(found, Module):
            modules.append(found)
            continue
        skipped.append(found)
        for key in (pairs[name].a, pairs[name].b):
            if key is not None:
                roles[key] = "not_analysed"
    skipped += [Skipped(k, _WHY[role]) for k, role in roles.items() if role in _WHY and k not in _keys(pairs.values())]
    notes = _notes(config, modules, roles)
    return Adapter("peft", config, modules, roles, source.tensors, skipped, notes, [source.path])


_WHY: Final[dict[Role, str]] = {
    "not_analysed": "a LoRA tensor of a kind that is not analysed yet",
    "unknown": "not part of any adapter layout known here",
}


def _keys(pairs: Iterable[_Pair]) -> set[str | None]:
    return {key for pair in pairs for key in (pair.a, pair.b)}


def _recognised_only(source: TensorSource, config: AdapterConfig) -> Adapter:
    reason = f"peft_type {config.peft_type}: recognised, not analysed"
    roles: dict[str, Role] = dict.fromkeys(source.tensors, "not_analysed")
    return Adapter("peft", config, [], roles, source.tensors, [Skipped("*", reason)], [], [source.path])


def _sort(tensors: dict[str, TensorInfo], config: AdapterConfig) -> tuple[dict[str, _Pair], dict[str, Role]]:
    pairs: dict[str, _Pair] = {}
    roles: dict[str, Role] = {}
    for key in tensors:
        hit = _FACTOR.match(key.removeprefix(PREFIX))
        if hit is None or not _is_weight(hit):
            roles[key] = _other_role(key, config)
            continue
        pair = pairs.setdefault(hit["module"], _Pair(embedding=bool(hit["embedding"])))
        if hit["side"] == "A":
            pair.a = key
        else:
            pair.b = key
        roles[key] = "lora_pair"
    return pairs, roles


def _is_weight(hit: re.Match[str]) -> bool:
    """Return whether the key names a factor itself, with or without the adapter's name in it."""
    rest = hit["rest"]
    if hit["embedding"]:
        return rest is None or not rest.endswith(".bias")
    return rest is not None and (rest == "weight" or rest.endswith(".weight"))


def _other_role(key: str, config: AdapterConfig) -> Role:  # noqa: PLR0911  # one return a role reads best
    name = key.removeprefix(PREFIX)
    if "lora_magnitude_vector" in name:
        return "magnitude"
    if "trainable_tokens_" in name:
        return "token_rows"
    if name.endswith(".lora_B.bias"):
        return "bias"
    if _LORA.search(name):
        return "not_analysed"
    if ".original_module." in name or name.endswith(".base_layer.weight"):
        return "base_copy"
    if ".modules_to_save." in name or _saved_whole(name, config.modules_to_save or []):
        return "full_module"
    if name.endswith(".bias") and (config.bias != "none" or ".base_layer." in name):
        return "bias"
    return "unknown"


def _saved_whole(name: str, saved: list[str]) -> bool:
    parts = name.split(".")
    return any(f".{module}." in f".{name}" or module in parts for module in saved)


def _module(source: TensorSource, config: AdapterConfig, name: str, pair: _Pair) -> Module | Skipped:
    if pair.a is None or pair.b is None:
        return Skipped(name, f"lora_{'A' if pair.b else 'B'} without its partner")
    a, b = source.tensors[pair.a], source.tensors[pair.b]
    if not a.dtype.startswith(("F", "BF")) or not b.dtype.startswith(("F", "BF")):
        return Skipped(name, f"factors of dtype {a.dtype} and {b.dtype}, not floating point")
    if (reason := _misfit(a.shape, b.shape)) is not None:
        return Skipped(name, reason)
    r = a.shape[0]
    alpha, scale = scaling(config, name, r)
    out, inner = b.shape[0], a.size // r
    turned = pair.embedding or config.fan_in_fan_out
    return Module(
        name=name,
        kind=_kind(source, name, pair, a),
        shape=(inner, out) if turned else (out, inner),
        r=r,
        alpha=alpha,
        scale=scale,
        params=a.size + b.size,
        load=_loader(source, pair.a, pair.b, r),
        config_r=_config_rank(config, name),
    )


def _misfit(a: tuple[int, ...], b: tuple[int, ...]) -> str | None:
    """Return why two shapes are no pair, or None. A is (r, in, ...), B is (out, r, 1, ...)."""
    if len(a) < 2 or len(b) < 2 or 0 in a or 0 in b:  # noqa: PLR2004  # matrices at least
        return f"factors of shape {list(a)} and {list(b)}: expected (r, in) and (out, r)"
    if any(n != 1 for n in b[2:]) or len(a) != len(b):
        return f"factors of shape {list(a)} and {list(b)}: expected a 1 x 1 kernel in B"
    if a[0] != b[1]:
        return f"ranks disagree: A is {list(a)}, B is {list(b)}"
    return None


def _kind(source: TensorSource, name: str, pair: _Pair, a: TensorInfo) -> str:
    if any(f"{name}.lora_magnitude_vector" in key for key in _siblings(source, pair)):
        return "dora"
    if pair.embedding:
        return "embedding"
    return "conv" if len(a.shape) > 2 else "linear"  # noqa: PLR2004


def _siblings(source: TensorSource, pair: _Pair) -> tuple[str, ...]:
    stem = (pair.a or "").split(".lora_")[0]
    candidates = (f"{stem}.lora_magnitude_vector", f"{stem}.lora_magnitude_vector.weight")
    return tuple(key for key in candidates if key in source.tensors)


def _config_rank(config: AdapterConfig, name: str) -> int:
    patterns = config.rank_pattern or {}
    key = matching_pattern(patterns, name)
    rank = config.r if key is None else patterns[key]
    return rank if isinstance(rank, int) else config.r


def _loader(source: TensorSource, a: str, b: str, r: int) -> LoadFactors:
    def load() -> tuple[Array, Array]:
        return source.read(b).reshape(-1, r), source.read(a).reshape(r, -1)

    return load


def _notes(config: AdapterConfig, modules: list[Module], roles: dict[str, Role]) -> list[str]:
    notes = []
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING):
        notes.append(
            f"init_lora_weights={init!r} changed the base model's weights at the start: "
            "the numbers below describe s B A, which is not the whole change to the original base"
        )
    if config.use_dora or "magnitude" in roles.values():
        notes.append("DoRA: the numbers below describe s B A, before the rescaling by magnitude, which needs the base")
    wrong = [m.name for m in modules if m.config_r != m.r]
    if wrong:
        notes.append(
            f"{len(wrong)} of {len(modules)} modules have another rank in the file than in the config "
            f"(first: {wrong[0]}); the file's is used"
        )
    return notes
