"""KL, flips and losses are torch's own, whatever the batches."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own custom
from tables import every

from gradience.models import active, load_model
from gradience.models.inputs import batches, read_inputs
from gradience.models.outputs import Reference, divergence, logits_of, scored
from gradience.models.statistics import lora_layers, statistics


@pytest.fixture(scope="module")
def examples(loaded, texts):
    return read_inputs(texts, loaded, most=20).examples


def of_one(loaded, example):
    (batch,) = batches([example], tokens=1, pad=0)
    return logits_of(loaded, batch).double()


@pytest.mark.parametrize("tokens", [1, 64, 10_000])
def test_scores_of_each_input_are_torchs_kl_div_and_cross_entropy(loaded, examples, tokens):
    parts = batches(examples, tokens=tokens, pad=loaded.pad)
    rows = list(scored(loaded, examples, parts, reference=Reference(loaded), state=lambda: active(loaded, None)))
    assert sorted(row.place for row in rows) == list(range(len(examples)))
    with torch.no_grad():
        for row in rows:
            example = examples[row.place]
            full = of_one(loaded, example)
            with active(loaded, None):
                base = of_one(loaded, example)
            targets = torch.tensor(example.ids[1:])
            kl = F.kl_div(base.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="sum")
            assert row.kl == pytest.approx(float(kl), rel=1e-5)
            assert row.flips == int((base.argmax(-1) != full.argmax(-1)).sum())
            assert row.loss == pytest.approx(float(F.cross_entropy(base, targets, reduction="sum")), rel=1e-6)
            assert (row.predictions, row.known) == (len(targets), len(targets))
            assert row.hits == int((base.argmax(-1) == targets).sum())


def test_a_model_does_not_diverge_from_itself_and_means_are_over_predictions(loaded, examples):
    parts = batches(examples, tokens=64, pad=loaded.pad)
    reference = Reference(loaded)
    same = divergence(list(scored(loaded, examples, parts, reference=reference)))
    assert same == (0.0, 0.0, sum(e.stop - e.first for e in examples))
    rows = list(scored(loaded, examples, parts, reference=reference, state=lambda: active(loaded, None)))
    assert divergence(rows).kl == pytest.approx(sum(r.kl for r in rows) / same.predictions)


@every(("seed", "alike"), [(5, True), (6, False)])
def test_the_labels_of_statistics_are_of_their_seed_whatever_was_drawn_before(loaded, examples, tmp_path, seed, alike):
    layers = lora_layers(loaded, ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"])
    parts = batches(examples[:5], tokens=64, pad=loaded.pad)
    found = []
    for n, own in enumerate((5, seed)):
        torch.manual_seed(n)
        (tmp_path / str(n)).mkdir()
        found.append(statistics(loaded, layers, parts, seed=own, folder=tmp_path / str(n)))
    for path in layers:
        one, two = (each.gradients(path) for each in found)
        assert (one == two).all() == alike


def test_a_classifiers_labels_are_numbers_or_the_bases_names(classifier, tmp_path):
    loaded = load_model(classifier.base, classifier.adapter)
    loaded.config.label2id = {"low": 0, "mid": 1, "high": 2}
    rows = [{"text": "w1", "label": 2}, {"text": "w1 w2", "label": "mid"}, {"text": "w3"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = read_inputs(tmp_path / "rows.jsonl", loaded, most=3).examples
    found = {examples[r.place].label: r for r in scored(loaded, examples, batches(examples, tokens=99, pad=0))}
    for label, number in ((2, 2), ("mid", 1)):
        example = next(e for e in examples if e.label == label)
        wanted = F.cross_entropy(of_one(loaded, example), torch.tensor([number]))
        assert found[label].loss == pytest.approx(float(wanted), rel=1e-6)
    assert (found[None].known, found[None].loss) == (0, 0.0)
