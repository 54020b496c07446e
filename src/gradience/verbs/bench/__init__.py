"""``gradience.verbs.bench``: what smaller, merged or mitigated adapters lose on the user's own data."""

from __future__ import annotations

from gradience.verbs.bench.run import bench_adapter, bench_merge, bench_mitigate

__all__ = ["bench_adapter", "bench_merge", "bench_mitigate"]
