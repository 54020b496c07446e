"""Rules on the names in a configuration, by the model's family: TGT006 to TGT009, PAD001.

A family is told by the model type (the base's config.json, or the class that PEFT noted), else by the model's name. The
names of its modules are data, in configs/families.toml, so that no model has to be at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gradience.adapters.patterns import PatternTable, layer_number, whole
from gradience.configs.families import Family, known_modules, meant
from gradience.errors import AdapterError, few
from gradience.rules import NEMOTRON, UNMATCHED, Observation, Unknown, premise
from gradience.rules.config.facts import AN_ADAPTER, LORA, TO_COME, ConfigRule, Facts, LoraRule
from gradience.schema import Severity
from gradience.schema.events import LoraSnapshot

_FIRST_LAYER: Final = re.compile(r".*?\.\d+(?=\.|$)")
_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.|$)")
_ALL: Final = "all-linear"
_MOST_LAYERS: Final = 128
_HEADS_OF_PEFT: Final = frozenset({"classifier", "score", "qa_outputs"})  # PEFT adds them for a task_type, found or not


def known_family(facts: Facts) -> Family:
    """The family of the configuration's model.

    Raises:
        Unknown: it is in none.
    """
    if facts.family is None:
        model = facts.config.model_name or "the model"
        raise Unknown(f"{model} is in no family whose modules are listed here (--base looks at it)")
    return facts.family


def asked(name: str, known: Iterable[str]) -> str:
    """The name, with the known one that it misspells, unless it is another family's."""
    nearest = None if name.rpartition(".")[2] in known_modules() else meant(name, known)
    return f"{name} (did you mean {nearest}?)" if nearest else name or "''"


def absent_targets(family: Family, targets: Sequence[str]) -> list[str]:
    """The names in a list of targets that no layer or block of the family has; a number may be of a list of layers."""
    return [name for name in targets if not _is_known(name.rpartition(".")[2], family)]


def _is_known(leaf: str, family: Family) -> bool:
    return leaf.isdigit() or leaf in family.leaves or leaf in family.blocks


@LoraRule(
    "TGT006",
    severity="warning",
    confidence=0.85,
    needs=(LORA, AN_ADAPTER),
    signs=("foreign_targets",),
    settings=("target_modules",),
    evidence=(UNMATCHED, NEMOTRON),
)
def _absent(facts: Facts) -> Iterator[Observation]:
    """targets that the model's family does not have

    a listed target, or an expression, matches no module of the model's family, or target_modules is empty; an error
    if nothing is left, and info if most are left and the others misspell none

    Why: PEFT passes over a name that matches no module, and the run adapts less than was meant.
    Scope: models of transformers, known by their type or name; a model's own code may name modules otherwise
    Action: name modules that the model has (model.named_modules()), or use 'all-linear'
    Verify: model.print_trainable_parameters(), and model.targeted_module_names
    Seen: https://github.com/shettysaish20/era-phi-2-oasst-instruct -- query_key_value, dense_h_to_4h and
        dense_4h_to_h for phi-2, which has dense alone
    Source: transformers 5.24 and 4.57, models/*/modeling_*.py -- the names of the layers that each class defines
    """
    targets = facts.config.lora.target_modules
    if targets is not None and not targets:
        if facts.config.lora.extras.get("target_parameters"):
            return
        yield Observation(
            "target_modules is empty: PEFT refuses to start",
            {"target_modules": targets},
            severity="error",
            action="name modules, or use 'all-linear'",
        )
        return
    if facts.around.coverage is not None:
        raise Unknown("the base itself was looked at: see TGT002")
    if targets is None:
        raise Unknown("target_modules is not given")
    if isinstance(targets, str) and targets.lower() == _ALL:
        return
    if isinstance(targets, list) and facts.family is None:
        yield from _misspelt(targets)
    family = known_family(facts)
    if isinstance(targets, str):
        yield from _unmatched_expression(facts, family, targets)
    else:
        yield from _unmatched_names(facts, family, targets)


def _misspelt(targets: Sequence[str]) -> Iterator[Observation]:
    """The names of a model in no family that misspell a name that others have."""
    known = known_modules()
    slips = [name for name in targets if name.rpartition(".")[2] not in known and meant(name, known)]
    if slips:
        yield Observation(
            f"no model known here has a module called {few([asked(name, known) for name in slips])}",
            {"unmatched_targets": slips, "left": [name for name in targets if name not in slips]},
            confidence=0.6,
        )


def _unmatched_names(facts: Facts, family: Family, targets: Sequence[str]) -> Iterator[Observation]:
    missed = absent_targets(family, targets)
    left = [name for name in targets if name not in missed]
    if facts.around.moment != "to come" and missed:
        if not set(family.former.split()).isdisjoint(name.rpartition(".")[2] for name in missed):
            raise Unknown(f"the run has begun, and {few(missed)} may be of the code that the model came with")
        if not left:
            raise Unknown(f"the run has begun, so its model has {few(missed)}, unlike the {family.name} family")
    blocks = [name for name in left if name.rpartition(".")[2] in family.inner_blocks]
    if blocks and facts.around.moment == "to come":
        yield Observation(
            f"{few(blocks)} {'is a block' if len(blocks) == 1 else 'are blocks'} of modules, not a layer with a "
            "weight: PEFT refuses it",
            {"refused": blocks, "family": family.name},
            severity="error",
            action=_offer(family),
        )
    if missed:
        yield Observation(
            f"models of the {family.name} family have no module called "
            f"{few([asked(name, family.leaves) for name in missed])}: "
            + (f"only {few(left)} {'is' if len(left) == 1 else 'are'} adapted" if left else "PEFT refuses to start"),
            {"unmatched_targets": missed, "left": left, "family": family.name},
            severity=_severity(family, missed, left),
            action=_offer(family),
        )


def _offer(family: Family) -> str:
    inside = dict.fromkeys(path.rpartition(".")[2] for path in family.paths if "*" in path)
    return f"name modules that the model has ({few(list(inside), 8)}), or use 'all-linear'"


def _severity(family: Family, missed: list[str], left: list[str]) -> Severity:
    """An error if PEFT refuses; info for a few names of other families, of which lists for any model are full."""
    if not left:
        return "error"
    own = [name for name in missed if name.rpartition(".")[2] not in known_modules()]
    # Names of joined modules, such as qkv_proj, hold one of theirs. A single letter, as of T5, is in every name
    joined = any(leaf in name.lower() for name in own for leaf in family.leaves if len(leaf) > 1)
    misspelt = joined or any(meant(name, family.leaves) for name in own)
    return "warning" if misspelt or len(missed) >= len(left) else "info"


def _unmatched_expression(facts: Facts, family: Family, targets: str) -> Iterator[Observation]:
    try:
        table = PatternTable([whole(targets)])
    except AdapterError as error:
        raise Unknown(f"target_modules: {error.message}") from error
    # Where the number of layers is not known, enough are tried that an expression for a late layer matches
    names = dict.fromkeys(family.module_names(facts.layers or _MOST_LAYERS))
    hits = {_root(name): name for name in names if table.matching(name)}
    if facts.around.moment != "to come":
        if not hits:
            raise Unknown(f"the run has begun, so the expression matched, unlike in the {family.name} family")
        return
    if hits:
        holders = dict.fromkeys(path for name in names for path in _upwards(name) if path != name)
        blocks = {_root(path): path for path in holders if _root(path) in hits and table.matching(path)}
        if hits.keys() == blocks.keys():  # wherever this class has its layers
            yield Observation(
                f"{targets} matches whole blocks too, such as {next(iter(blocks.values()))}: PEFT refuses to start",
                {"target_modules": targets, "family": family.name},
                severity="error",
                confidence=0.7,
                action="let the expression end in the names of layers, as (q_proj|v_proj)",
            )
        return
    words = re.findall(r"[A-Za-z_]\w{2,}", targets)
    known = family.leaves | family.blocks
    slip = next((f"; did you mean {near}?" for word in words if word not in known and (near := meant(word, known))), "")
    all_of_it = ". An expression has to match the whole name" if "." not in targets else ""
    yield Observation(
        f"{targets} matches no module of the {family.name} family: PEFT refuses to start{slip}{all_of_it}",
        {"target_modules": targets, "family": family.name},
        severity="error",
        confidence=0.7,
        action=f"the name of a module there: {next(path for path in family.paths if '*' in path).replace('*', '0')}",
    )


def _root(name: str) -> str:
    """The name up to its first number, which is the layer that a module is in; else the name."""
    numbered = _FIRST_LAYER.match(name)
    return numbered[0] if numbered else name


@LoraRule(
    "TGT007",
    severity="warning",
    confidence=0.85,
    settings=("layers_to_transform", "layers_pattern"),
)
def _layers(facts: Facts) -> Iterator[Observation]:
    """layers that the model does not have

    layers_to_transform or layers_pattern names layers that are not there; an error if none is left, or if PEFT
    refuses the combination

    Why: PEFT passes over a layer that is not there, and the run adapts less than was meant.
    Scope: PEFT LoRA; the number of layers from the base's config.json, else by the model's name
    Action: name layers that the model has, counted from 0
    Verify: model.targeted_module_names
    Source: peft/tuners/tuners_utils.py:check_target_module_exists@0.21.2 -- a layer index that no module has is
        passed over
    """
    lora = facts.config.lora
    numbers, stacks = lora.extras.get("layers_to_transform"), lora.extras.get("layers_pattern")
    layers = [n for n in numbers if isinstance(n, int)] if isinstance(numbers, list) else []
    if not layers and not stacks:
        return
    refused = _refusal(lora, layers)
    if refused:
        yield Observation(f"PEFT refuses {refused}", {"layers_to_transform": layers}, severity="error")
        return
    names = stacks if isinstance(stacks, list) else []
    strange = [str(name) for name in names if facts.family is not None and not _is_list(str(name), facts.family)]
    if strange and len(strange) == len(names):
        yield Observation(
            f"layers_pattern {few(strange)} is no list of layers in the model: nothing is adapted, and PEFT refuses",
            {"layers_pattern": strange},
            severity="error",
            action=f"write {few(sorted(facts.family.stacks))}" if facts.family else None,
        )
        return
    yield from _outside(layers, facts.layers)


def _is_list(pattern: str, family: Family) -> bool:
    """Whether PEFT finds the number of a layer by the pattern, which it reads as an expression."""
    try:
        number = layer_number([pattern])
        return any(number(name) is not None for name in family.module_names(1))
    except AdapterError as error:
        raise Unknown(f"layers_pattern: {error.message}") from error


def _refusal(lora: LoraSnapshot, layers: Sequence[int]) -> str:
    if isinstance(lora.target_modules, str):
        return "layers_to_transform and layers_pattern beside an expression in target_modules"
    return "" if layers else "layers_pattern without layers_to_transform"


def _outside(layers: Sequence[int], total: int | None) -> Iterator[Observation]:
    outside = [n for n in layers if n < 0 or (total is not None and n >= total)]
    if outside:
        every = len(outside) == len(layers)
        of = f"a model of {total} layers, 0 to {total - 1}" if total else "a model, whose layers count from 0"
        yield Observation(
            f"layers_to_transform {few(outside)} {'is' if len(outside) == 1 else 'are'} not in {of}"
            + (": nothing is adapted, and PEFT refuses" if every else ": nothing is adapted there"),
            {"outside": outside, "layers": total},
            severity="error" if every else None,
        )
    elif total is None:
        raise Unknown("the number of the model's layers is not known (--base tells it)")


@LoraRule(
    "TGT008",
    severity="warning",
    confidence=0.8,
    settings=("modules_to_save",),
)
def _unsaved(facts: Facts) -> Iterator[Observation]:
    """modules to save that the model does not have

    a name in modules_to_save ends no module's path in the base or its family; info if the name could be of a head
    of one's own

    Why: A head that is left out keeps its random weights, and PEFT says nothing.
    Scope: PEFT LoRA; models of transformers, known by their type or name, or the base itself
    Action: name modules that the model has (model.named_modules())
    Verify: model.print_trainable_parameters(), and the names in the adapter's file
    Source: peft/utils/other.py:_set_trainable@0.21.2 -- names that no module has are passed over without a word
    """
    lora = facts.config.lora
    wanted = [name for name in lora.modules_to_save or () if not (lora.task_type and name in _HEADS_OF_PEFT)]
    if not wanted:
        return
    coverage = facts.around.coverage
    if coverage is not None:
        missed, who = [name for name in wanted if name in coverage.unmatched_saves], coverage.base
    else:
        family = known_family(facts)
        missed, who = [name for name in wanted if not _is_held(name, family)], f"the {family.name} family"
    known = known_modules() if facts.family is None else facts.family.leaves | facts.family.blocks
    if missed:
        sure = coverage is not None or any(name in known_modules() or meant(name, known) for name in missed)
        yield Observation(
            f"modules_to_save: {few([asked(name, known) for name in missed])} "
            f"{'is no module' if len(missed) == 1 else 'are no modules'} of {who}: neither trained nor saved",
            {"unmatched_saves": missed},
            severity="warning" if sure else "info",
        )


def _is_held(name: str, family: Family) -> bool:
    """Whether PEFT finds the name: it saves every module whose path ends with it, at any letter."""
    # The dot in front makes a number at the beginning one between dots, which is * in the family's paths
    wanted = _NUMBER.sub("*", f".{name}").removeprefix(".")
    former = set(family.former.split())
    holders = {path for module in family.paths for path in _upwards(module)} | former
    return any(path.endswith(wanted) for path in holders)


def _upwards(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts) + 1))


@LoraRule(
    "PAD001",
    severity="info",
    confidence=0.6,
    needs=(LORA, AN_ADAPTER, TO_COME),
    settings=("model_name",),
)
def _padding(facts: Facts) -> Iterator[Observation]:
    """a model without a pad token

    the model's family has no pad token, and the trainer is not known to mask padding

    Why: The model learns to pad, and the first loss is near 9 where 3 to 4 is usual. With pad = eos masked, it
        never learns to stop.
    Scope: GPT-2, GPT-Neo, GPT-J and CodeGen; TRL's trainers and known recipes mask by themselves
    Action: set labels to -100 where attention_mask is 0, and keep one eos at the end of a text in the loss
    Verify: count the labels other than -100 in one batch against its attention mask: check --data does
    Seen: public repositories -- models whose tokenizer has no pad token
    Source: the tokenizers of gpt2, gpt-neo and gpt-j on the hub -- no pad_token: every script sets one, mostly eos
    Source: transformers, DataCollatorForLanguageModeling -- labels equal to pad_token_id become -100, with pad =
        eos every eos too; the default collator copies
    """
    if not known_family(facts).no_pad_token:
        return
    if "trainer" in facts.config.training.extras or "format" in facts.config.extras:
        raise Unknown("the trainer pads and masks by itself")
    kind, because, _ = facts.objective
    if kind == "classification":
        yield Observation(
            "the model has no pad token: a batch of more than one row needs model.config.pad_token_id",
            {"family": known_family(facts).name},
            action="set tokenizer.pad_token and model.config.pad_token_id, both to eos for example",
        )
    elif kind == "sft":
        yield Observation(
            "the model has no pad token: where labels are a copy of padded input_ids, the padding is in the loss",
            {"family": known_family(facts).name},
        )
    else:
        raise Unknown(f"objective {kind} ({because}): about causal language models and classifiers")


@premise("the configuration is MLX-LM's")
def _of_mlx(facts: Facts) -> str | None:
    return None if facts.config.extras.get("format") == "mlx-lm" else "it is not MLX-LM's"


@ConfigRule("TGT009", severity="warning", confidence=0.85, meant_for=_of_mlx, settings=("target_modules",))
def _keys_of_mlx(facts: Facts) -> Observation | None:
    """keys that MLX-LM finds no module for

    a key of lora_parameters names one of several experts, or a module without the path to it within its layer; an error
    if no key is left

    Why: MLX-LM adapts what a key equals, without a word on a key that equals nothing: what it names is not trained.
    Scope: MLX-LM's configs; a key is a path within a layer, such as self_attn.q_proj. MLX stacks experts (switch_mlp)
    Action: Name the stack (mlp.switch_mlp.gate_proj), and whole paths within a layer.
    Verify: The trainable parameters that MLX-LM prints as training starts.
    Source: mlx_lm/tuner/utils.py:linear_to_lora_layers@0.32.2 -- adapts the modules whose names are among the keys
    Seen: https://github.com/ml-explore/mlx-lm/issues/571 -- keys of single experts: LoRA reached attention alone
    """
    keys = facts.config.lora.target_modules
    if not isinstance(keys, list):
        raise Unknown("the config names no keys: MLX-LM chooses")
    family = facts.family
    inside = {path.rpartition("*.")[2] for path in family.paths if "*" in path} if family is not None else set()
    of_experts = [key for key in keys if re.search(r"(^|\.)experts\.\d+\.", key)]
    bare = [key for key in keys if "." not in key and key not in inside and any(p.endswith(f".{key}") for p in inside)]
    lost = [*of_experts, *bare]
    if not lost:
        return None
    why = "MLX stacks experts as switch_mlp" if of_experts else "a key is the path within a layer"
    left = [key for key in keys if key not in lost]
    only = f"only {few(left)} {'is' if len(left) == 1 else 'are'} adapted" if left else "nothing is adapted"
    return Observation(
        f"{few(lost)} match no module in MLX-LM, where {why}: {only}",
        {"lost": lost, "left": left},
        severity=None if left else "error",
    )


RULES = (_absent, _layers, _unsaved, _padding, _keys_of_mlx)
