"""The memory of one training step, followed on torch's meta device: no weight is read, and no device is needed.

The model is made from its config.json and PEFT's adapter is put on it. A batch goes forward and backward, while a
dispatch mode knows which storages live. What a device does otherwise than meta is said by hand: the kernel of
attention, dropout's mask, autocast, coded weights, and the optimizer's states.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import torch
from huggingface_hub import constants
from msgspec.structs import replace
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gradience.io import pretrained
from gradience.models import quietly
from gradience.models.objectives import generated, loss_of
from gradience.schema.memory import PAIRED, Step

_BLOCK: Final = 512  # bytes: torch's allocator on CUDA gives multiples
_CODED: Final = {4: 0.5 + 4 / 64, 8: 1.0}  # bytes of a weight; bitsandbytes: one float32 scale to 64 weights of 4 bits
_SMALL: Final = 4096  # elements below which bitsandbytes keeps 32-bit states
_HEADS: Final = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}
_FEW: Final = (1, 2)  # blocks of the small models, where an adapter cannot be made on meta
_BY_NUMBERS: Final = frozenset(  # where A and B start, which needs the base's weights and changes no shape
    {"pissa", "olora", "eva", "corda", "loftq", "lora_ga", "gaussian", "orthogonal"}
)
_LAYERS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_TINY: Final = 64  # rows of their embeddings
_META: Final = torch.device("meta")
_Seen: TypeAlias = tuple[dict[str, int], dict[str, int], str]  # by the names of MemoryParts, and of Reached; attention
_LOW: Final = frozenset(
    {functional.linear, torch.matmul, torch.bmm, torch.addmm, torch.baddbmm, torch.mm, torch.einsum}
    | {
        Tensor.matmul,
        Tensor.__matmul__,
        Tensor.__rmatmul__,
        Tensor.bmm,
        Tensor.mm,
        functional.conv1d,
        functional.conv2d,
    }
)  # what autocast computes in half precision; by torch's list
_FULL: Final = frozenset(
    {functional.layer_norm, functional.softmax, functional.log_softmax, functional.cross_entropy, torch.softmax}
    | {Tensor.softmax, Tensor.pow, torch.pow, torch.rsqrt, Tensor.__pow__, functional.rms_norm, functional.mse_loss}
)  # what it computes in float32


class Live(TorchDispatchMode):
    """The bytes of the storages that live, by what they are, and those of the moment when most did."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._vocabulary = vocabulary
        self._kinds: dict[int, str] = {}
        self.kind = "activations"  # of what is made from now on
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()

    def hold(self, tensor: Tensor, kind: str, size: float | None = None) -> None:
        """Count a tensor's storage as long as it lives; `size` in bytes, if it is not the storage's own."""
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001  # the address of what several tensors may share
        if key in self._kinds:
            return
        whole = _BLOCK * math.ceil((storage.nbytes() if size is None else size) / _BLOCK)
        self._kinds[key] = kind
        # Not at the interpreter's end, when nobody asks for the counts.
        weakref.finalize(storage, self._free, key, kind, whole).atexit = False
        self.now[kind] += whole
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()

    @contextmanager
    def of_kind(self, kind: str) -> Iterator[None]:
        """A context in which all that is made is of one kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def _free(self, key: int, kind: str, size: int) -> None:
        del self._kinds[key]
        self.now[kind] -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator, and count what it made."""
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                # A heuristic: only logits, and what is computed from them, end in an axis as long as the vocabulary.
                of_logits = one.ndim > 1 and one.shape[-1] == self._vocabulary
                self.hold(one, "loss" if of_logits else self.kind)
        return made


class _Kernels(TorchFunctionMode):
    """What the device runs where meta would run another operator."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self._step = step
        self._low = getattr(torch, step.autocast) if step.autocast else None
        self._cast: dict[int, Tensor] = {}  # autocast keeps the copies of parameters that are trained

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function of torch."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func in {Tensor.__bool__, Tensor.item} and args[0].is_meta:
            # Meta has no values. Truth is asked of masks, whether no row is padded, and some are.
            return False if args[0].dtype == torch.bool else 1
        if func is torch.sparse_coo_tensor:
            # Meta adds no sparse tensor to a weight. SHiRA does, and its gradient is dense.
            return args[1].sum()
        if func is functional.dropout and self._step.device == "cuda":
            return _dropped(*args, **kwargs)
        if self._low is not None and func in _LOW:
            args, kwargs = tree_map(self._lowered, (args, kwargs))
        elif self._low is not None and func in _FULL:
            args, kwargs = tree_map(_raised, (args, kwargs))
        return func(*args, **kwargs)

    def _lowered(self, one: Any) -> Any:
        if not isinstance(one, Tensor) or one.dtype != torch.float32 or self._low is None:
            return one
        if not (one.is_leaf and one.requires_grad):
            return one.to(self._low)
        if id(one) not in self._cast:
            self._cast[id(one)] = one.to(self._low)
        return self._cast[id(one)]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
        """The fused kernel that torch would take: on CUDA flash without a mask, else the memory-efficient one."""
        options = dict(zip(("attn_mask", "dropout_p", "is_causal", "scale"), rest, strict=False)) | named
        mask, dropout = options.get("attn_mask"), options.get("dropout_p", 0.0)
        causal, scale = bool(options.get("is_causal")), options.get("scale")
        if self._low is not None:
            query, key, value = (self._lowered(one) for one in (query, key, value))
        if mask is not None and mask.dtype == torch.bool:
            # torch makes a mask that is added of one that holds truth values.
            mask = torch.empty(mask.shape, dtype=query.dtype, device=_META)
        if self._step.device == "cpu":
            key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], 1) for one in (key, value))
            # On a CPU torch has no fused kernel with dropout.
            if dropout:
                return _plain_attention(query, key, value, mask, dropout)
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001  # an operator's name
            return kernel(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)[0]
        if mask is None and query.dtype != torch.float32:
            kernel = torch.ops.aten._scaled_dot_product_flash_attention  # noqa: SLF001  # the same
            return kernel(query, key, value, dropout, causal, scale=scale)[0]
        mask = None if mask is None else mask.expand(*query.shape[:2], query.shape[2], key.shape[2])
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention  # noqa: SLF001  # the same
        return kernel(query, key, value, mask, True, dropout, causal, scale=scale)[0]  # noqa: FBT003  # torch's signature


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    scores = query @ key.transpose(-2, -1)
    scores = scores if mask is None else scores + mask
    return functional.dropout(torch.softmax(scores, -1), dropout) @ value


def _dropped(x: Tensor, *rest: Any, **named: Any) -> Tensor:
    options = dict(zip(("p", "training"), rest, strict=False)) | named
    if options.get("p") == 0:
        return x
    return torch.native_dropout(x, options.get("p", 0.5), options.get("training", True))[0]


def _raised(one: Any) -> Any:
    return one.float() if isinstance(one, Tensor) and one.dtype in {torch.bfloat16, torch.float16} else one


class _CodedProduct(torch.autograd.Function):
    """A product with a coded weight, which is decoded for it, and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.shape = weight.shape
        return x @ torch.empty(weight.shape, dtype=x.dtype, device=_META).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ torch.empty(ctx.shape, dtype=gradient.dtype, device=_META), None


class _ChunkedLoss(torch.autograd.Function):
    """A loss that makes the logits of some tokens at a time, and the gradient with them, as Liger's kernel does."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor) -> Tensor:
        tokens = hidden.reshape(-1, hidden.shape[-1])
        ctx.save_for_backward(torch.empty_like(tokens))
        ctx.shape = hidden.shape
        chunks = math.ceil(head.shape[0] / head.shape[1])  # so many that their logits are as large as the hidden states
        # As in Liger's kernel, a chunk has a power of two of tokens.
        for part in tokens.split(2 ** math.ceil(math.log2(math.ceil(len(tokens) / chunks)))):
            (part @ head.T).float()
        return tokens.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return ctx.saved_tensors[0].reshape(ctx.shape), None


class _States(NamedTuple):
    """What an optimizer keeps and needs: copies in the parameter's dtype, or bytes, for each trained number."""

    copies: float = 0.0
    bytes: float = 0.0
    moment: float = 0.0  # copies of all that is trained, while it steps


_OPTIMIZERS: Final[tuple[tuple[str, _States], ...]] = (  # the first whose words are all in the name
    ("paged", _States()),  # in memory that CUDA moves to the host; torch's allocator does not count it
    ("lion 8bit", _States(bytes=1.0)),
    ("8bit", _States(bytes=2.0)),
    ("4bit", _States(bytes=1.0)),
    ("lion", _States(copies=1, moment=1)),
    ("rmsprop", _States(copies=1, moment=1)),
    ("adagrad", _States(copies=1, moment=1)),
    ("sgd", _States()),
    ("fused", _States(copies=2)),
    ("", _States(copies=2, moment=1)),  # torch's AdamW over lists: one list of square roots
)
_FACTORED: Final = ("adafactor",)


def _optimizer(step: Step, trained: list[Tensor]) -> tuple[int, int]:
    """Bytes of the states of an optimizer, and those it takes for a moment while it steps."""
    name = step.optimizer.lower()
    if any(word in name for word in _FACTORED):
        rows = sum(sum(p.shape[-2:]) * math.prod(p.shape[:-2]) if p.ndim > 1 else p.numel() for p in trained)
        return 4 * rows, 2 * max((_size(p) for p in trained), default=0)
    states = next(states for words, states in _OPTIMIZERS if all(word in name for word in words.split()))
    if states.bytes:
        small = sum(8 * p.numel() for p in trained if p.numel() < _SMALL)
        return small + int(sum(states.bytes * p.numel() for p in trained if p.numel() >= _SMALL)), 0
    whole = sum(_size(p) for p in trained)
    # On CUDA torch steps over lists of all parameters at once (foreach), elsewhere over one after the other.
    at_once = whole if step.device == "cuda" else 2 * max((_size(p) for p in trained), default=0)
    return int(states.copies * whole), int(states.moment * at_once)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Follower:
    """Follows steps. It is made in a confined process, whose memory and time have a limit."""

    def follow(self, asked: Mapping[str, Any]) -> _Seen:
        """The bytes at the peak by what they are, what the adapter reaches, and the kernel of attention.

        The names are those of `schema.memory.MemoryParts` and `schema.memory.Reached`.

        Raises:
            Exception: anything, because transformers and PEFT make what a stranger's files describe.
        """
        step = msgspec.convert(asked, Step)
        with quietly(), _offline(), _no_autocast_of_meta():
            return self._followed(step)

    def attempt(self, asked: Mapping[str, Any]) -> _Seen | str:
        """What `follow` returns, or the name of the exception that it ended with: its text is of another program."""
        try:
            return self.follow(asked)
        except MemoryError:  # a limit's, which the caller has words for
            raise
        except Exception as error:  # noqa: BLE001  # as `follow` says
            return type(error).__name__

    def _followed(self, step: Step) -> _Seen:
        config = pretrained.load(_transformers().AutoConfig, step.base)
        try:
            return _followed(step, *_made(step, config, _META))
        except (RuntimeError, NotImplementedError) as error:  # the adapter asks for numbers, which meta has not
            layers = next((name for name in _LAYERS if getattr(config, name, None)), None)
            if layers is None or not step.adapter or getattr(config, layers) < _FEW[-1]:
                raise
            depth = getattr(config, layers)
            one, two = (_followed(step, *_made_small(step, layers, n)) for n in _FEW)
            if sum(two[0].values()) < sum(one[0].values()):
                raise ValueError("the memory does not grow with the depth") from error
            # Every block takes what the second one took more than the first.
            first, second = (
                {key: a[key] + (depth - 1) * (b[key] - a[key]) for key in a}
                for a, b in zip(one[:2], two[:2], strict=True)
            )
            return first, second, one[2]


@contextmanager
def _offline() -> Iterator[None]:
    """A context in which nothing is downloaded, whatever a config names."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _no_autocast_of_meta() -> Iterator[None]:
    """A context in which PEFT may turn autocast off on meta, where torch knows none to turn off.

    PEFT does around the update that it adds to a parameter (`_LoraFactorsProxy.forward@0.21`).
    """
    before = torch.autocast

    def autocast(device_type: str, *rest: Any, **named: Any) -> Any:
        return nullcontext() if device_type == _META.type else before(device_type, *rest, **named)

    torch.autocast = autocast  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.autocast = before  # type: ignore[misc]


def _transformers() -> Any:
    import transformers  # the helper process has it; whoever asks for a class of this module need not

    return transformers


def _made(step: Step, config: Any, device: torch.device) -> tuple[Any, Any]:
    """The base and the adapted model, for training."""
    task = "SEQ_CLS" if step.objective == "reward" else step.task
    if step.objective == "reward":
        # As the trainer does: one value, and the tokenizer's padding.
        config.num_labels, config.pad_token_id = 1, 0
    kind = getattr(_transformers(), _HEADS.get(task, "AutoModelForCausalLM"))
    kind = kind if task in _HEADS else _by_architecture(config) or kind
    # Of a model that has no other kernel than its own, or caps scores, transformers takes that one where none is asked.
    kernel = step.attention and ("eager" if step.attention == "eager" else "sdpa")
    dtype = getattr(torch, step.dtype) if step.dtype else (getattr(config, "dtype", None) or torch.float32)
    with device:
        base = kind.from_config(config, attn_implementation=kernel or None, dtype=dtype)
        if step.bits:
            _code(base)
        adapted = _adapted(step, base)
    for module in adapted.modules():
        if isinstance(module, nn.Dropout) and not step.dropout:
            module.p = 0
    if step.checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # As TRL's trainers do for an adapter: nothing before the first block is trained.
        base.enable_input_require_grads()
    adapted.train()
    return base, adapted


def _by_architecture(config: Any) -> Any:
    """The automatic class of the head that the files were saved from; None for a language model's."""
    named = next(iter(getattr(config, "architectures", None) or []), "")
    kinds = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}
    kinds |= {"ForConditionalGeneration": "SEQ_2_SEQ_LM"}
    kind = next((task for ending, task in kinds.items() if named.endswith(ending)), None)
    return kind and getattr(_transformers(), _HEADS[kind])


def _code(base: Any) -> None:
    head = base.get_output_embeddings()
    for module in base.modules():
        if isinstance(module, nn.Linear) and module is not head:
            vars(module)["forward"] = partial(_decoded, module)
            module.weight.requires_grad = False


def _decoded(linear: nn.Linear, x: Tensor) -> Tensor:
    product: Tensor = _CodedProduct.apply(x, linear.weight)  # type: ignore[no-untyped-call]  # torch's
    bias: Tensor | None = linear.bias
    return product if bias is None else product + bias


def _adapted(step: Step, base: Any) -> Any:
    if not step.adapter:
        return base
    import peft  # as above

    kind: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(str(step.adapter.get("peft_type")))]
    known = {each.name for each in dataclasses.fields(kind)} - {"auto_mapping"}  # a file may be of a later PEFT
    fields = {key: value for key, value in step.adapter.items() if key in known} | {"inference_mode": False}
    if str(fields.get("init_lora_weights")).partition("_niter")[0] in _BY_NUMBERS:
        fields["init_lora_weights"] = True
    if "prompt_tuning_init" in fields:
        fields |= {"prompt_tuning_init": "RANDOM", "tokenizer_name_or_path": None}  # a text would ask for a tokenizer
    config = kind(**fields)
    adapted = peft.get_peft_model(base, config, autocast_adapter_dtype=step.adapter_float32)
    if not step.adapter_float32:
        _cast(adapted, base.dtype)
    if "lora_fa" in step.optimizer.lower().replace("-", "_"):
        for name, parameter in adapted.named_parameters():
            parameter.requires_grad_("lora_A" not in name and parameter.requires_grad)
    return adapted


def _cast(adapted: Any, dtype: torch.dtype) -> None:
    """Give what is trained the base's dtype, as PEFT does where the base has numbers."""
    for module in adapted.modules():
        for name, one in list(module.named_parameters(recurse=False)):
            if one.requires_grad and one.dtype == torch.float32:
                setattr(module, name, nn.Parameter(one.to(dtype)))


def _made_small(step: Step, layers: str, n: int) -> tuple[Any, Any]:
    """The model with few blocks, made with numbers and then put on meta under an embedding of the true size."""
    config = pretrained.load(_transformers().AutoConfig, step.base)
    rows, hidden = config.vocab_size, config.hidden_size
    setattr(config, layers, n)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:n]
    # The pad token's id would lie beyond so few rows, which an embedding refuses.
    config.vocab_size, config.pad_token_id = _TINY, None
    base, adapted = _made(step, config, torch.device("cpu"))
    adapted.to(_META)
    config.vocab_size = rows
    dtype = base.get_input_embeddings().weight.dtype
    base.set_input_embeddings(nn.Embedding(rows, hidden, device=_META, dtype=dtype).requires_grad_(requires_grad=False))
    if base.get_output_embeddings() is not None:
        head = nn.Linear(hidden, rows, bias=False, device=_META, dtype=dtype)
        if getattr(config, "tie_word_embeddings", False):
            head.weight = base.get_input_embeddings().weight
        base.set_output_embeddings(head.requires_grad_(requires_grad=False))
        base.vocab_size = rows
    return base, adapted


def _followed(step: Step, base: Any, adapted: Any) -> _Seen:
    beside = (
        _made(replace(step, adapter={}, checkpointing=False), base.config, _META)[0]
        if step.reference == "model"
        else None
    )
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    states, moment = _optimizer(step, trained)
    live = Live(getattr(base.config.get_text_config(), "vocab_size", 0))
    coded = {id(module.weight) for module in base.modules() if step.bits and "forward" in vars(module)}
    for parameter in (*adapted.parameters(), *adapted.buffers()):
        size = _CODED[step.bits] * parameter.numel() if id(parameter) in coded else None
        live.hold(parameter, "adapter" if parameter.requires_grad else "weights", size)
    for parameter in () if beside is None else (*beside.parameters(), *beside.buffers()):
        live.hold(parameter, "weights")
    # The states are a tensor with a name, because what is freed no longer counts.
    kept = torch.empty(states, dtype=torch.uint8, device=_META)
    live.hold(kept, "optimizer")
    # Every micro-batch but the first finds the gradients of those before it.
    if step.accumulates:
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
            live.hold(parameter.grad, "backward")
    batch = _batch(step, base)
    with live, _Kernels(step):
        if step.generated:
            generated(step, base, adapted, batch["input_ids"])
        if step.objective:
            loss = loss_of(step, base, adapted, beside, batch, live.of_kind)
        else:
            loss = _loss(step, base, adapted, batch)
        live.kind = "backward"
        _backward(loss)
    # The optimizer steps when the activations are gone: the peak is there or in the backward pass.
    stepping = live.now.copy()
    stepping["backward"] += moment
    peak = max(live.peak, stepping, key=Counter.total)
    names = ("weights", "adapter", "optimizer", "activations", "loss", "backward")
    attention = step.attention or str(base.config.get_text_config()._attn_implementation)  # noqa: SLF001  # its only name
    return {name: peak[name] for name in names}, _reached(adapted), attention


def _reached(adapted: Any) -> dict[str, int]:
    """What the adapter amounts to: the names of `schema.memory.Reached`."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # as above

    trained = {id(one): one.numel() for one in adapted.parameters() if one.requires_grad}
    every = sum(one.numel() for one in adapted.parameters())
    modules = sum(isinstance(module, BaseTunerLayer) for module in adapted.modules())
    return {"modules": modules, "trainable_params": sum(trained.values()), "base_params": every - sum(trained.values())}


def _backward(loss: Tensor) -> None:
    """Torch's backward pass, without the call that would turn off the mode in which checkpoints are recomputed."""
    first = (torch.ones_like(loss),)
    _engine_run_backward((loss,), first, False, False, (), allow_unreachable=True, accumulate_grad=True)  # noqa: FBT003


def _batch(step: Step, base: Any) -> dict[str, Tensor]:
    shape = (step.batch * (2 if step.objective in PAIRED else 1), step.length)
    ids = torch.zeros(shape, dtype=torch.long, device=_META)
    head = type(base).__name__
    labels = torch.zeros(shape[:1], dtype=torch.long, device=_META) if "SequenceClass" in head else ids
    mask = {"attention_mask": torch.ones(shape, dtype=torch.long, device=_META)} if step.padded else {}
    if step.objective:  # which knows no labels of the model's own
        return {"input_ids": ids, **mask}
    return {"input_ids": ids, "labels": labels, **mask}


def _loss(step: Step, base: Any, adapted: Any, batch: dict[str, Tensor]) -> Tensor:
    """The loss as the Trainer computes it: the outputs are gone before the backward pass."""
    if not step.fused_loss or base.get_output_embeddings() is None:
        loss: Tensor = adapted(**batch).loss
        return loss
    head = base.get_output_embeddings().weight
    base.set_output_embeddings(nn.Identity())
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    chunked: Tensor = _ChunkedLoss.apply(adapted(**inputs).logits, head)  # type: ignore[no-untyped-call]  # torch's
    return chunked
