"""The receipt that a callback writes at the end is of the adapter that was trained, and changes nothing."""

from __future__ import annotations

import json

import torch

from gradience.verbs.receipt.run import read_receipt, verify_served


def test_what_was_trained_is_the_receipts(training, callback, tmp_path):
    model = training.llama()
    training.llama().unload().save_pretrained(tmp_path / "base")
    evals = training.sequences(n=20, seed=2)
    given = {"model": model, "evals": evals, "eval_strategy": "no", "learning_rate": 2e-2}
    before = [p.requires_grad for p in model.parameters()]
    training.trainer(tmp_path / "run", callback(receipt=True), **given).train()
    assert [p.requires_grad for p in model.parameters()] == before
    held = read_receipt(tmp_path / "run" / "receipt.json")
    given_rows = {tuple(row["input_ids"].tolist()) for row in (*evals, *training.sequences())}
    assert len(held.rows) == 16
    assert {tuple(row.ids) for row in held.rows} <= given_rows
    model.save_pretrained(tmp_path / "adapter")
    found = verify_served(
        tmp_path / "run" / "receipt.json",
        str(tmp_path / "adapter"),
        base=tmp_path / "base",
        adapter=tmp_path / "adapter",
    )
    assert found.verdict == "same", (found.residual, found.from_base, found.story)
    assert verify_served(tmp_path / "run" / "receipt.json", str(tmp_path / "base")).verdict == "the_base"


def test_training_goes_on_where_no_receipt_can_be_written(training, callback, tmp_path, records):
    plain = training.llama().unload()
    for parameter in plain.parameters():
        parameter.requires_grad_()
    training.trainer(tmp_path, callback(receipt=True), model=plain).train()
    assert not (tmp_path / "receipt.json").exists()
    assert any("no receipt is written" in record.getMessage() for record in records)
    events = [json.loads(line)["event"] for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert events[-1] == "run_end"


def test_a_classifiers_receipt_has_its_classes(training, callback, tmp_path):
    model = training.distilbert()
    rows = training.sequences(n=8, labels=3)
    trainer = training.trainer(tmp_path, callback(receipt=True), model=model, learning_rate=1e-2)
    trainer.train_dataset = rows
    trainer.train()
    held = read_receipt(tmp_path / "receipt.json")
    assert held.task == "sequence-classification"
    assert {len(row.adapter) for row in held.rows} == {3}
    assert all(abs(torch.tensor(row.adapter).exp().sum() - 1.0) < 1e-3 for row in held.rows)
