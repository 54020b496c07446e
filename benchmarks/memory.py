"""Memory foretold against memory measured: PEFT's own comparison on one GPU, and real steps on this CPU.

    python benchmarks/memory.py table FOLDER BASE   # runs of PEFT's comparison; BASE holds the config.json of its model
    python benchmarks/memory.py steps               # eight small models in fifteen settings, each step in a child
    python benchmarks/memory.py objectives [WORD]   # TRL's trainers on small models, or the cases with the word

Each prints a row per run and the report of two halves: the one that may be looked at while the code changes, and the
other. The truth of a step is the process's peak less what it held before the model was made.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import json
import math
import os
import statistics
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import datasets
import peft
import tokenizers
import torch
import transformers
from transformers.optimization import Adafactor

from gradience.models.cost import Follower

NEAR = {"table": 0.07, "steps": 0.10, "objectives": 0.10}
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 8000}
LLAMA = {**SMALL, "intermediate_size": 704, "num_key_value_heads": 2, "tie_word_embeddings": True}
GPT2 = {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 8000, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
MODELS: dict[str, tuple[bool, dict[str, Any], list[str]]] = {  # may it be looked at; its config; the adapter's targets
    "llama": (True, LLAMA, ["q_proj", "v_proj", "down_proj"]),
    "gpt2": (True, GPT2, ["c_attn", "c_proj"]),
    "qwen2": (False, LLAMA, ["q_proj", "v_proj"]),
    "bert": (False, {**SMALL, "intermediate_size": 1024, "hidden_dropout_prob": 0.1}, ["query", "value"]),
    "gemma2": (False, {**LLAMA, "head_dim": 64}, ["q_proj", "v_proj"]),
    "opt": (False, {**SMALL, "ffn_dim": 1024, "word_embed_proj_dim": 256, "dropout": 0.0}, ["q_proj", "v_proj"]),
    "bloom": (False, {"hidden_size": 256, "n_layer": 4, "n_head": 4, "vocab_size": 8000}, ["query_key_value"]),
    "mpt": (False, {"d_model": 256, "n_layers": 4, "n_heads": 4, "vocab_size": 8000}, ["Wqkv", "down_proj"]),
}
HEADS = {"bert": ("SEQ_CLS", "BertForSequenceClassification")}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"checkpointing": True},
    "batch 3": {"batch": 3},
    "length 128": {"length": 128},
    "bfloat16": {"dtype": "bfloat16"},
    "autocast": {"autocast": "bfloat16"},
    "bfloat16, autocast": {"dtype": "bfloat16", "autocast": "bfloat16"},
    "eager": {"attention": "eager"},
    "dropout": {"lora_dropout": 0.1},
    "packed": {"batch": 1, "length": 1024, "padded": False},
    "dora": {"use_dora": True},
    "ia3": {"peft_type": "IA3"},
    "full, sgd": {"peft_type": None, "optimizer": "sgd"},
    "full, adafactor": {"peft_type": None, "optimizer": "adafactor"},
    "full, adamw, accumulating": {"peft_type": None, "accumulates": True},
}
DEEPER = {"gpt2": {"n_layer": 8}, **{name: {"num_hidden_layers": 8} for name in ("llama", "qwen2", "gemma2")}}
HEADED = {"llama": "LlamaFor", "qwen2": "Qwen2For", "gemma2": "Gemma2For", "gpt2": "GPT2For"}
FEW = {"batch": 2, "length": 32, "completion": 8, "generated": 2}
FULL: dict[str, Any] = {"peft_type": None, "reference": "model"}
OFF: dict[str, Any] = {"reference": "adapter"}
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {  # the model, and what differs from DPO of 4 pairs of 256 tokens
    "dpo, reference by adapter off": ("llama", {"objective": "dpo", **OFF}),
    "dpo, no reference": ("llama", {"objective": "dpo"}),
    "dpo, full": ("llama", {"objective": "dpo", **FULL}),
    "dpo, checkpointing": ("llama", {"objective": "dpo", **OFF, "checkpointing": True, "length": 384}),
    "dpo, gpt2, length 128": ("gpt2", {"objective": "dpo", **OFF, "length": 128}),
    "dpo, autocast": ("llama", {"objective": "dpo", **OFF, "autocast": "bfloat16"}),
    "dpo, accumulating": ("qwen2", {"objective": "dpo", **FULL, "batch": 2, "accumulates": True}),
    "dpo, gemma2": ("gemma2", {"objective": "dpo", **OFF}),
    "kto": ("llama", {"objective": "kto", **OFF, "batch": 8}),
    "kto, full": ("qwen2", {"objective": "kto", **FULL, "batch": 6}),
    "kto, checkpointing": ("llama", {"objective": "kto", **OFF, "batch": 8, "checkpointing": True}),
    "orpo": ("llama", {"objective": "orpo"}),
    "orpo, full": ("qwen2", {"objective": "orpo", "peft_type": None, "batch": 3}),
    "orpo, checkpointing": ("llama", {"objective": "orpo", "checkpointing": True}),
    "reward": ("llama", {"objective": "reward"}),
    "reward, full": ("qwen2", {"objective": "reward", "peft_type": None, "length": 384}),
    "reward, checkpointing": ("llama", {"objective": "reward", "checkpointing": True, "batch": 8}),
    "grpo": ("llama", {"objective": "rl", "batch": 8, "completion": 192, "generated": 8}),
    "grpo, reference": ("llama", {"objective": "rl", **OFF, "batch": 8, "completion": 192, "generated": 16}),
    "grpo, full": ("qwen2", {"objective": "rl", **FULL, "batch": 4, "completion": 128, "generated": 4}),
    "grpo, checkpointing": (
        "llama",
        {"objective": "rl", "batch": 8, "checkpointing": True, "completion": 240, "generated": 64},
    ),
    "grpo, gemma2": ("gemma2", {"objective": "rl", "batch": 8, "completion": 192, "generated": 8}),
    "rloo": ("llama", {"objective": "rl", "rloo": True, **OFF, "batch": 8, "completion": 192, "generated": 8}),
    "rloo, full": ("qwen2", {"objective": "rl", "rloo": True, **FULL, "batch": 6, "completion": 64, "generated": 6}),
}
OF_ADAPTER = {"lora_dropout", "use_dora", "peft_type"}


class Row(NamedTuple):
    """One run: its kind, whether it may be looked at, bytes foretold and measured."""

    name: str
    seen: bool
    foretold: int
    measured: int

    @property
    def ratio(self) -> float:
        """Foretold over measured."""
        return self.foretold / self.measured


def table(folder: Path, base: Path) -> list[Row]:
    """The language models of PEFT's comparison."""
    rows = []
    for path in sorted(folder.glob("MetaMathQA__*.json")):
        run = json.loads(path.read_text())
        adapter, settings = run["peft_config"] or {}, run["train_config"]
        kind = adapter.get("peft_type") or "full"
        seen = int(hashlib.sha256(kind.upper().encode()).hexdigest()[0], 16) % 2 == 0
        step = {
            "base": str(base),
            "adapter": adapter,
            "task": adapter.get("task_type") or "",
            "batch": settings["batch_size"],
            "length": settings["max_seq_length"],
            "checkpointing": settings["use_gc"],
            "optimizer": settings["optimizer_type"],
        }
        row = told(path.stem.removeprefix("MetaMathQA__"), seen=seen, step=step)
        if row is not None:
            rows.append(row._replace(measured=run["measured"]["accelerator_memory_max"]))
    return rows


def told(name: str, *, seen: bool, step: dict[str, Any]) -> Row | None:
    """A row without its measurement; None, said, where a step cannot be followed."""
    try:
        return Row(name, seen, sum(Follower().follow(step)[0].values()), 0)
    except Exception as error:  # noqa: BLE001  # of any library; the row says it is unknown
        print(f"{name:<50} unknown: {type(error).__name__}", flush=True)
        return None


def steps() -> list[Row]:
    """Real steps on this CPU, each in a fork with a heap that gives back what is freed."""
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: each tensor is a mapping of its own
    rows = []
    with TemporaryDirectory() as place:
        for name, (seen, config, targets) in MODELS.items():
            base = Path(place) / name
            task, head = HEADS.get(name, ("CAUSAL_LM", ""))
            made = transformers.AutoConfig.for_model(name, **config, architectures=[head] if head else None)
            made.save_pretrained(base)
            for words, changes in SETTINGS.items():
                step = stepped(base, task, targets, changes)
                row = told(f"{name}, {words}", seen=seen, step=step)
                if row is not None:
                    rows.append(row._replace(measured=measured(step, train)))
                    print(f"{row.name:<50} {rows[-1].ratio:.3f}  {rows[-1].measured >> 20} MiB", flush=True)
    return rows


def objectives(word: str) -> list[Row]:
    """TRL's own trainers on this CPU, which fold tiles of the logits without Triton."""
    ctypes.CDLL(None).mallopt(-3, 1 << 16)
    rows = []
    with TemporaryDirectory() as place:
        for number, (name, (model, changes)) in enumerate(OBJECTIVES.items()):
            if word not in name:
                continue
            base = Path(place) / str(number)
            _, config, targets = MODELS[model]
            kind = transformers.AutoConfig.for_model(
                model, **{**config, **DEEPER[model]}, pad_token_id=0, eos_token_id=1
            )
            head = HEADED[model] + ("SequenceClassification" if changes["objective"] == "reward" else "CausalLM")
            head = head.replace("GPT2ForCausalLM", "GPT2LMHeadModel")
            kind.num_labels = 1 if changes["objective"] == "reward" else 2
            kind.architectures = [head]
            kind.save_pretrained(base)
            task = "SEQ_CLS" if changes["objective"] == "reward" else "CAUSAL_LM"
            step = {**stepped(base, task, targets, {"batch": 4, **changes}), "dropout": changes["objective"] == "rl"}
            rloo = step.pop("rloo", False)
            row = told(name, seen=model == "llama", step=step)
            if row is not None:
                rows.append(row._replace(measured=measured({**step, "rloo": rloo}, train_by_trl)))
                print(f"{row.name:<50} {rows[-1].ratio:.3f}  {rows[-1].measured >> 20} MiB", flush=True)
    return rows


def tokenizer() -> Any:
    """Words of one token each."""
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    words = {word: n for n, word in enumerate([*names.values(), *(f"w{n}" for n in range(3, 8000))])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=names["unk_token"]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def train_by_trl(step: dict[str, Any]) -> None:
    """Two optimizer steps of a trainer of TRL; the first row of a batch is shorter than the others."""
    if not (Path(step["base"]) / "model.safetensors").exists():  # in the child: threads do not outlive a fork
        config = transformers.AutoConfig.from_pretrained(step["base"])
        getattr(transformers, config.architectures[0])(config).save_pretrained(step["base"])
    objective, batch, length = step["objective"], step["batch"], step["length"]
    name = {"dpo": "DPO", "kto": "KTO", "orpo": "ORPO", "reward": "Reward"}.get(
        objective, "RLOO" if step["rloo"] else "GRPO"
    )
    place = importlib.import_module("trl.experimental.orpo" if name == "ORPO" else "trl")
    turns = 2 if step.get("accumulates") else 1
    shared = {
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": turns, "max_steps": 2, "use_cpu": True,
        "bf16": "autocast" in step, "gradient_checkpointing": bool(step.get("checkpointing")), "report_to": "none",
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "output_dir": step["base"] + "-out",
        "optim": "adamw_torch", "dataloader_pin_memory": False,
    }  # fmt: skip
    completion = step.get("completion") or length - 17  # the trainers add a token for the end
    own: dict[str, Any] = {"max_length": length}
    if objective in {"dpo", "kto"}:
        own["precompute_ref_log_probs"] = not step.get("reference")
    if objective == "rl":
        turns = step["generated"] // batch
        own = {"num_generations": 2, "max_completion_length": completion, "beta": 0.1 if step.get("reference") else 0.0}
        own |= {"steps_per_generation": turns, "generation_kwargs": {"min_new_tokens": completion}}

    def words(n: int) -> str:
        return " ".join(f"w{3 + 7 * at % 7000}" for at in range(n))

    rows: list[dict[str, Any]] = []
    for at in range(batch * 2 * turns):
        prompt, answer = (
            words(length - completion - (objective != "rl")),
            " " + words(completion // (1 if at % batch else 2)),
        )
        rows.append(
            {"prompt": prompt, "chosen": answer, "rejected": answer}
            if objective in {"dpo", "orpo"}
            else {"prompt": prompt, "completion": answer, "label": bool(at % 2)}
            if objective == "kto"
            else {"chosen": prompt + answer, "rejected": prompt + answer}
            if objective == "reward"
            else {"prompt": prompt}
        )
    given = {"peft_config": peft.PeftConfig.from_peft_type(**step["adapter"])} if step["adapter"] else {}
    if name != "ORPO":
        own["model_init_kwargs"] = {"dtype": "float32"}
    if objective == "rl":
        given["reward_funcs"] = lambda completions, **_: [float(len(one) % 7) for one in completions]
    config = getattr(place, f"{name}Config")(**shared, **own)
    model = transformers.AutoModelForCausalLM.from_pretrained(step["base"]) if objective == "orpo" else step["base"]
    getattr(place, f"{name}Trainer")(
        model=model, args=config, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(), **given,
    ).train()  # fmt: skip


def stepped(base: Path, task: str, targets: list[str], changes: dict[str, Any]) -> dict[str, Any]:
    adapter = {"peft_type": "LORA", "task_type": task, "target_modules": targets}
    adapter |= {name: value for name, value in changes.items() if name in OF_ADAPTER}
    if adapter["peft_type"] == "IA3":
        adapter["feedforward_modules"] = [target for target in targets if "down" in target]
    rest = {name: value for name, value in changes.items() if name not in OF_ADAPTER}
    step = {"base": str(base), "task": task, "batch": 6, "length": 256, "dtype": "float32", "device": "cpu"}
    return {**step, "adapter": adapter if adapter["peft_type"] else {}, **rest}


def measured(step: dict[str, Any], train: Callable[[dict[str, Any]], None]) -> int:
    """The peak of a process that makes the model and steps twice, less what it held before."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            few = FEW if train is train_by_trl else {"batch": 2, "length": 16}
            train({**step, **few})  # the libraries' code is in memory after it
            gc.collect()
            idle = held("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
            train(step)
            os.write(theirs, str(held("VmHWM") - idle).encode())
        except Exception:  # noqa: BLE001  # of any library
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        found = answer.read()
    os.waitpid(child, 0)
    return int(found)


def held(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def train(step: dict[str, Any]) -> None:
    """Two optimizer steps as the Trainer makes them."""
    config = transformers.AutoConfig.from_pretrained(step["base"])
    kinds = {"SEQ_CLS": transformers.AutoModelForSequenceClassification}
    kind = kinds.get(step["task"], transformers.AutoModelForCausalLM)
    model = kind.from_config(config, dtype=getattr(torch, step["dtype"]), attn_implementation=step.get("attention"))
    adapted = (
        peft.get_peft_model(model, peft.PeftConfig.from_peft_type(**step["adapter"])) if step["adapter"] else model
    )
    if step.get("checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    adapted.train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    name = step.get("optimizer", "adamw")
    optimizer = {
        "sgd": lambda: torch.optim.SGD(trained, lr=1e-4),
        "adafactor": lambda: Adafactor(trained, lr=1e-4, relative_step=False, scale_parameter=False),
        "adamw": lambda: torch.optim.AdamW(trained, lr=1e-4),
    }[name]()
    shape = (step["batch"], step["length"])
    ids = torch.randint(3, config.vocab_size, shape)
    batch = {"input_ids": ids, "labels": ids[:, 0] % 2 if step["task"] == "SEQ_CLS" else ids}
    if step.get("padded", True):
        batch["attention_mask"] = torch.ones(shape, dtype=torch.long)
        batch["attention_mask"][0, step["length"] // 2 :] = 0
    low = torch.autocast("cpu", torch.bfloat16, enabled="autocast" in step)
    for _ in range(2):
        for _ in range(2 if step.get("accumulates") else 1):
            with low:
                loss = adapted(**batch).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def report(rows: list[Row], near: float) -> None:
    """How near each half is, and how well it orders the runs."""
    for words, half in (("looked at", [r for r in rows if r.seen]), ("unseen", [r for r in rows if not r.seen])):
        if not half:
            continue
        ratios = [row.ratio for row in half]
        close = sum(abs(ratio - 1) <= near for ratio in ratios)
        pairs = [(r.foretold, r.measured) for r in half]
        along = statistics.correlation(*zip(*pairs, strict=True)) if len(pairs) > 1 else math.nan
        print(
            f"{words}: {close} of {len(half)} within {near:.0%}; median {statistics.median(ratios):.3f}, "
            f"{min(ratios):.3f} to {max(ratios):.3f}; correlation {along:.3f}"
        )


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    what = sys.argv[1]
    if what == "table":
        rows = table(Path(sys.argv[2]), Path(sys.argv[3]))
        for row in rows:
            print(f"{row.name:<50} {row.ratio:.3f}  {row.measured / 2**30:.1f} GiB", flush=True)
    else:
        rows = steps() if what == "steps" else objectives("".join(sys.argv[2:]))
    report(rows, NEAR[what])


if __name__ == "__main__":
    main()
