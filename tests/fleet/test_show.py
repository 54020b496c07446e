"""What is told of a fleet: counts, what is broken or wasteful, padding on servers, and what is alike."""

from __future__ import annotations

import shutil
import stat
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from fleet_inputs import factors, peft, with_noise

from gradience.adapters.open import open_adapter
from gradience.cli.main import main
from gradience.collect.fleet.show import (
    Load,
    best_split,
    candidate_pairs,
    padding,
    room_for,
    serving,
    show_fleet,
    similar,
    update_cosine,
)
from gradience.spectral.grams import DIMENSIONS, Sketch


@pytest.fixture(scope="module")
def shown(fleet):
    return show_fleet(fleet)


def names(paths):
    return [Path(path).name for path in paths]


def test_counts_bases_ranks_and_verdicts(shown):
    assert (shown.adapters, shown.modules) == (13, 44)
    assert [(c.value, c.adapters) for c in shown.ranks] == [("4", 10), ("16", 1)]
    assert {c.value: c.adapters for c in shown.verdicts} == {"trained": 10, "untrained": 1, "error": 2}
    assert [(c.value, c.adapters) for c in shown.bases] == [("tiny", 11)]


def test_what_needs_a_look_comes_first_by_its_fault(shown):
    assert [(f.verdict, Path(f.path).name) for f in shown.faulty[:3]] == [
        ("error", "no-weights"),
        ("error", "truncated"),
        ("untrained", "untrained"),
    ]
    assert {f.verdict for f in shown.faulty[3:]} == {"SIZ215"}  # their random numbers are large
    assert names(w.path for w in shown.wasteful)[0] == "r16"


def test_equal_and_nearly_equal_adapters_are_found(shown):
    assert [names(alike.paths) for alike in shown.similar.same] == [["copy-of-0", "run-0"]]
    (near,) = shown.similar.near
    assert sorted(names(near.paths)) == ["near-1", "run-1"]
    assert 0.9997 < near.cosine < 1.0
    assert shown.similar.all_pairs == 36  # nine of one base and shape, the copy aside


def test_an_adapter_whose_shapes_do_not_fit_its_declared_base_is_named(shown):
    (other,) = shown.other_shapes
    assert (Path(other.path).name, other.module) == ("other-base", "model.layers.0.mlp.up_proj")
    assert (other.shape, other.usual, other.usual_adapters) == ([64, 32], [48, 24], 10)


def test_padding_is_counted_in_bytes_of_the_slots():
    loads = {8: Load(3, 3000, 24000), 16: Load(1, 1000, 16000), 40: Load(1, 1000, 40000)}
    assert [room_for(rank) for rank in (2, 8, 9, 40, 513)] == [8, 8, 16, 64, None]
    assert padding(loads[8], 64) == (3000 * 64 - 24000) * 2
    whole = serving("b", loads)
    assert (whole.max_lora_rank, whole.adapters) == (64, 5)
    assert whole.padding_bytes == (5000 * 64 - 80000) * 2
    assert [split.max_lora_ranks for split in whole.buckets] == [[64], [16, 64], [8, 16, 64]]
    assert whole.buckets[1].padding_bytes == (4000 * 16 - 40000 + 1000 * 64 - 40000) * 2
    assert whole.buckets[2].adapters == [3, 1, 1]


def test_the_best_split_wastes_no_more_than_any_other():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ranks = sorted(rng.choice(np.arange(1, 200), 6, replace=False).tolist())
        loads = {r: Load(1, int(w), int(w) * r) for r, w in zip(ranks, rng.integers(100, 9000, 6), strict=True)}
        for parts in (1, 2, 3):
            tried = []
            for cuts in combinations(range(1, 6), parts - 1):
                groups = [ranks[a:b] for a, b in zip((0, *cuts), (*cuts, 6), strict=True)]
                tried.append(sum(padding(loads[r], room_for(g[-1])) for g in groups for r in g))
            assert best_split(loads, parts).padding_bytes == min(tried)


def modules_of(tensors, scale=2.0):
    stems = sorted({name.rpartition(".lora_")[0] for name in tensors})
    return [(s, tensors[f"{s}.lora_B.weight"], tensors[f"{s}.lora_A.weight"], scale) for s in stems]


def sketched(modules):
    sketch = Sketch()
    for module in modules:
        sketch.add(*module)
    return np.array(sketch.numbers())


def dense(modules):
    return np.concatenate([(s * b.astype(float) @ a.astype(float)).ravel() for _, b, a, s in modules])


def test_a_sketch_does_not_depend_on_layout_order_or_how_the_update_is_factored():
    modules = modules_of(factors(1, width=700))
    turned = [
        (n, np.asfortranarray(b) @ q, q.T @ np.asfortranarray(a), s)
        for n, b, a, s in modules[::-1]
        for q in [np.eye(4)[::-1]]
    ]
    assert sketched(turned) == pytest.approx(sketched(modules), rel=1e-4, abs=1e-3)
    assert sketched([*modules, modules[0]]) == pytest.approx(sketched(modules))
    bad = [(n, b * np.float32(np.nan), a, s) for n, b, a, s in modules]
    assert not sketched(bad).any()


def normalised(rows):
    return rows / np.linalg.norm(rows, axis=1)[:, None]


def test_the_exact_cosine_is_the_dense_one_and_only_pairs_over_the_threshold_are_listed(tmp_path):
    one, two = factors(1), with_noise(factors(1), 0.2)
    folders = [peft(tmp_path / "one", one), peft(tmp_path / "two", two)]
    expected = dense(modules_of(one)) @ dense(modules_of(two))
    expected /= np.linalg.norm(dense(modules_of(one))) * np.linalg.norm(dense(modules_of(two)))
    opened = [open_adapter(folder)[1] for folder in folders]
    assert update_cosine(*opened) == pytest.approx(expected, rel=1e-9)
    rows = [
        {"path": str(f), "base_model": "b", "shapes": "s", "content_hash": str(f), "sketch": sketched(modules_of(t))}
        for f, t in zip(folders, (one, two), strict=True)
    ]
    assert [a.cosine for a in similar(rows, threshold=expected - 1e-6, most=5).near] == [pytest.approx(expected)]
    assert similar(rows, threshold=expected + 1e-6, most=5).near == []
    assert similar(rows, threshold=expected - 1e-6, most=0).not_compared == 1
    assert similar([rows[0], rows[1] | {"base_model": "c"}], threshold=0.5, most=5).all_pairs == 0


def test_the_page_has_every_list_and_no_script(fleet, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page = tmp_path / "fleet.html"
    assert main(["fleet", "show", str(fleet), "--html", str(page)]) == 0
    text = page.read_text()
    for word in ("What needs a look", "What could be cut away", "What a server pads", "What is equal", "another base"):
        assert word in text
    assert "no adapter weights" in text
    assert "<script" not in text
    assert main(["fleet", "show", str(fleet), "--html", str(page)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert page.stat().st_mode == (fleet / "fleet.json").stat().st_mode
    for name in ("rows.jsonl", "page.md"):
        (tmp_path / name).write_text("mine")
        assert main(["fleet", "show", str(fleet), "--html", str(tmp_path / name), "--force"]) == 2
        assert capsys.readouterr().err.endswith(("or give --format)\n", "a page of HTML (name it .html)\n"))
        assert (tmp_path / name).read_text() == "mine"


def test_a_page_is_as_private_as_the_fleet(fleet, tmp_path):
    pytest.importorskip("matplotlib")
    copy = shutil.copytree(fleet, tmp_path / "fleet")
    (copy / "fleet.json").chmod(0o600)
    assert main(["fleet", "show", str(copy), "--html", str(tmp_path / "page.html")]) == 0
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o600


def test_a_bucket_of_very_many_is_compared_with_neighbours_only():
    rng = np.random.default_rng(0)
    one = normalised(rng.standard_normal((1, DIMENSIONS)))
    pairs = candidate_pairs(np.repeat(one, 600, axis=0))
    assert (0, 1) in pairs
    assert len(pairs) == sum(min(16, 599 - n) for n in range(600))
