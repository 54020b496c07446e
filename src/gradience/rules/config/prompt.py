"""Rules on a recipe's prompt and packing: tokens that nothing trains, documents that see each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from gradience.configs.prompts import form_named
from gradience.rules import Observation, Unknown
from gradience.rules.config.facts import SUPERVISED, ConfigRule, Facts, LoraRule, given

_BASE: Final = re.compile(
    r"[-_](?:base|pt)(?:$|[-_])|(?:qwen(?:1\.5|2|2\.5)(?:-(?:coder|math))?|llama-3(?:\.\d)?|gemma(?:-[12])?|yi(?:-1\.5)?)"
    r"-\d+(?:\.\d+)?b$",
    re.IGNORECASE,
)
_QUANTISED: Final = re.compile(r"(?:-unsloth)?-(?:bnb-4bit|4bit|awq|gptq(?:-int[48])?)$", re.IGNORECASE)
_EMBEDDINGS: Final = ("embed", "wte", "word_embeddings", "lm_head", "output_layer")


def _names_embedding(names: list[str] | str | None) -> bool:
    listed = names if isinstance(names, list) else [names or ""]
    return any(part in name for name in listed for part in _EMBEDDINGS)


@LoraRule("CHT501", severity="warning", confidence=0.7, settings=("prompt_template", "modules_to_save"))
def _untrained_turn_end(facts: Facts) -> Iterator[Observation]:
    """a base model with a chat template whose tokens nothing trains

    a recipe names a chat template, its model is a base model by its name, and neither the embedding nor the head is
    trained

    Why: Pretraining hardly saw the token that ends a turn. LoRA on the layers between cannot teach the head to write
        it, so the model does not stop.
    Scope: LoRA of base models, by name: -Base, -pt, or a family whose chat models are named otherwise; templates that
        write turns by tokens of their own
    Action: train them too (modules_to_save or additional_target: embed_tokens,lm_head; trainable_token_indices), or
        take the instruct model
    Verify: the probability of the token at the end of an answer, before and after training
    Seen: https://github.com/QwenLM/Qwen3/issues/1064 -- LoRA of a Qwen base model with ChatML never stops
    Source: https://mintlify.com/QwenLM/Qwen/finetuning/lora -- embedding and output layers are to be trained when a
        base model is tuned with new tokens
    """
    lora, training = facts.config.lora, facts.config.training
    template = given(training.extras.get("prompt_template"), "a chat template by name")
    model = given(facts.config.model_name, "the model").rpartition("/")[2]
    form = form_named(str(template))
    if form is None:
        raise Unknown(f"what the template {template} writes is not known")
    is_base = _BASE.search(_QUANTISED.sub("", model))
    trained = _names_embedding(lora.modules_to_save) or _names_embedding(lora.target_modules)
    if is_base and form.has_own_tokens and not trained and not lora.extras.get("trainable_token_indices"):
        yield Observation(
            f"{model} is a base model, and the template {template} ends turns with {form.ends}: neither its embedding "
            "nor the head is trained",
            {"template": str(template), "token": form.ends},
        )


@ConfigRule(
    "PCK501",
    severity="warning",
    confidence=0.7,
    needs=(SUPERVISED,),
    settings=("packing_strategy", "neat_packing", "packing", "attn_implementation"),
)
def _packed_together(facts: Facts) -> Iterator[Observation]:
    """packed documents attend to each other

    packing is on, and nothing parts documents: TRL's strategy is wrapped, or LLaMA-Factory's neat_packing is off

    Why: An answer is learnt beside the rows that chance put before it, which no prompt has.
    Scope: supervised tuning by TRL and LLaMA-Factory; for pretraining on long texts it is usual
    Action: packing_strategy bfd with flash attention (TRL), neat_packing (LLaMA-Factory), or no packing
    Verify: position_ids of a batch: they begin at 0 once for each document
    Seen: https://github.com/huggingface/trl/issues/1230 -- packing makes the model worse
    Source: trl/data_utils.py:pack_dataset@1.16.0 -- wrapped ignores the boundaries of sequences
    """
    extras, program = facts.config.training.extras, facts.config.extras.get("format")
    if not given(extras.get("packing"), "packing"):
        return
    if program == "llama-factory":
        how = None if extras.get("neat_packing") else "neat_packing is off"
    elif program is None:
        strategy = given(extras.get("packing_strategy"), "packing_strategy")
        how = "packing_strategy is wrapped" if strategy == "wrapped" else None
    else:
        raise Unknown(f"a recipe of {program}, which parts documents by the attention that is installed")
    if how:
        attention = extras.get("attn_implementation")
        beside = f" (attention: {attention})" if attention else ""
        yield Observation(
            f"packing is on and {how}{beside}: documents of one sequence attend to each other", {"how": how}
        )


RULES = (_untrained_turn_end, _packed_together)
