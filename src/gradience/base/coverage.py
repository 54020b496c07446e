"""The coverage of a base model by a configuration, before training: modules, layers, trained parameters, bytes.

`cover` takes the configuration and the module tree that `peft_emulation` builds from the base's headers, and returns
the counts for a report. If PEFT would do something that is not emulated here, it raises NotFollowedError and counts
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec

from gradience.adapters import module_type
from gradience.base.peft_emulation.layout import Layout, Site, site_layer
from gradience.base.peft_emulation.targets import (
    Hits,
    ModuleChoice,
    NotFollowedError,
    lora_sizes,
    narrow_sites,
    resolve,
    saved_names,
)
from gradience.io.reading import decode_json, read_small
from gradience.schema import Json
from gradience.schema.document import Coverage, Refused
from gradience.schema.events import ConfigSnapshot, LoraSnapshot

T = TypeVar("T")

_LARGEST: Final = 256 << 20  # bytes: the largest tokenizer.json seen has 35 MB

_MOST_NAMES: Final = 20  # in a list of a report
_STACK: Final = 3
_STEMS: Final = ("model", "language_model", "model.language_model", "language_model.model")  # shorter ones first
"""Where classes of transformers 4 and 5 keep the decoder: alone, or inside a vision-language model."""

_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_SHORT: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_AS_STORED: Final = ("modules_to_save", "bias")  # kinds that PEFT does not cast


class _Token(msgspec.Struct):
    id: int
    content: str


class _Model(msgspec.Struct):
    # A Unigram model lists pairs of token and score here, which stay undecoded.
    vocab: dict[str, int] | msgspec.Raw | None = None


class _Tokenizer(msgspec.Struct):
    """The fields of tokenizer.json that are read here."""

    added_tokens: list[_Token] = []
    model: _Model | None = None


class _Content(msgspec.Struct):
    content: str


class _TokenizerConfig(msgspec.Struct):
    """The fields of tokenizer_config.json that are read here."""

    added_tokens_decoder: dict[str, _Content] = {}


class Vocabulary(msgspec.Struct, frozen=True):
    """A tokenizer's vocabulary: the added tokens with their ids, and the other tokens if the file lists them."""

    added: dict[str, int]
    known: frozenset[str] | None = None


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary from a folder's tokenizer files, or None if the folder has none that can be read."""
    whole = _decoded(folder / "tokenizer.json", _Tokenizer)
    config = _decoded(folder / "tokenizer_config.json", _TokenizerConfig)
    added = read_added(folder)
    if whole is None and config is None and not added:
        return None
    added |= {
        item.content: int(key)
        for key, item in (config or _TokenizerConfig()).added_tokens_decoder.items()
        if key.isdecimal()
    }
    added |= {token.content: token.id for token in (whole or _Tokenizer()).added_tokens}
    vocab = whole.model.vocab if whole is not None and whole.model is not None else None
    return Vocabulary(added, frozenset(vocab) if isinstance(vocab, dict) else None)


def read_added(folder: Path) -> dict[str, int]:
    """The tokens of a folder's added_tokens.json with their ids; none without one that can be read."""
    return _decoded(folder / "added_tokens.json", dict[str, int]) or {}


def added_tokens(run: Vocabulary, base: Vocabulary) -> list[str]:
    """The run's added tokens that the base's tokenizer lacks, in the order of their ids."""
    known = base.added.keys() | (base.known or frozenset())
    return [token for token, _ in sorted(run.added.items(), key=lambda item: item[1]) if token not in known]


def _decoded(path: Path, kind: type[T]) -> T | None:
    try:
        return decode_json(read_small(path, most=_LARGEST, what="a tokenizer's file"), kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def cover(config: ConfigSnapshot, layout: Layout, *, base: str) -> Coverage:
    """The coverage of a base with this layout by a configuration; `base` is the name to report.

    Raises:
        NotFollowedError: the configuration asks for something that is not emulated here.
    """
    lora = config.lora
    if layout.is_renamed:
        kind = layout.architecture.model_type
        raise NotFollowedError(f"transformers {layout.transformers} renames modules of {kind} as it loads the files")
    wanted = wanted_of(lora)
    hits = _without_bare_parameters(lora, resolve(wanted, layout), layout)
    sizes = lora_sizes(lora, hits, layout)
    besides = _besides(lora, hits, layout, wanted)
    layers = {layer for name in hits.adapted if (layer := site_layer(name)) is not None}
    lora_params = None if None in sizes else sum(size for size in sizes if size is not None)
    stored = _stored_dtype(layout.sites.values())
    # PEFT casts 16-bit adapter weights to float32, unless autocast_adapter_dtype is false.
    dtype = "float32" if lora.extras.get("autocast_adapter_dtype", True) else stored
    used = None
    if lora_params is not None:
        used = _memory_of(lora_params, besides, optimizer=config.optimizer.name, adapter_dtype=dtype, stored=stored)
    return Coverage(
        base=base,
        model_type=layout.architecture.model_type,
        layout=f"transformers {layout.transformers}",
        modules=len(hits.adapted),
        by_type=dict(Counter(module_type(name) for name in hits.adapted).most_common()),
        layers=len(layers),
        layers_total=len(layout.layers),
        lora_params=lora_params,
        trainable_params=None if lora_params is None else lora_params + sum(besides.values()),
        trained_besides=besides,
        base_params=sum(site.entries for site in layout.sites.values() if not site.tied),
        adapter_dtype=dtype,
        adapter_bytes=None if used is None else used.trained,
        optimizer_bytes=None if used is None else used.optimizer,
        optimizer_assumption="" if used is None else used.assumption,
        unmatched_targets=hits.unmatched[:_MOST_NAMES],
        unmatched_saves=[name for name in lora.modules_to_save or () if not _holders((name,), layout)][:_MOST_NAMES],
        narrow=narrow_sites(lora, hits, layout),
        unmatched_excludes=hits.unmatched_excludes[:_MOST_NAMES],
        refused=[Refused(name=name, reason=reason) for name, reason in hits.refused[:_MOST_NAMES]],
        vocabulary=layout.sites[layout.embedding].shape[0] if layout.embedding else None,
        embedding_trained=_trains_embedding(lora, hits, layout),
        notes=[*layout.notes, *_notes(lora, hits, layout)],
    )


def stem_of(names: Collection[str], layout: Layout) -> tuple[str, str] | None:
    """The stem that the modules have and the base's own, if all of them would be in the base but for the stem."""
    return _other_stem(layout, lambda tried: tried.sites.keys() >= set(names))


def stem_of_targets(lora: LoraSnapshot, layout: Layout) -> tuple[str, str] | None:
    """The same for targets, which name modules or are an expression: a stem with which each of them matches.

    Raises:
        NotFollowedError: the configuration asks for something that is not emulated here.
    """
    wanted = wanted_of(lora)

    def fits(tried: Layout) -> bool:
        hits = resolve(wanted, tried)
        return bool(hits.adapted) and not hits.unmatched

    return _other_stem(layout, fits)


def _other_stem(layout: Layout, fits: Callable[[Layout], bool]) -> tuple[str, str] | None:
    if layout.is_renamed or layout.embedding is None or fits(layout):
        return None
    # The embedding and the layers are children of one module, the decoder, so its path is the base's own stem.
    own = layout.embedding.rpartition(".")[0]
    return next(((stem, own) for stem in _STEMS if stem != own and fits(layout.moved(stem, own))), None)


def _without_bare_parameters(lora: LoraSnapshot, hits: Hits, layout: Layout) -> Hits:
    """The hits, with bare parameters refused if dropout, DoRA or lora_bias is used: PEFT cannot wrap them then."""
    options = {
        "lora_dropout": lora.dropout not in {None, 0.0},
        "use_dora": bool(lora.use_dora),
        "lora_bias": bool(lora.extras.get("lora_bias")),
    }
    used = [name for name, on in options.items() if on]
    bare = [name for name in hits.adapted if layout.sites[name].kind in {"parameter", "router"}] if used else []
    reason = f"a parameter (target_parameters): PEFT refuses {' and '.join(used)} there"
    adapted = [name for name in hits.adapted if name not in bare]
    return hits._replace(adapted=adapted, refused=hits.refused + [(name, reason) for name in bare])


def wanted_of(lora: LoraSnapshot) -> ModuleChoice:
    """The settings that choose modules, in the terms of PEFT's matching.

    Raises:
        NotFollowedError: the modules are not those of the base's files.
    """
    extras = lora.extras
    if extras.get("layer_replication"):
        raise NotFollowedError("layer_replication repeats layers: the module tree is not followed through it")
    return ModuleChoice(
        modules=lora.target_modules,
        parameters=_texts(extras.get("target_parameters")),
        exclude=_names(extras.get("exclude_modules")),
        save=tuple(lora.modules_to_save or ()),
        layers=_numbers(extras.get("layers_to_transform")),
        layers_pattern=_texts(extras.get("layers_pattern")),
        task_type=lora.task_type,
    )


def _besides(lora: LoraSnapshot, hits: Hits, layout: Layout, wanted: ModuleChoice) -> dict[str, int]:
    """The number of trained entries beside LoRA's factors, by kind; kinds without any are left out."""
    saved = _saved(wanted, layout)
    sizes = {
        "modules_to_save": sum(layout.sites[name].entries for name in saved),
        "bias": _biases(lora.bias, hits, layout, saved),
        "token_rows": _token_rows(lora, layout),
    }
    return {kind: entries for kind, entries in sizes.items() if entries}


def _saved(wanted: ModuleChoice, layout: Layout) -> set[str]:
    """The sites that modules_to_save trains whole: those in modules whose name ends with one of its entries."""
    endings = saved_names(wanted)
    if not endings:
        return set()
    holders = _holders(endings, layout)
    return {name for name in layout.sites if not holders.isdisjoint(accumulate(name.split("."), "{}.{}".format))}


def _holders(endings: tuple[str, ...], layout: Layout) -> set[str]:
    return {name for name in (*layout.sites, *layout.containers) if name.endswith(endings)}


def _biases(bias: str | None, hits: Hits, layout: Layout, saved: set[str]) -> int:
    if bias == "all":
        # The biases of modules that are saved whole are counted with these.
        return sum(site.bias for name, site in layout.sites.items() if name not in saved)
    if bias == "lora_only":
        return sum(layout.sites[name].bias for name in hits.adapted)
    return 0


def _token_rows(lora: LoraSnapshot, layout: Layout) -> int:
    indices = lora.extras.get("trainable_token_indices")
    if not indices or layout.embedding is None:
        return 0
    width = layout.sites[layout.embedding].shape[1]
    if isinstance(indices, list):
        return len(set(indices)) * width
    # A head that shares the embedding's matrix shares its trained rows, which count once.
    untied = {name: rows for name, rows in indices.items() if not _is_tied(name, layout)} or indices
    return sum(len(set(rows)) for rows in untied.values()) * width


def _is_tied(name: str, layout: Layout) -> bool:
    return layout.output is not None and layout.output.endswith(name) and layout.sites[layout.output].tied


def _trains_embedding(lora: LoraSnapshot, hits: Hits, layout: Layout) -> bool:
    if lora.extras.get("trainable_token_indices"):
        return True
    name = layout.embedding
    return name is not None and (name in hits.adapted or name in _saved(wanted_of(lora), layout))


def _notes(lora: LoraSnapshot, hits: Hits, layout: Layout) -> list[str]:
    notes = []
    experts = [name for name, site in layout.sites.items() if site.kind == "parameter" and len(site.shape) == _STACK]
    missed = [name for name in experts if name not in hits.adapted]
    if missed:
        notes.append(
            f"{len(missed)} stacks of experts are 3-D parameters that no target reaches: target_parameters would"
        )
    if hits.doubled:
        notes.append("PEFT doubles rank and alpha where it fuses two targets (gate_up_proj)")
    if any(layout.sites[name].kind == "conv" for name in hits.adapted):
        notes.append("convolutions are counted as ungrouped: the headers do not give their groups")
    variants = _texts(lora.extras.get("variants"))
    if variants:
        notes.append(f"what {', '.join(variants)} adds is not counted")
    return notes


def _texts(value: Json) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _names(value: Json) -> tuple[str, ...] | str:
    return value if isinstance(value, str) else _texts(value)


def _numbers(value: Json) -> list[int] | None:
    if isinstance(value, int):
        return [value]
    return [item for item in value if isinstance(item, int)] or None if isinstance(value, list) else None


class _TrainingBytes(NamedTuple):
    """Bytes of the trained numbers, bytes of the optimizer's states and gradients, and the assumption behind them."""

    trained: int
    optimizer: int | None
    assumption: str


class _OptimizerState(NamedTuple):
    """An optimizer's state for each trained number: its moments, in the number's dtype or `packed` in a byte each."""

    moments: int
    packed: bool
    says: str


_ADAM: Final = _OptimizerState(2, packed=False, says="Adam family: two moments and a gradient for each trained number")
_STATES: Final = (  # words in the optimizer's name, and its state; the first entry whose words all occur counts
    (
        ("adam", "8bit"),
        _OptimizerState(2, packed=True, says="8-bit Adam: two 1-byte moments (block constants not counted)"),
    ),
    (("adam",), _ADAM),
    (
        ("lion", "8bit"),
        _OptimizerState(1, packed=True, says="8-bit Lion: one 1-byte moment (block constants not counted)"),
    ),
    (("lion",), _OptimizerState(1, packed=False, says="Lion: one moment and a gradient for each trained number")),
)


def _stored_dtype(sites: Iterable[Site]) -> str:
    """The trainable dtype that most of the base's sites have; float32 if none has one."""
    counts = Counter(_SHORT[site.dtype] for site in sites if site.dtype in _SHORT)
    return counts.most_common(1)[0][0] if counts else "float32"


def _memory_of(
    lora: int, besides: Mapping[str, int], *, optimizer: str | None, adapter_dtype: str, stored: str
) -> _TrainingBytes:
    """The bytes that training needs in one process, with the base loaded in its stored dtype.

    Args:
        lora: the number of entries in LoRA's factors.
        besides: the numbers of other trained entries, by kind.
        optimizer: its name; None for the Adam family, every library's default.
        adapter_dtype: the dtype of LoRA's factors.
        stored: the base's dtype.
    """
    groups = [(lora, adapter_dtype)]
    groups += [(entries, stored if kind in _AS_STORED else adapter_dtype) for kind, entries in besides.items()]
    trained = sum(entries * _BYTES[dtype] for entries, dtype in groups)
    state = _state(optimizer)
    if state is None:
        return _TrainingBytes(trained, None, "")
    kept = sum(entries * (state.moments * (1 if state.packed else _BYTES[dtype])) for entries, dtype in groups)
    return _TrainingBytes(trained, kept + trained, f"{state.says}, in {adapter_dtype}; the base loaded in {stored}")


def _state(optimizer: str | None) -> _OptimizerState | None:
    if optimizer is None:
        return _ADAM
    return next((state for words, state in _STATES if all(word in optimizer for word in words)), None)
