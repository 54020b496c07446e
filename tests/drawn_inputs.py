"""Random configurations, audits and data sets, for the rules that read no log.

The verdicts on them are pinned in `golden/numbers_drawn_inputs.json`. After an intended change,
`python tests/drawn_inputs.py` writes the file again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from said import verdict, write

from gradience.rules import judge
from gradience.rules.config import judge_config
from gradience.rules.config.facts import CheckContext
from gradience.rules.data import DATA_RULES
from gradience.rules.weights import health
from gradience.rules.weights.ranks import candidates, disagreements, rank_rules
from gradience.rules.weights.rules import judge_adapter
from gradience.schema.audit import AuditReport
from gradience.schema.document import Coverage
from gradience.schema.events import ConfigSnapshot
from gradience.schema.reports import DataReport

GOLDEN: Final = Path(__file__).parent / "golden" / "numbers_drawn_inputs.json"


def _some(rng: random.Random, chance: float, **choices: list[Any]) -> dict[str, Any]:
    """Some of the fields, each kept with probability `chance`, with a random one of its choices."""
    return {name: rng.choice(values) for name, values in choices.items() if rng.random() < chance}


TASKS: Final = ["sft", "sft", "sst2", "dpo", "orpo", "grpo", "kto", "pretraining"]
TARGETS: Final = [["q_proj", "v_proj"], ["q_proj", "gate_proj"], "all-linear", ["c_attn"], ".*q_proj", ["experts"]]


def config(rng: random.Random) -> list[str]:
    optimizer = _some(
        rng,
        0.95,
        name=["adamw_torch", "adamw_torch", "adamw_torch", "lion", "sgd"],
        lr=[1e-6, 1e-5, 4e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 1e-2, "NaN"],
        weight_decay=[0.0, 0.01, -0.1],
        betas=[[0.9, 0.999], [0.9, 0.99], [0.9, 1.0]],
        eps=[1e-8, 0.0],
    )
    lora = _some(
        rng,
        0.6,
        r=[1, 4, 8, 12, 16, 32, 64, 128, 256, 600],
        alpha=[1.0, 8.0, 16.0, 32.0, 64.0, 256.0, 512.0],
        target_modules=TARGETS,
        dropout=[0.0, 0.1, 1.0],
        bias=["none", "all", "lora_only"],
        use_rslora=[True, False],
        use_dora=[True, False],
        rank_pattern=[{"q_proj": 64}, {"q_proj": 0}, {}],
        alpha_pattern=[{"q_proj": 1.0}, {}],
        peft_type=["LORA", "LORA", "LORA", "IA3"],
        task_type=["CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM"],
        init=["pissa", "olora", "gaussian", "pissa_niter_4"],
        modules_to_save=[["lm_head"], ["classifier"], []],
        extras=[{"target_modules_null": True}, {"trainable_token_indices": [1]}, {"layers_to_transform": [0]}, {}],
    )
    training = _some(
        rng,
        0.5,
        batch_size=[1, 8, 64, 257, 0],
        gradient_accumulation=[1, 4, 33],
        world_size=[1, 8],
        max_steps=[10, 99, 100, 1000],
        epochs=[0.5, 1.0, 3.0, 3.5, 10.0, 20.0],
        dtype=["float32", "bfloat16", "float16"],
        lr_scheduler=["constant", "linear", "cosine", "constant_with_warmup"],
        warmup_steps=[0.0, 0.1, 0.6, 5.0, 60.0],
        warmup_ratio=[0.0, 0.03, 0.5, 0.6, 1.5],
        max_grad_norm=[0.0, 1.0],
        logging_steps=[0.1, 1.0, 10.0, 100.0, 500.0],
        logging_nan_inf_filter=[True, False],
        eval_strategy=["no", "steps", "epoch"],
        save_strategy=["no", "steps", "epoch"],
        save_steps=[0.2, 50.0, 500.0],
        max_length=[128, 2048],
        extras=[
            {"train_examples": 1000},
            {"train_examples": 200_000},
            {"samples_per_step": 300},
            {"autocast_adapter_dtype": False},
            {"secret_keys": ["hub_token"]},
            {},
        ],
    )
    snapshot = {"optimizer": optimizer, "lora": lora, "training": training}
    snapshot["extras"] = {"task": rng.choice(TASKS)} if rng.random() < 0.7 else {}
    around = CheckContext(
        coverage=_coverage(rng) if rng.random() < 0.4 else None,
        output=rng.choice([None, (), ("checkpoint-10",)]),
        unknown_keys=rng.choice([None, (), ("lora_aplha",), ("foo", "learning_rat")]),
        engines=rng.choice([(), (), ("vllm",), ("lorax", "slora"), ("llamacpp", "mlx", "vllm")]),
    )
    given = msgspec.convert(snapshot, ConfigSnapshot)
    found = judge_config(given, transformers=rng.choice(["4.57.1", "5.1.0", "5.24.0", None]), around=around)
    return verdict(found.findings, found.not_run)


def _coverage(rng: random.Random) -> Coverage:
    fields = {"base": "m", "model_type": "llama", "layout": "transformers 5", "layers_total": 8, "modules": 16}
    fields |= {"layers": rng.choice([0, 1, 2, 4, 8])}
    more = _some(
        rng,
        0.4,
        modules=[0, 1, 16],
        unmatched_targets=[["a"], ["a", "b", "c", "d", "e"]],
        refused=[[{"name": "mlp", "reason": "a block"}]],
        added_tokens=[["<x>"], ["<x>", "<y>"]],
        vocabulary=[32_000],
        lora_params=[1000, 10_000_000, 500_000_000],
    )
    return msgspec.convert(fields | more, Coverage)


def audit(rng: random.Random) -> list[str]:
    modules = [_module(rng, place) for place in range(rng.choice([0, 1, 3, 4, 8, 12]))]
    relative = rng.choice([None, None, 5e-5, 0.02, 0.9, 7.0])
    fields: dict[str, Any] = {
        "schema": "gradience.audit/v2",
        "peft_dir": "d",
        "weights_path": "w",
        "format": rng.choice(["peft", "peft", "kohya"]),
        "peft_type": rng.choice([None, "LORA", "LOHA"]),
        "ledger": [{"role": role, "tensors": 1, "params": 5, "bytes": 24, "share": 0.5} for role in _roles(rng)],
        "summary": {
            "total_lora_params": 100,
            "n_layers": len(modules),
            "utilization_mean": rng.choice([None, 0.1, 0.249, 0.3, 0.8]) if modules else None,
            "suggested_r_global_90": rng.choice([None, 2, 8]),
            "update_size": rng.choice([None, 0.5, 3.5]),
        },
        "modules": modules,
        "unmatched_patterns": rng.choice([[], ["a"], ["a", "b", "c", "d"]]),
        "not_analysed": rng.choice([[], [{"name": "x", "reason": "why", "cause": "factor_missing"}]]),
        "health": {"verdict": "trained", "reason": "r"},
    }
    if relative is not None:
        fields["base"] = {
            "path": "b",
            "files": 1,
            "compared": max(0, len(modules) - rng.choice([0, 0, 1])),
            "relative_frobenius": relative,
            "intruder_total": rng.choice([None, 0, 5]),
            "intruder_modules": rng.choice([None, 2]),
            "not_compared": rng.choice([[], [{"name": "m0", "reason": "no weight"}]]),
        }
    report = msgspec.convert(fields, AuditReport)
    whole = health(report.modules, peft_type=report.peft_type, relative_frobenius=relative)
    report = msgspec.structs.replace(report, health=whole)
    alpha, r = rng.choice([(None, None), (8.0, 8), (8.0, 64), (16.0, 8)])
    found = judge_adapter(report, alpha=alpha, r=r, modules_to_save=rng.choice([[], ["classifier"]]))
    ranks = [str(msgspec.to_builtins(each)) for each in (*rank_rules(report.modules), *disagreements(report.modules))]
    costs = [str(msgspec.to_builtins(each)) for each in candidates(report.modules, bytes_per_param=2.0)]
    return [f"{whole.verdict}: {whole.reason}", *verdict(found.findings, found.not_run), *ranks, *costs]


def _roles(rng: random.Random) -> list[str]:
    return rng.choice(
        [[], ["lora_pair"], ["lora_pair", "full_module"], ["bias", "full_module"], ["magnitude", "scale"]]
    )


def _module(rng: random.Random, place: int) -> dict[str, Any]:
    r = rng.choice([2, 4, 8, 8, 16])
    stable = rng.choice([1.0, 1.3, r * 0.5, r * 0.62, r * 0.7])
    energy = sorted(rng.randint(1, r) for _ in range(3))
    state = rng.choice(["ok"] * 9 + ["zero", "non_finite"])
    return {
        "name": f"layers.{place}.q",
        "module_type": "attn",
        "shape": [16, 12],
        "r": r,
        "params": 28 * r,
        "scaling": 2.0,
        "alpha": rng.choice([8.0, 16.0]),
        "config_r": rng.choice([None, None, None, 4]),
        "state": state,
        "spectral_norm": 1.0,
        "frobenius_norm": rng.choice([0.5, 1.5, 3.0]),
        "stable_rank": max(1.0, stable),
        "null_stable_rank": r * 0.7,
        "effective_rank": max(1.0, min(float(r), stable * 1.6)),
        "knee_rank": rng.randint(1, r),
        "b_stable_rank": rng.choice([None, r * 0.5, r * 0.8, r * 0.99]),
        "b_null_stable_rank": r * 0.82,
        "energy_rank_90": energy[0],
        "energy_rank_95": energy[1],
        "energy_rank_99": energy[2],
        "relative_errors": {str(k): round(0.9**k, 4) * (k < r) for k in range(1, 17)},
    }


def data(rng: random.Random) -> list[str]:
    rows = rng.choice([0, 20, 1000, 1000])
    names = [
        "unreadable",
        "unsupervised",
        "all_supervised",
        "cut",
        "answer_cut",
        "answer_lost",
        "end_supervised",
        "end_masked",
        "double_bos",
        "empty_answer",
        "duplicate",
        "replacement",
        "mojibake",
        "label_out_of_range",
    ]
    counts = {name: int(rows * rng.choice([0.001, 0.02, 0.06, 0.15, 0.5, 1.0])) for name in names if rng.random() < 0.3}
    fields: dict[str, Any] = {
        "path": "train.jsonl",
        "format": rng.choice(["messages", "messages", "classification", "tokenised"]),
        "trainer": rng.choice(["sft", "sft", "dpo", "classification"]),
        "rows": rows,
        "rows_read": rows,
        "sequences": rows,
        "whole_rows": rows,
        "tokenizer": rng.choice([None, "tok", "tok"]),
        "template": "the tokenizer",
        "template_marks_answers": rng.choice([None, True, False]),
        "loss": rng.choice(["assistant", "completion", "all", "none"]),
        "max_length": rng.choice([None, 128, 512]),
        "packing": rng.random() < 0.3,
        "pad_is_end": rng.choice([None, True, False]),
        "has_labels": rng.random() < 0.5,
        "end_tokens": ["<|im_end|>"],
        "tokens": {"total": 100_000, "kept": 90_000, "supervised": rng.choice([0, 1000, 40_000, 90_000])},
        "lengths": {"p50": 100, "p95": 200, "p99": 300, "longest": rng.choice([400, 2100, 9000]), "longest_rows": [7]},
        "batching": {"batch_size": 8, "padding_share": rng.choice([None, 0.2, 0.5, 0.8])},
        "seen": {name: {"count": count, "first": [3, 9]} for name, count in counts.items()},
        "answers": {"rows": rng.choice([0, 19, 20, 1000]), "most_common": rng.choice([3, 10, 600])},
        "labels": rng.choice([{}, {"a": 900, "b": 100}, {"a": 1000}, {"a": 12, "b": 7}]),
        "labels_total": rng.choice([0, 1, 2]),
        "num_labels": rng.choice([None, 2, 3]),
    }
    if rng.random() < 0.4:
        exact, near = rng.choice([0, 3, 30]), rng.choice([0, 3, 60])
        fields["overlap"] = {
            "eval_rows": 200,
            "exact": {"count": exact},
            "near": {"count": near},
            "near_judged": rng.random() < 0.7,
        }
    found = judge(DATA_RULES, msgspec.convert(fields, DataReport))
    return verdict(found.findings, found.not_run)


KINDS: Final[dict[str, tuple[Callable[[random.Random], list[str]], int]]] = {
    "config": (config, 140),
    "audit": (audit, 50),
    "data": (data, 70),
}


def all_drawn() -> dict[str, list[str]]:
    """The verdict on each input, by its kind and seed."""
    return {
        f"{kind} {seed}": make(random.Random(f"{kind} {seed}"))  # noqa: S311  # an input repeats itself
        for kind, (make, count) in KINDS.items()
        for seed in range(count)
    }


if __name__ == "__main__":
    write(GOLDEN, all_drawn())
