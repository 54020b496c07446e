"""What the engines that an adapter is meant for will make of it. These need --serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from gradience.policy.evidence.configs import SERVE_TABLE
from gradience.policy.facts import Facts, Unknown
from gradience.policy.rules import Hit, Rule
from gradience.policy.serve_facts import ENGINES, FACTS, RANKS, Effect, Feature, RankSizes, ServeFact
from gradience.policy.targets import ATTENTION_OUTPUTS
from gradience.schema.config import ConfigSnapshot
from gradience.schema.findings import Evidence

__all__ = ["FEATURES", "RULES"]

FEATURES: Final[dict[Feature, tuple[str, Callable[[ConfigSnapshot], bool]]]] = {
    "dora": ("use_dora", lambda c: bool(c.lora.use_dora)),
    "modules_to_save": ("modules_to_save", lambda c: bool(c.lora.modules_to_save)),
    "bias": ("a trained bias", lambda c: c.lora.bias not in {None, "none"} or bool(c.lora.extras.get("lora_bias"))),
    "rslora": ("use_rslora", lambda c: bool(c.lora.use_rslora)),
    "rank_pattern": ("rank_pattern", lambda c: bool(c.lora.rank_pattern)),
    "alpha_pattern": ("alpha_pattern", lambda c: bool(c.lora.alpha_pattern)),
    "token_rows": ("trainable_token_indices", lambda c: bool(c.lora.extras.get("trainable_token_indices"))),
    "some_layers": ("layers_to_transform", lambda c: bool(c.lora.extras.get("layers_to_transform"))),
    "beyond_attention": ("targets beside q, k, v and o", lambda c: _beyond_attention(c.lora.target_modules)),
    "peft_format": ("PEFT's format", lambda c: c.extras.get("format") != "mlx-lm"),
}


def _beyond_attention(targets: list[str] | str | None) -> bool:
    if isinstance(targets, str):
        return targets.lower() == "all-linear"
    return any(name.rpartition(".")[2] not in ATTENTION_OUTPUTS for name in targets or ())


def _found(effect: Effect) -> Callable[[Facts], Iterator[Hit]]:
    """Return the condition that finds this effect in the engines asked for."""

    def condition(facts: Facts) -> Iterator[Hit]:
        engines = _engines(facts)
        for fact in FACTS:
            name, has = FEATURES[fact.feature]
            if fact.engine in engines and fact.effect == effect and has(facts.config):
                yield _hit(fact, name)

    return condition


def _hit(fact: ServeFact, name: str) -> Hit:
    verb = {"refused": "refuses", "misread": "misreads", "dropped": "leaves out"}[fact.effect]
    return Hit(
        f"{ENGINES[fact.engine]} {verb} {name}: {fact.says}",
        {"engine": fact.engine, "feature": fact.feature, "effect": fact.effect, "url": fact.url},
        action="convert the adapter to the engine's own format" if fact.feature == "peft_format" else None,
        evidence=(Evidence(source=fact.source, says=fact.says),),
    )


def _rank_sizes(facts: Facts) -> Iterator[Hit]:
    engines = _engines(facts)
    ranks = [facts.r, *(facts.config.lora.rank_pattern or {}).values()]
    for sizes in RANKS:
        if sizes.engine in engines:
            yield from _padded(sizes, max(ranks))


def _padded(sizes: RankSizes, rank: int) -> Iterator[Hit]:
    engine, room = ENGINES[sizes.engine], sizes.room_for(rank)
    values = {"engine": sizes.engine, "rank": rank, "room": room}
    evidence = (Evidence(source=sizes.source, says=sizes.says),)
    if room is None:
        yield Hit(f"{engine} has no room for rank {rank}", values, severity="warning", evidence=evidence)
    elif room > rank:
        unused = f"{1 - rank / room:.0%} of its adapter memory is padding"
        yield Hit(f"{engine} makes room for rank {room}: at rank {rank}, {unused}", values, evidence=evidence)
    elif sizes.default is not None and rank > sizes.default:
        message = f"{engine} takes up to rank {sizes.default} by default: start it with max_lora_rank {room}"
        yield Hit(message, values, evidence=evidence, action=f"set max_lora_rank to {room} when serving")


def _engines(facts: Facts) -> tuple[str, ...]:
    if not facts.around.engines:
        reason = "no engine is named (--serve)"
        raise Unknown(reason)
    return facts.around.engines


_SCOPE: Final = "the engine's commit named in the evidence; a later one may do otherwise"
_VERIFY: Final = "load the adapter in the version you serve with, and compare its output with PEFT's on a few prompts"

RULES = (
    Rule(
        id="SRV001",
        severity="warning",
        title="an engine refuses the adapter",
        condition=_found("refused"),
        confidence=0.8,
        evidence=(SERVE_TABLE,),
        rationale="The adapter trains well and cannot be loaded where it is meant to run.",
        action="train without the feature, or merge the adapter into the base before serving",
        scope=_SCOPE,
        verify=_VERIFY,
    ),
    Rule(
        id="SRV002",
        severity="warning",
        title="an engine misreads the adapter",
        condition=_found("misread"),
        confidence=0.75,
        evidence=(SERVE_TABLE,),
        rationale="It loads without an error and computes something else than what was trained.",
        action="train without the feature, or merge the adapter into the base before serving",
        scope=_SCOPE,
        verify=_VERIFY,
    ),
    Rule(
        id="SRV003",
        severity="warning",
        title="an engine leaves parts of the adapter out",
        condition=_found("dropped"),
        confidence=0.75,
        evidence=(SERVE_TABLE,),
        rationale="It loads, and parts of what was trained have no effect.",
        action="train without the feature, or merge the adapter into the base before serving",
        scope=_SCOPE,
        verify=_VERIFY,
    ),
    Rule(
        id="SRV004",
        severity="info",
        title="a rank between an engine's sizes",
        condition=_rank_sizes,
        confidence=0.8,
        evidence=(SERVE_TABLE,),
        rationale="An engine that serves many adapters allocates every slot at one of a few sizes.",
        action="take the size itself as r, or the next below",
        scope=_SCOPE,
        verify="memory of the engine with and without the adapter",
    ),
)
