"""Drift is what torch says of the outputs of base and adapter, at each scale and without each group."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tables import every
from tiny_models import WORDS, Saved, bert, causal, saved, write_texts
from transformers import AutoModelForCausalLM

from gradience.cli.main import main
from gradience.errors import AdapterError, ConfigError, OptionError
from gradience.models.sums import Sums, estimate
from gradience.schema.document import Estimate
from gradience.schema.drift import DriftReport, Lowered
from gradience.verbs.bench.drift import GENERAL, measure_drift
from gradience.verbs.bench.drift_view import drift_text
from gradience.verbs.bench.options import DriftOptions

TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A base and its adapter."""
    folder = tmp_path_factory.mktemp("drift")
    return saved(causal(), folder, r=4, lora_alpha=4, target_modules=TARGETS, task_type="CAUSAL_LM")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty lines of words."""
    return write_texts(tmp_path_factory.mktemp("texts") / "other.txt", 40)


@pytest.fixture(scope="session")
def own(llama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty lines that the base with the adapter wrote, so that its loss on them is lower than the base's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama.base), llama.adapter).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((20, 1), 2)
    with torch.no_grad():
        for _ in range(12):
            scores = model(input_ids=ids).logits[:, -1, 4:].softmax(-1)
            ids = torch.cat([ids, 4 + torch.multinomial(scores, 1, generator=generator)], dim=1)
    place = tmp_path_factory.mktemp("texts") / "own.txt"
    place.write_text("\n".join(" ".join(WORDS[i - 4] for i in row[1:]) for row in ids.tolist()) + "\n")
    return place


@pytest.fixture(scope="session")
def report(llama, own, other):
    """The drift of the adapter."""
    return measure_drift(llama.adapter, llama.base, texts=own, elsewhere=other)


def rewritten(llama, folder, tensors=lambda _name, tensor: tensor, **fields):
    """A copy of the adapter with tensors changed by a function, and fields of its config replaced."""
    shutil.copytree(llama.adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    weights = folder / "adapter_model.safetensors"
    save_file({name: tensors(name, t).contiguous() for name, t in load_file(weights).items()}, weights)
    return folder


@torch.no_grad()
def by_torch(llama, adapter, place):
    """(KL, flips, change of the loss) per prediction, over all texts of a file, one at a time and by torch alone."""
    from gradience.data.encoder import Encoder

    encoder = Encoder(llama.base, masks=False)
    base = AutoModelForCausalLM.from_pretrained(llama.base, dtype=torch.float32).eval()
    rows = [torch.tensor([ids]) for ids in encoder.texts(sorted(set(place.read_text().splitlines())))]
    before = [base(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for ids in rows]
    tuned = PeftModel.from_pretrained(base, adapter).eval()
    after = [tuned(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for ids in rows]
    p, q, labels = torch.cat(before), torch.cat(after), torch.cat([ids[0, 1:] for ids in rows])
    loss = (p - q).gather(1, labels[:, None]).mean()
    return float((p.exp() * (p - q)).sum(-1).mean()), float((p.argmax(-1) != q.argmax(-1)).double().mean()), float(loss)


def test_kl_flips_and_loss_are_torchs(report, llama, own, other):
    kl, flips, loss = by_torch(llama, llama.adapter, own)
    assert report.own.texts == 20
    assert report.own.predictions == 20 * 13  # the words, and the token that ends the text
    assert report.own.kl.value == pytest.approx(kl, rel=1e-4)
    assert report.own.flips == pytest.approx(flips)
    assert report.own.loss.value == pytest.approx(loss, rel=1e-4)
    assert report.own.loss.high < 0.0  # the adapter wrote them
    whole = measure_drift(llama.adapter, llama.base, texts=own, elsewhere=other, options=DriftOptions(rows=40))
    kl, flips, loss = by_torch(llama, llama.adapter, other)
    assert whole.other.kl.value == pytest.approx(kl, rel=1e-4)
    assert whole.other.flips == pytest.approx(flips)
    assert whole.other.loss.value == pytest.approx(loss, rel=1e-4)
    assert report.other.texts == 32


def test_a_scale_is_that_of_a_lower_alpha_and_a_group_is_left_out(llama, own, other, tmp_path):
    options = DriftOptions(rows=40)
    found = measure_drift(llama.adapter, llama.base, texts=own, elsewhere=other, options=options)
    half = rewritten(llama, tmp_path / "half", lora_alpha=2)
    quiet = rewritten(llama, tmp_path / "quiet", lambda n, t: t * ("self_attn" not in n or "lora_A" in n))
    states = {one.name: one for one in [*found.scales, *found.groups]}
    for folder, one in ((half, states["alpha x 0.5"]), (quiet, states["attention"])):
        assert one.drift_left.value == pytest.approx(by_torch(llama, folder, other)[0] / found.other.kl.value, rel=1e-3)
        kept = by_torch(llama, folder, own)[2] / found.own.loss.value
        assert one.gain_kept.value == pytest.approx(kept, rel=1e-3)
        assert one.gain_kept.low < one.gain_kept.value < one.gain_kept.high
        assert one.drift_left.low < one.drift_left.value < one.drift_left.high
    assert [one.factor for one in found.scales] == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert {one.name: one.modules for one in found.groups} == {
        "attention": 4,
        "MLP": 2,
        "every q_proj": 2,
        "every v_proj": 2,  # and no layer alone
    }
    assert all(one.modules == 0 for one in found.scales)


def test_an_estimate_is_a_ratio_of_sums_and_its_interval_is_by_drawing_texts():
    assert estimate(np.array([2.0, 0.0]), np.array([1.0, 3.0])).value == 0.5  # not the mean of 2 and 0
    same = estimate(np.array([1.0, 2.0, 5.0]), np.array([2.0, 4.0, 10.0]))
    assert (same.low, same.value, same.high) == (0.5, 0.5, 0.5)
    rng = np.random.default_rng(1)
    above = rng.exponential(size=400)
    found = estimate(above, np.ones(400))
    half_width = 1.96 * above.std() / 20.0
    assert found.low == pytest.approx(above.mean() - half_width, abs=0.2 * half_width)
    assert found.high == pytest.approx(above.mean() + half_width, abs=0.2 * half_width)
    lonely = estimate(np.array([1.0, 0.0]), np.array([1.0, 0.0]))  # a quarter of the draws has nothing below
    assert (lonely.low, lonely.high) == (1.0, 1.0)
    assert Sums(*np.ones((5, 2))).finite
    assert not Sums(*np.ones((4, 2)), np.array([1.0, np.nan])).finite


def test_an_adapter_without_an_update_drifts_by_nothing_and_keeps_no_share_of_it(llama, own, other, tmp_path):
    silent = rewritten(llama, tmp_path / "silent", lambda n, t: t * ("lora_B" not in n))
    found = measure_drift(silent, llama.base, texts=own, elsewhere=other)
    assert found.own.kl == found.other.kl == Estimate(value=0.0, low=0.0, high=0.0)
    assert all(one.gain_kept is one.drift_left is None for one in [*found.scales, *found.groups])
    assert "that the adapter lowers the loss on --data could not be told from chance" in found.notes[0]
    assert "lora_alpha x" not in drift_text(found)


def test_without_a_gain_none_is_kept_and_equal_texts_are_told(llama, other):
    found = measure_drift(llama.adapter, llama.base, texts=other, elsewhere=other)
    assert found.own == found.other
    assert all(one.gain_kept is None and one.drift_left.value < 1.0 for one in found.scales)
    assert [note.split(":")[0] for note in found.notes] == ["32 texts are in both files", "No gain is given"]


@pytest.mark.parametrize("labels", [False, True])
def test_a_classifier_keeps_its_head_and_has_a_gain_where_rows_have_labels(labels, tmp_path, other):
    model = saved(bert(), tmp_path, r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    rows = write_texts(tmp_path / "rows.txt", 24, seed=5).read_text().splitlines()
    texts = tmp_path / "rows.jsonl"
    given = [{"text": text} | ({"label": i % 3} if labels else {}) for i, text in enumerate(rows)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in given))
    found = measure_drift(model.adapter, model.base, texts=texts, elsewhere=other)
    assert found.own.predictions == found.own.texts
    assert (found.own.loss is None) is not labels
    assert found.other.loss is None
    assert found.notes[0].startswith("Base and adapter are both read with the adapter's head")
    assert ("the rows of --data have no label" in found.notes[1]) is not labels
    assert all("saved whole" not in one.name for one in found.groups)
    assert found.own.kl.value > 0.0


def test_the_built_in_sentences_are_read_where_no_file_is_given(llama, own, capsys):
    lines = GENERAL.read_text(encoding="utf-8").splitlines()
    assert len(set(lines)) == len(lines) == 48
    argv = ["bench", str(llama.adapter), "--base", str(llama.base), "--data", str(own)]
    assert main([*argv, "--rows", "48", "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=DriftReport)
    lengths = {len(line.split()) for line in lines}  # to this tokenizer all words are unknown, so lengths differ alone
    assert found.elsewhere == ""
    assert found.other.texts >= 8
    assert abs(found.other.texts - len(lengths)) < 20
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert "Elsewhere:  built-in sentences" in told


def test_the_text_names_the_largest_scale_that_halves_the_drift(report):
    told = drift_text(report)
    by_factor = {one.factor: one.drift_left.value for one in report.scales}
    named = max(factor for factor, left in by_factor.items() if left <= 0.5)
    line = next(line for line in told.splitlines() if line.startswith("  lora_alpha x"))
    assert line.startswith(f"  lora_alpha x {named:g} leaves {by_factor[named]:.0%} [")
    assert line.endswith("of the gain")
    kept = Estimate(value=0.5, low=0.4, high=0.6)
    rows = [Lowered(name="a", factor=0.8, drift_left=Estimate(value=0.51, low=0.4, high=0.6))]
    assert "lora_alpha x" not in drift_text(msgspec.structs.replace(report, scales=rows))
    rows.append(Lowered(name="b", factor=0.7, drift_left=kept))
    told = drift_text(msgspec.structs.replace(report, scales=rows))
    assert told.splitlines()[told.splitlines().index("") + 1].startswith("From base to adapter")
    assert "  lora_alpha x 0.7 leaves 50% [40%, 60%] of the drift\n" in told


def test_groups_beyond_ten_are_listed_on_request(report):
    rows = [Lowered(name=f"group {i}", modules=i) for i in range(11)]
    longer = msgspec.structs.replace(report, groups=rows)
    assert "group 9 " in drift_text(longer)
    assert "group 10 " not in drift_text(longer)
    assert "... and 1 more" in drift_text(longer)
    assert "group 10 " in drift_text(longer, verbose=True)


@every(
    ("what", "error", "says"),
    [
        ("few", ConfigError, r"few.txt has 7 different texts that can be used, expected at least 8"),
        ("same", ConfigError, r"same.txt has 1 different texts"),
        ("missing", ConfigError, r"cannot read .*missing.txt"),
        ("nan", AdapterError, "the model's outputs are not finite"),
        ("rows", OptionError, "--rows is 0, expected a whole number from 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(what, error, says, llama, other, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    lines = other.read_text().splitlines()
    (folder / "few.txt").write_text("\n".join(lines[:7]))
    (folder / "same.txt").write_text("w1 w2\n" * 20)
    adapter = llama.adapter
    if what == "nan":
        adapter = rewritten(llama, folder / "nan", lambda n, t: t * float("nan") if "lora_B" in n else t)
    texts = other if what in {"nan", "rows"} else folder / f"{what}.txt"
    with pytest.raises(error, match=says):
        measure_drift(
            adapter, llama.base, texts=texts, elsewhere=other, options=DriftOptions(rows=0 if what == "rows" else 32)
        )


def test_eight_texts_are_enough(llama, other, tmp_path):
    place = tmp_path / "eight.txt"
    place.write_text("\n".join(sorted(set(other.read_text().splitlines()))[:8]))
    assert measure_drift(llama.adapter, llama.base, texts=place, elsewhere=other).own.texts == 8


def test_an_adapter_that_cannot_be_switched_off_is_refused(llama, other, monkeypatch, capsys):
    from gradience.models import reading

    monkeypatch.setattr(reading, "brought", lambda _loaded: {})
    argv = ["bench", str(llama.adapter), "--base", str(llama.base)]
    assert main([*argv, "--data", str(other)]) == 2
    assert "this adapter changes no layer of the base" in capsys.readouterr().err


def test_without_own_texts_the_figures_elsewhere_are_the_same_and_no_gain_is_told(report, llama, other, capsys):
    argv = ["bench", str(llama.adapter), "--base", str(llama.base), "--elsewhere", str(other)]
    assert main([*argv, "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=DriftReport)
    assert (found.own, found.texts, found.other) == (None, "", report.other)
    assert [one.drift_left for one in found.scales] == [one.drift_left for one in report.scales]
    assert all(one.gain_kept is None for one in [*found.scales, *found.groups])
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert "own texts" not in told.lower()
    assert "No gain is given: --data FILE" in told


@every(
    ("given", "says"),
    [
        (["--candidates", "p90"], "--candidates is for a bench with --out FOLDER"),
        (["--metric", "loss"], "--metric is for a bench with --out FOLDER"),
        (["--timeout", "2"], "--timeout is for a bench with --out FOLDER"),
        (["--elsewhere", "x.txt", "--out", "o"], "--elsewhere is for a bench without --out"),
        (["--rows", "8", "--out", "o"], "--rows is for a bench without --out"),
        ([], "needs --base"),
    ],
)
def test_an_option_that_says_nothing_is_refused(given, says, llama, capsys):
    base = ["--base", str(llama.base)] if given else []
    assert main(["bench", str(llama.adapter), *base, *given]) == 2
    assert says in capsys.readouterr().err
