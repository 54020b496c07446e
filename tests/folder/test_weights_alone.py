"""Weights whose config is lost are audited: the tensors tell the ranks, and it is said that the scale is not known."""

from __future__ import annotations

import numpy as np
from audited import save_adapter

from gradience.cli.main import main


def test_weights_without_a_config_are_audited_and_their_scale_is_said_to_be_unknown(tmp_path, capsys):
    draw = np.random.default_rng(0)
    save_adapter(tmp_path, [(0.01 * draw.normal(size=(16, 3)), draw.normal(size=(3, 24)))])
    (tmp_path / "adapter_config.json").unlink()
    assert main(["audit", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "but the scale s is not known; norms are" in shown
    assert "Update size" not in shown
    assert "gradience resize" not in shown
    assert main(["resize", str(tmp_path), "--rank", "2", "--dry-run"]) == 2
    assert main(["audit", str(tmp_path), "--base", str(tmp_path)]) == 2
