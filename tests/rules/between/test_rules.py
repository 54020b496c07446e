"""The rules between an adapter's files, one entry each: where a rule fires, is silent, and abstains."""

from __future__ import annotations

from typing import Any, NamedTuple

import audited
import numpy as np
import pytest
from tables import every

from gradience.base.peft_emulation.loading import Loading
from gradience.folder import Documents, find
from gradience.rules import judge
from gradience.rules.between import CheckpointFiles, Parts, SavedState
from gradience.rules.between.gathered import gather
from gradience.rules.between.rules import BETWEEN_RULES

LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
STEM = "base_model.model.model.layers"
NO_CONFIG = "no adapter_config.json lies beside the weights"
KOHYA = "it is in kohya's format, not PEFT's"
NO_BASE = "no config of the base is at hand (--base)"
UNREAD = "no module was measured"


class On(NamedTuple):
    """The parts of an adapter, and what the rule says of them; None is not compared."""

    parts: Parts
    says: str | None = None
    severity: str | None = None


class Entry(NamedTuple):
    """One rule."""

    fires: list[On]
    silent: list[Parts]
    abstains: list[On]


def factors(*modules: str, r: int = 4, sides: tuple[int, int] = (6, 5)) -> dict[str, Any]:
    """The factors of modules, by name."""
    return {
        f"{module}.lora_{side}.weight": ((r, sides[1]) if side == "A" else (sides[0], r), "F32")
        for module in modules
        for side in ("A", "B")
    }


TENSORS = factors(*(f"{STEM}.{n}.self_attn.{m}" for n in range(2) for m in ("q_proj", "v_proj")))


def parts(config: dict[str, Any] | None = None, *, more: dict[str, Any] | None = None, **fields: Any) -> Parts:
    """An adapter of four modules in PEFT's format; `config` and `more` add to its config and its tensors."""
    usual: dict[str, Any] = {"config": LORA | (config or {}), "tensors": TENSORS | (more or {})}
    return Parts(**usual | fields)


def pair(a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, Any]:
    """The two factors of one module."""
    name = "base_model.model.model.x.lora_{}.weight"
    return {name.format("A"): (a, "F32"), name.format("B"): (b, "F32")}


def whole(name: str, rows: int = 9) -> dict[str, Any]:
    """A whole weight in the file."""
    return {f"base_model.model.{name}.weight": ((rows, 5), "F32")}


def points(*steps: int, files: str = "optimizer.pt", repeats: int | None = None) -> tuple[CheckpointFiles, ...]:
    """Checkpoints, with these files beside their weights."""
    held = frozenset({"adapter_model.safetensors", *files.split()})
    return tuple(CheckpointFiles(f"checkpoint-{step}", held, step == repeats) for step in steps)


def rows(*sizes: float, state: str = "ok", **fields: Any) -> list[Any]:
    """Rows of an audit whose updates have these norms."""
    return [
        audited.module(f"model.layers.{n}.self_attn.q_proj", frobenius_norm=size, state=state, **fields)
        for n, size in enumerate(sizes)
    ]


def loading(**fields: Any) -> Loading:
    return Loading(**{"model": "m, by the base's files", "modules": 4, **fields})


def mlx(keys: list[str] | None, num_layers: int = 16) -> Parts:
    """An adapter of MLX-LM with four modules."""
    names = [
        f"model.layers.{n}.self_attn.{m}.lora_{side}" for n in range(2) for m in ("q_proj", "v_proj") for side in "ab"
    ]
    given = {"keys": keys, "rank": 4}
    config = {"lora_parameters": given, "num_layers": num_layers}
    return Parts(format="mlx", config=config, tensors=dict.fromkeys(names, ((4, 5), "F32")))


FOREIGN = parts(format="kohya", config=None)
STILL = rows(0.0, 0.0, state="zero")
CHECKPOINTED = {"gradient_checkpointing": True}
NAN = rows(0.0, 1.0, state="non_finite")
TIED = {"tie_word_embeddings": True}
ATTENTION = "q_proj v_proj"
EYES = factors("base_model.model.vision_tower.encoder.layers.0.self_attn.q_proj")

ENTRIES: dict[str, Entry] = {
    "LOD401": Entry(
        fires=[
            On(
                parts(misnamed={"no_prefix": [*TENSORS]}),
                "PEFT would not load all of this file's tensors: their names do not begin with `base_model.model.`, "
                "which "
                f"PEFT writes before each name (first: {next(iter(TENSORS))}).",
                "error",
            ),
            On(
                parts(misnamed={"wrapper": ["a.lora_A.weight"]}),
                "PEFT would not load 1 of 8 of this file's tensors: their names name a wrapper of training "
                "(torch.compile, FSDP, DDP) that the model does not have where it is loaded (first: a.lora_A.weight).",
            ),
            On(
                parts(misnamed={"adapter_name": ["a.lora_A.default.weight"]}),
                "PEFT may not load 1 of 8 of this file's tensors: their names hold the adapter's name, which 0.21 "
                "takes under that name alone and PEFT up to 0.18 puts in again (first: a.lora_A.default.weight).",
                "warning",
            ),
            On(parts(misnamed={"adapter_name": ["a.lora_A.mine.weight"]}), severity="error"),
        ],
        silent=[parts()],
        abstains=[On(FOREIGN, KOHYA), On(parts(config=None) and Parts(tensors=TENSORS), NO_CONFIG)],
    ),
    "LOD402": Entry(
        fires=[
            On(
                parts(
                    loading=loading(
                        strange=("layers.0.q",) * 4, mended=("model.layers.0.q",) * 4, change="after adding `model.`"
                    )
                ),
                "4 of 4 modules exist only after adding `model.` (layers.0.q is model.layers.0.q) in m, by the base's "
                "files: PEFT loads none of them.",
                "error",
            ),
            On(
                parts(loading=loading(strange=("a.b",))),
                "1 of 4 modules do not exist there (first: a.b) in m, by the base's files: PEFT loads the other 3 "
                "alone.",
                "warning",
            ),
        ],
        silent=[
            parts(loading=loading()),
            parts(loading=loading(strange=("a",)), misnamed={"no_prefix": ["a"]}),  # the form is told first
        ],
        abstains=[On(FOREIGN, KOHYA), On(parts(), NO_BASE)],
    ),
    "LOD403": Entry(
        fires=[
            On(
                parts(
                    loading=loading(other_shape=("q: 6 x 5 in the file, 5 x 6 in the model (its axes are swapped)",))
                ),
                "The factors of 1 of 4 modules do not fit the base: q: 6 x 5 in the file, 5 x 6 in the model (its axes "
                "are swapped).",
                "error",
            )
        ],
        silent=[parts(loading=loading())],
        abstains=[On(parts(), NO_BASE)],
    ),
    "LOD404": Entry(
        fires=[
            On(parts(loading=loading(missing=("a", "b"))),
               "The config's targets match 6 modules of the base, and the file holds 4: a, b lack.", "warning")
        ],
        silent=[
            parts(loading=loading()),
            parts(loading=loading(missing=("a",), strange=("b",))),
        ],
        abstains=[On(parts(), NO_BASE)],
    ),
    "LOD405": Entry(
        fires=[
            On(parts(untargeted=("x.k_proj",), loading=loading()),
               "target_modules does not match x.k_proj: PEFT would not load 1 of 4 modules of this file.", "warning"),
            On(parts(untargeted=("x.a", "x.b")),
               "target_modules does not match x.a, x.b: PEFT would not load 2 of 2 modules of this file.", "error"),
        ],
        silent=[parts(untargeted=()), parts(untargeted=("a",), misnamed={"no_prefix": ["a"]})],
        abstains=[On(parts(), "the targets are null, all-linear or of another format")],
    ),
    "LOD406": Entry(
        fires=[
            On(
                parts(
                    format="kohya",
                    tensors={
                        "lora_unet_joint_blocks_0_x.lora_up.weight": ((4, 2), "F16"),
                        "lora_te1_y.alpha": ((), "F16"),
                    },
                ),
                "1 of 2 tensors have sd-scripts' names of SD3 (first: lora_unet_joint_blocks_0_x.lora_up.weight): "
                "diffusers' load_lora_weights knows none of them, and loads nothing in silence.",
                "warning",
            )
        ],
        silent=[parts(format="kohya", tensors={"lora_unet_double_blocks_0_x.lora_up.weight": ((4, 2), "F16")})],
        abstains=[],
    ),
    "LOD407": Entry(
        fires=[
            On(
                mlx(["auto"]),
                "lora_parameters.keys (auto) name 0 of 4 modules of this file: MLX-LM loads no other (first: "
                "model.layers.0.self_attn.q_proj).",
                "error",
            ),
            On(mlx(["self_attn.q_proj"]), severity="warning"),
            On(mlx(["self_attn.q_proj", "self_attn.v_proj"], num_layers=1),
               "num_layers is 1, and the file has factors in 2 layers: MLX-LM loads those of the last 1 alone.",
               "warning"),
        ],
        silent=[
            mlx(["self_attn.q_proj", "self_attn.v_proj"], num_layers=2),
            mlx(["self_attn.q_proj", "self_attn.v_proj"], num_layers=-1),
            mlx(None),
        ],
        abstains=[],
    ),
    "LOD408": Entry(
        fires=[
            On(parts(tensors=pair((2, 4, 5), (2, 9, 4))),
               "The factors of 1 modules have axes that no layer of PEFT's has: model.x [2, 4, 5] and [2, 9, 4].",
               "error"),
            On(parts(tensors=pair((32, 768), (1536, 16, 1))),
               "The factors of 1 modules have axes that no layer of PEFT's has: model.x [32, 768] and [1536, 16, 1].",
               "error"),
        ],
        silent=[
            parts(),
            parts(tensors=pair((4, 5, 3), (9, 4, 1))),  # Conv1d
            parts(tensors=pair((4, 5, 3, 3), (9, 4, 1, 1))),  # Conv2d
        ],
        abstains=[],
    ),
    "LED401": Entry(
        fires=[
            On(parts({"modules_to_save": ["embed_tokens", "lm_head"]}, more=whole("lm_head")),
               "modules_to_save names embed_tokens, and the file holds no whole weight of that name.", "error"),
            On(
                parts({"modules_to_save": ["lm_head"]}, more=factors("base_model.model.lm_head")),
                "modules_to_save names lm_head, and the file holds no whole weight of that name (lm_head has factors "
                "of LoRA in its place).",
            ),
        ],
        silent=[
            parts({"modules_to_save": ["lm_head"]}, more=whole("lm_head")),
            parts({"modules_to_save": ["classifier", "score"]}, more=whole("score")),
            parts({"modules_to_save": ["score"], "task_type": "SEQ_CLS"}),  # LED402 tells of it
        ],
        abstains=[On(FOREIGN, KOHYA)],
    ),
    "LED402": Entry(
        fires=[
            On(
                parts({"task_type": "SEQ_CLS"}),
                "The head of this model of task_type SEQ_CLS is not in the file: a new one, of random numbers, is made "
                "wherever it is loaded.",
                "error",
            ),
            On(
                parts({"task_type": "TOKEN_CLS"}, more=factors("base_model.model.classifier")),
                "The head of this model of task_type TOKEN_CLS is not in the file: its factors of LoRA are there, and "
                "the random weight that they were added to is not.",
            ),
            On(
                parts(settings={"center_rewards_coefficient": None}),
                "The head of this reward model is not in the file: a new one, of random numbers, is made wherever it "
                "is loaded.",
            ),
        ],
        silent=[
            parts({"task_type": "SEQ_CLS"}, more=whole("score")),
            parts({"task_type": "SEQ_CLS", "modules_to_save": ["head"]}, more=whole("head")),
            parts({"task_type": "SEQ_CLS"}, base={"architectures": ["BertForSequenceClassification"]}),
            parts(settings={"stage": "rm"}, files=frozenset({"value_head.safetensors"})),
        ],
        abstains=[On(parts(), "task_type CAUSAL_LM adds no head"), On(FOREIGN, KOHYA)],
    ),
    "LED403": Entry(
        fires=[
            On(
                parts({"target_modules": ["q_proj", "score"]}, more=factors("base_model.model.score")),
                "score is among target_modules and not saved whole: unless the base has a head of that name, the "
                "weight under LoRA's factors is random and was not kept.",
                "warning",
            )
        ],
        silent=[
            parts(),
            parts({"target_modules": ["q_proj", "score"]}, more=whole("score")),
            parts({"target_modules": ["score"], "task_type": "SEQ_CLS"}),
            parts({"target_modules": ["score"], "modules_to_save": ["score"]}),
        ],
        abstains=[On(FOREIGN, KOHYA)],
    ),
    "LED404": Entry(
        fires=[
            On(
                parts({"init_lora_weights": "pissa"}),
                "PiSSA changed the base's weights at the start (init_lora_weights='pissa'), and this adapter is right "
                "only on the base less that part: PEFT repeats the start as it loads the adapter onto the plain base; "
                "no engine does.",
                "warning",
            ),
            On(
                parts({"init_lora_weights": "loftq"}),
                "LoftQ changed the base's weights at the start (init_lora_weights='loftq'), and this adapter is right "
                "only on the base less that part: what it took cannot be computed again, so that the changed base is "
                "needed too.",
            ),
        ],
        silent=[],  # other starts give the rule no meaning
        abstains=[On(parts({"init_lora_weights": "pissa"}, format="mlx"), "it is in mlx's format, not PEFT's")],
    ),
    "LED405": Entry(
        fires=[
            On(
                parts({"modules_to_save": ["embed_tokens", "lm_head"]}, base=TIED),
                "The base ties its head to its embedding (tie_word_embeddings), and here embed_tokens and lm_head are "
                "trained and saved apart (modules_to_save): PEFT keeps the two apart, and in a merged model that is "
                "still tied one overwrites the other.",
                "warning",
            ),
            On(
                parts({"modules_to_save": ["lm_head"]}, base={"text_config": TIED}),
                "The base ties its head to its embedding (tie_word_embeddings), and here lm_head is trained and saved "
                "alone: PEFT keeps the two apart, and in a merged model that is still tied one overwrites the other.",
            ),
            On(parts(more=factors("base_model.model.lm_head"), base=TIED), severity="info"),
        ],
        silent=[
            parts({"modules_to_save": ["embed_tokens", "lm_head"]}, base={"tie_word_embeddings": False}),
            parts({"modules_to_save": ["embed_tokens"]}, base=TIED),
            parts({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, base=TIED),
            parts(base=TIED),
        ],
        abstains=[
            On(parts({"modules_to_save": ["lm_head"]}), NO_BASE),
            On(parts({"modules_to_save": ["lm_head"]}, base={}),
               "the base's config.json does not say whether the head is tied to the embedding"),
        ],
    ),
    "LED406": Entry(
        fires=[
            On(
                parts(added=("<a>", "<b>")),
                "2 tokens were added to the tokenizer (<a>, <b>), and no row of the embedding is in the file: they "
                "are as untrained as before.",
                "warning",
            )
        ],
        silent=[
            parts(added=()),
            parts(added=("<a>",), more=whole("model.embed_tokens")),
            parts(added=("<a>",), more={f"{STEM}.embed_tokens.token_adapter.trainable_tokens_delta": ((1, 5), "F32")}),
        ],
        abstains=[On(parts(), "no tokenizer lies beside the adapter, or none beside the base")],
    ),
    "LED407": Entry(
        fires=[
            On(
                parts(more=whole("model.embed_tokens"), base={"vocab_size": 8}),
                "model.embed_tokens in the file has 9 rows, and the base's vocabulary 8: the base has to be resized "
                "before this adapter is loaded.",
                "warning",
            ),
            On(parts(more=whole("lm_head"), last_token=9),
               "The tokenizer beside the adapter has the id 9, and lm_head in the file 9 rows.", "error"),
        ],
        silent=[
            parts(),
            parts(more=whole("model.embed_tokens"), base={"vocab_size": 9}, last_token=8),
            parts(base={"vocab_size": 8}, last_token=9),
        ],
        abstains=[On(FOREIGN, KOHYA)],
    ),
    "LED408": Entry(
        fires=[
            On(
                parts(checkpoints=points(100, 200, files="trainer_state.json"), settings={"save_only_model": True}),
                "2 checkpoints (checkpoint-100 to checkpoint-200) hold no optimizer.pt (save_only_model): a resume "
                "would begin with a new optimizer and schedule.",
                "info",
            ),
            On(parts(checkpoints=points(7, files="scheduler.pt")),
               "Checkpoint-7 holds no optimizer.pt: a resume would begin with a new optimizer and schedule."),
        ],
        silent=[
            parts(),
            parts(checkpoints=points(1, 2)),
            parts(checkpoints=points(1, files="global_step1")),
            parts(checkpoints=(*points(1, files="a"), *points(2))),  # one may have been cleaned by hand
        ],
        abstains=[],
    ),
    "LED409": Entry(
        fires=[
            On(
                parts(checkpoints=points(10, 20, 30, repeats=20)),
                "checkpoint-10 and checkpoint-20 hold the same weights, byte by byte: what was trained between them "
                "is not in the file.",
                "error",
            )
        ],
        silent=[parts(checkpoints=points(10, 20)), parts(checkpoints=points(10, 20, repeats=20), modules=NAN)],
        abstains=[On(parts(checkpoints=points(10)), "fewer than two checkpoints of the run are at hand")],
    ),
    "LED410": Entry(
        fires=[
            On(
                parts(settings={"tune_mm_vision": True, "freeze_vit": False}),
                "tune_mm_vision, freeze_vit asked for the vision tower to be trained, and the file holds no tensor "
                "of it.",
                "warning",
            )
        ],
        silent=[
            parts(settings={"tune_mm_vision": False}),
            parts(settings={"tune_mm_vision": True}, more=EYES),
            parts(settings={"tune_mm_mlp": True}, more=whole("model.multi_modal_projector.linear_1")),
        ],
        abstains=[On(parts(), "no training argument says it")],
    ),
    "LED411": Entry(
        fires=[
            On(
                parts(more=EYES),
                "1 of 5 modules are in the vision tower: q_proj of target_modules match there as in the language "
                "model.",
                "info",
            )
        ],
        silent=[
            parts(),
            parts({"target_modules": r".*(q|v)_proj"}, more=EYES),
            parts({"target_modules": ["self_attn.q_proj"]}, more=EYES),
            parts(more=EYES, settings={"freeze_vision_tower": False}),
            parts(more=factors("base_model.model.visual.blocks.0.attn.qkv")),
        ],
        abstains=[On(FOREIGN, KOHYA)],
    ),
    "TRN420": Entry(
        fires=[
            On(
                parts(modules=[*STILL, audited.module("score")], settings=CHECKPOINTED),
                "No module of any layer has moved; only score moved, and gradient_checkpointing was on: the inputs of "
                "the layers needed no gradient, so that none reached lora_B (enable_input_require_grads, or "
                "use_reentrant=False).",
                "error",
            ),
            On(parts(modules=STILL, metadata={"ss_gradient_checkpointing": "True"})),
        ],
        silent=[
            parts(modules=[*STILL, audited.module("model.layers.9.q")], settings=CHECKPOINTED),
            parts(modules=STILL, settings={**CHECKPOINTED, "gradient_checkpointing_kwargs": {"use_reentrant": False}}),
        ],
        abstains=[
            On(parts(settings=CHECKPOINTED), UNREAD),
            On(parts(modules=STILL), "nothing beside the adapter says that gradient checkpointing was on"),
        ],
    ),
    "NUM421": Entry(
        fires=[
            On(parts(zeros=0.1),
               "10% of the entries of lora_B are exactly zero in float16, in modules that moved: an underflow.",
               "warning")
        ],
        silent=[parts(zeros=0.0999)],
        abstains=[On(parts(), "lora_B is not stored in float16, or was not read")],
    ),
    "NUM422": Entry(
        fires=[
            On(
                parts(modules=NAN, metadata={"ss_mixed_precision": "fp16"}),
                "2 of 2 modules hold NaN or infinity, and were trained in fp16 (ss_mixed_precision in the file): "
                "train in bf16.",
                "error",
            ),
            On(parts(modules=NAN, settings={"fp16": True})),
        ],
        silent=[
            parts(modules=NAN, metadata={"ss_mixed_precision": "bf16"}),
            parts(modules=rows(1.0), settings={"fp16": True}),
        ],
        abstains=[On(parts(), UNREAD)],
    ),
    "SIZ423": Entry(
        fires=[
            On(
                parts(modules=rows(*[1.0] * 9, 100.1)),
                "The update of model.layers.9.self_attn.q_proj is 100 times as large as that of a usual module, beside "
                "weights of its shape.",
                "warning",
            )
        ],
        silent=[parts(modules=rows(*[1.0] * 9, 99.9))],
        abstains=[
            On(parts(), UNREAD),
            On(parts(modules=rows(*[1.0] * 8)), "needs more than 8 measured modules; there are 8"),
        ],
    ),
    "SCL424": Entry(
        fires=[
            On(
                parts(
                    modules=rows(1.0, 1.0, r=32, alpha=1.0, scaling=1 / 32),
                    metadata={"ss_unet_lr": "0.0003", "ss_learning_rate": "1"},
                ),
                "alpha is 1 at rank 32: every update is scaled by 0.031, which is small, at a rate of 0.0003.",
                "info",
            )
        ],
        silent=[
            parts(modules=rows(1.0, r=31, alpha=1.0, scaling=1 / 31)),
            parts(modules=rows(1.0, r=32, alpha=1.0, scaling=1 / 32, rslora=True)),
        ],
        abstains=[On(parts(), UNREAD)],
    ),
    "TRN425": Entry(
        fires=[
            On(
                parts(modules=rows(1.0), optimizer=SavedState("checkpoint-9/optimizer.pt", 9, 9, 8, {"exp_avg": 2})),
                "checkpoint-9/optimizer.pt holds NaN or infinity in 2 of 8 averages, named exp_avg, and the weights "
                "are finite: a resume adds them to the weights with its first step.",
                "error",
            )
        ],
        silent=[
            parts(modules=rows(1.0), optimizer=SavedState("optimizer.pt", 9, 8, 8)),
            parts(modules=NAN, optimizer=SavedState("optimizer.pt", 9, 9, 8, {"exp_avg": 2})),
        ],
        abstains=[
            On(parts(optimizer=SavedState("optimizer.pt")), UNREAD),
            On(parts(modules=rows(1.0), no_optimizer="it is cut off"), "it is cut off"),
        ],
    ),
    "TRN426": Entry(
        fires=[
            On(
                parts(modules=rows(1.0), optimizer=SavedState("optimizer.pt", 9, 8, 8)),
                "optimizer.pt is at step 8 by its own count, and its folder at step 9: the others changed no weight "
                "(skipped in fp16), or a resume began with a new optimizer.",
                "info",
            ),
            On(
                parts(modules=rows(1.0), optimizer=SavedState("optimizer.pt", 9, 10, 8)),
                "optimizer.pt is at step 10 by its own count, and its folder at step 9: it is the state of another "
                "checkpoint or run, or the count of the run began again.",
                "warning",
            ),
        ],
        silent=[
            parts(modules=rows(1.0), optimizer=SavedState("optimizer.pt", at, steps, 8))
            for at, steps in ((9, 9), (None, 9), (9, None))
        ],
        abstains=[On(parts(modules=rows(1.0)), "the numbers were not read")],
    ),
}  # fmt: skip


def cases(kind: str) -> list[Any]:
    return [
        pytest.param(rule, case, id=f"{rule}-{place}")
        for rule, entry in ENTRIES.items()
        for place, case in enumerate(getattr(entry, kind))
    ]


def verdict(rule: str, of: Parts) -> Any:
    return judge([next(each for each in BETWEEN_RULES if each.id == rule)], of)


@every(("rule", "case"), cases("fires"))
def test_a_rule_fires(rule: str, case: On) -> None:
    found = verdict(rule, case.parts).findings
    assert found
    assert case.says in {None, " | ".join(each.message for each in found)}
    assert case.severity in {None, found[0].severity}
    assert all(each.action and each.verify for each in found)


@every(("rule", "case"), cases("silent"))
def test_a_rule_is_silent_after_having_looked(rule: str, case: Parts) -> None:
    judged = verdict(rule, case)
    assert (judged.findings, judged.not_run) == ([], [])


@every(("rule", "case"), cases("abstains"))
def test_a_rule_without_its_input_says_so(rule: str, case: On) -> None:
    judged = verdict(rule, case.parts)
    assert ([each.reason for each in judged.not_run], judged.findings) == ([case.says], [])


def test_every_rule_has_an_entry() -> None:
    assert {rule.id for rule in BETWEEN_RULES} == ENTRIES.keys()


@every(
    ("folder", "repeats"),
    [
        ("", {"checkpoint-9": False, "checkpoint-10": True, "checkpoint-11": False, "checkpoint-12": False}),
        ("checkpoint-10", {"checkpoint-9": False, "checkpoint-10": True}),
        ("checkpoint-11", {"checkpoint-9": False, "checkpoint-10": False, "checkpoint-11": False}),
    ],
)
def test_weights_repeat_those_of_the_checkpoint_before_byte_by_byte(tmp_path, folder, repeats):
    """9 and 10 are equal, 11 has their size and one other value, and 12 another size."""
    for step, factor, columns in ((9, 1.0, 8), (10, 1.0, 8), (11, 2.0, 8), (12, 1.0, 6)):
        audited.save_adapter(tmp_path / f"checkpoint-{step}", [(np.ones((5, 2)), np.full((2, columns), factor))])
    audited.save_adapter(tmp_path, [(np.ones((5, 2)), np.ones((2, 6)))])
    found = gather(Documents(find(tmp_path / folder))).checkpoints
    assert {each.name: each.repeats for each in found} == repeats
