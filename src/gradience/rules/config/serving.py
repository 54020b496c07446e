"""How serving engines treat the features of an adapter: facts as data, each with the commit and file it was read in.

Engines change weekly, so a row says what one commit did and not what the newest release does. Behaviour that could not
be seen in source is not listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, NamedTuple, TypeAlias

from gradience.rules import Observation, Unknown, cite
from gradience.rules.config.facts import Facts, LoraRule
from gradience.schema import Json
from gradience.schema.document import Evidence, RuleGroup
from gradience.schema.events import ConfigSnapshot

SERVE_TABLE = cite(
    "rules/config/serving.py, a table read from the engines' sources",
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


class Source(NamedTuple):
    """The place where a row was read: a file of a repository at one commit, and the month of reading."""

    repository: str
    commit: str
    path: str
    seen: str = "2026-11"

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


class RankSizes(NamedTuple):
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


_Row: TypeAlias = tuple[Feature, Effect, str]


def _rows(engine: Engine, source: Source, *rows: _Row) -> tuple[ServeFact, ...]:
    """The facts of one engine that were read in one file."""
    return tuple(ServeFact(engine, *row, source) for row in rows)


_VLLM: Final = "vllm-project/vllm"
_LORAX: Final = "predibase/lorax"
_SLORA: Final = "S-LoRA/S-LoRA"
_LLAMA: Final = "ggml-org/llama.cpp"
_MLX: Final = "ml-explore/mlx-lm"
_ONE_ALPHA: Final = "one lora_alpha for every module"
_FACTORS_ONLY: Final = "tensors other than lora_A and lora_B are not read"
_ENDS: Final = "a tensor that is neither lora_A nor lora_B ends the conversion"

FACTS: Final[tuple[ServeFact, ...]] = (
    *_rows(
        "vllm",
        Source(_VLLM, "e745baff", "vllm/lora/peft_helper.py"),
        ("modules_to_save", "refused", "it must be null"),
        ("bias", "refused", "only where the engine was started with bias_enabled"),
        ("rank_pattern", "misread", "one r for the scale of all: alpha / r, where PEFT has alpha / the module's rank"),
        ("alpha_pattern", "misread", _ONE_ALPHA),
    ),
    *_rows(
        "vllm",
        Source(_VLLM, "0306474e", "vllm/lora/lora_model.py"),
        ("dora", "refused", "loading it is not implemented"),
    ),
    *_rows(
        "vllm",
        Source(_VLLM, "001e63a8", "vllm/lora/utils.py"),
        ("token_rows", "refused", "a tensor that is not a factor is an unsupported LoRA weight"),
    ),
    *_rows(
        "lorax",
        Source(_LORAX, "03679f33", "server/lorax_server/adapters/lora.py"),
        ("dora", "misread", f"{_FACTORS_ONLY}: W + s B A is served, without the magnitudes"),
        ("rank_pattern", "misread", "one r for the scale, and all layers' factors are stacked as of one rank"),
        ("alpha_pattern", "misread", _ONE_ALPHA),
        ("modules_to_save", "dropped", _FACTORS_ONLY),
        ("bias", "dropped", _FACTORS_ONLY),
        ("token_rows", "dropped", _FACTORS_ONLY),
        ("some_layers", "dropped", "a type of module that one layer lacks is left out in every layer"),
    ),
    *_rows(
        "slora",
        Source(_SLORA, "2a2786b9", "slora/models/peft/lora_adapter.py"),
        ("rslora", "misread", "the scale is lora_alpha / r: sqrt(r) times too small"),
        ("rank_pattern", "misread", "one r for the scale of every module"),
        ("alpha_pattern", "misread", _ONE_ALPHA),
    ),
    *_rows(
        "slora",
        Source(_SLORA, "2a2786b9", "slora/models/peft/layer_weights/lora_layer_weight.py"),
        ("dora", "misread", f"{_FACTORS_ONLY}: W + s B A is served, without the magnitudes"),
        ("modules_to_save", "dropped", _FACTORS_ONLY),
        ("bias", "dropped", _FACTORS_ONLY),
        ("token_rows", "dropped", _FACTORS_ONLY),
        ("beyond_attention", "dropped", "q_proj, k_proj, v_proj and o_proj alone are read"),
    ),
    *_rows(
        "llamacpp",
        Source(_LLAMA, "0b03adaa", "convert_lora_to_gguf.py"),
        ("dora", "refused", _ENDS),
        ("modules_to_save", "refused", _ENDS),
        ("bias", "refused", _ENDS),
        ("token_rows", "refused", _ENDS),
        ("alpha_pattern", "misread", "one lora_alpha is written for every tensor"),
    ),
    *_rows(
        "llamacpp",
        Source(_LLAMA, "215841fc", "src/llama-adapter.h"),
        ("rslora", "misread", "the scale is alpha / rank whatever use_rslora says: sqrt(r) times too small"),
    ),
    *_rows(
        "mlx",
        Source(_MLX, "03672867", "mlx_lm/tuner/utils.py"),
        ("peft_format", "refused", "adapters.safetensors is loaded, by num_layers and lora_parameters of its config"),
    ),
)

RANKS: Final[tuple[RankSizes, ...]] = (
    RankSizes(
        "vllm",
        "max_lora_rank is one of 1, 8, 16, 32, 64, 128, 256, 320 and 512, and every slot has that size",
        Source(_VLLM, "01230b40", "vllm/config/lora.py"),
        sizes=(1, 8, 16, 32, 64, 128, 256, 320, 512),
        default=16,
    ),
    RankSizes(
        "lorax",
        "with the SGMV kernels a rank is padded to 8, and above that to the next multiple of 16 (one GPU)",
        Source(_LORAX, "0e057f08", "server/lorax_server/utils/sgmv.py"),
        least=8,
        step=16,
    ),
)


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
