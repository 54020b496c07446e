"""How serving engines treat the features of an adapter.

The facts are data, in serving.toml, each with the commit and the file in which it was read.

Engines change weekly, so a row says what one commit did and not what the newest release does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from gradience.io.reading import own_table
from gradience.rules import Observation, Unknown, cite
from gradience.rules.config.facts import Facts, LoraRule
from gradience.schema import Json
from gradience.schema.document import Evidence, RuleGroup
from gradience.schema.events import ConfigSnapshot

SERVE_TABLE = cite(
    "rules/config/serving.toml, a table read from the engines' sources",
    "each row names its repository, commit and file; each finding cites its own row",
)

Engine: TypeAlias = Literal["vllm", "lorax", "slora", "llamacpp", "mlx"]
Effect: TypeAlias = Literal["refused", "misread", "dropped"]
Feature: TypeAlias = Literal[
    "dora",
    "modules_to_save",
    "bias",
    "rslora",
    "rank_pattern",
    "alpha_pattern",
    "token_rows",
    "some_layers",
    "beyond_attention",
    "peft_format",
]

ENGINES: Final[dict[Engine, str]] = {
    "vllm": "vLLM",
    "lorax": "LoRAX",
    "slora": "S-LoRA",
    "llamacpp": "llama.cpp",
    "mlx": "MLX-LM",
}


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The place where a row was read: a file of a repository at one commit, and the month of reading."""

    repository: str
    commit: str
    path: str
    seen: str

    def __str__(self) -> str:
        """The source as text."""
        return f"{self.repository}@{self.commit}, {self.path} (read {self.seen})"

    @property
    def url(self) -> str:
        """The address of the file on GitHub."""
        return f"https://github.com/{self.repository}/blob/{self.commit}/{self.path}"


class ServeFact(NamedTuple):
    """How one engine treats an adapter with one feature, and the source of that."""

    engine: Engine
    feature: Feature
    effect: Effect
    says: str
    source: Source


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


class _Read(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was read of one engine in one file."""

    engine: Engine
    source: Source
    features: dict[Feature, tuple[Effect, str]]


class _Tables(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    facts: list[_Read]
    ranks: list[RankSizes]


_TABLES: Final = own_table(__file__, "serving.toml", _Tables)
FACTS: Final = tuple(
    ServeFact(read.engine, feature, effect, says, read.source)
    for read in _TABLES.facts
    for feature, (effect, says) in read.features.items()
)
RANKS: Final = tuple(_TABLES.ranks)


class AdapterFeature(NamedTuple):
    """A feature that an engine may not support: its name in a message, its setting, and a test for its use."""

    name: str
    setting: str
    asked_for: Callable[[ConfigSnapshot], bool]


def _extra(key: str) -> AdapterFeature:
    return AdapterFeature(key, key, lambda config: bool(config.lora.extras.get(key)))


FEATURES: Final[dict[Feature, AdapterFeature]] = {
    "dora": AdapterFeature("use_dora", "use_dora", lambda c: bool(c.lora.use_dora)),
    "modules_to_save": AdapterFeature("modules_to_save", "modules_to_save", lambda c: bool(c.lora.modules_to_save)),
    "bias": AdapterFeature(
        "a trained bias", "bias", lambda c: c.lora.bias not in {None, "none"} or bool(c.lora.extras.get("lora_bias"))
    ),
    "rslora": AdapterFeature("use_rslora", "use_rslora", lambda c: bool(c.lora.use_rslora)),
    "rank_pattern": AdapterFeature("rank_pattern", "rank_pattern", lambda c: bool(c.lora.rank_pattern)),
    "alpha_pattern": AdapterFeature("alpha_pattern", "alpha_pattern", lambda c: bool(c.lora.alpha_pattern)),
    "token_rows": _extra("trainable_token_indices"),
    "some_layers": _extra("layers_to_transform"),
    "beyond_attention": AdapterFeature(
        "targets beside q, k, v and o", "target_modules", lambda c: _beyond_attention(c.lora.target_modules)
    ),
    "peft_format": AdapterFeature("PEFT's format", "peft_type", lambda c: c.extras.get("format") != "mlx-lm"),
}


_ATTENTION: Final = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})  # what S-LoRA reads


def _beyond_attention(targets: list[str] | str | None) -> bool:
    if isinstance(targets, str):
        return targets.lower() == "all-linear"
    return any(name.rpartition(".")[2] not in _ATTENTION for name in targets or ())


_VERBS: Final[dict[Effect, str]] = {"refused": "refuses", "misread": "misreads", "dropped": "leaves out"}


def _effects(effect: Effect, facts: Facts) -> Iterator[Observation]:
    """Yield an observation for each feature of the adapter on which an engine named by --serve has this effect."""
    engines = _engines(facts)
    for fact in FACTS:
        feature = FEATURES[fact.feature]
        if fact.engine in engines and fact.effect == effect and feature.asked_for(facts.config):
            yield Observation(
                f"{ENGINES[fact.engine]} {_VERBS[effect]} {feature.name}: {fact.says}",
                {"engine": fact.engine, "feature": fact.feature, "effect": effect, "url": fact.source.url},
                action="convert the adapter to the engine's own format" if fact.feature == "peft_format" else None,
                evidence=(cite(str(fact.source), fact.says),),
            )


def _rank_sizes(facts: Facts) -> Iterator[Observation]:
    engines = _engines(facts)
    ranks = [facts.r, *(facts.config.lora.rank_pattern or {}).values()]
    for sizes in RANKS:
        if sizes.engine in engines:
            yield from _padded(sizes, max(ranks))


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

    action: str = "train without the feature, or merge the adapter into the base before serving"
    verify: str = "load the adapter in the version you serve with, and compare its output with PEFT's on a few prompts"
    settings: Callable[[Mapping[str, Json]], Iterable[str]] = _settings_of


RULES = (
    _FeatureRule(
        id="SRV001",
        severity="warning",
        title="an engine refuses the adapter",
        condition="an engine named by --serve refuses a feature that the adapter has",
        observe=partial(_effects, "refused"),
        confidence=0.8,
        rationale="The adapter trains well and cannot be loaded where it is meant to run.",
    ),
    _FeatureRule(
        id="SRV002",
        severity="warning",
        title="an engine misreads the adapter",
        condition="an engine named by --serve loads a feature that the adapter has, and computes something else",
        observe=partial(_effects, "misread"),
        confidence=0.75,
        rationale="It loads without an error and computes something other than what was trained.",
    ),
    _FeatureRule(
        id="SRV003",
        severity="warning",
        title="an engine leaves parts of the adapter out",
        condition="an engine named by --serve loads the adapter and leaves a part out",
        observe=partial(_effects, "dropped"),
        confidence=0.75,
        rationale="It loads, and parts of what was trained have no effect.",
    ),
    _ServeRule(
        id="SRV004",
        severity="info",
        title="a rank between an engine's sizes",
        condition="the largest rank lies between the sizes that an engine named by --serve allocates, above all of "
        "them, or above its default",
        observe=_rank_sizes,
        confidence=0.8,
        rationale="An engine that serves many adapters allocates every slot at one of a few sizes.",
        action="set r to that size, or to the next smaller one",
        verify="memory of the engine with and without the adapter",
        settings=("r", "rank_pattern"),
    ),
)
