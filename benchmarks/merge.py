"""Error and CPU time of merging two LoRA adapters, side by side with PEFT's add_weighted_adapter, in one run.

    python benchmarks/merge.py [--width 1024] [--layers 6] [--rank 16] [--runs 3]

Two adapters are made on the spot on a stack of square linear layers, saved by PEFT, and merged with weights 0.7 and
0.3 by PEFT (loaded, on the CPU) and by `merge_adapters` (from files to files). The error is that of the merged weights,
as PEFT's merge_and_unload gives them: norm(found - sum w_i dW_i) / norm(sum w_i dW_i), Frobenius, over all layers. Time
is user and system time of the process, the median of the runs; both take turns. PEFT's time is add_weighted_adapter
alone, without loading or saving; ours includes reading and writing. `ideal` is the error of the best rank there is.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from gradience import merge_adapters

WEIGHTS: Final = (0.7, 0.3)
DECAY: Final = 0.7  # ratio between successive rows of a factor, because trained updates have no flat spectrum


class Case(NamedTuple):
    """A merge and its options. `rank` is the rank of the result, or None if the method decides it."""

    method: str
    rslora: bool
    rank: int | None


class Stack(nn.Module):
    """Linear layers of one width."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.ModuleDict({"q_proj": nn.Linear(width, width)}) for _ in range(layers))


def saved(model: nn.Module, folder: Path, seed: int, rank: int, *, rslora: bool) -> Path:
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q_proj"], use_rslora=rslora)
    wrapped = get_peft_model(copy.deepcopy(model), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
            if "lora_A" in name:
                parameter.data *= (DECAY ** torch.arange(rank))[:, None]
    wrapped.save_pretrained(folder)
    return folder


def added(model: nn.Module, merged: nn.Module) -> list[torch.Tensor]:
    before, after = model.state_dict(), merged.state_dict()
    return [after[name].double() - before[name].double() for name in before if name.endswith("weight")]


def loaded(model: nn.Module, folder: Path) -> list[torch.Tensor]:
    return added(model, PeftModel.from_pretrained(copy.deepcopy(model), folder).merge_and_unload())


def by_peft(model: nn.Module, folders: list[Path], case: Case) -> tuple[list[torch.Tensor], float]:
    wrapped = PeftModel.from_pretrained(copy.deepcopy(model), folders[0], adapter_name="a")
    wrapped.load_adapter(folders[1], adapter_name="b")
    more: dict[str, Any] = {} if case.rank is None else {"svd_rank": case.rank}
    spent = seconds(lambda: wrapped.add_weighted_adapter(["a", "b"], list(WEIGHTS), "m", case.method, **more))
    return added(model, wrapped.merge_and_unload(adapter_names=["m"])), spent


def by_us(model: nn.Module, folders: list[Path], case: Case) -> tuple[list[torch.Tensor], float]:
    out = folders[0].parent / f"merged-{case.method}-{case.rank}"
    spent = seconds(
        lambda: merge_adapters(folders, out, method=case.method, weights=WEIGHTS, rank=case.rank, force=True)
    )
    return loaded(model, out), spent


def seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def error(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    lost = sum(float(((x - y) ** 2).sum()) for x, y in zip(found, truth, strict=True))
    return (lost / sum(float((y**2).sum()) for y in truth)) ** 0.5


def ideal(truth: list[torch.Tensor], rank: int | None) -> float:
    if rank is None:
        return 0.0
    sigma = [torch.linalg.svdvals(y) for y in truth]
    return (sum(float((s[rank:] ** 2).sum()) for s in sigma) / sum(float((s**2).sum()) for s in sigma)) ** 0.5


def rows(model: nn.Module, rank: int, runs: int, home: Path) -> Iterator[str]:
    for rslora in (False, True):
        place = home / f"rslora-{rslora}"
        folders = [saved(model, place / name, seed, rank, rslora=rslora) for seed, name in enumerate("ab")]
        parts = [loaded(model, folder) for folder in folders]
        truth = [sum(w * part[i] for w, part in zip(WEIGHTS, parts, strict=True)) for i in range(len(parts[0]))]
        for method, wanted in (("linear", None), ("cat", None), ("svd", rank)):
            case = Case(method, rslora, wanted)
            taken = [(by_peft(model, folders, case), by_us(model, folders, case)) for _ in range(runs)]
            (theirs, _), (ours, _) = taken[-1]
            spent = [statistics.median(pair[side][1] for pair in taken) for side in (0, 1)]
            kind = "rsLoRA" if rslora else "LoRA"
            errors = (ideal(truth, wanted), error(theirs, truth), error(ours, truth))
            yield (
                f"{kind:<8}{method:<8}{errors[0]:>9.2e}{errors[1]:>11.2e}{errors[2]:>11.2e}"
                f"{spent[0]:>9.3f}{spent[1]:>9.3f}{spent[0] / spent[1]:>8.1f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 1024), ("layers", 6), ("rank", 16), ("runs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # PEFT's remarks on a second adapter
    model = Stack(given.width, given.layers)
    print(
        f"{given.layers} layers of {given.width} x {given.width}, r = {given.rank}, {torch.get_num_threads()} threads"
    )
    print("scale   method      ideal  PEFT err.   our err.  PEFT s    our s   ratio   (CPU seconds)")
    with tempfile.TemporaryDirectory() as home:
        for row in rows(model, given.rank, given.runs, Path(home)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
