"""The report: verdicts, scales, suggestions, and the payload of a log line."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from audited import low_dimensional, module, report
from safetensors.numpy import load_file, save_file
from tables import every

from gradience.cli.main import main
from gradience.errors import RecorderError
from gradience.telemetry.reader import TelemetryReader
from gradience.telemetry.writer import TelemetryWriter
from gradience.verbs.audit import run as audit
from gradience.verbs.audit.run import append_audit, audit_adapter, lora_audit_metrics

LAYERS, OUT, INNER, R = 4, 48, 32, 8  # of write_adapter's modules


@pytest.mark.parametrize(
    ("verdict", "factor"),
    [
        ("untrained", lambda i: np.zeros((OUT, R))),
        ("partial", lambda i: np.full((OUT, R), float(i % 2))),
        ("broken", lambda i: np.full((OUT, R), np.nan if i == 2 else 1.0)),
        ("random_like", lambda i: np.random.default_rng(i).standard_normal((OUT, R))),
    ],
)
def test_verdicts_come_first_with_a_reason_and_a_finding(write_adapter, verdict, factor):
    rng = np.random.default_rng(9)
    folder = write_adapter(lambda i: (factor(i), rng.uniform(-1, 1, (R, INNER))))
    found = audit_adapter(folder)
    assert found.health.verdict == verdict
    assert found.health.reason
    assert found.findings[0].severity in {"error", "warning"}


def test_non_finite_modules_enter_no_mean(write_adapter):
    rng = np.random.default_rng(0)
    clean = audit_adapter(write_adapter(lambda i: low_dimensional(np.random.default_rng(i)), name="clean", layers=3))
    spoiled = write_adapter(
        lambda i: (
            (np.full((OUT, R), np.inf), rng.standard_normal((R, INNER)))
            if i == 3
            else low_dimensional(np.random.default_rng(i))
        ),
        name="spoiled",
    )
    found = audit_adapter(spoiled)
    assert found.summary.stable_rank_mean == pytest.approx(clean.summary.stable_rank_mean)
    assert found.modules[3].state == "non_finite"
    assert found.modules[3].stable_rank is None


def test_scales_say_which_pattern_applied_and_which_matches_nothing(write_adapter):
    folder = write_adapter(alpha_pattern={r"layers\.1\.self_attn\.q_proj": 4, "layers.2": 5}, rank_pattern={"k": 2})
    found = audit_adapter(folder)
    assert [m.scaling for m in found.modules] == [2.0, 0.5, 2.0, 2.0]
    assert [m.alpha_pattern for m in found.modules] == [None, r"layers\.1\.self_attn\.q_proj", None, None]
    assert set(found.unmatched_patterns) == {"layers.2", "k"}
    assert "SCL207" in {f.id for f in found.findings}


def moved(i, shape=(OUT, R)):
    """Factors whose lora_B has moved by a quarter in each entry."""
    rng = np.random.default_rng(i)
    return 0.25 * rng.choice([-1.0, 1.0], shape), rng.standard_normal((R, INNER))


@every(
    ("config", "rms"),
    [
        ({}, 0.25),
        ({"use_rslora": True}, 0.25),
        ({"lora_alpha": 1}, 0.25),
        ({"init_lora_weights": True}, 0.25),
        ({"init_lora_weights": "gaussian"}, 0.25),
        ({"init_lora_weights": "pissa"}, None),
        ({"init_lora_weights": False}, None),  # lora_B starts at random
    ],
)
def test_the_size_of_lora_b_is_told_where_it_starts_at_zero(config, rms, write_adapter):
    found = audit_adapter(write_adapter(moved, name=str(config), **config))
    assert [m.b_rms for m in found.modules] == [None if rms is None else pytest.approx(rms, rel=1e-9)] * LAYERS


def test_of_a_transposed_base_it_is_lora_b_that_is_measured_too(write_adapter):
    folder = write_adapter(lambda i: moved(i, shape=(3 * OUT, R)), fan_in_fan_out=True)
    assert audit_adapter(folder).modules[0].b_rms == pytest.approx(0.25, rel=1e-9)


def test_a_rank_that_the_config_contradicts_is_a_warning(write_adapter):
    found = audit_adapter(write_adapter(r=16))
    assert {m.config_r for m in found.modules} == {16}
    assert {m.scaling for m in found.modules} == {2.0}
    assert "SCL206" in {f.id for f in found.findings}


@every(
    ("extra", "taken"),
    [({}, "as_it_is"), ({"base_model.model.x.bias": np.ones(3, "f4")}, "as_it_is"), ({"q.ia3_l": np.ones(3)}, "not")],
)
def test_resize_takes_a_file_of_which_every_update_is_analysed(extra, taken, write_adapter):
    folder = write_adapter(name="made", layers=1)
    save_file(load_file(folder / "adapter_model.safetensors") | extra, folder / "adapter_model.safetensors")
    assert audit_adapter(folder).resized_as == taken


def test_suggestions_carry_their_price(write_adapter):
    found = audit_adapter(write_adapter())
    assert [c.rank for c in found.candidates] == [1, 2, 3, 4]
    assert {name: s.rank for name, s in found.suggested.items()} == {"median": 2, "p90": 3}
    errors = [c.relative_error for c in found.candidates]
    assert errors == sorted(errors, reverse=True)
    for c in found.candidates:
        assert c.relative_error == pytest.approx(np.sqrt(1 - c.energy_kept))
        assert c.params_saved == 4 * (R - c.rank) * (OUT + INNER)
        assert c.bytes_saved == 4 * c.params_saved
    assert {r.rule for r in found.rank_rules} == {"energy_90", "effective_rank", "stable_rank", "knee"}


@pytest.mark.parametrize(("short_by", "kept"), [(0, 3), (1, 2)])
def test_a_byte_less_leaves_out_the_least_wasteful(monkeypatch, short_by, kept):
    made = report(*(module(f"m{n}", utilization=u) for n, u in enumerate((0.5, None, 0.25))))
    whole = lora_audit_metrics(made)
    rows = whole.pop("modules")
    room = len(msgspec.json.encode(whole)) + sum(len(msgspec.json.encode(row)) + 1 for row in rows)
    monkeypatch.setattr(audit, "_EVENT_BYTES", room - short_by)
    payload = lora_audit_metrics(made)
    assert [row["name"] for row in payload["modules"]] == ["m2", "m0", "m1"][:kept]
    assert payload.get("modules_omitted") == (None if kept == 3 else 1)


def test_the_payload_has_the_names_that_logs_in_the_wild_carry(write_adapter):
    payload = lora_audit_metrics(audit_adapter(write_adapter()))
    assert {
        "total_lora_params", "n_layers", "stable_rank_mean", "stable_rank_median", "stable_rank_weighted_mean",
        "effective_rank_mean", "utilization_mean", "energy_rank_90_p50", "energy_rank_90_p90", "by_type",
        "suggested_r_global_median", "suggested_r_global_90", "modules",
    } <= set(payload)  # fmt: skip
    assert {
        "name", "module_type", "layer", "r", "alpha", "scaling", "params", "stable_rank", "effective_rank",
        "participation_ratio", "utilization", "energy_rank_90", "energy_rank_95", "energy_rank_99",
        "spectral_norm", "frobenius_norm",
    } <= set(payload["modules"][0])  # fmt: skip


def test_an_appended_audit_is_an_event_of_the_runs_own(write_adapter, tmp_path):
    log = tmp_path / "run.jsonl"
    with TelemetryWriter(log) as writer:
        writer.run_start()
        writer.train_step(1, loss=1.0)
        writer.run_end()
    before = TelemetryReader(log).summarize().last
    found = audit_adapter(write_adapter())
    append_audit(log, found)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[-1]["event"] == "metrics"
    assert lines[-1]["kind"] == "lora_audit"
    assert lines[-1]["run_id"] == before.run_id
    assert lines[-1]["metrics"]["stable_rank_mean"] == pytest.approx(found.summary.stable_rank_mean)
    assert TelemetryReader(log).summarize().last.run_id == before.run_id


def test_a_log_without_a_run_takes_no_audit(tmp_path):
    log, of_others = tmp_path / "run.jsonl", '{"event": "of another program"}\n'
    log.write_text(of_others)
    with pytest.raises(RecorderError, match="holds no run to append to"):
        append_audit(log, report(module()))
    assert log.read_text() == of_others


@pytest.mark.parametrize(
    ("name", "verdict", "modules"),
    [
        ("roberta-portuguese-r8", "trained", 24),
        ("roberta-agnews-r4-bias-all", "trained", 36),
        ("dialogpt-random-r8", "random_like", 12),
        ("convnext-fc-r8", "trained", 36),
        ("mlx-qwen-r8", None, 8),
    ],
)
def test_real_adapters_are_judged_without_false_alarm(shared_data, name, verdict, modules):
    found = audit_adapter(shared_data / "adapters" / name)
    assert verdict in {None, found.health.verdict}
    assert len(found.modules) == modules
    assert not [f for f in found.findings if f.severity == "error"]
    assert sum(entry.share for entry in found.ledger) == pytest.approx(1.0)
    assert (found.summary.update_size < 0.1) is (verdict != "random_like")


def test_what_is_trained_beside_the_factors_has_a_line_of_the_first_screen(tmp_path, capsys):
    """An embedding, a head and biases of other sizes: most of the file's parameters, and in no number of the audit."""
    stem, ones = "base_model.model.model.layers.0.self_attn.q_proj", np.ones
    tensors = {
        f"{stem}.lora_A.weight": ones((4, 20), np.float32), f"{stem}.lora_B.weight": ones((10, 4), np.float32),
        "base_model.model.model.embed_tokens.weight": ones((20, 15), np.float16),
        "base_model.model.lm_head.weight": ones((20, 25), np.float16),
        f"{stem}.bias": ones(80, np.float32),
    }  # fmt: skip
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "lora_only",
              "modules_to_save": ["embed_tokens", "lm_head"]}  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert main(["audit", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    held = "full module 80.0% (2 tensors), bias 8.0% (1 tensor)"
    assert f"LoRA params: 120; of the file's parameters, in no number here: {held} Layers" in said
    for name in list(tensors)[2:]:
        del tensors[name]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert main(["audit", str(tmp_path)]) == 0
    assert "in no number here" not in capsys.readouterr().out
