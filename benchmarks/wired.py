"""Tiny trainings in five stacks, each recorded and watched: what wiring_faults.py and why.py put their faults into."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from gradience.hf import GradienceCallback
from gradience.recording import TelemetryWriter

WORDS, LENGTH, ROWS, BATCH, STEPS, SAVED = 96, 10, 48, 4, 12, 6
PLAN = {
    "optimizer": {"lr": 1e-3},
    "lora": {"r": 4, "alpha": 8},
    "training": {"max_steps": STEPS, "batch_size": BATCH},
}

Row = dict[str, torch.Tensor]


def quiet() -> None:
    """Silence what the stacks say by themselves, and use one thread."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    datasets.disable_progress_bars()


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Drop what is printed within."""
    with Path(os.devnull).open("w") as to, contextlib.redirect_stdout(to), contextlib.redirect_stderr(to):
        yield


def base(seed: int = 0, **given: Any) -> LlamaForCausalLM:
    """Return a Llama of two layers."""
    set_seed(seed)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, **{**sizes, **given}))


def lora(**given: Any) -> LoraConfig:
    """Return the configuration of an adapter on the attention."""
    usual = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "o_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**usual, **given})


def llama(seed: int = 0, *, adapter_seed: int | None = None, **given: Any) -> PeftModel:
    """Return the Llama with an adapter."""
    model = base(seed)
    set_seed(seed if adapter_seed is None else adapter_seed)
    return get_peft_model(model, lora(**given))


def bert(seed: int = 0, **given: Any) -> PeftModel:
    """Return a classifier with an adapter and a head that is trained whole."""
    set_seed(seed)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=WORDS, num_labels=3, **sizes))
    usual = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    return get_peft_model(model, LoraConfig(**{**usual, **given}))


def rows(count: int = ROWS, *, seed: int = 1, classes: int | None = None) -> list[Row]:
    """Return random sequences; with `classes`, each labelled with one."""
    ids = torch.randint(3, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return [
        {"input_ids": row, "labels": row if classes is None else torch.tensor(place % classes)}
        for place, row in enumerate(ids)
    ]


def loader(data: Sequence[Row] | None = None, *, size: int = BATCH, seed: int = 0) -> DataLoader[Any]:
    """Return a loader that shuffles with a seed of its own."""
    return DataLoader(
        data or rows(),  # type: ignore[arg-type]  # a list is a data set
        size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )


def live(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters."""
    return [tensor for tensor in model.parameters() if tensor.requires_grad]


def adamw(model: nn.Module, rate: float = 1e-3) -> torch.optim.AdamW:
    """Return an optimizer of what is trainable."""
    return torch.optim.AdamW(live(model), lr=rate)


def unfrozen(model: nn.Module, part: str = "") -> nn.Module:
    """Return the model with the parameters that have `part` in their names made trainable."""
    for name, tensor in model.named_parameters():
        if part in name:
            tensor.requires_grad_()
    return model


def frozen(model: nn.Module, part: str = "lora_") -> nn.Module:
    """Return the model with the parameters that have `part` in their names frozen."""
    for name, tensor in model.named_parameters():
        if part in name:
            tensor.requires_grad_(requires_grad=False)
    return model


def trainer(
    out: Path, model: nn.Module, *, cls: Any = Trainer, callbacks: Sequence[Any] = (), resume: int | None = None,
    data: Any = None, optimizers: Any = (None, None), evals: Any = None, **given: Any,
) -> Trainer:  # fmt: skip
    """Train with Hugging Face's Trainer, saving at step 6 of 12."""
    usual = {"max_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": BATCH, "learning_rate": 1e-3}
    usual |= {"save_strategy": "steps", "save_steps": SAVED, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    made = cls(
        model=model,
        args=TrainingArguments(str(out), **{**usual, **given}),
        train_dataset=rows() if data is None else data,
        eval_dataset=evals,
        callbacks=[GradienceCallback(verbose=False), *callbacks],
        optimizers=optimizers,
    )
    made.train(resume_from_checkpoint=None if resume is None else str(out / f"checkpoint-{resume}"))
    return made


def tokenizer() -> Any:
    """Return a tokenizer of the words w0, w1, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(WORDS - 3)}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))  # noqa: S106  # no password
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def texts(*names: str, count: int = ROWS) -> Dataset:
    """Return sentences of words under each column's name."""
    draw = torch.Generator().manual_seed(5)
    made = torch.randint(0, WORDS - 3, (count, len(names), 5), generator=draw).tolist()
    return Dataset.from_list(
        [{n: "".join(f" w{i}" for i in ids) for n, ids in zip(names, row, strict=True)} for row in made]
    )


def trl(
    out: Path, kind: str, model: Any, *, cls: Any = None, resume: int | None = None, optimizers: Any = None,
    more: dict[str, Any] | None = None, **given: Any,
) -> Any:  # fmt: skip
    """Train with TRL's trainer of a kind: SFT, DPO, KTO, Reward or GRPO."""
    import trl as library

    columns = {"SFT": ["text"], "DPO": ["prompt", "chosen", "rejected"], "GRPO": ["prompt"]}
    columns["Reward"] = ["chosen", "rejected"]
    usual = {"max_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": BATCH, "learning_rate": 1e-3}
    usual |= {"save_strategy": "steps", "save_steps": SAVED, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    usual |= {"bf16": False, "gradient_checkpointing": False}
    config = getattr(library, f"{kind}Config")(str(out), **{**usual, **given})
    rewards = {"reward_funcs": [lambda completions, **_: [float(len(text)) for text in completions]]}
    made = (cls or getattr(library, f"{kind}Trainer"))(
        model=model,
        args=config,
        train_dataset=texts(*columns[kind]),
        processing_class=tokenizer(),
        callbacks=[GradienceCallback(verbose=False)],
        **(rewards if kind == "GRPO" else {}),
        **({"optimizers": optimizers} if optimizers else {}),
        **(more or {}),
    )
    made.train(resume_from_checkpoint=None if resume is None else str(out / f"checkpoint-{resume}"))
    return made


def loop(
    out: Path, model: nn.Module, optimizer: Any, *, steps: int = STEPS, begin: int = 0, run_id: str | None = None,
    schedule: Any = None, data: DataLoader[Any] | None = None, forward: Callable[..., Any] | None = None,
    evaluate: Callable[[], float] | None = None, after: Callable[[int], None] | None = None, train: bool = True,
    save: Callable[[Path], None] | None = None, zero: bool = True, accelerator: Any = None, micro: int = 1,
    skip: int = 0, handed: bool = True, plan: dict[str, Any] = PLAN,  # read only
) -> str:  # fmt: skip
    """Train in a loop of one's own, or with Accelerate, saving at step 6; return the run's id.

    Loader and schedule are handed to the watch if `handed`.
    """
    optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
    batches = loader() if data is None else data
    with TelemetryWriter(out / "run.jsonl", run_id=run_id) as log:
        log.run_start(plan, resumed_from_step=begin or None)
        given = {"schedule": schedule, "loader": batches} if handed else {}
        wires = log.watch(model, optimizer, **given, verbose=False)
        if train:
            model.train()
        fed = itertools.islice(endless(batches), skip, None)
        for step in range(begin + 1, begin + steps + 1):
            for _ in range(micro):
                batch = next(fed)
                loss = forward(model, batch) if forward else model(**batch).loss
                (accelerator.backward if accelerator else torch.Tensor.backward)(loss / micro)
            for one in optimizers:
                one.step()
                if zero:
                    one.zero_grad()
            if schedule is not None:
                schedule.step()
            log.train_step(step, loss=loss.item(), lr=optimizers[0].param_groups[0]["lr"])
            if after:
                after(step)
            if evaluate and step % SAVED == 0:
                log.eval(step, split="eval", metrics={"loss": evaluate()})
            if step % SAVED == 0:
                (save or (lambda _: None))(out)
                wires.saved(out)
        return log.run_id


def endless(batches: Iterable[Any]) -> Iterable[Any]:
    """Yield the batches of a loader, epoch after epoch."""
    while True:
        yield from batches


def accelerated(out: Path, model: nn.Module, optimizer: Any, **given: Any) -> str:
    """Train with Accelerate; `prepared` gets the parts that it made."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    data = given.pop("data", None) or loader()
    prepared = given.pop("prepared", None)
    schedule = given.pop("schedule", None)
    model, optimizer, data, *more = accelerator.prepare(model, optimizer, data, *([schedule] if schedule else []))
    if prepared:
        prepared(accelerator, model, optimizer)
    return loop(out, model, optimizer, data=data, accelerator=accelerator, schedule=next(iter(more), None), **given)


def module(model: nn.Module, **methods: Callable[..., Any]) -> Any:
    """Return a LightningModule of a model; `methods` replace its own."""
    import lightning

    class Wrapped(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Row, _index: int) -> Any:
            return self.model(**batch).loss

        def validation_step(self, batch: Row, _index: int) -> None:
            self.log("val_loss", self.model(**batch).loss)

        def configure_optimizers(self) -> Any:
            return adamw(self)

    return type("Module", (Wrapped,), methods)()


def fit(out: Path, made: Any, *, data: Any = None, evals: bool = False, resume: int | None = None, **given: Any) -> Any:
    """Fit with Lightning, saving at step 6 of 12."""
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    from gradience.lightning import GradienceCallback as Recorder

    keep = ModelCheckpoint(out, filename="{step}", every_n_train_steps=SAVED, save_top_k=-1)
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    usual = {"accelerator": "cpu", "max_steps": STEPS, "max_epochs": -1, "default_root_dir": out}
    usual |= {"val_check_interval": SAVED, "check_val_every_n_epoch": None} if evals else {}
    made.train()
    running = lightning.Trainer(callbacks=[Recorder(verbose=False), keep], **{**usual, **silent, **given})
    ckpt = None if resume is None else out / f"step={resume}.ckpt"
    batches = loader() if data is None else data
    running.fit(made, batches, *([loader(rows(8, seed=2))] if evals else []), ckpt_path=ckpt, weights_only=False)
    return running
