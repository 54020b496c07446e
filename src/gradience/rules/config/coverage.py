"""Rules on a configuration beside its base model: which modules the targets reach, how much data the adapter can hold.

They read the counts that `--base` gives, from the base's config.json and file headers. Without `--base` they abstain.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradience.errors import few
from gradience.rules import LWR, NEMOTRON, Observation, Threshold, Unknown, cite
from gradience.rules.config.facts import Facts, LoraRule, given
from gradience.schema.document import Coverage

FEW_LAYERS = Threshold("few_layers", 0.25, "share of the base's layers", "proposal; huggingface/peft#3554 had 4 of 56")
BITS_PER_PARAMETER = Threshold(
    "bits_per_parameter", 2.0, "bits per adapter parameter", "LoRA Without Regret, as quoted; not re-measured"
)
BITS_PER_TOKEN = Threshold("bits_per_token", 1.0, "bits per token", "LoRA Without Regret, as quoted; not re-measured")
CAPACITY_EXCESS = Threshold(
    "capacity_excess", 3.0, "bits of data over bits of adapter", "proposal: slack for padding and repeated data"
)


def _reach(facts: Facts) -> Iterator[Observation]:
    coverage = facts.coverage
    if coverage.refused:
        yield _refused(coverage)
    if not coverage.modules and not coverage.refused:
        yield Observation(
            f"the targets match no module of {coverage.base}",
            {"modules": 0, "layers_total": coverage.layers_total, "unmatched_targets": coverage.unmatched_targets},
            severity="error",
            action="name modules that exist, or use 'all-linear'",
        )
        return
    share = coverage.layers / coverage.layers_total if coverage.layers_total else 1.0
    if coverage.modules and share < FEW_LAYERS.value and not facts.config.lora.extras.get("layers_to_transform"):
        yield Observation(
            f"the adapter touches {coverage.layers} of {coverage.layers_total} layers",
            {"layers": coverage.layers, "layers_total": coverage.layers_total, "modules": coverage.modules},
        )
    missed = coverage.unmatched_targets
    if missed and coverage.modules:
        yield Observation(
            f"nothing in {coverage.base} matches {few(missed)}",
            {"unmatched_targets": missed},
            severity="info",
            action="correct the spelling, or leave the name out",
        )


def _refused(coverage: Coverage) -> Observation:
    names = [item.name for item in coverage.refused]
    return Observation(
        f"PEFT will refuse {few(names)}: {coverage.refused[0].reason}",
        {"refused": names},
        severity="error",
        action="name the layers that hold weights, and leave these out",
    )


def _untrained_tokens(facts: Facts) -> Iterator[Observation]:
    coverage = facts.coverage
    if facts.around.no_tokenizers:
        raise Unknown(facts.around.no_tokenizers)
    added = coverage.added_tokens
    if added and not coverage.embedding_trained:
        yield Observation(
            f"{len(added)} tokens were added to the tokenizer ({few(added)}), and no embedding row is trained",
            {"added_tokens": added, "vocabulary": coverage.vocabulary},
        )


def _capacity(facts: Facts) -> Iterator[Observation]:
    if facts.objective.kind != "sft":
        raise Unknown(f"objective {facts.objective.kind}: the estimate is for supervised training")
    parameters, tokens = given(facts.coverage.lora_params, "the adapter's size (r, or a packed base)"), facts.tokens
    capacity, content = parameters * BITS_PER_PARAMETER.value, tokens * BITS_PER_TOKEN.value
    if content > CAPACITY_EXCESS.value * capacity:
        yield Observation(
            f"up to {tokens:.2g} tokens against {parameters:.2g} adapter parameters: the adapter may be too small",
            {"tokens_at_most": tokens, "lora_params": parameters, "ratio": content / capacity},
        )


RULES = (
    LoraRule(
        id="TGT002",
        severity="warning",
        title="targets reach little or nothing",
        groups=("base",),
        condition="PEFT would refuse a target, the targets match no module (both errors), they reach under "
        "{few_layers} of the layers, or one of them matches nothing (info)",
        observe=_reach,
        confidence=0.9,
        evidence=(
            cite(
                "PEFT 0.21.2, tuners/tuners_utils.py: check_target_module_exists, inject_adapter",
                "a listed name must equal a module's name or its end after a dot; a string is a regular expression for "
                "the whole name; a module that PEFT has no LoRA for raises",
            ),
            NEMOTRON,
        ),
        rationale="A module that no target names is not trained, and a run of hours can adapt almost nothing.",
        action="check the list against the base's module names",
        scope="PEFT LoRA; with --base, for models whose modules are named as in their files",
        verify="model.print_trainable_parameters(), and model.targeted_module_names",
        thresholds=(FEW_LAYERS,),
        settings=("target_modules", "exclude_modules", "target_parameters"),
    ),
    LoraRule(
        id="TGT005",
        severity="warning",
        title="added tokens without trained embeddings",
        groups=("base",),
        condition="the tokenizer has added tokens, and no row of the embedding is trained",
        observe=_untrained_tokens,
        confidence=0.7,
        evidence=(
            cite(
                "PEFT docs, developer_guides/troubleshooting.md",
                "with an extended vocabulary the embedding must be trained and saved, else outputs are wrong "
                "after loading",
            ),
        ),
        rationale="The rows of new tokens are random and stay so; the model sees noise wherever they occur.",
        action="set trainable_token_indices to their ids, or put the embedding in modules_to_save",
        scope="with --base, and a tokenizer saved beside the configuration",
        verify="the adapter file holds token rows or an embedding (gradience audit lists it)",
        settings=("trainable_token_indices", "modules_to_save", "target_modules"),
    ),
    LoraRule(
        id="RNK001",
        severity="info",
        title="more data than the adapter may hold",
        groups=("base",),
        condition="tokens x {bits_per_token} bit > {capacity_excess} x trainable parameters x {bits_per_parameter} bit",
        observe=_capacity,
        confidence=0.35,
        evidence=(
            cite(
                LWR,
                "an adapter holds about 2 bits a parameter and a data set about 1 bit a token; past that LoRA "
                "falls behind",
            ),
        ),
        rationale="Past its capacity LoRA learns more slowly per example than full fine-tuning.",
        action="raise r, or target more modules, before raising lr",
        scope="supervised training; tokens are an upper bound: full sequences, every step counted as new data",
        verify="the same run at twice the rank: compare held-out loss after equal steps",
        thresholds=(BITS_PER_PARAMETER, BITS_PER_TOKEN, CAPACITY_EXCESS),
        settings=("r",),
    ),
)
