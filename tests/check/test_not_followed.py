"""An adapter whose targets cannot be followed in a base is not counted there, and the rules on coverage say why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gradience import check_config

MLX = Path(__file__).parents[1] / "golden" / "configs" / "good" / "adapter_mlx.json"


def test_the_targets_of_mlx_lm_are_not_followed_in_a_base(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))
    shutil.copy(MLX, tmp_path / "adapter_config.json")
    report = check_config(peft=tmp_path, base=tmp_path / "base")
    assert report.coverage is None
    reason = "MLX-LM counts its layers from the end: its targets are not followed"
    assert reason in {item.reason for item in report.not_run}
