"""Rules on what was saved: is what was trained in the file, and is the file all that is needed to use it?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final

from gradience.adapters import EMBEDDINGS, OUTPUTS, TOWER
from gradience.adapters.traits import start_of
from gradience.errors import few
from gradience.rules import CLASSIFIER_DOCS, Observation, Unknown, premise
from gradience.rules.between import HEADS, SHOWN, BetweenRule, Parts, of_peft
from gradience.schema import Json

_CLASSIFIES: Final = frozenset({"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
_VALUE_HEADS: Final = ("value_head.safetensors", "value_head.bin", "v_head.safetensors", "v_head.bin")


def _words(value: Json) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _config(parts: Parts) -> Mapping[str, Json]:
    return parts.config or {}


def _whole(parts: Parts) -> list[str]:
    """The paths of modules that the file holds whole tensors of, without PEFT's prefix."""
    names = (name.removeprefix("base_model.model.") for name in parts.tensors if ".lora_" not in name)
    return [name.rpartition(".")[0] for name in names]


def _holds(paths: Iterable[str], name: str) -> bool:
    """Whether one of the paths is, or is in, a module whose name ends so; the name need not begin at a dot for PEFT."""
    return any(f"{name}." in f"{path}." for path in paths)


@BetweenRule("LED401", severity="error", confidence=0.9, needs=(of_peft,))
def _not_saved(parts: Parts) -> Observation | None:
    """a module to save that is not in the file

    modules_to_save names a module of which the file holds no tensor

    Why: PEFT 0.21 stops with a missing key where it loads such a file; older ones go on with what the base has, which
        of a new head is random.
    Scope: PEFT's modules_to_save; of the heads that a task_type adds by itself one is enough
    Action: Save the adapter again from the trained model; with FSDP or DeepSpeed gather its weights first.
    Verify: The table of what is in the file, at the end of the audit; PeftModel.from_pretrained.
    Source: peft/utils/save_and_load.py:set_peft_model_state_dict@0.21.2 -- looks each name of a saved module up in
        the file
    """
    wanted, paths = _words(_config(parts).get("modules_to_save")), _whole(parts)
    adapted = [name for name in parts.tensors if ".lora_" in name]
    lost = [name for name in wanted if not _holds(paths, name)]
    heads = [name for name in lost if name in HEADS]
    if heads and (_is_headed(parts) or any(name in HEADS and name not in lost for name in wanted)):
        lost = [
            name for name in lost if name not in heads
        ]  # LED402 tells of the head; PEFT lists names it may not have
    if not lost or parts.misnamed:
        return None
    instead = [name for name in lost if _holds(adapted, name)]
    says = f" ({few(instead, SHOWN)} has factors of LoRA in its place)" if instead else ""
    return Observation(
        f"modules_to_save names {few(lost, SHOWN)}, and the file holds no whole weight of that name{says}.",
        {"lost": lost},
    )


def _is_headed(parts: Parts) -> bool:
    return _config(parts).get("task_type") in _CLASSIFIES


@premise("the task adds a head to the model")
def _adds_a_head(parts: Parts) -> str | None:
    if _is_headed(parts) or _trains_reward(parts):
        return None
    return f"task_type {_config(parts).get('task_type')} adds no head"


def _trains_reward(parts: Parts) -> bool:
    """Whether the training arguments are those of a reward model."""
    stage = parts.settings.get("stage")
    return stage == "rm" or "center_rewards_coefficient" in parts.settings


@BetweenRule(
    "LED402",
    severity="error",
    confidence=0.9,
    needs=(of_peft, _adds_a_head),
    evidence=(CLASSIFIER_DOCS,),
)
def _no_head(parts: Parts) -> Observation | None:
    """a head that is not in the file

    the adapter is one of a classifier or of a reward model, and neither its file nor one beside it holds the head

    Why: The head began with random numbers, and begins with others wherever the adapter is loaded.
    Scope: PEFT's task_type SEQ_CLS, TOKEN_CLS and QUESTION_ANS, and arguments of a reward model; not where the base
        is a classifier itself, whose head may be the one that was used
    Action: Save the head with the adapter (modules_to_save), or take it from the trained model and save it beside it.
    Verify: Load the adapter twice: do both give the same answers?
    Seen: https://github.com/OpenRLHF/OpenRLHF/pull/1342 -- a reward model gave other rewards after it was loaded: its
        value head was not in the adapter
    """
    paths = _whole(parts)
    saved = {*HEADS, *_words(_config(parts).get("modules_to_save"))} - {*EMBEDDINGS, *OUTPUTS}
    if any(_holds(paths, name) for name in saved) or parts.files.intersection(_VALUE_HEADS) or parts.misnamed:
        return None
    classes = _words(parts.base.get("architectures")) if parts.base else []
    if any(name.endswith(("Classification", "QuestionAnswering")) for name in classes):
        return None
    adapted = next((name for name in parts.tensors if ".lora_" in name and _holds([name], "score")), None)
    adapted = adapted or next(
        (name for name in parts.tensors if ".lora_" in name and _holds([name], "classifier")), None
    )
    what = "reward model" if not _is_headed(parts) else f"model of task_type {_config(parts).get('task_type')}"
    so = (
        "its factors of LoRA are there, and the random weight that they were added to is not"
        if adapted
        else "a new one, of random numbers, is made wherever it is loaded"
    )
    return Observation(f"The head of this {what} is not in the file: {so}.", {"head": False})


@BetweenRule("LED403", severity="warning", confidence=0.85, needs=(of_peft,))
def _adapted_head(parts: Parts) -> Observation | None:
    """a new head that only LoRA was to train

    score or classifier is among target_modules, and the adapter does not save it whole

    Why: A head that the base does not have is random: its weight has to be saved, not only what LoRA adds to it.
    Scope: PEFT configs without task_type SEQ_CLS, TOKEN_CLS or QUESTION_ANS, which save the head by themselves
    Action: Take the head out of target_modules and name it in modules_to_save.
    Verify: The file holds a whole tensor of the head.
    Seen: https://github.com/huggingface/peft/issues/577 -- the head was in target_modules and modules_to_save null:
        the reloaded model had a random head
    """
    targets = _words(_config(parts).get("target_modules"))
    saved = _words(_config(parts).get("modules_to_save"))
    hit = [name for name in targets if name in HEADS and name not in saved and not _holds(_whole(parts), name)]
    if not hit or _is_headed(parts):
        return None
    return Observation(
        f"{few(hit, SHOWN)} is among target_modules and not saved whole: unless the base has a head of that name, the "
        "weight under LoRA's factors is random and was not kept.",
        {"heads": hit},
    )


@premise("the initialisation changed the base's weights")
def _changed_base(parts: Parts) -> str | None:
    init = _config(parts).get("init_lora_weights")
    return None if start_of(init).changes_base else f"init_lora_weights is {init!r}: the base stays as it was"


@BetweenRule("LED404", severity="warning", confidence=0.9, meant_for=_changed_base, needs=(of_peft,))
def _residual(parts: Parts) -> Observation | None:
    """an adapter of a base that its start changed

    init_lora_weights is that of PiSSA, OLoRA, CorDA, LoRA-GA or LoftQ, and the file was not converted to plain LoRA

    Why: The start took a part out of the base's weights, or quantised them, and the adapter is right on what was left
        alone. An engine that loads it onto the plain base adds that part twice; beside another adapter it spoils
        both.
    Scope: PEFT's init_lora_weights; PEFT repeats the start itself where it loads onto the plain base, and a
        randomised one (pissa_niter) then gives another base
    Action: Convert it: save_pretrained(..., path_initial_model_for_weight_conversion=START), or save the changed
        base.
    Verify: Compare the outputs of base and adapter, loaded anew, with those of the trained model.
    Seen: https://github.com/huggingface/peft/issues/2184 -- beside a PiSSA adapter another adapter gave garbage
    """
    init = _config(parts).get("init_lora_weights")
    start = start_of(init)
    again = (
        "PEFT repeats the start as it loads the adapter onto the plain base; no engine does"
        if start.recomputable
        else "what it took cannot be computed again, so that the changed base is needed too"
    )
    names = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "lora_ga": "LoRA-GA", "loftq": "LoftQ"}
    return Observation(
        f"{names.get(start.name, start.name)} changed the base's weights at the start (init_lora_weights={init!r}), "
        f"and this adapter is right only on the base less that part: {again}.",
        {"init_lora_weights": str(init)},
    )


def _ties(parts: Parts) -> bool:
    """Whether the base ties its head to its embedding.

    Raises:
        Unknown: the base's config.json does not say.
    """
    if parts.base is None:
        raise Unknown("no config of the base is at hand (--base)")
    inner = parts.base.get("text_config")
    stated = [config.get("tie_word_embeddings") for config in (parts.base, inner) if isinstance(config, dict)]
    known = [value for value in stated if isinstance(value, bool)]
    if not known:
        raise Unknown("the base's config.json does not say whether the head is tied to the embedding")
    return any(known)


@BetweenRule("LED405", severity="warning", confidence=0.85, groups=("between", "log"), needs=(of_peft,))
def untied(parts: Parts) -> Observation | None:
    """a tied head, trained apart

    the base ties its head to its embedding, and modules_to_save names the head, or LoRA adapts it (info)

    Why: Where the model is loaded or merged, the two share one matrix again: what was trained of one of them
        overwrites the other, or is lost.
    Scope: bases whose config.json says tie_word_embeddings; not with ensure_weight_tying
    Action: Train with ensure_weight_tying=True; of a merge, set tie_word_embeddings to false in its config.json.
    Verify: Compare the outputs of the model in memory with those after it was saved and loaded.
    Seen: https://github.com/hiyouga/LlamaFactory/issues/6446 -- both were saved, and new tokens could not be produced
        after loading
    """
    config = _config(parts)
    if config.get("ensure_weight_tying"):
        return None
    saved = _words(config.get("modules_to_save"))
    heads = [name for name in saved if name.rpartition(".")[2] in OUTPUTS]
    embeddings = [name for name in saved if name.rpartition(".")[2] in EMBEDDINGS]
    adapted = [name for name in OUTPUTS if any(f".{name}.lora_" in key for key in parts.tensors)]
    if not (heads or adapted) or not _ties(parts):
        return None
    return tied_apart(heads, embeddings, adapted)


def tied_apart(heads: Sequence[str], embeddings: Sequence[str], adapted: Sequence[str]) -> Observation:
    """What is said of a tied head that is trained by itself, or adapted."""
    if heads and embeddings:
        says = f"{embeddings[0]} and {heads[0]} are trained and saved apart (modules_to_save)"
    else:
        says = f"{heads[0]} is trained and saved alone" if heads else f"{adapted[0]} has factors of LoRA"
    return Observation(
        f"The base ties its head to its embedding (tie_word_embeddings), and here {says}: PEFT keeps the two apart, "
        "and in a merged model that is still tied one overwrites the other.",
        {"saved": [*embeddings, *heads], "adapted": [*adapted]},
        severity=None if heads else "info",
    )


@premise("a tokenizer lies beside the adapter, and one beside the base")
def _both_tokenizers(parts: Parts) -> str | None:
    return None if parts.added is not None else "no tokenizer lies beside the adapter, or none beside the base"


@BetweenRule("LED406", severity="warning", confidence=0.8, needs=(of_peft, _both_tokenizers))
def _untrained_rows(parts: Parts) -> Observation | None:
    """new tokens without trained rows

    the tokenizer beside the adapter has tokens that the base's lacks, and the file holds neither rows of the embedding
    nor factors of it

    Why: The rows of new tokens are random, or unused ones of the base, and stay so: the model sees noise wherever
        they occur.
    Scope: adapters beside their tokenizer, with a base whose tokenizer is at hand
    Action: Train the rows (trainable_token_indices), or the embedding (modules_to_save), and save them.
    Verify: The file holds token rows or an embedding (gradience audit lists it).
    Seen: https://github.com/huggingface/peft/issues/1300 -- tokens were added, and the saved adapter had neither
        embedding nor head
    """
    added = list(parts.added or ())
    names = " ".join(parts.tensors)
    trained = ".trainable_tokens_" in names or any(f"{name}." in names for name in EMBEDDINGS)
    if not added or trained:
        return None
    return Observation(
        f"{len(added)} tokens were added to the tokenizer ({few(added, SHOWN)}), and no row of the embedding is in the "
        "file: they are as untrained as before.",
        {"added_tokens": added[:SHOWN], "added": len(added)},
    )


def _rows(parts: Parts) -> tuple[str, int] | None:
    """The embedding that the file holds whole, with the number of its rows."""
    for name, (shape, _) in parts.tensors.items():
        path = name.rpartition(".")[0].removesuffix(".base_layer")
        if ".lora_" not in name and len(shape) == 2 and path.endswith((*EMBEDDINGS, *OUTPUTS)):
            return path.removeprefix("base_model.model."), shape[0]
    return None


@BetweenRule("LED407", severity="warning", confidence=0.9, needs=(of_peft,))
def _other_vocabulary(parts: Parts) -> Iterator[Observation]:
    """another vocabulary than the base's

    the embedding in the file has more or fewer rows than the base's config.json says, or fewer than the tokenizer
    beside it has ids

    Why: The base has to be resized before the adapter is loaded, or PEFT refuses it with a size mismatch; an engine
        refuses it always.
    Scope: adapters that hold an embedding or a head whole
    Action: Call model.resize_token_embeddings with the number of rows in the file before loading, as in training.
    Verify: PeftModel.from_pretrained on the plain base: a size mismatch says the same.
    Seen: https://github.com/huggingface/peft/issues/1300 -- size mismatch for embed_tokens, 33272 rows and 32000
    """
    held = _rows(parts)
    if held is None:
        return
    name, rows = held
    if parts.last_token is not None and parts.last_token >= rows:
        yield Observation(
            f"The tokenizer beside the adapter has the id {parts.last_token}, and {name} in the file {rows:,} rows.",
            {"rows": rows, "last_token": parts.last_token},
            severity="error",
        )
    stated = parts.base.get("vocab_size") if parts.base else None
    if isinstance(stated, int) and not isinstance(stated, bool) and stated != rows:
        yield Observation(
            f"{name} in the file has {rows:,} rows, and the base's vocabulary {stated:,}: the base has to be resized "
            "before this adapter is loaded.",
            {"rows": rows, "vocab_size": stated},
        )


@BetweenRule("LED408", severity="info", confidence=0.95)
def _no_optimizer(parts: Parts) -> Observation | None:
    """checkpoints from which nothing goes on

    the checkpoints hold weights and no optimizer, or the training arguments say save_only_model

    Why: A resume begins with a new optimizer and a new schedule: its first steps are as large as those of a new run.
    Scope: checkpoints of the Hugging Face Trainer; those of FSDP and DeepSpeed hold the optimizer in folders
    Action: Set save_only_model=False if the run may have to be resumed; else give the adapter as a start, not a
        resume.
    Verify: The files of a checkpoint: optimizer.pt, scheduler.pt, rng_state.pth.
    Seen: https://github.com/OpenGVLab/InternVL/issues/689 -- the loss did not go on where it was
    """
    only = parts.settings.get("save_only_model") is True
    bare = [point.name for point in parts.checkpoints if not _keeps_optimizer(point.files)]
    if not bare or (len(bare) < len(parts.checkpoints) and not only):
        return None
    why = " (save_only_model)" if only else ""
    which = bare[0] if len(bare) == 1 else f"{len(bare)} checkpoints ({bare[0]} to {bare[-1]})"
    return Observation(
        f"{which[0].upper()}{which[1:]} hold{'s' if len(bare) == 1 else ''} no optimizer.pt{why}: a resume would begin "
        "with a new optimizer and schedule.",
        {"checkpoints": bare[:SHOWN], "save_only_model": only},
    )


def _keeps_optimizer(files: Iterable[str]) -> bool:
    return any(re.match(r"optimizer|global_step|pytorch_model_fsdp|latest$|.*\.distcp", name) for name in files)


@premise("two checkpoints of the run are at hand")
def _two_checkpoints(parts: Parts) -> str | None:
    return None if len(parts.checkpoints) > 1 else "fewer than two checkpoints of the run are at hand"


@BetweenRule("LED409", severity="error", confidence=0.97, needs=(_two_checkpoints,))
def _repeated(parts: Parts) -> Observation | None:
    """checkpoints with the same weights

    the weights of a checkpoint equal those of the one before it, byte by byte

    Why: Weights that a step has changed differ: between the two nothing was trained, or something else was saved.
    Scope: checkpoints of one run, by their weights files
    Action: Look at which parameters require gradients and reach the optimizer, and at what is saved.
    Verify: Compare the SHA-256 of the two files.
    Source: arithmetic -- a step with a gradient and a rate that are not zero changes at least one number
    """
    points = parts.checkpoints
    same = [(before.name, point.name) for before, point in pairwise(points) if point.repeats]
    if not same or any(m.state == "non_finite" for m in parts.modules or ()):  # NaN stays NaN, whatever a step adds
        return None
    first, second = same[0]
    more = f", and {len(same) - 1} more pairs" if len(same) > 1 else ""
    return Observation(
        f"{first} and {second} hold the same weights, byte by byte{more}: what was trained between them is not in the "
        "file.",
        {"pairs": len(same), "first": first, "second": second},
    )


_ASKED: Final = {  # settings that ask for training of the vision tower, with the value that asks
    "tune_mm_vision": True,
    "tune_mm_mlp": True,
    "tune_vision_tower": True,
    "tune_visual": True,
    "train_vision": True,
    "train_vision_tower": True,
    "unfreeze_mm_vision_tower": True,
    "finetune_vision_layers": True,
    "freeze_vision_tower": False,
    "freeze_vit": False,
    "vision_lora": True,
}


@premise("the training arguments say whether the vision tower is trained")
def _vision_asked(parts: Parts) -> str | None:
    stated = [name for name in _ASKED if isinstance(parts.settings.get(name), bool)]
    return None if stated else "no training argument says it"


@BetweenRule("LED410", severity="warning", confidence=0.85, needs=(_vision_asked,))
def _vision_not_trained(parts: Parts) -> Observation | None:
    """a vision tower that was to be trained and is not in the file

    the training arguments ask for training of the vision tower or its projector, and no tensor of one is in the file

    Why: Scripts apply such a setting only to full fine-tuning, or only to modules that LoRA's targets match.
    Scope: arguments beside the adapter that name the tower or its projector
    Action: Name modules of the tower in target_modules, or in modules_to_save, and train again.
    Verify: model.named_parameters() that require gradients.
    Seen: https://github.com/QwenLM/Qwen3-VL/issues/2016 -- tune_mm_vision and tune_mm_mlp did nothing with
        lora_enable
    """
    asked = [name for name, value in _ASKED.items() if parts.settings.get(name) is value]
    towers = [name for name in parts.tensors if TOWER.search(name) or "projector" in name or "merger" in name]
    if not asked or towers:
        return None
    return Observation(
        f"{few(asked, SHOWN)} asked for the vision tower to be trained, and the file holds no tensor of it.",
        {"asked": asked},
    )


@BetweenRule("LED411", severity="info", confidence=0.7, needs=(of_peft,))
def _tower_too(parts: Parts) -> Observation | None:
    """a vision or audio tower that has factors too

    target_modules is a list of names that match modules in the language model and in its tower

    Why: A name such as q_proj matches wherever it is a module's last: the tower is trained too, and engines leave its
        part of the adapter out.
    Scope: PEFT's target_modules as a list of last names, where nothing says that the tower is meant
    Action: If it is not meant, use an expression that begins at the language model, or exclude_modules.
    Verify: model.targeted_module_names.
    Seen: https://github.com/haotian-liu/LLaVA/issues/1647 -- the vision tower got LoRA although it was to stay frozen
    """
    targets = _words(_config(parts).get("target_modules"))
    modules = {name.partition(".lora_")[0] for name in parts.tensors if ".lora_" in name}
    tower = {name for name in modules if TOWER.search(name)}
    shared = {name.rpartition(".")[2] for name in tower} & {name.rpartition(".")[2] for name in modules - tower}
    if not tower or not shared or not targets or any("." in name for name in targets):
        return None
    if any(parts.settings.get(name) is value for name, value in _ASKED.items()):
        return None
    what = "audio" if all("audio" in name for name in tower) else "vision"
    return Observation(
        f"{len(tower)} of {len(modules)} modules are in the {what} tower: {few(sorted(shared), SHOWN)} of "
        "target_modules match there as in the language model.",
        {"tower": len(tower), "modules": len(modules), "shared": sorted(shared)},
    )


RULES: Final = (
    _not_saved,
    _no_head,
    _adapted_head,
    _residual,
    untied,
    _untrained_rows,
    _other_vocabulary,
    _no_optimizer,
    _repeated,
    _vision_not_trained,
    _tower_too,
)
