"""The parameters of a model by what they are: of an adapter, trained whole, head, norm, embedding, or base."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch

from gradience.adapters import EMBEDDINGS, OUTPUTS
from gradience.hf.digests import digest_of, plain_name
from gradience.schema.wiring import BY_LORA, AdapterWiring, Kind, ParameterGroup

TRAINABLE_BYTES: Final = 50 << 20  # of trainable weights, and of the optimizer's state, that are read for a digest
FROZEN_BYTES: Final = 4 << 20  # of each kind of frozen weights
FEW: Final = 8  # names told
_KINDS: Final[Sequence[Kind]] = ("adapter", "whole", "head", "base", "norm", "embedding")
_HEADS: Final = frozenset(
    {
        *("lm_head", "score", "classifier", "classification_head", "qa_outputs", "embed_out", "head", "heads"),
        *("v_head", "value_head", "output_projection", "summary", "reward_head"),
    }
)
_OTHER: Final = frozenset({"lm_head", "embed_out", "output_projection", "original_module"})  # no new heads
_NAMED: Final = re.compile(r"(?:^|[._])(?:lora|dora|loha|lokr|hada|ia3|vera|oft|boft|adapters?)(?:[._A-Z]|$)")


class NamedParameter(NamedTuple):
    """A parameter: its name, tensor and kind; of an adapter's also the adapted module and the adapter's name."""

    name: str
    tensor: torch.nn.Parameter
    kind: Kind
    layer: str | None = None
    adapter: str | None = None


class _Zone(NamedTuple):
    """Where a module is: in an adapted module's adapter, in a copy that is trained whole, or beside PEFT's model."""

    kind: str | None = None
    layer: str | None = None
    adapter: str | None = None
    heads: bool = False
    beside: bool = False


def parts_of(model: torch.nn.Module) -> list[NamedParameter]:
    """Return the model's parameters, each once."""
    modules = dict(model.named_modules())
    wrapped = {path for path, module in modules.items() if _is_wrapper(module)}
    zones: dict[str, _Zone] = {}
    ids: set[int] = set()
    parts = []
    for path, module in modules.items():
        above, _, own = path.rpartition(".")
        outer = zones[above] if path else _Zone(beside=bool(wrapped))
        outer = outer._replace(beside=outer.beside and path not in wrapped)
        zone = zones[path] = _zone(outer, own, above, modules.get(above))
        # This goes module by module, because where a parameter is decides its kind; a tied one has its first name.
        for name, tensor in module._parameters.items():  # noqa: SLF001  # as `named_parameters` reads them
            if tensor is None or id(tensor) in ids:
                continue
            ids.add(id(tensor))
            whole = plain_name(f"{path}.{name}" if path else name)
            inner = _zone(zone, name, path, module)
            kind = _kind(inner, module, own, whole)
            if kind == "base" and inner.beside and tensor.requires_grad:
                kind = "head"  # a loop's own module around an adapted model
            parts.append(NamedParameter(whole, tensor, kind, inner.layer, inner.adapter))
    return parts


def _zone(above: _Zone, own: str, path: str, parent: torch.nn.Module | None) -> _Zone:
    heads = above.heads or own in _HEADS
    if own == "modules_to_save":
        return _Zone("whole")
    if own in getattr(parent, "adapter_layer_names", ()) or own == "prompt_encoder":
        return _Zone("adapter", plain_name(path) or own, beside=above.beside)
    # PEFT's trainable tokens hold the embedding itself inside the adapter, as `base_layer`.
    if above.kind is not None and own != "base_layer":
        return above if above.adapter is not None else above._replace(adapter=own)
    return _Zone(heads=heads, beside=above.beside)


def _is_wrapper(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module, "peft_config", None), dict)


def _kind(zone: _Zone, module: torch.nn.Module, own: str, name: str) -> Kind:
    # Its name counts too: adapters of other programs have no classes that are known here.
    if zone.kind == "adapter" or (zone.kind is None and ".base_layer." not in name and _NAMED.search(name)):
        return "adapter"
    if zone.kind == "whole":
        return "whole"
    if isinstance(module, torch.nn.Embedding):
        return "embedding"
    if "Norm" in type(module).__name__:
        return "norm"
    return "head" if zone.heads or own in _HEADS else "base"


def groups_of(parts: Sequence[NamedParameter]) -> list[ParameterGroup]:
    """Return the parameters by kind, with their digests."""
    by_kind = {kind: [part for part in parts if part.kind == kind] for kind in _KINDS}
    trained = sum(_bytes(part) for part in parts if part.tensor.requires_grad)
    return [_group(kind, own, trained) for kind, own in by_kind.items() if own]


def _group(kind: Kind, parts: Sequence[NamedParameter], trained: int) -> ParameterGroup:
    live = [part for part in parts if part.tensor.requires_grad]
    frozen = [part for part in parts if not part.tensor.requires_grad]
    # The budget is of all trainable weights: each kind has its share.
    share = TRAINABLE_BYTES * sum(map(_bytes, live)) // (trained or 1)
    digest = digest_of(_named(live), max(1, share))
    frozen_digest = digest_of(_named(frozen), FROZEN_BYTES)
    return ParameterGroup(
        kind=kind,
        tensors=len(parts),
        parameters=sum(part.tensor.numel() for part in parts),
        trainable_tensors=len(live),
        trainable=sum(part.tensor.numel() for part in live),
        matrices=sum(part.tensor.ndim > 1 for part in live),
        dtypes=sorted({str(part.tensor.dtype).removeprefix("torch.") for part in live or parts}),
        devices=sorted({part.tensor.device.type for part in parts}),
        digest=digest.digest if digest else None,
        frozen_digest=frozen_digest.digest if frozen_digest else None,
        sampled=digest.sampled if digest else 1,
        frozen_sampled=frozen_digest.sampled if frozen_digest else 1,
    )


def _bytes(part: NamedParameter) -> int:
    return part.tensor.numel() * part.tensor.element_size()


def _named(parts: Sequence[NamedParameter]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((part.name, part.tensor) for part in parts)


def adapter_of(model: torch.nn.Module, parts: Sequence[NamedParameter]) -> AdapterWiring | None:
    """Return what the model's adapters are; None if it has none."""
    own = [part for part in parts if part.kind == "adapter"]
    layers = [module for module in model.modules() if hasattr(module, "adapter_layer_names")]
    wrappers = [module for module in model.modules() if _is_wrapper(module)]
    if not own and not wrappers:
        return None
    active = sorted({name for layer in layers for name in _names(layer, "active_adapters")})
    used = [part for part in own if not active or part.adapter is None or part.adapter in active]
    frozen = [part for part in used if not part.tensor.requires_grad]
    by_layer = defaultdict[str | None, list[NamedParameter]](list)
    for part in used:
        by_layer[part.layer].append(part)
    configs: dict[str, Any] = {}
    for wrapper in wrappers:
        configs |= getattr(wrapper, "peft_config")  # noqa: B009  # typed as a module
    return AdapterWiring(
        names=sorted({*configs, *(part.adapter for part in own if part.adapter)}),
        active=active,
        merged=sorted({name for layer in layers for name in _names(layer, "merged_adapters")}),
        disabled=any(getattr(layer, "disable_adapters", False) is True for layer in layers),
        methods=sorted({_method(config) for config in configs.values()}),
        layers=len({part.layer for part in own}),
        # PeftModel alone has a child `base_model`; the tuner inside it shows the same configs again.
        nested=max(0, sum("base_model" in wrapper._modules for wrapper in wrappers) - 1),  # noqa: SLF001  # its children
        trainable_tensors=len(used) - len(frozen),
        frozen_tensors=len(frozen),
        frozen_layers=sum(not any(part.tensor.requires_grad for part in tensors) for tensors in by_layer.values()),
        frozen_names=[part.name for part in frozen[:FEW]],
        new_heads=_new_heads(model, parts),
        inactive_trainable=sum(part.tensor.requires_grad for part in own) - (len(used) - len(frozen)),
        untied=_untied(model, parts, configs),
    )


def _untied(model: Any, parts: Sequence[NamedParameter], configs: Mapping[str, Any]) -> list[str]:
    """Return the head and the embedding, where the config ties them and one is trained, or adapted, by itself."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(text, "tie_word_embeddings", None) is not True:
        return []
    if any(getattr(each, "ensure_weight_tying", False) for each in configs.values()):
        return []
    live = [part.name for part in parts if part.tensor.requires_grad]
    names = {name: [path for path in live if f".{name}." in path] for name in (*EMBEDDINGS, *OUTPUTS)}
    whole = [name for name, paths in names.items() if any(".modules_to_save." in path for path in paths)]
    adapted = [name for name in OUTPUTS if any(".lora_" in path for path in names[name])]
    return [*whole, *(f"{name}{BY_LORA}" for name in adapted)] if adapted or not set(OUTPUTS).isdisjoint(whole) else []


def _new_heads(model: torch.nn.Module, parts: Sequence[NamedParameter]) -> list[str]:
    """Return the weights of frozen heads, not of a language model's, that spread as transformers draws them."""
    spreads = {getattr(getattr(module, "config", None), "initializer_range", None) for module in model.modules()}
    drawn = [spread for spread in spreads if isinstance(spread, float) and spread > 0.0]
    heads = [part for part in parts if part.kind == "head" and _OTHER.isdisjoint(part.name.split("."))]
    frozen = [part for part in heads if not part.tensor.requires_grad]
    if any(part.tensor.ndim == 1 and part.tensor.count_nonzero() for part in frozen):
        return []  # a bias is drawn as 0
    weights = [part for part in frozen if part.tensor.ndim == 2]
    return [part.name for part in weights if any(_spreads(part.tensor, spread) for spread in drawn)][:FEW]


def _spreads(weight: torch.Tensor, spread: float) -> bool:
    """Whether the standard deviation is a normal's of that spread, within four times its standard error."""
    deviation = float(weight.detach().float().square().mean().sqrt())
    return abs(deviation / spread - 1.0) < 4.0 / math.sqrt(2.0 * weight.numel())


def _names(layer: torch.nn.Module, attribute: str) -> list[str]:
    names: Any = getattr(layer, attribute, ())
    return [names] if isinstance(names, str) else [str(name) for name in names]


def _method(config: Any) -> str:
    method = getattr(config, "peft_type", None)
    return str(getattr(method, "value", method))
