"""The guard, experimental: what it does when a gradient is not finite, and that it is off unless asked for."""

from __future__ import annotations

import math

import pytest


def _actions(events):
    return [(e.metrics["action"], e.step) for e in events.kind("guard")]


def _poisons(training, *steps):
    """A Trainer whose gradients are NaN in the given steps, as after a bad batch."""

    class Poisoned(training.Trainer):
        def training_step(self, model, *given):
            loss = super().training_step(model, *given)
            if self.state.global_step + 1 in steps:
                next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.nan)
            return loss

    return Poisoned


def _trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def run(training, callback, log, tmp_path_factory):
    """A function that trains with NaN gradients in the given steps and returns the model and its log."""
    from gradience.hf import Guard

    def train(*steps, acts=(), max_steps=10, **guard):
        out = tmp_path_factory.mktemp("guard")
        model = training.llama()
        given = {"every": 2, "cooldown": 2, **guard}
        recorder = callback(guard=Guard(**given) if guard is not None else None)
        made = training.trainer(
            out, *acts, recorder, model=model, cls=_poisons(training, *steps), max_steps=max_steps, learning_rate=1e-2
        )
        made.train()
        return model, log(out)

    return train


def test_off_by_default_it_is_not_even_imported_by_a_run(training, callback, log, tmp_path, monkeypatch):
    from gradience.hf import guard

    monkeypatch.setattr(guard.Watch, "over", lambda *_: pytest.fail("the guard was put on duty"))
    recorder = callback()
    training.trainer(tmp_path, recorder, cls=_poisons(training, 3)).train()
    assert recorder._watch is None
    events = log(tmp_path)
    assert events.kind("guard") == []
    assert [e.grad_norm for e in events.of("train_step")][3:] == ["NaN"] * 3  # and so the run was not saved


def test_one_bad_gradient_is_dropped_and_the_weights_go_back_to_the_copy(training, run):
    seen = {}
    acts = [
        training.At(4, lambda model: seen.update(copied=_trained(model))),
        training.At(5, lambda model: seen.update(after=_trained(model))),
    ]
    model, events = run(5, acts=acts)
    assert _actions(events)[:4] == [("arm", 0), ("snapshot", 2), ("snapshot", 4), ("rollback", 5)]
    assert events.kind("guard")[3].metrics["to_step"] == 4
    assert all(training.torch.equal(seen["copied"][name], p) for name, p in seen["after"].items())
    assert all(p.isfinite().all() for p in model.parameters())
    assert [isinstance(e.grad_norm, float) for e in events.of("train_step")] == [i != 4 for i in range(10)]


def test_while_cooling_down_a_bad_step_is_only_dropped(run):
    _, events = run(5, 6)
    assert _actions(events)[3:] == [("rollback", 5), ("drop", 6), ("snapshot", 8), ("snapshot", 10)]


def test_a_rollback_that_did_not_help_takes_an_older_copy(run):
    _, events = run(5, 6, every=2, cooldown=0)
    back = [e.metrics for e in events.kind("guard") if e.metrics["action"] == "rollback"]
    assert [found["to_step"] for found in back] == [4, 2]


def test_without_a_copy_the_step_is_dropped_and_nothing_else(run):
    _, events = run(1)
    assert _actions(events)[:2] == [("arm", 0), ("drop", 1)]


def test_after_its_limit_the_guard_stands_down_and_touches_nothing(run):
    model, events = run(3, 5, 7, every=1, cooldown=0, max_rollbacks=1)
    actions = _actions(events)
    assert [a for a in actions if a[0] in {"rollback", "stand_down"}] == [("rollback", 3), ("stand_down", 5)]
    assert actions[-1] == ("stand_down", 5)
    assert any(not p.isfinite().all() for p in model.parameters())  # the NaN of step 7 went through


def test_it_stands_down_where_it_must_not_act(training):
    from types import SimpleNamespace

    from gradience.hf.guard import Guard, Watch

    said = []
    for args in (SimpleNamespace(fp16=True), SimpleNamespace(fp16=False, deepspeed=None, fsdp="full_shard")):
        watch = Watch.over(Guard(), training.llama(), args, 0, lambda _step, action: said.append(action["action"]))
        assert not watch.on
    assert said == ["stand_down", "stand_down"]


def test_a_guard_that_fails_goes_off_and_training_goes_on(training, callback, log, tmp_path, monkeypatch):
    from gradience.hf import guard

    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(guard.Watch, "before_step", fail)
    recorder = callback(guard=True)
    with pytest.warns(RuntimeWarning, match="could not be recorded"):
        training.trainer(tmp_path, recorder).train()
    assert recorder._watch is None
    assert log(tmp_path).steps == [1, 2, 3, 4, 5, 6]


def test_counts_that_make_no_sense_are_refused():
    from gradience.hf import Guard

    with pytest.raises(ValueError, match="every must be at least 1"):
        Guard(every=0)
