"""A tiny model, its data and its Trainer, made on the spot; as a program, a run to be killed, broken or shared."""

from __future__ import annotations

import argparse
import os
import signal
import sys

import accelerate.utils.memory
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from gradience.hf import GradienceCallback

WORDS = 64
accelerate.utils.memory.clear_device_cache = lambda **_: None  # a full collection at the end of each training: 0.3 s
torch.set_num_threads(1)  # tiny matrices: threads would only wait for each other


def llama(seed=0, words=None, **lora):
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.1,
    )
    given = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    base = LlamaForCausalLM(config)
    if words is not None:
        base.resize_token_embeddings(words)
    return get_peft_model(base, LoraConfig(**{"task_type": "CAUSAL_LM", **given, **lora}))


def distilbert(seed=0, **lora):
    set_seed(seed)
    config = DistilBertConfig(vocab_size=WORDS, dim=32, hidden_dim=48, n_layers=2, n_heads=2, num_labels=3)
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_lin", "v_lin"], "task_type": "SEQ_CLS"}
    return get_peft_model(DistilBertForSequenceClassification(config), LoraConfig(**{**given, **lora}))


def sequences(n=32, length=12, seed=1, labels=None):
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, WORDS, (length,), generator=draw) for _ in range(n)]
    return [
        {"input_ids": row, "labels": row if labels is None else torch.tensor(i % labels)} for i, row in enumerate(rows)
    ]


def arguments(out, **given):
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    sizes = {"max_steps": 6, "logging_steps": 1, "per_device_train_batch_size": 4}
    return TrainingArguments(str(out), **{**quiet, **sizes, **given})


def trainer(out, *callbacks, model=None, evals=None, cls=Trainer, compute_metrics=None, **given):
    return cls(
        model=llama() if model is None else model,
        args=arguments(out, **given),
        train_dataset=sequences(),
        eval_dataset=evals,
        compute_metrics=compute_metrics,
        callbacks=list(callbacks),
    )


class At(TrainerCallback):
    """Does something once, at the end of a step."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.step = -1
            self.act(kwargs["model"])


def _break(_model):
    raise ValueError("the text of an exception may hold a prompt")


def _kill(_model):
    os.kill(os.getpid(), signal.SIGKILL)


def _interrupt(_model):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
    os.kill(os.getpid(), signal.SIGINT)


def _terminate_in_order(_model):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what a job's script does to leave cleanly
    os.kill(os.getpid(), signal.SIGTERM)


ACTS = {"break": _break, "kill": _kill, "interrupt": _interrupt, "terminate-in-order": _terminate_in_order}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--act", choices=ACTS)
    parser.add_argument("--at", type=int, default=8)
    options = parser.parse_args()
    callbacks = [GradienceCallback()]
    if options.act:
        callbacks.append(At(options.at, ACTS[options.act]))
    given = {"save_strategy": "steps", "save_steps": 5, "max_steps": options.steps}
    given |= {"ddp_backend": "gloo"} if "RANK" in os.environ else {}
    run = trainer(options.out, *callbacks, evals=sequences(8, seed=2), eval_strategy="steps", eval_steps=4, **given)
    run.train()


if __name__ == "__main__":
    main()
