"""What is told of a fleet: counts, what is broken or wasteful, padding on servers, and what is alike."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fleet_inputs import factors, peft, with_noise

from gradience.adapters.open import open_adapter
from gradience.cli.main import main
from gradience.errors import GradienceError
from gradience.schema.fleet import AdapterRow, Alike, ModuleRow
from gradience.spectral.grams import Sketch
from gradience.tables import encoded
from gradience.tables.query import FLEET
from gradience.tables.store import Store
from gradience.verbs.fleet import show as comparing
from gradience.verbs.fleet.show import (
    Load,
    best_split,
    candidate_pairs,
    one_version,
    padding,
    room_for,
    serving,
    show_fleet,
    similar,
    update_cosine,
)
from gradience.verbs.fleet.view import fleet_show_text

ERROR = {"status": "error", "verdict": None}


def stored(folder: Path, *rows: tuple[dict[str, Any], list[dict[str, Any]]]) -> Path:
    """A fleet of adapters with these fields, and modules."""
    usual = {"status": "ok", "stamp": "s", "rules": "1", "verdict": "trained", "base_model": "b"}
    shape = {"module_type": "attn", "rows": 8, "columns": 4, "r": 2, "params": 24}
    with Store(folder, FLEET).writing() as writer:
        for place, (fields, modules) in enumerate(rows):
            name = f"a{place:02d}"
            row = AdapterRow(**{"path": name, "content_hash": name, **usual, **fields})
            some = [ModuleRow(path=name, position=n, name=f"m{n}", **shape | one) for n, one in enumerate(modules)]
            writer.add([encoded([row], some, [])])
    return folder


def names(paths):
    return [Path(path).name for path in paths]


def test_a_real_fleet_is_counted_and_what_needs_a_look_is_named(fleet):
    shown = show_fleet(fleet)
    assert (shown.adapters, shown.modules) == (13, 44)
    assert [(c.value, c.adapters) for c in shown.ranks] == [("4", 10), ("16", 1)]
    assert {c.value: c.adapters for c in shown.verdicts} == {"trained": 10, "untrained": 1, "error": 2}
    assert [(c.value, c.adapters) for c in shown.bases] == [("tiny", 11)]
    first = [(f.verdict, Path(f.path).name) for f in shown.faulty[:3]]
    assert first == [("error", "no-weights"), ("error", "truncated"), ("untrained", "untrained")]
    assert {f.verdict for f in shown.faulty[3:]} == {"UPD316"}  # their random numbers are large
    assert names(w.path for w in shown.wasteful)[0] == "r16"
    assert [names(alike.paths) for alike in shown.similar.same] == [["copy-of-0", "run-0"]]
    (near,) = shown.similar.near
    assert (sorted(names(near.paths)), 0.9997 < near.cosine < 1.0) == (["near-1", "run-1"], True)
    assert shown.similar.all_pairs == 36  # nine of one base and shape, the copy aside
    (other,) = shown.other_shapes
    assert (Path(other.path).name, other.module) == ("other-base", "model.layers.0.mlp.up_proj")
    assert (other.shape, other.usual, other.usual_adapters) == ([64, 32], [48, 24], 10)
    three = msgspec.structs.replace(shown.similar, same=[Alike(paths=["a", "b", "c"])])
    assert "  a = b and 1 more" in fleet_show_text(msgspec.structs.replace(shown, similar=three)).splitlines()


def test_a_list_names_as_many_as_asked_for_and_equal_reasons_are_counted_as_one(tmp_path):
    errors = [({**ERROR, "error": error}, []) for error in ("a00/w: 12 bytes", "a01/w: 7 bytes", "other", "other")]
    wasteful = [
        ({"r": 8, "suggested_rank": 2, "utilization_mean": 0.1, "bytes_saved": size}, []) for size in (5, 7, 0, 6)
    ]
    found = show_fleet(stored(tmp_path / "f", *errors, *wasteful), top=2)
    assert (names(item.path for item in found.faulty), found.faulty_total) == (["a00", "a01"], 4)
    assert [(item.path, item.bytes_saved) for item in found.wasteful] == [("a05", 7), ("a07", 6)]
    assert [(reason.value, reason.adapters) for reason in found.unread] == [("other", 2), ("w: N bytes", 2)]
    lines = fleet_show_text(found).splitlines()
    start = lines.index("Needs a look (4):")
    assert lines[start + 1 : start + 3] == ["  4 adapters cannot be read:", "        2 x other"]


@pytest.mark.parametrize(("usual", "other", "named"), [(2, 1, 1), (1, 1, 0), (1, 0, 0), (2, 2, 0), (2, 3, 2)])
def test_a_shape_is_strange_where_over_half_of_two_or_more_have_another(tmp_path, usual, other, named):
    rows = [({}, [{}])] * usual + [({}, [{"rows": 16}])] * other
    found = show_fleet(stored(tmp_path / "f", *rows)).other_shapes
    assert len(found) == named
    if named and usual > other:
        assert (found[0].shape, found[0].usual, found[0].usual_adapters) == ([16, 4], [8, 4], usual)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_in_place_of_a_part_is_refused_and_not_waited_for(tmp_path):
    fleet = stored(tmp_path / "f", ({}, []))
    part = next((fleet / "modules").iterdir())
    part.unlink()
    os.mkfifo(part)
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(30)
    try:
        with pytest.raises(GradienceError, match="is not a regular file"):
            show_fleet(fleet)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_padding_is_counted_in_bytes_of_the_slots_and_by_the_best_split():
    loads = {8: Load(3, 3000, 24000), 16: Load(1, 1000, 16000), 40: Load(1, 1000, 40000)}
    assert [room_for(rank) for rank in (2, 8, 9, 40, 513)] == [8, 8, 16, 64, None]
    whole = serving("b", loads)
    assert (whole.max_lora_rank, whole.adapters, whole.padding_bytes) == (64, 5, (5000 * 64 - 80000) * 2)
    assert [split.max_lora_ranks for split in whole.buckets] == [[64], [16, 64], [8, 16, 64]]
    assert whole.buckets[1].padding_bytes == (4000 * 16 - 40000 + 1000 * 64 - 40000) * 2
    assert whole.buckets[2].adapters == [3, 1, 1]
    beyond = serving("b", {8: Load(2, 100, 800), 600: Load(1, 10, 6000)})  # no server holds the second
    assert (beyond.adapters, beyond.ranks, beyond.max_lora_rank) == (3, {"8": 2, "600": 1}, None)
    assert (beyond.used_bytes, beyond.padding_bytes) == (1600, 0)
    assert serving("b", {}).buckets == []
    rng = np.random.default_rng(0)
    for _ in range(20):
        ranks = sorted(rng.choice(np.arange(1, 200), 6, replace=False).tolist())
        some = {r: Load(1, int(w), int(w) * r) for r, w in zip(ranks, rng.integers(100, 9000, 6), strict=True)}
        for parts in (1, 2, 3):
            tried = []
            for cuts in combinations(range(1, 6), parts - 1):
                groups = [ranks[a:b] for a, b in zip((0, *cuts), (*cuts, 6), strict=True)]
                tried.append(sum(padding(some[r], room_for(g[-1])) for g in groups for r in g))
            assert best_split(some, parts).padding_bytes == min(tried)


def unit(*rows):
    some = np.array(rows, float)
    return some / np.maximum(np.linalg.norm(some, axis=1), 1e-300)[:, None]


def test_sketches_are_candidates_if_the_signs_of_one_of_twelve_bands_of_ten_agree():
    rng = np.random.default_rng(0)
    one = rng.standard_normal(128)
    for band in range(12):
        other = -one
        other[10 * band : 10 * band + 10] *= -1.0
        assert candidate_pairs(unit(one, other)) == {(0, 1)}
        other[10 * band] *= -1.0
        assert candidate_pairs(unit(one, other)) == set()
    other = -one
    other[120:] *= -1.0  # in no band
    assert candidate_pairs(unit(one, other)) == set()
    assert candidate_pairs(np.zeros((2, 128))) == set()  # an update of zero is like none
    pairs = candidate_pairs(np.repeat(unit(one), 600, axis=0))  # of very many, neighbours only
    assert len(pairs) == sum(min(16, 599 - n) for n in range(600))


def block(*sketches):
    keys = {"base_model": "b", "shapes": "k"}
    return [{"path": str(n), "sketch": list(s), "content_hash": str(n), **keys} for n, s in enumerate(sketches)]


def test_pairs_are_looked_for_a_tenth_below_the_threshold_and_read_the_likeliest_first(monkeypatch):
    made = [np.where(np.arange(128) < 128 - flipped, 1.0, -1.0) for flipped in (0, 1, 4, 8, 10)]
    read: list[tuple[str, str]] = []
    exact = {("0", "1"): 0.97, ("0", "2"): 0.95}
    monkeypatch.setattr(comparing, "open_adapter", lambda path: (None, str(path)))
    monkeypatch.setattr(comparing, "update_cosine", lambda a, b: read.append((a, b)) or exact.get((a, b), 0.0))
    rows = block(*made)
    found = similar(rows, threshold=0.97, most=2)  # from .87 on: eight of ten pairs
    assert read == [("0", "1"), ("3", "4")]
    assert [(alike.paths, alike.cosine) for alike in found.near] == [(["0", "1"], 0.97)]  # at the threshold
    assert (found.compared, found.not_compared, found.all_pairs) == (2, 6, 10)
    rows[1]["content_hash"] = "0"
    again = similar(rows, threshold=0.97, most=9)
    assert ([alike.paths for alike in again.same], again.all_pairs) == ([["0", "1"]], 6)
    monkeypatch.undo()
    gone = similar(block(np.ones(128), np.ones(128)), threshold=0.99, most=5)  # there are no such files
    assert (gone.near, gone.compared, gone.not_compared) == ([], 0, 1)


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


def test_the_exact_cosine_is_the_dense_one_and_only_pairs_over_the_threshold_are_listed(tmp_path):
    one, two = factors(1), with_noise(factors(1), 0.2)
    folders = [peft(tmp_path / "one", one), peft(tmp_path / "two", two)]
    expected = float(np.prod(unit(dense(modules_of(one)), dense(modules_of(two))), axis=0).sum())
    assert update_cosine(*(open_adapter(folder)[1] for folder in folders)) == pytest.approx(expected, rel=1e-9)
    rows = block(sketched(modules_of(one)), sketched(modules_of(two)))
    for row, folder in zip(rows, folders, strict=True):
        row["path"] = str(folder)
    assert [a.cosine for a in similar(rows, threshold=expected - 1e-6, most=5).near] == [pytest.approx(expected)]
    assert similar(rows, threshold=expected + 1e-6, most=5).near == []
    assert similar(rows, threshold=expected - 1e-6, most=0).not_compared == 1
    assert similar([rows[0], rows[1] | {"base_model": "c"}], threshold=0.5, most=5).all_pairs == 0


def test_snapshots_of_one_repository_are_versions_of_one_adapter(tmp_path):
    repository = tmp_path / "models--acme--toy"
    paths = [f"{repository}/snapshots/{name}" for name in ("aa", "bb", "aa/sub")]
    rows = [{"path": path} for path in (*paths, f"{tmp_path}/snapshots/cc", f"{tmp_path}/snapshots/dd")]
    kept, notes = one_version(rows)
    assert {row["path"] for row in kept} == {row["path"] for row in rows} - {paths[0]}
    assert notes == [f"{repository} has 2 snapshots, versions of one adapter: of them bb is compared"]
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("aa\n")
    assert paths[1] not in {row["path"] for row in one_version(rows)[0]}


def test_the_page_has_every_list_and_no_script_and_is_as_private_as_the_fleet(fleet, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page, copy = tmp_path / "fleet.html", shutil.copytree(fleet, tmp_path / "fleet")
    assert main(["fleet", "show", str(fleet), "--html", str(page)]) == 0
    text = page.read_text()
    for word in ("What needs a look", "What could be cut away", "What a server pads", "What is equal", "another base"):
        assert word in text
    assert ("no adapter weights" in text, "<script" in text) == (True, False)
    assert page.stat().st_mode == (fleet / "fleet.json").stat().st_mode
    assert main(["fleet", "show", str(fleet), "--html", str(page)]) == 2
    assert "exists already" in capsys.readouterr().err
    for name in ("rows.jsonl", "page.md"):
        (tmp_path / name).write_text("mine")
        assert main(["fleet", "show", str(fleet), "--html", str(tmp_path / name), "--force"]) == 2
        assert capsys.readouterr().err.endswith(("or give --format)\n", "a page of HTML (name it .html)\n"))
        assert (tmp_path / name).read_text() == "mine"
    (copy / "fleet.json").chmod(0o600)
    assert main(["fleet", "show", str(copy), "--html", str(page), "--force"]) == 0
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
