"""A choice by outputs is that of a dense computation, and PEFT loads what it writes as s B M A."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peft_models
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own custom
from tables import every
from tiny_models import Saved, bert, causal, gpt2, mixtral, saved, squeezebert, write_texts

from gradience import resize_adapter
from gradience.adapters.open import open_adapter
from gradience.cli.main import main
from gradience.errors import AdapterError
from gradience.models import load_model
from gradience.models.inputs import batches, read_inputs
from gradience.models.outputs import log_probs, logits_of, row_sizes
from gradience.models.statistics import lora_layers, statistics
from gradience.rewriting.sides import open_stored
from gradience.verbs.resize.options import Target
from gradience.verbs.resize.outputs import CHOSEN_BY, Measurement, chosen, measure, plan_by_outputs
from gradience.verbs.resize.pieces import combined, gates_of, pieces_of
from gradience.verbs.resize.subject import BY_WEIGHTS, Running, Subject, resizable_pairs, run, split_inputs

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Saved:
    return saved(causal(), tmp_path_factory.mktemp("llama"), r=4, target_modules=TARGETS, task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.txt", 80)


class Calibrated(NamedTuple):
    """An adapter, the model that runs with it, and what that says on inputs."""

    subject: Subject
    running: Running
    measurement: Measurement


def calibrate(case: Saved, texts: Path) -> Calibrated:
    def silent(*_: object) -> None:
        pass

    stored = open_stored(case.adapter)
    subject = Subject(stored, resizable_pairs(stored.adapter), None)
    running = run(subject, case.base, silent)
    split = split_inputs(texts, running.loaded, most=CHOSEN_BY, seed=0)
    return Calibrated(subject, running, measure(subject, running, split, 0, silent))


@pytest.fixture(scope="module")
def calibrated(llama, texts):
    return calibrate(llama, texts)


def drawn_labels(model, parts, seed):
    """The labels that the seed draws: one pass in the same order."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return [
            torch.multinomial(log_probs(logits_of(model, part)).exp(), 1, generator=generator)[:, 0] for part in parts
        ]


def dense_statistics(model, examples, parts, labels):
    """Of each module G, H and each sequence's sum of h z^T, by autograd of one token's z at a time in float64.

    z is recomputed from the layer's input, h from the gradient at the layer's output: s B^T g.
    """
    layers = {p: m for p, m in model.model.base_model.model.named_modules() if hasattr(m, "lora_A") and "." in p}
    g, h, sums, count = {}, {}, {p: np.zeros((len(examples), 4, 4)) for p in layers}, 0
    for place, example in enumerate(examples):
        seen = {}

        def hook(layer, inputs, out, seen=seen):
            out = out if out.requires_grad else out.detach().requires_grad_()
            out.retain_grad()
            seen[layer] = (inputs[0].detach(), out)
            return out

        handles = [layer.register_forward_hook(hook) for layer in layers.values()]
        (batch,) = batches([example], tokens=1, pad=0)
        (at,) = [(n, part.rows.index(place)) for n, part in enumerate(parts) if place in part.rows]
        ends = np.cumsum([part_len(parts[at[0]], row) for row in range(len(parts[at[0]].rows))])
        mine = labels[at[0]][ends[at[1]] - part_len(parts[at[0]], at[1]) : ends[at[1]]]
        F.cross_entropy(logits_of(model, batch), mine, reduction="sum").backward()
        for handle in handles:
            handle.remove()
        count += len(example.ids)
        for path, layer in layers.items():
            x, out = seen[layer]
            a, b = (f["default"].weight.detach() for f in (layer.lora_A, layer.lora_B))
            for token in range(x.shape[1]):
                z = (a @ x[0, token]).numpy()
                back = (layer.scaling["default"] * b.T @ out.grad[0, token]).numpy()
                g[path] = g.get(path, 0.0) + np.outer(z, z)
                h[path] = h.get(path, 0.0) + np.outer(back, back)
                sums[path][place] += np.outer(back, z)
    return {p: g[p] / count for p in g}, {p: h[p] / count for p in h}, sums


def part_len(part, row):
    return int(part.counts[row].sum())


def test_a_base_whose_outputs_are_not_finite_is_an_error_in_words(llama, calibrated, tmp_path):
    model = load_model(llama.base, llama.adapter)
    model.model.get_output_embeddings().weight.data[0] = math.nan
    parts = batches(calibrated.measurement.split.chosen_by[:2], tokens=40, pad=0)
    with pytest.raises(AdapterError, match="the outputs of the base with the adapter are not finite"):
        statistics(model, lora_layers(model, list(calibrated.running.pairs)), parts, seed=3, folder=tmp_path)


def test_statistics_and_gates_are_those_of_a_dense_float64_computation(llama, calibrated, tmp_path):
    model = load_model(llama.base, llama.adapter)
    model.model.double()
    examples = calibrated.measurement.split.chosen_by[:10]
    parts = batches(examples, tokens=40, pad=0)
    assert max(len(part.rows) for part in parts) > 1
    found = statistics(model, lora_layers(model, list(calibrated.running.pairs)), parts, seed=3, folder=tmp_path)
    order = [row for part in parts for row in part.rows]
    g, h, sums = dense_statistics(model, examples, parts, drawn_labels(model, parts, 3))
    assert found.moments.keys() == g.keys()
    assert found.predictions == sum(e.stop - e.first for e in examples)
    for path, moments in found.moments.items():
        np.testing.assert_allclose(moments.g, g[path], rtol=1e-9, atol=1e-9 * np.abs(g[path]).max())
        np.testing.assert_allclose(moments.h, h[path], rtol=1e-9, atol=1e-9 * np.abs(h[path]).max())
        pieces = pieces_of(*moments)
        wanted = np.array(
            [[np.sum(sums[path][n] * np.outer(pieces.left[:, i], pieces.right[i])) for i in range(4)] for n in order]
        )
        gates = gates_of(pieces, found.gradients(path))
        np.testing.assert_allclose(gates, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (gpt2, {"target_modules": ["wte", "c_attn"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True}),
        (squeezebert, {"target_modules": ["query", "intermediate.conv1d"], "task_type": "SEQ_CLS"}),
    ],
    ids=["embedding", "convolution"],
)
def test_sums_of_each_sequence_are_the_losss_change_with_m(make, options, texts, tmp_path):
    case = saved(make(), tmp_path, r=2, **options)
    model = load_model(case.base, case.adapter)
    model.model.double()
    _, adapter = open_adapter(case.adapter)
    examples = read_inputs(texts, model, most=4).examples
    parts = batches(examples, tokens=12, pad=0)
    layers = lora_layers(model, [pair.path for pair in resizable_pairs(adapter)])
    found = statistics(model, layers, parts, seed=0, folder=tmp_path)
    labels = drawn_labels(model, parts, 0)

    def losses():
        rows = []
        for part, mine in zip(parts, labels, strict=True):
            each = F.cross_entropy(logits_of(model, part), mine, reduction="none")
            rows += [float(x.sum()) for x in each.split(row_sizes(model, part))]
        return np.array(rows)

    for path, layer in layers.items():
        a = layer.lora_embedding_A["default"] if "default" in layer.lora_embedding_A else layer.lora_A["default"].weight
        whole, step = a.data.clone(), 1e-5
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            ends = []
            for sign in (step, -step):
                m = torch.eye(2, dtype=torch.float64)
                m[i, j] += sign
                a.data = (m @ whole.reshape(2, -1)).reshape(whole.shape)
                ends.append(losses())
            a.data = whole
            change = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(found.gradients(path)[:, i, j], change, rtol=1e-5, atol=1e-5)


def test_the_measured_kl_is_within_the_tolerance_and_is_that_of_the_adapter_as_written(
    llama, texts, tmp_path, monkeypatch
):
    monkeypatch.setattr("gradience.verbs.resize.outputs._ROUNDS", 1)  # too few: the bar waits at its end
    told = []
    report = resize_adapter(
        llama.adapter,
        tmp_path / "out",
        base=llama.base,
        data=texts,
        kl=0.05,
        flips=1.0,
        progress=lambda *at: told.append(at),
    )
    assert [at for at in told if at[2] == "measured"] == [(1, 1, "measured")]
    # a forward and backward pass counts twice, over 54 inputs; each round of measuring once, over 26 others
    assert told[0] == (0, 0, "loading the model")
    passed = [at for at in told if at[2] == "forward and backward"]
    assert (passed[-1], {done % 2 for done, *_ in passed}) == ((108, 134, "forward and backward"), {0})
    measured = [(done, units) for done, units, what in told if what == "measuring"]
    assert measured == [(min(108 + n, 133), 134) for n in range(1, len(measured) + 1)]
    assert len(measured) > 26
    record = report.calibration
    assert 0.0 < record.kl <= min(0.05, 0.05 * record.effect_kl)
    assert report.params_after < report.params_before
    assert (record.inputs, record.measured_inputs) == (54, 26)
    whole, cut = load_model(llama.base, llama.adapter), load_model(llama.base, tmp_path / "out")
    examples = calibrate(llama, texts).measurement.split.measured_on
    kl = flips = n = 0
    with torch.no_grad():
        for part in batches(examples, tokens=1, pad=0):
            p, q = (log_probs(logits_of(model, part).double()) for model in (whole, cut))
            kl += float(F.kl_div(q, p, log_target=True, reduction="sum"))
            flips += int((p.argmax(-1) != q.argmax(-1)).sum())
            n += len(p)
    assert record.measured_predictions == n
    assert record.kl == pytest.approx(kl / n, rel=1e-3)
    assert record.flips == pytest.approx(flips / n)


@every(
    ("kl", "flips", "bound_by"),
    [(1e-9, 1.0, {"kl"}), (9.0, 1.0, {"effect"}), (9.0, 0.0, {"flips"})],
)
def test_the_limit_that_bound_the_size_is_named(calibrated, kl, flips, bound_by):
    found = plan_by_outputs(*calibrated, Target("kl", kl, flips))[1].bound_by
    assert bound_by <= set(found)
    assert ("kl" in found) is (kl < 1.0)
    assert ("flips" in found) is (flips < 1.0)


def merged(model, folder):
    return peft_models.merged_weights(peft_models.loaded(model, folder).double())


def wanted_merge(model, case: Saved, texts, target):
    """The base's weights plus s B M A by the pieces of the same calibration, in float64."""
    subject, running, measurement = calibrate(case, texts)
    kept, pieces = chosen(subject, measurement, Target(*target)).kept, measurement.effects.pieces
    weights = peft_models.weights_of(model)
    for path, pair in running.pairs.items():
        b, a = (f[0].astype(np.float64) for f in pair.layout.read(subject.tensors))
        update = pair.first.scale * b @ combined(pieces[path], kept[path]) @ a
        weights[f"{path}.weight"] = weights[f"{path}.weight"] + (update.T if pair.layout.transposed else update)
    return weights, kept


CASES = {
    "rslora": (causal, {"target_modules": TARGETS, "task_type": "CAUSAL_LM", "use_rslora": True, "lora_alpha": 3}),
    "patterns": (
        causal,
        {
            "target_modules": TARGETS,
            "task_type": "CAUSAL_LM",
            "rank_pattern": {"q_proj": 3, r"layers\.1\.self_attn\.v_proj": 2},
            "alpha_pattern": {"down_proj": 5},
        },
    ),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True}),
    "embedding": (
        lambda: gpt2(tie_word_embeddings=False),
        {"target_modules": ["wte", "c_fc"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True},
    ),
    "head": (bert, {"target_modules": ["query", "output.dense"], "task_type": "SEQ_CLS"}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_written_adapter_merges_to_s_b_m_a_and_keeps_all_else(name, texts, tmp_path):
    make, options = CASES[name]
    case = saved(make(), tmp_path, r=4, **options)
    report = resize_adapter(case.adapter, tmp_path / "out", base=case.base, data=texts, calibrate=True, rank=2)
    assert report.params_after <= sum(
        row.params_before // row.rank_before * min(2, row.rank_before) for row in report.modules
    )
    wanted, kept = wanted_merge(make(), case, texts, ("rank", 2.0))
    assert [row.rank_after for row in report.modules] == [len(kept[row.name]) for row in report.modules]
    found = merged(make(), tmp_path / "out")
    before = peft_models.weights_of(make())
    for weight, value in wanted.items():
        size = np.linalg.norm(value - before[weight]) or 1.0
        tail = found.get(weight, found.get(weight.replace("classifier.", "classifier.modules_to_save.default.")))
        assert np.linalg.norm(tail - value) <= 1e-6 * size, weight
    old, new = (open_adapter(folder)[1].source for folder in (case.adapter, tmp_path / "out"))
    others = [tensor for tensor in old.tensors if ".lora_" not in tensor]
    assert others == [tensor for tensor in new.tensors if ".lora_" not in tensor]
    assert all(bytes(old.raw(tensor)) == bytes(new.raw(tensor)) for tensor in others)


def test_modules_without_a_piece_leave_the_adapter_and_peft_follows(llama, texts, calibrated, tmp_path):
    report = resize_adapter(
        llama.adapter, tmp_path / "out", base=llama.base, data=texts, calibrate=True, max_params=150
    )
    kept = chosen(calibrated.subject, calibrated.measurement, Target("max_params", 150)).kept
    for row in report.modules:  # half the squares of what the gates left out sum to
        left = np.delete(calibrated.measurement.effects.candidates[row.name].gates, kept[row.name], axis=1).sum(axis=1)
        assert row.kl_predicted == pytest.approx(
            0.5 * np.sum(left**2) / calibrated.measurement.effects.predictions, rel=1e-3
        )
    gone = {row.name for row in report.modules if row.rank_after == 0}
    assert gone
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(row.name for row in report.modules if row.rank_after)
    model = peft_models.loaded(causal(), tmp_path / "out")
    adapted = {name for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {row.name for row in report.modules} - gone
    record = json.loads((tmp_path / "out" / "gradience_provenance.json").read_text())
    assert record["calibration"]["digest"] == report.calibration.digest
    assert [m["kl_predicted"] for m in record["modules"]] == [row.kl_predicted for row in report.modules]
    assert {m["name"] for m in record["modules"] if m["rank_after"] == 0} == gone


def test_a_module_with_a_bias_of_its_own_keeps_a_rank(texts, tmp_path):
    options = {"target_modules": ["query", "key"], "task_type": "SEQ_CLS", "bias": "lora_only"}
    case = saved(bert(), tmp_path, r=4, **options)
    report = resize_adapter(case.adapter, tmp_path / "out", base=case.base, data=texts, calibrate=True, rank=1)
    assert [row.rank_after for row in report.modules] == [1, 1, 1, 1]
    peft_models.loaded(bert(), tmp_path / "out")


def test_the_seed_decides(llama, texts, monkeypatch):
    seeds = []
    monkeypatch.setattr(  # the labels are drawn there
        "gradience.models.statistics.statistics",
        lambda *given, seed, **more: seeds.append(seed) or statistics(*given, seed=seed, **more),
    )
    one, other = (
        resize_adapter(llama.adapter, base=llama.base, rank=2, data=texts, calibrate=True, seed=seed) for seed in (0, 1)
    )
    assert one.calibration.digest != other.calibration.digest
    assert seeds == [0, 1]


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (causal, {"target_modules": ["q_proj"], "use_dora": True}, "DoRA's magnitudes"),
        (causal, {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": "pissa"}, "pissa"),
        (mixtral, {"target_parameters": ["mlp.experts.down_proj"], "target_modules": []}, "experts: their factors"),
    ],
    ids=["dora", "pissa", "experts"],
)
def test_kinds_whose_pieces_do_not_add_up_are_refused(make, options, says, texts, tmp_path):
    case = saved(make(), tmp_path, r=4, **options)
    with pytest.raises(AdapterError, match=says) as error:
        resize_adapter(case.adapter, base=case.base, data=texts, calibrate=True, rank=2)
    plain = "turn it into plain LoRA first: see 'gradience convert --help'"
    assert error.value.advice == (plain if says == "pissa" else BY_WEIGHTS)


def test_the_report_says_what_was_measured_and_on_how_many(llama, texts, capsys):
    arguments = ["--base", llama.base, "--dry-run", "--kl", ".05", "--data", texts]
    assert main(["resize", str(llama.adapter), *map(str, arguments)]) == 0
    text = capsys.readouterr().out
    assert "Criterion:  KL of the outputs <= 0.05 nats per prediction" in text
    assert "nats per prediction on 26 inputs (" in text
    assert "chosen by 54 inputs (" in text


@every(
    ("fault", "says"),
    [
        ("one line", "has 1 different inputs that can be used, expected at least 24"),
        ("other fields", "holds question, expected text, prompt or messages"),
        ("another base", "in the base"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line_and_exit_code_2(llama, texts, tmp_path, capsys, fault, says):
    place, base = texts, llama.base
    if fault == "another base":
        base = saved(causal(width=20), tmp_path, r=2, target_modules=["q_proj"]).base
    else:
        place = tmp_path / "texts"
        place.write_text("one line" if fault == "one line" else '{"question": "w1"}')
    arguments = ["--base", base, "--data", place, "--out", tmp_path / "out", "--kl", ".01"]
    assert main(["resize", str(llama.adapter), *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
