"""What the targets reach in the base, and whether the adapter is large enough for the data. These need --base."""

from __future__ import annotations

from collections.abc import Iterator

from gradience.rules.config.facts import Facts, given
from gradience.rules.config.hits import Hit, Rule
from gradience.rules.evidence import ADDED_TOKENS, LWR_CAPACITY, NEMOTRON, PEFT_MATCHING
from gradience.rules.rule import Unknown
from gradience.rules.thresholds import BITS_PER_PARAMETER, BITS_PER_TOKEN, CAPACITY_EXCESS, FEW_LAYERS
from gradience.schema.findings import Coverage

_SHOWN = 3  # names in a message


def _reach(facts: Facts) -> Iterator[Hit]:
    coverage = facts.coverage
    if coverage.refused:
        yield _refused(coverage)
    if not coverage.modules and not coverage.refused:
        yield Hit(
            f"the targets match no module of {coverage.base}",
            {"modules": 0, "layers_total": coverage.layers_total, "unmatched_targets": coverage.unmatched_targets},
            severity="error",
            action="name modules that exist, or use 'all-linear'",
        )
        return
    share = coverage.layers / coverage.layers_total if coverage.layers_total else 1.0
    if coverage.modules and share < FEW_LAYERS.value and not facts.config.lora.extras.get("layers_to_transform"):
        yield Hit(
            f"the adapter touches {coverage.layers} of {coverage.layers_total} layers",
            {"layers": coverage.layers, "layers_total": coverage.layers_total, "modules": coverage.modules},
        )
    missed = coverage.unmatched_targets
    if missed and coverage.modules:
        yield Hit(
            f"nothing in {coverage.base} matches {_few(missed)}",
            {"unmatched_targets": missed},
            severity="info",
            action="correct the spelling, or leave the name out",
        )


def _refused(coverage: Coverage) -> Hit:
    names = [item.name for item in coverage.refused]
    return Hit(
        f"PEFT will refuse {_few(names)}: {coverage.refused[0].reason}",
        {"refused": names},
        severity="error",
        action="name the layers that hold weights, and leave these out",
    )


def _untrained_tokens(facts: Facts) -> Iterator[Hit]:
    coverage = facts.coverage
    if facts.around.no_tokenizers:
        raise Unknown(facts.around.no_tokenizers)
    added = coverage.added_tokens
    if added and not coverage.embedding_trained:
        yield Hit(
            f"{len(added)} tokens were added to the tokenizer ({_few(added)}), and no embedding row is trained",
            {"added_tokens": added, "vocabulary": coverage.vocabulary},
        )


def _capacity(facts: Facts) -> Iterator[Hit]:
    if facts.objective.kind != "sft":
        reason = f"objective {facts.objective.kind}: the estimate is for supervised training"
        raise Unknown(reason)
    parameters, tokens = given(facts.coverage.lora_params, "the adapter's size (r, or a packed base)"), facts.tokens
    capacity, content = parameters * BITS_PER_PARAMETER.value, tokens * BITS_PER_TOKEN.value
    if content > CAPACITY_EXCESS.value * capacity:
        yield Hit(
            f"up to {tokens:.2g} tokens against {parameters:.2g} adapter parameters: the adapter may be too small",
            {"tokens_at_most": tokens, "lora_params": parameters, "ratio": content / capacity},
        )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


RULES = (
    Rule(
        id="TGT002",
        severity="warning",
        title="targets reach little or nothing",
        condition=_reach,
        confidence=0.9,
        evidence=(PEFT_MATCHING, NEMOTRON),
        rationale="A module that no target names is not trained, and a run of hours can adapt almost nothing.",
        action="check the list against the base's module names",
        scope="PEFT LoRA; with --base, for models whose modules are named as in their files",
        verify="model.print_trainable_parameters(), and model.targeted_module_names",
        thresholds=(FEW_LAYERS,),
    ),
    Rule(
        id="TGT005",
        severity="warning",
        title="added tokens without trained embeddings",
        condition=_untrained_tokens,
        confidence=0.7,
        evidence=(ADDED_TOKENS,),
        rationale="The rows of new tokens are random and stay so; the model sees noise wherever they occur.",
        action="set trainable_token_indices to their ids, or put the embedding in modules_to_save",
        scope="with --base, and a tokenizer saved beside the configuration",
        verify="the adapter file holds token rows or an embedding (gradience audit lists it)",
    ),
    Rule(
        id="RNK001",
        severity="info",
        title="more data than the adapter may hold",
        condition=_capacity,
        confidence=0.35,
        evidence=(LWR_CAPACITY,),
        rationale="Past its capacity LoRA learns more slowly per example than full fine-tuning.",
        action="raise r, or target more modules, before raising lr",
        scope="supervised training; tokens are an upper bound: full sequences, every step counted as new data",
        verify="the same run at twice the rank: compare held-out loss after equal steps",
        thresholds=(BITS_PER_PARAMETER, BITS_PER_TOKEN, CAPACITY_EXCESS),
    ),
)
