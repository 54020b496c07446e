"""Wiring faults put into tiny trainings of five stacks, and sound set-ups: what is named, by what cause, and when.

    python benchmarks/wiring_faults.py            # the faults, then the sound set-ups: some three minutes
    python benchmarks/wiring_faults.py --only dpo

A fault counts as named if a finding of `monitor` has the id of its cause, and as named live if an alert with that id
was written before the last step. A sound set-up is quiet if neither the wiring's rules nor LRS109 spoke of it, live or
in `monitor`.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from transformers import Trainer
from wired import (
    BATCH,
    LENGTH,
    PLAN,
    SAVED,
    STEPS,
    WORDS,
    accelerated,
    adamw,
    base,
    bert,
    fit,
    frozen,
    live,
    llama,
    loader,
    loop,
    lora,
    module,
    quiet,
    rows,
    trainer,
    trl,
    unfrozen,
    unheard,
)  # fmt: skip

from gradience import monitor_run
from gradience.events import Alert, TrainStep, Wiring
from gradience.recording import TelemetryWriter
from gradience.telemetry import TelemetryReader


class Case(NamedTuple):
    """A training with a fault, and the rules that name its cause; or a sound one, and none."""

    name: str
    stack: str
    rules: tuple[str, ...]
    train: Callable[[Path], Any]


CASES: list[Case] = []


def case(stack: str, *rules: str) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Enter a training."""

    def enter(train: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CASES.append(Case(train.__name__, stack, rules, train))
        return train

    return enter


# --- the base trains -------------------------------------------------------------------------------------------------


@case("trl", "WIR170")
def sft_with_its_base_unfrozen(out: Path) -> None:
    trl(out, "SFT", unfrozen(llama()))


@case("accelerate", "WIR170")
def accelerate_with_its_base_unfrozen(out: Path) -> None:
    model = unfrozen(llama())
    accelerated(out, model, adamw(model))


@case("lightning", "WIR170")
def lightning_with_its_base_unfrozen(out: Path) -> None:
    def configure(self: Any) -> Any:
        self.model.requires_grad_(True)  # noqa: FBT003  # torch's own
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    fit(out, module(llama(), configure_optimizers=configure))


@case("plain", "WIR170")
def the_last_layer_unfrozen(out: Path) -> None:
    model = unfrozen(llama(), "layers.1.mlp")
    loop(out, model, adamw(model))


@case("resume", "WIR170")
def a_base_unfrozen_by_the_resume_of_a_loop(out: Path) -> None:
    run_id, state = _half(out)
    model = llama()
    model.load_state_dict(state[0])
    unfrozen(model)
    loop(out, model, adamw(model), begin=SAVED, run_id=run_id)


# --- the adapter is frozen -------------------------------------------------------------------------------------------


@case("lightning", "WIR171")
def an_adapter_loaded_for_inference_beside_a_head(out: Path) -> None:
    llama().save_pretrained(out / "a")

    def made() -> Any:
        wrapped = module(PeftModel.from_pretrained(base(), out / "a"), training_step=_through_a_head)
        wrapped.own = nn.Linear(24, 5)
        return wrapped

    fit(out, made())


def _through_a_head(self: Any, batch: Any, _index: int) -> Any:
    hidden = self.model.base_model.model.model(batch["input_ids"]).last_hidden_state
    return nn.functional.cross_entropy(self.own(hidden[:, -1]), batch["input_ids"][:, 0] % 5)


@case("trainer", "WIR171")
def a_second_adapter_that_is_frozen_is_active(out: Path) -> None:
    model = bert()
    model.save_pretrained(out / "a")
    model.load_adapter(out / "a", "second")
    model.base_model.set_adapter("second", inference_mode=True)
    unfrozen(model, "LayerNorm")
    trainer(out, model, data=rows(classes=3))


@case("plain", "WIR171")
def an_adapter_switched_off_while_norms_train(out: Path) -> None:
    model = unfrozen(llama(), "norm")
    model.base_model.disable_adapter_layers()
    loop(out, model, adamw(model))


@case("accelerate", "WIR171", "WIR172")
def half_of_the_adapter_frozen_by_a_pattern(out: Path) -> None:
    model = frozen(llama(), "q_proj.lora_")
    accelerated(out, model, adamw(model))


# --- the optimizer ---------------------------------------------------------------------------------------------------


@case("accelerate", "WIR172")
def an_optimizer_made_before_the_adapter(out: Path) -> None:
    model = base()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    accelerated(out, get_peft_model(model, lora()), optimizer)


@case("lightning", "WIR172")
def an_optimizer_of_the_head_alone(out: Path) -> None:
    made = module(llama(), training_step=_through_a_head, configure_optimizers=lambda self: adamw(self.own))
    made.own = nn.Linear(24, 5)
    fit(out, made)


@case("trl", "WIR172")
def sft_with_an_optimizer_of_a_copy(out: Path) -> None:
    model = llama()
    trl(out, "SFT", model, optimizers=(adamw(copy.deepcopy(model)), None))


@case("plain", "WIR172")
def an_optimizer_of_the_model_before_its_copy(out: Path) -> None:
    model = llama()
    optimizer = adamw(model)
    loop(out, copy.deepcopy(model), optimizer)


@case("plain", "WIR172")
def a_head_of_modules_to_save_left_out_by_a_pattern(out: Path) -> None:
    model = bert()
    held = [tensor for name, tensor in model.named_parameters() if "lora_" in name]
    loop(out, model, torch.optim.AdamW(held, lr=1e-3), data=loader(rows(classes=3)))


@case("trainer", "WIR172")
def an_optimizer_of_half_of_the_adapter(out: Path) -> None:
    model = llama()
    held = [tensor for name, tensor in model.named_parameters() if "lora_B" in name]
    trainer(out, model, optimizers=(torch.optim.AdamW(held, lr=1e-3), None))


@case("trl", "WIR172")
def dpo_with_an_optimizer_of_the_reference(out: Path) -> None:
    reference = base()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3)
    trl(out, "DPO", llama(), optimizers=(optimizer, None))


# --- adapted twice, merged, switched off -----------------------------------------------------------------------------


@case("lightning", "WIR174")
def lightning_around_an_adapted_model(out: Path) -> None:
    fit(out, module(get_peft_model(llama(), lora(target_modules=["k_proj"]))))


@case("resume", "WIR174")
def wrapped_once_more_at_the_resume(out: Path) -> None:
    run_id, state = _half(out)
    inner = llama()
    inner.load_state_dict(state[0])
    model = get_peft_model(inner, lora())
    loop(out, model, adamw(model), begin=SAVED, run_id=run_id)


@case("plain", "WIR174")
def merged_for_an_evaluation_and_left_so(out: Path) -> None:
    model = llama()

    def merge(step: int) -> None:
        if step == 3:  # an evaluation early on
            model.merge_adapter()

    loop(out, model, adamw(model), after=merge)


@case("trainer", "WIR174")
def merged_before_the_training(out: Path) -> None:
    model = llama()
    model.merge_adapter()
    trainer(out, model)


@case("plain", "WIR171", "WIR173")
def switched_off_for_an_evaluation_and_left_so(out: Path) -> None:
    model = unfrozen(llama(), "norm")

    def off(step: int) -> None:
        if step == 3:  # an evaluation early on
            model.base_model.disable_adapter_layers()

    loop(out, model, adamw(model), after=off)


# --- no gradient -----------------------------------------------------------------------------------------------------


@case("lightning", "WIR173")
def an_encoder_under_no_grad(out: Path) -> None:
    def step(self: Any, batch: Any, _index: int) -> Any:
        with torch.no_grad():
            hidden = self.model.base_model.model.model(batch["input_ids"]).last_hidden_state
        return nn.functional.cross_entropy(self.own(hidden[:, -1]), batch["input_ids"][:, 0] % 5)

    made = module(llama(), training_step=step)
    made.own = nn.Linear(24, 5)
    fit(out, made)


@case("accelerate", "WIR173")
def a_target_that_the_forward_pass_leaves_out(out: Path) -> None:
    model = _with_a_spare()
    accelerated(out, model, adamw(model))


def _with_a_spare() -> nn.Module:
    inner = base()
    inner.spare = nn.Linear(24, 24)
    return get_peft_model(inner, lora(target_modules=["q_proj", "v_proj", "spare"]))


@case("trl", "WIR173")
def sft_cut_between_its_layers(out: Path) -> None:
    model = llama()
    model.base_model.model.model.layers[0].register_forward_hook(_cut)
    trl(out, "SFT", model)


def _cut(_module: Any, _args: Any, result: Any) -> Any:
    return result.detach() if isinstance(result, torch.Tensor) else (result[0].detach(), *result[1:])


@case("trainer", "WIR173", "WIR181")
def recomputed_with_inputs_that_need_no_gradient(out: Path) -> None:
    model = llama()
    model.enable_input_require_grads = lambda *_: None
    model.base_model.model.enable_input_require_grads = lambda *_: None
    arguments = {"gradient_checkpointing_kwargs": {"use_reentrant": True}, "gradient_checkpointing": True}
    trainer(out, model, **arguments)


@case("accelerate", "WIR181", "WIR173")
def accelerate_recomputing_without_gradients_beside_a_trained_norm(out: Path) -> None:
    model = unfrozen(llama(), "model.norm")
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": True})
    model.base_model.model.disable_input_require_grads()
    accelerated(out, model, adamw(model))


# --- saves -----------------------------------------------------------------------------------------------------------


@case("accelerate", "WIR179")
def saved_empty_by_a_filter_on_names(out: Path) -> None:
    model = llama()
    nothing = {name: t for name, t in get_peft_model_state_dict(model).items() if "default" in name}
    accelerated(out, model, adamw(model), save=lambda to: save_file(nothing, to / "adapter_model.safetensors"))


@case("plain", "WIR179")
def saved_as_tensors_without_elements(out: Path) -> None:
    model = llama()
    empty = {name: torch.zeros(0) for name in get_peft_model_state_dict(model)}
    loop(out, model, adamw(model), save=lambda to: save_file(empty, to / "adapter_model.safetensors"))


@case("trainer", "WIR179")
def only_a_part_of_the_adapter_saved(out: Path) -> None:
    class Partial(Trainer):
        def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:  # noqa: ARG002  # theirs
            state = self.model.state_dict()
            super()._save(output_dir, {name: t for name, t in state.items() if "layers.1" not in name})

    trainer(out, llama(), cls=Partial)


# --- resumes ---------------------------------------------------------------------------------------------------------


def _half(out: Path, **given: Any) -> tuple[str, tuple[Any, Any]]:
    """Train a loop to its save; return the run's id and the states of model and optimizer."""
    model = llama()
    optimizer = adamw(model)
    run_id = loop(out, model, optimizer, steps=SAVED, **given)
    return run_id, copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def _go_on(out: Path, *, weights: bool = True, state: bool = True, seed: int = 0, **given: Any) -> None:
    run_id, kept = _half(out)
    model = llama(seed)
    if weights:
        model.load_state_dict(kept[0])
    optimizer = adamw(model)
    if state:
        optimizer.load_state_dict(kept[1])
    loop(out, model, optimizer, begin=SAVED, run_id=run_id, **given)


@case("resume", "WIR175")
def keys_of_another_prefix_loaded_not_strictly(out: Path) -> None:
    run_id, kept = _half(out)
    model = llama()
    model.load_state_dict({f"model.{name}": tensor for name, tensor in kept[0].items()}, strict=False)
    optimizer = adamw(model)
    optimizer.load_state_dict(kept[1])
    loop(out, model, optimizer, begin=SAVED, run_id=run_id)


@case("resume", "WIR175")
def lightning_resumed_without_the_adapter(out: Path) -> None:
    fit(out, module(llama()))

    def forget(_self: Any, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: torch.zeros_like(t) if "lora_B" in name else t for name, t in kept.items()}

    fit(out, module(llama(), on_load_checkpoint=forget), resume=SAVED, max_steps=20)


@case("resume", "WIR175")
def sft_resumed_over_another_base(out: Path) -> None:
    trl(out, "SFT", llama())
    trl(out, "SFT", llama(seed=4), resume=SAVED, max_steps=20)


@case("resume", "WIR175")
def a_trainer_resumed_from_an_edited_file(out: Path) -> None:
    trainer(out, llama())
    file = out / f"checkpoint-{SAVED}" / "adapter_model.safetensors"
    save_file({name: tensor * (1.5 if "layers.0" in name else 1) for name, tensor in load_file(file).items()}, file)
    trainer(out, llama(), resume=SAVED, max_steps=20)


@case("resume", "WIR176")
def accelerate_resumed_with_a_new_optimizer(out: Path) -> None:
    model = llama()
    run_id = accelerated(out, model, adamw(model), steps=SAVED)
    accelerated(out, model, adamw(model), begin=SAVED, run_id=run_id)


@case("resume", "WIR176")
def lightning_resumed_with_a_new_optimizer(out: Path) -> None:
    fit(out, module(llama()))

    def forget(_self: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["optimizer_states"] = [{**s, "state": {}} for s in checkpoint["optimizer_states"]]

    fit(out, module(llama(), on_load_checkpoint=forget), resume=SAVED, max_steps=20)


@case("resume", "WIR176")
def dpo_resumed_with_a_new_optimizer(out: Path) -> None:
    trl(out, "DPO", llama(), save_only_model=True)
    trl(out, "DPO", llama(), resume=SAVED, max_steps=20)


@case("resume", "WIR177")
def accelerate_resumed_with_a_larger_batch(out: Path) -> None:
    model = llama()
    optimizer = adamw(model)
    run_id = accelerated(out, model, optimizer, steps=SAVED)
    accelerated(out, model, optimizer, begin=SAVED, run_id=run_id, data=loader(size=2 * BATCH))


@case("resume", "WIR177")
def sft_resumed_on_fewer_rows(out: Path) -> None:
    trl(out, "SFT", llama())
    import wired

    full = wired.texts
    wired.texts = lambda *names, **_: full(*names, count=40)
    try:
        trl(out, "SFT", llama(), resume=SAVED, max_steps=20)
    finally:
        wired.texts = full


@case("resume", "WIR177")
def a_loop_resumed_with_another_shuffle(out: Path) -> None:
    _go_on(out, data=loader(seed=9))


@case("resume", "WIR177")
def a_loop_resumed_at_the_beginning_of_its_data(out: Path) -> None:
    _go_on(out, data=loader())


@case("resume", "WIR177")
def lightning_resumed_within_an_epoch_without_a_stateful_loader(out: Path) -> None:
    fit(out, module(llama()))
    fit(out, module(llama()), resume=SAVED, max_steps=20)


@case("resume", "WIR177")
def lightning_resumed_with_more_accumulation(out: Path) -> None:
    fit(out, module(llama()))
    fit(out, module(llama()), resume=SAVED, max_steps=20, accumulate_grad_batches=2)


def _cosine(optimizer: Any) -> Any:
    return CosineAnnealingLR(optimizer, 40)


@case("resume", "WIR178")
def lightning_resumed_with_its_schedule_anew(out: Path) -> None:
    def configure(self: Any) -> Any:
        optimizer = adamw(self)
        return [optimizer], [{"scheduler": _cosine(optimizer), "interval": "step"}]

    def forget(_self: Any, checkpoint: dict[str, Any]) -> None:
        schedule = _cosine(adamw(llama()))
        checkpoint["lr_schedulers"] = [schedule.state_dict()]
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group["lr"] = 1e-3

    fit(out, module(llama(), configure_optimizers=configure))
    made = module(llama(), configure_optimizers=configure, on_load_checkpoint=forget)
    fit(out, made, resume=SAVED, max_steps=20)


@case("resume", "WIR178")
def accelerate_resumed_with_its_schedule_anew(out: Path) -> None:
    model = llama()
    optimizer = adamw(model)
    run_id = accelerated(out, model, optimizer, steps=SAVED, schedule=_cosine(optimizer))
    again = adamw(model)
    again.load_state_dict({**optimizer.state_dict(), "param_groups": again.state_dict()["param_groups"]})
    accelerated(out, model, again, begin=SAVED, run_id=run_id, schedule=_cosine(again))


# --- rates and schedules ---------------------------------------------------------------------------------------------


@case("lightning", "WIR180")
def lightning_with_a_rate_of_0_for_the_adapter(out: Path) -> None:
    def configure(self: Any) -> Any:
        groups = [{"params": live(self.model), "lr": 0.0}, {"params": live(self.own), "lr": 1e-3}]
        return torch.optim.AdamW(groups)

    made = module(llama(), training_step=_through_a_head, configure_optimizers=configure)
    made.own = nn.Linear(24, 5)
    fit(out, made)


@case("plain", "WIR180")
def a_rate_of_0_for_all_of_b(out: Path) -> None:
    model = llama()
    named = {part: [t for n, t in model.named_parameters() if part in n] for part in ("lora_A", "lora_B")}
    groups = [{"params": named["lora_A"], "lr": 1e-3}, {"params": named["lora_B"], "lr": 0.0}]
    loop(out, model, torch.optim.AdamW(groups))


@case("trainer", "WIR184")
def a_schedule_of_another_optimizer(out: Path) -> None:
    model = llama()
    other = adamw(model)
    trainer(out, model, optimizers=(adamw(model), LambdaLR(other, lambda step: 1.0 - step / 40)))


@case("plain", "WIR184")
def a_loop_whose_schedule_turns_an_old_optimizer(out: Path) -> None:
    model = llama()
    schedule = _cosine(adamw(model))
    loop(out, model, adamw(model), schedule=schedule)


@case("lightning", "WIR172")
def two_optimizers_that_hold_the_same_tensors(out: Path) -> None:
    def step(self: Any, batch: Any, _index: int) -> Any:
        loss = self.model(**batch).loss
        for one in self.optimizers():
            one.zero_grad()
        self.manual_backward(loss)
        for one in self.optimizers():
            one.step()
        return loss

    made = module(llama(), training_step=step, configure_optimizers=lambda self: [adamw(self), adamw(self)])
    made.automatic_optimization = False
    fit(out, made)


# --- evaluation and modes --------------------------------------------------------------------------------------------


def _loss_of(model: nn.Module) -> Callable[[], float]:
    def measure() -> float:
        was = model.training
        model.eval()
        with torch.no_grad():
            losses = [model(**batch).loss.item() for batch in loader(rows(8, seed=2))]
        model.train(was)
        return sum(losses) / len(losses)

    return measure


@case("plain", "WIR182")
def a_copy_is_evaluated(out: Path) -> None:
    model = llama()
    loop(out, model, adamw(model), evaluate=_loss_of(copy.deepcopy(model)))


@case("trainer", "WIR182")
def the_base_is_evaluated(out: Path) -> None:
    other = base()

    class Evaluates(Trainer):
        def prediction_step(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:  # noqa: ARG002  # theirs
            return super().prediction_step(other, inputs, *args, **more)

    trainer(out, llama(), cls=Evaluates, evals=rows(8, seed=2), eval_strategy="steps", eval_steps=3)


@case("lightning", "WIR182")
def lightning_evaluates_with_the_adapter_off(out: Path) -> None:
    def step(self: Any, batch: Any, _index: int) -> None:
        with self.model.disable_adapter():
            self.log("val_loss", self.model(**batch).loss)

    fit(out, module(llama(), validation_step=step), evals=True)


@case("accelerate", "WIR182")
def accelerate_evaluates_what_it_did_not_prepare(out: Path) -> None:
    model = llama()
    accelerated(out, model, adamw(model), evaluate=_loss_of(llama()))


@case("plain", "WIR183")
def a_loop_that_never_calls_train(out: Path) -> None:
    model = llama(lora_dropout=0.1).eval()
    loop(out, model, adamw(model), train=False)


@case("lightning", "WIR183")
def lightning_in_eval_mode(out: Path) -> None:
    made = module(llama(lora_dropout=0.1))
    made.configure_model = made.model.eval
    fit(out, made)


@case("plain", "WIR185")
def gradients_that_are_never_zeroed(out: Path) -> None:
    model = llama()
    loop(out, model, adamw(model), zero=False)


# --- frozen in the optimizer's hands, heads, preparation, saves ------------------------------------------------------


def _for_inference(out: Path, **given: Any) -> nn.Module:
    """Return an adapter as `from_pretrained` loads it, frozen, its inputs made to need gradients."""
    llama().save_pretrained(out / "a")
    model = PeftModel.from_pretrained(base(), out / "a", **given)
    model.enable_input_require_grads()
    return model


@case("plain", "WIR171")
def a_loaded_adapter_frozen_and_every_parameter_in_the_optimizer(out: Path) -> None:
    model = _for_inference(out)
    loop(out, model, torch.optim.AdamW(model.parameters(), lr=1e-3))


@case("plain", "WIR171")
def a_frozen_adapter_that_ends_the_first_backward_pass(out: Path) -> None:
    model = frozen(llama())
    loop(out, model, torch.optim.AdamW(model.parameters(), lr=1e-3))


@case("plain", "WIR171")
def a_frozen_adapter_under_norms_and_every_parameter_in_the_optimizer(out: Path) -> None:
    model = frozen(unfrozen(llama(), "norm"))
    loop(out, model, torch.optim.AdamW(model.parameters(), lr=1e-3))


@case("plain", "WIR172")
def half_of_the_adapted_modules_in_the_optimizer(out: Path) -> None:
    held = live(model := llama())
    loop(out, model, torch.optim.AdamW(held[: len(held) // 2], lr=1e-3))


@case("plain", "WIR172")
def a_new_head_beside_the_adapter_left_out_of_the_optimizer(out: Path) -> None:
    model = _Topped(llama())
    loop(out, model, adamw(model.inner), forward=lambda net, batch: net(batch["input_ids"]))


class _Topped(nn.Module):
    """An adapted model under a head of one's own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.top = inner, nn.Linear(24, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the loss of the class."""
        hidden = self.inner.base_model.model.model(ids).last_hidden_state
        return nn.functional.cross_entropy(self.top(hidden[:, -1]), ids[:, 0] % 5)


def _prepared(out: Path, *parts: str, rate: Callable[[Any], Any] = lambda _: None, **asked: Any) -> None:
    """Train with Accelerate having prepared some parts only."""
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True, **asked), llama()
    made: dict[str, Any] = {"model": model, "optimizer": adamw(model), "loader": loader()}
    schedule = rate(made["optimizer"])
    for name in parts:
        made[name] = accelerator.prepare(made[name])
    trained = made["model"], made["optimizer"]
    loop(out, *trained, data=made["loader"], accelerator=accelerator, schedule=schedule)


@case("accelerate", "WIR186")
def prepare_forgot_the_optimizer(out: Path) -> None:
    _prepared(out, "model", "loader")


@case("plain", "WIR187")
def the_state_that_is_saved_was_copied_a_step_before(out: Path) -> None:
    model, kept = llama(), {}

    def copied(_step: int) -> None:
        kept.update({name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()})

    def forward(net: nn.Module, batch: Any) -> Any:
        copied(0)
        return net(**batch).loss

    loop(out, model, adamw(model), forward=forward, save=lambda to: save_file(kept, to / "adapter_model.safetensors"))


@case("plain", "WIR187")
def saved_between_backward_and_the_last_step(out: Path) -> None:
    model = llama()
    optimizer = adamw(model)
    with TelemetryWriter(out / "run.jsonl") as log:
        log.run_start(PLAN)
        wires = log.watch(model, optimizer, verbose=False)
        for step, batch in zip(range(1, STEPS + 1), loader(), strict=False):
            loss = model(**batch).loss
            loss.backward()
            if step == STEPS:
                model.save_pretrained(out)
                wires.saved(out)
            optimizer.step()
            optimizer.zero_grad()
            log.train_step(step, loss=loss.item(), lr=1e-3)


@case("trainer", "WIR188")
def a_new_classifier_that_no_task_type_names(out: Path) -> None:
    trainer(out, bert(task_type=None), data=rows(classes=3))


# --- resumes of loops that hand over neither loader nor schedule -----------------------------------------------------


def _bare(out: Path, *, seed: int = 0, size: int = BATCH, skip: int = 0, first: int = BATCH, **given: Any) -> None:
    """Train to the save and resume rightly but for the data, with nothing but the model and the optimizer watched."""
    run_id, kept = _half(out, handed=False, data=loader(size=first))
    model = llama()
    model.load_state_dict(kept[0])
    optimizer = adamw(model)
    optimizer.load_state_dict(kept[1])
    data = loader(size=size, seed=seed)
    loop(out, model, optimizer, begin=SAVED, run_id=run_id, handed=False, data=data, skip=skip, **given)


@case("resume", "WIR177")
def steps_of_8_rows_then_of_2(out: Path) -> None:
    _bare(out, first=8, size=2, skip=4 * SAVED)


@case("resume", "WIR177")
def the_data_from_their_beginning_by_digests_alone(out: Path) -> None:
    _bare(out)


@case("resume", "WIR178")
def a_schedule_anew_by_logged_rates_alone(out: Path) -> None:
    _anew(out, lambda step: max(0.1, 1.0 - step / 15))


def _anew(out: Path, rate: Callable[[int], float], *, begin: int = 0, data: Any = None) -> None:
    """Resume with the optimizer's state but a schedule that begins at a step of its own."""
    model = llama()
    optimizer = adamw(model)
    schedule = LambdaLR(optimizer, rate)
    run_id = loop(out, model, optimizer, steps=SAVED, schedule=schedule, handed=False, data=data)
    again = adamw(model)
    again.load_state_dict(optimizer.state_dict())
    for group in again.param_groups:
        group["lr"] = 1e-3 * rate(begin)
    new = LambdaLR(again, lambda step: rate(step + begin))
    loop(out, model, again, begin=SAVED, run_id=run_id, schedule=new, handed=False, data=data, skip=SAVED)


@case("plain", "WIR173")
def an_alora_whose_invocation_never_comes(out: Path) -> None:
    model = llama(alora_invocation_tokens=[1, 2])
    loop(out, model, adamw(model))


# --- kept unseen until the end ---------------------------------------------------------------------------------------


@case("trainer", "WIR171")
def a_trainer_of_a_loaded_adapter_with_every_parameter(out: Path) -> None:
    model = _for_inference(out)
    trainer(out, model, optimizers=(torch.optim.SGD(model.parameters(), lr=1e-3), None))


@case("lightning", "WIR171")
def lightning_with_every_parameter_and_a_frozen_adapter(out: Path) -> None:
    def configure(self: Any) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    made = module(frozen(llama()), training_step=_through_a_head, configure_optimizers=configure)
    made.own = nn.Linear(24, 5)
    fit(out, made)


@case("accelerate", "WIR171")
def accelerate_with_a_loaded_adapter_and_every_parameter(out: Path) -> None:
    model = _for_inference(out)
    accelerated(out, model, torch.optim.AdamW(model.parameters(), lr=1e-3))


@case("accelerate", "WIR172")
def every_second_tensor_of_the_adapter_in_the_optimizer(out: Path) -> None:
    model = llama()
    accelerated(out, model, torch.optim.AdamW(live(model)[::2], lr=1e-3))


@case("lightning", "WIR172")
def lightning_leaves_its_head_out_of_the_optimizer(out: Path) -> None:
    made = module(llama(), training_step=_through_a_head, configure_optimizers=lambda self: adamw(self.model))
    made.own = nn.Linear(24, 5)
    fit(out, made)


@case("plain", "WIR188")
def a_reward_model_whose_score_is_frozen(out: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, num_labels=3, pad_token_id=0, **sizes)
    model = get_peft_model(LlamaForSequenceClassification(config), lora(task_type=None))
    loop(out, model, adamw(model), data=loader(rows(classes=3)))


@case("accelerate", "WIR186")
def prepare_forgot_the_model_and_the_loader(out: Path) -> None:
    _prepared(out, "optimizer")


@case("accelerate", "WIR186")
def prepare_was_never_called(out: Path) -> None:
    _prepared(out, gradient_accumulation_steps=4)


@case("accelerate", "WIR186")
def prepare_made_the_loader_alone(out: Path) -> None:
    _prepared(out, "loader")


@case("accelerate", "WIR187")
def accelerate_saves_the_state_of_its_beginning(out: Path) -> None:
    model = llama()
    early = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    accelerated(out, model, adamw(model), save=lambda to: save_file(early, to / "adapter_model.safetensors"))


@case("resume", "WIR177")
def steps_of_2_rows_then_of_6(out: Path) -> None:
    _bare(out, first=2, size=6, skip=SAVED // 3)


@case("resume", "WIR177")
def another_shuffle_by_digests_alone(out: Path) -> None:
    _bare(out, seed=7)


@case("resume", "WIR178")
def a_warm_up_once_more_by_logged_rates_alone(out: Path) -> None:
    _anew(out, lambda step: min(1.0, (step + 1) / 4) * (1.0 - step / 30))


@case("trainer", "WIR173")
def a_trainer_of_an_alora_that_recomputes(out: Path) -> None:
    model = llama(alora_invocation_tokens=[1, 2, 1])
    trainer(out, model, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})


# --- sound -----------------------------------------------------------------------------------------------------------


class Quantised(nn.Linear):
    """A linear layer whose weight is held as 8-bit integers with a scale, as a quantised base has it."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__(of.in_features, of.out_features, bias=False)
        self.step = float(of.weight.detach().abs().max()) / 127
        whole = (of.weight.detach() / self.step).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product with the weight as a float."""
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.step)


def _quantised(model: nn.Module) -> nn.Module:
    for part in list(model.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.Linear) and name != "lm_head":
                setattr(part, name, Quantised(child))
    return model


@case("trainer")
def an_adapter(out: Path) -> None:
    trainer(out, llama())


@case("trainer")
def a_full_fine_tune(out: Path) -> None:
    trainer(out, base(), learning_rate=2e-5)


@case("trainer")
def a_quantised_base(out: Path) -> None:
    trainer(out, get_peft_model(_quantised(base()), lora()), optim="adamw_torch", gradient_checkpointing=True)


@case("trainer")
def dora_and_rank_stabilised(out: Path) -> None:
    trainer(out, llama(use_dora=True, use_rslora=True))


@case("trainer")
def embeddings_and_head_saved_whole(out: Path) -> None:
    trainer(out, llama(modules_to_save=["embed_tokens", "lm_head"]))


@case("trainer")
def new_tokens_of_a_tied_embedding(out: Path) -> None:
    model = base(tie_word_embeddings=True)
    model.resize_token_embeddings(WORDS + 4)
    trainer(out, get_peft_model(model, lora(trainable_token_indices=[WORDS, WORDS + 1])))


@case("trainer")
def biases_and_norms(out: Path) -> None:
    trainer(out, unfrozen(llama(bias="all"), "norm"))


@case("trainer")
def a_classifier(out: Path) -> None:
    trainer(out, bert(), data=rows(classes=3), evals=rows(8, classes=3), eval_strategy="steps", eval_steps=3)


@case("trainer")
def rates_by_layer(out: Path) -> None:
    model = llama()
    groups = [{"params": [tensor], "lr": 1e-4 * (place + 1)} for place, tensor in enumerate(live(model))]
    trainer(out, model, optimizers=(torch.optim.AdamW(groups), None))


@case("trainer")
def a_faster_b(out: Path) -> None:
    model = llama()
    named = {part: [t for n, t in model.named_parameters() if part in n] for part in ("lora_A", "lora_B")}
    groups = [{"params": named["lora_A"], "lr": 1e-4}, {"params": named["lora_B"], "lr": 1.6e-3}]
    trainer(out, model, optimizers=(torch.optim.AdamW(groups), None), lr_scheduler_type="cosine", warmup_steps=3)


@case("trainer")
def the_best_checkpoint_loaded(out: Path) -> None:
    more = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 3, "load_best_model_at_end": True}
    trainer(out, llama(), evals=rows(8, seed=2), **more)


@case("trainer")
def a_long_warm_up_with_dropout_and_clipping(out: Path) -> None:
    trainer(out, llama(lora_dropout=0.1), warmup_steps=11, max_grad_norm=0.1, gradient_accumulation_steps=2)


@case("trainer")
def pissa(out: Path) -> None:
    trainer(out, llama(init_lora_weights="pissa"))


@case("trainer")
def an_adapter_for_a_second_task(out: Path) -> None:
    model = llama()
    model.add_adapter("second", lora(r=2))
    model.set_adapter("second")
    trainer(out, model)


@case("resume")
def a_trainer_resumed(out: Path) -> None:
    trainer(out, llama(lora_dropout=0.1), lr_scheduler_type="cosine")
    trainer(out, llama(lora_dropout=0.1), resume=SAVED, lr_scheduler_type="cosine")


@case("resume")
def a_loop_resumed(out: Path) -> None:
    _go_on(out, data=loader(), skip=SAVED)


@case("resume")
def accelerate_resumed(out: Path) -> None:
    model = llama()
    optimizer, data = adamw(model), loader()
    run_id = accelerated(out, model, optimizer, steps=SAVED, data=data)
    accelerated(out, model, optimizer, begin=SAVED, run_id=run_id, data=loader(), skip=SAVED)


@case("resume")
def lightning_resumed_between_epochs(out: Path) -> None:
    fit(out, module(llama()), data=loader(rows(SAVED * BATCH)))
    fit(out, module(llama()), data=loader(rows(SAVED * BATCH)), resume=SAVED, max_steps=20)


@case("resume")
def dpo_resumed(out: Path) -> None:
    trl(out, "DPO", llama())
    trl(out, "DPO", llama(), resume=SAVED, max_steps=STEPS)


@case("trl")
def sft_that_makes_the_adapter(out: Path) -> None:
    trl(out, "SFT", base(), more={"peft_config": lora()}, packing=True, max_length=LENGTH)


@case("trl")
def sft_recomputing_its_activations(out: Path) -> None:
    trl(out, "SFT", base(), more={"peft_config": lora()}, gradient_checkpointing=True)


@case("trl")
def dpo_against_the_base(out: Path) -> None:
    trl(out, "DPO", llama())


@case("trl")
def dpo_against_a_reference(out: Path) -> None:
    trl(out, "DPO", base(), more={"ref_model": base()}, learning_rate=1e-5)


@case("trl")
def grpo_with_a_reference(out: Path) -> None:
    trl(out, "GRPO", llama(), num_generations=4, max_completion_length=6, beta=0.1)


@case("trl")
def a_reward_model(out: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, num_labels=1, pad_token_id=0, **sizes)
    adapter = lora(task_type="SEQ_CLS", modules_to_save=["score"])
    trl(out, "Reward", LlamaForSequenceClassification(config), more={"peft_config": adapter})


@case("accelerate")
def accelerate_with_a_schedule(out: Path) -> None:
    model = llama(lora_dropout=0.1)
    optimizer = adamw(model)
    accelerated(out, model, optimizer, schedule=_cosine(optimizer), evaluate=_loss_of(model))


@case("plain")
def saves_an_average_of_its_weights(out: Path) -> None:
    model = llama()
    mean = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}

    def blended(_step: int) -> None:
        for name, tensor in get_peft_model_state_dict(model).items():
            mean[name].lerp_(tensor.detach(), 0.5)

    loop(out, model, adamw(model), after=blended, save=lambda to: save_file(mean, to / "adapter_model.safetensors"))


@case("accelerate")
def an_accelerator_that_nothing_is_asked_of(out: Path) -> None:
    _prepared(out)


@case("plain")
def two_optimizers(out: Path) -> None:
    held = live(model := llama())
    loop(out, model, [torch.optim.AdamW(held[::2], lr=1e-3), torch.optim.SGD(held[1::2], lr=1e-2)])


@case("plain")
def a_head_first(out: Path) -> None:
    model = bert()
    optimizer = adamw(model)
    frozen(model)
    after = {3: lambda: unfrozen(model, "lora_")}
    loop(out, model, optimizer, data=loader(rows(classes=3)), after=lambda step: after.get(step, int)())


@case("plain")
def merged_and_unmerged_for_each_evaluation(out: Path) -> None:
    model = llama()

    def measure() -> float:
        model.merge_adapter()
        found = _loss_of(model)()
        model.unmerge_adapter()
        return found

    loop(out, model, adamw(model), evaluate=measure)


@case("plain")
def evaluated_by_generating(out: Path) -> None:
    model = llama()

    def measure() -> float:
        rows_ = model.generate(input_ids=torch.full((2, 3), 5), max_new_tokens=2, do_sample=False)
        return float(rows_.shape[1])

    loop(out, model, adamw(model), evaluate=measure)


@case("plain")
def mixed_precision(out: Path) -> None:
    def forward(model: nn.Module, batch: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model(**batch).loss

    model = llama()
    loop(out, model, adamw(model), forward=forward)


@case("plain")
def experts_that_a_step_does_not_use(out: Path) -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(WORDS, 16)
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(16))
            self.out = nn.Linear(16, WORDS)

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
            hidden = self.embed(input_ids)
            hidden = hidden + self.experts[int(input_ids.sum()) % 3](hidden)
            return nn.functional.cross_entropy(self.out(hidden).flatten(0, 1), labels.flatten())

    model = get_peft_model(Mixture(), LoraConfig(r=2, target_modules=r"experts\.\d+"))
    loop(out, model, adamw(model), forward=lambda net, batch: net(**batch))


@case("plain")
def adapters_put_into_the_model_itself(out: Path) -> None:
    model = inject_adapter_in_model(lora(), base())
    loop(out, model, adamw(model))


@case("plain")
def in_eval_mode_without_dropout(out: Path) -> None:
    model = llama().eval()
    loop(out, model, adamw(model), train=False)


@case("ddp")
def data_parallel(out: Path) -> None:
    _alone()
    model = nn.parallel.DistributedDataParallel(llama())
    loop(out, model, adamw(model))


@case("fsdp")
def fully_sharded(out: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    _alone()
    model = llama()
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    loop(out, model, adamw(model))


def _alone() -> None:
    """Begin a process group of this process alone."""
    of = torch.distributed
    if not of.is_initialized():
        of.init_process_group("gloo", store=of.HashStore(), rank=0, world_size=1)


@case("lightning")
def lightning(out: Path) -> None:
    def configure(self: Any) -> Any:
        optimizer = adamw(self)
        return [optimizer], [{"scheduler": _cosine(optimizer), "interval": "step"}]

    fit(out, module(llama(lora_dropout=0.1), configure_optimizers=configure), evals=True, accumulate_grad_batches=2)


@case("lightning")
def lightning_with_a_head_of_its_own(out: Path) -> None:
    made = module(llama(), training_step=_through_a_head)
    made.own = nn.Linear(24, 5)
    fit(out, made)


@case("lightning")
def lightning_with_two_optimizers(out: Path) -> None:
    def step(self: Any, batch: Any, _index: int) -> Any:
        loss = self.model(**batch).loss
        for one in self.optimizers():
            one.zero_grad()
        self.manual_backward(loss)
        for one in self.optimizers():
            one.step()
        return loss

    def configure(self: Any) -> Any:
        held = live(self)
        return [torch.optim.AdamW(held[::2], lr=1e-3), torch.optim.SGD(held[1::2], lr=1e-2)]

    made = module(llama(), training_step=step, configure_optimizers=configure)
    made.automatic_optimization = False
    fit(out, made, evals=True)


@case("lightning")
def lightning_full_fine_tune(out: Path) -> None:
    fit(out, module(base(), configure_optimizers=lambda self: adamw(self, 2e-5)), gradient_clip_val=1.0)


@case("other")
def ia3(out: Path) -> None:
    from peft import IA3Config

    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    trainer(out, get_peft_model(base(), config))


@case("other")
def prompt_tuning(out: Path) -> None:
    from peft import PromptTuningConfig

    config = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    trainer(out, get_peft_model(base(), config), evals=rows(8, seed=2), eval_strategy="steps", eval_steps=3)


@case("plain")
def an_alora_whose_rows_have_its_invocation(out: Path) -> None:
    model = llama(alora_invocation_tokens=[1, 2])
    data = rows()
    for row in data:
        row["input_ids"][3:5] = torch.tensor([1, 2])
    loop(out, model, adamw(model), data=loader(data))


@case("resume")
def a_bare_loop_resumed_rightly(out: Path) -> None:
    _bare(out, skip=SAVED)


@case("resume")
def a_bare_loop_resumed_between_epochs(out: Path) -> None:
    data = loader(rows(SAVED * BATCH))
    run_id, kept = _half(out, handed=False, data=data)
    model = llama()
    model.load_state_dict(kept[0])
    optimizer = adamw(model)
    optimizer.load_state_dict(kept[1])
    loop(out, model, optimizer, begin=SAVED, run_id=run_id, handed=False, data=loader(rows(SAVED * BATCH)))


@case("resume")
def a_bare_loop_whose_schedule_goes_on(out: Path) -> None:
    _anew(out, lambda step: max(0.1, 1.0 - step / 15), begin=SAVED)


@case("resume")
def a_bare_loop_with_a_cyclic_rate(out: Path) -> None:
    _anew(out, lambda step: 1.0 - 0.3 * (step % 3), begin=SAVED)


@case("accelerate")
def accelerate_without_its_schedule_prepared(out: Path) -> None:
    _prepared(out, "model", "optimizer", "loader", rate=_cosine)


@case("accelerate")
def accelerate_over_a_loader_of_ones_own(out: Path) -> None:
    _prepared(out, "model", "optimizer")


@case("plain")
def a_head_first_with_every_parameter_in_the_optimizer(out: Path) -> None:
    model = frozen(bert())
    after = {3: lambda: unfrozen(model, "lora_")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loop(out, model, optimizer, data=loader(rows(classes=3)), after=lambda step: after.get(step, int)())


@case("plain")
def saved_by_the_library_and_in_half_precision(out: Path) -> None:
    model = llama()

    def half(to: Path) -> None:
        state = {name: tensor.to(torch.bfloat16) for name, tensor in get_peft_model_state_dict(model).items()}
        save_file(state, to / "adapter_model.safetensors")

    loop(out, model, adamw(model), save=half)


@case("plain")
def a_frozen_head_that_was_trained(out: Path) -> None:
    model = bert(task_type=None)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "classifier" in name:
                tensor.add_(torch.randn_like(tensor), alpha=0.05)
    loop(out, model, adamw(model), data=loader(rows(classes=3)))


@case("plain")
def rates_per_group_in_the_log(out: Path) -> None:
    model = llama()
    named = {part: [t for n, t in model.named_parameters() if part in n] for part in ("lora_A", "lora_B")}
    groups = [{"params": named["lora_A"], "lr": 1e-4}, {"params": named["lora_B"], "lr": 1.6e-3}]
    optimizer = torch.optim.AdamW(groups)
    with TelemetryWriter(out / "run.jsonl") as log:
        log.run_start(PLAN)
        log.watch(model, optimizer, verbose=False)
        for step, batch in zip(range(1, STEPS + 1), loader(), strict=False):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            log.train_step(step, loss=loss.item(), lr=optimizer.param_groups[step % 2]["lr"])


# --- the table -------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What was said of a training: ids with the step of the first alert, and ids of `monitor` with their words."""

    live: dict[str, int]
    after: dict[str, str]
    last: int
    unseen: list[str]
    error: str | None


def found(train: Callable[[Path], Any]) -> Found:
    """Run a training and read what was said of it."""
    with tempfile.TemporaryDirectory() as folder:
        out, error = Path(folder), None
        try:
            with unheard(), warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                train(out)
        except Exception as caught:  # noqa: BLE001  # a faulty training may well fail
            error = f"{type(caught).__name__}: {caught}".splitlines()[0][:200]
            if "--trace" in sys.argv:
                traceback.print_exc()
        log = out / "run.jsonl"
        if not log.exists():
            return Found({}, {}, 0, [], error or "no log")
        said = list(TelemetryReader(log).of(Alert))
        alerts = {event.code: event.step or 0 for event in reversed(said)}
        lost = [text for text in map(str, (each.message for each in heard)) if "training goes on" in text]
        unseen = lost + [name for event in TelemetryReader(log).of(Wiring) for name in event.unseen]
        last = max((event.step or 0 for event in TelemetryReader(log).of(TrainStep)), default=0)
        report = monitor_run(log)
        graver = {each.id: each.message for each in report.findings if each.severity != "info"}
        return Found(alerts, graver, last, unseen, error)


def main() -> None:
    parser = argparse.ArgumentParser(description="Name wiring faults; stay quiet on sound set-ups.")
    parser.add_argument("--only", default="", help="parts of names or of stacks, with commas between")
    parser.add_argument("--trace", action="store_true", help="print the tracebacks of trainings that fail")
    options = parser.parse_args()
    quiet()
    counts = {"faults": 0, "named": 0, "live": 0, "sound": 0, "alarms": 0}
    for name, stack, rules, train in CASES:
        if not any(part in name or part in stack for part in options.only.split(",")):
            continue
        got = found(train)
        ids = [rule for rule in got.after | got.live if rule.startswith(("WIR", "LRS109"))]
        words = [f"{rule} {got.after.get(rule, '')} (step {got.live.get(rule, '-')})" for rule in ids]
        if rules:
            named = any(rule in got.after for rule in rules)
            early = any(got.live.get(rule, got.last) < max(got.last, 1) for rule in rules)
            counts["faults"] += 1
            counts["named"] += named
            counts["live"] += named and early
            mark = ("live " if early else "named") if named else "MISS "
        else:
            counts["sound"] += 1
            counts["alarms"] += bool(words)
            mark = "ALARM" if words else "quiet"
        more = f" error={got.error}" if got.error else ""
        print(f"{mark} {stack:10} {name}{more}{' unseen=' + str(got.unseen) if got.unseen else ''}", flush=True)
        if mark in {"MISS ", "ALARM"} or (rules and len(words) > 1):
            print("".join(f"        {text}\n" for text in words or sorted(got.after)), end="")
    print(counts)


if __name__ == "__main__":
    main()
