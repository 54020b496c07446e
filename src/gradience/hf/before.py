"""Look at what is about to be trained, before `train()`: `gradience.preflight(trainer)`.

Nothing is changed: random states, samplers, collators, the Trainer and its Accelerator are as they were afterwards, and
the model is not called. Streams that may not begin again, and optimizers that hook the model, are not looked at.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType, SimpleNamespace
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import torch

from gradience.configs.settings import Draft
from gradience.errors import GradienceError
from gradience.hf.invocation import Invocations
from gradience.hf.snapshot import active_adapter, config_snapshot, note_model, unwrapped
from gradience.hf.watch import FIRST, BatchWatch
from gradience.hf.wires import live_look
from gradience.hf.wiring import look, unwrapped_optimizers
from gradience.rules import Verdict, judge
from gradience.rules.log import BEFORE_TRAINING
from gradience.rules.log.facts import RunFacts
from gradience.schema import Severity, real
from gradience.schema.document import SEVERITIES, by_severity
from gradience.schema.events import ConfigSnapshot, Metrics, Wiring
from gradience.schema.preflight import PREFLIGHT_SCHEMA_ID, FirstBatches, PlannedRate, PreflightReport
from gradience.schema.reports import CheckReport
from gradience.schema.wiring import GradientWiring
from gradience.telemetry.series import RunSeries
from gradience.verbs.check.run import check_config

# Layerwise optimizers hook the model's parameters as they are made, and LOMO does; these leave it alone.
_PLAIN: Final = (
    "adamw_torch",
    "adamw_bnb",
    "paged_adamw",
    "sgd",
    "adafactor",
    "adagrad",
    "rmsprop",
    "lion",
    "paged_lion",
)
_THEIRS: Final = ("transformers.", "trl.")
_MOST_STEPS: Final = 1 << 20  # whose rates are asked for
_DEPTH: Final = 3  # of a collator in a collator


class Preflight(PreflightReport, kw_only=True, frozen=True):
    """The report; `print` shows it as text, and a notebook as a table."""

    def __str__(self) -> str:
        """Return the report as text."""
        from gradience.hf.before_view import preflight_text  # where it is shown

        return preflight_text(self)

    def _repr_html_(self) -> str:
        from gradience.blocks.html.notebook import notebook_html  # where it is shown
        from gradience.hf.before_view import preflight_blocks  # the same

        return notebook_html(preflight_blocks(self))


class _Flight(NamedTuple):
    """What is about to be trained. The loader and the optimizer are made for the look where training makes its own."""

    model: torch.nn.Module
    args: Any = None
    loader: Any = None
    optimizer: Any = None
    schedule: Any = None
    tokenizer: Any = None
    note: str = ""
    no_loader: str = "no data set was given"

    @property
    def arguments(self) -> Any:
        """TrainingArguments; None if there are none, or a mapping of settings."""
        return None if isinstance(self.args, Mapping) else self.args


def preflight(
    trainer: Any,
    dataset: Any = None,
    args: Any = None,
    *,
    collate_fn: Callable[..., Any] | None = None,
    memory: bool = True,
    raise_on: Severity | None = None,
) -> Preflight:
    """Report what is about to be trained. Nothing is changed: training afterwards is the same bit for bit.

    Args:
        trainer: a Trainer of transformers or TRL before `train()`; or a model.
        dataset: beside a model, its DataLoader, or rows.
        args: beside a model, its TrainingArguments, or a mapping of settings.
        collate_fn: makes a batch of rows; by default transformers' `default_data_collator`.
        memory: foretell the memory of a step, which takes some seconds.
        raise_on: the severity from which a finding is an exception.

    Raises:
        GradienceError: a finding is that grave.
        TypeError: the first argument is neither a Trainer nor a model.
        ValueError: `raise_on` is no severity.
    """
    if raise_on is not None and raise_on not in SEVERITIES:
        raise ValueError(f"raise_on: expected one of {', '.join(SEVERITIES)}, got {raise_on!r}")
    with _as_it_was(trainer, dataset, collate_fn):
        is_trainer = hasattr(trainer, "get_train_dataloader")
        if not isinstance(trainer.model if is_trainer else trainer, torch.nn.Module):
            raise TypeError(f"preflight: expected a Trainer or a torch model, got {type(trainer).__name__}")
        flight = _of_trainer(trainer) if is_trainer else _of_model(trainer, dataset, args, collate_fn)
        report = _report(flight, memory=memory)
    bar = len(SEVERITIES) if raise_on is None else SEVERITIES.index(raise_on)
    grave = [one for one in report.findings if SEVERITIES.index(one.severity) >= bar]
    if grave:
        messages = "; ".join(f"{one.id}: {one.message}" for one in grave)
        advice = next((one.action for one in grave if one.action), None) or "correct this before train()"
        raise GradienceError(f"preflight: {messages}", advice=advice)
    return report


def _of_trainer(trainer: Any) -> _Flight:
    loader, lacking = _made(trainer.get_train_dataloader, "the Trainer's loader cannot be made")
    optimizer, note = getattr(trainer, "optimizer", None), ""
    if optimizer is None and _makes_plainly(trainer):
        optimizer, note = _made(trainer.create_optimizer, "the optimizer cannot be made")
    elif optimizer is None:
        note = "the optimizer is not looked at: making it would change the model, or is the Trainer's own way"
    schedule, tokenizer = trainer.lr_scheduler, getattr(trainer, "processing_class", None)
    return _Flight(
        trainer.model,
        trainer.args,
        loader,
        optimizer,
        schedule=getattr(schedule, "scheduler", schedule),  # accelerate's wrapper
        tokenizer=getattr(tokenizer, "tokenizer", tokenizer),
        note=note,
        no_loader=lacking,
    )


def _made(make: Callable[[], Any], failed: str) -> tuple[Any, str]:
    try:
        return make(), ""
    except Exception as error:  # noqa: BLE001  # the user's own data and classes, which may raise anything
        return None, f"{failed}: {error}"


def _makes_plainly(trainer: Any) -> bool:
    """Whether the Trainer makes an optimizer that leaves the model as it is, on one process."""
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    theirs = type(trainer).create_optimizer.__module__.startswith(_THEIRS)
    sharded = any(getattr(trainer, f"is_{kind}_enabled", False) for kind in ("deepspeed", "fsdp"))
    return theirs and not sharded and name.startswith(_PLAIN) and "layerwise" not in name


def _of_model(model: Any, dataset: Any, args: Any, collate_fn: Callable[..., Any] | None) -> _Flight:
    if dataset is None or hasattr(dataset, "collate_fn"):
        return _Flight(model, args, dataset)
    from transformers import default_data_collator  # the user's own

    size = args.get("per_device_train_batch_size") if isinstance(args, Mapping) else None
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=size or getattr(args, "per_device_train_batch_size", 8),
        shuffle=not isinstance(dataset, torch.utils.data.IterableDataset),
        collate_fn=collate_fn or default_data_collator,
    )
    return _Flight(model, args, loader)


def _report(flight: _Flight, *, memory: bool) -> Preflight:
    steps = _steps(flight)
    seen = look(flight.model, unwrapped_optimizers(flight.optimizer))
    calls = Invocations(flight.model)
    calls.remove()  # it is told of each batch
    batches = _first_batches(flight, calls)
    check = _checked(flight, steps, batches, memory=memory)
    verdict = _judged(check.config, seen, batches, calls)
    schedule, rates = _rates(flight, steps)
    notes = [flight.note] if flight.note else []
    place = _device(flight.model).type
    if place != "cuda" and check.memory is not None and check.memory.peak_bytes is not None:
        notes.append(f"the memory is that of a CUDA device; the model lies on {place}")
    return Preflight(
        schema=PREFLIGHT_SCHEMA_ID,
        check=check,
        groups=seen.get("groups", []),
        adapter=seen.get("adapter"),
        optimizer=seen.get("optimizer"),
        schedule=schedule,
        rates=rates,
        batches=batches,
        findings=by_severity([*verdict.findings, *check.findings]),
        not_run=[*verdict.not_run, *check.not_run],
        notes=[*notes, *(f"not looked at: {what}" for what in seen["unseen"])],
    )


def _judged(config: ConfigSnapshot, seen: Mapping[str, Any], batches: FirstBatches, calls: Invocations) -> Verdict:
    """Judge what was seen as the callback judges the start of a run."""
    run = RunSeries("preflight", config=config)
    run.add(live_look(Wiring, 0, {"phase": "start", **seen}))
    if calls.rows and not calls.invoked and seen.get("optimizer") is not None:
        first = GradientWiring(steps=0, tensors=seen["optimizer"].held, rows=calls.rows, invoked=0)
        run.add(live_look(Wiring, 0, {"phase": "gradients", "gradients": first}))
    if batches.counts:
        run.add(live_look(Metrics, 0, {"kind": "data", "metrics": batches.counts}))
    return judge(BEFORE_TRAINING, RunFacts(run))


def _checked(flight: _Flight, steps: int | None, batches: FirstBatches, *, memory: bool) -> CheckReport:
    """Check the configuration; beside the base's config, if the model has one."""
    model = unwrapped(flight.model)
    config = _snapshot(flight, steps)
    options: dict[str, Any] = {"training": flight.args} if isinstance(flight.args, Mapping) else {}
    declared: Any = getattr(model, "config", None)
    if not memory or not hasattr(declared, "to_dict"):
        return check_config(config, **options)
    adapters = getattr(model, "peft_config", None)
    if adapters:
        options["peft"] = active_adapter(model, adapters)
    longest = batches.counts.get("longest")
    if config.training.max_length is None and isinstance(longest, int) and longest:
        options["max_length"] = longest
    if (device := _device(model)).type == "cuda":
        options["memory"] = str(torch.cuda.get_device_properties(device).total_memory)
    base = model.get_base_model() if adapters and hasattr(model, "get_base_model") else model
    # The check reads a base's folder; the config of the model in memory may be in none.
    with TemporaryDirectory() as folder:
        fields = {**declared.to_dict(), "architectures": [type(base).__name__], "dtype": _dtype(base)}
        (Path(folder) / "config.json").write_text(json.dumps(fields, default=str), encoding="utf-8")
        report = check_config(config, base=folder, **options)
    return msgspec.structs.replace(report, sources=[])  # a folder that is gone


def _device(model: torch.nn.Module) -> torch.device:
    return next((one.device for one in model.parameters()), torch.device("cpu"))


def _dtype(base: torch.nn.Module) -> str:
    """Return the dtype of the floating weights that hold most numbers."""
    sizes: dict[torch.dtype, int] = {}
    for one in base.parameters():
        # What is trained may be in another dtype than the base.
        if one.is_floating_point() and not one.requires_grad:
            sizes[one.dtype] = sizes.get(one.dtype, 0) + one.numel()
    widest = max(sizes, key=sizes.__getitem__, default=getattr(base, "dtype", torch.float32))
    return str(widest).removeprefix("torch.")


def _snapshot(flight: _Flight, steps: int | None) -> ConfigSnapshot:
    if flight.arguments is None:
        draft = Draft()
        note_model(draft, unwrapped(flight.model))
        return draft.snapshot()
    state = SimpleNamespace(max_steps=steps or 0, train_batch_size=None)
    parts = {"model": flight.model, "optimizer": flight.optimizer, "train_dataloader": flight.loader}
    return config_snapshot(flight.args, state, ConfigSnapshot(), **parts)


def _steps(flight: _Flight) -> int | None:
    """Return the planned optimizer steps, as the Trainer counts them; None if they are not known."""
    args = flight.arguments
    if args is None:
        return None
    if args.max_steps > 0:
        return int(args.max_steps)
    try:
        batches = len(flight.loader)
    except (TypeError, NotImplementedError):
        return None
    return math.ceil(float(args.num_train_epochs) * math.ceil(batches / int(args.gradient_accumulation_steps)))


def _rates(flight: _Flight, steps: int | None) -> tuple[str, list[PlannedRate]]:
    """Return the schedule's name, and the highest rates of a few steps; none if a schedule cannot be foretold."""
    args, schedule = flight.arguments, flight.schedule
    if args is None or not steps or steps > _MOST_STEPS:
        return "", []
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    name = kind if schedule is None else type(schedule).__name__
    warmup = args.get_warmup_steps(steps)
    try:
        schedule = schedule or _planned(flight, kind, warmup, steps)
        if not all(isinstance(share, FunctionType | partial) for share in schedule.lr_lambdas):
            return name, []  # an object might count its calls
        shares = [*zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        # A schedule counts from 0: step 1 is trained at its rate for 0.
        places = sorted({0, min(warmup, steps - 1), steps // 2, steps - 1})
        rates = [real(float(max(base * share(at) for base, share in shares))) for at in places]
    except Exception:  # noqa: BLE001  # a schedule of another kind, or functions of the user's
        return name, []
    return name, [PlannedRate(step=at + 1, lr=rate) for at, rate in zip(places, rates, strict=True)]


def _planned(flight: _Flight, kind: str, warmup: int, steps: int) -> Any:
    """The schedule that training would make, at the highest rate of the groups, which a script may have set."""
    from transformers import get_scheduler  # the user's own

    groups = getattr(flight.optimizer, "param_groups", None) or [{"lr": flight.args.learning_rate}]
    peak = max(float(group.get("initial_lr", group["lr"])) for group in groups)
    # A schedule writes its rates into its optimizer as soon as it is made, so it is not given the Trainer's.
    stand_in = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    own = dict(flight.args.lr_scheduler_kwargs or {})
    return get_scheduler(kind, stand_in, warmup, steps, scheduler_specific_kwargs=own)


def _first_batches(flight: _Flight, calls: Invocations) -> FirstBatches:
    """Draw the first micro-batches as the loader would, without its workers and without Accelerate's bookkeeping."""
    if flight.loader is None:
        return FirstBatches(reason=flight.no_loader)
    end = getattr(flight.tokenizer, "eos_token_id", None)  # training makes it one of the model's
    watch = BatchWatch(
        flight.model,
        max_length=getattr(flight.args, "max_length", None),
        ends=[end] if isinstance(end, int) else [],
        tokenizer=flight.tokenizer,
    )
    watch.close()  # it is told of each batch
    shapes: dict[str, str] = {}
    judged = {"kept": 0, "tokens": 0}
    made, reason = 0, ""
    try:
        for batch in _drawn(flight.loader):
            shapes = shapes or _shapes(batch)
            made += 1
            if isinstance(batch, Mapping):
                watch.see(batch)
                calls.see(batch.get("input_ids"))
                _take_mask(batch, judged)
    except Exception as error:  # noqa: BLE001  # the user's own data and collator, which may raise anything
        which = f"micro-batch {made + 1} cannot" if made else "no batch can"
        reason = f"{which} be made of the rows: {type(error).__name__}: {error}"
    counts = watch.values() if watch.watched else {}
    return FirstBatches(inputs=shapes, counts=counts, judged=judged if judged["tokens"] else {}, reason=reason)


def _drawn(loader: Any) -> Iterator[Any]:
    data, sampler = loader.dataset, getattr(loader, "batch_sampler", None)
    if isinstance(data, torch.utils.data.IterableDataset):
        stream = getattr(data, "dataset", data)  # in transformers' shard
        if not type(stream).__module__.startswith("datasets."):
            raise TypeError("a stream of a kind that may not begin again is not read")
        rows, size = iter(stream), loader.batch_size or 1
        yield from map(loader.collate_fn, islice(iter(lambda: list(islice(rows, size)), []), FIRST))
        return
    if sampler is None:
        raise TypeError("the loader has no batch sampler")
    # The loader itself would draw a seed and start its workers.
    for places in islice(iter(sampler), FIRST):
        yield loader.collate_fn([data[place] for place in places])


def _shapes(batch: Any) -> dict[str, str]:
    if isinstance(batch, Mapping):
        return {name: _shape(value) for name, value in batch.items()}
    rows = batch if isinstance(batch, list | tuple) else []
    names = ", ".join(map(str, rows[0])) if rows and isinstance(rows[0], Mapping) else type(batch).__name__
    return {"rows": f"{len(rows)} ({names})"}


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{' x '.join(map(str, value.shape)) or 'one number'} {str(value.dtype).removeprefix('torch.')}"
    return f"{len(value)} of {type(value).__name__}" if hasattr(value, "__len__") else type(value).__name__


def _take_mask(batch: Mapping[str, Any], judged: dict[str, int]) -> None:
    """Count the tokens that a completion_mask leaves in the loss, where the Trainer makes labels of it later."""
    mask, ids, room = (batch.get(name) for name in ("completion_mask", "input_ids", "attention_mask"))
    if "labels" in batch or not isinstance(mask, torch.Tensor) or not isinstance(ids, torch.Tensor):
        return
    if mask.shape == ids.shape:
        judged["kept"] += int(mask.count_nonzero())
        judged["tokens"] += int(room.count_nonzero()) if isinstance(room, torch.Tensor) else ids.numel()


@contextmanager
def _as_it_was(*objects: Any) -> Iterator[None]:
    """A context after which random states, and the attributes and generators of some objects, are as they were."""
    with ExitStack() as kept:
        # To ask a card for its state would start CUDA.
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        kept.enter_context(torch.random.fork_rng(devices=devices))
        kept.callback(random.setstate, random.getstate())
        kept.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002  # the global one
        for one in _reached(objects):
            _keep(one, kept)
        yield


def _reached(objects: tuple[Any, ...]) -> list[Any]:
    """The objects, and what of them draws rows or makes batches."""
    names = ("accelerator", "data_collator", "train_dataset", "dataset", "collate_fn", "sampler", "batch_sampler")
    reached: dict[int, Any] = {}
    level = [one for one in objects if one is not None]
    for _ in range(_DEPTH):
        reached |= {id(one): one for one in level}
        level = [vars(one)[name] for one in level if hasattr(one, "__dict__") for name in names if name in vars(one)]
    return [one for one in reached.values() if hasattr(one, "__dict__") and not isinstance(one, torch.nn.Module)]


def _keep(one: Any, kept: ExitStack) -> None:
    before = dict(vars(one))
    # Accelerate's `prepare` appends the loader to a list of its own.
    lists = {name: list(value) for name, value in before.items() if type(value) is list}

    def restore() -> None:
        for name in vars(one).keys() - before.keys():
            del vars(one)[name]
        vars(one).update(before)
        for name, value in lists.items():
            before[name][:] = value

    kept.callback(restore)
    for value in before.values():
        if isinstance(value, torch.Generator):
            kept.callback(value.set_state, value.get_state())
        elif isinstance(value, np.random.Generator):
            kept.callback(setattr, value.bit_generator, "state", value.bit_generator.state)
        elif isinstance(value, random.Random):
            kept.callback(value.setstate, value.getstate())
