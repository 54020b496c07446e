"""Seven small fine-tunes: one healthy, six broken in a way that is known because it was done on purpose."""

from __future__ import annotations

import torch
from transformers import TrainerCallback


def _finish(trainer):
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return trainer


class _Poison(TrainerCallback):
    """Puts NaN into B at the end of step 20, as an overflow in half precision does."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 20:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.fill_(float("nan"))


def masked_nan(t, out):
    """The Trainer's default filter logs the NaN as a loss of 0."""
    _finish(t.trainer(out, _Poison(), max_steps=40, save_strategy="steps", save_steps=10, learning_rate=1e-3))


def untrained(t, out):
    """Only A is trained: with B = 0 it gets no gradient, and the update stays zero."""
    model = t.llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_A" in name)
    _finish(t.trainer(out, model=model, max_steps=40, save_strategy="steps", save_steps=20, learning_rate=1e-3))


def zero_rate(t, out):
    """A learning rate of 0: every step is taken, and none moves anything."""
    _finish(t.trainer(out, max_steps=40, learning_rate=0.0))


def diverged(t, out):
    """Counting is learnt at a good rate until step 60; then the rate is a thousand times as high."""
    data = counting(t)
    model = t.llama(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["v_proj", "o_proj", "lm_head"])
    often = {"save_strategy": "steps", "save_steps": 20, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    arguments = t.arguments(out, max_steps=120, learning_rate=1e-3, per_device_train_batch_size=16, **often)
    _finish(t.Trainer(model=model, args=arguments, train_dataset=data, callbacks=[_Faster()]))


class _Faster(TrainerCallback):
    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step == 60:
            for group in optimizer.param_groups:
                group["lr"] *= 1000.0


def head_only(t, out):
    """The classifier head learns; the adapter, switched off by mistake, does not."""
    model = t.distilbert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" not in name and "classifier" in name)
    data = labelled(t, 32, seed=1, noise=0.0)
    made = {"max_steps": 120, "learning_rate": 2e-2, "per_device_train_batch_size": 16}
    _finish(t.Trainer(model=model, args=t.arguments(out, **made), train_dataset=data))


def labelled(t, n, seed, noise):
    """Sequences whose first token decides the class, save where a label is drawn anew."""
    draw = torch.Generator().manual_seed(seed)
    rows = t.sequences(n, seed=seed)
    for row in rows:
        told, other = min(int(row["input_ids"][0]) // 22, 2), int(torch.randint(0, 3, (1,), generator=draw))
        row["labels"] = torch.tensor(other if torch.rand(1, generator=draw) < noise else told)
    return rows


def _accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def overfit(t, out):
    """32 examples with noisy labels, seen 30 times; 96 held out."""
    model = t.distilbert(r=8, lora_alpha=16, target_modules=["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"])
    often = {"eval_strategy": "steps", "eval_steps": 10, "save_strategy": "steps", "save_steps": 20, "logging_steps": 2}
    arguments = t.arguments(out, max_steps=120, learning_rate=5e-3, per_device_train_batch_size=8, **often)
    _finish(
        t.Trainer(
            model=model,
            args=arguments,
            train_dataset=labelled(t, 32, seed=1, noise=0.4),
            eval_dataset=labelled(t, 96, seed=2, noise=0.4),
            compute_metrics=_accuracy,
        )
    )


def counting(t):
    """Sequences that count upwards, beginning again at 0: easy to learn."""
    first = torch.randint(0, t.WORDS, (256, 1), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": row, "labels": row} for row in (first + torch.arange(12)) % t.WORDS]


def healthy(t, out):
    """Counting upwards from even numbers is learnt, and the loss from odd ones falls with it."""
    even, odd = ([row for row in counting(t) if row["input_ids"][0] % 2 == rest] for rest in (0, 1))
    model = t.llama(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear")
    often = {"eval_strategy": "steps", "eval_steps": 20, "save_strategy": "steps", "save_steps": 50}
    arguments = t.arguments(out, max_steps=100, learning_rate=1e-3, per_device_train_batch_size=16, **often)
    callback = t.GradienceCallback(task_profile="generation")
    _finish(t.Trainer(model=model, args=arguments, train_dataset=even, eval_dataset=odd[:64], callbacks=[callback]))
