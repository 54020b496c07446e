"""How often `gradience verify-served` is right: models x adapters x what may be served in their place.

`python benchmarks/receipt_models.py FOLDER llama qwen gpt2 bert` makes and trains the models; `python
benchmarks/receipt.py FOLDER llama qwen ...` judges, for every adapter, right targets in other dtypes and wrong ones.
Thresholds were chosen on `llama`; the others are the kept half. Beside it stands the usual test: greedy text of 16
prompts, of which so many are the same as the adapter's.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gradience.models import LoadedModel, active, load_adapter, load_model
from gradience.models.inputs import read_inputs
from gradience.models.probes import Probes
from gradience.models.reading import as_base, read_loaded
from gradience.models.states import adapted, quantised, rounded, scaled, without
from gradience.prove.receipt import receipt_of
from gradience.prove.receipt.targets import examples_of
from gradience.prove.receipt.verdict import Evidence, conclude
from gradience.schema.receipt import Receipt

State = Callable[[], AbstractContextManager[Any]]
RIGHT = {"same", "same_within_quantisation"}
PROMPT, NEW = 8, 16  # tokens of a prompt, and of its greedy continuation
NF4 = (-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
       0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0)  # fmt: skip # QLoRA, arXiv 2305.14314, appendix E


class Target(NamedTuple):
    """What is served: its kind, the state that gives it, its dtype as known, and the verdicts that are right."""

    kind: str
    state: State
    precision: str
    right: set[str]
    exact: bool = False


@contextmanager
def rewritten(loaded: LoadedModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """A context in which every matrix of the base is changed."""
    kept = []
    for name, module in loaded.model.named_modules():
        if ".lora_" not in name and getattr(module, "weight", None) is not None and module.weight.ndim == 2:  # a matrix
            kept.append((module, module.weight.data))
            module.weight.data = change(module.weight.data)
    try:
        yield
    finally:
        for module, weight in kept:
            module.weight.data = weight


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """Round to the nearest of NF4's codes, 64 weights to a scale."""
    flat = torch.nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % 64)).reshape(-1, 64)
    scale = flat.abs().amax(1, keepdim=True).clamp(min=1e-12)
    codes = torch.tensor(NF4)
    nearest = (flat / scale)[..., None].sub(codes).abs().argmin(-1)
    return (codes[nearest] * scale).reshape(-1)[: weight.numel()].reshape(weight.shape)


def both(*states: State) -> State:
    """Return several states at once."""

    @contextmanager
    def entered() -> Iterator[None]:
        with ExitStack() as stack:
            for state in states:
                stack.enter_context(state())
            yield

    return entered


def targets(loaded: LoadedModel, probes: Probes, names: list[str], rng: random.Random) -> Iterator[Target]:
    """Yield what may be served in the adapter's place."""
    layers = adapted(loaded)
    int8, int4 = (lambda: rounded(loaded, "int8")), (lambda: rounded(loaded, "int4"))
    yield Target("right: float32", nullcontext, "float32", RIGHT, exact=True)
    yield Target("right: bfloat16", lambda: rounded(loaded, "bfloat16"), "bfloat16", RIGHT)
    yield Target("right: float16", lambda: rewritten(loaded, lambda w: w.half().float()), "float16", RIGHT)
    yield Target("right: int8, dtype unknown", int8, "", RIGHT)
    four = {*RIGHT, "cannot_tell"}
    yield Target("4 bits (Q4_0's)", int4, "", four)
    yield Target("4 bits (NF4)", lambda: rewritten(loaded, nf4), "", four)
    yield Target("4 bits, 128 to a scale", lambda: rewritten(loaded, _coarse), "", four)
    for factor in (0.5, 0.7, 1.4, 2.0):
        yield Target(
            "another scale", lambda factor=factor: scaled(layers, factor), "float32", {"wrong_scale"}, exact=True
        )
    yield Target("another scale, int8", both(int8, lambda: scaled(layers, 2.0)), "", {"wrong_scale"})
    for name in rng.sample(list(probes.groups), min(3, len(probes.groups))):
        own = lambda name=name: without(layers, probes.groups[name])  # noqa: E731  # a state
        yield Target("a part missing", own, "float32", {"part_missing"}, exact=True)
        yield Target("a part missing, int8", both(int8, own), "", {"part_missing"})
        yield Target("a part missing, 4 bits", both(int4, own), "", {"part_missing", "cannot_tell"})
    yield Target("the base", lambda: as_base(loaded), "bfloat16", {"the_base"})
    yield Target("the base, int8", both(int8, lambda: as_base(loaded)), "", {"the_base"})
    yield Target("the base, 4 bits", both(int4, lambda: as_base(loaded)), "", {"the_base", "cannot_tell"})
    wrong_base = {"another_adapter", "another_checkpoint"}
    yield Target("another base", lambda: rewritten(loaded, _noisy), "float32", wrong_base, exact=True)
    for name in names:
        kind = "an older checkpoint" if "checkpoint" in name else "another adapter"
        right = {"another_checkpoint"} if "checkpoint" in name else {"another_adapter"}
        own = lambda name=name: active(loaded, name)  # noqa: E731  # a state
        yield Target(kind, own, "float32", right, exact=True)
        yield Target(f"{kind}, bfloat16", both(own, lambda: rounded(loaded, "bfloat16")), "bfloat16", right)
        yield Target(f"{kind}, dtype unknown", own, "", {*right, "cannot_tell"})


def _coarse(weight: torch.Tensor) -> torch.Tensor:
    return quantised(weight.reshape(-1, 32), 7.0).reshape(weight.shape) if weight.numel() % 32 else _by_128(weight)


def _by_128(weight: torch.Tensor) -> torch.Tensor:
    flat = torch.nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % 128)).reshape(-1, 128)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    step = (high - low).clamp(min=1e-12) / 15
    return (((flat - low) / step).round() * step + low).reshape(-1)[: weight.numel()].reshape(weight.shape)


def _noisy(weight: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return weight + 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)


@torch.inference_mode()
def greedy(loaded: LoadedModel, receipt: Receipt) -> list[list[int]]:
    """Return the greedy continuation of the first tokens of each row; empty for a classifier."""
    if loaded.task != "causal-lm":
        return []
    ids = torch.tensor([row.ids[:PROMPT] for row in receipt.rows if len(row.ids) >= PROMPT])
    for _ in range(NEW):
        ids = torch.cat([ids, loaded.model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, PROMPT:].tolist()


class KeptProbes(Probes):
    """Probes whose parts are read once for all targets of an adapter."""

    _kept: dict[str, Any] | None = None

    def parts(self) -> dict[str, Any]:
        """Return what is read without each group of modules."""
        self._kept = super().parts() if self._kept is None else self._kept
        return self._kept


class Row(NamedTuple):
    """One target's outcome."""

    kind: str
    verdict: str
    is_right: bool
    same_text: float | None


def judged(base: Path, adapter: Path, *, text: bool) -> Iterator[Row]:
    """Yield the outcome of every target of an adapter."""
    loaded = load_model(base, adapter)
    receipt = receipt_of(loaded, read_inputs(adapter / "rows.jsonl", loaded, most=24).examples, rows=16)
    examples = examples_of(receipt.rows)
    probes = KeptProbes(loaded, examples)
    others = [p for p in sorted(adapter.parent.glob("*/adapter_config.json")) if p.parent != adapter]
    names = []
    for place in (*sorted(adapter.glob("checkpoint-*")), *(p.parent for p in others)):
        load_adapter(loaded, place, place.name)
        names.append(place.name)
    wanted = greedy(loaded, receipt) if text else []
    for target in targets(loaded, probes, names, random.Random(str(adapter.name))):  # noqa: S311  # no secret
        with target.state():
            reading = read_loaded(loaded, examples)
            found = greedy(loaded, receipt) if text else []
        told = conclude(Evidence(receipt, reading), precision=target.precision, exact=target.exact, probes=probes)
        same = None if not wanted else sum(a == b for a, b in zip(wanted, found, strict=True)) / len(wanted)
        yield Row(target.kind, told.verdict, told.verdict in target.right, same)


def main(folder: Path, kinds: list[str]) -> None:
    """Print a table for each model."""
    for kind in kinds:
        rows = defaultdict(list)
        adapters = [p.parent for p in sorted((folder / kind).glob("*/rows.jsonl"))]
        for adapter in adapters:
            for row in judged(folder / kind / "base", adapter, text=kind != "smol"):
                rows[row.kind].append(row)
        print(f"{kind}, {len(adapters)} adapters")
        print(f"  {'served':<32} {'n':>3} {'right':>6} {'called same':>12} {'cannot tell':>12} {'same text':>10}")
        for name, found in rows.items():
            same = sum(row.verdict in RIGHT for row in found)
            untold = sum(row.verdict == "cannot_tell" for row in found)
            texts = [row.same_text for row in found if row.same_text is not None]
            shown = f"{sum(texts) / len(texts):.0%}" if texts else "-"
            right = sum(row.is_right for row in found)
            print(f"  {name:<32} {len(found):>3} {right:>6} {same:>12} {untold:>12} {shown:>10}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
