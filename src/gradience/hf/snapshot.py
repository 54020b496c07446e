"""Take a snapshot of a Trainer's configuration, by an allow-list of settings that `gradience check` also reads.

The command line, the environment, the user, the machine and paths are not read.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from typing import Any, Final

from gradience.configs.settings import LORA, OF_ANY_METHOD, OPTIMIZER, RUN, TRAINING, Draft, known_keys, overlay
from gradience.configs.training import note_training
from gradience.configs.values import Fields, short_name
from gradience.schema.events import ConfigSnapshot
from gradience.schema.values import described

MAX_NAMES: Final = 200  # names in a list or pattern, so that they fit in a log line of 64 KiB

_SPREAD: Final = ("adam_beta1", "adam_beta2", "bf16", "fp16")  # one of our settings is several of the Trainer's
_OF_TRL: Final = (  # settings of TRL's configs that decide the objective and its data
    *("beta", "loss_type", "loss_weights", "label_smoothing", "cpo_alpha", "simpo_gamma", "desirable_weight"),
    *("undesirable_weight", "num_generations", "num_iterations", "epsilon", "epsilon_high", "scale_rewards"),
    *("max_prompt_length", "max_completion_length", "temperature", "mask_truncated_completions"),
    *("packing", "packing_strategy", "padding_free", "completion_only_loss", "assistant_only_loss"),
)
_WRAPPERS: Final = ("_orig_mod", "module")
_FILE_BUILDERS: Final = frozenset(
    {"arrow", "audiofolder", "csv", "generator", "imagefolder", "json", "pandas", "parquet", "text", "webdataset"}
)
_PACKAGES: Final = ("transformers", "peft", "trl", "accelerate", "lightning", "torch")


def config_snapshot(
    args: Any,
    state: Any,
    given: ConfigSnapshot,
    *,
    model: Any = None,
    optimizer: Any = None,
    train_dataloader: Any = None,
) -> ConfigSnapshot:
    """Return the configuration that a Trainer's callbacks see, overlaid with the settings that the user gave.

    Raises:
        ConfigError: a setting has a value of the wrong kind.
    """
    draft = Draft()
    note_model(draft, unwrapped(model))
    _read_arguments(draft, args)
    _read_plan(draft, args, state, train_dataloader)
    note_optimizer(draft, optimizer)
    if (name := _dataset_name(train_dataloader)) is not None:
        draft.set("run", "dataset_name", name)
    return overlay(draft.snapshot(), given)


def run_meta(framework: str, device: str) -> dict[str, Any]:
    """Return the framework, the kind of device, and the versions of Python and of the loaded packages.

    The modules hold their versions, so the disk is not searched.
    """
    loaded = {name: getattr(sys.modules.get(name), "__version__", None) for name in _PACKAGES}
    known = {"python": platform.python_version(), "gradience": version("gradience"), **loaded}
    return {
        "framework": framework,
        "versions": {name: str(release) for name, release in known.items() if release},
        "device": device,
        "platform": sys.platform,
    }


def batch_size(args: Any, state: Any) -> int:
    """Return sequences per device and step. `auto_find_batch_size` may have made them fewer than the arguments say."""
    used = state.train_batch_size
    # The Trainer counts the rows of all cards of DataParallel together.
    return int(used) // max(1, int(args.n_gpu)) if used else int(args.per_device_train_batch_size)


def _read_arguments(draft: Draft, args: Any) -> None:
    known = {name for setting in (*OPTIMIZER, *TRAINING) for name in setting.native} | set(_SPREAD)
    settings = {name: described(getattr(args, name)) for name in known if hasattr(args, name)}
    of_trainer = known_keys("trl") - known | {*_OF_TRL}
    trainer = dict.fromkeys(name for name in of_trainer if hasattr(args, name))  # their presence only
    fields = Fields({**trainer, **settings}, "TrainingArguments")
    draft.read("optimizer", OPTIMIZER, fields, loose=False)
    draft.read("training", TRAINING, fields, loose=False)
    chosen = {name: described(getattr(args, name)) for name in _OF_TRL if name in trainer}
    if chosen:
        draft.set("training", "trl", {name: value for name, value in chosen.items() if value is not None}, extra=True)
    own_dtype = draft.get("training", "model_dtype")
    if own_dtype is not None:
        draft.set("training", "dtype", own_dtype)  # that of the weights; mixed precision, noted next, overrides it
    note_training(fields, draft)


def _read_plan(draft: Draft, args: Any, state: Any, train_dataloader: Any) -> None:
    draft.set("training", "batch_size", batch_size(args, state))
    if state.max_steps > 0:
        draft.set("training", "max_steps", int(state.max_steps))
    examples = dataset_size(train_dataloader)
    if examples is not None:
        draft.set("training", "train_examples", examples, extra=True)


def dataset_size(dataloader: Any) -> int | None:
    """Return the number of examples in the loader's data set, or None for a stream."""
    try:
        return len(dataloader.dataset)
    except (AttributeError, TypeError, NotImplementedError):
        return None


def note_optimizer(draft: Draft, optimizer: Any) -> None:
    """Take the settings in force from the optimizer, because a script may have built its own."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    groups = getattr(optimizer, "param_groups", None)
    if not groups:
        return
    draft.set("optimizer", "class", type(optimizer).__name__, extra=True)
    known = [group.get("initial_lr", group.get("lr")) for group in groups]  # lr: no schedule, or none yet
    rates = [float(rate) for rate in known if rate is not None]
    if rates:
        draft.set("optimizer", "lr", max(rates))
    if len(set(rates)) > 1:
        draft.set("optimizer", "lr_groups", sorted(set(rates)), extra=True)
    decays = [float(group["weight_decay"]) for group in groups if "weight_decay" in group]
    if decays:
        draft.set("optimizer", "weight_decay", max(decays))


def note_model(draft: Draft, model: Any) -> None:
    """Take from the model its name, adapter settings, number of classes, class name, dtype and quantization."""
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None)
    if isinstance(name, str) and name:
        draft.set("run", "model_name", short_name(name))
    adapters = getattr(model, "peft_config", None)
    if adapters:
        _read_adapter(draft, active_adapter(model, adapters))
    base = model.get_base_model() if adapters and hasattr(model, "get_base_model") else model
    if base is not None:
        draft.set("lora", "base_model_class", type(base).__name__, extra=True)
    _read_weights(draft, model, config, type(base).__name__)


def _read_weights(draft: Draft, model: Any, config: Any, kind: str) -> None:
    labels = getattr(config, "num_labels", None)
    if kind.endswith(("SequenceClassification", "TokenClassification")) and isinstance(labels, int):
        draft.set("run", "num_labels", labels)
    dtype = getattr(model, "dtype", None)
    if dtype is not None:
        draft.set("training", "model_dtype", str(dtype).removeprefix("torch."), extra=True)
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        draft.set("run", "quantization", _quantization(quantized), extra=True)


def _quantization(config: Any) -> dict[str, Any]:
    settings = config if isinstance(config, dict) else vars(config)
    bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else settings.get("bits")
    fields = {"method": settings.get("quant_method"), "bits": bits, "type": settings.get("bnb_4bit_quant_type")}
    return {key: described(value) for key, value in fields.items() if value is not None}


def _read_adapter(draft: Draft, config: Any) -> None:
    """Take the adapter's settings. For a method other than LoRA, only those that mean the same for every method."""
    names = [name for setting in (*RUN, *LORA) for name in setting.native]
    fields = Fields({name: _short(getattr(config, name)) for name in names if hasattr(config, name)}, "PEFT")
    draft.read("run", RUN, fields, loose=False)
    draft.read("lora", OF_ANY_METHOD, fields, loose=False)
    if draft.get("lora", "peft_type") not in {None, "LORA"}:
        return
    draft.read("lora", LORA, fields, loose=False)
    if fields.is_null("target_modules"):
        draft.set("lora", "target_modules_null", value=True, extra=True)
    r, alpha = draft.get("lora", "r"), draft.get("lora", "alpha")
    if r and isinstance(alpha, (int, float)):
        draft.set("lora", "alpha_over_r", alpha / r)


def _short(value: Any) -> Any:
    """Return a JSON value. A long list of module names is cut to their last parts; a long pattern is None."""
    if isinstance(value, (set, frozenset, list, tuple)):
        names = sorted(str(described(item)) for item in value)
        return names if len(names) <= MAX_NAMES else sorted({name.rsplit(".", 1)[-1] for name in names})
    if isinstance(value, dict):
        return {str(key): described(item) for key, item in value.items()} if len(value) <= MAX_NAMES else None
    return described(value)


def active_adapter(model: Any, adapters: dict[str, Any]) -> Any:
    """Return the settings of the adapter that is active, else of the first."""
    active = getattr(model, "active_adapter", None)
    active = active[0] if isinstance(active, list) and active else active
    return adapters[active if isinstance(active, str) and active in adapters else next(iter(adapters))]


def unwrapped(model: Any) -> Any:
    """Return the model inside torch.compile's and data-parallel wrappers, which have the model as their only child."""
    while True:
        children = getattr(model, "_modules", {})
        if len(children) != 1 or next(iter(children)) not in _WRAPPERS:
            return model
        model = next(iter(children.values()))


def _dataset_name(dataloader: Any) -> str | None:
    """Return the hub name of a `datasets.Dataset`; None for local files, which are named by their format."""
    info = getattr(getattr(dataloader, "dataset", None), "info", None)
    name = getattr(info, "dataset_name", None)
    return name if isinstance(name, str) and name not in _FILE_BUILDERS else None
