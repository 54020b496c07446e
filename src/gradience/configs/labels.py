"""The classes of a classifier, from the config.json that a model is saved with."""

from __future__ import annotations

from pathlib import Path

from gradience.configs.files import read_mapping
from gradience.configs.settings import Layer
from gradience.schema.config import ConfigSnapshot
from gradience.schema.reports import SourceFile

MODEL_CONFIG = "config.json"
_HEAD = "Classification"  # in the name of every class of transformers with a classifier head


def read_labels(path: Path) -> Layer:
    """Read the number of classes of a model's config.json; an empty layer where it is of no classifier.

    Raises:
        ConfigError: the file cannot be read.
    """
    model = read_mapping(path)
    classes, labels = model.get("architectures"), model.get("id2label")
    named = isinstance(classes, list) and any(str(name).endswith(_HEAD) for name in classes)
    if not named or not isinstance(labels, dict) or len(labels) < 2 or model.get("problem_type") == "regression":
        return Layer()
    return Layer(config=ConfigSnapshot(num_labels=len(labels)), sources=(SourceFile(role="model", path=str(path)),))
