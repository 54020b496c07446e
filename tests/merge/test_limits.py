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
from hand_made import adapter, diagonal, edited
from peft_models import merged_update
from tables import every

from gradience import AdapterError, MergeOptions, OptionError, OutputError, merge_adapters, merge_check
from gradience.cli.main import main
from gradience.schema.export import json_schema
from gradience.verbs.merge.methods import recipe_of, weights_of
from gradience.verbs.merge.view import merge_text


@every(
    ("method", "options", "message"),
    [
        ("dare_linear", {}, "dare_linear needs a density: its paper keeps as little as 0.1 of the entries"),
        ("linear", {"rank": 4}, "linear is exact and takes no rank: svd gives the best approximation of one"),
        ("svd", {"rank": 0}, "--rank is 0, expected a whole number from 1"),
        ("svd", {"density": 0.5}, "svd drops no entries and takes no density"),
        ("ties", {"density": 0.0}, "--density is 0.0, expected above 0, at most 1"),
        ("ties", {"density": 1.01}, "--density is 1.01, expected above 0, at most 1"),
        ("mean", {}, "--method is 'mean', expected one of linear, cat, svd, ties, dare_linear, dare_ties"),
        ("linear", {"weights": [1.0]}, "1 weights for 2 adapters: expected one for each"),
        ("linear", {"weights": [1.0, float("inf")]}, "weights are [1.0, inf]: expected finite numbers"),
        ("linear", {"weights": [1.0, -1.1e6]}, "weights are [1.0, -1100000.0]: expected at most 1e+06 in size"),
    ],
)
def test_an_option_out_of_its_range_or_place_is_refused_in_words(method, options, message):
    with pytest.raises(OptionError) as error:
        recipe_of(2, MergeOptions(method=method, **options))
    assert error.value.message == message


def test_the_ends_of_ranges_are_taken_and_defaults_are_the_papers():
    given = {"weights": [1e6, -1e6], "seed": 3}
    assert recipe_of(2, MergeOptions(method="svd", rank=1, **given)).rank == 1
    dare = recipe_of(2, MergeOptions(method="dare_ties", density=1.0, **given))
    assert dare == ("dare_ties", (1e6, -1e6), None, 1.0, 3)
    assert recipe_of(2, MergeOptions(method="ties", **given)).density == 0.2
    for method in ("linear", "cat", "svd", "dare_linear"):
        assert weights_of(4, None, method) == (0.25,) * 4
    assert weights_of(3, None, "ties") == weights_of(3, None, "dare_ties") == (1.0,) * 3
    assert weights_of(0, None) == ()


@every(
    ("method", "options", "line", "told"),
    [
        ("linear", {"seed": 7}, "Method: linear", (None, None, [0.5, 0.5])),
        ("cat", {"weights": [1.0, -1.0]}, "Method: cat", (None, None, [1.0, -1.0])),
        ("ties", {"seed": 3}, "Method: ties, density 0.2", (0.2, None, [1.0, 1.0])),
        ("dare_linear", {"density": 0.5}, "Method: dare_linear, density 0.5, seed 0", (0.5, 0, [0.5, 0.5])),
        ("dare_ties", {"density": 0.5, "seed": 3}, "Method: dare_ties, density 0.5, seed 3", (0.5, 3, [1.0, 1.0])),
    ],
)
def test_a_method_tells_its_density_and_seed_where_it_has_them(tmp_path, method, options, line, told):
    sides = [adapter(tmp_path / name, {"q": diagonal(4.0, 1.0)}) for name in "ab"]
    report = merge_adapters(sides, method=method, **options)
    assert (report.method, report.density, report.seed, report.weights) == (method, *told)
    assert line in merge_text(report).splitlines()


@every(
    ("one", "other", "together"),
    [
        ("meta-llama/Meta-Llama-3-8B", "unsloth/llama-3-8b-bnb-4bit", True),
        ("meta-llama/Llama-2-7b-hf", "mistralai/Mistral-7B-v0.1", False),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", False),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct-AWQ", True),
        ("/models/Llama-3-8B/", "meta-llama/Llama-3-8B", True),
        ("/cache/models--org--m/snapshots/0a1b", "org/m", True),
        ("org/m", "", True),  # a config that names none says nothing
        ("org/m-8bit", "org/m-4bit", True),
        ("org/m8bit", "org/m4bit", False),
    ],
)
def test_adapters_of_different_bases_are_refused_unless_it_is_meant(one, other, together, tmp_path):
    pair = [
        adapter(tmp_path / at, {"q": diagonal(1.0)}, base_model_name_or_path=name)
        for at, name in (("a", one), ("b", other))
    ]
    if not together:
        with pytest.raises(AdapterError, match=r"they are of different base models \(") as refused:
            merge_adapters(pair)
        assert refused.value.advice == "--force-mix merges them nevertheless"
    assert merge_adapters(pair, force_mix=not together).modules[0].name == "q"


def test_adapters_without_a_module_in_common_are_refused_unless_it_is_meant(tmp_path):
    q, v, both = (adapter(tmp_path / of, dict.fromkeys(of, diagonal(1.0))) for of in ("q", "v", "qv"))
    with pytest.raises(AdapterError, match="no two of them have a module in common"):
        merge_adapters([q, v])
    assert len(merge_adapters([q, v, both]).modules) == len(merge_adapters([q, v], force_mix=True).modules) == 2


def test_notes_speak_of_bases_tasks_and_scales_only_where_they_differ(tmp_path):
    fields = {"base_model_name_or_path": "m", "task_type": "CAUSAL_LM"}
    plain = [adapter(tmp_path / n, {"q": diagonal(1.0)}, **fields) for n in "ab"]
    assert merge_adapters(plain).notes == merge_check(*plain).notes == []
    fields = {"base_model_name_or_path": "n", "task_type": "SEQ_CLS", "use_rslora": True}
    assert merge_adapters(
        [plain[0], adapter(tmp_path / "c", {"q": diagonal(1.0)}, **fields)], force_mix=True
    ).notes == [
        "the configs name different base models (m, n): the first one's is kept",
        "the configs name different task types: the first one's is kept",
        "rsLoRA's scale is in the factors: the merged adapter has alpha = r and use_rslora off",
    ]


@every(
    ("fields", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"alora_invocation_tokens": [5, 6]}, "aLoRA"),
        ({"arrow_config": {"top_k": 2}}, "Arrow"),
        ({"use_qalora": True}, "QALoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
        ({"kasa_config": {}}, "KaSA"),
    ],
)
def test_what_is_more_than_s_b_a_is_refused_by_name_and_said_by_a_check(fields, reason, tmp_path):
    b, a = diagonal(4.0, 1.0)
    extra = {"q.lora_magnitude_vector": np.ones(6, np.float32)} if "use_dora" in fields else {}
    extra |= {"q.lora_B.bias": np.ones(6, np.float32)} if "lora_bias" in fields else {}
    one, two = adapter(tmp_path / "a", {"q": (b, a)}), adapter(tmp_path / "b", {"q": (b, a)}, extra=extra, **fields)
    with pytest.raises(AdapterError, match=re.escape(str(two))) as error:
        merge_adapters([one, two], tmp_path / "out")
    assert reason in str(error.value)
    assert "'gradience convert' makes a plain LoRA" in error.value.advice
    assert not (tmp_path / "out").exists()
    if reason in {"DoRA", "pissa"}:
        assert "b: the numbers are of s B A, which is not the whole of its update" in merge_check(one, two).notes


WHOLE = {  # what an adapter holds whole, and which weights that are
    "a head": ({"modules_to_save": ["classifier"]}, "classifier"),
    "biases": ({"bias": "all"}, "bias"),
    "LoRA's biases": ({"bias": "lora_only"}, "bias"),
    "token rows": ({"trainable_token_indices": {"embed_tokens": [3, 7]}}, "embed_tokens"),
}


@pytest.mark.parametrize("what", WHOLE)
def test_whole_tensors_that_differ_are_refused_unless_one_adapters_are_chosen(what, save, tmp_path):
    fields, part = WHOLE[what]
    one, two = (save(name, seed=seed, **fields) for seed, name in enumerate(("one", "two")))
    with pytest.raises(AdapterError, match="have no sum"):
        merge_adapters([one.folder, two.folder], tmp_path / "out")
    for choice, side in (("A", one), ("two", two)):
        report = merge_adapters([one.folder, two.folder], tmp_path / choice, heads_from=choice, weights=[0.5, 0.5])
        assert report.carried
        for name, value in merged_update(one.model, tmp_path / choice).items():
            truth = side.update[name] if part in name else (one.update[name] + two.update[name]) / 2
            np.testing.assert_allclose(value, truth, atol=1e-5, err_msg=name)


def two_of(folder, **config):
    return [adapter(folder / name, {"q": diagonal(4.0, 1.0)}, **config) for name in "ab"]


def test_what_came_meanwhile_and_the_sources_are_kept(tmp_path):
    sides, held = two_of(tmp_path), tmp_path / "out"

    def comes(*_: object) -> None:  # while the merge is at work
        held.mkdir(exist_ok=True)
        (held / "mine.txt").write_text("mine")

    for progress in (comes, None):
        with pytest.raises(OutputError, match="exists already"):
            merge_adapters(sides, held, progress=progress)
    for source in sides:
        with pytest.raises(OutputError, match="adapter that is read"):
            merge_adapters(sides, source, force=True)
    assert [path.name for path in held.iterdir()] == ["mine.txt"]


@every(
    ("verb", "arguments", "says"),
    [
        ("merge --dry-run", ["--method", "dare_ties"], "needs a density"),
        ("merge --dry-run", ["--heads-from", "C"], "names none"),
        ("merge --check", ["--method", "dare_ties"], "needs a density"),
        *[
            (verb, ["--weights", weights], "")
            for verb in ("merge --dry-run", "merge --check")
            for weights in ("nan,1", "1e300,1", "1", "", "1;2")
        ],
    ],
)
def test_options_that_make_no_sense_are_exit_code_2_with_one_line(verb, arguments, says, tmp_path, capsys):
    assert main([*verb.split(), *map(str, two_of(tmp_path)), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_dry_run_prints_the_table_and_writes_nothing(tmp_path, capsys):
    paths = [str(side) for side in two_of(tmp_path)]
    assert main(["merge", *paths, "--dry-run", "--method", "svd", "--rank", "2"]) == 0
    assert "2+2 > 2" in capsys.readouterr().out
    assert main(["merge", *paths, "--dry-run", "--json"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), json_schema("merge"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_record_names_method_sources_and_errors_but_no_path(tmp_path):
    merge_adapters(two_of(tmp_path), tmp_path / "out", method="svd", rank=2)
    text = (tmp_path / "out" / "gradience_provenance.json").read_text()
    record = json.loads(text)
    told = {"method": "svd", "weights": [0.5, 0.5], "rank": 2, "dtype": "F32"}
    assert record["operation"] == "merge"
    assert record["options"] == {"density": None, "seed": None, "heads_from": None, **told}
    assert (len(record["sources"]), len(record["modules"])) == (4, 1)
    assert str(tmp_path) not in text


SLOW = """
import sys, time
from gradience.cli.main import script
from gradience.rewriting.writing import ArraySpool
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
def test_a_merge_that_is_ended_leaves_neither_an_adapter_nor_its_scratch(number, tmp_path):
    one, two = map(str, two_of(tmp_path))
    scratch, place = tmp_path / "scratch", tmp_path / "place"
    scratch.mkdir()
    place.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "merge", one, two, "--out", "out", "--method", "ties"],
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


def test_a_dense_update_over_the_range_of_float32_is_refused_in_words(tmp_path):
    sides = two_of(tmp_path)
    edited(sides[0], lambda _name, tensor: np.full_like(tensor, 1e25))
    with pytest.raises(AdapterError, match="range of float32") as error:
        merge_adapters(sides, tmp_path / "out", method="ties")
    assert error.value.advice == "linear, cat and svd are float64"
    assert not (tmp_path / "out").exists()
