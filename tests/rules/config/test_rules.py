"""The rules on a configuration, one entry each: where a rule fires, where it is silent, and where it abstains.

The silent cases are those beside the firing ones: just at a threshold, or with what outweighs the finding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import pytest
from tables import every

from gradience.configs.families import Dimensions
from gradience.rules import Verdict
from gradience.rules.config import RULES, judge_config, settings_of
from gradience.rules.config.facts import CheckContext, Moved
from gradience.schema.document import Coverage
from gradience.schema.events import ConfigSnapshot
from gradience.schema.memory import Memory, MemoryChange

NO_ADAPTER = "no adapter is configured, so this may be a full fine-tune"


class On(NamedTuple):
    """A configuration, and what the rule says of it; None is not compared.

    Attributes:
        snapshot: the configuration.
        around: what lies around it.
        says: the findings' messages, or the reason for abstaining.
        reason: the reason for abstaining from another part.
    """

    snapshot: ConfigSnapshot
    around: CheckContext | None = None
    says: str | None = None
    reason: str | None = None
    values: dict[str, Any] | None = None
    severity: str | None = None
    confidence: float | None = None
    action: str | None = None
    settings: list[str] | None = None


class Entry(NamedTuple):
    """One rule."""

    fires: list[On]
    silent: list[On]
    abstains: list[On]


def config(*, adapter: bool = True, **sections: Any) -> ConfigSnapshot:
    """A snapshot from plain sections; of LoRA, unless they say otherwise or there is to be no adapter."""
    lora = {**({"peft_type": "LORA"} if adapter else {}), **sections.pop("lora", {})}
    return msgspec.convert({**sections, "lora": lora}, ConfigSnapshot)


def keyed(model: str, keys: list[str] | None) -> ConfigSnapshot:
    """MLX-LM's config of an adapter on this model."""
    return config(model_name=model, lora={"target_modules": keys}, extras={"format": "mlx-lm"})


def lora(**fields: Any) -> ConfigSnapshot:
    return config(lora=fields)


def training(**fields: Any) -> ConfigSnapshot:
    return config(training=fields)


def tuned(**fields: Any) -> ConfigSnapshot:
    return config(training=fields, extras={"task": "sft"})


def scheduled(steps: float, end: float, warmup: float = 0.0) -> ConfigSnapshot:
    """A schedule of its own length in a run of 1000 steps whose peak rate is 1e-4."""
    extras = {"decay_steps": steps, "decay_end": end}
    return config(optimizer={"lr": 1e-4}, training={"max_steps": 1000, "warmup_steps": warmup, "extras": extras})


def templated(model: str, template: str, **lora_fields: Any) -> ConfigSnapshot:
    return config(model_name=model, lora=lora_fields, training={"extras": {"prompt_template": template}})


def packed(program: str | None = None, **extras: Any) -> ConfigSnapshot:
    named = {"format": program} if program else {}
    return config(training={"extras": extras}, extras={"task": "sft", **named})


def rate(lr: float, task: str | None = "sft", **lora_fields: Any) -> ConfigSnapshot:
    return config(optimizer={"lr": lr}, lora=lora_fields, extras={"task": task} if task else {})


def mlx(lr: float, **lora_fields: Any) -> ConfigSnapshot:
    return config(optimizer={"lr": lr}, lora=lora_fields, extras={"task": "sft", "format": "mlx-lm"})


def sft(**lora_fields: Any) -> ConfigSnapshot:
    return config(lora={"task_type": "CAUSAL_LM", **lora_fields}, extras={"task": "sft"})


def targets(model: str, *names: str) -> ConfigSnapshot:
    return config(model_name=model, lora={"target_modules": list(names)})


def expression(targets: str, model: str = "meta-llama/Llama-3.1-8B") -> ConfigSnapshot:
    return config(model_name=model, lora={"target_modules": targets})


def typed(model_type: str, quant_method: str = "", **sizes: int) -> CheckContext:
    """A base whose config.json is at hand."""
    return CheckContext(model=Dimensions(model_type, quant_method=quant_method, **sizes))


def foretold(peak: float, limit: float | None, *changes: str) -> CheckContext:
    """A step of so many GiB beside a card of so many; each change halves it."""
    fitting = [MemoryChange(change=one, peak_bytes=int(peak * 2**29)) for one in changes]
    size = None if limit is None else int(limit * 2**30)
    return CheckContext(memory=Memory(peak_bytes=int(peak * 2**30), limit_bytes=size, changes=fitting))


def layers(model: str | None, asked: list[int], **lora_fields: Any) -> ConfigSnapshot:
    extras = {"layers_to_transform": asked, **lora_fields.pop("extras", {})}
    return config(model_name=model, lora={"target_modules": ["q_proj"], **lora_fields, "extras": extras})


def saving(model: str | None, *names: str, **lora_fields: Any) -> ConfigSnapshot:
    return config(model_name=model, lora={"modules_to_save": list(names), **lora_fields})


def covered(**fields: Any) -> CheckContext:
    """A base of four layers, of which the targets reach eight modules in all layers, if not told otherwise."""
    common = {"base": "m", "model_type": "llama", "layout": "transformers 5"}
    counts = {"modules": 8, "layers": 4, "layers_total": 4}
    return CheckContext(coverage=msgspec.convert({**common, **counts, **fields}, Coverage))


def engines(*names: str) -> CheckContext:
    return CheckContext(engines=names)


def unknown(*keys: str) -> CheckContext:
    return CheckContext(unknown_keys=keys)


def rotated(**fields: Any) -> ConfigSnapshot:
    """A run of 100 steps that evaluates, writes 10 checkpoints and keeps the newest 9."""
    steps = {"max_steps": 100, "save_strategy": "steps", "save_steps": 10.0, "eval_strategy": "steps"}
    return training(**{**steps, "save_total_limit": 9, **fields})


ATTENTION = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
SMALL = config(  # 12 001 tokens at most
    training={"max_length": 1, "extras": {"train_examples": 12_001}}, extras={"task": "sft"}
)
EXACT = msgspec.structs.replace(
    SMALL,
    training=msgspec.convert(  # 1 bit a token is 3 x 2 bits of 2 000 parameters
        {"max_length": 1, "extras": {"train_examples": 12_000}}, type(SMALL.training)
    ),
)
PHI_OWN = config(model_name="microsoft/phi-1_5", lora={"target_modules": ["Wqkv", "out_proj", "fc1", "fc2"]})
PHI = config(  # of these only `dense` is in the model
    model_name="microsoft/phi-2",
    lora={"target_modules": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h", "dense"]},
)

ENTRIES: dict[str, Entry] = {
    "VAL001": Entry(
        fires=[
            On(config(optimizer={"lr": "Infinity"})),
            On(
                config(optimizer={"betas": [0.9, 1.0]}),
                says="adam beta2 is 1; it must be at least 0 and below 1",
                values={"adam beta2": 1.0},
                settings=["betas"],
            ),
            On(
                lora(alpha="NaN"),
                says="lora_alpha is NaN; it must be a finite number, above 0",
                values={"lora_alpha": "NaN"},
            ),
            On(lora(r=0), action="set r to a value at least 1"),
            On(lora(dropout=1.0), settings=["dropout"]),
            On(lora(rank_pattern={"q": 0}), settings=["rank_pattern"]),
        ],
        silent=[On(config(optimizer={"lr": 2e-4, "weight_decay": 0.0}, lora={"r": 1, "alpha": 0.1, "dropout": 0.0}))],
        abstains=[On(config())],
    ),
    "SEC001": Entry(
        fires=[
            On(training(extras={"secret_keys": ["hub_token"]}), settings=["hub_token"]),
            On(
                training(extras={"secret_keys": ["a", "b"]}),
                says="a is set in the configuration (its value was not read) | b is set in the configuration (its "
                "value was not read)",
            ),
            On(
                training(extras={"secret_keys": ["a"], "masked_keys": ["hub_token"]}),
                says="a is set in the configuration (its value was not read)",
                reason="hub_token: masked in the file, as transformers does whether set or not",
            ),
        ],
        silent=[On(training())],
        abstains=[On(training(extras={"masked_keys": ["hub_token"]}))],
    ),
    "KEY001": Entry(
        fires=[
            On(
                training(),
                unknown("note", "model.lora_rnak"),
                says="no setting is called model.lora_rnak; did you mean lora_rank?",
                settings=["model.lora_rnak"],
            ),
            On(training(), unknown("warmupsteps", "note", "tags")),
            On(config(extras={"format": "axolotl"}), unknown("sequence_lne", "a_a", "b_b", "c_c")),
        ],
        silent=[
            On(training(), CheckContext(unknown_keys=())),
            On(training(), unknown("my_own_note", "lor")),
            On(training(), unknown("alpha1", "load_in_4bit")),  # of other series
            On(training(), unknown("quantization")),
            On(training(), unknown("training.max_seq_le")),
            On(training(), unknown("dataset_path")),
            On(training(), unknown("s2_attention")),
            On(training(), unknown("use_bdra")),
        ],
        abstains=[
            On(training()),
            On(training(), unknown("learning_rat", "solution_field", "train_log", "note")),
            On(training(), CheckContext(unknown_keys=("learning_rat",), moment="begun", begun="args.json")),
        ],
    ),
    "LR001": Entry(
        fires=[
            On(
                rate(5e-5),
                says="lr 5e-05 looks like a full fine-tuning rate, the default of transformers' TrainingArguments; "
                "LoRA usually wants about 10 x that",
                severity="warning",
                confidence=0.8,
                action="try 1e-4 to 5e-4 (2e-4 is the usual start)",
            ),
            On(rate(1e-5), says="lr 1e-05 looks like a full fine-tuning rate; LoRA usually wants about 10 x that"),
            On(rate(5e-5, r=32, alpha=63)),
            On(
                config(optimizer={"lr": 1e-5}, extras={"task": "sft", "format": "mlx-lm"}),
                says="lr 1e-05 looks like a full fine-tuning rate, the default of MLX-LM; LoRA usually wants about 10 "
                "x that",
            ),
            On(
                config(optimizer={"lr": 2e-5}, training={"extras": {"trainer": "sft"}}),
                says="lr 2e-05 looks like a full fine-tuning rate, the default of TRL's SFTConfig; LoRA usually wants "
                "about 10 x that",
            ),
            On(
                mlx(1e-5, r=8, alpha=160),
                says="lr 1e-05, the default of MLX-LM moves the update slowly: scaling x r x lr is 1.6e-03, and 3e-3 "
                "to 1e-2 in shipped recipes",
                action="try 2e-05 to 6e-05",
            ),
            On(mlx(1e-5, r=16, alpha=212)),
            On(config(optimizer={"lr": 5e-5}, lora={"task_type": "CAUSAL_LM"}), severity="warning", confidence=0.6),
            On(rate(5e-5, "sst2"), severity="warning", confidence=0.6),
            On(rate(5e-5), CheckContext(moment="begun", begun="training_args.bin"), severity="info"),
            On(mlx(1e-5, r=8, alpha=160), CheckContext(moment="weighed", begun="the log"), severity="info"),
        ],
        silent=[
            On(rate(5.1e-5)),
            On(rate(5e-5, r=256, alpha=512)),  # Biderman's math runs: a published good configuration
            On(rate(5e-5, r=32, alpha=64)),  # 64 x 5e-5 is QLoRA's 16 x 2e-4
            On(mlx(2e-5, r=8, alpha=160)),
            On(mlx(1e-5, r=16, alpha=256)),  # the lowest of the band, 1.25e-5, is 1e-5 in one digit
        ],
        abstains=[
            On(rate(1e-6, "dpo"), says="objective preference (task dpo): it needs supervised training"),
            On(rate(1e-6, None)),
            On(config(optimizer={"lr": 1e-6, "extras": {"lr_from": "the log"}}, extras={"task": "sft"})),
            On(config(optimizer={"lr": 1e-5, "name": "sgd"}, extras={"task": "sft"})),
            On(rate(-1.0)),
            On(rate(1e-5, "reward"), says="objective reward (task reward): it needs supervised training"),
            On(
                config(adapter=False, lora={"task_type": "CAUSAL_LM", "dropout": 0.1}, optimizer={"lr": 1e-6}),
                says=NO_ADAPTER,
            ),
            On(
                rate(1e-6, modules_to_save=["lm_head", "x"]),
                says="the rate also trains whole matrices (lm_head), which want a lower one",
            ),
        ],
    ),
    "LR003": Entry(
        fires=[
            On(rate(3e-3), confidence=0.85),
            On(rate(1.001e-3), confidence=0.7),
            On(rate(2.99e-3, None), confidence=0.7),
            On(rate(2.4e-3, r=8, alpha=4.001)),  # alpha x lr = 9.6e-3 is the best rate of the median model
            On(rate(2e-3, "reward"), says="lr 0.002 is above the published band for LoRA"),
            On(rate(2e-3, r=8, alpha=16), values={"lr": 2e-3, "scaling_r_lr": 0.032}),
            On(rate(4.8e-3, r=8, alpha=2.001)),
            On(config(optimizer={"lr": 3e-3, "extras": {"lr_groups": [2e-3, 3e-3]}}, extras={"task": "sft"})),
            On(rate(3e-3, None), says="at lr 0.003 most LoRA runs of a 35-model sweep diverged", values={"lr": 3e-3}),
        ],
        silent=[On(rate(1e-3)), On(rate(2.4e-3, r=8, alpha=4)), On(rate(4.8e-3, r=8, alpha=2))],
        abstains=[
            On(config(adapter=False, optimizer={"lr": 1.0}, extras={"task": "sft"})),
            On(rate(3e-3, "dpo")),
            On(config(optimizer={"lr": 3e-3, "extras": {"lr_groups": [1e-3, 3e-3]}}, extras={"task": "sft"})),  # LoRA+
        ],
    ),
    "LR004": Entry(
        fires=[
            On(rate(5.1e-5, "dpo")),
            On(config(optimizer={"lr": 2e-4}, training={"extras": {"trainer": "rl"}})),
            On(
                rate(1e-3, "grpo"),
                says="lr 0.001 is high for reinforcement learning: DPO uses about 5e-6, GRPO 1e-5 to 4e-5",
            ),
            On(
                rate(2e-4, "dpo"),
                says="lr 0.0002 is high for preference optimisation: DPO uses about 5e-6, GRPO 1e-5 to 4e-5",
                values={"lr": 2e-4},
            ),
            On(
                rate(1e-6, "grpo"),
                says="lr 1e-06, the default of TRL's trainers, is a rate of full fine-tuning: with LoRA DPO uses "
                "about 5e-6, GRPO 1e-5 to 4e-5",
                severity="warning",
                settings=["lr"],
            ),
            On(rate(2e-6, "grpo")),
            On(rate(5e-7, "dpo", r=16, alpha=32)),
            On(config(optimizer={"lr": 1e-4, "extras": {"lr_groups": [6e-5, 1e-4]}}, extras={"task": "dpo"})),
        ],
        silent=[On(rate(2.1e-6, "grpo")), On(rate(1e-6)), On(rate(5e-5, "dpo")), On(rate(2e-3, "reward"))],
        abstains=[
            On(config(optimizer={"lr": 8e-5, "extras": {"lr_groups": [5e-6, 8e-5]}}, extras={"task": "dpo"})),
            On(config(optimizer={"lr": 1e-6, "extras": {"lr_from": "the log"}}, extras={"task": "grpo"})),
            On(config(optimizer={"lr": 1e-6, "name": "sgd"}, extras={"task": "grpo"})),
            On(rate(1.0, None)),
            On(
                config(optimizer={"lr": 1e-3}),
                says="the objective is not known (no task, task_type or trainer says it): say --task sft, dpo, grpo "
                "or a task's name",
            ),
        ],
    ),
    "LR005": Entry(
        fires=[
            On(
                rate(2e-4, r=128, alpha=256),
                says="r 128, alpha 256 and lr 0.0002 together are a combination for which loss spikes were published",
                values={"r": 128, "alpha": 256.0, "lr": 2e-4},
                settings=["lr", "r"],
            )
        ],
        silent=[
            On(rate(2e-4, r=127, alpha=256)),
            On(rate(2e-4, r=128, alpha=255)),
            On(rate(1.9e-4, r=128, alpha=256)),
            On(rate(2e-4, r=128, alpha=256, use_rslora=True)),
        ],
        abstains=[On(rate(2e-4, r=128))],
    ),
    "TGT001": Entry(
        fires=[
            On(sft(target_modules=["model.layers.0.self_attn.q_proj"])),
            On(sft(target_modules=r".*\.(q_proj|v_proj)")),
            On(config(lora=ATTENTION), severity="info", confidence=0.75),
        ],
        silent=[
            On(sft(target_modules=["q_proj", "up_proj"])),
            On(sft(target_modules="all-linear")),
            On(sft(target_modules=["q_proj"], extras={"target_parameters": ["mlp.experts.gate_up_proj"]})),
            On(sft(target_modules=["model.layers.0.mlp.down_proj"])),
        ],
        abstains=[
            On(
                config(lora={"target_modules": ["q_proj"]}, extras={"task": "grpo"}),
                says="objective rl (task grpo): the evidence is for supervised training of a causal LM",
            ),
            On(sft(target_modules=["query", "dense"])),  # BERT: `dense` is in attention and in the MLP
            On(
                config(lora={"task_type": "SEQ_CLS", "target_modules": ["q_proj"]}, extras={"task": "sft"}),
                says="task_type SEQ_CLS: the evidence is for a causal LM",
            ),
            On(lora(peft_type="ADALORA"), says="peft_type ADALORA is not LoRA: the rule does not apply"),
            On(
                lora(task_type="CAUSAL_LM", extras={"target_modules_null": True}),
                says="target_modules is null: PEFT's default decides (see TGT003)",
            ),
            On(lora(task_type="CAUSAL_LM"), says="target_modules is not given"),
        ],
    ),
    "TGT003": Entry(
        fires=[On(lora(peft_type="LORA", extras={"target_modules_null": True}))],
        silent=[
            On(lora(target_modules=["q_proj"])),
            On(lora(extras={"target_modules_null": True, "target_parameters": ["experts.w"]})),
        ],
        abstains=[On(lora(r=8), says="target_modules is not given")],
    ),
    "TGT004": Entry(
        fires=[
            On(config(lora={"peft_type": "LORA"}, extras={"task": "sst2"})),
            On(lora(peft_type="LORA", extras={"base_model_class": "BertForSequenceClassification"})),
        ],
        silent=[
            On(lora(peft_type="LORA", task_type="SEQ_CLS")),
            On(config(lora={"peft_type": "LORA", "modules_to_save": ["score"]}, extras={"task": "sst2"})),
            On(config(lora={"peft_type": "LORA"}, extras={"task": "sft"})),
        ],
        abstains=[
            On(config(adapter=False, extras={"task": "sst2"})),
            On(
                lora(peft_type="LORA"),
                says="task_type is unset; whether there is a new head is not known (no task, task_type or trainer "
                "says it)",
            ),
            On(
                config(lora={"peft_type": "LORA"}, extras={"task": "rm"}),
                says="task_type is unset; whether there is a new head is not known (task rm)",
            ),
            On(
                config(adapter=False, lora={"r": 8}, extras={"task": "sst2"}),
                says="task_type is not given; only in a PEFT file would that mean that it is unset",
            ),
        ],
    ),
    "ALP002": Entry(
        fires=[
            On(rate(1e-4, r=32, alpha=7.9)),
            On(
                rate(1e-4, r=64, alpha=8),
                says="alpha 8 at r 64 and lr 0.0001: alpha x lr = 8.0e-04 is a small step",
                values={"alpha": 8.0, "r": 64, "lr": 1e-4, "alpha_lr": 8e-4},
            ),
        ],
        silent=[
            On(rate(1e-4, r=64, alpha=16)),  # QLoRA
            On(rate(1.1e-4, r=64, alpha=15)),
            On(rate(1e-4, r=31, alpha=1)),
        ],
        abstains=[On(lora(r=64, alpha=1))],
    ),
    "NUM001": Entry(
        fires=[
            On(
                config(training={"dtype": "fp16"}, lora={"extras": {"autocast_adapter_dtype": False}}),
                says="fp16 training with autocast_adapter_dtype off keeps the adapter in fp16",
            )
        ],
        silent=[On(training(dtype="bfloat16"))],
        abstains=[On(training(dtype="float16"), says="autocast_adapter_dtype is not given")],
    ),
    "BIA001": Entry(
        fires=[
            On(lora(bias="lora_only"), says="bias is 'lora_only': biases of the base model are trained and saved too")
        ],
        silent=[On(lora(bias="none"))],
        abstains=[On(lora(r=8))],
    ),
    "TGT002": Entry(
        fires=[
            On(
                lora(target_modules=["q_proj", "o_porj"]),
                covered(unmatched_targets=["o_porj"]),
                says="nothing in m matches o_porj (did you mean o_proj?)",
                severity="warning",
            ),
            On(lora(), covered(layers=4, layers_total=17)),
            On(
                config(),
                covered(modules=8, refused=[{"name": "mlp", "reason": "it holds no weight"}]),
                says="PEFT will refuse mlp: it holds no weight",
            ),
            On(
                config(),
                covered(
                    modules=0,
                    layers=0,
                    unmatched_targets=["q"],
                    refused=[{"name": "mlp", "reason": "a block"}, {"name": "norm", "reason": "no weight"}],
                ),
                says="PEFT will refuse mlp, norm: a block",
            ),
            On(
                config(),
                covered(modules=0, unmatched_targets=["q"]),
                says="the targets match no module of m",
                severity="error",
                confidence=0.9,
            ),
            On(
                config(),
                covered(modules=0)._replace(moved=Moved("model", "model.language_model", saved=False)),
                action="name modules below model.language_model, as the base does, not below model",
            ),
            On(
                config(),
                covered(modules=0)._replace(moved=Moved("model", "model.language_model", saved=True)),
                action="rename the adapter's modules: "
                "gradience convert ADAPTER --rename model=model.language_model --out NEW",
            ),
            On(
                config(),
                covered(layers=1, layers_total=5),
                says="the adapter touches 1 of 5 layers",
                values={"layers": 1, "layers_total": 5, "modules": 8},
                severity="warning",
                confidence=0.9,
            ),
            On(
                config(),
                covered(unmatched_targets=["a", "b", "c", "d", "e"]),
                says="nothing in m matches a, b, c and 2 more",
                severity="info",
                values={"unmatched_targets": ["a", "b", "c", "d", "e"]},
            ),
        ],
        silent=[
            On(lora(), covered(layers=4, layers_total=16)),
            On(lora(extras={"layers_to_transform": [1]}), covered(layers=1, layers_total=32)),
            On(config(), covered(layers=0, layers_total=0)),
        ],
        abstains=[On(lora()), On(lora(peft_type="IA3"), covered())],
    ),
    "TGT005": Entry(
        fires=[
            On(
                config(),
                covered(added_tokens=["<a>", "<b>", "<c>", "<d>"]),
                says="4 tokens were added to the tokenizer (<a>, <b>, <c> and 1 more), and no embedding row is trained",
            ),
            On(
                config(),
                covered(added_tokens=["<x>"], vocabulary=32_001),
                says="1 tokens were added to the tokenizer (<x>), and no embedding row is trained",
                values={"added_tokens": ["<x>"], "vocabulary": 32_001},
            ),
        ],
        silent=[On(lora(), covered(added_tokens=["<x>"], embedding_trained=True)), On(lora(), covered())],
        abstains=[On(lora()), On(lora(), covered()._replace(no_tokenizers="none"))],
    ),
    "TGT006": Entry(
        fires=[
            On(PHI, CheckContext(moment="begun", begun="adapter_model.safetensors")),
            On(PHI_OWN),  # transformers' class has other names; the model's own code had these
            On(config(model_name="google/flan-t5-base", lora={"target_modules": ["q", "V"]})),
            On(targets("microsoft/phi-2", "query_key_value", "dense"), severity="warning", confidence=0.85),
            On(targets("microsoft/phi-2", "query_key_value", "q_proj", "dense"), severity="info", confidence=0.85),
            On(
                targets("meta-llama/Llama-3.2-1B", "q_proj", "k_proj", "v_projo_proj"),
                severity="warning",
                confidence=0.85,
            ),
            On(
                targets("gpt2", "q_proj"),
                says="models of the GPT-2 family have no module called q_proj: PEFT refuses to start",
                values={"unmatched_targets": ["q_proj"], "left": [], "family": "GPT-2"},
                severity="error",
                confidence=0.85,
            ),
            On(
                targets("microsoft/phi-2", "query_key_value", "dense_h_to_4h", "dense_4h_to_h", "dense"),
                says="models of the Phi-2 family have no module called query_key_value, dense_h_to_4h, dense_4h_to_h: "
                "only dense is adapted",
                values={
                    "unmatched_targets": ["query_key_value", "dense_h_to_4h", "dense_4h_to_h"],
                    "left": ["dense"],
                    "family": "Phi-2",
                },
            ),
            On(
                targets("meta-llama/Llama-3.1-8B-FP8", "q_proj", "v_porj", "k_proj"),
                says="models of the Llama family have no module called v_porj (did you mean v_proj?): only q_proj, "
                "k_proj are adapted",
                severity="warning",
                action="name modules that the model has (q_proj, k_proj, v_proj, o_proj, gate_proj, "
                "up_proj, down_proj), or use 'all-linear'",
            ),
            On(
                targets("google/gemma-3-4b-it", "Q_proj", "k_proj"),
                says="models of the Gemma 3 family have no module called Q_proj (did you mean q_proj?): only k_proj "
                "is adapted",
                severity="warning",
            ),
            On(  # of another family, and not misspelt, although it contains a name
                targets("nvidia/Nemotron-3-Nano-30B", "q_proj", "gate_proj", "up_proj"), severity="info"
            ),
            On(
                targets("org/own-model", "q_proj", "o_porj"),
                says="no model known here has a module called o_porj (did you mean o_proj?)",
                values={"unmatched_targets": ["o_porj"], "left": ["q_proj"]},
                severity="warning",
                confidence=0.6,
            ),
            On(
                targets("meta-llama/Llama-3.1-8B", "self_attn", "up_proj"),
                says="self_attn is a block of modules, not a layer with a weight: PEFT refuses it",
                severity="error",
            ),
            On(
                lora(target_modules=[]),
                says="target_modules is empty: PEFT refuses to start",
                severity="error",
                settings=["target_modules"],
            ),
            On(
                expression(r".*\.self_attn\.(querry|value)"),
                severity="error",
                confidence=0.7,
                action="the name of a module there: model.layers.0.self_attn.q_proj",
            ),
            On(
                expression("q_proj"),
                says="q_proj matches no module of the Llama family: PEFT refuses to start. An expression has to match "
                "the whole name",
            ),
            On(expression(r"model\.layers\.40\.mlp\.up_proj")),  # it has 32
            On(
                expression(r".*\.(q_proj|mlp)"),
                says=r".*\.(q_proj|mlp) matches whole blocks too, such as model.layers.0.mlp: PEFT refuses to start",
                severity="error",
            ),
            On(targets("meta-llama/Llama-3.1-8B", "q_proj", "rotary_emb"), severity="error"),
            On(
                expression(r".*\.(qprojj|q_porj)"),
                says=r".*\.(qprojj|q_porj) matches no module of the Llama family: PEFT refuses to start; "
                "did you mean q_proj?",
            ),
        ],
        silent=[
            On(config(model_name="google/flan-t5-base", lora={"target_modules": ["q", "v"]})),
            On(config(model_name="gpt2", lora={"target_modules": ["h.0.attn.c_attn"]})),
            On(config(model_name="gpt2", lora={"target_modules": "all-linear"})),
            On(config(model_name="org/own-model", lora={"target_modules": "all-linear"})),
            On(targets("unsloth/Qwen2.5-VL-7B-Instruct-unsloth-bnb-4bit", "q_proj", "visual.blocks.3.attn.qkv")),
            On(targets("TheBloke/Mistral-7B-v0.1-AWQ", "q_proj", "gate_proj")),
            On(targets("my-model", "c_attn"), typed("gpt2")),
            On(targets("x", "query_key_value"), typed("gpt_neox")),
            On(targets("google/vit-base-patch16-224", "k_proj", "output")),  # a block in transformers 4 only
            On(targets("google-bert/bert-base-uncased", "query", "cls", "0")),  # of some classes, or a list of layers
            On(lora(target_modules=["qkv"], extras={"base_model_type": "qwen3_vl"})),
            On(expression(r".*\.self_attn\.(q|v)_proj")),
            On(expression(r".*q_proj|encoder\.layers\.0\.mlp")),  # a block that this class may not have
            On(expression(r"model\.vision_tower\.encoder\.layers\.\d+\.mlp\.fc1", "google/gemma-3-4b-it")),
            On(expression(r"model\.layers\.(1[0-9]|20)\.mlp\.up_proj")),
            On(expression(r"model\.language_model\.layers\.\d+\.mlp\.\w+", "google/gemma-3-4b-it")),
            On(expression(r"vision_tower\.vision_model\.encoder\..*(fc1|fc2)", "google/gemma-3-4b-it")),
            On(lora(target_modules=[], extras={"target_parameters": ["w"]})),
        ],
        abstains=[
            On(PHI, covered()),
            On(PHI_OWN, CheckContext(moment="begun", begun="adapter_model.safetensors")),
            On(config(model_name="org/own-model", lora={"target_modules": ["q"]})),
            On(lora(target_modules=["q"])),
            On(  # it began, so its model has the modules
                targets("gpt2", "q_proj"),
                CheckContext(moment="begun", begun="adapter_model.safetensors"),
                says="the run has begun, so its model has q_proj, unlike the GPT-2 family",
            ),
            On(targets("org/own-model", "q_proj", "lin_q")),  # known elsewhere, and like nothing known
            On(expression(r".*attn\.query"), CheckContext(moment="begun", begun="adapter_model.safetensors")),
            On(targets("Llama-x", "q_proj"), typed("no-type-of-transformers")),  # the type tells, and not the name
        ],
    ),
    "TGT009": Entry(
        fires=[
            On(
                keyed("Qwen/Qwen3-30B-A3B", ["self_attn.q_proj", "mlp.experts.0.up_proj", "mlp.experts.0.down_proj"]),
                says="mlp.experts.0.up_proj, mlp.experts.0.down_proj match no module in MLX-LM, where MLX stacks "
                "experts as switch_mlp: only self_attn.q_proj is adapted",
                severity="warning",
            ),
            On(
                keyed("meta-llama/Llama-3.1-8B", ["q_proj", "v_proj"]),
                says="q_proj, v_proj match no module in MLX-LM, where a key is the path within a layer: nothing is "
                "adapted",
                severity="error",
            ),
        ],
        silent=[
            On(keyed("meta-llama/Llama-3.1-8B", ["self_attn.q_proj", "mlp.down_proj"])),
            On(keyed("Qwen/Qwen3-30B-A3B", ["mlp.switch_mlp.up_proj"])),
            On(keyed("a/model-of-no-family", ["att_proj"])),
        ],
        abstains=[On(keyed("meta-llama/Llama-3.1-8B", None), says="the config names no keys: MLX-LM chooses")],
    ),
    "TGT007": Entry(
        fires=[
            On(
                layers("meta-llama/Llama-3.1-8B", [31, 32]),
                says="layers_to_transform 32 is not in a model of 32 layers, 0 to 31: nothing is adapted there",
                severity="warning",
                values={"outside": [32], "layers": 32},
                settings=["layers_to_transform", "layers_pattern"],
            ),
            On(
                layers("x", [4, 5]),
                typed("llama", layers=4),
                says="layers_to_transform 4, 5 are not in a model of 4 layers, 0 to 3: nothing is adapted, and PEFT "
                "refuses",
                severity="error",
            ),
            On(
                layers(None, [-1]),
                says="layers_to_transform -1 is not in a model, whose layers count from 0: nothing is adapted, and "
                "PEFT refuses",
                severity="error",
            ),
            On(
                layers("gpt2", [1], extras={"layers_pattern": ["layers"]}),
                says="layers_pattern layers is no list of layers in the model: nothing is adapted, and PEFT refuses",
                severity="error",
                action="write h",
            ),
            On(
                layers(None, [1], target_modules="all-linear"),
                says="PEFT refuses layers_to_transform and layers_pattern beside an expression in target_modules",
                severity="error",
            ),
            On(
                layers(None, [], extras={"layers_pattern": ["h"]}),
                says="PEFT refuses layers_pattern without layers_to_transform",
            ),
        ],
        silent=[
            On(layers("meta-llama/Llama-3.1-8B", [0, 31])),
            On(layers("gpt2", [11], extras={"layers_pattern": ["h"]})),
            On(layers("gpt2", [11], extras={"layers_pattern": ["layers", "h"]})),
            On(layers("gpt2", [11], extras={"layers_pattern": ["(h|layers)"]})),
            On(layers("gpt2", [11], extras={"layers_pattern": ["transformer.h"]})),
            On(layers(None, [])),
        ],
        abstains=[
            On(layers("org/own-model", [3]), says="the number of the model's layers is not known (--base tells it)"),
            On(
                layers("gpt2", [11], extras={"layers_pattern": ["(h"]}),
                says="layers_pattern: the pattern '(h' in the adapter config is not a regular expression: "
                "missing ), unterminated subpattern at position 11",
            ),
        ],
    ),
    "TGT008": Entry(
        fires=[
            On(
                saving("distilbert-base-uncased", "clasifier"),
                says="modules_to_save: clasifier (did you mean classifier?) is no module of the DistilBERT family: "
                "neither trained nor saved",
                severity="warning",
                values={"unmatched_saves": ["clasifier"]},
                settings=["modules_to_save"],
            ),
            On(saving("meta-llama/Llama-3.1-8B", "classifier", "embed_tokens"), severity="warning"),
            On(
                saving("google/siglip-base-patch16-224", "logit_scale", "logit_bias", "vision_model.head"),
                says="modules_to_save: logit_scale, logit_bias are no modules of the SigLIP family: neither trained "
                "nor saved",
                severity="info",
            ),
            On(
                saving(None, "my_head", "lm_head"),
                covered(unmatched_saves=["my_head"]),
                says="modules_to_save: my_head is no module of m: neither trained nor saved",
                severity="warning",
            ),
        ],
        silent=[
            On(saving("distilbert-base-uncased", "pre_classifier", "classifier")),
            On(saving("meta-llama/Llama-3.1-8B", "classifier", "score", task_type="SEQ_CLS")),  # PEFT adds both
            On(saving("meta-llama/Llama-3.1-8B", "layers.3.mlp", "tokens")),  # any ending will do
            On(saving(None)),
            On(saving(None, "lm_head"), covered()),
        ],
        abstains=[On(saving("org/own-model", "head"))],
    ),
    "PAD001": Entry(
        fires=[
            On(
                config(model_name="gpt2-medium", lora={"task_type": "CAUSAL_LM"}),
                says="the model has no pad token: where labels are a copy of padded input_ids, the padding is in the "
                "loss",
                severity="info",
            ),
            On(
                config(model_name="gpt2", lora={"task_type": "SEQ_CLS"}),
                says="the model has no pad token: a batch of more than one row needs model.config.pad_token_id",
            ),
        ],
        silent=[On(config(model_name="meta-llama/Llama-3.1-8B", lora={"task_type": "CAUSAL_LM"}))],
        abstains=[
            On(config(model_name="gpt2", training={"extras": {"trainer": "sft"}})),
            On(config(model_name="gpt2", extras={"format": "axolotl", "task": "sft"})),
            On(config(model_name="gpt2", extras={"task": "dpo"})),
            On(config(model_name="gpt2", extras={"task": "sft"}), CheckContext(moment="begun", begun="args.json")),
            On(lora(task_type="CAUSAL_LM")),
        ],
    ),
    "MEM001": Entry(
        fires=[
            On(
                lora(),
                foretold(21, 20, "gradient_checkpointing"),
                severity="error",
                says="a step takes about 21 GiB, and the card has 20 GiB",
                action="the cheapest change that fits: gradient_checkpointing (10.5 GiB)",
            ),
            On(lora(), foretold(17.1, 20), severity="warning", says="a step takes about 17.1 GiB of 20 GiB: tight"),
        ],
        silent=[On(lora(), foretold(17, 20)), On(lora(), foretold(30, None)), On(lora())],
        abstains=[On(lora(), CheckContext(memory=Memory(reason="why", limit_bytes=1)), says="why")],
    ),
    "QNT001": Entry(
        fires=[
            On(
                lora(),
                typed("gpt_oss", quant_method="mxfp4"),
                says="transformers refuses to train beside a base in mxfp4, unless it is dequantised",
                severity="info",
                values={"quant_method": "mxfp4"},
                action="load it with quantization_config=Mxfp4Config(dequantize=True)",
                settings=["use_dora", "model_name"],
            ),
            On(
                lora(),
                typed("llama", quant_method="vptq"),
                says="transformers refuses to train beside a base in vptq",
                severity="warning",
                action="train beside the model it was made from, in 16 bits or in bitsandbytes' 4 bits",
            ),
            On(
                lora(use_dora=True),
                typed("llama", quant_method="awq"),
                says="PEFT refuses use_dora beside a base in awq",
                action="set use_dora=False",
            ),
        ],
        silent=[
            On(lora(), typed("llama", quant_method="awq")),
            On(lora(use_dora=True), typed("llama", quant_method="bitsandbytes")),
            On(lora(use_dora=True), typed("llama")),
        ],
        abstains=[On(lora(), says="the config.json of the base is not at hand (--base)")],
    ),
    "REC001": Entry(
        fires=[
            On(
                training(logging_steps=100.0, max_steps=100),
                says="logging_steps 100 against 100 steps: one row of training loss is recorded",
                values={"logging_steps": 100.0, "steps": 100, "every": 2},
            ),
            On(
                training(logging_steps=500.0, max_steps=150),
                says="logging_steps 500 against 150 steps: no row of training loss is recorded",
                values={"logging_steps": 500.0, "steps": 150, "every": 3},
                action="set logging_steps to 3",
            ),
            On(training(extras={"logging_strategy": "no"}), says="logging is off: no training loss is recorded"),
            On(training(logging_steps=500.0, max_steps=10), action="set logging_steps to 1"),
        ],
        silent=[
            On(training(logging_steps=99.0, max_steps=100)),
            On(training(logging_steps=0.1, max_steps=5)),
            On(training(logging_steps=1.0, max_steps=5)),
        ],
        abstains=[
            On(training(logging_steps=500.0, epochs=1.0)),
            On(training(logging_steps=500.0, max_steps=10, extras={"logging_strategy": "epoch"})),
        ],
    ),
    "REC002": Entry(
        fires=[
            On(training(eval_strategy="no", epochs=1.1)),
            On(training(eval_strategy="no"), says="evaluation is off: overfitting cannot be seen"),
            On(
                tuned(epochs=2.0, eval_strategy="no"),
                says="evaluation is off: overfitting in 2 passes cannot be seen",
                values={"eval_strategy": "no"},
            ),
        ],
        silent=[
            On(training(eval_strategy="steps")),
            On(training(eval_strategy="no", epochs=1.0)),
            On(tuned(eval_strategy="no", epochs=3.1)),  # EPO001 says it
        ],
        abstains=[On(training()), On(config(training={"eval_strategy": "no", "epochs": 2.0}, extras={"task": "grpo"}))],
    ),
    "REC004": Entry(
        fires=[
            On(training(save_strategy="no", max_steps=500)),
            On(training(save_strategy="steps", save_steps=500.0, max_steps=500)),
            On(training(save_strategy="no", max_steps=900), says="saving is off: a crash leaves nothing on disk"),
            On(
                training(save_strategy="steps", save_steps=1000.0, max_steps=600),
                says="save_steps 1000 against 600 steps: a crash before the end leaves nothing on disk",
                values={"save_steps": 1000.0, "steps": 600},
            ),
        ],
        silent=[
            On(training(save_strategy="steps", save_steps=1.0, max_steps=500)),
            On(training(save_strategy="steps", save_steps=0.9, max_steps=500)),  # below 1 it is a ratio
            On(training(save_strategy="no", max_steps=499)),
            On(training(save_strategy="steps", save_steps=499.0, max_steps=500)),
            On(training(save_strategy="steps", save_steps=0.5, max_steps=1)),
        ],
        abstains=[
            On(
                training(save_strategy="best", save_steps=500, max_steps=100),
                says="save_strategy is 'best': checkpoints do not come per step",
            )
        ],
    ),
    "REC005": Entry(
        fires=[
            On(
                config(),
                CheckContext(output=("checkpoint-10", "run.jsonl")),
                says="the output folder already holds a run: checkpoint-10, run.jsonl",
            )
        ],
        silent=[
            On(training(), CheckContext(output=())),
            On(training(extras={"resumes": True}), CheckContext(output=("checkpoint-10",))),
            On(training(extras={"overwrites_output": True}), CheckContext(output=("checkpoint-10",))),
        ],
        abstains=[On(training())],
    ),
    "STP001": Entry(
        fires=[
            On(training(max_steps=99)),
            On(training(batch_size=8, world_size=1, epochs=1.0, extras={"train_examples": 700})),
            On(training(max_steps=40), says="the run has only 40 optimizer steps", values={"steps": 40}),
        ],
        silent=[On(training(max_steps=100))],
        abstains=[
            On(
                training(epochs=1.0),
                says="the number of optimizer steps is not known: neither max_steps nor the size of the data",
            )
        ],
    ),
    "EPO001": Entry(
        fires=[
            On(tuned(epochs=3.01)),
            On(config(training={"epochs": 10.01}, extras={"task": "sst2"})),
            On(tuned(epochs=4.0, eval_strategy="steps"), says="4 passes over the data"),
            On(
                tuned(epochs=4.0, batch_size=8, world_size=1, extras={"train_tokens": 90, "train_examples": 9}),
                says="4 passes over the data",
            ),
            On(tuned(epochs=9.9, eval_strategy="no"), severity="info", confidence=0.5),
            On(tuned(epochs=10.0, eval_strategy="no"), severity="warning", confidence=0.5),
            On(tuned(epochs=10.0, eval_strategy="epoch"), severity="info"),
            On(
                tuned(epochs=3.5, eval_strategy="no"),
                says="3.5 passes over the data, and evaluation is off",
                values={"epochs": 3.5, "eval_strategy": "no"},
            ),
        ],
        silent=[On(tuned(epochs=3.0)), On(config(training={"epochs": 10.0}, extras={"task": "sst2"}))],
        abstains=[
            On(training(epochs=10.0, max_steps=100, extras={"epochs_overridden": True})),
            On(config(training={"epochs": 10.0}, extras={"task": "grpo"})),
        ],
    ),
    "SCH001": Entry(
        fires=[
            On(training(lr_scheduler="constant", warmup_steps=10.0)),
            On(training(lr_scheduler="constant", warmup_steps=0.0, warmup_ratio=0.1)),
        ],
        silent=[
            On(training(lr_scheduler="constant_with_warmup", warmup_steps=10.0)),
            On(training(lr_scheduler="constant", warmup_steps=0.0)),
        ],
        abstains=[On(training(warmup_steps=10.0)), On(training(lr_scheduler="constant"), says="warmup is not given")],
    ),
    "SCH002": Entry(
        fires=[
            On(training(warmup_steps=50.0, max_steps=100)),
            On(training(warmup_steps=500.0, max_steps=10)),
            On(training(warmup_steps=0.0, warmup_ratio=0.5)),
            On(training(warmup_steps=0.5)),
            On(
                training(warmup_steps=60.0, max_steps=100),
                says="warmup takes 60% of the run: the peak rate is hardly used",
                values={"warmup_share": 0.6},
            ),
        ],
        silent=[
            On(training(warmup_steps=1.0, max_steps=100)),  # one step, not the whole run
            On(training(warmup_steps=49.0, max_steps=100)),
            On(training(warmup_steps=500.0, max_steps=9)),  # a trial of the script
            On(training(warmup_steps=0.0)),
            On(training(lr_scheduler="constant", warmup_steps=0.9)),
        ],
        abstains=[On(training(warmup_steps=10.0))],
    ),
    "SCH003": Entry(
        fires=[
            On(
                scheduled(700.0, 1e-5, warmup=100.0),
                says="the schedule is at its last rate (1e-05) after 800 of 1,000 steps, before the end",
                action="set the schedule's steps to 900",
            ),
            On(scheduled(800.0, 0.0)),
        ],
        silent=[On(scheduled(701.0, 1e-5, warmup=100.0)), On(scheduled(500.0, 1.1e-5))],
        abstains=[On(training(max_steps=1000), says="the length of the schedule is not given")],
    ),
    "CLN001": Entry(
        fires=[
            On(
                config(optimizer={"name": "adamw_torch", "eps": 1e-6}, training={"max_grad_norm": 5e-7}),
                says="max_grad_norm 5e-07 leaves no gradient longer than Adam's epsilon (1e-06): a step moves all "
                "weights together by 0.5 of the learning rate at most",
            ),
            On(config(optimizer={"name": "adamw_torch"}, training={"max_grad_norm": 1e-8})),
        ],
        silent=[
            On(config(optimizer={"name": "adamw_torch"}, training={"max_grad_norm": norm})) for norm in (0.0, 1.1e-8, 1)
        ]
        + [On(config(optimizer={"name": "sgd"}, training={"max_grad_norm": 1e-9}))],
        abstains=[
            On(training(max_grad_norm=1e-9), says="the optimizer is not known"),
            On(config(optimizer={"name": "adamw_torch"}), says="max_grad_norm is not given"),
        ],
    ),
    "CHT501": Entry(
        fires=[
            On(
                templated("Qwen/Qwen3-4B-Base", "qwen3"),
                says="Qwen3-4B-Base is a base model, and the template qwen3 ends turns with <|im_end|>: neither its "
                "embedding nor the head is trained",
            ),
            On(templated("unsloth/Qwen2.5-7B-bnb-4bit", "qwen")),
            On(templated("meta-llama/Llama-3.1-8B", "llama3")),
            On(templated("google/gemma-3-4b-pt", "gemma3")),
        ],
        silent=[
            On(templated("Qwen/Qwen3-4B", "qwen3")),
            On(templated("Qwen/Qwen2.5-7B-Instruct", "qwen")),
            On(templated("meta-llama/Llama-3.1-8B-Instruct", "llama3")),
            On(templated("google/gemma-2-9b-it", "gemma2")),
            On(templated("Qwen/Qwen3-4B-Base", "alpaca")),
            On(templated("Qwen/Qwen3-4B-Base", "qwen3", modules_to_save=["embed_tokens", "lm_head"])),
            On(templated("Qwen/Qwen3-4B-Base", "qwen3", target_modules=["q_proj", "lm_head"])),
            On(templated("Qwen/Qwen3-4B-Base", "qwen3", extras={"trainable_token_indices": [1]})),
        ],
        abstains=[
            On(templated("Qwen/Qwen3-4B-Base", "fewshot"), says="what the template fewshot writes is not known"),
            On(config(model_name="Qwen/Qwen3-4B-Base"), says="a chat template by name is not given"),
        ],
    ),
    "PCK501": Entry(
        fires=[
            On(
                packed(packing=True, packing_strategy="wrapped", attn_implementation="sdpa"),
                says="packing is on and packing_strategy is wrapped (attention: sdpa): documents of one sequence "
                "attend to each other",
            ),
            On(
                packed("llama-factory", packing=True),
                says="packing is on and neat_packing is off: documents of one sequence attend to each other",
            ),
        ],
        silent=[
            On(packed(packing=True, packing_strategy="bfd")),
            On(packed(packing=False, packing_strategy="wrapped")),
            On(packed("llama-factory", packing=True, neat_packing=True)),
        ],
        abstains=[
            On(packed(packing=True), says="packing_strategy is not given"),
            On(packed(packing_strategy="wrapped"), says="packing is not given"),
            On(
                packed("axolotl", packing=True),
                says="a recipe of axolotl, which parts documents by the attention that is installed",
            ),
        ],
    ),
    "SRV001": Entry(
        fires=[
            On(lora(modules_to_save=["lm_head"]), engines("llamacpp")),
            On(
                lora(extras={"lora_bias": True}),
                engines("vllm"),
                says="vLLM refuses a trained bias: only where the engine was started with bias_enabled",
            ),
            On(lora(use_dora=True), engines("vllm"), settings=["use_dora"]),
        ],
        silent=[
            On(lora(use_rslora=True, rank_pattern={"q": 4}), engines("vllm")),
            On(config(lora={"use_dora": True}, extras={"format": "mlx-lm"}), engines("mlx")),
        ],
        abstains=[On(lora(use_dora=True))],
    ),
    "SRV002": Entry(
        fires=[
            On(lora(use_rslora=True), engines("llamacpp")),
            On(lora(rank_pattern={"q": 4}), engines("vllm")),
            On(lora(alpha_pattern={"q": 4.0}), engines("lorax")),
            On(
                lora(use_rslora=True),
                engines("sglang"),
                says="SGLang misreads use_rslora: the scale is lora_alpha / r whatever use_rslora says: sqrt(r) times "
                "too small",
            ),
        ],
        silent=[
            On(lora(use_rslora=True), engines("vllm", "lorax")),
            On(lora(rank_pattern={"q": 4}), engines("llamacpp")),
        ],
        abstains=[On(lora(use_rslora=True))],
    ),
    "SRV003": Entry(
        fires=[
            On(lora(extras={"layers_to_transform": [1]}), engines("lorax")),
            On(
                lora(modules_to_save=["score"]),
                engines("lorax"),
                says="LoRAX leaves out modules_to_save: tensors other than lora_A and lora_B are not read",
            ),
            On(lora(bias="all"), engines("lorax"), settings=["bias"]),
        ],
        silent=[On(lora(target_modules=["q_proj", "model.layers.0.self_attn.v_proj"]), engines("lorax", "vllm"))],
        abstains=[On(lora())],
    ),
    "SRV006": Entry(
        fires=[
            On(
                lora(r=8),
                engines("mlx"),
                says="MLX-LM needs another file for PEFT's format: adapters.safetensors is "
                "loaded, by num_layers and lora_parameters of its config",
                severity="info",
            )
        ],
        silent=[On(config(lora={"r": 8}, extras={"format": "mlx-lm"}), engines("mlx")), On(lora(r=8), engines("vllm"))],
        abstains=[On(lora())],
    ),
    "SRV004": Entry(
        fires=[
            On(lora(r=8, rank_pattern={"q": 513}), engines("vllm")),
            On(
                lora(r=513),
                engines("vllm"),
                says="vLLM has no room for rank 513: max_lora_rank is one of 1, 8, 16, 32, 64, 128, 256, 320 and 512, "
                "and every slot has that size",
                action="gradience resize ADAPTER --rank 512 --out NEW",
                values={"engine": "vllm", "rank": 513, "room": None},
                severity="warning",
                confidence=0.8,
            ),
            On(
                lora(r=17),
                CheckContext(engines=("vllm@0.28",), flags={"max-lora-rank": ("16",)}),
                says="vLLM refuses rank 17: --max-lora-rank is 16",
                action="start it with --max-lora-rank 32",
            ),
            On(
                lora(r=17),
                CheckContext(engines=("vllm@0.28",), flags={"enable-lora": ()}),
                says="vLLM refuses rank 17: --max-lora-rank is 16, as none is given",
                action="start it with --max-lora-rank 32",
            ),
            On(
                lora(r=4),
                CheckContext(engines=("vllm",), flags={"max-lora-rank": ("12",)}),
                says="vLLM takes no --max-lora-rank 12",
            ),
        ],
        silent=[
            On(lora(r=512), engines("vllm", "lorax", "tensorrt")),
            On(lora(r=513), engines("lorax", "llamacpp", "vllm@9")),
            On(lora(r=16), CheckContext(engines=("vllm",), flags={"enable-lora": ()})),
            On(lora(r=64), CheckContext(engines=("lorax",), flags={"max-lora-rank": ("16",)})),
        ],
        abstains=[On(lora(r=12)), On(lora(), engines("vllm"))],
    ),
    "SRV005": Entry(
        fires=[
            On(lora(), engines("vllm@99"), values={"engine": "vllm", "version": "99"}, severity="warning"),
            On(lora(extras={"alora_invocation_tokens": [1]}), engines("vllm@0.28")),
            On(
                lora(bias="all"),
                engines("sglang"),
                says="SGLang is not judged with a trained bias: no source read here tells what it does with that",
            ),
        ],
        silent=[
            On(lora(), engines("vllm@0.28", "vllm", "llamacpp", "ollama", "lorax", "tensorrt@1.0", "peft")),
            On(lora(extras={"alora_invocation_tokens": [1]}), engines("llamacpp")),
        ],
        abstains=[On(lora())],
    ),
    "REC006": Entry(
        fires=[
            On(
                rotated(),
                says="save_total_limit 9 keeps the newest of 10 checkpoints, whatever the evaluations say",
                values={"save_total_limit": 9, "checkpoints": 10},
                severity="info",
                settings=["save_total_limit", "load_best_model_at_end", "metric_for_best_model"],
            ),
            On(
                rotated(save_strategy="epoch", epochs=9.5, max_steps=None),
                values={"save_total_limit": 9, "checkpoints": 10},
            ),
            On(rotated(load_best_model_at_end=False)),
        ],
        silent=[
            On(rotated(save_total_limit=10)),
            On(rotated(save_total_limit=0)),  # transformers deletes none
            On(rotated(save_strategy="no")),
            On(rotated(save_strategy="epoch", epochs=9.0, max_steps=None)),
            On(rotated(eval_strategy="no")),
            On(rotated(load_best_model_at_end=True)),
            On(rotated(metric_for_best_model="accuracy")),
        ],
        abstains=[
            On(rotated(save_total_limit=None), says="save_total_limit is not given"),
            On(rotated(eval_strategy=None), says="eval_strategy is not given"),
            On(rotated(save_strategy=None), says="save_strategy is not given"),
            On(
                msgspec.structs.replace(rotated(), extras={"format": "axolotl"}),
                says="a recipe of axolotl, which may have the best checkpoint kept by itself",
            ),
            On(rotated(), CheckContext(moment="begun", begun="args.json")),
        ],
    ),
}


def cases(kind: str) -> list[tuple[str, On]]:
    return [(rule, case) for rule, entry in ENTRIES.items() for case in getattr(entry, kind)]


def verdict(case: On) -> Verdict:
    return judge_config(case.snapshot, around=case.around)


def reasons(rule: str, judged: Verdict) -> list[str]:
    return [item.reason for item in judged.not_run if item.id == rule]


@every(("rule", "case"), cases("fires"))
def test_a_rule_fires_with_what_a_reader_needs(rule: str, case: On) -> None:
    judged = verdict(case)
    found = [item for item in judged.told if item.id == rule]
    assert found
    assert all(item.message and item.evidence and item.verify and item.confidence for item in found)
    assert reasons(rule, judged) == [case.reason] or case.reason is None
    seen = {
        "says": " | ".join(item.message for item in found),
        "values": found[0].values,
        "severity": found[0].severity,
        "confidence": found[0].confidence,
        "action": found[0].action,
        "settings": settings_of(found[0]),
    }
    stated = {name: value for name in seen if (value := getattr(case, name)) is not None}
    assert {name: seen[name] for name in stated} == {**stated, **_nearly(stated)}


def _nearly(stated: dict[str, Any]) -> dict[str, Any]:
    """The values, with floats up to rounding."""
    if "values" not in stated:
        return {}
    values = stated["values"].items()
    return {"values": {name: pytest.approx(v) if isinstance(v, float) else v for name, v in values}}


@every(("rule", "case"), cases("silent"))
def test_a_rule_is_silent_after_having_looked(rule: str, case: On) -> None:
    judged = verdict(case)
    assert rule not in {item.id for item in judged.told}
    assert reasons(rule, judged) == []


@every(("rule", "case"), cases("abstains"))
def test_a_rule_without_its_input_says_so(rule: str, case: On) -> None:
    judged = verdict(case)
    assert rule not in {item.id for item in judged.told}
    (reason,) = reasons(rule, judged)
    assert reason == case.says or (case.says is None and reason)


def test_every_rule_has_an_entry_with_a_case_of_each_kind() -> None:
    assert {rule.id for rule in RULES} == set(ENTRIES)
    assert all(all(entry) for entry in ENTRIES.values())
    assert all(0 < rule.confidence <= 1 for rule in RULES)
