"""The change that PEFT's own merge makes to each weight of a base: W' - W, one module at a time.

For most kinds of adapter, no formula is written here: the module is built as torch has it, with its weights from the
base's files. PEFT's tuner wraps it, loads the adapter's tensors for it and merges them. What the merge changed is the
update. So every kind that the installed PEFT can merge is covered, and only one module is in memory at a time.

Some kinds share numbers among modules: projections as large as the largest module (VeRA, RandLoRA), or shares of a
vector in the modules' order (TinyLoRA, UniLoRA). PEFT then sees all modules of the model, but the others have no data
(torch's device `meta`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

import numpy as np

from gradience.adapters import is_embedding
from gradience.adapters.config import LARGEST_CONFIG
from gradience.adapters.layout import PREFIX, Adapter, Array, Module
from gradience.base.peft_emulation import read_architecture
from gradience.base.peft_emulation.layout import OUTPUTS
from gradience.base.weights import BaseTensor, BaseWeights
from gradience.errors import AdapterError, GradienceError
from gradience.io import natural_key, pretrained
from gradience.io.reading import decode_json, read_small
from gradience.io.safetensors import TensorInfo
from gradience.models import FIRST, libraries, quietly
from gradience.models.named import safe_config
from gradience.schema.audit import Role

TorchModule: TypeAlias = Any
"""A torch.nn.Module; torch is not imported with this module."""

_CLASSES: Final = {  # PEFT's task_type to the class of transformers that a training run loads
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
_OF_ALL_WEIGHTS: Final = frozenset({"FROD"})
"""Kinds whose shared projections PEFT computes from the weights of all modules; only those in the file can be used."""

_IN_ORDER: Final = frozenset({"TINYLORA", "UNILORA"})
"""Kinds whose modules share a vector in the order in which the model has them."""

_SET_UP_TOGETHER: Final = frozenset({"UNILORA"})
"""Kinds that PEFT can only set up for all modules at once."""

_OLD_NAMES: Final = {"BONE": "MISS"}
_CONVOLUTIONS: Final = {1: "Conv1d", 2: "Conv2d", 3: "Conv3d"}  # by the kernel's number of axes
_NOT_MERGED: Final = ("modules_to_save", "trainable_token_indices", "bias", "runtime_config", "megatron_config")
"""Fields of the config that are no part of a merge: what is saved whole beside the adapter, or makes PEFT import."""


class NotMergedError(AdapterError):
    """PEFT itself cannot load the adapter onto a module of this base, or cannot merge it there."""


class WeightChange(NamedTuple):
    """The change of one tensor of the base by a merge; both arrays have its shape."""

    leaf: str
    """The parameter's name in its module: `weight` or `bias`."""
    found: BaseTensor
    before: Array
    """The tensor as stored."""
    change: Array
    """W' - W in float32."""


class PeftMerge:
    """PEFT's merge of one adapter into the modules of one base.

    Raises:
        AdapterError: the installed PEFT does not know the adapter's type or cannot merge it, or the config is damaged.
        GradienceError: torch, transformers or PEFT is not installed.
    """

    def __init__(self, adapter: Adapter, config: Path, weights: BaseWeights) -> None:
        kind = (adapter.config.peft_type or "").upper()
        self.kind = _OLD_NAMES.get(kind, kind)
        self._torch, transformers = libraries(f"the update of a {self.kind} adapter")
        import peft  # only those who merge pay for it

        self._peft: Any = peft
        self.version = str(peft.__version__)
        if adapter.source is None:
            raise AdapterError("the adapter has no file")
        self._source, self._weights = adapter.source, weights
        self._tuner = _tuner_of(peft, self.kind)
        self._prefix = str(self._tuner.prefix)
        self._keys, self._shared = _by_module(self._source.tensors, self._prefix)
        with quietly():
            self._model = _empty_model(self._torch, transformers, adapter, weights, list(self._keys))
            self._names = _names_in_base(self._model, weights.names)
            known = [*self._keys, *(name for name, _ in self._model.named_modules())]
            self._config = _config_of(peft, config, self.kind, known, adapter.tensors)
            self.modules = sorted(self._keys or self._targeted(), key=natural_key)
        self._whole = self._sees_all()
        if not self.modules:
            raise AdapterError(f"no tensor of the file belongs to a module that PEFT's {self.kind} could adapt")
        if not _is_of_transformers(self._model):
            self._model = self._by_shapes()

    def parameters(self, module: str) -> int:
        """The number of entries in the adapter's tensors for one module."""
        return sum(self._source.tensors[key].size for key in self._keys.get(module, ()))

    def fields(self, module: str) -> dict[str, str]:
        """The adapter's tensors for one module, by the rest of their names after the module's."""
        return {key.removeprefix(f"{PREFIX}{module}."): key for key in self._keys.get(module, ())}

    def changes(self, module: str) -> list[WeightChange]:
        """The changes that the merge makes in one module: of its weight, and of its bias if that changes too.

        Raises:
            AdapterError: the base lacks the module's weight, or has it quantised or of another shape.
            NotMergedError: PEFT cannot load or merge the adapter there.
        """
        layer, stored = self._layer(module)
        with quietly(), self._torch.no_grad(), _refused(self.kind):
            merged = self._merged(module, layer)
        changes = []
        for leaf, (tensor, before) in stored.items():
            after = merged[leaf].numpy()
            if after.shape != before.shape:
                raise AdapterError(f"{tensor.name}: PEFT's merge makes {list(after.shape)} of {list(before.shape)}")
            change = np.subtract(after, before, dtype=np.float32)
            changes.append(WeightChange(leaf, tensor, before, change))
        changed = [one for one in changes if one.change.any()]
        # An update that is zero is still a result: the module gets its row.
        return changed or changes[:1]

    def _targeted(self) -> list[str]:
        """The modules that the config targets, for kinds that store nothing for a single module."""
        check = self._tuner._check_target_module_exists  # noqa: SLF001  # PEFT has no public name for it
        return [name for name, _ in self._model.named_modules() if name and check(self._config, name)]

    def _sees_all(self) -> bool:
        """Whether PEFT must see all modules of the model to set up one of them.

        Raises:
            AdapterError: it must, and there is no model, or it would need all weights of the base.
        """
        if self.kind in _OF_ALL_WEIGHTS and not getattr(self._config, "save_projection", True):
            raise AdapterError(
                f"{self.kind}'s projections are not in the file (save_projection: false), and follow from the "
                "weights of all modules at once",
                advice="save the adapter again with save_projection=True",
            )
        if self.kind in _IN_ORDER and not _is_of_transformers(self._model):
            raise AdapterError(
                f"{self.kind} shares a vector among the modules in the model's order, which only its config.json gives",
                advice="give the base's whole folder, as transformers saves it",
            )
        # A tuner with a hook of its own looks there at all modules, before it wraps the first.
        of_all = self._peft.tuners.tuners_utils.BaseTuner._pre_injection_hook  # noqa: SLF001  # as above
        return self._tuner._pre_injection_hook is not of_all and self.kind not in _OF_ALL_WEIGHTS  # noqa: SLF001

    def _by_shapes(self) -> TorchModule:
        """A model of the modules alone, each built from its weight's shape; those that the base lacks are left out."""
        layers = {}
        for module in self.modules:
            tensor = self._found(module, "weight")
            if tensor is not None:
                bias = self._found(module, "bias") is not None
                transposed = bool(getattr(self._config, "fan_in_fan_out", False))
                layers[module] = _layer_of(self._torch, module, tensor.info.shape, transposed=transposed, bias=bias)
        return _containers(self._torch, layers)

    def _found(self, module: str, leaf: str) -> BaseTensor | None:
        """The base's tensor of a parameter of a module."""
        path = f"{module}.{leaf}"
        return self._weights.find(self._names.get(path, path))

    def _layer(self, module: str) -> tuple[TorchModule, dict[str, tuple[BaseTensor, Array]]]:
        """The module with the base's numbers in float32, and its tensors as stored."""
        try:
            empty = self._model.get_submodule(module)
        except AttributeError as error:
            raise AdapterError(f"the base has no {module}.weight") from error
        layer, stored = copy.deepcopy(empty), {}
        own = list(empty.named_parameters(recurse=False))
        if not own:
            raise AdapterError(f"{module} is {type(empty).__name__} in the base, which has no weight of its own")
        for leaf, parameter in own:
            tensor = self._found(module, leaf)
            if tensor is None:
                raise AdapterError(f"the base has no {module}.{leaf}")
            before = self._weights.read_whole(tensor)
            if before.shape != tuple(parameter.shape):
                raise AdapterError(f"{tensor.name} is of shape {list(before.shape)}, expected {list(parameter.shape)}")
            stored[leaf] = (tensor, before)
            # In float32: a merge in 16 bits would round away most of a change that is small beside its weight.
            setattr(layer, leaf, self._parameter(self._torch.from_numpy(before.astype(np.float32))))
        return layer, stored

    def _parameter(self, data: Any) -> Any:
        return self._torch.nn.Parameter(data, requires_grad=False)

    def _merged(self, module: str, layer: TorchModule) -> dict[str, Any]:
        """The layer's parameters after the merge, as tensors by name."""
        model = self._around(module, layer)
        together = self.modules if self.kind in _SET_UP_TOGETHER else [module]
        wrapped_too = {f"{name}.{self._prefix}": None for name in together}  # PEFT reads the modules off such names
        # A copy, because PEFT may write other targets into the config that it is given.
        tuner = self._tuner(model, {FIRST: copy.deepcopy(self._config)}, FIRST, state_dict=wrapped_too)
        tensors, holder = self._tensors(module), _holder(self._torch, tuner)
        self._peft.set_peft_model_state_dict(holder, tensors, FIRST)
        if self.kind in _OF_ALL_WEIGHTS:  # the layer was set up by projections of this module alone: once more
            tuner.inject_adapter(model, FIRST, state_dict=wrapped_too)
            self._peft.set_peft_model_state_dict(holder, tensors, FIRST)
        self._refuse_unplaced(module, holder)
        wrapped = model.get_submodule(module)
        wrapped.merge()
        return {leaf: p.detach() for leaf, p in wrapped.get_base_layer().named_parameters(recurse=False)}

    def _around(self, module: str, layer: TorchModule) -> TorchModule:
        """The model that PEFT is given: with the module, and all others without data if the kind depends on them."""
        if not self._whole:
            return _containers(self._torch, {module: layer})
        model = copy.deepcopy(self._model)
        for other in self.modules if self.kind in _SET_UP_TOGETHER else ():
            empty = model.get_submodule(other)  # PEFT moves its own tensors to the weight's device, so not to `meta`
            empty.weight = self._parameter(self._torch.zeros(()).expand(empty.weight.shape))
        parent, _, leaf = module.rpartition(".")
        model.get_submodule(parent).add_module(leaf, layer)
        return model

    def _tensors(self, module: str) -> dict[str, Any]:
        names = [*self._keys.get(module, ()), *self._shared]
        return {name: self._torch.from_numpy(_for_torch(self._source.read(name))) for name in names}

    def _refuse_unplaced(self, module: str, holder: TorchModule) -> None:
        """Refuse a module for which the file has a tensor that PEFT did not load, or lacks one that it would save.

        Raises:
            NotMergedError: there is such a tensor; the message names the first one.
        """
        placed = set(self._peft.get_peft_model_state_dict(holder, adapter_name=FIRST, save_embedding_layers=False))
        stored = set(self._keys.get(module, ()))
        # What all modules share, such as VeRA's projections, PEFT would save, and a file may lack (save_projection).
        odd = sorted((stored - placed) | {name for name in placed - stored if name.startswith(f"{PREFIX}{module}.")})
        if odd:
            what = "lacks" if odd[0] in placed else "holds, and PEFT has no place for,"
            raise NotMergedError(f"the file {what} {odd[0]} (of {len(odd)})")


def with_merges(adapter: Adapter, config: Path, weights: BaseWeights) -> Adapter:
    """The adapter with a module for each weight that PEFT's merge changes, for verbs that work on modules.

    Each is in `base_dependent`: its `dense` merges when it is called, and leaves the weight that it gets unread.

    Raises:
        AdapterError: as for `PeftMerge`.
        GradienceError: torch, transformers or PEFT is not installed.
    """
    merge = PeftMerge(adapter, config, weights)
    modules = [_module_of(merge, path) for path in merge.modules]
    return replace(adapter, base_dependent=modules, roles=merged_roles(adapter), skipped=[])


def merged_roles(adapter: Adapter) -> dict[str, Role]:
    """The roles of the adapter's tensors once PEFT has merged all of them."""
    return {name: "other_kind" if role == "not_analysed" else role for name, role in adapter.roles.items()}


def _module_of(merge: PeftMerge, path: str) -> Module:
    why = f"{merge.kind}: its update is what PEFT's merge makes of the base"

    def load() -> NoReturn:
        raise AdapterError(f"{path}: {why}", advice="give the base model with --base")

    def dense(_: Array) -> Array:
        changes = merge.changes(path)
        beside = [one.found.name for one in changes if one.leaf != "weight" or one.change.ndim == 1]
        if beside:
            raise AdapterError(f"{path}: {merge.kind} also changes {beside[0]}, which is no matrix")
        return changes[0].change.reshape(len(changes[0].change), -1)

    return Module(
        name=path,
        kind=merge.kind.lower(),
        shape=(0, 0),
        r=0,
        alpha=0.0,
        scale=1.0,
        params=merge.parameters(path),
        load=load,
        base_name=f"{path}.weight",
        dense=dense,
        note=why,
        keys=merge.fields(path),
    )


def renamed_tensors(adapter: Adapter, weights: BaseWeights) -> dict[str, str]:
    """The base's tensors by the names of the model's parameters, if transformers renames modules of its type.

    Empty for other types, and without torch, transformers and PEFT: then the names in the files are the model's.
    """
    folder = weights.files[0].path.parent
    try:
        if not read_architecture(folder).is_renamed:
            return {}
        torch, transformers = libraries("a base whose modules transformers renames")
    except GradienceError:
        return {}
    modules = [(one.base_name or "").rpartition(".")[0] for one in (*adapter.modules, *adapter.base_dependent)]
    with quietly():
        return _names_in_base(_empty_model(torch, transformers, adapter, weights, modules), weights.names)


def _tuner_of(peft: Any, kind: str) -> Any:
    """PEFT's tuner class for a type."""
    tuner = peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING.get(kind)
    if tuner is None:
        raise AdapterError(
            f"the installed PEFT {peft.__version__} has no kind {kind}", advice="upgrade it: pip install -U peft"
        )
    if not hasattr(tuner, "merge_and_unload"):
        raise AdapterError(f"PEFT {peft.__version__} has no merge for {kind}")
    return tuner


def _config_of(peft: Any, path: Path, kind: str, names: Iterable[str], tensors: Mapping[str, TensorInfo]) -> Any:
    """PEFT's config, without what is saved whole beside the adapter."""
    fields = decode_json(read_small(path, most=LARGEST_CONFIG, what="an adapter config"), dict[str, Any])
    fields = safe_config({key: value for key, value in fields.items() if key not in _NOT_MERGED}, names, tensors)
    try:
        with quietly():
            return peft.PeftConfig.from_peft_type(**fields | {"peft_type": kind, "inference_mode": True})
    except (TypeError, ValueError) as error:
        raise AdapterError(
            f"PEFT cannot read {path}: {pretrained.reason(error)}", advice="give the right config"
        ) from error


def _by_module(tensors: Mapping[str, TensorInfo], prefix: str) -> tuple[dict[str, list[str]], list[str]]:
    """The names of the adapter's tensors by module, and of those that all modules share.

    A module's are named `base_model.model.MODULE.PREFIX...`, the tuner's own `base_model.PREFIX...`.
    """
    keys: dict[str, list[str]] = {}
    for name in tensors:
        module, part, _ = name.rpartition(f".{prefix}")
        if part and name.startswith(PREFIX):
            keys.setdefault(module.removeprefix(PREFIX), []).append(name)
    family = f"base_model.{prefix.partition('_')[0]}_"  # VeRA's prefix is that of its vectors, `vera_lambda_`
    return keys, [name for name in tensors if name.startswith(family) and not name.startswith(PREFIX)]


def _for_torch(data: Array) -> Array:
    """A copy in a dtype that torch takes from NumPy: 16-bit floats become float32, as PEFT casts them too."""
    return data.astype(np.float32) if data.dtype.name in {"float16", "bfloat16"} else data.copy()


def _is_of_transformers(model: TorchModule) -> bool:
    return hasattr(model, "config")


def _empty_model(
    torch: Any, transformers: Any, adapter: Adapter, weights: BaseWeights, modules: Sequence[str]
) -> TorchModule:
    """The model that the base's config.json names, without data, if it has the modules; else one without modules."""
    folder, nothing = weights.files[0].path.parent, torch.nn.Module()
    if not (folder / "config.json").is_file():
        return nothing
    try:
        config = pretrained.load(transformers.AutoConfig, folder)
    except Exception:  # noqa: BLE001  # another library's config.json, or a damaged one: transformers may raise anything
        return nothing
    # The task's class first: under it modules have the names that they had in the training run.
    names = [_CLASSES.get(adapter.config.task_type or ""), *(config.architectures or ()), "AutoModel"]
    for name in dict.fromkeys(name for name in names if name is not None):
        made: Any = getattr(transformers, name, None)
        automatic = name.startswith("AutoModel") and hasattr(made, "from_config")
        if not automatic and not (isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)):
            continue  # the name comes from a file
        model = None
        with suppress(Exception), torch.device("meta"):  # this kind of model may have no such class
            model = made.from_config(config, trust_remote_code=False) if automatic else made(config)
        if model is not None and {path for path, _ in model.named_modules()}.issuperset(modules):
            return model
    return nothing


def _names_in_base(model: TorchModule, held: Iterable[str]) -> dict[str, str]:
    """The base's tensor for each parameter of a model of transformers, where the files are known to have it.

    transformers renames modules as it loads files of older versions, and a tied weight is stored once.
    """
    if not _is_of_transformers(model):
        return {}
    from transformers.conversion_mapping import get_model_conversion_mapping  # see `gradience.models`
    from transformers.core_model_loading import WeightRenaming, rename_source_key  # the same

    parameters = dict(model.named_parameters(remove_duplicate=False))
    renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]
    loaded = {rename_source_key(name, renamings, [], model.base_model_prefix, parameters)[0]: name for name in held}
    stored = {id(parameters[name]): held_name for name, held_name in loaded.items() if name in parameters}
    return {name: stored[id(parameter)] for name, parameter in parameters.items() if id(parameter) in stored}


def _layer_of(torch: Any, module: str, shape: tuple[int, ...], *, transposed: bool, bias: bool) -> TorchModule:
    """A layer without data for a weight of this shape, by the module's name if several layers have such weights.

    Convolutions are taken for ungrouped, and `transposed` for transformers' Conv1D.

    Raises:
        AdapterError: no layer is known that has such a weight.
    """
    from transformers.pytorch_utils import Conv1D  # see `gradience.models`

    with torch.device("meta"):
        match shape:
            # Weights with one axis are of norms, which PEFT's LN tuning adapts.
            case (size,):
                return torch.nn.LayerNorm(size, bias=bias)
            case (rows, columns) if is_embedding(module) and not module.endswith(OUTPUTS):
                return torch.nn.Embedding(rows, columns)
            case (rows, columns) if transposed:
                return Conv1D(columns, rows)
            case (rows, columns):
                return torch.nn.Linear(columns, rows, bias=bias)
            case (rows, columns, *kernel) if len(kernel) in _CONVOLUTIONS:
                return getattr(torch.nn, _CONVOLUTIONS[len(kernel)])(columns, rows, tuple(kernel), bias=bias)
    raise AdapterError(f"{module}: a weight of shape {list(shape)} is of no layer that is known here")


def _containers(torch: Any, layers: Mapping[str, TorchModule]) -> TorchModule:
    """A module that has each layer at its path, and nothing else."""
    root = torch.nn.Module()
    for path, layer in layers.items():
        *parents, leaf = path.split(".")
        at = root
        for name in parents:
            if name not in dict(at.named_children()):
                at.add_module(name, torch.nn.Module())
            at = at.get_submodule(name)
        at.add_module(leaf, layer)
    return root


def _holder(torch: Any, tuner: Any) -> TorchModule:
    """The tuner in a module that holds it as PeftModel does, so that the names of the file fit."""
    holder = torch.nn.Module()
    holder.base_model = tuner
    holder.peft_config = tuner.peft_config
    return holder


@contextmanager
def _refused(kind: str) -> Iterator[None]:
    """A context that turns the errors of PEFT's tuners and merges into `NotMergedError`."""
    try:
        yield
    except NotImplementedError as error:
        raise NotMergedError(f"PEFT has no merge for {kind}: {pretrained.reason(error)}") from error
    except (ImportError, ValueError, RuntimeError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise NotMergedError(f"PEFT cannot merge {kind} here: {pretrained.reason(error)}") from error
