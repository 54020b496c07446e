"""Random small adapters, and the numbers that every verb reports on them, for laws over all verbs.

Each file has three modules with different ranks and scales, and at random patterns, DoRA, rsLoRA or another dtype.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

import gradience as g
from gradience.errors import GradienceError

SHAPES: Final = {
    "layers.0.q_proj": (9, 7),
    "layers.0.up_proj": (12, 7),
    "layers.1.q_proj": (9, 7),
    "layers.1.v_proj": (8, 8),
}
PLACES: Final = {
    "path",
    "source",
    "sources",
    "peft_dir",
    "weights_path",
    "config_path",
    "base",
    "out",
    "name",
    "seconds",
}


def adapter(folder: Path, rng: random.Random, *, plain: bool, zero: str = "", size: float = 1.0) -> Path:
    """Write an adapter on three of the modules. If `plain`, it can be merged; the module `zero` has a zero update.

    Updates, and DoRA's magnitudes, are scaled by `size`.
    """
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    names = rng.sample(sorted(SHAPES), 3)
    r = rng.choice([3, 4])
    ranks = {name: r if rng.random() < 0.6 else rng.choice([1, 2, 5]) for name in names}
    config: dict[str, Any] = {"peft_type": "LORA", "r": r, "lora_alpha": rng.choice([2, 6, 8]), "target_modules": names}
    config["rank_pattern"] = {name: rank for name, rank in ranks.items() if rank != r}
    config["alpha_pattern"] = {names[0]: 5} if rng.random() < 0.5 else {}
    config["use_rslora"] = rng.random() < 0.3
    config["use_dora"] = not plain and rng.random() < 0.6
    kind = rng.choice([np.float32, np.float32, ml_dtypes.bfloat16])
    tensors = {}
    for name in names:
        out, width = SHAPES[name]
        fall = rng.choice([1.0, 0.6, 0.3]) ** np.arange(ranks[name])
        stem = f"base_model.model.{name}"
        tensors[f"{stem}.lora_A.weight"] = (numbers.standard_normal((ranks[name], width)) * fall[:, None]).astype(kind)
        tensors[f"{stem}.lora_B.weight"] = (numbers.standard_normal((out, ranks[name])) * fall).astype(kind)
        tensors[f"{stem}.lora_B.weight"] *= kind(0.0 if name == zero else size)
        if config["use_dora"]:
            tensors[f"{stem}.lora_magnitude_vector"] = (numbers.uniform(1, 3, out) * size).astype(kind)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def base(folder: Path, rng: random.Random, size: float = 1.0) -> Path:
    """Write a base with all modules."""
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    folder.mkdir(parents=True)
    weights = {
        f"{name}.weight": (numbers.standard_normal(shape) * size).astype(np.float32) for name, shape in SHAPES.items()
    }
    save_file(weights, folder / "model.safetensors")
    return folder


def trained(file: Path, share: float) -> None:
    """Replace each B of a file by `share` of itself plus the rest of its copy with rows reversed."""
    tensors = load_file(file)
    wide = {name: x.astype(np.float32) for name, x in tensors.items()}  # bfloat16 times a float is of either dtype
    turned = {name: x if "lora_A" in name else x * share + x[::-1] * (1 - share) for name, x in wide.items()}
    save_file({name: np.ascontiguousarray(x.astype(tensors[name].dtype)) for name, x in turned.items()}, file)


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each number, flag and short word of a report with its place, except file names."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in PLACES:
                yield from leaves(item, f"{at}.{name}" if at else str(name))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from leaves(item, f"{at}[{place}]")
    elif value is not None and not (isinstance(value, str) and len(value) > 60):
        yield at, value


CRITERIA: Final[dict[str, dict[str, Any]]] = {
    "rank": {"rank": 2},
    "energy": {"energy": 0.9},
    "max_params": {"max_params": 90},
    "max_mb": {"max_mb": 0.0018},
    "suggested": {"like_suggested": True},
}
METHODS: Final[dict[str, dict[str, Any]]] = {
    "linear": {},
    "cat": {"method": "cat", "weights": [1.0, -0.5]},
    "svd": {"method": "svd", "rank": 2, "weights": [0.3, 0.9]},
    "ties": {"method": "ties", "density": 0.4},
    "dare": {"method": "dare_linear", "density": 0.5, "seed": 3},
    "dare ties": {"method": "dare_ties", "density": 0.7, "rank": 3},
}


def verbs(root: Path, seed: int, size: float = 1.0) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each verb, ready to run on the adapters of a seed, whose weights are scaled by `size`."""
    rng = random.Random(f"adapters {seed}")  # noqa: S311  # an input repeats itself
    under = base(root / "base", rng, size)
    zero = "layers.1.q_proj" if seed % 2 else ""
    one, two = (adapter(root / name, rng, plain=True, zero=zero, size=size) for name in ("one", "two"))
    other = adapter(root / "other", rng, plain=False, zero=zero, size=size)
    for step in (10, 20, 30):
        adapter(root / "run" / f"checkpoint-{step}", random.Random(f"run {seed}"), plain=True, size=size)  # noqa: S311  # as above
        trained(root / "run" / f"checkpoint-{step}" / "adapter_model.safetensors", step / 30)
    for name, options in CRITERIA.items():
        yield f"resize {name}", lambda options=options: g.resize_adapter(other, base=under, **options)
    for name, options in METHODS.items():
        yield f"merge {name}", lambda options=options: g.merge_adapters([one, two], **options)
    yield "merge-check", lambda: g.merge_check(one, two, weights=[0.7, 0.6], exact=True)
    yield "compare", lambda: g.compare_adapters(one, two)
    yield "compare three", lambda: g.compare_adapters(one, two, other)
    yield "compare a series", lambda: g.compare_adapters(root / "run")
    yield "audit", lambda: g.audit_adapter(other, top_singular_values=3, suggest_per_layer=True)
    yield "audit beside a base", lambda: g.audit_adapter(other, base=under, intruders=True, norms_cache=False)
    yield "convert", lambda: g.convert_adapter(other, rank=2, base=under)
    yield "convert to mlx", lambda: g.convert_adapter(one, to="mlx", energy=0.8)


def all_leaves(seed: int, size: float) -> dict[str, dict[str, Any]]:
    """The leaves of every verb's report on the adapters of a seed and a size. A refusal is its message."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, call in verbs(Path(folder), seed, size):
            try:
                found[name] = dict(leaves(msgspec.to_builtins(call())))
            except GradienceError as error:
                found[name] = {"refused": str(error).replace(folder, "")}
    return found
