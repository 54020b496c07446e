"""What get_peft_model adapts and trains, for every model and setting, as `golden/peft_counts.json`.

Run it after a change of `models/__init__.py` that was meant, or for another PEFT: `python tests/base/peft_counts.py`.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import transformers

__all__ = ["by_peft"]

GOLDEN = Path(__file__).parent / "golden" / "peft_counts.json"


def by_peft(model: Any, config: Any) -> tuple[int, int] | None:
    """Return how many modules PEFT adapts and how many entries it trains, or None where it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on tied weights and fan_in_fan_out
        try:
            adapted = peft.get_peft_model(copy.deepcopy(model), config)
        except (ValueError, TypeError, AttributeError):
            return None
    tuner = adapted.base_model
    n_modules = len(tuner.targeted_module_names) + len(tuner.targeted_parameter_names)
    return n_modules, sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def main() -> None:
    """Write the golden file: a model a line."""
    from models import MODELS, SETTINGS  # beside this script

    lines = []
    for kind, (task_type, make) in MODELS.items():
        model = make(transformers)
        settings = copy.deepcopy(SETTINGS)  # PEFT adds a head to the list that it was given
        configs = {name: peft.LoraConfig(r=4, task_type=task_type, **more) for name, more in settings.items()}
        counts = {name: by_peft(model, config) for name, config in configs.items()}
        lines.append(f" {json.dumps(kind)}: {json.dumps(counts)}")
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
