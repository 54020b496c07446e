"""Small models with the module names of real ones, and their weights after PEFT has loaded and merged an adapter."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn


def layers(width: int) -> nn.ModuleList:
    """Return two layers with an attention and an MLP projection each."""
    return nn.ModuleList(
        nn.ModuleDict({"q_proj": nn.Linear(width, 20), "up_proj": nn.Linear(width, 24)}) for _ in range(2)
    )


def loaded(model: Any, folder: Path) -> Any:
    """Return a copy of the model with the adapter on it; a warning while PEFT loads it fails the test."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # PEFT 0.21 with transformers 5
        if json.loads((folder / "adapter_config.json").read_text()).get("target_parameters"):
            warnings.filterwarnings("ignore", message=".*did not match any targeted module")  # it looks at modules only
        return PeftModel.from_pretrained(copy.deepcopy(model), folder)


def merged_weights(adapted: Any) -> dict[str, Any]:
    """Return the weights after PEFT's merge, as float64 arrays. Warnings of the merge are ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weights_of(adapted.merge_and_unload())


def weights_of(model: Any) -> dict[str, Any]:
    """Return copies of a model's weights as float64 arrays."""
    return {name: tensor.detach().double().numpy().copy() for name, tensor in model.state_dict().items()}


def merged_update(model: Any, folder: Path) -> dict[str, Any]:
    """Return merged minus base of an adapter that PEFT loads without a word of warning."""
    before, after = weights_of(model), merged_weights(loaded(model, folder))
    return {name: after[name] - before[name] for name in before if name in after}


def save_base(model: Any, folder: Path) -> None:
    """Save the model's weights as one safetensors file in a folder, like a base model."""
    folder.mkdir(exist_ok=True)
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
