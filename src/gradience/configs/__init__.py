"""Files to config: adapter configs, training arguments and hand-written documents, as one snapshot."""

from __future__ import annotations

from gradience.configs.document import read_document
from gradience.configs.files import HasToDict
from gradience.configs.peft import read_peft, read_peft_dir, read_peft_object
from gradience.configs.settings import Layer, overlay, stack
from gradience.configs.training import read_training, read_training_dir, read_training_object

__all__ = [
    "HasToDict",
    "Layer",
    "overlay",
    "read_document",
    "read_peft",
    "read_peft_dir",
    "read_peft_object",
    "read_training",
    "read_training_dir",
    "read_training_object",
    "stack",
]
