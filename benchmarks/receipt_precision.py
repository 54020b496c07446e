"""Merges that were rounded and stored in a wider dtype: what `gradience verify` says of right and wrong ones.

``python benchmarks/receipt_precision.py FOLDER MODEL ...`` takes an adapter of each model that ``reference.py``
trained, writes its receipt, merges it, rounds every matrix in the layers to a width, stores all in float32, and
judges that by the receipt alone, and with base and adapter at hand. Wrong targets are another adapter, half the
scale, a part left out and lora_B moved by a tenth. The last column is the verdict where the width is taken from the
file's dtype.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from merge_outcome import healthy
from peft import PeftModel
from reference import base_of, scaled
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from gradience.verbs.receipt import targets
from gradience.verbs.receipt.options import ReceiptOptions
from gradience.verbs.receipt.run import make_receipt, verify_served, write_receipt

Change = Callable[[torch.Tensor], torch.Tensor]


def codes(levels: int, group: int) -> Change:
    def change(weight: torch.Tensor) -> torch.Tensor:
        groups = weight.reshape(-1, group)
        step = groups.abs().amax(1, keepdim=True).clamp(min=1e-12) / levels
        return ((groups / step).round() * step).reshape(weight.shape)

    return change


WIDTHS: dict[str, Change] = {
    "float32": lambda w: w,
    "bfloat16": lambda w: w.bfloat16().float(),
    "float16": lambda w: w.half().float(),
    "int8": codes(127, 32),
    "int4": codes(7, 32),
}


def moved(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1 * parameter.data.std() * torch.randn_like(parameter)


def without_attention(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name and ("attn" in name):
            parameter.data.zero_()


def cases(base: Path, adapter: Path, other: Path) -> Iterator[tuple[str, bool, Any]]:
    """Yield the name of each target, whether it is the adapter, and the merged model."""

    def loaded(place: Path) -> Any:
        torch.manual_seed(0)
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), place)

    for name, change in WIDTHS.items():
        model = loaded(adapter).merge_and_unload()
        for path, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.data = change(parameter.data) if "." in path else parameter.data
        yield name, True, model
    yield "another adapter", False, loaded(other).merge_and_unload()
    for name, spoil in (("half the scale", lambda m: scaled(m, 0.5)), ("moved", moved), ("a part", without_attention)):
        model = loaded(adapter)
        spoil(model)
        yield name, False, model.merge_and_unload()


def main() -> None:
    warnings.simplefilter("ignore")
    disable_progress_bar()
    folder = Path(sys.argv[1])
    print(
        "| model | target | receipt alone | with base and adapter | alone, width of the dtype |\n|---|---|---|---|---|"
    )
    for name in sys.argv[2:]:
        base = base_of(folder, name, None)
        (adapter, _), (other, _) = healthy(folder, name)[:2]
        with TemporaryDirectory() as place:
            receipt = Path(place) / "receipt.json"
            made = make_receipt(adapter, base, prompts=adapter / "rows.jsonl", options=ReceiptOptions(rows=8))
            write_receipt(made, receipt)
            for case, _, model in cases(base, adapter, other):
                served = Path(place) / case
                model.save_pretrained(served)
                AutoTokenizer.from_pretrained(base).save_pretrained(served)
                alone = verify_served(receipt, str(served))
                both = verify_served(receipt, str(served), base=base, adapter=adapter)
                of_values, targets.precision_of = targets.precision_of, lambda _, stored: stored
                stored = verify_served(receipt, str(served))
                targets.precision_of = of_values
                said = " | ".join(one.verdict for one in (alone, both, stored))
                print(f"| {name} | {case} ({alone.precision}) | {said} |", flush=True)


if __name__ == "__main__":
    main()
