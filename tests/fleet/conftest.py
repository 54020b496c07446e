"""A folder of small adapters of every layout, and the fleet of it: audited once for all tests that only read."""

from __future__ import annotations

import shutil
from pathlib import Path

import ml_dtypes
import pytest
from fleet_inputs import factors, peft, with_noise

for name in ("duckdb", "pyarrow", "xxhash"):
    pytest.importorskip(name, reason="needs the extra [fleet]")


@pytest.fixture(scope="session")
def collection(tmp_path_factory) -> Path:
    """Adapters: ten trained ones, of which some are alike, one of another base, two that cannot be read."""
    root = tmp_path_factory.mktemp("collection")
    for seed in range(5):
        peft(root / f"run-{seed}", factors(seed))
    shutil.copytree(root / "run-0", root / "copy-of-0")
    peft(root / "near-1", with_noise(factors(1), 0.01))
    peft(root / "r16", factors(20, r=16, decay=0.4), r=16)
    peft(root / "other-base", factors(21, width=32))
    peft(root / "bf16", {k: v.astype(ml_dtypes.bfloat16) for k, v in factors(22).items()})
    peft(root / "untrained", {k: v * ("lora_A" in k) for k, v in factors(23).items()})
    cut = peft(root / "truncated") / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-40])
    (root / "no-weights").mkdir()
    (root / "no-weights" / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def fleet(collection, tmp_path_factory) -> Path:
    """The fleet of it, by two worker processes."""
    from gradience.verbs.fleet.audit import audit_fleet

    out = tmp_path_factory.mktemp("fleets") / "fleet"
    report = audit_fleet(collection, out=out, workers=2)
    assert (report.found, report.audited, report.errors, report.crashed) == (13, 13, 2, 0)
    return out


@pytest.fixture
def called(monkeypatch):
    """Jobs are called in this process, where what is asked is which jobs there are and what becomes of their rows."""
    from gradience.verbs.fleet import audit
    from gradience.verbs.fleet.workers import Done

    def run(work, jobs, **_):
        return (Done(job, work(job)) for job in jobs)

    monkeypatch.setattr(audit, "carried_out", run)
