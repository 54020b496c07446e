"""An audit in a log: as many modules as a line holds, the most wasteful first, and how many were left out."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from gradience.errors import RecorderError
from gradience.judge import audit
from gradience.judge.audit import lora_audit_metrics
from gradience.schema.audit import AuditSummary, ModuleAudit


def report(*utilizations):
    usual = {"module_type": "attn", "shape": [6, 5], "r": 2, "params": 22, "alpha": 4.0, "scaling": 2.0}
    norms = {"spectral_norm": 1.0, "frobenius_norm": 1.0}
    modules = [ModuleAudit(name=f"m{n}", utilization=u, **usual, **norms) for n, u in enumerate(utilizations)]
    return SimpleNamespace(
        summary=AuditSummary(total_lora_params=44, n_layers=2),
        modules=modules,
        health=SimpleNamespace(verdict="trained"),
    )


@pytest.mark.parametrize(("short_by", "kept"), [(0, 3), (1, 2)])
def test_a_byte_less_leaves_out_the_least_wasteful(monkeypatch, short_by, kept):
    made = report(0.5, 0.75, 0.25)
    whole = lora_audit_metrics(made)
    rows = whole.pop("modules")
    room = len(msgspec.json.encode(whole)) + sum(len(msgspec.json.encode(row)) + 1 for row in rows)
    monkeypatch.setattr(audit, "_EVENT_BYTES", room - short_by)
    payload = lora_audit_metrics(made)
    assert [row["name"] for row in payload["modules"]] == ["m2", "m0", "m1"][:kept]
    assert payload.get("modules_omitted") == (None if kept == 3 else 1)


def test_a_log_without_a_run_takes_no_audit(tmp_path):
    log = tmp_path / "run.jsonl"
    log.write_text('{"event": "of another program"}\n')
    with pytest.raises(RecorderError, match="holds no run to append to"):
        audit.append_audit(log, report(0.5))
    assert log.read_text() == '{"event": "of another program"}\n'
