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


def test_after_its_limit_of_rollbacks_the_guard_stops_the_training_with_weights_that_are_good(run):
    model, events = run(3, 5, 7, every=1, cooldown=0, max_rollbacks=1)
    actions = _actions(events)
    assert [a for a in actions if a[0] in {"rollback", "stop"}] == [("rollback", 3), ("stop", 5)]
    assert actions[-1] == ("stop", 5)
    assert events.steps == [1, 2, 3, 4, 5]
    reason = "a non-finite gradient after 1 rollbacks, the limit"
    end = events.of("run_end")[0]
    assert (end.status, end.reason) == ("aborted", f"stopped at step 5 of 10 by the guard: {reason}")
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_nan_in_every_step_stops_the_training_after_so_many_running(run):
    _, events = run(*range(3, 41), max_steps=40, every=2, cooldown=20, max_bad=5)
    assert _actions(events)[-1] == ("stop", 8)
    assert events.steps[-1] == 8


def test_bad_gradients_that_do_not_follow_each_other_stop_nothing(run):
    _, events = run(3, 5, 7, 9, max_steps=10, every=1, cooldown=20, max_bad=1)
    assert events.steps[-1] == 10


def test_what_the_guard_did_is_in_the_verdict(training, callback, tmp_path):
    from gradience import diagnose, monitor_run
    from gradience.hf import Guard

    recorder = callback(guard=Guard(every=2, cooldown=2))
    training.trainer(tmp_path, recorder, cls=_poisons(training, 5, 6), max_steps=10).train()
    (found,) = [f for f in monitor_run(tmp_path).findings if f.id == "GUA150"]
    assert found.severity == "warning"
    assert "put back to those of step 4 at 5; 1 further steps were dropped, the first at 6" in found.message
    assert found.values == {"rollbacks": 1, "dropped": 2, "first_step": 5, "stopped_at": None}
    assert "GUA150" in {cause.id for cause in diagnose(tmp_path).causes}


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
