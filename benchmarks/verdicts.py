"""How near trained modules come to the thresholds of the audit's verdicts: ``python benchmarks/verdicts.py FOLDER...``.

With ``--base MODEL`` the adapters under the folders are of that base. For each is printed how often its weights hold
the update already (<W, dW> / norm(dW)^2, with its standard error): as they are, and after the update was added to them
once and twice and stored in bfloat16; and whether BAS216 says so.

Every adapter under the folders is audited. Printed are, for each and for all, the largest ratio of a module's stable
rank to that of random numbers (of the update, and of lora_B), and the smallest norm of a module over the 90th
percentile. Adapters that cannot be read are counted.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from gradience import audit_adapter
from gradience.adapters.open import open_adapter
from gradience.base.weights import BaseWeights, find_shards
from gradience.errors import GradienceError

FLAT = 0.9  # as the rule RND203
RANK = 4  # least rank that RND203 judges


def main() -> None:
    """Audit all adapters and print the extremes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--base", type=Path)
    args = parser.parse_args()
    places = sorted({file.parent for root in args.folders for file in root.rglob("adapter_model.safetensors")})
    if args.base is None:
        extremes(places)
    for place in places if args.base else ():
        print(f"{place}: {beside(place, args.base)}", flush=True)


def beside(place: Path, base: Path) -> str:
    """How often the base holds the update, after it was added to it no time, once and twice."""
    found = []
    for times in range(3):
        with tempfile.TemporaryDirectory() as kept:
            merged = Path(kept)
            add(place, base, merged, times)
            report = audit_adapter(place, base=merged, norms_cache=False)
            said = [item.id for item in report.findings if item.id == "BAS216"]
            whole = report.base
            found.append(
                "-"
                if whole is None or whole.held is None or whole.held_error is None
                else f"{whole.held:.3f} +/- {whole.held_error:.3f} {' '.join(said)}"
            )
    return "; ".join(found)


def add(place: Path, base: Path, out: Path, times: int) -> None:
    """Write the base's weights with the update added some times over, each rounded to bfloat16 if any was."""
    (source,) = base.glob("*.safetensors")
    if times == 0:
        shutil.copy(source, out)
        return
    weights, known = load_file(source), BaseWeights(find_shards(base))
    for module in open_adapter(place)[1].modules:
        b, a = (torch.from_numpy(np.asarray(x, np.float32)) for x in module.load())
        found = known.find(module.base_name or f"{module.name}.weight")
        if found is None:
            raise ValueError(f"{base} has no weight of {module.name}")
        name = found.name
        delta = module.scale * b @ a
        for _ in range(times):
            wide = weights[name].float() + (delta if delta.shape == weights[name].shape else delta.T)
            weights[name] = wide.bfloat16()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, out / source.name)


def extremes(places: list[Path]) -> None:
    """Print how near the modules of each adapter come to the thresholds, and the extremes of all."""
    seen, unread = [], 0
    for place in places:
        try:
            report = audit_adapter(place)
        except GradienceError:
            unread += 1
            continue
        rows = [m for m in report.modules if m.state == "ok"]
        judged = [m for m in rows if m.r >= RANK and m.kind != "vera"]
        product = [m.stable_rank / m.null_stable_rank for m in judged if m.stable_rank and m.null_stable_rank]
        second = [m.b_stable_rank / m.b_null_stable_rank for m in judged if m.b_stable_rank and m.b_null_stable_rank]
        norms = np.array([float(m.frobenius_norm or 0.0) for m in rows])
        if not len(norms):
            print(f"{place}: {report.health.verdict}")
            continue
        small = float(norms.min() / np.quantile(norms, 0.9))
        ends = max(product, default=0.0), max(second, default=0.0), small
        flat = sum(x >= FLAT for x in product)
        print(f"{place}: {report.health.verdict}: {len(rows)} modules, " + ", ".join(f"{x:.2g}" for x in ends))
        if report.health.verdict == "trained":
            seen.append((len(rows), flat, *ends))
    table = np.array(seen)
    print(
        f"{len(seen)} trained adapters, {table[:, 0].sum():.0f} modules ({unread} not read): update at most "
        f"{table[:, 2].max():.2f} of random numbers ({table[:, 1].sum():.0f} modules over {FLAT}), lora_B at most "
        f"{table[:, 3].max():.2f}; norm at least {table[:, 4].min():.2f} of the 90th percentile"
    )


if __name__ == "__main__":
    main()
