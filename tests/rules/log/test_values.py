"""The values and the confidence of findings of the rules on logs, which programs read in `--json`."""

from __future__ import annotations

from typing import Any

import pytest
from log_runs import ENTRIES, said
from tables import every

VALUES: dict[str, tuple[str, float, float, dict[str, Any]]] = {  # rule: an edge of its entry, on which side, and both
    "NUM102": ("rounds_to_zero", 0.0505, 0.9, {"rows": 2, "first_step": 21, "gradient_rows": 0}),
    "NUM131": ("skips_shown", 10, 0.9, {"rows": 10, "share": 0.1667, "first_step": 6}),
    "DIV103": ("spike_k", 1.305, 0.5, {"spikes": 1, "longest": 1, "step": 41, "loss": 2.61, "times": 6.1}),
    "DIV104": ("diverged_ratio", 1.51, 0.9,
        {"first": 1.0, "lowest": 1.0, "lowest_step": 1, "last": 1.51, "peak_rate": 0.0002}),
    "SCL129": ("scale_ratio", 3.02, 0.85,
        {"factor": 3.02, "nearest": 4, "accumulation": None, "train": 3.926, "held_out": 1.3}),
    "NOL106": ("least_fall", 0.0222, 0.75, {"first": 1.99886, "last": 1.95958, "drop": 0.01965, "most": 0.022213}),
    "PLT105": ("flat_points", 17, 0.5,
        {"drop": 0.0, "most": 0.0, "level": 2.0, "from_step": 12, "how": "no longer falls"}),
    "GRD107": ("gradient_k", 7.5, 0.75, {"step": 41, "norm": 7.5, "usual": 1.0, "longest": 3}),
    "GRD108": ("vanished_ratio", 0.00098, 0.85, {"step": 31, "rows": 6, "early": 1.0}),
    "LRS109": ("zero_rate_rows", 3, 0.85, {"rows": 3, "step": 1, "throughout": False}),
    "LRS133": ("ended", 54, 0.9, {"step": 54, "peak": 8.993e-05, "warmup_steps": None}),
    "OVF110": ("overfit_rise", 0.0205, 0.85, {"fits": True, "split": "eval", "best_step": 30, "lowest_step": 30,
        "from_step": 30, "best_loss": 1.2, "last_step": 60, "last_loss": 1.225, "rise": 0.0205, "noise": 0.0,
        "metric": None, "metric_last": None, "metric_best": None, "metric_gained": False}),
    "GAP111": ("loss_gap", 1.51, 0.6, {"split": "eval", "held_out": 2.412, "train": 2.0, "step": 60, "ratio": 1.51,
        "nats": 0.4121, "threshold": 1.5, "rises": False}),
    "EVL134": ("not_finite", 0, 0.95, {"evaluations": 1}),
    "SML113": ("small_eval", 1060, 0.95, {"n": 1060, "half_width": 0.0301}),
    "UND126": ("unfinished_fall", 0.8905, 0.5,
        {"split": "eval", "fall": 0.01056, "from_step": 40, "to_step": 60, "error": 0.0}),
    "CHN112": ("chance_z", 0.5405, 0.85, {"accuracy": 0.5405, "chance": 0.5, "margin": 0.041}),
    "REP128": ("many_epochs", 20.0, 0.8, {"epochs": 20.0, "first": 1.958, "last": 1.263}),
    "MEM127": ("epoch_drop", 0.051, 0.6, {"drops": [0.051, 0.051], "epochs": 3.0}),
    "PRF119": ("two_errors", 0.567, 0.6, {"accuracy": 0.567, "error": 0.039, "margin": 0.0, "how": "not told apart"}),
    "PRF140": ("tie", 9e-05, 0.9, {"rows": 20, "why": "same texts"}),
    "PRF120": ("chosen_fall", 1.01, 0.5, {"first": 0.0, "last": -1.01, "both": False, "much": False}),
    "PRF130": ("saturated_loss", 0.0195, 0.85,
        {"first_loss": 0.69, "loss": 0.0195, "first_margin": 0.0, "margin": 9.0}),
    "RWN139": ("null_rows", 18, 0.9, {"missing": 2, "rows": 20}),
    "RWS143": ("rescaled", 2.01, 0.8, {"step": 11, "factor": 2.01}),
    "RWD122": ("alpha", 0.00964, 0.7, {"first": 2.1, "best": 2.1, "best_step": 1, "last": 1.6}),
    "ZVR123": ("zero_groups", 0.51, 0.6, {"share": 0.51, "from_step": 21}),
    "ENT135": ("collapsed", 0.21, 0.8, {"first": 2.0, "last": 0.21, "step": 1, "how": "fell"}),
    "KLD124": ("kl_answer", 101.0, 0.6, {"late": 101.0, "unit": "a completion"}),
    "KLZ138": ("kl_none", 9e-07, 0.8, {"rows": 20}),
    "CLF137": ("clipped_much", 0.31, 0.7, {"share": 0.31, "first_step": 1, "last_step": 10}),
    "CLP125": ("cut_off", 0.51, 0.7, {"share": 0.51}),
    "LEN136": ("longer", 20.1, 0.6, {"first": 10.0, "last": 20.1, "how": "grew", "reward_rises": False}),
    "RAT141": ("rate_of_weights", 0.05, 0.8, {"peak_rate": 0.05}),
    "END114": ("ended", 1, 0.9, {}),
    "TRN115": ("torn", 2, 1.0, {"lines": 2}),
    "RES116": ("replayed_again", 1, 1.0, {"resumed_from": [10, 20], "sessions": 0, "replayed": 0, "difference": None}),
    "DUP117": ("interleaved", 1, 0.9, {"duplicates": 0, "out_of_order": 0, "interleaved": 1}),
    "GAP118": ("few_rows", 2, 0.95, {"rows": 2, "evals": 0}),
}  # fmt: skip


@every("rule", VALUES)
def test_a_finding_has_these_values_and_this_confidence(rule: str) -> None:
    number, at, confidence, values = VALUES[rule]
    edge = next(edge for edge in ENTRIES[rule].edges if edge.number == number)
    found = said(rule, edge.make(at))
    assert found.confidence == confidence
    assert found.values.keys() == values.keys()
    for name, value in values.items():
        held = found.values[name]
        assert held == (pytest.approx(value, rel=1e-3) if isinstance(value, float | list) else value), name
