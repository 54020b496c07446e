"""``gradience.verbs.bench``: what smaller, merged or mitigated adapters lose on the user's own data."""

from __future__ import annotations

from gradience.verbs.bench.merges import bench_merge
from gradience.verbs.bench.mitigations import bench_mitigate
from gradience.verbs.bench.run import bench_adapter

__all__ = ["bench_adapter", "bench_merge", "bench_mitigate"]
