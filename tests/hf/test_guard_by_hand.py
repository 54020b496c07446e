"""The guard step by step, on one weight that grows by one with each good step."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the hf extra: pip install 'gradience[hf]'")

from gradience.hf.guard import Guard, Watch  # noqa: E402  # needs torch

USUAL = {"every": 2, "ring": 2, "cooldown": 3, "max_rollbacks": 2, "max_bad": 3}
HEALTHY = SimpleNamespace(fp16=False, deepspeed=None, fsdp="")
COPIES = [(2, "snapshot", 1), (4, "snapshot", 2)]


def played(bad, steps, *, broken=None, **counts):
    """What the guard did, with its one number or its reason, and the weight at the end."""
    model, done = torch.nn.Linear(1, 1, bias=False), []
    weight = model.weight
    with torch.no_grad():
        weight.zero_()

    def report(step, action):
        kind = action.pop("action")
        done.append((step, kind, action.get({"snapshot": "copies", "rollback": "to_step"}.get(kind, "reason"))))

    watch = Watch.over(Guard(**(USUAL | counts)), model, HEALTHY, 0, report)
    for step in range(1, steps + 1):
        weight.grad = torch.full_like(weight, math.nan if step in bad else 1.0)
        if watch.before_step(step) is not None:
            break
        with torch.no_grad():
            if weight.grad is not None:
                weight += 1
            if step == broken:
                weight.fill_(math.inf)
        watch.after_step(step)
    assert done[0] == (0, "arm", None)
    return done[1:], weight.item()


COOLING = "non-finite gradient, cooling down"


@pytest.mark.parametrize(
    ("bad", "steps", "counts", "done", "weight"),
    [
        # copies of every second step, but not of the three after a rollback; two are kept
        ({5}, 10, {}, [*COPIES, (5, "rollback", 4), (8, "snapshot", 2), (10, "snapshot", 2)], 9.0),
        ({5}, 10, {"ring": 3}, [*COPIES, (5, "rollback", 4), (8, "snapshot", 3), (10, "snapshot", 3)], 9.0),
        ({5}, 7, {"every": 3}, [(3, "snapshot", 1), (5, "rollback", 3)], 5.0),
        # the next bad step is dropped while cooling down, and goes back further after it
        ({5, 7}, 7, {}, [*COPIES, (5, "rollback", 4), (7, "drop", COOLING)], 5.0),
        ({5, 8}, 8, {}, [*COPIES, (5, "rollback", 4), (8, "rollback", 2)], 2.0),
        ({5, 6}, 5, {"cooldown": 0}, [*COPIES, (5, "rollback", 4)], 4.0),
        ({5, 6}, 6, {"cooldown": 0}, [*COPIES, (5, "rollback", 4), (6, "rollback", 2), (6, "snapshot", 2)], 2.0),
        # to a copy that was made since, where there is one
        ({5, 9}, 9, {}, [*COPIES, (5, "rollback", 4), (8, "snapshot", 2), (9, "rollback", 8)], 7.0),
        # no copy is left
        ({1}, 1, {}, [(1, "drop", "non-finite gradient, no copy to go back to")], 0.0),
        (
            {3, 6},
            6,
            {},
            [
                (2, "snapshot", 1),
                (3, "rollback", 2),
                (6, "drop", "non-finite gradient, no copy to go back to"),
                (6, "snapshot", 1),
            ],
            4.0,
        ),
        # rollbacks have a limit, which counts once they are over
        ({5, 8, 10}, 10, {}, [*COPIES, (5, "rollback", 4), (8, "rollback", 2), (10, "drop", COOLING)], 3.0),
        (
            {5, 8, 11},
            12,
            {},
            [
                *COPIES,
                (5, "rollback", 4),
                (8, "rollback", 2),
                (11, "stop", "a non-finite gradient after 2 rollbacks, the limit"),
            ],
            4.0,
        ),
        # and so have bad steps running
        (
            {5, 6, 7, 8},
            9,
            {},
            [
                *COPIES,
                (5, "rollback", 4),
                (6, "drop", COOLING),
                (7, "drop", COOLING),
                (8, "stop", "non-finite gradients in 4 steps running"),
            ],
            4.0,
        ),
        (
            {5, 6, 7, 8},
            8,
            {"max_bad": 4},
            [*COPIES, (5, "rollback", 4), (6, "drop", COOLING), (7, "drop", COOLING), (8, "rollback", 2)],
            2.0,
        ),
        (
            {5, 6, 8, 9},
            9,
            {"max_bad": 2, "cooldown": 9},
            [*COPIES, (5, "rollback", 4), *((step, "drop", COOLING) for step in (6, 8, 9))],
            5.0,
        ),
    ],
)
def test_what_the_guard_does_step_by_step(bad, steps, counts, done, weight):
    assert played(bad, steps, **counts) == (done, weight)


def test_weights_that_are_not_finite_are_not_copied():
    assert played({}, 5, broken=4) == ([(2, "snapshot", 1)], math.inf)


@pytest.mark.parametrize(
    ("name", "least"), [("every", 1), ("ring", 1), ("cooldown", 0), ("max_rollbacks", 1), ("max_bad", 1)]
)
def test_a_count_has_a_least(name, least):
    assert getattr(Guard(**{name: least}), name) == least
    with pytest.raises(ValueError, match=f"^{name} must be at least {least}, not {least - 1}$"):
        Guard(**{name: least - 1})


@pytest.mark.parametrize(
    ("args", "trains", "reason"),
    [
        ({"fp16": True}, True, "fp16 loss scaling skips non-finite steps itself"),
        ({"deepspeed": "x"}, True, "weights may be sharded over processes"),
        ({"fsdp": "full_shard"}, True, "weights may be sharded over processes"),
        ({}, False, "no trainable weight"),
    ],
)
def test_the_guard_stands_down_and_says_why(args, trains, reason):
    model, done = torch.nn.Linear(1, 1).requires_grad_(trains), []
    given = SimpleNamespace(**{**vars(HEALTHY), **args})
    watch = Watch.over(Guard(every=1), model, given, 7, lambda *event: done.append(event))
    watch.after_step(8)
    assert watch.before_step(9) is None
    assert done == [(7, {"action": "stand_down", "reason": reason})]
