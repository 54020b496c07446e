"""What a merge check says, against dense updates and against adapters made to collide."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hand_made import edited
from hypothesis import given, strategies as st
from tables import every

import gradience.verbs.bench.run
from gradience import AdapterError, ConfigError, GradienceError, merge_adapters, merge_check
from gradience.cli.main import main
from gradience.schema.export import json_schema
from gradience.schema.merge import CheckedPair
from gradience.spectral.merging import signs_of
from gradience.verbs.merge.check import trials_of
from gradience.verbs.merge.view import merge_check_text


def _vector(update: dict) -> np.ndarray:
    return np.concatenate([value.ravel() for _, value in sorted(update.items())])


@given(seed=st.integers(0, 50))
def test_a_sample_of_rows_is_within_its_error_of_the_truth(seed):
    rng = np.random.default_rng(seed)
    parts = [(rng.standard_normal((600, 3)), rng.standard_normal((3, 50)), scale) for scale in (1.0, 0.5)]
    exact = signs_of(parts, most=None, seed=0)
    sample = signs_of(parts, most=100 * 50, seed=seed)
    assert sample.entries == 100 * 50
    assert 0.0 < sample.conflict_error < 0.02
    assert abs(sample.conflict - exact.conflict) < 5 * sample.conflict_error
    assert abs(sample.cancelled - exact.cancelled) < 5 * sample.cancelled_error


def _scaled(folder, factor: float) -> None:
    edited(folder, lambda name, tensor: tensor * np.float32(factor if "lora_B" in name else 1.0))


def _ids(report) -> set[str]:
    return {finding.id for finding in report.findings}


@every(
    ("weights", "cosine", "tried"),
    [
        ([0.5, 0.5], 0.3, [[0.5, 0.5], [1.0, 1.0]]),
        ([0.5, 0.5], 0.899, [[0.5, 0.5], [1.0, 1.0]]),
        ([0.5, 0.5], 0.9, [[0.5, 0.5]]),  # nearly one update: whole ones would double it
        ([0.5, 0.5], None, [[0.5, 0.5], [1.0, 1.0]]),
        ([0.7, -0.3], 0.0, [[0.7, -0.3], [1.0, -1.0]]),
        ([2.0, 0.0], 0.0, [[2.0, 0.0], [1.0, 0.0]]),
        ([1.0, 1.0], 0.0, [[1.0, 1.0], [0.5, 0.5]]),
        ([1.0, -1.0], 0.0, [[1.0, -1.0], [0.5, -0.5]]),
    ],
)
def test_whole_updates_are_tried_beside_the_weights_that_were_asked_for(weights, cosine, tried):
    assert trials_of(weights, [CheckedPair(first="a", second="b", cosine=cosine)]) == tried


def test_what_would_be_written_comes_first_then_what_collides(save, capsys):
    one, two = save("one", seed=1), save("two", seed=1)
    _scaled(two.folder, -0.5)
    paths = [str(one.folder), str(two.folder)]
    before = {place.name for place in one.folder.parent.iterdir()}
    assert main(["merge", *paths, "--check", "--weights=.25,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    own = np.linalg.norm(_vector(one.update))
    # Both lie on one line, so that nothing of the sum is orthogonal to either
    assert lines[3] == "M = 0.25 x one + 1 x two"
    assert lines[4] == f"  one: weight 0.25, norm(w dW) {0.25 * own:.4g}; 0.0% of M is orthogonal to its update"
    assert lines[5] == f"  two: weight 1, norm(w dW) {0.5 * own:.4g}; 0.0% of M is orthogonal to its update"
    whole = merge_adapters(paths, weights=[0.25, 1.0])
    size = f"linear, r={whole.r}, F32, {whole.params} parameters"
    assert lines[6] == f"Would write: {size}; error none beyond the rounding of float32"
    starts = [next(i for i, line in enumerate(lines) if line.startswith(word)) for word in ("Findings", "Signs")]
    assert starts == sorted(starts)
    assert lines[-2].endswith(" --data HELDOUT_2 --weights 0.25,1 --weights 1,1 --out merge-bench")
    assert lines[-1] == "    Replace MODEL by the base model and HELDOUT_1, HELDOUT_2 each by a file of held-out rows."
    assert {place.name for place in one.folder.parent.iterdir()} == before


def test_a_check_says_what_the_merge_refuses_and_the_plan_is_the_merges_own(save):
    one, two = (save(name, seed=seed, modules_to_save=["classifier"]) for seed, name in enumerate(("one", "two")))
    report = merge_check(one.folder, two.folder, method="svd", rank=3)
    assert report.merged is None
    with pytest.raises(AdapterError) as refused:
        merge_adapters([one.folder, two.folder], method="svd", rank=3)
    assert report.refused == str(refused.value)
    assert f"Would be refused: {report.refused}" in merge_check_text(report).replace("\n    ", " ")
    chosen = merge_check(one.folder, two.folder, method="svd", rank=3, heads_from="A")
    assert chosen.refused == ""
    assert chosen.merged == merge_adapters([one.folder, two.folder], method="svd", rank=3, heads_from="A")


@every("weights", [[0.5, 0.5], [-0.5, 1.0]])
def test_the_next_command_is_taken_as_it_is_printed(weights, save, monkeypatch):
    one, two = (save(name, seed=seed) for seed, name in enumerate((f"a{weights[0]}", f"b{weights[0]}")))
    report = merge_check(one.folder, two.folder, weights=weights)
    taken = {}

    def stand_in(paths, out, **given):
        taken.update(given, paths=list(paths), out=out)
        raise GradienceError("taken")

    monkeypatch.setattr(gradience.verbs.bench.run, "bench_merge", stand_in)
    program, *words = shlex.split(merge_check_text(report).splitlines()[-2].partition(": ")[2])
    assert program == "gradience"
    assert main(words) == 2
    assert taken["weights"] == report.trials == [weights, [math.copysign(1.0, w) for w in weights]]
    assert (taken["paths"], taken["data"]) == ([one.folder, two.folder], [Path("HELDOUT_1"), Path("HELDOUT_2")])


def test_dora_and_other_bases_are_said_not_refused(save):
    one, two = save("one", seed=1), save("two", seed=2, use_dora=True)
    path = two.folder / "adapter_config.json"
    path.write_text(json.dumps({**two.config, "base_model_name_or_path": "other"}))
    first = one.folder / "adapter_config.json"
    first.write_text(json.dumps({**one.config, "base_model_name_or_path": "this"}))
    report = merge_check(one.folder, two.folder)
    assert {"MRG407", "MRG408"} <= _ids(report)
    assert "DoRA" in report.adapters[1].obstacles[0]


def test_adapters_without_a_module_in_common_do_not_meet(save):
    one, two = save("one", target_modules=["q_proj"]), save("two", target_modules=["up_proj"])
    report = merge_check(one.folder, two.folder)
    assert report.signs is None
    assert [item.kept.coefficient for item in report.adapters] == pytest.approx([0.5, 0.5])
    assert any("no module in common" in note for note in report.notes)


def test_json_validates_fail_on_counts_and_text_shows_the_findings(save, capsys, tmp_path, monkeypatch):
    one, two = save("one", seed=1), save("two", seed=1)
    _scaled(two.folder, -1.0)
    paths = [str(one.folder), str(two.folder)]
    assert main(["merge", *paths, "--check", "--json"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), json_schema("merge-check"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gradience.toml").write_text('fail-on = "warning"\n')
    assert main(["merge", *paths, "--check", "-v"]) == 1
    text = capsys.readouterr().out
    assert "[WARNING] MRG401" in text
    assert "evidence: definition" in text


def test_rules_are_selected_and_ignored_and_those_without_input_are_named(save, tmp_path):
    one, two = save("one", seed=1), save("two", seed=1)
    _scaled(two.folder, -1.0)
    report = merge_check(one.folder, two.folder, select=["MRG4"], ignore=["MRG408"])
    assert _ids(report) == {"MRG401"}
    reasons = {item.id: item.reason for item in report.not_run}
    assert reasons["MRG408"] == "ignored on request"
    assert "name no base model" in reasons["MRG407"]
    (tmp_path / "gradience.toml").write_text('ignore = ["MRG401"]\n')
    report = merge_check(one.folder, two.folder, settings=tmp_path / "gradience.toml")
    assert _ids(report) == set()
    with pytest.raises(ConfigError, match="no rule is called"):
        merge_check(one.folder, two.folder, select=["XYZ1"])
