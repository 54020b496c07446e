"""What each format keeps where, by value: the flags decide what verbs write."""

from __future__ import annotations

from gradience.adapters.formats import FORMATS


def test_the_table_of_formats_is_this():
    flags = {
        (one.name, place): {
            name
            for name in (
                *("is_peft", "has_config", "module_paths", "component_prefix", "embeds_by_name", "convertible"),
            )
            if getattr(one, name)
        }
        for place, one in enumerate(FORMATS)
    }
    paths = {"has_config", "module_paths", "convertible"}
    assert flags == {
        ("mlx", 0): {*paths, "embeds_by_name"},
        ("torchtune", 1): {"has_config", "module_paths"},
        ("kohya", 2): {"convertible"},
        ("peft", 3): {*paths, "is_peft"},
        ("diffusers", 4): {"module_paths", "component_prefix", "convertible"},
        ("mlx", 5): {*paths, "embeds_by_name"},
    }
