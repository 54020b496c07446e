"""A classifier in place of its adapter: its base has a head of its own, or none."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import bert, save_tokenizer, saved, write_texts

from gradience.verbs.receipt.run import make_receipt, verify_served, write_receipt


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A base with a head, an adapter with another head, and the receipt of it."""
    from peft import PeftModel

    folder = tmp_path_factory.mktemp("classes")
    own = saved(bert(), folder, r=4, target_modules=["query", "value"], task_type="SEQ_CLS",
                modules_to_save=["classifier"])  # fmt: skip
    model = PeftModel.from_pretrained(bert(), own.adapter)
    head = model.base_model.model.classifier.modules_to_save["default"]
    head.weight.data += torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3))
    model.save_pretrained(own.adapter)
    write_texts(folder / "rows.txt", 40)
    write_receipt(make_receipt(own.adapter, own.base, prompts=folder / "rows.txt"), folder / "receipt.json", sources=[])
    return folder


def placed(kit, name, model):
    model.save_pretrained(kit / name)
    save_tokenizer(kit / name)
    return str(kit / name)


def asked(kit, target, **options):
    return verify_served(kit / "receipt.json", target, **options)


def test_the_adapter_is_the_same(kit):
    found = asked(kit, str(kit / "adapter"), base=kit / "base", adapter=kit / "adapter")
    assert (found.verdict, found.compared) == ("same", 16 * 3)


def test_the_base_is_known_by_its_files_whatever_its_head(kit):
    for options in ({}, {"base": kit / "base"}, {"base": kit / "base", "adapter": kit / "adapter"}):
        found = asked(kit, str(kit / "base"), **options)
        assert (found.verdict, found.how) == ("the_base", "compared by its files"), options


def test_a_copy_of_the_base_in_other_files_is_the_base_with_its_own_head(kit):
    copy = placed(kit, "copy", bert().to(torch.bfloat16))
    assert asked(kit, copy).verdict == "cannot_tell"
    assert "give --base" in asked(kit, copy).story
    for options in ({}, {"adapter": kit / "adapter"}):
        found = asked(kit, copy, base=kit / "base", **options)
        assert (found.verdict, "its own head" in found.story) == ("the_base", True), found.story


def test_another_model_of_classes_is_no_base(kit):
    other = bert()
    for parameter in other.parameters():
        parameter.data = parameter.data.flip(0)
    assert asked(kit, placed(kit, "other", other), base=kit / "base").verdict == "another_adapter"


def test_a_model_without_a_head_is_not_run_with_a_random_one(kit):
    found = asked(kit, placed(kit, "headless", bert().bert))
    assert (found.verdict, found.compared) == ("cannot_tell", 0)
    assert "drawn at random" in found.story


def test_another_head_or_vocabulary_is_told_by_its_size(kit):
    import transformers

    largest = max(max(row["ids"]) for row in json.loads((kit / "receipt.json").read_text())["rows"])
    for size, verdict, story in (
        ({"num_labels": 2}, "another_adapter", "Another head answers: of 2 classes, and not of 3"),
        ({"vocab_size": largest}, "tokens_or_template_differ",
         f"Tokens differ: the receipt has token id {largest}, and the target ids up to {largest - 1}"),
        ({"vocab_size": largest + 1}, "another_adapter", "Another adapter"),
    ):  # fmt: skip
        config = bert().config
        config.update(size)
        found = asked(
            kit, placed(kit, f"{size}", transformers.BertForSequenceClassification(config)), base=kit / "base"
        )
        assert (found.verdict, found.story[: len(story)]) == (verdict, story)
