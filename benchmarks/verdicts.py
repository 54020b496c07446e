"""How near trained modules come to the thresholds of the audit's verdicts: ``python benchmarks/verdicts.py FOLDER...``.

Every adapter under the folders is audited. Printed are, for each and for all, the largest ratio of a module's stable
rank to that of random numbers (of the update, and of lora_B), and the smallest norm of a module over the 90th
percentile. Adapters that cannot be read are counted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from gradience import audit_adapter
from gradience.errors import GradienceError

FLAT = 0.9  # as the rule RND203
RANK = 4  # least rank that RND203 judges


def main() -> None:
    """Audit all adapters and print the extremes."""
    seen, unread = [], 0
    places = {file.parent for root in sys.argv[1:] for file in Path(root).rglob("adapter_model.safetensors")}
    for place in sorted(places):
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
