"""How often RND203 calls an adapter random that an optimizer trained: AdamW, SGD, Adafactor, Lion, Shampoo, Muon.

``python benchmarks/optimizers.py FOLDER LAST MODEL ...`` trains adapters of rank 8 on all linear layers of small models
(FOLDER is that of ``reference.py``), saves them after 1, 5, 20, 100 and 500 steps up to LAST, and counts the audits
that say RANDOM LIKE: with the optimizer's name not known, and known. Factors drawn at random in place of the trained
ones show that the rule can still fire.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from reference import Recipe, base_of, fresh, losses, rows_of, tokens
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from gradience import audit_adapter
from gradience.rules.weights import health

SAVED: Final = (1, 5, 20, 100, 500)
BATCH: Final = 4
LENGTH: Final = 32
RATES: Final = {"llama": 0, "qwen": 1, "gpt2": 0, "wide": 1}
"""Which of the two rates a model is trained with."""


class Lion(torch.optim.Optimizer):
    """The sign of a momentum (Chen et al. 2023, arXiv 2302.06675)."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take one step."""
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.sub_(group["lr"] * (0.9 * m + 0.1 * p.grad).sign())
                m.mul_(0.99).add_(p.grad, alpha=0.01)


class Shampoo(torch.optim.Optimizer):
    """L^-1/4 G R^-1/4, with L and R the sums of G G^T and G^T G (Gupta et al. 2018, arXiv 1802.09568)."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take one step."""
        for group in self.param_groups:
            for p in group["params"]:
                g = p.grad.reshape(len(p), -1)
                sides = self.state[p].setdefault("sides", [1e-6 * torch.eye(n) for n in g.shape])
                sides[0] += g @ g.T
                sides[1] += g.T @ g
                p.sub_(group["lr"] * (_root(sides[0]) @ g @ _root(sides[1])).reshape(p.shape))


def _root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=1e-12) ** -0.25) @ vectors.T


OPTIMIZERS: Final[dict[str, tuple[Callable[..., Any], tuple[float, ...]]]] = {
    "adamw": (torch.optim.AdamW, (5e-4, 2e-3)),
    "sgd": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), (0.03, 0.3)),
    "adafactor": (torch.optim.Adafactor, (1e-3, 1e-2)),
    "lion": (Lion, (1e-4, 5e-4)),
    "shampoo": (Shampoo, (1e-3, 1e-2)),
    "muon": (torch.optim.Muon, (2e-3, 2e-2)),
}


def trained(name: str, recipe: Recipe, base: Path, place: Path) -> Iterator[Path]:
    """Train, and yield each saved adapter."""
    texts, labels = rows_of(recipe)
    tokenizer, model = AutoTokenizer.from_pretrained(base), fresh(recipe, base).train()
    of_matrices = [p for p in model.parameters() if p.requires_grad and p.ndim == 2]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim != 2]
    made = [OPTIMIZERS[name][0](of_matrices, lr=recipe.rate), *([torch.optim.AdamW(others, lr=1e-3)] if others else [])]
    rng = random.Random(1)  # noqa: S311  # rows, not secrets
    for step in range(1, recipe.steps + 1):
        rows = [rng.randrange(recipe.rows) for _ in range(BATCH)]
        batch = tokens(tokenizer, [texts[i] for i in rows], LENGTH)
        losses(model, batch, [labels[i] for i in rows] if labels else []).mean().backward()
        torch.nn.utils.clip_grad_norm_(of_matrices + others, 1.0)
        for one in made:
            one.step()
            one.zero_grad()
        if step in SAVED:
            model.save_pretrained(place / f"{step}")
            yield place / f"{step}"
    for parameter_name, p in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(p, std=0.01)
        elif "lora_A" in parameter_name:
            torch.nn.init.kaiming_uniform_(p, a=5**0.5)
    model.save_pretrained(place / "random")
    yield place / "random"


def main() -> None:
    warnings.simplefilter("ignore")
    disable_progress_bar()
    folder, last, models = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    said: Counter[tuple[str, str, str, bool]] = Counter()
    for model in models:
        base = base_of(folder, model, None)
        for name, (_, rates) in OPTIMIZERS.items():
            rate = rates[RATES[model]]
            recipe = Recipe(model, "prose", 8, 16, 2, rate, last, 1000, 0)
            with TemporaryDirectory() as place:
                for saved in trained(name, recipe, base, Path(place)):
                    kind = "random" if saved.name == "random" else "trained"
                    modules = audit_adapter(saved).modules
                    verdicts = [health(modules, optimizer=known).verdict for known in (None, name)]
                    for known, verdict in enumerate(verdicts):
                        said[model, name, kind, bool(known)] += verdict == "random_like"
                    print(model, name, rate, saved.name, *verdicts, flush=True)
    print("\n| model | optimizer | RANDOM LIKE, name not known | name known | of random factors, not known |")
    print("|---|---|---|---|---|")
    n = sum(step <= last for step in SAVED)
    for model in models:
        for name in OPTIMIZERS:
            plain, known = (said[model, name, "trained", which] for which in (False, True))
            print(f"| {model} | {name} | {plain} of {n} | {known} of {n} | {said[model, name, 'random', False]} of 1 |")


if __name__ == "__main__":
    main()
