"""How serving engines treat the features of an adapter.

The facts are data, in serving.toml, each with where it was read: a file at a commit, or an issue or pull request.

Engines change weekly, so a row says what one commit did and not what the newest release does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from gradience.errors import ConfigError
from gradience.io.reading import own_table
from gradience.rules import Observation, Unknown, cite
from gradience.rules.config.facts import Facts, LoraRule
from gradience.schema import Json, Real
from gradience.schema.document import Evidence, RuleGroup
from gradience.schema.events import ConfigSnapshot, LoraSnapshot

TRAIN_WITHOUT: Final = "train without the feature, or merge the adapter into the base before serving"
SERVE_TABLE = cite(
    "rules/config/serving.toml, a table read from the engines' sources",
    "each row names its repository, and a file at a commit, or a thread; each finding cites its own row",
)

Engine: TypeAlias = Literal[
    "vllm", "sglang", "ollama", "llamacpp", "tensorrt", "lorax", "slora", "mlx", "peft", "hotswap"
]
Effect: TypeAlias = Literal["refused", "misread", "dropped"]
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
    "slora": "S-LoRA",
    "mlx": "MLX-LM",
    "peft": "PEFT (adapter_names)",
    "hotswap": "PEFT (hotswap_adapter)",
}


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The place where a row was read: a file of a repository at one commit, or a thread; and the month of reading."""

    repository: str
    seen: str
    commit: str = ""
    path: str = ""
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
        return f"https://github.com/{self.repository}/blob/{self.commit}/{self.path}"


class ServeFact(NamedTuple):
    """How one engine treats an adapter with one feature, and the source of that."""

    engine: Engine
    feature: Feature
    effect: Effect
    says: str
    source: Source
    only: frozenset[str]
    """For `targets` the names of modules, for `base` the model types, of which alone the engine takes adapters."""
    beside: Surrounding | None = None
    """What the feature must meet for the fact to hold."""

    def applies(self, facts: Facts) -> bool:
        """Whether the adapter has the feature, in the surroundings that the fact is about."""
        if self.beside is not None and not SURROUNDINGS[self.beside](facts):
            return False
        if self.feature == "targets":
            return not _names(facts.config.lora.target_modules) <= self.only
        if self.feature == "base":
            return facts.around.coverage is not None and facts.around.coverage.model_type not in self.only
        return FEATURES[self.feature].asked_for(facts)


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


class _Tables(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    facts: list[_Read]
    ranks: list[RankSizes]
    processes: list[Processes]
    unknown: dict[Engine, tuple[Feature, ...]]


_TABLES: Final = own_table(__file__, "serving.toml", _Tables)
FACTS: Final = tuple(
    ServeFact(read.engine, feature, effect, says, read.source, read.only, read.beside)
    for read in _TABLES.facts
    for feature, (effect, says) in read.features.items()
)
RANKS: Final = tuple(_TABLES.ranks)
UNKNOWN: Final = _TABLES.unknown
"""By engine the features of which it is not known what the engine does with them."""
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

    @property
    def mend(self) -> str | None:
        """The commands and the remark in one sentence; None if there is neither."""
        commands = ", then ".join(self.commands)
        return f"{commands} ({self.remark})" if commands and self.remark else commands or self.remark or None


def _extra(key: str) -> AdapterFeature:
    return AdapterFeature(key, key, lambda facts: _has_extra(facts, key))


def _has_extra(facts: Facts, key: str) -> bool:
    return bool(facts.config.lora.extras.get(key))


_LINEAR: Final = frozenset(  # of a Llama's block
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
)
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
    ),
    "modules_to_save": AdapterFeature(
        "modules_to_save", "modules_to_save", lambda facts: bool(facts.config.lora.modules_to_save)
    ),
    "bias": AdapterFeature(
        "a trained bias", "bias", lambda facts: _trains_bias(facts.config) or _has_extra(facts, "lora_bias")
    ),
    "rslora": AdapterFeature(
        "use_rslora",
        "use_rslora",
        lambda facts: bool(facts.config.lora.use_rslora),
        (_TO_PEFT,),
        "the same update with scaling lora_alpha / r",
    ),
    "rank_pattern": AdapterFeature(
        "rank_pattern", "rank_pattern", lambda facts: bool(facts.config.lora.rank_pattern), _ONE_RANK, _SAME_UPDATE
    ),
    "alpha_pattern": AdapterFeature(
        "alpha_pattern", "alpha_pattern", lambda facts: bool(facts.config.lora.alpha_pattern), _ONE_RANK, _SAME_UPDATE
    ),
    "token_rows": _extra("trainable_token_indices"),
    "new_rows": AdapterFeature(
        "tokens beyond the base's embedding", "modules_to_save", lambda facts: bool(facts.around.new_rows)
    ),
    "some_layers": _extra("layers_to_transform"),
    "targets": AdapterFeature("targets of other names", "target_modules"),
    "embedding_or_head": AdapterFeature(
        "LoRA on the embedding or the head",
        "target_modules",
        lambda facts: not _OUTER.isdisjoint(_names(facts.config.lora.target_modules)),
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
    ),
    "alora": _extra("alora_invocation_tokens"),
    "experts": AdapterFeature("LoRA on experts", "target_modules", lambda facts: _adapts_experts(facts.config)),
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


def _names(targets: list[str] | str | None) -> frozenset[str]:
    """The last parts of the targets; of `all-linear` those of a Llama, of another expression none."""
    if isinstance(targets, str):
        return _LINEAR if targets.lower() == "all-linear" else frozenset()
    return frozenset(name.rpartition(".")[2] for name in targets or ())


_VERBS: Final[dict[Effect, str]] = {"refused": "refuses", "misread": "misreads", "dropped": "leaves out"}


def known_engines(given: Iterable[str]) -> tuple[Engine, ...]:
    """The engines named, each text with one or several, separated by commas.

    Raises:
        ConfigError: an engine is not known.
    """
    names = [name.strip().lower() for item in given for name in item.split(",")]
    if strange := sorted(name or "an empty text" for name in names if name not in ENGINES):
        raise ConfigError(f"no engine is called {', '.join(strange)}", advice=f"engines: {', '.join(ENGINES)}")
    return tuple(engine for engine in ENGINES if engine in names)


def _effects(effect: Effect, facts: Facts) -> Iterator[Observation]:
    """Yield an observation for each feature of the adapter on which an engine named by --serve has this effect."""
    engines, moved = _engines(facts), facts.around.moved
    stems = {} if moved is None else {"old": moved.old, "new": moved.new, "there": moved.new or "the top"}
    for fact in FACTS:
        if fact.engine in engines and fact.effect == effect and fact.applies(facts):
            feature = FEATURES[fact.feature]
            yield Observation(
                f"{ENGINES[fact.engine]} {_VERBS[effect]} {feature.name.format(**stems)}: {fact.says}",
                {"engine": fact.engine, "feature": fact.feature, "effect": effect, "url": fact.source.url},
                action=feature.mend and feature.mend.format(**stems),
                evidence=(cite(str(fact.source), fact.says),),
            )


def _padded(sizes: RankSizes, rank: int) -> Iterator[Observation]:
    engine, room = ENGINES[sizes.engine], sizes.room_for(rank)
    values = {"engine": sizes.engine, "rank": rank, "room": room}
    evidence = (cite(str(sizes.source), sizes.says),)
    if room is None:
        yield Observation(f"{engine} has no room for rank {rank}", values, severity="warning", evidence=evidence)
    elif room > rank:
        unused = f"{1 - rank / room:.0%} of its adapter memory is padding"
        yield Observation(f"{engine} makes room for rank {room}: at rank {rank}, {unused}", values, evidence=evidence)
    elif sizes.default is not None and rank > sizes.default:
        message = f"{engine} takes up to rank {sizes.default} by default: start it with max_lora_rank {room}"
        yield Observation(message, values, evidence=evidence, action=f"set max_lora_rank to {room} when serving")


def _engines(facts: Facts) -> tuple[str, ...]:
    if not facts.around.engines:
        raise Unknown("no engine is named (--serve)")
    return facts.around.engines


def _settings_of(values: Mapping[str, Json]) -> list[str]:
    return [item.setting for name, item in FEATURES.items() if name == values["feature"]]


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


@_ServeRule("SRV004", severity="info", confidence=0.8, settings=("r", "rank_pattern"))
def _rank_sizes(facts: Facts) -> Iterator[Observation]:
    """a rank between an engine's sizes

    the largest rank lies between the sizes that an engine named by --serve allocates, above all of them, or above its
    default

    Why: An engine that serves many adapters allocates every slot at one of a few sizes.
    Action: set r to that size, or to the next smaller one
    Verify: memory of the engine with and without the adapter
    Seen: https://github.com/PrimeIntellect-ai/prime-rl/pull/1408 -- vLLM rejects a max_lora_rank between its sizes
    """
    engines = _engines(facts)
    # A slot has one size for all modules, so the largest rank decides
    ranks = [facts.r, *(facts.config.lora.rank_pattern or {}).values()]
    for sizes in RANKS:
        if sizes.engine in engines:
            yield from _padded(sizes, max(ranks))


EFFECT_RULES: Final = (_refused, _misread, _dropped)
"""The rules on what an engine does with one feature; each finding's values name the engine and the feature."""
RULES = (*EFFECT_RULES, _rank_sizes)
MISREAD: Final = _misread.id
RANK_SIZE: Final = _rank_sizes.id
