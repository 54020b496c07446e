"""What is said of adapters side by side: names, fields, modules in common and overlaps, worked out on paper."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hand_made import adapter

from gradience.errors import AdapterError
from gradience.rewriting.sides import (
    StoredAdapter,
    config_differences,
    described,
    matched,
    mean_overlaps,
    open_sides,
    raw_config,
    side_overlap,
)
from gradience.schema.compare import Overlap, SideOverlap


def save(folder: Path, modules: dict[str, tuple[int, int, int]], **config: Any) -> Path:
    """An adapter with modules of these (out, r, in)."""
    ones = {
        name: (np.ones((out, r), np.float32), np.ones((r, width), np.float32))
        for name, (out, r, width) in modules.items()
    }
    return adapter(folder, ones, **{"r": 4, "lora_alpha": 8, **config})


def test_two_adapters_at_least_are_compared(tmp_path):
    one = save(tmp_path / "one", {"m.q": (6, 2, 5)})
    with pytest.raises(AdapterError, match=r"^1 adapters given, expected at least two"):
        open_sides([one])
    two = save(tmp_path / "two", {"m.q": (6, 3, 5), "m.v": (4, 2, 5)}, rank_pattern={"v": 2}, r=3)
    first, second = open_sides([one, two])
    assert (first.name, second.name) == ("one", "two")
    row = described(second, 1.5, step=7)
    assert (row.name, row.path, row.modules, row.rank, row.frobenius_norm, row.step) == (
        "two",
        str(two),
        2,
        [2, 3],
        1.5,
        7,
    )
    assert (row.scaling, row.peft_type, row.format) == ([8 / 3, 4.0], "LORA", "peft")


def test_modules_are_matched_by_name_and_shape_in_natural_order(tmp_path):
    sides = open_sides(
        [
            save(tmp_path / "a", {"m.10.q": (6, 2, 5), "m.9.q": (6, 2, 5), "m.1.v": (6, 2, 5)}),
            save(tmp_path / "b", {"m.10.q": (6, 1, 5), "m.9.q": (6, 2, 7), "m.2.k": (3, 2, 5)}),
        ]
    )
    found = matched(sides)
    assert list(found.rows) == ["m.1.v", "m.2.k", "m.10.q"]
    assert found.odd == ["m.9.q"]
    assert [(only.module, only.adapters) for only in found.partial] == [("m.1.v", ["a"]), ("m.2.k", ["b"])]
    assert [[m and m.r for m in row] for row in found.rows.values()] == [[2, None], [None, 2], [2, 1]]


def test_adapters_without_a_module_in_common_are_refused_unless_that_is_allowed(tmp_path):
    sides = open_sides([save(tmp_path / "a", {"m.q": (6, 2, 5)}), save(tmp_path / "b", {"m.v": (6, 2, 5)})])
    with pytest.raises(AdapterError, match=r"no module in common \(a has m\.q, b has m\.v\)"):
        matched(sides)
    assert len(matched(sides, overlapping=False).partial) == 2
    three = open_sides([*(side.path for side in sides), save(tmp_path / "c", {"m.v": (6, 2, 5)})])
    assert [len([m for m in row if m]) for row in matched(three).rows.values()] == [1, 2]


def of_config(name: str, **raw: Any) -> StoredAdapter:
    return StoredAdapter(Path(name), None, None, raw, None, name)  # type: ignore[arg-type]  # only the config is looked at


def test_fields_differ_by_what_they_mean():
    one = of_config("a", r=8, target_modules=["v", "q"], bias="", inference_mode=True, peft_version="1", auto_mapping=1)
    two = of_config("b", r=8, target_modules=["q", "v"], modules_to_save=[], rank_pattern={}, inference_mode=False)
    assert config_differences([one, two]) == []
    two = of_config("b", r=16, target_modules=["q"], layers_pattern=["b", "a"])
    three = of_config("c", r=8, target_modules=["q"], layers_pattern=["a", "b"])
    found = {item.key: item.values for item in config_differences([one, two, three])}
    assert found == {
        "layers_pattern": [None, ["b", "a"], ["a", "b"]],  # the order of any other list means something
        "r": [8, 16, 8],
        "target_modules": [["q", "v"], ["q"], ["q"]],
    }


def test_overlaps_are_of_powers_of_two_and_of_the_whole():
    cross = np.eye(5, 6)
    found = side_overlap(cross, np.ones(5), 50)
    assert [(o.i, o.j) for o in found.overlaps] == [(1, 1), (2, 2), (4, 4), (5, 6)]
    assert [o.phi for o in found.overlaps] == [1.0] * 4
    assert found.overlaps[1].chance == pytest.approx(2 / 50)  # E phi(i, j) = max(i, j) / d
    assert found.overlaps[3].chance == pytest.approx(6 / 50)
    assert found.angles == [0.0] * 5
    assert [(o.i, o.j) for o in side_overlap(np.eye(4), np.ones(4), 9).overlaps] == [(1, 1), (2, 2), (4, 4)]
    cosines = np.array([math.cos(math.radians(30)), 0.5])
    turned = side_overlap(np.diag(cosines), cosines, 9)
    assert turned.angles == pytest.approx([30.0, 60.0])
    assert len(side_overlap(np.eye(20), np.ones(20), 40).angles) == 16


def of_phi(*some: tuple[int, int, float, float]) -> SideOverlap:
    return SideOverlap(overlaps=[Overlap(i=i, j=j, phi=p, chance=c, chance_sd=c / 2) for i, j, p, c in some], angles=[])


def test_the_mean_over_modules_is_of_equal_powers_of_two():
    one = of_phi((1, 1, 0.2, 0.1), (2, 2, 0.4, 0.2), (3, 3, 0.9, 0.3))
    two = of_phi((1, 1, 0.6, 0.3), (4, 5, 0.9, 0.3))
    found = mean_overlaps([one, None, two])
    assert [(o.i, o.j) for o in found] == [(1, 1), (2, 2)]
    assert (found[0].phi, found[0].chance) == (pytest.approx(0.4), pytest.approx(0.2))
    assert found[0].chance_sd == pytest.approx(math.hypot(0.05, 0.15) / 2)
    assert (found[1].phi, found[1].chance_sd) == (pytest.approx(0.4), pytest.approx(0.1))
    assert mean_overlaps([of_phi((1, 1, 1.0 + 1e-9, 0.1))])[0].phi == 1.0


def test_a_config_is_a_json_object():
    for text in (b"[1]", b"{"):
        with pytest.raises(AdapterError, match=r"c\.json is not an adapter config"):
            raw_config(Path("c.json"), text)
    assert raw_config(Path("c.json"), b'{"r": 8, "new": [1]}') == {"r": 8, "new": [1]}


def test_an_adapter_without_a_pair_is_refused_with_the_reason(tmp_path, monkeypatch):
    one = save(tmp_path / "one", {"m.q": (6, 2, 5)})
    bare = SimpleNamespace(modules=[], skipped=[])
    stored = StoredAdapter(tmp_path, None, bare, {}, None)  # type: ignore[arg-type]  # only its modules are looked at
    monkeypatch.setattr("gradience.rewriting.sides.open_stored", lambda _: stored)
    with pytest.raises(AdapterError, match="it holds no LoRA pair"):
        open_sides([one, one])
    bare.skipped = [SimpleNamespace(reason="a strange shape"), SimpleNamespace(reason="another")]
    with pytest.raises(AdapterError, match="a strange shape"):
        open_sides([one, one])
