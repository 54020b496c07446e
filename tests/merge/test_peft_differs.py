"""Where PEFT 0.21.2's add_weighted_adapter is not the weighted sum, and ours is: seen on merged weights."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft_models import furthest, merged_update, weights_of

from gradience import merge_adapters

peft = pytest.importorskip("peft")
OF_THIS_RELEASE = pytest.mark.skipif(
    not peft.__version__.startswith("0.21."), reason=f"a claim about PEFT 0.21, here is {peft.__version__}"
)


def _by_peft(model: Any, folders: list[Path], weights: list[float], combination: str, **more: Any) -> dict[str, Any]:
    """Return what PEFT's own combination adds to the weights."""
    before = weights_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the load of a second adapter
        wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(model), folders[0], adapter_name="a0")
        for place, folder in enumerate(folders[1:], 1):
            wrapped.load_adapter(folder, adapter_name=f"a{place}")
        names = [f"a{place}" for place in range(len(folders))]
        wrapped.add_weighted_adapter(names, weights, "both", combination_type=combination, **more)
        wrapped.set_adapter("both")
        merged = wrapped.merge_and_unload(adapter_names=["both"])
    after = weights_of(merged)
    return {name: after[name] - before[name] for name in before}


def test_where_scales_are_plain_pefts_cat_and_ours_agree(save, tmp_path):
    one, two = save("one", seed=1, lora_alpha=16), save("two", seed=2, r=3)
    theirs = _by_peft(one.model, [one.folder, two.folder], [0.7, 0.3], "cat")
    merge_adapters([one.folder, two.folder], tmp_path / "out", method="cat", weights=[0.7, 0.3])
    assert furthest(merged_update(one.model, tmp_path / "out"), [(1.0, theirs)]) < 1e-5
    assert furthest(theirs, [(0.7, one.update), (0.3, two.update)]) < 1e-5


@OF_THIS_RELEASE
@pytest.mark.parametrize("combination", ["cat", "svd"])
def test_peft_scales_rslora_twice_and_we_do_not(combination, save, tmp_path):
    one, two = (save(name, seed=seed, r=4, use_rslora=True) for seed, name in enumerate(("one", "two")))
    truth = [(0.7, one.update), (0.3, two.update)]
    rank = 8  # of the sum
    more = {"svd_rank": rank} if combination == "svd" else {}
    theirs = _by_peft(one.model, [one.folder, two.folder], [0.7, 0.3], combination, **more)
    twice = [(weight * np.sqrt(rank), update) for weight, update in truth]  # alpha = r, over sqrt(r) once more
    assert furthest(theirs, truth) > 0.5
    assert furthest(theirs, twice) < 1e-5
    ours = {"rank": rank} if combination == "svd" else {}
    merge_adapters([one.folder, two.folder], tmp_path / "out", method=combination, weights=[0.7, 0.3], **ours)
    assert furthest(merged_update(one.model, tmp_path / "out"), truth) < 1e-5


@OF_THIS_RELEASE
def test_pefts_linear_has_cross_terms_and_ours_is_the_sum(save, tmp_path):
    one, two = save("one", seed=1, lora_alpha=4), save("two", seed=2, lora_alpha=4)
    truth = [(0.5, one.update), (0.5, two.update)]
    theirs = _by_peft(one.model, [one.folder, two.folder], [0.5, 0.5], "linear")
    assert furthest(theirs, truth) > 0.2
    merge_adapters([one.folder, two.folder], tmp_path / "out", method="linear", weights=[0.5, 0.5])
    assert furthest(merged_update(one.model, tmp_path / "out"), truth) < 1e-5


def test_ties_of_pefts_svd_kind_is_ours_where_weights_are_one(save, tmp_path):
    """ties_svd acts on dW as we do; PEFT's `ties` trims and elects A and B apart, which is another thing."""
    one, two, three = (save(name, seed=seed) for seed, name in enumerate(("one", "two", "three")))
    folders = [one.folder, two.folder, three.folder]
    theirs = _by_peft(one.model, folders, [1.0, 1.0, 1.0], "ties_svd", svd_rank=16, density=0.4)
    merge_adapters(folders, tmp_path / "out", method="ties", rank=16, density=0.4)
    assert furthest(merged_update(one.model, tmp_path / "out"), [(1.0, theirs)]) < 1e-4
