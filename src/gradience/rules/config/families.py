"""TGT006: targets that the named model's family does not have.

The names of the families' modules stand here as data, so that no model has to be at hand. Only models whose name tells
the family, and whose modules kept their names over the releases of transformers, are in the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from gradience.errors import few
from gradience.rules import NEMOTRON, UNMATCHED, Observation, Unknown, cite
from gradience.rules.config.facts import AN_ADAPTER, LORA, Facts, LoraRule
from gradience.schema import Severity


class Family(NamedTuple):
    """Models that share their modules' names: a pattern of their names on the hub, and those names.

    `former` are the names in the code that the models came with, before transformers had their class.
    """

    name: str
    models: re.Pattern[str]
    modules: frozenset[str]
    former: frozenset[str] = frozenset()


def _family(name: str, models: str, modules: str, former: str = "") -> Family:
    return Family(name, re.compile(models, re.IGNORECASE), frozenset(modules.split()), frozenset(former.split()))


_LLAMA: Final = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj embed_tokens lm_head score rotary_emb"
_NEOX: Final = "query_key_value dense dense_h_to_4h dense_4h_to_h lm_head score"
_T5: Final = "q k v o wi wi_0 wi_1 wo dense out_proj shared embed_tokens relative_attention_bias lm_head classifier"
_BART: Final = "q_proj k_proj v_proj out_proj fc1 fc2 dense shared embed_tokens embed_positions lm_head"

FAMILIES: Final = (
    _family(
        "Phi-2",
        r"phi-(1|1_5|1\.5|2)\b(?!.*(gptq|awq))",
        "q_proj k_proj v_proj dense fc1 fc2 embed_tokens lm_head",
        former="Wqkv out_proj linear wte",
    ),
    _family(
        "Phi-3",
        r"^(?!unsloth/).*phi-3(\.5)?-(mini|medium)(?!.*(vision|small|moe))",
        "qkv_proj o_proj gate_up_proj down_proj embed_tokens lm_head rotary_emb",
    ),
    _family("GPT-2", r"(^|/|distil|dialo)gpt-?2\b|dialogpt", "c_attn c_proj c_fc q_attn wte wpe lm_head score"),
    _family("GPT-NeoX", r"(^|/)(pythia|gpt-neox|dolly-v2|redpajama-incite)", f"{_NEOX} embed_in embed_out"),
    _family("GPT-J", r"(^|/)gpt-j", "q_proj k_proj v_proj out_proj fc_in fc_out wte lm_head score"),
    _family("BLOOM", r"(^|/)bloomz?(-|$)", f"{_NEOX} word_embeddings"),
    _family("Falcon", r"(^|/)falcon-(7b|40b|rw)", f"{_NEOX} word_embeddings"),
    _family("OPT", r"(^|/)opt-\d", "q_proj k_proj v_proj out_proj fc1 fc2 embed_tokens embed_positions lm_head score"),
    _family("T5", r"(^|/)((flan-|m|by|code)?t5-|flan-ul2)", _T5),
    _family("BART", r"(^|/)(distil|m)?bart-", _BART),
    _family(
        "DistilBERT",
        r"(^|/)distilbert-",
        "q_lin k_lin v_lin out_lin lin1 lin2 classifier pre_classifier vocab_transform vocab_projector qa_outputs "
        "word_embeddings position_embeddings",
    ),
    _family(
        "BERT",
        r"(^|/)(bert-(base|large|tiny|mini|small|medium)|roberta-(base|large)|xlm-roberta-(base|large))",
        "query key value dense out_proj classifier decoder qa_outputs word_embeddings position_embeddings "
        "token_type_embeddings",
    ),
    _family(
        "Llama",
        r"(^|/)((meta-)?llama-(2|3|3\.1)-\d+b|llama-3\.2-[13]b|tinyllama|vicuna-|codellama-|mistral-7b|zephyr-7b"
        r"|qwen(1\.5|2|2\.5)-[\d.]+b(?!.*(vl|audio|omni|moe))|qwen3-[\d.]+b(?!-a\d)|gemma-(2|2-2|7|2-9|2-27)b)",
        _LLAMA,
    ),
)


def family_of(model: str | None) -> Family | None:
    """The family of a model by its name, or None.

    >>> family_of("microsoft/phi-2").name, family_of("Qwen/Qwen2-VL-7B")
    ('Phi-2', None)
    """
    found = [family for family in FAMILIES if model and family.models.search(model)]
    return found[0] if found else None


def absent_targets(model: str | None, targets: list[str] | str | None) -> list[str]:
    """The names in a list of targets that no module of the model's family has; none if the family is not known."""
    family = family_of(model)
    if family is None or not isinstance(targets, list):
        return []
    return [name for name in targets if name.rpartition(".")[2] not in family.modules]


def _absent(facts: Facts) -> Iterator[Observation]:
    if facts.around.coverage is not None:
        raise Unknown("the base itself was looked at: see TGT002")
    model, targets = facts.config.model_name, facts.config.lora.target_modules
    family = family_of(model)
    if family is None:
        raise Unknown(f"{model or 'the model'} is in no family whose modules are listed here (--base looks at it)")
    if not isinstance(targets, list):
        raise Unknown("target_modules is no list of names")
    missed = absent_targets(model, targets)
    if facts.around.moment != "to come" and not family.former.isdisjoint(name.rpartition(".")[2] for name in missed):
        raise Unknown(f"the run has begun, and {few(missed)} may be of the code that {model} came with")
    left = [name for name in targets if name not in missed]
    if missed:
        yield Observation(
            f"models of the {family.name} family have no module called {few(missed)}: "
            + (f"only {few(left)} {'is' if len(left) == 1 else 'are'} adapted" if left else "PEFT refuses to start"),
            {"unmatched_targets": missed, "left": left, "family": family.name},
            severity=_severity(family, missed, left),
        )


def _severity(family: Family, missed: list[str], left: list[str]) -> Severity:
    """An error if PEFT refuses; info for a few names of other families, of which lists for any model are full."""
    if not left:
        return "error"
    misspelt = any(module in name.lower() for name in missed for module in family.modules if len(module) > 1)
    return "warning" if misspelt or len(missed) >= len(left) else "info"


RULES = (
    LoraRule(
        id="TGT006",
        severity="warning",
        title="targets that the model's family does not have",
        condition="a listed target is no module of the family that the model's name tells; an error if none of "
        "them is, and info if most are and the others misspell none",
        observe=_absent,
        needs=(LORA, AN_ADAPTER),
        confidence=0.85,
        signs=("foreign_targets",),
        evidence=(
            cite("transformers 5.24, models/*/modeling_*.py", "the names of the layers that the family defines"),
            UNMATCHED,
            NEMOTRON,
        ),
        rationale="PEFT passes over a name that matches no module, and the run adapts less than was meant.",
        action="name modules that the model has (model.named_modules()), or use 'all-linear'",
        scope="models of transformers, known by their name on the hub; a model's own code may name modules otherwise",
        verify="model.print_trainable_parameters(), and model.targeted_module_names",
        settings=("target_modules",),
    ),
)
