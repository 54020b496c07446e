"""Adapters side by side in the report: what is drawn, what is said, what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import gather, parse

from gradience.cli.main import main
from gradience.verbs.compare.run import compare_adapters
from gradience.verbs.report.page import report_html

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

LAYERS, SIDE = 3, 16


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    """Return a function that lets PEFT save an adapter whose B is `share` of one matrix and the rest of another."""

    def build(name: str, share: float) -> Path:
        torch.manual_seed(0)
        layers = torch.nn.ModuleList([torch.nn.ModuleDict({"up": torch.nn.Linear(SIDE, SIDE)}) for _ in range(LAYERS)])
        model = peft.get_peft_model(
            torch.nn.ModuleDict({"layers": layers}), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["up"])
        )
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                one, two = torch.randn(SIDE, 4), torch.randn(SIDE, 4)
                parameter.data = share * one + (1.0 - abs(share)) * two
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return build


def labels(page: str) -> list[str]:
    return [a["aria-label"] for a in parse(page).all("svg") if "aria-label" in a]


def test_two_adapters_have_a_map_of_their_cosine_and_their_energy_by_layer(save, log):
    mine, other = save("mine", 1.0), save("other", -0.5)
    page = report_html(gather(log, adapter=mine, compare=[other]))
    (pair,) = compare_adapters(mine, other).pairs
    text = parse(page).text
    for row in pair.modules:
        assert row.cosine is not None
        assert f"layer {row.layer} layers.up: {row.cosine:.4g}" in text
    assert min(row.cosine or 0.0 for row in pair.modules) < 0.0
    assert 'class="cell below"' in page
    assert any(label.startswith("Alike, mine and other: cosine of mine and other") for label in labels(page))
    assert any(label.startswith("Energy by layer, mine and other") for label in labels(page))
    assert 'href="#compare"' in page
    assert hashlib.sha256((other / "adapter_model.safetensors").read_bytes()).hexdigest() in page


def test_checkpoints_are_a_trajectory_up_to_the_last(save, log, tmp_path):
    for step, share in ((10, 0.2), (20, 0.6), (30, 0.9)):
        save(f"run/checkpoint-{step}", share)
    story = gather(log, compare=[tmp_path / "run"])
    of_arrays = {"gradience", "numpy", "jax", "python"}
    assert (set(story.versions), set(gather(log).versions)) == (of_arrays, of_arrays - {"jax"})
    assert story.comparison is not None
    assert story.comparison.series is not None
    page = report_html(story)
    found = [label for label in labels(page) if label.startswith("Direction of the update")]
    first = story.comparison.series.points[0].cosine_to_final
    assert f"to the final update: {first:.4g} to 1." in found[0]
    assert "The update turns until the last checkpoint" in parse(page).text
    maps = [label for label in labels(page) if label.startswith("Alike, ")]
    assert maps[0].startswith("Alike, checkpoint-20 and checkpoint-30")


def test_the_command_takes_several_and_markdown_has_one_row_each(save, log, tmp_path, capsys):
    mine, one, two = save("mine", 1.0), save("one", 0.5), save("two", 0.0)
    tokens = ["report", str(log), "--adapter", str(mine), "--compare", str(one), "--compare", str(two)]
    assert main(tokens) == 0
    out = capsys.readouterr().out
    for pair in compare_adapters(mine, one, two).pairs:
        assert f"| {pair.first} and {pair.second} | {pair.cosine:.3f} |" in out
    assert main([*tokens, "--out", str(tmp_path / "a.html")]) == 0
    assert 'id="compare"' in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_nothing_to_compare_with_is_an_error_that_says_what_to_give(save, log, capsys):
    mine = save("mine", 1.0)
    for tokens in (["--compare", mine], ["--adapter", mine, "--compare", mine], ["--compare", mine / "missing"]):
        assert main(["report", str(log), *map(str, tokens)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "expected a second adapter" in err
