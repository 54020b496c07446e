"""With the recorder on, spectral probe included, a seeded run is the run it was: bit for bit."""

from __future__ import annotations

import hashlib
import pickle
import random
import sys

import numpy as np
import pytest


def _digest(*parts):
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else pickle.dumps(part))
    return found.hexdigest()


def _bits(tensor):
    return tensor.detach().cpu().contiguous().numpy().tobytes()


@pytest.fixture(scope="module")
def trace(training, tmp_path_factory):
    """A function that trains with the given callbacks and returns every loss, gradient, weight and random state."""

    class Tracer(training.TrainerCallback):
        def __init__(self):
            self.rows = []

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            grads = [_bits(p.grad) for p in kwargs["model"].parameters() if p.grad is not None]
            assert grads
            self.rows.append(("gradients", state.global_step, _digest(*grads)))

        def on_step_end(self, args, state, control, **kwargs):
            weights = [_bits(p) for p in kwargs["model"].parameters()]
            numpy = np.random.get_state()  # noqa: NPY002  # the global state is what a data pipeline uses
            states = random.getstate(), numpy, training.torch.get_rng_state().numpy().tobytes()
            self.rows.append(("weights", state.global_step, _digest(*weights)))
            self.rows.append(("random", state.global_step, _digest(*states)))

    def run(*callbacks):
        tracer = Tracer()

        class Traced(training.Trainer):
            def training_step(self, *given):
                loss = super().training_step(*given)
                tracer.rows.append(("loss", self.state.global_step, _digest(_bits(loss))))
                random.random()  # noqa: S311  # a data pipeline draws from all three
                np.random.random()  # noqa: NPY002
                return loss

        model, evals = training.llama(seed=5), {"a": training.sequences(4, seed=2), "b": training.sequences(4, seed=3)}
        given = {"eval_strategy": "steps", "eval_steps": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 0.01}
        made = training.trainer(
            tmp_path_factory.mktemp("trace"), *callbacks, tracer, model=model, evals=evals, cls=Traced, **given
        )
        training.set_seed(11)
        made.train()
        return tracer.rows

    return run


@pytest.fixture(scope="module")
def without(trace):
    return trace()


def test_the_trace_would_show_a_single_draw_of_a_random_number(trace, without, training):
    class Draws(training.TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            training.torch.rand(1)

    assert trace(Draws()) != without


def test_the_recorder_and_its_probe_change_no_loss_gradient_weight_or_random_state(trace, without, callback):
    assert trace(callback(spectral_every=1)) == without
    assert len(without) == 6 * (2 + 1 + 2)
    assert "jax" in sys.modules


def test_the_first_probe_of_a_process_leaves_the_random_states_though_importing_jax_draws_from_numpy(warmed):
    program = """
import random, sys, numpy as np, torch
from gradience.hf.probe import spectral_metrics
class Lora(torch.nn.Module):
    active_adapters, scaling = ["default"], {"default": 2.0}
    def __init__(self):
        super().__init__()
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(8, 4)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(4, 8)})
model = torch.nn.Sequential(Lora())
def states():
    _, words, position, *_ = np.random.get_state()
    return random.getstate(), words.tolist(), position, torch.get_rng_state().tolist()
before = states()
assert "jax" not in sys.modules
assert spectral_metrics(model)["n_layers"] == 1
assert "jax" in sys.modules
assert states() == before
"""
    done = warmed.run("-c", program)
    assert done.returncode == 0, done.stderr
