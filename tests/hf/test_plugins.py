"""The plugins for Axolotl and ms-swift, against the interfaces that their sources document: neither runs on a CPU here.

Axolotl: `axolotl.integrations.base` (BasePlugin, load_plugin); ms-swift 4: `swift.callbacks.mapping.callbacks_map`,
whose classes are made with (args, trainer). Read in November 2026.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def stand_in(monkeypatch):
    """A function that puts a module of given names in the place of one that is not installed."""

    def put(path, **names):
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            module = ModuleType(name)
            module.__path__ = []
            monkeypatch.setitem(sys.modules, name, module)
        vars(sys.modules[path]).update(names)
        return sys.modules[path]

    return put


class BasePlugin:
    """What a plugin inherits, of the methods that matter here."""

    def get_input_args(self):
        return None

    def add_callbacks_pre_trainer(self, cfg, model):
        return []

    def add_callbacks_post_trainer(self, cfg, trainer):
        return []


def test_axolotl_finds_the_plugin_its_settings_and_its_callback(training, stand_in, monkeypatch, log, tmp_path):
    pytest.importorskip("pydantic")
    stand_in("axolotl.integrations.base", BasePlugin=BasePlugin)
    monkeypatch.delitem(sys.modules, "gradience.axolotl", raising=False)
    module_name, class_name = ["gradience.axolotl", "GradiencePlugin"]  # as `load_plugin` does
    plugin = getattr(importlib.import_module(module_name), class_name)()
    where, args = plugin.get_input_args().rsplit(".", 1)
    settings = getattr(importlib.import_module(where), args)
    assert settings(gradience={"stop_on": ["NUM101"]}).gradience == {"stop_on": ["NUM101"]}
    assert plugin.add_callbacks_pre_trainer(None, None) == []
    run = training.trainer(tmp_path, max_steps=2)
    cfg = SimpleNamespace(
        gradience={"notes": "by plugin"},
        datasets=[{"path": "/home/me/talk.jsonl"}],
        chat_template="chatml",
        sequence_len=64,
    )
    for callback in plugin.add_callbacks_post_trainer(cfg, run):
        run.add_callback(callback)
    run.train()
    assert (log(tmp_path).steps, log(tmp_path)[0].config.notes) == ([1, 2], "by plugin")
    (fed,) = (event.metrics for event in log(tmp_path) if getattr(event, "kind", None) == "data")
    assert [fed[name] for name in ("dataset", "template", "max_length")] == ["talk.jsonl", "chatml", 64]
    (plain,) = plugin.add_callbacks_post_trainer(settings(), run)
    assert isinstance(plain, training.GradienceCallback)
    with pytest.raises(TypeError, match="stop_one"):
        plugin.add_callbacks_post_trainer(settings(gradience={"stop_one": 1}), run)
    monkeypatch.delitem(sys.modules, "gradience.axolotl")


def test_ms_swift_loads_the_file_and_makes_the_callback_by_its_name(
    training, warmed, stand_in, log, tmp_path, monkeypatch
):
    mapping = stand_in("swift.callbacks.mapping", callbacks_map={})
    done = warmed.run("-m", "gradience.swift")
    assert (done.returncode, done.stderr) == (0, "")
    plugin = Path(done.stdout.strip())
    monkeypatch.setattr(sys, "path", [str(plugin.parent), *sys.path])  # as `import_external_file` of ms-swift does
    spec = importlib.util.spec_from_file_location("external_plugin", plugin)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert str(plugin.parent) not in sys.path  # `import data` would be ours
    run = training.trainer(tmp_path, max_steps=2)
    run.add_callback(mapping.callbacks_map["gradience"](run.args, run))
    run.train()
    assert log(tmp_path).steps == [1, 2]
    plain = mapping.callbacks_map["gradience"](SimpleNamespace(), None)
    assert (isinstance(plain, training.GradienceCallback), plain._program) == (True, {})
    template = SimpleNamespace(max_length=64, template_meta=SimpleNamespace(template_type="qwen2_5"))
    told = mapping.callbacks_map["gradience"](
        SimpleNamespace(dataset=["/home/me/talk.jsonl#500"]), SimpleNamespace(template=template)
    )
    assert told._program == {"dataset": "talk.jsonl#500", "template": "qwen2_5", "max_length": 64}
