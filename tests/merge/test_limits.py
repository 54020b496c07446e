"""What a merge refuses, what it carries over, and what it leaves on disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gradience import AdapterError, OutputError, merge_adapters
from gradience.cli.main import main
from gradience.schema.export import json_schema


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True, "init_lora_weights": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
    ],
)
def test_what_is_more_than_s_b_a_is_refused_by_name(config, reason, save, tmp_path):
    one, two = save("one", seed=1), save("two", seed=2, **config)
    with pytest.raises(AdapterError, match=f"cannot merge {re.escape(str(two.folder))}: .*{reason}") as error:
        merge_adapters([one.folder, two.folder], tmp_path / "out")
    assert error.value.advice == "'gradience convert' makes a plain LoRA of most types"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("alora_invocation_tokens", [5, 6], "aLoRA"),
        ("arrow_config", {"top_k": 2}, "Arrow"),
        ("use_qalora", True, "QALoRA"),
        ("use_bdlora", {"nblocks": 2}, "BD-LoRA"),
        ("kasa_config", {}, "KaSA"),
        ("peft_type", "ADALORA", "ADALORA"),
    ],
)
def test_an_update_that_is_not_everywhere_s_b_a_is_refused_by_its_field(field, value, reason, save, tmp_path):
    one, two = save("one", seed=1), save("two", seed=2)
    path = two.folder / "adapter_config.json"
    path.write_text(json.dumps(two.config | {field: value}))
    with pytest.raises(AdapterError, match=reason):
        merge_adapters([one.folder, two.folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _set_head(folder, value: float) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if "classifier" in name:
            tensors[name] = np.full_like(tensors[name], value)
    save_file(tensors, path, metadata={"format": "pt"})


def test_heads_that_differ_are_refused_unless_one_is_chosen(save, merged, tmp_path):
    one, two = (save(name, seed=s, modules_to_save=["classifier"]) for s, name in enumerate(("one", "two")))
    _set_head(one.folder, 1.0)
    _set_head(two.folder, 2.0)
    folders = [one.folder, two.folder]
    with pytest.raises(AdapterError, match=r"different values of .*classifier.*have no sum"):
        merge_adapters(folders, tmp_path / "out")
    for choice, value in (("A", 1.0), ("two", 2.0)):
        report = merge_adapters(folders, tmp_path / f"from-{choice}", heads_from=choice)
        assert len(report.carried) == 2
        update = merged(one.model, tmp_path / f"from-{choice}")
        head = update["classifier.weight"] + one.model.classifier.weight.detach().numpy()
        np.testing.assert_allclose(head, value, atol=1e-6)


def test_heads_that_agree_or_are_one_adapters_alone_are_carried(save, merged, tmp_path):
    one, two = save("one", seed=1, modules_to_save=["classifier"]), save("two", seed=2)
    report = merge_adapters([one.folder, two.folder], tmp_path / "out")
    assert len(report.carried) == 2
    update = merged(one.model, tmp_path / "out")
    np.testing.assert_allclose(update["classifier.weight"], one.update["classifier.weight"], atol=1e-6)
    without = merge_adapters([one.folder, two.folder], tmp_path / "bare", heads_from="B")
    assert len(without.dropped) == 2
    assert "classifier" not in json.loads((tmp_path / "bare" / "adapter_config.json").read_text())["target_modules"]


def test_biases_that_differ_are_refused(save, tmp_path):
    one, two = (save(name, seed=seed, bias="all") for seed, name in enumerate(("one", "two")))
    with pytest.raises(AdapterError, match="have no sum"):
        merge_adapters([one.folder, two.folder], tmp_path / "out")


@pytest.mark.parametrize("kind", ["all", "lora_only"])
def test_chosen_biases_are_carried_and_the_config_says_so(kind, save, merged, tmp_path):
    one, two = (save(name, seed=seed, bias=kind) for seed, name in enumerate(("one", "two")))
    merge_adapters([one.folder, two.folder], tmp_path / "out", heads_from="B", weights=[0.5, 0.5])
    update = merged(one.model, tmp_path / "out")
    for name, value in update.items():
        truth = two.update[name] if name.endswith("bias") else (one.update[name] + two.update[name]) / 2
        np.testing.assert_allclose(value, truth, atol=1e-5, err_msg=name)


def test_token_rows_are_carried_from_the_adapter_that_is_chosen(save, merged, tmp_path):
    rows = {"trainable_token_indices": {"embed_tokens": [3, 7]}}
    one, two = save("one", seed=1, **rows), save("two", seed=2, **rows)
    with pytest.raises(AdapterError, match="token rows"):
        merge_adapters([one.folder, two.folder], tmp_path / "out")
    for choice, side in (("A", one), ("B", two)):
        merge_adapters([one.folder, two.folder], tmp_path / f"from-{choice}", heads_from=choice)
        update = merged(one.model, tmp_path / f"from-{choice}")
        np.testing.assert_allclose(update["embed_tokens.weight"], side.update["embed_tokens.weight"], atol=1e-6)


def test_an_existing_folder_and_a_source_are_kept(save, tmp_path, capsys):
    one, two = save("one", seed=1), save("two", seed=2)
    held = tmp_path / "out"

    def comes(*_: object) -> None:  # while the merge is at work
        held.mkdir(exist_ok=True)
        (held / "mine.txt").write_text("mine")

    for progress in (comes, None):
        with pytest.raises(OutputError, match="exists already"):
            merge_adapters([one.folder, two.folder], held, progress=progress)
    for source in (one, two):
        with pytest.raises(OutputError, match="adapter that is read"):
            merge_adapters([one.folder, two.folder], source.folder, force=True)
    assert (held / "mine.txt").read_text() == "mine"
    assert main(["merge", str(one.folder), str(two.folder), "--out", str(held)]) == 2
    assert "--force" in capsys.readouterr().err
    (held / "adapter_config.json").write_text("{}")
    assert main(["merge", str(one.folder), str(two.folder), "--out", str(held), "--force"]) == 2
    assert "mine.txt" in capsys.readouterr().err
    (held / "mine.txt").unlink()
    assert main(["merge", str(one.folder), str(two.folder), "--out", str(held), "--force"]) == 0
    assert sorted(p.name for p in held.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "gradience_provenance.json",
    ]


def test_an_update_that_is_not_finite_stops_the_merge_and_leaves_nothing(save, tmp_path):
    one, two = save("one", seed=1), save("two", seed=2)
    path = two.folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if "lora_B" in n)
    tensors[name][0, 0] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="NaN"):
        merge_adapters([one.folder, two.folder], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--weights", "1;2"], "is not a list of numbers"),
        (["--method", "dare_ties"], "needs a density"),
        (["--heads-from", "C"], "names none"),
    ],
)
def test_options_that_make_no_sense_are_exit_code_2_with_one_line(arguments, says, save, capsys):
    one, two = save("one", seed=1), save("two", seed=2)
    assert main(["merge", str(one.folder), str(two.folder), "--dry-run", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_dry_run_prints_the_table_and_writes_nothing(save, tmp_path, capsys):
    one, two = save("one", seed=1), save("two", seed=2)
    before = sorted(tmp_path.rglob("*"))
    assert main(["merge", str(one.folder), str(two.folder), "--dry-run", "--method", "svd", "--rank", "2"]) == 0
    assert "4+4 > 2" in capsys.readouterr().out
    assert main(["merge", str(one.folder), str(two.folder), "--dry-run", "--json"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), json_schema("merge"))
    assert sorted(tmp_path.rglob("*")) == before


def test_the_record_names_method_sources_and_errors_but_no_path(save, tmp_path):
    one, two = save("one", seed=1), save("two", seed=2)
    merge_adapters([one.folder, two.folder], tmp_path / "out", method="svd", rank=2)
    text = (tmp_path / "out" / "gradience_provenance.json").read_text()
    record = json.loads(text)
    assert record["operation"] == "merge"
    assert record["options"] == {
        "method": "svd",
        "weights": [0.5, 0.5],
        "density": None,
        "seed": None,
        "rank": 2,
        "heads_from": None,
        "dtype": "F32",
    }
    assert len(record["sources"]) == 4
    assert len(record["modules"]) == 4
    assert str(tmp_path) not in text


SLOW = """
import sys, time
from gradience.cli.main import script
from gradience.rewrite.writing import ArraySpool
keep = ArraySpool.keep
def slow(spool, array):
    kept = keep(spool, array)
    print("kept", flush=True)
    for _ in range(6000):  # work that returns to Python, whichever thread the signal reached
        time.sleep(0.1)
    return kept
ArraySpool.keep = slow
sys.exit(script())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, *([signal.SIGINT] if os.environ.get("GRADIENCE_SLOW") else [])])
def test_a_merge_that_is_ended_leaves_neither_an_adapter_nor_its_scratch(number, save, tmp_path):
    one, two = (save(name, seed=seed).folder for seed, name in enumerate(("one", "two")))
    scratch, place = tmp_path / "scratch", tmp_path / "place"
    scratch.mkdir()
    place.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "merge", str(one), str(two), "--out", "out", "--method", "ties"],
        cwd=place,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"kept\n"  # the first module is done
    assert any(scratch.rglob("[0-9]*"))
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode != 0
    assert list(place.iterdir()) == []
    assert list(scratch.iterdir()) == []


def test_a_dense_update_over_the_range_of_float32_is_refused_in_words(save, tmp_path):
    one, two = save("one", seed=1), save("two", seed=2)
    path = one.folder / "adapter_model.safetensors"
    save_file({name: np.full_like(tensor, 1e25) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(AdapterError, match="range of float32") as error:
        merge_adapters([one.folder, two.folder], tmp_path / "out", method="ties")
    assert error.value.advice == "linear, cat and svd are float64"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["merge", "merge-check"])
@pytest.mark.parametrize("weights", ["nan,1", "1e300,1", "1", ""])
def test_weights_that_no_sum_can_have_are_one_line(save, verb, weights, capsys):
    paths = [str(save(name, seed=seed).folder) for seed, name in enumerate(("one", "two"))]
    dry = ["--dry-run"] if verb == "merge" else []
    assert main([verb, *paths, "--weights", weights, *dry]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_factors_whose_sum_leaves_float64_are_refused_in_words(save, tmp_path):
    one, two = save("one", seed=1), save("two", seed=2)
    path = one.folder / "adapter_model.safetensors"
    save_file({name: np.full(tensor.shape, 1e200) for name, tensor in load_file(path).items()}, path)
    with pytest.raises(AdapterError, match="range of float64"):
        merge_adapters([one.folder, two.folder], tmp_path / "out")
