"""What serving engines do with an adapter: with its settings, and with each group of its tensors.

The facts are data, in serving.toml, each with where it was read: a file at a commit, or an issue or pull request.

Engines change weekly, so a row says what one commit did and not what the newest release does. What no row tells is not
judged, and said to be so.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from gradience.adapters import OUTPUTS
from gradience.errors import AdapterError, ConfigError, few
from gradience.io.reading import own_table
from gradience.rules import Observation, Unknown, cite
from gradience.rules.config.facts import Facts, LoraRule
from gradience.schema import Json, Real
from gradience.schema.document import Evidence, RuleGroup
from gradience.schema.events import ConfigSnapshot, LoraSnapshot
from gradience.schema.reports import Fate, GroupFate

TRAIN_WITHOUT: Final = "train without the feature, or merge the adapter into the base before serving"
SERVE_TABLE = cite(
    "rules/config/serving.toml, a table read from the engines' sources",
    "each row names its repository, and a file at a commit, or a thread; each finding cites its own row",
)

Engine: TypeAlias = Literal[
    "vllm", "sglang", "ollama", "llamacpp", "tensorrt", "lorax", "mlx", "peft", "transformers", "hotswap"
]
Effect: TypeAlias = Literal["refused", "misread", "dropped", "converted"]
Feature: TypeAlias = Literal[
    "dora",
    "modules_to_save",
    "bias",
    "rslora",
    "rank_pattern",
    "alpha_pattern",
    "token_rows",
    "new_rows",
    "some_layers",
    "targets",
    "embedding_or_head",
    "tied_head",
    "expression",
    "prefix",
    "base",
    "fraction",
    "peft_format",
    "mlx_format",
    "base_bias",
    "embedding",
    "alora",
    "experts",
    "expert_parameters",
    "expert_scale",
    "tower",
    "unnamed",
    "wrapped",
    "copies",
    "any",
]
Surrounding: TypeAlias = Literal["bitsandbytes"]
Setting: TypeAlias = Literal["use_rslora", "lora_dropout", "lora_bias", "modules_to_save", "token_rows"]

ENGINES: Final[dict[Engine, str]] = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "ollama": "Ollama",
    "llamacpp": "llama.cpp",
    "tensorrt": "TensorRT-LLM",
    "lorax": "LoRAX",
    "mlx": "MLX-LM",
    "peft": "PEFT (adapter_names)",
    "transformers": "transformers (load_adapter)",
    "hotswap": "PEFT (hotswap_adapter)",
}
FLEETS_ONLY: Final = frozenset({"hotswap"})
"""What only several adapters meet."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The place where a row was read: a file of a repository at one commit, or a thread; and the month of reading."""

    repository: str
    seen: str
    commit: str = ""
    path: str = ""
    """The file, and after a colon the function in it."""
    thread: int | None = None
    """The number of an issue or a pull request."""

    def __str__(self) -> str:
        """The source as text."""
        where = f"@{self.commit}, {self.path}" if self.thread is None else f"#{self.thread}"
        return f"{self.repository}{where} (read {self.seen})"

    @property
    def url(self) -> str:
        """The address on GitHub, which leads from an issue's number to a pull request's page too."""
        if self.thread is not None:
            return f"https://github.com/{self.repository}/issues/{self.thread}"
        return f"https://github.com/{self.repository}/blob/{self.commit}/{self.path.partition(':')[0]}"


class ServeFact(NamedTuple):
    """How one engine treats an adapter with one feature, and the source of that."""

    engine: Engine
    feature: Feature
    effect: Effect
    says: str
    source: Source
    only: frozenset[str] = frozenset()
    """For `targets` the names of modules, for `base` the model types, of which alone the engine takes adapters."""
    beside: Surrounding | None = None
    """What the feature must meet for the fact to hold."""
    models: tuple[str, ...] = ()
    """Model types that the fact is about, by their beginning; all if empty."""
    since: str = ""
    """The first version that does so."""
    until: str = ""
    """The first version that no longer does so."""
    unless: str = ""
    """The server's flag that mends it."""

    def applies(self, facts: Facts) -> bool:
        """Whether the adapter has the feature, in the surroundings that the fact is about."""
        if self.beside is not None and not SURROUNDINGS[self.beside](facts):
            return False
        if self.unless in facts.around.flags or not self._is_of(facts):
            return False
        if self.feature == "targets":
            return not _leaves(facts) <= self.only
        if self.feature == "base":
            return facts.around.coverage is not None and facts.around.coverage.model_type not in self.only
        return shows(self.feature, facts)

    def _is_of(self, facts: Facts) -> bool:
        named = facts.model_type or (facts.config.model_name or "").rpartition("/")[2]
        return not self.models or re.sub(r"[^a-z0-9]", "", named.lower()).startswith(self.models)

    def holds_in(self, version: str) -> bool:
        """Whether the fact is one of a version; without a version, whether it is one of all that were looked at."""
        if not version:
            return not self.since and not self.until
        return _numbers(self.since) <= _numbers(version) and (
            not self.until or _numbers(version) < _numbers(self.until)
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


class RankSizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ranks that an engine allocates: a list of sizes, or multiples of a step from a least size on."""

    engine: Engine
    says: str
    source: Source
    sizes: tuple[int, ...] = ()
    default: int | None = None
    least: int = 1
    step: int = 1

    def room_for(self, rank: int) -> int | None:
        """The size allocated for an adapter of this rank, or None if the rank exceeds all sizes."""
        if self.sizes:
            return next((size for size in self.sizes if size >= rank), None)
        return self.least if rank <= self.least else -(-rank // self.step) * self.step


class Processes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one process of an engine serves several adapters.

    `command` starts it, with places to be filled in; `adapter` is one of its {adapters}.
    """

    engine: Engine
    says: str
    source: Source
    command: str = ""
    adapter: str = ""
    padded: bool = False
    """Whether every slot takes the memory of the largest rank."""
    alone: bool = False
    """Whether a process serves one adapter only."""
    same: tuple[Setting, ...] = ()
    """Settings in which the adapters of a process must agree."""
    nested: bool = False
    """Whether one adapter must have every module of the others."""


class _Read(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was read of one engine in one file."""

    engine: Engine
    source: Source
    features: dict[Feature, tuple[Effect, str]]
    only: frozenset[str] = frozenset()
    beside: Surrounding | None = None
    models: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    unless: str = ""


class ServerFlags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The flags of a server that decide what is served; `packed` are names that stand for several modules there."""

    engine: Engine
    targets: str
    rank: str
    packed: dict[str, tuple[str, ...]]
    source: Source


class NamedBy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a server says which engine it is: the owner of its models, and where it tells its version."""

    engine: Engine
    owned_by: str
    source: Source
    version: str = ""


class _Tables(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    facts: list[_Read]
    ranks: list[RankSizes]
    processes: list[Processes]
    flags: list[ServerFlags]
    answers: list[NamedBy]
    versions: dict[Engine, tuple[str, str]]
    unknown: dict[Engine, tuple[Feature, ...]]


_TABLES: Final = own_table(__file__, "serving.toml", _Tables)
FACTS: Final = tuple(
    ServeFact(
        read.engine,
        feature,
        effect,
        says,
        read.source,
        read.only,
        read.beside,
        read.models,
        read.since,
        read.until,
        read.unless,
    )
    for read in _TABLES.facts
    for feature, (effect, says) in read.features.items()
)
RANKS: Final = tuple(_TABLES.ranks)
UNKNOWN: Final = _TABLES.unknown
"""By engine the features of which it is not known what the engine does with them."""
VERSIONS: Final = _TABLES.versions
"""By engine the first and the last version that the rows are of; none of an engine whose sources name no version."""
FLAGS: Final[dict[str, ServerFlags]] = {item.engine: item for item in _TABLES.flags}
NAMED_BY: Final[dict[str, NamedBy]] = {item.owned_by: item for item in _TABLES.answers}
"""By the owner of its models, how a server says which engine it is."""
PROCESSES: Final[dict[str, Processes]] = {item.engine: item for item in _TABLES.processes}


def _never(_: Facts) -> bool:
    return False  # a fact's `only` decides


class AdapterFeature(NamedTuple):
    """A feature that an engine may not support: its name in a message, its setting, a test for its use, its mend.

    `{old}` and `{new}` stand for the stem of the adapter's modules and for the base's, `{there}` for it in words.
    """

    name: str
    setting: str
    asked_for: Callable[[Facts], bool] = _never
    commands: tuple[str, ...] = ()
    """Commands that write an adapter without the feature from ADAPTER to NEW."""
    remark: str = ""
    """What they give, or another mend."""
    groups: tuple[str, ...] = ()
    """The groups of tensors that show it, where the file's header was read."""
    rooted: bool = False
    """Whether an engine that misreads it takes alpha / r in place of alpha / sqrt(r)."""

    @property
    def mend(self) -> str | None:
        """The commands and the remark in one sentence; None if there is neither."""
        commands = ", then ".join(self.commands)
        return f"{commands} ({self.remark})" if commands and self.remark else commands or self.remark or None


def _extra(key: str, *groups: str) -> AdapterFeature:
    return AdapterFeature(key, key, lambda facts: _has_extra(facts, key), groups=groups)


def _has_extra(facts: Facts, key: str) -> bool:
    return bool(facts.config.lora.extras.get(key))


GROUPS: Final = {
    "language": "the language model",
    "tower": "the vision or audio tower",
    "experts": "experts, one by one",
    "expert_parameters": "experts, as parameters",
    "embedding": "the embedding",
    "head": "the head",
    "tied_head": "the head, tied to the embedding",
    "magnitudes": "DoRA's magnitudes",
    "biases": "biases",
    "token_rows": "rows of tokens",
    "copies": "copies of the base",
    "whole": "whole weights",
    "tied_whole": "a whole head, tied to the embedding",
}
_BY_SETTING: Final = frozenset({"use_dora", "modules_to_save", "bias", "trainable_token_indices"})
"""Settings that engines look at themselves, whatever the file holds."""
_MERGE: Final = "merge the adapter into the base before serving"
_LINEAR: Final = frozenset(  # of a Llama's block
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
)
_FACTORS: Final = ("language", "tower", "experts", "expert_parameters", "embedding", "head", "tied_head")
_BESIDE: Final = frozenset({"magnitudes", "biases"})  # groups of modules that have factors, too
_OUTER: Final = frozenset({"embed_tokens", "lm_head"})
_ONE_RANK: Final = ("gradience convert ADAPTER --to mlx --out ONE", "gradience convert ONE --to peft --out NEW")
_TO_MLX: Final = "gradience convert ADAPTER --to mlx --out NEW"
_TO_PEFT: Final = "gradience convert ADAPTER --to peft --out NEW"
_SAME_UPDATE: Final = "the same update with one rank and one lora_alpha"

FEATURES: Final[dict[Feature, AdapterFeature]] = {
    "dora": AdapterFeature(
        "use_dora",
        "use_dora",
        lambda facts: bool(facts.config.lora.use_dora),
        (f"{_TO_PEFT} --base MODEL --rank N",),
        "the best LoRA of that rank; or merge the adapter into the base before serving",
        ("magnitudes", *_FACTORS),
    ),
    "modules_to_save": AdapterFeature(
        "modules_to_save",
        "modules_to_save",
        lambda facts: bool(facts.config.lora.modules_to_save),
        groups=("whole", "tied_whole"),
    ),
    "bias": AdapterFeature(
        "a trained bias",
        "bias",
        lambda facts: _trains_bias(facts.config) or _has_extra(facts, "lora_bias"),
        groups=("biases",),
    ),
    "rslora": AdapterFeature(
        "use_rslora",
        "use_rslora",
        lambda facts: bool(facts.config.lora.use_rslora),
        (_TO_PEFT,),
        "the same update with scaling lora_alpha / r",
        rooted=True,
    ),
    "rank_pattern": AdapterFeature(
        "rank_pattern", "rank_pattern", lambda facts: bool(facts.config.lora.rank_pattern), _ONE_RANK, _SAME_UPDATE
    ),
    "alpha_pattern": AdapterFeature(
        "alpha_pattern", "alpha_pattern", lambda facts: bool(facts.config.lora.alpha_pattern), _ONE_RANK, _SAME_UPDATE
    ),
    "token_rows": _extra("trainable_token_indices", "token_rows"),
    "new_rows": AdapterFeature(
        "tokens beyond the base's embedding", "modules_to_save", lambda facts: bool(facts.around.new_rows)
    ),
    "some_layers": _extra("layers_to_transform"),
    "targets": AdapterFeature("targets of other names", "target_modules"),
    "embedding_or_head": AdapterFeature(
        "LoRA on the embedding or the head",
        "target_modules",
        lambda facts: not _OUTER.isdisjoint(_names(facts.config.lora.target_modules)),
        groups=("embedding", "head", "tied_head"),
    ),
    "tied_head": AdapterFeature(
        "a head of its own on a base that ties it to the embedding",
        "target_modules",
        remark="merge the adapter into the base, with tie_word_embeddings set to false in its config.json",
        groups=("tied_head", "tied_whole"),
    ),
    "expression": AdapterFeature(
        "target_modules as an expression",
        "target_modules",
        lambda facts: isinstance(facts.config.lora.target_modules, str),
        remark="write target_modules as a list of names in adapter_config.json, or name them when starting the server",
    ),
    "prefix": AdapterFeature(
        "modules below {old} where the base has {there}",
        "target_modules",
        lambda facts: facts.around.moved is not None and facts.around.moved.saved,
        (f"{_TO_PEFT} --rename {{old}}={{new}}",),
    ),
    "base": AdapterFeature(
        "adapters of this base's type", "model_name", remark="make a GGUF of it with llama.cpp's converter"
    ),
    "fraction": AdapterFeature("a fractional lora_alpha", "alpha", lambda facts: _is_fraction(facts.config.lora.alpha)),
    "peft_format": AdapterFeature("PEFT's format", "peft_type", lambda facts: not _is_mlx(facts.config), (_TO_MLX,)),
    "mlx_format": AdapterFeature("MLX-LM's format", "peft_type", lambda facts: _is_mlx(facts.config), (_TO_PEFT,)),
    "base_bias": AdapterFeature("a trained bias of the base", "bias", lambda facts: _trains_bias(facts.config)),
    "embedding": AdapterFeature(
        "LoRA on the embedding",
        "target_modules",
        lambda facts: "embed_tokens" in _names(facts.config.lora.target_modules),
        groups=("embedding",),
    ),
    "alora": _extra("alora_invocation_tokens"),
    "experts": AdapterFeature(
        "LoRA on experts",
        "target_modules",
        lambda facts: _adapts_experts(facts.config),
        groups=("experts", "expert_parameters"),
    ),
    "expert_parameters": AdapterFeature(
        "experts as parameters (target_parameters)",
        "target_parameters",
        lambda facts: _has_extra(facts, "target_parameters"),
        remark=_MERGE,
        groups=("expert_parameters",),
    ),
    "expert_scale": AdapterFeature(
        "use_rslora on experts",
        "use_rslora",
        lambda facts: bool(facts.config.lora.use_rslora) and shows("experts", facts),
        (_TO_PEFT,),
        "the same update with scaling lora_alpha / r",
        rooted=True,
    ),
    "tower": AdapterFeature("the vision or audio tower", "target_modules", remark=_MERGE, groups=("tower",)),
    "wrapped": AdapterFeature(
        "names below language_model",
        "target_modules",
        remark=_MERGE,
        groups=("language",),
    ),
    "copies": AdapterFeature(
        "copies of the base's weights",
        "target_modules",
        remark="save it with save_embedding_layers=False, if the base's vocabulary is the same",
        groups=("copies",),
    ),
    "any": AdapterFeature("every adapter", "peft_type", lambda _: True, remark=_MERGE),
    "unnamed": AdapterFeature(
        "modules that --lora-target-modules does not name",
        "target_modules",
        lambda facts: any(map(_unnamed(facts), _names(facts.config.lora.target_modules))),
        remark="name them too when starting the server, or start it without the flag",
    ),
}
SURROUNDINGS: Final[dict[Surrounding, Callable[[Facts], bool]]] = {
    "bitsandbytes": lambda facts: _in_bitsandbytes(facts),  # noqa: PLW0108  # defined below
}


class SharedSetting(NamedTuple):
    """A setting in which adapters of one process must agree: its value, which is false by default, and its mend."""

    value: Callable[[LoraSnapshot], Hashable]
    mend: str


SETTINGS: Final[dict[Setting, SharedSetting]] = {
    "use_rslora": SharedSetting(lambda lora: bool(lora.use_rslora), _TO_PEFT),
    "lora_dropout": SharedSetting(
        lambda lora: lora.dropout or 0.0, "it has no effect when serving: set it to 0 in adapter_config.json"
    ),
    "lora_bias": SharedSetting(lambda lora: bool(lora.extras.get("lora_bias")), TRAIN_WITHOUT),
    "modules_to_save": SharedSetting(lambda lora: frozenset(lora.modules_to_save or ()), TRAIN_WITHOUT),
    "token_rows": SharedSetting(lambda lora: bool(lora.extras.get("trainable_token_indices")), TRAIN_WITHOUT),
}


def _is_fraction(alpha: Real | None) -> bool:
    return isinstance(alpha, float) and not alpha.is_integer()


def _is_mlx(config: ConfigSnapshot) -> bool:
    return config.extras.get("format") == "mlx-lm"


def _trains_bias(config: ConfigSnapshot) -> bool:
    return config.lora.bias not in {None, "none"}


def _adapts_experts(config: ConfigSnapshot) -> bool:
    targets = config.lora.target_modules or ()
    names = [targets] if isinstance(targets, str) else list(targets)
    parameters = config.lora.extras.get("target_parameters")
    names += [str(name) for name in parameters] if isinstance(parameters, list) else []
    return bool(config.lora.extras.get("experts")) or any("experts" in name for name in names)


def _in_bitsandbytes(facts: Facts) -> bool:
    """Whether the base is stored in bitsandbytes' formats, by its config.json or else by its name."""
    if facts.around.model is not None:
        return facts.around.model.quant_method == "bitsandbytes"
    # As in names such as llama-3-8b-bnb-4bit
    return "bnb" in re.split(r"[^a-z0-9]+", (facts.config.model_name or "").lower())


def _leaves(facts: Facts) -> frozenset[str]:
    """The last parts of the names of adapted modules: by the file's header, else by the targets."""
    groups = facts.around.groups
    if groups is None:
        return _names(facts.config.lora.target_modules)
    held = [name for group in _FACTORS for name in groups.get(group, ())]
    return frozenset(name.replace(".base_layer", "").rpartition(".")[2] for name in held)


def _unnamed(facts: Facts) -> Callable[[str], bool]:
    """Whether a module is left out by the flag of a server."""
    for flags in FLAGS.values():
        if (named := facts.around.flags.get(flags.targets)) is not None:
            taken = {leaf for name in named for leaf in (name, *flags.packed.get(name, ()))}
            return lambda name: name.rpartition(".")[2] not in taken
    return lambda _: False


def _other_by(pattern: Mapping[str, Real] | None, usual: Real | None, facts: Facts) -> Callable[[str], bool]:
    """Whether the first key that matches a module, as PEFT looks, has another value than the usual one."""
    from gradience.adapters.patterns import first_matches  # RE2: only where a pattern meets a file

    values, groups = pattern or {}, facts.around.groups or {}
    stated = facts.config.lora.extras.get("target_parameters")
    leaves = [str(one).rpartition(".")[2] for one in stated] if isinstance(stated, list) else []
    places = {one: [one] for group in _FACTORS for one in groups.get(group, ())}
    # A file names the module of an expert parameter, and PEFT looks for the parameter: of several it may be any.
    places |= {
        one: [f"{one.removesuffix('.base_layer')}.{leaf}" for leaf in leaves]
        for one in groups.get("expert_parameters", ())
    }
    try:
        keys = first_matches(values, itertools.chain.from_iterable(places.values()))
    except AdapterError:  # a pattern that cannot be followed may be of every module
        return lambda _: True
    other = {place for place, key in keys.items() if values[key] != usual}
    return lambda name: not other.isdisjoint(places.get(name, ()))


def _moved(facts: Facts) -> Callable[[str], bool]:
    """Whether a module is named below the stem that the base has elsewhere; a head stays at the top."""
    old = "" if facts.around.moved is None else facts.around.moved.old
    return lambda name: name.startswith(f"{old}.") if old else not name.endswith(OUTPUTS)


def _held_in(*groups: str) -> Callable[[Facts], Callable[[str], bool]]:
    return lambda facts: {one for group in groups for one in (facts.around.groups or {}).get(group, ())}.__contains__


_WHICH: Final[dict[Feature, Callable[[Facts], Callable[[str], bool]]]] = {
    "dora": _held_in("magnitudes"),
    "rank_pattern": lambda facts: _other_by(facts.config.lora.rank_pattern, facts.config.lora.r, facts),
    "alpha_pattern": lambda facts: _other_by(facts.config.lora.alpha_pattern, facts.config.lora.alpha, facts),
    "prefix": _moved,
    "expert_scale": _held_in("experts", "expert_parameters"),
    "wrapped": lambda _: lambda name: "language_model." in name,
    "unnamed": _unnamed,
}
"""Which of the modules in its groups a feature is about; all of them if it is not here."""


_OF_ALL: Final = frozenset({"any", "alora"})
"""Features of every tensor, whatever its group."""


def held(feature: Feature, facts: Facts) -> dict[str, list[str]]:
    """The modules in the file that a feature is about, by group."""
    groups, chosen = facts.around.groups or {}, _WHICH.get(feature)
    about = GROUPS if feature in _OF_ALL else FEATURES[feature].groups or _FACTORS
    which = None if chosen is None else chosen(facts)
    found = {one: [name for name in groups[one] if which is None or which(name)] for one in groups if one in about}
    return {group: modules for group, modules in found.items() if modules}


def shows(feature: Feature, facts: Facts) -> bool:
    """Whether the adapter has a feature: by its tensors, else by its settings."""
    one = FEATURES[feature]
    if facts.around.groups is None or (one.setting in _BY_SETTING and one.asked_for(facts)):
        return one.asked_for(facts)
    by_tensors = bool(one.groups) or feature == "unnamed"
    return (by_tensors or one.asked_for(facts)) and (
        not (by_tensors or feature in _WHICH) or bool(held(feature, facts))
    )


def _names(targets: list[str] | str | None) -> frozenset[str]:
    """The last parts of the targets; of `all-linear` those of a Llama, of another expression none."""
    if isinstance(targets, str):
        return _LINEAR if targets.lower() == "all-linear" else frozenset()
    return frozenset(name.rpartition(".")[2] for name in targets or ())


_VERBS: Final[dict[Effect, str]] = {
    "refused": "refuses",
    "misread": "misreads",
    "dropped": "leaves out",
    "converted": "needs another file for",
}


def known_engines(given: Iterable[str], *, fleet: bool = False) -> tuple[str, ...]:
    """The engines named, with @VERSION if one is given; each text with one or several, separated by commas.

    Raises:
        ConfigError: an engine is not known.
    """
    names = [name.strip().lower() for item in given for name in item.split(",")]
    known: list[str] = [engine for engine in ENGINES if fleet or engine not in FLEETS_ONLY]
    if strange := sorted(name or "an empty text" for name in names if name.partition("@")[0] not in known):
        raise ConfigError(
            f"not judged: no engine is called {', '.join(strange)}", advice=f"engines: {', '.join(known)}"
        )
    return tuple(sorted(dict.fromkeys(names), key=lambda name: known.index(name.partition("@")[0])))


def read_flags(text: str) -> dict[str, tuple[str, ...]]:
    """The flags of a server's command, each with its values.

    >>> read_flags("vllm serve m --max-lora-rank=32 --lora_target_modules q_proj v_proj")
    {'max-lora-rank': ('32',), 'lora-target-modules': ('q_proj', 'v_proj')}

    Raises:
        ConfigError: a quotation is not closed.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--server-flags: {error}", advice="give the flags as in the server's command") from error
    flags: dict[str, tuple[str, ...]] = {}
    last = None
    for word in words:
        if word.startswith("--"):
            name, sign, value = word[2:].partition("=")
            last = name.replace("_", "-")
            flags[last] = (value,) if sign else ()
        elif last is not None:
            flags[last] = (*flags[last], word)
    return flags


def engine_of(name: str) -> Engine:
    """The engine that is named, without its version."""
    return _versioned(name)[0]


def _versioned(name: str) -> tuple[Engine, str]:
    engine, _, version = name.partition("@")
    return next(one for one in ENGINES if one == engine), version.removeprefix("v")


def unjudged(name: str) -> str:
    """Why an engine is not judged in the version named; empty if it is."""
    engine, version = _versioned(name)
    if not version:
        return ""
    if engine not in VERSIONS:
        return f"what is known of {ENGINES[engine]} was read without a version"
    first, last = VERSIONS[engine]
    if _numbers(version) and _numbers(first) <= _numbers(version) <= _numbers(last):
        return ""
    return f"what is known of {ENGINES[engine]} was read of {first} to {last}, and not of {version}"


def facts_of(name: str, facts: Facts) -> Iterator[ServeFact]:
    """The facts on an engine, in the version named with it, that apply to the adapter."""
    engine, version = _versioned(name)
    if not unjudged(name):
        yield from (fact for fact in FACTS if fact.engine == engine and fact.holds_in(version) and fact.applies(facts))


def unknown_features(name: str, facts: Facts) -> list[Feature]:
    """The adapter's features of which no row tells what the engine does with them."""
    told = {fact.feature for fact in facts_of(name, facts)}
    return [one for one in UNKNOWN.get(engine_of(name), ()) if one not in told and shows(one, facts)]


class Part(NamedTuple):
    """What an engine is known to make of a part of the adapter; without a fact that nothing is known of it."""

    feature: Feature
    modules: Mapping[str, Sequence[str]]
    """By group; none if no file was read, or if the fact is about settings alone."""
    fact: ServeFact | None = None

    @property
    def effect(self) -> str:
        """What the engine does with it."""
        return "unknown" if self.fact is None else self.fact.effect

    @property
    def updates(self) -> list[str]:
        """The modules whose update is concerned, each once."""
        found = (one for group, modules in self.modules.items() if group not in _BESIDE for one in modules)
        return list(dict.fromkeys(found))

    def share(self, modules: Sequence[str], facts: Facts) -> float | None:
        """Of the update's energy what some of its modules hold; None if it cannot be told, or nothing is lost."""
        if facts.around.energy is None or _BESIDE & self.modules.keys() or not self.is_counted:
            return None
        return facts.around.energy(modules)

    @property
    def is_counted(self) -> bool:
        """Whether it is lost or other than trained and may be less than the adapter, so that its size is told."""
        named = bool(FEATURES[self.feature].groups) or self.feature in _WHICH
        return bool(self.modules) and named and self.effect not in {"refused", "unknown"}


def parts(name: str, facts: Facts) -> Iterator[Part]:
    """Yield what the engine named makes of the adapter other than it was trained, and what is not known of it."""
    for fact in facts_of(name, facts):
        yield Part(fact.feature, held(fact.feature, facts), fact)
    for feature in unknown_features(name, facts):
        yield Part(feature, held(feature, facts))


class Loss(NamedTuple):
    """What an engine is known to make of an adapter that has a feature."""

    effect: Effect
    words: str
    """In a sentence, with the source."""
    modules: frozenset[str]
    """The modules that it is about, by the file; none if the file was not read or the fact is about settings."""
    factor: float | None
    """Of the scale that was trained, where it is the same for all of these."""


def losses(name: str, facts: Facts) -> Iterator[Loss]:
    """Yield what the engine named is known to make of the adapter other than it was trained."""
    for part in parts(name, facts):
        if (fact := part.fact) is not None:
            feature = FEATURES[fact.feature]
            rank = facts.config.lora.r if not facts.config.lora.rank_pattern else None
            does = f"{_VERBS[fact.effect]} {_filled(feature.name, facts)}"
            words = f"{ENGINES[fact.engine]} {does}: {fact.says} ({fact.source.url})"
            factor = rank**-0.5 if feature.rooted and rank else None
            yield Loss(fact.effect, words, frozenset(part.updates), factor)


def _filled(text: str, facts: Facts) -> str:
    moved = facts.around.moved
    stems = {} if moved is None else {"old": moved.old, "new": moved.new, "there": moved.new or "the top"}
    return text.format(**stems)


def _energy(share: float | None, facts: Facts) -> str:
    """A share of the update's energy in words; beside whole weights and the like it is of the factors' alone."""
    whole = "the update's" if set(facts.around.groups or ()) <= {*_FACTORS, "magnitudes", "copies"} else "the factors'"
    return "" if share is None else f"{share:.0%} of {whole} energy"


def _effects(effect: Effect, facts: Facts) -> Iterator[Observation]:
    """Yield an observation for each feature of the adapter on which an engine named by --serve has this effect."""
    for name in _engines(facts):
        for part in parts(name, facts):
            if (fact := part.fact) is None or fact.effect != effect:
                continue
            feature, share, lost = FEATURES[fact.feature], None, ""
            if part.is_counted:
                share, n = part.share(part.updates, facts), len({one for held in part.modules.values() for one in held})
                told = filter(None, (f"{n} {'modules' if n > 1 else 'module'}", _energy(share, facts)))
                lost = f" ({', '.join(told)})"
            values: dict[str, Json] = {"engine": fact.engine, "feature": fact.feature, "effect": effect}
            yield Observation(
                f"{ENGINES[fact.engine]} {_VERBS[effect]} {_filled(feature.name, facts)}{lost}: {fact.says}",
                values | {"url": fact.source.url} | ({} if share is None else {"share": share}),
                action=feature.mend and _filled(feature.mend, facts),
                evidence=(cite(str(fact.source), fact.says),),
            )


_FATES: Final[dict[str, Fate]] = {
    "refused": "refused at start",
    "dropped": "dropped in silence",
    "misread": "applied otherwise than trained",
    "unknown": "not judged",
}


def fates(facts: Facts) -> Iterator[GroupFate]:
    """Yield what each engine does with each group of the tensors in the file; without a file how it is started."""
    for name in facts.around.engines:
        start = _start(name, facts)
        if facts.around.groups is None and start:
            yield GroupFate(engine=name, group="no tensor was read", modules=0, fate="not judged", reason=start)
        found = [*parts(name, facts)]
        known = [one for effect in _FATES for one in found if one.effect == effect]  # worst first
        sound: Fate = "not judged" if unjudged(name) else "applied"
        for group, modules in (facts.around.groups or {}).items():
            for here, of in _split(modules, group, known):
                fact, is_part = None if of is None else of.fact, len(here) < len(modules)
                yield GroupFate(
                    engine=name,
                    group=GROUPS[group],
                    modules=len(here),
                    of=len(modules) if is_part else 0,
                    which=_which(here, modules) if is_part else "",
                    share=None if of is None else of.share(here, facts),
                    fate=sound if of is None else _FATES[of.effect],
                    reason=start if fact is None else fact.says,
                    source="" if fact is None else fact.source.url,
                )


def _split(modules: Sequence[str], group: str, known: Iterable[Part]) -> Iterator[tuple[list[str], Part | None]]:
    """Yield the modules of a group by the first part that is about them, and those of none; a refusal is about all."""
    rest = list(modules)
    for part in known:
        about = {*rest} if part.effect == "refused" else {*part.modules.get(group, ())}
        if here := [one for one in rest if one in about]:
            yield here, part
            rest = [one for one in rest if one not in about]
    if rest:
        yield rest, None


def _which(here: Sequence[str], modules: Sequence[str]) -> str:
    """A part of modules in words: the last parts of their names, if no other module has one of these, else names."""
    leaves, others = ({one.rpartition(".")[2] for one in some} for some in (here, set(modules) - set(here)))
    return few(sorted(leaves) if leaves.isdisjoint(others) else here)


def _start(name: str, facts: Facts) -> str:
    """What is done first: a conversion, and a start with room for the adapter's rank where the default has none."""
    rank, engine = _largest_rank(facts), engine_of(name)
    mends = [FEATURES[one.feature].mend for one in facts_of(name, facts) if one.effect == "converted"]
    first = [f"convert first: {mend}" for mend in mends]
    known = next((sizes for sizes in RANKS if sizes.engine == engine), None)
    if known is not None and known.default is not None and rank > known.default and not facts.around.flags:
        first.append(f"start it with a max_lora_rank of {known.room_for(rank)}: its default is {known.default}")
    return "; ".join(first)


def _largest_rank(facts: Facts) -> int:
    """The rank that a slot needs, which has one size for all modules."""
    return max([facts.config.lora.r or 1, *(facts.config.lora.rank_pattern or {}).values()])


def over_limit(sizes: RankSizes, rank: int, flags: Mapping[str, Sequence[str]]) -> tuple[str, str | None] | None:
    """What is wrong with a rank for a server with these flags, and what mends it; None if there is room."""
    name, known = ENGINES[sizes.engine], FLAGS.get(sizes.engine)
    flag = "" if known is None else f"--{known.rank}"
    given = flags.get(known.rank, ()) if known is not None else ()
    limit = int(given[0]) if given and given[0].isdecimal() else None
    if sizes.room_for(rank) is None:
        return f"{name} has no room for rank {rank}", None
    if limit is not None and sizes.sizes and limit not in sizes.sizes:
        return f"{name} takes no {flag} {limit}", f"give one of {', '.join(map(str, sizes.sizes))}"
    if limit is not None and rank > limit:
        return f"{name} refuses rank {rank}: {flag} is {limit}", f"start it with {flag} {sizes.room_for(rank)}"
    return None


def _engines(facts: Facts) -> tuple[str, ...]:
    if not facts.around.engines:
        raise Unknown("no engine is named (--serve)")
    return facts.around.engines


def _settings_of(values: Mapping[str, Json]) -> list[str]:
    named = values.get("features") or [values.get("feature")]
    return [item.setting for name, item in FEATURES.items() if isinstance(named, list) and name in named]


@dataclass(frozen=True, kw_only=True)
class _ServeRule(LoraRule):
    """A rule on what the engines named by --serve do with an adapter."""

    groups: tuple[RuleGroup, ...] = ("serve",)
    scope: str = "the engine's commit named in the evidence; later ones may behave differently"
    evidence: tuple[Evidence, ...] = (SERVE_TABLE,)


@dataclass(frozen=True, kw_only=True)
class _FeatureRule(_ServeRule):
    """One of the effects that an engine may have on a feature of the adapter."""

    action: str = TRAIN_WITHOUT
    verify: str = "load the adapter in the version you serve with, and compare its output with PEFT's on a few prompts"
    settings: Callable[[Mapping[str, Json]], Iterable[str]] = _settings_of


@_FeatureRule("SRV001", severity="warning", confidence=0.8)
def _refused(facts: Facts) -> Iterator[Observation]:
    """an engine refuses the adapter

    an engine named by --serve refuses a feature that the adapter has

    Why: The adapter trains well and cannot be loaded where it is meant to run.
    Seen: https://github.com/sgl-project/sglang/pull/22125 -- SGLang refuses adapters with DoRA
    """
    return _effects("refused", facts)


@_FeatureRule("SRV002", severity="warning", confidence=0.75)
def _misread(facts: Facts) -> Iterator[Observation]:
    """an engine misreads the adapter

    an engine named by --serve loads a feature that the adapter has, and computes something else

    Why: It loads without an error and computes something other than what was trained.
    Seen: https://github.com/NVIDIA/TensorRT-LLM/issues/1668 -- an adapter with rsLoRA is scaled by alpha / r and
        answers badly
    """
    return _effects("misread", facts)


@_FeatureRule("SRV003", severity="warning", confidence=0.75)
def _dropped(facts: Facts) -> Iterator[Observation]:
    """an engine leaves parts of the adapter out

    an engine named by --serve loads the adapter and leaves a part out

    Why: It loads, and parts of what was trained have no effect.
    Seen: https://github.com/vllm-project/vllm/issues/48019 -- every key of a text adapter is left out where the
        model lies in a wrapper
    """
    return _effects("dropped", facts)


@_FeatureRule("SRV006", severity="info", reading=True, confidence=0.8)
def _converted(facts: Facts) -> Iterator[Observation]:
    """an engine reads another file

    an engine named by --serve reads adapters, and not in the form that this one has

    Why: The adapter is served as it was trained once it is converted.
    Action: convert it first, or merge it into the base
    Source: mlx_lm/tuner/utils.py:load_adapters@0.32.2 -- adapters.safetensors is read, and no other file
    """
    return _effects("converted", facts)


@_ServeRule("SRV004", severity="warning", confidence=0.8, settings=("r", "rank_pattern"))
def _rank_sizes(facts: Facts) -> Iterator[Observation]:
    """a rank that an engine has no room for

    the largest rank is above all sizes that an engine named by --serve allocates, or above the one that --server-flags
    names, or that is none of its sizes

    Why: An engine that serves many adapters allocates every slot at one of a few sizes, and refuses what is larger.
    Action: set r to the largest size, or start the server with a larger one
    Verify: start the server and load the adapter
    Seen: https://github.com/PrimeIntellect-ai/prime-rl/pull/1408 -- vLLM rejects a max_lora_rank between its sizes
    """
    engines = {_versioned(name)[0] for name in _engines(facts) if not unjudged(name)}
    rank = max(facts.r, _largest_rank(facts))
    for sizes in RANKS:
        if sizes.engine in engines and (over := over_limit(sizes, rank, facts.around.flags)) is not None:
            values: dict[str, Json] = {"engine": sizes.engine, "rank": rank, "room": sizes.room_for(rank)}
            yield Observation(over[0], values, action=over[1], evidence=(cite(str(sizes.source), sizes.says),))


@_ServeRule("SRV005", severity="warning", confidence=0.9, settings=_settings_of)
def _not_known(facts: Facts) -> Iterator[Observation]:
    """an engine that is not judged

    no row of the table is of the version named with --serve, or none tells what the engine does with a feature that
    the adapter has

    Why: Silence would be read as a promise that the adapter is served as it was trained.
    Action: compare outputs with PEFT's before you rely on it (gradience verify)
    Verify: gradience receipt, and gradience verify on the server
    Seen: https://github.com/vllm-project/vllm/issues/41702 -- an adapter of experts loads, and changes nothing
    """
    for name in _engines(facts):
        engine, version = _versioned(name)
        values: dict[str, Json] = {"engine": engine, "version": version}
        if reason := unjudged(name):
            yield Observation(f"{ENGINES[engine]} {version} is not judged: {reason}", values)
            continue
        if asked := unknown_features(name, facts):
            says = few([FEATURES[one].name for one in asked], len(asked))
            yield Observation(
                f"{ENGINES[engine]} is not judged with {says}: no source read here tells what it does with that",
                values | {"features": [*asked]},
            )


EFFECT_RULES: Final = (_refused, _misread, _dropped, _converted)
"""The rules on what an engine does with one feature; each finding's values name the engine and the feature."""
RULES = (*EFFECT_RULES, _rank_sizes, _not_known)
MISREAD: Final = _misread.id
CONVERTED: Final = _converted.id
RANK_SIZE: Final = _rank_sizes.id
