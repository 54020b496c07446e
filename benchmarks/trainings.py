"""Short real trainings with known faults for benchmarks/field.py: a tiny model, the Trainer, PEFT and TRL, on CPU.

Each training is seeded and takes seconds. Kept are the `trainer_state.json` that the Trainer wrote (for a resumed run
the recorder's `run.jsonl`), the model's `config.json` if it names classes, and `label.json`. The label lists what an
experienced engineer would say of the run, and what would be false. If a label depends on how the training went (did it
learn? did it diverge?), the held-out loss before and after decides; it is measured outside the log.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from recipes import LEARNT, RECIPES, Recipe, Truth, labels_of
from tiny import LENGTH, VOCABULARY, Rows, base_model, classified, sentences, tokenizer_of_words, with_lora
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

HELD_OUT = 96  # examples of the held-out set that decides the labels
SEEDS = 4  # seeds of each recipe: even ones are for tuning, odd ones are held out
_LOW_WORDS = ("t1", "t2", "t3")  # a completion that begins with one of these is rewarded


class _Poison(TrainerCallback):
    """Turns a weight into NaN at a step, to show what the Trainer's NaN filter then logs."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Spoil one weight."""
        if state.global_step == self.step:
            weight = next(p for p in model.parameters() if p.requires_grad)
            weight.data.fill_(math.nan)


class _Trainer(Trainer):
    """A Trainer with those faults of a recipe that belong to the training step."""

    overflows: frozenset[int] = frozenset()

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the loss. If the recipe has an overflow, the gradient is not finite."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.state.global_step in self.overflows:
            self._scale()
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(math.nan)
        return loss

    def _scale(self) -> None:
        """Make the optimizer skip a step with a non-finite gradient, as torch.amp.GradScaler does."""
        optimizer = self.optimizer
        if optimizer is None:
            return
        if "scaled" in vars(optimizer):
            return
        plain: Callable[..., Any] = optimizer.step

        def step(closure: Any = None) -> None:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            finite = all(bool(torch.isfinite(grad).all()) for grad in grads)
            vars(optimizer)["_is_overflow"] = not finite
            if finite:
                plain(closure)

        vars(optimizer).update(scaled=True, step=step)


def _accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def _data(recipe: Recipe, seed: int) -> tuple[Rows, Rows, Rows]:
    """Return the training rows, the evaluation rows of the log, and the rows that decide the labels."""
    if recipe.kind == "lm":
        train = sentences("new", recipe.examples, seed, recipe.spread)
        other = sentences("new", 2 * HELD_OUT, seed + 10_000)
    else:
        shuffled = recipe.fault == "shuffled"
        train = classified(recipe.classes, recipe.examples, seed, shuffled=shuffled)
        other = classified(recipe.classes, 4 * HELD_OUT, seed + 10_000, shuffled=shuffled)
    half = len(other) // 2
    evaluated = train[:half] if recipe.fault == "leak" else other[:half]
    if recipe.fault == "bad_batch":  # one batch of another kind, in the order the sampler is told to keep
        at = (recipe.steps * 3 // 5) * recipe.batch
        generator = torch.Generator().manual_seed(seed)
        for i in range(at, at + recipe.batch * recipe.every * 3):
            tokens = torch.randint(VOCABULARY, (LENGTH,), generator=generator)
            train[i] = {"input_ids": tokens, "labels": tokens}
    return Rows(train), Rows(evaluated), Rows(other[half:])


def _arguments(recipe: Recipe, seed: int, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        per_device_eval_batch_size=HELD_OUT,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=recipe.lr,
        lr_scheduler_type=recipe.scheduler,
        warmup_steps=recipe.warmup,
        logging_steps=recipe.every,
        logging_first_step=recipe.first_row,
        eval_strategy="steps" if recipe.evals else "no",
        eval_steps=max(1, recipe.steps // recipe.evals) if recipe.evals else None,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=seed,
        train_sampling_strategy="sequential" if recipe.fault == "bad_batch" else "random",
    )


def _loss_of(model: Any, rows: Rows) -> float:
    model.eval()
    with torch.no_grad():
        batch = {name: torch.stack([row[name] for row in rows.rows]) for name in ("input_ids", "labels")}
        loss = float(model(**batch).loss)
    model.train()
    return loss


def train(recipe: Recipe, seed: int, folder: Path) -> Truth:
    """Train, write the log into the folder, and return the held-out loss before and after."""
    set_seed(seed)
    train_rows, evaluated, deciding = _data(recipe, seed)
    model = base_model(recipe.kind, recipe.classes)
    model = with_lora(model, recipe.kind) if recipe.lora else model
    before = _loss_of(model, deciding)
    stale = None
    if recipe.fault == "stale":  # an optimizer that was given copies: nothing it does reaches the model
        copies = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters() if p.requires_grad]
        stale = (torch.optim.AdamW(copies, lr=recipe.lr), None)
    trainer = _Trainer(
        model=model,
        args=_arguments(recipe, seed, folder),
        train_dataset=train_rows,
        eval_dataset=evaluated if recipe.evals else None,
        compute_metrics=_accuracy if recipe.kind == "classes" else None,
        optimizers=stale or (None, None),
    )
    if recipe.fault == "nan":
        trainer.add_callback(_Poison(recipe.steps // 2))
    if recipe.fault == "fp16":
        rng = random.Random(seed)  # noqa: S311  # seeded on purpose
        trainer.overflows = frozenset({0, 1, rng.randint(4, 7), recipe.steps // 2})
    if recipe.fault == "summed":
        trainer.model_accepts_loss_kwargs = False  # so each loss is the mean of its part of the batch ...
        trainer.loss_is_scaled_for_ga = True  # ... and the parts are added up
    trainer.train()
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    if recipe.kind == "classes":
        trainer.model.config.to_json_file(folder / "config.json")
    return Truth(before, _loss_of(trainer.model, deciding))


def resume(recipe: Recipe, seed: int, folder: Path) -> Truth:
    """Train past a checkpoint, resume from it and train to the end, with the recorder, which logs the resumption."""
    from gradience.hf import GradienceCallback  # only here

    set_seed(seed)
    train_rows, _, deciding = _data(recipe, seed)
    args = replace(_arguments(recipe, seed, folder), save_strategy="steps", save_steps=recipe.steps // 2)
    models = [base_model(recipe.kind) for _ in range(2)]
    before = _loss_of(models[0], deciding)
    trainer = Trainer(
        model=models[0],
        args=args,
        train_dataset=train_rows,
        callbacks=[GradienceCallback(), _Stop(recipe.steps * 3 // 4)],
    )
    trainer.train()
    trainer = Trainer(model=models[1], args=args, train_dataset=train_rows, callbacks=[GradienceCallback()])
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{recipe.steps // 2}"))
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return Truth(before, _loss_of(models[1], deciding))


class _Stop(TrainerCallback):
    """Ends the training at a step, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Stop."""
        control.should_training_stop = state.global_step >= self.step


def prefer(recipe: Recipe, seed: int, folder: Path) -> Truth:
    """Train on preferences with TRL's DPO. The truth is the loss in the log's first and last rows."""
    from datasets import Dataset as Table  # only here
    from trl import DPOConfig, DPOTrainer

    set_seed(seed)
    chosen = sentences("new", recipe.examples, seed)
    rejected = sentences("base", recipe.examples, seed + 1)
    half = LENGTH // 2
    words = [" ".join(f"t{int(token)}" for token in row["input_ids"]) for row in (*chosen, *rejected)]
    prompts = [" ".join(text.split()[:half]) for text in words[: recipe.examples]]
    good = [" " + " ".join(text.split()[half:]) for text in words[: recipe.examples]]
    bad = [" " + " ".join(text.split()[half:]) for text in words[recipe.examples :]]
    shared = _arguments(recipe, seed, folder)
    args = DPOConfig(
        **{
            name: getattr(shared, name)
            for name in (
                "output_dir",
                "max_steps",
                "per_device_train_batch_size",
                "learning_rate",
                "lr_scheduler_type",
                "logging_steps",
                "save_strategy",
                "use_cpu",
                "disable_tqdm",
                "seed",
            )
        },
        report_to="none",
        beta=0.1,
        bf16=False,
        gradient_checkpointing=False,
    )
    base_model("lm").save_pretrained(folder / "base")
    trainer = DPOTrainer(
        model=str(folder / "base"),
        args=args,
        train_dataset=Table.from_dict({"prompt": prompts, "chosen": good, "rejected": bad}),
        processing_class=tokenizer_of_words(),
    )
    trainer.train()
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    shutil.rmtree(folder / "base")
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return Truth(losses[0], losses[-1])


def reinforce(recipe: Recipe, seed: int, folder: Path) -> Truth:
    """Train with TRL's GRPO. If completions should be clipped, none can end within the allowed length."""
    from datasets import Dataset as Table  # only here
    from trl import GRPOConfig, GRPOTrainer

    set_seed(seed)
    rows = sentences("new", recipe.examples, seed)
    prompts = [" ".join(f"t{int(token)}" for token in row["input_ids"][:6]) for row in rows]

    def low_first_word(completions: list[str], **_: Any) -> list[float]:
        return [float(text.startswith(_LOW_WORDS)) for text in completions]

    model = base_model("lm")
    args = GRPOConfig(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6 if recipe.fault == "clipped" else 60,
        learning_rate=recipe.lr,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=seed,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=low_first_word,
        args=args,
        train_dataset=Table.from_dict({"prompt": prompts}),
        processing_class=tokenizer_of_words(),
    )
    trainer.train()
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    return Truth(math.nan, math.nan)


def make(name: str, seed: int, folder: Path) -> None:
    """Train one recipe into a folder, with its label."""
    recipe = RECIPES[name]
    rng = random.Random(f"{name} {seed}")  # noqa: S311  # seeded on purpose
    recipe = replace(recipe, lr=recipe.lr * math.exp(rng.uniform(-0.3, 0.3)))
    shutil.rmtree(folder, ignore_errors=True)  # removes the files of an earlier attempt
    folder.mkdir(parents=True)
    how = {"dpo": prefer, "grpo": reinforce}.get(recipe.kind, resume if recipe.fault == "resumed" else train)
    truth = how(recipe, 100 + seed, folder)
    mustnot = labels_of(recipe.mustnot, truth)
    if "ANY_WARNING" in mustnot and "LEARNS?" in recipe.must and not truth.after < LEARNT * truth.before:
        mustnot.remove("ANY_WARNING")  # meant to be healthy, and did not learn: to say so is true
    if "LEARNS?" in recipe.mustnot:  # of a run that was to diverge: false unless it did learn
        mustnot = [x for x in recipe.mustnot if not x.endswith("?")]
        mustnot += ["LEARNS"] if truth.after > truth.before else []
    label = {
        "recipe": name,
        "seed": seed,
        "must": labels_of(recipe.must, truth),
        "mustnot": mustnot,
        "held_out_before": truth.before if math.isfinite(truth.before) else None,
        "held_out_after": truth.after if math.isfinite(truth.after) else None,
    }
    (folder / "label.json").write_text(json.dumps(label, indent=1), encoding="utf-8")


def make_all(out: Path, seeds: int = SEEDS) -> int:
    """Make every training that is not in the folder yet; return how many were made."""
    torch.set_num_threads(1)
    made = 0
    for seed in range(seeds):
        for name in RECIPES:
            folder = out / f"{name}-{seed}"
            if not (folder / "label.json").is_file():
                make(name, seed, folder)
                made += 1
    return made
