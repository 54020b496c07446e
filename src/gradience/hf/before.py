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
from gradience.schema import SCHEMA_ID, Severity, real
from gradience.schema.document import SEVERITIES, by_severity
from gradience.schema.events import ConfigSnapshot, Metrics, Wiring
from gradience.schema.preflight import PREFLIGHT_SCHEMA_ID, FirstBatches, PlannedRate, PreflightReport
from gradience.schema.reports import CheckReport
from gradience.schema.wiring import GradientWiring
from gradience.telemetry.series import RunSeries
from gradience.verbs.check.run import check_config

_FAILURES: Final = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
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
    notes: tuple[str, ...] = ()
    no_loader: str = "no data set was given"
    schedule: Any = None
    tokenizer: Any = None


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
    notes: list[str] = []
    schedule = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)  # accelerate's wrapper
    tokenizer = getattr(trainer, "processing_class", None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    flight = _Flight(trainer.model, trainer.args, schedule=schedule, tokenizer=tokenizer)
    try:
        flight = flight._replace(loader=trainer.get_train_dataloader())
    except Exception as error:  # noqa: BLE001  # the user's own data and loader, which may raise anything
        flight = flight._replace(no_loader=f"the Trainer's loader cannot be made: {error}")
    optimizer = getattr(trainer, "optimizer", None)
    if optimizer is None and _makes_plainly(trainer):
        try:
            optimizer = trainer.create_optimizer()
        except _FAILURES as error:
            notes.append(f"the optimizer cannot be made: {error}")
    elif optimizer is None:
        notes.append("the optimizer is not looked at: making it would change the model, or is the Trainer's own way")
    return flight._replace(optimizer=optimizer, notes=tuple(notes))


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
        notes=[*flight.notes, *_of_memory(flight.model, check), *(f"not looked at: {what}" for what in seen["unseen"])],
    )


def _of_memory(model: torch.nn.Module, check: CheckReport) -> list[str]:
    place = _device(model).type
    known = check.memory is not None and check.memory.peak_bytes is not None
    return [f"the memory is that of a CUDA device; the model lies on {place}"] if known and place != "cuda" else []


def _judged(config: ConfigSnapshot, seen: Mapping[str, Any], batches: FirstBatches, calls: Invocations) -> Verdict:
    """Judge what was seen as the start of a run's log is."""
    run = RunSeries("preflight", config=config)
    run.look(live_look(Wiring, 0, {"phase": "start", **seen}))
    if calls.rows and not calls.invoked and seen.get("optimizer") is not None:
        first = GradientWiring(steps=0, tensors=seen["optimizer"].held, rows=calls.rows, invoked=0)
        run.look(live_look(Wiring, 0, {"phase": "gradients", "gradients": first}))
    if batches.counts:
        counts = Metrics(schema=SCHEMA_ID, ts=None, run_id="preflight", step=0, kind="data", metrics=batches.counts)
        run.add(counts)
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
    if flight.args is None or isinstance(flight.args, Mapping):
        draft = Draft()
        note_model(draft, unwrapped(flight.model))
        return draft.snapshot()
    state = SimpleNamespace(max_steps=steps or 0, train_batch_size=None)
    parts = {"model": flight.model, "optimizer": flight.optimizer, "train_dataloader": flight.loader}
    return config_snapshot(flight.args, state, ConfigSnapshot(), **parts)


def _steps(flight: _Flight) -> int | None:
    """Return the planned optimizer steps, as the Trainer counts them; None if they are not known."""
    args = flight.args
    if args is None or isinstance(args, Mapping):
        return None
    if args.max_steps > 0:
        return int(args.max_steps)
    try:
        batches = len(flight.loader)
    except (TypeError, NotImplementedError):
        return None
    epochs, accumulated = float(args.num_train_epochs), int(args.gradient_accumulation_steps)
    return math.ceil(epochs * math.ceil(batches / accumulated))


def _rates(flight: _Flight, steps: int | None) -> tuple[str, list[PlannedRate]]:
    """Return the schedule's name, and the highest rates of a few steps; none if a schedule cannot be foretold."""
    args = flight.args
    if args is None or isinstance(args, Mapping) or not steps or steps > _MOST_STEPS:
        return "", []
    if flight.schedule is not None:
        return _given_rates(flight.schedule, steps)
    from transformers import get_scheduler  # the user's own

    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    peak = _peak(flight.optimizer, args.learning_rate)
    # A schedule writes its rates into its optimizer as soon as it is made, so it is not given the Trainer's.
    stand_in = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    warmup = args.get_warmup_steps(steps)
    try:
        schedule: Any = get_scheduler(
            name, stand_in, warmup, steps, scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {})
        )
        share = schedule.lr_lambdas[0]
        places = sorted({0, min(warmup, steps - 1), steps // 2, steps - 1})
        # A schedule counts from 0: step 1 is trained at its rate for 0.
        return name, [PlannedRate(step=at + 1, lr=real(peak * share(at))) for at in places]
    except _FAILURES:
        return name, []


def _given_rates(schedule: Any, steps: int) -> tuple[str, list[PlannedRate]]:
    """Those of a schedule that the Trainer was given, where plain functions of the step decide them."""
    name, shares = type(schedule).__name__, getattr(schedule, "lr_lambdas", ())
    if not shares or not all(isinstance(share, FunctionType | partial) for share in shares):
        return name, []  # an object might count its calls
    try:
        rates = {
            at: max(base * share(at) for base, share in zip(schedule.base_lrs, shares, strict=True))
            for at in (0, steps // 2, steps - 1)
        }
    except Exception:  # noqa: BLE001  # a function of the user's
        return name, []
    return name, [PlannedRate(step=at + 1, lr=real(float(rate))) for at, rate in sorted(rates.items())]


def _peak(optimizer: Any, planned: float) -> float:
    """The highest rate of the optimizer's groups, which a script may have set; else the planned one."""
    groups = getattr(optimizer, "param_groups", None) or ()
    return max((float(group.get("initial_lr", group["lr"])) for group in groups), default=planned)


def _first_batches(flight: _Flight, calls: Invocations) -> FirstBatches:
    """Draw the first micro-batches as the loader would, without its workers and without Accelerate's bookkeeping."""
    if flight.loader is None:
        return FirstBatches(reason=flight.no_loader)
    limit = getattr(flight.args, "max_length", None)
    end = getattr(flight.tokenizer, "eos_token_id", None)  # training makes it one of the model's
    watch = BatchWatch(
        flight.model,
        max_length=limit if isinstance(limit, int) else None,
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
    if not isinstance(batch, Mapping):
        rows = len(batch) if isinstance(batch, list | tuple) else 0
        first = batch[0] if rows else None
        names = ", ".join(map(str, first)) if isinstance(first, Mapping) else type(batch).__name__
        return {"rows": f"{rows} ({names})"}
    return {name: _shape(value) for name, value in batch.items()}


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{' x '.join(map(str, value.shape)) or 'one number'} {str(value.dtype).removeprefix('torch.')}"
    return f"{len(value)} of {type(value).__name__}" if hasattr(value, "__len__") else type(value).__name__


def _take_mask(batch: Mapping[str, Any], judged: dict[str, int]) -> None:
    """Count the tokens that a completion_mask leaves in the loss, where the Trainer makes labels of it later."""
    mask, ids = batch.get("completion_mask"), batch.get("input_ids")
    if "labels" in batch or not isinstance(mask, torch.Tensor) or not isinstance(ids, torch.Tensor):
        return
    if mask.shape == ids.shape:
        room = batch.get("attention_mask")
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
