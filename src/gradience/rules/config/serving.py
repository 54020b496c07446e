"""What serving engines do with an adapter: with its settings, and with each group of its tensors.

The facts are data, in serving.toml, each with where it was read: a file at a commit, or an issue or pull request.

Engines change weekly, so a row says what one commit did and not what the newest release does. What no row tells is not
judged, and said to be so.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from gradience.adapters import OUTPUTS
from gradience.adapters.traits import start_of
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

Engine: TypeAlias = str
Feature: TypeAlias = str
"""An engine and a feature, as the table names them."""
Effect: TypeAlias = Literal["refused", "dropped", "misread", "unknown", "converted", "applied"]


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the table."""


class Source(_Row, frozen=True):
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


class Reading(_Row, frozen=True):
    """What was read of an engine in one place: of features what becomes of them, and how."""

    engine: Engine
    """The engines, with a space between, or `each`."""
    source: Source
    features: dict[Feature, tuple[Effect, str]]
    only: frozenset[str] = frozenset()
    """For `targets` the modules, for `base` and `model` the types, of which alone the engine takes adapters."""
    beside: Literal["bitsandbytes"] | None = None
    """What the base has to be stored in."""
    models: tuple[str, ...] = ()
    types: frozenset[str] = frozenset()
    """Model types that it is about, by the beginning of the type or the base's name, or by the whole type; else all."""
    since: str = ""
    """The first version that does so."""
    until: str = ""
    """The first version that no longer does so."""
    unless: str = ""
    """The server's flag that mends it."""

    def holds_in(self, version: str) -> bool:
        """Whether it is of a version; without a version, whether it is of all that were looked at."""
        if not version:
            return not self.since and not self.until
        return _numbers(self.since) <= _numbers(version) and (
            not self.until or _numbers(version) < _numbers(self.until)
        )

    def is_of(self, facts: Facts) -> bool:
        """Whether it is about this adapter's base, as this server is started."""
        if self.unless in facts.around.flags or (self.beside is not None and not _in_bitsandbytes(facts)):
            return False
        named = facts.model_type or (facts.config.model_name or "").rpartition("/")[2]
        is_typed = not self.types or frozenset() < base_types(facts) <= self.types
        return is_typed and (not self.models or _letters(named).startswith(self.models))


class ServeFact(NamedTuple):
    """How one engine treats an adapter with one feature."""

    row: Reading
    feature: Feature
    effect: Effect
    says: str

    def applies(self, facts: Facts) -> bool:
        """Whether the adapter has the feature, in the surroundings that the fact is about."""
        if not self.row.is_of(facts):
            return False
        if self.feature == "targets":
            return not _leaves(facts) <= self.row.only
        if self.feature in _BASES:
            return bool(types := base_types(facts)) and types.isdisjoint(self.row.only)
        return shows(self.feature, facts)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


class RankSizes(_Row, frozen=True):
    """The ranks that an engine allocates: a list of sizes, or multiples of a step from a least size on."""

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


class Processes(_Row, frozen=True):
    """How one process of an engine serves several adapters.

    `command` starts it, with places to be filled in; `adapter` is one of its {adapters}.
    """

    says: str
    source: Source
    command: str = ""
    adapter: str = ""
    padded: bool = False
    """Whether every slot takes the memory of the largest rank."""
    alone: bool = False
    """Whether a process serves one adapter only."""
    same: tuple[str, ...] = ()
    """Settings in which the adapters of a process must agree."""
    nested: bool = False
    """Whether one adapter must have every module of the others."""


class ServerFlags(_Row, frozen=True):
    """The flags of a server that decide what is served; `packed` are names that stand for several modules there."""

    targets: str
    rank: str
    packed: dict[str, tuple[str, ...]]
    source: Source


class NamedBy(_Row, frozen=True):
    """How a server says which engine it is: the owner of its models, and where it tells its version."""

    owned_by: str
    source: Source
    version: str = ""


class EngineFacts(_Row, frozen=True):
    """What is known of an engine whatever the adapter has."""

    title: str
    versions: tuple[str, str] | None = None
    """The first and the last version that the rows are of; None if their sources name no version."""
    unknown: tuple[Feature, ...] = ()
    """Features of which it is not known what the engine does with them."""
    ranks: RankSizes | None = None
    flags: ServerFlags | None = None
    answers: NamedBy | None = None
    process: Processes | None = None
    fleets_only: bool = False
    """Whether only several adapters meet it."""


class AdapterFeature(_Row, frozen=True):
    """A feature that an engine may not support: its name in a message, its setting, its mend.

    `{old}` and `{new}` stand for the stem of the adapter's modules and for the base's, `{there}` for it in words.
    """

    name: str
    setting: str
    commands: tuple[str, ...] = ()
    """Commands that write an adapter without the feature from ADAPTER to NEW."""
    remark: str = ""
    """What they give, or another mend."""
    groups: tuple[str, ...] = ()
    """The groups of tensors that show it, where the file's header was read."""
    rooted: bool = False
    """Whether an engine that misreads it takes alpha / r in place of alpha / sqrt(r)."""
    stated: bool = False
    """Whether engines look at the setting itself, whatever the file holds."""
    of_all: bool = False
    """Whether it is of every tensor, whatever its group."""

    @property
    def mend(self) -> str | None:
        """The commands and the remark in one sentence; None if there is neither."""
        commands = ", then ".join(self.commands)
        return f"{commands} ({self.remark})" if commands and self.remark else commands or self.remark or None


class _Effect(_Row, frozen=True):
    verb: str
    fate: Fate | None = None


class _Table(_Row, frozen=True):
    effects: dict[Effect, _Effect]
    shared: dict[str, str]
    groups: dict[str, str]
    features: dict[Feature, AdapterFeature]
    engines: dict[Engine, EngineFacts]
    facts: list[Reading]


_TABLE: Final = own_table(__file__, "serving.toml", _Table)
ENGINES: Final = _TABLE.engines
FEATURES: Final = _TABLE.features
FACTS: Final = tuple(
    ServeFact(msgspec.structs.replace(row, engine=engine), feature, effect, says)
    for row in _TABLE.facts
    for engine in (ENGINES if row.engine == "each" else row.engine.split())
    for feature, (effect, says) in row.features.items()
)
_FACTORS: Final = ("language", "tower", "experts", "expert_parameters", "embedding", "head", "tied_head")
_BESIDE: Final = frozenset({"magnitudes", "biases"})  # groups of modules that have factors, too
_BASES: Final = frozenset({"base", "model"})  # features that a row's `only` tells the base's types of
_ROTATED: Final = frozenset({"q_proj", "k_proj"})  # modules whose outputs are rotated by position
_OUTER: Final = frozenset({"embed_tokens", "lm_head"})
_LINEAR: Final = _ROTATED | {"v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # of a Llama's block
_ASKED: Final[dict[Feature, Callable[[Facts], bool]]] = {
    "bias": lambda facts: shows("base_bias", facts) or bool(_stated(facts.config.lora, "lora_bias")),
    "base_bias": lambda facts: facts.config.lora.bias not in {None, "none"},
    "new_rows": lambda facts: bool(facts.around.new_rows),
    "embedding_or_head": lambda facts: not _OUTER.isdisjoint(_names(facts.config.lora.target_modules)),
    "embedding": lambda facts: "embed_tokens" in _names(facts.config.lora.target_modules),
    "expression": lambda facts: (
        isinstance(facts.config.lora.target_modules, str) and not _names(facts.config.lora.target_modules)
    ),
    "prefix": lambda facts: facts.around.moved is not None and facts.around.moved.saved,
    "rotated": lambda facts: not _ROTATED.isdisjoint(_names(facts.config.lora.target_modules)),
    "some_layers": lambda facts: _names_layers(facts),  # noqa: PLW0108  # defined below
    "fraction": lambda facts: isinstance(facts.config.lora.alpha, float) and not facts.config.lora.alpha.is_integer(),
    "peft_format": lambda facts: facts.config.extras.get("format") != "mlx-lm",
    "mlx_format": lambda facts: facts.config.extras.get("format") == "mlx-lm",
    "experts": lambda facts: _adapts_experts(facts.config),
    "expert_parameters": lambda facts: bool(_stated(facts.config.lora, "target_parameters")),
    "expert_scale": lambda facts: bool(facts.config.lora.use_rslora) and shows("experts", facts),
    "unreached": lambda facts: facts.around.coverage is not None and not facts.around.coverage.modules,
    "start": lambda facts: start_of(facts.config.lora.init).changes_base,
    "absent": lambda facts: bool(facts.around.absent),
    "any": lambda _: True,
    "unnamed": lambda facts: any(map(_unnamed(facts), _names(facts.config.lora.target_modules))),
}
"""Whether the settings or the surroundings show a feature that has not its setting's name."""


def base_types(facts: Facts) -> frozenset[str]:
    """The model types that the base may have: the one that is told, else those of its family that its name may mean."""
    coverage, family = facts.around.coverage, facts.family
    if told := coverage.model_type if coverage is not None else facts.model_type:
        return frozenset({told})
    types = set() if family is None else {one.removesuffix("_text") for one in family.types.split()}
    name = _letters(facts.config.model_name or "")
    named = sorted((one for one in types if _letters(one) in name), key=len)
    return frozenset(named[-1:] or types)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def shared_settings(engine: Engine, lora: LoraSnapshot) -> dict[str, object]:
    """The settings in which the adapters of one process must agree, with their values, which are false by default."""
    process = ENGINES[engine].process
    values = {"modules_to_save": frozenset(lora.modules_to_save or ()), "lora_dropout": lora.dropout or 0.0}
    return {name: values.get(name, bool(_stated(lora, name))) for name in (() if process is None else process.same)}


def mend_of_shared(name: str) -> str:
    """What makes adapters alike that differ in a setting."""
    return _TABLE.shared[name] or TRAIN_WITHOUT


def _stated(lora: LoraSnapshot, name: str) -> object:
    """The value of a setting by its name in PEFT; None if it is not stated."""
    return {**lora.extras, **msgspec.structs.asdict(lora)}.get(name)


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
    return frozenset(map(_leaf, held))


def _leaf(module: str) -> str:
    return module.replace(".base_layer", "").rpartition(".")[2]


def _unnamed(facts: Facts) -> Callable[[str], bool]:
    """Whether a module is left out by the flag of a server."""
    for flags in (one.flags for one in ENGINES.values() if one.flags is not None):
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
    # A file names the module of an expert parameter, and PEFT looks for the parameter. It wraps one after the other, so
    # of two the later is outside; of other numbers it may be any.
    later = [leaf for leaf in leaves if leaf == "down_proj"]  # as transformers' classes of experts have them
    for one in groups.get("expert_parameters", ()):
        stem = one.removesuffix(".base_layer")
        outer = later if one == stem else [leaf for leaf in leaves if leaf not in later]
        is_pair = len(leaves) == 2 and bool(later) and f"{stem}.base_layer" in groups["expert_parameters"]
        places[one] = [f"{stem}.{leaf}" for leaf in (outer if is_pair else leaves)]
    try:
        keys = first_matches(values, itertools.chain.from_iterable(places.values()))
    except AdapterError:  # a pattern that cannot be followed may be of every module
        return lambda _: True
    other = {place for place, key in keys.items() if values[key] != usual}
    return lambda name: not other.isdisjoint(places.get(name, ()))


def _lacking(facts: Facts) -> Callable[[str], bool]:
    """Whether a module is of a type that some layer lacks: of the base's layers, else of those that any type has."""
    held: dict[str, set[int]] = {}
    for name in (facts.around.groups or {}).get("language", ()):
        if (layer := re.search(r"\.(\d+)\.", name)) is not None:
            held.setdefault(name.rpartition(".")[2], set()).add(int(layer[1]))
    layers = None if facts.around.model is None else facts.around.model.layers
    every = set().union(*held.values()) if layers is None else set(range(layers))
    is_some = layers is None and _names_layers(facts)
    lacking = {leaf for leaf, found in held.items() if is_some or not found >= every}
    return lambda name: name.rpartition(".")[2] in lacking


def _names_layers(facts: Facts) -> bool:
    return _stated(facts.config.lora, "layers_to_transform") not in (None, [])


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
    "absent": lambda facts: facts.around.absent.__contains__,
    "rotated": lambda _: lambda name: _leaf(name) in _ROTATED,
    "some_layers": _lacking,
    "unwrapped": lambda facts: lambda name: facts.around.coverage is None and "language_model." not in name,
    "expert_scale": _held_in("experts", "expert_parameters"),
    "wrapped": lambda _: lambda name: "language_model." in name,
    "unnamed": _unnamed,
}
"""Which of the modules in its groups a feature is about; all of them if it is not here."""


def held(feature: Feature, facts: Facts) -> dict[str, list[str]]:
    """The modules in the file that a feature is about, by group."""
    groups, one, chosen = facts.around.groups or {}, FEATURES[feature], _WHICH.get(feature)
    about = groups if one.of_all else one.groups or _FACTORS
    which = None if chosen is None else chosen(facts)
    found = {key: [name for name in groups[key] if which is None or which(name)] for key in groups if key in about}
    return {group: modules for group, modules in found.items() if modules}


def shows(feature: Feature, facts: Facts) -> bool:
    """Whether the adapter has a feature: by its tensors, else by its settings."""
    one = FEATURES[feature]
    named = one.name == one.setting and bool(_stated(facts.config.lora, one.setting))
    asked = _ASKED[feature](facts) if feature in _ASKED else named
    if facts.around.groups is None or (one.stated and asked):
        return asked
    by_tensors = bool(one.groups) or feature == "unnamed"
    return (by_tensors or asked) and (not (by_tensors or feature in _WHICH) or bool(held(feature, facts)))


def _names(targets: list[str] | str | None) -> frozenset[str]:
    """The last parts of the targets; of `all-linear` those of a Llama, of another expression none."""
    if isinstance(targets, str):
        return _LINEAR if targets.lower() == "all-linear" else frozenset()
    return frozenset(name.rpartition(".")[2] for name in targets or ())


def known_engines(given: Iterable[str], *, fleet: bool = False) -> tuple[str, ...]:
    """The engines named, with @VERSION if one is given; each text with one or several, separated by commas.

    Raises:
        ConfigError: an engine is not known.
    """
    names = [name.strip().lower() for item in given for name in item.split(",")]
    known = [engine for engine, one in ENGINES.items() if fleet or not one.fleets_only]
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
    return engine, version.removeprefix("v")


def unjudged(name: str) -> str:
    """Why an engine is not judged in the version named; empty if it is."""
    engine, version = _versioned(name)
    title, known = ENGINES[engine].title, ENGINES[engine].versions
    if not version:
        return ""
    if known is None:
        return f"what is known of {title} was read without a version"
    if _numbers(version) and _numbers(known[0]) <= _numbers(version) <= _numbers(known[1]):
        return ""
    return f"what is known of {title} was read of {known[0]} to {known[1]}, and not of {version}"


def facts_of(name: str, facts: Facts) -> Iterator[ServeFact]:
    """The facts on an engine, in the version named with it, that apply to the adapter; of a feature the first."""
    engine, version = _versioned(name)
    told: set[Feature] = set()
    for fact in () if unjudged(name) else FACTS:
        of_it = fact.row.engine == engine and fact.row.holds_in(version) and fact.feature not in told
        if of_it and fact.applies(facts):
            told.add(fact.feature)
            yield fact


class Part(NamedTuple):
    """What an engine is known to make of a part of the adapter; without a fact that nothing is known of it."""

    feature: Feature
    modules: Mapping[str, Sequence[str]]
    """By group; none if no file was read, or if the fact is about settings alone."""
    fact: ServeFact | None = None

    @property
    def effect(self) -> Effect:
        """What the engine does with it."""
        return "unknown" if self.fact is None else self.fact.effect

    @property
    def updates(self) -> list[str]:
        """The modules whose update is concerned, each once."""
        return list(dict.fromkeys(one for group, held in self.modules.items() if group not in _BESIDE for one in held))

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
    engine = engine_of(name)
    over, sizes = over_limit(engine, _largest_rank(facts), facts.around.flags), ENGINES[engine].ranks
    if over is not None and sizes is not None and not unjudged(name):
        row = Reading(engine=engine, source=sizes.source, features={})
        yield Part("rank", {}, ServeFact(row, "rank", "refused", over[0]))
    told: set[Feature] = set()
    for fact in facts_of(name, facts):
        modules, taken = held(fact.feature, facts), fact.row.only if fact.feature == "targets" else frozenset()
        kept = {group: [name for name in names if _leaf(name) not in taken] for group, names in modules.items()}
        yield Part(fact.feature, kept, fact)
        told.add(fact.feature)
    for feature in ENGINES[engine].unknown:
        if feature not in told and shows(feature, facts):
            yield Part(feature, held(feature, facts))


def unknown_features(name: str, facts: Facts) -> list[str]:
    """The adapter's features, as messages name them, of which it is not known what the engine does with them."""
    unknown = [part.feature for part in parts(name, facts) if part.effect == "unknown"]
    base = ["a base of a type that is not known"] if base_unknown(name, facts) else []
    return [*(_filled(FEATURES[one].name, facts) for one in unknown), *base]


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
        if (fact := part.fact) is not None and _TABLE.effects[fact.effect].verb:
            feature = FEATURES[fact.feature]
            rank = facts.config.lora.r if not facts.config.lora.rank_pattern else None
            factor = rank**-0.5 if feature.rooted and rank else None
            does = "" if fact.feature == "rank" else f"{_does(fact, facts)}: "  # which says it whole
            words = f"{does}{fact.says} ({fact.row.source.url})"
            yield Loss(fact.effect, words, frozenset(part.updates), factor)


def _does(fact: ServeFact, facts: Facts) -> str:
    verb, feature = _TABLE.effects[fact.effect].verb, FEATURES[fact.feature].name
    return f"{ENGINES[fact.row.engine].title} {verb} {_filled(feature, facts)}"


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
            if (fact := part.fact) is None or fact.effect != effect or fact.feature == "rank":
                continue  # a rule of its own tells of the rank
            feature, share, lost = FEATURES[fact.feature], None, ""
            if part.is_counted:
                share, n = part.share(part.updates, facts), len({one for held in part.modules.values() for one in held})
                told = filter(None, (f"{n} {'modules' if n > 1 else 'module'}", _energy(share, facts)))
                lost = f" ({', '.join(told)})"
            values: dict[str, Json] = {"engine": fact.row.engine, "feature": fact.feature, "effect": effect}
            yield Observation(
                f"{_does(fact, facts)}{lost}: {fact.says}",
                values | {"url": fact.row.source.url} | ({} if share is None else {"share": share}),
                action=feature.mend and _filled(feature.mend, facts),
                evidence=(cite(str(fact.row.source), fact.says),),
            )


def fates(facts: Facts) -> Iterator[GroupFate]:
    """Yield what each engine does with each group of the tensors in the file; without a file how it is started."""
    for name in facts.around.engines:
        asked, start = base_unknown(name, facts), _start(name, facts)
        if facts.around.groups is None and start:
            yield GroupFate(engine=name, group="no tensor was read", modules=0, fate="not judged", reason=start)
        found = [*parts(name, facts)]
        told = [effect for effect, what in _TABLE.effects.items() if what.fate is not None]  # worst first
        known = [one for effect in told for one in found if one.effect == effect]
        sound: Fate = "not judged" if unjudged(name) or asked else "applied"
        beside = "; ".join(filter(None, (asked, start)))
        for group, modules in (facts.around.groups or {}).items():
            for here, of in _split(modules, group, known):
                fate = None if of is None else _TABLE.effects[of.effect].fate
                fact, is_part = None if of is None else of.fact, len(here) < len(modules)
                yield GroupFate(
                    engine=name,
                    group=_TABLE.groups[group],
                    modules=len(here),
                    of=len(modules) if is_part else 0,
                    which=_which(here, modules) if is_part else "",
                    share=None if of is None else of.share(here, facts),
                    fate=fate or sound,
                    reason=beside if fact is None else fact.says,
                    source="" if fact is None else fact.row.source.url,
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


def base_unknown(name: str, facts: Facts) -> str:
    """Why nothing is told of an engine that takes some types of bases, where that of the base is not known."""
    types, (engine, version) = base_types(facts), _versioned(name)
    some = (one.row for one in FACTS if one.feature in _BASES and one.effect != "unknown" and one.row.engine == engine)
    for row in some:
        if row.holds_in(version) and (not types or (types - row.only and types & row.only)):
            return f"the base's type is not known here (--base), and it takes some alone ({row.source.url})"
    return ""


def _start(name: str, facts: Facts) -> str:
    """What is done first: a conversion, and a start with room for the adapter's rank where the default has none.

    Without a version, also what a later one than the oldest does.
    """
    rank, (engine, version) = _largest_rank(facts), _versioned(name)
    known, flags = ENGINES[engine].ranks, facts.around.flags if ENGINES[engine].flags is not None else {}
    mends = [FEATURES[one.feature].mend for one in facts_of(name, facts) if one.effect == "converted"]
    first = [f"convert first: {mend}" for mend in mends]
    if known is not None and known.default is not None and rank > known.default and not flags:
        first.append(f"start it with a max_lora_rank of {known.room_for(rank)}: its default is {known.default}")
    later = (one for one in FACTS if not version and one.row.since and not one.row.until and one.row.engine == engine)
    first += [f"as of {fact.row.since} otherwise: {fact.says}" for fact in later if fact.applies(facts)]
    return "; ".join(first)


def takes_base(engine: Engine, facts: Facts) -> bool:
    """Whether no source tells that an engine has no model of the base's type, as far as that is known."""
    return not any(fact.feature in _BASES and fact.row.engine == engine and fact.applies(facts) for fact in FACTS)


def room_for(engine: Engine, rank: int) -> int | None:
    """The rank that an engine makes room for, for an adapter of this one; None if the rank exceeds all sizes."""
    sizes = ENGINES[engine].ranks
    return rank if sizes is None else sizes.room_for(rank)


def _largest_rank(facts: Facts) -> int:
    """The rank that a slot needs, which has one size for all modules."""
    return max([facts.config.lora.r or 1, *(facts.config.lora.rank_pattern or {}).values()])


def over_limit(engine: Engine, rank: int, flags: Mapping[str, Sequence[str]]) -> tuple[str, str | None] | None:
    """What is wrong with a rank for a server with these flags, and what mends it; None if there is room."""
    name, known, sizes = ENGINES[engine].title, ENGINES[engine].flags, ENGINES[engine].ranks
    if sizes is None:
        return None
    if (room := sizes.room_for(rank)) is None:
        text = f"{name} has no room for rank {rank}: {sizes.says}"
        return text, f"gradience resize ADAPTER --rank {max(sizes.sizes)} --out NEW"
    if known is None or not flags:  # how it is started is not known
        return None
    given, flag = flags.get(known.rank), f"--{known.rank}"
    limit = sizes.default if given is None else int(given[0]) if given and given[0].isdecimal() else None
    if limit is not None and sizes.sizes and limit not in sizes.sizes:
        return f"{name} takes no {flag} {limit}", f"give one of {', '.join(map(str, sizes.sizes))}"
    if limit is not None and rank > limit:
        unless = "" if given else ", as none is given"
        return f"{name} refuses rank {rank}: {flag} is {limit}{unless}", f"start it with {flag} {room}"
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
    rank = max(facts.r, _largest_rank(facts))
    for engine in dict.fromkeys(engine_of(name) for name in _engines(facts) if not unjudged(name)):
        sizes = ENGINES[engine].ranks
        if sizes is not None and (over := over_limit(engine, rank, facts.around.flags)) is not None:
            values: dict[str, Json] = {"engine": engine, "rank": rank, "room": sizes.room_for(rank)}
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
            yield Observation(f"{ENGINES[engine].title} {version} is not judged: {reason}", values)
            continue
        asked = [part for part in parts(name, facts) if part.effect == "unknown"]
        for fact in (part.fact for part in asked if part.fact is not None):
            evidence = (cite(str(fact.row.source), fact.says),)
            told = f"{ENGINES[engine].title} is not judged with {_filled(FEATURES[fact.feature].name, facts)}"
            yield Observation(f"{told}: {fact.says}", values | {"features": [fact.feature]}, evidence=evidence)
        if silent := [part.feature for part in asked if part.fact is None]:
            says = few([FEATURES[one].name for one in silent], len(silent))
            yield Observation(
                f"{ENGINES[engine].title} is not judged with {says}: no source read here tells what it does with that",
                values | {"features": [*silent]},
            )


EFFECT_RULES: Final = (_refused, _misread, _dropped, _converted, _rank_sizes)
"""The rules on what an engine does with an adapter; each finding's values name the engine, and the feature if any."""
RULES = (*EFFECT_RULES, _not_known)
CONVERTED: Final = _converted.id
