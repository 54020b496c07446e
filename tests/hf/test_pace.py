"""The speed and memory of a training: the numbers by hand, and what a real Trainer leaves."""

from __future__ import annotations

import pytest
import torch

from gradience.hf.pace import PaceMeter


class Model(torch.nn.Module):
    """Takes tokens, as a language model does."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """Do nothing."""


def test_a_window_by_hand():
    """Two steps of 3 s, of which each waits 1 s; an evaluation of 100 s between them is in neither."""
    now = [0.0]
    model = Model()
    pace = PaceMeter(model, every=2, clock=lambda: now[0])
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    for step in range(2):
        pace.end(0)
        now[0] += 1
        pace.begin()
        model(input_ids=mask, attention_mask=mask)
        now[0] += 2
        assert pace.look() == {}
        pace.end()
        if step == 0:
            now[0] += 100
            pace.rest()
    found = pace.look()
    assert (found["steps"], found["seconds_per_step"], found["waiting_share"]) == (2, 3.0, pytest.approx(1 / 3))
    assert (found["tokens_per_second"], found["padded_tokens_per_second"]) == (10 / 6, 16 / 6)
    assert (found["longest"], found["rows"]) == (4, 2)
    assert found["peak_bytes"] >= found["held_bytes"] > 0
    assert pace.look() == {}
    model.eval()
    model(input_ids=mask, attention_mask=mask)
    pace.close()
    model.train()(input_ids=mask, attention_mask=mask)
    assert pace._room == 0  # neither an evaluation nor a closed hook counts


def test_a_trainer_leaves_a_window_for_ten_steps(training, callback, log, tmp_path):
    training.trainer(tmp_path, callback(), max_steps=25).train()
    windows = log(tmp_path).of("throughput")
    assert [(one.step, one.steps) for one in windows] == [(10, 10), (20, 10)]
    assert all(one.seconds_per_step > 0 and 0 <= one.waiting_share < 1 for one in windows)
    assert all(0 < one.tokens_per_second <= one.padded_tokens_per_second for one in windows)
