"""Models that run: a base with adapters, the inputs for it, and the statistics of its outputs.

This module loads a base model and adapters through transformers and PEFT, from local files only and in evaluation mode.
torch, transformers and PEFT are imported when a model is loaded, so that programs that load none do not need them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from gradience.adapters.layout import PREFIX, Adapter
from gradience.adapters.open import open_adapter
from gradience.data.encoder import Encoder, expect_tokenizer
from gradience.errors import AdapterError, ConfigError, GradienceError
from gradience.io import PathLike, pretrained
from gradience.models.named import named

if TYPE_CHECKING:
    import torch


Task: TypeAlias = Literal["causal-lm", "sequence-classification", "token-classification"]

FIRST: Final = "default"
"""PEFT's name of the adapter that a model is loaded with."""

_OF_PEFT: Final[dict[str, Task]] = {
    "CAUSAL_LM": "causal-lm",
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
}
_CLASSES: Final[dict[Task, str]] = {
    "causal-lm": "AutoModelForCausalLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
_ENDINGS: Final[dict[str, Task]] = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
}
_HEADS: Final = ("classifier", "score", "classification_head")  # transformers' names of a classifier's last layers
_FITTING: Final = "give the model the adapter was trained on"
_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")


class HeadlessError(AdapterError):
    """Weights of the model are in no file, so that they would be drawn at random."""


@dataclass(slots=True)
class LoadedModel:
    """A model in evaluation mode, none of whose parameters requires a gradient.

    `model` is PEFT's model, or the base itself if no adapter was given. `tokenizer` is None if there is none beside the
    files.
    """

    model: Any
    task: Task
    device: torch.device
    tokenizer: Encoder | None

    @property
    def config(self) -> Any:
        """The base's configuration, as transformers holds it."""
        return self.model.config

    @property
    def pad(self) -> int | None:
        """The token id that pads short rows. None for a classifier without one, which takes one row at a time."""
        # A causal model may pad with any id, because the mask hides it. transformers' classifiers find a row's last
        # token by the pad id, and refuse several rows without one.
        token: int | None = getattr(self.config, "pad_token_id", None)
        return 0 if token is None and self.task != "sequence-classification" else token

    @property
    def longest(self) -> int | None:
        """The number of positions that the model has; None if its config does not say."""
        longest: int | None = getattr(self.config, "max_position_embeddings", None)
        return longest


def load_model(
    base: PathLike, adapter: PathLike | None = None, *, task: Task | None = None, device: str | None = None
) -> LoadedModel:
    """Load a base with an adapter on it.

    On a CPU, weights are float32, because half precision is slow there and its rounding would show in small
    differences. On other devices they have the dtype in which they are stored.

    Args:
        base: a folder as transformers saves one, or organisation/name in the hub's local cache. Never downloaded.
        adapter: the folder that PEFT saved; None for the base alone.
        task: what the model predicts; by default as the adapter's config says, else the base's.
        device: torch's name of a device; by default a GPU if torch has one.

    Raises:
        AdapterError: a file is missing or damaged, the task is not known, or the base does not fit the adapter.
        GradienceError: torch, transformers or PEFT is not installed, or there is no such device.
    """
    # The adapter's first: tokens that were added for its training are in its own.
    holders = [place for place in (adapter, base) if place is not None and _may_have_tokenizer(place)]
    # Before torch, so that the tokenizers' process imports while this one does.
    if holders:
        expect_tokenizer()
    torch, transformers = libraries("running a model")
    opened = None if adapter is None else open_adapter(adapter)[1]
    place = _device(torch, device)
    with quietly():
        config = _config(transformers, base)
        chosen = task or _task(config, opened)
        model, missing = _base(transformers, base, chosen, opened, dtype=None if place.type == "cpu" else "auto")
        _refuse_random(missing, opened)
        model.to(place)
        loaded = LoadedModel(model, chosen, place, _tokenizer(holders))
        if adapter is not None and opened is not None:
            _refuse_misfit(model, opened)
            loaded.model = _with_adapter(model, Path(adapter), opened)
    loaded.model.eval()
    loaded.model.requires_grad_(requires_grad=False)
    return loaded


def load_adapter(loaded: LoadedModel, adapter: PathLike, name: str) -> None:
    """Add another adapter to a model that has one, under a name that `active` takes.

    Raises:
        AdapterError: the adapter cannot be read, or does not fit the base.
    """
    libraries("running a model")
    opened = open_adapter(adapter)[1]
    with quietly(), _misfits(adapter), named(adapter, loaded.model.get_base_model(), opened.tensors) as folder:
        _refuse_misfit(loaded.model, opened)
        loaded.model.load_adapter(os.fspath(folder), name)
    _refuse_unplaced(loaded.model, opened, name)
    loaded.model.eval()
    loaded.model.requires_grad_(requires_grad=False)


def drop_adapter(loaded: LoadedModel, name: str) -> None:
    """Remove an adapter from the model, and free its memory."""
    loaded.model.delete_adapter(name)


@contextmanager
def active(loaded: LoadedModel, name: str | None) -> Iterator[None]:
    """A context in which the adapter of that name is active; None stands for the base without an adapter."""
    model = loaded.model
    before = model.active_adapter
    try:
        with model.disable_adapter() if name is None else nullcontext():
            if name is not None:
                model.set_adapter(name)
            yield
    finally:
        model.set_adapter(before)
        model.requires_grad_(requires_grad=False)  # PEFT makes the parameters that it activates require gradients


def libraries(what: str) -> tuple[Any, Any]:
    """The modules torch and transformers, once PEFT is known to be installed too; `what` needs them, for the error.

    Raises:
        GradienceError: one of them is not installed.
    """
    try:
        import peft  # noqa: F401  # asked for before minutes are spent on the base
        import torch  # only those who run a model pay for it
        import transformers  # the same
    except ModuleNotFoundError as error:
        raise GradienceError(
            f"{what} needs {error.name}, which is not installed", advice="in the clone: pip install -e '.[hf]'"
        ) from error
    return torch, transformers


def _device(torch: Any, name: str | None) -> Any:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise GradienceError(f"{name!r} is not a device that torch knows", advice="give cpu or cuda") from error


@contextmanager
def quietly() -> Iterator[None]:
    """A context without progress bars and warnings of transformers and PEFT; what matters is raised instead."""
    import transformers  # see the module's first lines
    from transformers.utils import logging as of_transformers  # the same

    level, bars = of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    of_transformers.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        of_transformers.set_verbosity(level)
        if bars:
            of_transformers.enable_progress_bar()


def _config(transformers: Any, base: PathLike) -> Any:
    try:
        config = pretrained.load(transformers.AutoConfig, base)
    except Exception as error:  # transformers reads a stranger's file, and may raise anything
        raise AdapterError(
            f"no base model at {base}: {pretrained.reason(error)}",
            advice="give a folder with config.json and weights, or organisation/name in the hub's cache",
        ) from error
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        kernel = getattr(part, "_attn_implementation", None)
        if "/" in str(kernel):  # a repository, whose code would be downloaded and run
            raise AdapterError(f"{base}: its config asks for code of {kernel}, which is not run", advice=_FITTING)
    return config


def _task(config: Any, adapter: Adapter | None) -> Task:
    """The task by the adapter's config, else by the class that the base was saved from, else by a head in the adapter.

    Raises:
        AdapterError: none of these names a task, or the task is not supported here.
    """
    named = None if adapter is None else adapter.config.task_type
    if named is not None and named not in _OF_PEFT:
        raise AdapterError(
            f"task_type {named} is not run here",
            advice=f"expected one of {', '.join(_OF_PEFT)} in the adapter's config",
        )
    if named is not None:
        return _OF_PEFT[named]
    for architecture in getattr(config, "architectures", None) or []:
        for ending, task in _ENDINGS.items():
            if architecture.endswith(ending):
                return task
    if adapter is not None and _labels(adapter) is not None:
        return "sequence-classification"
    raise AdapterError(
        "neither the adapter's task_type nor the base's architectures say what the model predicts",
        advice=f"expected {', '.join(get_args(Task))}: write task_type into the adapter's config",
    )


def _labels(adapter: Adapter) -> int | None:
    """The number of classes: the rows of the last weight of a head that the adapter saves whole; None without one."""
    rows = [
        info.shape[0]
        for name, info in adapter.tensors.items()
        if adapter.roles.get(name) == "full_module"
        and len(info.shape) == 2
        and any(f".{head}." in f".{name}" for head in _HEADS)
    ]
    return min(rows, default=None)  # of a head with two layers, the last is the narrower


def _base(
    transformers: Any, base: PathLike, task: Task, adapter: Adapter | None, *, dtype: str | None
) -> tuple[Any, set[str]]:
    """The base model, and the names of its weights that no file contained or that had another shape."""
    labels = None if adapter is None or task == "causal-lm" else _labels(adapter)
    # The base's own head may have another number of classes. What does not fit counts as missing, and then the adapter
    # must bring it.
    options: dict[str, Any] = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    import torch  # see the module's first lines

    try:
        kind = getattr(transformers, _CLASSES[task])
        model, loading = pretrained.load_model(
            kind, base, dtype=dtype or torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # as above
        raise AdapterError(f"cannot load {base} for {task}: {pretrained.reason(error)}", advice=_FITTING) from error
    mismatched = {entry[0] if isinstance(entry, tuple) else entry for entry in loading["mismatched_keys"]}
    return model, set(loading["missing_keys"]) | mismatched


def _refuse_random(missing: set[str], adapter: Adapter | None) -> None:
    """Refuse a base with randomly initialised weights that the adapter does not contain either.

    Raises:
        HeadlessError: there is such a weight; the message names the first one.
    """
    brought = set() if adapter is None else {_plain(name) for name in adapter.tensors}
    random = sorted(name for name in missing if not any(name == b or name.endswith(f".{b}") for b in brought))
    if random:
        raise HeadlessError(
            f"{len(random)} weights are neither in the base nor in the adapter (first: {random[0]})",
            advice="give a base, or an adapter, that has its head",
        )


def _plain(name: str) -> str:
    """The name of a saved tensor as the base spells it: without PEFT's prefix and wrappers."""
    parts = name.removeprefix(PREFIX).split(".")
    return ".".join(part for part in parts if part not in {"modules_to_save", "base_layer"})


def _refuse_misfit(model: Any, adapter: Adapter) -> None:
    """Refuse a base that lacks a weight that the adapter updates, or has it in another shape.

    Raises:
        AdapterError: there is such a weight; the message names the first one.
    """
    shapes = {_plain(name): tuple(p.shape) for name, p in model.named_parameters() if ".lora_" not in name}
    for module in adapter.modules:
        if module.expert is not None or module.kind not in {"linear", "dora", "embedding"}:
            continue  # their shapes have other axes, so PEFT checks them
        name = module.base_name or f"{module.name}.weight"
        shape = shapes.get(name)
        if shape is None:
            raise AdapterError(f"the base has no {name}, which the adapter updates", advice=_FITTING)
        if shape != module.shape:
            raise AdapterError(
                f"{name} is of shape {list(shape)} in the base, and the adapter's update of {list(module.shape)}",
                advice=_FITTING,
            )


def _with_adapter(model: Any, folder: Path, adapter: Adapter) -> Any:
    import peft  # see the module's first lines

    with _misfits(folder), named(folder, model, adapter.tensors) as safe:
        adapted = pretrained.load_adapter(peft.PeftModel, model, safe)
    _refuse_unplaced(adapted, adapter, FIRST)
    return adapted


@contextmanager
def _misfits(folder: PathLike) -> Iterator[None]:
    """A context that turns PEFT's errors into `AdapterError`."""
    try:
        yield
    except GradienceError:
        raise
    except Exception as error:  # as above
        reason = pretrained.reason(error)
        raise AdapterError(f"PEFT cannot load {folder} on this base: {reason}", advice=_FITTING) from error


def _refuse_unplaced(model: Any, adapter: Adapter, name: str) -> None:
    """Refuse an adapter with a tensor that PEFT did not load, or without a tensor that PEFT created.

    Raises:
        AdapterError: there is such a tensor; the message names the first one.
    """
    import peft  # see the module's first lines

    placed = set(peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    odd = sorted(placed ^ set(adapter.tensors))
    odd = [one for one in odd if adapter.roles.get(one) not in {"base_copy", "full_module"} or one in placed]
    if odd:
        what = "does not hold" if odd[0] in placed else "holds, and this base has no place for,"
        raise AdapterError(f"the adapter does not fit the base: it {what} {odd[0]} (of {len(odd)})", advice=_FITTING)


def _may_have_tokenizer(place: PathLike) -> bool:
    is_folder = os.path.isdir(place)  # noqa: PTH112  # a hub's name is not a path
    return not is_folder or any((Path(place) / name).is_file() for name in _TOKENIZER)


def _tokenizer(places: Sequence[PathLike]) -> Encoder | None:
    """The tokenizer of the first place that has one; None without any."""
    for place in places:
        try:
            return Encoder(Path(place), masks=False)
        except ConfigError:
            continue  # for example an adapter's folder with a tokenizer config alone
    return None
