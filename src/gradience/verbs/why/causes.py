"""The causes by which two runs part: the settings that name them, what each may change first, what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

SETTINGS: Final[Mapping[str, Sequence[str]]] = {  # cause: settings, as paths into a config
    "seed": ("training.seed",),
    "batch_size": ("training.batch_size", "training.world_size"),
    "accumulation": ("training.gradient_accumulation",),
    "lr": ("optimizer.lr", "optimizer.extras.lr_groups"),
    "warmup": ("training.warmup_steps", "training.warmup_ratio"),
    "schedule": ("training.lr_scheduler",),
    "length": ("training.max_steps", "training.epochs"),
    "dtype": ("training.dtype", "training.extras.model_dtype", "extras.quantization"),
    "dropout": ("lora.dropout",),
    "adapter": ("lora.r", "lora.alpha", "lora.target_modules", "lora.use_dora", "lora.use_rslora", "lora.bias"),
    "adapter_init": ("lora.init",),
    "optimizer": ("optimizer.name", "optimizer.weight_decay", "optimizer.betas", "optimizer.eps"),
    "clipping": ("training.max_grad_norm",),
    "data": ("dataset_name", "training.max_length", "training.extras.train_examples"),
    "base_weights": ("model_name",),
}
ACTS_ON: Final[Mapping[str, frozenset[str]]] = {  # cause: the quantities that it may be the first to change
    "seed": frozenset({"weights", "batch", "rng", "loss", "grad_norm"}),
    "batch_size": frozenset({"batch", "loss", "grad_norm", "lr", "rng"}),
    "accumulation": frozenset({"batch", "loss", "grad_norm", "lr", "rng"}),
    "lr": frozenset({"lr", "loss", "grad_norm"}),
    "warmup": frozenset({"lr", "loss", "grad_norm"}),
    "schedule": frozenset({"lr", "loss", "grad_norm"}),
    "length": frozenset({"lr", "loss", "grad_norm"}),
    "dtype": frozenset({"weights", "loss", "grad_norm", "rng"}),
    "dropout": frozenset({"rng", "loss", "grad_norm"}),
    "adapter": frozenset({"weights", "loss", "grad_norm", "rng"}),
    "adapter_init": frozenset({"weights", "loss", "grad_norm", "rng"}),
    "base_weights": frozenset({"weights", "loss", "grad_norm", "rng"}),
    "trainable": frozenset({"weights", "loss", "grad_norm"}),
    "optimizer": frozenset({"loss", "grad_norm"}),
    "clipping": frozenset({"loss", "grad_norm"}),
    "data": frozenset({"batch", "loss", "grad_norm"}),
    "order": frozenset({"batch", "loss", "grad_norm"}),
    "data_row": frozenset({"batch", "loss", "grad_norm"}),
    "version": frozenset({"loss", "grad_norm", "rng", "weights", "batch", "lr"}),
    "environment": frozenset({"loss", "grad_norm"}),
}
EXPLAINS: Final[Mapping[str, frozenset[str]]] = {  # cause: causes that follow from it, and are no second one
    "seed": frozenset({"adapter_init", "order", "data_row", "base_weights"}),
    "order": frozenset({"data_row"}),
    "batch_size": frozenset({"order", "data_row", "length", "warmup"}),
    "accumulation": frozenset({"order", "data_row", "length", "warmup"}),
    "adapter": frozenset({"adapter_init", "trainable"}),
    "base_weights": frozenset({"adapter_init"}),
    "data": frozenset({"order", "data_row", "length"}),
    "dtype": frozenset({"base_weights", "adapter_init"}),
    "lr": frozenset({"length"}),
}
RATES: Final = frozenset({"lr", "warmup", "schedule", "length"})
ORDER: Final = ("weights", "batch", "rng", "lr", "loss", "grad_norm")
WORDS: Final = {
    "seed": "the seed",
    "batch_size": "the batch size",
    "accumulation": "the accumulation of gradients",
    "lr": "the learning rate",
    "warmup": "the warm-up",
    "schedule": "the schedule of the learning rate",
    "length": "the number of steps",
    "dtype": "the dtype",
    "dropout": "the dropout",
    "adapter": "the adapter's configuration",
    "adapter_init": "the adapter's initial weights",
    "base_weights": "the base's weights",
    "trainable": "what is trainable",
    "optimizer": "the optimizer",
    "clipping": "the clipping of gradients",
    "data": "the data",
    "order": "the order of the data",
    "data_row": "rows of the data",
    "version": "the versions",
    "environment": "the machine or its settings",
}
