"""Look at what is trained: a model, its optimizers and its schedule as the fields of a `wiring` event.

Only torch is needed. Nothing is changed. A part that cannot be looked at is named in `unseen`.
"""

from __future__ import annotations

import gc
import math
import platform
import re
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import torch

from gradience.hf.digests import digest_of, plain_name, random_digest
from gradience.hf.parameters import FEW, TRAINABLE_BYTES, NamedParameter, adapter_of, groups_of, parts_of
from gradience.schema import NonFinite, real
from gradience.schema.wiring import AdapterWiring, DataWiring, OptimizerWiring, RateGroup, SavedWiring, ScheduleWiring

if TYPE_CHECKING:
    from gradience.io.safetensors import SafetensorsFile

_PACKAGES: Final = (
    *("torch", "transformers", "peft", "trl", "accelerate", "lightning", "pytorch_lightning", "datasets", "tokenizers"),
    *("numpy", "safetensors", "bitsandbytes", "flash_attn", "xformers", "triton", "deepspeed", "unsloth"),
)
_DTYPES: Final = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_SLOT: Final = re.compile(r"(\.lora_[AB])\.[^.]+\.weight$")  # in a model, the adapter's name stands between
# PEFT writes the one, MLX the other.
_ADAPTER_FILES: Final = ("adapter_model.safetensors", "adapters.safetensors")
_WEIGHTS: Final = frozenset({".safetensors", ".bin", ".pt", ".pth"})
_NO_WEIGHTS: Final = re.compile(r"optimizer|scheduler|scaler|rng_state|training_args|random_states|sampler|README")
_MOST_TIED: Final = 8
_ALONG: Final = 0.3  # least cosine of an average's way from the beginning with the model's
_BEYOND: Final = 1.5  # most length of it, over the model's
_EARLIER: Final = 8  # last steps whose values a stale save is known by
_SAFE: Final = 0x1FFFFFFFFFFFFF  # the largest integer that every reader of JSON holds
_STRANGER: Final = "stranger"
_FOREIGN: Final = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


BRIEF: Final = ("adapter", "optimizer", "checkpointing", "frozen_inputs")


def look(
    model: torch.nn.Module, optimizers: Sequence[Any] = (), schedule: Any = None, *, brief: bool = False
) -> dict[str, Any]:
    """Return the fields of a `wiring` event that the model, its optimizers and its schedule show.

    If `brief`, without digests, versions and whatever else the first steps do not change.
    """
    parts = parts_of(model)
    looks: dict[str, Callable[[], Any]] = {
        "groups": lambda: groups_of(parts),
        "adapter": lambda: adapter_of(model, parts),
        "optimizer": lambda: optimizer_of(optimizers, parts, digest=not brief) if optimizers else None,
        "schedule": lambda: schedule_of(schedule, optimizers),
        "checkpointing": lambda: any(map(_recomputes, model.modules())),
        "frozen_inputs": lambda: inputs_are_frozen(model, parts),
        "tied": lambda: tied_of(model),
        "dropouts": lambda: dropouts_of(model),
        "rng": lambda: f"r1:{random_digest():016x}",
        "seed": lambda: torch.initial_seed() & _SAFE,
        "world_size": _world_size,
        "versions": versions,
        "settings": lambda: settings_of(model),
    }
    fields, unseen = {}, []
    for name, of in looks.items():
        if brief and name not in BRIEF:
            continue
        try:
            fields[name] = of()
        except _FOREIGN as error:  # foreign modules, of whatever version
            unseen.append(f"{name}: {type(error).__name__}")
    return {**fields, "unseen": unseen}


def unwrapped_optimizers(optimizer: Any) -> list[Any]:
    """Return torch's optimizers inside the wrappers of accelerate and Lightning; several if a sequence is given."""
    several = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
    return [_innermost(one) for one in several if one is not None]


def _innermost(optimizer: Any) -> Any:
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner  # accelerate's wrapper is a torch optimizer too, but has not its hooks
    return optimizer


def optimizer_of(optimizers: Sequence[Any], parts: Sequence[NamedParameter], *, digest: bool = True) -> OptimizerWiring:
    """Return what the optimizers hold of the model, what they miss, and what they hold beside it."""
    # Tensors are told by identity, because `==` compares their elements.
    kind_of = {id(part.tensor): part for part in parts}
    tensors = [tensor for one in optimizers for group in one.param_groups for tensor in group["params"]]
    held_ids = {id(tensor) for tensor in tensors}
    own = [kind_of[id(tensor)] for tensor in tensors if id(tensor) in kind_of]
    missing = [part for part in parts if part.tensor.requires_grad and id(part.tensor) not in held_ids]
    strangers = [tensor for tensor in tensors if id(tensor) not in kind_of]
    live = [part for part in own if part.tensor.requires_grad]
    return OptimizerWiring(
        names=[type(one).__name__ for one in optimizers],
        sharded=any(map(is_sharded, (*optimizers, *(part.tensor for part in parts)))),
        held=len(live),
        held_frozen=len(own) - len(live),
        frozen_adapter=sum(part.kind == "adapter" and not part.tensor.requires_grad for part in own),
        held_kinds=_sizes(live),
        missing=dict(Counter(part.kind for part in missing)),
        missing_names=[part.name for part in missing[:FEW]],
        strangers=len(strangers),
        doubled=len(tensors) - len(held_ids),
        # A model that was loaded or wrapped anew after its optimizer has the same shapes in other tensors.
        replaced=(Counter(map(_shape, strangers)) & Counter(_shape(part.tensor) for part in missing)).total(),
        rates=_rates(optimizers, kind_of),
        **_state_of(optimizers, kind_of, digest=digest),
    )


def _sizes(parts: Sequence[NamedParameter]) -> dict[str, int]:
    sizes = defaultdict[str, int](int)
    for part in parts:
        sizes[part.kind] += part.tensor.numel()
    return dict(sizes)


def _shape(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype


def is_sharded(held: Any) -> bool:
    """Whether an optimizer or a parameter is of DeepSpeed or of an FSDP that flattens, so identities mean nothing."""
    kind = type(held)
    return "deepspeed" in kind.__module__.lower() or kind.__name__ == "FlatParameter" or hasattr(held, "ds_id")


def _rates(optimizers: Sequence[Any], kind_of: Mapping[int, NamedParameter]) -> list[RateGroup]:
    groups = defaultdict[tuple[float, float | None], list[torch.Tensor]](list)
    for one in optimizers:
        for group in one.param_groups:
            peak = group.get("initial_lr")
            groups[float(group["lr"]), None if peak is None else float(peak)] += group["params"]
    return [
        RateGroup(
            lr=lr,
            peak=peak,
            tensors=len(tensors),
            parameters=sum(tensor.numel() for tensor in tensors),
            kinds=sorted({kind_of[id(t)].kind if id(t) in kind_of else _STRANGER for t in tensors}),
        )
        for (lr, peak), tensors in list(groups.items())[:64]
    ]


def _state_of(optimizers: Sequence[Any], kind_of: Mapping[int, NamedParameter], *, digest: bool) -> dict[str, Any]:
    """Return the number of states, the most steps in one, and the digest of all."""
    named, steps, states = [], [], 0
    for place, one in enumerate(optimizers):
        for tensor, state in one.state.items():
            states += bool(state)
            name = kind_of[id(tensor)].name if id(tensor) in kind_of else f"{_STRANGER}{place}"
            for key, value in state.items():
                if key == "step":
                    # A tensor in torch's Adam, a number elsewhere. It is no part of the digest.
                    steps.append(float(value))
                elif isinstance(value, torch.Tensor):
                    named.append((f"{name}/{key}", value))
    whole = digest_of(named, TRAINABLE_BYTES) if digest else None
    return {
        "states": states,
        "step": max(steps, default=None),
        "digest": whole.digest if whole else None,
        "sampled": whole.sampled if whole else 1,
    }


def schedule_of(schedule: Any, optimizers: Sequence[Any] = ()) -> ScheduleWiring | None:
    """Return the schedule's class, its steps, its rates, and whether its optimizer is none of those; None without."""
    inner = getattr(schedule, "scheduler", schedule)  # accelerate's wrapper
    if inner is None or not hasattr(inner, "last_epoch"):
        return None
    rates: list[float | NonFinite] = [real(float(rate)) for rate in inner.get_last_lr()]
    return ScheduleWiring(
        name=type(inner).__name__, step=int(inner.last_epoch), rates=rates[:64], foreign=_is_foreign(inner, optimizers)
    )


def _is_foreign(schedule: Any, optimizers: Sequence[Any]) -> bool:
    """Whether a schedule turns another optimizer. Wrappers of unknown kinds and stand-ins are not judged."""
    own = _innermost(getattr(schedule, "optimizer", None))
    known = [one for one in (own, *optimizers) if isinstance(one, torch.optim.Optimizer)]
    # DummyOptim of accelerate stands for the optimizer that DeepSpeed makes itself.
    if len(known) <= len(optimizers) or any("Dummy" in type(one).__name__ for one in known) or not optimizers:
        return False
    return all(own is not one for one in optimizers)


def data_of(loader: Any, **known: Any) -> DataWiring | None:
    """Return what decides the rows of a step: of a torch DataLoader, and what else is `known`."""
    fields = {name: value for name, value in known.items() if value is not None}
    if loader is not None:
        data = getattr(loader, "dataset", None)
        sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None) or getattr(loader, "sampler", None)
        try:
            fields["rows"] = len(data)  # type: ignore[arg-type]  # a stream raises
        except TypeError:
            fields["rows"] = None
        # A DataLoader that was given a batch sampler has None as its own batch size.
        size = getattr(getattr(loader, "batch_sampler", None), "batch_size", getattr(loader, "batch_size", None))
        mark = getattr(data, "_fingerprint", None)
        fields |= {
            **({"batch_size": size} if isinstance(size, int) else {}),
            "sampler": None if sampler is None else type(sampler).__name__,
            "sampler_seed": _seed_of(sampler),
            "fingerprint": mark if isinstance(mark, str) else None,
        }
    return DataWiring(**fields) if any(value is not None for value in fields.values()) else None


def _seed_of(sampler: Any) -> int | None:
    """Return the seed of the order in which rows are drawn: accelerate's, else that of the generator."""
    known = getattr(sampler, "initial_seed", None)
    generator = getattr(sampler, "generator", None)
    if isinstance(known, int):
        return known
    return generator.initial_seed() & _SAFE if isinstance(generator, torch.Generator) else None


def prepared_of(**parts: Any) -> dict[str, list[str]]:
    """Return the names of the parts that Accelerate did not prepare, if it prepared another.

    Or of all if it prepared nothing, with what it was asked for that only a prepared part has; none if that is nothing.
    """
    there = {name: part for name, part in parts.items() if part is not None}
    marked = {name for name, part in there.items() if getattr(part, "_is_accelerate_prepared", False)}
    if marked:
        return {"unprepared": sorted(there.keys() - marked)}
    wishes = [] if (idle := _idle_accelerator()) is None else _asked_of(idle)
    return {"unprepared": sorted(there), "asked": wishes} if wishes else {}


def _idle_accelerator() -> Any:
    """Return an Accelerator whose `prepare` was not called; None without one."""
    kind = getattr(sys.modules.get("accelerate"), "Accelerator", None)
    if kind is None or not _idle(kind):
        return None
    gc.collect()  # one that nobody holds any more may still be among the objects
    return next(iter(_idle(kind)), None)


def _idle(kind: type) -> list[Any]:
    # Accelerate keeps no list of its Accelerators; what they share outlives them, so it does not tell.
    made: list[Any] = [each for each in gc.get_objects() if type(each) is kind]
    return [each for each in made if not (each._models or each._optimizers or each._dataloaders)]  # noqa: SLF001  # no public name tells


def _asked_of(accelerator: Any) -> list[str]:
    wishes = {
        f"mixed precision ({accelerator.mixed_precision})": accelerator.mixed_precision != "no",
        f"accumulation over {accelerator.gradient_accumulation_steps}": accelerator.gradient_accumulation_steps > 1,
        f"{accelerator.num_processes} processes": accelerator.num_processes > 1,
    }
    return [says for says, is_asked in wishes.items() if is_asked]


class EarlierStates:
    """The smallest trainable LoRA factor as it was at the beginning and after the last steps, on its device."""

    def __init__(self, model: torch.nn.Module, step: int) -> None:
        # The smallest is enough, and it is copied after every step.
        self._factor = min(_factors(model).items(), key=lambda item: item[1].numel(), default=None)
        self._kept = deque[tuple[int, torch.Tensor]](maxlen=_EARLIER)
        self._first = [] if self._factor is None else [(step, self._factor[1].detach().clone())]

    def step_made(self, step: int) -> None:
        """Keep the factor as it is now."""
        if self._factor is not None:
            self._kept.append((step, self._factor[1].detach().clone()))

    def step_of(self, name: str, values: np.ndarray[Any, Any], dtype: torch.dtype) -> int | None:
        """The earlier step after which the factor of this name had these values, as bytes; None if it is not known."""
        states = (*reversed(self._kept), *self._first) if self._factor and self._factor[0] == name else ()
        return next((step for step, state in states if np.array_equal(values, _bytes(state, dtype))), None)

    def is_average(self, name: str, values: np.ndarray[Any, Any], dtype: torch.dtype) -> bool:
        """Whether such values lie on the way from the beginning to now, as those of an average of the weights do."""
        if self._factor is None or self._factor[0] != name:
            return False
        first, now = (each.detach().float().cpu().reshape(-1) for each in (self._first[0][1], self._factor[1]))
        way, there = now - first, torch.from_numpy(values.copy()).view(dtype).float() - first
        length = float(torch.linalg.vector_norm(there))
        along = float(torch.dot(way, there)) > _ALONG * length * float(torch.linalg.vector_norm(way))
        return along and length <= _BEYOND * float(torch.linalg.vector_norm(way))


def saved_in(folder: Path, model: torch.nn.Module, earlier: EarlierStates | None = None) -> SavedWiring | None:
    """Return what an adapter file that was just saved holds, by its header and one factor; None if there is none.

    And what trains and is in none of the files of this save: PEFT gives each adapter but `default` a folder of its own.
    """
    from gradience.io.safetensors import SafetensorsFile  # only a save reads one

    parts = parts_of(model)
    adapter = adapter_of(model, parts)
    names = [] if adapter is None else adapter.names
    files = {name: path for name in names if (path := _file_in(folder / name)) is not None}
    root = _file_in(folder)
    trained = {part.adapter for part in parts if part.kind == "adapter" and part.adapter and part.tensor.requires_grad}
    one = next(iter(trained)) if len(trained) == 1 else "default"
    main = files.get(one) or root or next(iter(files.values()), None)
    if main is None:
        return None
    file = SafetensorsFile(main)
    sizes = {name: math.prod(entry.shape) for name, entry in file.tensors.items()}
    differs, of_step = _differing(file, sizes, model, earlier)
    if root is not None:
        # It is that of `default`, unless a script wrote the one that trains there.
        own = "default" if "default" in names and one != "default" and (main != root or differs) else one
        files[own] = root
        differs, of_step = (differs, of_step) if main != root or own == one else (None, None)
    seen = SavedWiring(
        file=main.relative_to(folder).as_posix(),
        tensors=len(sizes),
        parameters=sum(sizes.values()),
        differs=differs,
        of_step=of_step,
        adapters=sorted(files.keys() & {*names}),
    )
    # A script may keep what PEFT does not in a file of its own; a sharded tensor has no name here.
    weights = [path for path in folder.iterdir() if path.suffix in _WEIGHTS and not _NO_WEIGHTS.match(path.name)]
    if adapter is None or {*weights} - {root} or not sizes or any(is_sharded(part.tensor) for part in parts):
        return seen
    held = {name: {_bare(key, name) for key in SafetensorsFile(path).tensors} for name, path in files.items()}
    return msgspec.structs.replace(seen, **_absent(parts, adapter, held))


def _file_in(folder: Path) -> Path | None:
    return next((folder / name for name in _ADAPTER_FILES if (folder / name).is_file()), None)


def _bare(name: str, adapter: str) -> str:
    """A tensor's name as it is the same in a model and in a file."""
    parts = [part for part in name.split(".") if part not in {"modules_to_save", adapter}]
    return ".".join(parts).removesuffix(".weight")


def _absent(parts: Sequence[NamedParameter], adapter: AdapterWiring, held: Mapping[str, set[str]]) -> dict[str, Any]:
    """What trains and is in none of the files: whole adapters of LoRA, and tensors beside those that are there."""
    live = [part for part in parts if part.tensor.requires_grad]
    named = [part for part in live if ".lora_" in part.name or part.kind != "adapter"]
    own = {part.adapter for part in named if part.kind == "adapter" and part.adapter in adapter.active}
    lacking = sorted(name for name in own if name and name not in held)
    every = set().union(*held.values())
    lost = [
        part
        for part in named
        if part.adapter not in lacking
        and _bare(part.name, part.adapter or "") not in held.get(part.adapter or "", every)
    ]
    counts = dict(Counter(part.kind for part in lost))
    return {"lacking": lacking, "absent": counts, "absent_names": [part.name for part in lost[:FEW]]}


def _factors(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trainable LoRA factors by their names in a file; none of two adapters that train."""
    slots = [(_SLOT.sub(r"\1.weight", plain_name(n)), t) for n, t in model.named_parameters() if t.requires_grad]
    live = dict(slots) if len(dict(slots)) == len(slots) else {}
    # A sharded factor is of another class, and no process has all of it.
    return {name: tensor for name, tensor in live.items() if ".lora_" in name and type(tensor) is torch.nn.Parameter}


def _differing(
    file: SafetensorsFile, sizes: Mapping[str, int], model: torch.nn.Module, earlier: EarlierStates | None
) -> tuple[str | None, int | None]:
    """Return the smallest trainable LoRA factor in a file if its values are not the model's, in the file's dtype.

    And the earlier step whose values they are; None if there is none. Not of an average of the model's weights.
    """
    live = {name: tensor for name, tensor in _factors(model).items() if name in sizes and tensor.numel()}
    name = min(live, key=lambda each: live[each].numel(), default=None)
    if name is None or sizes[name] != live[name].numel() or (dtype := _DTYPES.get(file.tensors[name].dtype)) is None:
        return None, None
    saved = file.raw(name).reshape(-1)
    # The model's values are brought to the file's dtype first: a save may have rounded them.
    if np.array_equal(saved, _bytes(live[name], dtype)):
        return None, None
    step = earlier.step_of(name, saved, dtype) if earlier is not None else None
    if step is None and earlier is not None and earlier.is_average(name, saved, dtype):
        return None, None
    return name, step


def _bytes(tensor: torch.Tensor, dtype: torch.dtype) -> np.ndarray[Any, Any]:
    return tensor.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy()


def inputs_are_frozen(model: torch.nn.Module, parts: Sequence[NamedParameter]) -> bool:
    """Whether reentrant checkpointing gets inputs that need no gradient: then none flows to what it recomputes."""
    if not any(_recomputes(module) and _is_reentrant(module) for module in model.modules()):
        return False
    # `enable_input_require_grads` of transformers leaves these; the embedding's output then needs a gradient.
    hooked = any(getattr(module, "_require_grads_hooks", None) for module in model.modules())
    return not hooked and not any(part.kind == "embedding" and part.tensor.requires_grad for part in parts)


def _recomputes(module: torch.nn.Module) -> bool:
    return getattr(module, "gradient_checkpointing", False) is True


def _is_reentrant(module: torch.nn.Module) -> bool:
    # transformers keeps torch's `checkpoint` as a partial.
    keywords = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
    return keywords.get("use_reentrant") is True


def tied_of(model: torch.nn.Module) -> list[list[str]]:
    """Return names that share one parameter."""
    names = defaultdict[int, list[str]](list)
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names[id(tensor)].append(name)
    return [shared[:FEW] for shared in names.values() if len(shared) > 1][:_MOST_TIED]


def dropouts_of(model: torch.nn.Module) -> dict[str, int]:
    """Return the number of dropout modules by their probability."""
    kinds = torch.nn.modules.dropout._DropoutNd  # noqa: SLF001  # the class of all of them
    return dict(Counter(f"{module.p:g}" for module in model.modules() if isinstance(module, kinds)))


def versions() -> dict[str, str]:
    """Return the versions of Python, of the loaded packages, and of CUDA and cuDNN."""
    # What is not loaded took no part in the run, and is not imported for its version.
    loaded = {name: getattr(sys.modules.get(name), "__version__", None) for name in _PACKAGES}
    packages = {name: str(version) for name, version in loaded.items() if version}
    cuda = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    return {"python": platform.python_version(), **packages, **cuda}


def settings_of(model: torch.nn.Module) -> dict[str, Any]:
    """Return what decides how a step is computed, as far as torch and the model's config show it."""
    config = getattr(model, "config", None)
    attention = getattr(config, "_attn_implementation", None)
    return {
        "attention": attention if isinstance(attention, str) else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "threads": torch.get_num_threads(),
        "training": model.training,
        "dropout": {name: value for name, value in _public(config).items() if "drop" in name and _is_number(value)},
        "processor": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _public(config: Any) -> dict[str, Any]:
    return vars(config) if hasattr(config, "__dict__") else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _world_size() -> int:
    of_torch = torch.distributed
    return of_torch.get_world_size() if of_torch.is_available() and of_torch.is_initialized() else 1
