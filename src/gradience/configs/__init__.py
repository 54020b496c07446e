"""Files to config: adapter configs, training arguments and hand-written documents, as one snapshot."""

from __future__ import annotations

from gradience.configs.document import read_document
from gradience.configs.layer import Layer, overlay, stack
from gradience.configs.peft import read_peft, read_peft_dir
from gradience.configs.training import read_training, read_training_dir

__all__ = [
    "Layer",
    "overlay",
    "read_document",
    "read_peft",
    "read_peft_dir",
    "read_training",
    "read_training_dir",
    "stack",
]
