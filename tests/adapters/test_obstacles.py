"""Which operation refuses which adapter, and in which words: a table, of files made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tables import every

from gradience.adapters.open import open_adapter
from gradience.adapters.traits import Operation, obstacles

PREFIX = "base_model.model."
LORA = {"q.lora_A.weight": (2, 3), "q.lora_B.weight": (5, 2)}
EMBEDDING = {"wte.lora_embedding_A": (2, 3), "wte.lora_embedding_B": (5, 2)}
LOHA = {f"q.hada_w{i}_{x}": s for i in (1, 2) for x, s in (("a", (5, 2)), ("b", (2, 3)))}


def saved(folder: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> Path:
    folder.mkdir()
    tensors = {f"{PREFIX}{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}))
    return folder


KASA = "KaSA takes as many singular values out of the base as its rank (kasa_config)"
BDLORA = "BD-LoRA's factors are block-diagonal (use_bdlora)"
QALORA = "QALoRA's A is of pooled inputs for a GPTQ base, and PEFT has no merge of it to compare with (use_qalora)"
ARROW = "Arrow routes among adapters: what it does depends on the input (arrow_config)"
ALORA = "aLoRA applies after its invocation tokens only (alora_invocation_tokens)"
TIED = "ensure_weight_tying: the embedding and the head share factors, which two cuts would tear apart"
BIAS = "lora_bias: a bias of its own beside B A"
DORA = "DoRA rescales each row of W + s B A: its update does not follow from the factors alone"
LOHA_TYPE = "peft_type LOHA is not LoRA"
PISSA = "init_lora_weights='pissa': pissa changed the base model, so its update is not s B A alone"
LOFTQ = "init_lora_weights='loftq': loftq changed the base model, so its update is not s B A alone"
SEVERAL = "the file holds several adapters: save each on its own first"
CASES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any], dict[str, list[str]]]] = {
    "plain": (LORA, {}, {}),
    "rsLoRA, patterns, a head": (
        LORA | {"head.weight": (2, 3)},
        {"use_rslora": True, "rank_pattern": {"q": 2}, "alpha_pattern": {"q": 4}, "modules_to_save": ["head"]},
        {},
    ),
    "aLoRA": (LORA, {"alora_invocation_tokens": [1]}, {"merge": [ALORA], "convert": [ALORA]}),
    "Arrow": (LORA, {"arrow_config": {}}, {"merge": [ARROW], "convert": [ARROW]}),
    "KaSA": (LORA, {"kasa_config": {}}, {"resize": [KASA], "merge": [KASA]}),
    "KaSA by its diagonal": (
        LORA | {"q.lora_diag": (2,)},
        {},
        {"resize": [KASA], "merge": [KASA]},
    ),
    "BD-LoRA": (LORA, {"use_bdlora": {"nblocks": 1}}, {"resize": [BDLORA], "merge": [BDLORA]}),
    "QALoRA": (
        LORA,
        {"use_qalora": True, "qalora_group_size": 1},
        {name: [QALORA] for name in ("resize", "merge", "convert", "replay")},
    ),
    "a bias of its own": (LORA | {"q.lora_B.bias": (5,)}, {"lora_bias": True}, {"merge": [BIAS]}),
    "tied embeddings": (EMBEDDING, {"ensure_weight_tying": True}, {"resize": [TIED]}),
    "tied, without an embedding": (LORA, {"ensure_weight_tying": True}, {}),
    "an embedding": (EMBEDDING, {}, {}),
    "DoRA": (LORA | {"q.lora_magnitude_vector": (5,)}, {"use_dora": True}, {"merge": [DORA]}),
    "PiSSA": (LORA, {"init_lora_weights": "pissa"}, {"resize": [PISSA], "merge": [PISSA]}),
    "LoftQ": (
        LORA,
        {"init_lora_weights": "loftq"},
        {
            "resize": [LOFTQ],
            "merge": [LOFTQ],
            "convert": ["loftq changed the base, by an amount that cannot be recomputed"],
            "replay": ["loftq changed the base, by an amount that cannot be recomputed"],
        },
    ),
    "LoHa": (LOHA, {"peft_type": "LOHA"}, {"resize": [LOHA_TYPE], "merge": [LOHA_TYPE]}),
    "two adapters": (
        {name.replace(".weight", f".{each}.weight"): shape for each in "xy" for name, shape in LORA.items()},
        {},
        {"merge": [SEVERAL]},
    ),
    "a tensor that is not understood": (
        LORA | {"q.strange": (1,), "q.stranger": (1,)},
        {},
        {"merge": [f"2 of its tensors are not understood (first: {PREFIX}q.strange)"]},
    ),
}


@every(("shapes", "config", "refused"), CASES.values(), ids=CASES)
def test_each_operation_refuses_what_it_must_in_these_words_and_nothing_else(shapes, config, refused, tmp_path):
    _, adapter = open_adapter(saved(tmp_path / "a", shapes, **config))
    found = {operation.value: [one.text for one in obstacles(adapter, operation)] for operation in Operation}
    assert {operation: texts for operation, texts in found.items() if texts} == refused


@pytest.mark.parametrize(
    ("half", "said"),
    [({"a": (4, 2), "b": (2, 3)}, "(5, 3) and (4, 3)"), ({"a": (5, 2), "b": (2, 6)}, "(5, 3) and (5, 6)")],
)
def test_halves_of_a_loha_that_differ_in_shape_are_no_update(half, said, tmp_path):
    shapes = LOHA | {f"q.hada_w2_{x}": shape for x, shape in half.items()}
    _, adapter = open_adapter(saved(tmp_path / "a", shapes, peft_type="LOHA"))
    assert not adapter.modules
    assert [one.reason for one in adapter.skipped] == [f"LoHa halves of shape {said} do not match"]
