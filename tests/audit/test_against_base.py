"""An adapter beside its base: PEFT's own merge is the truth, dense float64 the oracle."""

from __future__ import annotations

import json
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import tiny_models
import torch
from safetensors.numpy import load_file, save_file
from tables import every, once

from gradience.base import weights as base_weights
from gradience.cli.main import main
from gradience.errors import AdapterError
from gradience.verbs.audit.against_base import held_of
from gradience.verbs.audit.run import audit_adapter
from gradience.verbs.audit.view import audit_text

LAYERS, OUT, INNER, R = 4, 48, 32, 8  # of write_adapter and write_base


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def dense_of(folder, i):
    tensors = load_file(folder / "adapter_model.safetensors")
    stem = f"base_model.model.model.layers.{i}.self_attn.q_proj"
    b, a = (tensors[f"{stem}.lora_{x}.weight"].astype(np.float64) for x in "BA")
    return 2.0 * b @ a


def test_ratios_are_those_of_dense_float64(write_adapter, write_base):
    folder, base = write_adapter(), write_base()
    weights = load_file(base / "model.safetensors")
    report = audit_adapter(folder, base=base, intruders=True)
    for i, module in enumerate(report.modules):
        w = weights[f"model.layers.{i}.self_attn.q_proj.weight"].astype(np.float64)
        dw = dense_of(folder, i)
        assert module.udr == pytest.approx(np.linalg.norm(dw, 2) / np.linalg.norm(w, 2), rel=1e-5)
        assert module.sdi == pytest.approx(np.log10(module.udr))
        assert module.relative_frobenius == pytest.approx(np.linalg.norm(dw) / np.linalg.norm(w), rel=1e-5)
        u_w, u_t = (np.linalg.svd(x)[0] for x in (w, w + dw))
        overlap = np.max(np.abs(u_w[:, :INNER].T @ u_t[:, :10]), axis=0)
        assert module.base.intruders.count == np.sum(overlap < 0.5)
        assert list(module.base.intruders.counts) == ["0.3", "0.5", "0.7"]
    assert report.base.compared == LAYERS


def test_an_update_far_below_the_weights_is_near_untrained_and_lost_in_bf16(write_adapter, write_base):
    rng = np.random.default_rng(0)
    tiny = write_adapter(lambda i: (rng.standard_normal((OUT, R)) * 1e-6, rng.standard_normal((R, INNER))))
    report = audit_adapter(tiny, base=write_base())
    assert report.health.verdict == "near_untrained"
    assert report.base.relative_frobenius < 1e-4
    assert "MRG210" in {f.id for f in report.findings}
    assert audit_adapter(tiny).health.verdict == "random_like"


def test_a_zero_update_has_udr_zero_and_no_sdi(write_adapter, write_base):
    folder = write_adapter(lambda i: (np.zeros((OUT, R)), np.ones((R, INNER))))
    report = audit_adapter(folder, base=write_base(), intruders=True)
    assert report.health.verdict == "untrained"
    assert {m.udr for m in report.modules} == {0.0}
    assert {m.sdi for m in report.modules} == {None}
    assert [(m.base.survival, m.base.intruders, m.base.held) for m in report.modules] == [(None, None, None)] * LAYERS
    assert (report.base.survival_dtype, report.base.intruder_total, report.base.relative_frobenius) == (None, None, 0.0)


@once(times=[0, 1, 2, 3], turned=[False, True])
def test_a_base_that_holds_the_adapter_already_is_found(write_adapter, write_base, times, turned):
    """Weights of norm 10 beside updates of norm 3 to 6, so that chance gives <W, dW> / norm(dW)^2 of under .1."""
    folder, base = write_adapter(fan_in_fan_out=turned), write_base(shape=(INNER, OUT) if turned else (OUT, INNER))
    weights = load_file(base / "model.safetensors")
    for i, name in enumerate(sorted(weights)):
        update = dense_of(folder, i)
        weights[name] = (0.25 * weights[name] + times * (update.T if turned else update)).astype(np.float32)
    save_file({name: np.ascontiguousarray(w) for name, w in weights.items()}, base / "model.safetensors")
    report = audit_adapter(folder, base=base)
    pairs = [(weights[f"model.layers.{i}.self_attn.q_proj.weight"], dense_of(folder, i)) for i in range(LAYERS)]
    inner = [np.sum(w * (d.T if turned else d)) for w, d in pairs]
    squares = [np.sum(d * d) for _, d in pairs]
    assert [m.base.held for m in report.modules] == pytest.approx(np.divide(inner, squares), rel=1e-4, abs=1e-4)
    assert report.base.held == pytest.approx(sum(inner) / sum(squares), rel=1e-4, abs=1e-4)
    rest = np.subtract(inner, np.multiply(report.base.held, squares))
    assert report.base.held_error == pytest.approx(np.linalg.norm(rest) / sum(squares), rel=1e-3)
    said = [f.message for f in report.findings if f.id == "BAS216"]
    words = {1: "hold this update once already", 2: "hold this update twice already"}.get(times)
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


@every(
    ("compared", "held"),
    [
        ([], (None, None)),
        ([(None, 2.0)], (None, None)),
        ([(1.0, 0.0)], (None, None)),
        ([(0.9, 0.2)], (0.9, None)),  # of one ratio no error is known
        ([(0.9, 2.0), (None, 5.0)], (0.9, None)),
        ([(1.0, 1.0), (0.0, 2.0)], (0.2, math.hypot(1.0 - 0.2, 0.2 * 4.0) / 5.0)),
        ([(1.0, 1e154), (1.0, 1.2e154)], (None, None)),  # the sum of their squares is beyond float64
    ],
)
def test_how_often_the_base_holds_an_update_is_a_ratio_of_sums(compared, held):
    rows = [SimpleNamespace(held=each, update_frobenius_norm=norm) for each, norm in compared]
    assert held_of(rows) == pytest.approx(held)


def test_an_update_that_took_a_part_out_of_the_base_is_not_looked_for_in_it(write_adapter, write_base):
    report = audit_adapter(write_adapter(init_lora_weights="pissa"), base=write_base())
    assert (report.base.held, report.base.held_error) == (None, None)
    assert "BAS216" in {item.id for item in report.not_run}


def test_another_base_is_a_finding_that_names_what_is_missing(write_adapter, write_base):
    report = audit_adapter(write_adapter(), base=write_base(shape=(OUT, INNER + 1)))
    finding = next(f for f in report.findings if f.id == "BAS211")
    assert finding.severity == "error"
    assert "layers.0.self_attn.q_proj" in finding.message
    assert report.base.compared == 0
    assert all(m.udr is None for m in report.modules)
    assert report.health.verdict == "trained"


def test_a_base_saved_without_the_model_classs_prefix_is_found(write_adapter, write_base):
    folder = write_adapter()
    plain = audit_adapter(folder, base=write_base())
    longer = audit_adapter(folder, base=write_base("longer", prefix="language."))
    assert [m.udr for m in longer.modules] == pytest.approx([m.udr for m in plain.modules])
    weights = load_file(write_base("full") / "model.safetensors")
    short = folder.parent / "short"
    short.mkdir()
    save_file({k.removeprefix("model."): v for k, v in weights.items()}, short / "model.safetensors")
    assert audit_adapter(folder, base=short).base.compared == LAYERS


def kept(cache, identity):
    """The file of a base's norms."""
    return next(file for file in cache.iterdir() if json.loads(file.read_bytes())["identity"] == identity)


def test_the_files_of_a_base_are_hashed_once_and_again_where_one_was_written(
    write_adapter, write_base, wait_a_tick, monkeypatch
):
    folder, base = write_adapter(), write_base()
    first = audit_adapter(folder, base=base)
    hashed = []
    real = base_weights.file_digest
    monkeypatch.setattr(base_weights, "file_digest", lambda file: (hashed.append(file.name), real(file))[1])
    again = audit_adapter(folder, base=base)
    assert hashed == []
    assert again.base.identity == first.base.identity
    assert again.base.norms_cached == LAYERS
    file = base / "model.safetensors"
    held, times = bytearray(file.read_bytes()), file.stat()
    held[-1] ^= 1  # a weight's highest byte: as many bytes as before, and the time is put back
    wait_a_tick(file)
    file.write_bytes(held)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = audit_adapter(folder, base=base)
    assert hashed == ["model.safetensors"]
    assert changed.base.norms_cached == 0
    assert changed.base.identity != first.base.identity


def test_norms_are_kept_for_the_same_base_and_refused_for_another(write_adapter, write_base, tmp_path):
    folder, base, other = write_adapter(), write_base(), write_base("other", seed=2)
    first = audit_adapter(folder, base=base)
    again = audit_adapter(folder, base=base)
    assert (first.base.norms_cached, again.base.norms_cached) == (0, LAYERS)
    assert [m.udr for m in again.modules] == [m.udr for m in first.modules]
    changed = audit_adapter(folder, base=other)
    assert changed.base.norms_cached == 0
    assert changed.base.identity != first.base.identity
    cache = tmp_path / "cache" / "gradience" / "norms"
    one, two = (kept(cache, report.base.identity) for report in (first, changed))
    shutil.copy(one, two)
    refused = audit_adapter(folder, base=other)
    assert refused.base.norms_cached == 0
    assert "another base" in refused.base.notes[0]
    assert [m.udr for m in refused.modules] == [m.udr for m in changed.modules]


def test_a_cached_norm_of_another_weight_is_computed_again(write_adapter, write_base, tmp_path):
    folder, base = write_adapter(), write_base()
    first = audit_adapter(folder, base=base)
    cache = kept(tmp_path / "cache" / "gradience" / "norms", first.base.identity)
    document = json.loads(cache.read_text())
    for norms in document["norms"].values():
        norms["spectral"], norms["frobenius"] = 1.0, 2.0
    cache.write_text(json.dumps(document))
    again = audit_adapter(folder, base=base)
    assert again.base.norms_cached == 0
    assert [m.udr for m in again.modules] == [m.udr for m in first.modules]


def test_without_a_cache_nothing_is_written(write_adapter, write_base, tmp_path):
    audit_adapter(write_adapter(), base=write_base(), norms_cache=False)
    assert not (tmp_path / "cache").exists()


def test_a_base_that_is_not_there_is_an_error_with_advice(write_adapter, tmp_path):
    with pytest.raises(AdapterError, match="no such base") as caught:
        audit_adapter(write_adapter(), base=tmp_path / "nowhere")
    assert "model.safetensors" in caught.value.advice


def test_progress_counts_to_the_end(write_adapter, write_base):
    seen = []
    audit_adapter(write_adapter(), base=write_base(), progress=lambda *x: seen.append(x))
    assert seen[-1][:2] == (LAYERS, LAYERS)
    counts = [done for done, total, _ in seen if total]
    assert counts == [*range(1, LAYERS + 1), *range(LAYERS + 1)]  # of the adapter, then of the base


ON_LLAMA = {"target_modules": ["q_proj", "down_proj"]}
ON_GPT2 = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}


@pytest.mark.parametrize(
    ("build", "options", "precision"),
    [
        (tiny_models.causal, ON_LLAMA, "float32"),
        (tiny_models.causal, ON_LLAMA, "bfloat16"),
        (tiny_models.gpt2, ON_GPT2, "float32"),
        (tiny_models.causal, {**ON_LLAMA, "use_dora": True}, "float32"),
    ],
)
def test_udr_and_survival_are_those_of_pefts_merge(tmp_path, build, options, precision):
    model = build().to(getattr(torch, precision))
    kit = tiny_models.saved(model, tmp_path, r=4, lora_alpha=0.5, **options)
    base = type(model).from_pretrained(kit.base, dtype=getattr(torch, precision))
    before = {name: x.double().numpy().copy() for name, x in base.state_dict().items()}
    after = peft.PeftModel.from_pretrained(base, kit.adapter).merge_and_unload().state_dict()
    report = audit_adapter(kit.adapter, base=kit.base)
    assert report.base.compared == len(report.modules) >= 4
    for module in report.modules:
        w = before[f"{module.name}.weight"]
        realised = after[f"{module.name}.weight"].detach().double().numpy() - w
        assert (module.base.update == "dense") == ("use_dora" in options)
        if precision == "bfloat16":
            assert module.base.survival.changed == pytest.approx(np.mean(realised != 0), abs=2e-3)
            continue
        assert module.udr == pytest.approx(np.linalg.norm(realised, 2) / np.linalg.norm(w, 2), rel=2e-3)
        assert module.relative_frobenius == pytest.approx(np.linalg.norm(realised) / np.linalg.norm(w), rel=2e-3)


def lora_like(tmp_path, more):
    """A PEFT adapter with values of low rank in every factor, as training leaves them, and its base."""
    model = tiny_models.causal(width=48)
    model.save_pretrained(tmp_path / "hf")
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj"], **more))
    for name, parameter in tuned.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data += 0.02 * torch.outer(*(torch.randn(n) for n in parameter.shape))
    tuned.save_pretrained(tmp_path / "peft")
    return tmp_path / "peft", tmp_path / "hf"


@pytest.mark.parametrize(
    ("more", "limit"),
    [({"init_lora_weights": "pissa"}, 8), ({"init_lora_weights": "olora"}, 8), ({"use_dora": True}, None)],
    ids=["pissa", "olora", "dora"],
)
def test_an_update_that_factors_do_not_give_is_in_no_number_without_the_base(tmp_path, more, limit):
    folder, base = lora_like(tmp_path, more)
    alone = audit_adapter(folder)
    assert alone.health.verdict == "not_analysed"
    assert alone.health.reason.endswith("follows only with the base (--base)")
    assert {m.state for m in alone.modules} == {"not_known"}
    assert all(m.spectral_norm is m.stable_rank is m.energy_rank_90 is m.energy_share is None for m in alone.modules)
    assert alone.suggested == {}
    assert alone.summary.stable_rank_mean is None
    lines = audit_text(alone).splitlines()
    note = next(i for i, line in enumerate(lines) if line.startswith("Left out of every number: 4 of 4 modules ("))
    assert note < lines.index("Summary:")
    whole = audit_adapter(folder, base=base)
    assert whole.health.verdict == "trained"
    for m in whole.modules:
        assert m.state == "ok"
        assert m.utilization == (None if limit is None else pytest.approx(m.stable_rank / limit))
        assert (m.null_stable_rank is None) == (limit is None)
        assert 1 <= m.energy_rank_90 <= 48
    assert whole.suggested["p90"].rank <= 4
    assert whole.suggested["p90"].relative_error > 0.0


def test_a_start_that_cannot_be_recomputed_is_not_known_with_the_base_either(tmp_path):
    folder, base = lora_like(tmp_path, {"init_lora_weights": "pissa_niter_4"})
    report = audit_adapter(folder, base=base)
    assert report.health.verdict == "not_analysed"
    assert {m.state for m in report.modules} == {"not_known"}
    assert report.modules[0].note.endswith("cannot be recomputed: its update cannot be known")
    assert len(report.base.not_compared) == 4
    assert report.base.compared == 0


def test_factors_that_are_not_finite_are_broken_whatever_the_base(tmp_path):
    folder, base = lora_like(tmp_path, {"init_lora_weights": "pissa"})
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(n for n in sorted(tensors) if "lora_B" in n)
    tensors[name] = tensors[name] * np.float32("nan")
    save_file(tensors, file)
    for report in (audit_adapter(folder), audit_adapter(folder, base=base)):
        assert report.health.verdict == "broken"
        assert [m.state for m in report.modules].count("non_finite") == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_audit_that_analysed_nothing_could_not_judge_in_any_format(tmp_path, form, capsys):
    folder, base = lora_like(tmp_path, {"use_dora": True})
    assert main(["audit", str(folder), "--format", form, "--fail-on", "error"]) == 3
    assert main(["audit", str(folder), "--base", str(base), "--format", form, "--fail-on", "error"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(("held", "beside"), [(1, "freshly initialised weights'"), (2, "the base weights'")])
def test_the_size_beside_a_base_is_judged_only_of_half_of_the_modules(held, beside, write_adapter, write_base):
    rng = np.random.default_rng(0)
    b = [np.outer(rng.standard_normal(OUT), rng.standard_normal(R)) * 1e-6 for _ in range(LAYERS)]
    tiny = write_adapter(lambda i: (b[i], rng.standard_normal((R, INNER))))
    base = write_base()
    kept = dict(list(load_file(base / "model.safetensors").items())[:held])
    save_file(kept, base / "model.safetensors")
    report = audit_adapter(tiny, base=base)
    assert (report.base.compared, report.health.verdict) == (held, "near_untrained")
    assert beside in report.health.reason
