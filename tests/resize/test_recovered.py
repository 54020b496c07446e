"""A recovered adapter is the cut one trained towards the whole one's outputs, and written only where that helped."""

from __future__ import annotations

import json
import tempfile
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own custom
from jsonschema import Draft202012Validator
from peft import PeftModel
from safetensors.numpy import load_file
from tables import every
from tiny_models import bert, causal, saved, write_texts
from transformers import AutoModelForCausalLM

from gradience import resize_adapter
from gradience.cli.main import main
from gradience.errors import AdapterError
from gradience.models import distil, load_model, outputs
from gradience.models.inputs import digest_of
from gradience.models.states import LayerFactors, adapted
from gradience.schema.document import Estimate
from gradience.schema.export import json_schema
from gradience.schema.writing import Apart, Provenance
from gradience.verbs.resize import recovery, subject
from gradience.verbs.resize.subject import split_inputs
from gradience.verbs.resize.view import resize_text

BROKEN = "the training left numbers that are not finite"
WORSE = "the KL on held-out texts did not fall beyond chance"
FLIPPED = "more predictions changed on held-out texts"
AS_SHIPPED = (distil.STEPS, distil.BATCH, distil.RATE)
TARGETS = ["q_proj", "v_proj", "down_proj"]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    few = {"q_proj": 2}  # as many as are asked for, so that its factors are copied where nothing is trained
    return saved(causal(layers=1), folder, r=4, target_modules=TARGETS, task_type="CAUSAL_LM", rank_pattern=few)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.txt", 150)


@pytest.fixture(scope="module", autouse=True)
def short():
    """Sixty steps, which are enough on a model of one layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distil, "STEPS", 60)
        yield


@pytest.fixture(scope="module")
def result(llama, texts, tmp_path_factory):
    """The folder of a recovered adapter, and its report."""
    out = tmp_path_factory.mktemp("recovered") / "out"
    return out, resize_adapter(llama.adapter, out, base=llama.base, rank=2, data=texts, recover=True)


@pytest.fixture(scope="module")
def cut(llama, tmp_path_factory):
    """The folder of the same adapter without recovery."""
    out = tmp_path_factory.mktemp("cut") / "out"
    resize_adapter(llama.adapter, out, rank=2)
    return out


@torch.no_grad()
def by_torch(llama, small, examples):
    """(KL from the whole adapter, flips, loss above it) per prediction, by torch and PEFT alone, one text at a time."""
    sides = []
    for folder in (llama.adapter, small):
        base = AutoModelForCausalLM.from_pretrained(llama.base, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, folder).eval()
        sides.append(torch.cat([model(input_ids=torch.tensor([e.ids])).logits[0, :-1].double() for e in examples]))
    p, q = (side.log_softmax(-1) for side in sides)
    labels = torch.tensor([token for e in examples for token in e.ids[1:]])
    kl = F.kl_div(q, p, log_target=True, reduction="sum") / len(p)
    loss = (p - q).gather(1, labels[:, None]).mean()
    return float(kl), float((p.argmax(-1) != q.argmax(-1)).double().mean()), float(loss)


def test_what_is_written_is_nearer_on_texts_held_out_by_as_much_as_is_said(llama, texts, result, cut):
    out, report = result
    record = report.recovery
    split = split_inputs(texts, load_model(llama.base, llama.adapter), most=recovery.TRAINED_ON, seed=0)
    assert (record.inputs, record.held_inputs) == (100, 50)
    assert record.digest == digest_of(split.chosen_by)
    assert not {e.ids for e in split.chosen_by} & {e.ids for e in split.measured_on}
    for folder, said in ((cut, record.before), (out, record.after)):
        kl, flips, loss = by_torch(llama, folder, split.measured_on)
        assert said.kl.value == pytest.approx(kl, rel=1e-3)
        assert said.flips.value == pytest.approx(flips)
        assert said.loss.value == pytest.approx(loss, rel=1e-3, abs=1e-5)
    assert record.written
    assert record.reason == ""
    assert record.change.kl.value == pytest.approx(record.after.kl.value - record.before.kl.value)
    assert record.change.kl.low < record.change.kl.value < record.change.kl.high < 0.0
    assert record.held_predictions == sum(len(e.ids) - 1 for e in split.measured_on)
    effect, _, _ = by_torch(llama, silent(llama.adapter, out.parent / "silent"), split.measured_on)
    assert record.effect_kl == pytest.approx(effect, rel=1e-3)


def silent(adapter, folder):
    """A copy of the adapter that changes nothing."""
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    save_file({name: 0.0 * tensor for name, tensor in load_file(adapter / WEIGHTS).items()}, folder / WEIGHTS)
    return folder


def test_only_a_and_b_change_and_their_errors_are_those_of_what_is_written(llama, result, cut):
    out, report = result
    old, plain, new = (load_file(folder / WEIGHTS) for folder in (llama.adapter, cut, out))
    assert plain.keys() == new.keys()
    for name, tensor in new.items():
        is_factor = name.endswith(("lora_A.weight", "lora_B.weight"))
        assert np.array_equal(tensor, plain[name]) is not is_factor, name
        assert tensor.dtype == plain[name].dtype
    assert (out / "adapter_config.json").read_bytes() == (cut / "adapter_config.json").read_bytes()
    lost = energy = 0.0
    for row in report.modules:
        updates = [
            one[f"base_model.model.{row.name}.lora_B.weight"] @ one[f"base_model.model.{row.name}.lora_A.weight"]
            for one in (old, new)
        ]
        whole, small = (8 / row.rank_before * update.astype(np.float64) for update in updates)
        assert row.relative_error == pytest.approx(np.linalg.norm(whole - small) / np.linalg.norm(whole), rel=1e-5)
        lost, energy = lost + np.sum((whole - small) ** 2), energy + np.sum(whole**2)
    assert report.relative_error == pytest.approx((lost / energy) ** 0.5, rel=1e-5)
    found = msgspec.json.decode((out / "gradience_provenance.json").read_bytes(), type=Provenance)
    assert (found.recovery, found.relative_error) == (report.recovery, report.relative_error)
    Draft202012Validator(json_schema("resize")).validate(json.loads(msgspec.json.encode(report)))


def test_the_seed_decides_all(llama, texts, result, tmp_path):
    out, report = result
    again = resize_adapter(llama.adapter, tmp_path / "again", base=llama.base, rank=2, data=texts, recover=True)
    assert again.recovery == report.recovery
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()
    other = resize_adapter(llama.adapter, base=llama.base, rank=2, data=texts, recover=True, seed=1)
    assert other.out is None  # and nothing is written
    assert other.recovery.digest != report.recovery.digest
    assert other.recovery.after != report.recovery.after


def test_a_recovery_is_of_as_many_steps_as_the_help_says(capsys):
    assert AS_SHIPPED == (300, 8, 0.03)
    main(["resize", "--help"])
    assert "trained for 300 steps" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def changed(kl, flips):
    return Apart(kl=Estimate(value=-1.0, low=-2.0, high=kl), flips=Estimate(value=flips, low=-1.0, high=1.0))


@every(
    ("kl", "flips", "reason"),
    [
        (-1e-9, 0.0, ""),
        (-1e-9, -0.1, ""),
        (0.0, -0.1, WORSE),
        (0.1, 0.1, WORSE),
        (-1e-9, 1e-9, FLIPPED),
    ],
)
def test_trained_factors_are_taken_if_the_kl_falls_beyond_chance_and_no_more_answers_change(kl, flips, reason):
    assert recovery.why_as_cut(changed(kl, flips)) == reason


@pytest.mark.parametrize(
    ("rate", "dtype", "reason", "steps"),
    [(30.0, None, WORSE, 60), (float("inf"), None, BROKEN, 1), (1e6, "float16", BROKEN, 1)],
)
def test_what_did_not_help_or_broke_is_not_written(
    rate, dtype, reason, steps, llama, texts, cut, tmp_path, monkeypatch
):
    monkeypatch.setattr(distil, "RATE", rate)
    monkeypatch.setattr(distil, "STEPS", 1 if dtype else 60)  # one step leaves numbers that float16 cannot hold
    report = resize_adapter(
        llama.adapter, tmp_path / "out", base=llama.base, rank=2, data=texts, recover=True, dtype=dtype
    )
    record = report.recovery
    assert not record.written
    assert (record.reason, record.steps) == (reason, steps)
    assert (record.after is None) is (record.change is None) is (reason == BROKEN)
    assert dtype or (tmp_path / "out" / WEIGHTS).read_bytes() == (cut / WEIGHTS).read_bytes()
    assert f"Written:    the factors as cut, because {reason}" in resize_text(report)


@every(("stopped", "finite"), [(3, (True, True)), (None, (True, False))])
def test_a_training_that_stopped_or_left_a_number_that_is_not_finite_is_not_written(
    stopped, finite, llama, texts, monkeypatch
):
    monkeypatch.setattr(distil, "distil", lambda *_a, **_k: stopped)
    each = iter(finite)
    monkeypatch.setattr(recovery, "all_finite", lambda _: next(each, True))
    record = resize_adapter(llama.adapter, base=llama.base, rank=2, data=texts, recover=True).recovery
    assert (record.written, record.reason, record.after) == (False, BROKEN, None)
    assert record.steps == (60 if stopped is None else stopped)


def test_what_is_measured_is_what_is_stored(llama, texts, tmp_path):
    report = resize_adapter(
        llama.adapter, tmp_path / "out", base=llama.base, rank=2, data=texts, recover=True, dtype="bfloat16"
    )
    split = split_inputs(texts, load_model(llama.base, llama.adapter), most=recovery.TRAINED_ON, seed=0)
    kl, _, _ = by_torch(llama, tmp_path / "out", split.measured_on)
    assert report.recovery.written
    assert report.recovery.after.kl.value == pytest.approx(kl, rel=1e-5)


def test_the_first_steps_are_adams_down_the_gradient_of_the_kl_from_the_teacher(llama, texts, cut, monkeypatch):
    monkeypatch.setattr(distil, "STEPS", 2)
    monkeypatch.setattr(distil, "BATCH", 40)
    monkeypatch.setattr(distil, "RATE", 1e-4)
    loaded = load_model(llama.base, llama.adapter)
    layers = adapted(loaded)
    tensors = load_file(cut / WEIGHTS)
    before, student = {}, {}
    for path in layers:
        before |= {name: torch.from_numpy(tensors[name]) for name in tensors if f".{path}.lora" in name}
        names = [f"base_model.model.{path}.lora_{side}.weight" for side in "AB"]
        student[path] = LayerFactors(*(torch.nn.Parameter(before[name].clone()) for name in names))
    examples = split_inputs(texts, loaded, most=40, seed=0).chosen_by
    seen = []
    told = lambda *given: seen.append(given)  # noqa: E731  # as short as it is
    assert distil.distil(loaded, layers, student, examples, seed=0, progress=told) is None
    assert seen == [(1, 2, "recovering"), (2, 2, "recovering")]
    after = {
        f"base_model.model.{path}.lora_{side}.weight": factor
        for path, pair in student.items()
        for side, factor in zip("AB", pair, strict=True)
    }
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama.base), cut, is_trainable=True).eval()
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama.base), llama.adapter).eval()
    loss = 0.0
    for example in examples:
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            p = whole(input_ids=ids).logits[0, :-1].log_softmax(-1)
        loss += F.kl_div(model(input_ids=ids).logits[0, :-1].log_softmax(-1), p, log_target=True, reduction="sum")
    loss.backward()
    for name, parameter in model.named_parameters():
        if "lora_" not in name or name.endswith("bias"):
            continue
        stored = name.replace(".default", "")
        rate = 1e-4 * before[stored].double().square().mean().sqrt()
        clear = parameter.grad.abs() > 1e-2 * parameter.grad.abs().max()
        step = -1.5 * rate * parameter.grad.sign()  # the second step has half the rate
        assert torch.allclose((after[stored] - before[stored])[clear], step.float()[clear], rtol=0.02), name
    after = {name: factor.detach().clone() for name, factor in after.items()}
    one = next(iter(student.values())).a
    one.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), torch.nan))
    assert distil.distil(loaded, layers, student, examples, seed=0) == 0
    now = [factor for pair in student.values() for factor in pair]
    assert all(torch.equal(old, new) for old, new in zip(after.values(), now, strict=True))


def test_a_calibrated_choice_may_be_recovered_and_modules_that_left_stay_away(llama, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery, "why_as_cut", lambda _change: "")  # whether it helped is not asked here
    loads = []
    monkeypatch.setattr(subject, "load_model", lambda *given: loads.append(given) or load_model(*given))
    options = {"base": llama.base, "data": texts, "calibrate": True, "recover": True, "max_params": 60}
    report = resize_adapter(llama.adapter, tmp_path / "out", **options)
    assert report.recovery.written
    assert report.params_after <= 60
    assert loads == [(llama.base, llama.adapter)]  # one model for both
    gone = [row for row in report.modules if row.rank_after == 0]
    assert gone
    assert all(row.relative_error == pytest.approx(1.0) for row in gone)
    assert not any(row.name in name for name in load_file(tmp_path / "out" / WEIGHTS) for row in gone)
    told = resize_text(report)
    assert f"Recovery:   60 steps on {report.recovery.inputs} texts; seed 0" in told
    assert f"on {report.recovery.held_inputs} inputs (" in told
    assert "Written:    the trained factors" in told
    assert told.count("loss, nats") == 1


@every(("flips", "is_warned"), [(0.05, False), (0.051, True)])
def test_many_changed_answers_are_warned_of(flips, is_warned, result_report):
    record = result_report.recovery
    few = Apart(kl=record.after.kl, flips=Estimate(value=flips, low=0.0, high=1.0))
    report = msgspec.structs.replace(result_report, recovery=msgspec.structs.replace(record, after=few))
    assert ("Warning: over 5% of the predictions on held-out texts" in resize_text(report)) is is_warned


@pytest.fixture(scope="module")
def result_report(result):
    return result[1]


@pytest.mark.parametrize("labels", [False, True])
def test_a_classifier_keeps_head_and_biases_bit_for_bit_and_needs_no_labels(labels, tmp_path):
    model = saved(bert(), tmp_path, r=3, target_modules=["query", "value"], task_type="SEQ_CLS", bias="lora_only")
    rows = write_texts(tmp_path / "rows.txt", 60).read_text().splitlines()
    given = [{"text": text} | ({"label": i % 4} if labels else {}) for i, text in enumerate(rows)]  # 3 is of no class
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    report = resize_adapter(
        model.adapter, tmp_path / "out", base=model.base, rank=2, data=tmp_path / "rows.jsonl", recover=True
    )
    assert (report.recovery.before.loss is not None) is labels
    old, new = (load_file(folder / WEIGHTS) for folder in (model.adapter, tmp_path / "out"))
    others = [name for name in old if ".lora_" not in name]
    assert any("classifier" in name for name in others)
    assert any(name.endswith(("query.base_layer.bias", "query.bias")) for name in others)
    assert all(np.array_equal(old[name], new[name]) for name in others)
    assert ("loss, nats" in resize_text(report)) is labels


def test_an_end_in_the_middle_leaves_nothing_behind(llama, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()

    def stop(_done, _total, name):
        if name == "recovering":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resize_adapter(
            llama.adapter, tmp_path / "out", base=llama.base, rank=2, data=texts, recover=True, progress=stop
        )
    assert [p.name for p in tmp_path.rglob("*")] == ["tmp"]


@every("finite", [(False, True), (True, False)])  # with the whole adapter, and with the cut one
def test_outputs_that_are_not_finite_are_refused(finite, llama, texts, monkeypatch):
    read = iter(finite)
    monkeypatch.setattr(outputs.HeldOut, "sums", lambda *_: SimpleNamespace(finite=next(read)))
    with pytest.raises(AdapterError, match="the model's outputs are not finite"):
        resize_adapter(llama.adapter, base=llama.base, rank=2, data=texts, recover=True)
